package pages

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/usage"
)

// fresh is how old a page may be that shows what goes on.
const fresh = time.Second

// endedShown is how many builds that have ended are on the first page.
const endedShown = 20

func (s *Site) nowRoutes() []route {
	return []route{
		{"GET /{$}", s.page(fresh, s.now)},
		{"GET /live", http.HandlerFunc(s.nowLive)},
	}
}

// nowView is the first page: what is being built, and how the queue stands.
type nowView struct {
	Running []buildParts
	Status  queue.Status
	Trouble []trouble
	Ended   []quarry.Build
	Machine usage.Machine
	Slots   *control.JobsStatus // nil: nobody shares them out
}

// trouble is something that keeps builds from being made.
type trouble struct {
	What, Why, By string
	Since         time.Time
	Pause         bool
}

var ends = []quarry.State{quarry.Succeeded, quarry.Failed, quarry.Errored, quarry.Cancelled, quarry.Obsolete}

func (s *Site) now(ctx context.Context, _ *http.Request) (*page, error) {
	return &page{Title: "Now building", Section: "now", Template: "now", Data: s.nowView(), Live: "/live"}, nil
}

func (s *Site) nowView() *nowView {
	v := &nowView{Status: s.Queue.Status(), Machine: s.Machine(), Slots: s.slots()}
	v.Trouble = troubles(v.Status)
	live := map[int64]usage.Live{}
	if s.Usage != nil {
		for _, l := range s.Usage.Live() {
			live[l.Build] = l
		}
	}
	running := s.Queue.List(queue.Filter{States: []quarry.State{quarry.Running, quarry.Recording}})
	slices.Reverse(running) // what began first comes first
	for _, b := range running {
		p := buildParts{Build: b, Expected: s.Queue.ExpectedOf(b), Known: s.Queue.Known(b.Package), Took: time.Since(b.Started), Slots: slotsOf(v.Slots, b)}
		if l, ok := live[b.Number]; ok {
			p.Live = &l
			p.Step = l.Now.Step
			if list, err := s.Usage.Read(b.Number); err == nil && len(list) > 0 {
				p.Curves = curves(&list[len(list)-1], true)
			}
		}
		v.Running = append(v.Running, p)
	}
	v.Ended = s.Queue.List(queue.Filter{States: ends, Limit: endedShown})
	slices.SortStableFunc(v.Ended, func(a, b quarry.Build) int { return b.Ended.Compare(a.Ended) })
	return v
}

// slots tells which build has how many of the machine's slots; nil where nobody
// shares them out.
func (s *Site) slots() *control.JobsStatus {
	if s.Jobs == nil {
		return nil
	}
	st, ok := s.Jobs()
	if !ok {
		return nil
	}
	return &st
}

// slotsOf is the part of one build; nil when it has none.
func slotsOf(st *control.JobsStatus, b quarry.Build) *control.JobsBuild {
	if st == nil {
		return nil
	}
	j, ok := st.OfBuild(b.Number)
	if !ok {
		return nil
	}
	return &j
}

// troubles lists what of the queue people should know of.
func troubles(st queue.Status) (list []trouble) {
	for _, p := range st.Paused {
		what := "Paused"
		if p.Environment != nil {
			what += " for " + p.Environment.String()
		}
		t := trouble{What: what, Why: p.Reason, By: p.By, Since: p.Since, Pause: true}
		if p.By != "" && p.Reason == "paused by "+p.By { // what the queue says for want of a reason
			t.Why = ""
		}
		list = append(list, t)
	}
	for _, p := range st.Problems {
		list = append(list, trouble{What: "Problem", Why: p.Error()})
	}
	return list
}

// Load is the machine's load per processor, over a minute; 0 when not known.
func (v *nowView) Load() float64 {
	if len(v.Machine.Load) == 0 || v.Machine.CPUs == 0 {
		return 0
	}
	return v.Machine.Load[0]
}

// liveNames are the parts of the first page that change.
var liveNames = []string{"trouble", "running", "summary", "ended"}

// nowLive is the stream of the first page, the same for all who look at it.
func (s *Site) nowLive(w http.ResponseWriter, r *http.Request) {
	h, leave := s.hubs.join("/", func(ctx context.Context, h *hub) {
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for {
			parts, err := s.makeParts(&page{Template: "now", Data: s.nowView()}, liveNames)
			if err != nil {
				s.Log.Error("the first page cannot be kept up to date", "err", err)
				return
			}
			h.set(parts)
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	})
	defer leave()
	stream(w, r, h, 0)
}
