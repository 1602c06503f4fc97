package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/queue"
)

// TestBlocked: whatever nothing can build is told with its reason, and what
// blocks most first.
func TestBlocked(t *testing.T) {
	arm := release("arm", "1.0")
	arm.Archs = []string{"aarch64"}
	arm.Traits = map[string]quarry.Traits{"aarch64": {NoWorker: "no worker builds for aarch64"}}
	broken := release("broken", "1.0")
	broken.Traits = map[string]quarry.Traits{"x86_64": {Broken: "it has \x1b[31mno luck"}}
	f := graphFarm(t, past{"bad-1.0": {"-x86_64"}, "good-1.0": {"+x86_64"}},
		release("bad", "1.0"), release("on-bad", "1.0", "bad"), release("on-that", "1.0", "on-bad"),
		release("good", "1.0"), release("on-good", "1.0", "good"), release("more", "1.0", "on-good"),
		release("lost", "1.0", "ghost>=2"), release("called-off", "1.0"), release("on-called-off", "1.0", "called-off"),
		release("knot", "1.0", "tied"), release("tied", "1.0", "knot"), arm, broken, release("on-broken", "1.0", "broken"))
	for _, b := range f.Queue.List(queue.Filter{Package: "called-off"}) {
		if err := f.Queue.Cancel(t.Context(), b.Number, "root"); err != nil {
			t.Fatal(err)
		}
	}
	table := Verbs(f)
	out, errOut, code := call(t, table, reader, Terminal{}, "status", "--blocked", "--channel", "testing", "-n", "20")
	if code != ExitOK {
		t.Fatalf("ended with %d: %s", code, errOut)
	}
	want := `testing: 14 builds, 1 of them built, 1 can be built now, 1 wait for these, nothing can build 11

What blocks most
BLOCKS  WHAT                  ARCHS    WHY
     2  bad 1.0               x86_64   its build failed (build 77)
     1  broken 1.0            x86_64   is broken: it has \x1b[31mno luck
     1  called-off 1.0        x86_64   build N was cancelled, rebuild starts another
     1  ghost>=2              x86_64   nobody has pushed it
     0  arm 1.0               aarch64  no worker builds for aarch64
     0  cycle of knot and 1 more  x86_64  in a cycle: knot 1.0 -> tied 1.0 -> knot 1.0 (x86_64)

Blocked besides
PACKAGE        VERSION  ARCH    WHY
`
	// Columns and build numbers are not what this is about.
	squeeze := func(s string) string {
		var lines []string
		for line := range strings.Lines(s) {
			words := strings.Fields(line)
			for i := range words {
				if i > 0 && words[i-1] == "build" && words[i] != "77)" && strings.Trim(words[i], "0123456789") == "" {
					words[i] = "N"
				}
			}
			lines = append(lines, strings.Join(words, " "))
		}
		return strings.Join(lines, "\n")
	}
	if got := squeeze(out); !strings.HasPrefix(got, squeeze(want)) {
		t.Errorf("status --blocked is\n%s\nwant\n%s", got, squeeze(want))
	}
	for _, line := range []string{
		"lost 1.0 x86_64 needs ghost>=2: nobody has pushed it",
		"on-bad 1.0 x86_64 needs bad 1.0 x86_64: its build failed (build 77)",
		"on-that 1.0 x86_64 needs on-bad 1.0 x86_64, which needs bad 1.0 x86_64: its build failed (build 77)",
		`on-broken 1.0 x86_64 needs broken 1.0 x86_64: is broken: it has \x1b[31mno luck`,
		"on-called-off 1.0 x86_64 needs called-off 1.0 x86_64: build N was cancelled, rebuild starts another",
	} {
		if !strings.Contains(squeeze(out), line+"\n") && !strings.HasSuffix(squeeze(out), line) {
			t.Errorf("%q is missing:\n%s", line, squeeze(out))
		}
	}
	// Few at a time, and how many there are.
	out, _, _ = call(t, table, reader, Terminal{TTY: true, Width: 80}, "status", "--blocked", "-n", "2")
	if !strings.Contains(out, "Blocked besides: 2 of 9, -n shows more") || !strings.Contains(out, "stable: nothing is released") || strings.Contains(out, "\x1b") {
		t.Errorf("status --blocked -n 2 is\n%s", out)
	}
	for _, what := range []string{"on-that", "on-that-1.0"} {
		if out, _, code = call(t, table, reader, Terminal{Color: true}, "status", "--blocked", what); code != ExitOK || !strings.Contains(out, "which needs bad 1.0 x86_64: its build failed") {
			t.Errorf("status --blocked %s: %d\n%s", what, code, out)
		}
	}
	if _, errOut, code = call(t, table, reader, Terminal{}, "status", "--blocked", "nothing"); code != ExitNotFound {
		t.Errorf("of no package: %d, %s", code, errOut)
	}
	if _, errOut, code = call(t, table, reader, Terminal{}, "status", "--channel", "testing"); code != ExitUsage {
		t.Errorf("--channel alone: %d, %s", code, errOut)
	}
	if _, errOut, code = call(t, table, reader, Terminal{}, "status", "--blocked", "--channel", "moon"); code != ExitNotFound || !strings.Contains(errOut, "there is stable, testing") {
		t.Errorf("no channel: %d, %s", code, errOut)
	}
	out, _, _ = call(t, table, reader, Terminal{}, "status", "--blocked", "--json")
	var list []blockedJSON
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 2 || list[1].Blocked != 11 || len(list[1].Builds) != 11 || len(list[1].Blockers) != 6 || list[0].Builds == nil {
		t.Errorf("as JSON: %v\n%s", err, out)
	}
	// Cycles are in the plain status too, and in that of what waits in one.
	for _, b := range f.Queue.List(queue.Filter{Package: "tied"}) {
		out, _, _ = call(t, table, reader, Terminal{}, "status", fmt.Sprint(b.Number))
		if !strings.Contains(out, "in a cycle") || !strings.Contains(out, "tied 1.0 -> knot 1.0 -> tied 1.0 (x86_64)") {
			t.Errorf("status of what is in a cycle is\n%s", out)
		}
	}
	out, _, _ = call(t, table, reader, Terminal{}, "status")
	if !strings.Contains(out, "problem: testing is in a cycle: knot 1.0 -> tied 1.0 -> knot 1.0 (x86_64), so that none can be built first") {
		t.Errorf("status is\n%s", out)
	}
}

func TestGraphVerb(t *testing.T) {
	var releases []quarry.Release
	for i := range 800 {
		releases = append(releases, release(fmt.Sprintf("p%d", i), "1.0"))
		if i > 0 {
			releases[i].Needs = []string{fmt.Sprintf("p%d", i-1)}
		}
	}
	f := graphFarm(t, past{"p0-1.0": {"+x86_64"}, "p1-1.0": {"-x86_64"}}, releases...)
	table := Verbs(f)
	out, errOut, code := call(t, table, reader, Terminal{TTY: true, Color: true}, "graph", "p799")
	if code != ExitOK || strings.Count(out, "\n") != maxLines+1 || !strings.HasSuffix(out, "\n... and 300 more lines: name a package, give --depth, or have it in a file\n") {
		t.Errorf("on a terminal: %d, %d lines, %s%.300s", code, strings.Count(out, "\n"), errOut, out)
	}
	out, _, _ = call(t, table, reader, Terminal{}, "graph", "p799")
	if strings.Count(out, "\n") != 800 {
		t.Errorf("elsewhere: %d lines", strings.Count(out, "\n"))
	}
	out, _, _ = call(t, table, reader, Terminal{Color: true}, "graph", "p2")
	want := "p2 1.0 " + human.Paint("[blocked]", human.Red, true) + "\n`- p1 1.0 " + human.Paint("[failed]", human.Red, true) + "\n   `- p0 1.0 " + human.Paint("[done]", human.Green, true) + "\n"
	if out = strings.ReplaceAll(strings.ReplaceAll(out, " (p1)", ""), " (p0)", ""); out != want {
		t.Errorf("in colour it is\n%q, want\n%q", out, want)
	}
	for words, says := range map[string]string{
		"--format svg":               "800 releases and what they need are too much for one picture",
		"--depth -1":                 "may not be negative",
		"--json --format dot":        "choose one",
		"p1 --arch vax":              "no release is for",
		"p1 --channel \x1b[2Jstable": `\x1b`,
	} {
		_, errOut, code := call(t, table, reader, Terminal{}, append([]string{"graph"}, strings.Fields(words)...)...)
		if code == ExitOK || !strings.Contains(errOut, says) || strings.Contains(errOut, "\x1b") {
			t.Errorf("graph %s: %d, %q", words, code, errOut)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, errOut, code := call(t, table, reader, Terminal{}, "graph", "p1", "--format", "svg"); code != ExitError || !strings.Contains(errOut, "install graphviz") {
		t.Errorf("without dot: %d, %s", code, errOut)
	}
	// One that fails, and says why.
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "dot"), []byte("#!/bin/sh\necho 'no \033[2J fonts' >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	if _, errOut, code := call(t, table, reader, Terminal{}, "graph", "p1", "--format", "svg"); code != ExitError || !strings.Contains(errOut, `exit status 3: no \x1b[2J fonts`) {
		t.Errorf("with a dot that fails: %d, %s", code, errOut)
	}
}

func TestPlanVerb(t *testing.T) {
	f := graphFarm(t, past{}, release("one", "1.0"), release("two", "1.0", "one"), release("alone", "1.0"), release("lost", "1.0", "ghost"))
	table := Verbs(f)
	out, errOut, code := call(t, table, reader, Terminal{}, "plan", "-n", "2")
	if code != ExitOK || !strings.HasPrefix(out, "3 builds, 6 m 00 s of work: through in about 4 m 00 s with 2 builders\n") ||
		!strings.Contains(out, "nothing can build 1 more") || !strings.HasSuffix(out, "... and 1 more build: -n shows more\n") {
		t.Errorf("plan: %d, %s%s", code, errOut, out)
	}
	var plan Plan
	out, _, _ = call(t, table, reader, Terminal{}, "plan", "--json", "--builders", "1")
	if err := json.Unmarshal([]byte(out), &plan); err != nil || plan.Wanted != 4 || plan.Blocked != 1 || plan.Seconds != 360 || len(plan.Builds) != 3 ||
		plan.Builds[0].Package != "one" || plan.Builds[0].Path != 240 || len(plan.Paused) != 1 {
		t.Errorf("plan --json: %v\n%s", err, out)
	}
	out, _, _ = call(t, table, reader, Terminal{}, "plan", "--channel", "stable")
	if out != "nothing is wanted: everything that is released has its record\n" {
		t.Errorf("of a channel without any: %s", out)
	}
	for words, says := range map[string]string{
		"--builders -1":                     "1 to 100000",
		"--builders 100001":                 "1 to 100000",
		"--simulate --export":               "choose one",
		"--order path":                      "go with --simulate",
		"--simulate --order best":           "path, fifo and random",
		"--simulate --file /etc/passwd":     "send it as standard input",
		"--simulate --channel moon":         "channel \"moon\" is not there",
		"--export --builders 3":             "yours to write",
		"-n -1":                             "may not be negative",
		"--simulate --file - --channel moo": "send it as standard input",
	} {
		if _, errOut, code := call(t, table, reader, Terminal{}, append([]string{"plan"}, strings.Fields(words)...)...); code == ExitOK || !strings.Contains(errOut, says) {
			t.Errorf("plan %s: %d, %q", words, code, errOut)
		}
	}
	out, _, _ = call(t, table, reader, Terminal{}, "plan", "--simulate", "--channel", "stable")
	if out != "stable has nothing that could be built\n" {
		t.Errorf("nothing to simulate: %s", out)
	}
}

// TestPlanFile: a file that somebody wrote is simulated as it says, or refused
// with what is wrong.
func TestPlanFile(t *testing.T) {
	table := Verbs(&Farm{Queue: nil, Default: "testing", Channels: []Channel{{Name: "testing"}}})
	run := func(text string, words ...string) (string, string, int) {
		var out, errOut bytes.Buffer
		code := table.Run(context.Background(), reader, append([]string{"plan", "--simulate", "--file", "-"}, words...), strings.NewReader(text), &out, &errOut, Terminal{})
		return out.String(), errOut.String(), code
	}
	good := `{"quarry_plan": 1,
		"builders": [{"workers": ["x86_64:x86_64", "x86_64:arm:300"], "slots": 1}, {"name": "b", "workers": ["x86_64:x86_64"]}],
		"jobs": [{"name": "a", "arch": "x86_64", "seconds": 10}, {"name": "b", "arch": "x86_64", "seconds": 10, "needs": ["a", "a"]},
		         {"name": "c", "arch": "arm", "seconds": 20, "cross": true, "arrives": 5}, {"name": "d", "arch": "vax", "seconds": 1}]}`
	out, errOut, code := run(good, "--json")
	var sim simulationJSON
	if err := json.Unmarshal([]byte(out), &sim); code != ExitOK || err != nil || sim.Jobs != 3 || sim.Left != 1 || sim.Builders != 2 || sim.Longest != 25 || sim.Work != 40 || len(sim.Orders) != 3 || sim.Orders[0].Makespan < 25 {
		t.Errorf("ended with %d: %s%s", code, errOut, out)
	}
	if out, errOut, code = run(good, "--builders", "3", "--order", "fifo"); code != ExitOK || !strings.Contains(out, "4 builds with 41 s of work, on 3 builders") || strings.Contains(out, "random") {
		t.Errorf("with other builders: %d, %s%s", code, errOut, out)
	}
	shared := `{"quarry_plan": 1, "builders": [{"workers": ["x86_64:x86_64"], "slots": 2, "jobs": 8}],
		"jobs": [{"name": "a", "arch": "x86_64", "seconds": 100, "shared": 1}, {"name": "b", "arch": "x86_64", "seconds": 40, "shared": 1}]}`
	if out, errOut, code = run(shared, "--json", "--order", "path"); json.Unmarshal([]byte(out), &sim) != nil || code != ExitOK || sim.Orders[0].Makespan < 69.9 || sim.Orders[0].Makespan > 70.1 || sim.Bound < 69.9 {
		t.Errorf("jobs that are shared: %d, %s%s", code, errOut, out) // 40 s with half of them, then 60 s in half the time
	}
	var none bytes.Buffer
	if code := table.Run(t.Context(), quarry.Identity{Role: quarry.RoleReader}, []string{"plan", "--simulate", "--file", "-"}, strings.NewReader(good), &none, &none, Terminal{}); code != ExitForbidden {
		t.Errorf("who does not say who it is has a file played: %d, %s", code, none.String())
	}
	job := func(s string) string { return `{"quarry_plan": 1, "jobs": [` + s + `]}` }
	for text, says := range map[string]string{
		"":                  "cannot be read",
		`{"jobs": []}`:      `"quarry_plan": 0`,
		job(""):             "has no jobs",
		job(`{"x": 1}`):     "x",
		job(`{"name": ""}`): "blank or there already",
		job(`{"name": "a", "arch": "x86_64"}, {"name": "a", "arch": "x86_64"}`):                                                         "there already",
		job(`{"name": "a", "arch": "-x"}`):                                                                                              "arch",
		job(`{"name": "a", "arch": "x86_64", "seconds": -1}`):                                                                           "seconds",
		job(`{"name": "a", "arch": "x86_64", "seconds": 1e300}`):                                                                        "seconds",
		job(`{"name": "a", "arch": "x86_64", "seconds": 1, "shared": 1.5}`):                                                             "0 to 1",
		`{"quarry_plan": 1, "builders": [{"workers": ["x86_64:x86_64"], "jobs": 1025}], "jobs": [{"name": "a", "arch": "x86_64"}]}`:     "1024",
		job(`{"name": "a", "arch": "x86_64", "needs": ["b"]}`):                                                                          "which is no job of the file",
		job(`{"name": "a", "arch": "x86_64", "needs": ["b"]}, {"name": "b", "arch": "x86_64", "needs": ["a"]}`):                         `job "a" is in a cycle`,
		`{"quarry_plan": 1, "builders": [{"workers": []}], "jobs": [{"name": "a", "arch": "x86_64"}]}`:                                  "builders[0]",
		`{"quarry_plan": 1, "builders": [{"workers": ["x86_64:x86_64"], "slots": -1}], "jobs": [{"name": "a", "arch": "x86_64"}]}`:      "at most",
		`{"quarry_plan": 1, "builders": [{"workers": ["x86_64:x86_64"], "slots": 1000000}], "jobs": [{"name": "a", "arch": "x86_64"}]}`: "at most",
	} {
		if out, errOut, code := run(text); code == ExitOK || !strings.Contains(errOut, says) {
			t.Errorf("%s: %d, %q%s", text, code, errOut, out)
		}
	}
}
