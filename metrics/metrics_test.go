package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/queue"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// farm has something to tell in every metric there is.
func farm(t *testing.T) *Metrics {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "17"), make([]byte, 100_000), 0o644); err != nil {
		t.Fatal(err)
	}
	env := quarry.Environment{Channel: "testing", Arch: "x86_64"}
	m := New(Options{
		Version: "1.0", State: dir, Parts: map[string]string{"logs": dir},
		Queue: func() queue.Status {
			return queue.Status{Workers: 4, Busy: 1, Last: 17, Planned: time.Unix(1700000000, 0),
				Envs:   []queue.EnvironmentStatus{{Environment: env, Waiting: 3, Queued: 2, Running: 1}},
				Paused: []queue.PauseStatus{{Environment: &env, Pause: queue.Pause{Reason: "no base"}}}}
		},
		Jobs: func() (Jobs, bool) {
			return Jobs{Total: 8, Limit: 6, Out: 5, Used: 3, Running: 2, Waiting: 1, Clients: 4}, true
		},
		Pool: func() []Pool { return []Pool{{"testing", "x86_64", 2, 1, 1}} },
	})
	m.Gauge("ssh_sessions", "Commands under way over SSH.", func() float64 { return 3 })
	pushed := time.Now().Add(-time.Minute)
	b := quarry.Build{Number: 1, Release: quarry.Release{Package: "zlib", Version: "1.3", Channel: "testing", Pushed: pushed}, Arch: "x86_64",
		State: quarry.Running, Attempt: 1, Started: pushed.Add(3 * time.Second)}
	m.Build(b)
	m.Build(b) // told twice, as after it was put back
	b.State, b.Ended = quarry.Failed, pushed.Add(20*time.Second)
	m.Build(b)
	m.Recorded(&quarry.Outcome{Build: b, Status: quarry.Failed, Started: b.Started, Ended: b.Ended,
		Steps:   []quarry.Step{{Name: quarry.StepMake, Wall: 15 * time.Second}},
		Usage:   quarry.Usage{User: 20 * time.Second, Sys: 5 * time.Second, SlotTime: 40 * time.Second},
		Failure: &quarry.Failure{Step: quarry.StepMake, Cause: quarry.CauseExit, Class: "missing-header"}}, 30*time.Millisecond)
	m.Request("GET /builds/{n}", "GET", 200, 4*time.Millisecond, false)
	m.Request("", "BREW", 405, time.Millisecond, false)
	return m
}

func scrape(t *testing.T, h http.Handler) string {
	t.Helper()
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if rec.Code != http.StatusOK {
		t.Fatalf("status %d: %s", rec.Code, rec.Body)
	}
	return rec.Body.String()
}

// TestLint has promtool's linter look at what is really answered.
func TestLint(t *testing.T) {
	m := farm(t)
	text := scrape(t, m.Handler())
	for deadline := time.Now().Add(time.Minute); !strings.Contains(text, `quarry_state_used_bytes{part="logs"}`); text = scrape(t, m.Handler()) {
		if time.Now().After(deadline) {
			t.Fatal("the state folder was never measured")
		}
		time.Sleep(time.Millisecond)
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	for _, want := range []string{
		`quarry_queue_builds{arch="x86_64",channel="testing",cross="",state="waiting"} 3`,
		`quarry_environment_paused{arch="x86_64",channel="testing",cross=""} 1`,
		`quarry_queue_paused 0`,
		`quarry_workers{state="busy"} 1`, `quarry_workers{state="idle"} 3`,
		`quarry_pool_workspaces{arch="x86_64",channel="testing",state="warm"} 2`,
		`quarry_builds_ended_total{arch="x86_64",channel="testing",state="failed"} 1`,
		`quarry_build_failures_total{cause="exit",class="missing-header",step="make"} 1`,
		`quarry_push_to_start_seconds_count 1`, `quarry_push_to_start_seconds_sum 3`, `quarry_push_to_record_seconds_sum 20`,
		`quarry_jobs_slots{state="used"} 3`, `quarry_jobs_slots{state="unused"} 2`, `quarry_jobs_slots{state="free"} 1`, `quarry_jobs_slots{state="withheld"} 2`,
		`quarry_jobs_limit 6`, `quarry_jobs_builds{state="waiting"} 1`, `quarry_jobs_clients 4`, `quarry_build_slot_seconds_total 40`, `quarry_build_slot_cpu_seconds_total 25`,
		`quarry_step_duration_seconds_sum{step="make"} 15`, `quarry_results_commit_seconds_bucket{le="0.05"} 1`,
		`quarry_http_requests_total{code="405",method="other",route="none"} 1`,
		`quarry_ssh_sessions 3`, `quarry_build_info{`, `process_open_fds`, `go_goroutines`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is not there:\n%s", want, text)
		}
	}
	if strings.Contains(text, "zlib") {
		t.Errorf("a package is in a label:\n%s", text)
	}
}

// TestDocumented holds doc/metrics.md to what there is.
func TestDocumented(t *testing.T) {
	doc, err := os.ReadFile("../doc/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	families, err := farm(t).registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if name := f.GetName(); strings.HasPrefix(name, "quarry_") && !strings.Contains(string(doc), "`"+strings.TrimPrefix(name, "quarry_")+"`") {
			t.Errorf("doc/metrics.md does not tell of %s", name)
		}
	}
}

func TestNobodyCounts(t *testing.T) {
	var m *Metrics
	m.Build(quarry.Build{})
	m.Recorded(&quarry.Outcome{}, 0)
	m.Request("", "GET", 200, 0, false)
}

func TestHealth(t *testing.T) {
	var trouble error
	checks := 0
	h := Health(map[string]Check{
		"podman":  func(context.Context) error { checks++; return trouble },
		"results": func(context.Context) error { return nil },
	})
	ask := func(path string) (int, map[string]any) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
		var v map[string]any
		if err := json.Unmarshal(rec.Body.Bytes(), &v); err != nil {
			t.Fatalf("%s: %v: %s", path, err, rec.Body)
		}
		return rec.Code, v
	}
	if code, v := ask("/healthz"); code != 200 || v["status"] != "ok" {
		t.Errorf("healthz: %d, %v", code, v)
	}
	if code, v := ask("/readyz"); code != 200 || v["status"] != "ready" {
		t.Errorf("readyz: %d, %v", code, v)
	}
	trouble = errors.New("podman does not answer: start it")
	// Time goes on when all that can answer has.
	synctest.Test(t, func(t *testing.T) {
		over := make(chan struct{})
		defer close(over)
		h = Health(map[string]Check{"podman": func(context.Context) error { return trouble }, "queue": func(context.Context) error { return nil },
			"disk": func(ctx context.Context) error { <-over; return nil }})
		code, v := ask("/readyz")
		found, _ := v["checks"].(map[string]any)
		if code != 503 || found["podman"] != trouble.Error() || found["queue"] != "ok" || found["disk"] != "does not answer: it hangs" {
			t.Errorf("readyz in trouble: %d, %v", code, v)
		}
	})
}
