package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/livelog"
	"github.com/Morphux/quarry/queue"
	"github.com/spf13/afero"
)

// patience is how long anything may take on a slow machine that is busy.
const patience = 5 * time.Minute

// testFarm is a farm of one release, whose queue really runs and whose records say
// what was built; its one stage that matters is the test's.
func testFarm(t *testing.T, run func(ctx context.Context, b quarry.Build, log io.Writer) (*quarry.Outcome, error)) *Farm {
	t.Helper()
	logs, err := livelog.Open(afero.NewMemMapFs(), livelog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	release := quarry.Release{Package: "zlib", Version: "1.3-p1", Channel: "testing", Commit: strings.Repeat("a", 40), Archs: []string{"x86_64"}, Time: time.Now()}
	records := newRecorded()
	q, err := queue.New(queue.Options{
		Fs: afero.NewMemMapFs(),
		Releases: func(context.Context, string) ([]quarry.Release, []queue.Problem, error) {
			return []quarry.Release{release}, nil, nil
		},
		Records: func(context.Context, string) (queue.Records, error) { return records, nil },
		Run: func(ctx context.Context, b quarry.Build, _ []quarry.DepUsed, _ func(string)) (*quarry.Outcome, error) {
			log, err := logs.Create(b.Number, b.Attempt)
			if err != nil {
				return nil, err
			}
			defer log.Close()
			return run(ctx, b, log)
		},
		Record:     records.record,
		Workers:    1,
		RetryDelay: func(int) time.Duration { return time.Millisecond },
		Log:        slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if _, err := q.Pushed(ctx, "zlib"); err != nil {
		t.Fatal(err)
	}
	return &Farm{Queue: q, Logs: logs, Version: "test", Started: time.Now()}
}

// recorded is a farm's records in memory, all of them successes.
type recorded struct {
	mu *sync.Mutex
	at map[quarry.Target]quarry.RecordRef
}

func newRecorded() recorded {
	return recorded{mu: new(sync.Mutex), at: map[quarry.Target]quarry.RecordRef{}}
}

func (r recorded) Lookup(pkg, version, arch string) (quarry.RecordRef, bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ref, ok := r.at[quarry.Target{Channel: "testing", Package: pkg, Version: version, Arch: arch}]
	return ref, ok, nil
}

func (r recorded) record(_ context.Context, o *quarry.Outcome) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := o.Build
	r.at[b.Target()] = quarry.RecordRef{Status: o.Status, Source: b.Commit, Build: b.Number, Key: b.Key}
	return strings.Repeat("c", 40), nil
}

func (recorded) Resolve(string, string) (quarry.DepUsed, bool, error) {
	return quarry.DepUsed{}, false, nil
}

func (recorded) Stale(quarry.Release, string) (string, string, error) { return "", "", nil }

func succeed(_ context.Context, b quarry.Build, log io.Writer) (*quarry.Outcome, error) {
	fmt.Fprintf(log, "attempt %d\nred: \x1b[31mno\x1b[0m\n", b.Attempt)
	return &quarry.Outcome{Build: b, Status: quarry.Succeeded}, nil
}

func call(t *testing.T, table Table, who quarry.Identity, term Terminal, words ...string) (string, string, int) {
	t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	var out, errOut bytes.Buffer
	code := table.Run(ctx, who, words, nil, &out, &errOut, term)
	return out.String(), errOut.String(), code
}

var (
	admin  = quarry.Identity{Packager: quarry.Packager{User: "root"}, Role: quarry.RoleAdmin}
	alice  = quarry.Identity{Packager: quarry.Packager{User: "alice"}, Role: quarry.RoleMaintainer, Packages: []string{"lib*"}}
	reader = quarry.Identity{Packager: quarry.Packager{User: "rita"}, Role: quarry.RoleReader}
	nobody = quarry.Identity{}
)

func TestPermissions(t *testing.T) {
	table := Verbs(testFarm(t, succeed))
	for _, tt := range []struct {
		who   quarry.Identity
		words string
		code  int
		says  string
	}{
		{reader, "status", ExitOK, ""},
		{reader, "whoami", ExitOK, ""},
		{reader, "rebuild zlib-1.3-p1", ExitForbidden, "only maintainers"},
		{reader, "cancel 1", ExitForbidden, "only maintainers"},
		{alice, "rebuild zlib-1.3-p1", ExitForbidden, "not among those of alice"},
		{alice, "pause", ExitForbidden, "only an admin"},
		{nobody, "status", ExitForbidden, "no role"},
		{admin, "pushed zlib", ExitUsage, "unknown"}, // the socket's own people only
		{admin, "nonsense", ExitUsage, "unknown"},
		{admin, "log", ExitUsage, "takes BUILD"},
		{admin, "log x", ExitUsage, "no number"},
		{admin, "log -f 99", ExitNotFound, "build 99"},
		{admin, "log --bogus 1", ExitUsage, "bogus"},
		{admin, "status 99", ExitNotFound, "build 99"},
		{admin, "rebuild absent", ExitUsage, "absent"},
		{admin, "log --json 1", ExitUsage, "json"}, // a log is text
		{admin, "log -f -n 3 1", ExitUsage, "leave out -n"},
		{admin, "log 99", ExitNotFound, "log of build 99 is not kept"},
		{admin, "rebuild absent-1.0", ExitError, "absent-1.0"},
		{admin, "help", ExitOK, ""},
		{admin, "help log", ExitOK, ""},
		{admin, "help images", ExitOK, ""},
		{admin, "help images load", ExitOK, ""},
		{admin, "help images load it", ExitUsage, "help takes [VERB]"},
		{admin, "images", ExitUsage, "images takes one of list, show, load,"},
		{admin, "images lst", ExitUsage, `verb "images lst" is unknown: images has list, show,`},
		{admin, "images load x86_64", ExitUsage, "images load takes REF FILE"},
		{alice, "images load x86_64 /tmp/x", ExitForbidden, "images load: only an admin"},
		{reader, "install x86_64", ExitForbidden, "install: only an admin"},
		{admin, "images list", ExitError, "keeps no images"},
		{admin, "status --help", ExitOK, ""},
	} {
		_, errOut, code := call(t, table, tt.who, Terminal{}, strings.Fields(tt.words)...)
		if code != tt.code || !strings.Contains(errOut, tt.says) {
			t.Errorf("%s: %s: exit %d, %q; want exit %d and %q", tt.who.User, tt.words, code, errOut, tt.code, tt.says)
		}
		if strings.Count(errOut, "\n") > 1 {
			t.Errorf("%s: error has more than one line: %q", tt.words, errOut)
		}
	}
}

// TestLifeOfABuild rebuilds, follows over a retry, and asks for the status.
func TestLifeOfABuild(t *testing.T) {
	table := Verbs(testFarm(t, func(ctx context.Context, b quarry.Build, log io.Writer) (*quarry.Outcome, error) {
		if b.Attempt == 1 {
			fmt.Fprintln(log, "attempt 1 is lost")
			return nil, errors.New("the machine hiccuped")
		}
		return succeed(ctx, b, log)
	}))
	out, errOut, code := call(t, table, admin, Terminal{}, "log", "-f", "1")
	if code != ExitOK || strings.Count(out, "attempt 1 is lost") != 1 || strings.Count(out, "attempt 2\n") != 1 || !strings.Contains(out, "zlib 1.3-p1 x86_64 succeeded") {
		t.Errorf("exit %d, log is %q, %q", code, out, errOut)
	}
	// ssh HOST log asks for no terminal, and prints on one.
	for _, term := range []Terminal{{}, {TTY: true}} {
		for _, words := range [][]string{{"log", "1"}, {"log", "-f", "1"}, {"log", "-n", "50", "1"}} {
			out, _, _ = call(t, table, admin, term, words...)
			if strings.Contains(out, "\x1b[31m") || !strings.Contains(out, `\x1b[31mno`) {
				t.Errorf("%v: escape sequences of a build reach the terminal: %q", words, out)
			}
			out, _, _ = call(t, table, admin, term, append(words, "--raw")...)
			if !strings.Contains(out, "\x1b[31m") {
				t.Errorf("%v --raw: bytes were changed: %q", words, out)
			}
		}
	}
	out, _, code = call(t, table, reader, Terminal{}, "status", "zlib")
	if code != ExitOK || !strings.Contains(out, "1.3-p1") {
		t.Errorf("exit %d: %q", code, out)
	}
	out, _, code = call(t, table, reader, Terminal{}, "status", "1", "--json")
	var b quarry.Build
	if err := json.Unmarshal([]byte(out), &b); err != nil || b.State != quarry.Succeeded || code != ExitOK {
		t.Errorf("exit %d: %+v, %v", code, b, err)
	}
	out, errOut, code = call(t, table, admin, Terminal{}, "rebuild", "zlib-1.3-p1")
	if code != ExitOK || !strings.HasPrefix(out, "build 2: zlib 1.3-p1 for x86_64 on testing, ") {
		t.Errorf("rebuild: exit %d: %q %q", code, out, errOut)
	}
}

// TestFollowSaysWhy: who follows a build that comes to stand still is told why.
func TestFollowSaysWhy(t *testing.T) {
	lost := make(chan struct{})
	table := Verbs(testFarm(t, func(ctx context.Context, b quarry.Build, log io.Writer) (*quarry.Outcome, error) {
		fmt.Fprintln(log, "begun")
		select {
		case <-lost:
			return nil, &queue.EnvironmentError{Err: errors.New("no base for x86_64")}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}))
	ctx, stop := context.WithTimeout(context.Background(), patience)
	defer stop()
	pr, pw := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		ended <- table.Run(ctx, admin, []string{"log", "-f", "1"}, nil, pw, io.Discard, Terminal{})
		pw.Close()
	}()
	begun, told := false, ""
	for lines := bufio.NewScanner(pr); told == "" && lines.Scan(); {
		switch line := lines.Text(); {
		case line == "begun" && !begun:
			begun = true
			close(lost)
		case begun && strings.Contains(line, "no base for x86_64"):
			told = line
		}
	}
	go io.Copy(io.Discard, pr)
	stop()
	<-ended
	if !strings.Contains(told, "build 1: zlib 1.3-p1 x86_64 queued") {
		t.Errorf("was told %q", told)
	}
}

func TestCancel(t *testing.T) {
	begun := make(chan struct{})
	var once sync.Once
	table := Verbs(testFarm(t, func(ctx context.Context, b quarry.Build, log io.Writer) (*quarry.Outcome, error) {
		once.Do(func() { close(begun) })
		<-ctx.Done()
		return nil, ctx.Err()
	}))
	<-begun
	out, errOut, code := call(t, table, admin, Terminal{}, "cancel", "1")
	if code != ExitOK || !strings.Contains(out, "cancelled by root") {
		t.Errorf("exit %d: %q %q", code, out, errOut)
	}
	if _, _, code := call(t, table, admin, Terminal{}, "status", "1"); code != ExitBuild {
		t.Errorf("status of a cancelled build exits with %d", code)
	}
}

func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, ""); err == nil || !strings.Contains(err.Error(), "another quarry") {
		t.Errorf("a second daemon: %v", err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("mode of the socket is %v, %v", fi.Mode(), err)
	}
	verbs := Verbs(testFarm(t, succeed))
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, verbs, slog.New(slog.DiscardHandler)) }()
	client := Client{Socket: path}
	var out, errOut bytes.Buffer
	code, err := client.Call(ctx, []string{"log", "-f", "1"}, Terminal{}, &out, &errOut)
	if err != nil || code != ExitOK || !strings.Contains(out.String(), "succeeded") {
		t.Errorf("exit %d, %v: %q %q", code, err, out.String(), errOut.String())
	}
	out.Reset()
	if code, err = client.Call(ctx, []string{"pushed", "zlib"}, Terminal{}, &out, &errOut); err != nil || code != ExitOK || !strings.HasPrefix(out.String(), `{"builds":[`) {
		t.Errorf("pushed: exit %d, %v, %q", code, err, out.String())
	}

	out.Reset()
	if code, err = client.Call(ctx, []string{"pushed", "--", "nothing"}, Terminal{}, &out, &errOut); err != nil || code != ExitOK || out.String() != `{"builds":[],"declined":[]}`+"\n" {
		t.Errorf("pushed, and nothing is there: exit %d, %v, %q %q", code, err, out.String(), errOut.String())
	}

	// Garbage, nothing, and a caller that hangs up cost an answer or nothing.
	for _, garbage := range []string{"\n", "{}\n", "{\"args\":7}\n", "\x00\xff\n", strings.Repeat("x", maxRequest+10), ""} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte(garbage))
		c.(*net.UnixConn).CloseWrite()
		io.Copy(io.Discard, c)
		c.Close()
	}
	if code, err := client.Call(ctx, []string{"whoami"}, Terminal{}, &out, &errOut); err != nil || code != ExitOK {
		t.Errorf("after garbage: exit %d, %v", code, err)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := client.Call(context.Background(), []string{"whoami"}, Terminal{}, &out, &errOut); !errors.Is(err, ErrUnreachable) || Code(err) != ExitUnreachable {
		t.Errorf("without a daemon: %v", err)
	}
}

// TestListenAlone: what others make while a socket is opened has their modes.
func TestListenAlone(t *testing.T) {
	dir := t.TempDir()
	mode := func() fs.FileMode {
		path := filepath.Join(dir, "d")
		if err := os.Mkdir(path, 0o777); err != nil {
			t.Error(err)
		}
		defer os.Remove(path)
		info, err := os.Stat(path)
		if err != nil {
			t.Error(err)
			return 0
		}
		return info.Mode()
	}
	want := mode()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if have := mode(); have != want {
				t.Errorf("a folder has mode %v, and is to have %v", have, want)
				return
			}
		}
	}()
	for range 500 {
		l, err := Listen(filepath.Join(dir, "s"), "")
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
	close(stop)
	<-stopped
}

// TestLeftOverSocket takes over what a killed daemon left.
func TestLeftOverSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	again, err := Listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	if _, err := Listen(filepath.Join(t.TempDir(), strings.Repeat("x", 120)), ""); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("a long path: %v", err)
	}
}

func TestSafeWriter(t *testing.T) {
	var out bytes.Buffer
	w := &safeWriter{w: &out}
	text := "é\x1b]0;title\x07 日本 \xff\r\n50%\r100%\n"
	for i := range len(text) {
		w.Write([]byte{text[i]})
	}
	got := out.String()
	if strings.ContainsAny(got, "\x1b\x07") || strings.Contains(got, "\xff") || !strings.Contains(got, "é") || !strings.Contains(got, "日本") || !strings.Contains(got, "50%\n100%") {
		t.Errorf("written: %q", got)
	}
}

// TestTable holds every verb to a help with an example.
func TestTable(t *testing.T) {
	table := Verbs(nil)
	for _, v := range table {
		if v.Ask != nil && v.NewFlags().Lookup("yes") == nil {
			t.Errorf("verb %s asks, and has no --yes", v.Name)
		}
		if v.Short == "" || v.Run == nil || !v.Hidden && v.Example == "" {
			t.Errorf("verb %s lacks its help", v.Name)
		}
		for _, example := range strings.Split(v.Example, "\n") {
			if of, words := table.Find(strings.Fields(example)...); !v.Hidden && of != v {
				t.Errorf("verb %s: example %q is of another verb", v.Name, example)
			} else if !v.Hidden {
				fs := v.NewFlags()
				if err := fs.Parse(words); err != nil || fs.NArg() < v.MinArgs {
					t.Errorf("verb %s: example %q does not work: %v", v.Name, example, err)
				}
			}
		}
	}
}

// TestGroup gives the socket to a group: another user of it may look and hand
// pushes over, and nothing else. Others do not get in.
func TestGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("acting for another user takes root: run the tests as root, or in a container")
	}
	if _, err := exec.LookPath("perl"); err != nil {
		t.Fatal("perl is missing: apt-get install perl-base")
	}
	dir, err := os.MkdirTemp("/tmp", "quarry-control-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l, err := Listen(path, "games")
	if err != nil {
		t.Fatal(err)
	}
	verbs := Verbs(testFarm(t, succeed))
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, verbs, slog.New(slog.DiscardHandler)) }()
	defer func() { stop(); <-served }()
	games, err := user.LookupGroup("games")
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.Atoi(games.Gid)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(gid int, words string) string {
		cmd := exec.Command("perl", "-MIO::Socket::UNIX", "-e",
			`my $s = IO::Socket::UNIX->new($ARGV[0]) or die "refused: $!"; print $s "$ARGV[1]\n"; print while <$s>`, path, `{"args":[`+words+`]}`)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: uint32(gid)}}
		cmd.Dir = "/"
		out, _ := cmd.CombinedOutput()
		return string(out)
	}
	for _, tt := range []struct {
		gid         int
		words, want string
	}{
		{65534, `"status"`, "refused"},
		{gid, `"status"`, `{"exit":0}`},
		{gid, `"pushed","zlib"`, `{"exit":0}`},
		{gid, `"rebuild","zlib-1.3-p1"`, `{"exit":4}`},
		{gid, `"pause"`, `{"exit":4}`},
		{gid, `"images","remove","x86_64"`, `{"exit":4}`},
	} {
		if out := ask(tt.gid, tt.words); !strings.Contains(out, tt.want) {
			t.Errorf("group %d asks %s: %s, want %s", tt.gid, tt.words, out, tt.want)
		}
	}
}

// A pause and its end are answered, as scripts and people can read it.
func TestPause(t *testing.T) {
	table := Verbs(testFarm(t, succeed))
	out, errOut, code := call(t, table, admin, Terminal{}, "pause", "moving", "disks")
	if want := "paused by " + admin.User + ": moving disks\n"; code != ExitOK || out != want {
		t.Errorf("pause: exit %d, %q%s; want %q", code, out, errOut, want)
	}
	out, errOut, code = call(t, table, admin, Terminal{}, "pause", "--json")
	var paused []queue.PauseStatus
	if err := json.Unmarshal([]byte(out), &paused); err != nil || code != ExitOK || len(paused) != 1 || paused[0].By != admin.User {
		t.Errorf("pause --json: exit %d, %q%s (%v); want one pause by %s", code, out, errOut, err, admin.User)
	}
	if out, _, _ = call(t, table, admin, Terminal{}, "status"); !strings.Contains(out, "\npaused by "+admin.User+"\n") || strings.Contains(out, "paused: paused") {
		t.Errorf("status says %q; want the pause, without a stutter", out)
	}
	if out, errOut, code = call(t, table, admin, Terminal{}, "resume"); code != ExitOK || out != "builds are started\n" {
		t.Errorf("resume: exit %d, %q%s", code, out, errOut)
	}
	if out, _, _ = call(t, table, admin, Terminal{}, "resume", "--json"); out != "[]\n" {
		t.Errorf("resume --json says %q, want an empty list", out)
	}
}

// A reason that holds the state is not said twice.
func TestVerdict(t *testing.T) {
	for _, tt := range []struct {
		state        quarry.State
		reason, want string
	}{
		{quarry.Waiting, "waits for libgreet-1.0", "build 7: greeter 1.0 x86_64 waits for libgreet-1.0"},
		{quarry.Cancelled, "cancelled by alice", "build 7: greeter 1.0 x86_64 cancelled by alice"},
		{quarry.Failed, "make ended with status 2", "build 7: greeter 1.0 x86_64 failed: make ended with status 2"},
		{quarry.Queued, "", "build 7: greeter 1.0 x86_64 queued"},
	} {
		b := quarry.Build{Number: 7, Release: quarry.Release{Package: "greeter", Version: "1.0"}, Arch: "x86_64", State: tt.state, Reason: tt.reason}
		if got := Verdict(b, false); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// A socket that somebody may not open is no daemon that is missing.
func TestSocketOfOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := Listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		// Root opens everything, but not a thread that acts for another user. It is
		// never unlocked, so it ends with the goroutine.
		runtime.LockOSThread()
		if os.Geteuid() == 0 {
			if err := syscall.Setfsuid(65534); err != nil {
				t.Error(err)
			}
		}
		_, err := Client{Socket: path}.Call(t.Context(), []string{"status"}, Terminal{}, io.Discard, io.Discard)
		done <- err
	}()
	if err := <-done; Code(err) != ExitForbidden || !strings.Contains(err.Error(), "may not be opened") {
		t.Errorf("got %v (exit %d), want exit %d", err, Code(err), ExitForbidden)
	}
}
