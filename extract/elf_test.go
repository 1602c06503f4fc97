package extract

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/Morphux/quarry"
)

// Against the standard library over the ELF files of this machine.
func TestELFLikeDebugELF(t *testing.T) {
	checked := 0
	for _, dir := range []string{"/bin", "/usr/bin", "/usr/sbin", "/usr/lib"} {
		dir, err := filepath.EvalSymlinks(dir)
		if err != nil {
			continue
		}
		filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || checked >= 1500 {
				return nil
			}
			f, err := os.Open(p)
			if err != nil {
				return nil
			}
			defer f.Close()
			magic := make([]byte, 4)
			if n, _ := f.ReadAt(magic, 0); n < 4 || string(magic) != elfMagic {
				return nil
			}
			st, _ := f.Stat()
			want, err := elf.NewFile(f)
			if err != nil {
				return nil
			}
			checked++
			got, err := parseELF(f, st.Size())
			if err != nil {
				t.Errorf("%s: %v", p, err)
				return nil
			}
			compareELF(t, p, got, want)
			return nil
		})
	}
	if checked < 100 {
		t.Fatalf("only %d ELF files on this machine: the test needs some to compare with", checked)
	}
	t.Logf("%d files agree", checked)
}

func compareELF(t *testing.T, p string, got *elfFile, want *elf.File) {
	t.Helper()
	str := func(tag elf.DynTag) string {
		s, _ := want.DynString(tag)
		return strings.Join(s, ":")
	}
	libs, _ := want.ImportedLibraries()
	if d := cmp.Diff(libs, got.Needed, cmp.Comparer(func(a, b []string) bool { return slices.Equal(a, b) })); d != "" {
		t.Errorf("%s: needed:\n%s", p, d)
	}
	if s := str(elf.DT_SONAME); s != got.Soname {
		t.Errorf("%s: soname %q, want %q", p, got.Soname, s)
	}
	if s := str(elf.DT_RUNPATH); s != strings.Join(got.RunPath, ":") {
		t.Errorf("%s: runpath %q, want %q", p, got.RunPath, s)
	}
	if s := str(elf.DT_RPATH); s != strings.Join(got.RPath, ":") {
		t.Errorf("%s: rpath %q, want %q", p, got.RPath, s)
	}
	if stripped := want.Section(".symtab") == nil; stripped != got.Stripped {
		t.Errorf("%s: stripped %v, want %v", p, got.Stripped, stripped)
	}
	interp, nx, relro := "", false, ""
	for _, prog := range want.Progs {
		switch prog.Type {
		case elf.PT_INTERP:
			b := make([]byte, prog.Filesz)
			prog.ReadAt(b, 0)
			interp = strings.TrimRight(string(b), "\x00")
		case elf.PT_GNU_STACK:
			nx = prog.Flags&elf.PF_X == 0
		case elf.PT_GNU_RELRO:
			relro = "partial"
		}
	}
	if flags, _ := want.DynValue(elf.DT_FLAGS); relro != "" && len(flags) > 0 && flags[0]&uint64(elf.DF_BIND_NOW) != 0 {
		relro = "full"
	}
	if flags, _ := want.DynValue(elf.DT_FLAGS_1); relro != "" && len(flags) > 0 && flags[0]&uint64(elf.DF_1_NOW) != 0 {
		relro = "full"
	}
	if interp != got.Interpreter || nx != got.NX || relro != got.RELRO {
		t.Errorf("%s: interpreter %q, NX %v, RELRO %q; want %q, %v, %q", p, got.Interpreter, got.NX, got.RELRO, interp, nx, relro)
	}
	id := ""
	if s := want.Section(".note.gnu.build-id"); s != nil {
		if b, err := s.Data(); err == nil && len(b) > 16 {
			id = string(b[16:])
		}
	}
	if id != "" && got.BuildID != "" && len(got.BuildID) != 2*len(id) || (id == "") != (got.BuildID == "") {
		t.Errorf("%s: build-id %q, want %x", p, got.BuildID, id)
	}
	types := map[elf.Type]string{elf.ET_REL: "rel", elf.ET_EXEC: "exec", elf.ET_DYN: "dyn"}
	if types[want.Type] != got.Type {
		t.Errorf("%s: type %q, want %v", p, got.Type, want.Type)
	}
}

// What compilers make of one program, in the ways that packages ask for.
func TestELFOfCompiledFiles(t *testing.T) {
	d := t.TempDir()
	src := filepath.Join(d, "a.c")
	if err := os.WriteFile(src, []byte("int foo(void); int foo(void) { return 0; }\n#ifdef MAIN\nint main(void) { return foo(); }\n#endif\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(d, name) }
	compile(t, "-shared", "-fPIC", "-Wl,-soname,libfoo.so.1", "-Wl,-z,relro,-z,now", "-Wl,--build-id=0xc0ffee", "-o", at("libfoo.so.1.2"), src)
	compile(t, "-DMAIN", "-pie", "-fPIE", "-Wl,--disable-new-dtags,-rpath,/opt/a:$ORIGIN/../lib", "-Wl,-z,relro,-z,lazy", "-s", "-o", at("pie"), src)
	compile(t, "-DMAIN", "-no-pie", "-Wl,--enable-new-dtags,-rpath,/opt/b", "-Wl,-z,norelro", "-Wl,-z,execstack", "-o", at("nopie"), src)
	compile(t, "-DMAIN", "-static", "-no-pie", "-o", at("static"), src)
	compile(t, "-DMAIN", "-static-pie", "-fPIE", "-o", at("static-pie"), src)
	compile(t, "-c", "-o", at("a.o"), src)
	run(t, "objcopy", "--only-keep-debug", at("libfoo.so.1.2"), at("libfoo.debug"))
	run(t, "ar", "rcs", at("libfoo.a"), at("a.o"))
	run(t, "ar", "rc", at("odd-name"), at("a.o"))

	look := func(name string) (quarry.Class, quarry.ELF) {
		t.Helper()
		if !filepath.IsAbs(name) {
			name = at(name)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		in := inspect("/usr/lib/"+filepath.Base(name), bytes.NewReader(b), int64(len(b)))
		if in.warning != "" {
			t.Errorf("%s: %s", name, in.warning)
		}
		if in.elf == nil {
			return in.class, quarry.ELF{}
		}
		return in.class, *in.elf
	}
	loader := func(e quarry.ELF) string { return e.Interpreter }

	class, e := look("libfoo.so.1.2")
	if class != quarry.ClassShared || e.Soname != "libfoo.so.1" || e.RELRO != "full" || e.BuildID != "c0ffee" || !e.NX || e.PIE || e.Stripped || e.Static {
		t.Errorf("shared library: %s %+v", class, e)
	}
	class, e = look("pie")
	if class != quarry.ClassBinary || !e.PIE || !e.Stripped || e.RELRO != "partial" || !slices.Equal(e.RPath, []string{"/opt/a", "$ORIGIN/../lib"}) ||
		e.RunPath != nil || !slices.Equal(e.Needed, []string{"libc.so.6"}) || loader(e) == "" || e.Static || e.Type != "dyn" {
		t.Errorf("pie: %s %+v", class, e)
	}
	class, e = look("nopie")
	if class != quarry.ClassBinary || e.PIE || e.Stripped || e.RELRO != "" || e.NX || !slices.Equal(e.RunPath, []string{"/opt/b"}) || e.Type != "exec" {
		t.Errorf("no pie: %s %+v", class, e)
	}
	class, e = look("static")
	if class != quarry.ClassBinary || !e.Static || e.PIE || e.Needed != nil || loader(e) != "" {
		t.Errorf("static: %s %+v", class, e)
	}
	class, e = look("static-pie")
	if class != quarry.ClassBinary || !e.Static || !e.PIE {
		t.Errorf("static pie: %s %+v", class, e)
	}
	class, e = look("a.o")
	if class != quarry.ClassObject || e.Type != "rel" || e.Static || e.Stripped {
		t.Errorf("object: %s %+v", class, e)
	}
	if class, _ = look("libfoo.debug"); class != quarry.ClassOther {
		t.Errorf("split debug file: %s", class)
	}
	if class, _ = look("libfoo.a"); class != quarry.ClassStatic {
		t.Errorf("archive: %s", class)
	}
	if class, _ = look("odd-name"); class != quarry.ClassStatic {
		t.Errorf("archive by another name: %s", class)
	}
	// libc is a library and can be run.
	if class, e := look(libc(t)); class != quarry.ClassShared || e.Soname != "libc.so.6" || e.Interpreter == "" {
		t.Errorf("libc: %s %+v", class, e)
	}
}

func libc(t *testing.T) string {
	p := strings.TrimSpace(run(t, "cc", "-print-file-name=libc.so.6"))
	p, err := filepath.EvalSymlinks(p)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// craft builds a small 64-bit little-endian ELF file out of a dynamic section.
func craft(strtab string, dyn ...uint64) []byte {
	const ph, dynAt = 64, 64 + 3*56
	le := binary.LittleEndian
	strAt := dynAt + 8*len(dyn)
	b := make([]byte, strAt+len(strtab))
	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], etDyn)
	le.PutUint16(b[18:], 62)
	le.PutUint64(b[32:], ph)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 2)
	seg := func(i int, typ uint32, off, vaddr, size uint64) {
		p := b[ph+56*i:]
		le.PutUint32(p, typ)
		le.PutUint64(p[8:], off)
		le.PutUint64(p[16:], vaddr)
		le.PutUint64(p[32:], size)
	}
	seg(0, ptLoad, 0, 0x1000, uint64(len(b)))
	seg(1, ptDynamic, dynAt, 0x1000+dynAt, uint64(8*len(dyn)))
	for i, v := range dyn {
		if i > 0 && i%2 == 1 && dyn[i-1] == dtStrtab {
			v = 0x1000 + uint64(strAt)
		}
		le.PutUint64(b[dynAt+8*i:], v)
	}
	copy(b[strAt:], strtab)
	return b
}

func TestELFHostile(t *testing.T) {
	needs := func(n int) (dyn []uint64) {
		dyn = []uint64{dtStrtab, 0, dtStrsz, 1 << 40}
		for range n {
			dyn = append(dyn, dtNeeded, 1)
		}
		return append(dyn, dtNull, 0)
	}
	edit := func(b []byte, at int, v ...byte) []byte { copy(b[at:], v); return b }
	ff := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	good := craft("\x00libz.so.1\x00", needs(1)...)
	e, err := parseELF(bytes.NewReader(good), int64(len(good)))
	if err != nil || !slices.Equal(e.Needed, []string{"libz.so.1"}) || e.Arch != "x86_64" {
		t.Fatalf("the good file: %+v, %v", e, err)
	}
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"magic only":           {[]byte(elfMagic), "cut short"},
		"class":                {edit(slices.Clone(good), 4, 3), "ELF class 3"},
		"byte order":           {edit(slices.Clone(good), 5, 0), "byte order 0"},
		"program headers away": {edit(slices.Clone(good), 32, ff...), "cut short"},
		"many program headers": {edit(slices.Clone(good), 56, 0xfe, 0xff), "65534 program headers"},
		"odd program headers":  {edit(slices.Clone(good), 54, 1), "1 bytes instead of 56"},
		"dynamic away":         {edit(slices.Clone(good), 64+56+8, ff...), "cut short"},
		"dynamic huge":         {edit(slices.Clone(good), 64+56+32, ff...), "more than 65536"},
		"too many needed":      {craft("\x00libz.so.1\x00", needs(maxNeeded+1)...), "needs 1025 libraries"},
		"name without end":     {craft("\x00libz.so.1", needs(1)...), "not printable"},
		"name with newline":    {craft("\x00lib\nz\x00", needs(1)...), "not printable"},
		"name not UTF-8":       {craft("\x00lib\xff\x00", needs(1)...), "not printable"},
		"name too long":        {craft("\x00"+strings.Repeat("x", 256)+"\x00", needs(1)...), "longer than 255"},
		"empty name":           {craft("\x00\x00", needs(1)...), "not printable"},
		"no table of strings":  {craft("\x00", dtNeeded, 1, dtNull, 0), "in no segment"},
		"name outside table":   {craft("\x00a\x00", dtStrtab, 0, dtStrsz, 2, dtNeeded, 5, dtNull, 0), "outside the table"},
	} {
		_, err := parseELF(bytes.NewReader(c.file), int64(len(c.file)))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
		in := inspect("/usr/lib/x", bytes.NewReader(c.file), int64(len(c.file)))
		if in.elf != nil || in.warning == "" || in.class != quarry.ClassOther {
			t.Errorf("%s: %+v", name, in)
		}
	}
	// Sections that lie are not believed, and do not hurt.
	lying := edit(slices.Clone(good), 40, ff...)
	lying = edit(lying, 58, 64, 0, 0xff, 0xff)
	if e, err := parseELF(bytes.NewReader(lying), int64(len(lying))); err != nil || !e.Stripped {
		t.Errorf("lying sections: %+v, %v", e, err)
	}
}

// A file may be cut anywhere, or have any byte spoilt.
func TestELFSpoilt(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{exe, libc(t), "/bin/sh"} {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		b = b[:min(len(b), 1<<20)]
		for i := range 1024 {
			parseELF(bytes.NewReader(b[:i]), int64(i))
			for _, v := range []byte{0, 1, 0x7f, 0xff} {
				old := b[i]
				b[i] = v
				parseELF(bytes.NewReader(b), int64(len(b)))
				b[i] = old
			}
		}
	}
}

// Names as uname -m prints them on the machines themselves.
func TestELFArch(t *testing.T) {
	for _, c := range []struct {
		machine      elf.Machine
		is64, little bool
		want         string
	}{
		{elf.EM_X86_64, true, true, "x86_64"}, {elf.EM_X86_64, false, true, "x32"}, {elf.EM_386, false, true, "i686"},
		{elf.EM_AARCH64, true, true, "aarch64"}, {elf.EM_AARCH64, true, false, "aarch64_be"}, {elf.EM_ARM, false, true, "armv7l"},
		{elf.EM_RISCV, true, true, "riscv64"}, {elf.EM_RISCV, false, true, "riscv32"},
		{elf.EM_PPC64, true, true, "ppc64le"}, {elf.EM_PPC64, true, false, "ppc64"}, {elf.EM_PPC, false, false, "ppc"},
		{elf.EM_S390, true, false, "s390x"}, {elf.EM_LOONGARCH, true, true, "loongarch64"}, {elf.EM_MIPS, true, true, "mips64el"},
		{elf.EM_MIPS, false, false, "mips"}, {elf.EM_SPARCV9, true, false, "sparc64"}, {elf.EM_ALPHA, true, true, "alpha"},
		{elf.EM_IA_64, true, true, "ia64"}, {elf.EM_68K, false, false, "m68k"}, {elf.EM_BPF, true, true, "EM_247"}, {0xfffe, true, true, "EM_65534"},
	} {
		got := elfArch(uint16(c.machine), c.is64, c.little)
		if got != c.want {
			t.Errorf("machine %d: %s, want %s", c.machine, got, c.want)
		}
		if err := quarry.CheckArch(got); err != nil {
			t.Error(err)
		}
	}
}
