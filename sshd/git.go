package sshd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/hooks"
)

// termTime is how long git gets between SIGTERM and SIGKILL. It removes its
// temporary files in it.
const termTime = 5 * time.Second

// finishTime is how long a push whose client has gone may go on. Git ends by
// itself when the pack is not whole; when it is, the hooks still have to hand
// it over.
const finishTime = 2 * time.Minute

// repoLocks counts who uses a repository, so that one that stayed empty is
// removed only when nobody is about to fill it.
type repoLocks struct {
	mu    sync.Mutex // guards the following
	repos map[string]*held
}

type held struct {
	mu      sync.Mutex // held while the repository is made ready or removed
	users   int        // guarded by repoLocks.mu
	created bool       // guarded by mu
}

func (l *repoLocks) use(pkg string) *held {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.repos == nil {
		l.repos = map[string]*held{}
	}
	h := l.repos[pkg]
	if h == nil {
		h = &held{}
		l.repos[pkg] = h
	}
	h.users++
	return h
}

// leave ends a use. last is called when it was the only one, before anybody
// else can begin.
func (l *repoLocks) leave(pkg string, h *held, last func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l.mu.Lock()
	only := h.users == 1
	l.mu.Unlock()
	if only {
		last() // whoever comes now waits for h.mu before looking
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.users--; h.users == 0 {
		delete(l.repos, pkg)
	}
}

// serveGit runs one of git's services on a package's repository.
func (se *session) serveGit(id quarry.Identity, g gitCommand) (int, error) {
	s := se.server
	push := g.service == "receive-pack"
	switch {
	case push && !id.MayPush(g.pkg):
		return exitForbidden, fmt.Errorf("%s may not push %s: ask an admin for it (quarry key add %s --package %s)", id.User, g.pkg, id.User, g.pkg)
	case !push && !id.MayRead():
		return exitForbidden, fmt.Errorf("%s has no role here: ask an admin for one", id.User)
	}
	h := s.held.use(g.pkg)
	var path string
	defer s.held.leave(g.pkg, h, func() {
		if h.created && path != "" {
			s.removeEmpty(path)
		}
	})
	path, err := s.ready(h, g.pkg, push)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !push:
		return exitNotFound, fmt.Errorf("there is no package %s: the first push makes it", g.pkg)
	case errors.Is(err, ErrReadOnly):
		return exitForbidden, err
	case err != nil:
		s.log.Error("repository is not ready", "package", g.pkg, "err", err)
		return exitError, fmt.Errorf("repository of %s is not ready, which is no fault of yours: tell an admin to look into the log", g.pkg)
	}
	return se.runGit(id, g, path)
}

// ready finds the repository. For a push, it makes it if need be and puts the
// hooks into it: a daemon that was moved or renewed must not leave old ones.
func (s *Server) ready(h *held, pkg string, push bool) (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	path, err := s.opts.Repos.Path(pkg)
	if !push {
		return path, err
	}
	if errors.Is(err, fs.ErrNotExist) {
		h.created = true
	} else if err != nil {
		return "", err
	}
	// Of one that is there, too: what can only be fetched says so here.
	if path, err = s.opts.Repos.Ensure(pkg); err != nil {
		return "", err
	}
	o := s.opts.Hooks
	o.Package = pkg
	if !hooks.Installed(path, o) {
		err = hooks.Install(path, o)
	}
	return path, err
}

// removeEmpty removes a repository that was made for a push that was refused.
func (s *Server) removeEmpty(path string) {
	cmd := exec.Command(s.git, "for-each-ref", "--count=1")
	cmd.Dir, cmd.Env = path, s.gitEnv()
	out, err := cmd.Output()
	if err != nil || len(out) > 0 {
		return
	}
	// Out of the way in one step, so that a half-removed one is never seen.
	trash := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.empty-%d", filepath.Base(path), time.Now().UnixNano()))
	if err := os.Rename(path, trash); err != nil {
		s.log.Warn("empty repository cannot be removed", "repo", path, "err", err)
		return
	}
	if err := os.RemoveAll(trash); err != nil {
		s.log.Warn("empty repository cannot be removed", "repo", trash, "err", err)
	}
}

// gitEnv is the environment of every git that is run here: nothing of the
// daemon's own but the search path.
func (s *Server) gitEnv() []string {
	path := os.Getenv("PATH")
	if path == "" {
		path = "/usr/local/bin:/usr/bin:/bin"
	}
	return []string{
		"PATH=" + path, "HOME=" + s.opts.Home, "XDG_CONFIG_HOME=" + s.opts.Home,
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + filepath.Join(s.opts.Home, "gitconfig"),
		"GIT_TERMINAL_PROMPT=0", "LC_ALL=C.UTF-8", "TZ=UTC",
	}
}

// hookEnv tells the hooks who pushes what, and reflogs too.
func (se *session) hookEnv(id quarry.Identity, pkg string) []string {
	return append(se.server.hookEnv(id, pkg), "QUARRY_SSH="+se.ssh(), "QUARRY_URL="+se.url()+"/"+pkg+".git")
}

// hookEnv is what of it is the same however the pusher came.
func (s *Server) hookEnv(id quarry.Identity, pkg string) []string {
	o := s.opts
	name, email := id.Name, id.Email
	if name == "" {
		name = id.User
	}
	if email == "" {
		email = id.User + "@quarry.invalid"
	}
	env := append(hooks.Environ(id, pkg), "GIT_COMMITTER_NAME="+name, "GIT_COMMITTER_EMAIL="+email)
	for _, kv := range [][2]string{
		{"QUARRY_SOCKET", o.Hooks.Socket}, {"QUARRY_SPOOL", o.Hooks.Spool}, {"QUARRY_CHANNEL", o.Hooks.Channel},
	} {
		if kv[1] != "" {
			env = append(env, kv[0]+"="+kv[1])
		}
	}
	return append(env, hooks.ChannelsEnv(o.Channels))
}

// runGit runs git and carries its input and output.
func (se *session) runGit(id quarry.Identity, g gitCommand, path string) (int, error) {
	s := se.server
	push := g.service == "receive-pack"
	cmd := exec.Command(s.git, g.service, "--", path)
	if !push {
		cmd.Args = []string{s.git, g.service, "--strict", "--", path}
	}
	cmd.Dir = path
	cmd.Env = s.gitEnv()
	if se.protocol != "" {
		cmd.Env = append(cmd.Env, "GIT_PROTOCOL="+se.protocol)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var certs []string
	if push {
		env, clean, err := s.opts.Signed.env(s.opts.Home, id.User)
		if err != nil {
			s.log.Error("the keys of a pusher cannot be told to git", "user", id.User, "err", err)
			return exitError, errors.New("git cannot be run just now: try again later")
		}
		defer clean()
		certs = env
	}
	var theirs, ours pipeEnds
	defer ours.close()
	stdinR, stdin := pipe(&theirs, &ours)
	stdoutW, stdout := backwards(pipe(&ours, &theirs))
	stderrW, stderr := backwards(pipe(&ours, &theirs))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdinR, stdoutW, stderrW
	// The line that post-receive hangs on while it follows a build: it ends
	// when the client is gone, or with us.
	aliveR, alive := pipe(&theirs, &ours)
	if push {
		cmd.ExtraFiles = []*os.File{aliveR}
		cmd.Env = append(append(append(cmd.Env, se.hookEnv(id, g.pkg)...), certs...), "QUARRY_ALIVE_FD=3")
	}
	err := errors.Join(theirs.err, ours.err)
	if err == nil {
		err = cmd.Start()
	}
	theirs.close()
	if err != nil {
		s.log.Error("git cannot be run", "err", err)
		return exitError, errors.New("git cannot be run just now: try again later")
	}

	var last activity
	last.now()
	said := make(chan struct{}) // closed when the client has said all it has to say
	go func() {
		defer close(said)
		in := struct{ io.Reader }{&watched{se.ch, &last}}
		buf := make([]byte, 64<<10)
		_, err := io.CopyBuffer(struct{ io.Writer }{stdin}, in, buf)
		stdin.Close()
		if err != nil { // git has ended, and the client does not know yet
			io.CopyBuffer(struct{ io.Writer }{io.Discard}, in, buf)
		}
	}()
	var out sync.WaitGroup
	out.Go(func() { carry(se.ch, stdout, &last) })
	out.Go(func() { carry(se.stderr(), stderr, &last) })
	ended := make(chan struct{})
	var watch sync.WaitGroup
	var stalled bool
	watch.Go(func() {
		stalled = se.watchGit(ended, cmd.Process.Pid, push, &last, stdin, alive)
	})
	err = cmd.Wait()
	out.Wait() // what is in the pipes still belongs to the client
	close(ended)
	watch.Wait()
	if stalled {
		return exitError, errStalled
	}
	if push {
		se.hearOut(said)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		if code := exit.ExitCode(); code > 0 {
			return code, nil
		}
		return exitError, nil // killed
	}
	if err != nil {
		return exitError, fmt.Errorf("git: %w", err)
	}
	return 0, nil
}

// hearOutTime is how long a pusher whose git has ended here may go on talking.
var hearOutTime = 10 * time.Second

// hearOut waits until the client has said all: who has nothing to push and sends
// push options, says something after what makes receive-pack end. If the session
// were over by then, git would die of a broken pipe on the pusher's side.
func (se *session) hearOut(said <-chan struct{}) {
	late := time.NewTimer(hearOutTime)
	defer late.Stop()
	select {
	case <-said:
	case <-se.gone.Done():
	case <-se.server.verbs.Done():
	case <-late.C:
	}
}

// watchGit ends git when nobody waits for it any more. To close stdin tells git
// that the client is gone, to close alive tells its hooks.
func (se *session) watchGit(ended <-chan struct{}, pid int, push bool, last *activity, stdin, alive io.Closer) (stalled bool) {
	s := se.server
	tick := time.NewTicker(min(s.opts.Limits.Stall/4+time.Millisecond, 10*time.Second))
	defer tick.Stop()
	gone, stopping, kill := se.gone.Done(), s.verbs.Done(), s.kill.Done()
	var finish, killed <-chan time.Time
	term := func() {
		if killed == nil {
			syscall.Kill(-pid, syscall.SIGTERM)
			killed = time.After(termTime)
		}
	}
	for {
		select {
		case <-ended:
			return stalled
		case <-gone:
			gone = nil
			alive.Close()
			stdin.Close()
			if push {
				finish = time.After(finishTime)
			} else {
				term()
			}
		case <-stopping:
			// Who follows a build is let go. What git has begun, it may end.
			stopping = nil
			alive.Close()
		case <-tick.C:
			if last.ago() > s.opts.Limits.Stall {
				stalled = true
				term()
			}
		case <-finish:
			term()
		case <-kill:
			kill = nil
			term()
		case <-killed:
			syscall.Kill(-pid, syscall.SIGKILL)
			// A client that takes nothing holds up the copying even then.
			se.conn.Close()
			return stalled
		}
	}
}

// watched notes when something is read.
type watched struct {
	r    io.Reader
	last *activity
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.last.now()
	return n, err
}

// carry copies git's output to the client. When the client takes no more, it
// still reads: git would die of a closed pipe between moving the refs and
// telling the hook.
func carry(w io.Writer, r *os.File, last *activity) {
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		last.now()
		if n > 0 && w != nil {
			if _, err := w.Write(buf[:n]); err != nil {
				w = nil
			}
			last.now()
		}
		if err != nil {
			return
		}
	}
}

// pipeEnds are ends of pipes that are closed together.
type pipeEnds struct {
	files []*os.File
	err   error
}

func (p *pipeEnds) close() {
	for _, f := range p.files {
		f.Close()
	}
}

// pipe makes a pipe whose ends belong to different sides.
func pipe(reading, writing *pipeEnds) (r, w *os.File) {
	r, w, err := os.Pipe()
	if err != nil {
		reading.err = err
		return nil, nil
	}
	reading.files, writing.files = append(reading.files, r), append(writing.files, w)
	return r, w
}

func backwards(a, b *os.File) (*os.File, *os.File) { return b, a }
