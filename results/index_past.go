package results

import (
	"context"
	"iter"
	"slices"
	"strconv"
	"sync"
	"time"
	"unique"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// Recorded is a build that a commit has recorded. Its record may have been
// replaced since: git still has it.
type Recorded struct {
	quarry.Target
	Status quarry.State
	Build  int64
	At     time.Time // of the commit, in seconds

	commit plumbing.Hash
}

// Commit is the id of the commit.
func (r Recorded) Commit() string { return r.commit.String() }

// maxRecorded is how many commits of a channel are kept in memory, the newest.
const maxRecorded = 10_000

// past is what the newest commits of a channel say.
type past struct {
	mu   sync.Mutex
	tip  plumbing.Hash
	list []Recorded // the newest last
}

// Recorded goes over the builds of a package that the newest 10,000 commits of a
// channel have recorded, the newest first: also those whose records have been
// replaced. A group's landing is not among them. The first question reads those
// commits, the next ones only what has come since.
func (x *Index) Recorded(ctx context.Context, channel, pkg string) (iter.Seq[Recorded], error) {
	none := func(func(Recorded) bool) {}
	if err := quarry.CheckChannel(channel); err != nil {
		return nil, err
	}
	tip, err := readRef(x.path, channel)
	if err != nil || tip.IsZero() {
		return none, err
	}
	p := &x.channel(channel, true).past
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.follow(ctx, x.odb, tip); err != nil {
		return nil, err
	}
	var found []Recorded
	for _, r := range slices.Backward(p.list) {
		if r.Package == pkg {
			found = append(found, r)
		}
	}
	return slices.Values(found), nil
}

// follow reads the commits between the tip that is known and another one.
func (p *past) follow(ctx context.Context, o *odb, tip plumbing.Hash) error {
	if tip == p.tip {
		return nil
	}
	var fresh []Recorded
	met := false
	for h, n := tip, 0; !h.IsZero() && n < maxRecorded; n++ {
		if met = h == p.tip; met {
			break
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		c, err := o.commit(h)
		if err != nil {
			return err
		}
		if r, ok := recordedBy(c.message); ok {
			r.At, r.commit = c.when, h
			fresh = append(fresh, r)
		}
		h = c.parent
	}
	slices.Reverse(fresh)
	if met {
		fresh = append(p.list, fresh...)
	}
	if n := len(fresh) - maxRecorded; n > 0 {
		fresh = slices.Clone(fresh[n:])
	}
	p.tip, p.list = tip, fresh
	return nil
}

// recordedBy reads the trailers of a commit that records a build.
func recordedBy(message string) (r Recorded, ok bool) {
	t := trailers(message)
	word := func(key string) string { return unique.Make(t[key]).Value() }
	r.Target = quarry.Target{Channel: word(TrailerChannel), Package: word(TrailerPackage), Version: word(TrailerVersion), Arch: word(TrailerArch)}
	r.Status = quarry.State(word(TrailerStatus))
	build, err := strconv.ParseInt(t[TrailerBuild], 10, 64)
	r.Build = build
	return r, err == nil && CheckTarget(r.Target) == nil && (r.Status == quarry.Succeeded || r.Status == quarry.Failed)
}
