package guest

import (
	"errors"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// threads is how many threads the guest has in store before anything hostile
// runs. Go starts a thread when one is wanted and ends the program when it
// cannot, and in a workspace whose limit on processes is used up it cannot. The
// loop that runs a step needs its own, the one that receives signals, and now
// and then one for the collector of garbage.
const threads = 12

// fortify makes the process safe from those it is going to start.
func fortify() error {
	// First of all: from here on nobody of the same user may trace this process.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl(PR_SET_DUMPABLE)", err)
	}
	unix.Umask(0o022)
	// A core file is of no use to anybody here and can be large.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return os.NewSyscallError("setrlimit(RLIMIT_CORE)", err)
	}
	// Whatever the runtime left open stays with the guest.
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		closeOnExec()
	}
	if err := forgetSignals(); err != nil {
		return err
	}
	startThreads(threads)
	return nil
}

// closeOnExec does what close_range(2) does, for kernels before 5.11.
func closeOnExec() {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range names {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// startThreads has the runtime make n threads, which it keeps.
func startThreads(n int) {
	var up, down sync.WaitGroup
	hold := make(chan struct{})
	for range n {
		up.Add(1)
		down.Go(func() {
			runtime.LockOSThread() // so that each of these goroutines is on its own
			up.Done()
			<-hold
			runtime.UnlockOSThread() // else the thread would end with the goroutine
		})
	}
	up.Wait()
	close(hold)
	down.Wait()
}

// calm is called before the first command of the build: from now on the guest
// keeps still. The garbage collector only runs when there is a lot to collect,
// which a step does not bring about.
func calm() {
	// Laying artifacts in takes memory, which would count as the build's.
	var m runtime.MemStats
	if runtime.ReadMemStats(&m); m.HeapSys-m.HeapReleased > 16<<20 {
		debug.FreeOSMemory()
	}
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(256 << 20)
	runtime.GOMAXPROCS(1)
}

// oomAdjust is how much sooner than the guest its children are killed when the
// workspace runs out of memory (proc_pid_oom_score_adj(5)).
const oomAdjust = 500

// oomScore raises the score of this process while it forks. Children inherit
// it; none runs a single instruction with the guest's own. Going back down to
// where one began needs no privilege.
type oomScore struct {
	fd       int
	own, kid []byte
}

func openOOMScore() oomScore {
	o := oomScore{fd: -1}
	const path = "/proc/self/oom_score_adj"
	text, err := os.ReadFile(path)
	if err != nil {
		return o
	}
	own, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return o
	}
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return o
	}
	o.fd = fd
	o.own = strconv.AppendInt(nil, int64(own), 10)
	o.kid = strconv.AppendInt(nil, int64(min(own+oomAdjust, 1000)), 10)
	return o
}

func (o oomScore) raise() { o.write(o.kid) }
func (o oomScore) lower() { o.write(o.own) }

// write cannot help it when the kernel refuses: then the largest process is
// killed first, which is hardly ever the guest.
func (o oomScore) write(text []byte) {
	if o.fd >= 0 {
		_, _ = unix.Pwrite(o.fd, text, 0)
	}
}

// perLinux32 is PER_LINUX32 of linux/personality.h.
const perLinux32 = 0x0008

// personality sets the execution domain of this thread, which children inherit
// and which decides what uname(2) says.
func personality(persona uintptr) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, persona, 0, 0); errno != 0 {
		return os.NewSyscallError("personality", errno)
	}
	return nil
}

// others reports whether any process but this one lives in the namespace,
// those included that have ended and wait for their parent.
func others() bool { return unix.Kill(-1, 0) != unix.ESRCH }

// killAll ends every other process of the namespace. The kernel does it in one
// go: fork(2) fails with a signal pending, so not even a storm of forks gets
// away.
func killAll() { _ = unix.Kill(-1, unix.SIGKILL) }

// census names a few of the other processes and says how many there are that
// still run.
func census(most int) (names []string, n int) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, 0
	}
	defer proc.Close()
	entries, _ := proc.Readdirnames(10_000)
	self := os.Getpid()
	for _, name := range entries {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == self {
			continue
		}
		stat, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		// pid (name) state ...; the name may hold anything, brackets too.
		from, to := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
		if from < 0 || to < from || to+2 >= len(stat) || stat[to+2] == 'Z' || stat[to+2] == 'X' {
			continue
		}
		n++
		if len(names) < most {
			names = append(names, clean(string(stat[from+1:to]), 64))
		}
	}
	return names, n
}

// exitStatus is what a shell would call the status.
func exitStatus(ws unix.WaitStatus) (status, sig int) {
	if ws.Signaled() {
		return 128 + int(ws.Signal()), int(ws.Signal())
	}
	return ws.ExitStatus(), 0
}

// isFull reports errors that say that the machine or a limit is at its end,
// whatever was being done.
func isFull(err error) bool {
	for _, e := range []syscall.Errno{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS, unix.EMFILE, unix.ENFILE, unix.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
