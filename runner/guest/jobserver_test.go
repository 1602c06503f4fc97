package guest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/Morphux/quarry/internal/testtools"
	"github.com/Morphux/quarry/jobserver"
	"golang.org/x/sys/unix"
)

func TestFormOf(t *testing.T) {
	system, err := exec.LookPath("make")
	if err != nil {
		t.Fatal("there is no make: make deps installs it")
	}
	programs := map[string]string{system: jobserver.Descriptor, "/bin/true": jobserver.None, "/no/such/make": jobserver.FIFO, os.DevNull: jobserver.None}
	if path, ok := testtools.Make(t); ok {
		programs[path] = jobserver.FIFO
	}
	for path, want := range programs {
		if got := MakeForm(path, "/", nil); got != want {
			t.Errorf("%s takes %s, not %s", path, got, want)
		}
	}
	const block = 64 << 10
	for name, tt := range map[string]struct{ text, want string }{
		"nothing":        {"", jobserver.None},
		"a script":       {"#!/bin/sh\nexec make -j2 \"$@\"\n", jobserver.Descriptor},
		"old":            {"\x7fELF jobserver-fds", jobserver.None},
		"4.3":            {"\x7fELF jobserver-auth jobserver-fds", jobserver.Descriptor},
		"4.4":            {"\x7fELF jobserver-auth jobserver-style", jobserver.FIFO},
		"#! in the text": {strings.Repeat("x", block) + "#!", jobserver.None},
	} {
		if got := formOf(strings.NewReader(tt.text)); got != tt.want {
			t.Errorf("%s: %s, not %s", name, got, tt.want)
		}
	}
	// Wherever the words lie in what is read at once.
	for word, want := range map[string]string{"jobserver-auth": jobserver.Descriptor, "jobserver-style": jobserver.FIFO} {
		for at := block - 40; at < block+40; at++ {
			text := bytes.Repeat([]byte{'x'}, 3*block)
			copy(text[at:], word)
			copy(text[2*block:], "jobserver-auth")
			if got := formOf(bytes.NewReader(text)); got != want {
				t.Errorf("%s at %d: %s, not %s", word, at, got, want)
			}
			if got := formOf(iotest.HalfReader(bytes.NewReader(text))); got != want {
				t.Errorf("%s at %d, in halves: %s, not %s", word, at, got, want)
			}
		}
	}
	if got := formOf(iotest.ErrReader(errors.New("broken disk"))); got != jobserver.None {
		t.Errorf("what cannot be read takes %s", got)
	}
}

// TestJoin has steps share a jobserver in all forms.
func TestJoin(t *testing.T) {
	h := start(t)
	fifo := filepath.Join(h.dir, "jobs")
	p, err := jobserver.New(jobserver.Options{Dir: h.dir, Name: "jobs", UID: os.Getuid(), GID: os.Getgid()})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Set(4)
	bin := func(name, text string) string {
		dir := filepath.Join(h.dir, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "make"), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		return "PATH=" + dir + ":/usr/sbin:/usr/bin:/sbin:/bin"
	}
	newer, older, script := bin("newer", "ELF jobserver-style"), bin("older", "ELF"), bin("script", "#!/bin/sh\n")
	const debians = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
	for _, name := range []string{"file", "empty"} {
		if err := os.WriteFile(filepath.Join(h.dir, name), []byte("++++"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("jobs", filepath.Join(h.dir, "link")); err != nil {
		t.Fatal(err)
	}
	const say = "echo $MAKEFLAGS; for fd in 0 1 2 3 4 5 6 7 8 9; do [ ! -e /proc/$$/fd/$fd ] || printf '%s ' $fd; done"
	for _, tt := range []struct {
		name, path string
		env        []string
		form, out  string
	}{
		{"descriptor", fifo, []string{debians}, "descriptor", "-j9 --jobserver-auth=3,3\n0 1 2 3 "},
		{"fifo", fifo, []string{newer}, "fifo", "-j9 --jobserver-auth=fifo:" + fifo + "\n0 1 2 "},
		{"none", fifo, []string{older}, "none", "-j9\n0 1 2 "},
		{"a script", fifo, []string{script}, "descriptor", "-j9 --jobserver-auth=3,3\n0 1 2 3 "},
		{"the recipe's own", fifo, []string{debians, "MAKEFLAGS=-k"}, "", "-k\n0 1 2 "},
		{"even blank", fifo, []string{debians, "MAKEFLAGS="}, "", "\n0 1 2 "},
		{"gone", fifo + "x", []string{debians}, "lost", "-j9\n0 1 2 "},
		{"gone for a newer one", fifo + "x", []string{newer}, "lost", "-j9\n0 1 2 "},
		{"a link", filepath.Join(h.dir, "link"), []string{newer}, "lost", "-j9\n0 1 2 "},
		{"a file", filepath.Join(h.dir, "file"), []string{debians}, "lost", "-j9\n0 1 2 "},
		{"a folder", h.dir, []string{debians}, "lost", "-j9\n0 1 2 "},
		{"a device", "/dev/zero", []string{debians}, "lost", "-j9\n0 1 2 "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h.t = t
			h.send(Run{Commands: sh(say), Env: tt.env, Jobserver: &Jobserver{Path: tt.path, Jobs: 9}})
			form := ""
			if tt.form != "" {
				kind, payload, err := h.next()
				if err != nil || kind != KindForm {
					t.Fatalf("kind %v, %v, not the form", kind, err)
				}
				if form, err = DecodeForm(payload); err != nil {
					t.Fatal(err)
				}
			}
			r, out := h.reply()
			if form != tt.form || string(out) != tt.out || r.Status != 0 || r.Error != "" || r.Problem != "" {
				t.Errorf("form %q, output %q, reply %+v; not %q, %q", form, out, r, tt.form, tt.out)
			}
		})
	}

	// The descriptor is the FIFO, for several commands, and waits for a token as a
	// make's own does.
	h.t = t
	h.send(Run{Commands: append(sh("head -c 1 <&3; head -c 2 <&3"), sh("printf ab >&3; { echo now >&2; head -c 3 <&3; }; printf +++ >&3")...), Jobserver: &Jobserver{Path: fifo, Jobs: 4}})
	if kind, _, err := h.next(); err != nil || kind != KindForm {
		t.Fatalf("kind %v, %v", kind, err)
	}
	said := ""
	for !strings.Contains(said, "now") {
		kind, payload, err := h.next()
		if err != nil || kind != KindOutput {
			t.Fatalf("kind %v, %v, after %q", kind, err, said)
		}
		said += string(payload)
	}
	fd, err := unix.Open(fifo, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("c")); err != nil {
		t.Fatal(err)
	}
	r, out := h.reply()
	said += string(out)
	if r.Status != 0 || strings.Replace(said, "now\n", "", 1) != "+++abc" {
		t.Errorf("the commands print %q (%+v)", said, r)
	}
	if is, want := p.State(), (jobserver.State{Want: 4, Out: 4, Free: 3}); is != want {
		t.Errorf("%+v, not %+v", is, want)
	}

	// Nothing of it stays.
	if r, out := h.run(Run{Commands: sh(say)}); r.Status != 0 || out != "\n0 1 2 " {
		t.Errorf("the next step has %q (%+v)", out, r)
	}
}

func TestDecodeForm(t *testing.T) {
	for _, form := range []string{"", "fifo\x00", "other", "\x1b[2J"} {
		if got, err := DecodeForm([]byte(form)); !errors.Is(err, ErrFrame) {
			t.Errorf("%q: %q, %v, want ErrFrame", form, got, err)
		}
	}
}
