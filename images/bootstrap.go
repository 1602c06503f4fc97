package images

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/Morphux/quarry/internal/podman/deltree"
)

// BootstrapOptions say which system to make. The zero value is a small Debian
// with a compiler and the autotools, from the mirrors that this machine's apt
// uses.
type BootstrapOptions struct {
	Suite   string   // e.g. bookworm, the default
	Mirror  string   // e.g. http://deb.debian.org/debian; empty: mmdebstrap's own choice
	Variant string   // of mmdebstrap: minbase by default
	Include []string // packages; empty: DefaultPackages
}

// DefaultPackages are what a base made by Bootstrap holds beyond the minimum:
// what building plain C software takes. m4 to pkg-config are often needed and
// seldom named.
var DefaultPackages = []string{
	"build-essential", "m4", "autoconf", "automake", "libtool", "pkg-config",
	"bison", "flex", "gettext", "texinfo", "gperf", "ed", "bc", "file", "patch", "perl", "python3-minimal",
	"xz-utils", "bzip2", "zstd", "ca-certificates",
}

// debian is what Debian calls an arch where that is not uname's own name.
var debian = map[string]string{
	"x86_64": "amd64", "i386": "i386", "i486": "i386", "i586": "i386", "i686": "i386", "aarch64": "arm64",
	"armv5tel": "armel", "armv6l": "armel", "armv7l": "armhf", "ppc64le": "ppc64el", "ppc": "powerpc", "parisc": "hppa", "loongarch64": "loong64",
}

// DebianArch is what Debian calls an arch, e.g. arm64 for aarch64.
func DebianArch(arch string) string { return cmp.Or(debian[arch], arch) }

const (
	defaultSuite   = "bookworm"
	defaultVariant = "minbase"
)

var (
	suiteRE   = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`)
	packageRE = regexp.MustCompile(`^[a-z0-9][a-z0-9+.:-]{0,127}$`)
	mirrorRE  = regexp.MustCompile(`^(https?|file|copy)://[!-~]+$`)
	variants  = []string{"minbase", "buildd", "essential", "apt", "important", "standard"}
)

func (o BootstrapOptions) args(arch string) ([]string, error) {
	o.Suite, o.Variant = cmp.Or(o.Suite, defaultSuite), cmp.Or(o.Variant, defaultVariant)
	if len(o.Include) == 0 {
		o.Include = DefaultPackages
	}
	// None of them may turn into an option or a command of mmdebstrap.
	if !suiteRE.MatchString(o.Suite) {
		return nil, fmt.Errorf("suite %q is no name of a Debian release: give one such as bookworm", o.Suite)
	}
	if !slices.Contains(variants, o.Variant) {
		return nil, fmt.Errorf("variant %q is not one of mmdebstrap's: give one of %s", o.Variant, strings.Join(variants, ", "))
	}
	for _, p := range o.Include {
		if !packageRE.MatchString(p) {
			return nil, fmt.Errorf("%q is no name of a Debian package", p)
		}
	}
	if o.Mirror != "" && !mirrorRE.MatchString(o.Mirror) {
		return nil, fmt.Errorf("mirror %q is no address: give one such as http://deb.debian.org/debian", o.Mirror)
	}
	args := []string{"--variant=" + o.Variant, "--architectures=" + DebianArch(arch), "--include=" + strings.Join(o.Include, ","),
		"--format=tar",
		"--aptopt=APT::Install-Recommends \"false\"",
		"--", o.Suite, "-"}
	if o.Mirror != "" {
		args = append(args, o.Mirror)
	}
	return args, nil
}

// Bootstrap makes the base that ref names (ARCH or ARCH:NAME) with mmdebstrap: the stand-in where no
// tarball of the distribution is at hand. It takes a minute and some hundred
// megabytes of download, and several minutes for an emulated arch.
func (s *Store) Bootstrap(ctx context.Context, ref string, o BootstrapOptions, progress func(Progress)) (Base, error) {
	to, err := ParseBaseRef(ref)
	if err != nil {
		return Base{}, err
	}
	args, err := o.args(to.Arch)
	if err != nil {
		return Base{}, err
	}
	path, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return Base{}, errors.New("mmdebstrap is not installed: apt-get install mmdebstrap, or load a tarball with quarry images load")
	}
	if _, err := Emulation(to.Arch); err != nil {
		return Base{}, err
	}
	progress = oneAtATime(progress)
	tmp, err := os.MkdirTemp(s.conn.Dir(), "tmp-bootstrap-")
	if err != nil {
		return Base{}, err
	}
	defer deltree.Remove(tmp)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "LC_ALL=C.UTF-8")
	lines, tail := io.Pipe()
	errOut := new(tailBuffer)
	cmd.Stderr = io.MultiWriter(tail, errOut)
	killWithParent(cmd)
	r, err := startReader(cmd)
	if err != nil {
		return Base{}, fmt.Errorf("mmdebstrap cannot be started: %w", err)
	}
	defer r.Close()
	r.errOut = errOut
	go func() {
		sc := bufio.NewScanner(lines)
		for sc.Scan() {
			progress(Progress{Step: "bootstrapping", Line: sc.Text()})
		}
		io.Copy(io.Discard, lines)
	}()
	defer tail.Close()
	return s.load(ctx, to, r, o.source(), 0, "bootstrapping", progress)
}

// bootstrapped begins the Source of bases that Bootstrap made.
const bootstrapped = "mmdebstrap "

// source is what [Bootstrapped] reads.
func (o BootstrapOptions) source() string {
	s := bootstrapped + cmp.Or(o.Suite, defaultSuite)
	if o.Mirror != "" {
		s += " " + o.Mirror
	}
	if o.Variant != "" && o.Variant != defaultVariant {
		s += " --variant=" + o.Variant
	}
	if len(o.Include) > 0 {
		s += " --include=" + strings.Join(o.Include, ",")
	}
	return s
}

// Bootstrapped tells with which options a base was bootstrapped, by its Source;
// ok is false for one that was loaded.
func Bootstrapped(source string) (o BootstrapOptions, ok bool) {
	rest, ok := strings.CutPrefix(source, bootstrapped)
	if !ok {
		return o, false
	}
	for i, word := range strings.Fields(rest) {
		variant, isVariant := strings.CutPrefix(word, "--variant=")
		include, isInclude := strings.CutPrefix(word, "--include=")
		switch {
		case i == 0:
			o.Suite = word
		case isVariant:
			o.Variant = variant
		case isInclude:
			o.Include = strings.Split(include, ",")
		case i == 1:
			o.Mirror = word
		default:
			return BootstrapOptions{}, false
		}
	}
	return o, o.Suite != ""
}

// oneAtATime serializes the calls of a callback that may be nil.
func oneAtATime(f func(Progress)) func(Progress) {
	if f == nil {
		return func(Progress) {}
	}
	var mu sync.Mutex
	return func(p Progress) {
		mu.Lock()
		defer mu.Unlock()
		f(p)
	}
}
