// Package testpkg makes git repositories out of the packages in
// testdata/packages, with stock git, for tests. Author, committer and dates are
// fixed, so that the same package always gives the same commit.
package testpkg

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Date is the time of every commit made here, as git writes it.
const Date = "2017-07-14T02:40:00+00:00"

// Unix is [Date] in seconds since 1970.
const Unix = 1500000000

// Who commits.
const (
	AuthorName  = "Alice Liddell"
	AuthorEmail = "alice@morphux.org"
)

// Root is the folder of the module, found by walking up from the working
// directory (which for a test is its package's folder).
func Root(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			t.Fatal("no go.mod above the working directory: run the tests inside the module")
		}
		dir = up
	}
}

// Dir is the folder of a package in testdata/packages. It is not to be written
// to: take [Copy] or [Init] for that.
func Dir(t testing.TB, name string) string {
	t.Helper()
	return filepath.Join(Root(t), "testdata", "packages", name)
}

// Copy copies a package into a new folder of the test and returns that folder.
func Copy(t testing.TB, name string) string {
	t.Helper()
	dst := filepath.Join(t.TempDir(), name)
	if err := os.CopyFS(dst, os.DirFS(Dir(t, name))); err != nil {
		t.Fatal(err)
	}
	// The modes of a checkout depend on its umask; those of the copy do not.
	err := filepath.WalkDir(dst, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o644)
		if d.IsDir() || info.Mode()&0o100 != 0 {
			mode = 0o755
		}
		if info.Mode().Type()&^fs.ModeDir == 0 {
			return os.Chmod(path, mode)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return dst
}

// Init copies a package of testdata/packages into a new folder of the test and
// makes that a git repository with one commit on master.
func Init(t testing.TB, name string) (dir string) {
	t.Helper()
	dir = Copy(t, name)
	commitAll(t, dir, "Import "+name)
	return dir
}

// Make makes a git repository with one commit on master out of the given
// files (path to content; a path that ends in .sh, or in /configure, is
// executable). name only names the folder.
func Make(t testing.TB, name string, files map[string]string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), name)
	for path, content := range files {
		mode := fs.FileMode(0o644)
		if strings.HasSuffix(path, ".sh") || strings.HasSuffix(path, "/configure") {
			mode = 0o755
		}
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	commitAll(t, dir, "Import "+name)
	return dir
}

func commitAll(t testing.TB, dir, subject string) {
	t.Helper()
	Git(t, dir, "init", "-q", "-b", "master", ".")
	Git(t, dir, "add", "-A")
	Git(t, dir, "commit", "-q", "--allow-empty", "-m", subject)
}

// Bare makes a bare repository NAME.git of a package of testdata/packages,
// which holds the branches master and NAME-VERSION. Where version is not the
// one in package.json, package.json is changed to say it.
func Bare(t testing.TB, name, version string) (path string) {
	t.Helper()
	dir := Init(t, name)
	SetVersion(t, dir, version)
	if Git(t, dir, "status", "--porcelain") != "" {
		Git(t, dir, "commit", "-q", "-a", "-m", "Release "+version)
	}
	path = filepath.Join(t.TempDir(), name+".git")
	Git(t, dir, "init", "-q", "--bare", "-b", "master", path)
	Git(t, dir, "push", "-q", path, "HEAD:refs/heads/master", "HEAD:refs/heads/"+name+"-"+version)
	return path
}

// SetVersion changes the version in dir/package.json, and nothing else in it.
func SetVersion(t testing.TB, dir, version string) {
	t.Helper()
	path := filepath.Join(dir, "package.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var now struct{ Package struct{ Version string } }
	if err := json.Unmarshal(data, &now); err != nil {
		t.Fatal(err)
	}
	quote := func(s string) []byte { q, _ := json.Marshal(s); return q } // a string always marshals
	key := []byte(`"version": `)
	changed := bytes.Replace(data, append(key, quote(now.Package.Version)...), append(key, quote(version)...), 1)
	if now.Package.Version != version && bytes.Equal(changed, data) {
		t.Fatalf("%s holds no line with \"version\": %q to change", path, now.Package.Version)
	}
	if err := os.WriteFile(path, changed, 0o644); err != nil {
		t.Fatal(err)
	}
}

// Env is the environment for stock git in tests: nobody's configuration, fixed
// people and dates, and nothing of the GIT_ variables a hook would have set.
func Env() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "GIT_") {
			env = append(env, kv)
		}
	}
	return append(env,
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_TERMINAL_PROMPT=0", "LC_ALL=C.UTF-8",
		"GIT_AUTHOR_NAME="+AuthorName, "GIT_AUTHOR_EMAIL="+AuthorEmail, "GIT_AUTHOR_DATE="+Date,
		"GIT_COMMITTER_NAME="+AuthorName, "GIT_COMMITTER_EMAIL="+AuthorEmail, "GIT_COMMITTER_DATE="+Date)
}

// Git runs stock git in dir with [Env], fails the test when it fails, and
// returns what it printed without the space around it.
func Git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	return GitInput(t, dir, nil, args...)
}

// GitInput is [Git] with input on stdin.
func GitInput(t testing.TB, dir string, input []byte, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("git"); err != nil {
		t.Fatal("git is not installed: apt-get install git")
	}
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = Env()
	cmd.Stdin = bytes.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(stdout.String())
}
