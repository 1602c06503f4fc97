package treesum

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tree makes a folder with one of each, and odd names.
func tree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"a", "a/b", "a.d", "empty", "z"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	for name, data := range map[string]string{"a/one": "1", "a/b/two": "22", "a.d/x": "", "a-b": "dash", "z/\n\xff \x1b[31m": "odd", "big": strings.Repeat("0123456789", 50_000)} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644))
	}
	must(t, os.Link(filepath.Join(dir, "big"), filepath.Join(dir, "z/big too")))
	must(t, os.Chmod(filepath.Join(dir, "a/one"), 0o755|fs.ModeSetuid))
	must(t, os.Symlink("../../../../etc/passwd", filepath.Join(dir, "a/out")))
	must(t, os.Symlink("/", filepath.Join(dir, "root")))
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
	return dir
}

func scan(t testing.TB, dir string, deep bool) *Tree {
	t.Helper()
	tr, err := Scan(t.Context(), dir, deep, nil)
	must(t, err)
	return tr
}

func TestScan(t *testing.T) {
	dir := tree(t)
	var read atomic.Int64
	tr, err := Scan(t.Context(), dir, true, func(n int64) { read.Add(n) })
	must(t, err)
	var paths []string
	for _, e := range tr.Entries {
		paths = append(paths, e.Path)
	}
	want := []string{".", "a", "a/b", "a/b/two", "a/one", "a/out", "a-b", "a.d", "a.d/x", "big", "empty", "pipe", "root", "z", "z/\n\xff \x1b[31m", "z/big too"}
	if !slices.Equal(paths, want) {
		t.Errorf("%q", paths)
	}
	if !slices.IsSortedFunc(paths, comparePaths) {
		t.Error("not in the order of comparePaths")
	}
	get := func(path string) Entry { return tr.Entries[slices.Index(paths, path)] }
	if e := get("a/one"); e.Kind != File || e.Mode != 04755 || e.Size != 1 || e.Sum != sha256.Sum256([]byte("1")) || int(e.UID) != os.Getuid() || e.Mtime.Sec == 0 || e.Inode == 0 {
		t.Errorf("%+v", e)
	}
	if e := get("a/out"); e.Kind != Link || e.Link != "../../../../etc/passwd" || e.Sum != [32]byte{} {
		t.Errorf("%+v", e)
	}
	if e := get("pipe"); e.Kind != Pipe || e.Mode != 0o600 {
		t.Errorf("%+v", e)
	}
	if a, b := get("big"), get("z/big too"); a.Sum != b.Sum || a.Inode != b.Inode {
		t.Errorf("%+v, %+v", a, b)
	}
	if read.Load() != 1+2+4+3+500_000 {
		t.Errorf("read %d bytes", read.Load())
	}
	if tr.Bytes() != 1+2+4+3+2*500_000 || tr.Files() != len(want) {
		t.Errorf("%d bytes, %d files", tr.Bytes(), tr.Files())
	}
	// The same again, and through a file.
	if diffs, n := Compare(tr, scan(t, dir, true), 10); n != 0 {
		t.Error(diffs)
	}
	data, err := tr.Encode()
	must(t, err)
	back, err := Decode(data)
	must(t, err)
	if !reflect.DeepEqual(back, tr) {
		t.Error("not the same after it was encoded")
	}
	quick := scan(t, dir, false)
	if path, ok := Touched(tr, quick); ok {
		t.Errorf("%q was touched", path)
	}
	if diffs, n := Compare(tr, quick, 10); n != 0 {
		t.Error(diffs)
	}
}

func TestScanOwnersDevicesAttributes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("run this test as root: it gives files away and makes devices")
	}
	dir := tree(t)
	must(t, os.Lchown(filepath.Join(dir, "root"), 100000, 4294967294))
	must(t, unix.Mknod(filepath.Join(dir, "gone"), unix.S_IFCHR, 0))
	must(t, unix.Setxattr(filepath.Join(dir, "a"), "trusted.overlay.opaque", []byte("y"), 0))
	must(t, unix.Setxattr(filepath.Join(dir, "a/one"), "trusted.b", []byte{0, 1, 255}, 0))
	must(t, unix.Setxattr(filepath.Join(dir, "a/one"), "trusted.a", nil, 0))
	must(t, unix.Lsetxattr(filepath.Join(dir, "root"), "trusted.link", []byte("v"), 0))
	tr := scan(t, dir, true)
	data, err := tr.Encode()
	must(t, err)
	back, err := Decode(data)
	must(t, err)
	if !reflect.DeepEqual(back, tr) {
		t.Error("not the same after it was encoded")
	}
	for _, e := range tr.Entries {
		switch e.Path {
		case "gone":
			if e.Kind != Char || e.Rdev != 0 || e.Mode != 0 {
				t.Errorf("%+v", e)
			}
		case "a":
			if len(e.Attrs) != 1 || e.Attrs[0] != (Xattr{"trusted.overlay.opaque", "y"}) {
				t.Errorf("%+v", e)
			}
		case "a/one":
			if len(e.Attrs) != 2 || e.Attrs[0] != (Xattr{"trusted.a", ""}) || e.Attrs[1].Value != "\x00\x01\xff" {
				t.Errorf("%+v", e)
			}
		case "root":
			if e.UID != 100000 || e.GID != 4294967294 || len(e.Attrs) != 1 {
				t.Errorf("%+v", e)
			}
		}
	}
	for name, c := range map[string]struct {
		do   func() error
		says string
	}{
		"owner":      {func() error { return os.Lchown(filepath.Join(dir, "a.d/x"), 1, 2) }, "belongs to 1:2"},
		"other attr": {func() error { return unix.Setxattr(filepath.Join(dir, "a"), "trusted.overlay.opaque", []byte("x"), 0) }, "another extended attribute"},
		"lost attr":  {func() error { return unix.Removexattr(filepath.Join(dir, "a/one"), "trusted.a") }, "lost its extended attribute"},
		"got attr":   {func() error { return unix.Setxattr(filepath.Join(dir, "z"), "trusted.new", nil, 0) }, "got an extended attribute"},
		"device": {func() error {
			os.Remove(filepath.Join(dir, "gone"))
			return unix.Mknod(filepath.Join(dir, "gone"), unix.S_IFCHR, 0x103)
		}, "is device"},
		"link's attr": {func() error { return unix.Lremovexattr(filepath.Join(dir, "root"), "trusted.link") }, "lost its extended attribute"},
	} {
		before := scan(t, dir, true)
		must(t, c.do())
		after := scan(t, dir, true)
		diffs, n := Compare(before, after, 10)
		if n != 1 || !strings.Contains(diffs[0].Detail, c.says) {
			t.Errorf("%s: %d: %v", name, n, diffs)
		}
		if _, ok := Touched(before, after); !ok {
			t.Errorf("%s left no trace", name)
		}
	}
}

func TestChanges(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(dir string) error
		path string
		says string // "": nothing that Compare minds
	}{
		"content, time put back": {func(dir string) error {
			p := filepath.Join(dir, "a/b/two")
			st, err := os.Stat(p)
			must(t, err)
			must(t, os.WriteFile(p, []byte("zz"), 0))
			return os.Chtimes(p, time.Time{}, st.ModTime())
		}, "a/b/two", "has other content"},
		"content of a large one": {func(dir string) error {
			p := filepath.Join(dir, "big")
			st, err := os.Stat(p)
			must(t, err)
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteAt([]byte("x"), 499_999)
			must(t, err)
			must(t, f.Close())
			return os.Chtimes(p, time.Time{}, st.ModTime())
		}, "big", "has other content"},
		"truncated":    {func(dir string) error { return os.Truncate(filepath.Join(dir, "a-b"), 0) }, "a-b", "has 0 bytes, not 4"},
		"mode":         {func(dir string) error { return os.Chmod(filepath.Join(dir, "a/one"), 0o755) }, "a/one", "has mode 0755, not 4755"},
		"removed":      {func(dir string) error { return os.Remove(filepath.Join(dir, "a.d/x")) }, "a.d/x", "is missing"},
		"last removed": {func(dir string) error { return os.Remove(filepath.Join(dir, "z/big too")) }, "z/big too", "is missing"},
		"added":        {func(dir string) error { return os.WriteFile(filepath.Join(dir, "empty/new"), nil, 0o644) }, "empty/new", "was added"},
		"added last":   {func(dir string) error { return os.Mkdir(filepath.Join(dir, "zz"), 0o755) }, "zz", "was added"},
		"another target": {func(dir string) error {
			os.Remove(filepath.Join(dir, "root"))
			return os.Symlink("/etc", filepath.Join(dir, "root"))
		}, "root", `leads to "/etc", not "/"`},
		"another kind": {func(dir string) error {
			os.Remove(filepath.Join(dir, "pipe"))
			return os.Mkdir(filepath.Join(dir, "pipe"), 0o600)
		}, "pipe", "is a folder, not a pipe"},
		"the root": {func(dir string) error { return os.Chmod(dir, 0o700|fs.ModeSticky) }, ".", "has mode 1700"},
		"time":     {func(dir string) error { return os.Chtimes(filepath.Join(dir, "a-b"), time.Time{}, time.Unix(1, 2)) }, "a-b", "was modified at 1.000000002"},
		"written to and back": {func(dir string) error {
			p := filepath.Join(dir, "a-b")
			st, err := os.Stat(p)
			must(t, err)
			must(t, os.WriteFile(p, []byte("oops"), 0))
			must(t, os.WriteFile(p, []byte("dash"), 0))
			return os.Chtimes(p, time.Time{}, st.ModTime())
		}, "a-b", ""},
		"there and gone": {func(dir string) error {
			p := filepath.Join(dir, "empty/new")
			must(t, os.WriteFile(p, nil, 0o644))
			return os.Remove(p)
		}, "empty", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tree(t)
			before := scan(t, dir, true)
			// The clock of file times moves in steps.
			for moved := false; !moved; {
				p := filepath.Join(filepath.Dir(dir), "clock")
				must(t, os.WriteFile(p, nil, 0o644))
				st, err := os.Stat(p)
				must(t, err)
				newest := int64(0)
				for _, e := range before.Entries {
					newest = max(newest, e.Ctime.Sec*1e9+int64(e.Ctime.Nsec))
				}
				moved = st.ModTime().UnixNano() > newest
			}
			must(t, c.do(dir))
			after := scan(t, dir, true)
			diffs, n := Compare(before, after, 10)
			names := 1
			if c.path == "big" {
				names = 2 // it has another
			}
			switch {
			case c.says == "" && n != 0:
				t.Error(diffs)
			case c.says != "" && (n != names || diffs[0].Path != c.path || !strings.Contains(diffs[0].Detail, c.says)):
				t.Errorf("%d: %v", n, diffs)
			}
			if _, ok := Touched(before, scan(t, dir, false)); !ok {
				t.Error("the quick check saw nothing")
			}
		})
	}
}

func TestCompareLimits(t *testing.T) {
	dir := tree(t)
	before := scan(t, dir, true)
	empty := scan(t, t.TempDir(), true)
	diffs, n := Compare(before, empty, 3)
	if len(diffs) != 3 || n != len(before.Entries)-1 {
		t.Errorf("%d of %d: %v", len(diffs), n, diffs)
	}
	// A copy has other inodes and times of change, and is the same.
	copied := t.TempDir()
	must(t, os.CopyFS(copied, os.DirFS(filepath.Join(dir, "a/b"))))
	a, b := scan(t, filepath.Join(dir, "a/b"), true), scan(t, copied, true)
	for i := range b.Entries {
		b.Entries[i].Mtime, b.Entries[i].Mode = a.Entries[i].Mtime, a.Entries[i].Mode
	}
	if diffs, n := Compare(a, b, 3); n != 0 {
		t.Error(diffs)
	}
	if _, ok := Touched(a, b); !ok {
		t.Error("a copy passes for the original")
	}
}

func TestScanErrors(t *testing.T) {
	if _, err := Scan(t.Context(), filepath.Join(t.TempDir(), "none"), true, nil); !os.IsNotExist(err) {
		t.Error(err)
	}
	dir := tree(t)
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(dir, link))
	if _, err := Scan(t.Context(), link, true, nil); err == nil {
		t.Error("followed a link")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Scan(ctx, dir, true, nil); err == nil {
		t.Error("scanned although it was told to end")
	}
	deep := t.TempDir()
	fd, err := unix.Open(deep, unix.O_DIRECTORY, 0)
	must(t, err)
	for range maxDepth + 2 {
		must(t, unix.Mkdirat(fd, "d", 0o755))
		next, err := unix.Openat(fd, "d", unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	if _, err := Scan(t.Context(), deep, true, nil); err == nil || !strings.Contains(err.Error(), "nest deeper") {
		t.Error(err)
	}
	bad := &Tree{Deep: true, Entries: []Entry{{Path: ".", Kind: Dir}, {Path: "x", Kind: File, Unread: "input/output error"}}}
	if _, err := bad.Encode(); err == nil || !strings.Contains(err.Error(), "input/output error") {
		t.Error(err)
	}
	good := &Tree{Deep: true, Entries: []Entry{{Path: ".", Kind: Dir}, {Path: "x", Kind: File}}}
	if diffs, n := Compare(good, bad, 1); n != 1 || diffs[0].Detail != "cannot be read: input/output error" {
		t.Error(diffs)
	}
}

func TestDecodeRefusals(t *testing.T) {
	enc, err := zstd.NewWriter(nil)
	must(t, err)
	dec, err := zstd.NewReader(nil)
	must(t, err)
	good, err := scan(t, tree(t), true).Encode()
	must(t, err)
	plain, err := dec.DecodeAll(good, nil)
	must(t, err)
	for name, data := range map[string][]byte{
		"empty": nil, "no zstd": []byte("quarry tree 1\n"), "cut": good[:len(good)/2], "another version": bytes.Replace(plain, []byte("tree 1"), []byte("tree 2"), 1),
		"more": enc.EncodeAll(append(slices.Clone(plain), 0), nil), "less": enc.EncodeAll(plain[:len(plain)-1], nil), "nothing": enc.EncodeAll([]byte(magic+"\x01\x00"), nil),
		"flag": enc.EncodeAll([]byte(magic+"\x02\x00"), nil), "bit": func() []byte { c := slices.Clone(good); c[len(c)/2] ^= 4; return c }(),
		"up":    enc.EncodeAll(bytes.Replace(plain, []byte("\x03one"), []byte("\x03../"), 1), nil),
		"order": enc.EncodeAll(bytes.Replace(plain, []byte("\x03one"), []byte("\x03aaa"), 1), nil),
	} {
		if tr, err := Decode(data); err == nil {
			t.Errorf("%s: %d entries", name, len(tr.Entries))
		}
	}
}

func FuzzDecode(f *testing.F) {
	enc, err := zstd.NewWriter(nil)
	must(f, err)
	dec, err := zstd.NewReader(nil)
	must(f, err)
	for _, deep := range []bool{true, false} {
		data, err := scan(f, tree(f), deep).Encode()
		must(f, err)
		plain, err := dec.DecodeAll(data, nil)
		must(f, err)
		f.Add(plain)
	}
	f.Add([]byte(magic + "\x01\x01\x00\x01.d"))
	f.Fuzz(func(t *testing.T, plain []byte) {
		Decode(plain) // as zstd it is nearly always nonsense
		tr, err := Decode(enc.EncodeAll(plain, nil))
		if err != nil {
			return
		}
		data, err := tr.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := Decode(data)
		if err != nil || !reflect.DeepEqual(back, tr) {
			t.Fatalf("%v: not the same after it was encoded", err)
		}
	})
}

// TestRandomTrees checks that what Compare finds is what was done.
func TestRandomTrees(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		dir := t.TempDir()
		dirs := []string{dir}
		files := map[string]bool{}
		for i := range 200 {
			p := filepath.Join(dirs[r.IntN(len(dirs))], fmt.Sprintf("%c%d", "a.-z~"[r.IntN(5)], i))
			if r.IntN(4) == 0 {
				must(t, os.Mkdir(p, 0o755))
				dirs = append(dirs, p)
				continue
			}
			must(t, os.WriteFile(p, []byte(p), 0o644))
			files[p] = true
		}
		before := scan(t, dir, true)
		want := map[string]bool{}
		for p := range files {
			rel, err := filepath.Rel(dir, p)
			must(t, err)
			switch r.IntN(20) {
			case 0:
				must(t, os.Remove(p))
				want[rel] = true
			case 1:
				must(t, os.WriteFile(p+"+", nil, 0o644))
				want[rel+"+"] = true
			case 2:
				must(t, os.Truncate(p, 1))
				want[rel] = true
			}
		}
		diffs, n := Compare(before, scan(t, dir, true), 1000)
		got := map[string]bool{}
		for _, d := range diffs {
			got[d.Path] = true
		}
		if n != len(want) || !reflect.DeepEqual(got, want) {
			t.Fatalf("found %v, not %v", got, want)
		}
	}
}
