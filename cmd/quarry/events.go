package main

import (
	"context"
	"log/slog"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/queue"
)

// openEvents opens the log of events, and says that the farm has started.
func openEvents(c *config.Config, log *slog.Logger) (*events.Log, *events.Reporter, error) {
	return events.Report(c.EventsDir(), events.Options{Max: int64(c.Events.Max), Keep: time.Duration(c.Events.Keep), Log: log}, c.DefaultChannel, version)
}

func pausesOf(list []queue.PauseStatus) (out []events.Pause) {
	for _, p := range list {
		out = append(out, events.Pause{Environment: p.Environment, By: p.By, Reason: p.Reason})
	}
	return out
}

func massOf(c queue.Campaign) events.Mass {
	return events.Mass{ID: c.ID, By: c.By, Reason: c.Reason, Made: c.Made, Ended: c.Ended, Cancelled: c.Cancelled}
}

// makeUp says what happened right before the last end of the daemon, and the log
// of events does not have: it compares what is kept with what the log has said.
// The queue must not run yet. Releases are made up for with the first plan.
func (f *stages) makeUp(ctx context.Context, q *queue.Queue) {
	f.events.Builds(q.List(queue.Filter{}))
	if list, err := q.MassRebuilds(ctx); err != nil {
		f.log.Warn("events of mass rebuilds may be missing", "err", err)
	} else {
		for _, c := range list {
			f.events.Mass(massOf(c))
		}
	}
	list, err := f.results.Groups()
	if err != nil {
		f.log.Warn("events of groups may be missing", "err", err)
		return
	}
	submitted := map[string]bool{}
	for _, s := range list {
		submitted[s.ID] = true
	}
	for _, e := range f.events.OpenGroups() {
		if submitted[e.ID] {
			continue
		}
		s := quarry.Submission{Group: e.Group, Channel: e.Channel, ID: e.ID}
		commit, ok, err := f.results.LandedAs(e.Channel, e.ID)
		switch {
		case err != nil:
			f.log.Warn("whether a group has landed is not known", "group", e.Group, "err", err)
		case ok:
			f.events.Group(events.GroupLanded, s, commit)
		default:
			f.events.Group(events.GroupDropped, s, "")
		}
	}
}
