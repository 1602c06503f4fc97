package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The example of the form's own documentation.
func TestLoadSeed(t *testing.T) {
	file := write(t, "config.toml", `# work_dir: where all the work happens.
work_dir = "/var/cache/aoinb/work"
# arch: the architecture of the build machine. only used to determine BuildKit download url for now.
arch = "amd64"
`, "source_lists/stable.list", "deb http://deb.example.org stable main\n",
		"source_lists/testing.list", "deb http://deb.example.org testing main\n", "source_lists/stable.list~", "old\n")
	dir := filepath.Dir(file)
	for _, path := range []string{dir, file, dir + "/"} {
		if !IsSeed(path) {
			t.Errorf("%s is not recognised", path)
		}
		c, err := LoadSeed(path)
		if err != nil {
			t.Fatal(err)
		}
		if c.State != "/var/cache/aoinb/work" || c.DefaultChannel != "testing" || len(c.Channels) != 2 {
			t.Errorf("%s is read as %+v", path, c)
		}
		for name, ch := range c.Channels {
			if len(ch.Archs) != 1 || ch.Archs[0] != "x86_64" {
				t.Errorf("%s is built for %v", name, ch.Archs)
			}
			if up := strings.Join(ch.Setup.Update, "; "); !strings.HasPrefix(up, "apt-get update; ") || !strings.Contains(up, "dist-upgrade") || !strings.Contains(up, "noninteractive") {
				t.Errorf("%s is brought up to date by %q", name, up)
			}
			files, err := c.SetupFiles(name)
			if err != nil {
				t.Fatal(err)
			}
			if len(files) != 1 || files[0].Path != "/etc/apt/sources.list" || string(files[0].Data) != "deb http://deb.example.org "+name+" main\n" {
				t.Errorf("%s gets files %+v", name, files)
			}
		}
	}
}

// Relative folders are beside the configuration, wherever Quarry is started.
func TestLoadSeedRelative(t *testing.T) {
	dir := filepath.Dir(write(t, "config.toml", "work_dir = 'work'\n", "source_lists/stable.list", "deb x y z\n"))
	t.Chdir(filepath.Dir(dir))
	c, err := LoadSeed(filepath.Base(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir("/")
	if c.State != filepath.Join(dir, "work") || c.DefaultChannel != "stable" || c.Channels["stable"].Archs[0] != HostArch() {
		t.Errorf("read as state %s, default channel %s, %+v", c.State, c.DefaultChannel, c.Channels["stable"])
	}
	if files, err := c.SetupFiles("stable"); err != nil || len(files) != 1 {
		t.Errorf("files are %v (%v)", files, err)
	}
}

func TestLoadSeedArch(t *testing.T) {
	for in, want := range map[string]string{"arm64": "aarch64", "x86_64": "x86_64", "riscv64": "riscv64", "i386": "i686", "zarch": "zarch"} {
		c, err := LoadSeed(filepath.Dir(write(t, "config.toml", "work_dir='/w'\narch='"+in+"'\n", "source_lists/a.list", "")))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Channels["a"].Archs[0]; got != want {
			t.Errorf("arch %s is read as %s, want %s", in, got, want)
		}
	}
}

func TestLoadSeedRefuses(t *testing.T) {
	list := []string{"source_lists/stable.list", "deb x y z\n"}
	for _, tt := range []struct {
		name, text string
		files      []string
		want       string
	}{
		{"unknown key", "work_dir='/w'\n\n[ssh]\nlisten='x'\n", list, `config.toml:3: key "ssh" is unknown`},
		{"misspelt key", "workdir='/w'\n", list, `config.toml:1: key "workdir" is unknown`},
		{"syntax", "work_dir = \n", list, "config.toml:1:"},
		{"wrong type", "work_dir='/w'\narch=64\n", list, "config.toml:2:6: integer is given, and it takes text in quotes"},
		{"no work_dir", "arch='amd64'\n", list, "config.toml: work_dir is not given"},
		{"blank work_dir", "arch='amd64'\nwork_dir=''\n", list, "config.toml:2: work_dir is not given"},
		{"arch", "work_dir='/w'\narch='../x'\n", list, `config.toml:2: key "arch": architecture "../x"`},
		{"noarch", "work_dir='/w'\narch='noarch'\n", list, "noarch"},
		{"no folder of lists", "work_dir='/w'\n", nil, "source_lists has no list: make one such as stable.list"},
		{"no list", "work_dir='/w'\n", []string{"source_lists/README", "x"}, "source_lists has no list"},
		{"name of a list", "work_dir='/w'\n", []string{"source_lists/-x.list", ""}, "-x.list: channel"},
		{"folder for a list", "work_dir='/w'\n", []string{"source_lists/a.list/b", ""}, "a.list is no regular file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := LoadSeed(filepath.Dir(write(t, append([]string{"config.toml", tt.text}, tt.files...)...)))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error is %v, want it to hold %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error has more than one line: %v", err)
			}
		})
	}
	empty := t.TempDir()
	if _, err := LoadSeed(empty); err == nil || !strings.Contains(err.Error(), "has no config.toml") {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := LoadSeed(filepath.Join(empty, "none")); err == nil || !strings.Contains(err.Error(), "none cannot be read") {
		t.Errorf("no folder: %v", err)
	}
	if quarry := write(t, "quarry.toml", "state = 'x'\n"); IsSeed(quarry) || IsSeed(quarry+"x") {
		t.Error("another file is taken for the older form")
	}
}

func TestSeedBaseFile(t *testing.T) {
	c := Default()
	c.State = t.TempDir()
	path, ok := SeedBaseFile(c, "x86_64")
	if ok || path != filepath.Join(c.State, "buildkit_amd64.tar.xz") {
		t.Errorf("%s, %v", path, ok)
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, ok := SeedBaseFile(c, "x86_64"); !ok {
		t.Error("the file is not found")
	}
	if path, ok := SeedBaseFile(c, "riscv64"); ok || filepath.Base(path) != "buildkit_riscv64.tar.xz" {
		t.Errorf("%s, %v", path, ok)
	}
}

// FuzzSeed looks for a text of the older form that brings in what its checks
// keep out.
func FuzzSeed(f *testing.F) {
	f.Add([]byte("work_dir='/w'\narch='amd64'\n"), "stable.list")
	f.Fuzz(func(t *testing.T, text []byte, list string) {
		if list == "" || list != filepath.Base(list) || strings.ContainsRune(list, 0) || len(list) > 200 || list == "." || list == ".." {
			t.Skip()
		}
		dir := filepath.Dir(write(t, "config.toml", string(text), "source_lists/"+list, ""))
		c, err := LoadSeed(dir)
		if err != nil {
			return
		}
		if !filepath.IsAbs(c.State) || c.Channels[c.DefaultChannel] == nil {
			t.Errorf("got through: %+v", c)
		}
		if err := c.check(); err != nil {
			t.Error(err)
		}
	})
}

// Load takes both forms.
func TestLoadTakesSeed(t *testing.T) {
	file := write(t, "config.toml", "work_dir='/w'\n", "source_lists/stable.list", "")
	for _, path := range []string{file, filepath.Dir(file)} {
		if c, err := Load(path); err != nil || c.State != "/w" || c.Channels["stable"] == nil {
			t.Errorf("%s: %+v, %v", path, c, err)
		}
	}
	if c, err := Load(write(t, "config.toml", "state='/s'\n")); err != nil || c.State != "/s" {
		t.Errorf("a config.toml of the present form: %+v, %v", c, err)
	}
}
