package extract

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
)

// The ELF files that are read here come out of hostile builds, so this is not
// debug/elf, which reads every section's name and sizes its memory by what the
// file claims. A few structures are read, each with a limit, none trusted for
// more than the file really holds. The numbers are those of the System V ABI
// (gabi chapters 4 and 5) and of the GNU extensions in binutils' elf/common.h.
const (
	elfMagic = "\x7fELF"

	maxPhdrs     = 4096    // program headers; real files have about a dozen
	maxShdrs     = 1 << 20 // section headers; -ffunction-sections makes 100,000 of them
	maxDynamic   = 1 << 16 // entries of the dynamic section
	maxNote      = 1 << 16 // bytes of notes searched for the build-id
	maxBuildID   = 64      // bytes; SHA-1 has 20
	maxNeeded    = 1024    // needed libraries of one file
	maxSoname    = 255     // bytes, as it has to be a file name
	maxPathBytes = 4096    // bytes of an interpreter or a search path
)

const (
	etRel, etExec, etDyn, etCore = 1, 2, 3, 4

	ptLoad, ptDynamic, ptInterp, ptNote = 1, 2, 3, 4
	ptGNUStack, ptGNURelro              = 0x6474e551, 0x6474e552
	pfX                                 = 1

	shtSymtab, shtDynamic, shtNote = 2, 6, 7

	dtNull, dtNeeded, dtStrtab, dtStrsz, dtSoname, dtRPath = 0, 1, 5, 10, 14, 15
	dtBindNow, dtRunPath, dtFlags, dtFlags1                = 24, 29, 30, 0x6ffffffb
	dfBindNow, df1Now, df1PIE                              = 0x8, 0x1, 0x08000000

	ntGNUBuildID = 3
)

var errTruncated = errors.New("it is cut short")

// elfReader reads numbers of the file's own width and byte order.
type elfReader struct {
	io.ReaderAt
	size  int64
	order binary.ByteOrder
	is64  bool
}

// bytes reads n bytes at off, or fails without having made room for them.
func (r *elfReader) bytes(off, n uint64) ([]byte, error) {
	if off > uint64(r.size) || n > uint64(r.size)-off {
		return nil, errTruncated
	}
	b := make([]byte, n)
	if m, err := r.ReadAt(b, int64(off)); m < len(b) {
		return nil, err
	}
	return b, nil
}

// word is the number at b[at32:] or b[at64:], 4 or 8 bytes wide.
func (r *elfReader) word(b []byte, at32, at64 int) uint64 {
	if r.is64 {
		return r.order.Uint64(b[at64:])
	}
	return uint64(r.order.Uint32(b[at32:]))
}

// half is the 32-bit number at b[at32:] or b[at64:].
func (r *elfReader) half(b []byte, at32, at64 int) uint32 {
	if r.is64 {
		at32 = at64
	}
	return r.order.Uint32(b[at32:])
}

type elfSegment struct {
	typ, flags                  uint32
	off, vaddr, filesz, p_align uint64
	link                        uint32 // of sections
}

// elfSections is what the section headers say; only whether and where.
type elfSections struct {
	any, symtab, dynamic bool
	notes                []elfSegment

	dynsym, versym, verdef *elfSegment
	off, size, num         uint64 // of the headers
}

// elfFile is the facts and what only classification asks for.
type elfFile struct {
	quarry.ELF
	debug bool // symbols split from a file (objcopy --only-keep-debug)
}

// parseELF reads the facts of an ELF file of the given size. Its error says in
// half a sentence what is wrong with the file.
func parseELF(f io.ReaderAt, size int64) (*elfFile, error) {
	r := &elfReader{ReaderAt: f, size: size}
	ident, err := r.bytes(0, 20)
	if err != nil {
		return nil, err
	}
	if string(ident[:4]) != elfMagic {
		return nil, errors.New("it is no ELF file")
	}
	hsize, psize, ssize := uint64(52), uint64(32), uint64(40)
	switch ident[4] {
	case 1:
	case 2:
		r.is64, hsize, psize, ssize = true, 64, 56, 64
	default:
		return nil, fmt.Errorf("it has the unknown ELF class %d", ident[4])
	}
	switch ident[5] {
	case 1:
		r.order = binary.LittleEndian
	case 2:
		r.order = binary.BigEndian
	default:
		return nil, fmt.Errorf("it has the unknown byte order %d", ident[5])
	}
	h, err := r.bytes(0, hsize)
	if err != nil {
		return nil, err
	}
	typ := r.order.Uint16(h[16:])
	e := &elfFile{ELF: quarry.ELF{
		Arch: elfArch(r.order.Uint16(h[18:]), r.is64, ident[5] == 1),
		Type: elfType(typ),
	}}
	at := 40 // e_ehsize
	if r.is64 {
		at = 52
	}
	u16 := func(i int) uint64 { return uint64(r.order.Uint16(h[at+2*i:])) }
	phentsize, phnum, shentsize, shnum := u16(1), u16(2), u16(3), u16(4)
	phoff, shoff := r.word(h, 28, 32), r.word(h, 32, 40)

	// The loader never looks at sections, so files live with broken ones; what
	// they would have said is then simply not known.
	var sect elfSections
	if shoff != 0 && shentsize == ssize {
		if first, err := r.bytes(shoff, ssize); err == nil {
			if shnum == 0 { // more than 65,279: the number is in the first header
				shnum = r.word(first, 20, 32)
			}
			if phnum == 0xffff {
				phnum = uint64(r.half(first, 28, 44))
			}
			sect = r.sections(shoff, ssize, shnum)
		}
	}
	e.Stripped = !sect.symtab

	var segs []elfSegment
	if phnum > 0 && phoff != 0 {
		switch {
		case phentsize != psize:
			return nil, fmt.Errorf("its program headers have %d bytes instead of %d", phentsize, psize)
		case phnum > maxPhdrs:
			return nil, fmt.Errorf("it has %d program headers, more than %d", phnum, maxPhdrs)
		}
		if segs, err = r.segments(phoff, psize, phnum); err != nil {
			return nil, err
		}
	}
	return e, e.read(r, typ, segs, sect)
}

// read fills in what the segments hold.
func (e *elfFile) read(r *elfReader, typ uint16, segs []elfSegment, sect elfSections) error {
	notes := sect.notes
	var dyn *elfSegment
	for i := range segs {
		switch s := &segs[i]; s.typ {
		case ptInterp:
			if s.filesz == 0 { // split debug files keep the header only
				continue
			}
			b, err := r.bytes(s.off, min(s.filesz, maxPathBytes))
			if err != nil {
				return err
			}
			b, _, _ = bytes.Cut(b, []byte{0})
			if e.Interpreter = string(b); !fitText(e.Interpreter, maxPathBytes-1) {
				return fmt.Errorf("its interpreter %.40q is no path", e.Interpreter)
			}
		case ptDynamic:
			dyn = s
		case ptNote:
			notes = append(notes, *s)
		case ptGNUStack:
			e.NX = s.flags&pfX == 0
		case ptGNURelro:
			e.RELRO = "partial"
		}
	}
	e.debug = dyn != nil && sect.any && !sect.dynamic
	if dyn != nil && !e.debug {
		if err := e.dynamic(r, *dyn, segs); err != nil {
			return err
		}
	}
	if typ != etCore {
		for _, s := range notes {
			if e.BuildID = r.buildID(s); e.BuildID != "" {
				break
			}
		}
	}
	if typ == etDyn && e.Soname != "" && !e.debug {
		e.Symbols, e.Exports = r.exports(sect)
	}
	program := typ == etExec || typ == etDyn && (e.PIE || e.Interpreter != "" && e.Soname == "")
	e.PIE = typ == etDyn && program
	e.Static = program && !e.debug && e.Interpreter == "" && len(e.Needed) == 0
	return nil
}

func (r *elfReader) segments(off, size, num uint64) ([]elfSegment, error) {
	b, err := r.bytes(off, size*num)
	if err != nil {
		return nil, err
	}
	segs := make([]elfSegment, 0, num)
	for ; len(b) > 0; b = b[size:] {
		segs = append(segs, elfSegment{
			typ: r.order.Uint32(b), flags: r.half(b, 24, 4), off: r.word(b, 4, 8),
			vaddr: r.word(b, 8, 16), filesz: r.word(b, 16, 32), p_align: r.word(b, 28, 48),
		})
	}
	return segs, nil
}

// sections goes through the section headers in pieces.
func (r *elfReader) sections(off, size, num uint64) (s elfSections) {
	if num > maxShdrs {
		return s
	}
	s.off, s.size, s.num = off, size, num
	one := func(to **elfSegment, b []byte) {
		if *to == nil { // a file has one of each; whoever makes two has not the choice
			*to = &elfSegment{off: r.word(b, 16, 24), filesz: r.word(b, 20, 32), link: r.half(b, 24, 40)}
		}
	}
	for num > 0 {
		n := min(num, 1024)
		b, err := r.bytes(off, n*size)
		if err != nil {
			return s
		}
		num, off = num-n, off+n*size
		for ; len(b) > 0; b = b[size:] {
			switch s.any = true; r.order.Uint32(b[4:]) {
			case shtSymtab:
				s.symtab = true
			case shtDynamic:
				s.dynamic = true
			case shtDynsym:
				one(&s.dynsym, b)
			case shtGNUVersym:
				one(&s.versym, b)
			case shtGNUVerdef:
				one(&s.verdef, b)
			case shtNote:
				if len(s.notes) < 64 {
					s.notes = append(s.notes, elfSegment{off: r.word(b, 16, 24),
						filesz: r.word(b, 20, 32), p_align: r.word(b, 32, 48)})
				}
			}
		}
	}
	return s
}

// buildID looks for the GNU build-id among the notes of a segment or section.
// Notes are for people and debuggers: broken ones mean no build-id.
func (r *elfReader) buildID(s elfSegment) string {
	b, err := r.bytes(s.off, min(s.filesz, maxNote))
	if err != nil {
		return ""
	}
	align := uint64(4)
	if s.p_align == 8 {
		align = 8
	}
	up := func(n uint64) uint64 { return (n + align - 1) &^ (align - 1) }
	for len(b) >= 12 {
		namesz, descsz := uint64(r.order.Uint32(b)), uint64(r.order.Uint32(b[4:]))
		typ := r.order.Uint32(b[8:])
		desc := up(12 + namesz)
		if desc+descsz > uint64(len(b)) {
			return ""
		}
		if typ == ntGNUBuildID && descsz <= maxBuildID && string(b[12:12+namesz]) == "GNU\x00" {
			return hex.EncodeToString(b[desc : desc+descsz])
		}
		b = b[min(up(desc+descsz), uint64(len(b))):]
	}
	return ""
}

// dynamic reads the dynamic section, by segments as the loader does.
func (e *elfFile) dynamic(r *elfReader, dyn elfSegment, segs []elfSegment) error {
	size := uint64(8)
	if r.is64 {
		size = 16
	}
	if dyn.filesz/size > maxDynamic {
		return fmt.Errorf("its dynamic section has %d entries, more than %d", dyn.filesz/size, maxDynamic)
	}
	b, err := r.bytes(dyn.off, dyn.filesz/size*size)
	if err != nil {
		return err
	}
	var strtab, strsz uint64
	var needed, rpath, runpath, soname []uint64
	now := false
	for ; len(b) > 0; b = b[size:] {
		tag, val := r.word(b, 0, 0), r.word(b, 4, 8)
		if tag == dtNull {
			break
		}
		switch tag {
		case dtNeeded:
			needed = append(needed, val)
		case dtStrtab:
			strtab = val
		case dtStrsz:
			strsz = val
		case dtSoname:
			soname = []uint64{val}
		case dtRPath:
			rpath = []uint64{val}
		case dtRunPath:
			runpath = []uint64{val}
		case dtBindNow:
			now = true
		case dtFlags:
			now = now || val&dfBindNow != 0
		case dtFlags1:
			now = now || val&df1Now != 0
			e.PIE = val&df1PIE != 0
		}
	}
	if now && e.RELRO != "" {
		e.RELRO = "full"
	}
	if len(needed) > maxNeeded {
		return fmt.Errorf("it needs %d libraries, more than %d", len(needed), maxNeeded)
	}
	if len(needed)+len(soname)+len(rpath)+len(runpath) == 0 {
		return nil
	}
	// The table of strings is given as an address: some segment loads it.
	i := slices.IndexFunc(segs, func(s elfSegment) bool {
		return s.typ == ptLoad && strtab >= s.vaddr && strtab-s.vaddr < s.filesz
	})
	if i < 0 {
		return errors.New("its table of strings is in no segment")
	}
	base := segs[i].off + (strtab - segs[i].vaddr)
	text := func(offs []uint64, what string, max uint64) ([]string, error) {
		var out []string
		for _, off := range offs {
			if off >= strsz || base+off < base {
				return nil, fmt.Errorf("its %s is outside the table of strings", what)
			}
			n := min(max+1, strsz-off, uint64(r.size)-min(base+off, uint64(r.size)))
			b, err := r.bytes(base+off, n)
			if err != nil {
				return nil, err
			}
			b, _, ended := bytes.Cut(b, []byte{0})
			if s := string(b); ended && fitText(s, int(max)) {
				out = append(out, s)
				continue
			}
			return nil, fmt.Errorf("its %s %.40q is longer than %d bytes or not printable", what, b, max)
		}
		return out, nil
	}
	if e.Needed, err = text(needed, "needed library", maxSoname); err != nil {
		return err
	}
	names, err := text(soname, "soname", maxSoname)
	if err != nil {
		return err
	}
	e.Soname = strings.Join(names, "")
	if names, err = text(rpath, "rpath", maxPathBytes); err != nil {
		return err
	}
	e.RPath = splitPath(names)
	if names, err = text(runpath, "runpath", maxPathBytes); err != nil {
		return err
	}
	e.RunPath = splitPath(names)
	return nil
}

func splitPath(list []string) (dirs []string) {
	for _, s := range list {
		for dir := range strings.SplitSeq(s, ":") {
			if dir != "" {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

func elfType(t uint16) string {
	switch t {
	case etRel:
		return "rel"
	case etExec:
		return "exec"
	case etDyn:
		return "dyn"
	case etCore:
		return "core"
	}
	return fmt.Sprintf("ET_%d", t)
}

// elfArch names a machine as uname -m does on a system that runs its programs
// natively. What uname cannot tell apart but a loader must is named apart: x32
// is not x86_64. ARM says nothing of its version in the header, so a
// little-endian one is armv7l. Numbers are those of the gABI's registry.
func elfArch(machine uint16, is64, little bool) string {
	pick := func(yes bool, a, b string) string {
		if yes {
			return a
		}
		return b
	}
	switch machine {
	case 2, 18:
		return "sparc"
	case 3:
		return "i686"
	case 4:
		return "m68k"
	case 8:
		return pick(is64, "mips64", "mips") + pick(little, "el", "")
	case 15:
		return pick(is64, "parisc64", "parisc")
	case 20:
		return pick(little, "ppcle", "ppc")
	case 21:
		return pick(little, "ppc64le", "ppc64")
	case 22:
		return pick(is64, "s390x", "s390")
	case 40:
		return pick(little, "armv7l", "armv7b")
	case 42:
		return pick(little, "sh4", "sh4eb")
	case 43:
		return "sparc64"
	case 50:
		return "ia64"
	case 62:
		return pick(is64, "x86_64", "x32")
	case 92:
		return "openrisc"
	case 93, 195:
		return "arc"
	case 94:
		return "xtensa"
	case 113:
		return "nios2"
	case 164:
		return "hexagon"
	case 183:
		return pick(little, "aarch64", "aarch64_be")
	case 189:
		return "microblaze"
	case 243:
		return pick(is64, "riscv64", "riscv32")
	case 252:
		return "csky"
	case 258:
		return pick(is64, "loongarch64", "loongarch32")
	case 0x9026:
		return "alpha"
	}
	return fmt.Sprintf("EM_%d", machine)
}
