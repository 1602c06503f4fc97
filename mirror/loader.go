package mirror

import (
	"context"
	"sync"

	"github.com/Morphux/quarry/results"
)

// loader reads packages, and keeps those that were read last: of a package that has
// changed, most records are those of before.
type loader struct {
	mu       sync.Mutex
	now, old map[string]*results.Package // by name and folder; under the name alone, the one that came last
	n        int                         // entries in now
}

// maxHeld bounds the entries that a loader keeps, at a few hundred bytes each.
const maxHeld = 50_000

func (l *loader) get(key string) *results.Package {
	p := l.now[key]
	if p == nil {
		if p = l.old[key]; p != nil {
			l.put(key, p)
		}
	}
	return p
}

func (l *loader) put(key string, p *results.Package) {
	if l.now == nil || l.n > maxHeld/2 {
		l.now, l.old, l.n = map[string]*results.Package{}, l.now, 0
	}
	l.now[key] = p
	l.n += len(p.Entries) + 1
}

// load is [results.Snapshot.Load].
func (l *loader) load(ctx context.Context, s *results.Snapshot, names []string) ([]*results.Package, error) {
	out := make([]*results.Package, len(names))
	var missing, folders []string
	var at []int
	like := map[string]*results.Package{}
	for i, name := range names {
		folder, err := s.Folder(name)
		if err != nil {
			return nil, err
		}
		l.mu.Lock()
		out[i] = l.get(name + " " + folder)
		if out[i] == nil {
			like[name] = l.get(name)
		}
		l.mu.Unlock()
		if out[i] != nil {
			continue
		}
		missing, folders, at = append(missing, name), append(folders, folder), append(at, i)
	}
	if len(missing) == 0 {
		return out, nil
	}
	list, err := s.Load(ctx, missing, func(name string) *results.Package { return like[name] })
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, p := range list {
		out[at[k]] = p
		if len(p.Problems) == 0 { // what could not be read may be there the next time
			l.put(p.Name+" "+folders[k], p)
			l.put(p.Name, p)
		}
	}
	return out, nil
}
