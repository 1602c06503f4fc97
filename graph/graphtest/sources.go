package graphtest

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
)

// ParseSources reads Debian's index of source packages (dists/DIST/main/source/Sources,
// unpacked) into releases for these archs: build dependencies on binary packages
// become needs of the sources that they are made of. Of alternatives the first is
// taken; qualifiers and versions, which are about binary packages, are left out.
// What names no source of the index is left out too: essential and virtual
// packages, and those of other parts of the archive.
func ParseSources(in io.Reader, archs []string) ([]quarry.Release, error) {
	type source struct {
		name, version, arch string
		binaries, needs     []string
	}
	var all []source
	var cur source
	field := ""
	flush := func() {
		if cur.name != "" {
			all = append(all, cur)
		}
		cur, field = source{}, ""
	}
	sc := bufio.NewScanner(in)
	sc.Buffer(nil, 8<<20) // some lists of binaries are long
	for sc.Scan() {
		line := sc.Text()
		if line == "" {
			flush()
			continue
		}
		value := line
		if line[0] != ' ' && line[0] != '\t' {
			var ok bool
			if field, value, ok = strings.Cut(line, ":"); !ok {
				return nil, fmt.Errorf("line %.60q has no colon: give an unpacked Sources file", line)
			}
		}
		value = strings.TrimSpace(value)
		switch field {
		case "Package":
			cur.name = value
		case "Version":
			cur.version = value
		case "Architecture":
			cur.arch += value
		case "Binary":
			cur.binaries = append(cur.binaries, words(value)...)
		case "Build-Depends", "Build-Depends-Arch", "Build-Depends-Indep":
			cur.needs = append(cur.needs, words(value)...)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("cannot read the index of sources: %w", err)
	}
	flush()
	of := map[string]string{}
	for _, s := range all {
		for _, b := range s.binaries {
			of[b] = s.name
		}
	}
	seen := map[string]bool{}
	var list []quarry.Release
	for _, s := range all {
		if seen[s.name] || quarry.CheckName(s.name) != nil {
			continue
		}
		seen[s.name] = true
		r := quarry.Release{Package: s.name, Version: strings.NewReplacer(":", ".", "~", "-").Replace(s.version), Channel: "testing",
			Commit: strings.Repeat("0", 40), Archs: archs}
		if s.arch == "all" {
			r.Archs = []string{quarry.Noarch}
		}
		for _, b := range s.needs {
			if need := of[b]; need != "" && need != s.name && !slices.Contains(r.Needs, need) {
				r.Needs = append(r.Needs, need)
			}
		}
		list = append(list, r)
	}
	return list, nil
}

// words takes the names out of a list of dependencies.
func words(s string) []string {
	var list []string
	for _, item := range strings.Split(s, ",") {
		item, _, _ = strings.Cut(item, "|")
		item = strings.TrimSpace(item)
		if i := strings.IndexAny(item, " \t([<:"); i >= 0 {
			item = item[:i]
		}
		if item != "" {
			list = append(list, item)
		}
	}
	return list
}
