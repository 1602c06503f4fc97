package mpm

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/mirror"
	"github.com/Morphux/quarry/trust"
)

func onArch(a string) func(*quarry.Outcome) { return func(o *quarry.Outcome) { o.Build.Arch = a } }

// full is a channel with some of everything.
func full(t *testing.T) *world {
	w := newWorld(t)
	f := files{"usr/share/x": "x"}
	w.add("zlib", "1.2", f)
	w.add("zlib", "1.10", f)
	w.add("zlib", "1.9", f, onArch("aarch64"))
	w.add("zlib", "2.0", f, onArch("aarch64"))
	w.add("certs", "2025", f, onArch(quarry.Noarch))
	w.add("certs", "2026", f, onArch(quarry.Noarch))
	w.add("openjdk", "17", f, provides("java-runtime-17"), needs("zlib"))
	w.add("openjdk", "21", f, provides("java-runtime-21"), needs("zlib>=1.9", "certs"))
	w.add("jikes", "1", f, provides("java-runtime"))
	w.add("app", "1", f, needs("java-runtime>=17", "zlib>=1.2"), func(o *quarry.Outcome) {
		o.Info.Recommended, o.Info.Optional, o.Info.Description = []string{"certs"}, []string{"jikes"}, "It's an \"app\" \\ ünïcode"
	})
	w.add("gtk-doc", "1.33", f)
	w.add("gtk", "4", f, needs("gtk-doc-1.33", "app"))
	w.add("lone", "1", f, onArch("riscv64"))
	w.record("failing", "1", nil, nil, func(o *quarry.Outcome) {
		o.Status, o.Failure = quarry.Failed, &quarry.Failure{Step: quarry.StepMake, Cause: quarry.CauseExit, Message: "make ended with status 2", Status: 2}
	})
	return w
}

// All ways to read a channel give the same answers, before and after it goes on.
func TestSourcesAgree(t *testing.T) {
	w := full(t)
	dir := filepath.Join(w.dir, "mirror")
	w.export(dir)
	srv := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer srv.Close()
	if out, err := exec.Command("git", "-C", w.git(), "config", "uploadpack.allowFilter", "true").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	clients := map[string]*Client{}
	for name, o := range map[string]Options{
		"git": {From: w.git()}, "git, full": {From: "file://" + w.git(), Git: GitFull}, "git, partial": {From: w.git(), Git: GitPartial},
		"index": {From: srv.URL + "/db/testing"}, "sparse": {From: srv.URL, By: BySparse}, "folder": {From: dir}, "folder, sparse": {From: "file://" + dir + "/db/testing", By: BySparse},
	} {
		clients[name] = w.client(func(to *Options) {
			o.Arch, o.Cache, o.Signers = arch, to.Cache, w.signers()
			if o.By == BySparse {
				o.Signers = nil
			}
			*to = o
		})
	}
	type answer struct {
		List []mirror.Package
		Err  string
	}
	of := func(list []mirror.Package, err error) answer {
		var a answer
		for _, p := range list { // what is said only of single packages
			p.ABI, p.Build, p.Ended, p.Source, p.Record = "", 0, time.Time{}, "", ""
			a.List = append(a.List, p)
		}
		if err != nil {
			a.Err = err.Error()
		}
		return a
	}
	compare := func() {
		t.Helper()
		questions := map[string]func(c *Client) ([]mirror.Package, error){}
		for _, n := range []string{"zlib", "certs", "openjdk", "app", "lone", "failing", "nobody", "new", "--x"} {
			questions["show "+n] = func(c *Client) ([]mirror.Package, error) { return c.Versions(t.Context(), n) }
		}
		for _, n := range []string{"zlib", "zlib-1.2", "zlib>1.2", "zlib>2", "gtk", "java-runtime", "java-runtime-21", "java-runtime>21", "lone", "gtk-doc-1.33", "new", "app jikes", "zlib-1.2 openjdk"} {
			questions["depends "+n] = func(c *Client) ([]mirror.Package, error) { return c.Depends(t.Context(), strings.Fields(n)...) }
		}
		for _, n := range []string{"", "ZLIB", "z*", "ünïcode", "it is", "[", "nothing at all"} {
			questions["search "+n] = func(c *Client) ([]mirror.Package, error) { return c.Search(t.Context(), n) }
		}
		answered := 0
		for q, ask := range questions {
			want := of(ask(clients["git"]))
			answered += len(want.List)
			for name, c := range clients {
				if got := of(ask(c)); !reflect.DeepEqual(got, want) {
					a, _ := json.Marshal(got)
					b, _ := json.Marshal(want)
					t.Errorf("%s: %s says\n%s\ngit says\n%s", q, name, a, b)
				}
			}
		}
		if answered < 40 {
			t.Errorf("only %d answers", answered)
		}
	}
	compare()
	if list, err := clients["index"].Depends(t.Context(), "gtk"); err != nil || names(list, pkgName) != "gtk-doc 1.33, zlib 1.10, certs 2026, openjdk 21, app 1, gtk 4" {
		t.Errorf("%s, %v", names(list, pkgName), err)
	}

	w.add("new", "1", files{"usr/share/new": "x"}, needs("zlib"))
	w.add("zlib", "1.11", files{"usr/share/x": "y"}, provides("z"))
	w.add("app", "2", files{"usr/share/x": "x"}, needs("z", "java-runtime-21"))
	w.export(dir)
	for name, c := range clients {
		if changed, err := c.Update(t.Context()); err != nil || !changed {
			t.Errorf("%s: %v, %v", name, changed, err)
		}
		if changed, err := c.Update(t.Context()); err != nil || changed {
			t.Errorf("%s again: %v, %v", name, changed, err)
		}
	}
	compare()

	// What they fetch is the same too.
	for name, c := range clients {
		wanted, err := c.Wanted(t.Context(), "app")
		if err == nil {
			_, err = c.Fetch(t.Context(), wanted[0])
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An update by deltas gets little, and the right thing also where there is none.
func TestDelta(t *testing.T) {
	w := newWorld(t)
	w.add("zlib", "1", files{"usr/share/x": "x"})
	for _, n := range []string{"a", "b", "c", "d", "e", "f"} {
		w.add(n, "1", files{"usr/share/" + n: noise(3000)})
	}
	dir := filepath.Join(w.dir, "mirror")
	w.export(dir)
	var got []string
	broken := false
	fileServer := http.FileServer(http.Dir(dir))
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		got = append(got, strings.TrimPrefix(req.URL.Path, "/db/testing/"))
		if broken && strings.Contains(req.URL.Path, "/delta/") {
			rw.Write([]byte("no delta"))
			return
		}
		fileServer.ServeHTTP(rw, req)
	}))
	defer srv.Close()
	c := w.client(func(o *Options) { o.From = srv.URL })
	w.update(c)
	for _, broken = range []bool{false, true} {
		w.add("zlib", "1", files{"usr/share/x": fmt.Sprint("broken ", broken)})
		w.export(dir)
		got = nil
		w.update(c)
		all := strings.Join(got, " ")
		if !strings.Contains(all, "delta/index/") || strings.Contains(all, " index/") != broken {
			t.Errorf("broken %v: %s", broken, all)
		}
		list, err := c.Versions(t.Context(), "zlib")
		want, _, _ := func() (string, bool, error) {
			s, err := w.repo.Snapshot("testing")
			if err != nil {
				t.Fatal(err)
			}
			a, ok, err := s.Available("zlib", "1", arch)
			return a.Artifact, ok, err
		}()
		if err != nil || len(list) != 1 || list[0].Artifact != want {
			t.Errorf("%+v, %v", list, err)
		}
	}
}

// What is not signed by an allowed key is not used, nor what is older than what was
// seen, nor what has expired, nor another channel.
func TestTrust(t *testing.T) {
	w := newWorld(t)
	w.add("app", "1", files{"usr/bin/app": "1"})
	dir := filepath.Join(w.dir, "mirror")
	w.export(dir)
	// The time of a commit is in whole seconds: the next one is to be of a later one.
	for made := time.Now().Unix(); time.Now().Unix() == made; time.Sleep(10 * time.Millisecond) {
	}
	old := copyTree(t, dir)
	oldGit := copyTree(t, w.git())
	other, err := trust.Open(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	strangers := trust.AllowedSigners{{Principal: "x", Key: other.Public()}}
	w.add("app", "2", files{"usr/bin/app": "2"})
	w.export(dir)
	head := filepath.Join(dir, "db/testing/head.json")
	for _, from := range []string{dir, w.git()} {
		for what, signers := range map[string]trust.AllowedSigners{"strangers": strangers, "nobody": {},
			"another purpose": {{Principal: "x", Key: w.signer.Public(), Namespaces: []string{trust.Provenance}}},
			"until yesterday": {{Principal: "x", Key: w.signer.Public(), Before: time.Now().Add(-24 * time.Hour)}}} {
			c := w.client(func(o *Options) { o.From, o.Signers, o.Cache = from, signers, t.TempDir() })
			if _, err := c.Update(t.Context()); !errors.Is(err, ErrUntrusted) {
				t.Errorf("%s, trusting %s: %v", from, what, err)
			}
			if _, err := c.Versions(t.Context(), "app"); err == nil {
				t.Errorf("%s, trusting %s: it is used all the same", from, what)
			}
		}
		c := w.client(func(o *Options) { o.From, o.Signers = from, w.signers() })
		w.update(c)
		if got := c.Head().Signer; got != w.signer.Fingerprint() {
			t.Errorf("%s is signed by %q", from, got)
		}
	}
	// Sparse files are as good as the connection.
	c := w.client(func(o *Options) { o.From, o.By, o.Signers = dir, BySparse, w.signers() })
	if _, err := c.Update(t.Context()); !errors.Is(err, ErrUntrusted) {
		t.Errorf("%v", err)
	}

	// A mirror that goes back in time, signed as it is.
	at := filepath.Join(t.TempDir(), "at")
	repo := filepath.Join(t.TempDir(), "results.git")
	for _, tt := range []struct{ link, now, then string }{{at, dir, old}, {repo, w.git(), oldGit}} {
		point := func(to string) {
			t.Helper()
			os.Remove(tt.link)
			if err := os.Symlink(to, tt.link); err != nil {
				t.Fatal(err)
			}
		}
		point(tt.now)
		cache := t.TempDir()
		with := func(older bool) func(*Options) {
			return func(o *Options) { o.From, o.Signers, o.Cache, o.Older = tt.link, w.signers(), cache, older }
		}
		c := w.client(with(false))
		w.update(c)
		point(tt.then)
		if _, err := c.Update(t.Context()); !errors.Is(err, ErrOlder) {
			t.Errorf("%s: %v", tt.then, err)
		}
		if list, err := c.Versions(t.Context(), "app"); err != nil || list[0].Version != "2" {
			t.Errorf("%+v, %v", list, err)
		}
		c.Close()
		c = w.client(with(true))
		w.update(c)
		if list, err := c.Versions(t.Context(), "app"); err != nil || len(list) != 1 || list[0].Version != "1" {
			t.Errorf("%+v, %v", list, err)
		}
	}

	// Heads that are signed, and wrong.
	data, err := os.ReadFile(head)
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(map[string]any){
		"expired":  func(h map[string]any) { h["expires"] = "2026-01-01T00:00:00Z" },
		"channel":  func(h map[string]any) { h["channel"] = "stable" },
		"schema 2": func(h map[string]any) { h["schema"] = 2 },
	} {
		var h map[string]any
		if err := json.Unmarshal(data, &h); err != nil {
			t.Fatal(err)
		}
		change(h)
		text, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := w.signer.Sign(mirror.Namespace, text)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(head, text, 0o644), os.WriteFile(filepath.Join(dir, mirror.SignatureName("testing", text)), sig, 0o644)); err != nil {
			t.Fatal(err)
		}
		c := w.client(func(o *Options) { o.From, o.Signers, o.Cache = dir, w.signers(), t.TempDir() })
		if _, err := c.Update(t.Context()); err == nil || !strings.Contains(err.Error(), strings.Fields(what)[0]) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Places are told apart, and what is none is said.
func TestPlaces(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		o    Options
		from string
		by   string
		ch   string
		says string
	}{
		{o: Options{From: "https://farm.example.org"}, from: "https://farm.example.org", by: ByIndex, ch: "testing"},
		{o: Options{From: "https://farm.example.org/quarry/db/stable/"}, from: "https://farm.example.org/quarry", by: ByIndex, ch: "stable"},
		{o: Options{From: "https://farm.example.org/git/results.git"}, from: "https://farm.example.org/git/results.git", by: ByGit, ch: "testing"},
		{o: Options{From: "ssh://farm:2222/results.git", Channel: "stable"}, from: "ssh://farm:2222/results.git", by: ByGit, ch: "stable"},
		{o: Options{From: "git@farm:results.git"}, from: "git@farm:results.git", by: ByGit, ch: "testing"},
		{o: Options{From: dir, By: BySparse}, from: dir, by: BySparse, ch: "testing"},
		{o: Options{From: "file://" + dir + "/db/next"}, from: dir, by: ByIndex, ch: "next"},
		{o: Options{}, says: "give --from"},
		{o: Options{From: "ftp://farm"}, says: "of no kind that is known"},
		{o: Options{From: "-oProxyCommand=x:y"}, says: "begins with a dash"},
		{o: Options{From: "ext::sh -c x"}, from: "ext::sh -c x", by: ByGit, ch: "testing"}, // and git is told to refuse that
		{o: Options{From: dir, By: ByGit}, says: "does not look like a repository"},
		{o: Options{From: "ssh://farm/r.git", By: BySparse}, says: "leave out --by"},
		{o: Options{From: "https://farm/db/stable", Channel: "testing"}, says: "leave one out"},
		{o: Options{From: "https://farm", By: "magic"}, says: "no way to read a channel"},
		{o: Options{From: "ssh://farm/r.git", Git: "deep"}, says: "no kind of clone"},
		{o: Options{From: "https://farm", Channel: "../x"}, says: "channel"},
	} {
		o := tt.o
		o.Arch, o.Cache = arch, t.TempDir()
		c, err := Open(o)
		if tt.says != "" {
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%+v: %v", tt.o, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", tt.o, err)
			continue
		}
		if c.o.From != tt.from || c.o.By != tt.by || c.o.Channel != tt.ch {
			t.Errorf("%+v is %s by %s, channel %s", tt.o, c.o.From, c.o.By, c.o.Channel)
		}
		if tt.o.From == "ext::sh -c x" {
			if _, err := c.Update(t.Context()); err == nil || !strings.Contains(err.Error(), "not allowed") {
				t.Errorf("%v", err)
			}
		}
		c.Close()
	}
	for _, a := range []string{"", quarry.Noarch, "../x"} {
		if _, err := Open(Options{From: "https://farm", Arch: a, Cache: t.TempDir()}); err == nil {
			t.Errorf("arch %q is taken", a)
		}
	}
}
