package control

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

func TestShellCommand(t *testing.T) {
	for _, tt := range []struct{ words, want []string }{
		{nil, nil},
		{[]string{""}, nil},
		{[]string{"--"}, nil},
		{[]string{"ls"}, []string{"ls"}},
		{[]string{"ls -l | wc"}, []string{"ls -l | wc"}},
		{[]string{"ls", "-l"}, []string{"ls", "-l"}},
		{[]string{"--", "ls", "--", "-l"}, []string{"ls", "--", "-l"}},
		{[]string{"-- cat  'a b'"}, []string{"cat  'a b'"}}, // as it was typed over SSH
		{[]string{"--version"}, []string{"--version"}},
	} {
		if got := command(tt.words); strings.Join(got, "|") != strings.Join(tt.want, "|") || len(got) != len(tt.want) {
			t.Errorf("%q: %q, want %q", tt.words, got, tt.want)
		}
	}
}

func TestRaw(t *testing.T) {
	verbs := Verbs(nil)
	for line, want := range map[string]bool{
		"shell 17": true, "shell -- 17": true, "shell 17 --json": true, "shell": false, "shell --json": false, "shell --help": false, "shell --no 17": false,
		"status 17": false, "log 17": false, "nothing 17": false,
	} {
		if got := verbs.Raw(strings.Fields(line)); got != want {
			t.Errorf("%s: %v, want %v", line, got, want)
		}
	}
}

// TestJSONForms holds every verb to what help says: it takes --json, or says that
// it is text.
func TestJSONForms(t *testing.T) {
	verbs := Verbs(&Farm{})
	for _, v := range verbs {
		if !v.Text {
			if v.NewFlags().Lookup("json") == nil {
				t.Errorf("%s has no --json", v.Name)
			}
			continue
		}
		var errOut bytes.Buffer
		code := verbs.Run(t.Context(), Owner(), append(strings.Fields(v.Name), "--json"), nil, io.Discard, &errOut, Terminal{})
		if want := "quarry: " + v.Name + ": there is no JSON form: its answer is text\n"; code != ExitUsage || errOut.String() != want {
			t.Errorf("%s --json: %d, %q", v.Name, code, errOut.String())
		}
	}
}

// TestSocketSize has a terminal change its size in the middle of a call.
func TestSocketSize(t *testing.T) {
	got := make(chan [2]int)
	path := serveTable(t, Table{{Name: "sized", MaxArgs: -1, Raw: true, Run: func(_ context.Context, c *Call) error {
		ended := make(chan struct{})
		go func() {
			io.Copy(io.Discard, c.In)
			close(ended)
		}()
		for {
			select {
			case size := <-c.Term.Resize:
				got <- size
			case <-ended:
				return nil
			}
		}
	}}})
	resize := make(chan [2]int)
	r, w := net.Pipe()
	defer w.Close()
	ended := make(chan int, 1)
	go func() {
		code, _ := Client{Socket: path, In: r}.Call(t.Context(), []string{"sized", "1"}, Terminal{TTY: true, Resize: resize}, io.Discard, io.Discard)
		ended <- code
	}()
	for _, size := range [][2]int{{80, 25}, {132, 50}, {1, 1}} {
		resize <- size
		select {
		case have := <-got:
			if have != size {
				t.Errorf("%v, want %v", have, size)
			}
		case <-time.After(patience):
			t.Fatal("no size comes")
		}
	}
	w.Close()
	if code := <-ended; code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestKeptJSON has what is kept as programs see it.
func TestKeptJSON(t *testing.T) {
	text, err := json.Marshal(Kept{Build: 1, Target: quarry.Target{Package: "a", Version: "1", Arch: "x", Channel: "testing"}, Keep: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"build":1`, `"package":"a"`, `"channel":"testing"`, `"keep":60000000000`} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s lacks %s", text, want)
		}
	}
	if strings.Contains(string(text), "until") {
		t.Errorf("%s has a time", text)
	}
}
