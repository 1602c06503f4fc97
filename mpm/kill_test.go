package mpm

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Morphux/quarry/mirror"
	"github.com/Morphux/quarry/results"
)

// copyTree makes a copy of a folder with all that its files are.
func copyTree(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return to
}

// A root whose change is killed, at whatever step, is the old one or the new one
// as soon as it is opened, and the same call brings it to the new one.
func TestKilledChange(t *testing.T) {
	w := newWorld(t)
	w.add("lib", "1", files{"usr/lib/lib.so.1": "1", "usr/share/lib/old": "1", "usr/share/doc/lib": "-> ../lib"})
	w.add("app", "1", files{"usr/bin/app": "1", "etc/app": "1"}, needs("lib"))
	c := w.client()
	r := w.root(files{"usr/bin/sh": "shell", "lib": "-> usr/lib"})
	empty := copyTree(t, r.dir)
	w.install(c, r, "app")
	one := copyTree(t, r.dir)
	if err := os.WriteFile(filepath.Join(one, "etc/app"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.add("lib", "2", files{"lib/lib.so.2": "2", "usr/share/doc/lib/new": "2"})
	w.add("app", "2", files{"usr/bin/app": "2", "etc/app": "2"}, needs("lib>=2"))
	w.update(c)
	for _, p := range []string{"app", "app-1", "lib", "lib-1"} {
		wanted, err := c.Wanted(t.Context(), p)
		if err == nil {
			_, err = c.Fetch(t.Context(), wanted[0])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, from string
		args       []string
	}{
		{"install", empty, []string{"install", "app"}},
		{"upgrade", one, []string{"upgrade"}},
		{"remove", one, []string{"remove", "app", "lib"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			call := func(dir string) []string {
				return append([]string{tt.args[0], filepath.Join(w.dir, "cache"), w.git(), dir}, tt.args[1:]...)
			}
			before := tree(t, tt.from)
			done := copyTree(t, tt.from)
			if kill(t, 1<<30, call(done)...) {
				t.Fatal("killed")
			}
			after := tree(t, done)
			if after == before {
				t.Fatal("nothing happens")
			}
			saw := map[bool]int{} // whether the new one came
			for n := 1; ; n++ {
				dir := copyTree(t, tt.from)
				if !kill(t, n, call(dir)...) {
					break
				}
				if n%3 == 0 { // whoever goes on is killed too
					kill(t, n/2+1, call(dir)...)
				}
				r, _, err := OpenRoot(dir)
				if err != nil {
					t.Fatalf("killed at step %d: %v", n, err)
				}
				got := tree(t, dir)
				if got != before && got != after {
					t.Fatalf("killed at step %d it is neither the old nor the new one:\n%s\nold\n%s\nnew\n%s", n, got, before, after)
				}
				saw[got == after]++
				if diff, err := r.Verify(); err != nil || len(diff) > 0 && !diff[0].Config {
					t.Fatalf("killed at step %d: %+v, %v", n, diff, err)
				}
				if err := r.Close(); err != nil {
					t.Fatal(err)
				}
				if got == before && n%5 == 0 {
					if kill(t, 1<<30, call(dir)...); tree(t, dir) != after {
						t.Fatalf("after step %d the same call does not come to the same:\n%s", n, tree(t, dir))
					}
				}
			}
			if saw[false] < 3 || saw[true] < 3 {
				t.Errorf("%d kills left the old one, %d the new one", saw[false], saw[true])
			}
		})
	}
}

// export writes the world as a mirror has it.
func (w *world) export(dir string) {
	w.Helper()
	r, err := results.OpenReader(w.git(), "testing")
	if err != nil {
		w.Fatal(err)
	}
	defer r.Close()
	if _, err := mirror.Export(w.Context(), mirror.ExportOptions{Dir: dir, Results: r, Default: "testing", Artifacts: w.store.Path, Now: time.Now(),
		Sign: func(data []byte) ([]byte, error) { return w.signer.Sign(mirror.Namespace, data) }, Force: true}); err != nil {
		w.Fatal(err)
	}
}

// An update that is killed leaves the old copy or the new one.
func TestKilledUpdate(t *testing.T) {
	w := newWorld(t)
	w.add("lib", "1", files{"usr/lib/lib.so.1": "1"})
	w.add("app", "1", files{"usr/bin/app": "1"}, needs("lib"))
	mirrored := filepath.Join(w.dir, "mirror")
	w.export(mirrored)
	for _, from := range []string{mirrored, w.git()} {
		cache := func() string { return filepath.Join(w.dir, "cache-"+filepath.Base(from)) }()
		kill(t, 1<<30, "update", cache, from, "")
	}
	w.add("lib", "2", files{"usr/lib/lib.so.2": "2"})
	w.add("app", "2", files{"usr/bin/app": "2"}, needs("lib>=2"))
	w.export(mirrored)
	for _, from := range []string{mirrored, w.git()} {
		t.Run(filepath.Base(from), func(t *testing.T) {
			saw := map[string]int{}
			for n := 1; ; n++ {
				cache := copyTree(t, filepath.Join(w.dir, "cache-"+filepath.Base(from)))
				killed := kill(t, n, "update", cache, from, "")
				o := Options{From: from, Arch: arch, Cache: cache, Offline: true}
				c := openSoon(t, o)
				list, err := c.Depends(t.Context(), "app")
				if err != nil {
					t.Fatalf("killed at step %d: %v", n, err)
				}
				got := names(list, pkgName)
				if got != "lib 1, app 1" && got != "lib 2, app 2" {
					t.Fatalf("killed at step %d: %s", n, got)
				}
				saw[got]++
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
				o.Offline = false
				c = openSoon(t, o)
				if _, err := c.Update(t.Context()); err != nil {
					t.Fatalf("after step %d: %v", n, err)
				}
				if list, err := c.Depends(t.Context(), "app"); err != nil || names(list, pkgName) != "lib 2, app 2" {
					t.Fatalf("after step %d: %v, %v", n, list, err)
				}
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
				if !killed {
					break
				}
			}
			if len(saw) != 2 {
				t.Errorf("%v", saw)
			}
		})
	}
}

// openSoon opens a client when the git of one that was killed has ended.
func openSoon(t *testing.T, o Options) *Client {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		c, err := Open(o)
		if err == nil {
			t.Cleanup(func() { c.Close() })
			return c
		}
		if !strings.Contains(err.Error(), "in use") || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// A fetch that is killed is gone on with from where it was.
func TestKilledFetch(t *testing.T) {
	w := newWorld(t)
	w.add("big", "1", files{"usr/share/big": noise(1_500_000)})
	dir := filepath.Join(w.dir, "mirror")
	w.export(dir)
	var mu sync.Mutex
	var ranges []string
	files := http.FileServer(http.Dir(dir))
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		if strings.HasPrefix(req.URL.Path, "/artifacts/") {
			mu.Lock()
			ranges = append(ranges, req.Header.Get("Range"))
			mu.Unlock()
		}
		files.ServeHTTP(rw, req)
	}))
	defer srv.Close()
	cache := filepath.Join(w.dir, "cache")
	kill(t, 1<<30, "update", cache, srv.URL, "")
	kills := 0
	for kill(t, 3, "fetch", cache, srv.URL, "", "big") {
		if kills++; kills > 1000 {
			t.Fatal("it never ends")
		}
	}
	if kills < 2 || ranges[0] != "" || ranges[1] == "" {
		t.Errorf("%d kills, %q", kills, ranges)
	}
	c := openSoon(t, Options{From: srv.URL, Arch: arch, Cache: cache, Offline: true})
	wanted, err := c.Wanted(t.Context(), "big")
	if err == nil {
		_, err = c.Fetch(t.Context(), wanted[0])
	}
	if err != nil {
		t.Error(err)
	}
}
