package main

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// screen is a real terminal with a program on it, and what that shows.
type screen struct {
	t      testing.TB
	master *os.File
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the program has

	mu    sync.Mutex // guards the following
	shown []byte
	seen  int // of it, by expect
}

// onScreen starts a program on a terminal of its own.
func (s *server) onScreen(t testing.TB, cols, rows int, argv ...string) *screen {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	sc := &screen{t: t, master: os.NewFile(uintptr(fd), "terminal"), ended: make(chan struct{})}
	t.Cleanup(func() { sc.master.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	slave := os.NewFile(n, "terminal")
	defer slave.Close()
	sc.resize(cols, rows)
	sc.cmd = exec.Command(argv[0], argv[1:]...)
	sc.cmd.Env, sc.cmd.Dir = append(s.env, "TERM=xterm"), s.dir
	sc.cmd.Stdin, sc.cmd.Stdout, sc.cmd.Stderr = slave, slave, slave
	sc.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := sc.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		sc.cmd.Process.Kill()
		<-sc.ended
	})
	read := make(chan struct{})
	go func() {
		defer close(read)
		for buf := make([]byte, 4096); ; {
			n, err := sc.master.Read(buf)
			sc.mu.Lock()
			sc.shown = append(sc.shown, buf[:n]...)
			sc.mu.Unlock()
			if err != nil { // EIO: nobody has the terminal open any more
				return
			}
		}
	}()
	go func() {
		sc.cmd.Wait()
		select { // its last words, unless it has left somebody behind
		case <-read:
		case <-time.After(time.Minute):
		}
		close(sc.ended)
	}()
	return sc
}

func (sc *screen) resize(cols, rows int) {
	sc.t.Helper()
	if err := unix.IoctlSetWinsize(int(sc.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: uint16(cols), Row: uint16(rows)}); err != nil {
		sc.t.Fatal(err)
	}
}

// enter types something.
func (sc *screen) enter(text string) {
	sc.t.Helper()
	if _, err := sc.master.WriteString(text); err != nil {
		sc.t.Fatal(err)
	}
}

// expect waits until a text is shown, after all that was expected before, and
// gives what was shown up to it.
func (sc *screen) expect(text string) string {
	sc.t.Helper()
	for until := time.Now().Add(5 * time.Minute); ; time.Sleep(5 * time.Millisecond) {
		over := false
		select {
		case <-sc.ended:
			over = true
		default:
		}
		sc.mu.Lock()
		rest := string(sc.shown[sc.seen:])
		i := strings.Index(rest, text)
		if i >= 0 {
			sc.seen += i + len(text)
		}
		sc.mu.Unlock()
		switch {
		case i >= 0:
			return rest[:i]
		case over:
			sc.t.Fatalf("it ended, and %q was never shown after\n%s", text, rest)
		case time.Now().After(until):
			sc.t.Fatalf("%q is not shown after\n%s", text, rest)
		}
	}
}

// ask types a line for the shell that shows its prompt, and gives what it prints.
// The next prompt is there then: what is typed before may be taken for something
// else, as the shell sets the terminal up only with it.
func (sc *screen) ask(line string) string {
	sc.t.Helper()
	sc.enter(line + "; echo e''nd\r")
	got := sc.expect("\r\nend\r\n")
	_, got, _ = strings.Cut(got, "\r\n") // the line itself
	sc.expect("# ")
	return strings.NewReplacer("\r\n", "\n", "\x1b[?2004l\r", "").Replace(got) // bash brackets what is pasted
}

// status waits for the program's end.
func (sc *screen) status() int {
	sc.t.Helper()
	select {
	case <-sc.ended:
	case <-time.After(5 * time.Minute):
		sc.t.Fatalf("it does not end:\n%s", sc.text())
	}
	return sc.cmd.ProcessState.ExitCode()
}

func (sc *screen) text() string {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	return string(sc.shown)
}

// cooked reports whether the terminal is as terminals are at first: with lines,
// and with keys that are signals.
func (sc *screen) cooked() bool {
	t, err := unix.IoctlGetTermios(int(sc.master.Fd()), unix.TCGETS)
	return err == nil && t.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) == unix.ICANON|unix.ECHO|unix.ISIG && t.Oflag&unix.OPOST != 0
}

// exitCode is how a program ended that run has run.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

// screenOf is what a verb shows on a terminal over SSH, and its status.
func (s *server) screenOf(t testing.TB, words ...string) (string, int) {
	t.Helper()
	sc := s.onScreen(t, 80, 25, s.sshArgs("alice", append([]string{"-tt", "127.0.0.1"}, words...)...)...)
	code := sc.status()
	return strings.TrimSpace(sc.text()), code
}
