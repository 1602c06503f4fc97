package jobserver

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// MaxJobs is the most that a pool may be set to. The kernel writes as many tokens
// at once (PIPE_BUF), and they fill a sixteenth of a FIFO.
const MaxJobs = 4096

// mostBytes is more than a FIFO can be made to hold by anybody but the host's
// root.
const mostBytes = 2 << 20

// Options are what a pool is made with.
type Options struct {
	Dir, Name string // the FIFO is Dir/Name; Dir is there, Name is not
	UID, GID  int    // who owns it, as this machine counts
	Log       *slog.Logger
}

// Pool is one jobserver. Its methods may be called by several goroutines.
type Pool struct {
	path    string
	log     *slog.Logger
	changed chan struct{}

	mu       sync.Mutex // guards the following
	fd       int        // of the FIFO, not blocking; -1 when closed
	id       unix.Stat_t
	want     int // jobs, the implicit one included
	issued   int // tokens that are with the build, be it in the FIFO or in somebody's hands
	owing    bool
	repaired int
	extra    int
	suspect  int // tokens that every look since looks began found lost
	looks    int
	since    time.Time // when they began

	patience time.Duration
}

// State is what a pool has at one moment.
type State struct {
	Want     int // jobs that may run, as Set has it
	Out      int // slots that are out now, the implicit one included: more than Want while some are still to come back
	Free     int // tokens that nobody holds
	Held     int // tokens that somebody holds: Out-1-Free
	Repaired int // tokens written again until now since their holder was gone
	Extra    int // tokens taken out until now that came from nobody knows where
}

// New makes the FIFO, for one job. It must be made before anything runs that
// could be at Dir: from then on the pool goes by the descriptor.
func New(o Options) (*Pool, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	p := &Pool{path: filepath.Join(o.Dir, o.Name), log: o.Log, changed: make(chan struct{}, 1), fd: -1, want: 1, patience: patience}
	if o.Name == "" || o.Name != filepath.Base(o.Name) || o.Name == "." || o.Name == ".." {
		return nil, fmt.Errorf("jobserver %q: its name is to be that of a file in %s", o.Name, o.Dir)
	}
	fail := func(what string, err error) (*Pool, error) {
		return nil, fmt.Errorf("jobserver %s cannot be %s: %w", p.path, what, err)
	}
	dir, err := unix.Open(o.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail("made", err)
	}
	defer unix.Close(dir)
	if err := unix.Mkfifoat(dir, o.Name, 0o600); err != nil {
		return fail("made", err)
	}
	fd, err := unix.Openat(dir, o.Name, unix.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail("opened", err)
	}
	undo := func(what string, err error) (*Pool, error) {
		unix.Close(fd)
		_ = unix.Unlinkat(dir, o.Name, 0)
		return fail(what, err)
	}
	if err := unix.Fstat(fd, &p.id); err != nil {
		return undo("looked at", err)
	}
	if p.id.Mode&unix.S_IFMT != unix.S_IFIFO {
		unix.Close(fd)
		return fail("used", errors.New("something else took its place"))
	}
	if int(p.id.Uid) != o.UID || int(p.id.Gid) != o.GID {
		if err := unix.Fchown(fd, o.UID, o.GID); err != nil {
			return undo("given to its build", err)
		}
	}
	if err := unix.Fchmod(fd, 0o600); err != nil { // whatever the umask
		return undo("given to its build", err)
	}
	p.fd = fd
	return p, nil
}

// Path is where the FIFO was made.
func (p *Pool) Path() string { return p.path }

// Set says how many jobs may run, the one that needs no token included; below 1
// counts as 1, above MaxJobs as that. More may run at once; fewer do as soon as
// jobs end, and what lies unused is taken out before Set returns.
func (p *Pool) Set(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.want = min(max(n, 1), MaxJobs)
	p.balance()
}

// State tells what the pool has now.
func (p *Pool) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.balance()
	return p.state()
}

func (p *Pool) state() State {
	free := min(p.free(), p.issued)
	return State{Want: p.want, Out: p.issued + 1, Free: free, Held: p.issued - free, Repaired: p.repaired, Extra: p.extra}
}

// Changed gets a value when slots have come back after a lowering, and may
// forget one when the last has not been taken.
func (p *Pool) Changed() <-chan struct{} { return p.changed }

// Reset is for when nothing of the build runs, as between two steps: every slot
// but the implicit one is back then, whoever had it, and those that are wanted
// are there anew.
func (p *Pool) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return
	}
	down := p.issued > p.want-1
	p.take(mostBytes)
	p.issued, p.suspect, p.looks = 0, 0, 0
	p.balance()
	if down {
		p.tell()
	}
}

// A token counts as lost when so many looks in a row, over so long a time, have
// found it so: one that was just taken belongs to a job that is about to begin.
const (
	looks    = 5
	patience = 2 * time.Second
)

// Leaked tells the pool that no more than busy jobs can be alive, as somebody
// has just seen who looks some times a second. Tokens for more than that were
// held by processes that are gone. What every look of some time finds lost is
// written again.
func (p *Pool) Leaked(busy int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return
	}
	p.balance()
	// One job, if any is alive, needs no token.
	lost := p.issued - min(p.free(), p.issued) - max(busy-1, 0)
	if lost <= 0 {
		p.suspect, p.looks = 0, 0
		return
	}
	if p.looks == 0 {
		p.suspect, p.since = lost, time.Now()
	}
	p.suspect = min(p.suspect, lost)
	if p.looks++; p.looks < looks || time.Since(p.since) < p.patience {
		return
	}
	lost, p.suspect, p.looks = p.suspect, 0, 0
	p.repaired += lost
	p.issued -= lost
	p.log.Info("jobserver tokens were lost with their holders", "tokens", lost, "jobs", p.want)
	p.balance()
	p.tell()
}

// Close ends the jobserver and removes the FIFO's name, if it is still that of
// the FIFO. Clients that live go on with what they hold.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return
	}
	p.owe(false)
	unix.Close(p.fd)
	p.fd = -1
	// The folder may belong to somebody hostile: only the name goes, whatever it
	// is by now. A folder stays, which goes with the workspace.
	var st unix.Stat_t
	if unix.Lstat(p.path, &st) == nil && st.Ino == p.id.Ino && st.Dev == p.id.Dev {
		_ = os.Remove(p.path)
	}
}

// balance brings what is with the build as near to what is wanted as it can be
// at once, and sees to it that the rest follows.
func (p *Pool) balance() {
	if p.fd < 0 {
		return
	}
	if more := p.free() - p.issued; more > 0 {
		n := p.take(more)
		if p.extra == 0 && n > 0 {
			p.log.Warn("somebody writes tokens of his own into a jobserver", "tokens", n)
		}
		p.extra += n
	}
	switch goal := p.want - 1; {
	case p.issued < goal:
		p.issued += p.put(goal - p.issued)
	case p.issued > goal:
		if n := p.take(p.issued - goal); n > 0 {
			p.issued -= n
			p.tell()
		}
	}
	p.owe(p.issued > p.want-1)
}

// collect takes what has come back of what is owed, and says whether there is
// more to come.
func (p *Pool) collect() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 || !p.owing {
		return
	}
	if n := p.take(p.issued - (p.want - 1)); n > 0 {
		p.issued -= n
		p.tell()
	}
	p.owe(p.issued > p.want-1)
}

// owe has tokens taken as they come back, or not any more.
func (p *Pool) owe(yes bool) {
	if yes == p.owing {
		return
	}
	var err error
	if yes {
		err = theCollector.add(p)
	} else {
		theCollector.remove(p)
	}
	if err != nil { // State, Set and Leaked look too
		p.log.Warn("jobserver tokens are only taken back when somebody looks", "error", err)
		return
	}
	p.owing = yes
}

func (p *Pool) tell() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// free counts what is in the FIFO.
func (p *Pool) free() int {
	n, err := unix.IoctlGetInt(p.fd, unix.TIOCINQ) // FIONREAD
	if err != nil {
		return 0
	}
	return n
}

// take reads up to n tokens out and says how many there were.
func (p *Pool) take(n int) int {
	var buf [4096]byte
	taken := 0
	for taken < n {
		got, err := unix.Read(p.fd, buf[:min(n-taken, len(buf))])
		if err == unix.EINTR {
			continue
		}
		if err != nil || got <= 0 {
			break
		}
		taken += got
	}
	return taken
}

// put writes n tokens and says how many it wrote.
func (p *Pool) put(n int) int {
	var buf [MaxJobs]byte
	for i := range n {
		buf[i] = '+' // make's own
	}
	done := 0
	for grown := false; done < n; {
		wrote, err := unix.Write(p.fd, buf[:n-done])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN && !grown: // somebody has made it smaller
			_, _ = unix.FcntlInt(uintptr(p.fd), unix.F_SETPIPE_SZ, 64<<10)
			grown = true
		case err != nil || wrote <= 0:
			return done // what is there is not ours: the next look takes it out
		default:
			done += wrote
		}
	}
	return done
}
