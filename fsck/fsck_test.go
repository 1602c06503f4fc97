package fsck

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/provenance"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/trust"
)

func TestMain(m *testing.M) {
	unix.Umask(0o022) // packages are of files with the modes that the tests give them
	os.Exit(m.Run())
}

// world is a farm's results and artifacts, with something of everything.
type world struct {
	t       testing.TB
	dir     string
	store   *extract.Artifacts
	signer  *trust.Signer
	signers trust.AllowedSigners
	now     time.Time
	number  int64
}

func (w *world) repo() string      { return filepath.Join(w.dir, "results.git") }
func (w *world) artifacts() string { return filepath.Join(w.dir, "artifacts") }

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), now: time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)}
	var err error
	if w.store, err = extract.OpenArtifacts(w.artifacts()); err != nil {
		t.Fatal(err)
	}
	w.rotate()
	return w
}

// rotate has the farm sign with another key from now on.
func (w *world) rotate() {
	w.t.Helper()
	s, err := trust.Open(filepath.Join(w.dir, fmt.Sprintf("key%d", len(w.signers))))
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range w.signers {
		w.signers[i].Before = w.now
	}
	w.signer = s
	w.signers = append(w.signers, trust.AllowedSigner{Principal: "quarry@localhost", Key: s.Public(), Namespaces: []string{trust.Git, trust.Provenance}})
}

// open opens the repository as the daemon does.
func (w *world) open(do func(r *results.Repo)) {
	w.t.Helper()
	o := results.Options{Now: func() time.Time { w.now = w.now.Add(time.Second); return w.now }, MaxPacks: -1}
	if w.signer != nil {
		o.Sign = w.signer.SignCommit
		o.Prove = func(rec *results.Record) (results.Provenance, error) {
			return provenance.Prove(rec, provenance.Farm{ID: "urn:quarry:builder:test", Repos: "ssh://farm"}, w.signer)
		}
	}
	r, err := results.Open(w.repo(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	do(r)
}

// outcome builds something: a tree of files, its artifact and all facts of it.
func (w *world) outcome(pkg, version string, deps ...quarry.DepUsed) *quarry.Outcome {
	w.t.Helper()
	w.number++
	dir := w.t.TempDir()
	must := func(err error) {
		if err != nil {
			w.t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "usr/bin"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "usr/bin", pkg), []byte(fmt.Sprintf("#!/bin/sh\necho %s %s %d\n", pkg, version, w.number)), 0o755))
	must(os.Symlink(pkg, filepath.Join(dir, "usr/bin", pkg+"-link")))
	must(os.Link(filepath.Join(dir, "usr/bin", pkg), filepath.Join(dir, "usr/bin", pkg+"-twin")))
	must(os.WriteFile(filepath.Join(dir, "usr/data"), bytes.Repeat([]byte(pkg), 50_000), 0o640))
	facts, art, err := extract.Tree(w.t.Context(), dir, extract.Options{UIDBase: os.Getuid(), GIDBase: os.Getgid(), Store: w.store, SourceTime: w.now})
	must(err)
	start := w.now
	target := quarry.Target{Channel: "testing", Package: pkg, Version: version, Arch: "x86_64"}
	commit := fmt.Sprintf("%040x", w.number)
	return &quarry.Outcome{
		Build: quarry.Build{Number: w.number, Key: quarry.BuildKey(target, commit, ""), Arch: "x86_64", Attempt: 1,
			Release: quarry.Release{Package: pkg, Version: version, Channel: "testing", Commit: commit, Time: start.Add(-time.Hour), Pushed: start,
				Packager: quarry.Packager{User: "alice", Name: "Alice", Email: "alice@morphux.org", Key: "SHA256:alice"}}},
		Status: quarry.Succeeded, Facts: facts, Artifact: art, Deps: deps, Started: start, Ended: start.Add(time.Second), LogSum: strings.Repeat("1", 64),
		Host: quarry.HostInfo{Builder: "farm1", Base: "sha256:" + strings.Repeat("ab", 32), Instance: "sha256:" + strings.Repeat("ab", 32), Emulation: "native"},
	}
}

func failed(o *quarry.Outcome) *quarry.Outcome {
	o.Status, o.Facts, o.Artifact = quarry.Failed, nil, nil
	o.Failure = &quarry.Failure{Step: quarry.StepMake, Cause: quarry.CauseExit, Message: "make ended with status 2", Status: 2}
	return o
}

func used(o *quarry.Outcome) quarry.DepUsed {
	return quarry.DepUsed{Package: o.Build.Package, Version: o.Build.Version, Artifact: o.Artifact.SHA256, Direct: true}
}

func (w *world) record(r *results.Repo, o *quarry.Outcome) {
	w.t.Helper()
	if _, err := r.Record(w.t.Context(), o); err != nil {
		w.t.Fatal(err)
	}
}

// fill makes records, a rebuild, a failure, a promotion and its return, a group that
// has landed and one that has not.
func (w *world) fill() {
	w.t.Helper()
	ctx := w.t.Context()
	must := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	w.open(func(r *results.Repo) {
		lib := w.outcome("libgreet", "1.0")
		w.record(r, lib)
		w.record(r, w.outcome("greet", "1.0", used(lib)))
		w.record(r, failed(w.outcome("broken", "1.0")))
		again := w.outcome("libgreet", "1.0") // so that greet needs what only history has
		w.record(r, again)
		promote := func() (*results.Promoted, error) {
			return r.Promote(ctx, results.Promotion{From: "testing", To: "stable", All: true})
		}
		done, err := promote()
		must(err)
		w.record(r, w.outcome("libgreet", "1.1"))
		_, err = promote()
		must(err)
		_, err = r.Rollback(ctx, results.Rollback{Channel: "stable"})
		must(err)
		_, err = promote()
		must(err)
		_, err = r.Rollback(ctx, results.Rollback{Channel: "stable", Commit: done.New, Restore: true, Force: true})
		must(err)
		must(r.Keep(ctx, "mass", "20260314-3f9a0c12", []byte("id = 'x'\n")))
		for _, land := range []bool{true, false} {
			name, id := "one", "20260314-00000001"
			if !land {
				name, id = "two", "20260314-00000002"
			}
			o := w.outcome("group-"+name, "1.0")
			o.Build.Group, o.Build.Stage = name, id
			must(r.Submit(ctx, quarry.Submission{Group: name, Channel: "testing", ID: id, At: w.now, By: o.Build.Packager,
				Members: []quarry.Member{{Package: o.Build.Package, Version: "1.0", Commit: o.Build.Commit, Archs: []string{"x86_64"}}}}))
			_, err := r.Stage(ctx, o)
			must(err)
			if land {
				_, err = r.Land(ctx, "testing", name, id)
				must(err)
			}
		}
	})
}

// copyOf is a copy of a world, to be damaged.
func (w *world) copyOf(t *testing.T) *world {
	t.Helper()
	c := *w
	c.t, c.dir = t, t.TempDir()
	if out, err := exec.Command("cp", "-a", w.dir+"/.", c.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var err error
	if c.store, err = extract.OpenArtifacts(c.artifacts()); err != nil {
		t.Fatal(err)
	}
	return &c
}

func (w *world) check(change func(*Options)) ([]Finding, Summary) {
	w.t.Helper()
	o := Options{Repo: w.repo(), Artifacts: w.artifacts(), Deep: true, Signers: w.signers, Workers: 2}
	if change != nil {
		change(&o)
	}
	var list []Finding
	sum, err := Run(w.t.Context(), o, func(f Finding) { list = append(list, f) })
	if err != nil {
		w.t.Fatal(err)
	}
	return list, sum
}

// git is stock git, as whoever has a shell on the farm.
func (w *world) git(input string, args ...string) string {
	w.t.Helper()
	cmd := exec.Command("git", append([]string{"-C", w.repo(), "-c", "user.name=Mallory", "-c", "user.email=m@example.org"}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_COMMITTER_DATE="+w.now.Add(time.Minute).Format(time.RFC3339), "GIT_INDEX_FILE="+filepath.Join(w.dir, "index"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("git %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// edit changes files of a channel with stock git; "" removes one. message may be
// that of a commit before, and sign options that have it signed.
func (w *world) edit(message string, sign []string, files map[string]string) string {
	w.t.Helper()
	w.git("", "read-tree", "testing")
	for _, path := range slices.Sorted(maps.Keys(files)) {
		if files[path] == "" {
			w.git("0 "+strings.Repeat("0", 40)+"\t"+path+"\n", "update-index", "--index-info")
			continue
		}
		id := w.git(files[path], "hash-object", "-w", "--stdin")
		w.git("", "update-index", "--add", "--cacheinfo", "100644,"+id+","+path)
	}
	tree := w.git("", "write-tree")
	commit := w.git("", slices.Concat([]string{"-c", "gpg.format=ssh"}, sign, []string{"commit-tree", "-p", "testing", "-m", message, tree})...)
	if len(sign) > 0 {
		commit = w.git("", slices.Concat([]string{"-c", "gpg.format=ssh"}, sign, []string{"commit-tree", "-S", "-p", "testing", "-m", message, tree})...)
	}
	w.git("", "update-ref", "refs/heads/testing", commit)
	return commit
}

func (w *world) show(path string) string {
	w.t.Helper()
	return w.git("", "show", "testing:"+path) + "\n"
}

func (w *world) artifact(pkg, version string) string {
	w.t.Helper()
	r, err := results.OpenReader(w.repo(), "testing")
	if err != nil {
		w.t.Fatal(err)
	}
	defer r.Close()
	rec, err := r.Get(pkg, version, "x86_64")
	if err != nil {
		w.t.Fatal(err)
	}
	return rec.Artifact
}

func (w *world) artifactFile(pkg, version string) string {
	sha := w.artifact(pkg, version)
	return filepath.Join(w.artifacts(), sha[:2], sha+".tar.zst")
}

// Of what is whole, nothing is found.
func TestWhole(t *testing.T) {
	w := newWorld(t)
	w.fill()
	list, sum := w.check(nil)
	for _, f := range list {
		if f.Level == Error {
			t.Error(f)
		}
	}
	want := Summary{Channels: 2, Records: 8, Commits: 11, Signed: 11, Attested: 7, Artifacts: 5, Orphans: 2, Notes: 1, Deep: true}
	sum.Files = 0
	if sum != want {
		t.Errorf("looked at is %+v, want %+v", sum, want)
	}
	// Nor does who knows less find more.
	list, sum = w.check(func(o *Options) { o.Signers, o.Artifacts, o.Deep = nil, "", false })
	if len(list) > 0 || sum.Signed > 0 || sum.Artifacts == 0 {
		t.Errorf("%v, %+v", list, sum)
	}
	list, _ = w.check(func(o *Options) { o.Channels = []string{"stable"} })
	if len(list) > 0 {
		t.Errorf("stable: %v", list)
	}
	bare := filepath.Join(t.TempDir(), "clone.git")
	if out, err := exec.Command("git", "clone", "-q", "--bare", "--single-branch", "-b", "stable", "file://"+w.repo(), bare).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	list, sum = w.check(func(o *Options) { o.Repo, o.Artifacts, o.Deep = bare, "", false })
	if len(list) > 0 || sum.Records != 2 || sum.Signed != 5 {
		t.Errorf("a clone of stable: %v, %+v", list, sum)
	}
}

// Each damage is found and named, and nothing else is.
func TestFaults(t *testing.T) {
	whole := newWorld(t)
	whole.fill()
	zlib := "packages/li/bg/libgreet/1.1/x86_64"
	good := whole.git("", "rev-parse", "testing")
	message := whole.git("", "log", "-1", "--format=%B", "testing~1")
	stranger := filepath.Join(t.TempDir(), "stranger")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", stranger).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s: make deps installs what the tests need", err, out)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// Each returns what is to be said, a line each: where, then what.
	for name, fault := range map[string]func(w *world) [][2]string{
		"a byte of an artifact": func(w *world) [][2]string {
			path := w.artifactFile("libgreet", "1.1")
			data, err := os.ReadFile(path)
			must(err)
			data[len(data)/2] ^= 1
			must(os.Chmod(path, 0o600))
			must(os.WriteFile(path, data, 0o600))
			return [][2]string{{"artifact " + w.artifact("libgreet", "1.1"), "its content is damaged"}}
		},
		"an artifact cut off": func(w *world) [][2]string {
			must(os.Truncate(w.artifactFile("libgreet", "1.1"), 100))
			return [][2]string{{"artifact " + w.artifact("libgreet", "1.1"), "it has 100 bytes and should have"}}
		},
		"an artifact removed": func(w *world) [][2]string {
			must(os.Remove(w.artifactFile("group-one", "1.0")))
			return [][2]string{{"artifact " + w.artifact("group-one", "1.0"), "it is missing"}}
		},
		"a record edited": func(w *world) [][2]string {
			commit := w.edit("Mend the source", nil, map[string]string{zlib + ".toml": strings.Replace(w.show(zlib+".toml"), fmt.Sprintf("source = '%040x'", 5), fmt.Sprintf("source = '%040x'", 99), 1)})
			return [][2]string{{zlib + ".toml", "key is not that of the build"}, {zlib + ".provenance.json", "does not fit the record"}, {"commit " + commit, "not signed"}}
		},
		"a record that is no TOML": func(w *world) [][2]string {
			commit := w.edit("x", nil, map[string]string{zlib + ".toml": "schema = \x01\n"})
			return [][2]string{{zlib + ".toml", "the record cannot be read"}, {"commit " + commit, "not signed"}}
		},
		"a record of another schema": func(w *world) [][2]string {
			commit := w.edit("x", nil, map[string]string{zlib + ".toml": strings.Replace(w.show(zlib+".toml"), "schema = 1", "schema = 2", 1)})
			return [][2]string{{zlib + ".toml", "unknown schema 2"}, {"commit " + commit, "not signed"}}
		},
		"a record elsewhere": func(w *world) [][2]string {
			other := "packages/ot/he/other/1.1/x86_64"
			commit := w.edit("x", nil, map[string]string{other + ".toml": w.show(zlib + ".toml"), other + ".files.toml": w.show(zlib + ".files.toml")})
			return [][2]string{{other + ".toml", "it says that it is of libgreet 1.1 x86_64"}, {"commit " + commit, "not signed"}}
		},
		"a list of files without one": func(w *world) [][2]string {
			list := strings.Split(w.show(zlib+".files.toml"), "\n")
			list = slices.DeleteFunc(list, func(l string) bool { return strings.Contains(l, "'/usr/data'") })
			commit := w.edit("x", nil, map[string]string{zlib + ".files.toml": strings.Join(list, "\n")})
			return [][2]string{{zlib + ".files.toml", "does not fit the record"}, {"commit " + commit, "not signed"}}
		},
		"a list of files that says another mode": func(w *world) [][2]string {
			commit := w.edit("x", nil, map[string]string{zlib + ".files.toml": strings.Replace(w.show(zlib+".files.toml"), "0640", "4755", 1)})
			return [][2]string{{"artifact " + w.artifact("libgreet", "1.1"), `"/usr/data" has mode 0640, not 4755`}, {"commit " + commit, "not signed"}}
		},
		"a list of files removed": func(w *world) [][2]string {
			commit := w.edit("x", nil, map[string]string{zlib + ".files.toml": ""})
			return [][2]string{{zlib + ".files.toml", "there is no list"}, {"commit " + commit, "not signed"}}
		},
		"a record removed, and not the rest": func(w *world) [][2]string {
			commit := w.edit("x", nil, map[string]string{zlib + ".toml": ""})
			return [][2]string{{zlib + ".toml", "there is no record"}, {"commit " + commit, "not signed"}}
		},
		"a package removed in Quarry's name": func(w *world) [][2]string {
			commit := w.edit(message, nil, map[string]string{zlib + ".toml": "", zlib + ".files.toml": "", zlib + ".provenance.json": "", zlib + ".provenance.sig": ""})
			return [][2]string{{"commit " + commit, "not signed"}}
		},
		"the same with a stranger's signature": func(w *world) [][2]string {
			commit := w.edit(message, []string{"-c", "user.signingKey=" + stranger}, map[string]string{zlib + ".toml": "", zlib + ".files.toml": "", zlib + ".provenance.json": "", zlib + ".provenance.sig": ""})
			return [][2]string{{"commit " + commit, "key is not trusted"}}
		},
		"the same with the farm's own": func(w *world) [][2]string {
			commit := w.edit(message, []string{"-c", "user.signingKey=" + filepath.Join(w.dir, "key0")}, map[string]string{zlib + ".toml": "", zlib + ".files.toml": "", zlib + ".provenance.json": "", zlib + ".provenance.sig": ""})
			return [][2]string{{"commit " + commit, "it writes no record"}}
		},
		"a commit without trailers, signed": func(w *world) [][2]string {
			commit := w.edit("x", []string{"-c", "user.signingKey=" + filepath.Join(w.dir, "key0")}, map[string]string{zlib + ".provenance.json": "", zlib + ".provenance.sig": ""})
			return [][2]string{{"commit " + commit, "it was not made by Quarry"}}
		},
		"a statement changed": func(w *world) [][2]string {
			commit := w.edit("x", nil, map[string]string{zlib + ".provenance.json": strings.Replace(w.show(zlib+".provenance.json"), `"network": false`, `"network": true`, 1)})
			return [][2]string{{zlib + ".provenance.json", "signature does not fit"}, {"commit " + commit, "not signed"}}
		},
		"a signature removed": func(w *world) [][2]string {
			commit := w.edit("x", nil, map[string]string{zlib + ".provenance.sig": ""})
			return [][2]string{{zlib + ".provenance.json", "without its signature"}, {"commit " + commit, "not signed"}}
		},
		"something else beside": func(w *world) [][2]string {
			commit := w.edit("x", nil, map[string]string{"README.md": "hello\n", "packages/li/bg/libgreet/NEWS": "hello\n"})
			return [][2]string{{"commit " + commit, "not signed"}}
		},
		"a dependency that never was": func(w *world) [][2]string {
			w.open(func(r *results.Repo) {
				w.record(r, w.outcome("needy", "1.0", quarry.DepUsed{Package: "libgreet", Version: "0.9", Artifact: strings.Repeat("9", 64)}))
			})
			return [][2]string{{"packages/ne/ed/needy/1.0/x86_64.toml", "it was built with libgreet 0.9"}}
		},
		"a submitted group that cannot be read": func(w *world) [][2]string {
			w.git("", "update-ref", "refs/quarry/group/testing/two", good)
			return [][2]string{{"refs/quarry/group/testing/two", "it has no group.toml"}}
		},
		"a text that is kept, and is none": func(w *world) [][2]string {
			w.git("", "update-ref", "refs/quarry/mass/20260314-3f9a0c12", good)
			return [][2]string{{"refs/quarry/mass/20260314-3f9a0c12", "cannot be read"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := whole.copyOf(t)
			want := fault(w)
			list, sum := w.check(nil)
			list = slices.DeleteFunc(list, func(f Finding) bool { return f.Level == Note })
			for _, f := range list {
				if f.Do == "" || strings.Contains(f.String(), "\n") {
					t.Errorf("%q is not a line with what to do", f)
				}
				i := slices.IndexFunc(want, func(x [2]string) bool { return f.Where == x[0] && strings.Contains(f.What, x[1]) })
				if i < 0 {
					t.Errorf("found, too, is %s", f)
					continue
				}
				want = slices.Delete(want, i, i+1)
			}
			for _, x := range want {
				t.Errorf("not found is %s: %s", x[0], x[1])
			}
			if sum.Errors != len(list) {
				t.Errorf("%d errors are counted, and %d told", sum.Errors, len(list))
			}
		})
	}
}

// Bytes of the repository itself are git's to check: whichever they are, something
// is said, and the rest is looked at.
func TestDamagedObjects(t *testing.T) {
	w := newWorld(t)
	w.fill()
	packs, err := filepath.Glob(filepath.Join(w.repo(), "objects/pack/*.pack"))
	if err != nil || len(packs) < 3 {
		t.Fatalf("%v, %v", packs, err)
	}
	for _, i := range []int{0, len(packs) / 2, len(packs) - 1} {
		c := w.copyOf(t)
		path := filepath.Join(c.repo(), "objects/pack", filepath.Base(packs[i]))
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for n := len(data) / 2; n < len(data)/2+20; n++ {
			data[n] ^= 0x5a
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		list, sum := c.check(nil)
		if sum.Errors == 0 || !slices.ContainsFunc(list, func(f Finding) bool { return f.Where == "git" }) {
			t.Errorf("%s is damaged, and found is %v", filepath.Base(path), list)
		}
	}
}

// A key that was given up is good for what it has signed, and for nothing after it,
// whatever time that claims.
func TestRotatedKey(t *testing.T) {
	w := newWorld(t)
	w.open(func(r *results.Repo) { w.record(r, w.outcome("libgreet", "1.0")) })
	w.now = w.now.Add(24 * time.Hour)
	w.rotate()
	w.open(func(r *results.Repo) { w.record(r, w.outcome("libgreet", "1.1")) })
	if list, sum := w.check(nil); sum.Errors > 0 || sum.Signed != 2 {
		t.Fatalf("%v, %+v", list, sum)
	}
	w.now = w.now.Add(-48 * time.Hour)
	path := "packages/li/bg/libgreet/1.1/x86_64.provenance.json"
	commit := w.edit("x", []string{"-c", "user.signingKey=" + filepath.Join(w.dir, "key0")}, map[string]string{path: "", strings.Replace(path, ".json", ".sig", 1): ""})
	list, _ := w.check(nil)
	if len(list) != 1 || list[0].Where != "commit "+commit || !strings.Contains(list[0].What, "key is not trusted") {
		t.Errorf("found is %v", list)
	}
}

// What came before the farm signed is told of, and is no damage; what comes
// unsigned after it is.
func TestUnsignedBefore(t *testing.T) {
	w := newWorld(t)
	signer := w.signer
	w.signer = nil
	w.open(func(r *results.Repo) {
		w.record(r, w.outcome("libgreet", "1.0"))
		w.record(r, w.outcome("greet", "1.0"))
	})
	if list, _ := w.check(nil); len(list) != 1 || list[0].Level != Note || list[0].What != "none of 2 commits is signed" {
		t.Errorf("found is %v", list)
	}
	w.signer = signer
	w.open(func(r *results.Repo) { w.record(r, w.outcome("libgreet", "1.1")) })
	list, sum := w.check(nil)
	if sum.Errors > 0 || len(list) != 1 || !strings.HasPrefix(list[0].What, "2 commits before ") {
		t.Errorf("found is %v", list)
	}
}

// What has come since a commit is looked at, and what was there before is not.
func TestSince(t *testing.T) {
	w := newWorld(t)
	w.fill()
	// Damage of before.
	if err := os.Remove(w.artifactFile("greet", "1.0")); err != nil {
		t.Fatal(err)
	}
	since := w.git("", "rev-parse", "testing")
	narrow := func(o *Options) { o.Channels, o.Since = []string{"testing"}, since }
	if list, sum := w.check(narrow); len(list) > 0 || sum.Records != 1 || sum.Commits != 0 { // one of the group
		t.Errorf("%v, %+v", list, sum)
	}
	w.open(func(r *results.Repo) { w.record(r, w.outcome("libgreet", "1.2")) })
	if list, sum := w.check(narrow); len(list) > 0 || sum.Records != 2 || sum.Commits != 1 || sum.Signed != 1 {
		t.Errorf("%v, %+v", list, sum)
	}
	at := "packages/li/bg/libgreet/1.1/x86_64"
	commit := w.edit("x", nil, map[string]string{at + ".toml": ""})
	list, _ := w.check(narrow)
	var where []string
	for _, f := range list {
		where = append(where, f.Where)
	}
	slices.Sort(where)
	if want := []string{"commit " + commit, at + ".toml"}; !slices.Equal(where, want) {
		t.Errorf("found is %v", list)
	}
	_, err := Run(t.Context(), Options{Repo: w.repo(), Since: since}, func(Finding) {})
	if err == nil || !strings.Contains(err.Error(), "name one") {
		t.Errorf("since a commit of one of two channels: %v", err)
	}
}

func TestCancelled(t *testing.T) {
	w := newWorld(t)
	w.fill()
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Run(ctx, Options{Repo: w.repo(), Artifacts: w.artifacts(), Deep: true, Progress: func(what string, _, _ int) {
		if strings.HasPrefix(what, "records") {
			cancel()
		}
	}}, func(Finding) {})
	if err == nil {
		t.Error("it went on")
	}
}
