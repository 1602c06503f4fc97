package results

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/Morphux/quarry"
)

// Past is how long a build that succeeded has taken.
type Past struct {
	quarry.Target
	Ended time.Time
	Took  time.Duration // from the start of the attempt to its end
	Cost
}

// Past lists how long the builds have taken whose success stands in the channel,
// the earliest first. A record that cannot be read is left out.
func (s *Snapshot) Past(ctx context.Context) ([]Past, error) {
	var list []Past
	for p, err := range s.places(ctx, packagesDir, nil) {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			continue
		}
		if a, err := s.odb.head(p.hash); err == nil && a.Took > 0 {
			list = append(list, Past{p.Target, a.Ended, a.Took, a.Cost})
		}
	}
	slices.SortStableFunc(list, func(a, b Past) int { return cmp.Or(a.Ended.Compare(b.Ended), cmp.Compare(a.String(), b.String())) })
	return list, nil
}
