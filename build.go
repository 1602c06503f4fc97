package quarry

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"
)

// Packager is who released something. It runs from the push to the record, so
// that the packager is not lost to the builder (Quarters' wish).
type Packager struct {
	User  string `json:"user,omitempty" toml:"user,omitempty"`   // name of the key file, e.g. alice
	Name  string `json:"name,omitempty" toml:"name,omitempty"`   // e.g. Alice Liddell
	Email string `json:"email,omitempty" toml:"email,omitempty"` // e.g. alice@morphux.org
	Key   string `json:"key,omitempty" toml:"key,omitempty"`     // fingerprint of the key that pushed, e.g. SHA256:uNiV...

	// Of a push that was signed (git push --signed): the fingerprint of the key that
	// signed it, and the blob in the package's repository that is the certificate.
	Signed      string `json:"signed,omitempty" toml:"signed,omitempty"`
	Certificate string `json:"certificate,omitempty" toml:"certificate,omitempty"`
}

// Person is the packager without what is of one push alone.
func (p Packager) Person() Packager {
	p.Signed, p.Certificate = "", ""
	return p
}

// Release is one version of a package at one commit, made by pushing the
// branch name-version.
type Release struct {
	Package  string    `json:"package"`
	Version  string    `json:"version"`
	Channel  string    `json:"channel"`
	Commit   string    `json:"commit"` // 40 hex digits in the package's repository
	Time     time.Time `json:"time"`   // the commit's committer time; becomes SOURCE_DATE_EPOCH
	Pushed   time.Time `json:"pushed,omitzero"`
	Packager Packager  `json:"packager"`
	Repo     string    `json:"repo,omitempty"`     // path of the bare repository, e.g. var/repos/zlib.git; only the farm's own parts are told
	Archs    []string  `json:"archs"`              // what to build it for; already limited to the channel's
	Needs    []string  `json:"needs,omitempty"`    // needed dependencies as the recipe writes them, e.g. zlib-1.3.1
	Provides []string  `json:"provides,omitempty"` // virtual packages, as name or name-version
	// Traits is what the recipe says of one arch, by arch; where it says nothing
	// there is no entry.
	Traits map[string]Traits `json:"traits,omitempty"`
	// Crossed is the same for cross builds, where that differs. It is for who
	// decides how each arch is built (graph.Assign), and then in Traits.
	Crossed map[string]Traits `json:"crossed,omitempty"`

	// Group is the group that the release was pushed to land with; "" for none, and
	// when it has landed. Stage is the submission of the group that it is built for,
	// "" while the group is held.
	Group string `json:"group,omitempty"`
	Stage string `json:"stage,omitempty"`
}

// View names the records that the release is built against: those of its channel
// or, when it is built with its group, these with the group's own over them, as
// testing@gnome-49.
func (r Release) View() string {
	if r.Stage == "" {
		return r.Channel
	}
	return r.Channel + "@" + r.Group
}

// ParseView takes a view apart; group is "" for a channel's own.
func ParseView(view string) (channel, group string) {
	channel, group, _ = strings.Cut(view, "@")
	return channel, group
}

// BuildNeeds is all of an arch that the release needs to be built for it, as
// the recipe writes it. What a cross build needs of the arch of the machine is
// not among it: that is CrossNeeds.
func (r Release) BuildNeeds(arch string) []string {
	t, ok := r.Traits[arch]
	if !ok {
		return r.Needs
	}
	needs := slices.Clone(r.Needs)
	for _, n := range slices.Concat(t.Needs, t.HostNeeds, t.TargetNeeds) {
		if t.Cross != "" && !slices.Contains(t.Needs, n) && !slices.Contains(t.TargetNeeds, n) {
			continue // for the machine alone
		}
		if !slices.Contains(needs, n) {
			needs = append(needs, n)
		}
	}
	return needs
}

// CrossNeeds is what the release needs of another arch to be cross built for an
// arch, and which other arch that is: that of the machine that builds. "" and
// nothing where it is not cross built.
func (r Release) CrossNeeds(arch string) (machine string, needs []string) {
	t := r.Traits[arch]
	if t.Cross == "" {
		return "", nil
	}
	return t.Cross, t.HostNeeds
}

// Declined tells why the release is not built for an arch though the recipe
// and the channel have it; "" when it is. Either its recipe says so, or the farm
// has no worker for it.
func (r Release) Declined(arch string) string {
	switch t := r.Traits[arch]; {
	case t.Restricted != "":
		return "restricted: " + t.Restricted
	case t.Broken != "":
		return "broken: " + t.Broken
	case t.NoWorker != "":
		return t.NoWorker
	case t.Held != "":
		return t.Held
	}
	return ""
}

// Traits is what a recipe says of building for one arch.
type Traits struct {
	Broken      string   `json:"broken,omitempty"`       // why it does not build; "" when it does
	Restricted  string   `json:"restricted,omitempty"`   // why the farm must not build it
	NoCross     bool     `json:"nocross,omitempty"`      // only a machine of the arch itself can build it
	Bootstrap   bool     `json:"bootstrap,omitempty"`    // can be built before what it needs: cycles are cut at it
	Needs       []string `json:"needs,omitempty"`        // needed on this arch beside Release.Needs
	HostNeeds   []string `json:"host_needs,omitempty"`   // needed while it is built, for the machine that builds
	TargetNeeds []string `json:"target_needs,omitempty"` // needed while it is built, for the arch that it is built for
	Memory      int64    `json:"memory,omitempty"`       // bytes that the build asks for

	// Cross is the arch of the machine that cross builds it; "" when it is built
	// in a system of its own arch. The farm says so, and not the recipe, which
	// has then been read as for cross builds.
	Cross string `json:"cross,omitempty"`
	// NoWorker tells why none of the farm's workers can build it; "" when one can.
	NoWorker string `json:"no_worker,omitempty"`
	// Held tells what the release waits for that is not a build: its group is to be
	// submitted first. The queue says so.
	Held string `json:"held,omitempty"`
}

// IsZero reports whether nothing is said.
func (t Traits) IsZero() bool {
	return t.Broken == "" && t.Restricted == "" && !t.NoCross && !t.Bootstrap && t.Memory == 0 && t.Cross == "" && t.NoWorker == "" && t.Held == "" &&
		len(t.Needs)+len(t.HostNeeds)+len(t.TargetNeeds) == 0
}

// maxTime is the end of the times that commits may have, the year 2242, in
// seconds since 1970. Beyond 9999 neither JSON nor TOML can write one down.
const maxTime = 1 << 33

// CheckTime reports whether a commit's time can be SOURCE_DATE_EPOCH. Git
// takes any number of 64 bits for one.
func CheckTime(t time.Time) error {
	if s := t.Unix(); s < 0 || s > maxTime {
		return fmt.Errorf("time of the commit is in the year %d: set the clock, and commit again (git commit --amend --reset-author)", t.UTC().Year())
	}
	return nil
}

// Environment is what one clean system after another is made for: a channel and
// an arch, each pair with an instance of its own. Arch may be noarch.
type Environment struct {
	Channel string `json:"channel"`
	Arch    string `json:"arch"` // of what is built
	// Cross is the arch of the system, where it is another one that has a cross
	// compiler for Arch.
	Cross string `json:"cross,omitempty"`
}

// String is the environment's name, e.g. testing/x86_64, or
// testing/aarch64@x86_64 where aarch64 is cross built on x86_64.
func (e Environment) String() string {
	if e.Cross != "" {
		return e.Channel + "/" + e.Arch + "@" + e.Cross
	}
	return e.Channel + "/" + e.Arch
}

// System is the arch of the environment's system.
func (e Environment) System() string { return cmp.Or(e.Cross, e.Arch) }

// Compare orders environments by channel, then by arch.
func (e Environment) Compare(o Environment) int {
	return cmp.Or(cmp.Compare(e.Channel, o.Channel), cmp.Compare(e.Arch, o.Arch), cmp.Compare(e.Cross, o.Cross))
}

// Target is the place of a record: there is at most one record at each.
type Target struct {
	Channel string `json:"channel"`
	Package string `json:"package"`
	Version string `json:"version"`
	Arch    string `json:"arch"`
}

// LogValue gives the log its parts.
func (t Target) LogValue() slog.Value {
	return slog.GroupValue(slog.String("package", t.Package), slog.String("version", t.Version), slog.String("arch", t.Arch), slog.String("channel", t.Channel))
}

func (t Target) String() string { return t.Package + " " + t.Version + " " + t.Arch }

// Declined is a release on one arch that is not built because its recipe says
// so, and why.
type Declined struct {
	Target
	Reason string `json:"reason"` // e.g. broken: no barriers
}

// State is where a build stands.
type State string

// The states a build goes through. The first four are under way, the others
// are ends. Failed is the recipe's fault, Errored the farm's.
const (
	Waiting   State = "waiting" // for dependencies; Build.Reason names them
	Queued    State = "queued"
	Running   State = "running"
	Recording State = "recording" // outcome saved, commit not yet known to stand
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Errored   State = "errored" // three tries, all lost by the farm
	Cancelled State = "cancelled"
	Obsolete  State = "obsolete" // the branch moved on or is gone
)

// Ended reports whether the state is final.
func (s State) Ended() bool {
	switch s {
	case Succeeded, Failed, Errored, Cancelled, Obsolete:
		return true
	}
	return false
}

// Build is one release on one channel for one arch.
type Build struct {
	Number  int64  `json:"number"` // for people; rises, never used twice by one state folder
	Key     string `json:"key"`    // identity: see BuildKey
	Release `json:"release"`
	Arch    string `json:"arch"`
	Nonce   string `json:"nonce,omitempty"` // set when somebody asked to build again what has a record
	Why     string `json:"why,omitempty"`   // it was wanted, where a push was not the reason
	// Without is what the recipe needs and the build goes without, as that needs
	// the package in turn and Traits.Bootstrap says that it can be done.
	Without []string  `json:"without,omitempty"`
	State   State     `json:"state"`
	Reason  string    `json:"reason,omitempty"` // why it waits, failed or ended, one line
	Step    string    `json:"step,omitempty"`   // step now running, e.g. make
	Attempt int       `json:"attempt"`          // tries begun; 1 while the first runs
	Created time.Time `json:"created,omitzero"`
	Started time.Time `json:"started,omitzero"` // of the latest attempt
	Ended   time.Time `json:"ended,omitzero"`
	Record  string    `json:"record,omitempty"` // results commit that holds its record
}

// Environment is where the build runs.
func (b Build) Environment() Environment {
	return Environment{Channel: b.Channel, Arch: b.Arch, Cross: b.Traits[b.Arch].Cross}
}

// Target is where the build's record goes.
func (b Build) Target() Target { return Target{b.Channel, b.Package, b.Version, b.Arch} }

// LogAttrs are what every line of the log about the build has, as slog takes it.
func (b Build) LogAttrs() []any { return []any{"build", b.Number, "release", b.Target()} }

func (b Build) String() string {
	return fmt.Sprintf("build %d (%s %s %s)", b.Number, b.Package, b.Version, b.Arch)
}

// BuildKey is the identity of a build: the SHA-256, in hex, of everything that
// decides what it is. Recording the same key twice makes one record. nonce is
// empty for a build that the planner wanted; a rebuild on request has a random
// one, being a new build of the same sources.
func BuildKey(t Target, commit, nonce string) string {
	h := sha256.New()
	for _, s := range []string{"quarry-build-1", t.Channel, t.Package, t.Version, t.Arch, commit, nonce} {
		// Lengths keep "a","bc" and "ab","c" apart.
		fmt.Fprintf(h, "%d:", len(s))
		io.WriteString(h, s)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// RecordRef is what the planner needs to know of a record.
type RecordRef struct {
	Status State  // Succeeded or Failed
	Source string // commit that was built
	Build  int64
	Key    string
}
