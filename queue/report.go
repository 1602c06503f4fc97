package queue

import (
	"cmp"
	"context"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
)

// Report is how far a mass rebuild is.
type Report struct {
	Total     int `json:"total" toml:"total"` // targets that match
	Succeeded int `json:"succeeded" toml:"succeeded"`
	Failed    int `json:"failed" toml:"failed"`
	Running   int `json:"running" toml:"running"`
	Queued    int `json:"queued" toml:"queued"`
	Waiting   int `json:"waiting" toml:"waiting"` // for dependencies that have no record
	Lost      int `json:"lost" toml:"lost"`       // given up by the farm, or called off
	// Planned are those that have had no build yet: the next plan makes it, if the
	// mass rebuild is not over.
	Planned  int       `json:"planned" toml:"planned"`
	Expected float64   `json:"expected,omitempty" toml:"-"` // seconds until all are built, if nothing else were
	Failures []Failure `json:"failures,omitempty" toml:"failure,omitempty"`
}

// Left is how many targets have no result yet that may still come.
func (r *Report) Left() int { return r.Running + r.Queued + r.Waiting + r.Planned }

// Failure is a target that failed in a mass rebuild.
type Failure struct {
	Channel string `json:"channel" toml:"channel"`
	Package string `json:"package" toml:"package"`
	Version string `json:"version" toml:"version"`
	Arch    string `json:"arch" toml:"arch"`
	Build   int64  `json:"build" toml:"build"`
	New     bool   `json:"new" toml:"new"` // it had a success, and was not failing when the mass rebuild began
	// Since are the dependencies that are others than at the last success.
	Since []string `json:"since,omitempty" toml:"since,multiline,omitempty"`
}

// Target is the place of the failure's record.
func (f Failure) Target() quarry.Target {
	return quarry.Target{Channel: f.Channel, Package: f.Package, Version: f.Version, Arch: f.Arch}
}

// name is a target in a word.
func name(t quarry.Target) string {
	return strings.Join([]string{t.Channel, t.Package, t.Version, t.Arch}, " ")
}

// targets gives all that a campaign covers, with the newest record of each, in no
// order.
func targets(views map[string]*View, c *Campaign) iter.Seq2[quarry.Target, quarry.RecordRef] {
	return func(yield func(quarry.Target, quarry.RecordRef) bool) {
		for _, v := range views {
			for _, r := range v.Releases {
				for _, arch := range r.Archs {
					t := Want{Release: r, Arch: arch}.Target()
					if c.covers(t) && r.Declined(arch) == "" && !yield(t, v.Recorded[t]) {
						return
					}
				}
			}
		}
	}
}

// Report tells how far a mass rebuild is, or how it ended.
func (q *Queue) Report(ctx context.Context, id string) (Report, error) {
	c, err := q.campaign(ctx, id)
	if err != nil {
		return Report{}, err
	}
	if c.Report != nil {
		return *c.Report, nil
	}
	views, _, err := q.survey(ctx, "")
	if err != nil {
		return Report{}, err
	}
	var r Report
	builds := q.board.targets()
	left := map[quarry.Target]bool{}
	for t, ref := range targets(views, &c) {
		r.Total++
		if ref.Key != "" && c.counts(ref.Build) {
			if ref.Status == quarry.Succeeded {
				r.Succeeded++
				continue
			}
			r.Failed++
			f := Failure{Channel: t.Channel, Package: t.Package, Version: t.Version, Arch: t.Arch, Build: ref.Build}
			if q.opts.Compare != nil {
				differ, ok, err := q.opts.Compare(ctx, t)
				if err != nil {
					q.opts.Log.Warn("what a build failed with cannot be compared", "target", t.String(), "error", err)
				} else if ok {
					_, failing := slices.BinarySearch(c.Failing, name(t))
					f.New, f.Since = !failing, differ
				}
			}
			r.Failures = append(r.Failures, f)
			continue
		}
		left[t] = true
		switch builds[t] {
		case quarry.Running, quarry.Recording:
			r.Running++
		case quarry.Queued:
			r.Queued++
		case quarry.Waiting:
			r.Waiting++
		case quarry.Errored, quarry.Cancelled:
			r.Lost++
			delete(left, t)
		default:
			r.Planned++
		}
	}
	slices.SortFunc(r.Failures, func(a, b Failure) int {
		if a.New != b.New {
			if a.New {
				return -1
			}
			return 1
		}
		return cmp.Or(strings.Compare(name(a.Target()), name(b.Target())))
	})
	r.Expected = q.remaining(left).Seconds()
	return r, nil
}

// remaining is how long all of these take, built by this farm and nothing beside
// them: the longest chain, or all of them over all workers.
func (q *Queue) remaining(left map[quarry.Target]bool) time.Duration {
	var longest, work time.Duration
	channels := map[string]bool{}
	for t := range left {
		work += q.Expected(t.Package, t.Arch)
		channels[t.Channel] = true
	}
	for channel := range channels {
		g, err := q.Graph(channel)
		if err != nil {
			continue
		}
		for _, p := range g.Paths(func(n graph.Node) time.Duration {
			if t := g.Target(n); left[t] {
				return q.Expected(t.Package, t.Arch)
			}
			return -1
		}) {
			longest = max(longest, p)
		}
	}
	return max(longest, work/time.Duration(q.opts.Workers))
}

// targets gives the state of the newest build of every target that there is one
// of.
func (b *board) targets() map[quarry.Target]quarry.State {
	b.mu.RLock()
	defer b.mu.RUnlock()
	states := make(map[quarry.Target]quarry.State, len(b.order))
	for _, n := range b.order {
		it := b.builds[n]
		if t := it.Target(); !it.State.Ended() || states[t] == "" || states[t].Ended() {
			states[t] = it.State
		}
	}
	return states
}
