package images

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containers/podman/v4/pkg/bindings/containers"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/podman/deltree"
)

// Labels on everything that podman keeps for a farm.
const (
	labelFarm   = "quarry.farm"   // on containers: whose they are
	labelFor    = "quarry.for"    // on workspaces: CHANNEL/ARCH; for which build is not known when one is made
	labelArch   = "quarry.arch"   // on bases and containers
	labelSource = "quarry.source" // on bases
	repository  = "localhost/quarry/base"
)

// Paths inside a workspace.
const (
	// GuestPath is where the guest program is seen.
	GuestPath = "/.quarry/guest"
	// HomePath is where Workspace.Dir is seen.
	HomePath = "/quarry"
	// SocketName is the name of the guest's socket in Workspace.Dir. It is gone
	// as soon as the guest has connected.
	SocketName = "ctl.sock"
)

// defaultUIDBase is where most distributions let subordinate ids begin.
const defaultUIDBase = 100000

// Options say how to make workspaces.
type Options struct {
	// WorkDir is the folder for the workspaces' own folders; only this store
	// uses it, and Sweep empties it.
	WorkDir string
	// Guest is the static program that is a workspace's first process: it is
	// run as GuestPath guest SOCKET. As a rule it is Quarry itself.
	Guest string
	// UIDBase and UIDCount are the host's ids that stand for 0 and up in a
	// workspace; groups likewise. 0: 100000 and 65536, or what fits when the
	// daemon itself lives in a user namespace.
	UIDBase, UIDCount int
	// Limits stand for those that a Spec leaves out; those that are left out
	// here too come from DefaultLimits.
	Limits Limits
	// StartTimeout bounds the time from asking for a workspace until its guest
	// has connected. 0: one minute.
	StartTimeout time.Duration
	// Channels are those that builds are made for. A workspace can be had for
	// another one too: it has no setup, and none is ever kept ready for it.
	Channels []Channel
	Pool     PoolOptions
	Keep     KeepOptions
	// BasesDir is the folder for the clean copies of bases and the measures of
	// podman's layers. "": bases, beside podman's folder in the state folder.
	BasesDir string
	Log      *slog.Logger
}

// Store keeps bases and makes workspaces. Its methods may be used from several
// goroutines.
type Store struct {
	conn    *podman.Conn
	opts    Options
	log     *slog.Logger
	cgroups podman.Cgroups
	limits  Limits
	limited error // why resources cannot be limited here, nil when they can

	countOnce sync.Once // makes counted
	counted   bool      // the kernel counts the io of version 1's groups

	loading *semaphore.Weighted // one base at a time: each takes its size twice on disk
	removal *semaphore.Weighted
	pending tally // background removals

	channels map[string]Channel
	pool     *pool
	keeper   keeper
	copies   archive
	trees    sync.Mutex // held while measures of fresh layers are written, and while old ones are removed
	inst     instances

	mu         sync.Mutex // guards the following
	bases      map[string]Base
	forgotten  int    // how often any of them was forgotten
	discarding func() // see OnDiscard
	troubled   func(channel, arch, what string)
	open       map[*Workspace]bool
}

// New makes a store over a podman service. It touches nothing of what an
// earlier daemon left: that is what Sweep is for.
func New(conn *podman.Conn, opts Options) (*Store, error) {
	s := &Store{
		conn: conn, opts: opts, log: opts.Log,
		bases: map[string]Base{}, open: map[*Workspace]bool{},
		loading: semaphore.NewWeighted(1), removal: semaphore.NewWeighted(2), channels: map[string]Channel{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, c := range opts.Channels {
		if err := c.check(); err != nil {
			return nil, err
		}
		s.channels[c.Name] = c
	}
	var err error
	if s.opts.WorkDir, err = filepath.Abs(opts.WorkDir); err != nil {
		return nil, err
	}
	if s.opts.BasesDir == "" {
		s.opts.BasesDir = filepath.Join(filepath.Dir(conn.Dir()), "bases")
	}
	if s.copies.dir, err = filepath.Abs(s.opts.BasesDir); err != nil {
		return nil, err
	}
	if opts.Guest != "" {
		if s.opts.Guest, err = filepath.Abs(opts.Guest); err != nil {
			return nil, err
		}
		st, err := os.Stat(s.opts.Guest)
		if err != nil {
			return nil, fmt.Errorf("guest program cannot be found: %w", err)
		}
		if !st.Mode().IsRegular() || st.Mode().Perm()&0o111 != 0o111 {
			return nil, fmt.Errorf("guest program %s must be a regular file that everybody may run (chmod a+rx): a workspace's root is nobody on the host", s.opts.Guest)
		}
	}
	// Not 0755: what builds write is nobody else's business. Not 0700 either:
	// the runtime opens the folder as the workspace's root.
	if err := os.MkdirAll(s.opts.WorkDir, 0o711); err != nil {
		return nil, fmt.Errorf("work folder cannot be made: %w", err)
	}
	if s.opts.StartTimeout == 0 {
		s.opts.StartTimeout = time.Minute
	}
	if s.cgroups, err = podman.DetectCgroups(); err != nil {
		return nil, err
	}
	if s.limited = s.cgroups.Limits(); s.limited != nil {
		s.log.Warn("builds run without limits on memory, processes and CPU", "why", s.limited)
	}
	s.limits = opts.Limits.or(DefaultLimits())
	if err := s.mapping(); err != nil {
		return nil, err
	}
	s.inst.init()
	s.keeper = keeper{s: s, opts: opts.Keep}
	s.pool = newPool(s, opts.Pool)
	s.pool.recall()
	return s, nil
}

// configured reports whether a channel is one of the configuration's.
func (s *Store) configured(channel string) bool { _, ok := s.channels[channel]; return ok }

// mapping decides which ids of the host a workspace's are.
func (s *Store) mapping() error {
	if s.opts.UIDBase == 0 {
		s.opts.UIDBase = defaultUIDBase
	}
	given := s.opts.UIDBase != defaultUIDBase
	if s.opts.UIDCount == 0 {
		s.opts.UIDCount = 65536
	}
	if s.opts.UIDBase < 0 || s.opts.UIDCount < 1000 {
		return fmt.Errorf("ids from %d on, %d of them, are no user namespace: give at least 1000 that nobody else uses", s.opts.UIDBase, s.opts.UIDCount)
	}
	for _, file := range []string{"/proc/self/uid_map", "/proc/self/gid_map"} {
		m, err := podman.IDMap(file)
		if err != nil {
			return fmt.Errorf("own id mapping cannot be read: %w", err)
		}
		// In the initial namespace the one range is everything. Inside
		// `podman unshare` 0 is the user and the subordinate ids follow.
		var most podman.IDRange
		fits := false
		for _, r := range m {
			if int64(s.opts.UIDBase) >= r.Inside && int64(s.opts.UIDBase+s.opts.UIDCount) <= r.Inside+r.Count {
				fits = true
			}
			if r.Count > most.Count {
				most = r
			}
		}
		switch {
		case fits:
		case given:
			return fmt.Errorf("ids from %d on, %d of them, do not lie in this user namespace: leave the setting out", s.opts.UIDBase, s.opts.UIDCount)
		case most.Count < 1000:
			return fmt.Errorf("this user has %d subordinate ids and a workspace needs at least 1000: add a line to /etc/subuid and /etc/subgid (usermod --add-subuids 200000-265535 --add-subgids 200000-265535 USER)", most.Count)
		default:
			s.opts.UIDBase, s.opts.UIDCount = int(most.Inside), int(min(most.Count, 65536))
		}
	}
	return nil
}

// Sweep removes what an earlier daemon of this state folder left behind:
// containers, also half-made ones, the workspaces' folders, control groups, and
// images that no base needs any more. Workspaces of this store stay. Call it
// before the first Workspace.
func (s *Store) Sweep(ctx context.Context) error {
	// Not under an update of this store's.
	if err := s.inst.maker.Acquire(ctx, 1); err != nil {
		return err
	}
	defer s.inst.maker.Release(1)
	call, err := s.conn.Context(ctx)
	if err != nil {
		return err
	}
	list := new(containers.ListOptions).WithAll(true)
	if s.conn.Own() {
		// Everything in an own storage is the farm's, even what lost its
		// labels by having been killed while it was made.
		list = list.WithExternal(true)
	} else {
		list = list.WithFilters(map[string][]string{"label": {labelFarm + "=" + s.conn.Farm()}})
	}
	found, err := containers.List(call, list)
	if err != nil {
		return fmt.Errorf("leftover containers cannot be listed: %w", gone(err))
	}
	mine := map[string]bool{}
	dirs := map[string]bool{}
	s.mu.Lock()
	for w := range s.open {
		mine[w.container] = true
		dirs[filepath.Base(w.Dir)] = true
		dirs[filepath.Base(w.Dir)+layExt] = true
	}
	s.mu.Unlock()
	var errs []error
	for _, c := range found {
		if slices.ContainsFunc(c.Names, func(name string) bool { return mine[name] }) {
			continue
		}
		if err := s.removeContainer(ctx, c.ID, ""); err != nil {
			errs = append(errs, err)
		}
	}
	entries, err := os.ReadDir(s.opts.WorkDir)
	if err != nil {
		errs = append(errs, err)
	}
	for _, e := range entries {
		if dirs[e.Name()] {
			continue
		}
		if err := deltree.Remove(filepath.Join(s.opts.WorkDir, e.Name())); err != nil {
			errs = append(errs, err)
		}
	}
	s.sweepCgroups()
	errs = append(errs, s.sweepInstances(ctx))
	s.prune(ctx)
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("what an earlier run left cannot all be removed: %w", err)
	}
	return nil
}

func (s *Store) sweepCgroups() { s.cgroups.Sweep(s.conn.Farm()) }

// removeContainer removes a container by force. upper is its writable layer on
// the host when it is known.
func (s *Store) removeContainer(ctx context.Context, id, upper string) error {
	opts := new(containers.RemoveOptions).WithForce(true).WithIgnore(true).WithVolumes(true).WithTimeout(0)
	var last error
	if upper != "" && s.full() {
		// Podman cannot even note that it is gone, and forgets about its layer
		// when it fails half-way: make it room. What runs there ends with it.
		if call, err := s.conn.Context(ctx); err == nil {
			containers.Kill(call, id, new(containers.KillOptions).WithSignal("KILL"))
		}
		deltree.Clear(upper)
	}
	for try := range 5 {
		// Anew each time: the service may have been replaced meanwhile, and the
		// next one still knows the container.
		call, err := s.conn.Context(ctx)
		if err != nil {
			return err
		}
		reports, err := containers.Remove(call, id, opts)
		if err == nil {
			for _, r := range reports {
				if r.Err != nil {
					err = r.Err
				}
			}
		}
		if err == nil || podman.Code(err) == 404 || strings.Contains(err.Error(), "no such container") {
			return nil
		}
		last = gone(err)
		if ctx.Err() != nil {
			break
		}
		// A tree that is nested too deep for podman's way of deleting is the
		// one thing that a build can leave which it cannot remove.
		if upper != "" && try > 0 {
			deltree.Clear(upper)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(try+1) * 100 * time.Millisecond):
		}
	}
	return fmt.Errorf("container %.12s cannot be removed: %w", id, last)
}

// Drain waits until everything that closed workspaces left is removed.
func (s *Store) Drain(ctx context.Context) error {
	if err := s.pending.wait(ctx); err != nil {
		return fmt.Errorf("closed workspaces are still being removed: %w", err)
	}
	s.sweepCgroups()
	return nil
}

// Close closes the workspaces that are still open, those that are ready
// included, all at once, ends what is being made, and waits for all of that to be
// removed, until ctx ends.
func (s *Store) Close(ctx context.Context) error {
	making := s.inst.close(ctx)
	s.pool.shut(ctx)
	s.keeper.shut()
	s.mu.Lock()
	errs := make(chan error, len(s.open))
	n := len(s.open)
	for w := range s.open {
		go func() { errs <- w.Close(ctx) }()
	}
	s.mu.Unlock()
	all := []error{making}
	for range n {
		all = append(all, <-errs)
	}
	return errors.Join(append(all, s.Drain(ctx))...)
}

// tally counts work in the background, for those who wait until there is none.
// Unlike a sync.WaitGroup it may be added to while they wait.
type tally struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // closed when n comes to 0; nil while nobody waits
}

func (t *tally) add() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
}

func (t *tally) done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.none != nil {
		close(t.none)
		t.none = nil
	}
}

// wait returns when there is none at some moment.
func (t *tally) wait(ctx context.Context) error {
	t.mu.Lock()
	if t.n == 0 {
		t.mu.Unlock()
		return nil
	}
	if t.none == nil {
		t.none = make(chan struct{})
	}
	none := t.none
	t.mu.Unlock()
	select {
	case <-none:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Limited tells why memory, processes and CPU cannot be limited on this
// machine; it is nil when they can.
func (s *Store) Limited() error { return s.limited }

// explain adds to a refusal of podman what it may not know how to say: on a
// full disk its errors range from misleading to senseless.
func (s *Store) explain(err error) error {
	if err != nil && s.full() {
		return fmt.Errorf("no space left in %s: make room, builds then go on by themselves (%w)", s.conn.Dir(), err)
	}
	return err
}

// full reports whether podman's disk is.
func (s *Store) full() bool {
	var st unix.Statfs_t
	if unix.Statfs(s.conn.Dir(), &st) != nil {
		return false
	}
	// Root may use what is reserved for it: Bfree, not Bavail.
	return st.Bfree*uint64(st.Bsize) < 1<<20 || st.Files > 0 && st.Ffree < 16
}

// gone marks errors that mean that podman went away.
func gone(err error) error {
	if err != nil && podman.IsGone(err) && !errors.Is(err, podman.ErrGone) {
		return fmt.Errorf("%w: %w", podman.ErrGone, err)
	}
	return err
}
