package quarry

import "testing"

// published is a comparison that another packaging system publishes, and what
// CompareVersions says to it.
type published struct {
	a, b   string
	theirs int
	ours   int    // as theirs where why is empty
	why    string // why it differs
}

// Why ours differs from dpkg's or xbps's. Morphux's versions are upstream's as
// they are: nobody rewrites 1.0-rc1 to 1.0~rc1, so that the words have to do
// what the tilde does there, and there is no packager's revision in them, so
// that no sign may weigh more than another. Epochs are how other systems leave
// an upstream's mistake behind; a branch name cannot hold a colon (CheckVersion
// refuses it and the tilde), so both only separate here.
const (
	noEpoch   = "there are no epochs: a colon separates"
	noTilde   = "a tilde separates, and sorts nothing below the version without it"
	noSigns   = "signs do not count, here they weigh more than letters and ends"
	noRevs    = "what follows a version makes it newer, and a 0 behind it is something"
	digitsWin = "a number beats letters and an end: 1.0.1 is newer than 1.0a"
)

// What dpkg's own tests say (scripts/t/Dpkg_Version.t), and dpkg 1.21 itself.
var dpkgPublished = []published{
	{"1.0-1", "2.0-2", -1, 0, ""},
	{"2.2~rc-4", "2.2-1", -1, 0, ""},
	{"2.2-1", "2.2~rc-4", 1, 0, ""},
	{"1.0000-1", "1.0-1", 0, 0, ""},
	{"1", "0:1", 0, 1, noEpoch},
	{"0", "0:0-0", 0, -1, noEpoch},
	{"2:2.5", "1:7.5", 1, 0, ""},
	{"1:0foo", "0foo", 1, 0, ""},
	{"0:0foo", "0foo", 0, 1, noEpoch},
	{"0foo", "0fo", 1, 0, ""},
	{"0foo~1", "0foo", -1, 1, noTilde},
	{"0foo~foo+Bar", "0foo~foo+bar", -1, 0, ""},
	{"0foo~~", "0foo~", -1, 0, noTilde},
	{"1~", "1", -1, 0, noTilde},
	{"0foo-0", "0foo-01", -1, 0, ""},
	{"0foo.bar", "0foobar", 1, -1, noSigns},
	{"0foo.bar", "0foo1bar", 1, -1, digitsWin},
	{"0foo1bar-1", "0foobar-1", -1, 0, ""},
	{"0foo2.0", "0foo2", 1, 0, ""},
	{"0foo2.0.0", "0foo2.10.0", -1, 0, ""},
	{"0foo2.0", "0foo2.0.0", -1, 0, ""},
	{"1.09", "1.9", 0, 0, ""},
	{"1.0.8+nmu1", "1.0.8", 1, 0, ""},
	{"3.11", "3.10+nmu1", 1, 0, ""},
	{"0.9j-20080306-4", "0.9i-20070324-2", 1, 0, ""},
	{"1.011-1", "1.06-2", 1, 0, ""},
	{"0.9.9~pre122-1", "0.9.9~pre111-1", 1, 0, ""},
	{"2:2.3.2-2+lenny2", "2:2.3.2-2", 1, 0, ""},
	{"1:3.8.1-1", "3.8.GA-1", 1, -1, noEpoch},
	{"1.0.1+gpl-1", "1.0.1-2", 1, -1, digitsWin},
	{"1a", "1000a", -1, 0, ""},
	// deb-version(7): in sorted order are ~~, ~~a, ~, the empty part, a.
	{"1~~", "1~~a", -1, 0, ""},
	{"1~~a", "1~", -1, 1, noTilde},
	{"1", "1a", -1, 0, ""},
	{"1~", "1a", -1, 0, ""},
	// And letters sort before what is no letter.
	{"1a", "1+", -1, 1, noSigns},
	// The words of work under way have no meaning there.
	{"1.0-rc1", "1.0", 1, -1, "dpkg cannot interpret words such as rc (deb-version(7)), Debian writes 1.0~rc1"},
	{"1.0-beta", "1.0", 1, -1, "dpkg cannot interpret words such as beta, Debian writes 1.0~beta"},
}

// What xbps's own tests say (tests/xbps/libxbps/cmpver), without the package's name.
var xbpsPublished = []published{
	{"1.0", "1.0", 0, 0, ""},
	{"1.0", "1.0_1", -1, 0, ""},
	{"1.0_1", "1.0", 1, 0, ""},
	{"2.0rc2", "2.0rc3", -1, 0, ""},
	{"2.0rc3", "2.0rc2", 1, 0, ""},
	{"129", "129_1", -1, 0, ""},
	{"21", "21_0", 0, -1, noRevs},
	{"21", "2.1", 1, 0, ""},
	{"1.0.1", "1.0_1", 1, 0, noSigns},
	{"1:1.0_1", "2.0_1", 1, -1, noEpoch},
	{"1:1.0_1", "2:0.1_1", -1, 0, ""},
}

func TestPublishedVersions(t *testing.T) {
	sign := func(n int) int { return min(1, max(-1, n)) }
	for system, table := range map[string][]published{"dpkg": dpkgPublished, "xbps": xbpsPublished} {
		for _, p := range table {
			want := p.theirs
			if p.why != "" {
				want = p.ours
			}
			if got := sign(CompareVersions(p.a, p.b)); got != want {
				t.Errorf("%s: %s against %s is %d, want %d (theirs is %d; %s)", system, p.a, p.b, got, want, p.theirs, p.why)
			}
			if p.why != "" && p.ours == p.theirs {
				t.Errorf("%s: %s against %s does not differ", system, p.a, p.b)
			}
		}
	}
}
