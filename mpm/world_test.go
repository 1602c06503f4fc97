package mpm

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/trust"
)

// TestMain is also the program that is killed: see [kill].
func TestMain(m *testing.M) {
	unix.Umask(0o022) // packages are of files with the modes that the tests give them
	at := os.Getenv("MPM_KILL_AT")
	if at == "" {
		os.Exit(m.Run())
	}
	n, err := strconv.Atoi(at)
	if err != nil {
		panic(err)
	}
	crash = func() {
		if n--; n == 0 {
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {} // it comes when it comes
		}
	}
	if err := scenario(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// scenario does one thing in a process of its own: WHAT CACHE FROM ROOT WORD...
func scenario(args []string) (err error) {
	ctx := context.Background()
	what, cache, from, dir, words := args[0], args[1], args[2], args[3], args[4:]
	c, err := Open(Options{From: from, Arch: arch, Cache: cache})
	if err != nil {
		return err
	}
	defer c.Close()
	if what == "update" {
		_, err = c.Update(ctx)
		return err
	}
	if what == "fetch" {
		wanted, err := c.Wanted(ctx, words...)
		if err != nil {
			return err
		}
		_, err = c.Fetch(ctx, wanted[0])
		return err
	}
	r, _, err := OpenRoot(dir)
	if err != nil {
		return err
	}
	defer r.Close()
	switch what {
	case "install":
		_, err = c.Install(ctx, r, words, false)
	case "upgrade":
		_, err = c.Upgrade(ctx, r, words, false)
	case "remove":
		_, err = r.Remove(words, false)
	}
	return err
}

// kill runs a scenario that ends at its n-th step with SIGKILL, and reports
// whether it came that far.
func kill(t *testing.T, n int, args ...string) (killed bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "MPM_KILL_AT="+strconv.Itoa(n))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	exit, ok := err.(*exec.ExitError)
	if ok && exit.ProcessState.Sys().(interface{ Signaled() bool }).Signaled() {
		return true
	}
	if args[0] == "remove" && strings.Contains(string(out), "is not installed") { // it is gone already
		return false
	}
	t.Fatalf("%v: %v: %s", args, err, out)
	return false
}

const arch = "x86_64"

// world is a farm without its daemon: results, artifacts, a key.
type world struct {
	*testing.T
	dir    string
	repo   *results.Repo
	store  *extract.Artifacts
	signer *trust.Signer
	last   int64
}

func newWorld(t *testing.T) *world {
	w := &world{T: t, dir: t.TempDir()}
	var err error
	if w.signer, err = trust.Open(filepath.Join(w.dir, "key")); err != nil {
		t.Fatal(err)
	}
	if w.repo, err = results.Open(w.git(), results.Options{Sign: w.signer.SignCommit}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.repo.Close() })
	if w.store, err = extract.OpenArtifacts(filepath.Join(w.dir, "artifacts")); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) git() string { return filepath.Join(w.dir, "results.git") }

func (w *world) signers() trust.AllowedSigners {
	return trust.AllowedSigners{{Principal: "quarry@localhost", Key: w.signer.Public()}}
}

// files are what a package installs: text by path, "-> target" for a link, "/" at
// the end of a path for a folder.
type files map[string]string

// write makes them below a folder.
func (f files) write(tb testing.TB, dir string) {
	tb.Helper()
	for name, text := range f {
		file := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		if target, ok := strings.CutPrefix(text, "-> "); err == nil && ok {
			err = os.Symlink(target, file)
		} else if err == nil && strings.HasSuffix(name, "/") {
			err = os.MkdirAll(file, 0o755)
		} else if err == nil {
			err = os.WriteFile(file, []byte(text), 0o644)
		}
		if err != nil {
			tb.Fatal(err)
		}
	}
}

// add builds a package, as it were.
func (w *world) add(name, version string, f files, with ...func(*quarry.Outcome)) *quarry.Outcome {
	w.Helper()
	stage := w.TempDir()
	f.write(w, stage)
	facts, artifact, err := extract.Tree(w.Context(), stage, extract.Options{UIDBase: os.Getuid(), GIDBase: os.Getgid(), Store: w.store, SourceTime: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)})
	if err != nil {
		w.Fatal(err)
	}
	return w.record(name, version, facts, artifact, with...)
}

func (w *world) record(name, version string, facts *quarry.Facts, artifact *quarry.Artifact, with ...func(*quarry.Outcome)) *quarry.Outcome {
	w.Helper()
	w.last++
	now := time.Now().Add(time.Duration(w.last) * time.Millisecond)
	o := &quarry.Outcome{
		Build: quarry.Build{Number: w.last, Arch: arch, Attempt: 1, Release: quarry.Release{Package: name, Version: version, Channel: "testing",
			Commit: fmt.Sprintf("%040x", w.last), Packager: quarry.Packager{User: "alice", Name: "Alice", Email: "alice@morphux.org"}}},
		Status: quarry.Succeeded, Info: quarry.Info{Description: "It is " + name, Category: "misc"}, Facts: facts, Artifact: artifact, Started: now, Ended: now,
	}
	for _, f := range with {
		f(o)
	}
	o.Build.Key = quarry.BuildKey(quarry.Target{Channel: "testing", Package: name, Version: version, Arch: o.Build.Arch}, o.Build.Commit, "")
	if _, err := w.repo.Record(w.Context(), o); err != nil {
		w.Fatal(err)
	}
	return o
}

func needs(list ...string) func(*quarry.Outcome) {
	return func(o *quarry.Outcome) { o.Info.Needed = list }
}

func provides(list ...string) func(*quarry.Outcome) {
	return func(o *quarry.Outcome) { o.Info.Provides = list }
}

// client follows the world; with changes options.
func (w *world) client(with ...func(*Options)) *Client {
	w.Helper()
	o := Options{From: w.git(), Arch: arch, Cache: filepath.Join(w.dir, "cache")}
	for _, f := range with {
		f(&o)
	}
	c, err := Open(o)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { c.Close() })
	return c
}

func (w *world) update(c *Client) {
	w.Helper()
	if _, err := c.Update(w.Context()); err != nil {
		w.Fatal(err)
	}
}

// root is a system with files.
func (w *world) root(f files) *Root {
	w.Helper()
	dir := w.TempDir()
	f.write(w, dir)
	return w.open(dir)
}

func (w *world) open(dir string) *Root {
	w.Helper()
	r, _, err := OpenRoot(dir)
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { r.Close() })
	return r
}

func (w *world) install(c *Client, r *Root, words ...string) *Done {
	w.Helper()
	d, err := c.Install(w.Context(), r, words, false)
	if err != nil {
		w.Fatal(err)
	}
	return d
}

// tree lists what is in a folder but for the database: modes and contents.
func tree(tb testing.TB, dir string) string {
	tb.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if rel == dbDir {
			return fs.SkipDir
		}
		// The way to the database is made with it.
		if rel == "." || rel == "var" || rel == "var/lib" {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %v", rel, info.Mode())
		switch {
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case d.Type().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", data)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return strings.Join(out, "\n")
}

// names lists packages as name version.
func names[P any](list []P, of func(P) string) string {
	var out []string
	for _, p := range list {
		out = append(out, of(p))
	}
	return strings.Join(out, ", ")
}

func (w *world) has(r *Root, want string) {
	w.Helper()
	if got := names(r.List(), func(i Installed) string { return i.Package + " " + i.Version }); got != want {
		w.Errorf("the root has %q, want %q", got, want)
	}
}

// whole holds a root against its database, and looks for what should not be left.
func (w *world) whole(r *Root) {
	w.Helper()
	if diff, err := r.Verify(); err != nil || len(diff) > 0 {
		w.Errorf("%+v, %v", diff, err)
	}
	entries, err := os.ReadDir(r.path())
	if err != nil {
		w.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains([]string{installed, foldersFile, "lock"}, e.Name()) {
			w.Errorf("%s is left behind", e.Name())
		}
	}
}
