package mpm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Morphux/quarry/mirror"
)

// noise is text that does not pack.
func noise(n int) string {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return string(b)
}

// Whatever a server does and whatever is there from before, what is fetched has the
// digest, or nothing is.
func TestFetch(t *testing.T) {
	w := newWorld(t)
	o := w.add("big", "1", files{"usr/share/big": noise(400_000)})
	want, err := os.ReadFile(w.store.Path(o.Artifact.SHA256))
	if err != nil {
		t.Fatal(err)
	}
	name := mirror.ArtifactName(o.Artifact.SHA256)
	plain := func(rw http.ResponseWriter, req *http.Request) {
		http.ServeFile(rw, req, w.store.Path(o.Artifact.SHA256))
	}
	for _, tt := range []struct {
		what  string
		serve http.HandlerFunc
		part  []byte // from before
		says  string // "": it is fetched
	}{
		{"at once", plain, nil, ""},
		{"gone on with", plain, want[:1000], ""},
		{"gone on with at its end", plain, want, ""},
		{"what is here is something else", plain, []byte(strings.Repeat("x", 1000)), ""},
		{"what is here is longer", plain, append(append([]byte(nil), want...), 1), ""},
		{"no ranges", func(rw http.ResponseWriter, req *http.Request) { rw.Write(want) }, want[:1000], ""},
		{"range not satisfiable", func(rw http.ResponseWriter, req *http.Request) {
			if req.Header.Get("Range") != "" {
				rw.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
			rw.Write(want)
		}, want[:1000], ""},
		{"another range", func(rw http.ResponseWriter, req *http.Request) {
			rw.Header().Set("Content-Range", fmt.Sprintf("bytes 5-%d/%d", len(want)-1, len(want)))
			rw.WriteHeader(http.StatusPartialContent)
			rw.Write(want[5:])
		}, want[:1000], "answers 206"},
		{"another file", func(rw http.ResponseWriter, req *http.Request) { rw.Write(make([]byte, len(want))) }, nil, "another digest"},
		{"another file, twice", func(rw http.ResponseWriter, req *http.Request) { rw.Write(make([]byte, len(want))) }, want[:1000], "another digest"},
		{"more than it has", func(rw http.ResponseWriter, req *http.Request) { rw.Write(append(append([]byte(nil), want...), 1)) }, nil, "goes on after"},
		{"less than it has", func(rw http.ResponseWriter, req *http.Request) { rw.Write(want[:500]) }, nil, "try again"},
		{"nothing", http.NotFound, nil, "404"},
		{"trouble", func(rw http.ResponseWriter, req *http.Request) { rw.WriteHeader(http.StatusBadGateway) }, want[:1000], "502"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			srv := httptest.NewServer(tt.serve)
			defer srv.Close()
			cache := t.TempDir()
			file := filepath.Join(cache, name)
			if tt.part != nil {
				if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file+".part", tt.part, 0o644)); err != nil {
					t.Fatal(err)
				}
			}
			c := w.client(func(o *Options) { o.Cache, o.Artifacts = cache, srv.URL+"/artifacts" })
			wanted, err := c.Wanted(t.Context(), "big")
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.Fetch(t.Context(), wanted[0])
			if tt.says != "" {
				if err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%v", err)
				}
				if _, err := os.Stat(file); err == nil {
					t.Error("a file is there all the same")
				}
				return
			}
			if err != nil || got != file {
				t.Fatalf("%s, %v", got, err)
			}
			if have, err := os.ReadFile(file); err != nil || string(have) != string(want) {
				t.Errorf("another file, %v", err)
			}
			// What lies in the cache is not believed either.
			if err := os.WriteFile(file, want[:100], 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Fetch(t.Context(), wanted[0]); err != nil {
				t.Error(err)
			}
			if have, err := os.ReadFile(file); err != nil || string(have) != string(want) {
				t.Errorf("what was damaged stays, %v", err)
			}
		})
	}
}

// Without the source, what is here is all there is.
func TestOffline(t *testing.T) {
	w := newWorld(t)
	w.add("lib", "1", files{"usr/lib/x": "1"})
	w.add("app", "1", files{"usr/bin/app": "1"}, needs("lib"))
	dir := filepath.Join(w.dir, "mirror")
	w.export(dir)
	for _, by := range []string{ByIndex, BySparse, ByGit} {
		t.Run(by, func(t *testing.T) {
			srv := httptest.NewServer(http.FileServer(http.Dir(dir)))
			with := func(offline bool) func(*Options) {
				return func(o *Options) {
					o.From, o.By, o.Cache, o.Offline = srv.URL, by, filepath.Join(w.dir, by), offline
					if by == ByGit {
						o.From = w.git()
					}
				}
			}
			c := w.client(with(true))
			if _, err := c.Depends(t.Context(), "app"); err == nil || !strings.Contains(err.Error(), "nothing of channel testing is here yet") {
				t.Errorf("%v", err)
			}
			if _, err := c.Update(t.Context()); err == nil {
				t.Error("updated all the same")
			}
			c.Close()
			c = w.client(with(false))
			w.install(c, w.root(nil), "app")
			c.Close()
			srv.Close()
			c = w.client(with(true))
			r := w.root(nil)
			w.install(c, r, "app")
			w.whole(r)
			if _, err := c.Versions(t.Context(), "other"); (err != nil) != (by == BySparse) {
				t.Errorf("%v", err)
			}
		})
	}
}

// A token is for the farm, and for nobody else that it sends to.
func TestToken(t *testing.T) {
	w := newWorld(t)
	w.add("app", "1", files{"usr/bin/app": "1"})
	dir := filepath.Join(w.dir, "mirror")
	w.export(dir)
	fileServer := http.FileServer(http.Dir(dir))
	farm := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Authorization") != "Bearer secret" {
			rw.WriteHeader(http.StatusUnauthorized)
			return
		}
		fileServer.ServeHTTP(rw, req)
	}))
	defer farm.Close()
	leaked := false
	other := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		leaked = leaked || req.Header.Get("Authorization") != ""
		fileServer.ServeHTTP(rw, req)
	}))
	defer other.Close()
	c := w.client(func(o *Options) { o.From = farm.URL })
	if _, err := c.Update(t.Context()); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("%v", err)
	}
	c.Close()
	for _, artifacts := range []string{"", other.URL + "/artifacts"} {
		c := w.client(func(o *Options) { o.From, o.Token, o.Artifacts, o.Cache = farm.URL, "secret", artifacts, t.TempDir() })
		w.install(c, w.root(nil), "app")
		c.Close()
	}
	if leaked {
		t.Error("the token went elsewhere")
	}
}
