package results

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// This file is for who checks a repository: it gives what a reader does not need,
// and judges records more strictly than reading them does.

// OpenRepository opens a repository of which no channel may be fit to be read: the
// reader itself answers for none, [Reader.Other] for each.
func OpenRepository(path string) (*Reader, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("results repository %s: %w: nothing has been recorded yet", path, ErrNotFound)
	}
	if err := checkRepo(path); err != nil {
		return nil, err
	}
	return &Reader{&Snapshot{odb: openODB(path)}, path}, nil
}

// Kind is what a file of a channel's tree is.
type Kind int

// The kinds of files.
const (
	Foreign     Kind = iota // nothing of Quarry's
	Success                 // the record of a success
	FailureKind             // the record of a failure
	FilesKind               // a list of files
	Statement               // how it was made
	StatementSig
)

// PlaceOf says what the file at a path of a channel's tree is, and of what.
func PlaceOf(path string) (t quarry.Target, k Kind) {
	top, rest, _ := strings.Cut(path, "/")
	at := strings.Split(rest, "/")
	if top != packagesDir && top != failuresDir {
		return t, Foreign
	}
	name := at[len(at)-1]
	for _, e := range []struct {
		ext string
		k   Kind
	}{{filesExt, FilesKind}, {provenanceExt, Statement}, {provenSigExt, StatementSig}, {recordExt, Success}} {
		arch, ok := strings.CutSuffix(name, e.ext)
		if !ok {
			continue
		}
		k = e.k
		if top == failuresDir {
			if k != Success {
				return t, Foreign
			}
			k = FailureKind
		}
		at[len(at)-1] = arch + recordExt
		if t, ok = placeOf(at); !ok {
			return quarry.Target{}, Foreign
		}
		return t, k
	}
	return t, Foreign
}

// Walk calls f for each file that differs from an earlier snapshot to this one, with
// the ids of what there was and is, "" for nothing; nil: for each that there is. A
// folder that cannot be read ends it.
func (s *Snapshot) Walk(ctx context.Context, earlier *Snapshot, f func(path, old, now string) error) error {
	from := &Snapshot{odb: s.odb}
	if earlier != nil {
		from = earlier
	}
	id := func(h plumbing.Hash) string {
		if h.IsZero() {
			return ""
		}
		return h.String()
	}
	return diffTrees(ctx, from, s, from.root, s.root, nil, func(at []string, old, now plumbing.Hash) error {
		return f(strings.Join(at, "/"), id(old), id(now))
	})
}

// FileID is the id of the file at a path of the tree; "" when there is none.
func (s *Snapshot) FileID(path string) (string, error) {
	h, err := s.odb.lookup(s.root, path, false)
	if err != nil || h.IsZero() {
		return "", err
	}
	return h.String(), nil
}

// Object is a commit as it lies in the repository.
type Object struct {
	ID        string
	Parents   []string
	Time      time.Time // of the committer
	Message   string
	Trailers  map[string]string
	Signed    []byte // what is signed
	Signature []byte // nil: it is not signed
}

// Object reads a commit by its id.
func (s *Snapshot) Object(id string) (*Object, error) {
	if !plumbing.IsHash(id) {
		return nil, fmt.Errorf("%.70q is no commit", id)
	}
	h := plumbing.NewHash(id)
	c, err := s.odb.commit(h)
	if err != nil {
		return nil, err
	}
	raw, err := s.odb.get(plumbing.CommitObject, h)
	if err != nil {
		return nil, err
	}
	o := &Object{ID: id, Time: c.when, Message: c.message, Trailers: trailers(c.message)}
	// As gitformat-signature(5) has it: a header, whose lines but the first begin
	// with a blank, and what is signed is all but that.
	head, body, _ := bytes.Cut(raw, []byte("\n\n"))
	var in bool
	for line := range bytes.Lines(append(bytes.Clone(head), '\n')) {
		sig, begins := bytes.CutPrefix(line, []byte("gpgsig "))
		if in = begins || in && line[0] == ' '; in {
			o.Signature = append(o.Signature, bytes.TrimPrefix(sig, []byte(" "))...)
			continue
		}
		if p, ok := bytes.CutPrefix(line, []byte("parent ")); ok {
			o.Parents = append(o.Parents, string(bytes.TrimSpace(p)))
		}
		o.Signed = append(o.Signed, line...)
	}
	o.Signed = append(append(o.Signed, '\n'), body...)
	return o, nil
}

// Refs lists the refs below a folder such as refs/quarry/, by their full names.
func (r *Reader) Refs(folder string) (map[string]string, error) {
	refs := map[string]string{}
	if err := eachPackedRef(r.path, func(name, hash string) {
		if strings.HasPrefix(name, folder) {
			refs[name] = hash
		}
	}); err != nil {
		return nil, err
	}
	err := filepath.WalkDir(filepath.Join(r.path, filepath.FromSlash(folder)), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() || strings.HasSuffix(path, ".lock") {
			return err
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		name, rerr := filepath.Rel(r.path, path)
		refs[filepath.ToSlash(name)] = strings.TrimSpace(string(data))
		return errors.Join(err, rerr)
	})
	return refs, err
}

// Group is a submitted group by the commit that its ref points to: its submission
// and, as a snapshot, what has been built of it.
func (s *Snapshot) Group(commit string) (*quarry.Submission, *Snapshot, error) {
	g, err := s.AsOf(commit)
	if err != nil {
		return nil, nil, err
	}
	h, err := g.odb.lookup(g.root, groupFile, false)
	if err == nil && h.IsZero() {
		err = errors.New("it has no " + groupFile)
	}
	if err != nil {
		return nil, nil, err
	}
	text, err := g.odb.get(plumbing.BlobObject, h)
	if err != nil {
		return nil, nil, err
	}
	sub, err := parseGroup(text)
	if err != nil {
		return nil, nil, err
	}
	g.channel = sub.Channel
	return &sub, g, nil
}

var digest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// Check says what in a record is not as doc/results.md has it, beyond what keeps it
// from being read; one line each.
func (r *Record) Check() (bad []string) {
	say := func(ok bool, format string, args ...any) {
		if !ok {
			bad = append(bad, fmt.Sprintf(format, args...))
		}
	}
	hex := func(key, s string, n int) { say(isHex(s, n), "%s is %.70q, and no %d hex digits", key, s, n) }
	optional := func(key, s string, n int) {
		if s != "" {
			hex(key, s, n)
		}
	}
	if err := CheckTarget(r.Target()); err != nil {
		say(false, "%v", err)
	}
	say(isHex(r.Source, 40) || isHex(r.Source, 64), "source is %.70q, and no commit", r.Source)
	hex("key", r.Key, 64)
	say(r.Key == quarry.BuildKey(r.Target(), r.Source, r.Nonce), "key is not that of the build that the record tells of")
	say(r.Build >= 0 && r.Attempt >= 0, "build or attempt is negative")
	say(r.Started.IsZero() || !r.Ended.Before(r.Started), "it ended before it began")
	optional("abi", r.ABI, 64)
	optional("log_sha256", r.LogSum, 64)
	optional("recipe.sha256", r.Recipe.Digest, 64)
	optional("host.binary", r.Host.Binary, 64)
	optional("packager.certificate", r.Packager.Certificate, 40)
	for _, d := range [][2]string{{"host.base", r.Host.Base}, {"host.instance", r.Host.Instance}} {
		say(d[1] == "" || digest.MatchString(d[1]), "%s is %.80q, and no digest", d[0], d[1])
	}
	for _, n := range []struct {
		key string
		n   float64
	}{
		{"artifact_size", float64(r.ArtifactSize)}, {"installed_size", float64(r.InstalledSize)}, {"revision", float64(r.Revision)},
		{"time.total", r.Time.Total}, {"time.steps", r.Time.Steps}, {"usage.peak_memory", float64(r.Usage.PeakMemory)},
		{"usage.peak_jobs", float64(r.Usage.PeakJobs)},
	} {
		say(n.n >= 0, "%s is negative", n.key)
	}
	for _, d := range r.Dependencies {
		name := "dependency " + oneLine(d.Package, 100)
		say(checkPlace(d.Package, d.Version, cmp.Or(d.Arch, quarry.Noarch)) == nil, "%s is none that there can be", name)
		hex(name+": artifact", d.Artifact, 64)
		optional(name+": abi", d.ABI, 64)
	}
	for _, s := range r.Steps {
		say(s.Name != "" && s.Wall >= 0, "a step has no name, or took less than no time")
	}
	if r.Status == quarry.Failed {
		say(r.Failure != nil, "it failed and has no [failure]")
		say(r.Artifact == "" && r.Contents == nil && r.Revision == 0, "it failed and has what only a success can have")
		if f := r.Failure; f != nil {
			say(f.Step != "" && f.Cause != "" && f.Message != "", "[failure] has no step, cause or message")
			say(len(f.Log) <= maxLogLines && len(f.Excerpt) <= maxExcerpt, "[failure] has more lines than there may be")
		}
		return bad
	}
	say(r.Failure == nil, "it succeeded and has a [failure]")
	hex("artifact", r.Artifact, 64)
	say(r.ArtifactSize > 0, "artifact_size is missing")
	say(r.Contents != nil, "it succeeded and has no [contents]")
	return bad
}

// CheckFiles says what of a list of files does not fit the record that it stands
// beside.
func (r *Record) CheckFiles(files []quarry.File) (bad []string) {
	var size, regular int64
	classes := map[string]int64{}
	var sonames []Raw
	last := ""
	for _, f := range files {
		if f.Path <= last {
			bad = append(bad, fmt.Sprintf("%.200q is out of order or there twice", f.Path))
		}
		last = f.Path
		if !strings.HasPrefix(f.Path, "/") {
			bad = append(bad, fmt.Sprintf("%.200q is no absolute path", f.Path))
		}
		if f.Kind == quarry.KindRegular {
			size += f.Size
			regular++
			if !isHex(f.SHA256, 64) {
				bad = append(bad, fmt.Sprintf("%.200q has no SHA-256", f.Path))
			}
		}
		if f.Class != "" {
			classes[string(f.Class)]++
		}
		if f.ELF != nil && f.ELF.Soname != "" {
			sonames = append(sonames, Raw(f.ELF.Soname))
		}
	}
	if size != r.InstalledSize {
		bad = append(bad, fmt.Sprintf("its files have %d bytes, and installed_size is %d", size, r.InstalledSize))
	}
	c := r.Contents
	if c == nil {
		return bad
	}
	if regular != c.Files {
		bad = append(bad, fmt.Sprintf("it has %d regular files, and contents.files is %d", regular, c.Files))
	}
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for k := range classes {
			if !yield(k) {
				return
			}
		}
		for k := range c.Classes {
			if classes[k] == 0 && !yield(k) {
				return
			}
		}
	}) {
		if classes[name] != c.Classes[name] {
			bad = append(bad, fmt.Sprintf("it has %d files of the class %.40q, and contents.classes has %d", classes[name], name, c.Classes[name]))
		}
	}
	slices.Sort(sonames)
	if !slices.Equal(slices.Compact(sonames), c.Sonames) {
		bad = append(bad, "its sonames are others than contents.sonames")
	}
	return bad
}

// ParseHead reads of a record what stands before its first table.
func ParseHead(data []byte) (*Record, error) { return parseHead(data) }

// ParseFilesOf reads the list of files that belongs to a target.
func ParseFilesOf(data []byte, t quarry.Target) ([]quarry.File, error) {
	l, files, err := parseFiles(data)
	if err == nil {
		err = misplaced(t, l.Package, l.Version, l.Arch)
	}
	return files, err
}
