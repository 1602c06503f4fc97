// Package recipe reads package.json, the file that says how a Morphux package
// is built, into a [Recipe].
//
// [Parse] takes the file alone, [Load] a whole package folder (a commit, or a
// working copy) and checks that what the recipe names is there. Both are
// strict: a value of the wrong type, a key given twice, a name that could
// become an option or leave its folder is an error that tells line, column,
// field and cure ([Error]). Fields that nobody here knows are kept
// ([Recipe.Unknown]) and warned about. doc/recipe.md is the description for
// those who write recipes; the format is Morphux's own, but for the object
// "quarry" ([Extension]).
package recipe

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"slices"
	"time"

	"github.com/Morphux/quarry"
)

// Limits on what a recipe may hold. They are far above what real packages
// need, and low enough that a recipe can be kept in memory and shown whole.
const (
	MaxSize        = 256 << 10 // bytes in package.json
	MaxDepth       = 32        // values inside of each other
	MaxValues      = 20_000    // values of any kind in the document
	MaxKey         = 256       // bytes in a key
	MaxText        = 4096      // bytes in a string that has no limit of its own
	MaxCommand     = 16 << 10  // bytes in make, test and install
	MaxDescription = 1000      // bytes
	MaxCategory    = 100       // bytes
	MaxPatches     = 1000
	MaxConfigure   = 1000
	MaxEnv         = 500
	MaxDeps        = 1000 // in each of needed, recommended and optional
	MaxGroups      = 100
	MaxUsers       = 100
	MaxKernel      = 1000
	MaxFiles       = 5000
	MaxArchs       = 64
	MaxFileName    = 255 // bytes in the name of a patch
	MaxLogin       = 32  // bytes in the name of a user or group, as of useradd
)

// Recipe is what a package.json says.
type Recipe struct {
	Package string // e.g. openssh; fit for quarry.CheckName
	Version string // e.g. 7.0-p1; fit for quarry.CheckVersion
	Info    quarry.Info

	// Patches are names of files in patches/, in the order to apply them.
	// Where package.json has no list, PatchesAbsent is set and Load fills in
	// every file there, sorted by name.
	Patches       []string
	PatchesAbsent bool

	// Configure holds the arguments of ./configure, e.g. --prefix=/usr. An empty
	// list with HasConfigure set is ./configure without arguments.
	Configure    []string
	HasConfigure bool

	Make    Command // the zero value: make
	Test    Command // the zero value: no tests
	Install Command // never zero: make install by default
	Env     []EnvVar

	// Before and After say whether scripts/before.sh and scripts/after.sh are
	// there. Only Load can know.
	Before, After bool

	Ext Extension

	Init     json.RawMessage            // the init section as written; undecided upstream, so only kept
	Unknown  map[string]json.RawMessage // fields nobody knows, by path, e.g. package.license
	Warnings []string                   // one line each, for the maintainer
	Digest   string                     // SHA-256 of package.json, hex
}

// Command is what make, test or install say: a target of make, or a line for
// /bin/sh. At most one of the two is set.
type Command struct {
	Target string // one bare word, e.g. install
	Shell  string // anything longer, e.g. "make -C src install"
}

// IsZero reports whether nothing is said.
func (c Command) IsZero() bool { return c == Command{} }

// String is the command as a person would type it: make TARGET or the line.
func (c Command) String() string {
	switch {
	case c.Shell != "":
		return c.Shell
	case c.Target != "":
		return "make " + c.Target
	}
	return "make"
}

// EnvVar is one variable of the environment of every step.
type EnvVar struct {
	Key   string // letters, digits and underscores
	Value string // may be empty
}

// Extension is the "quarry" object: what the build farm needs to know beyond
// Morphux's format. A zero field is one that the recipe does not give. The
// limits are wishes: the farm's own settings bound them.
type Extension struct {
	Archs        []string      // the only archs to build for; none: all of the channel
	Noarch       bool          // the same on all machines: built once, as noarch
	Network      bool          // asks for the network during the build; the farm may refuse
	Directory    string        // folder in the repository to run the steps in, e.g. srcs/unix
	Memory       int64         // bytes
	Disk         int64         // bytes the build may write
	Log          int64         // bytes of output
	Processes    int           // at one time
	Jobs         int           // of make at one time; 1 where parallel make breaks the package
	Total        time.Duration // for the whole build
	Step         time.Duration // for each step that Steps does not name
	Silence      time.Duration // without any output
	Steps        map[string]time.Duration
	TestsMayFail bool // a failing test step is a warning, not a failure

	Conditions
	When []Clause // what holds for some archs only, see [Recipe.Traits]
}

// Archs is what the recipe is to be built for on a channel with these archs:
// all of them, those that the recipe allows, or noarch alone. The order is the
// channel's.
func (r *Recipe) Archs(channelArchs []string) []string {
	if len(channelArchs) == 0 {
		return nil // nothing there could build it, noarch or not
	}
	if r.Ext.Noarch {
		return []string{quarry.Noarch}
	}
	var archs []string
	for _, arch := range channelArchs {
		if arch != quarry.Noarch && (len(r.Ext.Archs) == 0 || slices.Contains(r.Ext.Archs, arch)) {
			archs = append(archs, arch)
		}
	}
	return archs
}

// Parse reads a package.json. What is wrong with it comes back as [Errors].
// It does not look at any other file: see [Load].
func Parse(data []byte) (*Recipe, error) {
	r, _, err := parse(data)
	return r, err
}

// maxErrors is how many errors one refusal tells. Further ones are most often
// echoes of the first.
const maxErrors = 20

// reader turns a document into a recipe.
type reader struct {
	data []byte
	r    *Recipe
	errs Errors
}

// parse also gives the document, in which Load finds the place of an entry.
func parse(data []byte) (*Recipe, *node, error) {
	root, e := parseJSON(data)
	if e != nil {
		return nil, nil, Errors{e}
	}
	sum := sha256.Sum256(data)
	rd := &reader{data: data, r: &Recipe{Digest: hex.EncodeToString(sum[:])}}
	rd.r.Info.Recipe = rd.r.Digest
	rd.document(root)
	if len(rd.errs) > 0 {
		slices.SortStableFunc(rd.errs, func(a, b *Error) int {
			if a.Line != b.Line {
				return a.Line - b.Line
			}
			return a.Column - b.Column
		})
		return nil, nil, rd.errs
	}
	return rd.r, root, nil
}
