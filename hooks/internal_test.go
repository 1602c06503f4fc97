package hooks

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

// TestStall: a terminal that nobody reads ends the following, although writing
// to it gives no error.
func TestStall(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	log := &logWriter{out: &terminal{w: w, stall: 50 * time.Millisecond}, gone: cancel}
	line := []byte(strings.Repeat("x", 999) + "\n")
	for range 1000 {
		if _, err = log.Write(line); err != nil {
			break
		}
	}
	if !errors.Is(err, errStalled) || ctx.Err() == nil {
		t.Errorf("error %v, context %v", err, ctx.Err())
	}
}

// TestWriteBesideChildren: no hook is written while a child is made, which would
// keep it open: git could not run it.
func TestWriteBesideChildren(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hooks", Pre)
	written := make(chan error, 1)
	syscall.ForkLock.Lock() // as who makes a child
	go func() { written <- Options{Binary: "/bin/quarry"}.write(path, Pre) }()
	for range 20 {
		time.Sleep(5 * time.Millisecond)
		if files, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*")); len(files) > 0 {
			t.Errorf("there is %q", files)
			break
		}
	}
	syscall.ForkLock.Unlock()
	if err := <-written; err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(path); err != nil || !bytes.Contains(data, []byte(marker)) {
		t.Errorf("%q, %v", data, err)
	}
}

func TestLogWriter(t *testing.T) {
	var out bytes.Buffer
	l := &logWriter{out: &out, prefix: "| ", gone: func() {}}
	for _, b := range []byte("a\x1b]0;x\x07\nb\xff\xc3\xa9\tc\n\n" + strings.Repeat("y", 2*maxLine+1) + "\nend") {
		if n, err := l.Write([]byte{b}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
	}
	l.flush()
	y := strings.Repeat("y", maxLine)
	if want := "| a?]0;x?\n| b?\u00e9\tc\n| \n| " + y + "\n| " + y + "\n| y\n| end\n"; out.String() != want {
		t.Errorf("got %q", out.String())
	}
}

func spooled(t *testing.T, dir string) (got []string) {
	t.Helper()
	if err := Drain(dir, func(p Push) error { got = append(got, p.Package); return nil }); err != nil {
		t.Logf("drain: %v", err)
	}
	return got
}

func push(pkg string) Push {
	return Push{Package: pkg, Repo: "/srv/" + pkg + ".git", Time: time.Now().UTC().Truncate(time.Second), Packager: quarry.Packager{User: "alice", Name: "Alice"},
		Refs: []Ref{{Name: pkg + "-1.0", Version: "1.0", Branch: true, Old: strings.Repeat("0", 40), New: strings.Repeat("a", 40)}}}
}

func TestSpool(t *testing.T) {
	dir := t.TempDir()
	for _, pkg := range []string{"one", "two", "three"} {
		if err := Spool(dir, push(pkg)); err != nil {
			t.Fatal(err)
		}
	}
	// A refusal keeps the push and does not hold up the others.
	var got []string
	err := Drain(dir, func(p Push) error {
		got = append(got, p.Package)
		if p.Package == "two" {
			return errors.New("not now")
		}
		return nil
	})
	if strings.Join(got, " ") != "one two three" || err == nil || !strings.Contains(err.Error(), "not now") {
		t.Errorf("got %v, %v", got, err)
	}
	if got := spooled(t, dir); strings.Join(got, " ") != "two" {
		t.Errorf("left over: %v", got)
	}
	if got := spooled(t, dir); len(got) > 0 {
		t.Errorf("taken twice: %v", got)
	}
	if err := Drain(filepath.Join(dir, "nowhere"), nil); err != nil {
		t.Error(err)
	}
	if err := Spool(filepath.Join(dir, "nowhere"), push("x")); err == nil {
		t.Error("spooled into nowhere")
	}
}

// TestHostileSpool: whatever lies in the spool, the good push comes through.
func TestHostileSpool(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(t.TempDir(), "secret")
	for name, text := range map[string]string{
		"0-junk.json":    "junk",
		"0-empty.json":   "",
		"0-version.json": `{"quarry_push": 2}`,
		"0-name.json":    `{"quarry_push": 1, "package": "../x", "repo": "/x"}`,
		"0-path.json":    `{"quarry_push": 1, "package": "x", "repo": "../x"}`,
		"0-huge.json":    strings.Repeat("[", maxSpoolFile+1),
		"0-deep.json":    strings.Repeat("[", maxSpoolFile-1),
		"0-ref.json":     `{"quarry_push": 1, "package": "x", "repo": "/x", "refs": [{"name": "--upload-pack=x-1.0", "branch": true, "old": "` + strings.Repeat("a", 40) + `", "new": "` + strings.Repeat("a", 40) + `"}]}`,
		"0-user.json":    `{"quarry_push": 1, "package": "x", "repo": "/x", "packager": {"name": "a\nb"}}`,
		"README":         "not a push",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(secret, []byte(`{"quarry_push": 1, "package": "secret", "repo": "/x"}`), 0o600)
	if err := errors.Join(os.Symlink(secret, filepath.Join(dir, "0-link.json")), os.Mkdir(filepath.Join(dir, "0-dir.json"), 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := Spool(dir, push("good")); err != nil {
		t.Fatal(err)
	}
	if got := spooled(t, dir); strings.Join(got, " ") != "good" {
		t.Errorf("got %v", got)
	}
	bad, _ := os.ReadDir(filepath.Join(dir, "bad"))
	if len(bad) != 11 {
		t.Errorf("%d set aside", len(bad))
	}
	if err := Drain(dir, func(Push) error { return errors.New("again") }); err != nil {
		t.Errorf("the second time: %v", err)
	}
}

func TestWatchSpool(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	ctx, cancel := context.WithCancel(t.Context())
	got, done := make(chan string), make(chan error)
	go func() {
		done <- Watch(ctx, dir, slog.New(slog.DiscardHandler), func(p Push) error { got <- p.Package; return nil })
	}()
	for _, pkg := range []string{"one", "two"} {
		deadline := time.Now().Add(2 * time.Minute)
		for Spool(dir, push(pkg)) != nil && time.Now().Before(deadline) {
			time.Sleep(5 * time.Millisecond)
		}
		select {
		case name := <-got:
			if name != pkg {
				t.Errorf("got %s, want %s", name, pkg)
			}
		case <-time.After(2 * time.Minute):
			t.Fatalf("%s was not seen", pkg)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzRefs(f *testing.F) {
	z, a := strings.Repeat("0", 40), strings.Repeat("a", 40)
	f.Add("zlib", z+" "+a+" refs/heads/zlib-1.0\n")
	f.Add("x", z+" "+a+" refs/heads/--upload-pack=x-1.0\n")
	f.Add("x", a+" "+z+" refs/tags/v1\n"+z+" "+a+" refs/quarry/push/x")
	f.Fuzz(func(t *testing.T, pkg, text string) {
		if quarry.CheckName(pkg) != nil {
			return
		}
		lines, err := readRefs(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, line := range lines {
			r, err := parseRef(pkg, line)
			if err != nil {
				if strings.ContainsAny(clean(err.Error()), "\n\x1b") {
					t.Fatalf("error %q is not one plain line", err)
				}
				continue
			}
			if strings.HasPrefix(r.Name, "-") || strings.Contains(r.Name, "/-") || strings.ContainsAny(r.Name, " \n\x00\x1b$;`") {
				t.Fatalf("%q was taken", r.Name)
			}
			if r.Release() && quarry.Branch(pkg, r.Version) != r.Name {
				t.Fatalf("%+v is no release of %s", r, pkg)
			}
		}
	})
}

func FuzzSpooled(f *testing.F) {
	f.Add([]byte(`{"quarry_push": 1, "package": "x", "repo": "/srv/x.git", "channel": "testing", "refs": []}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parsePush(data)
		if err == nil && (p.Check() != nil || clean(p.Packager.Name) != p.Packager.Name) {
			t.Fatalf("%+v was taken", p)
		}
	})
}

func FuzzTree(f *testing.F) {
	f.Add([]byte("100644 a\x00" + strings.Repeat("x", 20) + "40000 b\x00" + strings.Repeat("y", 20)))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseTree(data, 20)
		if err != nil {
			return
		}
		for _, e := range list {
			if strings.Contains(e.name, "\x00") || !isOID(e.oid) {
				t.Fatalf("%+v", e)
			}
		}
	})
}

// deaf is a daemon that answers nobody, whatever the context says.
type deaf struct {
	Daemon
	end chan struct{}
}

func (d deaf) Close() error { return nil }

func (d deaf) Impact(context.Context, Proposal) (Impact, error) {
	<-d.end
	return Impact{}, errors.New("ended")
}

// TestImpactDeaf: a daemon that hangs holds no push.
func TestImpactDeaf(t *testing.T) {
	end := make(chan struct{})
	defer close(end)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // sooner than impactTimeout
	defer cancel()
	for name, dial := range map[string]Dialer{
		"answer": func(context.Context, string) (Daemon, error) { return deaf{end: end}, nil },
		"dial":   func(context.Context, string) (Daemon, error) { <-end; return nil, errors.New("ended") },
	} {
		var said bytes.Buffer
		env := Env{Settings: Settings{Package: "hello", Socket: "socket"}}
		if !env.foresee(ctx, &Proposal{Package: "hello"}, nil, options{}, speaker(&said), dial) {
			t.Errorf("%s: the push was refused: %s", name, said.String())
		}
		if !strings.Contains(said.String(), "has not answered within") {
			t.Errorf("%s: it says %q", name, said.String())
		}
	}
}

// TestProposeMuch: recipes that are large together are not sent.
func TestProposeMuch(t *testing.T) {
	var list []Proposed
	for range 40 {
		list = append(list, Proposed{Recipe: make([]byte, 1<<18)})
	}
	if p, err := (Env{}).propose(list, nil, options{}); p != nil || err == nil || !strings.Contains(err.Error(), "more than 4 MiB") {
		t.Errorf("proposed %v, %v", p != nil, err)
	}
}
