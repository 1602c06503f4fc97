// Package config reads Quarry's one configuration file.
//
// The file is TOML and strict: a key that Quarry does not know is an error that
// names the key and its line, because a misspelt limit is a limit that does not
// hold. Without a file, [Default] is a farm that runs in ./var.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
)

// Config is the whole configuration. Every field has a default; see
// doc/operating.md for what an admin needs to know of each.
type Config struct {
	// State is the folder that holds all that Quarry keeps. Relative paths are
	// relative to the configuration file, or to the working directory without one.
	State string `toml:"state"`
	// DefaultChannel is where a push goes that names no channel.
	DefaultChannel string `toml:"default_channel"`
	// Builder is the name of this machine in records; the host's name by default.
	Builder  string              `toml:"builder"`
	SSH      SSH                 `toml:"ssh"`
	Web      Web                 `toml:"web"`
	Protocol Protocol            `toml:"protocol"`
	Podman   Podman              `toml:"podman"`
	Build    Build               `toml:"build"`
	Jobs     Jobs                `toml:"jobs"`
	Limits   Limits              `toml:"limits"`
	Queue    Queue               `toml:"queue"`
	Logs     Logs                `toml:"logs"`
	Events   Events              `toml:"events"`
	Log      Log                 `toml:"log"`
	Git      Git                 `toml:"git"`
	Push     Push                `toml:"push"`
	Pool     Pool                `toml:"pool"`
	Monitor  Monitor             `toml:"monitor"`
	Sign     Sign                `toml:"sign"`
	Cache    Cache               `toml:"cache"`
	Shell    Shell               `toml:"shell"`
	Retain   Retention           `toml:"retention"`
	Mail     Mail                `toml:"mail"`
	Webhooks []Webhook           `toml:"webhook"`
	Channels map[string]*Channel `toml:"channel"`

	// Seed says that the configuration is of the older form (see [LoadSeed]).
	Seed bool `toml:"-"`

	path string // of the file, for errors
	dir  string // what relative paths in it are relative to
	text []byte // of the file, to find lines in
}

// SSH is the door for maintainers.
type SSH struct {
	Listen string `toml:"listen"` // e.g. 127.0.0.1:2222
}

// Podman says which podman builds.
type Podman struct {
	URI     string `toml:"uri"`     // unix:///run/podman/podman.sock; blank: a service of Quarry's own
	Runtime string `toml:"runtime"` // runc or crun; blank: whichever works here
	IDBase  int    `toml:"id_base"` // first host id of the builds' user namespaces
	// ImageStores are further podman storage folders, only read, whose bases
	// can be used as if they were here.
	ImageStores []string `toml:"image_stores"`
}

// Build says how builds run.
type Build struct {
	Workers  int      `toml:"workers"`  // builds at once; 0: as many as there are cores
	Memory   Size     `toml:"memory"`   // bytes for all builds together; 0: three quarters of the machine's
	Command  string   `toml:"command"`  // builder in the image to call instead of the built-in steps
	Standard Duration `toml:"standard"` // build time of the standard package: one SBU
	// WorkersFor says on what each arch is built, as hostarch:targetarch:cost[:iscross];
	// none: each in a system of its own.
	WorkersFor []string `toml:"workers_for"`
	// Triplets name the cross toolchains of archs where Debian's names are not
	// theirs, e.g. aarch64 = "aarch64-unknown-linux-gnu".
	Triplets map[string]string `toml:"triplets"`
}

// Limits bound one build. A recipe may ask for less, never for more.
type Limits struct {
	Memory    Size     `toml:"memory"`
	Disk      Size     `toml:"disk"`
	Processes int64    `toml:"processes"`
	Files     uint64   `toml:"open_files"`
	Step      Duration `toml:"step"`    // wall time of one step
	Silence   Duration `toml:"silence"` // time without any output
	Log       Size     `toml:"log"`
}

// Queue says how often the farm looks for lost work, and when it holds back.
type Queue struct {
	Replan  Duration `toml:"replan"`
	MinFree Size     `toml:"min_free"` // bytes the state folder must have free for a build to start
}

// Logs bounds the kept logs.
type Logs struct {
	Keep Duration `toml:"keep"`
	Max  Size     `toml:"max"`
}

// Git names repositories on other git servers of this machine whose hooks hand
// over to this farm.
type Git struct {
	Extra   []string `toml:"extra"`    // globs of bare repositories, e.g. /srv/git/packages/*.git
	MaxPush Size     `toml:"max_push"` // largest push
	Group   string   `toml:"group"`    // whose hooks may reach this farm, e.g. git; blank: the daemon's own user only
	// Signed says what becomes of git push --signed: off, allowed (the default), or
	// required for every release.
	Signed string `toml:"signed"`
}

// Push says from where on a push has to be confirmed with -o confirm.
type Push struct {
	Confirm     int      `toml:"confirm"`      // builds that it makes or makes again; 0: never
	ConfirmTime Duration `toml:"confirm_time"` // that they are expected to take; 0: never
}

// Pool bounds the clean workspaces that are kept ready.
type Pool struct {
	Max       int      `toml:"max"`        // at one time; 0: one more than workers; -1: none is kept
	Idle      Duration `toml:"idle"`       // without a build of its channel and arch, before it is let go
	MinMemory Size     `toml:"min_memory"` // bytes of the machine's that stay available, else workspaces are let go
	MinDisk   Size     `toml:"min_disk"`   // bytes that the state folder has free, else workspaces are let go
}

// Monitor says how running builds are looked at.
type Monitor struct {
	Every Duration `toml:"every"` // between two samples
}

// Cache bounds what is kept to save time.
type Cache struct {
	Layers Size `toml:"layers"` // bytes of unpacked dependencies
}

// Size is a number of bytes, written as 512, "64 MiB" or "2G".
type Size int64

// UnmarshalText reads a size with an optional binary unit (K, M, G, T, with or
// without iB or B).
func (s *Size) UnmarshalText(b []byte) error {
	text := strings.ToUpper(strings.TrimSpace(string(b)))
	num := strings.TrimRight(text, "BI KMGT")
	unit := strings.TrimSpace(text[len(num):])
	unit = strings.TrimSuffix(strings.TrimSuffix(unit, "B"), "I")
	shift, ok := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[unit]
	var n int64
	if _, err := fmt.Sscanf(num+" ", "%d ", &n); err != nil || !ok || fmt.Sprint(n) != num || n < 0 || n > (1<<62)>>shift {
		return fmt.Errorf("size %q is not a number of bytes: write it as 512, \"64 MiB\" or \"2G\"", b)
	}
	*s = Size(n << shift)
	return nil
}

// Duration is a span of time, written as "90s", "10m", "2h" or "30d".
type Duration time.Duration

// UnmarshalText reads a duration of package time, or a whole number of days.
func (d *Duration) UnmarshalText(b []byte) error {
	text := string(b)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int
		if _, err := fmt.Sscanf(days+" ", "%d ", &n); err == nil && n >= 0 && n < 36500 && fmt.Sprint(n) == days {
			*d = Duration(n) * Duration(24*time.Hour)
			return nil
		}
	}
	v, err := time.ParseDuration(text)
	if err != nil || v < 0 {
		return fmt.Errorf("duration %q is not a span of time: write it as \"90s\", \"10m\", \"2h\" or \"30d\"", b)
	}
	*d = Duration(v)
	return nil
}

// Default is the configuration without a file: one channel, testing, for the
// machine's own architecture, everything under ./var.
func Default() *Config {
	host, err := os.Hostname()
	if err != nil || quarry.CheckUser(host) != nil {
		host = "quarry"
	}
	return &Config{
		State:          "var",
		DefaultChannel: "testing",
		Builder:        host,
		SSH:            SSH{Listen: "127.0.0.1:2222"},
		Web:            Web{Listen: "127.0.0.1:6680", Public: true, MaxUpload: 2 << 30},
		Protocol:       Protocol{Listen: "127.0.0.1:6694", Connections: 20_000, PerAddress: 256, PerToken: 256},
		Podman:         Podman{IDBase: 100000},
		Build:          Build{Standard: Duration(30 * time.Second)},
		Jobs:           defaultJobs(),
		Limits: Limits{
			Memory:    4 << 30,
			Disk:      20 << 30,
			Processes: 4096,
			Files:     65536,
			Step:      Duration(6 * time.Hour),
			Silence:   Duration(30 * time.Minute),
			Log:       64 << 20,
		},
		Queue:    Queue{Replan: Duration(5 * time.Minute), MinFree: 512 << 20},
		Logs:     Logs{Keep: Duration(90 * 24 * time.Hour), Max: 10 << 30},
		Events:   Events{Keep: Duration(30 * 24 * time.Hour), Max: 64 << 20},
		Log:      Log{Format: LogText},
		Git:      Git{MaxPush: 2 << 30, Signed: SignedAllowed},
		Push:     Push{Confirm: 50},
		Pool:     Pool{Idle: Duration(time.Hour), MinMemory: 512 << 20, MinDisk: 2 << 30},
		Monitor:  Monitor{Every: Duration(3 * time.Second)},
		Cache:    Cache{Layers: 20 << 30},
		Shell:    defaultShell(),
		Retain:   defaultRetention(),
		Mail:     defaultMail(),
		Channels: nil,
	}
}

// Load reads the file at path; a blank path means quarry.toml in the working
// directory if there is one, else the defaults. The older form of a
// configuration, a folder, is taken too, and looked for at [SeedDir] when there
// is no quarry.toml.
func Load(path string) (*Config, error) {
	explicit := path != ""
	if !explicit {
		path = "quarry.toml"
	}
	if explicit && IsSeed(path) {
		return LoadSeed(path)
	}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !explicit && IsSeed(filepath.Join(SeedDir, seedFile)):
		return LoadSeed(SeedDir)
	case errors.Is(err, fs.ErrNotExist) && !explicit:
		c := Default()
		return c, c.finish("")
	case err != nil:
		return nil, fmt.Errorf("configuration %s cannot be read: %w", path, err)
	}
	c, err := Parse(data, path)
	if err != nil {
		return nil, err
	}
	return c, c.finish(filepath.Dir(path))
}

// Parse reads a configuration; name is used in errors.
func Parse(data []byte, name string) (*Config, error) {
	c := Default()
	c.path, c.text = name, data
	dec := toml.NewDecoder(strings.NewReader(string(data))).DisallowUnknownFields()
	if err := dec.Decode(c); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) && len(strict.Errors) > 0 {
			row, _ := strict.Errors[0].Position()
			if slices.Equal(strict.Errors[0].Key(), toml.Key{"build", "jobs"}) {
				return nil, fmt.Errorf("%s:%d: key \"build.jobs\" is no more, as builds share the machine's jobs: remove it, or use jobs.max for the most that one build has (doc/jobs.md)", name, row)
			}
			return nil, fmt.Errorf("%s:%d: key %q is unknown: remove it or mend its spelling (doc/operating.md lists the keys)",
				name, row, strings.Join(strict.Errors[0].Key(), "."))
		}
		var de *toml.DecodeError
		if errors.As(err, &de) {
			row, col := de.Position()
			where := fmt.Sprintf("%s:%d:%d: ", name, row, col)
			if len(de.Key()) > 0 {
				where += fmt.Sprintf("key %q: ", strings.Join(de.Key(), "."))
			}
			return nil, errors.New(where + mend(de))
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, c.check()
}

// mismatch is what the TOML library says of a value of another type than the
// key's, with the names of Go's.
var mismatch = regexp.MustCompile(`cannot decode TOML (.*?) (?:in)?to (?:a |struct field \S+ of type )?(\S+)$`)

// mend says what is wrong with a value in the words of who wrote the file.
func mend(err error) string {
	s := strings.TrimPrefix(err.Error(), "toml: ")
	m := mismatch.FindStringSubmatch(s)
	if m == nil {
		return s
	}
	want := map[string]string{"string": `text in quotes`, "int": "a number", "int64": "a number", "uint64": "a number",
		"[]string": `a list such as ["x86_64"]`, "config.Channel": "a table such as [channel.testing]",
		"config.Setup": "a table such as [channel.testing.setup]", "map[string]string": `a table such as { "/etc/apt/sources.list" = "testing.list" }`,
		"bool": "true or false"}[m[2]]
	if want == "" && (strings.HasPrefix(m[2], "config.") || strings.HasPrefix(m[2], "map[")) {
		want = "a table such as [limits]"
	}
	if want == "" {
		return s
	}
	return fmt.Sprintf("%s is given, and it takes %s", m[1], want)
}

func (c *Config) check() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%s: %w", c.path, fmt.Errorf(format, args...))
	}
	if c.Channels == nil {
		c.Channels = map[string]*Channel{c.DefaultChannel: {}}
	}
	if err := c.checkUnits(); err != nil {
		return err
	}
	if err := c.Git.checkSigned(); err != nil {
		return bad("%w", err)
	}
	if err := c.checkChannels(); err != nil {
		return err
	}
	if err := c.checkWorkers(); err != nil {
		return err
	}
	if err := c.Jobs.check(c.MostSlots()); err != nil {
		return bad("%w", err)
	}
	if err := c.Shell.check(); err != nil {
		return bad("%w", err)
	}
	if err := c.Retain.check(); err != nil {
		return bad("%w", err)
	}
	if err := c.checkNotify(); err != nil {
		return bad("%w", err)
	}
	if err := c.Protocol.check(&c.Web); err != nil {
		return bad("%w", err)
	}
	if err := c.checkWeb(); err != nil {
		return bad("%w", err)
	}
	if err := c.checkEvents(bad); err != nil {
		return err
	}
	if _, port, err := net.SplitHostPort(c.SSH.Listen); err != nil || port == "" {
		return bad("ssh.listen %q is no address: write it as \"127.0.0.1:2222\", or \":2222\" for all interfaces", c.SSH.Listen)
	}
	switch {
	case c.State == "":
		return bad("state is blank: name the folder that Quarry keeps everything in")
	case c.Channels[c.DefaultChannel] == nil:
		return bad("default_channel %q is no channel: add [channel.%s] or name one of those that are there", c.DefaultChannel, c.DefaultChannel)
	case c.Build.Workers < 0:
		return bad("build.workers counts builds: it may not be negative")
	case c.Build.Standard <= 0:
		return bad("build.standard is the build time of one SBU: it must be more than 0")
	case c.Limits.Memory < 64<<20:
		return bad("limits.memory is %d bytes: no compiler runs in less than 64 MiB", c.Limits.Memory)
	case c.Limits.Processes < 16:
		return bad("limits.processes is %d: a build needs at least 16", c.Limits.Processes)
	case c.Limits.Disk < 1<<20, c.Limits.Log < 1<<10, c.Limits.Files < 64:
		return bad("limits.disk, limits.log or limits.open_files leaves a build no room: raise it")
	case c.Limits.Step <= 0, c.Limits.Silence <= 0, c.Queue.Replan <= 0:
		return bad("limits.step, limits.silence and queue.replan must be more than 0")
	case c.Push.Confirm < 0:
		return bad("push.confirm counts builds: use 0 for never, or a number from which on a push has to be confirmed")
	case c.Pool.Max < -1:
		return bad("pool.max is %d: use 0 for one more than build.workers, -1 for none, or a number of workspaces", c.Pool.Max)
	case c.Pool.Idle <= 0:
		return bad("pool.idle must be more than 0: to keep no workspaces ready, set pool.max to -1")
	case c.Monitor.Every < Duration(100*time.Millisecond), c.Monitor.Every > Duration(time.Hour):
		return bad("monitor.every is the time between two samples of a build: use \"100ms\" to \"1h\"")
	case c.Podman.URI != "" && !strings.HasPrefix(c.Podman.URI, "unix://"):
		return bad("podman.uri %q is not of the form unix:///path/to/podman.sock", c.Podman.URI)
	case c.Podman.IDBase < 1:
		return bad("podman.id_base %d would make a build's root the host's: use 100000 or more", c.Podman.IDBase)
	}
	return nil
}

func (c *Config) finish(dir string) error {
	if c.path == "" {
		c.path = "configuration"
	}
	c.dir = dir
	if err := c.check(); err != nil {
		return err
	}
	if !filepath.IsAbs(c.State) {
		c.State = filepath.Join(dir, c.State)
	}
	var err error
	c.State, err = filepath.Abs(c.State)
	return err
}

// SetState moves the state folder; a relative path is relative to the working
// directory.
func (c *Config) SetState(dir string) (err error) {
	c.State, err = filepath.Abs(dir)
	return err
}

// Workers is the number of builds at once.
func (c *Config) Workers() int {
	if c.Build.Workers > 0 {
		return c.Build.Workers
	}
	return runtime.NumCPU()
}

// Warm is the number of clean workspaces to keep ready at most.
func (c *Config) Warm() int {
	switch {
	case c.Pool.Max < 0:
		return 0
	case c.Pool.Max == 0:
		return c.Workers() + 1
	}
	return c.Pool.Max
}

// BuildMemory is how many bytes all builds together may ask for; 0: it is not
// known, and no bound.
func (c *Config) BuildMemory() int64 {
	if c.Build.Memory > 0 {
		return int64(c.Build.Memory)
	}
	var si unix.Sysinfo_t
	if unix.Sysinfo(&si) != nil {
		return 0
	}
	return int64(si.Totalram) * int64(si.Unit) / 4 * 3
}

// The places in the state folder.
func (c *Config) Socket() string    { return filepath.Join(c.State, "quarry.sock") } // control socket
func (c *Config) Text() string      { return filepath.Join(c.State, "quarry.text") } // socket of the text protocol
func (c *Config) Requests() string  { return filepath.Join(c.State, "requests") }    // outcomes for clients that were cut off
func (c *Config) Keys() string      { return filepath.Join(c.State, "keys") }        // public keys of people
func (c *Config) Tokens() string    { return filepath.Join(c.State, "tokens") }      // bearer tokens, without their secrets
func (c *Config) Repos() string     { return filepath.Join(c.State, "repos") }       // package repositories
func (c *Config) Results() string   { return filepath.Join(c.State, "results.git") } // the database
func (c *Config) Artifacts() string { return filepath.Join(c.State, "artifacts") }
func (c *Config) Output() string    { return filepath.Join(c.State, "output") } // finished artifacts by channel and name
func (c *Config) LogDir() string    { return filepath.Join(c.State, "logs") }
func (c *Config) Journal() string   { return filepath.Join(c.State, "queue") }
func (c *Config) Spool() string     { return filepath.Join(c.State, "spool") } // pushes handed over while no daemon ran
func (c *Config) Work() string      { return filepath.Join(c.State, "work") }  // workspaces of running builds
func (c *Config) HostKey() string   { return filepath.Join(c.State, "ssh_host_ed25519_key") }

// HostArch is this machine's architecture as uname -m prints it.
func HostArch() string {
	if a, ok := map[string]string{"amd64": "x86_64", "386": "i686", "arm64": "aarch64", "arm": "armv7l",
		"ppc64le": "ppc64le", "riscv64": "riscv64", "s390x": "s390x", "loong64": "loongarch64"}[runtime.GOARCH]; ok {
		return a
	}
	return runtime.GOARCH
}
