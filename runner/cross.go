package runner

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/internal/podman/tinyelf"
	"github.com/Morphux/quarry/runner/guest"
)

// Cross has a build cross compile in a workspace of another arch.
type Cross struct {
	Machine string // arch of the workspace
	Triplet string // what the programs of the toolchain begin with, e.g. aarch64-linux-gnu
	Build   string // the same of the workspace's own arch, for configure's --build
	// Runs says that qemu runs the build's programs on this machine. Without it
	// the test step is left out.
	Runs bool
}

// Paths of a cross build in its workspace.
const (
	// SysrootPath has what the build's dependencies of its own arch install. The
	// compiler looks there for headers and libraries.
	SysrootPath = "/quarry/sysroot"
	crossPath   = "/quarry/cross" // what the farm needs to have the compiler do so
)

// Triplet is what Debian's cross toolchains for an arch begin with.
func Triplet(arch string) string {
	switch arch {
	case "i386", "i486", "i586", "i686":
		return "i686-linux-gnu"
	case "armv5tel", "armv6l":
		return "arm-linux-gnueabi"
	case "armv7l":
		return "arm-linux-gnueabihf"
	case "ppc64le":
		return "powerpc64le-linux-gnu"
	case "ppc64":
		return "powerpc64-linux-gnu"
	case "ppc":
		return "powerpc-linux-gnu"
	case "mips64el":
		return "mips64el-linux-gnuabi64"
	case "mips64":
		return "mips64-linux-gnuabi64"
	case "parisc":
		return "hppa-linux-gnu"
	}
	return arch + "-linux-gnu"
}

// ToolchainError says that a workspace cannot cross build for an arch: the base,
// or the setup of its channel, lacks what it takes. No build of the arch can
// begin before that is mended.
type ToolchainError struct {
	Arch, Machine string
	Instance      string   // digest of what lacks it
	Missing       []string // programs
	Why           string   // what else is wrong
}

func (e *ToolchainError) Error() string {
	why := e.Why
	switch n := len(e.Missing); {
	case n == 1:
		why = e.Missing[0] + " not found"
	case n > 4: // all of them, as a rule: status has this in a table
		why = fmt.Sprintf("%s and %d more are not found", strings.Join(e.Missing[:3], ", "), n-3)
	case n > 1:
		why = strings.Join(e.Missing, ", ") + " are not found"
	}
	debian := strings.ReplaceAll(Triplet(e.Arch), "_", "-")
	return fmt.Sprintf("%s has no cross toolchain for %s: %s: have the base or the channel's setup install one (on Debian gcc-%s, g++-%s and libc6-dev-%s-cross), or name it in build.triplets",
		e.Machine, e.Arch, why, debian, debian, images.DebianArch(e.Arch))
}

// crossTools are the programs without which nothing is cross built, and their
// variables.
var crossTools = [...][2]string{
	{"CC", "gcc"}, {"AR", "ar"}, {"AS", "as"}, {"LD", "ld"}, {"RANLIB", "ranlib"}, {"NM", "nm"},
	{"STRIP", "strip"}, {"OBJCOPY", "objcopy"}, {"OBJDUMP", "objdump"}, {"READELF", "readelf"},
}

// crossScript looks at the toolchain $1, makes the sysroot $2, and in $3/bin
// programs of the toolchain's names that use it. That they are wrapped, and CC
// has no flags in it, has the compiler find dependencies whatever a package does
// with its flags.
//
// Debian's compilers look in the sysroot first for headers and libraries, and for
// those of libraries themselves (rpath-link), and bring their C library from
// beside the compiler. A system whose /lib is a link has the same in the sysroot.
// $3/run puts the two together for qemu, as a running system has them.
const crossScript = `t=$1 s=$2 d=$3
shift 3
for l in bin sbin lib lib32 lib64 libx32; do
	mkdir -p "$s/usr/$l"
	if [ -L "/$l" ]; then ln -s "usr/$l" "$s/$l"; fi
done
mkdir -p "$s/usr/include" "$d/bin"
for p; do
	command -v "$t-$p" >"$d/path" || echo "missing $t-$p"
done
for p in gcc cc g++ c++ cpp gfortran ld ld.bfd ld.gold; do
	f=$(command -v "$t-$p") || continue
	printf '#!/bin/sh\nexec %s --sysroot=%s "$@"\n' "$f" "$s" >"$d/bin/$t-$p"
	chmod 755 "$d/bin/$t-$p"
done
command -v "$t-gcc" >"$d/path" || exit 0
cd "$d" || exit
printf '#include <stdio.h>\nint main(void) { return puts("") < 0; }\n' >try.c
if "bin/$t-gcc" -o try try.c 2>err; then
	echo "elf $(od -An -v -tx1 -N20 try | tr -d ' \n')"
else
	echo "broken $(head -c 500 err | tr '\n' ' ')"
fi
c=$("$t-gcc" -print-file-name=libc.so.6)
case $c in
/*)
	mkdir -p "$d/run"
	ln -s "$s/usr" "$d/run/usr"
	ln -s "${c%/*}" "$d/run/lib"
	ln -s "${c%/*}" "$d/run/lib64"
	;;
esac
rm -f try try.c err path
`

// toolchain makes the workspace ready to cross build, or says why it cannot be.
func (r *run) toolchain(ctx context.Context) error {
	x := r.job.Cross
	args := []string{"/bin/sh", "-c", crossScript, "sh", x.Triplet, SysrootPath, crossPath}
	for _, tool := range crossTools {
		args = append(args, tool[1])
	}
	var said bytes.Buffer
	out := &output{left: 64 << 10, to: &said}
	reply, err := r.guest.ask(ctx, guest.Request{Op: guest.OpRun, Run: &guest.Run{
		Commands: []guest.Command{{Args: args}}, Dir: "/", Env: r.plain(), Wall: 5 * time.Minute, Log: out.left,
		Compat: r.ws.Emulation == "compat",
	}}, nil, 5*time.Minute+r.patience(), out)
	if err != nil {
		return r.lost(ctx, "prepare", err)
	}
	bad := &ToolchainError{Arch: r.job.Build.Arch, Machine: x.Machine, Instance: r.ws.Instance.Digest}
	if reply.Error != "" || reply.Status != 0 || reply.Killed != "" {
		bad.Why = fmt.Sprintf("looking for it ended with status %d %s%s: %s", reply.Status, reply.Killed, reply.Error, human.Safe(lastLine(said.String()), false))
		return bad
	}
	for line := range strings.Lines(said.String()) {
		switch word, rest, _ := strings.Cut(strings.TrimSpace(line), " "); word {
		case "missing":
			bad.Missing = append(bad.Missing, human.Safe(rest, false))
		case "broken":
			bad.Why = x.Triplet + "-gcc cannot build a program: " + human.Safe(strings.TrimRight(rest, " .\n"), false)
		case "elf":
			if head, err := hex.DecodeString(rest); err != nil || !isFor(head, r.job.Build.Arch) {
				bad.Why = x.Triplet + "-gcc makes programs for another arch"
			}
		}
	}
	if bad.Why != "" || len(bad.Missing) > 0 {
		return bad
	}
	r.log.farm("prepare: cross building for %s on %s with %s-gcc", r.job.Build.Arch, x.Machine, x.Triplet)
	return nil
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// isFor reports whether an ELF file that begins so is for an arch. Of one that
// nobody has heard of everything may be.
func isFor(head []byte, arch string) bool {
	m, ok := tinyelf.Of(arch)
	if !ok {
		return true
	}
	want := m.Header()
	return len(head) == 20 && bytes.Equal(head[:6], want[:6]) && bytes.Equal(head[18:], want[18:20])
}

// crossDeps divides the dependencies: what runs in the workspace, and what the
// build is compiled against.
func (j *Job) crossDeps() (system, sysroot []Dep) {
	if j.Cross == nil {
		return j.Deps, nil
	}
	for _, d := range j.Deps {
		if d.Arch == "" {
			sysroot = append(sysroot, d)
		} else {
			system = append(system, d)
		}
	}
	return system, sysroot
}

// crossEnvironment is what all steps of a cross build find in their environment.
func (j *Job) crossEnvironment() []string {
	x := j.Cross
	if x == nil {
		return nil
	}
	env := []string{
		"PATH=" + crossPath + "/bin:" + plainPath,
		"CXX=" + x.Triplet + "-g++", "CROSS_COMPILE=" + x.Triplet + "-",
		"CC_FOR_BUILD=gcc", "BUILD_CC=gcc", "HOSTCC=gcc", "CXX_FOR_BUILD=g++", "HOSTCXX=g++",
		// Only what has been laid in for the arch may be found, at its places.
		"PKG_CONFIG=pkg-config",
		"PKG_CONFIG_LIBDIR=" + strings.Join([]string{SysrootPath + "/usr/lib/pkgconfig", SysrootPath + "/usr/lib64/pkgconfig",
			SysrootPath + "/usr/lib/" + x.Triplet + "/pkgconfig", SysrootPath + "/usr/share/pkgconfig"}, ":"),
		"PKG_CONFIG_SYSROOT_DIR=" + SysrootPath,
		"QUARRY_CROSS=1", "QUARRY_ARCH=" + j.Build.Arch, "QUARRY_HOST_ARCH=" + x.Machine,
		"QUARRY_TRIPLET=" + x.Triplet, "QUARRY_HOST_TRIPLET=" + x.Build, "QUARRY_SYSROOT=" + SysrootPath,
	}
	for _, tool := range crossTools {
		env = append(env, tool[0]+"="+x.Triplet+"-"+tool[1])
	}
	if strings.Contains(x.Triplet, "-linux-gnu") {
		// Older configure scripts want to run a program to learn of malloc(0), and
		// replace the C library's own where they cannot.
		env = append(env, "ac_cv_func_malloc_0_nonnull=yes", "ac_cv_func_realloc_0_nonnull=yes")
	}
	return env
}

// crossConfigure is what configure is told besides the recipe's own words. In
// its language the host is what the package will run on.
func (j *Job) crossConfigure() (args []string) {
	x := j.Cross
	if x == nil {
		return nil
	}
	for _, a := range [][2]string{{"--host", x.Triplet}, {"--build", x.Build}} {
		if !slices.ContainsFunc(j.Recipe.Configure, func(s string) bool { return s == a[0] || strings.HasPrefix(s, a[0]+"=") }) {
			args = append(args, a[0]+"="+a[1])
		}
	}
	return args
}

// emulation has qemu find the loader and the libraries of the build's arch, for
// the test step.
func (j *Job) emulation() []string {
	if j.Cross == nil {
		return nil
	}
	return []string{"QEMU_LD_PREFIX=" + crossPath + "/run"}
}
