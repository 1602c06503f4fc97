package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/runner"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// shells keeps the workspaces of failed builds, and lets people in.
type shells struct {
	images *images.Store
	cfg    config.Shell
	ssh    string // how people reach us, e.g. ssh://farm:2222
	log    *slog.Logger
	events *events.Reporter

	mu   sync.Mutex // guards the following
	kept map[int64]*keptBuild
	gone map[int64]string // why some are kept no longer
	past []int64          // of those, oldest first
}

// keptBuild is a failed build whose workspace is kept.
type keptBuild struct {
	control.Kept
	ws    *images.Kept
	scene *runner.Scene
}

// maxGone is how many reasons are remembered.
const maxGone = 1000

func newShells(c *config.Config, store *images.Store, ssh string, log *slog.Logger, happened *events.Reporter) *shells {
	return &shells{images: store, cfg: c.Shell, ssh: ssh, log: log, events: happened, kept: map[int64]*keptBuild{}, gone: map[int64]string{}}
}

// keep keeps the workspace of a failed build, if it can be; see pipeline.Keep.
func (s *shells) keep(ws *images.Workspace, scene *runner.Scene, o *quarry.Outcome) bool {
	n := o.Build.Number
	k := &keptBuild{scene: scene, Kept: control.Kept{
		Build: n, Target: o.Build.Target(), Step: o.Failure.Step, Message: o.Failure.Message, Command: scene.Command, Dir: scene.Dir,
		Open: s.command(n), Ended: o.Ended, Keep: time.Duration(s.cfg.Keep),
	}}
	ended := make(chan struct{}) // closed when k is on the list, and may be taken off
	defer close(ended)
	kept, ok := s.images.Keep(ws, func(why string) {
		<-ended
		s.forget(n, why)
	})
	if !ok {
		why := "it ended with the build, or as many as may be kept were in use (shell.max)"
		if s.cfg.Keep == 0 {
			why = "this farm keeps none (shell.keep)"
		}
		s.forget(n, why)
		return false
	}
	k.ws = kept
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kept[n] = k
	return true
}

// forget takes a build off the list.
func (s *shells) forget(n int64, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.kept, n)
	if _, known := s.gone[n]; !known {
		s.past = append(s.past, n)
	}
	s.gone[n] = why
	if len(s.past) > maxGone {
		delete(s.gone, s.past[0])
		s.past = s.past[1:]
	}
}

// command is what a person types to get a shell.
func (s *shells) command(n int64) string {
	host, port, err := net.SplitHostPort(strings.TrimPrefix(s.ssh, "ssh://"))
	if err != nil {
		return fmt.Sprintf("ssh -t %s shell %d", strings.TrimPrefix(s.ssh, "ssh://"), n)
	}
	return fmt.Sprintf("ssh -t -p %s %s shell %d", port, host, n)
}

// Kept lists the workspaces that are kept.
func (s *shells) Kept() []control.Kept {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []control.Kept
	for _, k := range s.kept {
		now := k.Kept
		now.Shells, now.Until = k.ws.State()
		list = append(list, now)
	}
	slices.SortFunc(list, func(a, b control.Kept) int { return cmp.Compare(a.Build, b.Build) })
	return list
}

// Gone says why the workspace of a build is not kept.
func (s *shells) Gone(n int64) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gone[n]
}

// Open runs a shell.
func (s *shells) Open(ctx context.Context, n int64, call control.ShellCall) (status int, err error) {
	s.mu.Lock()
	k := s.kept[n]
	s.mu.Unlock()
	if k == nil {
		return 0, &control.Error{Code: control.ExitNotFound, Err: fmt.Errorf("workspace of build %d is not kept any more", n)}
	}
	leave, err := k.ws.Enter()
	if err != nil {
		return 0, &control.Error{Code: control.ExitNotFound, Err: err}
	}
	defer leave()
	log := s.log.With("build", n, "release", k.Target, "user", call.Who.User)
	log.Info("a shell is opened", "command", strings.Join(call.Args, " "), "terminal", call.Term.TTY)
	s.events.Shell(n, k.Target, call.Who.User)
	began := time.Now()
	status, err = k.scene.Shell(ctx, runner.Shell{
		Args: call.Args, Prompt: fmt.Sprintf("build %d $PWD# ", n),
		TTY: call.Term.TTY, Term: call.Term.Name, Cols: call.Term.Width, Rows: call.Term.Height, Resize: call.Term.Resize,
		In: call.In, Out: call.Out, Err: call.Err,
		Idle: time.Duration(s.cfg.Idle), Limit: time.Duration(s.cfg.Limit),
	})
	log.Info("a shell has ended", "status", status, "took", time.Since(began).Round(time.Millisecond), "error", err)
	if err != nil {
		return 0, fmt.Errorf("shell of build %d: %w", n, err)
	}
	return status, nil
}

// rawTerminal hands the terminal of a command over to a shell on the farm: every
// key goes there, ^C too, until restore. resize has the terminal's size when it
// changes. Without a terminal at both ends it says so and changes nothing.
func rawTerminal(in io.Reader, out io.Writer) (resize <-chan [2]int, restore func(), ok bool) {
	from, isFile := in.(*os.File)
	to, isFile2 := out.(*os.File)
	if !isFile || !isFile2 || !term.IsTerminal(int(from.Fd())) || !term.IsTerminal(int(to.Fd())) {
		return nil, func() {}, false
	}
	old, err := term.MakeRaw(int(from.Fd()))
	if err != nil {
		return nil, func() {}, false
	}
	changed, sizes, done := make(chan os.Signal, 1), make(chan [2]int, 1), make(chan struct{})
	signal.Notify(changed, unix.SIGWINCH)
	go func() {
		for {
			select {
			case <-changed:
			case <-done:
				return
			}
			if w, h, err := term.GetSize(int(to.Fd())); err == nil {
				select {
				case sizes <- [2]int{w, h}:
				case <-done:
					return
				}
			}
		}
	}()
	return sizes, sync.OnceFunc(func() {
		signal.Stop(changed)
		close(done)
		_ = term.Restore(int(from.Fd()), old)
	}), true
}
