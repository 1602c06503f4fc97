package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	c, err := Parse([]byte(`
state = "/srv/quarry"
[ssh]
listen = ":22"
[limits]
memory = "2 GiB"
silence = "90s"
[logs]
keep = "30d"
[channel.testing]
archs = ["x86_64", "aarch64"]
[push]
confirm_time = 0
[channel.stable]
`), "q.toml")
	if err != nil {
		t.Fatal(err)
	}
	if c.Limits.Memory != 2<<30 || time.Duration(c.Limits.Silence) != 90*time.Second || time.Duration(c.Logs.Keep) != 720*time.Hour {
		t.Errorf("limits read as %+v, logs as %+v", c.Limits, c.Logs)
	}
	if got := c.Channels["testing"].Archs; len(got) != 2 {
		t.Errorf("archs = %v", got)
	}
	if got := c.Channels["stable"].Archs; len(got) != 1 || got[0] != HostArch() {
		t.Errorf("a channel without archs builds for %v, want the machine's own", got)
	}
	if c.Limits.Disk != Default().Limits.Disk {
		t.Error("a limit that the file does not name lost its default")
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"unknown key names key and line", "state='x'\n[limits]\nmemroy='1G'\n", `q.toml:3: key "limits.memroy" is unknown`},
		{"unknown table", "[sssh]\n", `"sssh"`},
		{"syntax", "state = \n", "q.toml:1:"},
		{"wrong type", "[ssh]\nlisten = 22\n", `key "ssh.listen": integer is given, and it takes text in quotes`},
		{"text for a number", "[build]\nworkers='2'\n", `key "build.workers": string is given, and it takes a number`},
		{"text for a list", "[channel.testing]\narchs='x86_64'\n", `key "channel.testing.archs": string is given, and it takes a list such as`},
		{"list for a table", "[channel]\ntesting=['x86_64']\n", `key "channel.testing": array is given, and it takes a table`},
		{"address", "[ssh]\nlisten='2222'\n", `ssh.listen "2222" is no address`},
		{"bad size", "[limits]\nmemory='lots'\n", `size "lots"`},
		{"negative size", "[limits]\nmemory='-1G'\n", "size"},
		{"overflowing size", "[limits]\nmemory='99999999999T'\n", "size"},
		{"bad duration", "[limits]\nstep='soon'\n", `duration "soon"`},
		{"duration without a unit", "state='x'\n[limits]\nstep=3600\n", `q.toml:3: key "limits.step": 3600 has no unit`},
		{"duration without a unit, of a channel", "[channel.testing.setup]\nmax_age=24\n", `q.toml:2: key "channel.testing.setup.max_age": 24 has no unit`},
		{"bytes below 0", "[logs]\nmax=-1\n", `q.toml:2: key "logs.max": -1 is less than 0`},
		{"number for a table", "limits=3\n", `key "limits": integer is given, and it takes a table`},
		{"number for the channels", "channel=3\n", `key "channel": integer is given, and it takes a table`},
		{"channel name", "[channel.'-x']\n", "channel"},
		{"arch", "[channel.testing]\narchs=['x/y']\n", "architecture"},
		{"default channel", "default_channel='stable'\n[channel.testing]\n", "default_channel"},
		{"podman uri", "[podman]\nuri='tcp://h:1'\n", "podman.uri"},
		{"host root", "[podman]\nid_base=0\n", "id_base"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.in), "q.toml")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error is %v, want it to hold %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error has more than one line: %v", err)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	c, err := Load("")
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, "var"); c.State != want {
		t.Errorf("state = %s, want %s", c.State, want)
	}
	if _, err := Load("absent.toml"); err == nil {
		t.Error("a file that was named and is not there is no error")
	}
	sub := filepath.Join(dir, "etc")
	if err := os.MkdirAll(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(sub, "q.toml"), []byte("state='../lib'"), 0o644); err != nil {
		t.Fatal(err)
	}
	c, err = Load("etc/q.toml")
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, "lib"); c.State != want {
		t.Errorf("state = %s, want it relative to its file: %s", c.State, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("state='x'\n[limits]\nmemory='1G'\n"))
	f.Add([]byte("[channel.a]\narchs=['x']\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := Parse(b, "f"); err == nil && c.Limits.Memory < 64<<20 {
			t.Errorf("limit of %d got through", c.Limits.Memory)
		}
	})
}
