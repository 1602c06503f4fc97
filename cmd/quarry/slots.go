package main

import (
	"sync"
	"time"

	"github.com/Morphux/quarry/jobs"
	"github.com/Morphux/quarry/queue"
)

// slotsFor is how old what the queue hears of slots may be: it asks for each build
// that it looks at.
const slotsFor = 500 * time.Millisecond

// slotsOf tells the queue how slots are shared, as a governor says it.
func slotsOf(status func() jobs.Status) func() queue.Slots {
	var mu sync.Mutex
	var last queue.Slots
	var at time.Time
	return func() queue.Slots {
		mu.Lock()
		defer mu.Unlock()
		if at.IsZero() || time.Since(at) > slotsFor {
			last, at = sharedSlots(status()), time.Now()
		}
		return last
	}
}

// sharedSlots is what each build may count on: its part by weight of what there is
// for all, and what it has while others leave it more.
func sharedSlots(st jobs.Status) queue.Slots {
	s := queue.Slots{All: max(1, st.Limit.Slots), Most: max(1, st.Max), Of: make(map[int64]float64, len(st.Builds))}
	var sum float64
	for _, b := range st.Builds {
		if !b.Waiting {
			sum += b.Weight
		}
	}
	for _, b := range st.Builds {
		switch {
		case b.Waiting || b.Number <= 0: // those without a number are not the queue's
		case b.Hand > 0:
			s.Of[b.Number] = float64(b.Hand)
		default:
			n := float64(b.Granted)
			if sum > 0 {
				n = max(n, float64(s.All)*b.Weight/sum)
			}
			s.Of[b.Number] = max(1, min(n, float64(b.Ceiling)))
		}
	}
	return s
}
