package results

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// Packages goes over the names of all packages that have a success, in the
// order of the tree: by spread, then by name.
func (s *Snapshot) Packages(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for p, err := range s.packages(ctx, packagesDir) {
			if !yield(p.name, err) {
				return
			}
		}
	}
}

type packageDir struct {
	name string
	hash plumbing.Hash
}

// packages goes over the folders of packages. Folders that stand where Quarry
// would not have put them are passed over. A folder that cannot be read is one
// error and the rest goes on.
func (s *Snapshot) packages(ctx context.Context, top string) iter.Seq2[packageDir, error] {
	return func(yield func(packageDir, error) bool) {
		var walk func(h plumbing.Hash, at string, depth int) bool
		walk = func(h plumbing.Hash, at string, depth int) bool {
			t, err := s.odb.tree(h)
			if err != nil {
				return yield(packageDir{}, s.bad(top+"/"+at, err))
			}
			for _, e := range t {
				if err := ctx.Err(); err != nil {
					yield(packageDir{}, err)
					return false
				}
				if !e.dir {
					continue
				}
				p := path.Join(at, e.name)
				if quarry.CheckName(e.name) == nil && Spread(e.name) == p {
					if !yield(packageDir{e.name, e.hash}, nil) {
						return false
					}
				} else if depth < 2 && !walk(e.hash, p, depth+1) {
					return false
				}
			}
			return true
		}
		h, err := s.odb.lookup(s.root, top, true)
		if err != nil {
			yield(packageDir{}, err)
			return
		}
		if !h.IsZero() {
			walk(h, "", 0)
		}
	}
}

// place is a file of some record, found by walking.
type place struct {
	quarry.Target
	path string
	hash plumbing.Hash
	dir  tree // the folder it lies in
}

// places goes over the records of a half of the tree: by package, then by
// version, oldest first, then by architecture. keep, which may be nil, says
// which packages to go into.
func (s *Snapshot) places(ctx context.Context, top string, keep func(string) bool) iter.Seq2[place, error] {
	return func(yield func(place, error) bool) {
		for p, err := range s.packages(ctx, top) {
			if err != nil {
				if !yield(place{}, err) || ctx.Err() != nil {
					return
				}
				continue
			}
			if keep != nil && !keep(p.name) {
				continue
			}
			if !s.placesOf(top, p, yield) {
				return
			}
		}
	}
}

func (s *Snapshot) placesOf(top string, p packageDir, yield func(place, error) bool) bool {
	at := top + "/" + Spread(p.name)
	dirs, err := s.odb.tree(p.hash)
	if err != nil {
		return yield(place{}, s.bad(at, err))
	}
	var versions []string
	for _, d := range dirs {
		if d.dir && quarry.CheckVersion(d.name) == nil {
			versions = append(versions, d.name)
		}
	}
	sortVersions(versions)
	for _, v := range versions {
		h, _ := dirs.find(v, true)
		files, err := s.odb.tree(h)
		if err != nil {
			if !yield(place{}, s.bad(at+"/"+v, err)) {
				return false
			}
			continue
		}
		for _, arch := range archsOf(files) {
			h, ok := files.find(arch+recordExt, false)
			if !ok {
				continue
			}
			if !yield(place{s.target(p.name, v, arch), at + "/" + v + "/" + arch + recordExt, h, files}, nil) {
				return false
			}
		}
	}
	return true
}

// List goes over the records of all successes: by package in the order of the
// tree, then by version, oldest first, then by architecture. A record that
// cannot be read comes as an error in its place and the rest goes on; when ctx
// ends, its error comes last.
func (s *Snapshot) List(ctx context.Context) iter.Seq2[*Record, error] {
	return s.records(ctx, packagesDir, nil)
}

// Failures goes over the records of all failures that no success has cleared,
// as List does.
func (s *Snapshot) Failures(ctx context.Context) iter.Seq2[*Record, error] {
	return s.records(ctx, failuresDir, nil)
}

// ListPackage goes over the records of one package, first the successes, then
// the failures, each as List does. A package without any is no error.
func (s *Snapshot) ListPackage(ctx context.Context, pkg string) iter.Seq2[*Record, error] {
	return func(yield func(*Record, error) bool) {
		if err := quarry.CheckName(pkg); err != nil {
			yield(nil, err)
			return
		}
		for _, top := range []string{packagesDir, failuresDir} {
			h, err := s.odb.lookup(s.root, top+"/"+Spread(pkg), true)
			if err == nil && h.IsZero() {
				continue
			}
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(nil, err)
				return
			}
			more := s.placesOf(top, packageDir{pkg, h}, func(p place, err error) bool {
				var rec *Record
				if err == nil {
					rec, err = s.readAt(p.hash, p.path, p.Target)
				}
				return yield(rec, err)
			})
			if !more {
				return
			}
		}
	}
}

func (s *Snapshot) records(ctx context.Context, top string, keep func(string) bool) iter.Seq2[*Record, error] {
	return func(yield func(*Record, error) bool) {
		for p, err := range s.places(ctx, top, keep) {
			var rec *Record
			if err == nil {
				rec, err = s.readAt(p.hash, p.path, p.Target)
			}
			if !yield(rec, err) {
				return
			}
		}
	}
}

// Search goes over the successes whose name or description matches a query, as
// List does. Letters match in either case. A query with * ? or [ is a pattern,
// as of [path.Match], for the whole name; any other is looked for within names
// and descriptions. The records have what stands before their first table (see
// doc/results.md): what identifies them, description, category, artifact,
// sizes and times.
func (s *Snapshot) Search(ctx context.Context, query string) iter.Seq2[*Record, error] {
	query = strings.ToLower(query)
	pattern := strings.ContainsAny(query, "*?[")
	return func(yield func(*Record, error) bool) {
		if _, err := path.Match(query, ""); pattern && err != nil {
			yield(nil, fmt.Errorf("pattern %q is malformed: a [ needs its ]", query))
			return
		}
		var keep func(string) bool
		if pattern {
			keep = func(name string) bool {
				ok, _ := path.Match(query, strings.ToLower(name))
				return ok
			}
		}
		for p, err := range s.places(ctx, packagesDir, keep) {
			var rec *Record
			if err == nil {
				if rec, err = s.odb.record(p.hash, parseHead); err == nil {
					err = misplaced(p.Target, rec.Package, rec.Version, rec.Arch)
				}
				if err != nil {
					err = s.bad(p.path, err)
				}
			}
			if err == nil && !pattern &&
				!strings.Contains(strings.ToLower(rec.Package), query) &&
				!strings.Contains(strings.ToLower(rec.Description), query) {
				continue
			}
			if !yield(rec, err) {
				return
			}
		}
	}
}

// Owner is a file and what installs it.
type Owner struct {
	quarry.Target
	File quarry.File
}

// Owners goes over the packages that install a file: the one at an absolute
// path (/usr/bin/minigzip), or, for a query without a slash at its beginning,
// every one with that base name, which may be a pattern as of [path.Match]
// (libz.so*). An empty arch is every one. Lists of files are only read whole
// when they hold the words of the query, so this takes seconds, not minutes,
// for a large repository.
func (s *Snapshot) Owners(ctx context.Context, query, arch string) iter.Seq2[Owner, error] {
	return func(yield func(Owner, error) bool) {
		match, word, err := fileMatcher(query)
		if err != nil {
			yield(Owner{}, err)
			return
		}
		for p, err := range s.places(ctx, packagesDir, nil) {
			if err != nil {
				if !yield(Owner{}, err) {
					return
				}
				continue
			}
			if arch != "" && p.Arch != arch && p.Arch != quarry.Noarch {
				continue
			}
			files, err := s.filesWith(p, word)
			if err != nil && !yield(Owner{}, err) {
				return
			}
			for _, f := range files {
				if match(f.Path) && !yield(Owner{p.Target, f}, nil) {
					return
				}
			}
		}
	}
}

// filesWith reads the list of files beside a record if it holds a word.
func (s *Snapshot) filesWith(p place, word []byte) ([]quarry.File, error) {
	h, ok := p.dir.find(p.Arch+filesExt, false)
	if !ok {
		return nil, nil
	}
	at := FilesPath(p.Target)
	b, err := s.odb.get(plumbing.BlobObject, h)
	if err != nil {
		return nil, s.bad(at, err)
	}
	if !bytes.Contains(b, word) {
		return nil, nil
	}
	return s.filesIn(b, at, p.Target)
}

// fileMatcher makes a test for paths and a word that the list of files must
// hold when a path in it passes. The word must read the same in TOML as in a
// path, so it ends where anything may be escaped.
func fileMatcher(query string) (match func(string) bool, word []byte, err error) {
	if query == "" {
		return nil, nil, fmt.Errorf("the file to look for is empty: give a path, or the name of a file")
	}
	plainRun := func(s string) []byte {
		runs := strings.FieldsFunc(s, func(r rune) bool {
			return r <= ' ' || r > '~' || strings.ContainsRune(`\"'*?[]`, r)
		})
		if len(runs) == 0 {
			return nil
		}
		return []byte(slices.MaxFunc(runs, func(a, b string) int { return len(a) - len(b) }))
	}
	if strings.HasPrefix(query, "/") {
		return func(p string) bool { return p == query }, plainRun(query), nil
	}
	if _, err := path.Match(query, ""); err != nil {
		return nil, nil, fmt.Errorf("pattern %q is malformed: a [ needs its ]", query)
	}
	word = plainRun(query)
	if strings.ContainsAny(query, `[\`) {
		word = nil // its letters are a choice, not a word
	}
	return func(p string) bool {
		ok, _ := path.Match(query, path.Base(p))
		return ok
	}, word, nil
}
