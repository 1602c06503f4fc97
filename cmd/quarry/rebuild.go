package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/Morphux/quarry"
)

// Stale tells why what stands in the channel has to be built again: a package
// that it was built against offers something else now than it did then, by
// quarry.Facts.ABI. A newer version that offers the same is no reason, and
// neither is a dependency of a dependency whose libraries it does not use.
func (r records) Stale(rel quarry.Release, arch string) (why, change string, err error) {
	built, ok, err := r.Against(rel.Package, rel.Version, arch)
	if err != nil || !ok {
		return "", "", err
	}
	type key struct{ pkg, arch string } // a cross build may use a package on two archs
	then := make(map[key]quarry.DepUsed, len(built))
	for _, d := range built {
		then[key{d.Package, d.Arch}] = d
	}
	changes := sha256.New()
	note := func(now quarry.DepUsed) {
		d, used := then[key{now.Package, now.Arch}]
		delete(then, key{now.Package, now.Arch})
		// A record of before there were ABIs says nothing, and what offered
		// nothing then has not been built against.
		if !used || now.Artifact == d.Artifact || d.ABI == "" || now.ABI == d.ABI {
			return
		}
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
	}
	look := func(needs []string, arch, of string) error {
		for _, need := range needs {
			now, ok, err := r.Resolve(need, of)
			if err != nil {
				return err
			}
			if ok {
				now.Arch = arch
				note(now)
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
			note(quarry.DepUsed{Package: a.Package, Version: a.Version, Artifact: a.Artifact, ABI: a.ABI})
		}
	}
	if why == "" {
		return "", "", nil
	}
	return why, hex.EncodeToString(changes.Sum(nil)), nil
}
