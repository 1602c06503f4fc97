package main

import (
	"bytes"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/results"
)

func dbOutcome(pkg, version, arch string, number int64, failure *quarry.Failure) *quarry.Outcome {
	commit := strings.Repeat("1b", 20)
	t := quarry.Target{Channel: "testing", Package: pkg, Version: version, Arch: arch}
	ended := time.Now().Add(-36*time.Hour - 30*time.Minute)
	o := &quarry.Outcome{
		Build: quarry.Build{
			Number: number, Key: quarry.BuildKey(t, commit, version), Arch: arch,
			Release: quarry.Release{Package: pkg, Version: version, Channel: "testing", Commit: commit, Packager: quarry.Packager{User: "alice", Name: "Alice Liddell", Email: "alice@morphux.org"}},
		},
		Status: quarry.Succeeded,
		Info:   quarry.Info{Description: "compression \x1b[31mred", Needed: []string{"glibc-2.39"}},
		Steps:  []quarry.Step{{Name: quarry.StepMake, Wall: 30 * time.Second}},
		Facts: &quarry.Facts{Size: 1536, Files: []quarry.File{
			{Path: "/usr/bin/minigzip", Kind: quarry.KindRegular, Class: quarry.ClassBinary, Mode: 0o4755, Size: 1536},
			{Path: "/usr/lib/libz.so", Kind: quarry.KindSymlink, Mode: 0o777, Target: "libz.so.1"},
			{Path: "/usr/share/odd\nname", Kind: quarry.KindRegular, Mode: 0o644},
		}},
		Started: ended.Add(-41 * time.Second), Ended: ended,
	}
	if failure != nil {
		o.Status, o.Failure, o.Facts, o.LogLines = quarry.Failed, failure, nil, []string{"cc adler32.c", "\x1b[31merror\x1b[0m"}
	}
	return o
}

// TestDBCmd reads a small database as people and programs do.
func TestDBCmd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.git")
	db := func(want int, args ...string) string {
		t.Helper()
		var out bytes.Buffer
		cmd := newDBCmd(func() (string, error) { return path, nil })
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		cmd.SetArgs(args)
		cmd.SetOut(&out)
		err := cmd.ExecuteContext(t.Context())
		if err != nil {
			out.WriteString("error: " + err.Error())
		}
		if code := control.Code(err); code != want {
			t.Errorf("quarry db %q: status %d, want %d\n%s", args, code, want, out.String())
		}
		if strings.Contains(out.String(), "\x1b") {
			t.Errorf("quarry db %q: escape sequences in\n%q", args, out.String())
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

	holds(db(control.ExitNotFound, "show", "zlib"), "nothing has been recorded yet")
	r, err := results.Open(path, results.Options{SBU: 60})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	holds(db(control.ExitNotFound, "show", "zlib"), "no records yet")
	for _, o := range []*quarry.Outcome{
		dbOutcome("zlib", "1.2.10", "x86_64", 1, nil),
		dbOutcome("zlib", "1.3.1", "x86_64", 2, nil),
		dbOutcome("zlib", "1.3.1", "riscv64", 3, nil),
		dbOutcome("bash", "5.2", "x86_64", 4, &quarry.Failure{Step: "make", Cause: quarry.CauseExit, Message: "make ended with status 2", Status: 2, Reproduce: "quarry build bash"}),
	} {
		if _, err := r.Record(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}

	out := db(control.ExitOK, "show", "zlib")
	holds(out, "PACKAGE", "1.2.10", "riscv64", "41 s", "1.5 KiB", "1 d 12 h ago")
	if strings.Index(out, "1.2.10") > strings.Index(out, "1.3.1") {
		t.Errorf("versions are out of order:\n%s", out)
	}
	holds(db(control.ExitOK, "show", "zlib", "1.3.1", "--arch", "x86_64"), "zlib 1.3.1", "make 30 s", "0.5 SBU", "Alice Liddell <alice@morphux.org>", "glibc-2.39", "compression  [31mred")
	holds(db(control.ExitOK, "show", "zlib-1.2.10"), "x86_64, channel testing")
	holds(db(control.ExitOK, "show", "bash", "5.2"), "make ended with status 2", "quarry build bash", "last 2 lines of the log", "cc adler32.c", `\x1b[31merror`)
	if out := db(control.ExitOK, "show", "zlib", "1.3.1"); strings.Count(out, "\n") != 3 {
		t.Errorf("two archs are not two lines:\n%s", out)
	}

	var recs []map[string]any
	if err := json.Unmarshal([]byte(db(control.ExitOK, "show", "zlib", "1.3.1", "--json", "--arch", "x86_64")), &recs); err != nil {
		t.Fatal(err)
	}
	if len(recs) != 1 || recs[0]["build"] != 2.0 || recs[0]["time"].(map[string]any)["make"] != 30.0 {
		t.Errorf("JSON is %v", recs)
	}

	holds(db(control.ExitOK, "files", "zlib", "--arch", "x86_64"), "- 4755", "0:0", "binary", "/usr/lib/libz.so -> libz.so.1", `/usr/share/odd\x0aname`)
	holds(db(control.ExitUsage, "files", "zlib"), "--arch")
	holds(db(control.ExitOK, "files", "zlib", "1.2.10"), "minigzip")
	holds(db(control.ExitNotFound, "files", "bash"), "only failed")
	var list struct {
		Files []map[string]any `json:"files"`
	}
	if err := json.Unmarshal([]byte(db(control.ExitOK, "files", "zlib", "1.2.10", "--json")), &list); err != nil || len(list.Files) != 3 || list.Files[0]["mode"] != "4755" {
		t.Errorf("files in JSON are %v, %v", list, err)
	}

	holds(db(control.ExitOK, "search", "COMPR"), "zlib", "1.2.10")
	holds(db(control.ExitOK, "search", "z*", "--arch", "riscv64"), "riscv64")
	holds(db(control.ExitOK, "search", "/usr/bin/minigzip"), "zlib", "binary")
	holds(db(control.ExitOK, "search", "--file", "libz.so*"), "libz.so.1")
	db(control.ExitNotFound, "search", "nothing like it")
	if out := db(control.ExitNotFound, "search", "nothing like it", "--json"); !strings.HasPrefix(out, "[]") {
		t.Errorf("nothing found is, in JSON, %s", out)
	}
	var owners []map[string]any
	if err := json.Unmarshal([]byte(db(control.ExitOK, "search", "/usr/bin/minigzip", "--json")), &owners); err != nil || len(owners) != 3 {
		t.Errorf("owners in JSON are %v, %v", owners, err)
	}

	db(control.ExitNotFound, "show", "nothing")
	db(control.ExitNotFound, "show", "zlib", "9")
	holds(db(control.ExitNotFound, "show", "zlib", "--channel", "stable"), "testing")
	db(control.ExitUsage, "show", "../zlib")
	db(control.ExitUsage, "show", "zlib", "1/..")
	db(control.ExitUsage, "show", "zlib", "--arch", "a/b")
	db(control.ExitUsage, "show", "zlib", "--channel", "A")
}
