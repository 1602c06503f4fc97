package results

import (
	"unique"

	"github.com/Morphux/quarry"
)

// Against lists what a success was built against and would notice a change of:
// the dependencies that its recipe names, and those whose libraries it needs.
// false, without an error, says that there is no success. Like [Snapshot.Get]
// it takes the architecture as it is. The answer is remembered, as a planner
// asks for every record again and again.
func (s *Snapshot) Against(pkg, version, arch string) ([]quarry.DepUsed, bool, error) {
	if err := checkPlace(pkg, version, arch); err != nil {
		return nil, false, err
	}
	t := s.target(pkg, version, arch)
	path := RecordPath(t)
	h, err := s.blob(path)
	if err != nil || h.IsZero() {
		return nil, false, err
	}
	s.odb.mu.Lock()
	known, ok := s.odb.against.get(h)
	s.odb.mu.Unlock()
	if !ok {
		rec, err := s.readAt(h, path, t)
		if err != nil {
			return nil, false, err
		}
		known = against(rec)
		s.odb.mu.Lock()
		s.odb.against.put(h, known, 1+len(known))
		s.odb.mu.Unlock()
	}
	list := make([]quarry.DepUsed, len(known))
	for i, d := range known {
		list[i] = d.Value()
	}
	return list, true, nil
}

// against picks from a record. Thousands of records name the same dependency,
// so that each is kept once.
func against(r *Record) (list []unique.Handle[quarry.DepUsed]) {
	linked := map[string]bool{}
	for _, l := range r.Libraries {
		if l.From == "dependency" {
			linked[l.Owner] = true
		}
	}
	for _, d := range r.Dependencies {
		if d.Direct || linked[d.Package] && d.Arch == "" {
			list = append(list, unique.Make(d))
		}
	}
	return list
}
