package pages

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/queue"
)

// perPage is how many builds are on a page of the queue.
const perPage = 100

func (s *Site) queueRoutes() []route {
	return []route{
		{"GET /queue", s.page(fresh, s.queuePage, "env", "page")},
	}
}

// queueView is a page of the queue.
type queueView struct {
	Status  queue.Status
	Trouble []trouble
	Env     string // of which environment it is; "" for all
	Rows    []queueRow
	Total   int // on all pages
	First   int // of the first row, from 1
	Page    int
	Pages   int
	Plan    *control.Plan // nil while nothing is known
	Made    time.Time     // when it was
	NoPlan  string        // why it is not known
}

// queueRow is a build that is to be built, and when it is expected to be.
type queueRow struct {
	quarry.Build
	Planned bool // the rest is known
	Starts  time.Time
	Takes   time.Duration
	Path    time.Duration
	Guessed bool
	Place   int
}

// Runs reports whether the build has begun.
func (r queueRow) Runs() bool { return r.State == quarry.Running || r.State == quarry.Recording }

// At is the address of a page of the same list.
func (v *queueView) At(page int) string {
	q := url.Values{}
	if v.Env != "" {
		q.Set("env", v.Env)
	}
	if page > 1 {
		q.Set("page", strconv.Itoa(page))
	}
	if len(q) == 0 {
		return "/queue"
	}
	return "/queue?" + q.Encode()
}

// In is the address of the list of one environment.
func (v *queueView) In(env string) string { return (&queueView{Env: env}).At(1) }

// Last is the number of the last row.
func (v *queueView) Last() int { return v.First + len(v.Rows) - 1 }

func (s *Site) queuePage(ctx context.Context, r *http.Request) (*page, error) {
	v := &queueView{Status: s.Queue.Status(), Env: r.URL.Query().Get("env"), Page: 1}
	v.Trouble = troubles(v.Status)
	if word := r.URL.Query().Get("page"); word != "" {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 {
			return nil, badRequest("%.40q is no page: they are counted from 1", word)
		}
		v.Page = n
	}
	plan, made, err := s.plan.get(ctx, s.Plan)
	v.Plan, v.Made = plan, made
	if err != nil {
		v.NoPlan = err.Error()
	}
	rows := s.queued(plan, made)
	if v.Env != "" {
		rows = slices.DeleteFunc(rows, func(r queueRow) bool { return r.Environment().String() != v.Env })
	}
	v.Total = len(rows)
	v.Pages = max(1, (len(rows)+perPage-1)/perPage)
	if v.Page > v.Pages {
		return nil, notFound("the queue has %d pages, and no page %d", v.Pages, v.Page)
	}
	v.First = (v.Page-1)*perPage + 1
	v.Rows = rows[v.First-1 : min(len(rows), v.First-1+perPage)]
	return &page{Title: "Queue", Section: "queue", Template: "queue", Data: v}, nil
}

// queued lists all builds under way: those that run, then in the order of a plan,
// then what no plan knows.
func (s *Site) queued(plan *control.Plan, made time.Time) []queueRow {
	live := s.Queue.List(queue.Filter{Live: true})
	slices.Reverse(live) // the oldest first
	places := map[int64]int{}
	if plan != nil {
		for i := range plan.Builds {
			places[plan.Builds[i].Build] = i + 1
		}
	}
	rows := make([]queueRow, len(live))
	for i, b := range live {
		rows[i].Build = b
		if at, ok := places[b.Number]; ok {
			p := &plan.Builds[at-1]
			rows[i].Planned, rows[i].Place, rows[i].Guessed = true, at, p.Guessed
			rows[i].Starts = made.Add(time.Duration(p.Starts * float64(time.Second)))
			rows[i].Takes, rows[i].Path = time.Duration(p.Takes*float64(time.Second)), time.Duration(p.Path*float64(time.Second))
		}
	}
	slices.SortStableFunc(rows, func(a, b queueRow) int {
		rank := func(r queueRow) int {
			switch {
			case r.Runs():
				return 0
			case r.Planned:
				return 1
			}
			return 2
		}
		if x, y := rank(a), rank(b); x != y {
			return x - y
		}
		return a.Place - b.Place
	})
	return rows
}

// planned keeps the last plan. To make one looks at every record, so that on a
// large farm it is made beside those who look, and no more often than it may cost.
type planned struct {
	mu     sync.Mutex // guards the following
	plan   *control.Plan
	err    error
	made   time.Time
	until  time.Time
	making chan struct{} // closed when the one that is being made is there; nil: none is
}

// planShare is how many times as long a plan is kept as it took to make.
const planShare = 20

// get gives a plan that is a few seconds old, or older while a new one is made.
func (p *planned) get(ctx context.Context, ask func(context.Context, ...string) (*control.Plan, error)) (*control.Plan, time.Time, error) {
	if ask == nil {
		return nil, time.Time{}, errors.New("nobody tells the order here")
	}
	p.mu.Lock()
	if time.Now().After(p.until) && p.making == nil {
		done := make(chan struct{})
		p.making = done
		go func() {
			ctx, stop := context.WithTimeout(context.Background(), 2*time.Minute)
			defer stop()
			began := time.Now()
			plan, err := ask(ctx)
			p.mu.Lock()
			defer p.mu.Unlock()
			took := time.Since(began)
			p.plan, p.err, p.made, p.making = plan, err, began, nil
			p.until = time.Now().Add(max(fresh, planShare*took))
			close(done)
		}()
	}
	have, done := p.plan, p.making
	// Until there is one at all, it is waited for.
	wait := have == nil && done != nil
	p.mu.Unlock()
	if wait {
		select {
		case <-done:
		case <-ctx.Done():
			return nil, time.Time{}, context.Cause(ctx)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.plan, p.made, p.err
}
