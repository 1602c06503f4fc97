package quarry

import (
	"fmt"
	"strings"
)

// Limits on the words that name things. They keep every path that Quarry makes
// (packages/ab/cd/NAME/VERSION/ARCH.files.toml and a lock beside it) under the
// 255 bytes a file name may have.
const (
	MaxName    = 100 // bytes in a package name
	MaxVersion = 100 // bytes in a version
	MaxArch    = 32  // bytes in an architecture or a channel
)

// Noarch is the architecture of packages that are the same on all machines.
const Noarch = "noarch"

// grammar describes one kind of word: which bytes may begin it and which may
// follow. All words are ASCII, so that no two of them look the same, and none
// begins with a dash or a dot, so that none is an option or a hidden file.
type grammar struct {
	what        string
	max         int
	first, rest func(byte) bool
	says        string
}

func lower(c byte) bool { return c >= 'a' && c <= 'z' }
func upper(c byte) bool { return c >= 'A' && c <= 'Z' }
func digit(c byte) bool { return c >= '0' && c <= '9' }
func alnum(c byte) bool { return lower(c) || upper(c) || digit(c) }

var (
	nameGrammar = grammar{"package name", MaxName, alnum,
		func(c byte) bool { return alnum(c) || strings.IndexByte("+-._", c) >= 0 },
		"use ASCII letters, digits and + - . _, beginning with a letter or digit"}
	versionGrammar = grammar{"version", MaxVersion, alnum,
		func(c byte) bool { return alnum(c) || strings.IndexByte("+-._~:", c) >= 0 },
		"use ASCII letters, digits and + - . _ ~ :, beginning with a letter or digit"}
	archGrammar = grammar{"architecture", MaxArch, alnum,
		func(c byte) bool { return alnum(c) || c == '_' || c == '-' }, // no point: ARCH.files.toml stands beside ARCH.toml
		"use ASCII letters, digits and _ -, as uname -m prints it"}
	channelGrammar = grammar{"channel", MaxArch, lower,
		func(c byte) bool { return lower(c) || digit(c) || c == '-' },
		"use lower-case ASCII letters, digits and -, beginning with a letter"}
	groupGrammar = grammar{"group", MaxArch, lower,
		func(c byte) bool { return lower(c) || digit(c) || c == '-' },
		"use lower-case ASCII letters, digits and -, beginning with a letter"}
	userGrammar = grammar{"user name", MaxName, alnum,
		func(c byte) bool { return alnum(c) || strings.IndexByte("-._", c) >= 0 },
		"use ASCII letters, digits and - . _, beginning with a letter or digit"}
)

func (g grammar) check(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%s is empty: give one", g.what)
	case len(s) > g.max:
		return fmt.Errorf("%s %.20q... has %d bytes: %d is the most", g.what, s, len(s), g.max)
	case !g.first(s[0]):
		return fmt.Errorf("%s %q may not begin with %q: %s", g.what, s, s[0], g.says)
	}
	for i := 1; i < len(s); i++ {
		if !g.rest(s[i]) {
			return fmt.Errorf("%s %q may not hold %q: %s", g.what, s, s[i], g.says)
		}
	}
	// Git refuses these in a branch; as file names they are trouble of old.
	switch {
	case strings.Contains(s, ".."):
		return fmt.Errorf("%s %q may not hold two dots in a row: git refuses such a branch", g.what, s)
	case strings.HasSuffix(s, "."), strings.HasSuffix(s, ".lock"), strings.HasSuffix(s, ".git"):
		return fmt.Errorf("%s %q may not end in a dot, .lock or .git: git keeps those for itself", g.what, s)
	}
	return nil
}

// CheckName reports whether s can name a package. Dashes are allowed
// (gtk-doc), a leading dash or dot is not. Every other package relies on this
// check having been made at the door.
func CheckName(s string) error { return nameGrammar.check(s) }

// CheckVersion reports whether s can be a version. Versions may hold dashes,
// as openssh's 7.0-p1 does (Morphux package format). A colon is refused for
// now because git allows none in a branch.
func CheckVersion(s string) error {
	if err := versionGrammar.check(s); err != nil {
		return err
	}
	if i := strings.IndexAny(s, ":~"); i >= 0 {
		return fmt.Errorf("version %q may not hold %q: git refuses it in a branch name", s, s[i])
	}
	return nil
}

// CheckArch reports whether s can name an architecture. The set is open: an
// arch that nobody here has heard of is carried through unharmed (dxpb's rule
// for pkg_archs on the wire).
func CheckArch(s string) error { return archGrammar.check(s) }

// CheckChannel reports whether s can name a channel.
func CheckChannel(s string) error { return channelGrammar.check(s) }

// CheckGroup reports whether s can name a group of releases that land together.
func CheckGroup(s string) error { return groupGrammar.check(s) }

// CheckUser reports whether s can name a person with keys; it is also the name
// of their key file.
func CheckUser(s string) error { return userGrammar.check(s) }

// ParseBranch takes apart a branch name-version of the package repository
// name. Only the repository's name makes this unambiguous: names and versions
// may both hold dashes (gtk-doc-1.33, openssh-7.0-p1). ok is false for
// branches of another shape, such as master, which are kept but not built.
// A branch that has the shape but an unfit version is an error.
func ParseBranch(name, branch string) (version string, ok bool, err error) {
	version, ok = strings.CutPrefix(branch, name+"-")
	if !ok || !strings.ContainsAny(version, "0123456789") {
		return "", false, nil
	}
	if err := CheckVersion(version); err != nil {
		return "", true, err
	}
	return version, true, nil
}

// Branch is the branch that releases a version: name-version.
func Branch(name, version string) string { return name + "-" + version }
