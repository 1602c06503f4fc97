package quarry

import (
	"strings"
	"time"
)

// Outcome is everything a finished attempt has to say. A failed build is an
// Outcome too (Status Failed with a Failure): only the farm's own troubles are
// errors. It is saved before the record is committed, so that a crash between
// the two loses nothing.
type Outcome struct {
	Build    Build     `json:"build"`
	Status   State     `json:"status"` // Succeeded or Failed
	Info     Info      `json:"info"`
	Steps    []Step    `json:"steps"`
	Usage    Usage     `json:"usage"`
	Failure  *Failure  `json:"failure,omitempty"`
	Facts    *Facts    `json:"facts,omitempty"`    // only when succeeded
	Artifact *Artifact `json:"artifact,omitempty"` // only when succeeded
	Deps     []DepUsed `json:"deps,omitempty"`
	Host     HostInfo  `json:"host"`
	Started  time.Time `json:"started"`
	Ended    time.Time `json:"ended"`
	LogLines []string  `json:"log_lines,omitempty"` // the last 200 at most; filled for failures
	Warnings []string  `json:"warnings,omitempty"`
	LogSum   string    `json:"log_sum,omitempty"` // SHA-256 of the whole log, hex
}

// Info is what the recipe says about the package beyond how to build it. It is
// carried into the record unchanged.
type Info struct {
	Description string     `json:"description" toml:"description"`
	Category    string     `json:"category,omitempty" toml:"category,omitempty"`
	Needed      []string   `json:"needed,omitempty" toml:"needed,omitempty"`
	Recommended []string   `json:"recommended,omitempty" toml:"recommended,omitempty"`
	Optional    []string   `json:"optional,omitempty" toml:"optional,omitempty"`
	Provides    []string   `json:"provides,omitempty" toml:"provides,omitempty"` // virtual packages, as name or name-version
	Groups      []Group    `json:"groups,omitempty" toml:"groups,omitempty"`
	Users       []User     `json:"users,omitempty" toml:"users,omitempty"`
	Kernel      []string   `json:"kernel,omitempty" toml:"kernel,omitempty"` // e.g. +CONFIG_TUN
	Files       []FileRule `json:"files,omitempty" toml:"files,omitempty"`
	Recipe      string     `json:"recipe,omitempty" toml:"recipe,omitempty"` // SHA-256 of package.json
}

// Group is a system group that the package wants.
type Group struct {
	Name string `json:"group_name" toml:"name"`
	GID  string `json:"guid,omitempty" toml:"gid,omitempty"`
}

// User is a system user that the package wants.
type User struct {
	Name    string `json:"username" toml:"name"`
	Comment string `json:"comment,omitempty" toml:"comment,omitempty"`
	Home    string `json:"home_dir,omitempty" toml:"home,omitempty"`
	Group   string `json:"group,omitempty" toml:"group,omitempty"`
	Shell   string `json:"shell,omitempty" toml:"shell,omitempty"`
	UID     string `json:"uid,omitempty" toml:"uid,omitempty"`
}

// FileRule is one entry of the recipe's files section.
type FileRule struct {
	Path string `json:"path" toml:"path"`
	Mode string `json:"mode,omitempty" toml:"mode,omitempty"`
	Type string `json:"type,omitempty" toml:"type,omitempty"`
}

// The steps of a build, in Morphux's order.
const (
	StepPrepare   = "prepare" // the farm's: sources and dependencies brought in
	StepBefore    = "before"
	StepPatches   = "patches"
	StepConfigure = "configure"
	StepMake      = "make"
	StepTest      = "test"
	StepInstall   = "install"
	StepAfter     = "after"
	StepExtract   = "extract" // the farm's: reading the staged tree
)

// Step is one step as it went. Durations are in nanoseconds in JSON.
type Step struct {
	Name   string        `json:"name"`
	Status int           `json:"status"` // exit status; 128+n when killed by signal n
	Wall   time.Duration `json:"wall"`
	User   time.Duration `json:"user"` // CPU of all its processes
	Sys    time.Duration `json:"sys"`
	RSS    int64         `json:"rss,omitempty"`    // largest process, bytes
	Killed string        `json:"killed,omitempty"` // why the farm ended it, e.g. "no output for 10m0s"
	// SlotTime is for how long it had how many slots: a minute with four of them is
	// four minutes. 0 where the farm does not share out slots.
	SlotTime time.Duration `json:"slot_time,omitempty"`
}

// Usage is what the whole build used: all that ran in its workspace, from the
// control group. What the kernel cannot tell is 0.
type Usage struct {
	PeakMemory int64         `json:"peak_memory"`              // bytes at one time, file cache included
	PeakAnon   int64         `json:"peak_anonymous,omitempty"` // bytes at one time that no file backs; the highest of samples
	User       time.Duration `json:"user,omitempty"`           // CPU time; in nanoseconds in JSON
	Sys        time.Duration `json:"sys,omitempty"`
	Read       int64         `json:"read,omitempty"`           // bytes that came from disks
	Written    int64         `json:"written,omitempty"`        // bytes that went to disks
	PeakProcs  int64         `json:"peak_processes,omitempty"` // processes and threads at one time
	PeakDisk   int64         `json:"peak_disk,omitempty"`      // bytes of the workspace; the most that was measured
	SourceSize int64         `json:"source_size"`              // bytes

	// The following are of the slots that the build had of its machine's, the
	// right to run one job at a time each. All are 0 where the farm shares out none.
	SlotTime time.Duration `json:"slot_time,omitempty"` // slots had, times the time: a minute with four is four minutes
	PeakJobs int           `json:"peak_jobs,omitempty"` // the most jobs at one time
	Width    float64       `json:"width,omitempty"`     // jobs at one time in the mean, while there were more than one; 1 if there never were
	Forced   string        `json:"forced,omitempty"`    // how it ran more jobs than it was given; "" if it did not
}

// Efficiency is the CPU time for each second of a slot: near 1 where every slot
// kept a processor busy, more where a job is more than one process. It is 0 where
// nobody knows.
func (u *Usage) Efficiency() float64 {
	if u.SlotTime < time.Millisecond {
		return 0
	}
	return (u.User + u.Sys).Seconds() / u.SlotTime.Seconds()
}

// Cause says in one word why a build failed. Reviewers group by it.
type Cause string

// Why builds fail.
const (
	CauseExit    Cause = "exit"    // a step's command ended with a status other than 0
	CauseTime    Cause = "time"    // a step took too long
	CauseSilence Cause = "silence" // a step printed nothing for too long
	CauseMemory  Cause = "memory"
	CauseProcs   Cause = "processes"
	CauseDisk    Cause = "disk"
	CauseLog     Cause = "log"    // the log grew over its limit
	CauseEscape  Cause = "escape" // install wrote outside the staging directory
	CauseOutput  Cause = "output" // what it installed cannot be accepted
	CauseRecipe  Cause = "recipe" // e.g. a patch that it names is missing
)

// Failure says why a build failed, for a reviewer and for its maintainer.
type Failure struct {
	Step      string   `json:"step"` // e.g. make
	Cause     Cause    `json:"cause"`
	Message   string   `json:"message"`         // one line, e.g. "make ended with status 2"
	Status    int      `json:"status"`          // exit status of the step, 0 when it has none
	Command   string   `json:"command"`         // what the step ran, as a person would type it
	Reproduce string   `json:"reproduce"`       // a command that shows the failure again
	Paths     []string `json:"paths,omitempty"` // for escape and output: the paths, quoted when odd

	// The following explain it, from the attempt's whole log (see package explain).
	// All text is safe to show and bounded.
	Class   string   `json:"class,omitempty"`   // kind of trouble, e.g. missing-header; doc/failures.md lists them
	Error   string   `json:"error,omitempty"`   // first error line, e.g. "a.c:1:10: fatal error: zlib.h: No such file or directory"
	Line    int64    `json:"line,omitempty"`    // its line in the build's log, from 1; 0 when there is none
	Excerpt []string `json:"excerpt,omitempty"` // the lines around it, 20 at most
	Hint    string   `json:"hint,omitempty"`    // what to do, one sentence
}

// Reason is a failure in one line: where it failed, of what, and the first line of
// the log that says so.
func (f *Failure) Reason() string {
	s := f.Message
	if f.Step != "" && !strings.HasPrefix(s, f.Step+" ") { // "make ended with status 2"
		s = f.Step + ": " + s
	}
	switch f.Cause {
	case CauseTime, CauseSilence, CauseLog: // of these the log has no error, only a last line
		return s
	}
	if f.Error != "" && !strings.Contains(s, f.Error) {
		s += ": " + f.Error
	}
	return s
}

// HostInfo says where and in what the build ran.
type HostInfo struct {
	Builder   string `json:"builder"`         // e.g. farm1
	Base      string `json:"base"`            // digest of the base's content, sha256:...
	Instance  string `json:"instance"`        // digest of the instance's content; the base's where the channel has no setup
	Emulation string `json:"emulation"`       // native, compat or emulated: how the machine runs the programs of the instance
	Cross     string `json:"cross,omitempty"` // arch of the instance, where the package was cross built for another one
	Kernel    string `json:"kernel"`
	Runtime   string `json:"runtime"` // e.g. runc
	CPUs      int    `json:"cpus"`
	Quarry    string `json:"quarry"` // version of Quarry

	// What a build may have had: 0 is no limit.
	Memory    int64 `json:"memory,omitempty"`    // bytes
	Disk      int64 `json:"disk,omitempty"`      // bytes
	Processes int64 `json:"processes,omitempty"` // and threads
	Step      int64 `json:"step,omitempty"`      // seconds that one step may take
	Silence   int64 `json:"silence,omitempty"`   // seconds without output
	Log       int64 `json:"log,omitempty"`       // bytes of output

	Jobs    int    `json:"jobs,omitempty"`    // make -j
	Command string `json:"command,omitempty"` // builder in the image that was called instead of the built-in steps
	Binary  string `json:"binary,omitempty"`  // SHA-256 of the quarry binary that built, hex
}

// DepUsed is a dependency that was installed into the workspace.
type DepUsed struct {
	Package  string `json:"package" toml:"package"`
	Version  string `json:"version" toml:"version"`
	Artifact string `json:"artifact" toml:"artifact"` // SHA-256 of its artifact, hex
	// ABI is what it offered to be built against, see Facts.ABI.
	ABI string `json:"abi,omitempty" toml:"abi,omitempty"`
	// Direct says that the recipe names it, and not only another dependency.
	Direct bool `json:"direct,omitempty" toml:"direct,omitempty"`
	// Arch is that of the machine, for the tools of a cross build. "" for what is
	// of the arch that was built for.
	Arch string `json:"arch,omitempty" toml:"arch,omitempty"`
}

// Artifact is the archive of what a package installs.
type Artifact struct {
	SHA256 string `json:"sha256"` // hex; also its name in the artifact store
	Size   int64  `json:"size"`   // bytes, compressed
}

// Facts is what extraction finds in the staged tree.
type Facts struct {
	Files      []File          `json:"files"`       // sorted by path, bytewise
	Size       int64           `json:"size"`        // apparent size of regular files, bytes, each hard-linked file once
	DiskSize   int64           `json:"disk_size"`   // blocks really used, bytes
	SizeBefore int64           `json:"size_before"` // of the system before the install, bytes; 0 when not measured
	Libraries  []NeededLibrary `json:"libraries,omitempty"`
	ABI        string          `json:"abi,omitempty"` // digest of what others are built against, hex; "" when there is nothing such
	Warnings   []string        `json:"warnings,omitempty"`
}

// FileKind is what a path is to the file system.
type FileKind string

// The kinds of files.
const (
	KindRegular  FileKind = "file"
	KindDir      FileKind = "dir"
	KindSymlink  FileKind = "link"
	KindHardlink FileKind = "hardlink" // a further name of a file listed before it
	KindChar     FileKind = "char"
	KindBlock    FileKind = "block"
	KindFIFO     FileKind = "fifo"
	KindSocket   FileKind = "socket"
)

// Class is what a file is to the people who use it.
type Class string

// The classes of files.
const (
	ClassBinary Class = "binary" // ELF executable
	ClassShared Class = "shared" // ELF shared library
	ClassStatic Class = "static" // ar archive of objects
	ClassObject Class = "object" // ELF relocatable, kernel module
	ClassConfig Class = "config" // under /etc
	ClassHeader Class = "header"
	ClassMan    Class = "man"
	ClassInfo   Class = "info"
	ClassLocale Class = "locale"
	ClassDoc    Class = "doc"
	ClassScript Class = "script" // begins with #!
	ClassOther  Class = "other"
)

// File is one path of the staged tree.
type File struct {
	Path        string   `json:"path"` // absolute, as installed: /usr/bin/minigzip; any bytes but NUL
	Kind        FileKind `json:"kind"`
	Class       Class    `json:"class,omitempty"`
	Mode        uint32   `json:"mode"` // permission bits with setuid, setgid and sticky: 04755
	UID         uint32   `json:"uid"`  // as inside the workspace
	GID         uint32   `json:"gid"`
	Size        int64    `json:"size,omitempty"`
	SHA256      string   `json:"sha256,omitempty"` // regular files, hex
	Target      string   `json:"target,omitempty"` // of a link; of a hard link the path of the first name
	Major       uint32   `json:"major,omitempty"`  // devices
	Minor       uint32   `json:"minor,omitempty"`
	Interpreter string   `json:"interpreter,omitempty"` // of a script, e.g. /bin/sh
	ELF         *ELF     `json:"elf,omitempty"`
}

// ELF is what an ELF file says of itself.
type ELF struct {
	Arch        string   `json:"arch"`                  // as uname -m names it, e.g. x86_64; EM_n for an unknown machine
	Type        string   `json:"type"`                  // exec, dyn, rel, core
	Interpreter string   `json:"interpreter,omitempty"` // e.g. /lib64/ld-linux-x86-64.so.2
	Soname      string   `json:"soname,omitempty"`
	Needed      []string `json:"needed,omitempty"`
	RPath       []string `json:"rpath,omitempty"`
	RunPath     []string `json:"runpath,omitempty"`
	Static      bool     `json:"static,omitempty"`   // an executable without interpreter and needed libraries
	Stripped    bool     `json:"stripped,omitempty"` // no .symtab
	BuildID     string   `json:"build_id,omitempty"`
	PIE         bool     `json:"pie,omitempty"`
	RELRO       string   `json:"relro,omitempty"` // "", partial or full
	NX          bool     `json:"nx,omitempty"`    // stack not executable
	// Symbols is the SHA-256, in hex, of what a shared library with a soname
	// exports: names, versions, kinds, sizes of data. Exports is how many.
	Symbols string `json:"symbols,omitempty"`
	Exports int    `json:"exports,omitempty"`
}

// NeededLibrary says where a needed library comes from.
type NeededLibrary struct {
	Soname string   `json:"soname" toml:"soname"`                   // e.g. libz.so.1
	Arch   string   `json:"arch,omitempty" toml:"arch,omitempty"`   // of the files that need it
	From   string   `json:"from" toml:"from"`                       // package, dependency, base or nowhere
	Path   string   `json:"path,omitempty" toml:"path,omitempty"`   // e.g. /usr/lib/libz.so.1
	Owner  string   `json:"owner,omitempty" toml:"owner,omitempty"` // package name when From is dependency
	By     []string `json:"by" toml:"by"`                           // paths that need it
}
