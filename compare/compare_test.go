package compare

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// file is an entry of an artifact that a test makes.
type file struct {
	name string // a folder's ends in a slash
	data []byte
	mode int64
	link string
	time time.Time
}

func artifact(t testing.TB, files ...file) *bytes.Reader {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.data)), Typeflag: tar.TypeReg, ModTime: time.Unix(1500000000, 0)}
		if !f.time.IsZero() {
			h.ModTime = f.time
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		switch {
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag = tar.TypeDir
		case f.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b.Bytes())
}

func of(t testing.TB, was, is []file) *Report {
	t.Helper()
	r, err := Artifacts(t.Context(), artifact(t, was...), artifact(t, is...))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSame(t *testing.T) {
	tree := []file{{name: "usr/"}, {name: "usr/bin/"}, {name: "usr/bin/x", data: []byte("x"), mode: 0o755}, {name: "usr/lib", link: "bin"}}
	if r := of(t, tree, tree); !r.Same || r.Files != 4 || r.Differ != 0 {
		t.Errorf("got %+v", r)
	}
}

func TestTree(t *testing.T) {
	was := []file{{name: "a", data: []byte("1")}, {name: "b/"}, {name: "b/gone", data: []byte("1")}, {name: "l", link: "a"}, {name: "m", mode: 0o644}, {name: "t"}, {name: "x/"}}
	is := []file{{name: "a", data: []byte("1")}, {name: "b/"}, {name: "c", data: []byte("1")}, {name: "l", link: "b"}, {name: "m", mode: 0o4755}, {name: "t", time: time.Unix(1400000000, 0)}, {name: "x"}}
	r := of(t, was, is)
	got := map[string]string{}
	for _, d := range r.Differences {
		got[d.Path] = d.What
	}
	want := map[string]string{"/b/gone": "only in the recorded artifact", "/c": "only in the rebuilt artifact", "/l": "target", "/m": "mode", "/t": "time", "/x": "kind, mode"}
	want["/x"] = "kind"
	for path, what := range want {
		if got[path] != what {
			t.Errorf("%s: got %q, want %q", path, got[path], what)
		}
	}
	if len(got) != len(want) || r.Same || r.Differ != len(want) || r.Files != 8 {
		t.Errorf("got %+v", r)
	}
}

func packed(t testing.TB, data []byte, at time.Time) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.ModTime = at
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func ar(members map[string]string, mtime int64) []byte {
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, name := range []string{"a.o", "b.o"} {
		if data, ok := members[name]; ok {
			fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", name+"/", mtime, 0, 0, "100644", len(data), data)
			if len(data)%2 == 1 {
				b.WriteByte('\n')
			}
		}
	}
	return b.Bytes()
}

func zipped(t testing.TB, name, data string, at time.Time) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.CreateHeader(&zip.FileHeader{Name: name, Modified: at})
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(f, data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// changedELF is this test's own program with words put over a part of a section.
func changedELF(t testing.TB, section, words string) []byte {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	s := f.Section(section)
	if s == nil {
		t.Fatalf("%s has no section %s", self, section)
	}
	copy(data[s.Offset+64:], words)
	return data
}

func TestContents(t *testing.T) {
	day := time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)
	random := func() []byte { b := make([]byte, 32); rand.Read(b); return b }
	stamped := func(at time.Time) []byte {
		n := uint32(at.Unix())
		return append([]byte("\x00\x01\x02head"), byte(n), byte(n>>8), byte(n>>16), byte(n>>24), 0, 1, 2)
	}
	pyc := func(at time.Time) []byte {
		return append([]byte{0xa7, 0x0d, '\r', '\n', 0, 0, 0, 0}, append(stamped(at)[7:11], 1, 0, 0, 0, 9, 9)...)
	}
	for _, c := range []struct {
		name    string
		was, is []byte
		want    []string
	}{
		{"text with a date", []byte("a\nbuilt 2026-03-14 15:09:26\nz\n"), []byte("a\nbuilt 2026-03-15 16:10:27\nz\n"), []string{"text, from line 2 on: it looks like a date or a time of the build", "- built 2026-03-14 15:09:26", "+ built 2026-03-15 16:10:27"}},
		{"text with seconds", []byte("at=1773500966\n"), []byte("at=1773500999\n"), []string{"seconds since 1970"}},
		{"text with an id", []byte("id 0f3a0f3a0f3a0f3a\n"), []byte("id 1f3a0f3a0f3a0f3b\n"), []string{"made at random"}},
		{"text in another order", []byte("a.o b.o c.o\n"), []byte("b.o c.o a.o\n"), []string{"another order"}},
		{"one longer", []byte("a\n"), []byte("a\nb\n"), []string{"from line 2", "+ b"}},
		{"random bytes", append([]byte{0}, random()...), append([]byte{0}, random()...), []string{"differ, from byte", "made at random"}},
		{"a time in bytes", stamped(day), stamped(day.Add(time.Hour)), []string{"it looks like the time of the build (2026-03-14 15:09:26, rebuilt 2026-03-14 16:09:26)"}},
		{"gzip's header", packed(t, []byte("x"), day), packed(t, []byte("x"), day.Add(time.Second)), []string{"gzip: the header's time is 2026-03-14 15:09:26, rebuilt 2026-03-14 15:09:27"}},
		{"text with parts of a second", []byte("built 2026-03-14 15:09:26.457548419\n"), []byte("built 2026-03-14 15:09:26.932064027\n"), []string{"text, from line 1 on: it looks like a date or a time of the build"}},
		{"gzip's content", packed(t, []byte("on 2026-03-14\n"), time.Time{}), packed(t, []byte("on 2026-03-15\n"), time.Time{}), []string{"what is packed differs", "  text, from line 1 on: it looks like a date"}},
		{"ar's time", ar(map[string]string{"a.o": "x"}, 1773500966), ar(map[string]string{"a.o": "x"}, 1773500999), []string{"ar: member a.o: time 1773500966", "rebuilt time 1773500999"}},
		{"ar's member", ar(map[string]string{"a.o": "x", "b.o": "one"}, 0), ar(map[string]string{"a.o": "x", "b.o": "two"}, 0), []string{"ar: member b.o differs", "- one"}},
		{"ar's members", ar(map[string]string{"a.o": "x"}, 0), ar(map[string]string{"b.o": "x"}, 0), []string{"a.o is not in the rebuilt one", "b.o is only in the rebuilt one"}},
		{"zip's time", zipped(t, "A.class", "x", day), zipped(t, "A.class", "x", day.Add(time.Hour)), []string{"zip: member A.class: time 2026-03-14 15:09:26"}},
		{"compiled Python", pyc(day), pyc(day.Add(time.Minute)), []string{"compiled Python: the time of the source is 2026-03-14 15:09:26, rebuilt 2026-03-14 15:10:26"}},
		{"ELF", changedELF(t, ".rodata", fmt.Sprintf("Mar 14 2026 15:09:%d\x00", 26)), changedELF(t, ".rodata", fmt.Sprintf("Mar 14 2026 15:09:%d\x00", 41)), []string{"ELF section .rodata", "looks like a date or a time of the build", `- "Mar 14 2026 15:09:26`, `+ "Mar 14 2026 15:09:41`}},
		{"half an ELF", []byte(elf.ELFMAG + "\x02\x01\x01garbage\x00"), []byte(elf.ELFMAG + "\x02\x01\x01garbagf\x00"), []string{"bytes differ"}},
		{"half a zip", []byte("PK\x03\x04aaaa\x00"), []byte("PK\x03\x04aaab\x00"), []string{"bytes differ"}},
		{"half a gzip", []byte("\x1f\x8b\x08\x00aaaaaaa"), []byte("\x1f\x8b\x08\x00aaaaaab"), []string{"bytes differ"}},
		{"nothing left", []byte("\x00\x01"), nil, []string{"2 of 2 bytes differ"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := of(t, []file{{name: "f", data: c.was}}, []file{{name: "f", data: c.is}})
			if r.Same || len(r.Differences) != 1 || !strings.Contains(r.Differences[0].What, "content") {
				t.Fatalf("got %+v", r)
			}
			text := strings.Join(r.Differences[0].Details, "\n")
			for _, w := range c.want {
				if !strings.Contains(text, w) {
					t.Errorf("%q is missing in:\n%s", w, text)
				}
			}
		})
	}
}

// TestBounds gives it more than it tells of, and what no terminal should see.
func TestBounds(t *testing.T) {
	var was, is []file
	for i := range maxFiles + 50 {
		name := fmt.Sprintf("f%04d", i)
		was, is = append(was, file{name: name, data: []byte("a")}), append(is, file{name: name, data: []byte("b")})
	}
	if r := of(t, was, is); r.Differ != maxFiles+50 || len(r.Differences) != maxFiles {
		t.Errorf("%d differ and %d are told", r.Differ, len(r.Differences))
	}
	long := []byte(strings.Repeat("x", 10_000))
	r := of(t, []file{{name: "f", data: append([]byte("\x1b[2J"), long...)}}, []file{{name: "f", data: long}})
	for _, l := range r.Differences[0].Details {
		if len(l) > maxLine+100 || strings.ContainsRune(l, 0x1b) {
			t.Errorf("got %q", l)
		}
	}
	large := slices.Concat(make([]byte, maxHeld+1))
	other := slices.Clone(large)
	other[maxHeld-5] = 1
	r = of(t, []file{{name: "f", data: large}}, []file{{name: "f", data: other}})
	if want := fmt.Sprintf("differs from byte %d on; it is too large to be looked into", maxHeld-5); len(r.Differences) != 1 || r.Differences[0].Details[0] != want {
		t.Errorf("got %+v", r)
	}
}

func TestDamaged(t *testing.T) {
	good := func() *bytes.Reader { return artifact(t, file{name: "a", data: make([]byte, 100_000)}) }
	half, err := io.ReadAll(good())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Artifacts(t.Context(), bytes.NewReader(half[:len(half)/2]), good()); err == nil || !strings.Contains(err.Error(), "recorded") {
		t.Errorf("half an artifact: %v", err)
	}
	if _, err := Artifacts(t.Context(), good(), artifact(t, file{name: "b"}, file{name: "a"})); err == nil || !strings.Contains(err.Error(), "not in order") {
		t.Errorf("paths that are not in order: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Artifacts(ctx, good(), good()); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that was taken back: %v", err)
	}
}

// FuzzLook has hostile files looked into: whatever they hold, what is said of them
// is bounded.
func FuzzLook(f *testing.F) {
	day := time.Unix(1773500966, 0)
	for _, s := range [][]byte{[]byte("text\n"), packed(f, []byte("x"), day), ar(map[string]string{"a.o": "x"}, 5), zipped(f, "a", "b", day), []byte(elf.ELFMAG + "\x02\x01\x01")} {
		f.Add(s, append(slices.Clone(s), 'x'))
		f.Add(s, s[:len(s)/2])
	}
	f.Fuzz(func(t *testing.T, was, is []byte) {
		if bytes.Equal(was, is) {
			return
		}
		d := (&Difference{Path: "f", Details: look(was, is, 0)}).safe()
		if len(d.Details) == 0 || len(d.Details) > maxDetails+1 {
			t.Errorf("%d lines", len(d.Details))
		}
	})
}
