package main

import (
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
)

// Stale tells why what stands in the channel has to be built again: a package
// that it was built against offers something else now than it did then, by
// quarry.Facts.ABI. A newer version that offers the same is no reason, and
// neither is a dependency of a dependency whose libraries it does not use.
//
// Where packages need each other in a circle a change goes once round: see cause.
func (r records) Stale(rel quarry.Release, arch string) (why, change string, err error) {
	built, ok, err := r.Against(rel.Package, rel.Version, arch)
	if err != nil || !ok {
		return "", "", err
	}
	if rel.Traits[arch].Bootstrap {
		if why, change, err := r.lacking(rel, arch); err != nil || why != "" {
			return why, change, err
		}
	}
	type key struct{ pkg, arch string } // a cross build may use a package on two archs
	then := make(map[key]quarry.DepUsed, len(built))
	for _, d := range built {
		then[key{d.Package, d.Arch}] = d
	}
	var self *results.Record // of what stands
	var from int64           // latest origin of it all
	changes := sha256.New()
	note := func(now quarry.DepUsed) error {
		d, used := then[key{now.Package, now.Arch}]
		delete(then, key{now.Package, now.Arch})
		// A record of before there were ABIs says nothing, and what offered
		// nothing then has not been built against.
		if !used || now.Artifact == d.Artifact || d.ABI == "" || now.ABI == d.ABI {
			return nil
		}
		if self == nil {
			if self, err = r.Get(rel.Package, rel.Version, arch); err != nil {
				return err
			}
			if number, rebuilt := origin(self); rebuilt {
				from = number
			}
		}
		number, round, err := r.cause(self, now, arch)
		if err != nil || round {
			return err
		}
		from = max(from, number)
		fmt.Fprintf(changes, "%s %s %s\n", now.Package, now.Version, now.ABI)
		switch {
		case why != "":
			if !strings.HasSuffix(why, " and others") {
				why += " and others"
			}
		case now.Version != d.Version:
			why = fmt.Sprintf("%s %s offers something else to build against than %s did", now.Package, now.Version, d.Version)
		default:
			why = fmt.Sprintf("%s %s offers something else to build against than before", now.Package, now.Version)
		}
		return nil
	}
	look := func(needs []string, arch, of string) error {
		for _, need := range needs {
			now, ok, err := r.Resolve(need, of)
			if err != nil {
				return err
			}
			if ok {
				now.Arch = arch
				if err := note(now); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := look(rel.BuildNeeds(arch), "", arch); err != nil {
		return "", "", err
	}
	if system, tools := rel.CrossNeeds(arch); system != "" {
		if err := look(tools, system, system); err != nil {
			return "", "", err
		}
	}
	// What is linked with and not named by the recipe came with something else:
	// it is compared with what stands now of the same version.
	for _, d := range built {
		if _, left := then[key{d.Package, d.Arch}]; !left || d.Direct {
			continue
		}
		a, ok, err := r.Available(d.Package, d.Version, machine(arch))
		if err != nil {
			return "", "", err
		}
		if ok {
			if err := note(quarry.DepUsed{Package: a.Package, Version: a.Version, Artifact: a.Artifact, ABI: a.ABI}); err != nil {
				return "", "", err
			}
		}
	}
	if why == "" {
		return "", "", nil
	}
	return why, fmt.Sprintf("%d-%x", from, changes.Sum(nil)), nil
}

// lacking tells that what stands was built without something that it needs, all
// of which is there now.
func (r records) lacking(rel quarry.Release, arch string) (why, change string, err error) {
	rec, err := r.Get(rel.Package, rel.Version, arch)
	if err != nil || len(rec.Without) == 0 {
		return "", "", err
	}
	for _, need := range rec.Without {
		if _, ok, err := r.Resolve(need, arch); err != nil || !ok {
			return "", "", err
		}
	}
	from, _ := origin(rec)
	what := strings.Join(rec.Without, ", ")
	return "it was built without " + what + ", which is there now", fmt.Sprintf("%d-%x", from, sha256.Sum256([]byte("without "+what))), nil
}

// origin is the number of the build that somebody wanted and that led to the
// rebuild that a record is of; rebuilt is false, and the number the build's own,
// when somebody wanted that.
func origin(rec *results.Record) (number int64, rebuilt bool) {
	change, rebuilt := queue.Change(rec.Nonce)
	if !rebuilt {
		return rec.Build, false
	}
	first, _, _ := strings.Cut(change, "-")
	number, _ = strconv.ParseInt(first, 10, 64) // 0 in records of before it was noted
	return number, true
}

// cause gives the origin of what a dependency offers now. round is true when that
// came of rebuilds that go back to the release itself, whose own record is self,
// and the release has been rebuilt for the same origin: to do that once more would
// set the others off again, and so on for ever where a compiler makes something
// else each time, with a time or a path in it.
func (r records) cause(self *results.Record, dep quarry.DepUsed, arch string) (from int64, round bool, err error) {
	type place struct{ pkg, version, arch string }
	of := func(d quarry.DepUsed, arch string) place {
		if d.Arch != "" {
			arch = d.Arch
		}
		return place{d.Package, d.Version, machine(arch)}
	}
	home := place{self.Package, self.Version, machine(self.Arch)}
	first := of(dep, arch)
	todo, seen := []place{first}, map[place]bool{first: true}
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		a, ok, err := r.Available(at.pkg, at.version, at.arch)
		if err != nil {
			return 0, false, err
		}
		if !ok {
			continue
		}
		rec, err := r.Get(at.pkg, at.version, a.Arch)
		if err != nil {
			return 0, false, err
		}
		number, rebuilt := origin(rec)
		if at == first {
			from = number
			if last, again := origin(self); !rebuilt || !again || last < from {
				return from, false, nil
			}
		}
		if !rebuilt {
			continue
		}
		against, _, err := r.Against(at.pkg, at.version, a.Arch)
		if err != nil {
			return 0, false, err
		}
		for _, d := range against {
			next := of(d, at.arch)
			if next == home {
				return from, true, nil
			}
			if !seen[next] {
				seen[next] = true
				todo = append(todo, next)
			}
		}
	}
	return from, false, nil
}
