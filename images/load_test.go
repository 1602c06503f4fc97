package images_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bindings "github.com/containers/podman/v4/pkg/bindings/images"
	"github.com/klauspost/compress/zstd"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/podman/tinyelf"
	"github.com/Morphux/quarry/internal/testbase"
)

// entry is one file of a small system.
type entry struct {
	name, link, data string
	kind             byte
	mode             int64
}

func rootfs(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Mode: e.mode, Size: int64(len(e.data))}
		if e.kind == 0 {
			h.Typeflag = tar.TypeReg
		}
		if e.mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func program(t testing.TB, arch string) string {
	t.Helper()
	m, ok := tinyelf.Of(arch)
	if !ok {
		t.Fatal("no machine", arch)
	}
	p, ok := m.Program()
	if !ok {
		t.Fatal("no program for", arch)
	}
	return string(p)
}

// small is the smallest system that passes for a base of the arch.
func small(t testing.TB, arch string, more ...entry) []byte {
	t.Helper()
	return rootfs(t, append([]entry{
		{name: "./", kind: tar.TypeDir}, {name: "./usr/", kind: tar.TypeDir}, {name: "./usr/bin/", kind: tar.TypeDir},
		{name: "./bin", kind: tar.TypeSymlink, link: "usr/bin"},
		{name: "./usr/bin/dash", data: program(t, arch)},
		{name: "./usr/bin/sh", kind: tar.TypeSymlink, link: "dash"},
	}, more...)...)
}

func file(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func command(t testing.TB, in []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: apt-get install xz-utils bzip2", name, err)
	}
	return out
}

func emptyFarm(t testing.TB) farm {
	t.Helper()
	conn := startPodman(t, podman.Config{})
	work := filepath.Join(t.TempDir(), "work")
	return farm{conn, newStore(t, conn, images.Options{WorkDir: work}), work}
}

func TestLoad(t *testing.T) {
	f := emptyFarm(t)
	arch := testbase.Arch
	plain := small(t, arch, entry{name: "./etc/", kind: tar.TypeDir}, entry{name: "./etc/mark", data: "here"})
	var gz bytes.Buffer
	zw := gzip.NewWriter(&gz)
	zw.Write(plain)
	zw.Close()
	zs, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := f.store.Bases(t.Context()); err != nil || len(list) != 0 {
		t.Fatalf("%v, %v", list, err)
	}
	digests := map[string]bool{}
	check := func(t *testing.T, path string) {
		t.Helper()
		var steps []string
		b, err := f.store.Load(t.Context(), arch, path, func(p images.Progress) {
			if len(steps) == 0 || steps[len(steps)-1] != p.Step {
				steps = append(steps, p.Step)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if b.Arch != arch || b.Source != filepath.Base(path) || b.Size < 100 || b.Created.IsZero() || len(b.Digest) != 71 {
			t.Errorf("%+v", b)
		}
		if len(steps) == 0 || steps[len(steps)-1] != "checking" {
			t.Errorf("steps %v", steps)
		}
		digests[b.Digest] = true
		list, err := f.store.Bases(t.Context())
		if err != nil || len(list) != 1 || list[0] != b {
			t.Errorf("%+v, %v", list, err)
		}
		w, err := f.store.Workspace(t.Context(), images.Spec{Name: "1", Arch: arch})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close(t.Context())
		if w.Base != b {
			t.Errorf("base %+v", w.Base)
		}
		// The guest, too, is Quarry's own: even the smallest base runs it.
		if a := ask(t, w, request{Shell: "anything"}); a.Status != 0 {
			t.Errorf("%+v", a)
		}
	}
	for name, data := range map[string][]byte{
		"plain.tar": plain, "x.tar.gz": gz.Bytes(), "x.tar.zst": zs.EncodeAll(plain, nil),
		"x.tar.xz": command(t, plain, "xz"), "x.tar.bz2": command(t, plain, "bzip2"),
		"no name that tells": command(t, plain, "xz", "-9"),
		`odd "name" $HOME\`:  plain,
	} {
		t.Run(name, func(t *testing.T) {
			path := file(t, name, data)
			if strings.Contains(name, "odd") {
				if _, err := f.store.Load(t.Context(), arch, path, nil); err != nil {
					t.Fatal(err)
				}
				return
			}
			check(t, path)
		})
	}
	t.Run("without the xz program", func(t *testing.T) {
		path := file(t, "x.tar.xz", command(t, plain, "xz"))
		t.Setenv("PATH", "/nowhere")
		check(t, path)
	})
	for _, format := range []string{"oci-archive", "docker-archive"} {
		t.Run(format, func(t *testing.T) {
			call, err := f.conn.Context(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			if err := bindings.Export(call, []string{"localhost/quarry/base:" + arch}, &b, new(bindings.ExportOptions).WithFormat(format).WithCompress(false)); err != nil {
				t.Fatal(err)
			}
			if err := f.store.Remove(t.Context(), arch); err != nil {
				t.Fatal(err)
			}
			if list, err := f.store.Bases(t.Context()); err != nil || len(list) != 0 {
				t.Fatalf("removed, but: %v, %v", list, err)
			}
			check(t, file(t, format+".tar", b.Bytes()))
			var packed bytes.Buffer
			zw := gzip.NewWriter(&packed)
			zw.Write(b.Bytes())
			zw.Close()
			check(t, file(t, format+".tgz", packed.Bytes()))
		})
	}
	if err := f.store.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.store.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := nameless(t, f.conn); len(left) > 0 {
		t.Errorf("replaced bases are left: %v", left)
	}
	// However it was packed, it is one system.
	sum := sha256.Sum256(plain)
	if want := "sha256:" + hex.EncodeToString(sum[:]); len(digests) != 1 || !digests[want] {
		t.Errorf("digests %v, not just %s", digests, want)
	}
}

// nameless lists images that no base is.
func nameless(t testing.TB, conn *podman.Conn) (ids []string) {
	t.Helper()
	call, err := conn.Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list, err := bindings.List(call, new(bindings.ListOptions).WithAll(true))
	if err != nil {
		t.Fatal(err)
	}
	for _, img := range list {
		if !slices.ContainsFunc(img.RepoTags, func(n string) bool { return strings.HasPrefix(n, "localhost/quarry/base:") }) {
			ids = append(ids, img.ID)
		}
	}
	return ids
}

// Replacing or removing a base changes nothing for the builds that run on it.
func TestReplace(t *testing.T) {
	t.Parallel()
	f := emptyFarm(t)
	arch := testbase.Arch
	load := func(mark string) images.Base {
		b, err := f.store.Load(t.Context(), arch, file(t, mark, small(t, arch, entry{name: "./mark", data: mark})), nil)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	one := load("one")
	w := f.workspace(t, images.Limits{})
	two := load("two")
	if one.Digest == two.Digest {
		t.Fatal("different bases have one digest")
	}
	w2 := f.workspace(t, images.Limits{})
	if w.Base.Digest != one.Digest || w2.Base.Digest != two.Digest {
		t.Errorf("%s and %s", w.Base.Digest, w2.Base.Digest)
	}
	if err := f.store.Remove(t.Context(), arch); err != nil {
		t.Fatal(err)
	}
	var none *images.NoBaseError
	if _, err := f.store.Workspace(t.Context(), images.Spec{Name: "1", Arch: arch}); !errors.As(err, &none) || none.Arch != arch {
		t.Errorf("%v", err)
	}
	if err := f.store.Remove(t.Context(), arch); !errors.As(err, &none) {
		t.Errorf("removed twice: %v", err)
	}
	for _, w := range []*images.Workspace{w, w2} {
		if _, err := try(w, request{Action: "env"}); err != nil {
			t.Errorf("a running build lost its base: %v", err)
		}
		w.Close(t.Context())
	}
	f.clean(t)
	if err := f.store.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := nameless(t, f.conn); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestLoadRefusals(t *testing.T) {
	t.Parallel()
	f := emptyFarm(t)
	arch := testbase.Arch
	foreign := "aarch64"
	if arch == foreign {
		foreign = "x86_64"
	}
	good, err := f.store.Load(t.Context(), arch, file(t, "good", small(t, arch)), nil)
	if err != nil {
		t.Fatal(err)
	}
	whole := small(t, arch, entry{name: "./big", data: strings.Repeat("random enough", 1<<20)})
	var cut bytes.Buffer
	zw := gzip.NewWriter(&cut)
	zw.Write(whole)
	zw.Close()
	cut.Truncate(cut.Len() / 2)
	call, err := f.conn.Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := bindings.Export(call, []string{"localhost/quarry/base:" + arch}, &archive, new(bindings.ExportOptions).WithFormat("oci-archive")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		arch string
		data []byte
		says string
	}{
		"empty":           {arch, nil, "is empty"},
		"garbage":         {arch, []byte(strings.Repeat("not a tar\n", 1000)), "no tar archive"},
		"garbage in gzip": {arch, command(t, []byte("hello"), "gzip", "-c"), "no tar archive"},
		"broken gzip":     {arch, []byte("\x1f\x8bnonsense"), "gzip"},
		"broken xz":       {arch, append([]byte("\xfd7zXZ\x00"), make([]byte, 100)...), "xz"},
		"truncated":       {arch, cut.Bytes(), "unexpected EOF"},
		"truncated tar":   {arch, whole[:len(whole)/2], "unexpected EOF"},
		"wrong arch":      {foreign, small(t, arch), "program for " + arch},
		"wrong archive":   {foreign, archive.Bytes(), "says that it is for"},
		"no shell":        {arch, rootfs(t, entry{name: "./etc/", kind: tar.TypeDir}, entry{name: "./etc/x", data: "x"}), "/bin/sh"},
		"shell is a text": {arch, rootfs(t, entry{name: "bin/", kind: tar.TypeDir}, entry{name: "bin/sh", data: "#!/bin/sh\n# a script is no shell"}), "not an ELF program"},
		"links in a ring": {arch, rootfs(t, entry{name: "bin/", kind: tar.TypeDir}, entry{name: "bin/sh", kind: tar.TypeSymlink, link: "sh"}), "/bin/sh"},
		"noarch":          {"noarch", small(t, arch), "noarch has no base"},
		"option":          {"--all", small(t, arch), "may not begin"},
		"archive of nothing": {arch, rootfs(t, entry{name: "oci-layout", data: `{"imageLayoutVersion":"1.0.0"}`},
			entry{name: "index.json", data: `{"schemaVersion":2,"manifests":[]}`}), "holds 0 images"},
		"archive of nonsense": {arch, rootfs(t, entry{name: "oci-layout", data: `{"imageLayoutVersion":"1.0.0"}`},
			entry{name: "index.json", data: `[`}), "index.json"},
		"docker archive of nothing": {arch, rootfs(t, entry{name: "manifest.json", data: `[]`}), "cannot be imported"},
		"archive that leads out":    {arch, rootfs(t, entry{name: "manifest.json", data: `[{"Config":"../../../../etc/passwd","Layers":["/etc/passwd"]}]`}), "cannot be imported"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := f.store.Load(t.Context(), c.arch, file(t, "base.tar", c.data), nil)
			if err == nil {
				t.Fatalf("loaded: %+v", b)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not say %q", err, c.says)
			}
			if strings.Contains(err.Error(), "\n") || len(err.Error()) > 700 {
				t.Errorf("more than one line, or a long one: %q", err)
			}
		})
	}
	if _, err := f.store.Load(t.Context(), arch, "/dev/zero", nil); err == nil {
		t.Error("a device was loaded")
	}
	if _, err := f.store.Load(t.Context(), arch, "/nowhere", nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.store.Load(ctx, arch, file(t, "x", small(t, arch)), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	// Nothing of this changed the base.
	if now, err := f.store.Base(t.Context(), arch); err != nil || now.Digest != good.Digest || now.Source != good.Source {
		t.Errorf("%+v, %v, not %+v", now, err, good)
	}
	if err := f.store.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := nameless(t, f.conn); len(left) > 0 {
		t.Errorf("images are left: %v", left)
	}
	f.clean(t)
	tmp, err := os.ReadDir(filepath.Join(f.conn.Dir(), "tmp"))
	if err != nil || len(tmp) > 0 {
		t.Errorf("temporary files are left: %v, %v", tmp, err)
	}
}

// What a tarball says must not reach outside of the image.
func TestHostileTarball(t *testing.T) {
	t.Parallel()
	f := emptyFarm(t)
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 40)
	for name, bad := range map[string][]entry{
		"dots":          {{name: up + victim[1:], data: "owned"}},
		"absolute":      {{name: victim, data: "owned"}},
		"through link":  {{name: "esc", kind: tar.TypeSymlink, link: dir}, {name: "esc/victim", data: "owned"}},
		"through dots":  {{name: "esc", kind: tar.TypeSymlink, link: up + dir[1:]}, {name: "esc/victim", data: "owned"}},
		"hard link":     {{name: "h", kind: tar.TypeLink, link: victim}, {name: "h", data: "owned"}},
		"hard link up":  {{name: "h", kind: tar.TypeLink, link: up + victim[1:]}, {name: "h", data: "owned"}},
		"whiteout":      {{name: ".wh..wh..opq", data: ""}, {name: up + dir[1:] + "/.wh.victim", data: ""}},
		"shell is host": {{name: "./usr/bin/dash", kind: tar.TypeSymlink, link: up + "bin/true"}},
		"many":          slices.Repeat([]entry{{name: "same", data: "x"}}, 5000),
		"long name":     {{name: strings.Repeat("d/", 3000) + "f", data: "x"}},
		"odd name":      {{name: "a\nb\xff\x1b[31m", data: "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			// Either it is refused or it stays inside; both are fine.
			_, err := f.store.Load(t.Context(), testbase.Arch, file(t, "x", small(t, testbase.Arch, bad...)), nil)
			if err != nil && (strings.Contains(err.Error(), "\n") || len(err.Error()) > 700) {
				t.Errorf("more than one line, or a long one: %q", err)
			}
			if got, rerr := os.ReadFile(victim); rerr != nil || string(got) != "untouched" {
				t.Errorf("the host was written to: %q, %v (%v)", got, rerr, err)
			}
			if name == "shell is host" && err == nil {
				t.Error("the host's programs were taken for the image's")
			}
		})
	}
	// Podman lives and loads.
	if _, err := f.store.Load(t.Context(), testbase.Arch, file(t, "x", small(t, testbase.Arch)), nil); err != nil {
		t.Error(err)
	}
}

func TestBootstrapRefusals(t *testing.T) {
	f := emptyFarm(t)
	for name, c := range map[string]struct {
		arch string
		opts images.BootstrapOptions
		says string
	}{
		"option as suite":   {testbase.Arch, images.BootstrapOptions{Suite: "--hook-dir=/tmp"}, "no name of a Debian release"},
		"option as package": {testbase.Arch, images.BootstrapOptions{Include: []string{"-x"}}, "no name of a Debian package"},
		"two packages":      {testbase.Arch, images.BootstrapOptions{Include: []string{"a,b"}}, "no name of a Debian package"},
		"variant":           {testbase.Arch, images.BootstrapOptions{Variant: "custom"}, "minbase"},
		"mirror":            {testbase.Arch, images.BootstrapOptions{Mirror: "deb [trusted=yes] http://x y z"}, "no address"},
		"arch":              {"pdp11", images.BootstrapOptions{}, "do not run on this machine"},
		"no such mirror":    {testbase.Arch, images.BootstrapOptions{Mirror: "file:///nowhere"}, "mmdebstrap failed"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.store.Bootstrap(t.Context(), c.arch, c.opts, nil)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v does not say %q", err, c.says)
			}
		})
	}
	t.Run("no mmdebstrap", func(t *testing.T) {
		t.Setenv("PATH", "/nowhere")
		if _, err := f.store.Bootstrap(t.Context(), testbase.Arch, images.BootstrapOptions{}, nil); err == nil || !strings.Contains(err.Error(), "apt-get install mmdebstrap") {
			t.Errorf("%v", err)
		}
	})
	left, err := filepath.Glob(filepath.Join(f.conn.Dir(), "tmp-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
