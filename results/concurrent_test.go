package results

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// TestWritersAtOnce has two Repos, as two processes would, and many goroutines
// write different packages; each must get its commit.
func TestWritersAtOnce(t *testing.T) {
	a := open(t, Options{})
	b := openAt(t, a.Path(), Options{})
	const each = 25
	var g errgroup.Group
	for i, r := range []*Repo{a, a, b, b} {
		g.Go(func() error {
			for j := range int64(each) {
				if _, err := r.Record(t.Context(), sample(fmt.Sprintf("pkg%d", i), fmt.Sprintf("1.%d", j), "x86_64", j)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := git(t, a.Path(), "rev-list", "--count", "testing"); n != fmt.Sprint(4*each) {
		t.Errorf("there are %s commits, want %d", n, 4*each)
	}
	if n := len(treeOf(t, a.Path(), "testing")); n != 2*4*each {
		t.Errorf("there are %d files, want %d", n, 2*4*each)
	}
	fsck(t, a.Path())
}

// TestBesideStockGit moves the branch with git update-ref while Quarry writes.
// Neither may lose what the other has done, so all of it must be in history.
func TestBesideStockGit(t *testing.T) {
	r := open(t, Options{})
	record(t, r, sample("first", "1", "x86_64", 1))
	stop := make(chan struct{})
	won := make(chan struct{}, 1) // there is something in it when stock git has won since it was last asked
	var theirs []string
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(won)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			tip, err := tryGit(r.Path(), "rev-parse", "testing")
			if err != nil {
				t.Errorf("rev-parse: %v: %s", err, tip)
				return
			}
			c, err := tryGit(r.Path(), "commit-tree", tip+"^{tree}", "-p", tip, "-m", fmt.Sprintf("by hand %d", i))
			if err != nil {
				t.Errorf("commit-tree: %v: %s", err, c)
				return
			}
			// Losing the race is fine, and so is Quarry's lock.
			if out, err := tryGit(r.Path(), "update-ref", "refs/heads/testing", c, tip); err == nil {
				theirs = append(theirs, c)
				select {
				case won <- struct{}{}:
				default:
				}
			} else if !strings.Contains(out, "but expected") && !strings.Contains(out, "File exists") {
				t.Errorf("update-ref: %v: %s", err, out)
			}
		}
	})
	var ours []string
	for i := range int64(60) {
		ours = append(ours, record(t, r, sample("pkg", fmt.Sprint(i), "x86_64", i)))
		if i%5 > 0 {
			continue // so that stock git loses, too
		}
		// While nothing is written here it wins, however slow it is.
		select {
		case <-won:
		case <-time.After(5 * time.Minute):
			close(stop)
			wg.Wait()
			t.Fatal("stock git does not win though nobody else writes")
		}
	}
	close(stop)
	wg.Wait()
	history := git(t, r.Path(), "rev-list", "testing")
	for _, c := range append(ours, theirs...) {
		if !strings.Contains(history, c) {
			t.Errorf("commit %s was lost", c)
		}
	}
	fsck(t, r.Path())
	t.Logf("%d commits by Quarry, %d by stock git", len(ours), len(theirs))
}

// TestRepackWhileOpen melts packs together, with our maintenance and with the
// hardest that stock git has, under an open repository and an open reader.
func TestRepackWhileOpen(t *testing.T) {
	r := open(t, Options{MaxPacks: -1})
	record(t, r, sample("zlib", "1", "x86_64", 1))
	reader, err := OpenReader(r.Path(), "testing")
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	next := int64(2)
	for _, repack := range []func(){
		func() {
			if err := r.Maintain(t.Context()); err != nil {
				t.Fatal(err)
			}
		},
		func() { git(t, r.Path(), "repack", "-a", "-d", "-q") },
		func() { git(t, r.Path(), "gc", "-q", "--prune=now") },
		func() { git(t, r.Path(), "multi-pack-index", "write", "--no-progress") },
		// Loose objects, as an unpacked clone has them.
		func() {
			packs, err := filepath.Glob(filepath.Join(r.Path(), "objects/pack/pack-*.pack"))
			if err != nil || len(packs) == 0 {
				t.Fatal(packs, err)
			}
			for _, p := range packs {
				data, err := os.ReadFile(p)
				if err != nil {
					t.Fatal(err)
				}
				for _, ext := range []string{".pack", ".idx", ".rev"} {
					os.Remove(strings.TrimSuffix(p, ".pack") + ext)
				}
				os.Remove(filepath.Join(r.Path(), "objects/pack/multi-pack-index"))
				cmd := exec.Command("git", "-C", r.Path(), "unpack-objects", "-q")
				cmd.Stdin = bytes.NewReader(data)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
		},
	} {
		for range 5 {
			record(t, r, sample("zlib", fmt.Sprint(next), "x86_64", next))
			next++
		}
		repack()
		// Forget what is in memory, or the packs would not be asked.
		r.odb.mu.Lock()
		r.odb.fresh, r.odb.trees, r.odb.heads = bounded[plumbing.Hash, []byte]{}, bounded[plumbing.Hash, tree]{}, bounded[plumbing.Hash, Available]{}
		r.odb.mu.Unlock()
		if _, err := reader.Refresh(); err != nil {
			t.Fatal(err)
		}
		for i := int64(1); i < next; i++ {
			if ref, ok, err := r.Lookup("testing", "zlib", fmt.Sprint(i), "x86_64"); err != nil || !ok || ref.Build != i {
				t.Fatalf("build %d: Lookup = %+v, %v, %v", i, ref, ok, err)
			}
			if rec, err := reader.Get("zlib", fmt.Sprint(i), "x86_64"); err != nil || rec.Build != i {
				t.Fatalf("build %d: Get = %+v, %v", i, rec, err)
			}
		}
		fsck(t, r.Path())
	}
}

// TestMaintenanceComesByItself writes through several rounds of maintenance in
// the background.
func TestMaintenanceComesByItself(t *testing.T) {
	r := open(t, Options{MaxPacks: 10})
	for i := range int64(60) {
		record(t, r, sample("zlib", fmt.Sprint(i), "x86_64", i))
	}
	deadline := time.Now().Add(5 * time.Minute)
	for n := int64(60); countPacks(r.Path()) > 15; n++ {
		if time.Now().After(deadline) {
			t.Fatalf("there are still %d packs after 60 commits", countPacks(r.Path()))
		}
		time.Sleep(50 * time.Millisecond)
		record(t, r, sample("zlib", fmt.Sprint(n), "x86_64", n))
	}
	r.Close()
	fsck(t, r.Path())
}

func TestMaintainSaysWhatIsWrong(t *testing.T) {
	r := open(t, Options{Git: "/nonexistent/git"})
	if err := r.Maintain(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot be maintained") {
		t.Errorf("Maintain without git: %v", err)
	}
}

// TestStaleLockIsCured leaves what a writer that was killed between locking and
// renaming leaves, and a lock of git's, which is nobody else's to remove.
func TestStaleLockIsCured(t *testing.T) {
	r := open(t, Options{})
	record(t, r, sample("zlib", "1", "x86_64", 1))
	dead := func() string {
		dir := filepath.Join(r.Path(), workRoot, workPrefix+"dead")
		if err := os.MkdirAll(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"alive", "ref-testing", "0000.pack"} {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	lock := filepath.Join(r.Path(), "refs/heads/testing.lock")

	// Found while somebody else has the repository open.
	dir := dead()
	if err := os.Link(filepath.Join(dir, "ref-testing"), lock); err != nil {
		t.Fatal(err)
	}
	record(t, r, sample("zlib", "2", "x86_64", 2))
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the dead writer's folder is still there: %v", err)
	}

	// Found when opening.
	dir = dead()
	if err := os.Link(filepath.Join(dir, "ref-testing"), lock); err != nil {
		t.Fatal(err)
	}
	openAt(t, r.Path(), Options{}).Close()
	for _, gone := range []string{lock, dir} {
		if _, err := os.Stat(gone); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", gone, err)
		}
	}

	// Git's.
	dead()
	if err := os.WriteFile(lock, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := r.Record(ctx, sample("zlib", "3", "x86_64", 3)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Record under git's lock: %v", err)
	}
	if _, err := os.Stat(lock); err != nil {
		t.Errorf("git's lock was removed: %v", err)
	}
	os.Remove(lock)
	record(t, r, sample("zlib", "3", "x86_64", 3))
	fsck(t, r.Path())
}

// TestWriterClosesMeanwhile has the folder of a writer go after it was listed and
// before it is looked at, which to whoever looks is as a link to nothing.
func TestWriterClosesMeanwhile(t *testing.T) {
	r := open(t, Options{})
	gone := filepath.Join(r.Path(), workRoot, workPrefix+"gone")
	if err := os.Symlink("nothing", gone); err != nil {
		t.Fatal(err)
	}
	openAt(t, r.Path(), Options{})
}

// TestKilledWriter kills a process that records with signal 9: at a random moment
// after its start in every other round, and after it has recorded something in the
// others. Afterwards everything that it said was recorded must be, the next writer
// must get on at once, and nothing may be left over.
func TestKilledWriter(t *testing.T) {
	if path := os.Getenv("QUARRY_TEST_WRITER"); path != "" {
		writeForever(t, path)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "results.git")
	said := 0
	for round := range 30 {
		cmd := exec.Command(exe, "-test.run=^TestKilledWriter$")
		cmd.Env = append(os.Environ(), "QUARRY_TEST_WRITER="+path)
		stderr := new(bytes.Buffer)
		cmd.Stderr = stderr
		pipe, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		stdout := bufio.NewReader(pipe)
		out := ""
		if round%2 == 1 {
			out, _ = stdout.ReadString('\n') // comes to its end when the writer has ended
		}
		time.Sleep(time.Duration(rand.IntN(120)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		rest, err := io.ReadAll(stdout)
		if err != nil {
			t.Fatal(err)
		}
		out += string(rest)
		err = cmd.Wait()
		if ee := new(exec.ExitError); !errors.As(err, &ee) || ee.Sys().(interface{ Signaled() bool }).Signaled() == false {
			t.Fatalf("round %d: the writer ended by itself: %v\n%s%s", round, err, out, stderr)
		}
		for line := range strings.Lines(out) {
			commit, ok := strings.CutPrefix(strings.TrimSpace(line), "recorded ")
			if !ok || len(commit) != 40 {
				continue
			}
			said++
			if out, err := tryGit(path, "merge-base", "--is-ancestor", commit, "testing"); err != nil {
				t.Errorf("round %d: commit %s is lost: %v %s", round, commit, err, out)
			}
		}
	}
	if said < 15 { // every other round waits for one
		t.Fatalf("only %d records in all rounds", said)
	}
	r := openAt(t, path, Options{})
	record(t, r, sample("last", "1", "x86_64", 1))
	fsck(t, path)
	r.Close()
	left, err := os.ReadDir(filepath.Join(path, workRoot))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		if strings.HasPrefix(e.Name(), workPrefix) {
			t.Errorf("%s was left over", e.Name())
		}
	}
	if locks, _ := filepath.Glob(filepath.Join(path, "refs/heads/*.lock")); len(locks) > 0 {
		t.Errorf("locks were left over: %v", locks)
	}
	t.Logf("%d records said and kept", said)
}

func writeForever(t *testing.T, path string) {
	r, err := Open(path, Options{MaxPacks: 10})
	if err != nil {
		t.Fatal(err)
	}
	for {
		last, err := r.LastBuild()
		if err != nil {
			t.Fatal(err)
		}
		h, err := r.Record(t.Context(), sample(fmt.Sprintf("pkg%d", last%7), fmt.Sprint(last), "x86_64", last+1))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Println("recorded", h)
	}
}

// TestFullDisk fills a small file system. Every Record that fails must say so
// plainly and leave the channel as it was; when there is room again the next
// one works.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatalf("a small tmpfs cannot be mounted: %v: run this test as root, e.g. in a container with CAP_SYS_ADMIN", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	r, err := Open(filepath.Join(dir, "results.git"), Options{MaxPacks: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	record(t, r, realistic("first", 1))

	filler := filepath.Join(dir, "filler")
	n := int64(2)
	// Filled to the last page, and with some room left, so that each of the
	// steps of a Record meets the end of it.
	for room := 0; room <= 64; room += 4 {
		fill(t, filler, room<<10)
		before := git(t, r.Path(), "rev-parse", "testing")
		for {
			h, err := r.Record(t.Context(), realistic(fmt.Sprintf("pkg%d", n), n))
			n++
			if err == nil {
				before = h
				continue
			}
			if !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("with %d kB left: %v, want no space left on device", room, err)
			}
			break
		}
		if after := git(t, r.Path(), "rev-parse", "testing"); after != before {
			t.Errorf("with %d kB left a Record failed and the branch moved", room)
		}
		fsck(t, r.Path())
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		if err := r.Maintain(t.Context()); err != nil {
			t.Fatal(err)
		}
		record(t, r, realistic(fmt.Sprintf("pkg%d", n-1), n-1))
	}
	if left, err := os.ReadDir(r.own.dir); err != nil || len(left) != 1 {
		t.Errorf("unfinished files were left: %v, %v", left, err)
	}
}

// fill writes a file until the file system is full, and then makes it smaller.
func fill(t *testing.T, name string, room int) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(max(0, info.Size()-int64(room))); err != nil {
		t.Fatal(err)
	}
}

func TestRecordHeedsContext(t *testing.T) {
	r := open(t, Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Record(ctx, sample("zlib", "1", "x86_64", 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("Record = %v", err)
	}
	if s := snapshot(t, r); s.Commit() != "" {
		t.Error("something was written")
	}
}
