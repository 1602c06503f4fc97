package fsck

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/provenance"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/trust"
)

// set is the files of one target in one half of the tree, by kind.
type set struct {
	quarry.Target
	at  string // path of the record
	ids map[results.Kind]string
}

const (
	rebuild = "build it again (quarry rebuild)"
	restore = "restore it from a backup, or " + rebuild
)

// records looks at what stands in a channel, or at what of that has come since.
func (c *checker) records(s, since *results.Snapshot) error { return c.tree(s, since, "") }

// tree looks at the records of a tree. ref is that of a group whose tree it is.
func (c *checker) tree(s, since *results.Snapshot, ref string) error {
	sets := map[quarry.Target]*set{}
	failures := map[quarry.Target]*set{}
	err := s.Walk(c.ctx, since, func(path, _, now string) error {
		t, kind := results.PlaceOf(path)
		if kind == results.Foreign || now == "" && kind == results.FailureKind {
			return nil
		}
		t.Channel = s.Channel()
		half, at := sets, results.RecordPath(t)
		if kind == results.FailureKind {
			half, at = failures, results.FailurePath(t)
		}
		if ref != "" {
			at = ref + ":" + at
		}
		if half[t] == nil {
			half[t] = &set{t, at, map[results.Kind]string{}}
		}
		if now != "" { // else something is gone, which may leave something behind
			half[t].ids[kind] = now
		}
		return nil
	})
	if err != nil {
		if c.ctx.Err() != nil {
			return err
		}
		c.bad(s.Channel(), cmp.Or(ref, "tree"), err.Error(), "restore the object from a clone or a backup")
	}
	list := make([]*set, 0, len(sets)+len(failures))
	for _, half := range []map[quarry.Target]*set{sets, failures} {
		for _, x := range half {
			list = append(list, x)
		}
	}
	slices.SortFunc(list, func(a, b *set) int { return strings.Compare(a.at, b.at) })
	if since != nil { // of some, only a part has changed
		for _, x := range list {
			if err := c.complete(s, x); err != nil {
				return err
			}
		}
		list = slices.DeleteFunc(list, func(x *set) bool { return len(x.ids) == 0 })
	}
	step := c.begin("records of "+s.Channel(), len(list))
	group, ctx := errgroup.WithContext(c.ctx)
	group.SetLimit(c.Workers)
	const batch = 64
	for part := range slices.Chunk(list, batch) {
		group.Go(func() error {
			for _, x := range part {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if x.ids[results.FailureKind] != "" {
					c.failure(s, x)
				} else {
					c.success(s, x)
				}
				step()
			}
			return nil
		})
	}
	return group.Wait()
}

// complete fills in the files of a target that are what they were.
func (c *checker) complete(s *results.Snapshot, x *set) error {
	if x.ids[results.FailureKind] != "" {
		return nil
	}
	for kind, path := range map[results.Kind]string{
		results.Success: results.RecordPath(x.Target), results.FilesKind: results.FilesPath(x.Target),
		results.Statement: results.ProvenancePath(x.Target), results.StatementSig: results.ProvenanceSigPath(x.Target),
	} {
		id, err := s.Blob(strings.TrimPrefix(path, "packages/"))
		if err != nil {
			return err
		}
		if id != "" {
			x.ids[kind] = id
		}
	}
	return nil
}

// record reads a record and looks whether it is what it should be. nil: it cannot be
// read, which has been told.
func (c *checker) record(s *results.Snapshot, x *set, id string, status quarry.State) *results.Record {
	text, err := s.ReadBlob(id)
	var rec *results.Record
	if err == nil {
		rec, err = results.Parse(text)
	}
	if err == nil && (rec.Package != x.Package || rec.Version != x.Version || rec.Arch != x.Arch) {
		err = fmt.Errorf("it says that it is of %s %s %s", rec.Package, rec.Version, rec.Arch)
	}
	if err == nil && rec.Status != status {
		err = fmt.Errorf("it says that it %s", rec.Status)
	}
	if err != nil {
		c.bad(s.Channel(), x.at, "the record cannot be read: "+err.Error(), restore)
		return nil
	}
	c.mu.Lock()
	c.sum.Records++
	c.mu.Unlock()
	for _, what := range rec.Check() {
		c.bad(s.Channel(), x.at, what, restore)
	}
	return rec
}

func (c *checker) failure(s *results.Snapshot, x *set) {
	rec := c.record(s, x, x.ids[results.FailureKind], quarry.Failed)
	if rec == nil {
		return
	}
	good, err := s.Get(x.Package, x.Version, x.Arch)
	if err == nil && good.Build > rec.Build {
		c.bad(s.Channel(), x.at, fmt.Sprintf("build %d failed, and build %d after it has succeeded", rec.Build, good.Build), "remove it: quarry rebuild does")
	}
	c.depends(s, x, rec)
}

func (c *checker) success(s *results.Snapshot, x *set) {
	id := x.ids[results.Success]
	if id == "" {
		c.bad(s.Channel(), x.at, "there is no record beside what belongs to one", restore)
		return
	}
	rec := c.record(s, x, id, quarry.Succeeded)
	if rec == nil {
		return
	}
	c.depends(s, x, rec)
	c.attested(s, x, rec)
	files := c.files(s, x, rec)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sum.Files += len(files)
	if _, known := c.artifacts[rec.Artifact]; known || len(rec.Artifact) != 64 {
		return
	}
	a := artifact{size: rec.ArtifactSize, channel: s.Channel(), where: x.at}
	if list := x.ids[results.FilesKind]; c.Deep && files != nil {
		a.files = func() ([]quarry.File, error) { return readFiles(s, x, list) }
	}
	c.artifacts[rec.Artifact] = a
}

// depends notes what a build was made with.
func (c *checker) depends(s *results.Snapshot, x *set, rec *results.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range rec.Dependencies {
		if _, ok := c.wanted[d.Artifact]; !ok {
			c.wanted[d.Artifact] = need{s.Channel(), x.at, d.Package, d.Version}
		}
	}
}

func readFiles(s *results.Snapshot, x *set, id string) ([]quarry.File, error) {
	text, err := s.ReadBlob(id)
	if err != nil {
		return nil, err
	}
	return results.ParseFilesOf(text, x.Target)
}

// files reads the list of files of a success; nil where it cannot be read.
func (c *checker) files(s *results.Snapshot, x *set, rec *results.Record) []quarry.File {
	at := results.FilesPath(x.Target)
	id := x.ids[results.FilesKind]
	if id == "" {
		c.bad(s.Channel(), at, "there is no list of the files of the record", restore)
		return nil
	}
	files, err := readFiles(s, x, id)
	if err != nil {
		c.bad(s.Channel(), at, "the list of files cannot be read: "+err.Error(), restore)
		return nil
	}
	if bad := rec.CheckFiles(files); len(bad) > 0 {
		more := ""
		if n := len(bad) - 1; n > 0 {
			more = fmt.Sprintf(" (and %d more)", n)
		}
		c.bad(s.Channel(), at, "the list of files does not fit the record: "+bad[0]+more, restore)
		return nil
	}
	return files
}

// attested looks at the statement on how an artifact was made.
func (c *checker) attested(s *results.Snapshot, x *set, rec *results.Record) {
	stmt, sig := x.ids[results.Statement], x.ids[results.StatementSig]
	at := results.ProvenancePath(x.Target)
	switch {
	case stmt == "" && sig == "":
		return // of before the farm said so, or it signs nothing
	case stmt == "" || sig == "":
		c.bad(s.Channel(), at, "there is a statement without its signature, or the other way round", restore)
		return
	}
	var p results.Provenance
	var err error
	if p.Statement, err = s.ReadBlob(stmt); err == nil {
		p.Signature, err = s.ReadBlob(sig)
	}
	switch {
	case err != nil:
	case c.Signers == nil:
		err = provenance.Check(p.Statement, rec)
	default:
		_, err = provenance.Verify(p, rec, c.Signers, rec.Ended)
	}
	if err != nil {
		do := restore
		if errors.Is(err, trust.ErrUntrusted) {
			do = "trust no artifact of that key, or add it to the allowed signers"
		}
		c.bad(s.Channel(), at, "what is attested does not hold: "+err.Error(), do)
		return
	}
	c.mu.Lock()
	c.sum.Attested++
	c.mu.Unlock()
}
