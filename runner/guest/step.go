package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// tick is how long the loop sleeps at most while a step runs. Orphans that
	// end without waking it are reaped after this long.
	tick = 200 * time.Millisecond
	// stuck is how long the dead may take to go. Only the kernel can keep them:
	// in a call to a disk that does not answer, or in a want of memory.
	stuck = 30 * time.Second
	// drainFor is how long to wait for the end of the output once nobody is
	// left to write any.
	drainFor = 5 * time.Second
)

// grace is how long processes that outlive their step's command may take to end
// by themselves before they count as left behind. Helpers in the middle of
// ending, as of a shell's process substitution, are no news. Tests change it.
var grace = 100 * time.Millisecond

// step is a step that runs.
type step struct {
	g    *guest
	run  *Run
	r    Reply
	pipe int // read end of what the commands print to; -1 after its end
	// main is the process of the command that runs, 0 when it has ended.
	main   int
	pidfd  int // of main, or -1 where the kernel has none
	tokens int // the jobserver for commands that get it as a descriptor; -1: none do
	status unix.WaitStatus

	began time.Time
	heard time.Time // when output last came, or could not come because of the runner
}

// run runs a step: its commands one after another, until one fails or the step
// is ended. Afterwards no process but the guest is left.
func (g *guest) run(run *Run) (Reply, error) {
	if !g.calmed {
		calm()
		g.calmed = true
	}
	s := &step{g: g, run: run, pipe: -1, pidfd: -1, tokens: -1, began: time.Now()}
	s.heard = s.began
	before := childTimes()
	err := s.join()
	if err == nil {
		err = s.commands()
	}
	s.closeAll()
	if err != nil {
		return Reply{}, err
	}
	after := childTimes()
	s.r.Wall = time.Since(s.began)
	s.r.User = time.Duration(after.Utime.Nano() - before.Utime.Nano())
	s.r.Sys = time.Duration(after.Stime.Nano() - before.Stime.Nano())
	return s.r, nil
}

func childTimes() (ru unix.Rusage) {
	_ = unix.Getrusage(unix.RUSAGE_CHILDREN, &ru)
	return ru
}

func (s *step) commands() error {
	for i, c := range s.run.Commands {
		s.r.Command = i
		if err := s.start(c); err != nil {
			s.r.Error, s.r.Problem = answer(err, Reply{}).Error, answer(err, Reply{}).Problem
			return nil
		}
		if s.main != 0 {
			if err := s.follow(); err != nil {
				return err
			}
			s.r.Status, s.r.Signal = exitStatus(s.status)
		}
		if s.r.Status != 0 || s.r.Killed != "" || s.r.Error != "" {
			return nil
		}
	}
	return nil
}

// start starts a command. A command that does not exist is no error: the
// status is 127, as a shell has it, and main stays 0.
func (s *step) start(c Command) error {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return fmt.Errorf("a command without a name")
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	// Only the guest's own end must not block.
	if err := unix.SetNonblock(ends[0], true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	s.closePipe()
	s.pipe = ends[0]
	defer unix.Close(ends[1])

	args := c.Args
	path, err := lookPath(args[0], s.run.Dir, s.run.Env)
	if err != nil {
		s.r.Status = 127
		s.r.Problem = err.Error()
		return nil
	}
	if c.Shell && !executable(path, s.run.Dir) {
		path, args = "/bin/sh", append([]string{"/bin/sh"}, args...)
	}
	err = s.fork(path, args, ends[1])
	if err == unix.ENOEXEC { // no #! line: execvp(3) and shells take it for a script
		err = s.fork("/bin/sh", append([]string{"/bin/sh"}, args...), ends[1])
	}
	switch err {
	case nil:
		return nil
	case unix.EACCES, unix.ENOEXEC, unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.E2BIG, unix.EISDIR, unix.EINVAL, unix.ETXTBSY, unix.EPERM, unix.ELIBBAD:
		s.r.Status = 126
		s.r.Problem = fmt.Sprintf("%s cannot be run: %v", args[0], err)
		if st, e := os.Stat(s.run.Dir); e != nil || !st.IsDir() {
			s.r.Problem = fmt.Sprintf("the working directory %s is gone", s.run.Dir)
		}
		return nil
	}
	return fmt.Errorf("start %s: %w", args[0], err)
}

// fork starts a process in a session of its own, so that it has no terminal
// and its group is not the guest's.
func (s *step) fork(path string, args []string, output int) error {
	attr := &syscall.ProcAttr{
		Dir:   s.run.Dir,
		Env:   s.run.Env,
		Files: []uintptr{uintptr(s.g.null), uintptr(output), uintptr(output)},
		Sys:   &syscall.SysProcAttr{Setsid: true, PidFD: &s.pidfd},
	}
	if s.tokens >= 0 {
		attr.Files = append(attr.Files, uintptr(s.tokens)) // as descriptor jobserver.FD
	}
	pid, err := s.g.spawn(path, args, attr, s.run.Compat, 100)
	if err == nil {
		s.main = pid
	}
	return err
}

// spawn starts a process of the build's.
func (g *guest) spawn(path string, args []string, attr *syscall.ProcAttr, compat bool, tries int) (pid int, err error) {
	if compat {
		if err := personality(perLinux32); err != nil {
			return 0, err
		}
		defer func() { _ = personality(0) }()
	}
	g.oom.raise()
	defer g.oom.lower()
	g.slim.down()
	for try := 0; ; try++ {
		pid, err := syscall.ForkExec(path, args, attr)
		// The last step's dead may still count for the kernel's limit.
		if (err == unix.EAGAIN || err == unix.ENOMEM) && try < tries {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		return pid, err
	}
}

// follow passes on the command's output until it has ended, then ends whatever
// it left behind.
func (s *step) follow() error {
	var last time.Time // when to stop waiting in the state at hand
	for s.main != 0 {
		if err := s.turn(tick); err != nil {
			return err
		}
		s.judge()
		if s.r.Killed != "" && last.IsZero() {
			killAll()
			last = time.Now().Add(stuck)
		}
		if !last.IsZero() && time.Now().After(last) {
			s.r.Error = "the kernel does not let go of processes that were killed"
			s.main = 0
			return nil
		}
	}
	if s.r.Killed == "" {
		if err := s.settle(); err != nil {
			return err
		}
	}
	killAll()
	for last = time.Now().Add(stuck); !s.reap(); {
		if time.Now().After(last) {
			s.r.Error = "the kernel does not let go of processes that were killed"
			return nil
		}
		if err := s.turn(5 * time.Millisecond); err != nil {
			return err
		}
		killAll()
	}
	for last = time.Now().Add(drainFor); s.pipe >= 0 && time.Now().Before(last); {
		if err := s.turn(tick); err != nil {
			return err
		}
		if s.g.room() < minRead { // the runner takes its time
			last = time.Now().Add(drainFor)
		}
	}
	return nil
}

// settle gives processes that outlive their command a moment, and counts those
// that take more.
func (s *step) settle() error {
	for until := time.Now().Add(grace); !s.reap(); {
		if left := time.Until(until); left <= 0 {
			names, n := census(maxLeft)
			s.r.NLeft += n
			for _, name := range names {
				if len(s.r.Left) < maxLeft {
					s.r.Left = append(s.r.Left, name)
				}
			}
			return nil
		}
		if err := s.turn(5 * time.Millisecond); err != nil {
			return err
		}
		if s.judge(); s.r.Killed != "" {
			return nil
		}
	}
	return nil
}

// turn waits until something happens, for as long as sleep at most, and sees
// to it.
func (s *step) turn(sleep time.Duration) error {
	g := s.g
	now := time.Now()
	if w := s.run.Wall; w > 0 {
		sleep = min(sleep, s.began.Add(w).Sub(now))
	}
	if w := s.run.Silence; w > 0 {
		sleep = min(sleep, s.heard.Add(w).Sub(now))
	}
	var fds [3]unix.PollFd
	fds[0] = unix.PollFd{Fd: int32(g.conn), Events: unix.POLLIN}
	if g.outR < g.outW {
		fds[0].Events |= unix.POLLOUT
	}
	fds[1].Fd, fds[2].Fd = -1, -1 // negative ones are passed over
	if s.pipe >= 0 && g.room() >= minRead {
		fds[1] = unix.PollFd{Fd: int32(s.pipe), Events: unix.POLLIN}
	} else if s.pipe >= 0 {
		s.heard = now // it may be shouting for all we know
	}
	if s.main != 0 && s.pidfd >= 0 {
		fds[2] = unix.PollFd{Fd: int32(s.pidfd), Events: unix.POLLIN}
	} else if s.main != 0 {
		sleep = min(sleep, 10*time.Millisecond)
	}
	if _, err := poll(fds[:], max(sleep, 0)); err != nil {
		return err
	}
	s.reap()
	if fds[0].Revents&(unix.POLLIN|unix.POLLHUP|unix.POLLERR) != 0 {
		if err := s.listen(); err != nil {
			return err
		}
	}
	if fds[1].Revents != 0 {
		s.read()
	}
	return g.flush()
}

// listen takes what the runner says while a step runs, which can only be to
// end it.
func (s *step) listen() error {
	if err := s.g.fill(); err != nil {
		return err
	}
	for {
		kind, _, ok, err := s.g.take()
		if err != nil || !ok {
			return err
		}
		if kind != KindCancel {
			return fmt.Errorf("%w: kind %v while a step runs", ErrFrame, kind)
		}
		if s.r.Killed == "" {
			s.r.Killed = KilledCancel
		}
	}
}

const minRead = headerSize + 4<<10

// room is how much output may still be put into the buffer.
func (g *guest) room() int {
	return len(g.out) - reserve - (g.outW - g.outR)
}

// read moves output from the pipe into a frame.
func (s *step) read() {
	g := s.g
	if len(g.out)-reserve-g.outW < headerSize+MaxOutput {
		g.compact()
	}
	n := min(len(g.out)-reserve-g.outW-headerSize, MaxOutput)
	if n <= 0 {
		return
	}
	at := g.outW + headerSize
	n, err := unix.Read(s.pipe, g.out[at:at+n])
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return
	case n <= 0 || err != nil: // nobody is left to write
		s.closePipe()
		return
	}
	s.heard = time.Now()
	if left := s.run.Log - s.r.Output; int64(n) > left {
		if s.r.Killed == "" {
			s.r.Killed = KilledLog
		}
		if n = int(max(left, 0)); n == 0 {
			return // read and dropped
		}
	}
	s.r.Output += int64(n)
	putHeader(g.out[g.outW:], KindOutput, n)
	g.outW = at + n
}

// judge ends the step when it has gone over a limit.
func (s *step) judge() {
	if s.r.Killed != "" {
		return
	}
	now := time.Now()
	switch {
	case s.run.Wall > 0 && now.Sub(s.began) >= s.run.Wall:
		s.r.Killed = KilledTime
	case s.run.Silence > 0 && now.Sub(s.heard) >= s.run.Silence:
		s.r.Killed = KilledSilence
	}
}

// reap takes the statuses of all children that have ended, which as process 1
// are all orphans too, and reports whether none are left.
func (s *step) reap() bool {
	for {
		var ws unix.WaitStatus
		var ru unix.Rusage
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, &ru)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil: // ECHILD
			return !others()
		case pid == 0:
			return false
		}
		s.r.RSS = max(s.r.RSS, ru.Maxrss*1024)
		if pid == s.main {
			s.main, s.status = 0, ws
			if s.pidfd >= 0 {
				unix.Close(s.pidfd)
				s.pidfd = -1
			}
		}
	}
}

func (s *step) closePipe() {
	if s.pipe >= 0 {
		unix.Close(s.pipe)
		s.pipe = -1
	}
}

func (s *step) closeAll() {
	s.closePipe()
	if s.pidfd >= 0 {
		unix.Close(s.pidfd)
		s.pidfd = -1
	}
	if s.tokens >= 0 {
		unix.Close(s.tokens)
		s.tokens = -1
	}
}

// lookPath finds a command as execvp(3) does, but in the PATH that the step
// will have. A name with a slash is taken as it is.
func lookPath(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		full := name
		if !filepath.IsAbs(full) {
			full = filepath.Join(dir, name)
		}
		if st, err := os.Stat(full); err != nil || st.IsDir() {
			return "", fmt.Errorf("%s: there is no such file in %s", name, dir)
		}
		return name, nil
	}
	var path string
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	for _, d := range filepath.SplitList(path) {
		full := filepath.Join(d, name)
		if filepath.IsAbs(full) && executable(full, "/") {
			return full, nil
		}
	}
	return "", fmt.Errorf("%s: there is no such command in the base (PATH is %s)", name, path)
}

// executable reports whether path, seen from dir, is a regular file that
// somebody may execute.
func executable(path, dir string) bool {
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
}
