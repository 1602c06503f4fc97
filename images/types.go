package images

import (
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Morphux/quarry/internal/cgroup"
)

// Base is a clean, installed system for one architecture: an OCI image in
// podman's storage that never changes. Loading another base under the same ref
// makes another Base; builds that run keep theirs.
type Base struct {
	Name string `json:"name,omitempty"` // "" for the arch's default base, else e.g. trixie
	Arch string `json:"arch"`           // as uname -m prints it, e.g. x86_64
	// Digest covers all content of the system and nothing else: the same
	// tarball has the same one whenever and wherever it is loaded. It is the
	// ChainID of the image's layers (OCI image specification), sha256:...
	Digest  string    `json:"digest"`
	Image   string    `json:"image"`   // id of the image in podman's storage, sha256:...
	Created time.Time `json:"created"` // when it was loaded
	Size    int64     `json:"size"`    // bytes, unpacked
	Source  string    `json:"source"`  // where it comes from, e.g. morphux-x86_64.tar.xz or mmdebstrap bookworm
}

// Ref is what the base is called: ARCH or ARCH:NAME.
func (b Base) Ref() string { return BaseRef{b.Arch, b.Name}.String() }

// Channel is a line of releases, as far as its bases and their setup go.
type Channel struct {
	Name  string
	Archs []string // that it is built for
	Base  string   // name of the bases that it stands on; "" for the archs' default ones
	Setup Setup
}

// Setup says how a channel brings its base up to date. One without files and
// commands changes nothing: the instance is the base.
type Setup struct {
	Files []SetupFile // copied in first, in this order
	// Update are lines for /bin/sh -c, run one after the other as the
	// container's root, with network. The first that fails ends the update.
	Update []string
	// MaxAge is how old an instance may be before it is made again; 0: a day.
	MaxAge time.Duration
	// Timeout bounds the making of an instance; 0: half an hour.
	Timeout time.Duration
	// LocalMirror lets the commands reach this machine's own 127.0.0.1, as
	// 10.0.2.2. Without it they reach only what is elsewhere.
	LocalMirror bool
}

// SetupFile is a file that a setup copies in.
type SetupFile struct {
	Path string      // inside, absolute, e.g. /etc/apt/sources.list
	Mode fs.FileMode // permission bits; 0 stands for 0644
	Data []byte
}

// Instance is a base brought up to date for a channel. Like a base it never
// changes: an update makes another one, from the base again.
type Instance struct {
	Channel string `json:"channel"`
	Arch    string `json:"arch"`
	Base    Base   `json:"base"`
	Digest  string `json:"digest"` // of all content, as a base's; "" while there is none
	Image   string `json:"image"`  // id in podman's storage, sha256:...
	Setup   string `json:"setup"`  // digest of the setup that made it
	// Made is when its content was made. Checked is when an update last ended
	// well, which may have found nothing to change.
	Made    time.Time `json:"made"`
	Checked time.Time `json:"checked"`
	Size    int64     `json:"size"` // bytes, unpacked, its base included
	// Trouble tells why the last update failed, in one line, and TroubleAt when;
	// until one ends well this instance stays in use.
	Trouble   string    `json:"trouble,omitempty"`
	TroubleAt time.Time `json:"trouble_at,omitzero"`
}

// Limits bound what one workspace may use. A value of 0 means the store's
// default, which is never "without limit" (see [DefaultLimits]).
type Limits struct {
	Memory   int64   `json:"memory"`    // bytes of memory, swap included
	Pids     int64   `json:"pids"`      // processes and threads at one time
	CPUs     float64 `json:"cpus"`      // processors' worth of time, e.g. 1.5
	Disk     int64   `json:"disk"`      // bytes in the writable layer and the workspace's folder together
	NoFile   uint64  `json:"nofile"`    // open files per process; never above the daemon's own hard limit
	NProc    uint64  `json:"nproc"`     // processes per user id; never above the daemon's own hard limit
	FileSize int64   `json:"file_size"` // bytes in one file
	Shm      int64   `json:"shm"`       // bytes in /dev/shm
}

// Spec says what workspace is wanted.
type Spec struct {
	Name    string // of the build, e.g. its number; letters, digits and - . _
	Arch    string
	Channel string
	Limits  Limits
	Network bool // false: not even a route
	// About is what lines of the log about the workspace have besides its name, as
	// slog takes it: for which build it is.
	About []any
}

// Workspace is a throw-away layer over an instance in which one build runs: a
// started container whose first process is the guest, already connected.
// Whoever asked for it owns it and must Close it.
type Workspace struct {
	Name        string // as in Spec
	Arch        string
	Channel     string
	Base        Base
	Instance    Instance
	Warm        bool     // it was ready before it was asked for
	Emulation   string   // native, compat or emulated
	Dir         string   // host folder seen as /quarry inside
	UID, GID    int      // host ids of the container's root
	Upper       string   // host folder with what the container wrote over its base; deleted files are overlay whiteouts
	Conn        net.Conn // to the guest
	Runtime     string   // e.g. runc
	ContainerID string
	Limits      Limits // as they really stand
	Made        Timing // where the time of making it went

	store     *Store
	log       *slog.Logger
	container string // its name
	asked     bool   // podman was asked for the container
	cgroup    cgroup.Group
	gen       int64 // of the service
	pid       int   // of the first process as this process sees it; -1 when not known
	counted   bool  // by the pool, as one that a build has
	stop      func()
	laying    laying
	kept      atomic.Bool // though its build is over
	idle      atomic.Bool // and nobody uses it: nothing of a build runs in it

	fdMu   sync.Mutex // guards the following
	initFD int        // pidfd of the first process; -1 when there is none

	mu     sync.Mutex // guards the following
	over   string     // set by the watcher: why the disk limit killed it
	killed bool       // by Kill or Close
	spare  bool       // the pool's: no build has it yet
	lost   string     // set by Sanitize: why the farm took it from its build
	closed bool
	usage  Usage        // highest values read until now; they stay after the cgroup is gone
	disk   cgroup.Count // bytes, as last measured
}

// Timing says where the time of making a workspace went.
type Timing struct {
	Create    time.Duration // container created in podman's storage, its layer mounted
	Start     time.Duration // first process running
	Handshake time.Duration // until the guest connected

	// Take is the time from asking for the workspace until it was there. For a
	// warm one the others were spent before anybody asked.
	Take time.Duration
}

// Total is the time of making it, whenever that was.
func (t Timing) Total() time.Duration { return t.Create + t.Start + t.Handshake }

// Death says why a workspace's first process is gone. The zero value means
// that it lives.
type Death struct {
	Dead     bool
	ExitCode int    // of the first process; 128+n when signal n ended it
	OOM      bool   // the kernel killed something in it for want of memory
	Pids     bool   // it hit its limit on processes
	Disk     bool   // the farm killed it for using more disk than it may
	Killed   bool   // the farm killed it (Kill, Close or the disk limit)
	Reason   string // one line for people
}

func (d Death) String() string {
	if !d.Dead {
		return "alive"
	}
	if d.Reason != "" {
		return d.Reason
	}
	return fmt.Sprintf("the workspace's first process ended with status %d", d.ExitCode)
}

// Usage is what a workspace used until now, as its cgroup tells. A value that
// the kernel does not tell is 0.
type Usage struct {
	PeakMemory int64         // bytes, file cache included: the kernel's own high-water mark
	Anonymous  int64         // bytes without file cache; the highest of samples taken every second
	User, Sys  time.Duration // CPU time of all processes
	OOMKills   int64         // processes killed for want of memory
	PidsHits   int64         // forks refused by the limit on processes
	Read       int64         // bytes that came from disks
	Written    int64         // bytes that went to disks
	PeakProcs  int64         // processes and threads at one time, without the guest's own
	Disk       int64         // bytes in the writable layer and the workspace's folder, the most that was measured
}

// Progress tells how far a long piece of work is.
type Progress struct {
	Step  string // e.g. reading, importing, bootstrapping
	Done  int64  // bytes
	Total int64  // bytes; 0 when not known
	Line  string // a line of output of the tool that does the work; may be empty
}
