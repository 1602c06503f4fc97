package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/results"
)

// TestDBHistory asks a small database what it was, what changed, and what broke it.
func TestDBHistory(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.git")
	day := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	clock := day
	r, err := results.Open(path, results.Options{Now: func() time.Time { return clock }})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var commits []string
	for i, v := range []string{"1.0", "1.1", "1.2", "1.3", "1.4", "1.5", "1.6"} {
		clock = day.AddDate(0, 0, i)
		h, err := r.Record(context.Background(), dbOutcome("zlib", v, "x86_64", int64(i+1), nil))
		if err != nil {
			t.Fatal(err)
		}
		commits = append(commits, h)
	}
	clock = day.AddDate(0, 0, 7)
	if _, err := r.Promote(context.Background(), results.Promotion{From: "testing", To: "stable", Releases: []quarry.Release{{Package: "zlib", Version: "1.2"}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Record(context.Background(), dbOutcome("zlib", "1.7", "x86_64", 8, &quarry.Failure{Step: "make", Cause: quarry.CauseExit, Message: "no"})); err != nil {
		t.Fatal(err)
	}

	run := func(want int, bisect bool, args ...string) string {
		t.Helper()
		var out, progress bytes.Buffer
		cmd := newDBCmd(func() (string, error) { return path, nil })
		if bisect {
			cmd = newBisectCmd(func() (string, error) { return path, nil })
		}
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(args)
		cmd.SetOut(&out)
		cmd.SetErr(&progress)
		err := cmd.ExecuteContext(t.Context())
		if err != nil {
			fmt.Fprintf(&out, "error: %v", err)
		}
		if code := control.Code(err); code != want {
			t.Errorf("%q: status %d, want %d\n%s%s", args, code, want, out.String(), progress.String())
		}
		return out.String()
	}
	holds := func(out string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("%q is not in\n%s", w, out)
			}
		}
	}

	// A day is meant to its end; what was there then answers.
	holds(run(0, false, "at", "2026-03-03"), "testing at "+commits[2], "last: zlib 1.2 x86_64: succeeded", "1 package, 3 records, 0 failures")
	holds(run(0, false, "at", commits[4][:9]), "testing at "+commits[4])
	holds(run(0, false, "--at", "2026-03-02T12:00:00Z", "show", "zlib"), "1.1")
	if out := run(0, false, "--at", "2026-03-02", "show", "zlib"); strings.Contains(out, "1.2") {
		t.Errorf("the future shows:\n%s", out)
	}
	run(control.ExitNotFound, false, "at", "2026-02-01")
	run(control.ExitNotFound, false, "at", strings.Repeat("9", 40))
	holds(run(1, false, "at", "yesterday"), "neither a commit nor a time")

	holds(run(0, false, "diff", "stable", "testing"), "7 added, 0 changed, 0 removed", "failed")
	holds(run(0, false, "diff", "2026-03-06", "2026-03-07"), "1.6", "1 added, 0 changed, 0 removed")
	holds(run(0, false, "diff", "testing@"+commits[6], "stable"), "0 added, 0 changed, 6 removed")
	holds(run(0, false, "diff", "testing"), "nothing differs")
	holds(run(1, false, "diff", "nowhere"), "nor is it a channel: there is stable, testing")
	var list []dbChange
	if err := json.Unmarshal([]byte(run(0, false, "diff", "--json", commits[0], commits[1])), &list); err != nil || len(list) != 1 || list[0].New != 2 || list[0].What != "added" {
		t.Errorf("as JSON: %+v, %v", list, err)
	}

	// The command reads the repository as it was.
	broken := `! git -C "$QUARRY_RESULTS" cat-file -e "$QUARRY_COMMIT:packages/zl/ib/zlib/%s/x86_64.toml"`
	for i := 1; i < len(commits); i++ {
		out := run(0, true, commits[0], commits[6], "--", "sh", "-c", fmt.Sprintf(broken, fmt.Sprintf("1.%d", i)))
		if now := run(0, true, commits[0], "testing", "--", "sh", "-c", fmt.Sprintf(broken, fmt.Sprintf("1.%d", i))); now != out {
			t.Errorf("up to now:\n%s", now)
		}
		holds(out, commits[i]+"\n", fmt.Sprintf("zlib 1.%d x86_64: succeeded", i), "1 added")
	}
	// A commit that cannot be told is passed over, and named if it may be the one.
	unclear := fmt.Sprintf(`test "$QUARRY_COMMIT" = %s && exit 125; `, commits[3])
	holds(run(0, true, "2026-03-01", "2026-03-07", "--", "sh", "-c", unclear+fmt.Sprintf(broken, "1.3")), "one of these 2 commits", commits[3], commits[4])
	holds(run(0, true, "2026-03-01", "2026-03-07", "--", "sh", "-c", unclear+fmt.Sprintf(broken, "1.5")), commits[5])
	holds(run(1, true, "2026-03-01", "2026-03-07", "--", "false"), "fails at 2026-03-01 as well")
	holds(run(1, true, "2026-03-01", "2026-03-07", "--", "true"), "succeeds at 2026-03-07 as well")
	holds(run(1, true, "2026-03-01", "2026-03-07", "--", "/no/such/command"), "cannot be run")
	holds(run(3, true, "2026-03-07", "2026-03-01", "--", "true"), "does not come before")
	holds(run(2, true, "2026-03-07", "2026-03-01", "true"), "GOOD BAD -- COMMAND")
}
