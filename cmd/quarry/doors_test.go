package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/internal/words"
	"github.com/Morphux/quarry/protocol"
	"github.com/spf13/pflag"
)

// answer is what a verb has said.
type answer struct {
	exit     int
	out, err string
}

// doors are the ways to call a verb. Each gives the same answers.
var doors = []struct {
	name string
	call func(t testing.TB, s *server, token, in string, argv []string) answer
}{
	{"socket", func(t testing.TB, s *server, _, in string, argv []string) (a answer) {
		var out, errOut bytes.Buffer
		client := control.Client{Socket: s.state("quarry.sock")}
		if in != "" {
			client.In = strings.NewReader(in)
		}
		exit, err := client.Call(t.Context(), argv, control.Terminal{}, &out, &errOut)
		if err != nil {
			t.Errorf("socket: %q: %v", argv, err)
		}
		return answer{exit, out.String(), errOut.String()}
	}},
	{"ssh", func(t testing.TB, s *server, _, in string, argv []string) answer {
		return s.answer(t, in, "sh", "-c", `exec $SSH "$0"`, words.Quote(argv))
	}},
	{"text", func(t testing.TB, s *server, token, in string, argv []string) (a answer) {
		var out, errOut bytes.Buffer
		client, err := protocol.Dial(t.Context(), s.textURL(), token, protocol.Terminal{})
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		exit, err := client.Do(t.Context(), protocol.Call{Words: argv, ID: protocol.NewID(), In: strings.NewReader(in), Out: &out, Err: &errOut})
		if err != nil {
			t.Errorf("text: %q: %v", argv, err)
		}
		return answer{exit, out.String(), errOut.String()}
	}},
	{"REST", func(t testing.TB, s *server, token, in string, argv []string) answer {
		return s.callREST(t, token, in, argv)
	}},
	{"command line", func(t testing.TB, s *server, _, in string, argv []string) answer {
		return s.answer(t, in, s.bin, append([]string{"-c", s.config}, argv...)...)
	}},
	{"command line far away", func(t testing.TB, s *server, token, in string, argv []string) answer {
		s.setenv("QUARRY_TOKEN", token)
		return s.answer(t, in, s.bin, append([]string{"--farm", s.textURL()}, argv...)...)
	}},
}

// callREST calls a verb over HTTP, and gives its answer as a terminal would have it.
func (s *server) callREST(t testing.TB, token, in string, argv []string) answer {
	t.Helper()
	v, rest := control.Verbs(nil).Find(argv...)
	flags := v.NewFlags()
	if err := flags.Parse(rest); err != nil {
		t.Fatal(err)
	}
	q := url.Values{"arg": flags.Args()}
	flags.Visit(func(f *pflag.Flag) { q.Set(f.Name, f.Value.String()) })
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.base()+"/api/v1/verbs/"+strings.ReplaceAll(v.Name, " ", "/")+"?"+q.Encode(), strings.NewReader(in))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", "text/plain")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	exit, err := strconv.Atoi(cmp.Or(resp.Header.Get("Quarry-Exit"), resp.Trailer.Get("Quarry-Exit")))
	if err != nil {
		t.Errorf("REST: %q: no exit code: %s", argv, data)
	}
	if resp.StatusCode == http.StatusOK {
		return answer{exit, string(data), ""}
	}
	var problem struct{ Detail string }
	if err := json.Unmarshal(data, &problem); err != nil {
		t.Errorf("REST: %q: %v: %s", argv, err, data)
	}
	return answer{exit, "", "quarry: " + problem.Detail + "\n"}
}

// textURL is where the server's text protocol is.
func (s *server) textURL() string { return fmt.Sprintf("tcp://127.0.0.1:%d", s.text) }

// answer runs a program to its end, however that is.
func (s *server) answer(t testing.TB, in, name string, args ...string) answer {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Env, cmd.Stdin = s.env, strings.NewReader(in)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return answer{cmd.ProcessState.ExitCode(), out.String(), errOut.String()}
}

// TestDoors asks the same through each door.
func TestDoors(t *testing.T) {
	s := newServer(t, t.TempDir())
	// Nothing changes between two doors: no plan is made, no workspace gets ready.
	s.writeConfig(t, "[queue]\nreplan = \"30d\"\n[pool]\nmax = -1\n")
	s.quarry(t, "key", "add", "alice", "--role", "admin")
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer s.stop(syscall.SIGTERM)
	token := s.token(t, "alice")
	s.quarry(t, "pause", "nothing", "is", "built", "here")
	if err := s.push(tiny(t, "tiny", "1.0", 0), "tiny", "1.0"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, s, "what was pushed is planned", func(st statusOut) bool {
		return !st.Queue.Planned.IsZero() && len(st.Live) == 1 && st.Live[0].State == quarry.Queued && len(st.Queue.Paused) == 1
	})
	plan := `{"quarry_plan": 1, "jobs": [{"name": "a", "arch": "x86_64", "seconds": 10}, {"name": "b", "arch": "x86_64", "seconds": 5, "needs": ["a"]}]}`
	for _, tt := range []struct {
		words, in string
		exit      int
		has       string
	}{
		{"status 1 --json", "", 0, `"number": 1`}, {"status tiny --json", "", 0, "[\n"}, {"status 17", "", control.ExitNotFound, "no such build"},
		{"status tiny-1.0 --json", "", 0, "tiny"}, {"status --blocked --json", "", 0, "["}, {"log 1", "", control.ExitNotFound, "has not begun"}, {"log -n -1 1", "", control.ExitUsage, "negative"},
		{"graph tiny", "", 0, "tiny"}, {"graph tiny --format dot", "", 0, "digraph"}, {"graph tiny --format svg", "", 0, "<svg"}, {"plan", "", 0, "tiny"},
		{"plan --simulate --order path --file - --json", plan, 0, "makespan"}, {"plan --simulate --file - --json", "{}", control.ExitError, "quarry: "},
		{"images list --json", "", 0, "bases"}, {"images show x86_64:none", "", control.ExitNotFound, "quarry: "},
		{"group list", "", 0, ""}, {"group submit none", "", control.ExitNotFound, "none"}, {"cancel none", "", control.ExitUsage, "is no number"},
		{"rebuild 'a b'", "", control.ExitUsage, "NAME-VERSION"}, {"token list alice --json", "", 0, `"user": "alice"`},
		{"pause again --json", "", 0, "again"},
	} {
		argv, err := words.Split(tt.words)
		if err != nil {
			t.Fatal(err)
		}
		var first answer
		for i, d := range doors {
			a := d.call(t, s, token, tt.in, argv)
			// When a pause began and a token was used are times that go on.
			a.out = regexp.MustCompile(`"(since|used)": ".*"`).ReplaceAllString(a.out, "")
			a.out = regexp.MustCompile(`"by": "(alice|local)"`).ReplaceAllString(a.out, "")
			if i == 0 {
				first = a
				if a.exit != tt.exit || !strings.Contains(a.out+a.err, tt.has) {
					t.Errorf("%s: %+v: want exit %d and something of %q", tt.words, a, tt.exit, tt.has)
				}
			}
			if a != first {
				t.Errorf("%s: through %s:\n%+v\nand through %s:\n%+v", tt.words, d.name, a, doors[0].name, first)
			}
		}
	}
}

// TestTextTranscripts replays what doc/protocol.md shows, byte for byte.
func TestTextTranscripts(t *testing.T) {
	s := newServer(t, t.TempDir())
	s.quarry(t, "key", "add", "alice", "--package", "zlib", "--package", "lib*")
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer s.stop(syscall.SIGTERM)
	token := s.token(t, "alice")
	version := strings.Fields(s.must(t, s.bin, "--version"))
	doc, err := os.ReadFile(filepath.Join(testpkg.Root(t), "doc", "protocol.md"))
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```transcript (tcp|unix)\n(.*?)```").FindAllStringSubmatch(string(doc), -1)
	if len(blocks) != 2 {
		t.Fatalf("doc/protocol.md has %d transcripts", len(blocks))
	}
	for _, b := range blocks {
		addr := s.state("quarry.text")
		if b[1] == "tcp" {
			addr = strings.TrimPrefix(s.textURL(), "tcp://")
		}
		c, r := dialText(t, b[1], addr)
		for line := range strings.Lines(b[2]) {
			who, text := line[:2], strings.TrimPrefix(strings.TrimSuffix(line[2:], "\n"), " ")
			switch who {
			case "C:":
				fmt.Fprintf(c, "%s\n", strings.Replace(text, "AUTH TOKEN", "AUTH "+token, 1))
			case "S:":
				text = strings.Replace(text, "quarry VERSION", "quarry "+version[len(version)-1], 1)
				text = strings.Replace(text, "token ID", "token "+strings.Split(token, "_")[1], 1)
				if got, err := r.ReadString('\n'); err != nil || got != text+"\n" {
					t.Fatalf("the document has %q, and the server says %q, %v", text, got, err)
				}
			default:
				t.Fatalf("doc/protocol.md has the line %q", line)
			}
		}
		if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
			t.Errorf("after the transcript the server says %q, %v", rest, err)
		}
	}
}

func dialText(t testing.TB, network, addr string) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(5 * time.Minute))
	return c, bufio.NewReader(c)
}

// TestTextKilled kills the farm in the middle of what was asked under request ids,
// and a token on an open connection.
func TestTextKilled(t *testing.T) {
	s := newServer(t, t.TempDir())
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer func() { s.stop(syscall.SIGTERM) }()
	token := s.token(t, "alice")
	s.quarry(t, "pause")
	if err := s.push(tiny(t, "tiny", "1.0", 0), "tiny", "1.0"); err != nil {
		t.Fatal(err)
	}
	connect := func() (net.Conn, func(want string) string) {
		c, r := dialText(t, "tcp", strings.TrimPrefix(s.textURL(), "tcp://"))
		until := func(want string) string {
			t.Helper()
			all := ""
			for {
				line, err := r.ReadString('\n')
				if all += line; err != nil {
					t.Fatalf("%q did not come: %v, after\n%s", want, err, all)
				}
				if strings.HasPrefix(line, want) {
					return all
				}
			}
		}
		fmt.Fprintf(c, "AUTH %s\n", token)
		until("235 ")
		return c, until
	}
	c, until := connect()
	io.WriteString(c, "@cancel-1 cancel 1\n")
	first := until("250 ")
	if !strings.Contains(first, "cancelled") {
		t.Errorf("cancel says %s", first)
	}
	io.WriteString(c, "@rebuild-1 rebuild tiny-1.0\n")
	until("250 ")
	io.WriteString(c, "@follow-2 log -f 2\n")
	until("210 ")
	if err := s.stop(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	c, until = connect()
	io.WriteString(c, "@cancel-1 cancel 1\n")
	if again := until("250 "); !strings.HasPrefix(again, "141 ") || !strings.HasSuffix(again, first) {
		t.Errorf("cancel says\n%sand was answered with\n%s", again, first)
	}
	io.WriteString(c, "@rebuild-1 rebuild tiny-1.0\n")
	until("141 ")
	if again := until("250 "); !strings.Contains(again, "build 2") {
		t.Errorf("rebuild says %s", again)
	}
	io.WriteString(c, "@follow-2 log -f 2\n")
	until("541 ")
	io.WriteString(c, "@follow-2 log -f 1\n")
	until("540 ")
	if n := len(s.status(t).Live); n != 1 {
		t.Errorf("there are %d builds under way: rebuild was done again", n)
	}
	// A token that is revoked ends with the next line.
	io.WriteString(c, "whoami\n")
	until("250 ")
	s.quarry(t, "token", "revoke", strings.Split(token, "_")[1])
	io.WriteString(c, "whoami\nwhoami\n")
	if said := until("535 "); !strings.HasPrefix(said, "535 token is unknown here") {
		t.Errorf("a revoked token is answered with %s", said)
	}
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes come after that", n)
	}
}

// TestTextTLS reaches a farm whose certificate is of its own making.
func TestTextTLS(t *testing.T) {
	s := newServer(t, t.TempDir())
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	config := strings.NewReplacer("[protocol]\n", "[protocol]\ntls = true\n", "[web]\n", "[web]\ntls = \"self\"\n").Replace(string(text))
	if err := os.WriteFile(s.config, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer s.stop(syscall.SIGTERM)
	s.setenv("QUARRY_TOKEN", s.token(t, "alice"))
	pin := regexp.MustCompile(`text protocol speaks TLS" pin="?(sha256//[^" \n]+)`).FindStringSubmatch(s.wholeLog(t))
	if pin == nil {
		t.Fatalf("the log tells no pin:\n%s", s.logText())
	}
	farm := fmt.Sprintf("tls://localhost:%d", s.text)
	for _, tt := range []struct {
		query string
		exit  int
		says  string
	}{
		{"?pin=" + pin[1], 0, "alice"}, {"?ca=" + s.state("tls", "cert.pem"), 0, "alice"},
		{"", control.ExitUnreachable, "cannot be trusted"}, {"?pin=sha256//AAAA", control.ExitUnreachable, "its key is sha256//"},
	} {
		a := s.answer(t, "", s.bin, "--farm", farm+tt.query, "whoami")
		if a.exit != tt.exit || !strings.Contains(a.out+a.err, tt.says) {
			t.Errorf("%s%s: %+v", farm, tt.query, a)
		}
	}
	if a := s.answer(t, "", s.bin, "--farm", s.textURL(), "whoami"); a.exit != control.ExitUnreachable {
		t.Errorf("without TLS: %+v", a)
	}
}
