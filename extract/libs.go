package extract

import (
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
)

// Library names what a program asks its loader for.
type Library struct {
	Arch   string // as quarry.ELF has it, e.g. x86_64
	Soname string // e.g. libz.so.1
}

// LibraryIndex says where libraries lie. The zero value is empty and ready to
// use. An index of a base is worth keeping: it is plain JSON, by arch and
// soname. It is not safe for changes by several goroutines.
type LibraryIndex struct{ paths map[Library]string }

// Len is how many libraries there are.
func (x LibraryIndex) Len() int { return len(x.paths) }

// Lookup finds a library.
func (x LibraryIndex) Lookup(l Library) (path string, ok bool) {
	path, ok = x.paths[l]
	return path, ok
}

// Add notes a library. Of two paths the one in a folder that loaders search by
// default stays, else the one whose name is the soname, else the first.
func (x *LibraryIndex) Add(l Library, p string) {
	if x.paths == nil {
		x.paths = map[Library]string{}
	}
	rank := func(p string) (n int) {
		if isLibraryDir(path.Dir(p)) {
			n = 2
		}
		if path.Base(p) == l.Soname {
			n++
		}
		return n
	}
	if old, ok := x.paths[l]; !ok || rank(p) > rank(old) {
		x.paths[l] = p
	}
}

// MarshalJSON writes {"x86_64": {"libz.so.1": "/usr/lib/libz.so.1"}}.
func (x LibraryIndex) MarshalJSON() ([]byte, error) {
	out := map[string]map[string]string{}
	for l, p := range x.paths {
		if out[l.Arch] == nil {
			out[l.Arch] = map[string]string{}
		}
		out[l.Arch][l.Soname] = p
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (x *LibraryIndex) UnmarshalJSON(b []byte) error {
	var in map[string]map[string]string
	if err := json.Unmarshal(b, &in); err != nil {
		return fmt.Errorf("index of libraries: %w", err)
	}
	x.paths = map[Library]string{}
	for arch, libs := range in {
		for soname, p := range libs {
			x.paths[Library{arch, soname}] = p
		}
	}
	return nil
}

// isLibraryDir reports whether loaders search a folder without being told to:
// lib, lib32, lib64 and libx32 of /, /usr and /usr/local, and their multiarch
// folders (lib/x86_64-linux-gnu).
func isLibraryDir(dir string) bool {
	parent, last := path.Split(dir)
	if strings.Contains(last, "-linux-") || strings.HasSuffix(last, "-linux") {
		parent, last = path.Split(path.Clean(parent))
	}
	switch last {
	case "lib", "lib32", "lib64", "libx32":
		return parent == "/" || parent == "/usr/" || parent == "/usr/local/"
	}
	return false
}

// IndexFiles lists the shared libraries of a package, by their sonames and by
// every name and link that they have.
func IndexFiles(files []quarry.File) LibraryIndex {
	var x LibraryIndex
	at := map[string]*quarry.File{}
	for i := range files {
		at[files[i].Path] = &files[i]
	}
	for i := range files {
		f := &files[i]
		target := f
		for range maxLinks {
			if target == nil || target.Kind != quarry.KindSymlink && target.Kind != quarry.KindHardlink {
				break
			}
			to := target.Target
			if !strings.HasPrefix(to, "/") {
				to = path.Join(path.Dir(target.Path), to)
			}
			target = at[path.Clean(to)]
		}
		if target == nil || target.ELF == nil || target.Class != quarry.ClassShared {
			continue
		}
		x.Add(Library{target.ELF.Arch, path.Base(f.Path)}, f.Path)
		if target.ELF.Soname != "" {
			x.Add(Library{target.ELF.Arch, target.ELF.Soname}, f.Path)
		}
	}
	return x
}

// maxBy is how many of the files that need a library are named.
const maxBy = 1000

// resolveLibraries finds where every needed library comes from, in the order
// in which the answer says most: the package itself, the packages that were
// installed for it, the base, nowhere.
func resolveLibraries(files []quarry.File, deps []Dependency, base LibraryIndex) (libs []quarry.NeededLibrary, warnings []string) {
	own := IndexFiles(files)
	ownPaths := map[string]bool{}
	found := map[Library]*quarry.NeededLibrary{}
	needs := map[Library]int{} // by how many files
	private := map[Library]string{}
	for i := range files {
		ownPaths[files[i].Path] = true
	}
	for i := range files {
		f := &files[i]
		if f.ELF == nil {
			continue
		}
		for _, soname := range f.ELF.Needed {
			l := Library{f.ELF.Arch, soname}
			n := found[l]
			if n == nil {
				n = &quarry.NeededLibrary{Soname: soname, Arch: l.Arch, From: "nowhere"}
				found[l] = n
				whence(n, l, own, ownPaths, deps, base)
			}
			// Two entries of one file, which linkers do not write, are one need.
			if len(n.By) == 0 || n.By[len(n.By)-1] != f.Path {
				needs[l]++
				if len(n.By) < maxBy {
					n.By = append(n.By, f.Path)
				}
			}
			if n.Path != "" && n.From != "base" && !strings.Contains(soname, "/") && !searches(f, path.Dir(n.Path)) && private[l] == "" {
				private[l] = f.Path
			}
		}
	}
	for _, l := range slices.SortedFunc(maps.Keys(found), func(a, b Library) int {
		return slices.Compare([]string{a.Soname, a.Arch}, []string{b.Soname, b.Arch})
	}) {
		n := found[l]
		libs = append(libs, *n)
		by := quotePath(n.By[0])
		if needs[l] > 1 {
			by += fmt.Sprintf(" and %s", plural(needs[l]-1, "further file"))
		}
		switch {
		case n.From == "nowhere":
			warnings = append(warnings, fmt.Sprintf(
				"library %s (%s), needed by %s, is neither in the package nor in its dependencies nor in the base: add the package that has it to its dependencies",
				quotePath(n.Soname), l.Arch, by))
		case private[l] != "":
			warnings = append(warnings, fmt.Sprintf(
				"library %s (%s) is in %s, where the loader will not find it for %s: link that with an rpath",
				quotePath(n.Soname), l.Arch, quotePath(path.Dir(n.Path)), quotePath(private[l])))
		}
	}
	return libs, warnings
}

// whence fills in where a library comes from.
func whence(n *quarry.NeededLibrary, l Library, own LibraryIndex, ownPaths map[string]bool, deps []Dependency, base LibraryIndex) {
	if strings.Contains(l.Soname, "/") {
		// Loaders take such a name for a path.
		if ownPaths[l.Soname] {
			n.From, n.Path = "package", l.Soname
			return
		}
		ask := l
		ask.Soname = path.Base(l.Soname)
		for _, d := range deps {
			if p, ok := d.Libraries.Lookup(ask); ok && p == l.Soname {
				n.From, n.Path, n.Owner = "dependency", p, d.Package
				return
			}
		}
		if p, ok := base.Lookup(ask); ok && p == l.Soname {
			n.From, n.Path = "base", p
		}
		return
	}
	if p, ok := own.Lookup(l); ok {
		n.From, n.Path = "package", p
		return
	}
	for _, d := range deps {
		if p, ok := d.Libraries.Lookup(l); ok {
			n.From, n.Path, n.Owner = "dependency", p, d.Package
			return
		}
	}
	if p, ok := base.Lookup(l); ok {
		n.From, n.Path = "base", p
	}
}

// searches reports whether a file's loader looks for its libraries in a
// folder: by default, or by the file's own rpath or runpath, in which $ORIGIN
// is the file's folder and $LIB any of the library folders' names (ld.so(8)).
func searches(f *quarry.File, dir string) bool {
	if isLibraryDir(dir) {
		return true
	}
	for _, p := range slices.Concat(f.ELF.RPath, f.ELF.RunPath) {
		for _, origin := range []string{"${ORIGIN}", "$ORIGIN"} {
			p = strings.ReplaceAll(p, origin, path.Dir(f.Path))
		}
		for _, lib := range []string{"lib", "lib64", "lib32"} {
			q := strings.NewReplacer("${LIB}", lib, "$LIB", lib).Replace(p)
			if strings.HasPrefix(q, "/") && path.Clean(q) == dir {
				return true
			}
		}
	}
	return false
}
