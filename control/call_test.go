package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
	"github.com/spf13/pflag"
)

// serveTable serves a table on a socket and gives its path.
func serveTable(t *testing.T, table Table) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, table, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path
}

// Standard input goes through the socket whole, or its reader learns that it
// does not.
func TestInput(t *testing.T) {
	ended := make(chan error, 1)
	table := Table{
		{Name: "take", Need: Anyone, Run: func(_ context.Context, c *Call) error {
			if c.In == nil {
				return usage("no input")
			}
			n, err := io.Copy(io.Discard, c.In)
			ended <- err
			fmt.Fprintln(c.Out, n)
			return err
		}},
		{Name: "ignore", Need: Anyone, Run: func(_ context.Context, c *Call) error { return nil }},
	}
	socket := serveTable(t, table)
	ask := func(in io.Reader, verb string) (string, int, error) {
		var out bytes.Buffer
		code, err := Client{Socket: socket, In: in}.Call(t.Context(), []string{verb}, Terminal{}, &out, io.Discard)
		return out.String(), code, err
	}
	big := bytes.Repeat([]byte("0123456789"), 1<<18)
	for _, in := range [][]byte{nil, []byte("x"), big} {
		out, code, err := ask(bytes.NewReader(in), "take")
		if err != nil || code != ExitOK || out != fmt.Sprintln(len(in)) {
			t.Errorf("%d bytes: %q, exit %d, %v", len(in), out, code, err)
		}
		if err := <-ended; err != nil {
			t.Errorf("%d bytes: %v", len(in), err)
		}
	}
	if _, code, err := ask(nil, "take"); code != ExitUsage || err != nil {
		t.Errorf("without input: exit %d, %v", code, err)
	}
	if _, code, err := ask(bytes.NewReader(big), "ignore"); code != ExitOK || err != nil {
		t.Errorf("input that nobody reads: exit %d, %v", code, err)
	}
	// A client that cannot read on, one that dies, and one that talks nonsense.
	if _, _, err := ask(io.MultiReader(bytes.NewReader(big), iotest.ErrReader(errors.New("disk broke"))), "take"); err == nil || !strings.Contains(err.Error(), "standard input cannot be read: disk broke") {
		t.Errorf("input that broke off ends for its client with %v", err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("input that broke off ends with %v", err)
	}
	for _, text := range []string{`{"args":["take"],"input":true}` + "\n" + `{"in":"eA=="}` + "\n", `{"args":["take"],"input":true}` + "\nnonsense\n"} {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, text)
		c.(*net.UnixConn).CloseWrite()
		if err := <-ended; err == nil {
			t.Errorf("input %q has ended well", text)
		}
		c.Close()
	}
}

// What destroys much asks first, where somebody can answer.
func TestConfirm(t *testing.T) {
	done := 0
	table := Table{{Name: "clean", Args: "WHAT", MinArgs: 1, MaxArgs: 1,
		Flags: func(fs *pflag.FlagSet) { fs.Bool("yes", false, "") },
		Ask: func(c *Call) string {
			if c.Args[0] == "all" {
				return "Everything goes."
			}
			return ""
		},
		Run: func(context.Context, *Call) error { done++; return nil },
	}}
	tty := Terminal{TTY: true}
	for _, tt := range []struct {
		words, in string
		term      Terminal
		runs      bool
	}{
		{"clean all", "y\n", tty, true},
		{"clean all", "YES\r\n", tty, true},
		{"clean all", "n\n", tty, false},
		{"clean all", "\n", tty, false},
		{"clean all", "", tty, false},
		{"clean all", strings.Repeat("y", 1000), tty, false},
		{"clean all --yes", "", tty, true},
		{"clean one", "", tty, true},
		{"clean all", "", Terminal{}, true}, // nobody can answer
	} {
		done = 0
		var errOut bytes.Buffer
		code := table.Run(t.Context(), admin, strings.Fields(tt.words), strings.NewReader(tt.in), io.Discard, &errOut, tt.term)
		if (done == 1) != tt.runs || (code == ExitOK) != tt.runs {
			t.Errorf("%s, answered with %.20q: ran %d times, exit %d: %s", tt.words, tt.in, done, code, errOut.String())
		}
		if asked := strings.Contains(errOut.String(), "Everything goes. Go on? [y/N]"); asked != (tt.words == "clean all" && tt.term.TTY) {
			t.Errorf("%s: says %q", tt.words, errOut.String())
		}
	}
}

// Whoever may not push to a channel may not have it built again there either.
func TestChannelPermissions(t *testing.T) {
	f := testFarm(t, succeed)
	f.Channels = []Channel{{Name: "stable"}, {Name: "testing", Push: []string{"carol"}}}
	table := Verbs(f)
	owner := quarry.Identity{Packager: quarry.Packager{User: "bob"}, Role: quarry.RoleMaintainer}
	carol := quarry.Identity{Packager: quarry.Packager{User: "carol"}, Role: quarry.RoleMaintainer}
	for _, words := range []string{"rebuild 1", "rebuild zlib-1.3-p1 --channel testing", "cancel 1"} {
		_, errOut, code := call(t, table, owner, Terminal{}, strings.Fields(words)...)
		if code != ExitForbidden || errOut != "quarry: bob may not push to testing: carol and admins may\n" {
			t.Errorf("%s: exit %d, %q", words, code, errOut)
		}
	}
	// Without a channel only those of the caller's count.
	if _, errOut, code := call(t, table, owner, Terminal{}, "rebuild", "zlib-1.3-p1"); code == ExitOK || !strings.Contains(errOut, "or it is on testing, to which bob may not push") {
		t.Errorf("rebuild on all channels: exit %d, %q", code, errOut)
	}
	for _, who := range []quarry.Identity{carol, admin} {
		if _, errOut, code := call(t, table, who, Terminal{}, "rebuild", "zlib-1.3-p1"); code != ExitOK {
			t.Errorf("%s: exit %d, %q", who.User, code, errOut)
		}
	}
	for _, tt := range []struct {
		who  quarry.Identity
		want string
		list string
	}{
		{owner, "may push every package\nto stable\n", `["stable"]`},
		{carol, "to stable, testing\n", `["stable","testing"]`},
		{reader, "may look, not push\n", `[]`},
	} {
		if out, _, _ := call(t, table, tt.who, Terminal{}, "whoami"); !strings.HasSuffix(out, tt.want) {
			t.Errorf("%s is told %q", tt.who.User, out)
		}
		out, _, _ := call(t, table, tt.who, Terminal{}, "whoami", "--json")
		var got struct {
			User     string          `json:"user"`
			Channels json.RawMessage `json:"channels"`
		}
		var list bytes.Buffer
		if err := json.Unmarshal([]byte(out), &got); err != nil || json.Compact(&list, got.Channels) != nil || got.User != tt.who.User || list.String() != tt.list {
			t.Errorf("%s gets %s (%v)", tt.who.User, out, err)
		}
	}
}

// Who may change which packages of a channel as a whole.
func TestMayChange(t *testing.T) {
	f := &Farm{Channels: []Channel{{Name: "open"}, {Name: "pushed", Push: []string{"carol"}}, {Name: "promoted", Push: []string{"bob"}, Promote: []string{"carol"}}}}
	person := func(user string, packages, only []string) quarry.Identity {
		return quarry.Identity{Packager: quarry.Packager{User: user}, Role: quarry.RoleMaintainer, Packages: packages, Only: only}
	}
	bob, carol := person("bob", []string{"lib*"}, nil), person("carol", []string{"lib*"}, nil)
	narrow := person("carol", nil, []string{"libz"})
	for _, tt := range []struct {
		who      quarry.Identity
		channel  string
		packages string
		may      bool
	}{
		{bob, "open", "libz", true}, {bob, "open", "libz git", false}, {admin, "open", "git", true},
		{bob, "pushed", "", false}, {bob, "pushed", "libz", false}, {carol, "pushed", "libz", true}, {carol, "pushed", "git", false},
		{bob, "promoted", "", false}, {bob, "promoted", "libz", false}, {carol, "promoted", "libz git", true}, // theirs to say
		{narrow, "open", "libz", true}, {narrow, "open", "libz git", false}, {narrow, "promoted", "libz", true}, {narrow, "promoted", "libz git", false},
		{admin, "absent", "", false},
	} {
		var moves []results.Move
		for _, pkg := range strings.Fields(tt.packages) {
			moves = append(moves, results.Move{Target: quarry.Target{Channel: tt.channel, Package: pkg, Version: "1.0", Arch: "x86_64"}})
		}
		if err := f.mayChange(&Call{Who: tt.who}, tt.channel, moves); (err == nil) != tt.may {
			t.Errorf("%s, %v: %q on %s: %v", tt.who.User, tt.who.Only, tt.packages, tt.channel, err)
		}
	}
}
