package bundle

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const hello = `{"package": {"name": "hello", "version": "1.0", "description": "Says hello"}, "compilation": {}, "dependencies": []}`

// entry is one of a tar that a test makes.
type entry struct {
	name, link string
	kind       byte
	mode       int64
	data       string
}

func pack(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		if e.mode == 0 {
			e.mode = 0o644
		}
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode, Size: int64(len(e.data)), Linkname: e.link}
		if e.kind == tar.TypeXGlobalHeader {
			h = &tar.Header{Typeflag: e.kind, PAXRecords: map[string]string{"comment": "x"}}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstandard(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

// contents keeps what Read gives, by id from 1.
type contents []string

func (c *contents) add(size int64, r io.Reader) (int, error) {
	data, err := io.ReadAll(r)
	if err == nil && int64(len(data)) != size {
		err = fmt.Errorf("%d bytes and not %d", len(data), size)
	}
	*c = append(*c, string(data))
	return len(*c), err
}

// list writes a tree as lines of mode, path and content.
func list(t *Tree, c contents) string {
	var b strings.Builder
	for _, f := range t.Files {
		fmt.Fprintf(&b, "%s %s %s\n", f.Mode, f.Path, c[f.ID-1])
	}
	return b.String()
}

// A bundle is the same however it is packed.
func TestRead(t *testing.T) {
	of := func(top string) []entry {
		return []entry{
			{kind: tar.TypeXGlobalHeader}, {name: top, kind: tar.TypeDir, mode: 0o755},
			{name: top + "srcs/run.sh", mode: 0o755, data: "#!/bin/sh\n"}, {name: top + ".git/config", data: "mine"},
			{name: top + "package.json", data: hello}, {name: top + "srcs/b", kind: tar.TypeLink, link: top + "srcs/run.sh"},
			{name: top + "srcs/to", kind: tar.TypeSymlink, link: "../package.json"}, {name: top + "empty"},
		}
	}
	want := "100644 empty \n100644 package.json " + hello + "\n100755 srcs/b #!/bin/sh\n\n100755 srcs/run.sh #!/bin/sh\n\n120000 srcs/to ../package.json\n"
	for _, top := range []string{"", "./", "hello-1.0/", "./a b/"} {
		entries := of(top)
		if top == "" {
			entries = append(entries[:1:1], entries[2:]...)
		}
		plain := pack(t, entries...)
		for kind, data := range map[string][]byte{"plain": plain, "gzip": gzipped(t, plain), "zstd": zstandard(t, plain)} {
			var c contents
			tree, err := Read(iotest.OneByteReader(bytes.NewReader(data)), Limits{}, c.add)
			if err != nil {
				t.Errorf("%q, %s: %v", top, kind, err)
				continue
			}
			if got := list(tree, c); got != want {
				t.Errorf("%q, %s: %s", top, kind, got)
			}
			if tree.Branch() != "hello-1.0" {
				t.Errorf("branch %s", tree.Branch())
			}
		}
	}
}

// What is hostile, broken or too large is refused, and the reason is told.
func TestReadRefuses(t *testing.T) {
	recipe := entry{name: "package.json", data: hello}
	whole := pack(t, recipe)
	for _, tt := range []struct {
		what string
		data []byte
		want string
	}{
		{"nothing", nil, "empty"},
		{"noise", bytes.Repeat([]byte("noise "), 200), "no tar"},
		{"zip", []byte("PK\x03\x04 and so on"), "a tar as it is"},
		{"xz", []byte("\xfd7zXZ\x00 and so on"), "a tar as it is"},
		{"cut off", whole[:600], "cut off"},
		{"gzip cut off", gzipped(t, whole)[:60], "cut off"},
		{"no recipe", pack(t, entry{name: "readme"}), "no package.json"},
		{"two folders", pack(t, entry{name: "a/package.json", data: hello}, entry{name: "b/x"}), "more than one folder"},
		{"bad recipe", pack(t, entry{name: "package.json", data: "{"}), "package.json"},
		{"large recipe", pack(t, entry{name: "package.json", data: strings.Repeat(" ", maxRecipe+1)}), "more than"},
		{"absolute", pack(t, recipe, entry{name: "/etc/passwd"}), "absolute"},
		{"up", pack(t, recipe, entry{name: "a/../../x"}), "leads out"},
		{"up in the middle", pack(t, recipe, entry{name: "a/../x"}), "leads out"},
		{"control", pack(t, recipe, entry{name: "a\nb"}), "control"},
		{"long", pack(t, recipe, entry{name: strings.Repeat("a/", 600) + "b"}), "1024 bytes"},
		{"deep", pack(t, recipe, entry{name: strings.Repeat("a/", 100) + "b"}), "folders deep"},
		{"device", pack(t, recipe, entry{name: "null", kind: tar.TypeChar}), "neither a file"},
		{"fifo", pack(t, recipe, entry{name: "fifo", kind: tar.TypeFifo}), "neither a file"},
		{"twice", pack(t, recipe, recipe), "twice"},
		{"file as folder", pack(t, recipe, entry{name: "a"}, entry{name: "a/b"}), "no folder"},
		{"folder as file", pack(t, recipe, entry{name: "a/b"}, entry{name: "a"}), "twice"},
		{"through a link", pack(t, recipe, entry{name: "a", kind: tar.TypeSymlink, link: "srcs"}, entry{name: "a/b"}), "no folder"},
		{"link out", pack(t, recipe, entry{name: "a", kind: tar.TypeSymlink, link: "../x"}), "leads out"},
		{"link to /", pack(t, recipe, entry{name: "a", kind: tar.TypeSymlink, link: "/etc/shadow"}), "leads out"},
		{"link out of the top", pack(t, entry{name: "t/package.json", data: hello}, entry{name: "t/a", kind: tar.TypeSymlink, link: "../x"}), "leads out"},
		{"hard link out", pack(t, recipe, entry{name: "a", kind: tar.TypeLink, link: "/etc/shadow"}), "absolute"},
		{"hard link to nothing", pack(t, recipe, entry{name: "a", kind: tar.TypeLink, link: "b"}), "no such file"},
		{"other .git", pack(t, recipe, entry{name: "a/b/.GIT/hooks/x"}), ".git"},
		{"many", pack(t, recipe, entry{name: "a"}, entry{name: "b"}, entry{name: "c"}), "3 entries"},
		{"much", pack(t, recipe, entry{name: "a", data: strings.Repeat("x", 5000)}), "4096 bytes"},
		{"bomb", gzipped(t, append(pack(t, recipe)[:1024], bytes.Repeat([]byte{0}, 64<<20)...)), "hello"},
	} {
		var c contents
		tree, err := Read(bytes.NewReader(tt.data), Limits{Size: 4096, Entries: 3}, c.add)
		if tt.want == "hello" { // what follows the end of the tar is not looked at
			if err != nil || tree.Package != "hello" {
				t.Errorf("%s: %v", tt.what, err)
			}
			continue
		}
		var bad *Bad
		if err == nil || !errors.As(err, &bad) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, and it should tell of %q", tt.what, err, tt.want)
		}
	}
}

// A tar of folders that each look like a package costs no more memory than one.
func TestReadKeepsOneRecipe(t *testing.T) {
	rd := &reading{limits: Limits{Size: 1 << 30, Entries: 1000}, content: new(contents).add, kinds: map[string]bool{}, files: map[string]int{}, recipes: map[string][]byte{}, links: map[string]string{}}
	for i := range 100 {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%d/package.json", i), Size: int64(len(hello))}
		if err := rd.entry(h, strings.NewReader(hello)); err != nil {
			t.Fatal(err)
		}
	}
	if len(rd.recipes) != 1 {
		t.Errorf("%d recipes are kept", len(rd.recipes))
	}
}

// Trouble of reading is none of the bundle.
func TestReadBrokenSource(t *testing.T) {
	whole := pack(t, entry{name: "package.json", data: hello})
	_, err := Read(From(io.MultiReader(bytes.NewReader(whole[:700]), iotest.ErrReader(errors.New("the line broke")))), Limits{}, new(contents).add)
	var bad *Bad
	if err == nil || errors.As(err, &bad) || !strings.Contains(err.Error(), "the line broke") {
		t.Error(err)
	}
}

// FuzzRead: whatever is sent, there is a tree whose paths stay within it, or an
// error that tells why not.
func FuzzRead(f *testing.F) {
	recipe := entry{name: "package.json", data: hello}
	for _, data := range [][]byte{pack(f, recipe, entry{name: "srcs/x", data: "x"}, entry{name: "l", kind: tar.TypeSymlink, link: "srcs/x"}),
		pack(f, entry{name: "t/package.json", data: hello}, entry{name: "t/h", kind: tar.TypeLink, link: "t/package.json"}),
		gzipped(f, pack(f, recipe)), zstandard(f, pack(f, recipe)), pack(f, recipe, entry{name: "../x"})} {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var c contents
		tree, err := Read(bytes.NewReader(data), Limits{Size: 1 << 20, Entries: 100}, c.add)
		if err != nil {
			if err.Error() == "" || strings.ContainsAny(err.Error(), "\x00\x1b") {
				t.Errorf("%q", err)
			}
			return
		}
		seen := map[string]bool{}
		for _, file := range tree.Files {
			if file.Path == "" || file.Path[0] == '/' || seen[file.Path] || file.ID < 1 || file.ID > len(c) {
				t.Errorf("%+v", file)
			}
			for part := range strings.SplitSeq(file.Path, "/") {
				if part == "" || part == "." || part == ".." || strings.EqualFold(part, ".git") {
					t.Errorf("%+v", file)
				}
			}
			seen[file.Path] = true
		}
	})
}
