package notify

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/testmail"
	"github.com/Morphux/quarry/internal/testport"
)

// TestServerAway kills the mail server and the notifier in the middle of letters,
// again and again. In the end everybody has every letter, and a letter that came
// twice has one Message-ID.
func TestServerAway(t *testing.T) {
	server := testmail.New(t)
	f := newFarm(t)
	f.mail(server)
	f.start()
	const letters = 40
	want := map[string]bool{}
	for i := range letters {
		f.end(fmt.Sprintf("alice p%d 1.0 x86_64", i), broken)
		want[fmt.Sprintf("[quarry] p%d 1.0 fails on x86_64: missing header zconf.h", i)] = true
		switch i {
		case 5: // nobody listens yet
			f.until("letters wait", func() bool { return len(f.notifier.Status().Letters) > 0 })
			f.stop()
			f.start()
			server.Start(t)
		case 15, 25, 35:
			// At any moment: while nothing is sent, or in the middle of a letter.
			time.Sleep(rand.N(30 * time.Millisecond))
			server.Kill()
		case 20, 30:
			f.stop()
			f.start()
			server.Start(t)
		}
	}
	f.stop()
	server.Start(t)
	f.start()
	f.caughtUp()
	ids := map[string]string{}
	f.until("all are delivered", func() bool {
		clear(ids)
		for _, l := range server.Letters(t) {
			if id, again := ids[l.Subject()]; again && id != l.ID() {
				t.Fatalf("%q came as %s and as %s", l.Subject(), id, l.ID())
			}
			ids[l.Subject()] = l.ID()
		}
		return len(ids) >= letters
	})
	for s := range want {
		if ids[s] == "" {
			t.Errorf("%q is lost", s)
		}
	}
	if len(ids) != letters {
		t.Errorf("%d letters were written of %d failures", len(ids), letters)
	}
}

// TestOnceAgain: a notifier that is killed after a letter is on the disk, and
// before that is noted, writes the same letter and no other.
func TestOnceAgain(t *testing.T) {
	server := testmail.New(t)
	f := newFarm(t)
	f.mail(server)
	f.start()
	f.end("alice zlib 1.3 x86_64", broken)
	f.until("a letter waits", func() bool { return len(f.notifier.Status().Letters) == 1 })
	id := f.notifier.Status().Letters[0].ID
	f.stop()
	// As it was before the letter was noted.
	s, err := loadState(f.opts.Dir)
	if err != nil {
		t.Fatal(err)
	}
	var kept *batch
	for _, l := range f.notifier.Status().Letters {
		kept = &batch{Cause: Cause{Kind: ByPush, Channel: l.Channel, Package: l.Package, Version: l.Version, Source: strings.Repeat("a", 40)}, N: f.events.Last(),
			Items: []item{{Kind: Fails, Build: Build{Target: quarry.Target{Channel: l.Channel, Package: l.Package, Version: l.Version, Arch: l.Arch},
				Number: l.Build, Status: quarry.Failed, Source: strings.Repeat("a", 40), Packager: quarry.Packager{User: "alice"}}}}}
	}
	s.Told, s.Batches = map[string][]Told{}, []*batch{kept}
	if err := s.save(f.opts.Dir); err != nil {
		t.Fatal(err)
	}
	f.start()
	// What was sent before it is written again comes twice, as it must be able to.
	f.until("it is written again", func() bool { s := f.notifier.Status(); return s.Event >= f.events.Last() && s.Gathered == 0 })
	server.Start(t)
	f.caughtUp()
	list := server.Wait(t, 1)
	if len(list) != 1 || list[0].ID() != "<"+id+">" {
		t.Errorf("%d letters came, the first as %s, want one as %s", len(list), list[0].ID(), id)
	}
}

// TestRefused: what the server will never take is given up visibly, what it does
// not take now is tried again, and neither keeps others from being sent.
func TestRefused(t *testing.T) {
	server := testmail.New(t)
	server.Start(t)
	f := newFarm(t)
	f.mail(server)
	f.people = append(f.people, Person{User: "gone", Email: "nobody@example.org"}, Person{User: "late", Email: "later@example.org"})
	f.start()
	f.end("gone a 1.0 x86_64", broken)
	f.end("late b 1.0 x86_64", broken)
	f.end("alice c 1.0 x86_64", broken)
	server.Wait(t, 1)
	letters := map[string]Letter{}
	f.until("one is given up, the other tried again", func() bool {
		for _, l := range f.notifier.Status().Letters {
			letters[l.User] = l
		}
		return !letters["gone"].GivenUp.IsZero() && letters["late"].Tries >= 2
	})
	if l := letters["gone"]; l.Tries != 1 || !strings.Contains(l.Error, "there is no such person") {
		t.Errorf("the one that was given up: %+v", l)
	}
	if l := letters["late"]; !l.GivenUp.IsZero() || !strings.Contains(l.Error, "come again") {
		t.Errorf("the one that is tried again: %+v", l)
	}
	problems := strings.Join(f.notifier.Problems(), "\n")
	if !strings.Contains(problems, "1 letter could not be delivered, the last one to gone") {
		t.Errorf("problems are %q", problems)
	}
	// It outlives a restart, and the address can be mended.
	f.stop()
	f.mu.Lock()
	for i := range f.people {
		if u := f.people[i].User; u == "gone" || u == "late" {
			f.people[i].Email = u + "@example.org"
		}
	}
	f.mu.Unlock()
	f.start()
	if _, err := f.notifier.Retry(); err != nil {
		t.Fatal(err)
	}
	f.caughtUp()
	wantLetters(t, server.Wait(t, 3), "gone@example.org: [quarry] a 1.0 fails on x86_64: missing header zconf.h",
		"late@example.org: [quarry] b 1.0 fails on x86_64: missing header zconf.h", "alice@example.org: [quarry] c 1.0 fails on x86_64: missing header zconf.h")
	if p := f.notifier.Problems(); len(p) > 0 {
		t.Errorf("problems are left: %q", p)
	}
}

// TestGiveUp: after its time a letter is not tried any more.
func TestGiveUp(t *testing.T) {
	server := testmail.New(t) // it is never started
	f := newFarm(t)
	f.mail(server)
	f.opts.GiveUp = time.Millisecond
	f.start()
	f.end("alice zlib 1.3 x86_64", broken)
	f.until("the letter is given up", func() bool {
		list := f.notifier.Status().Letters
		return len(list) == 1 && !list[0].GivenUp.IsZero()
	})
	if p := strings.Join(f.notifier.Problems(), "\n"); !strings.Contains(p, "connection refused") {
		t.Errorf("problems are %q", p)
	}
	if n := f.notifier.Drop(); n != 1 || len(f.notifier.Status().Letters) != 0 {
		t.Errorf("%d letters were dropped", n)
	}
	files, _ := os.ReadDir(filepath.Join(f.opts.Dir, "mail"))
	if len(files) != 0 {
		t.Errorf("there is still %v", files)
	}
}

// TestMailOfNobody: who has left, or has no address, or wants no mail by the time
// that a letter is sent, gets none; and nobody else does.
func TestMailOfNobody(t *testing.T) {
	server := testmail.New(t)
	f := newFarm(t)
	f.mail(server)
	f.start()
	f.end("alice zlib 1.3 x86_64", broken)
	f.end("bob ed 1.0 x86_64", broken)
	f.end("carol vi 1.0 x86_64", broken)
	f.until("letters wait", func() bool { return len(f.notifier.Status().Letters) == 3 })
	f.mu.Lock()
	f.people = []Person{{User: "bob", Mail: "none", Email: "bob@example.org"}, {User: "carol"}} // carol's is in the record
	f.mu.Unlock()
	server.Start(t)
	f.caughtUp()
	wantLetters(t, server.Wait(t, 1), "carol@example.org: [quarry] vi 1.0 fails on x86_64: missing header zconf.h")
}

// TestWays: each way to reach a server, and what is wrong where it does not go.
func TestWays(t *testing.T) {
	server := testmail.New(t)
	server.Start(t)
	f := newFarm(t)
	f.mail(server)
	other := filepath.Join(f.dir, "other")
	if err := os.WriteFile(other, []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for _, c := range []struct {
		name   string
		change func(*Mail)
		want   string
	}{
		{"STARTTLS", func(*Mail) {}, ""},
		{"TLS", func(m *Mail) { m.Server, m.TLS = server.Implicit, "implicit" }, ""},
		{"nothing", func(m *Mail) { m.TLS, m.User = "none", "" }, ""}, // it is only reached
		{"wrong password", func(m *Mail) { m.PasswordFile = other }, "535"},
		{"no password", func(m *Mail) { m.PasswordFile = filepath.Join(f.dir, "none") }, "no such file"},
		{"unknown certificate", func(m *Mail) { m.CA = "" }, "certificate"},
		{"no TLS there", func(m *Mail) { m.TLS = "implicit" }, "TLS"},
		{"no server", func(m *Mail) { m.Server = fmt.Sprintf("127.0.0.1:%d", testport.Free(t, 1)[0]) }, "refused"},
		{"a server that says nothing", func(m *Mail) { m.Server, m.Timeout = silent.Addr().String(), 200*time.Millisecond }, "timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := *f.opts.Mail
			c.change(&m)
			err := m.Check(t.Context())
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want one with %q", err, c.want)
			}
		})
	}
}

// TestTest sends the letter of notify test.
func TestTest(t *testing.T) {
	server := testmail.New(t)
	server.Start(t)
	f := newFarm(t)
	f.mail(server)
	f.start()
	for _, to := range []string{"alice", "BOB@example.org"} {
		if _, err := f.notifier.Test(t.Context(), to, "carol"); err != nil {
			t.Error(err)
		}
	}
	for to, want := range map[string]string{"eve": "nobody known here", "eve@example.org": "nobody known here", "": "nobody known here"} {
		if _, err := f.notifier.Test(t.Context(), to, "carol"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a test for %q: %v", to, err)
		}
	}
	wantLetters(t, server.Wait(t, 2), "alice@example.org: [quarry] a test of the farm's mail", "bob@example.org: [quarry] a test of the farm's mail")
}

// TestHostile: what a build prints and what people are called cannot become
// another header, another part, or anything that a terminal obeys.
func TestHostile(t *testing.T) {
	server := testmail.New(t)
	server.Start(t)
	f := newFarm(t)
	f.mail(server)
	f.people[0].Name = "Eve\r\nBcc: victim@example.org\r\n\r\n<script>"
	evil := "\x1b]0;owned\x07\x1b[31m\r\nBcc: victim@example.org\r\n\r\n.\r\nMAIL FROM:<x@y>\r\n\u202egnp.exe \xff\xfe <script>alert(1)</script>"
	f.start()
	f.end("alice zlib 1.3 x86_64", func(o *quarry.Outcome) {
		broken(o)
		o.Failure.Error, o.Failure.Message, o.Failure.Hint, o.Failure.Reproduce, o.Failure.Class = evil, evil, evil, evil, ""
		o.Failure.Excerpt = []string{evil, ".", "From me", strings.Repeat("x", 5000)}
	})
	list := server.Wait(t, 1)
	f.caughtUp()
	if len(server.Letters(t)) != 1 {
		t.Fatalf("letters are %q", subjects(server.Letters(t)))
	}
	l := list[0]
	t.Logf("the letter:\n%s", l.Raw)
	if l.To != "alice@example.org" || l.Header.Get("Bcc") != "" || !strings.HasPrefix(l.Header.Get("Content-Type"), "text/plain") {
		t.Errorf("headers are %v", l.Header)
	}
	if i := strings.IndexFunc(l.Body+l.Subject()+l.Header.Get("To"), func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\u202e' }); i >= 0 {
		t.Errorf("there is a control character at %d in %q", i, l.Body)
	}
	for line := range strings.Lines(l.Body) {
		if len(line) > 1000 {
			t.Errorf("a line has %d bytes", len(line))
		}
	}
}
