package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
)

// base is where the server's web door is.
func (s *server) base() string { return fmt.Sprintf("http://127.0.0.1:%d", s.web) }

// token makes a token of a person.
func (s *server) token(t testing.TB, user string, flags ...string) string {
	t.Helper()
	return strings.TrimSpace(s.quarry(t, append([]string{"token", "add", user}, flags...)...))
}

// TestRestExamples runs what doc/rest.md shows, as it is printed.
func TestRestExamples(t *testing.T) {
	needTools(t, "curl", "tar", "gzip")
	s := newServer(t, t.TempDir())
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.stop(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}()
	doc, err := os.ReadFile(filepath.Join(testpkg.Root(t), "doc", "rest.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllSubmatch(doc, -1)
	if len(blocks) < 4 {
		t.Fatalf("doc/rest.md has %d blocks of examples", len(blocks))
	}
	dir := filepath.Join(s.dir, "examples")
	if err := os.CopyFS(filepath.Join(dir, "hello"), os.DirFS(testpkg.Dir(t, "hello"))); err != nil {
		t.Fatal(err)
	}
	s.setenv("URL", s.base())
	s.setenv("TOKEN", s.token(t, "alice"))
	run := func(blocks [][][]byte) string {
		t.Helper()
		script := "set -ex\n"
		for _, b := range blocks {
			script += string(b[1])
		}
		return s.mustIn(t, dir, "sh", "-c", script)
	}
	s.quarry(t, "pause") // what the first block asks for is not over before it is looked at
	out := run(blocks[:1])
	s.until(t, "an event tells of the push", func() bool { return strings.Contains(s.quarry(t, "events", "--since", "0"), "released hello") })
	s.quarry(t, "resume")
	out += run(blocks[1:])
	t.Log(out)
	for _, want := range []string{`"state": "building"`, `"number": 1`, "Hello", `"version": "1.0"`, "status = 'succeeded'", `"kind":"push"`} {
		if !strings.Contains(out, want) {
			t.Errorf("%s is not among what the examples print", want)
		}
	}
	// What was pushed is alice's.
	if by := s.must(t, "git", "-C", s.state("repos", "hello.git"), "log", "-1", "--format=%an <%ae>", "hello-1.0"); by != "Alice Liddell <alice@example.org>\n" {
		t.Errorf("the commit is by %q", by)
	}
	if !strings.Contains(s.must(t, "git", "-C", s.state("results.git"), "log", "-1", "--format=%B", "testing"), "alice") {
		t.Error("the record does not tell who released it")
	}
}

// rest is a client that holds every answer against the OpenAPI document.
type rest struct {
	t      *testing.T
	s      *server
	token  string
	router routers.Router
	called map[string]bool // METHOD path, as the document has it
	doc    *openapi3.T
}

func newRest(t *testing.T, s *server, token string) *rest {
	t.Helper()
	resp, err := http.Get(s.base() + "/api/v1/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := openapi3.NewLoader().LoadFromData(data)
	if err != nil {
		t.Fatalf("the document cannot be read: %v", err)
	}
	if err := doc.Validate(t.Context()); err != nil {
		t.Fatalf("the document is not valid: %v", err)
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	return &rest{t, s, token, router, map[string]bool{}, doc}
}

// call makes a request, and gives the answer after holding both against the
// document. Keys of header come in pairs.
func (c *rest) call(method, path string, body []byte, want int, header ...string) (http.Header, []byte) {
	c.t.Helper()
	make := func() *http.Request {
		req, err := http.NewRequestWithContext(c.t.Context(), method, c.s.base()+path, bytes.NewReader(body))
		if err != nil {
			c.t.Fatal(err)
		}
		if body == nil {
			req.Body, req.ContentLength = http.NoBody, 0
		}
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		if req.Header.Get("Authorization") == "" && c.token != "" {
			req.Header.Set("Authorization", "Bearer "+c.token)
		} else if req.Header.Get("Authorization") == "none" {
			req.Header.Del("Authorization")
		}
		return req
	}
	req := make()
	route, params, err := c.router.FindRoute(req)
	if err != nil {
		c.t.Fatalf("%s %s is not in the document: %v", method, path, err)
	}
	c.called[method+" "+route.Path] = true
	options := &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true, ExcludeRequestBody: true}
	input := &openapi3filter.RequestValidationInput{Request: make(), PathParams: params, Route: route, Options: options}
	if want < 400 {
		if err := openapi3filter.ValidateRequest(c.t.Context(), input); err != nil {
			c.t.Errorf("%s %s: the request is not as the document has it: %v", method, path, err)
		}
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	if resp.StatusCode != want {
		c.t.Fatalf("%s %s: status %d, want %d: %s", method, path, resp.StatusCode, want, data)
	}
	if kind := resp.Header.Get("Content-Type"); want >= 400 && kind != "application/problem+json" {
		c.t.Errorf("%s %s: an error of type %s", method, path, kind)
	}
	check := data
	if resp.Header.Get("Content-Type") == "application/jsonl" { // each line by itself
		check, _, _ = bytes.Cut(data, []byte("\n"))
	}
	if err := openapi3filter.ValidateResponse(c.t.Context(), (&openapi3filter.ResponseValidationInput{
		RequestValidationInput: input, Status: resp.StatusCode, Header: resp.Header, Options: options}).SetBodyBytes(check)); err != nil && want != http.StatusNotModified {
		c.t.Errorf("%s %s: the answer is not as the document has it: %v\n%s", method, path, err, data)
	}
	return resp.Header, data
}

func init() {
	plain := func(body io.Reader, _ http.Header, _ *openapi3.SchemaRef, _ openapi3filter.EncodingFn) (any, error) {
		data, err := io.ReadAll(body)
		return string(data), err
	}
	asJSON := func(body io.Reader, _ http.Header, _ *openapi3.SchemaRef, _ openapi3filter.EncodingFn) (v any, err error) {
		return v, json.NewDecoder(body).Decode(&v)
	}
	openapi3filter.RegisterBodyDecoder("application/toml", plain)
	openapi3filter.RegisterBodyDecoder("application/zstd", plain)
	openapi3filter.RegisterBodyDecoder("text/event-stream", plain)
	openapi3filter.RegisterBodyDecoder("application/jsonl", asJSON)
	openapi3filter.RegisterBodyDecoder("application/vnd.in-toto.provenance+dsse", asJSON)
}

// pack makes a tar of a package.
func (s *server) pack(t testing.TB, dir string) []byte {
	t.Helper()
	return []byte(s.must(t, "tar", "-c", "-C", dir, "."))
}

// TestREST calls all that the OpenAPI document has, of a farm that builds, and
// holds each answer against it.
func TestREST(t *testing.T) {
	needTools(t, "tar")
	s := newServer(t, t.TempDir())
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.stop(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}()
	s.quarry(t, "key", "add", "root", filepath.Join(s.dir, "mallory.pub"), "--role", "admin")
	c := newRest(t, s, s.token(t, "alice"))
	admin := []string{"Authorization", "Bearer " + s.token(t, "root")}
	arch := config.HostArch()
	decode := func(data []byte, v any) {
		t.Helper()
		if err := json.Unmarshal(data, v); err != nil {
			t.Fatalf("%v: %s", err, data)
		}
	}

	// The seed's calls, in the wrong order first.
	var task struct {
		ID, State, Reason string
		Builds            []struct {
			Number int64
			State  quarry.State
		}
	}
	c.call("POST", "/task", nil, 401, "Authorization", "none")
	c.call("POST", "/task", nil, 401, "Authorization", "Bearer qry_aaaaaaaa_nonsense")
	h, data := c.call("POST", "/task", nil, 201)
	decode(data, &task)
	if task.State != "new" || h.Get("Location") != "/task/"+task.ID+"/status" {
		t.Fatalf("%+v, %s", task, h)
	}
	at := "/task/" + task.ID
	c.call("PUT", at+"/build", nil, 409)
	hello := testpkg.Copy(t, "hello")
	c.call("PUT", at+"/build_bundle", []byte("no tar at all, but long enough to be looked at"), 400, "Content-Type", "application/x-tar")
	c.call("PUT", at+"/build_bundle", s.pack(t, hello), 200, "Content-Type", "application/x-tar")
	c.call("PUT", at+"/build", nil, 409)
	c.call("PUT", at+"/branch", []byte("nowhere"), 400, "Content-Type", "text/plain")
	_, data = c.call("PUT", at+"/branch", []byte(`{"branch": "testing"}`), 200, "Content-Type", "application/json")
	if decode(data, &task); task.State != "ready" {
		t.Errorf("the task is %s", task.State)
	}
	c.call("PUT", at+"/branch", []byte("testing"), 401, "Content-Type", "text/plain", "Authorization", "none")
	if err := s.stop(syscall.SIGKILL); err != nil { // tasks outlive the daemon
		t.Fatal(err)
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	s.quarry(t, "pause") // nothing is over before it is looked at
	_, data = c.call("PUT", at+"/build", nil, 202)
	if decode(data, &task); task.State != "building" || len(task.Builds) != 1 || task.Builds[0].Number != 1 {
		t.Fatalf("%s", data)
	}
	c.call("PUT", at+"/build", nil, 200)
	c.call("PUT", at+"/branch", []byte("testing"), 409, "Content-Type", "text/plain")
	s.quarry(t, "resume")
	_, log := c.call("GET", "/api/v1/builds/1/log?follow=true", nil, 200)
	if !bytes.Contains(log, []byte("hello")) {
		t.Errorf("the log is %s", log)
	}
	_, data = c.call("GET", at+"/status", nil, 200)
	if decode(data, &task); task.State != "succeeded" {
		t.Errorf("the task is %s", data)
	}
	c.call("GET", "/task", nil, 200)
	c.call("GET", "/builder/status", nil, 200)

	// What the hooks refuse, they refuse here in the same words.
	bad := testpkg.Copy(t, "hello")
	recipe := filepath.Join(bad, "package.json")
	text, err := os.ReadFile(recipe)
	if err != nil {
		t.Fatal(err)
	}
	text = bytes.Replace(text, []byte(`"patches": []`), []byte(`"patches": ["gone.patch"]`), 1)
	if err := os.WriteFile(recipe, text, 0o644); err != nil {
		t.Fatal(err)
	}
	_, data = c.call("POST", "/task", nil, 201)
	decode(data, &task)
	c.call("PUT", "/task/"+task.ID+"/build_bundle", s.pack(t, bad), 200, "Content-Type", "application/x-tar")
	c.call("PUT", "/task/"+task.ID+"/branch", []byte("testing"), 200, "Content-Type", "text/plain")
	_, data = c.call("PUT", "/task/"+task.ID+"/build", nil, 422)
	if !bytes.Contains(data, []byte("gone.patch")) {
		t.Errorf("the refusal is %s", data)
	}
	c.call("PUT", "/task/"+task.ID+"/branch", []byte("testing"), 401, "Content-Type", "text/plain", "Authorization", "Bearer "+strings.Repeat("x", 50))

	// Resources.
	var builds []quarry.Build
	h, data = c.call("GET", "/api/v1/builds?package=hello&state=succeeded&limit=1", nil, 200)
	if decode(data, &builds); len(builds) != 1 || builds[0].Arch != arch {
		t.Errorf("%s", data)
	}
	c.call("GET", "/api/v1/builds?package=hello&state=succeeded&limit=1", nil, 304, "If-None-Match", h.Get("ETag"))
	c.call("GET", "/api/v1/builds?limit=0", nil, 400)
	c.call("GET", "/api/v1/builds?stat=running", nil, 400)
	if _, data = c.call("GET", "/api/v1/builds/1", nil, 200, "Authorization", "none"); bytes.Contains(data, []byte(s.state())) {
		t.Errorf("anybody is told where the farm keeps its state: %s", data)
	}
	c.call("GET", "/api/v1/builds/77", nil, 404)
	c.call("GET", "/api/v1/builds/1/why", nil, 200)
	if _, part := c.call("GET", "/api/v1/builds/1/log", nil, 206, "Range", "bytes=3-12"); !bytes.Equal(part, log[3:13]) {
		t.Errorf("a part of the log is %q, and should be %q", part, log[3:13])
	}
	c.call("GET", "/api/v1/builds/1/log", nil, 416, "Range", "bytes=99999999-")
	c.call("GET", "/api/v1/builds/77/log", nil, 404)
	c.call("GET", "/api/v1/channels", nil, 200)
	c.call("GET", "/api/v1/packages", nil, 200)
	c.call("GET", "/api/v1/packages?channel=nowhere", nil, 404)
	_, data = c.call("GET", "/api/v1/packages/hello", nil, 200)
	var recorded []struct{ Artifact string }
	if decode(data, &recorded); len(recorded) != 1 || len(recorded[0].Artifact) != 64 {
		t.Fatalf("%s", data)
	}
	c.call("GET", "/api/v1/packages/nothing", nil, 404)
	record := "/api/v1/records/testing/hello/1.0/" + arch
	_, asJSON := c.call("GET", record, nil, 200)
	h, asTOML := c.call("GET", record, nil, 200, "Accept", "application/toml")
	if want := s.must(t, "git", "-C", s.state("results.git"), "show", "testing:"+s.recordPath(t, "hello", ".toml")); string(asTOML) != want {
		t.Errorf("the record is\n%s\nand not\n%s", asTOML, want)
	}
	if !json.Valid(asJSON) || h.Get("Vary") == "" {
		t.Errorf("%s, %s", asJSON, h)
	}
	c.call("GET", record, nil, 304, "Accept", "application/toml", "If-None-Match", h.Get("ETag"))
	c.call("GET", record+"?status=failed", nil, 404)
	c.call("GET", record+"/files", nil, 200)
	c.call("GET", record+"/provenance", nil, 200)
	c.call("GET", "/api/v1/records/testing/hello/9/"+arch, nil, 404)
	h, artifact := c.call("GET", "/api/v1/artifacts/"+recorded[0].Artifact, nil, 200)
	if !strings.Contains(h.Get("Cache-Control"), "immutable") {
		t.Error(h)
	}
	if _, part := c.call("GET", "/api/v1/artifacts/"+recorded[0].Artifact, nil, 206, "Range", "bytes=4-9"); !bytes.Equal(part, artifact[4:10]) {
		t.Errorf("a part of the artifact is %q", part)
	}
	c.call("GET", "/api/v1/artifacts/"+strings.Repeat("0", 64), nil, 404)
	for _, path := range []string{"status", "groups", "environments", "builders", "jobs", "verbs", "openapi.json"} {
		c.call("GET", "/api/v1/"+path, nil, 200)
	}
	s.until(t, "an event tells of the build's end", func() bool {
		_, data = c.call("GET", "/api/v1/events?since=0", nil, 200)
		return bytes.Contains(data, []byte(`"kind":"build.succeeded"`))
	})

	c.verbs(admin)

	// Nothing is there that the document does not have, and nothing in it was left out.
	for path, item := range c.doc.Paths.Map() {
		for method := range item.Operations() {
			if !c.called[method+" "+path] {
				t.Errorf("%s %s was not called", method, path)
			}
		}
	}
	for _, path := range []string{"/api", "/api/v1/", "/api/v1/nothing", "/api/v2/builds", "/task/", "/task/x/y", "/builder/", "/api/v1/verbs/pushed", "/api/v1/verbs/impact"} {
		resp, err := http.Get(s.base() + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: status %d", path, resp.StatusCode)
		}
	}
	resp, err := http.Post(s.base()+"/api/v1/builds", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed || resp.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST of builds: %d, Allow %q", resp.StatusCode, resp.Header.Get("Allow"))
	}

	// What the queue has forgotten is known by its record.
	if err := s.stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(s.state("queue")); err != nil {
		t.Fatal(err)
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	var build quarry.Build
	_, data = c.call("GET", "/api/v1/builds/1", nil, 200, "Authorization", "none")
	if decode(data, &build); build.Package != "hello" || build.State != quarry.Succeeded || build.Channel != "testing" || build.Arch != arch || bytes.Contains(data, []byte(s.state())) {
		t.Errorf("build 1, once forgotten: %s", data)
	}
	c.call("GET", "/api/v1/builds/1/why", nil, 200)
	c.call("GET", "/api/v1/builds/77", nil, 404)
	if out := s.quarry(t, "why", "1"); !strings.Contains(out, "build 1: hello 1.0 "+arch+" succeeded") {
		t.Errorf("why of a forgotten build: %s", out)
	}
}

// verbs calls each verb of the table, by each method that it has: with good
// words those that only look, with words that are off all others, as what they do
// is tested where it is done.
func (c *rest) verbs(admin []string) {
	c.t.Helper()
	good := map[string]string{
		"status": "", "top": "?count=1", "builders": "", "jobs": "?count=1", "graph": "", "plan": "", "log": "?arg=1", "why": "?arg=1", "whoami": "", "help": "?arg=log",
		"images list": "", "images show": "?arg=testing/" + config.HostArch(), "group list": "", "token list": "", "keys list": "", "events": "", "signers": "",
	}
	var list []struct {
		Name, Path, Need string
		Looks            bool
		MinArgs          int `json:"min_args"`
		MaxArgs          int `json:"max_args"`
	}
	_, data := c.call("GET", "/api/v1/verbs", nil, 200)
	if err := json.Unmarshal(data, &list); err != nil {
		c.t.Fatal(err)
	}
	for _, v := range list {
		if q, ok := good[v.Name]; ok && v.Looks {
			c.call("GET", v.Path+q, nil, 200, admin...)
			c.call("POST", v.Path+q, nil, 200, admin...)
			delete(good, v.Name)
		} else if v.Looks { // of a thing that is not there
			c.call("GET", v.Path+"?arg=nothing", nil, 404, admin...)
			c.call("POST", v.Path+"?arg=nothing", nil, 404, admin...)
		} else {
			c.call("POST", v.Path+"?no-such-flag=1", nil, 400, admin...)
			c.call("POST", v.Path, []byte(`{"argz": []}`), 400, append(slices.Clone(admin), "Content-Type", "application/json")...)
		}
		if v.Need == "admin" {
			args := "?" + strings.Repeat("&arg=x", v.MinArgs)
			c.call("POST", v.Path+args, nil, 403)
			c.call("POST", v.Path+args, nil, 401, "Authorization", "none")
		}
	}
	for name := range good {
		c.t.Errorf("the verb %s is not there, or does not only look", name)
	}
	// Words, flags and exit codes come through.
	h, data := c.call("POST", "/api/v1/verbs/status", []byte(`{"args": ["hello"], "flags": {"limit": 1}}`), 200, "Content-Type", "application/json")
	var builds []quarry.Build
	if err := json.Unmarshal(data, &builds); err != nil || len(builds) != 1 || h.Get("Quarry-Exit") != "0" {
		c.t.Errorf("%v, %s, %s", err, h, data)
	}
	_, data = c.call("GET", "/api/v1/verbs/whoami", nil, 200, "Accept", "text/plain")
	if !strings.HasPrefix(string(data), "alice (Alice Liddell") {
		c.t.Errorf("whoami: %s", data)
	}
	_, data = c.call("GET", "/api/v1/verbs/whoami", nil, 200, "Accept", "text/plain", "Authorization", "none")
	if !strings.HasPrefix(string(data), "anonymous, reader\n") {
		c.t.Errorf("whoami: %s", data)
	}
	_, data = c.call("GET", "/api/v1/verbs/log?arg=77", nil, 404)
	if !bytes.Contains(data, []byte(`"exit": 3`)) {
		c.t.Errorf("log of nothing: %s", data)
	}
	c.call("POST", "/api/v1/verbs/rebuild?arg=1", nil, 401, "Authorization", "none")
	// A release that is there, and one that is handed in again.
	_, data = c.call("POST", "/api/v1/verbs/build?arg=hello-1.0", nil, 200)
	if !bytes.Contains(data, []byte(`"state": "succeeded"`)) {
		c.t.Errorf("build: %s", data)
	}
	_, data = c.call("POST", "/api/v1/verbs/build?arg=-&channel=testing", c.s.pack(c.t, testpkg.Dir(c.t, "hello")), 200, "Content-Type", "application/octet-stream")
	if !bytes.Contains(data, []byte(`"new": false`)) {
		c.t.Errorf("the same bundle: %s", data)
	}
}

// recordPath is where a package's record, or list of files, is in the results.
func (s *server) recordPath(t testing.TB, pkg, ext string) string {
	t.Helper()
	for line := range strings.Lines(s.must(t, "git", "-C", s.state("results.git"), "ls-tree", "-r", "--name-only", "testing")) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "packages/") && strings.Contains(line, "/"+pkg+"/") && strings.HasSuffix(line, ext) && !strings.HasSuffix(line, ".files.toml") {
			return line
		}
	}
	t.Fatalf("there is no record of %s", pkg)
	return ""
}
