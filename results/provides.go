package results

import (
	"bytes"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// offers are the packages of a part of the tree that provide something, by each
// name that their recipes may mean with it.
type offers map[string][]string

// Providers lists the packages that may provide a virtual package: one of their
// successes, of any version and architecture, says so. A recipe's java-runtime-17
// may mean java-runtime-17 or java-runtime in version 17, so that [Snapshot.Provides]
// has to be looked at as well. The first question reads all records, the next ones
// only what is new since, whatever snapshot they are put to.
func (s *Snapshot) Providers(name string) ([]string, error) {
	var list []string
	for _, root := range []plumbing.Hash{s.root, s.stage} {
		h, err := s.odb.lookup(root, packagesDir, true)
		if err != nil {
			return nil, err
		}
		if h.IsZero() {
			continue
		}
		all, err := s.odb.offers(h, 0)
		if err != nil {
			return nil, err
		}
		list = append(list, all[name]...)
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// deepest is how many folders lie between packages/ and a record at most.
const deepest = 5

// offers looks into a folder, unless that was done before: git names it by what it
// holds.
func (o *odb) offers(h plumbing.Hash, depth int) (offers, error) {
	o.mu.Lock()
	found, ok := o.provided.get(h)
	o.mu.Unlock()
	if ok {
		return found, nil
	}
	t, err := o.tree(h)
	if err != nil {
		return nil, err
	}
	found = offers{}
	for _, e := range t {
		switch {
		case e.dir && depth < deepest:
			below, err := o.offers(e.hash, depth+1)
			if err != nil {
				return nil, err
			}
			for name, pkgs := range below {
				found[name] = append(found[name], pkgs...)
			}
		case !e.dir && depth > 0:
			if _, ok := archOf(e.name); !ok {
				continue
			}
			pkg, provides, err := o.provides(e.hash)
			if err != nil {
				continue // whoever asks for that record is told
			}
			for _, p := range provides {
				for i := len(p); i > 0; i = strings.LastIndexByte(p[:i], '-') {
					found[p[:i]] = append(found[p[:i]], pkg)
				}
			}
		}
	}
	for name, pkgs := range found {
		slices.Sort(pkgs)
		found[name] = slices.Compact(pkgs)
	}
	o.mu.Lock()
	o.provided.put(h, found, 1+len(found))
	o.mu.Unlock()
	return found, nil
}

// provides reads what the record in a blob says of that. Few provide anything, and
// the text tells at once.
func (o *odb) provides(h plumbing.Hash) (pkg string, list []string, err error) {
	b, err := o.get(plumbing.BlobObject, h)
	if err != nil || !bytes.Contains(b, []byte("\nprovides = [")) {
		return "", nil, err
	}
	rec, err := o.record(h, Parse)
	if err != nil {
		return "", nil, err
	}
	return rec.Package, rec.Recipe.Provides, nil
}

// Provides lists the virtual packages that a success stands for, as its recipe
// writes them: name or name-version. The architecture is taken as it is.
func (s *Snapshot) Provides(pkg, version, arch string) ([]string, error) {
	if err := checkPlace(pkg, version, arch); err != nil {
		return nil, err
	}
	t := quarry.Target{Channel: s.channel, Package: pkg, Version: version, Arch: arch}
	h, err := s.blob(RecordPath(t))
	if err != nil || h.IsZero() {
		return nil, err
	}
	s.odb.mu.Lock()
	list, ok := s.odb.provide.get(h)
	s.odb.mu.Unlock()
	if ok {
		return slices.Clone(list), nil
	}
	if _, list, err = s.odb.provides(h); err != nil {
		return nil, s.bad(RecordPath(t), err)
	}
	s.odb.mu.Lock()
	s.odb.provide.put(h, list, 1+len(list))
	s.odb.mu.Unlock()
	return slices.Clone(list), nil
}
