// Package githttp lets people clone and fetch over HTTP, with stock git on both
// ends: the smart protocol (gitprotocol-http), versions 0 to 2, to be read only.
//
// Every request is one git upload-pack, which gets the request's body as its input
// and whose output is the answer as it comes. So that many clients cost no more
// than the machine has, only some run at a time, of one client a part of these;
// others wait their turn, and are turned away when too many do.
package githttp

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/web"
)

// Limits bound what clients can take. 0 stands for the default.
type Limits struct {
	Running int           // upload-packs at a time: four for each CPU, 8 at least
	Each    int           // of one client's, this machine left out: half of Running
	Waiting int           // requests that wait for their turn: 1024
	Wait    time.Duration // that one waits at most: 2 min
	Time    time.Duration // that one upload-pack takes at most: 1 h
	Request int64         // bytes of what a client asks, unpacked: 64 MiB, which is a million objects by name
}

func (l *Limits) defaults() {
	set := func(n *int, def int) {
		if *n == 0 {
			*n = def
		}
	}
	set(&l.Running, max(8, 4*runtime.NumCPU()))
	set(&l.Each, max(1, l.Running/2))
	set(&l.Waiting, 1024)
	if l.Wait == 0 {
		l.Wait = 2 * time.Minute
	}
	if l.Time == 0 {
		l.Time = time.Hour
	}
	if l.Request == 0 {
		l.Request = 64 << 20
	}
}

// Options say what is served.
type Options struct {
	// Find gives the path of a repository by its name, which is a package's or the
	// database's, without .git. There is none: an error that is [fs.ErrNotExist].
	Find func(name string) (path string, err error)
	// MayRead reports whether somebody may read a repository. Who has no token is
	// [web.Anonymous].
	MayRead func(who quarry.Identity, name string) bool
	Env     []string // of git, whole
	Git     string   // the program; "": git
	Temp    string   // folder for large requests while they come in; "": the system's
	Push    string   // where to push to instead, e.g. ssh://farm:2222
	Limits  Limits
	Log     *slog.Logger
}

// Handler serves /NAME.git/info/refs and /NAME.git/git-upload-pack.
type Handler struct {
	opts   Options
	places places
	routes http.Handler
}

// New makes a handler.
func New(o Options) *Handler {
	o.Limits.defaults()
	if o.Git == "" {
		o.Git = "git"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	h := &Handler{opts: o, places: places{max: o.Limits.Running, each: o.Limits.Each, waiting: o.Limits.Waiting}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{repository}/info/refs", h.refs)
	mux.HandleFunc("POST /{repository}/git-upload-pack", h.fetch)
	mux.HandleFunc("POST /{repository}/git-receive-pack", h.push)
	h.routes = web.Routes(mux)
	return h
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.routes.ServeHTTP(w, r) }

// Load is how many upload-packs run, and how many requests wait for their turn.
func (h *Handler) Load() (running, waiting int) { return h.places.load() }

const (
	uploadPack  = "git-upload-pack"
	receivePack = "git-receive-pack"
)

// gitProtocol is what of the header Git-Protocol goes to git.
var gitProtocol = regexp.MustCompile(`^version=[0-2]$`)

// refs begins a clone or a fetch: what there is (protocol 0 and 1), or what can be
// asked (2).
func (h *Handler) refs(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Query().Get("service") {
	case uploadPack:
	case receivePack:
		h.push(w, r)
		return
	default:
		web.Error(w, r, http.StatusForbidden, "only git's smart protocol is spoken here: use git 1.6.6 or newer, and no plain download")
		return
	}
	path, ok := h.find(w, r)
	if !ok {
		return
	}
	release, ok := h.enter(w, r)
	if !ok {
		return
	}
	defer release()
	prefix := "001e# service=" + uploadPack + "\n0000"
	if r.Header.Get("Git-Protocol") == "version=2" {
		prefix = ""
	}
	h.run(w, r, job{args: []string{"--http-backend-info-refs"}, path: path, kind: "advertisement", prefix: prefix})
}

// fetch is each further question of a clone or a fetch.
func (h *Handler) fetch(w http.ResponseWriter, r *http.Request) {
	path, ok := h.find(w, r)
	if !ok {
		return
	}
	if t := r.Header.Get("Content-Type"); t != "application/x-git-upload-pack-request" {
		web.Error(w, r, http.StatusUnsupportedMediaType, fmt.Sprintf("the content type %.100q is none that git sends", t))
		return
	}
	web.Upload(r)
	in := io.Reader(http.MaxBytesReader(w, r.Body, h.opts.Limits.Request))
	switch e := strings.ToLower(r.Header.Get("Content-Encoding")); e {
	case "", "identity":
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(in)
		if err != nil {
			web.Error(w, r, http.StatusBadRequest, "the request is not compressed as it says")
			return
		}
		in = http.MaxBytesReader(w, z, h.opts.Limits.Request) // what it unpacks to, too
	default:
		web.Error(w, r, http.StatusUnsupportedMediaType, fmt.Sprintf("the content encoding %.100q is not known here: send gzip, or none", e))
		return
	}
	// What is small is here before it takes a place: whoever sends slowly holds up
	// nobody.
	head := bufio.NewReaderSize(in, 64<<10)
	small, err := head.Peek(64 << 10)
	if err != nil && !errors.Is(err, io.EOF) {
		unread(w, r, err)
		return
	}
	release, ok := h.enter(w, r)
	if !ok {
		return
	}
	defer release()
	j := job{args: []string{"--stateless-rpc"}, path: path, kind: "result", in: bytes.NewReader(small)}
	if err == nil { // there is more
		f, err := h.spool(head)
		if err != nil {
			unread(w, r, err)
			return
		}
		defer f.Close()
		j.in = f
	}
	h.run(w, r, j)
}

// push refuses a push.
func (h *Handler) push(w http.ResponseWriter, r *http.Request) {
	name, _ := repository(r)
	where := "over SSH"
	if h.opts.Push != "" && quarry.CheckName(name) == nil {
		where = "to " + h.opts.Push + "/" + name + ".git"
	}
	web.Error(w, r, http.StatusForbidden, "repositories can only be read over HTTP: push "+where)
}

// repository is the name that a request has in its path.
func repository(r *http.Request) (string, bool) {
	return strings.CutSuffix(r.PathValue("repository"), ".git")
}

// find is the path of the repository that is asked for, if the caller may read it.
// What there is not and what somebody may not know of is the same without a token.
func (h *Handler) find(w http.ResponseWriter, r *http.Request) (path string, ok bool) {
	name, ok := repository(r)
	if !ok || quarry.CheckName(name) != nil {
		web.Error(w, r, http.StatusNotFound, "there is no repository of this name: it is the package's, with .git behind it")
		return "", false
	}
	who := web.Who(r.Context())
	if !h.opts.MayRead(who, name) {
		if who.User == "" {
			web.Unauthorized(w, r, "this repository is shown only to those with a token: give it as the password")
		} else {
			web.Error(w, r, http.StatusForbidden, who.User+" may not read this repository: ask an admin for a role")
		}
		return "", false
	}
	path, err := h.opts.Find(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		web.Error(w, r, http.StatusNotFound, "there is no package "+name)
	case err != nil:
		h.opts.Log.Error("a repository cannot be served over HTTP", "name", name, "err", err)
		web.Error(w, r, http.StatusInternalServerError, "the repository is not ready, which is no fault of yours: tell an admin to look into the log")
	}
	return path, err == nil
}

// enter takes a place for a request.
func (h *Handler) enter(w http.ResponseWriter, r *http.Request) (release func(), ok bool) {
	ctx, cancel := context.WithTimeout(r.Context(), h.opts.Limits.Wait)
	defer cancel()
	release, ok = h.places.enter(ctx, web.Client(r.Context()))
	if !ok {
		w.Header().Set("Retry-After", "30")
		web.Error(w, r, http.StatusServiceUnavailable, "too many fetches are under way: try again in half a minute")
	}
	return release, ok
}

// unread answers a request whose body cannot be taken.
func unread(w http.ResponseWriter, r *http.Request, err error) {
	var large *http.MaxBytesError
	if errors.As(err, &large) {
		web.Error(w, r, http.StatusRequestEntityTooLarge, fmt.Sprintf("the request has more than %d bytes: ask for less at once", large.Limit))
		return
	}
	web.Error(w, r, http.StatusBadRequest, "the request does not arrive whole")
}

// spool puts a large request into a file without a name: git may begin to answer
// before it has read all, which HTTP does not like.
func (h *Handler) spool(in io.Reader) (*os.File, error) {
	f, err := os.CreateTemp(h.opts.Temp, "fetch-*")
	if err != nil {
		return nil, err
	}
	os.Remove(f.Name())
	if _, err = io.Copy(f, in); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// job is one run of git upload-pack.
type job struct {
	args   []string
	path   string
	kind   string // end of the answer's content type
	prefix string // goes before what git says
	in     io.Reader
}

// termTime is how long git gets to end after it was told to.
const termTime = 5 * time.Second

// run runs git, and answers with what it says.
func (h *Handler) run(w http.ResponseWriter, r *http.Request, j job) {
	ctx, cancel := context.WithTimeout(r.Context(), h.opts.Limits.Time)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.opts.Git, append(append([]string{"upload-pack", "--strict"}, j.args...), "--", j.path)...)
	cmd.Dir, cmd.Env, cmd.Stdin = j.path, h.opts.Env, j.in
	if v := r.Header.Get("Git-Protocol"); gitProtocol.MatchString(v) {
		cmd.Env = append(cmd.Env[:len(cmd.Env):len(cmd.Env)], "GIT_PROTOCOL="+v)
	}
	// It has children: all of them go when the client does.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = termTime + time.Second
	var kill *time.Timer
	cmd.Cancel = func() error {
		kill = time.AfterFunc(termTime, func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
	}
	complaint := &tail{}
	cmd.Stderr = complaint
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		h.opts.Log.Error("git cannot be run", "err", err)
		web.Error(w, r, http.StatusInternalServerError, "git cannot be run just now: try again later")
		return
	}
	hd := w.Header()
	hd.Set("Content-Type", "application/x-git-upload-pack-"+j.kind)
	hd.Set("Cache-Control", "no-cache")
	said, copyErr := answer(w, out, j.prefix)
	if copyErr != nil {
		cancel() // nobody waits for the rest
	}
	err = cmd.Wait()
	if kill != nil {
		kill.Stop()
	}
	switch {
	case err == nil && copyErr == nil:
		if !said {
			w.WriteHeader(http.StatusOK)
		}
	case ctx.Err() != nil || copyErr != nil:
		if r.Context().Err() == nil && copyErr == nil {
			h.opts.Log.Warn("a fetch over HTTP took too long and was ended", "repository", j.path, "from", web.Client(r.Context()))
		}
		panic(http.ErrAbortHandler) // what was said must not pass for the whole
	case said:
		// Git's own protocol says where it ends: the client sees that it did not.
		h.opts.Log.Info("git upload-pack failed", "repository", j.path, "err", err, "says", complaint.String())
	default:
		h.opts.Log.Info("git upload-pack failed", "repository", j.path, "err", err, "says", complaint.String())
		web.Error(w, r, http.StatusBadRequest, "git does not take this request: the admin's log says why")
	}
}

// answer copies what git says as it comes: progress is to be seen. said reports
// whether there was anything.
func answer(w http.ResponseWriter, out io.Reader, prefix string) (said bool, err error) {
	rc := http.NewResponseController(w)
	buf := make([]byte, 64<<10)
	for {
		n, err := out.Read(buf)
		if n > 0 {
			if !said {
				if _, err := io.WriteString(w, prefix); err != nil {
					return true, err
				}
			}
			said = true
			if _, err := w.Write(buf[:n]); err != nil {
				return said, err
			}
			if n < len(buf) {
				if err := rc.Flush(); err != nil {
					return said, err
				}
			}
		}
		if err != nil { // of a pipe: its end
			return said, nil
		}
	}
}

// tail keeps the last of what git complains about.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - 1000; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.ToValidUTF8(strings.TrimSpace(string(t.b)), "\uFFFD") }
