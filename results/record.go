package results

import (
	"time"

	"github.com/Morphux/quarry"
)

// Schema is the version of the record format that this package writes. A
// reader accepts every record of this version, with whatever keys it does not
// know, and refuses others: the number only changes when an old key changes
// its meaning.
const Schema = 1

// Record is what the repository says of one finished build, as it stands in
// ARCH.toml. All times are in UTC with milliseconds, all durations are seconds
// with milliseconds, all sizes are bytes. A value that is not known is absent,
// which reads as the zero value.
type Record struct {
	Schema int `toml:"schema"`

	// These say what was built. They and the next few stand before the first
	// table of the file, so that a client can stop reading there.
	Status  quarry.State `toml:"status"` // succeeded or failed
	Package string       `toml:"package"`
	Version string       `toml:"version"`
	Arch    string       `toml:"arch"`
	Channel string       `toml:"channel"`
	Source  string       `toml:"source"`          // commit in the package's repository that was built
	Build   int64        `toml:"build"`           // number of the build; a higher one is newer
	Key     string       `toml:"key"`             // identity of the build, see quarry.BuildKey
	Nonce   string       `toml:"nonce,omitempty"` // part of the identity of a rebuild on request
	Attempt int          `toml:"attempt,omitempty"`
	Why     string       `toml:"why,omitempty"` // it was built, where a push was not the reason
	// Without is what the recipe needs and the build went without: it is built again
	// when that is there. See quarry.Build.
	Without []string `toml:"without,omitempty"`
	// Revision counts, from 1, the artifacts that the version has had on the arch:
	// a rebuild with the same result keeps it. Failures have none.
	Revision int64 `toml:"revision,omitempty"`

	Description   string `toml:"description,omitempty"`
	Category      string `toml:"category,omitempty"`
	Artifact      string `toml:"artifact,omitempty"`       // SHA-256 of the archive, hex
	ArtifactSize  int64  `toml:"artifact_size,omitempty"`  // bytes, compressed
	InstalledSize int64  `toml:"installed_size,omitempty"` // apparent bytes of all files
	ABI           string `toml:"abi,omitempty"`            // quarry.Facts.ABI
	LogSum        string `toml:"log_sha256,omitempty"`     // of the whole log, hex

	SourceTime time.Time `toml:"source_time,omitzero"` // of the commit; SOURCE_DATE_EPOCH of the build
	Pushed     time.Time `toml:"pushed,omitzero"`
	Started    time.Time `toml:"started,omitzero"`
	Ended      time.Time `toml:"ended,omitzero"`

	Warnings []string `toml:"warnings,omitempty,multiline"`

	Failure      *Failure         `toml:"failure,omitempty"`
	Packager     quarry.Packager  `toml:"packager"`
	Time         Times            `toml:"time"`
	Usage        Usage            `toml:"usage"`
	Contents     *Contents        `toml:"contents,omitempty"`
	Recipe       Recipe           `toml:"recipe"`
	Steps        []Step           `toml:"step,omitempty"`
	Dependencies []quarry.DepUsed `toml:"dependency,omitempty"`
	Libraries    []Library        `toml:"library,omitempty"`
	Host         Host             `toml:"host"`
}

// Ref is what a planner needs of the record.
func (r *Record) Ref() quarry.RecordRef {
	return quarry.RecordRef{Status: r.Status, Source: r.Source, Build: r.Build, Key: r.Key}
}

// Target is the place of the record.
func (r *Record) Target() quarry.Target {
	return quarry.Target{Channel: r.Channel, Package: r.Package, Version: r.Version, Arch: r.Arch}
}

// Failure says why a build failed.
type Failure struct {
	Step      string       `toml:"step"`
	Cause     quarry.Cause `toml:"cause"`
	Message   string       `toml:"message"`
	Status    int          `toml:"exit_status"` // of the step; 0 when it had none, 128+n after signal n
	Command   string       `toml:"command,omitempty"`
	Reproduce string       `toml:"reproduce,omitempty"`
	Paths     []string     `toml:"paths,omitempty,multiline"`
	// The following explain it, see quarry.Failure.
	Class   string   `toml:"class,omitempty"`
	Error   string   `toml:"error,omitempty"`
	Line    int64    `toml:"line,omitempty"`
	Excerpt []string `toml:"excerpt,omitempty,multiline"`
	Hint    string   `toml:"hint,omitempty"`

	Log []string `toml:"log,omitempty,multiline"` // the last 200 lines at most
}

// Times are durations in seconds. The named steps are wall time.
type Times struct {
	Total     float64 `toml:"total"` // from the start of the attempt to its end, the farm's own steps too
	Steps     float64 `toml:"steps"` // all steps of the recipe, before to after
	Configure float64 `toml:"configure"`
	Make      float64 `toml:"make"`
	Test      float64 `toml:"test"`
	Install   float64 `toml:"install"`
	User      float64 `toml:"user"` // CPU of all steps
	Sys       float64 `toml:"sys"`
	// SBU is the steps without the tests, in units of SBUSeconds, which is how
	// long the same took for the farm's standard package. 0 when the farm has no
	// standard.
	SBU        float64 `toml:"sbu,omitempty"`
	SBUSeconds float64 `toml:"sbu_seconds,omitempty"`
}

// Usage is what the whole build used: all that ran in its workspace.
type Usage struct {
	PeakMemory int64   `toml:"peak_memory,omitempty"`    // bytes at one time, file cache included
	PeakAnon   int64   `toml:"peak_anonymous,omitempty"` // bytes at one time that no file backs; the highest of samples
	User       float64 `toml:"user,omitempty"`           // CPU time, seconds
	Sys        float64 `toml:"sys,omitempty"`
	Read       int64   `toml:"read,omitempty"`           // bytes that came from disks
	Written    int64   `toml:"written,omitempty"`        // bytes that went to disks
	PeakProcs  int64   `toml:"peak_processes,omitempty"` // processes and threads at one time
	PeakDisk   int64   `toml:"peak_disk,omitempty"`      // bytes of the workspace; the most that was measured
	SourceSize int64   `toml:"source_size,omitempty"`    // bytes

	// Of the slots that it had, see quarry.Usage; absent where the farm shares out none.
	SlotSeconds float64 `toml:"slot_seconds,omitempty"` // slots had, times seconds
	PeakJobs    int64   `toml:"peak_jobs,omitempty"`    // the most jobs at one time
	Width       float64 `toml:"width,omitempty"`        // jobs at one time in the mean, while there were more than one
	Efficiency  float64 `toml:"efficiency,omitempty"`   // CPU time for each second of a slot
	Forced      string  `toml:"forced,omitempty"`       // how it ran more jobs than it was given
}

// Contents sums up what the package installs; the files themselves are in
// ARCH.files.toml.
type Contents struct {
	Files      int64 `toml:"files"`                 // regular files, further names of one not counted
	DiskSize   int64 `toml:"disk_size"`             // bytes on disk
	SizeBefore int64 `toml:"size_before,omitempty"` // of the system before the install
	SizeAfter  int64 `toml:"size_after,omitempty"`  // and after

	Classes  map[string]int64 `toml:"classes,omitempty,inline"` // number of files by class
	Sonames  []Raw            `toml:"sonames,omitempty"`        // of the shared libraries in it
	Warnings []string         `toml:"warnings,omitempty,multiline"`
}

// Recipe is what the recipe says beyond how to build, unchanged.
type Recipe struct {
	Digest      string            `toml:"sha256,omitempty"` // of package.json
	Needed      []string          `toml:"needed,omitempty"`
	Recommended []string          `toml:"recommended,omitempty"`
	Optional    []string          `toml:"optional,omitempty"`
	Provides    []string          `toml:"provides,omitempty"`
	Kernel      []string          `toml:"kernel,omitempty"`
	Groups      []quarry.Group    `toml:"groups,omitempty"`
	Users       []quarry.User     `toml:"users,omitempty"`
	Files       []quarry.FileRule `toml:"files,omitempty"`
}

// Step is one step as it went; times in seconds.
type Step struct {
	Name   string  `toml:"name"`
	Status int     `toml:"exit_status"`
	Wall   float64 `toml:"wall"`
	User   float64 `toml:"user"`
	Sys    float64 `toml:"sys"`
	RSS    int64   `toml:"rss,omitempty"` // largest process, bytes
	Killed string  `toml:"killed,omitempty"`
	// SlotSeconds is the slots that it had, times seconds; see quarry.Step.
	SlotSeconds float64 `toml:"slot_seconds,omitempty"`
}

// Library says where a needed library comes from.
type Library struct {
	Soname Raw    `toml:"soname"`
	Arch   string `toml:"arch,omitempty"`
	From   string `toml:"from"` // package, dependency, base or nowhere
	Path   Raw    `toml:"path,omitempty"`
	Owner  string `toml:"owner,omitempty"`
	Count  int64  `toml:"count"`        // how many files need it
	By     []Raw  `toml:"by,omitempty"` // the first of them, 8 at most; all are in ARCH.files.toml
}

// Host says where and in what the build ran.
type Host struct {
	Builder   string `toml:"builder,omitempty"`
	Base      string `toml:"base,omitempty"`
	Instance  string `toml:"instance,omitempty"`
	Emulation string `toml:"emulation,omitempty"`
	Cross     string `toml:"cross,omitempty"` // arch of the instance, where the package was cross built for another one
	Kernel    string `toml:"kernel,omitempty"`
	Runtime   string `toml:"runtime,omitempty"`
	CPUs      int    `toml:"cpus,omitempty"`
	Quarry    string `toml:"quarry,omitempty"`

	// What the build may have had, see quarry.HostInfo.
	Memory    int64 `toml:"memory,omitempty"`
	Disk      int64 `toml:"disk,omitempty"`
	Processes int64 `toml:"processes,omitempty"`
	Step      int64 `toml:"step,omitempty"`    // seconds
	Silence   int64 `toml:"silence,omitempty"` // seconds
	Log       int64 `toml:"log,omitempty"`     // bytes of output

	Jobs    int    `toml:"jobs,omitempty"`
	Command string `toml:"command,omitempty"` // builder in the image that was called instead of the built-in steps
	Binary  string `toml:"binary,omitempty"`  // SHA-256 of the quarry binary
}
