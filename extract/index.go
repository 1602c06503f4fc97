package extract

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// IndexLibraries lists the shared libraries that programs of a root file
// system are loaded with: those in the folders that loaders search by default
// and in those of its /etc/ld.so.conf. Links are followed as a process with
// this root would, never out of it. A base of a few hundred libraries takes
// some milliseconds; the result can be kept as JSON. further are folders to look
// in too: those of a cross compiler.
func IndexLibraries(root string, further ...string) (LibraryIndex, error) {
	var x LibraryIndex
	fd, err := openRoot(root)
	if err != nil {
		return x, err
	}
	defer unix.Close(fd)
	r := &rootfs{root: fd}
	dirs := append(r.libraryDirs(), further...)
	known := map[fileID]*elfFile{} // nil for what is no library
	seen := map[string]bool{}      // folders by real path: /lib may be usr/lib
	for _, dir := range dirs {
		p, err := r.lookupDir(dir)
		if err != nil {
			continue // most roots have few of them
		}
		unix.Close(p.fd)
		if seen[p.real] {
			continue
		}
		seen[p.real] = true
		names, err := r.names(dir)
		if err != nil {
			return x, fmt.Errorf("cannot list the libraries of the base: %w", err)
		}
		for _, name := range names {
			if !strings.Contains(name, ".so") || !fitText(name, maxSoname) {
				continue
			}
			at := "/" + path.Join(p.real, name)
			e, err := r.library(at, known)
			if err != nil {
				return x, fmt.Errorf("cannot read a library of the base: %w", err)
			}
			if e == nil {
				continue
			}
			x.Add(Library{e.Arch, name}, at)
			if e.Soname != "" {
				x.Add(Library{e.Arch, e.Soname}, at)
			}
		}
	}
	return x, nil
}

// library reads a shared library, or returns nil for what is none.
func (r *rootfs) library(name string, known map[fileID]*elfFile) (*elfFile, error) {
	p, err := r.lookup(name)
	if err != nil {
		return nil, nil // a link to nothing
	}
	unix.Close(p.fd)
	id := fileID{uint64(p.stat.Dev), p.stat.Ino}
	if e, ok := known[id]; ok {
		return e, nil
	}
	known[id] = nil
	if p.stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil
	}
	f, st, err := r.openFile(p.real)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// A loader is a library and a program at once; so is libc.
	if e, err := parseELF(f, st.Size); err == nil && e.Type == "dyn" && !e.debug {
		known[id] = e
	}
	return known[id], nil
}

// libraryDirs are the folders to look for libraries in, default ones first.
func (r *rootfs) libraryDirs() (dirs []string) {
	for _, prefix := range []string{"/usr", "", "/usr/local"} {
		for _, lib := range []string{"lib", "lib64", "lib32", "libx32"} {
			dir := prefix + "/" + lib
			dirs = append(dirs, dir)
			names, _ := r.names(dir) // where there is none there are no folders in it
			for _, name := range names {
				if isLibraryDir(dir + "/" + name) {
					dirs = append(dirs, dir+"/"+name)
				}
			}
		}
	}
	return append(dirs, r.loaderConf("/etc/ld.so.conf", 0)...)
}

// loaderConf reads folders out of an ld.so.conf (ldconfig(8)): one a line, or
// separated by blanks, commas or colons; include takes a pattern.
func (r *rootfs) loaderConf(name string, depth int) (dirs []string) {
	const maxConf, maxDepth = 64 << 10, 4
	f, _, err := r.openFile(name)
	if err != nil || depth > maxDepth {
		return nil
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxConf))
	for lines.Scan() {
		line, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.FieldsFunc(line, func(c rune) bool { return strings.ContainsRune(" \t,:", c) })
		if len(words) > 1 && words[0] == "include" {
			for _, pattern := range words[1:] {
				if !strings.HasPrefix(pattern, "/") {
					pattern = path.Join(path.Dir(name), pattern)
				}
				for _, found := range r.glob(pattern) {
					dirs = append(dirs, r.loaderConf(found, depth+1)...)
				}
			}
			continue
		}
		for _, w := range words {
			if w, _, _ = strings.Cut(w, "="); strings.HasPrefix(w, "/") { // dir=TYPE, of old
				dirs = append(dirs, w)
			}
		}
	}
	return dirs
}

// glob lists what fits a pattern in its last element.
func (r *rootfs) glob(pattern string) (found []string) {
	dir, last := path.Split(pattern)
	names, err := r.names(dir)
	if err != nil {
		return nil
	}
	names = slices.DeleteFunc(names, func(name string) bool {
		ok, err := path.Match(last, name)
		return err != nil || !ok
	})
	for _, name := range names {
		found = append(found, path.Join(dir, name))
	}
	return found
}
