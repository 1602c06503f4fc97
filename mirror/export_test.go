package mirror

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
)

// childEnv has this test's program export and nothing else: the folder, the
// repository and the store of artifacts, one a line.
const childEnv = "QUARRY_TEST_EXPORT"

func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.bench"); f == nil || f.Value.String() == "" {
		pieceNames, pieceSize = 3, 2000
	}
	if words := os.Getenv(childEnv); words != "" {
		w := strings.Split(words, "\n")
		r, err := results.OpenReader(w[1], "testing")
		if err == nil {
			_, err = Export(context.Background(), ExportOptions{Dir: w[0], Results: r, Default: "testing", Records: true, Force: true, Sign: sign, Grace: day, Now: today,
				Artifacts: func(sum string) string { return filepath.Join(w[2], sum[:2], sum+".tar.zst") }})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// An export that is killed at any point leaves a mirror that is whole, and the next
// one makes of it what it must be.
func TestKilledExportsLeaveAWholeMirror(t *testing.T) {
	f := newFarm(t)
	r := rand.New(rand.NewPCG(1, 9))
	dir := t.TempDir()
	f.record(0, 1, "x86_64")
	f.export(f.options(dir))
	for range 15 {
		for range 3 {
			f.change(r)
		}
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{dir, f.repo.Path(), f.store}, "\n"))
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(r.IntN(120)) * time.Millisecond)
		child.Process.Kill()
		child.Wait()
		checkWhole(t, dir)
	}
	o := f.options(dir)
	o.Force = true
	f.export(o)
	o.Now = time.Now().Add(30 * day) // nobody needs the old files any more
	f.export(o)
	o.Now = o.Now.Add(30 * day)
	f.export(o)
	got := files(t, dir)
	fresh := t.TempDir()
	f.reader = nil
	now := o.Now
	o = f.options(fresh)
	o.Now = now
	f.export(o)
	for name, data := range files(t, fresh) {
		if got[name] != data {
			t.Errorf("%s is\n%.300s\nin a new export, and in the one that was killed\n%.300s", name, data, got[name])
		}
		delete(got, name)
	}
	for name := range got {
		if !strings.Contains(name, "/delta/") && !strings.Contains(name, "/sig/") && !strings.HasPrefix(name, "artifacts/") {
			t.Errorf("%s stayed", name)
		}
	}
}

// What was being written when an export was killed goes with the next one, wherever
// it was; and so does what the farm's own lists were being written to.
func TestHalfWrittenFilesGo(t *testing.T) {
	f := newFarm(t)
	dir := t.TempDir()
	f.record(0, 1, "x86_64")
	f.export(f.options(dir))
	want := files(t, dir)
	var folders []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			folders = append(folders, path)
			err = os.WriteFile(filepath.Join(path, newPrefix+"17"), []byte("half"), 0o600)
		}
		return err
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, ownDir, "lock"), []byte("an export is at work\n"), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.export(f.options(dir))
	if diff := cmp.Diff(want, files(t, dir)); diff != "" {
		t.Error(diff)
	}
	for _, folder := range folders {
		if _, err := os.Stat(filepath.Join(folder, newPrefix+"17")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", folder, err)
		}
	}
	if data, err := os.ReadFile(filepath.Join(dir, ownDir, "lock")); err != nil || len(data) > 0 {
		t.Errorf("the lock says %q, %v", data, err)
	}
	own := filepath.Join(t.TempDir(), "testing")
	if err := errors.Join(os.Mkdir(own, 0o755), os.WriteFile(filepath.Join(own, newPrefix+"17"), []byte("half"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := openStage(own, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(own, newPrefix+"17")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a half-written head stayed: %v", err)
	}
}

// checkWhole holds what a client reads of a mirror against itself.
func checkWhole(t *testing.T, dir string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, HeadName("testing")))
	if err != nil {
		t.Fatal(err)
	}
	h, err := ParseHead(data)
	if err != nil {
		t.Fatal(err)
	}
	if sig, err := os.ReadFile(filepath.Join(dir, SignatureName("testing", data))); err != nil || string(sig) != "signed: "+digestOf(data)+"\n" {
		t.Fatalf("the head's signature is %q, %v", sig, err)
	}
	for _, k := range Kinds {
		for _, file := range h.Files(k) {
			packed, err := os.ReadFile(filepath.Join(dir, InChannel("testing", file.Name)))
			if err != nil {
				t.Fatal(err)
			}
			text, err := file.Unpack(packed)
			if err != nil {
				t.Fatal(err)
			}
			l, err := ParseList(text)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range l.Packages {
				// What a head names is there, and so is the package's own file.
				if _, err := os.Stat(filepath.Join(dir, ArtifactName(p.Artifact))); err != nil {
					t.Fatal(err)
				}
				own, err := os.ReadFile(filepath.Join(dir, PackageName("testing", p.Name)))
				if err == nil {
					_, err = ParseList(own)
				}
				if err != nil {
					t.Fatalf("%s: %v", p.Name, err)
				}
			}
		}
	}
}

// A channel that has lost most of what it had stays in the mirror as it was.
func TestShrunkenChannelsAreNotExported(t *testing.T) {
	f := newFarm(t)
	f.record(0, 1, "x86_64")
	one := f.head("testing").Commit
	for i := 1; i < 5; i++ {
		f.record(i, 1, "x86_64")
	}
	dir := t.TempDir()
	f.export(f.options(dir))
	before := files(t, dir)
	f.back(one)
	_, err := Export(t.Context(), f.options(dir))
	if !errors.Is(err, ErrShrunk) || !strings.Contains(err.Error(), "--force") {
		t.Fatalf("5 packages became 1: %v", err)
	}
	for name, data := range before {
		if got := files(t, dir)[name]; got != data {
			t.Errorf("%s was changed by an export that was refused", name)
		}
	}
	o := f.options(dir)
	o.Force = true
	f.export(o)
	if _, ok := files(t, dir)[PackageName("testing", resultstest.Name(3))]; ok {
		t.Error("the file of a package that is gone is there")
	}
}

func TestMissingArtifactsAreToldOf(t *testing.T) {
	f := newFarm(t)
	f.record(0, 1, "x86_64")
	if err := os.RemoveAll(f.store); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := Export(t.Context(), f.options(dir)); err == nil || !strings.Contains(err.Error(), "1 artifacts are not in the store") {
		t.Fatalf("an artifact is missing: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, HeadName("testing"))); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a head was shown whose artifacts are not there")
	}
	o := f.options(dir)
	o.Force = true
	if out := f.export(o); out.Channels[0].Missing != 1 {
		t.Errorf("the export says %+v", out)
	}
}

// Artifacts stay for those who were sent to them, and then go.
func TestArtifactsArePruned(t *testing.T) {
	f := newFarm(t)
	f.record(0, 1, "x86_64")
	commit := f.head("testing").Commit
	f.record(1, 1, "x86_64")
	dir := t.TempDir()
	o := f.options(dir)
	o.Prune = true
	f.export(o)
	f.back(commit)
	name := filepath.Join(dir, ArtifactName(resultstest.Artifact(resultstest.Name(1), resultstest.Version(1), "x86_64")))
	for _, step := range []struct {
		after time.Duration
		stays bool
	}{{time.Hour, true}, {day, true}, {2 * day, false}} {
		o.Now = f.now().Add(step.after)
		f.export(o)
		if _, err := os.Stat(name); (err == nil) != step.stays {
			t.Errorf("%v after the first time that nobody names it, the artifact: %v", step.after, err)
		}
	}
	if _, err := os.Stat(f.artifact(resultstest.Artifact(resultstest.Name(1), resultstest.Version(1), "x86_64"))); err != nil {
		t.Errorf("the store has lost it, too: %v", err)
	}
}

// Two who export to one folder do not get into each other's way.
func TestOneExportAtATime(t *testing.T) {
	f := newFarm(t)
	f.record(0, 1, "x86_64")
	dir := t.TempDir()
	o := f.options(dir)
	var second error
	o.Progress = func(Progress) {
		if second == nil {
			_, second = Export(t.Context(), f.options(dir))
		}
	}
	f.export(o)
	if second == nil || !strings.Contains(second.Error(), "wait for it") {
		t.Errorf("a second export: %v", second)
	}
}

// Files that somebody has damaged are put right by a full export.
func TestFullExportsPutThingsRight(t *testing.T) {
	f := newFarm(t)
	for i := range 5 {
		f.record(i, 1, "x86_64")
	}
	dir := t.TempDir()
	f.export(f.options(dir))
	want := files(t, dir)
	for name := range want {
		if strings.Contains(name, "/p/") || strings.Contains(name, "/index/") {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	stray := filepath.Join(dir, "db/testing/p/zz/zz/zzzz.toml")
	if err := errors.Join(os.MkdirAll(filepath.Dir(stray), 0o755), os.WriteFile(stray, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	o := f.options(dir)
	o.Full = true
	f.export(o)
	got := files(t, dir)
	for name, data := range want {
		if got[name] != data {
			t.Errorf("%s is %q", name, got[name])
		}
	}
	if len(got) != len(want) {
		t.Errorf("there are %d files, not %d", len(got), len(want))
	}
}
