package hooks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Daemon is a running Quarry, as a hook sees it.
type Daemon interface {
	// Impact tells what a push would cause. What the daemon cannot tell is a
	// *Refused.
	Impact(ctx context.Context, p Proposal) (Impact, error)
	// Pushed tells of a push and gives the builds that are wanted because of
	// it and under way: usually one for each release and arch. Besides them
	// there may be a *Refused, for the branches that cannot be built.
	Pushed(ctx context.Context, p Push) (Answer, error)
	// Follow writes the log of a build from its beginning until the build has
	// ended, and then its verdict as the last line.
	Follow(ctx context.Context, number int64, w io.Writer) error
	Close() error
}

// Dialer reaches the Quarry that listens on a control socket.
type Dialer func(ctx context.Context, socket string) (Daemon, error)

// maxFollowed is how many builds of one push are followed at a time.
const maxFollowed = 32

// Timeouts of the hand-over. A daemon that takes longer finds the push by
// itself, as it looks for lost work every few minutes.
const (
	dialTimeout = 5 * time.Second
	pushTimeout = 60 * time.Second
)

// PostReceive hands a push over to Quarry and tells the pusher what comes of
// it. The refs have moved, so there is nothing left to refuse: the status is 0
// whatever happens. It first writes down who pushed, then hands over, and only
// then talks, so that a pusher who hangs up early loses neither.
func PostReceive(ctx context.Context, env Env, stdin io.Reader, stderr io.Writer, dial Dialer) (status int) {
	say := speaker(stderr)
	lines, err := readRefs(stdin)
	if err != nil {
		say("%v", err)
		return 0
	}
	// pre-receive has refused what is wrong and warned of what is unknown;
	// where it is not installed, a wrong option counts as none.
	opts, _, _ := env.readOptions()
	push := Push{Package: env.Package, Repo: env.Repo, Packager: env.packager(), Channel: opts.channel, Group: opts.group, Time: time.Now().UTC().Truncate(time.Second)}
	var talk []string
	news := false
	for _, line := range lines {
		ref, err := parseRef(env.Package, line)
		if err != nil {
			talk = append(talk, fmt.Sprintf("%v; nothing is built for it", err))
			continue
		}
		push.Refs = append(push.Refs, ref)
		switch {
		case ref.Release() && ref.Deleted():
			talk = append(talk, fmt.Sprintf("%s is gone: builds of it under way become obsolete, records stay", ref.Name))
			news = true
		case ref.Release():
			if err := env.note(ctx, push, ref); err != nil {
				talk = append(talk, fmt.Sprintf("%s: who pushed it could not be written down, so its committer counts as packager: %v", ref.Name, err))
			}
			news = true
		case ref.Branch && !ref.Deleted():
			talk = append(talk, fmt.Sprintf("%s is stored and not built: a release is a branch %s-VERSION", show(ref.Name), env.Package))
		}
	}
	if !news {
		for _, t := range talk {
			say("%s", t)
		}
		return 0
	}

	daemon, answer, err := env.handOver(ctx, push, dial)
	builds := answer.Builds
	if daemon != nil {
		defer daemon.Close()
	}
	for _, t := range talk {
		say("%s", t)
	}
	var refused *Refused
	switch {
	case errors.As(err, &refused):
		say("it is stored, but Quarry says: %v", refused.Err)
		if len(builds) == 0 {
			return 0
		}
	case err != nil:
		say("it is stored. Quarry cannot be reached just now (%v): the build starts when it is back", err)
		return 0
	}
	for _, b := range builds {
		say("%s", standing(b))
	}
	declined := 0
	for _, d := range answer.Declined {
		if push.releases(quarry.Branch(d.Package, d.Version)) {
			say("%s %s (%s): not built for %s: %s", d.Package, d.Version, d.Channel, d.Arch, d.Reason)
			declined++
		}
	}
	if opts.group != "" && declined > 0 && env.SSH != "" {
		channel := ""
		if slices.ContainsFunc(env.Options, func(o string) bool { return strings.HasPrefix(o, "channel=") }) {
			channel = "--channel " + opts.channel + " "
		}
		say("when all of group %s is pushed: %s group submit %s%s", opts.group, env.SSH, channel, opts.group)
	}
	if len(builds) == 0 && declined == 0 && !allDeleted(push) {
		say("nothing is left to build: every architecture has its record")
	}
	if len(builds) == 0 || !opts.follow {
		if len(builds) > 0 && env.SSH != "" {
			say("follow it: %s log -f %d", env.SSH, builds[0].Number)
		}
		return 0
	}
	env.follow(ctx, daemon, builds, stderr)
	return 0
}

// releases reports whether the push moved the branch.
func (p Push) releases(branch string) bool {
	return slices.ContainsFunc(p.Refs, func(r Ref) bool { return r.Release() && !r.Deleted() && r.Name == branch })
}

func allDeleted(p Push) bool {
	for _, r := range p.Refs {
		if r.Release() && !r.Deleted() {
			return false
		}
	}
	return true
}

// Answer is what a daemon makes of a push.
type Answer struct {
	Builds   []quarry.Build    // under way, of the whole package
	Declined []quarry.Declined // archs that its recipes say not to build for
}

// Refused is an answer of the daemon that says no: it was reached, so the push
// need not be spooled.
type Refused struct{ Err error }

func (r *Refused) Error() string { return r.Err.Error() }
func (r *Refused) Unwrap() error { return r.Err }

// handOver tells the daemon of a push, or leaves it in the spool. An error
// means that no daemon has it now.
func (e Env) handOver(ctx context.Context, p Push, dial Dialer) (Daemon, Answer, error) {
	daemon, answer, err := e.tell(ctx, p, dial)
	var refused *Refused
	if err == nil || errors.As(err, &refused) {
		return daemon, answer, err
	}
	if e.Spool != "" {
		if spooled := Spool(e.Spool, p); spooled != nil {
			err = fmt.Errorf("%w; %w", err, spooled)
		}
	}
	return daemon, Answer{}, err
}

func (e Env) tell(ctx context.Context, p Push, dial Dialer) (Daemon, Answer, error) {
	if e.Socket == "" {
		return nil, Answer{}, errors.New("no socket is set")
	}
	dialCtx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	daemon, err := dial(dialCtx, e.Socket)
	if err != nil {
		return nil, Answer{}, err
	}
	ctx, cancel = context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	answer, err := daemon.Pushed(ctx, p)
	return daemon, answer, err
}

// standing says where a build stands, e.g. "zlib 1.3.1 (testing): build 12 for
// x86_64 is queued".
func standing(b quarry.Build) string {
	s := fmt.Sprintf("%s %s (%s): build %d for %s ", b.Package, b.Version, b.Channel, b.Number, b.Arch)
	if b.State == quarry.Waiting && strings.HasPrefix(b.Reason, "waits ") {
		return s + b.Reason
	}
	s += "is " + string(b.State)
	if b.Reason != "" {
		s += ": " + b.Reason
	}
	return s
}

// follow shows the logs of builds until all have ended or the client is gone.
func (e Env) follow(ctx context.Context, daemon Daemon, builds []quarry.Build, stderr io.Writer) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e.whileAlive(cancel)
	out := &terminal{w: stderr, stall: stall}
	say := speaker(out)
	var group errgroup.Group
	group.SetLimit(maxFollowed) // the others follow when one of these has ended
	for _, b := range builds {
		group.Go(func() error {
			log := &logWriter{out: out, gone: cancel}
			if len(builds) > 1 {
				log.prefix = fmt.Sprintf("%-8s| ", b.Arch)
			}
			err := daemon.Follow(ctx, b.Number, log)
			log.flush()
			if err != nil && ctx.Err() == nil {
				say("build %d can be followed no longer (%v): it goes on%s", b.Number, err, e.again(b))
			}
			return nil
		})
	}
	group.Wait()
	if ctx.Err() != nil {
		say("not followed any longer: the builds go on%s", e.again(builds[0]))
	}
}

// again says how to pick up a log.
func (e Env) again(b quarry.Build) string {
	if e.SSH == "" {
		return ""
	}
	return fmt.Sprintf("; %s log -f %d picks up again", e.SSH, b.Number)
}

// whileAlive calls gone when the pipe that stands for the client ends.
func (e Env) whileAlive(gone func()) {
	if e.AliveFD == 0 {
		return
	}
	var st unix.Stat_t
	if unix.Fstat(e.AliveFD, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return // something on the way has closed it, and it is another file now
	}
	f := os.NewFile(uintptr(e.AliveFD), "alive")
	go func() {
		f.Read(make([]byte, 1))
		gone()
	}()
}

// stall is how long the pusher's terminal may take nothing before it counts as
// gone. A receive-pack whose client has died reads its hook's output no longer,
// but does not close it either.
const stall = time.Minute

// terminal serialises what several builds write, and does not wait for ever for
// a reader that has stopped reading.
type terminal struct {
	w     io.Writer
	stall time.Duration

	mu sync.Mutex // guards the following
	// gone is set for good when a write did not end in time; the goroutine in
	// it is left behind, and ends with the process.
	gone bool
}

var errStalled = errors.New("terminal takes no more")

func (t *terminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.gone {
		return 0, errStalled
	}
	done := make(chan error, 1)
	buf := bytes.Clone(p) // p is the caller's again when we give up
	go func() {
		_, err := t.w.Write(buf)
		done <- err
	}()
	timer := time.NewTimer(t.stall)
	defer timer.Stop()
	select {
	case err := <-done:
		return len(p), err
	case <-timer.C:
		t.gone = true
		return 0, errStalled
	}
}

// logWriter makes a build's output fit for a stranger's terminal: whole lines,
// no control sequences (git passes them through: CVE-2024-52005), no endless
// line.
type logWriter struct {
	out    io.Writer
	gone   func() // called when out takes no more
	prefix string
	line   []byte // begun and not yet ended
}

const maxLine = 4000 // bytes of a line shown at once

func (l *logWriter) Write(p []byte) (int, error) {
	n := len(p)
	var buf bytes.Buffer
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		part := p
		if i >= 0 {
			part, p = p[:i], p[i+1:]
		} else {
			p = nil
		}
		for len(l.line)+len(part) > maxLine {
			room := maxLine - len(l.line)
			l.line = append(l.line, part[:room]...)
			part = part[room:]
			l.end(&buf)
		}
		l.line = append(l.line, part...)
		if i >= 0 {
			l.end(&buf)
		}
	}
	if buf.Len() == 0 {
		return n, nil
	}
	if _, err := l.out.Write(buf.Bytes()); err != nil {
		l.gone()
		return 0, err
	}
	return n, nil
}

func (l *logWriter) end(buf *bytes.Buffer) {
	// A progress bar draws over itself: its last state is what one would see.
	text := strings.TrimRight(string(l.line), "\r")
	if i := strings.LastIndexByte(text, '\r'); i >= 0 {
		text = text[i+1:]
	}
	buf.WriteString(l.prefix)
	buf.WriteString(clean(text))
	buf.WriteByte('\n')
	l.line = l.line[:0]
}

func (l *logWriter) flush() {
	if len(l.line) > 0 {
		var buf bytes.Buffer
		l.end(&buf)
		l.out.Write(buf.Bytes())
	}
}
