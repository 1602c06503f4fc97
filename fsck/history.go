package fsck

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/trust"
)

// point is a commit of a channel's history.
type point struct {
	id string
	// when is the latest time of it and of all before it: who signs with a key that
	// was given up cannot have a commit be older than what it stands on.
	when time.Time
}

// history looks at the commits of a channel: who signed them, and whether they do
// what they say.
func (c *checker) history(s, since *results.Snapshot) error {
	var points []point
	end := ""
	if since != nil {
		end = since.Commit()
	}
	for id, err := range s.Commits() {
		if c.ctx.Err() != nil {
			return c.ctx.Err()
		}
		if id == end {
			break
		}
		if err != nil {
			c.bad(s.Channel(), "commit "+id, "it cannot be read, nor can what came before it: "+err.Error(), "restore the object from a clone or a backup")
			break
		}
		points = append(points, point{id: id})
	}
	slices.Reverse(points)
	signed := make([]bool, len(points))
	latest := time.Time{}
	if since != nil {
		latest = since.Time()
	}
	for i := range points {
		o, err := s.Object(points[i].id)
		if err != nil {
			continue // said by who looks at it
		}
		if o.Time.After(latest) {
			latest = o.Time
		}
		points[i].when, signed[i] = latest, o.Signature != nil
	}
	// What came before the farm signed is no fault of anybody's; since is as good as
	// a signed one, as nobody says when signing began.
	began := slices.Index(signed, true)
	if since != nil {
		if o, err := s.Object(end); err == nil && o.Signature != nil {
			began = 0
		}
	}
	switch {
	case c.Signers == nil || len(points) == 0:
		began = len(points)
	case began < 0:
		began = len(points)
		c.tell(Finding{Note, s.Channel(), "history", fmt.Sprintf("none of %d commits is signed", len(points)), ""})
	case began > 0:
		c.tell(Finding{Note, s.Channel(), "history", fmt.Sprintf("%d commits before %.12s are not signed: the farm began to sign then", began, points[began].id), ""})
	}
	step := c.begin("commits of "+s.Channel(), len(points))
	group, ctx := errgroup.WithContext(c.ctx)
	group.SetLimit(c.Workers)
	const batch = 64
	for n := 0; n < len(points); n += batch {
		group.Go(func() error {
			for i := n; i < min(n+batch, len(points)); i++ {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				c.commit(s, points[i], i >= began)
				step()
			}
			return nil
		})
	}
	return group.Wait()
}

// commit looks at one commit. One fault of it is told.
func (c *checker) commit(s *results.Snapshot, p point, sign bool) {
	where := "commit " + p.id
	o, err := s.Object(p.id)
	if err != nil {
		c.bad(s.Channel(), where, "it cannot be read: "+err.Error(), "restore the object from a clone or a backup")
		return
	}
	const distrust = "find out who wrote it; quarry rollback %s %.12s takes it back"
	undo := fmt.Sprintf(distrust, s.Channel(), p.id)
	c.mu.Lock()
	c.sum.Commits++
	c.mu.Unlock()
	if sign {
		if o.Signature == nil {
			c.bad(s.Channel(), where, "it is not signed, and those before it are", undo)
			return
		}
		if _, err := c.Signers.Verify(trust.Git, o.Signed, o.Signature, p.when); err != nil {
			c.bad(s.Channel(), where, "its signature does not hold: "+err.Error(), undo)
			return
		}
		c.mu.Lock()
		c.sum.Signed++
		c.mu.Unlock()
	}
	if what, err := c.says(s, o); err != nil {
		c.bad(s.Channel(), where, "what it has changed cannot be read: "+err.Error(), "restore the object from a clone or a backup")
	} else if what != "" {
		c.bad(s.Channel(), where, what, undo)
	}
}

// change is a file that a commit has changed.
type change struct {
	quarry.Target
	kind          results.Kind
	path, old, id string
}

// says looks whether a commit does what it says; "": it does.
func (c *checker) says(s *results.Snapshot, o *results.Object) (string, error) {
	if len(o.Parents) > 1 {
		return "it is a merge, and no channel has those", nil
	}
	after, err := s.AsOf(o.ID)
	if err != nil {
		return "", err
	}
	var before *results.Snapshot
	if len(o.Parents) == 1 {
		if before, err = s.AsOf(o.Parents[0]); err != nil {
			return "", err
		}
	}
	var list []change
	err = after.Walk(c.ctx, before, func(path, old, now string) error {
		if t, kind := results.PlaceOf(path); kind != results.Foreign {
			list = append(list, change{t, kind, path, old, now})
		}
		return nil
	})
	if err != nil || len(list) == 0 {
		return "", err // what is not Quarry's is not looked at
	}
	t := o.Trailers
	if ch := t[results.TrailerChannel]; ch != s.Channel() {
		return fmt.Sprintf("it changes %s, and says nothing of a change of %s: it was not made by Quarry", list[0].path, s.Channel()), nil
	}
	switch {
	case t[results.TrailerBuildKey] != "":
		return saysRecord(after, o, list)
	case t[results.TrailerGroup] != "":
		return saysGroup(o, list), nil
	case t[results.TrailerFromCommit] != "":
		if from := t[results.TrailerFrom]; slices.Contains(c.channels, from) { // else this is a clone without it
			return saysCopied(s, t[results.TrailerFromCommit], list, "from "+from)
		}
		return "", nil
	case t[results.TrailerRestores] != "":
		return saysCopied(s, t[results.TrailerRestores], list, "of commit "+t[results.TrailerRestores])
	case t[results.TrailerReverts] != "":
		return saysReverted(s, t[results.TrailerReverts], list)
	}
	return fmt.Sprintf("it changes %s and does not say as what: it was not made by Quarry", list[0].path), nil
}

// saysRecord looks at the commit of one record.
func saysRecord(after *results.Snapshot, o *results.Object, list []change) (string, error) {
	t := o.Trailers
	named := quarry.Target{Package: t[results.TrailerPackage], Version: t[results.TrailerVersion], Arch: t[results.TrailerArch]}
	kind := results.Success
	if t[results.TrailerStatus] == string(quarry.Failed) {
		kind = results.FailureKind
	}
	var own *change
	for i, ch := range list {
		if ch.Target != named {
			return fmt.Sprintf("it changes %s, and says that it is of %s %s %s", ch.path, named.Package, named.Version, named.Arch), nil
		}
		if kind == results.FailureKind && ch.kind != kind {
			return fmt.Sprintf("it changes %s, and says that it is of a failure", ch.path), nil
		}
		if ch.kind == results.FailureKind && kind != ch.kind && ch.id != "" {
			return fmt.Sprintf("it writes %s, and says that it is of a success", ch.path), nil
		}
		if ch.kind == kind && ch.id != "" {
			own = &list[i]
		}
	}
	if own == nil {
		return "it writes no record, and says that it does", nil
	}
	text, err := after.ReadBlob(own.id)
	if err != nil {
		return "", err
	}
	rec, err := results.ParseHead(text)
	if err != nil {
		return fmt.Sprintf("the record that it writes cannot be read: %v", err), nil
	}
	for _, w := range [][3]string{
		{results.TrailerBuildKey, t[results.TrailerBuildKey], rec.Key}, {results.TrailerSource, t[results.TrailerSource], rec.Source},
		{results.TrailerBuild, t[results.TrailerBuild], strconv.FormatInt(rec.Build, 10)},
	} {
		if w[1] != w[2] {
			return fmt.Sprintf("it says %s: %.70s, and its record %.70s", w[0], w[1], w[2]), nil
		}
	}
	return "", nil
}

// saysGroup looks at the commit with which a group has landed: it lists what it
// writes, by their first words.
func saysGroup(o *results.Object, list []change) string {
	lines := map[string]bool{}
	for line := range strings.Lines(o.Message) {
		if what, _, ok := strings.Cut(strings.TrimSpace(line), ": "); ok && strings.HasPrefix(line, "    ") {
			lines[what] = true
		}
	}
	for _, ch := range list {
		if !lines[ch.Package+" "+ch.Version+" "+ch.Arch] {
			return fmt.Sprintf("it changes %s, and does not say that its group has that", ch.path)
		}
		if ch.id == "" && (ch.kind == results.Success || ch.kind == results.FilesKind) {
			return fmt.Sprintf("it removes %s, which no group does", ch.path)
		}
	}
	return ""
}

// saysCopied looks whether all that a commit writes stood at another commit before.
func saysCopied(s *results.Snapshot, from string, list []change, whence string) (string, error) {
	source, err := s.AsOf(from)
	if err != nil {
		return fmt.Sprintf("it says that it takes records %s, which cannot be read: %v", whence, err), nil
	}
	for _, ch := range list {
		if ch.id == "" {
			continue // taken away, which it may
		}
		was, err := source.FileID(ch.path)
		if err != nil {
			return "", err
		}
		if was != ch.id {
			return fmt.Sprintf("it changes %s, and that is not the one %s", ch.path, whence), nil
		}
	}
	return "", nil
}

func saysReverted(s *results.Snapshot, commit string, list []change) (string, error) {
	o, err := s.Object(commit)
	if err != nil {
		return fmt.Sprintf("it takes back commit %.12s, which cannot be read: %v", commit, err), nil
	}
	if len(o.Parents) == 0 {
		for _, ch := range list {
			if ch.id != "" {
				return fmt.Sprintf("it writes %s, and before what it takes back there was nothing", ch.path), nil
			}
		}
		return "", nil
	}
	return saysCopied(s, o.Parents[0], list, "of before commit "+commit)
}

// needs looks whether what builds were made with is known: as a record or an artifact
// that is there, or else one of the history.
func (c *checker) needs(r *results.Reader) error {
	if c.Artifacts == "" {
		return nil // in a clone of one channel, what another one has is not there
	}
	missing := map[string]need{}
	for sha, n := range c.wanted {
		if _, ok := c.artifacts[sha]; ok || c.has(sha) {
			continue
		}
		missing[sha] = n
	}
	if len(missing) == 0 {
		return nil
	}
	if err := c.past(r, missing); err != nil {
		return err
	}
	for sha, n := range missing {
		c.bad(n.channel, n.where, fmt.Sprintf("it was built with %s %s, artifact %.12s, and of that there is neither a record nor an artifact, nor was there ever", n.pkg, n.version, sha), rebuild)
	}
	return nil
}

// past takes out of missing what a record of the history has, or of another channel
// than those that were looked at.
func (c *checker) past(r *results.Reader, missing map[string]need) error {
	packages := map[string]bool{}
	for _, n := range missing {
		packages[n.pkg] = true
	}
	for _, name := range c.channels {
		s, err := r.Other(name)
		if err != nil {
			continue // told
		}
		var later *results.Snapshot
		see := func(from, to *results.Snapshot) error { // what to has and from has not
			return to.Walk(c.ctx, from, func(path, _, now string) error {
				t, kind := results.PlaceOf(path)
				if kind != results.Success || now == "" || !packages[t.Package] {
					return nil
				}
				text, err := to.ReadBlob(now)
				if err != nil {
					return nil
				}
				if rec, err := results.Parse(text); err == nil {
					delete(missing, rec.Artifact)
				}
				return nil
			})
		}
		if err := see(nil, s); err != nil {
			return err
		}
		step := c.begin("history of "+name, 0)
		for id, err := range s.Commits() {
			if len(missing) == 0 || c.ctx.Err() != nil {
				return c.ctx.Err()
			}
			if err != nil {
				break // told by who looks at the history
			}
			now, err := s.AsOf(id)
			if err != nil {
				break
			}
			if later != nil {
				if err := see(later, now); err != nil && !errors.Is(err, results.ErrNotFound) {
					break
				}
			}
			later = now
			step()
		}
	}
	return nil
}
