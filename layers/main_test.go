package layers

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/internal/overlay"
	"github.com/Morphux/quarry/internal/podman/deltree"
)

func TestMain(m *testing.M) {
	Unpacker()
	if dir := os.Getenv("QUARRY_TEST_LAYERS_VICTIM"); dir != "" {
		victim(dir)
	}
	os.Exit(m.Run())
}

// ids are the host's of the root of the test's systems.
const ids = 100000

// farm is a system to make layers over, a store of artifacts and a cache.
type farm struct {
	dir   string
	root  *Root
	store *extract.Artifacts
	cache *Cache
}

// base is a usr-merged system with links to what there is and what there is not.
var base = []entryOf{
	{"usr/bin/sh", "file", "shell", 0o755}, {"usr/lib/libc.so", "file", "libc", 0o644}, {"usr/share/d/old", "file", "old", 0o644},
	{"lib", "link", "usr/lib", 0}, {"bin", "link", "/usr/bin", 0}, {"etc/alt", "dir", "", 0o755}, {"etc/conf", "file", "base", 0o600},
	{"run", "dir", "", 0o755}, {"var/run", "link", "/run", 0}, {"var/lock", "link", "/run/lock/deep", 0}, {"opt/x", "link", "/srv/x", 0},
	{"usr/bin/awk", "link", "/etc/alt/awk", 0}, {"usr/local/man", "link", "share/man", 0}, {"usr/local/share/man", "dir", "", 0o755},
	{"tmp", "dir", "", 0o1777},
}

// entryOf is a file of a tree made by hand. Folders above it are made too.
type entryOf struct {
	path, kind, data string
	mode             uint32
}

func plant(t testing.TB, root string, uid int, tree []entryOf) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range tree {
		p := filepath.Join(root, e.path)
		must(os.MkdirAll(filepath.Dir(p), 0o755))
		switch e.kind {
		case "dir":
			must(os.MkdirAll(p, 0o755))
		case "file":
			must(os.WriteFile(p, []byte(e.data), 0o600))
		case "link":
			must(os.Symlink(e.data, p))
		case "hard":
			must(os.Link(filepath.Join(root, e.data), p))
		case "fifo":
			must(unix.Mkfifo(p, 0o600))
		}
		if e.kind != "link" && e.kind != "hard" {
			must(unix.Chmod(p, e.mode))
		}
	}
	must(filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := os.Lstat(p)
		if err != nil {
			return err
		}
		if err := os.Lchown(p, uid, uid); err != nil {
			return err
		}
		if st.Mode()&(os.ModeSetuid|os.ModeSetgid) != 0 {
			return os.Chmod(p, st.Mode())
		}
		return nil
	}))
}

func newFarm(t testing.TB, o Options) *farm {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("layers are tested as root: run the tests with sudo, or inside podman unshare")
	}
	f := &farm{dir: t.TempDir()}
	t.Cleanup(func() { deltree.Clear(f.dir) })
	low := filepath.Join(f.dir, "base")
	plant(t, low, ids, base)
	f.root = &Root{Digest: "sha256:base", Lower: []overlay.Lower{{Dir: low}}, UID: ids, GID: ids, Count: 65536}
	var err error
	if f.store, err = extract.OpenArtifacts(filepath.Join(f.dir, "artifacts")); err != nil {
		t.Fatal(err)
	}
	o.Dir = filepath.Join(f.dir, "cache")
	if f.cache, err = Open(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.cache.Close() })
	return f
}

// artifact packs a tree.
func (f *farm) artifact(t testing.TB, tree ...entryOf) string {
	t.Helper()
	sha, err := f.pack(t, tree)
	if err != nil {
		t.Fatal(err)
	}
	return sha
}

func (f *farm) pack(t testing.TB, tree []entryOf) (string, error) {
	t.Helper()
	src := filepath.Join(t.TempDir(), "staged")
	if err := os.Mkdir(src, 0o755); err != nil {
		t.Fatal(err)
	}
	plant(t, src, ids, tree)
	_, art, err := extract.Tree(t.Context(), src, extract.Options{UIDBase: ids, GIDBase: ids, Store: f.store, SourceTime: time.Unix(1e9, 0)})
	if err != nil {
		return "", err
	}
	return art.SHA256, nil
}

func (f *farm) get(t testing.TB, sha string) *Layer {
	t.Helper()
	l, err := f.cache.Get(t.Context(), f.root, sha, f.store.Path(sha))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Release)
	return l
}

// mount mounts layers, the first lowest, over the base with a new one to write to.
func (f *farm) mount(t testing.TB, ls ...*Layer) *os.File {
	t.Helper()
	d := t.TempDir()
	t.Cleanup(func() { deltree.Clear(d) })
	s := overlay.Spec{Upper: d + "/upper", Work: d + "/work", Scratch: d + "/scratch"}
	for _, p := range []string{s.Upper, s.Work, s.Scratch} {
		if err := os.Mkdir(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(s.Upper, ids, ids); err != nil {
		t.Fatal(err)
	}
	for _, l := range slices.Backward(ls) {
		s.Lower = append(s.Lower, overlay.Lower{Dir: l.Dir})
	}
	s.Lower = append(s.Lower, f.root.Lower...)
	m, err := overlay.New(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// install installs artifacts into a mounted tree, as a workspace's guest does.
func (f *farm) install(ctx context.Context, m *os.File, shas ...string) error {
	for _, sha := range shas {
		if _, err := f.cache.install(ctx, f.root, m, sha, f.store.Path(sha)); err != nil {
			return err
		}
	}
	return nil
}

// listing describes a tree: all but the times of folders, which depend on when
// something was made in them. Files that are one have the same number.
func listing(t testing.TB, m *os.File) string {
	t.Helper()
	root := fmt.Sprintf("/proc/self/fd/%d", m.Fd())
	var lines []string
	first := map[[2]uint64]string{}
	err := filepath.WalkDir(root+"/.", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(p, root), "/.")
		line := fmt.Sprintf("%s %o %d:%d", name, st.Mode, st.Uid, st.Gid)
		if !d.IsDir() {
			line += fmt.Sprintf(" %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + to
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(data)
			line += " " + hex.EncodeToString(sum[:8])
			id := [2]uint64{st.Dev, st.Ino}
			if first[id] == "" {
				first[id] = name
			} else {
				line += " = " + first[id]
			}
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}
