package jobs

import (
	"github.com/Morphux/quarry/buildcontrol"
	"github.com/Morphux/quarry/jobserver"
)

// bridge holds the slots of a build that runs: as tokens in its jobserver or, as
// long as clients of the protocol are connected, as the number that they are told.
// Those clients start jobs on their word, so what they run is known only from
// looking at processes. It is used under the governor's lock.
type bridge struct {
	pool  *jobserver.Pool     // nil: no more than one job ever runs
	token *buildcontrol.Token // nil: there is no protocol

	n       int  // slots, as Set had it
	clients bool // are connected
	told    int  // jobs that they may run, one with the slot that needs no token
	lent    int  // jobs that they may still be running
	turn    int  // counts what they were told
	leaves  int  // jobs that can be alive in the build, when last looked at; 0: nobody has looked
	fresh   bool // that was after they were last told something
}

func (b *bridge) Set(n int) {
	b.n = n
	b.apply()
}

// apply has the slots be where the build looks for them.
func (b *bridge) apply() {
	if !b.clients {
		if b.pool != nil {
			b.pool.Set(b.n)
		}
		return
	}
	told := b.n
	if b.pool != nil {
		b.pool.Set(1)
		told -= b.pool.State().Out - 1 // until what others hold comes back
	}
	b.tell(max(1, told))
}

func (b *bridge) tell(n int) {
	if n == b.told {
		return
	}
	b.token.Set(n)
	b.told, b.lent, b.fresh = n, max(b.lent, n), false
	b.turn++
}

// saw takes what a look at the build's processes has found, and what turn was
// before it.
func (b *bridge) saw(t Tasks, turn int) {
	b.leaves, b.fresh = max(1, t.Leaves), turn == b.turn
}

func (b *bridge) Look() sight {
	if b.token != nil {
		if now := b.token.Clients() > 0; now != b.clients {
			if b.clients = now; !now {
				// Before they came they may have one job, so that a client that comes
				// next never has more than there is.
				b.tell(1)
				b.lent, b.leaves, b.fresh = 1, 0, false
			}
			b.apply()
		}
	}
	out, held := 1, 0
	if b.clients {
		b.apply()
	}
	if b.pool != nil {
		st := b.pool.State()
		out, held = st.Out, st.Held
	}
	if !b.clients {
		return sight{out, 1 + held}
	}
	if b.fresh {
		b.lent = max(b.told, min(b.lent, b.leaves))
	}
	out += b.lent - 1
	used := b.told + held
	if b.leaves > 0 {
		used = b.leaves
	}
	return sight{out, min(used, out)}
}

// state is what only the jobserver knows.
func (b *bridge) state() jobserver.State {
	if b.pool == nil {
		return jobserver.State{Want: 1, Out: 1}
	}
	return b.pool.State()
}
