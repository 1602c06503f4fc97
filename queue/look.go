package queue

import (
	"context"

	"github.com/Morphux/quarry/graph"
)

// Look opens one consistent view of a channel's records: the one that the
// planner uses.
func (q *Queue) Look(ctx context.Context, channel string) (Records, error) {
	r, err := q.opts.Records(ctx, channel)
	if err != nil {
		return nil, err
	}
	return cutting{r, func() (*graph.Graph, error) { return q.Graph(channel) }}, nil
}

// Known reports whether a build of the package, on any arch, has told how long
// it takes. What Expected says of others is a guess.
func (q *Queue) Known(pkg string) bool {
	q.durations.mu.Lock()
	defer q.durations.mu.Unlock()
	return q.durations.est.Known(pkg)
}
