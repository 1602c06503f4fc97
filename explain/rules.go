package explain

import (
	"regexp"
	"strings"
)

// How much a line that fits a rule is worth. Of two lines the one that is worth
// more explains the failure, and of equals the first.
const (
	certain = 30 // a tool gives up over this, and says what it is
	soft    = 25 // the same, but builds often go on after it
	likely  = 20
	weak    = 10
)

// rule knows one kind of error line.
type rule struct {
	class string
	worth int
	// words: one of them is in every line that fits, in lower case.
	words []string
	// fits the line; nil: the word is enough. Groups are for the hint.
	fits *regexp.Regexp
	// hint is a sentence with $1 for a group; "" for the class's own.
	hint string
	// status is the exit status that a shell gives for it. Of such lines the last
	// counts, as scripts try many programs: the one before make gave up with that
	// status is certain.
	status int
}

// byItself is the status of programs that were killed for a fault of their own.
const byItself = 139

// q is a quotation mark as GNU programs print it, in any locale.
const q = "['‘’`\"]"

func re(pattern string) *regexp.Regexp {
	return regexp.MustCompile(strings.ReplaceAll(pattern, "Q", q))
}

func words(list ...string) []string { return list }

// rules in the order of preference: where several fit one line and are worth
// the same, the first explains it.
var rules = concat(memoryRules, patchRules, autotoolsRules, missingRules, compilerRules, linkerRules, networkRules, configureRules,
	testRules, makeRules, scriptRules, systemRules, lastRules)

func concat(lists ...[]rule) (all []rule) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

var table = func() *literals {
	if len(rules) >= maxRules {
		panic("explain: more rules than a ruleSet holds")
	}
	list := make([][]string, len(rules), len(rules)+1)
	for i, r := range rules {
		list[i] = r.words
	}
	return newLiterals(append(list, jobWords)) // one more: see ofJob
}()

var memoryRules = []rule{
	{class: "memory", worth: certain, words: words("killed signal"), fits: re(`: Killed signal terminated program (\S+)`),
		hint: "$1 was killed, most likely for want of memory: run fewer jobs of make at a time (jobs in the recipe), or raise limits.memory of the farm."},
	{class: "memory", worth: certain, words: words("memory exhausted", "cannot allocate memory", "out of memory"),
		fits: re(`(?i)(?:^|: )(?:virtual memory exhausted|memory exhausted|cannot allocate memory|out of memory)\b`)},
	{class: "memory", worth: certain, status: byItself, words: words("bad_alloc", "memoryerror", "outofmemoryerror", "memory allocation of", "heap out of memory"),
		fits: re(`instance of Qstd::bad_alloc|^MemoryError\b|java\.lang\.OutOfMemoryError|^memory allocation of \d+ bytes failed|JavaScript heap out of memory`)},
	{class: "disk", worth: certain, words: words("no space left on device", "disk quota exceeded"), fits: re(`: (?:No space left on device|Disk quota exceeded)`)},
	{class: "processes", worth: certain, words: words("resource temporarily unavailable", "cannot fork", "unable to create thread", "can't start new thread"),
		fits: re(`(?i)(?:fork|vfork|clone|pthread_create|thread)\b.*: resource temporarily unavailable|cannot fork|unable to create thread|can't start new thread`)},
	{class: "open-files", worth: certain, words: words("too many open files"), fits: re(`Too many open files`)},
	{class: "argument-list", worth: certain, words: words("argument list too long"), fits: re(`: Argument list too long`)},
}

var patchRules = []rule{
	{class: "patch-applied", worth: certain, words: words("previously applied"), fits: re(`^Reversed \(or previously applied\) patch detected`)},
	{class: "patch", worth: certain, words: words("hunk"), fits: re(`^Hunk #(\d+) FAILED at (\d+)`),
		hint: "Make the patch again for this version: its part $1 does not fit at line $2 of the file, or is in the sources already."},
	{class: "patch-file", worth: certain, words: words("can't find file to patch")},
	{class: "patch-malformed", worth: certain, words: words("patch: ****"), fits: re(`^patch: \*\*\*\* (?:Only garbage|malformed patch|unexpected end of file)`)},
	{class: "patch-file", worth: likely, words: words("patch: ****"), fits: re(`^patch: \*\*\*\* Can't open patch file (\S+)`),
		hint: "The patch $1 is not in patches/."},
	{class: "patch", worth: likely, words: words("patch failed", "patch does not apply"), fits: re(`^error: (?:patch failed: (\S+)|(\S+): patch does not apply)`)},
}

var autotoolsRules = []rule{
	{class: "autotools-rerun", worth: certain + 3, words: words("aclocal", "autoconf", "automake", "autoheader"),
		fits: re(`(?:^|[/ :])((?:aclocal|automake)-\d[\d.]*|autoconf|autoheader): (?:command )?not found|^WARNING: Q((?:aclocal|automake|autoconf|autoheader)\S*)Q is missing on your system`)},
	{class: "autotools", worth: certain, words: words("possibly undefined macro"), fits: re(`error: possibly undefined macro: (\S+)`),
		hint: "Add the package that has the macro $1 (pkg-config, autoconf-archive, gettext, libtool...) to the needed dependencies."},
	{class: "autotools", worth: certain, words: words("required file", "cannot find required auxiliary files", "cannot find install-sh"),
		fits: re(`error: (?:required file Q(\S+)Q not found|cannot find required auxiliary files: (.*)|cannot find install-sh)`),
		hint: "Run autoreconf -fi in scripts/before.sh: files that automake brings are missing."},
	{class: "version", worth: certain, words: words("autoconf version"), fits: re(`error: Autoconf version (\S+) or higher is required`), hint: "Package autoconf $1 or newer, or use the configure that is shipped."},
	{class: "autotools", worth: likely, words: words("can't exec \""), fits: re(`^Can't exec "([^"]+)": No such file`), hint: "Add the package that has $1 to the recipe's needed dependencies."},
	{class: "libtool", worth: certain, words: words("cannot find the library", "version mismatch error", "libtool: error", "libtool:   error", "link: error"), fits: re(`^libtool:\s+(?:(?:error|link): (?:error: )?cannot find the library|Version mismatch error|error: )`)},
	{class: "config-guess", worth: certain, words: words("not recognized", "unable to guess system type"), fits: re(`^Invalid configuration Q\S+?: machine Q\S+ not recognized|: unable to guess system type`)},
}

var missingRules = []rule{
	{class: "missing-header", worth: certain, words: words("fatal error:"), fits: re(`fatal error: Q?([^\s:'’]+\.(?:h|hh|hpp|hxx|inc|H|mod))Q?(?:: No such file or directory| file not found)`),
		hint: "Add the package that has the header $1 to the recipe's needed dependencies."},
	// The headers of C++ have no ending.
	{class: "missing-header", worth: certain, words: words("fatal error:"), fits: re(`:\d+:\d+: fatal error: Q?([^\s:'’]+)Q?(?:: No such file or directory| file not found)`),
		hint: "Add the package that has the header $1 to the recipe's needed dependencies."},
	{class: "missing-library", worth: certain, words: words("cannot find -l", "unable to find library -l", "library not found for -l"), fits: re(`(?:cannot find|unable to find library|library not found for) -l(\S+?)(?::|$)`),
		hint: "Add the package that has lib$1 to the recipe's needed dependencies."},
	{class: "missing-library", worth: likely, words: words(", not found (try using"), fits: re(`warning: (\S+), needed by \S+, not found`),
		hint: "Add the package that has $1 to the recipe's needed dependencies."},
	{class: "missing-pkg-config", worth: certain, words: words("package requirements"), fits: re(`configure: error: Package requirements \((.*)\) were not met`),
		hint: "Add what has the pkg-config modules $1 to the recipe's needed dependencies, in these versions."},
	{class: "missing-pkg-config", worth: likely, words: words("pkg-config search path", "no package '"), fits: re(`^(?:Package (\S+) was not found in the pkg-config search path|No package Q(\S+)Q found)`),
		hint: "Add the package that has $1$2.pc to the recipe's needed dependencies."},
	{class: "missing-dependency", worth: certain, words: words("could not find a package configuration file provided by", "could not find", "provided by \""), fits: re(`^\s+(?:Could not find a package configuration file provided by|package configuration file provided by|asked CMake to find a package configuration file provided by) "(\S+?)"`),
		hint: "Add the package $1 to the recipe's needed dependencies."},
	{class: "missing-dependency", worth: certain, words: words("could not find"), fits: re(`^\s+Could NOT find (\S+) \(missing:`), hint: "Add the package that has $1, with its headers, to the recipe's needed dependencies."},
	{class: "version", worth: certain, words: words("found unsuitable version"), fits: re(`Could NOT find (\S+): Found unsuitable version "([^"]*)", but required is (?:at least )?"([^"]*)"`), hint: "$1 is $2 here and has to be $3: package that version."},
	{class: "missing-dependency", worth: certain, words: words("error: dependency"), fits: re(`ERROR: Dependency "([^"]+)" not found`), hint: "Add the package that has $1 to the recipe's needed dependencies, or switch the feature off."},
	{class: "version", worth: certain, words: words("dependency lookup for", "invalid version"), fits: re(`ERROR: Dependency lookup for (\S+) .*: Invalid version, need (.*?) found`), hint: "$1 has another version here than $2: package that."},
	{class: "missing-program", worth: certain, words: words("not found or not executable"), fits: re(`ERROR: Program Q([^'’]+)Q not found or not executable`), hint: "Add the package that has the program $1 to the recipe's needed dependencies."},
	{class: "missing-perl-module", worth: certain, words: words("can't locate"), fits: re(`^Can't locate (\S+) in @INC`), hint: "Add the package that has $1 to the recipe's needed dependencies."},
	{class: "missing-python-module", worth: certain, words: words("no module named"), fits: re(`(?:ModuleNotFoundError|ImportError): No module named Q?([\w.]+)|: No module named (\w+)$`), hint: "Add the package that has the Python module $1$2 to the recipe's needed dependencies."},
	{class: "network", worth: certain, words: words("dial tcp"), fits: re(`^\S+\.go:\d+:\d+: (\S+): .*: dial tcp`), hint: "Put the Go module $1 into the sources (go mod vendor): no build has a network."},
	{class: "missing-node-module", worth: certain, words: words("cannot find module"), fits: re(`Error: Cannot find module Q([^'’]+)`), hint: "Put the module $1 into the sources: a build cannot fetch it."},
	{class: "unvendored", worth: certain, words: words("no matching package named"), fits: re(`error: no matching package named Q(\S+?)Q found`), hint: "Put the crate $1 into the sources (cargo vendor): a build cannot fetch it."},
	{class: "unvendored", worth: certain, words: words("provides package", "providing package", "cannot find package"), fits: re(`no required module provides package ([^\s;:]+)|cannot find (?:module providing package|package) "?([^\s";:]+)`), hint: "Put the Go module of $1$2 into the sources (go mod vendor): a build cannot fetch it."},
	{class: "version", worth: certain, words: words("or higher is required", "but project requires", "requires rustc", "older than the", "requires go 1", "requires at least"),
		fits: re(`^\s+(CMake \S+) or higher is required|ERROR: (Meson version is \S+ but project requires .*)|it (requires rustc \S+)|this version of (Cargo is older than the Q\S+Q edition)|(requires go >= ?\S+)`),
		hint: "$1$2$3$4$5: package that version, or an older release of this package."},
	{class: "version", worth: weak, words: words("module requires go"), fits: re(`^note: module requires Go (\S+)`), hint: "Package Go $1 or newer."},
	{class: "missing-program", worth: likely, words: words("not found"), status: 127, fits: re(`^(?:/\S*|sh|bash|dash|make(?:\[\d+\])?|[\w./-]+\.sh|[\w./-]+): (?:line )?\d+: ([^\s:/]+): (?:command )?not found$`),
		hint: "Add the package that has the program $1 to the recipe's needed dependencies."},
	{class: "missing-program", worth: likely, words: words("command not found"), status: 127, fits: re(`(?:^|: )([^\s:/]+): command not found`),
		hint: "Add the package that has the program $1 to the recipe's needed dependencies."},
	{class: "missing-program", worth: likely, words: words("no such file or directory"), status: 127, fits: re(`^g?make(?:\[\d+\])?: ([^\s:/*]+): No such file or directory$`),
		hint: "Add the package that has the program $1 to the recipe's needed dependencies."},
	{class: "interpreter", worth: likely, words: words("bad interpreter", "required file not found"), status: 127, fits: re(`(\S+): (?:\S+: )?(?:bad interpreter|cannot execute: required file not found)`)},
	{class: "interpreter", worth: likely, words: words("not found"), status: 127, fits: re(`: \d+: (\.{0,2}/\S+): not found$`),
		hint: "The script $1 is there and its interpreter is not, or it is not there itself."},
}
