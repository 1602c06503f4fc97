// Package control holds the one table of verbs.
//
// A verb says what may be asked of a running farm: its name, arguments, who may
// use it, its help and what it does. Every door is made from the table: the
// command line (over the Unix socket, see [Serve] and [Client]) and
// `ssh host VERB`. A verb added to the table appears in all of them and in help.
package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
	"github.com/spf13/pflag"
)

// Exit codes of every command and verb. They are a promise to scripts.
const (
	ExitOK          = 0
	ExitError       = 1 // something went wrong
	ExitUsage       = 2 // the words of the call are off
	ExitNotFound    = 3 // no such build, package or record
	ExitForbidden   = 4 // the caller may not do this
	ExitUnreachable = 5 // no daemon answers
	ExitBuild       = 6 // it went well, but the build it was about did not succeed
)

// Error is an error with an exit code.
type Error struct {
	Code int
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap gives the error itself.
func (e *Error) Unwrap() error { return e.Err }

// ErrBuild ends a verb whose build did not succeed; everything worth saying has
// been said by then.
var ErrBuild = &Error{ExitBuild, errors.New("the build did not succeed")}

func usage(format string, args ...any) error {
	return &Error{ExitUsage, fmt.Errorf(format, args...)}
}

func notFound(err error) error { return &Error{ExitNotFound, err} }

// Code is the exit code that an error asks for.
func Code(err error) int {
	var e *Error
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &e):
		return e.Code
	}
	return ExitError
}

// Terminal says what stands at the other end of the output.
type Terminal struct {
	TTY    bool `json:"tty,omitempty"`
	Width  int  `json:"width,omitempty"`  // columns; 0: not known
	Height int  `json:"height,omitempty"` // lines; 0: not known
	Color  bool `json:"color,omitempty"`
	Live   bool `json:"live,omitempty"` // standard error is a terminal too: progress may draw there

	Name string `json:"name,omitempty"` // the kind of terminal, as TERM has it
	// Resize gives the terminal's columns and lines when they change; nil: they do
	// not, as far as the door knows.
	Resize <-chan [2]int `json:"-"`
}

// Call is one use of a verb.
type Call struct {
	Verb  *Verb
	Who   quarry.Identity
	Args  []string       // what is left when the flags are taken out
	Flags *pflag.FlagSet // parsed
	In    io.Reader      // nil: the caller has none to give
	Out   io.Writer
	Err   io.Writer // for what is no answer, such as progress
	Term  Terminal
	Echo  bool // what is typed has to be shown by us

	wire io.Writer // Out, as it reaches a terminal that was left as it is (see Verb.Raw)
}

// JSON reports whether the caller wants JSON.
func (c *Call) JSON() bool { return c.bool("json") }

func (c *Call) bool(name string) bool {
	v, err := c.Flags.GetBool(name)
	return err == nil && v
}

func (c *Call) string(name string) string {
	v, _ := c.Flags.GetString(name)
	return v
}

func (c *Call) int(name string) int {
	v, _ := c.Flags.GetInt(name)
	return v
}

// emit writes v as indented JSON.
func (c *Call) emit(v any) error {
	return human.JSON(c.Out, v)
}

// Permission is what a verb asks of its caller.
type Permission int

// The permissions. Push is checked against the package by the verb itself,
// since only it knows which package it is about.
const (
	Anyone Permission = iota // with a known key
	Push                     // maintainers, for their packages, and admins
	Admin
	Local // git hooks, through the socket
)

// Verb is one row of the table.
type Verb struct {
	Name    string // one word, or two when the first is a topic, e.g. images list
	Args    string // e.g. BUILD
	MinArgs int
	MaxArgs int // -1: any number
	Short   string
	Long    string
	Example string // lines as typed after `quarry` or `ssh host`
	Need    Permission
	Hidden  bool
	Text    bool // the answer is text for people and has no JSON form
	Systems bool // it is about what builds start from, not about builds
	Looks   bool // it changes nothing, and may be called any number of times
	// Alone says that the verb needs no daemon, only its store of images: where no
	// daemon runs, the command line opens the store and runs the verb itself.
	Alone bool
	// File is the place among the arguments, from 1, of a path of the farm's
	// machine, which a door that is on it makes absolute; "-" stands for In. 0: none
	// is.
	File int
	// Plain reports whether, with these flags, the answer is text although the verb
	// has JSON; nil: never.
	Plain func(*pflag.FlagSet) bool
	// Send is a flag whose value is a file of the caller's, which a door that has
	// it gives as In, with "-" for the value. With it the verb needs no daemon. "":
	// there is none.
	Send string
	// Keys says that the verb draws on a whole terminal until somebody types q. A
	// door that has the terminal itself sees to the key; the others give In.
	Keys bool
	// Raw says that with an argument the verb takes the caller's terminal as it is,
	// with every key that is typed, and that what follows that argument is a command
	// line of its own, in which no flags are looked for. A door that has that line as
	// it was typed gives it as one word.
	Raw bool
	// Secret says that the answer holds a secret, which no door may keep.
	Secret bool
	Flags  func(*pflag.FlagSet)
	// Ask gives a question that somebody at a terminal has to answer with yes
	// first; "" when there is none. Such a verb has a flag --yes.
	Ask func(c *Call) string
	Run func(ctx context.Context, c *Call) error
}

// NewFlags makes the verb's flag set; every verb has --json, but those whose
// answer is text.
func (v *Verb) NewFlags() *pflag.FlagSet {
	fs := pflag.NewFlagSet(v.Name, pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	fs.SetInterspersed(!v.Raw)
	if !v.Text {
		fs.Bool("json", false, "print JSON for scripts")
	}
	if v.Flags != nil {
		v.Flags(fs)
	}
	return fs
}

// Followed is for [Verb.Plain] of verbs that print logs with --follow.
func Followed(fs *pflag.FlagSet) bool {
	v, err := fs.GetBool("follow")
	return err == nil && v
}

// Usage is the verb as one types it, without flags.
func (v *Verb) Usage() string { return strings.TrimSpace(v.Name + " " + v.Args) }

// Table is a set of verbs.
type Table []*Verb

// Find gives the verb that words begin with, or nil, and the words that are
// left. Of two, such as jobs and jobs set, the longer one counts.
func (t Table) Find(words ...string) (found *Verb, rest []string) {
	rest = words
	for _, v := range t {
		name := strings.Fields(v.Name)
		if len(words) >= len(name) && slices.Equal(words[:len(name)], name) && len(words)-len(name) < len(rest) {
			found, rest = v, words[len(name):]
		}
	}
	return found, rest
}

// topic gives the verbs whose name has two words, of which this is the first.
func (t Table) topic(word string) (of Table) {
	for _, v := range t {
		if first, _, ok := strings.Cut(v.Name, " "); ok && first == word && !v.Hidden {
			of = append(of, v)
		}
	}
	return of
}

// unknown says that words name no verb.
func (t Table) unknown(words []string) error {
	of := t.topic(words[0])
	if len(of) == 0 {
		return usage("verb %.40q is unknown: help lists those there are", words[0])
	}
	var names []string
	for _, v := range of {
		names = append(names, strings.TrimPrefix(v.Name, words[0]+" "))
	}
	list := strings.Join(names, ", ")
	if len(words) == 1 {
		return usage("%s takes one of %s: see help %s", words[0], list, words[0])
	}
	return usage("verb %.60q is unknown: %s has %s", strings.Join(words[:2], " "), words[0], list)
}

// Run checks and runs one call. argv begins with the verb's name. in may be nil.
// Errors are written to errOut as one line; the exit code is returned.
func (t Table) Run(ctx context.Context, who quarry.Identity, argv []string, in io.Reader, out, errOut io.Writer, term Terminal) int {
	wire := out
	if term.TTY && t.Raw(argv) {
		out, errOut = lineEnds{out}, lineEnds{errOut}
	}
	err := t.run(ctx, who, argv, in, out, errOut, wire, term)
	if err != nil && !errors.Is(err, ErrBuild) && !errors.Is(err, errSaid) {
		fmt.Fprintf(errOut, "quarry: %s\n", human.Safe(strings.ReplaceAll(err.Error(), "\n", "; "), false))
	}
	return Code(err)
}

func (t Table) run(ctx context.Context, who quarry.Identity, argv []string, in io.Reader, out, errOut, wire io.Writer, term Terminal) error {
	if len(argv) == 0 {
		argv = []string{"help"}
	}
	v, words := t.Find(argv...)
	if v == nil || v.Need == Local && !isLocal(who) {
		return t.unknown(argv)
	}
	fs := v.NewFlags()
	if err := fs.Parse(words); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return t.help(out, v)
		}
		if v.Text && slices.Contains(words, "--json") {
			return usage("%s: there is no JSON form: its answer is text", v.Name)
		}
		return usage("%s: %w: see help %s", v.Name, err, v.Name)
	}
	args := fs.Args()
	if len(args) < v.MinArgs || v.MaxArgs >= 0 && len(args) > v.MaxArgs {
		return usage("%s takes %s: see help %s", v.Name, orNothing(v.Args), v.Name)
	}
	switch {
	case !who.MayRead():
		return &Error{ExitForbidden, fmt.Errorf("%s: your key has no role here: ask an admin for one", v.Name)}
	case v.Need == Admin && who.Role != quarry.RoleAdmin:
		return &Error{ExitForbidden, fmt.Errorf("%s: only an admin may do this, and you are a %s", v.Name, who.Role)}
	case v.Need == Push && who.Role != quarry.RoleAdmin && who.Role != quarry.RoleMaintainer:
		return &Error{ExitForbidden, fmt.Errorf("%s: only maintainers may do this, and you are a %s", v.Name, who.Role)}
	}
	// Who types at a terminal that is not this machine's sees nothing of it.
	c := &Call{Verb: v, Who: who, Args: args, Flags: fs, In: in, Out: out, Err: errOut, Term: term, Echo: true, wire: wire}
	if term.TTY && in != nil {
		if err := v.Confirm(c); err != nil {
			return err
		}
	}
	return v.Run(ctx, c)
}

// Confirm asks the question of a verb that has one, unless --yes has answered
// it, and reports an error when the answer is not yes.
func (v *Verb) Confirm(c *Call) error {
	if v.Ask == nil || c.bool("yes") {
		return nil
	}
	question := v.Ask(c)
	if question == "" {
		return nil
	}
	fmt.Fprintf(c.Err, "%s Go on? [y/N] ", question)
	// Byte by byte: what follows the answer is not ours.
	var answer []byte
	for b := make([]byte, 1); len(answer) < 100; {
		if n, err := c.In.Read(b); n == 0 || err != nil || b[0] == '\n' {
			break
		}
		answer = append(answer, b[0])
	}
	text := strings.ToLower(strings.TrimSpace(string(answer)))
	if c.Echo {
		fmt.Fprintln(c.Err, human.Safe(text, false))
	}
	if text != "y" && text != "yes" {
		return &Error{ExitError, fmt.Errorf("%s: nothing is done, as the answer was not yes", v.Name)}
	}
	return nil
}

func orNothing(s string) string {
	if s == "" {
		return "no arguments"
	}
	return s
}

// list writes the verbs there are.
func (t Table) list(out io.Writer) error {
	list := human.Table{}
	for _, v := range t {
		if !v.Hidden {
			list.Row("  "+v.Usage(), v.Short)
		}
	}
	fmt.Fprintln(out, "Verbs:")
	if _, err := list.WriteTo(out); err != nil {
		return err
	}
	_, err := fmt.Fprintln(out, "\nhelp VERB says more. --json prints JSON for scripts.")
	return err
}

// fill sets paragraphs anew in lines of 80 columns; one with lines that are
// indented stays as it is.
func fill(text string) string {
	paragraphs := strings.Split(text, "\n\n")
	for i, p := range paragraphs {
		if strings.Contains("\n"+p, "\n ") {
			continue
		}
		var b strings.Builder
		for at, word := range strings.Fields(p) {
			switch line := b.Len() - strings.LastIndexByte(b.String(), '\n') - 1; {
			case at > 0 && line+1+len(word) > 80:
				b.WriteByte('\n')
			case at > 0:
				b.WriteByte(' ')
			}
			b.WriteString(word)
		}
		paragraphs[i] = b.String()
	}
	return strings.Join(paragraphs, "\n\n")
}

// help writes the help of one verb.
func (t Table) help(out io.Writer, v *Verb) error {
	fmt.Fprintf(out, "%s\n\n%s.\n", v.Usage(), v.Short)
	if v.Long != "" {
		fmt.Fprintf(out, "\n%s\n", v.Long)
	}
	if flags := v.NewFlags().FlagUsages(); flags != "" {
		fmt.Fprintf(out, "\nFlags:\n%s", flags)
	}
	if v.Example != "" {
		fmt.Fprintf(out, "\nExamples:\n  %s\n", strings.ReplaceAll(v.Example, "\n", "\n  "))
	}
	return nil
}

// LocalUser is who speaks through the local socket with the daemon's own user
// id: it is an admin, since it could read the daemon's memory anyway.
const LocalUser = "local"

// socketKey stands where other people's fingerprint stands. It is no
// fingerprint, so nobody can come by it through another door.
const socketKey = "local socket"

// Owner is the identity of who runs Quarry's own user's processes: the daemon's
// or, where none runs, the command line's.
func Owner() quarry.Identity {
	return quarry.Identity{Packager: quarry.Packager{User: LocalUser, Key: socketKey}, Role: quarry.RoleAdmin}
}

// isLocal reports whether the caller came through the socket. Whoever may open
// it may hand pushes over, as the hooks of another git server here do.
func isLocal(who quarry.Identity) bool { return who.Key == socketKey }
