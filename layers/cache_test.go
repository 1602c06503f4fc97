package layers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/overlay"
)

// again opens the cache once more, as a process does that follows on one that
// was killed; with end the first one is closed as it should be.
func (f *farm) again(t testing.TB, end bool, o Options) {
	t.Helper()
	if end {
		if err := f.cache.Close(); err != nil {
			t.Fatal(err)
		}
	} else {
		f.cache.work.Wait()
		f.cache.lock.Close()
	}
	o.Dir = f.cache.opts.Dir
	c, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	f.cache = c
}

// there reports whether an artifact's layer is in the cache.
func (f *farm) there(sha string) bool {
	_, err := os.Stat(filepath.Join(f.cache.opts.Dir, f.root.key(sha), nameMeta))
	return err == nil
}

func TestLayer(t *testing.T) {
	f := newFarm(t, Options{})
	sha := f.artifact(t, entryOf{"lib/a", "file", "a", 0o4755}, entryOf{"usr/share/new/b", "hard", "lib/a", 0}, entryOf{"opt/d", "dir", "", 0o2750})
	l := f.get(t, sha)
	for path, want := range map[string]uint32{
		"": unix.S_IFDIR | 0o755, "usr": unix.S_IFDIR | 0o755, "usr/lib/a": unix.S_IFREG | 0o4755, "usr/share/new/b": unix.S_IFREG | 0o4755, "opt/d": unix.S_IFDIR | 0o2750,
	} {
		var st unix.Stat_t
		p := filepath.Join(l.Dir, path)
		if err := unix.Lstat(p, &st); err != nil || st.Mode != want || st.Uid != ids {
			t.Errorf("%s: mode %o, owner %d, %v", path, st.Mode, st.Uid, err)
		}
		// Notes of the overlay that it was written in would hide other layers.
		buf := make([]byte, 4096)
		if n, err := unix.Llistxattr(p, buf); err != nil || bytes.Contains(buf[:n], []byte("overlay")) {
			t.Errorf("%s: attributes %q, %v", path, buf[:n], err)
		}
	}
	if _, err := os.Lstat(filepath.Join(l.Dir, "lib")); err == nil {
		t.Error("the layer has /lib, which is the base's link")
	}
	if files, bytes := l.Size(); files != 8 || bytes < 4096 {
		t.Errorf("%d files, %d bytes", files, bytes)
	}
	var st unix.Stat_t
	if err := unix.Stat(f.cache.opts.Dir, &st); err != nil || st.Mode&0o7777 != 0o700 {
		t.Errorf("the cache's folder has mode %o, %v: setuid programs lie in it", st.Mode, err)
	}
	// Another base, other owners: other layers.
	for _, change := range []func(*Root){func(r *Root) { r.Digest = "sha256:other" }, func(r *Root) {
		low := filepath.Join(f.dir, "base of others")
		plant(t, low, 200000, base)
		r.UID, r.GID, r.Lower = 200000, 200000, []overlay.Lower{{Dir: low}}
	}} {
		r := *f.root
		change(&r)
		o, err := f.cache.Get(t.Context(), &r, sha, f.store.Path(sha))
		if err != nil {
			t.Fatal(err)
		}
		if o.Dir == l.Dir {
			t.Error("one layer for two systems")
		}
		o.Release()
		o.Release() // once is all it counts
	}
	if n, _, busy := f.cache.Usage(); n != 3 || busy != 1 {
		t.Errorf("%d layers, %d in use", n, busy)
	}
	if _, err := Open(Options{Dir: f.cache.opts.Dir}); err == nil || !strings.Contains(err.Error(), "in use by another") {
		t.Errorf("a second process: %v", err)
	}
}

// What is no good artifact makes no layer and leaves nothing.
func TestBadArtifacts(t *testing.T) {
	f := newFarm(t, Options{Limit: 1 << 20})
	good := f.artifact(t, entryOf{"usr/a", "file", strings.Repeat("a", 1000), 0o644})
	data, err := os.ReadFile(f.store.Path(good))
	if err != nil {
		t.Fatal(err)
	}
	bad := func(data []byte) string {
		p := filepath.Join(t.TempDir(), "x")
		if err := os.WriteFile(p, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	other := f.artifact(t, entryOf{"usr/b", "file", "b", 0o644})
	bomb := f.artifact(t, entryOf{"usr/zero", "file", string(make([]byte, 3<<20)), 0o644})
	for want, c := range map[string][2]string{
		"is damaged, its bytes have the hash": {good, f.store.Path(other)},
		"cannot read the artifact":            {good, bad([]byte("nonsense"))},
		"cut short":                           {good, bad(data[:0])},
		"no such file":                        {good, filepath.Join(f.dir, "nowhere")},
		"a folder has to be":                  {f.artifact(t, entryOf{"etc/conf/x", "file", "x", 0o644}), ""},
		"larger than":                         {bomb, ""},
	} {
		path := c[1]
		if path == "" {
			path = f.store.Path(c[0])
		}
		l, err := f.cache.Get(t.Context(), f.root, c[0], path)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, %v", want, l, err)
		}
	}
	f.cache.work.Wait()
	if left, err := os.ReadDir(f.cache.path(nameTmp)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	f.get(t, good) // the same name with the right bytes
	if _, err := f.cache.Get(t.Context(), &Root{}, good, f.store.Path(good)); err == nil {
		t.Error("a layer over a root without a digest")
	}
	var none *Cache
	if _, err := none.Get(t.Context(), f.root, good, ""); !errors.Is(err, errOff) || none.Close() != nil || none.Clean() != 0 {
		t.Errorf("no cache: %v", err)
	}
}

// A layer is used again without its artifact, also by the next process, and
// after a restart of the machine if it was on disk for sure.
func TestKept(t *testing.T) {
	f := newFarm(t, Options{})
	a, b := f.artifact(t, entryOf{"usr/a", "file", "a", 0o644}), f.artifact(t, entryOf{"usr/b", "file", "b", 0o644})
	f.get(t, a).Release()
	without := func(sha string) {
		t.Helper()
		l, err := f.cache.Get(t.Context(), f.root, sha, "/nowhere")
		if err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(filepath.Join(l.Dir, "usr", map[string]string{a: "a", b: "b"}[sha])); err != nil || len(data) != 1 {
			t.Errorf("%q, %v", data, err)
		}
		l.Release()
	}
	without(a)
	f.again(t, false, Options{}) // killed
	without(a)
	reboot := func() {
		t.Helper()
		if err := os.WriteFile(f.cache.path(nameBoot), []byte("another boot"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.again(t, true, Options{}) // stopped: now it is on disk
	f.get(t, b).Release()
	reboot()
	f.again(t, false, Options{})
	without(a)
	if f.there(b) {
		t.Error("a layer that may be half on disk is kept after a restart")
	}
	// Made anew under the same name it is another, which nobody has written to disk.
	f.cache.Clean()
	f.get(t, a).Release()
	reboot()
	f.again(t, false, Options{})
	if f.there(a) {
		t.Error("a layer made anew passes for the one that was on disk")
	}
	// Half a layer: what an unpacking leaves that was cut off.
	if err := os.MkdirAll(f.cache.path(f.root.key(a), nameDiff, "usr"), 0o755); err != nil {
		t.Fatal(err)
	}
	f.again(t, false, Options{})
	if n, _, _ := f.cache.Usage(); n != 0 {
		t.Errorf("%d layers", n)
	}
	f.get(t, a)
}

// A layer in which somebody has been is noticed when it is first used.
func TestAltered(t *testing.T) {
	f := newFarm(t, Options{})
	sha := f.artifact(t, entryOf{"usr/a", "file", "a", 0o644}, entryOf{"usr/b", "file", "b", 0o644})
	dir := f.get(t, sha).Dir
	f.again(t, false, Options{})
	if err := os.Remove(filepath.Join(dir, "usr/b")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.cache.Get(t.Context(), f.root, sha, f.store.Path(sha)); err == nil || !strings.Contains(err.Error(), "was altered") {
		t.Errorf("altered layer: %v", err)
	}
	l := f.get(t, sha)
	if _, err := os.Stat(filepath.Join(l.Dir, "usr/b")); err != nil {
		t.Error(err)
	}
}

// How many blocks a layer takes is the file system's own business, and may change
// when it has been written for a while.
func TestBlocksMayChange(t *testing.T) {
	f := newFarm(t, Options{})
	sha := f.artifact(t, entryOf{"usr/a", "file", "a", 0o644}, entryOf{"usr/b", "link", "a", 0o777})
	id := f.get(t, sha).Dir
	name := filepath.Join(filepath.Dir(id), "meta.json")
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var m meta
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	m.Bytes += 4096
	if data, err = json.Marshal(m); err == nil {
		err = os.WriteFile(name, data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.again(t, true, Options{})
	if _, err := f.cache.Get(t.Context(), f.root, sha, f.store.Path(sha)); err != nil {
		t.Error(err)
	}
}

// The longest unused layers go first, and none that is in use.
func TestEviction(t *testing.T) {
	f := newFarm(t, Options{Limit: 3 << 20})
	var shas []string
	for i := range 5 {
		shas = append(shas, f.artifact(t, entryOf{fmt.Sprintf("usr/f%d", i), "file", strings.Repeat(fmt.Sprint(i), 900<<10), 0o644}))
	}
	held := f.get(t, shas[0])
	for _, sha := range shas[1:3] {
		f.get(t, sha).Release()
	}
	f.get(t, shas[1]).Release() // used again: 2 is the oldest now
	f.get(t, shas[3]).Release()
	kept := func(want string) {
		t.Helper()
		got := ""
		for i, sha := range shas {
			if f.there(sha) {
				got += fmt.Sprint(i)
			}
		}
		if got != want {
			t.Errorf("layers %s are kept, want %s", got, want)
		}
	}
	kept("013")
	// The order outlives the process.
	held.Release()
	f.get(t, shas[1]).Release()
	f.again(t, false, Options{Limit: 3 << 20})
	f.get(t, shas[4]).Release()
	kept("014")
	one := f.get(t, shas[0])
	f.again2(t)
	one.Release()
	if freed := f.cache.Clean(); freed < 500<<10 {
		t.Errorf("cleaning frees %d bytes", freed)
	}
	kept("")
	if left, err := os.ReadDir(f.cache.path(nameTmp)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// again2 checks that cleaning leaves what is in use.
func (f *farm) again2(t testing.TB) {
	t.Helper()
	f.cache.Clean()
	if n, _, busy := f.cache.Usage(); n != 1 || busy != 1 {
		t.Errorf("%d layers, %d in use, after cleaning", n, busy)
	}
}

// Many ask at once for few layers: each is made once.
func TestAtOnce(t *testing.T) {
	f := newFarm(t, Options{})
	var shas []string
	for i := range 3 {
		shas = append(shas, f.artifact(t, entryOf{fmt.Sprintf("usr/f%d", i), "file", "x", 0o644}, entryOf{"usr/bin/f", "file", fmt.Sprint(i), 0o755}))
	}
	// Somebody who gives up does not take the others along.
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for _, sha := range shas {
		all.Go(func() {
			if l, err := f.cache.Get(ctx, f.root, sha, f.store.Path(sha)); err == nil {
				l.Release()
			} else if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	cancel()
	var mu sync.Mutex
	dirs := map[string]int{}
	for i := range 30 {
		all.Go(func() {
			l, err := f.cache.Get(t.Context(), f.root, shas[i%3], f.store.Path(shas[i%3]))
			if err != nil {
				t.Error(err)
				return
			}
			defer l.Release()
			data, err := os.ReadFile(filepath.Join(l.Dir, "usr/bin/f"))
			if err != nil || string(data) != fmt.Sprint(i%3) {
				t.Errorf("%q, %v", data, err)
			}
			mu.Lock()
			dirs[l.Dir]++
			mu.Unlock()
		})
	}
	all.Wait()
	if len(dirs) != 3 {
		t.Errorf("layers %v", dirs)
	}
	if n, _, busy := f.cache.Usage(); n != 3 || busy != 0 {
		t.Errorf("%d layers, %d in use", n, busy)
	}
	if left, err := os.ReadDir(f.cache.path(nameTmp)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
