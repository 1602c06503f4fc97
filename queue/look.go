package queue

import (
	"context"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
)

// Look opens one consistent view of a channel's records, or of those with a
// group's over them (see [quarry.Release.View]): the one that the planner uses.
func (q *Queue) Look(ctx context.Context, view string) (Records, error) {
	r, err := q.opts.Records(ctx, view)
	if err != nil {
		return nil, err
	}
	channel, _ := quarry.ParseView(view)
	return cutting{r, func() (*graph.Graph, error) { return q.Graph(channel) }}, nil
}

// Known reports whether a build of the package, on any arch, has told how long
// it takes. What Expected says of others is a guess.
func (q *Queue) Known(pkg string) bool {
	q.durations.mu.Lock()
	defer q.durations.mu.Unlock()
	return q.durations.est.Known(pkg)
}

// Memory is how many bytes all builds together may take; 0 for no bound.
func (q *Queue) Memory() int64 { return q.opts.Memory }

// MemoryOf is how much of that a build may take: what its recipe asks for, or its
// share, so that those that ask for nothing never keep each other from running.
// None takes more than the limit of a build.
func (q *Queue) MemoryOf(asked int64) int64 {
	if asked <= 0 {
		asked = q.opts.Memory / int64(max(1, q.opts.Workers))
	}
	if limit := q.opts.BuildMemory; limit > 0 {
		asked = min(asked, limit)
	}
	return asked
}
