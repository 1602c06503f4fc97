package sshd

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

// receiving reports whether a git receive-pack runs below this process.
func receiving(t *testing.T) bool {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range stats {
		stat, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		text := string(stat)
		rest := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		if rest[1] == strconv.Itoa(os.Getpid()) && rest[0] != "Z" && strings.Contains(text, "(git") {
			return true
		}
	}
	return false
}

// A client that has nothing to push says so, which ends receive-pack, and then sends
// its push options all the same: as git does. It must not find the session closed,
// or git dies of a broken pipe.
func TestPusherIsHeardOut(t *testing.T) {
	was := hearOutTime
	hearOutTime = time.Hour
	t.Cleanup(func() { hearOutTime = was })
	f := newFarm(t, nil)
	se, err := f.dial(f.person("alice", quarry.RoleMaintainer)).NewSession()
	if err != nil {
		t.Fatal(err)
	}
	in, err := se.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	pipe, err := se.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := se.Start("git-receive-pack '/hello.git'"); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(pipe)
	for {
		var head [4]byte
		if _, err := io.ReadFull(out, head[:]); err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseUint(string(head[:]), 16, 16)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		if _, err := out.Discard(int(n) - 4); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.WriteString(in, "0000"); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- se.Wait() }()
	eventually(t, "the end of git receive-pack", func() bool { return !receiving(t) })
	for range 3 {
		if _, err := io.WriteString(in, "0013channel=testing0000"); err != nil {
			t.Fatalf("the session is over before the client has said all: %v", err)
		}
		select {
		case err := <-ended:
			t.Fatalf("the session is over before the client has said all: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	if err := in.Close(); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if err := within(t, "the end of the session", ended); err != nil {
		t.Error(err)
	}
}
