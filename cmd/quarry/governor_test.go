package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry/buildcontrol"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/testport"
	"github.com/Morphux/quarry/internal/testtools"
)

// TestJobsDoors: who has the token in the state folder steers builds by the
// protocol, as the verbs do, and limits are told as events, their end too.
func TestJobsDoors(t *testing.T) {
	s := newServer(t, t.TempDir())
	addr := fmt.Sprintf("127.0.0.1:%d", testport.Free(t, 1)[0])
	s.writeConfig(t, fmt.Sprintf("[jobs]\ntotal = 4\nothers = false\nmemory_stall = 0\nlisten = %q\n", addr))
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"jobs.sock", "jobs.token"} {
		info, err := os.Stat(s.state(name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v: others can use it", name, info.Mode())
		}
	}
	token, err := os.ReadFile(s.state("jobs.token"))
	if err != nil {
		t.Fatal(err)
	}

	if err := s.push(tiny(t, "tiny", "1.0", 1_000_000), "tiny", "1.0"); err != nil {
		t.Fatal(err)
	}
	look := func() (st control.JobsStatus) {
		t.Helper()
		if err := json.Unmarshal([]byte(s.quarry(t, "jobs", "--json")), &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	testtools.Until(t, func() string {
		if st := look(); len(st.Builds) != 1 || st.Builds[0].Step != "make" || st.Builds[0].Granted != 4 {
			return fmt.Sprintf("the build has not all slots: %+v", st.Builds)
		}
		return ""
	})

	// A control connection, over the network.
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(conn)
	say := func(line string) string {
		t.Helper()
		fmt.Fprintf(conn, "%s\r\n", line)
		if !lines.Scan() {
			t.Fatalf("%q has no answer: %v", line, lines.Err())
		}
		return lines.Text()
	}
	fmt.Fprint(conn, string(token))
	fmt.Fprint(conn, "1:2\r\n") // the build's, as there is no other
	others := say("new")
	number, _, _ := strings.Cut(others, "-")
	if st := look(); st.Builds[0].Granted != 2 || st.Builds[0].Hand != 2 || st.Builds[0].By != "build control" {
		t.Errorf("by the protocol it was given 2 jobs, and has %+v", st.Builds[0])
	}
	fmt.Fprint(conn, "1:0\r\n")
	if got := say("99:1"); got != "99: no such builder" {
		t.Errorf("%q", got)
	}
	if st := look(); st.Builds[0].Granted != 1 {
		t.Errorf("a build that runs has no less than one job: %+v", st.Builds[0])
	}
	s.quarry(t, "jobs", "set", "1", "auto")
	if st := look(); st.Builds[0].Granted != 4 || st.Builds[0].Hand != 0 {
		t.Errorf("left to the farm it has %+v", st.Builds[0])
	}

	// Tokens that are made so are for build programs of others.
	fmt.Fprintf(conn, "%s:3000\r\n", number)
	say("99:1")
	client, err := buildcontrol.Dial(t.Context(), s.state("jobs.sock"), others)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if n := <-client.Jobs(); n != 4 {
		t.Errorf("a client is told %d jobs, and 4 are all that there are", n)
	}
	guess, err := buildcontrol.Dial(t.Context(), s.state("jobs.sock"), "0-"+strings.Repeat("0", 24))
	if err == nil {
		if _, ok := <-guess.Jobs(); ok {
			t.Error("a token that was guessed lets in")
		}
		guess.Close()
	}

	s.quarry(t, "jobs", "limit", "1", "--for", "10s")
	testtools.Until(t, func() string {
		out := s.quarry(t, "events", "--since", "0", "--kind", "jobs.*")
		first, then, ok := strings.Cut(out, "builds may take 1 of 4 slots: by hand: local, until")
		if !ok || strings.Contains(first, "builds may") || !strings.Contains(then, "builds may take all 4 slots again") {
			return "events tell\n" + out
		}
		return ""
	})
	if out, _, err := s.run("", "curl", "-fsS", s.base()+"/metrics"); err != nil || !strings.Contains(out, "quarry_jobs_limit 4\n") {
		t.Errorf("%v\n%s", err, out)
	}
	s.quarry(t, "cancel", "1")
}
