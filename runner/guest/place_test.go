package guest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

var at = time.Unix(1_500_000_000, 0)

// put makes files: a name ending in / is a folder, a value beginning with ->
// a link.
func put(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		full := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(target, full)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(full, 0o755)
		} else if err = os.WriteFile(full, []byte(content), 0o644); err == nil {
			err = os.Chmod(full, 0o644) // whatever the umask
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// carried is where these tests keep a file's content in its header.
const carried = "quarry.content"

func tarball(t *testing.T, headers ...tar.Header) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := h.PAXRecords[carried]
		h.PAXRecords = nil
		h.Size = int64(len(content))
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func file(name, content string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, PAXRecords: map[string]string{carried: content}}
}

func TestPlace(t *testing.T) {
	ball := tarball(t, file("zlib-1.3/configure", "#!/bin/sh\n"), file("zlib-1.3/src/a.c", "int a;\n"))
	for _, tt := range []struct {
		name  string
		files map[string]string
		dir   string
		want  string // below the root; ! and a text: a problem
	}{
		{"files in srcs", map[string]string{"srcs/Makefile": "", "srcs/src/a.c": ""}, "", "srcs"},
		{"one folder", map[string]string{"srcs/zlib-1.3/Makefile": ""}, "", "srcs/zlib-1.3"},
		{"two folders", map[string]string{"srcs/a/x": "", "srcs/b/x": ""}, "", "srcs"},
		{"a link to a folder is no folder", map[string]string{"srcs/a": "->/etc"}, "", "srcs"},
		{"nothing", map[string]string{"srcs/": ""}, "", "srcs"},
		{"no srcs", map[string]string{"scripts/before.sh": ""}, "", ""},
		{"tarball", map[string]string{"srcs/zlib-1.3.tar": ball}, "", "srcs/zlib-1.3"},
		{"tarball and more", map[string]string{"srcs/zlib-1.3.tar": ball, "srcs/extra": ""}, "", "srcs"},
		{"flat tarball", map[string]string{"srcs/flat.tar": tarball(t, file("Makefile", ""), file("a.c", ""))}, "", "srcs"},
		{"tarball in tarball is left alone", map[string]string{"srcs/o.tar": tarball(t, file("i.tar", ball))}, "", "srcs"},
		{"own choice", map[string]string{"srcs/unix/Makefile": "", "srcs/win/x": ""}, "srcs/unix", "srcs/unix"},
		{"own choice in a tarball", map[string]string{"srcs/zlib-1.3.tar": ball}, "srcs/zlib-1.3/src", "srcs/zlib-1.3/src"},
		{"own choice is not there", map[string]string{"srcs/x": ""}, "srcs/unix", "!the recipe's directory srcs/unix is not a folder"},
		{"own choice leads out", map[string]string{"srcs/x": "->/etc"}, "srcs/x", "!the recipe's directory srcs/x is not a folder"},
		{"srcs is a file", map[string]string{"srcs": "x"}, "", "!srcs is not a folder"},
		{"srcs is a link", map[string]string{"srcs": "->/etc"}, "", "!srcs is not a folder"},
		{"not a tarball", map[string]string{"srcs/x.tar": strings.Repeat("no", 999)}, "", "!unpack srcs/x.tar: "},
		{"cut off", map[string]string{"srcs/x.tar": ball[:515]}, "", "!unpack srcs/x.tar: "},
		{"not gzip", map[string]string{"srcs/x.tar.gz": "\x1f\x8bnonsense"}, "", "!unpack srcs/x.tar.gz: "},
		{"leads out", map[string]string{"srcs/x.tar": tarball(t, file("a/../../out", "x"))}, "", "!unpack srcs/x.tar: it holds a/../../out, which lies outside of it"},
		{"leads out by a link", map[string]string{"srcs/x.tar": tarball(t,
			tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../.."}, file("l/out", "x"))}, "", "!unpack srcs/x.tar: l/out: "},
		{"leads out by a hard link", map[string]string{"srcs/x.tar": tarball(t,
			tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "../../out"})}, "", "!unpack srcs/x.tar: l: "},
		{"device", map[string]string{"srcs/x.tar": tarball(t,
			tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3})}, "", "!unpack srcs/x.tar: null: it is of type '3'"},
		{"device behind a folder that became a link", map[string]string{"srcs/x.tar": tarball(t,
			tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "d", Typeflag: tar.TypeSymlink, Linkname: "/etc"})}, "", "!unpack srcs/x.tar: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			top := t.TempDir()
			root := filepath.Join(top, "quarry", "src")
			put(t, root, tt.files)
			if err := os.WriteFile(filepath.Join(top, "out"), []byte("kept"), 0o644); err != nil {
				t.Fatal(err)
			}
			dir, err := place(&Place{Root: root, Dir: tt.dir, Time: at})
			r := answer(err, Reply{})
			if says, bad := strings.CutPrefix(tt.want, "!"); bad {
				if !strings.HasPrefix(r.Problem, says) || r.Error != "" {
					t.Errorf("problem %q, error %q, want %q", r.Problem, r.Error, says)
				}
			} else if err != nil || dir != filepath.Join(root, tt.want) {
				t.Errorf("%s, %v, want %s", dir, err, tt.want)
			}
			if b, err := os.ReadFile(filepath.Join(top, "out")); err != nil || string(b) != "kept" {
				t.Errorf("a file outside was touched: %q %v", b, err)
			}
			if names, err := os.ReadDir(top); err != nil || len(names) != 2 {
				t.Errorf("outside there is now %v", names)
			}
		})
	}
}

func TestUnpack(t *testing.T) {
	plain := tarball(t,
		tar.Header{Name: "p/", Typeflag: tar.TypeDir, Mode: 0o500},
		file("p/deep/er/a.c", "int a;\n"),
		tar.Header{Name: "p/configure", Typeflag: tar.TypeReg, Mode: 0o6775, PAXRecords: map[string]string{carried: "#!/bin/sh\n"}},
		tar.Header{Name: "p/link", Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"},
		tar.Header{Name: "p/hard", Typeflag: tar.TypeLink, Linkname: "p/configure"},
		file("p/deep/er/a.c", "int b;\n"),
	)
	for suffix, pack := range map[string]func(string) string{
		".tar": func(s string) string { return s },
		".tar.gz": func(s string) string {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			_, _ = io.WriteString(w, s)
			w.Close()
			return b.String()
		},
		".tar.xz": func(s string) string {
			var b bytes.Buffer
			w, err := xz.NewWriter(&b)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.WriteString(w, s)
			w.Close()
			return b.String()
		},
		".tar.zst": func(s string) string {
			w, err := zstd.NewWriter(nil)
			if err != nil {
				t.Fatal(err)
			}
			return string(w.EncodeAll([]byte(s), nil))
		},
		".tar.bz2": func(s string) string {
			cmd := exec.Command("bzip2", "-c")
			cmd.Stdin = strings.NewReader(s)
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("bzip2: %v: install bzip2", err)
			}
			return string(out)
		},
	} {
		t.Run(suffix, func(t *testing.T) {
			root := t.TempDir()
			put(t, root, map[string]string{"srcs/p-1.0" + suffix: pack(plain)})
			dir, err := place(&Place{Root: root, Time: at})
			if err != nil || dir != filepath.Join(root, "srcs/p") {
				t.Fatalf("%s, %v", dir, err)
			}
			for name, want := range map[string]struct {
				mode    fs.FileMode
				content string
			}{
				"":                  {0o700 | fs.ModeDir, ""},
				"deep":              {0o755 | fs.ModeDir, ""},
				"deep/er":           {0o755 | fs.ModeDir, ""},
				"deep/er/a.c":       {0o644, "int b;\n"},
				"configure":         {0o775, "#!/bin/sh\n"},
				"hard":              {0o775, "#!/bin/sh\n"},
				"link":              {fs.ModeSymlink | 0o777, "/etc/shadow"},
				"../p-1.0" + suffix: {0o644, pack(plain)},
			} {
				full := filepath.Join(dir, name)
				st, err := os.Lstat(full)
				if err != nil {
					t.Error(err)
					continue
				}
				if st.Mode() != want.mode {
					t.Errorf("%s has mode %v, want %v", name, st.Mode(), want.mode)
				}
				if !strings.HasPrefix(name, "../") && !st.ModTime().Equal(at) {
					t.Errorf("%s has time %v, want %v", name, st.ModTime(), at)
				}
				var got string
				switch {
				case st.Mode()&fs.ModeSymlink != 0:
					got, err = os.Readlink(full)
				case st.Mode().IsRegular():
					var b []byte
					b, err = os.ReadFile(full)
					got = string(b)
				}
				if err != nil || got != want.content {
					t.Errorf("%s holds %.40q (%v), want %.40q", name, got, err, want.content)
				}
			}
		})
	}
}

// FuzzUnpack unpacks whatever might be called a tarball: it ends, and nothing
// is made outside of its folder.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte(tarball(&testing.T{}, file("a/b", "x"), tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../.."}, file("l/x", "y"))))
	f.Add([]byte(tarball(&testing.T{}, file("../x", "y"), tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "../kept"})))
	f.Fuzz(func(t *testing.T, in []byte) {
		top := t.TempDir()
		below := filepath.Join(top, "in")
		put(t, top, map[string]string{"kept": "kept", "in/": ""})
		root, err := os.OpenRoot(below)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		_ = unpack(io.LimitReader(bytes.NewReader(in), 1<<20), root, at)
		if names, err := os.ReadDir(top); err != nil || len(names) != 2 {
			t.Fatalf("outside there is %v (%v)", names, err)
		}
		if b, err := os.ReadFile(filepath.Join(top, "kept")); err != nil || string(b) != "kept" {
			t.Fatalf("a file outside holds %q (%v)", b, err)
		}
	})
}
