package db

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/mirror"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
	"github.com/Morphux/quarry/web"
)

// door is the web door with a database behind it.
type door struct {
	*httptest.Server
	repo *results.Repo
	dir  string // of artifacts
}

func open(t testing.TB, public bool) *door {
	t.Helper()
	d := &door{dir: t.TempDir()}
	var err error
	if d.repo, err = results.Open(filepath.Join(t.TempDir(), "results.git"), results.Options{Head: "testing"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.repo.Close() })
	site, err := mirror.NewSite(mirror.SiteOptions{Results: d.repo, Dir: t.TempDir(), Default: "testing",
		Artifacts: func(sum string) (*os.File, error) { return os.Open(filepath.Join(d.dir, sum)) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(site.Close)
	identify := func(token string) (quarry.Identity, error) {
		if token == "good" {
			return quarry.Identity{Packager: quarry.Packager{User: "alice"}, Role: quarry.RoleReader}, nil
		}
		return quarry.Identity{}, errors.New("the token is not good")
	}
	d.Server = httptest.NewServer(web.New(web.Options{DB: New(site, slog.New(slog.DiscardHandler)), Public: public, Identify: identify}))
	t.Cleanup(d.Close)
	return d
}

func (d *door) record(t testing.TB, pkg, version int, n int64) *quarry.Outcome {
	t.Helper()
	o := resultstest.Outcome(pkg, version, "x86_64", n)
	if _, err := d.repo.Record(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	return o
}

// ask sends a request with headers, KEY: VALUE.
func (d *door) ask(t *testing.T, method, name string, headers ...string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequest(method, d.URL+"/"+name, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept-Encoding", "identity") // and no unpacking behind our back
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		r.Header.Set(k, v)
	}
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, data
}

func TestPackagesAreAskedAboutByTag(t *testing.T) {
	d := open(t, true)
	d.record(t, 1, 1, 1)
	name := mirror.PackageName("testing", resultstest.Name(1))
	first, text := d.ask(t, "GET", name)
	tag := first.Header.Get("ETag")
	if first.StatusCode != 200 || !strings.HasPrefix(tag, `"`) || first.Header.Get("Cache-Control") != "public, no-cache" || first.Header.Get("Content-Type") != "application/toml" || first.Header.Get("Vary") != "Accept-Encoding" {
		t.Fatalf("a package's file came as %s %v", first.Status, first.Header)
	}
	if l, err := mirror.ParseList(text); err != nil || len(l.Packages) != 1 {
		t.Fatalf("its text is %q: %v", text, err)
	}
	d.record(t, 2, 1, 2) // another package: this one stays what it is
	if again, body := d.ask(t, "GET", name, "If-None-Match: "+tag); again.StatusCode != 304 || len(body) > 0 || again.Header.Get("ETag") != tag {
		t.Errorf("asked again it came as %s %v", again.Status, again.Header)
	}
	d.record(t, 1, 2, 3)
	if now, text := d.ask(t, "GET", name, "If-None-Match: "+tag); now.StatusCode != 200 || now.Header.Get("ETag") == tag || !bytes.Contains(text, []byte("version = '1.2'")) {
		t.Errorf("after a new version it came as %s %v", now.Status, now.Header)
	}
}

func TestAnswersComeAsTheClientTakesThem(t *testing.T) {
	d := open(t, true)
	for v := range 6 {
		d.record(t, 1, v, int64(v+1))
	}
	name := mirror.PackageName("testing", resultstest.Name(1))
	whole, plain := d.ask(t, "GET", name)
	for coding, unpack := range map[string]func([]byte) ([]byte, error){
		"zstd": func(b []byte) ([]byte, error) { return mirror.Unpack(b, mirror.MaxText) },
		"gzip": func(b []byte) ([]byte, error) {
			z, err := gzip.NewReader(bytes.NewReader(b))
			if err != nil {
				return nil, err
			}
			return io.ReadAll(z)
		},
	} {
		for range 2 { // made, and kept
			r, body := d.ask(t, "GET", name, "Accept-Encoding: "+coding)
			text, err := unpack(body)
			if err != nil || !bytes.Equal(text, plain) || r.Header.Get("Content-Encoding") != coding || len(body) >= len(plain) || r.Header.Get("ETag") != "W/"+whole.Header.Get("ETag") {
				t.Errorf("%s came as %v, %d bytes: %v", coding, r.Header, len(body), err)
			}
			if h, body := d.ask(t, "HEAD", name, "Accept-Encoding: "+coding); len(body) > 0 || h.Header.Get("Content-Length") != r.Header.Get("Content-Length") || h.Header.Get("ETag") != r.Header.Get("ETag") {
				t.Errorf("HEAD in %s came as %v", coding, h.Header)
			}
			if again, _ := d.ask(t, "GET", name, "Accept-Encoding: "+coding, "If-None-Match: "+r.Header.Get("ETag")); again.StatusCode != 304 {
				t.Errorf("asked again in %s: %s", coding, again.Status)
			}
		}
	}
	if r, body := d.ask(t, "GET", name, "Range: bytes=10-19", "Accept-Encoding: gzip, zstd"); r.StatusCode != 206 || !bytes.Equal(body, plain[10:20]) {
		t.Errorf("a part came as %s %q", r.Status, body)
	}
}

func TestArtifactsComeInParts(t *testing.T) {
	d := open(t, true)
	data := bytes.Repeat([]byte("an archive of more than a piece. "), 100_000)
	digest := sha256.Sum256(data)
	sum := hex.EncodeToString(digest[:])
	if err := os.WriteFile(filepath.Join(d.dir, sum), data, 0o644); err != nil {
		t.Fatal(err)
	}
	name := mirror.ArtifactName(sum)
	r, got := d.ask(t, "GET", name, "Accept-Encoding: gzip, zstd")
	if !bytes.Equal(got, data) || r.Header.Get("ETag") != `"`+sum+`"` || r.Header.Get("Cache-Control") != "public, max-age=31536000, immutable" || r.Header.Get("Content-Type") != "application/zstd" || r.Header.Get("Content-Encoding") != "" {
		t.Errorf("the artifact came as %v, %d bytes", r.Header, len(got))
	}
	if r, got := d.ask(t, "GET", name, "Range: bytes=1000000-", `If-Range: "`+sum+`"`); r.StatusCode != 206 || !bytes.Equal(got, data[1000000:]) {
		t.Errorf("its rest came as %s, %d bytes", r.Status, len(got))
	}
	if r, got := d.ask(t, "GET", name, "Range: bytes=1000000-", `If-Range: "another"`); r.StatusCode != 200 || !bytes.Equal(got, data) {
		t.Errorf("the rest of another came as %s, %d bytes", r.Status, len(got))
	}
	if r, _ := d.ask(t, "GET", name, "Range: bytes=99999999-"); r.StatusCode != 416 {
		t.Errorf("what is behind its end came as %s", r.Status)
	}
	if r, got := d.ask(t, "HEAD", name); r.StatusCode != 200 || r.ContentLength != int64(len(data)) || len(got) > 0 {
		t.Errorf("HEAD says %s, %d bytes", r.Status, r.ContentLength)
	}
	if r, _ := d.ask(t, "GET", name, `If-None-Match: "`+sum+`"`); r.StatusCode != 304 {
		t.Errorf("asked again it came as %s", r.Status)
	}
}

func TestRecordsAreGitsBlobs(t *testing.T) {
	d := open(t, true)
	o := d.record(t, 1, 1, 1)
	s, err := d.repo.Snapshot("testing")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{mirror.RecordName(o.Build.Target()), mirror.FilesName(o.Build.Target())} {
		id, err := s.Blob(strings.TrimPrefix(name, "db/testing/records/"))
		if err != nil || id == "" {
			t.Fatal(id, err)
		}
		want, err := s.ReadBlob(id)
		if err != nil {
			t.Fatal(err)
		}
		if r, got := d.ask(t, "GET", name); !bytes.Equal(got, want) || r.Header.Get("ETag") != `"`+id+`"` {
			t.Errorf("%s came as %v, %d bytes", name, r.Header, len(got))
		}
	}
}

func TestWhatIsNotThereMayBeKeptShortly(t *testing.T) {
	d := open(t, true)
	d.record(t, 1, 1, 1)
	for _, name := range []string{"db/testing/p/zl/ib/zlib.toml", "db/none/head.json", "db/testing", "db/", "artifacts/ab/" + strings.Repeat("ab", 32) + ".tar.zst", "artifacts/", "db/testing/%2e%2e/head.json"} {
		r, body := d.ask(t, "GET", name)
		if r.StatusCode != 404 || r.Header.Get("Content-Type") != "application/problem+json" || !bytes.Contains(body, []byte("nothing of this name")) && !bytes.Contains(body, []byte("nothing at this path")) {
			t.Errorf("%s came as %s %v %s", name, r.Status, r.Header, body)
		}
	}
	if r, _ := d.ask(t, "GET", "db/testing/p/zl/ib/zlib.toml"); r.Header.Get("Cache-Control") != "public, max-age=10" {
		t.Errorf("a package that is not there came with %v", r.Header)
	}
	if r, _ := d.ask(t, "POST", "db/testing/head.json"); r.StatusCode != 405 {
		t.Errorf("POST came back as %s", r.Status)
	}
}

func TestPrivateFarmsWantTokens(t *testing.T) {
	d := open(t, false)
	d.record(t, 1, 1, 1)
	name := mirror.PackageName("testing", resultstest.Name(1))
	if r, _ := d.ask(t, "GET", name); r.StatusCode != 401 {
		t.Errorf("without a token it came as %s", r.Status)
	}
	if r, _ := d.ask(t, "GET", name, "Authorization: Bearer good"); r.StatusCode != 200 || r.Header.Get("Cache-Control") != "private, no-cache" {
		t.Errorf("with a token it came as %s %v", r.Status, r.Header)
	}
}

// All of a site, by its names, as a client goes through it.
func TestHeadsLeadToLists(t *testing.T) {
	d := open(t, true)
	d.record(t, 1, 1, 1)
	d.record(t, 1, 2, 2)
	_, data := d.ask(t, "GET", mirror.HeadName("testing"))
	h, err := mirror.ParseHead(data)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range mirror.Kinds {
		f, _, ok := h.File(k, "x86_64")
		if !ok {
			t.Fatalf("there is no %s", k)
		}
		r, packed := d.ask(t, "GET", mirror.InChannel("testing", f.Name))
		if _, err := f.Unpack(packed); err != nil || r.Header.Get("Cache-Control") != "public, max-age=31536000, immutable" {
			t.Errorf("%s: %v %v", f.Name, err, r.Header)
		}
	}
	if r, _ := d.ask(t, "GET", mirror.SignersName); r.StatusCode != 404 { // it signs nothing
		t.Errorf("allowed signers came as %s", r.Status)
	}
}
