package jobs

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/buildcontrol"
)

// TestProtocol: clients of the protocol are told what their build has, and then
// its jobserver holds none of it.
func TestProtocol(t *testing.T) {
	r := newRig(t, Options{Total: 4})
	var all atomic.Int64
	a := r.begin(&all, Build{Number: 1, Name: "a-1", Key: "a"})
	env := map[string]string{}
	for _, kv := range a.Env() {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	if env["BUILDCONTROLADDR"] != "/quarry/.buildcontrol" || env["BUILDSOCKET"] != env["BUILDCONTROLADDR"] || !strings.HasPrefix(env["BUILDTOKEN"], "1-") {
		t.Errorf("%q", a.Env())
	}
	st, err := os.Stat(filepath.Join(a.dir, ".buildcontrol"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	b := r.begin(&all, Build{Number: 2, Name: "a-1", Key: "a"})
	if b.Env()[2] != a.Env()[2] {
		t.Errorf("the same build has tokens %s and %s", a.Env()[2], b.Env()[2])
	}
	b.End()

	a.Step(true)
	until(t, "all slots are in the jobserver", func() bool { return lying(t, a.dir) == 3 })
	dial := func(token string) *buildcontrol.Client {
		t.Helper()
		c, err := buildcontrol.Dial(t.Context(), filepath.Join(a.dir, ".buildcontrol"), token)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	told := func(c *buildcontrol.Client, want int) {
		t.Helper()
		timeout := time.After(patience)
		for n := -1; n != want; {
			var ok bool
			select {
			case n, ok = <-c.Jobs():
				if !ok {
					t.Fatalf("the connection was closed: %v", c.Err())
				}
			case <-timeout:
				t.Fatalf("after %v the client was told %d last, want %d", patience, n, want)
			}
		}
	}
	c := dial(env["BUILDTOKEN"])
	told(c, 4)
	if n := lying(t, a.dir); n != 0 {
		t.Errorf("the client may run 4 jobs, and %d tokens lie in the jobserver", n)
	}
	second := dial(env["BUILDTOKEN"])
	told(second, 4)
	if n, err := r.Set(1, 2, "anna"); n != 2 || err != nil {
		t.Error(n, err)
	}
	told(c, 2)
	told(second, 2)
	if n := r.Status().Builds[0].Clients; n != 2 {
		t.Errorf("%d clients", n)
	}
	// A wrong token is closed without a word.
	wrong := dial("1-000000000000000000000000")
	for n := range wrong.Jobs() {
		t.Errorf("a wrong token was told %d", n)
	}
	// What its jobs still take comes back as they end, as processes tell.
	if _, err := r.Set(1, 4, "anna"); err != nil {
		t.Error(err)
	}
	told(c, 4)
	a.running.Store(4)
	until(t, "its four jobs are seen", func() bool { return r.Status().Builds[0].Used == 4 })
	if n, err := r.Set(1, 1, "anna"); n != 1 || err != nil {
		t.Error(n, err)
	}
	told(c, 1)
	if out := r.Status().Out; out != 4 {
		t.Errorf("with four jobs alive %d slots are out", out)
	}
	a.running.Store(2)
	until(t, "two slots are out", func() bool { return r.Status().Out == 2 })
	if _, err := r.Set(1, 0, "anna"); err != nil {
		t.Error(err)
	}
	// When they have gone the slots are tokens again.
	a.running.Store(1)
	c.Close()
	second.Close()
	until(t, "all slots are in the jobserver again", func() bool { return lying(t, a.dir) == 3 })
	a.End()
}

// lying is how many tokens lie in a build's jobserver.
func lying(t testing.TB, dir string) int {
	t.Helper()
	fd, err := syscall.Open(filepath.Join(dir, ".jobs"), syscall.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestLost: tokens that died with their holders are made again.
func TestLost(t *testing.T) {
	r := newRig(t, Options{Total: 4})
	var all atomic.Int64
	a := r.begin(&all, Build{Number: 1, Name: "a-1", Key: "a"})
	a.Step(true)
	until(t, "all slots are in the jobserver", func() bool { return lying(t, a.dir) == 3 })
	fd, err := syscall.Open(filepath.Join(a.dir, ".jobs"), syscall.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	var buf [3]byte
	if n, err := syscall.Read(fd, buf[:]); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	syscall.Close(fd)
	until(t, "what was lost is there again", func() bool { return lying(t, a.dir) == 3 && r.Status().Builds[0].Repaired == 3 })
	if sum := a.End(); sum.Repaired != 3 {
		t.Errorf("%+v", sum)
	}
}
