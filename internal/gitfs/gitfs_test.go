package gitfs

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Morphux/quarry/internal/testpkg"
)

// hashObject writes an object past all of git's checks and returns its hash.
func hashObject(t testing.TB, repo, kind string, data []byte) string {
	t.Helper()
	return testpkg.GitInput(t, repo, data, "hash-object", "-t", kind, "-w", "--stdin", "--literally")
}

type treeEntry struct{ mode, name, hash string }

// tree makes a tree object of any entries, in the order given.
func tree(t testing.TB, repo string, entries ...treeEntry) string {
	t.Helper()
	var b bytes.Buffer
	for _, e := range entries {
		fmt.Fprintf(&b, "%s %s\x00", e.mode, e.name)
		raw, err := hex.DecodeString(e.hash)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(raw)
	}
	return hashObject(t, repo, "tree", b.Bytes())
}

func commit(t testing.TB, repo, tree string) string {
	t.Helper()
	return testpkg.Git(t, repo, "commit-tree", "-m", "Made by hand", tree)
}

func bare(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "p.git")
	testpkg.Git(t, t.TempDir(), "init", "-q", "--bare", path)
	return path
}

func open(t testing.TB, repo, commit string) *FS {
	t.Helper()
	f, err := Open(repo, commit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestCommit(t *testing.T) {
	repo := testpkg.Bare(t, "hello", "1.0")
	head := testpkg.Git(t, repo, "rev-parse", "hello-1.0")
	got, err := Commit(repo, head)
	if err != nil {
		t.Fatal(err)
	}
	who := Person{testpkg.AuthorName, testpkg.AuthorEmail, time.Unix(testpkg.Unix, 0)}
	want := Info{Hash: head, Tree: testpkg.Git(t, repo, "rev-parse", "hello-1.0^{tree}"), Author: who, Committer: who, Subject: "Import hello"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"", "master", head[:10], strings.ToUpper(head), head + head[:24], "--help", strings.Repeat("0", 40), got.Tree} {
		if _, err := Commit(repo, bad); err == nil {
			t.Errorf("commit %q was found", bad)
		}
	}
	if _, err := Commit(t.TempDir(), head); err == nil || !strings.Contains(err.Error(), "is no bare git repository") {
		t.Errorf("a folder was taken for a repository: %v", err)
	}

	// What strangers write into a commit does not steer terminals.
	odd := hashObject(t, repo, "commit", []byte("tree "+got.Tree+"\nauthor A\x1b[2J\xff <a@b> 1 +0000\ncommitter C <c@d> 1 +0000\n\nsub\x07ject "+strings.Repeat("é", 600)+"\nmore\n"))
	got, err = Commit(repo, odd)
	if err != nil {
		t.Fatal(err)
	}
	if got.Author.Name != "A [2J\uFFFD" || !strings.HasPrefix(got.Subject, "sub ject é") || len(got.Subject) > 510 {
		t.Errorf("%q wrote %q", got.Author.Name, got.Subject)
	}
}

// Loose and packed, with deltas and without, the commit is what git checks out.
func TestSameAsCheckout(t *testing.T) {
	dir := testpkg.Init(t, "autohello")
	write := func(name, content string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	large := make([]byte, 3<<20) // over streamAbove
	for i := range large {
		large[i] = byte(random.Uint32())
	}
	write("srcs/large", string(large))
	write("srcs/empty", "")
	write("a.b", "sorts before a/ for an fs.FS, and before a/ for git only as a-")
	write("a/x", "1")
	write("a-b", "2")
	write("srcs/deep/er/and/deeper", strings.Repeat("compressible\n", 1000))
	write("srcs/new\nline", "odd")
	for name, target := range map[string]string{"srcs/link": "deep", "srcs/dangling": "../../../../etc/passwd"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	testpkg.Git(t, dir, "add", "-A")
	testpkg.Git(t, dir, "commit", "-q", "-m", "More")
	// The large file once more with a change, so that a pack has it as a delta.
	old := testpkg.Git(t, dir, "rev-parse", "HEAD")
	large[len(large)/2]++
	write("srcs/large", string(large))
	testpkg.Git(t, dir, "commit", "-q", "-a", "-m", "Change")
	head := testpkg.Git(t, dir, "rev-parse", "HEAD")

	compare := func(t *testing.T, repo, commit string) {
		t.Helper()
		checkout := t.TempDir()
		testpkg.Git(t, repo, "--work-tree="+checkout, "checkout", "-q", "-f", commit, "--", ".")
		f := open(t, repo, commit)
		if diff := cmp.Diff(snapshot(t, os.DirFS(checkout)), snapshot(t, f)); diff != "" {
			t.Error(diff)
		}
	}
	repo := filepath.Join(dir, ".git")
	t.Run("loose", func(t *testing.T) { compare(t, repo, head); compare(t, repo, old) })
	testpkg.Git(t, dir, "repack", "-q", "-a", "-d", "-f")
	t.Run("packed", func(t *testing.T) { compare(t, repo, head); compare(t, repo, old) })
	shared := filepath.Join(t.TempDir(), "shared.git")
	testpkg.Git(t, dir, "clone", "-q", "--bare", "--shared", dir, shared)
	t.Run("alternates", func(t *testing.T) { compare(t, shared, head); compare(t, shared, old) })
}

// snapshot is all there is to know of a tree: path to mode and content.
func snapshot(t *testing.T, fsys fs.FS) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode := info.Mode().Type() | 0o644
		if info.Mode()&0o100 != 0 {
			mode |= 0o111
		}
		content := ""
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			mode = fs.ModeSymlink
			content, err = fs.ReadLink(fsys, name)
		case d.Type().IsRegular():
			var data []byte
			data, err = fs.ReadFile(fsys, name)
			content = string(data)
			if int64(len(data)) != info.Size() {
				t.Errorf("%s has %d bytes and claims %d", name, len(data), info.Size())
			}
		}
		all[name] = mode.String() + " " + content
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestConformance(t *testing.T) {
	repo := testpkg.Bare(t, "autohello", "1.0")
	f := open(t, repo, testpkg.Git(t, repo, "rev-parse", "master"))
	if err := fstest.TestFS(f, "package.json", "srcs/configure", "patches/01-greeting.patch"); err != nil {
		t.Error(err)
	}
	info, err := f.Lstat("srcs/configure")
	if err != nil || info.Mode() != 0o755 || info.ModTime().Unix() != testpkg.Unix {
		t.Errorf("configure: %v, %v", info, err)
	}
}

func TestLinksAreNotFollowed(t *testing.T) {
	repo := bare(t)
	secret := hashObject(t, repo, "blob", []byte("/etc/passwd"))
	file := hashObject(t, repo, "blob", []byte("hello"))
	sub := tree(t, repo, treeEntry{"100644", "file", file})
	up := hashObject(t, repo, "blob", []byte("sub"))
	f := open(t, repo, commit(t, repo, tree(t, repo,
		treeEntry{"120000", "link", secret}, treeEntry{"120000", "dirlink", up}, treeEntry{"40000", "sub", sub},
		treeEntry{"160000", "module", strings.Repeat("1", 40)})))
	for _, name := range []string{"link", "dirlink"} {
		if _, err := f.Open(name); !errors.Is(err, ErrLink) {
			t.Errorf("open %s: %v", name, err)
		}
		if _, err := f.ReadFile(name); !errors.Is(err, ErrLink) {
			t.Errorf("read %s: %v", name, err)
		}
		if _, err := f.Stat(name); !errors.Is(err, ErrLink) {
			t.Errorf("stat %s: %v", name, err)
		}
	}
	if _, err := f.Open("dirlink/file"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link in the middle was followed: %v", err)
	}
	if target, err := f.ReadLink("link"); target != "/etc/passwd" || err != nil {
		t.Errorf("link points to %q, %v", target, err)
	}
	if list, err := f.ReadDir("module"); len(list) != 0 || err != nil {
		t.Errorf("submodule holds %v, %v", list, err)
	}
	if _, err := f.Open("module/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("submodule: %v", err)
	}
	for _, name := range []string{"", "/", "/sub", "sub/", "../p.git", "sub/../sub", "sub//file", "./sub", "sub\x00"} {
		if _, err := f.Open(name); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("open %q: %v", name, err)
		}
	}
	if _, err := f.Open("sub/file/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file was taken for a folder: %v", err)
	}
	if _, err := f.ReadFile("sub"); err == nil {
		t.Error("a folder was read as a file")
	}
	if _, err := f.ReadDir("sub/file"); err == nil {
		t.Error("a file was listed as a folder")
	}
}

func TestHostileTrees(t *testing.T) {
	repo := bare(t)
	blob := hashObject(t, repo, "blob", []byte("x"))
	long := hashObject(t, repo, "blob", bytes.Repeat([]byte("a"), 5000))
	nul := hashObject(t, repo, "blob", []byte("a\x00b"))
	missing := strings.Repeat("2", 40)

	walk := func(f *FS) error {
		return fs.WalkDir(f, ".", func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.Type()&fs.ModeSymlink != 0 {
				_, err = f.ReadLink(name)
			} else if err == nil && d.Type().IsRegular() {
				_, err = f.ReadFile(name)
			}
			return err
		})
	}
	for _, tt := range []struct {
		name    string
		entries []treeEntry
		want    string
	}{
		{"dot dot", []treeEntry{{"100644", "..", blob}}, "is a name that git refuses"},
		{"dot dot folder", []treeEntry{{"40000", "..", tree(t, repo, treeEntry{"100644", "x", blob})}}, "is a name that git refuses"},
		{"dot", []treeEntry{{"100644", ".", blob}}, "is a name that git refuses"},
		{"dot git", []treeEntry{{"40000", ".git", tree(t, repo, treeEntry{"100644", "config", blob})}}, "is a name that git refuses"},
		{"dot Git", []treeEntry{{"100644", ".GiT", blob}}, "is a name that git refuses"},
		{"slash", []treeEntry{{"100644", "a/../../b", blob}}, "has a slash in a name"},
		{"absolute", []treeEntry{{"100644", "/etc/passwd", blob}}, "has a slash in a name"},
		{"empty", []treeEntry{{"100644", "", blob}}, "is a name that git refuses"},
		{"long", []treeEntry{{"100644", strings.Repeat("n", 256), blob}}, "has a name of 256 bytes"},
		{"twice", []treeEntry{{"100644", "a", blob}, {"100644", "b", blob}, {"120000", "a", blob}}, "is there twice"},
		{"device", []treeEntry{{"20644", "null", blob}}, "has the mode 20644"},
		{"mode", []treeEntry{{"9", "x", blob}}, "whose object is broken"},
		{"endless link", []treeEntry{{"120000", "x", long}}, "a link with a target of 5000 bytes"},
		{"link with NUL", []treeEntry{{"120000", "x", nul}}, "a NUL byte in its target"},
		{"blob as folder", []treeEntry{{"40000", "x", blob}}, "cannot be read"},
		{"folder as blob", []treeEntry{{"100644", "x", tree(t, repo)}}, "cannot be read"},
		{"missing", []treeEntry{{"100644", "x", missing}}, "object not found"},
		{"missing folder", []treeEntry{{"40000", "x", missing}}, "object not found"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, nested := range []bool{false, true} {
				root := tree(t, repo, tt.entries...)
				if nested {
					root = tree(t, repo, treeEntry{"40000", "inside", root})
				}
				err := walk(open(t, repo, commit(t, repo, root)))
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("nested %v: error %v, want %q", nested, err, tt.want)
				}
				if strings.ContainsAny(fmt.Sprint(err), "\x00\n") {
					t.Errorf("error of more than one line: %q", err)
				}
			}
		})
	}
	t.Run("broken object", func(t *testing.T) {
		for _, raw := range []string{"100644", "100644 x", "100644 x\x00short", "x\x00", " \x00" + strings.Repeat("a", 20)} {
			f := open(t, repo, commit(t, repo, hashObject(t, repo, "tree", []byte(raw))))
			var bad *BadTreeError
			if _, err := f.ReadDir("."); !errors.As(err, &bad) {
				t.Errorf("%q: %v", raw, err)
			}
		}
	})
	t.Run("names of any bytes", func(t *testing.T) {
		f := open(t, repo, commit(t, repo, tree(t, repo, treeEntry{"100644", "\xff\n", blob}, treeEntry{"100644", "-rf *", blob})))
		if data, err := f.ReadFile("\xff\n"); string(data) != "x" || err != nil {
			t.Errorf("%q, %v", data, err)
		}
		if err := walk(f); err != nil {
			t.Error(err)
		}
	})
}

func TestMeasure(t *testing.T) {
	repo := testpkg.Bare(t, "hello", "1.0")
	f := open(t, repo, testpkg.Git(t, repo, "rev-parse", "master"))
	var want Total
	if err := fs.WalkDir(f, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		want.Files++
		want.Bytes += info.Size()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if got, err := f.Measure(); got != want || err != nil {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}

	refused := func(root, want string) {
		t.Helper()
		f := open(t, repo, commit(t, repo, root))
		start := time.Now()
		var bad *BadTreeError
		if _, err := f.Measure(); !errors.As(err, &bad) || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
		if d := time.Since(start); d > 3*time.Minute { // to look at each of them would take for ever
			t.Errorf("took %v", d)
		}
	}
	blob := hashObject(t, repo, "blob", []byte("x"))
	// Ten folders of ten folders of ...: 10^20 files in 20 objects.
	bomb := tree(t, repo, treeEntry{"100644", "x", blob})
	for range 20 {
		var entries []treeEntry
		for i := range 10 {
			entries = append(entries, treeEntry{"40000", fmt.Sprint(i), bomb})
		}
		bomb = tree(t, repo, entries...)
	}
	refused(bomb, "holds more than 1000000 files")
	// A chain that is deeper than any path may be long.
	chain := tree(t, repo, treeEntry{"100644", "x", blob})
	for range MaxDepth {
		chain = tree(t, repo, treeEntry{"40000", "d", chain})
	}
	refused(chain, "200 is the most")
	// The same chain met first near its end, then from its beginning.
	half := tree(t, repo, treeEntry{"100644", "x", blob})
	for range MaxDepth - 1 {
		half = tree(t, repo, treeEntry{"40000", "d", half})
	}
	refused(tree(t, repo, treeEntry{"40000", "b", tree(t, repo, treeEntry{"40000", "c", half})}), "200 is the most")
	if f := open(t, repo, commit(t, repo, half)); true {
		if _, err := f.Measure(); err != nil {
			t.Errorf("the deepest that is allowed: %v", err)
		}
	}
	// 90 GB of zeros in 3,000 names of one 30 MB file.
	zeros := hashObject(t, repo, "blob", make([]byte, 30<<20))
	var entries []treeEntry
	for i := range 3000 {
		entries = append(entries, treeEntry{"100644", fmt.Sprintf("%04d", i), zeros})
	}
	refused(tree(t, repo, entries...), "bytes: that is the most")
}

// A pack without an index is one that git is just putting there or taking away.
func TestPackWithoutIndex(t *testing.T) {
	repo := testpkg.Bare(t, "hello", "1.0")
	testpkg.Git(t, repo, "gc", "-q")
	if err := os.WriteFile(filepath.Join(repo, "objects", "pack", "pack-"+strings.Repeat("ab", 20)+".pack"), []byte("PACK"), 0o444); err != nil {
		t.Fatal(err)
	}
	f := open(t, repo, testpkg.Git(t, repo, "rev-parse", "master"))
	if _, err := fs.ReadFile(f, "package.json"); err != nil {
		t.Error(err)
	}
}

// git gc takes the packs away while a commit is being read.
func TestRepackedMeanwhile(t *testing.T) {
	dir := testpkg.Init(t, "autohello")
	repo := filepath.Join(dir, ".git")
	f := open(t, repo, testpkg.Git(t, dir, "rev-parse", "HEAD"))
	if _, err := f.ReadFile("package.json"); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		testpkg.Git(t, dir, "commit", "-q", "--allow-empty", "-m", fmt.Sprint(i))
		testpkg.Git(t, dir, "-c", "gc.pruneExpire=now", "gc", "-q")
		if _, err := f.ReadFile([]string{"srcs/main.c", "srcs/configure", "srcs/Makefile.in"}[i]); err != nil {
			t.Error(err)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	dir := testpkg.Init(t, "autohello")
	testpkg.Git(t, dir, "repack", "-q", "-a", "-d")
	repo := filepath.Join(dir, ".git")
	f := open(t, repo, testpkg.Git(t, dir, "rev-parse", "HEAD"))
	want := snapshot(t, f)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if diff := cmp.Diff(want, snapshot(t, f)); diff != "" {
				t.Error(diff)
			}
			if _, err := f.Measure(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// A broken repository is an error for whoever reads it, not the end of the
// daemon.
func TestBrokenRepository(t *testing.T) {
	dir := testpkg.Init(t, "autohello")
	testpkg.Git(t, dir, "repack", "-q", "-a", "-d")
	repo := filepath.Join(dir, ".git")
	head := testpkg.Git(t, dir, "rev-parse", "HEAD")
	packs, err := filepath.Glob(filepath.Join(repo, "objects/pack/*.pack"))
	if err != nil || len(packs) != 1 {
		t.Fatalf("packs %q, %v", packs, err)
	}
	good, err := os.ReadFile(packs[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(packs[0], 0o644); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(3, 4))
	failed := 0
	for range 60 {
		bad := slices.Clone(good)
		for range 20 {
			bad[12+random.IntN(len(bad)-12)] ^= byte(1 + random.IntN(255))
		}
		if err := os.WriteFile(packs[0], bad[:len(bad)-random.IntN(len(bad)/2)], 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := Open(repo, head)
		if err != nil {
			failed++
			continue
		}
		if err := fs.WalkDir(f, ".", func(name string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				_, err = f.ReadFile(name)
			}
			return err
		}); err != nil {
			failed++
		}
		f.Close()
	}
	if failed < 50 {
		t.Errorf("only %d of 60 broken packs were noticed", failed)
	}
}

func TestOpenFile(t *testing.T) {
	repo := testpkg.Bare(t, "hello", "1.0")
	f := open(t, repo, testpkg.Git(t, repo, "rev-parse", "master"))
	file, err := f.Open("srcs/hello.conf")
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(file); string(data) != "Hello, world!\n" || err != nil {
		t.Errorf("%q, %v", data, err)
	}
	if err := file.Close(); err != nil {
		t.Error(err)
	}
	if _, err := file.Read(make([]byte, 1)); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
	if err := file.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
}
