package githttp_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
	"github.com/Morphux/quarry/web"
	"github.com/Morphux/quarry/web/githttp"
)

// site is a web server with git behind it: results.git, which everybody may read,
// and zlib.git, for those with a token.
type site struct {
	t       testing.TB
	url     string // http://127.0.0.1:PORT
	results string
	home    string
	git     *githttp.Handler
	web     http.Handler // all of it
}

const token = "secret"

var size = resultstest.Size{Packages: 200, Archs: 2, Versions: 2}

func newSite(t testing.TB, change func(*githttp.Options, *web.Options)) *site {
	t.Helper()
	s := &site{t: t, home: t.TempDir(), results: resultstest.Copy(t, size)}
	zlib := filepath.Join(t.TempDir(), "zlib.git")
	config := "[safe]\n\tdirectory = *\n[transfer]\n\thideRefs = refs/quarry\n[user]\n\tname = Alice\n\temail = alice@example.org\n"
	if err := os.WriteFile(filepath.Join(s.home, "gitconfig"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	s.must("git", "init", "-q", "--bare", zlib)
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.home, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + filepath.Join(s.home, "gitconfig")}
	o := githttp.Options{
		Find: func(name string) (string, error) {
			if path := map[string]string{"results": s.results, "zlib": zlib}[name]; path != "" {
				return path, nil
			}
			return "", fs.ErrNotExist
		},
		MayRead: func(who quarry.Identity, name string) bool {
			return who.MayRead() && (who.User != "" || name == "results")
		},
		Env: env, Temp: t.TempDir(), Push: "ssh://farm.example.org:2222",
	}
	wo := web.Options{Public: true, Identify: func(secret string) (quarry.Identity, error) {
		if secret == token {
			return quarry.Identity{Packager: quarry.Packager{User: "alice"}, Role: quarry.RoleReader}, nil
		}
		return quarry.Identity{}, errors.New("the token is not known")
	}}
	if change != nil {
		change(&o, &wo)
	}
	s.git = githttp.New(o)
	wo.Git = s.git
	srv := httptest.NewServer(web.New(wo))
	t.Cleanup(srv.Close)
	s.url, s.web = srv.URL, web.New(wo)
	return s
}

// The same over TLS, where git speaks HTTP/2.
func TestTLS(t *testing.T) {
	s := newSite(t, nil)
	srv := httptest.NewUnstartedServer(s.web)
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	cert := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o644); err != nil {
		t.Fatal(err)
	}
	into := filepath.Join(t.TempDir(), "clone")
	s.must("git", "-c", "http.sslCAInfo="+cert, "clone", "-q", "--bare", strings.Replace(srv.URL, "https://", "https://x:"+token+"@", 1)+"/results.git", into)
	if got := strings.TrimSpace(s.must("git", "-C", into, "rev-parse", "HEAD")); got != s.tip() {
		t.Errorf("the clone is at %s and not at %s", got, s.tip())
	}
	s.must("git", "-c", "http.sslCAInfo="+cert, "-c", "http.version=HTTP/2", "ls-remote", strings.Replace(srv.URL, "https://", "https://x:"+token+"@", 1)+"/zlib.git")
}

// run runs a client.
func (s *site) run(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.home, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + filepath.Join(s.home, "gitconfig"),
		"GIT_TERMINAL_PROMPT=0", "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *site) must(name string, args ...string) string {
	s.t.Helper()
	out, err := s.run(name, args...)
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func (s *site) tip() string {
	return strings.TrimSpace(s.must("git", "-C", s.results, "rev-parse", "testing"))
}

func TestClones(t *testing.T) {
	s := newSite(t, nil)
	from := s.url + "/results.git"
	blob := results.RecordPath(quarry.Target{Package: resultstest.Name(3), Version: "1.1", Arch: "x86_64"})
	for _, protocol := range []string{"0", "1", "2"} {
		into := filepath.Join(t.TempDir(), "clone")
		s.must("git", "-c", "protocol.version="+protocol, "clone", "-q", from, into)
		s.must("git", "-C", into, "fsck", "--no-dangling")
		if got := strings.TrimSpace(s.must("git", "-C", into, "rev-parse", "HEAD")); got != s.tip() {
			t.Errorf("protocol %s: the clone is at %s and not at %s", protocol, got, s.tip())
		}
		if _, err := os.Stat(filepath.Join(into, blob)); err != nil {
			t.Errorf("protocol %s: %v", protocol, err)
		}
		if got := s.must("git", "-c", "protocol.version="+protocol, "ls-remote", from, "refs/heads/*"); got != s.tip()+"\trefs/heads/testing\n" {
			t.Errorf("protocol %s: ls-remote shows %q", protocol, got)
		}
	}
	t.Run("shallow", func(t *testing.T) {
		into := filepath.Join(t.TempDir(), "clone")
		s.must("git", "clone", "-q", "--depth=1", "-b", "testing", "--single-branch", from, into)
		if n := strings.TrimSpace(s.must("git", "-C", into, "rev-list", "--count", "HEAD")); n != "1" {
			t.Errorf("a shallow clone has %s commits", n)
		}
		s.must("git", "-C", into, "fetch", "-q", "--deepen=5")
		if n := strings.TrimSpace(s.must("git", "-C", into, "rev-list", "--count", "HEAD")); n != "6" {
			t.Errorf("a deepened clone has %s commits", n)
		}
		s.must("git", "-C", into, "fetch", "-q", "--unshallow")
		s.must("git", "-C", into, "fsck", "--no-dangling")
	})
	t.Run("filtered", func(t *testing.T) {
		into := filepath.Join(t.TempDir(), "clone")
		s.must("git", "clone", "-q", "--bare", "--filter=blob:none", from, into)
		missing := func() int {
			return strings.Count(s.must("git", "-C", into, "rev-list", "--objects", "--missing=print", "testing"), "\n?")
		}
		all := missing()
		if all < size.Records() {
			t.Fatalf("a clone without records lacks %d objects only", all)
		}
		if got := s.must("git", "-C", into, "show", "testing:"+blob); !strings.Contains(got, resultstest.Name(3)) {
			t.Errorf("the record is %q", got)
		}
		if n := missing(); n != all-1 {
			t.Errorf("for one record %d objects came", all-n)
		}
		// All others at once: a request that does not fit into memory.
		s.must("git", "-C", into, "worktree", "add", "-q", filepath.Join(t.TempDir(), "tree"), "testing")
	})
	t.Run("refs of the farm", func(t *testing.T) {
		s.must("git", "-C", s.results, "update-ref", "refs/quarry/mass/one", "testing")
		into := filepath.Join(t.TempDir(), "clone")
		s.must("git", "clone", "-q", "--bare", from, into)
		if got := s.must("git", "-C", into, "for-each-ref", "--format=%(refname)"); got != "refs/heads/testing\n" {
			t.Errorf("a plain clone has %q", got)
		}
		s.must("git", "-C", into, "fetch", "-q", "origin", "refs/quarry/*:refs/quarry/*")
		if got := s.must("git", "-C", into, "rev-parse", "refs/quarry/mass/one"); strings.TrimSpace(got) != s.tip() {
			t.Errorf("the ref of the farm is %q", got)
		}
	})
	t.Run("fetch", func(t *testing.T) {
		into := filepath.Join(t.TempDir(), "clone")
		s.must("git", "clone", "-q", "--bare", from, into)
		r, err := results.Open(s.results, results.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for _, o := range resultstest.Next(size, 10) {
			if _, err := r.Record(t.Context(), o); err != nil {
				t.Fatal(err)
			}
		}
		s.must("git", "-C", into, "fetch", "-q", "origin", "testing:testing")
		if got := strings.TrimSpace(s.must("git", "-C", into, "rev-parse", "testing")); got != s.tip() {
			t.Errorf("the clone is at %s and not at %s", got, s.tip())
		}
	})
	if running, waiting := s.git.Load(); running != 0 || waiting != 0 {
		t.Errorf("%d are left running, %d waiting", running, waiting)
	}
}

func TestWho(t *testing.T) {
	s := newSite(t, nil)
	host := strings.TrimPrefix(s.url, "http://")
	for _, tt := range []struct {
		args []string
		says string // "": it works
	}{
		{[]string{s.url + "/results.git"}, ""},
		{[]string{"http://x:" + token + "@" + host + "/results.git"}, ""},
		{[]string{"http://x:wrong@" + host + "/results.git"}, ""},  // nobody asked for it, so that git does not give it
		{[]string{s.url + "/zlib.git"}, "could not read Username"}, // it would ask for one
		{[]string{"http://x:" + token + "@" + host + "/zlib.git"}, ""},
		{[]string{"http://x:wrong@" + host + "/zlib.git"}, "the token is not known"},
		{[]string{s.url + "/none.git"}, "could not read Username"},
		{[]string{"http://x:" + token + "@" + host + "/none.git"}, "there is no package none"},
		{[]string{s.url + "/results"}, "not found"},
		{[]string{s.url + "/..git"}, "there is no repository of this name"},
	} {
		out, err := s.run("git", append([]string{"ls-remote"}, tt.args...)...)
		if (err == nil) != (tt.says == "") || !strings.Contains(out, tt.says) {
			t.Errorf("%v: %v, %q: it is to be %q", tt.args, err, out, tt.says)
		}
	}
	s.must("git", "-c", "http.extraHeader=Authorization: Bearer "+token, "ls-remote", s.url+"/zlib.git")
	if out, err := s.run("git", "-c", "http.extraHeader=Authorization: Bearer wrong", "ls-remote", s.url+"/results.git"); err == nil {
		t.Errorf("a wrong token is good enough: %s", out)
	}
	closed := newSite(t, func(_ *githttp.Options, o *web.Options) { o.Public = false })
	if out, err := closed.run("git", "ls-remote", closed.url+"/results.git"); err == nil || !strings.Contains(out, "could not read Username") {
		t.Errorf("a farm that is not public: %v, %q", err, out)
	}
	closed.must("git", "ls-remote", strings.Replace(closed.url, "http://", "http://x:"+token+"@", 1)+"/results.git")
}

func TestPushIsRefused(t *testing.T) {
	s := newSite(t, nil)
	into := filepath.Join(t.TempDir(), "clone")
	s.must("git", "clone", "-q", s.url+"/results.git", into)
	s.must("git", "-C", into, "commit", "-q", "--allow-empty", "-m", "hello")
	before := s.tip()
	out, err := s.run("git", "-C", into, "push", "origin", "testing")
	if err == nil || !strings.Contains(out, "403") || !strings.Contains(out, "repositories can only be read over HTTP: push to ssh://farm.example.org:2222/results.git") {
		t.Errorf("%v, %q", err, out)
	}
	res, err := http.Post(s.url+"/results.git/git-receive-pack", "application/x-git-receive-pack-request", strings.NewReader("0000"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusForbidden || s.tip() != before {
		t.Errorf("pushing ends with %s", res.Status)
	}
}

// What no git sends is answered, whatever it is, and costs nothing.
func TestHostile(t *testing.T) {
	s := newSite(t, func(o *githttp.Options, _ *web.Options) { o.Limits.Request = 100_000 })
	packed := func(b []byte) []byte {
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		z.Write(b)
		z.Close()
		return out.Bytes()
	}
	const kind = "application/x-git-upload-pack-request"
	for _, tt := range []struct {
		method, path, kind, encoding, protocol string
		body                                   []byte
		status                                 int
	}{
		{"GET", "/results.git/info/refs", "", "", "", nil, 403},
		{"GET", "/results.git/info/refs?service=git-upload-archive", "", "", "", nil, 403},
		{"GET", "/results.git/info/refs?service=git-receive-pack", "", "", "", nil, 403},
		{"GET", "/results.git/HEAD", "", "", "", nil, 404},
		{"GET", "/results.git/objects/info/packs", "", "", "", nil, 404},
		{"GET", "/--help.git/info/refs?service=git-upload-pack", "", "", "", nil, 404},
		{"GET", "/%2e%2e%2fresults.git/info/refs?service=git-upload-pack", "", "", "", nil, 404},
		{"GET", "/results.git/git-upload-pack", "", "", "", nil, 405},
		{"POST", "/results.git/git-upload-pack", "text/plain", "", "", []byte("0000"), 415},
		{"POST", "/results.git/git-upload-pack", kind, "br", "", []byte("0000"), 415},
		{"POST", "/results.git/git-upload-pack", kind, "gzip", "", []byte("no gzip at all"), 400},
		{"POST", "/results.git/git-upload-pack", kind, "gzip", "", packed([]byte("0000"))[:12], 400},
		{"POST", "/results.git/git-upload-pack", kind, "", "", bytes.Repeat([]byte("x"), 100_001), 413},
		{"POST", "/results.git/git-upload-pack", kind, "gzip", "", packed(bytes.Repeat([]byte("x"), 10_000_000)), 413},
		{"POST", "/results.git/git-upload-pack", kind, "", "version=2", []byte("zzzz"), 400},
		{"POST", "/results.git/git-upload-pack", kind, "", "version=2", bytes.Repeat([]byte("x"), 90_000), 400},
		{"POST", "/results.git/git-upload-pack", kind, "", "", nil, 400},
		{"POST", "/results.git/git-upload-pack", kind, "", "version=2\x01", nil, 400},
		{"POST", "/results.git/git-upload-pack", kind, "gzip", "version=2;rm -rf /", packed([]byte("0000")), 200},
	} {
		req, err := http.NewRequest(tt.method, s.url+tt.path, bytes.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range map[string]string{"Content-Type": tt.kind, "Content-Encoding": tt.encoding, "Git-Protocol": tt.protocol} {
			if v != "" {
				req.Header.Set(k, v)
			}
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			if !strings.Contains(err.Error(), "invalid header") { // the client's own library refuses it
				t.Errorf("%s %s: %v", tt.method, tt.path, err)
			}
			continue
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != tt.status || tt.status >= 400 && (len(text) == 0 || bytes.Contains(text, []byte(s.results))) {
			t.Errorf("%s %s (%s, %q): %s, %.200q: it is to be %d", tt.method, tt.path, tt.kind, tt.protocol, res.Status, text, tt.status)
		}
	}
}

// slow puts a program in git's place that says where it runs, and goes on until it
// is ended.
func slow(t *testing.T) (git, pids string) {
	dir := t.TempDir()
	git, pids = filepath.Join(dir, "git"), filepath.Join(dir, "pids")
	script := fmt.Sprintf("#!/bin/sh\necho $$ >> %s\nprintf begun\nsleep 1000 &\nwait\n", pids)
	if err := os.WriteFile(git, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return git, pids
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after two minutes", what)
		}
	}
}

// processes is how many of the process groups in a file have a process still. One
// that has ended and that nobody has asked after is none.
func processes(t *testing.T, pids string) int {
	t.Helper()
	data, _ := os.ReadFile(pids)
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	groups := map[string]bool{}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// The name of the program may hold anything; state, parent and group follow it.
		rest := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if rest[0] != "Z" && rest[0] != "X" {
			groups[rest[2]] = true
		}
	}
	n := 0
	for _, pid := range strings.Fields(string(data)) {
		if groups[pid] {
			n++
		}
	}
	return n
}

func TestClientGoes(t *testing.T) {
	git, pids := slow(t)
	s := newSite(t, func(o *githttp.Options, _ *web.Options) { o.Git = git })
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	req, err := http.NewRequestWithContext(ctx, "POST", s.url+"/results.git/git-upload-pack", strings.NewReader("0000"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-git-upload-pack-request")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.ReadFull(res.Body, make([]byte, 5)); err != nil { // as it comes, not at the end
		t.Fatal(err)
	}
	if n := processes(t, pids); n != 1 {
		t.Fatalf("%d groups of processes run", n)
	}
	leave()
	eventually(t, "git ends, and what it started", func() bool { n, _ := s.git.Load(); return n == 0 && processes(t, pids) == 0 })
}

func TestTooLong(t *testing.T) {
	git, pids := slow(t)
	s := newSite(t, func(o *githttp.Options, _ *web.Options) { o.Git, o.Limits.Time = git, 50*time.Millisecond })
	res, err := http.Get(s.url + "/results.git/info/refs?service=git-upload-pack")
	if err == nil {
		_, err = io.ReadAll(res.Body)
		res.Body.Close()
	}
	if err == nil && res.StatusCode == http.StatusOK {
		t.Error("what was cut off passes for the whole")
	}
	eventually(t, "git ends", func() bool { return processes(t, pids) == 0 })
}

func TestTooMany(t *testing.T) {
	git, pids := slow(t)
	s := newSite(t, func(o *githttp.Options, _ *web.Options) {
		o.Git, o.Limits = git, githttp.Limits{Running: 2, Waiting: 1}
	})
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	ask := func() (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, "GET", s.url+"/results.git/info/refs?service=git-upload-pack", nil)
		if err != nil {
			t.Fatal(err)
		}
		return http.DefaultClient.Do(req)
	}
	for range 3 {
		go func() {
			if res, err := ask(); err == nil {
				io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		}()
	}
	eventually(t, "two run and one waits", func() bool { n, w := s.git.Load(); return n == 2 && w == 1 })
	res, err := ask()
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" || !strings.Contains(string(text), "too many fetches") {
		t.Errorf("the fourth gets %s, %q", res.Status, text)
	}
	leave()
	eventually(t, "all end", func() bool { n, w := s.git.Load(); return n == 0 && w == 0 && processes(t, pids) == 0 })
}
