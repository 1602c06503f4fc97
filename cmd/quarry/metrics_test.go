package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// TestMetricsAndHealth asks a real daemon after a real build.
func TestMetricsAndHealth(t *testing.T) {
	s := newServer(t, t.TempDir())
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	web := func(keys string) {
		t.Helper()
		if err := os.WriteFile(s.config, []byte(strings.Replace(string(text), "[web]\n", "[web]\n"+keys+"\n", 1)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	web("public = false")
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { s.stop(syscall.SIGTERM) }()
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", s.web, path))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	until := func(path string, status int, text string) {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
			code, body := get(path)
			if code == status && strings.Contains(body, text) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s is never %d with %q: %d\n%s", path, status, text, code, body)
			}
		}
	}
	if code, body := get("/metrics"); code != http.StatusUnauthorized {
		t.Errorf("metrics are shown to whoever is on this machine: %d\n%s", code, body)
	}
	if err := s.stop(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	web("public = false\nmetrics_public = true")
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	dir := testpkg.Init(t, "hello")
	s.mustIn(t, dir, "git", "push", "-o", "follow", s.url("hello"), "HEAD:refs/heads/hello-1.0")
	arch := config.HostArch()
	for _, want := range []string{
		`quarry_builds_ended_total{arch="` + arch + `",channel="testing",state="succeeded"} 1`,
		`quarry_push_to_start_seconds_count 1`, `quarry_push_to_record_seconds_count 1`, `quarry_results_commit_seconds_count 1`,
		`quarry_step_duration_seconds_count{step="make"} 1`, `quarry_workers{state="idle"}`, `quarry_queue_paused 0`,
		`quarry_pool_workspaces{arch="` + arch + `",channel="testing",state="warm"}`, `quarry_state_disk_free_bytes`,
		`quarry_state_used_bytes{part="results"}`, `quarry_ssh_connections`, `quarry_text_connections 0`, `quarry_text_verbs 0`, `quarry_mail_letters 0`, `quarry_mail_letters_given_up 0`, `quarry_http_requests_total{code="200",method="GET",route="/metrics"}`,
	} {
		until("/metrics", http.StatusOK, want)
	}
	_, body := get("/metrics")
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if strings.Contains(body, "hello") || strings.Contains(body, "alice") {
		t.Errorf("a label names a package or a person:\n%s", body)
	}

	until("/healthz", http.StatusOK, `"ok"`)
	until("/readyz", http.StatusOK, `"ready"`)
	if err := os.Rename(s.state("queue"), s.state("queue.away")); err != nil {
		t.Fatal(err)
	}
	until("/readyz", http.StatusServiceUnavailable, `"status": "not ready"`)
	if err := os.Rename(s.state("queue.away"), s.state("queue")); err != nil {
		t.Fatal(err)
	}
	until("/readyz", http.StatusOK, `"ready"`)
	until("/healthz", http.StatusOK, `"ok"`)
}
