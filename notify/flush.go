package notify

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// longest is how long what comes of a change, a backlog or a mass rebuild is
// gathered at most, while builds of it go on.
const longest = 6 * time.Hour

// due reports whether a batch is to be told.
func (n *Notifier) due(ctx context.Context, b *batch, now time.Time) bool {
	idle, age := now.Sub(b.Last), now.Sub(b.First)
	switch b.Cause.Kind {
	case ByMass:
		if b.Over || age < longest || n.opts.Campaign == nil {
			return b.Over
		}
		// The event of its end is lost.
		c, err := n.opts.Campaign(ctx, b.Cause.ID)
		return err != nil || c.Over
	case ByPush:
		// What has ended is on the queue's board a moment before it is an event.
		moment := min(n.opts.Settle/10, 3*time.Second)
		return idle >= n.opts.Settle || age >= 10*n.opts.Settle || idle >= moment && !n.opts.Live(b.Cause)
	}
	return age >= longest || idle >= n.opts.Settle && !n.opts.Live(b.Cause)
}

// flush writes the letters of all batches that are due. They are on the disk
// before the state says that they are written, and sent after it does: who is
// killed in between writes the same ones again.
func (n *Notifier) flush(ctx context.Context, now time.Time) error {
	var written []*Letter
	rest := n.state.Batches[:0:0]
	var first error
	for _, b := range n.state.Batches {
		if first != nil || !n.due(ctx, b, now) {
			rest = append(rest, b)
			continue
		}
		n.state.dirty = true
		if len(b.Items) == 0 && b.Cause.Kind != ByMass {
			continue
		}
		letters, err := n.compose(ctx, b, now)
		for _, w := range letters {
			if err == nil {
				err = n.box.put(w.Letter)
			}
		}
		if err != nil {
			first = err
			rest = append(rest, b)
			continue
		}
		for _, w := range letters {
			n.state.note(w.Letter, w.tells)
			written = append(written, w.Letter)
			n.log.Info("a letter is to be sent", "to", w.User, "subject", w.Subject)
		}
	}
	n.state.Batches = rest
	if err := n.saved(); err != nil {
		return err
	}
	n.box.add(written)
	return first
}

// written is a letter and what its reader knows by it.
type written struct {
	*Letter
	tells []item
}

// compose writes the letters of a batch: one for each person, and one more where
// something else of theirs is fixed.
func (n *Notifier) compose(ctx context.Context, b *batch, now time.Time) ([]written, error) {
	people, err := n.readers()
	if err != nil {
		return nil, err
	}
	w := &writer{n: n, ctx: ctx, batch: b, now: now, people: people, reports: map[int64]*Report{}}
	if b.Cause.Kind == ByMass {
		return append(w.campaign(), w.fixed()...), nil
	}
	var broken []item
	owners := map[string][]item{}
	all := map[string]bool{}
	for _, it := range b.Items {
		if it.Kind == Fixed {
			for _, u := range it.Users {
				if w.may(u, Fixed) {
					all[u] = true
				}
			}
			continue
		}
		broken = append(broken, it)
		if u := it.Build.Packager.User; w.may(u, it.Kind) {
			owners[u], all[u] = append(owners[u], it), true
		}
	}
	if b.Cause.Kind == ByChange && b.Cause.Build > 0 && n.opts.Origin != nil && len(broken) > 0 {
		o, ok := n.opts.Origin(ctx, b.Cause.Channel, b.Cause.Build)
		// What was built before all that it needs was there is built again by itself.
		if ok && slices.ContainsFunc(broken, func(i item) bool { return i.Build.Package != o.Package }) {
			w.origin = &o
		}
	}
	culprit := ""
	if w.origin != nil && w.may(w.origin.Packager.User, Breaks) {
		culprit = w.origin.Packager.User
		all[culprit] = true
	}
	if len(all) > n.opts.MaxRecipients {
		return w.crowd(broken, culprit, len(all)), nil
	}
	var out []written
	if culprit != "" {
		out = append(out, written{w.culprit(culprit, broken), owners[culprit]})
		delete(owners, culprit)
	}
	for _, u := range slices.Sorted(maps.Keys(owners)) {
		out = append(out, written{w.fails(u, owners[u]), owners[u]})
	}
	return append(out, w.fixed()...), nil
}

// readers are those who may be written to, by user.
func (n *Notifier) readers() (map[string]Person, error) {
	list, err := n.opts.People()
	if err != nil {
		return nil, fmt.Errorf("nobody knows who may be written to: %w", err)
	}
	people := make(map[string]Person, len(list))
	for _, p := range list {
		people[p.User] = p
	}
	return people, nil
}

// wants reports whether somebody wants to be told of a kind of thing.
func (p Person) wants(k Kind) bool {
	switch p.Mail {
	case "none":
		return false
	case "failures":
		return k != Fixed
	}
	return true
}

// letterID is the ID of the letter of a batch to somebody: the same however often
// it is written.
func (n *Notifier) letterID(k Kind, b *batch, user string) string {
	h := sha256.New()
	for _, s := range []string{"quarry-letter-1", n.opts.Mail.farm(), string(k), b.Cause.key(), user, fmt.Sprint(b.N)} {
		fmt.Fprintf(h, "%d:%s", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil)[:16]) + "@" + n.opts.Mail.domain()
}

// report explains a failure: as well as it can be, or as its record does.
func (n *Notifier) report(ctx context.Context, b Build) *Report {
	if n.opts.Report != nil {
		if r, err := n.opts.Report(ctx, b); err == nil && r != nil {
			return r
		} else if err != nil {
			n.log.Warn("a failure cannot be explained well", "build", b.Number, "err", err)
		}
	}
	r := &Report{Failure: quarry.Failure{Message: "it failed"}}
	at, err := n.opts.Results.SnapshotAt(b.Channel, b.Record)
	if err != nil {
		return r
	}
	rec, err := at.Failure(b.Package, b.Version, b.Arch)
	if err != nil || rec.Failure == nil {
		return r
	}
	f := rec.Failure
	r.Failure = quarry.Failure{Step: f.Step, Cause: f.Cause, Message: f.Message, Status: f.Status, Command: f.Command, Reproduce: f.Reproduce,
		Class: f.Class, Error: f.Error, Line: f.Line, Excerpt: f.Excerpt, Hint: f.Hint}
	r.Log, r.Reproduce = f.Log, f.Reproduce
	return r
}

// names lists a few of many.
func names(list []string, most int) string {
	if len(list) > most {
		return strings.Join(list[:most-1], ", ") + fmt.Sprintf(" and %d others", len(list)-most+1)
	}
	return joined(list)
}

// joined writes a list as people do.
func joined(list []string) string {
	if n := len(list); n > 1 {
		return strings.Join(list[:n-1], ", ") + " and " + list[n-1]
	}
	return strings.Join(list, "")
}
