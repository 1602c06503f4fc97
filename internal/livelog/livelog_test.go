package livelog

import (
	"bytes"
	"context"
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
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/afero"
)

func open(t testing.TB, dir string, opts Options) *Store {
	t.Helper()
	s, err := Open(afero.NewBasePathFs(afero.NewOsFs(), dir), opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t testing.TB, s *Store, number int64, attempt int) *Log {
	t.Helper()
	l, err := s.Create(number, attempt)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func read(t testing.TB, s *Store, number int64) string {
	t.Helper()
	r, err := s.Open(number)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestFollow: readers that come at any time get the whole, then the end.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	l := create(t, s, 17, 1)
	rnd := rand.New(rand.NewPCG(1, 2))
	var want bytes.Buffer
	var wg sync.WaitGroup
	var got [20]bytes.Buffer
	for i := range 2000 {
		if i%100 == 0 {
			r, err := s.Follow(t.Context(), 17)
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				defer r.Close()
				if _, err := io.Copy(&got[i/100], r); err != nil {
					t.Error(err)
				}
			})
		}
		p := bytes.Repeat([]byte{byte('a' + i%26)}, rnd.IntN(300))
		want.Write(p)
		if n, err := l.Write(p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
	}
	closeLog(t, l)
	closeLog(t, l)
	wg.Wait()
	for i := range got {
		if !bytes.Equal(got[i].Bytes(), want.Bytes()) {
			t.Errorf("reader %d got %d bytes, want %d", i, got[i].Len(), want.Len())
		}
	}
	if got := read(t, s, 17); got != want.String() {
		t.Errorf("read %d bytes, want %d", len(got), want.Len())
	}
	if _, err := os.Stat(filepath.Join(dir, "0000/17.log")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the plain log is still there: %v", err)
	}
	fi, err := os.Stat(filepath.Join(dir, "0000/17.log.zst"))
	if err != nil || fi.Size() > int64(want.Len()/5) {
		t.Errorf("%v, %v", fi, err)
	}
	if err := l.Err(); err != nil {
		t.Error(err)
	}
}

func TestFollowEnds(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	if _, err := s.Follow(t.Context(), 5); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "build 5") {
		t.Errorf("got %v", err)
	}
	l := create(t, s, 5, 1)
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := s.Follow(ctx, 5)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := r.Read(make([]byte, 10)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	r.Close()
	r, err = s.Follow(t.Context(), 5)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, func() { r.Close() })
	if _, err := r.Read(make([]byte, 10)); err == nil {
		t.Error("Read after Close goes on")
	}
}

// TestAwait: who follows a build that has not begun misses nothing.
func TestAwait(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := s.Await(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	done := make(chan string)
	go func() {
		if err := s.Await(t.Context(), 1); err != nil {
			t.Error(err)
		}
		r, err := s.Follow(t.Context(), 1)
		if err != nil {
			t.Error(err)
		}
		data, _ := io.ReadAll(r)
		done <- string(data)
	}()
	l := create(t, s, 1, 1)
	fmt.Fprint(l, "hello\n")
	closeLog(t, l)
	if got := <-done; got != "hello\n" {
		t.Errorf("got %q", got)
	}
	if err := s.Await(t.Context(), 1); err != nil {
		t.Error(err)
	}
}

// TestAttempts: the log of a failure stays when the build is tried again.
func TestAttempts(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	for i := 1; i <= 3; i++ {
		l := create(t, s, 1234, i)
		if _, err := s.Create(1234, i); err == nil || !strings.Contains(err.Error(), "being written already") {
			t.Errorf("got %v", err)
		}
		fmt.Fprintf(l, "this is try %d", i)
		if tail, err := l.Tail(1); err != nil || len(tail) != 1 || tail[0] != fmt.Sprintf("this is try %d", i) {
			t.Errorf("got %q, %v", tail, err)
		}
		closeLog(t, l)
		s = open(t, dir, Options{})
	}
	got := strings.Split(read(t, s, 1234), "\n")
	if len(got) != 5 || got[0] != "this is try 1" || !strings.HasPrefix(got[1], "==> attempt 2 begins at 2") ||
		got[2] != "this is try 2" || !strings.HasPrefix(got[3], "==> attempt 3 begins at 2") || got[4] != "this is try 3" {
		t.Errorf("got %q", got)
	}
	r, err := s.Follow(t.Context(), 1234)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if data, err := io.ReadAll(r); err != nil || len(data) != len(strings.Join(got, "\n")) {
		t.Errorf("got %q, %v", data, err)
	}
	if last, err := s.Last(); last != 1234 || err != nil {
		t.Errorf("got %d, %v", last, err)
	}
	if _, err := s.Create(0, 1); err == nil {
		t.Error("created the log of build 0")
	}
}

// TestCrash: logs open at a crash are closed with a word about it, whatever
// state the files are in.
func TestCrash(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	l := create(t, s, 1, 1)
	fmt.Fprint(l, "making all\n")
	done := create(t, s, 2, 1)
	fmt.Fprint(done, "all done\n")
	closeLog(t, done)
	// A crash between adding and removing: both files are there.
	both := create(t, s, 3, 1)
	fmt.Fprint(both, "once\n")
	closeLog(t, both)
	both = create(t, s, 3, 2)
	fmt.Fprint(both, "twice\n")
	plain, err := os.ReadFile(filepath.Join(dir, "0000/3.log"))
	if err != nil {
		t.Fatal(err)
	}
	closeLog(t, both)
	whole := read(t, s, 3)
	for name, data := range map[string][]byte{
		"0000/3.log":         plain,
		"0000/3.log.zst.new": []byte("half"),
		"0000/notes.txt":     []byte("not ours"),
		"0000/x.log":         []byte("not ours"),
		"0001/4.log":         []byte("in the wrong folder"),
		"README":             nil,
	} {
		os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755)
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir, Options{}) // without closing: as after kill -9
	const closed = "\n==> the log was not closed: the daemon ended, or the disk was full\n"
	if got := read(t, s, 1); got != "making all\n"+closed {
		t.Errorf("got %q", got)
	}
	if got := read(t, s, 2); got != "all done\n" {
		t.Errorf("got %q", got)
	}
	if got := read(t, s, 3); got != whole {
		t.Errorf("got %q, want %q", got, whole)
	}
	var names []string
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if !d.IsDir() {
			names = append(names, strings.TrimPrefix(p, dir))
		}
		return err
	})
	want := []string{"/0000/1.log.zst", "/0000/2.log.zst", "/0000/3.log.zst", "/0000/notes.txt", "/0000/x.log", "/0001/4.log", "/README"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	l = create(t, s, 1, 1)
	fmt.Fprint(l, "again\n")
	closeLog(t, l)
	if got := read(t, s, 1); !strings.HasPrefix(got, "making all\n"+closed+"\n==> attempt 1 begins at ") || !strings.HasSuffix(got, "\nagain\n") {
		t.Errorf("got %q", got)
	}
}

func TestTail(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	l := create(t, s, 1, 1)
	check := func(n int, want ...string) {
		t.Helper()
		got, err := s.Tail(1, n)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Error(err, diff)
		}
	}
	check(10)
	fmt.Fprint(l, "one\n")
	check(10, "one")
	fmt.Fprint(l, "two\r\nthree \xff\n\nfive")
	check(10, "one", "two", "three \uFFFD", "", "five")
	check(2, "", "five")
	check(0)
	closeLog(t, l)
	check(3, "three \uFFFD", "", "five")
	l = create(t, s, 1, 2)
	for i := range 50000 {
		fmt.Fprintf(l, "line %d of the build\n", i)
	}
	check(2, "line 49998 of the build", "line 49999 of the build")
	l.Write(bytes.Repeat([]byte("x"), 3<<20))
	check(2, strings.Repeat("x", 4096)+"...")
	closeLog(t, l)
	check(2, strings.Repeat("x", 4096)+"...")
	if _, err := s.Tail(2, 1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{MaxAge: time.Hour, MaxBytes: 3000})
	now := time.Now()
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := int64(1); i <= 6; i++ {
		l := create(t, s, i*500, 1)
		noise := make([]byte, 1000)
		for j := range noise {
			noise[j] = byte(rnd.Uint32())
		}
		l.Write(noise)
		if i == 6 {
			defer l.Close() // still open
			continue
		}
		closeLog(t, l)
		age := time.Duration(6-i) * 10 * time.Minute
		if i == 1 {
			age = 2 * time.Hour
		}
		if err := os.Chtimes(filepath.Join(dir, packedPath(i*500)), now, now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := s.Prune(t.Context(), nil)
	if diff := cmp.Diff([]int64{500, 1000, 1500}, removed); diff != "" || err != nil {
		t.Error(err, diff)
	}
	for _, n := range []int64{2000, 2500, 3000} {
		if got := read(t, s, n); len(got) != 1000 {
			t.Errorf("build %d: %d bytes", n, len(got))
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "0000")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty folder is left: %v", err)
	}
	if removed, err := s.Prune(t.Context(), nil); len(removed) != 0 || err != nil {
		t.Error(removed, err)
	}
}

// TestRaces: writers, followers, tails and pruning at once, for -race.
func TestRaces(t *testing.T) {
	s := open(t, t.TempDir(), Options{MaxBytes: 1 << 20})
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				s.Prune(t.Context(), nil)
				s.Last()
			}
		}
	})
	var wg sync.WaitGroup
	for n := int64(1); n <= 8; n++ {
		wg.Go(func() {
			for attempt := 1; attempt <= 5; attempt++ {
				l, err := s.Create(n, attempt)
				if err != nil {
					t.Error(err)
					return
				}
				r, err := s.Follow(t.Context(), n)
				if err != nil {
					t.Error(err)
					return
				}
				wg.Go(func() {
					defer r.Close()
					data, err := io.ReadAll(r)
					if want := fmt.Sprintf("%d/%d/99\n", n, attempt); err != nil || !strings.HasSuffix(string(data), want) {
						t.Errorf("got %d bytes, %v; they do not end in %q", len(data), err, want)
					}
				})
				for i := range 100 {
					fmt.Fprintf(l, "%d/%d/%d\n", n, attempt, i)
				}
				l.Tail(3)
				l.Close()
				s.Tail(n, 3)
			}
		})
	}
	wg.Wait()
	close(stop)
	others.Wait()
	for n := int64(1); n <= 8; n++ {
		for attempt := 1; attempt <= 5; attempt++ {
			if want := fmt.Sprintf("%d/%d/99\n", n, attempt); !strings.Contains(read(t, s, n), want) {
				t.Errorf("%q is missing", want)
			}
		}
	}
}

func TestHas(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	if s.Has(1) {
		t.Error("there is no log yet")
	}
	l := create(t, s, 1, 1)
	if !s.Has(1) {
		t.Error("it is being written")
	}
	fmt.Fprintln(l, "x")
	closeLog(t, l)
	if !s.Has(1) || s.Has(2) {
		t.Error("it is kept")
	}
}

// TestPruneSpoken keeps the logs of builds that are still spoken of, however old
// they are, and lets them go last where there is no room.
func TestPruneSpoken(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{MaxAge: time.Hour})
	now := time.Now()
	for i := int64(1); i <= 4; i++ {
		l := create(t, s, i, 1)
		fmt.Fprintf(l, "log of %d\n", i)
		closeLog(t, l)
		if err := os.Chtimes(filepath.Join(dir, packedPath(i)), now, now.Add(-time.Duration(5-i)*2*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	var asked []int64
	still := func(numbers []int64) (map[int64]bool, error) {
		asked = slices.Sorted(slices.Values(numbers))
		return map[int64]bool{1: true, 3: true}, nil
	}
	removed, err := s.Prune(t.Context(), still)
	slices.Sort(removed)
	if !slices.Equal(removed, []int64{2, 4}) || err != nil || !slices.Equal(asked, []int64{1, 2, 3, 4}) {
		t.Errorf("removed %v, asked of %v, %v", removed, asked, err)
	}
	if _, err := s.Prune(t.Context(), func([]int64) (map[int64]bool, error) { return nil, errors.New("lost") }); err == nil || !s.Has(1) {
		t.Errorf("without an answer: %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, packedPath(3)))
	if err != nil {
		t.Fatal(err)
	}
	s.opts.MaxBytes = info.Size()
	if removed, err := s.Prune(t.Context(), still); !slices.Equal(removed, []int64{1}) || err != nil {
		t.Errorf("without room removed %v, %v", removed, err)
	}
}
