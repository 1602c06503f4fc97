package guest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// MaxShells is how many shells there may be in a workspace at one time.
const MaxShells = 8

const (
	// ttyQuiet is how long a terminal may be silent after the end of its shell
	// while something that was left behind still has it open. The kernel hands
	// over what was written a moment later.
	ttyQuiet = 100 * time.Millisecond
	// hangup is how long a shell whose caller is gone may take to end.
	hangup = time.Second
)

// shell is a command that runs beside others, for a person: on a terminal, which
// is one of the workspace's own, or on pipes. The same loop as that of steps
// serves all of them.
type shell struct {
	conn int // the caller's socket, not blocking; -1: this shell is over
	tty  bool
	// main is the command's process, 0 when it has ended.
	main   int
	pidfd  int
	status unix.WaitStatus
	in     int    // where input goes; -1: nowhere any more
	out    [2]int // where output and errors come from; -1 after its end. Of a terminal, the first is in, too

	// heard[:nHeard] was read from the socket; of the first frame's payload taken
	// bytes are on their way already.
	heard   []byte
	nHeard  int
	taken   int
	blocked bool // the shell takes no more of it now
	// said[saidR:saidW] waits to be written to the socket.
	said         []byte
	saidR, saidW int

	last    time.Time // when output last came
	exiting bool      // the last frame is on its way
	gone    bool      // the caller is
	until   time.Time // when it is ended by force, once it is to end
}

func (g *guest) anyShell() bool {
	for _, s := range g.shells {
		if s != nil && s.conn >= 0 {
			return true
		}
	}
	return false
}

// openShell starts a shell. The socket is the guest's from now on.
func (g *guest) openShell(q *Shell, conn int) (err error) {
	defer func() {
		if err != nil {
			unix.Close(conn)
		}
	}()
	if !g.calmed {
		calm()
		g.calmed = true
	}
	g.clear()
	if err := unix.SetNonblock(conn, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	for i, s := range g.shells {
		if s != nil && s.conn >= 0 {
			continue
		}
		if s == nil { // made once: the collector of garbage rests
			s = &shell{conn: -1, heard: make([]byte, headerSize+MaxInput), said: make([]byte, 2*(headerSize+MaxOutput))}
			g.shells[i] = s
		}
		return s.open(g, q, conn)
	}
	return problemf("there are %d shells in this workspace already: end one first", MaxShells)
}

func (s *shell) open(g *guest, q *Shell, conn int) error {
	writeScript(q.Script)
	dir := q.Dir
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		dir = "/"
	}
	var path string
	var args []string
	for _, try := range q.Try {
		if len(try) == 0 {
			continue
		}
		found, err := lookPath(try[0], dir, q.Env)
		if err == nil {
			path, args = found, try
			break
		}
		if args == nil {
			args = try
		}
	}
	if path == "" {
		if len(args) == 0 {
			return errors.New("a shell without a command")
		}
		return problemf("%s: there is no such command in the workspace", args[0])
	}
	files, ours, err := plumb(q)
	if err != nil {
		return err
	}
	defer closeAll(files...)
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir: dir, Env: q.Env, Files: []uintptr{uintptr(files[0]), uintptr(files[1]), uintptr(files[2])},
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: q.TTY, Ctty: 0, PidFD: &pidfd},
	}
	// Other shells wait meanwhile.
	pid, err := g.spawn(path, args, attr, q.Compat, 10)
	if err == unix.ENOEXEC {
		pid, err = g.spawn("/bin/sh", append([]string{"/bin/sh"}, args...), attr, q.Compat, 10)
	}
	if err != nil {
		closeAll(ours.in, ours.out[0], ours.out[1])
		if err == unix.EAGAIN || err == unix.ENOMEM {
			return problemf("%s cannot be run: the workspace is at its limit of processes or memory", args[0])
		}
		return problemf("%s cannot be run: %v", args[0], err)
	}
	*s = shell{conn: conn, tty: q.TTY, main: pid, pidfd: pidfd, in: ours.in, out: ours.out, heard: s.heard, said: s.said, last: time.Now()}
	return nil
}

// writeScript puts a script where shells find it. One that cannot be written is
// not worth a shell.
func writeScript(sc *Script) {
	if sc == nil {
		return
	}
	if os.MkdirAll(filepath.Dir(sc.Path), 0o755) != nil {
		return
	}
	_ = os.Remove(sc.Path) // whatever the build has put there
	f, err := os.OpenFile(sc.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return
	}
	_, _ = f.WriteString(sc.Text)
	f.Close()
}

// ends are the guest's ends of what a shell reads and writes.
type ends struct {
	in  int
	out [2]int
}

// plumb makes what a shell reads and writes: its three files, and their other
// ends.
func plumb(q *Shell) (files []int, e ends, err error) {
	if q.TTY {
		master, slave, err := openTTY(q.Cols, q.Rows)
		if err != nil {
			return nil, ends{}, err
		}
		return []int{slave, slave, slave}, ends{master, [2]int{master, -1}}, nil
	}
	var p [3][2]int
	for i := range p {
		if err := unix.Pipe2(p[i][:], unix.O_CLOEXEC); err != nil {
			for _, done := range p[:i] {
				closeAll(done[0], done[1])
			}
			return nil, ends{}, os.NewSyscallError("pipe2", err)
		}
	}
	files, e = []int{p[0][0], p[1][1], p[2][1]}, ends{p[0][1], [2]int{p[1][0], p[2][0]}}
	for _, fd := range []int{e.in, e.out[0], e.out[1]} { // and not the shell's own ends
		if err := unix.SetNonblock(fd, true); err != nil {
			closeAll(append(files, e.in, e.out[0], e.out[1])...)
			return nil, ends{}, os.NewSyscallError("fcntl", err)
		}
	}
	return files, e, nil
}

// openTTY makes a terminal of the workspace's. The slave is asked of the
// master, as a path to it could have been made to lead elsewhere.
func openTTY(cols, rows uint16) (master, slave int, err error) {
	for _, path := range []string{"/dev/ptmx", "/dev/pts/ptmx"} {
		if master, err = unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			continue
		}
		if err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err == nil {
			fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
			if slave, err = int(fd), nil; errno != 0 {
				err = errno
			}
		}
		if err == nil {
			break
		}
		unix.Close(master)
	}
	if err != nil {
		return -1, -1, problemf("the workspace has no terminal to give: %v", err)
	}
	setSize(master, cols, rows)
	if t, err := unix.IoctlGetTermios(slave, unix.TCGETS); err == nil {
		t.Iflag |= unix.IUTF8 // so that a key takes back a whole rune
		_ = unix.IoctlSetTermios(slave, unix.TCSETS, t)
	}
	return master, slave, nil
}

func setSize(master int, cols, rows uint16) {
	_ = unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows})
}

// closeAll closes descriptors, each of them once; negative ones are none.
func closeAll(fds ...int) {
	for i, fd := range fds {
		if fd < 0 {
			continue
		}
		again := false
		for _, before := range fds[:i] {
			again = again || before == fd
		}
		if !again {
			unix.Close(fd)
		}
	}
}

// attend serves the shells until something happened, and reports whether the
// runner has said something. When the last is over, all that shells have left
// running is ended.
func (g *guest) attend() (heard bool, err error) {
	const each = 5
	var fds [1 + each*MaxShells]unix.PollFd
	for i := range fds {
		fds[i].Fd = -1
	}
	fds[0] = unix.PollFd{Fd: int32(g.conn), Events: unix.POLLIN}
	sleep, now := tick, time.Now()
	for i, s := range g.shells {
		if s != nil && s.conn >= 0 {
			sleep = min(sleep, s.wants(fds[1+each*i:1+each*(i+1)], now))
		}
	}
	if _, err := poll(fds[:], max(sleep, 0)); err != nil {
		return false, err
	}
	g.bury()
	for i, s := range g.shells {
		if s == nil || s.conn < 0 {
			continue
		}
		s.serve(fds[1+each*i : 1+each*(i+1)])
	}
	if !g.anyShell() {
		g.sweep()
	}
	return fds[0].Revents != 0, nil
}

// clear ends at once what shells have left whose callers are gone, if there are
// no others: it might take all the processes that the workspace may have.
func (g *guest) clear() {
	if !g.anyShell() {
		return
	}
	for _, s := range g.shells {
		if s != nil && s.conn >= 0 && !s.gone {
			return
		}
	}
	for _, s := range g.shells {
		if s != nil && s.conn >= 0 {
			s.close()
		}
	}
	g.sweep()
}

// sweep ends everything but the guest.
func (g *guest) sweep() {
	killAll()
	for last := time.Now().Add(stuck); !g.bury() && time.Now().Before(last); {
		time.Sleep(5 * time.Millisecond)
		killAll()
	}
	runtime.GC() // there is peace for it now
}

// bury takes the statuses of all that has ended, and reports whether nothing is
// left.
func (g *guest) bury() bool {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil: // ECHILD
			return !others()
		case pid == 0:
			return false
		}
		for _, s := range g.shells {
			if s != nil && s.conn >= 0 && s.main == pid {
				s.main, s.status, s.last = 0, ws, time.Now()
				closeAll(s.pidfd)
				s.pidfd = -1
			}
		}
	}
}

// wants fills in what to wait for, and says for how long at most.
func (s *shell) wants(fds []unix.PollFd, now time.Time) time.Duration {
	sleep := tick
	if !s.gone {
		fds[0].Fd = int32(s.conn)
		if s.nHeard < len(s.heard) {
			fds[0].Events |= unix.POLLIN
		}
		if s.saidR < s.saidW {
			fds[0].Events |= unix.POLLOUT
		}
	}
	if s.in >= 0 && s.blocked {
		fds[1] = unix.PollFd{Fd: int32(s.in), Events: unix.POLLOUT}
	}
	for i, fd := range s.out {
		if fd >= 0 && s.room() >= minRead {
			fds[2+i] = unix.PollFd{Fd: int32(fd), Events: unix.POLLIN}
		}
	}
	switch {
	case s.main != 0 && s.pidfd >= 0:
		fds[4] = unix.PollFd{Fd: int32(s.pidfd), Events: unix.POLLIN}
	case s.main != 0:
		sleep = 10 * time.Millisecond
	case s.saidR == s.saidW:
		sleep = min(sleep, s.last.Add(ttyQuiet).Sub(now))
	}
	return sleep
}

// serve does what can be done now.
func (s *shell) serve(fds []unix.PollFd) {
	if fds[0].Revents != 0 {
		s.hear(fds[0].Revents)
	}
	s.act()
	if s.gone {
		s.hangUp()
		return
	}
	quiet := true
	for i := range s.out {
		if !s.exiting && s.out[i] >= 0 && (fds[2+i].Revents != 0 || s.main == 0) {
			quiet = s.read(i) && quiet
		}
	}
	s.flush()
	if s.main != 0 || s.gone {
		return
	}
	if s.exiting {
		if s.saidR == s.saidW {
			s.close()
		}
		return
	}
	// What it wrote is there by now, but for what is on its way through the
	// kernel's terminal. Somebody who was left behind may keep that, or the pipes.
	if !quiet || s.tty && s.out[0] >= 0 && time.Since(s.last) < ttyQuiet {
		return
	}
	if s.saidR < s.saidW {
		return
	}
	s.exiting = true
	status, _ := exitStatus(s.status)
	payload, _ := json.Marshal(Exit{status}) // numbers
	putHeader(s.said, KindExit, len(payload))
	s.saidR, s.saidW = 0, headerSize+copy(s.said[headerSize:], payload)
	if s.flush(); s.saidR == s.saidW {
		s.close()
	}
}

// hear reads from the socket.
func (s *shell) hear(events int16) {
	if events&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0 {
		s.gone = true
		return
	}
	if events&unix.POLLIN == 0 || s.nHeard == len(s.heard) {
		return
	}
	n, _, err := unix.Recvfrom(s.conn, s.heard[s.nHeard:], unix.MSG_DONTWAIT)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
	case err != nil || n == 0:
		s.gone = true
	default:
		s.nHeard += n
	}
}

// act does what the frames say that were heard.
func (s *shell) act() {
	s.blocked = false
	for s.nHeard >= headerSize && !s.gone {
		kind, n, err := checkHeader([headerSize]byte(s.heard))
		if err != nil {
			s.gone = true
			return
		}
		if s.nHeard < headerSize+n {
			return
		}
		payload := s.heard[headerSize : headerSize+n]
		switch {
		case kind == KindInput && n == 0:
			s.endInput()
		case kind == KindInput:
			for s.in >= 0 && s.taken < n {
				w, err := unix.Write(s.in, payload[s.taken:])
				if err == unix.EINTR {
					continue
				}
				if err == unix.EAGAIN {
					s.blocked = true
					return
				}
				if err != nil { // nobody reads it
					s.closeIn()
					break
				}
				s.taken += w
			}
		case kind == KindSize && n == sizeBytes && s.tty && s.in >= 0:
			setSize(s.in, binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:]))
		case kind == KindSize:
		default:
			s.gone = true
			return
		}
		s.taken = 0
		s.nHeard = copy(s.heard, s.heard[headerSize+n:s.nHeard])
	}
}

// endInput ends the input: of a terminal as a person does, by Ctrl-D.
func (s *shell) endInput() {
	if !s.tty {
		s.closeIn()
		return
	}
	if s.in >= 0 {
		_, _ = unix.Write(s.in, []byte{4})
	}
}

func (s *shell) closeIn() {
	if !s.tty { // else it is where output comes from, too
		closeAll(s.in)
	}
	s.in = -1
}

func (s *shell) room() int { return len(s.said) - (s.saidW - s.saidR) }

// read moves output into frames, as much as there is and there is room for, and
// reports whether there is no more now.
func (s *shell) read(i int) (quiet bool) {
	for {
		if s.saidR > 0 {
			s.saidW = copy(s.said, s.said[s.saidR:s.saidW])
			s.saidR = 0
		}
		room := min(len(s.said)-s.saidW-headerSize, MaxOutput)
		if room < minRead-headerSize {
			return false
		}
		at := s.saidW + headerSize
		n, err := unix.Read(s.out[i], s.said[at:at+room])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return true
		case err != nil || n <= 0: // EIO of a terminal: nobody has it open
			if s.tty {
				s.in = -1
			}
			closeAll(s.out[i])
			s.out[i] = -1
			return true
		}
		s.last = time.Now()
		kind := KindOutput
		if i == 1 {
			kind = KindError
		}
		putHeader(s.said[s.saidW:], kind, n)
		s.saidW = at + n
		if s.main != 0 {
			return false // the others' turn
		}
	}
}

// flush writes to the socket what it takes now.
func (s *shell) flush() {
	for s.saidR < s.saidW {
		n, err := unix.SendmsgN(s.conn, s.said[s.saidR:s.saidW], nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return
		case err != nil:
			s.gone = true
			return
		}
		s.saidR += n
	}
	s.saidR, s.saidW = 0, 0
}

// hangUp ends a shell whose caller is gone, as the end of a terminal's line does.
func (s *shell) hangUp() {
	if s.main == 0 {
		s.close()
		return
	}
	if s.until.IsZero() {
		s.until = time.Now().Add(hangup)
		closeAll(s.in, s.out[0], s.out[1])
		s.in, s.out = -1, [2]int{-1, -1}
		_ = unix.Kill(-s.main, unix.SIGHUP)
		_ = unix.Kill(-s.main, unix.SIGCONT)
	}
	if time.Now().After(s.until) {
		_ = unix.Kill(-s.main, unix.SIGKILL)
		_ = unix.Kill(s.main, unix.SIGKILL)
	}
}

func (s *shell) close() {
	closeAll(s.conn, s.pidfd, s.in, s.out[0], s.out[1])
	s.conn, s.pidfd, s.in, s.out = -1, -1, -1, [2]int{-1, -1}
	s.nHeard, s.taken, s.saidR, s.saidW = 0, 0, 0, 0
}
