package bundle

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/repos"
)

// ErrForbidden says that somebody may not push a package.
var ErrForbidden = errors.New("may not push this package")

// Refused is a push that the hooks, or git, did not take.
type Refused struct {
	Lines []string // what they said
}

func (e *Refused) Error() string {
	if len(e.Lines) == 0 {
		return "the push was refused, and nobody said why"
	}
	return strings.Join(e.Lines, "; ")
}

// Options say how bundles are pushed.
type Options struct {
	// Dir is for what is unpacked meanwhile; made, and emptied of what an earlier
	// process left.
	Dir string
	// Repo makes the repository of a package ready for a push, and makes it if
	// there is none. leave is called after the push.
	Repo func(pkg string) (path string, leave func(), err error)
	// Env is the environment of git for a push, with what its hooks are told.
	Env    func(who quarry.Identity, pkg string) []string
	Limits Limits
	Most   int64         // bytes of a bundle as it is sent; 0: 2 GiB
	AtOnce int           // pushes under way, and bundles that are looked at; 0: 4
	Time   time.Duration // that git gets for each; 0: 10 minutes
}

// Pusher pushes bundles. Its methods may be called at the same time.
type Pusher struct {
	opts  Options
	git   string
	slots chan struct{} // of pushes
	looks chan struct{} // of checks: what is packed may ask for 128 MiB to be unpacked
	one   locks         // of packages
}

// New makes a pusher.
func New(o Options) (*Pusher, error) {
	if o.Most == 0 {
		o.Most = 2 << 30
	}
	if o.AtOnce == 0 {
		o.AtOnce = 4
	}
	if o.Time == 0 {
		o.Time = 10 * time.Minute
	}
	git, err := exec.LookPath("git")
	if err != nil {
		return nil, errors.New("git is not installed: apt-get install git")
	}
	if err := os.RemoveAll(o.Dir); err != nil {
		return nil, fmt.Errorf("folder for bundles cannot be emptied: %w", err)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder for bundles cannot be made: %w", err)
	}
	return &Pusher{opts: o, git: git, slots: make(chan struct{}, o.AtOnce), looks: make(chan struct{}, o.AtOnce)}, nil
}

// Request says where a bundle is to go.
type Request struct {
	Channel string
	Group   string // to land with; "": none
	Confirm bool   // however much it causes
}

// Pushed is a bundle that has become a release.
type Pushed struct {
	Package string   `json:"package"`
	Version string   `json:"version"`
	Channel string   `json:"channel"`
	Commit  string   `json:"commit"`
	New     bool     `json:"new"`            // false: the very same was released there already
	Said    []string `json:"said,omitempty"` // what the hooks said
}

// Check reads a bundle and says what is in it. Others may have to wait for it: r
// has to be at hand, and no connection.
func (p *Pusher) Check(r io.Reader) (*Tree, error) {
	p.looks <- struct{}{}
	defer func() { <-p.looks }()
	return Read(From(r), p.opts.Limits, func(int64, io.Reader) (int, error) { return 0, nil })
}

// Take pushes a bundle that can be read only once.
func (p *Pusher) Take(ctx context.Context, who quarry.Identity, r io.Reader, q Request) (Pushed, error) {
	f, err := os.CreateTemp(p.opts.Dir, "bundle-*.tar")
	if err != nil {
		return Pushed{}, fmt.Errorf("bundle cannot be kept: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	n, err := io.Copy(f, io.LimitReader(r, p.opts.Most+1))
	switch {
	case err != nil:
		return Pushed{}, err
	case n > p.opts.Most:
		return Pushed{}, bad("it has more than %d bytes (web.max_upload)", p.opts.Most)
	}
	return p.Push(ctx, who, f, q)
}

// Push makes a commit of a bundle, on what its branch or else the package's
// master is at, and pushes it for somebody. The error is a *[Bad], a *[Refused],
// wraps [ErrForbidden], or is the farm's.
func (p *Pusher) Push(ctx context.Context, who quarry.Identity, f io.ReadSeeker, q Request) (Pushed, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return Pushed{}, err
	}
	t, err := p.Check(f)
	if err != nil {
		return Pushed{}, err
	}
	out := Pushed{Package: t.Package, Version: t.Version, Channel: q.Channel}
	if !who.MayPush(t.Package) {
		return out, fmt.Errorf("%s %w: %s is not among those of theirs, ask an admin for it", who.User, ErrForbidden, t.Package)
	}
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return out, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, p.opts.Time)
	defer cancel()
	defer p.one.lock(t.Package)()
	repo, leave, err := p.opts.Repo(t.Package)
	if err != nil {
		return out, fmt.Errorf("repository of %s is not ready: %w", t.Package, err)
	}
	defer leave()
	tmp, err := os.MkdirTemp(p.opts.Dir, "push-*.git")
	if err != nil {
		return out, fmt.Errorf("bundle cannot be unpacked: %w", err)
	}
	defer os.RemoveAll(tmp)
	w := work{p: p, dir: tmp, repo: repo, env: p.opts.Env(who, t.Package)}
	if err := w.init(ctx); err != nil {
		return out, err
	}
	old, parent, err := w.parent(ctx, t.Branch())
	if err != nil {
		return out, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return out, err
	}
	if out.Commit, err = w.commit(ctx, who, f, parent); err != nil {
		return out, err
	}
	if old != "" && w.stands(ctx, old, out.Commit, t.Branch(), q) {
		out.Commit = old
		return out, nil
	}
	out.Said, err = w.push(ctx, out.Commit, t.Branch(), q)
	out.New = err == nil
	return out, err
}

// work is a push under way: a repository of its own, which borrows what the
// package's has.
type work struct {
	p         *Pusher
	dir, repo string
	env       []string
}

// run runs git and gives what it printed.
func (w work) run(ctx context.Context, args ...string) (string, error) {
	cmd := w.command(ctx, args...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(errOut.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

func (w work) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, w.p.git, args...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = w.dir, w.env, 10*time.Second
	return cmd
}

func (w work) init(ctx context.Context) error {
	if _, err := w.run(ctx, "init", "-q", "--bare", "--template=", "."); err != nil {
		return err
	}
	info := filepath.Join(w.dir, "objects", "info")
	if err := os.MkdirAll(info, 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(info, "alternates"), []byte(filepath.Join(w.repo, "objects")+"\n"), 0o600)
}

// parent gives what the branch is at ("" when there is none), and what a new
// commit comes after.
func (w work) parent(ctx context.Context, branch string) (old, parent string, err error) {
	text, err := w.run(ctx, "--git-dir="+w.repo, "for-each-ref", "--format=%(refname) %(objectname)", "refs/heads/"+branch, "refs/heads/master", "refs/heads/main")
	if err != nil {
		return "", "", err
	}
	at := map[string]string{}
	for line := range strings.Lines(text) {
		ref, hash, _ := strings.Cut(strings.TrimSpace(line), " ")
		at[strings.TrimPrefix(ref, "refs/heads/")] = hash
	}
	for _, name := range []string{branch, "master", "main"} {
		if at[name] != "" {
			return at[branch], at[name], nil
		}
	}
	return "", "", nil
}

// person makes a name or an address fit for a commit.
var person = regexp.MustCompile(`[<>\x00-\x1f\x7f]`)

// commit writes the bundle into the repository, through git fast-import: none of
// it is ever a file here under a name of the bundle's choice.
func (w work) commit(ctx context.Context, who quarry.Identity, r io.Reader, parent string) (hash string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := w.command(ctx, "fast-import", "--quiet", "--done", "--force")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	in, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("git cannot be run: %w", err)
	}
	err = writeCommit(bufio.NewWriterSize(in, 64<<10), w.p.opts.Limits, who, From(r), parent, time.Now())
	in.Close()
	if ended := cmd.Wait(); err == nil || errors.Is(err, os.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		if ended != nil {
			err = fmt.Errorf("git fast-import: %w: %s", ended, firstLine(errOut.String()))
		}
	}
	if err != nil {
		return "", err
	}
	return w.run(ctx, "rev-parse", "--verify", "-q", importRef)
}

const importRef = "refs/heads/bundle"

// writeCommit writes what git fast-import reads.
func writeCommit(out *bufio.Writer, l Limits, who quarry.Identity, r io.Reader, parent string, now time.Time) error {
	marks := 0
	t, err := Read(r, l, func(size int64, r io.Reader) (int, error) {
		marks++
		fmt.Fprintf(out, "blob\nmark :%d\ndata %d\n", marks, size)
		if n, err := io.Copy(out, r); err != nil || n != size {
			return 0, errors.Join(err, short(n, size))
		}
		return marks, out.WriteByte('\n')
	})
	if err != nil {
		return err
	}
	name, email := person.ReplaceAllString(who.Name, ""), person.ReplaceAllString(who.Email, "")
	if name == "" {
		name = who.User
	}
	if email == "" {
		email = who.User + "@quarry.invalid"
	}
	by := fmt.Sprintf("%s <%s> %d +0000", name, email, now.Unix())
	message := fmt.Sprintf("Release %s %s\n\nFrom a build bundle.\n", t.Package, t.Version)
	fmt.Fprintf(out, "commit %s\nauthor %s\ncommitter %s\ndata %d\n%s", importRef, by, by, len(message), message)
	if parent != "" {
		fmt.Fprintf(out, "from %s\n", parent)
	}
	fmt.Fprint(out, "deleteall\n")
	for _, f := range t.Files {
		fmt.Fprintf(out, "M %s :%d %s\n", f.Mode, f.ID, quote(f.Path))
	}
	fmt.Fprint(out, "done\n")
	return out.Flush()
}

func short(n, size int64) error {
	if n == size {
		return nil
	}
	return io.ErrUnexpectedEOF
}

// quote writes a path as git's C-style string. It holds no control characters.
func quote(path string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(path) + `"`
}

// stands reports whether the branch has the very same already, and for the same
// channel and group.
func (w work) stands(ctx context.Context, old, commit, branch string, q Request) bool {
	a, err1 := w.run(ctx, "rev-parse", "--verify", "-q", old+"^{tree}")
	b, err2 := w.run(ctx, "rev-parse", "--verify", "-q", commit+"^{tree}")
	if err1 != nil || err2 != nil || a != b {
		return false
	}
	note, ok, err := repos.ReadPush(ctx, w.repo, branch)
	return err == nil && ok && note.Commit == old && note.Channel == q.Channel && note.Group == q.Group
}

// push has git push.
func (w work) push(ctx context.Context, commit, branch string, q Request) (said []string, err error) {
	args := []string{"push", "--porcelain", "--no-progress", "-o", "channel=" + q.Channel}
	if q.Group != "" {
		args = append(args, "-o", "group="+q.Group)
	}
	if q.Confirm {
		args = append(args, "-o", "confirm")
	}
	cmd := w.command(ctx, append(args, "--", w.repo, commit+":refs/heads/"+branch)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &limited{&out, 256 << 10}, &limited{&errOut, 256 << 10}
	err = cmd.Run()
	said = fromHooks(errOut.String())
	var exit *exec.ExitError
	switch {
	case err == nil:
		return said, nil
	case ctx.Err() != nil:
		return said, fmt.Errorf("git push took too long, or was called off: %w", context.Cause(ctx))
	case !errors.As(err, &exit):
		return said, fmt.Errorf("git cannot be run: %w", err)
	}
	if len(said) == 0 { // git itself
		said = rejected(out.String(), errOut.String())
	}
	return nil, &Refused{said}
}

// fromHooks gives the lines that the hooks wrote, as git brings them.
func fromHooks(text string) (lines []string) {
	for line := range strings.Lines(text) {
		if line, ok := strings.CutPrefix(line, "remote: quarry: "); ok {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// rejected gives why git took a push not, of git push --porcelain: a line of
// flag, ref and reason, or what it wrote to standard error.
func rejected(out, errOut string) []string {
	for line := range strings.Lines(out) {
		if parts := strings.Split(strings.TrimSpace(line), "\t"); len(parts) == 3 && parts[0] == "!" {
			return []string{"git: " + parts[2]}
		}
	}
	return []string{"git: " + firstLine(strings.TrimPrefix(errOut, "remote: "))}
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "\n")
	return strconv.QuoteToGraphic(s[:min(len(s), 500)])
}

// limited keeps the beginning of what a program says.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.left -= n
	_, err := l.w.Write(p[:n])
	return len(p), err
}

// locks are one lock for each name that is in use.
type locks struct {
	mu sync.Mutex // guards the following
	by map[string]*lock
}

type lock struct {
	sync.Mutex
	users int // guarded by locks.mu
}

func (l *locks) lock(name string) (unlock func()) {
	l.mu.Lock()
	if l.by == nil {
		l.by = map[string]*lock{}
	}
	k := l.by[name]
	if k == nil {
		k = &lock{}
		l.by[name] = k
	}
	k.users++
	l.mu.Unlock()
	k.Lock()
	return func() {
		k.Unlock()
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.by, name)
		}
	}
}
