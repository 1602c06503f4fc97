package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/web/pages"
	"golang.org/x/sys/unix"
)

// newPages makes the pages for browsers.
func newPages(c *config.Config, st *stages, farm *control.Farm, log *slog.Logger) *pages.Site {
	return pages.New(pages.Source{
		Farm: c.Builder, URL: c.Web.Base(), Version: version, Started: farm.Started,
		Queue: farm.Queue, Logs: st.logs, Usage: farm.Usage, Plan: farm.Plan, Why: farm.Why,
		Record: st.recordOf, Past: farm.Past,
		Records: pages.Records{Index: st.index, Snapshot: st.results.Snapshot, Lines: farm.Channels, Default: c.DefaultChannel,
			Artifacts: true, Votes: st.Votes, Clone: st.ssh},
		Environments: st.images.Environments, Disk: st.space, Workers: c.Ways(), Jobs: farm.JobsNow, Log: log,
	})
}

// space tells how much room there is where the farm keeps its state.
func (f *stages) space() (free, size int64, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(f.cfg.State, &s); err != nil {
		return 0, 0, err
	}
	return int64(s.Bavail) * s.Bsize, int64(s.Blocks) * s.Bsize, nil
}

// recordOf finds what was recorded of a build; nil when nothing was, or something
// newer stands there.
func (f *stages) recordOf(_ context.Context, b quarry.Build) (*results.Record, error) {
	snap, err := f.view(b.View())
	if err != nil {
		return nil, err
	}
	for _, read := range []func(pkg, version, arch string) (*results.Record, error){snap.Get, snap.Failure} {
		switch rec, err := read(b.Package, b.Version, b.Arch); {
		case errors.Is(err, results.ErrNotFound):
		case err != nil:
			return nil, err
		case rec.Build == b.Number:
			return rec, nil
		}
	}
	return nil, nil
}

// forgotten finds builds that the queue has forgotten.
func (f *stages) forgotten(q *queue.Queue) func(ctx context.Context, number int64) (quarry.Build, bool) {
	return func(ctx context.Context, number int64) (quarry.Build, bool) {
		// There never was one; at first the queue does not know that.
		if st := q.Status(); number > st.Last && !st.Planned.IsZero() {
			return quarry.Build{}, false
		}
		return f.recorded(ctx, number)
	}
}

// recorded is a build as its record tells.
func (f *stages) recorded(ctx context.Context, number int64) (quarry.Build, bool) {
	channels, err := f.index.Channels()
	if err != nil {
		return quarry.Build{}, false
	}
	var found quarry.Build
	for _, channel := range channels {
		view, err := f.index.View(ctx, channel)
		if err != nil {
			continue
		}
		for e := range view.Recent(results.Place{}) {
			if e.Build != number {
				continue
			}
			b := quarry.Build{Number: number, Arch: e.Arch, State: e.Status(), Release: quarry.Release{Package: e.Package, Version: e.Version, Channel: channel}}
			rec, err := f.recordOf(ctx, b)
			if err != nil || rec == nil {
				continue
			}
			found = buildOf(rec, view.Commit())
			found.Channel = channel
			if rec.Channel == channel { // else it was promoted to where it was found
				return found, true
			}
		}
	}
	return found, found.Number != 0
}
