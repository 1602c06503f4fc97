package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// write puts files into a fresh folder and gives the path of the first.
func write(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		path := filepath.Join(dir, files[i])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(files[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, files[0])
}

func TestChannel(t *testing.T) {
	path := write(t, "quarry.toml", `
[channel.testing]
archs = ["x86_64", "aarch64"]
base = "trixie"
push = ["alice", "role:maintainer"]
promote = ["role:admin"]
[channel.testing.setup]
files = { "/etc/apt/sources.list" = "source_lists/testing.list", "/etc/apt/update.sh" = "update.sh" }
update = ["apt-get update", "apt-get -y dist-upgrade"]
max_age = "12h"
timeout = "10m"
local_mirror = true
[channel.stable]
`, "source_lists/testing.list", "deb http://deb.example.org testing main\n", "update.sh", "#!/bin/sh\n")
	if err := os.Chmod(filepath.Join(filepath.Dir(path), "update.sh"), 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	ch := c.Channels["testing"]
	if ch.Base != "trixie" || len(ch.Push) != 2 || len(ch.Promote) != 1 || len(ch.Setup.Update) != 2 ||
		time.Duration(ch.Setup.MaxAge) != 12*time.Hour || time.Duration(ch.Setup.Timeout) != 10*time.Minute || !ch.Setup.LocalMirror {
		t.Errorf("testing is read as %+v", ch)
	}
	files, err := c.SetupFiles("testing")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 2 || files[0].Path != "/etc/apt/sources.list" || files[0].Mode != 0o644 ||
		string(files[0].Data) != "deb http://deb.example.org testing main\n" || files[1].Mode != 0o755 {
		t.Errorf("files are %v", files)
	}
	if s := c.Channels["stable"].Setup; time.Duration(s.MaxAge) != 24*time.Hour || time.Duration(s.Timeout) != 30*time.Minute {
		t.Errorf("a channel without a setup has %+v", s)
	}
	if files, err := c.SetupFiles("stable"); err != nil || len(files) != 0 {
		t.Errorf("a channel without a setup has files %v (%v)", files, err)
	}
}

func TestChannelRefuses(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{"base", "[channel.testing]\nbase='Tri/xie'\n", `q.toml:2: key "channel.testing.base": "Tri/xie" names no base`},
		{"arch in a list", "[channel.testing]\n\narchs=['x86_64',\n 'x/y']\n", `q.toml:3: key "channel.testing.archs": architecture "x/y"`},
		{"noarch", "[channel.testing]\narchs=['noarch']\n", "noarch is no arch to build on"},
		{"arch twice", "[channel.testing]\narchs=['i686','i686']\n", "i686 is named twice"},
		{"user", "[channel.testing]\npush=['al ice']\n", `q.toml:2: key "channel.testing.push": user name "al ice"`},
		{"role", "[channel.testing]\npromote=['role:king']\n", `q.toml:2: key "channel.testing.promote": role "king" is none`},
		{"unknown key of a setup", "[channel.testing.setup]\nmaxage='1h'\n", `q.toml:2: key "channel.testing.setup.maxage" is unknown`},
		{"relative path inside", "[channel.testing.setup]\nfiles={'etc/x'='x'}\n", `q.toml:2: key "channel.testing.setup.files.etc/x": "etc/x" is no path`},
		{"path with ..", "[channel.testing.setup.files]\n'/a'='x'\n'/etc/../x'='x'\n", `q.toml:3: key "channel.testing.setup.files./etc/../x"`},
		{"root", "[channel.testing.setup]\nfiles={'/'='x'}\n", "is no path"},
		{"no file", "[channel.testing.setup]\nfiles={'/x'=''}\n", "no file is named"},
		{"list for files", "[channel.testing.setup]\nfiles=['/x']\n", "it takes a table such as"},
		{"blank command", "[channel.testing]\nsetup.update=[' ']\n", `q.toml:2: key "channel.testing.setup.update": a command is blank`},
		{"age", "[channel.testing]\nsetup={max_age='1s'}\n", `q.toml:2: key "channel.testing.setup.max_age": less than a minute`},
		{"timeout", "[channel.testing.setup]\ntimeout='1ms'\n", "within less than a second"},
		{"pool", "[pool]\nmax=-2\n", "pool.max is -2"},
		{"pool without time", "[pool]\nidle='0s'\n", "pool.idle"},
		{"monitor", "[monitor]\nevery='1ms'\n", "monitor.every"},
		{"cache", "[cache]\nlayers='all'\n", `size "all"`},
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

// Files of setups are read when they are needed, strictly: every way in which
// one cannot be had names its key and line.
func TestSetupFilesRefuses(t *testing.T) {
	path := write(t, "q.toml", "[channel.testing]\n[channel.testing.setup]\nupdate = ['true']\nfiles = {'/etc/a' = 'a.list'}\n")
	c, err := Load(path)
	if err != nil {
		t.Fatalf("a configuration whose setup lacks a file cannot even be read: %v", err)
	}
	list := filepath.Join(filepath.Dir(path), "a.list")
	for _, tt := range []struct {
		name string
		make func() error
		want string
	}{
		{"absent", func() error { return nil }, "there is no file " + list},
		{"folder", func() error { return os.Mkdir(list, 0o755) }, list + " is no regular file"},
		{"too large", func() error { return os.WriteFile(list, make([]byte, maxSetupFile+1), 0o644) }, "has more than"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := os.RemoveAll(list); err != nil {
				t.Fatal(err)
			}
			if err := tt.make(); err != nil {
				t.Fatal(err)
			}
			_, err := c.SetupFiles("testing")
			want := path + `:4: key "channel.testing.setup.files./etc/a": `
			if err == nil || !strings.HasPrefix(err.Error(), want) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want %q and %q", err, want, tt.want)
			}
		})
	}
	if _, err := c.SetupFiles("nightly"); err == nil {
		t.Error("a channel that is not there has files")
	}
}

func TestLineOf(t *testing.T) {
	text := []byte("a.b = 1\n\n[x]\ny = {\n z = {'q.r' = 1},\n w = 2 }\n[x.\"k\\u0065y\"]\nv=[\n1]\n")
	for _, tt := range []struct {
		key  string
		want int
	}{
		{"a", 1}, {"a/b", 1}, {"a/c", 0}, {"x", 3}, {"x/y", 4}, {"x/y/z", 5}, {"x/y/z/q.r", 5}, {"x/y/w", 6}, {"x/key", 7}, {"x/key/v", 8}, {"v", 0},
	} {
		if got := lineOf(text, strings.Split(tt.key, "/")...); got != tt.want {
			t.Errorf("%s is on line %d, want %d", tt.key, got, tt.want)
		}
	}
	if got := lineOf([]byte("a = = 1"), "b"); got != 0 {
		t.Errorf("broken text has line %d", got)
	}
}

func TestWarm(t *testing.T) {
	c := Default()
	c.Build.Workers = 3
	for max, want := range map[int]int{-1: 0, 0: 4, 7: 7} {
		if c.Pool.Max = max; c.Warm() != want {
			t.Errorf("pool.max %d keeps %d, want %d", max, c.Warm(), want)
		}
	}
}

// FuzzChannel looks for a text that gets past the checks with a channel that
// would lead the files of a setup astray, and for one that lineOf falls over.
func FuzzChannel(f *testing.F) {
	f.Add([]byte("[channel.testing.setup]\nfiles={'/etc/x'='x'}\n"), "testing")
	f.Add([]byte("[channel.a]\nbase='b'\npush=['role:admin']\n"), "a")
	f.Fuzz(func(t *testing.T, b []byte, key string) {
		lineOf(b, "channel", key, "setup")
		c, err := Parse(b, "f")
		if err != nil {
			return
		}
		for _, ch := range c.Channels {
			for inside := range ch.Setup.Files {
				if filepath.Clean(inside) != inside || inside[0] != '/' || inside == "/" {
					t.Errorf("path %q inside got through", inside)
				}
			}
			if ch.Setup.MaxAge < minAge || ch.Setup.Timeout <= 0 {
				t.Errorf("setup %+v got through", ch.Setup)
			}
		}
	})
}
