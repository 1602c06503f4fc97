package runner

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/runner/guest"
	"golang.org/x/sys/unix"
)

// toolsPath is where shells find what the farm has for them, last in their PATH.
const toolsPath = images.HomePath + "/.shell"

// startShell is how long the beginning of a shell may take: the guest may still
// be ending what the last one has left.
const startShell = time.Minute

// Scene is where the last step of a build ran, and with what, for those who want
// to look around in there. It is good as long as the workspace is.
type Scene struct {
	Step    string // the last that ran; prepare when none did
	Dir     string // where it ran, as the workspace sees it
	Command string // the last of its commands that ran, as one would type it; blank when none did

	env    []string
	again  string // a script that runs the command again
	compat bool
	guest  *session
	mu     sync.Mutex // held while something is asked of the guest
}

// scene is where the build has come to.
func (r *run) scene() *Scene {
	extra := r.at.env
	if n := r.parallel(); r.at.parallel && n > 1 {
		// What it shared them with is gone with the build.
		extra = append([]string{fixedJobs(n)}, extra...)
	}
	sc := &Scene{Step: r.at.name, Dir: r.at.dir, env: r.environment(extra), compat: r.ws.Emulation == "compat", guest: r.guest}
	for _, dir := range []string{r.dir, SourcePath} {
		if sc.Dir == "" {
			sc.Dir = dir
		}
	}
	if n := len(r.at.cmds); n > 0 {
		c := r.at.cmds[min(r.ran, n-1)]
		sc.Command = typed(c)
		sc.again = again(sc.Dir, c)
	}
	return sc
}

// again is a program that runs a command as its step did, but with what
// somebody has changed in the environment since.
func again(dir string, c guest.Command) string {
	words := make([]string, len(c.Args))
	for i, a := range c.Args {
		words[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
	}
	run := "exec " + strings.Join(words, " ")
	if c.Shell { // the guest does the same with a file that lacks its exec bit
		run = fmt.Sprintf("[ -x %s ] || set -- /bin/sh\nexec \"$@\" %s", words[0], strings.Join(words, " "))
	}
	return fmt.Sprintf("#!/bin/sh\n# Runs what failed in the build, as it was run then.\nset --\ncd '%s' || exit\nPATH=${PATH%%:%s}\nTERM=dumb\nunset PS1\nexec </dev/null\n%s\n",
		strings.ReplaceAll(dir, "'", `'\''`), toolsPath, run)
}

// Shell is a command that a person runs at a scene.
type Shell struct {
	// Args is the command; one word is a line for /bin/sh, none is a shell to type
	// into.
	Args   []string
	Prompt string // of that; the shell expands it

	TTY        bool   // on a terminal, whose output comes to Out alone
	Term       string // the kind of it, as TERM has it
	Cols, Rows int
	Resize     <-chan [2]int // columns and lines when they change; may be nil

	In       io.Reader // nil: there is no input
	Out, Err io.Writer

	Idle  time.Duration // it may go without input and output for; 0: for ever
	Limit time.Duration // it may take in all; 0: for ever
}

// termRE is what the names of terminals are made of: they end up in paths.
var termRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$`)

func (q *Shell) request(sc *Scene) *guest.Shell {
	term := q.Term
	if !q.TTY || !termRE.MatchString(term) {
		term = "dumb"
	}
	var env []string
	for _, kv := range sc.env {
		switch key, value, _ := strings.Cut(kv, "="); key {
		case "TERM", "PS1":
		case "PATH":
			env = append(env, key+"="+value+":"+toolsPath)
		default:
			env = append(env, kv)
		}
	}
	env = append(env, "TERM="+term)
	g := &guest.Shell{Dir: sc.Dir, TTY: q.TTY, Cols: cells(q.Cols), Rows: cells(q.Rows), Compat: sc.compat}
	if sc.again != "" {
		g.Script = &guest.Script{Path: toolsPath + "/again", Text: sc.again}
	}
	switch {
	case len(q.Args) == 1:
		g.Try = [][]string{{"/bin/sh", "-c", "--", q.Args[0]}}
	case len(q.Args) > 1:
		g.Try = [][]string{q.Args}
	case !q.TTY:
		g.Try = [][]string{{"/bin/sh"}}
	default:
		// Without files of its own, as /etc/profile would set another PATH.
		g.Try = [][]string{{"/bin/bash", "--norc", "-i"}, {"/bin/sh", "-i"}}
		env = append(env, "PS1="+q.Prompt)
	}
	g.Env = env
	return g
}

// cells is a size of a terminal as the kernel takes it.
func cells(n int) uint16 { return uint16(max(0, min(n, 10_000))) }

// Shell runs a command where the build stands and gives its exit status, 128+n
// when signal n ended it. Several may run at a time. When ctx ends it is hung up,
// as on a terminal whose line is cut. What it leaves running goes when the last
// shell has ended.
func (sc *Scene) Shell(ctx context.Context, q Shell) (status int, err error) {
	conn, err := sc.begin(&q)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if q.Limit > 0 {
		t := time.AfterFunc(q.Limit, func() { cancel(fmt.Errorf("the shell has taken %s, and no more is granted", human.Duration(q.Limit))) })
		defer t.Stop()
	}
	active := func() {}
	if q.Idle > 0 {
		t := time.AfterFunc(q.Idle, func() {
			cancel(fmt.Errorf("nothing was typed nor printed for %s, so the shell was ended", human.Duration(q.Idle)))
		})
		defer t.Stop()
		active = func() { t.Reset(q.Idle) }
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var mu sync.Mutex // held while a frame is written
	send := func(frame []byte) error {
		mu.Lock()
		defer mu.Unlock()
		_, err := conn.Write(frame)
		return err
	}
	go func() {
		if err := q.send(send, active); err != nil {
			cancel(err)
		}
	}()
	go func() {
		for {
			select {
			case size := <-q.Resize:
				_ = send(guest.AppendSize(nil, cells(size[0]), cells(size[1]))) // its end shows elsewhere
			case <-ctx.Done():
				return
			}
		}
	}()
	status, err = q.receive(conn, active)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if ended(err) || errors.Is(err, net.ErrClosed) {
		err = sc.gone(err)
	}
	return status, err
}

// begin has the guest start the command, and gives the socket to it.
func (sc *Scene) begin(q *Shell) (net.Conn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "shell"), os.NewFile(uintptr(pair[1]), "shell")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, err
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	// Without the caller's context: an answer that nobody waits for would be taken
	// for the next one's.
	reply, err := sc.guest.ask(context.Background(), guest.Request{Op: guest.OpShell, Shell: q.request(sc)}, theirs, startShell, nil)
	switch {
	case ended(err):
		err = sc.gone(err)
	case err != nil: // whatever it says from now on is about something else
		sc.guest.kill()
		err = fmt.Errorf("the workspace's guest does not answer, and was ended: %w", err)
	case reply.Error != "" || reply.Problem != "":
		err = errors.New(reply.Error + reply.Problem)
	default:
		return conn, nil
	}
	conn.Close()
	return nil, err
}

// gone says why the workspace ended.
func (sc *Scene) gone(err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	death, derr := sc.guest.ws.Died(ctx)
	switch {
	case derr != nil:
		return fmt.Errorf("the workspace has ended: %w", derr)
	case death.Dead:
		return fmt.Errorf("the workspace has ended: %s", death)
	}
	return fmt.Errorf("the shell was cut off: %w", err)
}

// send sends the input on.
func (q *Shell) send(send func([]byte) error, active func()) error {
	buf, frame := make([]byte, guest.MaxInput), []byte(nil)
	for q.In != nil {
		n, err := q.In.Read(buf)
		if n > 0 {
			active()
			frame = guest.AppendFrame(frame[:0], guest.KindInput, buf[:n])
			if send(frame) != nil {
				return nil // its end shows elsewhere
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("the shell's input cannot be read: %w", err)
		}
	}
	_ = send(guest.AppendFrame(nil, guest.KindInput, nil)) // likewise
	return nil
}

// receive hands the output on until the command has ended. What comes out of a
// workspace is not trusted.
func (q *Shell) receive(conn net.Conn, active func()) (int, error) {
	r := guest.NewReader(bufio.NewReaderSize(conn, 64<<10))
	for {
		kind, payload, err := r.Next()
		if err != nil {
			return 0, err
		}
		active()
		switch kind {
		case guest.KindOutput:
			_, err = q.Out.Write(payload)
		case guest.KindError:
			_, err = q.Err.Write(payload)
		case guest.KindExit:
			e, err := guest.DecodeExit(payload)
			return e.Status, err
		default:
			err = fmt.Errorf("%w: kind %v here", guest.ErrFrame, kind)
		}
		if err != nil {
			return 0, err
		}
	}
}
