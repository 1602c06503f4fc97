package extract

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
)

// The numbers below are those of the gABI (chapter 4, symbol table) and of the
// LSB (symbol versioning).
const (
	shtDynsym                     = 11
	shtGNUVerdef                  = 0x6ffffffd
	shtGNUVersym                  = 0x6fffffff
	maxSymbols                    = 32 << 20 // bytes of a symbol table, and of its names; libLLVM has 9 MB
	maxVersions                   = 1 << 15
	stbGlobal, stbWeak            = 1, 2
	stbUnique                     = 10
	sttObject, sttFunc            = 1, 2
	sttTLS, sttIfunc              = 6, 10
	stvDefault, stvProtect        = 0, 3
	verFlagBase                   = 1
	versionHidden          uint16 = 0x8000
)

// exports gives the number of symbols that a shared library offers and a digest
// of them: name, version, kind, and of data its size, since programs hold copies
// of it. "" when the file has no symbol table that can be read.
func (r *elfReader) exports(s elfSections) (digest string, n int) {
	if s.dynsym == nil || s.dynsym.filesz > maxSymbols {
		return "", 0
	}
	size := uint64(16)
	if r.is64 {
		size = 24
	}
	table, err := r.bytes(s.dynsym.off, s.dynsym.filesz/size*size)
	if err != nil {
		return "", 0
	}
	link, ok := r.section(s, uint64(s.dynsym.link))
	if !ok || link.filesz > maxSymbols {
		return "", 0
	}
	names, err := r.bytes(link.off, link.filesz)
	if err != nil {
		return "", 0
	}
	name := func(at uint32) (string, bool) {
		if uint64(at) >= uint64(len(names)) {
			return "", false
		}
		word, _, ended := strings.Cut(string(names[at:min(uint64(at)+maxPathBytes, uint64(len(names)))]), "\x00")
		return word, ended
	}
	versions := r.versions(s, name)
	var versym []byte
	if s.versym != nil && s.versym.filesz <= maxSymbols {
		versym, _ = r.bytes(s.versym.off, s.versym.filesz)
	}
	var lines []string
	for i := 0; len(table) > 0; i, table = i+1, table[size:] {
		at := 12
		if r.is64 {
			at = 4
		}
		bind, kind, visibility := table[at]>>4, table[at]&15, table[at+1]&3
		defined := r.order.Uint16(table[at+2:]) != 0
		if !defined || bind != stbGlobal && bind != stbWeak && bind != stbUnique || visibility != stvDefault && visibility != stvProtect {
			continue
		}
		word, ok := name(r.order.Uint32(table))
		if !ok || word == "" {
			continue
		}
		if 2*i+1 < len(versym) {
			switch v := r.order.Uint16(versym[2*i:]); {
			case v&^versionHidden == 0:
				continue // local to the library
			case v&versionHidden != 0:
				word += "@" + versions[v&^versionHidden]
			case versions[v] != "":
				word += "@@" + versions[v]
			}
		}
		switch kind {
		case sttFunc, sttIfunc:
			word += " function"
		case sttObject, sttTLS:
			word += fmt.Sprintf(" data %d", r.word(table, 8, 16))
		default:
			word += " other"
		}
		lines = append(lines, word)
	}
	slices.Sort(lines)
	lines = slices.Compact(lines)
	h := sha256.New()
	for _, l := range lines {
		io.WriteString(h, l+"\n")
	}
	return hex.EncodeToString(h.Sum(nil)), len(lines)
}

// versions reads the names of the symbol versions that a library defines.
func (r *elfReader) versions(s elfSections, name func(uint32) (string, bool)) map[uint16]string {
	found := map[uint16]string{}
	if s.verdef == nil || s.verdef.filesz > maxSymbols {
		return found
	}
	b, err := r.bytes(s.verdef.off, s.verdef.filesz)
	if err != nil {
		return found
	}
	for at := uint64(0); len(found) < maxVersions && at+20 <= uint64(len(b)); {
		d := b[at:]
		flags, ndx := r.order.Uint16(d[2:]), r.order.Uint16(d[4:])
		aux, next := uint64(r.order.Uint32(d[12:])), uint64(r.order.Uint32(d[16:]))
		if flags&verFlagBase == 0 && aux+8 <= uint64(len(d)) { // the base version is the library's own name
			if word, ok := name(r.order.Uint32(d[aux:])); ok {
				found[ndx] = word
			}
		}
		if next == 0 {
			break
		}
		at += next
	}
	return found
}

// section reads one section header.
func (r *elfReader) section(s elfSections, i uint64) (elfSegment, bool) {
	if i == 0 || i >= s.num {
		return elfSegment{}, false
	}
	b, err := r.bytes(s.off+i*s.size, s.size)
	if err != nil {
		return elfSegment{}, false
	}
	return elfSegment{typ: r.order.Uint32(b[4:]), off: r.word(b, 16, 24), filesz: r.word(b, 20, 32), link: r.half(b, 24, 40)}, true
}

// abi is a digest of all that others are built against: while it stays the
// same, what was built with the package need not be built again. It covers
//
//   - of each shared library with a soname: arch, soname, needed libraries, and
//     the symbols that it offers;
//   - each static library and object file whole, because it is copied into what
//     is linked with it; but not libx.a beside libx.so, which linkers take;
//   - the headers whole, if there is neither, as then they are all there is.
//
// It is "" for a package that others cannot be built against: programs, data.
// What it does not see is a change of types that changes no symbol, and a
// program that others run while they are built, such as a code generator: for
// these somebody asks for a rebuild.
func abi(files []quarry.File) string {
	h := sha256.New()
	some := false
	line := func(words ...string) {
		some = true
		for _, w := range words {
			fmt.Fprintf(h, "%d:%s", len(w), w) // with lengths, so that no two lists read the same
		}
		io.WriteString(h, "\n")
	}
	content := map[string]*quarry.File{} // first names of files with several
	for i := range files {
		if files[i].Kind == quarry.KindRegular {
			content[files[i].Path] = &files[i]
		}
	}
	linked := map[string]bool{} // names that linkers find shared, e.g. libz
	for i := range files {
		if stem, _, ok := strings.Cut(path.Base(files[i].Path), ".so"); ok && (files[i].Class == quarry.ClassShared || files[i].Kind == quarry.KindSymlink) {
			linked[stem] = true
		}
	}
	var headers []*quarry.File
	var shared []string
	for i := range files {
		f := &files[i]
		switch f.Class {
		case quarry.ClassShared:
			if f.Kind == quarry.KindRegular && f.ELF != nil && f.ELF.Soname != "" {
				needed := slices.Sorted(slices.Values(f.ELF.Needed))
				shared = append(shared, strings.Join(append([]string{f.ELF.Arch, f.ELF.Soname, f.ELF.Symbols}, needed...), "\x00"))
			}
		case quarry.ClassStatic, quarry.ClassObject:
			if linked[strings.TrimSuffix(path.Base(f.Path), ".a")] {
				continue
			}
			if first := content[f.Target]; f.Kind == quarry.KindHardlink && first != nil {
				line("static", f.Path, first.SHA256)
			} else if f.Kind == quarry.KindRegular {
				line("static", f.Path, f.SHA256)
			}
		case quarry.ClassHeader:
			headers = append(headers, f)
		}
	}
	slices.Sort(shared)
	for _, s := range slices.Compact(shared) {
		line(append([]string{"shared"}, strings.Split(s, "\x00")...)...)
	}
	if !some {
		for _, f := range headers {
			digest := f.SHA256
			if first := content[f.Target]; f.Kind == quarry.KindHardlink && first != nil {
				digest = first.SHA256
			}
			line("header", f.Path, digest, f.Target)
		}
	}
	if !some {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))
}
