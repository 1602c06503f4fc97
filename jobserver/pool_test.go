package jobserver

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pool(t testing.TB) *Pool {
	t.Helper()
	p, err := New(Options{Dir: t.TempDir(), Name: ".jobs", UID: os.Getuid(), GID: os.Getgid()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// client opens the FIFO as a build program does.
func client(t testing.TB, p *Pool) int {
	t.Helper()
	fd, err := unix.Open(p.Path(), unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// acquire takes up to n tokens and says how many it got.
func acquire(fd, n int) int {
	got := 0
	for got < n {
		var b [1]byte
		k, err := unix.Read(fd, b[:])
		if err == unix.EINTR {
			continue
		}
		if k != 1 {
			break
		}
		got++
	}
	return got
}

func release(t testing.TB, fd, n int) {
	t.Helper()
	if n == 0 {
		return
	}
	if k, err := unix.Write(fd, []byte(strings.Repeat("+", n))); k != n {
		t.Fatalf("%d of %d tokens go back: %v", k, n, err)
	}
}

// until waits until the pool is as it should be.
func until(t testing.TB, p *Pool, want State) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		is := p.State()
		if is == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the pool has %+v, not %+v", is, want)
		}
	}
}

// outNow looks without having a hand in it, as State does.
func (p *Pool) outNow() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.issued + 1
}

func TestSet(t *testing.T) {
	p := pool(t)
	fd := client(t, p)
	for _, c := range []struct {
		set  int
		want State
	}{
		{4, State{Want: 4, Out: 4, Free: 3}},
		{1, State{Want: 1, Out: 1}},
		{0, State{Want: 1, Out: 1}},
		{-1 << 62, State{Want: 1, Out: 1}},
		{1 << 40, State{Want: MaxJobs, Out: MaxJobs, Free: MaxJobs - 1}},
		{8, State{Want: 8, Out: 8, Free: 7}},
	} {
		p.Set(c.set)
		if is := p.State(); is != c.want {
			t.Errorf("set to %d it has %+v, not %+v", c.set, is, c.want)
		}
	}
	if n := acquire(fd, 100); n != 7 {
		t.Fatalf("%d tokens can be had, not 7", n)
	}
	if is, want := p.State(), (State{Want: 8, Out: 8, Held: 7}); is != want {
		t.Errorf("it has %+v, not %+v", is, want)
	}

	// What is held comes back as jobs end; what lies there goes at once.
	release(t, fd, 2)
	<-drained(p)
	p.Set(3)
	if is, want := p.State(), (State{Want: 3, Out: 6, Held: 5}); is != want {
		t.Errorf("it has %+v, not %+v", is, want)
	}
	for out := 5; out >= 3; out-- {
		<-drained(p)
		release(t, fd, 1)
		waitFor(t, p, out)
	}
	if n := acquire(fd, 1); n != 0 {
		t.Error("a token can be had that was to be taken back")
	}
	release(t, fd, 2)
	until(t, p, State{Want: 3, Out: 3, Free: 2})

	// A rise while some are owed leaves the rest where they are.
	acquire(fd, 2)
	p.Set(1)
	p.Set(2)
	until(t, p, State{Want: 2, Out: 3, Held: 2})
	p.Set(4)
	until(t, p, State{Want: 4, Out: 4, Free: 1, Held: 2})
}

// drained forgets what Changed has said, and is closed.
func drained(p *Pool) <-chan struct{} {
	select {
	case <-p.Changed():
	default:
	}
	c := make(chan struct{})
	close(c)
	return c
}

// waitFor waits, without looking in between, until Changed has told of n slots.
func waitFor(t testing.TB, p *Pool, n int) {
	t.Helper()
	late := time.After(time.Minute)
	for p.outNow() != n {
		select {
		case <-p.Changed():
		case <-late:
			t.Fatalf("%d slots are out, not %d, and nothing is said of it", p.outNow(), n)
		}
	}
}

func TestNothingOwedCostsNothing(t *testing.T) {
	p := pool(t)
	fd := client(t, p)
	waits := func() bool {
		theCollector.mu.Lock()
		defer theCollector.mu.Unlock()
		return theCollector.pools[int32(p.fd)] == p
	}
	p.Set(3)
	acquire(fd, 2)
	if waits() {
		t.Error("somebody waits for tokens though none are owed")
	}
	p.Set(1)
	if !waits() {
		t.Error("nobody waits for tokens that are owed")
	}
	release(t, fd, 2)
	waitFor(t, p, 1)
	if until(t, p, State{Want: 1, Out: 1}); waits() {
		t.Error("somebody still waits for tokens though all are back")
	}
	acquire(fd, 1)
	p.Set(2)
	acquire(fd, 1)
	p.Set(1)
	p.Close()
	theCollector.mu.Lock()
	defer theCollector.mu.Unlock()
	for _, other := range theCollector.pools {
		if other == p {
			t.Error("somebody waits for the tokens of a closed pool")
		}
	}
}

func TestReset(t *testing.T) {
	p := pool(t)
	fd := client(t, p)
	p.Set(5)
	acquire(fd, 3) // and never give them back
	p.Reset()
	until(t, p, State{Want: 5, Out: 5, Free: 4})
	acquire(fd, 4)
	p.Set(2)
	<-drained(p)
	p.Reset()
	waitFor(t, p, 2)
	until(t, p, State{Want: 2, Out: 2, Free: 1})
	release(t, fd, 7)
	p.Reset()
	until(t, p, State{Want: 2, Out: 2, Free: 1})
}

func TestLeaked(t *testing.T) {
	p := pool(t)
	p.patience = 0
	fd := client(t, p)
	p.Set(6)
	acquire(fd, 5)
	for range 3 * looks {
		p.Leaked(6) // all are at work
		p.Leaked(100)
	}
	if is, want := p.State(), (State{Want: 6, Out: 6, Held: 5}); is != want {
		t.Fatalf("it has %+v, not %+v", is, want)
	}
	// A look that finds them again counts for all before.
	for range 3 {
		for range looks - 1 {
			p.Leaked(2)
		}
		p.Leaked(6)
	}
	until(t, p, State{Want: 6, Out: 6, Held: 5})
	// What every look finds lost is written again.
	for i := range looks {
		p.Leaked(2 + i%2)
	}
	until(t, p, State{Want: 6, Out: 6, Free: 3, Held: 2, Repaired: 3})
	// Nobody is there at all: then no job has the implicit slot either.
	for range looks {
		p.Leaked(0)
	}
	until(t, p, State{Want: 6, Out: 6, Free: 5, Repaired: 5})
	// Those that were thought lost come back after all.
	acquire(fd, 5)
	release(t, fd, 5)
	release(t, fd, 5)
	until(t, p, State{Want: 6, Out: 6, Free: 5, Repaired: 5, Extra: 5})

	// Tokens that died with a build that was told to have fewer are not waited for.
	acquire(fd, 5)
	p.Set(1)
	<-drained(p)
	for range looks {
		p.Leaked(1)
	}
	waitFor(t, p, 1)
	until(t, p, State{Want: 1, Out: 1, Repaired: 10, Extra: 5})

	// Not before its time.
	p.patience = time.Hour
	p.Set(3)
	acquire(fd, 2)
	for range 10 * looks {
		p.Leaked(1)
	}
	until(t, p, State{Want: 3, Out: 3, Held: 2, Repaired: 10, Extra: 5})
}

func TestHostile(t *testing.T) {
	p := pool(t)
	fd := client(t, p)
	p.Set(4)
	release(t, fd, 10)
	until(t, p, State{Want: 4, Out: 4, Free: 3, Extra: 10})

	// A FIFO that is as small as can be, and full: nothing of it lasts.
	acquire(fd, 3)
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 1); err != nil {
		t.Fatal(err)
	}
	junk := 0
	for {
		n, err := unix.Write(fd, make([]byte, 100))
		if err != nil {
			break
		}
		junk += n
	}
	is := p.State()
	if is.Want != 4 || is.Out != 4 || is.Free > 3 {
		t.Errorf("it has %+v", is)
	}
	p.Set(MaxJobs)
	until(t, p, State{Want: MaxJobs, Out: MaxJobs, Free: MaxJobs - 1, Extra: p.State().Extra})
	if n := acquire(fd, 1<<20); n != MaxJobs-1 {
		t.Errorf("%d tokens can be had, not %d", n, MaxJobs-1)
	}

	// Packets of which a read of less takes all.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_NONBLOCK|unix.O_DIRECT); err != nil {
		t.Fatal(err)
	}
	p.Set(2)
	p.Reset()
	for range 5 {
		release(t, fd, 2)
	}
	if is := p.State(); is.Out != 2 || is.Free > 1 {
		t.Errorf("it has %+v", is)
	}
}

func TestName(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"", ".", "..", "a/b", "/jobs"} {
		if p, err := New(Options{Dir: dir, Name: name}); err == nil {
			p.Close()
			t.Errorf("a jobserver is made as %q", name)
		}
	}
	const uid = 12345
	p, err := New(Options{Dir: dir, Name: "jobs", UID: uid, GID: uid})
	if os.Getuid() != 0 {
		t.Fatal("this test gives files away: run it as root")
	}
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(p.Path(), &st); err != nil || st.Mode != unix.S_IFIFO|0o600 || st.Uid != uid || st.Gid != uid {
		t.Errorf("the FIFO has mode %o, owner %d:%d (%v)", st.Mode, st.Uid, st.Gid, err)
	}
	if _, err := New(Options{Dir: dir, Name: "jobs"}); err == nil || !strings.Contains(err.Error(), "file exists") {
		t.Errorf("a name that is taken gives %v", err)
	}
	// What the build puts in its place is not touched.
	if err := os.Rename(p.Path(), filepath.Join(dir, "away")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Path(), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.Set(3)
	if is, want := p.State(), (State{Want: 3, Out: 3, Free: 2}); is != want {
		t.Errorf("without its name it has %+v, not %+v", is, want)
	}
	p.Close()
	if b, err := os.ReadFile(p.Path()); err != nil || string(b) != "mine" {
		t.Errorf("what took the name is %q, %v", b, err)
	}
	q := pool(t)
	q.Close()
	if _, err := os.Lstat(q.Path()); !os.IsNotExist(err) {
		t.Errorf("the FIFO stays: %v", err)
	}
	// A closed one does nothing any more.
	q.Set(3)
	q.Reset()
	q.Leaked(1)
	q.Close()
	_ = q.State()
}

// TestRandom has many clients that take and return tokens while the number
// changes: no token is ever lost or made.
func TestRandom(t *testing.T) {
	const clients = 8
	for seed := range uint64(20) {
		p := pool(t)
		p.patience = time.Hour
		var wg sync.WaitGroup
		stop := make(chan struct{})
		for c := range clients {
			fd := client(t, p)
			r := rand.New(rand.NewPCG(seed, uint64(c)))
			wg.Go(func() {
				held := 0
				for {
					select {
					case <-stop:
						release(t, fd, held)
						return
					default:
					}
					if r.IntN(2) == 0 {
						held += acquire(fd, r.IntN(4))
					} else if held > 0 {
						n := 1 + r.IntN(held)
						held -= n
						release(t, fd, n)
					}
					if r.IntN(8) == 0 {
						time.Sleep(time.Duration(r.IntN(100)) * time.Microsecond)
					}
				}
			})
		}
		r := rand.New(rand.NewPCG(seed, clients))
		out := 1
		for range 200 {
			n := 1 + r.IntN(12)
			p.Set(n)
			is := p.State()
			if is.Out < is.Want || is.Out > max(out, n) || is.Free+is.Held != is.Out-1 || is.Free < 0 || is.Held < 0 {
				t.Fatalf("after %d slots and set to %d it has %+v", out, n, is)
			}
			out = is.Out
			p.Leaked(r.IntN(3))
		}
		close(stop)
		wg.Wait()
		n := 1 + r.IntN(12)
		p.Set(n)
		until(t, p, State{Want: n, Out: n, Free: n - 1})
		p.Close()
	}
}

func TestFlags(t *testing.T) {
	for form, want := range map[string]string{
		FIFO: "-j4 --jobserver-auth=fifo:/quarry/.jobs", Descriptor: "-j4 --jobserver-auth=3,3", None: "-j4",
	} {
		if got := Flags(form, "/quarry/.jobs", 4); got != want {
			t.Errorf("%s: %q, not %q", form, got, want)
		}
	}
}

func ExamplePool() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	p, err := New(Options{Dir: dir, Name: "jobs", UID: os.Getuid(), GID: os.Getgid()})
	if err != nil {
		panic(err)
	}
	defer p.Close()
	p.Set(4)
	fmt.Println(Flags(FIFO, "jobs", 4), p.State().Free)
	// Output: -j4 --jobserver-auth=fifo:jobs 3
}
