package explain

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
)

var update = flag.Bool("update", false, "write testdata/want.txt anew: read the difference line by line")

// sample is the log of a real tool, and how it ended.
type sample struct {
	name, step string
	status     int
	log        []byte
}

// samples reads testdata/logs.txtar: each file is what a tool of Debian 12 (GCC
// 12, clang 14, automake 1.16, CMake 3.25, Rust 1.63...) has printed when it was
// made to fail, without a network and under LC_ALL=C.UTF-8, as in a build. A
// file's name is NAME, STEP and the exit status.
func samples(t testing.TB) []sample {
	t.Helper()
	data, err := os.ReadFile("testdata/logs.txtar")
	if err != nil {
		t.Fatal(err)
	}
	var list []sample
	for line := range bytes.Lines(data) {
		var s sample
		if n, _ := fmt.Sscanf(string(line), "-- %s %s %d --\n", &s.name, &s.step, &s.status); n == 3 {
			list = append(list, s)
			continue
		}
		list[len(list)-1].log = append(list[len(list)-1].log, line...)
	}
	return list
}

// TestLogs holds what is found in the log of each tool against what a person has
// read in it.
func TestLogs(t *testing.T) {
	var got strings.Builder
	classes := map[string]bool{}
	for _, s := range samples(t) {
		f := Classify(Input{Log: bytes.NewReader(s.log), Failure: &quarry.Failure{Step: s.step, Cause: quarry.CauseExit, Status: s.status}})
		fmt.Fprintf(&got, "%s: %s, line %d\n\t%s\n\t%s\n", s.name, f.Class, f.Line, f.Error, f.Hint)
		classes[f.Class] = true
		lines := strings.Split(string(s.log), "\n")
		if f.Line < 1 || f.Line > int64(len(lines)) {
			t.Errorf("%s: there is no line %d", s.name, f.Line)
			continue
		}
		if len(f.Excerpt) == 0 || len(f.Excerpt) > 20 || !strings.Contains(strings.Join(f.Excerpt, "\n"), f.Error) {
			t.Errorf("%s: the excerpt is %d lines, without %q", s.name, len(f.Excerpt), f.Error)
		}
		if f.Class == Unknown {
			t.Errorf("%s: nothing was found in\n%s", s.name, s.log)
		}
	}
	if *update {
		if err := os.WriteFile("testdata/want.txt", []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/want.txt")
	if err != nil {
		t.Fatal(err)
	}
	a, b := strings.Split(got.String(), "\n"), strings.Split(string(want), "\n")
	for i := range max(len(a), len(b)) {
		if i >= len(a) || i >= len(b) || a[i] != b[i] {
			t.Fatalf("testdata/want.txt, line %d: got %q", i+1, a[min(i, len(a)-1)])
		}
	}
	if len(classes) < 45 {
		t.Errorf("only %d classes have a log of a real tool", len(classes))
	}
}

// TestDoc holds the table of classes in the documentation against the code.
func TestDoc(t *testing.T) {
	const path = "../doc/failures.md"
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, _, ok := strings.Cut(string(data), "|---|---|---|\n")
	if !ok {
		t.Fatalf("%s has no table", path)
	}
	var want strings.Builder
	want.WriteString(head + "|---|---|---|\n")
	seen := map[string]bool{}
	for _, c := range Classes() {
		if seen[c.Name] || strings.Trim(c.Name, "abcdefghijklmnopqrstuvwxyz-") != "" || c.Says == "" || !strings.HasSuffix(c.Hint, ".") {
			t.Errorf("class %+v is there twice, or unfit", c)
		}
		seen[c.Name] = true
		fmt.Fprintf(&want, "| `%s` | %s | %s |\n", c.Name, c.Says, c.Hint)
	}
	if *update {
		if err := os.WriteFile(path, []byte(want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want.String() != string(data) {
		t.Errorf("%s is not what the code says: go test ./explain -run Doc -update", path)
	}
}
