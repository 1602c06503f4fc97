package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/web"
	"github.com/spf13/pflag"
)

// Verb is a verb of the table, as programs read of it.
type Verb struct {
	Name    string `json:"name"` // e.g. images list
	Path    string `json:"path"` // e.g. /api/v1/verbs/images/list
	Args    string `json:"args,omitempty"`
	MinArgs int    `json:"min_args"`
	MaxArgs int    `json:"max_args"` // -1: any number
	Short   string `json:"short"`
	Long    string `json:"long,omitempty"`
	Example string `json:"example,omitempty"`
	Need    string `json:"need"`            // reader, maintainer or admin
	Looks   bool   `json:"looks,omitempty"` // changes nothing: GET will do
	Input   bool   `json:"input,omitempty"` // may take a file as its body
	JSON    bool   `json:"json,omitempty"`  // answers with JSON
	Flags   []Flag `json:"flags"`
}

// Flag is a flag of a verb.
type Flag struct {
	Name    string `json:"name"`
	Type    string `json:"type"` // as pflag has it: bool, string, int, stringSlice, ...
	Default string `json:"default,omitempty"`
	Usage   string `json:"usage"`
}

// Words is a call of a verb as JSON.
type Words struct {
	Args  []string       `json:"args,omitempty"`
	Flags map[string]any `json:"flags,omitempty"` // text, numbers, true, false, or lists of text
}

// maxHeld is how much of a verb's answer is kept until it has ended, so that the
// status can still tell how it went. What is longer is sent as it comes.
const maxHeld = 32 << 20

// verbs are those of the table that a door may show.
func (a *API) verbs() (list []*control.Verb) {
	for _, v := range a.opts.Verbs {
		if !v.Hidden && v.Need != control.Local {
			list = append(list, v)
		}
	}
	return list
}

func verbPath(v *control.Verb) string {
	return "/api/v1/verbs/" + strings.Join(strings.Fields(v.Name), "/")
}

func takesInput(v *control.Verb) bool { return v.File > 0 || v.Send != "" || v.Raw }

func needOf(v *control.Verb) string {
	switch v.Need {
	case control.Push:
		return "maintainer"
	case control.Admin:
		return "admin"
	}
	return "reader"
}

func flagsOf(v *control.Verb) []Flag {
	flags := []Flag{}
	v.NewFlags().VisitAll(func(f *pflag.Flag) {
		flags = append(flags, Flag{f.Name, f.Value.Type(), f.DefValue, f.Usage})
	})
	return flags
}

func (a *API) listVerbs(w http.ResponseWriter, r *http.Request) error {
	list := []Verb{}
	for _, v := range a.verbs() {
		list = append(list, Verb{Name: v.Name, Path: verbPath(v), Args: v.Args, MinArgs: v.MinArgs, MaxArgs: v.MaxArgs, Short: v.Short, Long: v.Long, Example: v.Example,
			Need: needOf(v), Looks: v.Looks, Input: takesInput(v), JSON: !v.Text, Flags: flagsOf(v)})
	}
	return send(w, r, http.StatusOK, list)
}

// verbRoutes are those made from the table: POST for every verb, and GET for
// those that only look.
func (a *API) verbRoutes() (list []route) {
	for _, v := range a.verbs() {
		params := []param{}
		if v.MaxArgs != 0 {
			params = append(params, param{"query", "arg", "words of the call: " + v.Args, listOf(text), false})
		}
		for _, f := range flagsOf(v) {
			params = append(params, param{"query", f.Name, f.Usage, flagSchema(f.Type), false})
		}
		id := "verb"
		for _, w := range strings.Fields(v.Name) {
			id += strings.ToUpper(w[:1]) + w[1:]
		}
		types := map[string]any{"text/plain": text}
		if !v.Text {
			types["application/json"] = anyJSON
			if v.Plain == nil && v.NewFlags().Lookup("follow") != nil {
				types["application/jsonl"] = anyJSON
			}
		}
		base := route{path: verbPath(v), tag: "verbs", short: v.Short, long: v.Long, params: params,
			answers: []answer{{200, "what the verb prints", types, []string{"Quarry-Exit"}}},
			errors:  []int{400, 403, 404, 422}, handle: func(w http.ResponseWriter, r *http.Request) error { return a.call(w, r, v) }}
		post := base
		post.method, post.id = "POST", id
		post.body = &body{types: map[string]any{"application/json": schemaOf[Words]()}}
		if takesInput(v) {
			post.body.types["application/octet-stream"] = nil
		}
		list = append(list, post)
		if v.Looks {
			get := base
			get.method, get.id = "GET", id+"ByQuery"
			list = append(list, get)
		}
	}
	return list
}

func flagSchema(kind string) any {
	switch kind {
	case "bool":
		return boolean
	case "int", "int64", "count":
		return map[string]any{"type": "integer"}
	case "stringSlice", "stringArray":
		return listOf(text)
	}
	return text
}

// call calls a verb.
func (a *API) call(w http.ResponseWriter, r *http.Request, v *control.Verb) error {
	argv, in, err := words(r, v)
	if err != nil {
		return err
	}
	name := len(strings.Fields(v.Name))
	flags := v.NewFlags()
	if err := flags.Parse(argv[name:]); err != nil && !errors.Is(err, pflag.ErrHelp) {
		return usage("%s: %w: /api/v1/verbs lists the flags of each verb", v.Name, err)
	}
	follow, _ := flags.GetBool("follow")
	command := v.Raw && flags.NArg() > 0 // a program of the caller's own
	live := follow || command || v.Keys || v.Plain != nil && v.Plain(flags)
	asText := v.Text || command || v.Plain != nil && v.Plain(flags)
	if f := flags.Lookup("json"); f != nil && !asText {
		// Who does not ask for text gets JSON from a verb that has it.
		if asText = f.Changed && f.Value.String() != "true" || !f.Changed && prefers(r, "text/plain", "application/json"); !asText {
			argv = slices.Insert(argv, name, "--json")
		}
	}
	out := &reply{w: w, kind: "application/json", live: live, command: command}
	switch {
	case asText:
		out.kind = "text/plain; charset=utf-8"
	case follow:
		out.kind = "application/jsonl"
	}
	ctx := r.Context()
	if live {
		streamed, end, ok := web.Stream(w, r)
		if !ok {
			return nil
		}
		defer end()
		ctx = streamed
	}
	var errOut tail
	var stdin io.Reader
	if in != nil {
		stdin = in
	}
	code := a.opts.Verbs.Run(ctx, web.Who(r.Context()), argv, stdin, out, &errOut, control.Terminal{})
	var large *http.MaxBytesError
	if code != control.ExitOK && in != nil && errors.As(in.err, &large) && !out.sent {
		return large
	}
	return out.end(r, code, errOut.String())
}

// key is what a flag is called.
var key = regexp.MustCompile(`^[a-z][a-z0-9-]{0,40}$`)

// words makes a call of a request: the words as one would type them, and what
// stands on standard input.
func words(r *http.Request, v *control.Verb) (argv []string, in *input, err error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, nil, usage("the query cannot be read: write it as ?arg=word&flag=value, with %%xx for other bytes")
	}
	call := Words{Args: q["arg"]}
	q.Del("arg")
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case r.Method != http.MethodPost:
	case kind == "application/json":
		var sent Words
		if err := decode(r, &sent); err != nil && !errors.Is(err, io.EOF) {
			return nil, nil, err
		}
		call.Args, call.Flags = append(call.Args, sent.Args...), sent.Flags
	case takesInput(v):
		web.Upload(r)
		in = &input{r: r.Body}
	case kind == "application/x-www-form-urlencoded" && r.ContentLength != 0:
		data, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, nil, err
		}
		form, err := url.ParseQuery(string(data))
		if err != nil {
			return nil, nil, usage("the form cannot be read: %w", err)
		}
		call.Args = append(call.Args, form["arg"]...)
		form.Del("arg")
		for k, values := range form {
			q[k] = append(q[k], values...)
		}
	case r.ContentLength > 0:
		return nil, nil, &statusError{http.StatusUnsupportedMediaType, fmt.Errorf("the verb %s takes a body of application/json only", v.Name)}
	}
	argv, flags := strings.Fields(v.Name), v.NewFlags()
	for k, values := range q {
		for _, value := range values {
			if argv, err = addFlag(argv, flags, k, value); err != nil {
				return nil, nil, err
			}
		}
	}
	for k, value := range call.Flags {
		list, ok := value.([]any)
		if !ok {
			list = []any{value}
		}
		for _, one := range list {
			var s string
			switch one := one.(type) {
			case string:
				s = one
			case bool:
				s = strconv.FormatBool(one)
			case float64:
				s = strconv.FormatFloat(one, 'f', -1, 64)
			default:
				return nil, nil, usage("flag %.40q has a value that no flag has: give text, a number, true, false, or a list of text", k)
			}
			if argv, err = addFlag(argv, flags, k, s); err != nil {
				return nil, nil, err
			}
		}
	}
	for _, arg := range call.Args {
		if strings.ContainsRune(arg, 0) || len(arg) > 4096 {
			return nil, nil, usage("a word of the call holds a zero byte, or has more than 4096 bytes")
		}
	}
	return append(append(argv, "--"), call.Args...), in, nil
}

func addFlag(argv []string, flags *pflag.FlagSet, k, value string) ([]string, error) {
	if !key.MatchString(k) {
		return nil, usage("%.40q is no flag: /api/v1/verbs lists those of each verb", k)
	}
	// As ?follow. One that takes a value would take the next word for it.
	if f := flags.Lookup(k); value == "" && f != nil && f.NoOptDefVal != "" {
		return append(argv, "--"+k), nil
	}
	return append(argv, "--"+k+"="+value), nil
}

// input is a body that remembers how it broke off.
type input struct {
	r   io.Reader
	err error
}

func (i *input) Read(p []byte) (int, error) {
	n, err := i.r.Read(p)
	if err != nil && err != io.EOF {
		i.err = err
	}
	return n, err
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - 64<<10; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.b) }

// reply is what a verb prints, on its way to the client.
type reply struct {
	w    http.ResponseWriter
	kind string
	live bool // it goes out as it comes
	// command says that a program of the caller's own runs, and its exit code is no
	// verb's.
	command bool
	sent    bool // it has begun to
	held    bytes.Buffer
}

func (o *reply) Write(p []byte) (int, error) {
	if !o.sent && !o.live {
		if o.held.Len()+len(p) <= maxHeld {
			return o.held.Write(p)
		}
	}
	if !o.sent {
		o.sent = true
		// How it ended is told behind it.
		o.w.Header().Set("Trailer", "Quarry-Exit")
		o.head()
		if _, err := o.w.Write(o.held.Bytes()); err != nil {
			return 0, err
		}
		o.held.Reset()
	}
	n, err := o.w.Write(p)
	if err == nil {
		err = http.NewResponseController(o.w).Flush()
	}
	return n, err
}

func (o *reply) head() {
	o.w.Header().Set("Content-Type", o.kind)
	o.w.Header().Set("Cache-Control", "no-store")
	o.w.WriteHeader(http.StatusOK)
}

// end ends the answer, with how the verb did.
func (o *reply) end(r *http.Request, code int, errOut string) error {
	o.w.Header().Set("Quarry-Exit", strconv.Itoa(code))
	if o.sent {
		return nil
	}
	if o.command && !strings.HasPrefix(lastLine(errOut), "quarry: ") {
		o.head()
		_, _ = io.WriteString(o.w, errOut)
		return nil
	}
	if code != control.ExitOK && (code != control.ExitBuild || o.held.Len() == 0 && errOut != "") {
		p := web.Problem{Status: statusOf(code), Detail: human.Safe(said(errOut), false), Exit: code}
		if p.Status == http.StatusOK {
			p.Status = http.StatusUnprocessableEntity
		}
		deny(o.w, r, &p)
		web.Fail(o.w, r, p)
		return nil
	}
	if o.kind == "application/json" && o.held.Len() == 0 {
		o.held.WriteString("null\n")
	}
	data := o.held.Bytes()
	o.w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	o.head()
	_, _ = o.w.Write(data)
	return nil
}
