package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/internal/testmail"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/notify"
)

// TestNotify: a packager's letters, from a push that fails to its end, and those
// of a change that breaks another's package; with the real daemon and a real mail
// server, both of which are killed on the way.
func TestNotify(t *testing.T) {
	mail := testmail.New(t)
	var mu sync.Mutex
	var told []string
	hook := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var d struct {
			Type string
			Data struct{ Package string }
		}
		body, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(body, &d); err != nil || r.Header.Get("webhook-signature") == "" {
			t.Errorf("a delivery says %s", body)
		}
		mu.Lock()
		told = append(told, d.Type+" "+d.Data.Package)
		mu.Unlock()
	})}
	hooks := listen(t)
	go hook.Serve(hooks)
	t.Cleanup(func() { hook.Close() })

	s := newServer(t, t.TempDir())
	for name, text := range map[string]string{"mail.secret": testmail.Password, "hook.secret": "something long and secret"} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.writeConfig(t, fmt.Sprintf(`[mail]
server = %q
ca = %q
user = %q
password_file = "mail.secret"
from = "Quarry <quarry@example.org>"
settle = "2s"
[[webhook]]
url = "http://%s/"
secret_file = "hook.secret"
events = ["build.failed", "build.succeeded"]
`, mail.Addr, mail.CA, testmail.User, hooks.Addr()))
	s.must(t, s.bin, "-c", s.config, "key", "add", "bob", bobsKey(t, s), "--name", "Bob", "--email", "bob@example.org")
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.stop(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("daemon's log:\n%s", s.logText())
		}
	})

	// It fails while the mail server is away, and the daemon is killed meanwhile.
	dir := testpkg.Init(t, "broken")
	s.run(dir, "git", "push", "-o", "follow", s.url("broken"), "HEAD:broken-1.0")
	s.until(t, "a letter waits", func() bool {
		return strings.Contains(s.quarry(t, "notify"), "broken 1.0 fails")
	})
	if err := s.stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	mail.Start(t)
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	first := mail.Wait(t, 1)[0]
	t.Logf("the first letter:\n%s\n\n%s", first.Subject(), first.Body)
	if first.To != "alice@example.org" || !strings.HasPrefix(first.Subject(), "[quarry] broken 1.0 fails on "+config.HostArch()+": expected") {
		t.Errorf("the first letter is to %s: %s", first.To, first.Subject())
	}
	if !strings.Contains(first.Body, `puts("this line lacks its end")`) || !strings.Contains(first.Body, "git clone -b broken-1.0") {
		t.Errorf("the first letter lacks the excerpt, or how to see it again:\n%s", first.Body)
	}
	// What it says about the log is true.
	link := regexp.MustCompile(`http://\S+/builds/\d+#L\d+`).FindString(first.Body)
	answer, err := http.Get(link)
	if err != nil {
		t.Fatal(err)
	}
	page, _ := io.ReadAll(answer.Body)
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK || !strings.Contains(string(page), "broken") {
		t.Errorf("the link %s answers %s:\n%s", link, answer.Status, page)
	}
	command := regexp.MustCompile(`ssh -p \d+ 127\.0\.0\.1 log \d+`).FindString(first.Body)
	words := strings.Fields(command)
	if len(words) < 2 {
		t.Fatalf("the letter names no command:\n%s", first.Body)
	}
	ssh, _, _ := strings.Cut(lookup(s.env, "SSH"), " 127.0.0.1")
	if log := s.must(t, "sh", "-c", ssh+" "+strings.Join(words[3:], " ")); !strings.Contains(log, "this line lacks its end") {
		t.Errorf("%s prints\n%s", command, log)
	}

	// It is mended.
	source := filepath.Join(dir, "srcs", "broken.c")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(source, []byte(strings.Replace(string(text), `end")`, `end");`, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	testpkg.Git(t, dir, "commit", "-q", "-a", "-m", "End the line")
	s.mustIn(t, dir, "git", "push", "-o", "follow", s.url("broken"), "HEAD:broken-1.0")
	list := mail.Wait(t, 2)
	i := slices.IndexFunc(list, func(l testmail.Letter) bool { return l.Header.Get("In-Reply-To") == first.ID() })
	if i < 0 || list[i].Subject() != "[quarry] broken 1.0 builds again on "+config.HostArch() || list[i].To != "alice@example.org" {
		t.Fatalf("the other letter is none that answers the first: %+v", list)
	}
	t.Logf("the second letter:\n%s\n\n%s", list[i].Subject(), list[i].Body)

	// Alice changes her library, and what Bob builds with it fails.
	lib := testpkg.Init(t, "libgreet")
	s.mustIn(t, lib, "git", "push", "-o", "follow", s.url("libgreet"), "HEAD:libgreet-1.0")
	s.as("bob")
	s.mustIn(t, testpkg.Init(t, "greeter"), "git", "push", "-o", "follow", s.url("greeter"), "HEAD:greeter-1.0")
	s.as("alice")
	s.mustIn(t, lib, "sed", "-i", "s/int greet(/int greetings(/", "srcs/greet.h", "srcs/greet.c")
	testpkg.Git(t, lib, "commit", "-q", "-a", "-m", "Rename what it does")
	s.mustIn(t, lib, "git", "push", "-f", "-o", "follow", s.url("libgreet"), "HEAD:libgreet-1.0")
	list = mail.Wait(t, 4)
	by := map[string]testmail.Letter{}
	for _, l := range list {
		if l.Header.Get("X-Quarry-Kind") == string(notify.Breaks) {
			by[l.To] = l
			t.Logf("a letter to %s:\n%s\n\n%s", l.To, l.Subject(), l.Body)
		}
	}
	if got := by["alice@example.org"].Subject(); got != "[quarry] libgreet 1.0 broke 1 package: greeter 1.0" {
		t.Errorf("alice is told: %s", got)
	}
	if got := by["bob@example.org"].Subject(); !strings.HasPrefix(got, "[quarry] greeter 1.0 fails on "+config.HostArch()+" since libgreet 1.0: ") {
		t.Errorf("bob is told: %s", got)
	}
	if got := by["bob@example.org"].Body; !strings.Contains(got, "Changed since the last success (build 4") || !strings.Contains(got, "libgreet 1.0") {
		t.Errorf("bob is not told what has changed:\n%s", got)
	}
	if len(list) != 4 {
		t.Errorf("%d letters were sent", len(list))
	}

	// The verb, and what webhooks have heard.
	s.until(t, "the mail server's answers are noted", func() bool {
		out := s.quarry(t, "notify")
		return strings.Contains(out, "all letters have been sent") && strings.Contains(out, "127.0.0.1")
	})
	if out := s.quarry(t, "notify", "test", "bob"); out != "the mail server has taken a letter to bob@example.org\n" {
		t.Errorf("notify test says\n%s", out)
	}
	mail.Wait(t, 5)
	if _, errOut, err := s.run("", s.bin, "-c", s.config, "notify", "test", "victim@example.org"); exitCode(err) != 3 || !strings.Contains(errOut, "nobody known here") {
		t.Errorf("a letter to nobody: %v, %s", err, errOut)
	}
	want := []string{"build.failed broken", "build.succeeded broken", "build.succeeded libgreet", "build.succeeded greeter", "build.succeeded libgreet", "build.failed greeter"}
	s.until(t, "the webhook is told", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return slices.Equal(slices.Compact(slices.Clone(told)), want)
	})
	if out := s.quarry(t, "doctor", "mail"); !strings.Contains(out, "takes mail from here") {
		t.Errorf("doctor says\n%s", out)
	}
	if _, errOut, err := s.run("", "sh", "-c", lookup(s.env, "SSH")+" notify"); exitCode(err) != 4 {
		t.Errorf("a maintainer asks for the letters: %v, %s", err, errOut)
	}

	// A letter that nobody takes is trouble that everybody sees.
	s.must(t, s.bin, "-c", s.config, "key", "add", "bob", "--email", "nobody@example.org")
	s.as("bob")
	s.run(testpkg.Init(t, "escaper"), "git", "push", "-o", "follow", s.url("escaper"), "HEAD:escaper-1.0")
	s.until(t, "the status says that a letter is given up", func() bool {
		return strings.Contains(s.quarry(t, "status"), "problem: 1 letter could not be delivered, the last one to bob")
	})
	s.until(t, "the events tell of it", func() bool {
		return strings.Contains(s.quarry(t, "events", "--since", "0"), "a letter to bob was given up")
	})
	var left notify.Status
	if err := json.Unmarshal([]byte(s.quarry(t, "notify", "--json")), &left); err != nil || len(left.Letters) != 1 || left.Letters[0].GivenUp.IsZero() {
		t.Errorf("notify --json says %+v (%v)", left, err)
	}
	if out := s.quarry(t, "notify", "drop"); out != "1 dropped\n" {
		t.Errorf("notify drop says %s", out)
	}
}

// bobsKey makes a key for bob.
func bobsKey(t testing.TB, s *server) string {
	t.Helper()
	s.must(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bob", "-f", filepath.Join(s.dir, "bob"))
	return filepath.Join(s.dir, "bob.pub")
}

// listen opens a free port.
func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// until waits for something to come true.
func (s *server) until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in five minutes it did not come to this: %s\n--- daemon:\n%s", what, s.logText())
		}
	}
}

// lookup finds the last value of a variable.
func lookup(env []string, name string) (value string) {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			value = v
		}
	}
	return value
}
