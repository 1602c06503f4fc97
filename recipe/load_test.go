package recipe

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/Morphux/quarry/internal/testpkg"
)

// folder makes a package folder: a content that begins with -> is a link, a
// path that ends in / a folder.
func folder(t *testing.T, files map[string]string) fs.FS {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(target, path)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return os.DirFS(dir)
}

const (
	listed    = `{"package": {"name": "a", "version": "1", "description": "d"}, "compilation": {"patches": ["2.patch", "1.patch"]}}`
	unlisted  = `{"package": {"name": "a", "version": "1", "description": "d"}, "compilation": {}}`
	elsewhere = `{"package": {"name": "a", "version": "1", "description": "d"}, "compilation": {}, "quarry": {"directory": "srcs/unix"}}`
)

func TestLoad(t *testing.T) {
	for _, tt := range []struct {
		name    string
		files   map[string]string
		patches []string
		want    string // the error, "" for none
	}{
		{"listed", map[string]string{"package.json": listed, "srcs/x": "", "patches/1.patch": "", "patches/2.patch": "", "patches/3.patch": ""},
			[]string{"2.patch", "1.patch"}, ""},
		{"unlisted", map[string]string{"package.json": unlisted, "srcs/x": "", "patches/b": "", "patches/a.patch": "", "patches/.gitkeep": ""},
			[]string{"a.patch", "b"}, ""},
		{"no patches", map[string]string{"package.json": unlisted, "srcs/x": ""}, nil, ""},
		{"no package.json", map[string]string{"srcs/x": ""}, nil, "package.json: is missing"},
		{"package.json is a link", map[string]string{"package.json": "->real", "real": unlisted}, nil, "package.json: is a link: it must be a regular file"},
		{"package.json is a link to a secret", map[string]string{"package.json": "->/etc/passwd"}, nil, "package.json: is a link"},
		{"package.json is a folder", map[string]string{"package.json/": ""}, nil, "package.json: is a folder"},
		{"package.json is huge", map[string]string{"package.json": strings.Repeat(" ", MaxSize+1)}, nil, "package.json: is too large: 262144 bytes is the most"},
		{"package.json is wrong", map[string]string{"package.json": "{"}, nil, "package.json:1:2: the document ends too early"},
		{"patch missing", map[string]string{"package.json": listed, "srcs/x": "", "patches/2.patch": ""}, nil,
			"package.json:1:103: compilation.patches[1] names patches/1.patch, which is missing: add it, or take it off the list"},
		{"patch is a link", map[string]string{"package.json": listed, "srcs/x": "", "patches/2.patch": "->/etc/passwd", "patches/1.patch": ""}, nil,
			"compilation.patches[0] names patches/2.patch, which is a link"},
		{"patches is a link", map[string]string{"package.json": listed, "srcs/x": "", "patches": "->elsewhere", "elsewhere/1.patch": ""}, nil, "patches: is a link: it must be a folder"},
		{"patches is a file", map[string]string{"package.json": unlisted, "srcs/x": "", "patches": ""}, nil, "patches: is a file: it must be a folder"},
		{"unlisted patch is a link", map[string]string{"package.json": unlisted, "srcs/x": "", "patches/a": "->/etc/passwd"}, nil, `"patches/a": is a link: only regular files`},
		{"unlisted patch is a folder", map[string]string{"package.json": unlisted, "srcs/x": "", "patches/a/": ""}, nil, `"patches/a": is a folder: only regular files`},
		{"unlisted patch is an option", map[string]string{"package.json": unlisted, "srcs/x": "", "patches/-R": ""}, nil, `begins with neither a dash`},
		{"unlisted patch is odd", map[string]string{"package.json": unlisted, "srcs/x": "", "patches/a\nb\xff": ""}, nil, `UTF-8 without control characters`},
		{"script is a link", map[string]string{"package.json": unlisted, "srcs/x": "", "scripts/before.sh": "->/bin/sh"}, nil, "scripts/before.sh: is a link"},
		{"scripts is a link", map[string]string{"package.json": unlisted, "srcs/x": "", "scripts": "->srcs"}, nil, "scripts: is a link: it must be a folder"},
		{"srcs is a link", map[string]string{"package.json": unlisted, "srcs": "->/"}, nil, "srcs: is a link: it must be a folder"},
		{"directory", map[string]string{"package.json": elsewhere, "srcs/unix/x": ""}, nil, ""},
		{"directory from a tarball", map[string]string{"package.json": elsewhere, "srcs/x.tar": ""}, nil, ""},
		{"directory is a link", map[string]string{"package.json": elsewhere, "srcs/unix": "->/"}, nil, "quarry.directory names srcs/unix, which is a link"},
		{"directory is missing", map[string]string{"package.json": strings.Replace(elsewhere, "srcs/unix", "src", 1)}, nil, "quarry.directory names src, which is missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := Load(folder(t, tt.files))
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("error %q, want %q", err, tt.want)
				}
				if len(Problems(err)) == 0 {
					t.Fatalf("%T is not the recipe's fault", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.patches, r.Patches); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLoadWithoutSources(t *testing.T) {
	r, err := Load(folder(t, map[string]string{"package.json": unlisted}))
	if err != nil || len(r.Warnings) != 1 || !strings.HasPrefix(r.Warnings[0], "srcs: is missing") {
		t.Errorf("%+v, %v", r, err)
	}
}

// A disk that cannot be read is not the maintainer's fault.
func TestLoadTellsTroubleFromFault(t *testing.T) {
	trouble := errors.New("input/output error")
	_, err := Load(badFS{folder(t, map[string]string{"package.json": unlisted}), trouble})
	if !errors.Is(err, trouble) || len(Problems(err)) != 0 {
		t.Errorf("error %v with problems %v", err, Problems(err))
	}
}

type badFS struct {
	fs.FS
	err error
}

func (b badFS) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: b.err}
}
func (b badFS) Lstat(name string) (fs.FileInfo, error) { return fs.Lstat(b.FS, name) }
func (b badFS) ReadLink(name string) (string, error)   { return fs.ReadLink(b.FS, name) }

// The packages of the demo are right, whatever their builds come to.
func TestLoadPackages(t *testing.T) {
	entries, err := os.ReadDir(filepath.Dir(testpkg.Dir(t, "hello")))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		names = append(names, e.Name())
		r, err := Load(os.DirFS(testpkg.Dir(t, e.Name())))
		if err != nil {
			t.Errorf("%s: %v", e.Name(), err)
			continue
		}
		if r.Package != e.Name() || r.Version != "1.0" || len(r.Warnings) > 0 {
			t.Errorf("%s: %+v", e.Name(), r)
		}
		if all := e.Name() == "autohello"; r.Before != all || r.After != all || r.HasConfigure != all || (len(r.Patches) == 2) != all {
			t.Errorf("%s: %+v", e.Name(), r)
		}
	}
	if want := []string{"autohello", "broken", "escaper", "greeter", "hello", "libgreet"}; !slices.Equal(names, want) {
		t.Errorf("packages %q, want %q", names, want)
	}
}
