package extract

import (
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/Morphux/quarry"
)

// headBytes is how much of a file's beginning decides what it is. The kernel
// looks at 256 bytes for a #! line (BINPRM_BUF_SIZE).
const headBytes = 256

// inspection is what the content of a regular file says.
type inspection struct {
	class       quarry.Class
	elf         *quarry.ELF
	interpreter string
	warning     string
}

// inspect looks into a regular file. Whatever the file holds, it returns: what
// cannot be read is told in the warning.
//
// The first rule that fits makes the class:
//
//  1. an ELF file: program, shared library or object by its type; an ET_DYN
//     file is a program when it is marked as a PIE, or has an interpreter and
//     no soname (libc has both); split debug files and cores are "other"
//  2. a kernel module, compressed or not: object
//  3. an ar archive named *.a or holding a symbol table or objects: static
//     (a .deb is an ar archive too, and is not)
//  4. by place: config, man, info, locale, doc, header (see placeClass)
//  5. beginning with #! and a path: script
//  6. other
func inspect(name string, f io.ReaderAt, size int64) inspection {
	head := make([]byte, min(size, headBytes))
	if n, err := f.ReadAt(head, 0); n < len(head) {
		return inspection{class: quarry.ClassOther, warning: "its beginning cannot be read: " + err.Error()}
	}
	in := inspection{interpreter: scriptInterpreter(head)}
	switch {
	case strings.HasPrefix(string(head), elfMagic):
		e, err := parseELF(f, size)
		if err != nil {
			in.warning = "it begins as an ELF file, but " + err.Error()
			break
		}
		in.elf, in.class = &e.ELF, elfClass(e)
		return in
	case isModule(name):
		in.class = quarry.ClassObject
		return in
	case isStaticArchive(name, head, f, size):
		in.class = quarry.ClassStatic
		return in
	}
	in.class = placeClass(name)
	switch {
	case in.class != "":
	case in.interpreter != "":
		in.class = quarry.ClassScript
	default:
		in.class = quarry.ClassOther
	}
	return in
}

func elfClass(e *elfFile) quarry.Class {
	switch {
	case e.debug:
		return quarry.ClassOther
	case e.Type == "rel":
		return quarry.ClassObject
	case e.Type == "exec", e.PIE:
		return quarry.ClassBinary
	case e.Type == "dyn":
		return quarry.ClassShared
	}
	return quarry.ClassOther
}

// scriptInterpreter is the program a #! line names, e.g. /bin/sh. For env it is
// followed by the program that env starts: /usr/bin/env python3. A line such as
// Rust's #![allow()] names none.
func scriptInterpreter(head []byte) string {
	line, ok := strings.CutPrefix(string(head), "#!")
	if !ok {
		return ""
	}
	line, _, _ = strings.Cut(line, "\n")
	words := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' })
	if len(words) == 0 || !strings.HasPrefix(words[0], "/") {
		return ""
	}
	name := words[0]
	if path.Base(name) == "env" {
		for _, w := range words[1:] {
			// Options (-S) and assignments come before the program.
			if !strings.HasPrefix(w, "-") && !strings.Contains(w, "=") {
				name += " " + w
				break
			}
		}
	}
	if !fitText(name, headBytes) {
		return ""
	}
	return name
}

// isModule reports whether a name is that of a kernel module under
// lib/modules, where they may be compressed and no longer look like ELF.
func isModule(name string) bool {
	if !strings.Contains(name, "/lib/modules/") {
		return false
	}
	for _, ext := range []string{".ko", ".ko.gz", ".ko.xz", ".ko.zst"} {
		if strings.HasSuffix(name, ext) {
			return true
		}
	}
	return false
}

// isStaticArchive reads the first few members of an ar archive. A thin archive
// (!<thin>) only names its objects; it is one too.
func isStaticArchive(name string, head []byte, f io.ReaderAt, size int64) bool {
	const magic, thin, hlen = "!<arch>\n", "!<thin>\n", 60
	s := string(head)
	switch {
	case strings.HasPrefix(s, thin):
		return true
	case !strings.HasPrefix(s, magic):
		return false
	case strings.HasSuffix(name, ".a"):
		return true // also an empty one, as libpthread.a has become
	}
	off := int64(len(magic))
	for range 8 {
		h := make([]byte, hlen+4)
		n, _ := f.ReadAt(h, off)
		if n < hlen || string(h[58:60]) != "`\n" {
			return false
		}
		member := strings.TrimRight(string(h[:16]), " ")
		switch {
		case member == "/", member == "/SYM64/", strings.HasPrefix(member, "__.SYMDEF"):
			return true
		case n == len(h) && string(h[hlen:]) == elfMagic:
			return true
		}
		length, err := strconv.ParseInt(strings.TrimRight(string(h[48:58]), " "), 10, 64)
		if err != nil || length < 0 || length > size-off-hlen {
			return false
		}
		off += hlen + length + length&1 // members begin at even offsets
	}
	return false
}

// placeClass is the class that a file has by where it lies, or "". A component
// is a whole folder name. The rules follow the Filesystem Hierarchy Standard
// 3.0 (4.5 include, 4.11 share) and hold below any prefix:
//
//	/etc/...                                  config
//	man/manN/... or man/LANG/manN/...         man
//	share/info/..., /usr/info/...             info
//	share/locale, share/i18n, lib/locale      locale; also LC_*/*.mo anywhere
//	share/doc, share/help, share/gtk-doc,
//	share/licenses, /usr/doc                  doc
//	include/...; *.h *.hh *.hpp *.hxx *.h++   header
func placeClass(name string) quarry.Class {
	if strings.HasPrefix(name, "/etc/") {
		return quarry.ClassConfig
	}
	dirs := strings.Split(strings.TrimPrefix(path.Dir(name), "/"), "/")
	under := func(a string, bs ...string) bool {
		for i := 1; i < len(dirs); i++ {
			for _, b := range bs {
				if dirs[i-1] == a && dirs[i] == b {
					return true
				}
			}
		}
		return false
	}
	last := len(dirs) - 1
	for i := 0; i < last; i++ {
		sect := strings.TrimPrefix(dirs[last], "man")
		if dirs[i] == "man" && len(sect) != len(dirs[last]) && sect != "" && strings.Contains("0123456789nl", sect[:1]) {
			return quarry.ClassMan
		}
	}
	switch ext := path.Ext(name); {
	case under("share", "info"), under("usr", "info"), under("local", "info"):
		return quarry.ClassInfo
	case under("share", "locale", "i18n"), under("lib", "locale"),
		ext == ".mo" && strings.HasPrefix(dirs[last], "LC_"):
		return quarry.ClassLocale
	case under("share", "doc", "help", "gtk-doc", "licenses"), under("usr", "doc"), under("local", "doc"):
		return quarry.ClassDoc
	case ext == ".h", ext == ".hh", ext == ".hpp", ext == ".hxx", ext == ".h++":
		return quarry.ClassHeader
	}
	for _, d := range dirs {
		if d == "include" {
			return quarry.ClassHeader
		}
	}
	return ""
}
