package images

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/Morphux/quarry/internal/human"
)

// KeepOptions say how many workspaces are kept once their builds are over.
type KeepOptions struct {
	// For is how long one is kept, from the end of its build and from the end of
	// its last use on. 0: none is kept.
	For time.Duration
	// Max is how many are kept at most; the oldest that is not in use goes first.
	Max int
}

// keepEvery is how often those that are kept are looked at.
const keepEvery = 2 * time.Second

// keeper keeps workspaces whose builds are over. They count neither as a build's
// nor as ready ones.
type keeper struct {
	s    *Store
	opts KeepOptions

	mu     sync.Mutex // guards the following, and what Kept holds
	kept   []*Kept    // oldest first
	looks  bool       // somebody does, now and then
	closed bool
}

// Kept is a workspace that is kept though its build is over.
type Kept struct {
	*Workspace
	k       *keeper
	gone    func(why string)
	dropped bool
	users   int
	until   time.Time
}

// Keep keeps a workspace instead of having it closed, and reports whether it
// does: it is the store's from then on. It does not when none are to be kept, when
// as many as may be are in use, or when the first process has ended. gone is
// called once, when it is kept no longer, with the reason.
func (s *Store) Keep(w *Workspace, gone func(why string)) (*Kept, bool) {
	k := &s.keeper
	if k.opts.For <= 0 || k.opts.Max <= 0 || !w.alive() {
		return nil, false
	}
	w.kept.Store(true)
	w.idle.Store(true)
	kept := &Kept{Workspace: w, k: k, gone: gone, until: time.Now().Add(k.opts.For)}
	k.mu.Lock()
	var drop func()
	ok := !k.closed
	if ok && len(k.kept) >= k.opts.Max {
		drop = k.oldest("a newer one took its place (shell.max)")
		ok = drop != nil
	}
	if ok {
		k.kept = append(k.kept, kept)
		if !k.looks {
			k.looks = true
			go k.look()
		}
	}
	k.mu.Unlock()
	if drop != nil {
		drop()
	}
	if ok {
		s.pool.closed(w)
		return kept, true
	}
	w.kept.Store(false)
	w.idle.Store(false)
	return nil, false
}

// Enter begins a use of the workspace, which stays for as long as that takes. It
// has its limits as in the build, that on disk included.
func (w *Kept) Enter() (leave func(), err error) {
	w.k.mu.Lock()
	defer w.k.mu.Unlock()
	if w.dropped {
		return nil, fmt.Errorf("workspace %s is not kept any more", w.Name)
	}
	w.users++
	w.idle.Store(false)
	return sync.OnceFunc(w.leave), nil
}

func (w *Kept) leave() {
	w.k.mu.Lock()
	w.users--
	if w.users == 0 {
		w.until = time.Now().Add(w.k.opts.For)
		w.idle.Store(true)
	}
	w.k.mu.Unlock()
	w.k.tidy() // it may have died of its use
}

// State tells how many use the workspace and, when nobody does, until when it is
// kept.
func (w *Kept) State() (users int, until time.Time) {
	w.k.mu.Lock()
	defer w.k.mu.Unlock()
	if w.users > 0 {
		return w.users, time.Time{}
	}
	return 0, w.until
}

// drop takes a workspace off the list; what it returns ends it. k.mu is held.
func (k *keeper) drop(w *Kept, why string) func() {
	w.dropped = true
	k.kept = slices.DeleteFunc(k.kept, func(o *Kept) bool { return o == w })
	return func() {
		_ = w.Close(context.Background())
		w.log.Info("the workspace of a failed build is not kept any more", "workspace", w.Name, "why", why)
		w.gone(why)
	}
}

// oldest drops the oldest that nobody uses; nil when there is none. k.mu is held.
func (k *keeper) oldest(why string) func() {
	for _, w := range k.kept {
		if w.users == 0 {
			return k.drop(w, why)
		}
	}
	return nil
}

// tidy drops those whose time is over, and the dead.
func (k *keeper) tidy() {
	k.mu.Lock()
	var drops []func()
	now := time.Now()
	for _, w := range slices.Clone(k.kept) {
		switch {
		case !w.alive():
			drops = append(drops, k.drop(w, w.end()))
		case w.users == 0 && !now.Before(w.until):
			drops = append(drops, k.drop(w, fmt.Sprintf("nobody used it for %s", human.Duration(k.opts.For))))
		}
	}
	k.mu.Unlock()
	for _, drop := range drops {
		drop()
	}
}

// end says why the first process of a workspace is gone.
func (w *Kept) end() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.over != "":
		return w.over
	case w.lost != "":
		return w.lost
	}
	return "its first process has ended"
}

// look looks at those that are kept until none is.
func (k *keeper) look() {
	for {
		k.tidy()
		k.mu.Lock()
		if len(k.kept) == 0 {
			k.looks = false
			k.mu.Unlock()
			return
		}
		wait := keepEvery
		for _, w := range k.kept {
			if w.users == 0 {
				wait = min(wait, time.Until(w.until))
			}
		}
		k.mu.Unlock()
		// A quarter before the ready ones go, for which builds would wait.
		k.s.pool.mu.Lock()
		o := k.s.pool.opts
		k.s.pool.mu.Unlock()
		o.MinMemory += o.MinMemory / 4
		o.MinDisk += o.MinDisk / 4
		if short := k.s.shortage(o, ""); short != "" {
			k.s.Relieve(string(short))
		}
		time.Sleep(max(wait, 0))
	}
}

// Relieve drops the oldest workspace that is kept and not in use, to make room,
// and reports whether there was one.
func (s *Store) Relieve(why string) bool {
	k := &s.keeper
	k.mu.Lock()
	drop := k.oldest(why)
	k.mu.Unlock()
	if drop == nil {
		return false
	}
	drop()
	return true
}

// shut drops all of them, in use or not, and has no more kept.
func (k *keeper) shut() {
	k.mu.Lock()
	k.closed = true
	var drops []func()
	for _, w := range slices.Clone(k.kept) {
		drops = append(drops, k.drop(w, "the daemon was stopped"))
	}
	k.mu.Unlock()
	for _, drop := range drops {
		drop()
	}
}
