package doctor

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
)

const binfmtDir = "/proc/sys/fs/binfmt_misc"

// runsArch looks whether programs of an arch run here, and with fix sees to it
// when all it takes is to tell the kernel of an emulator that is installed.
func runsArch(arch string, fix bool) Finding {
	how, err := images.Emulation(arch)
	if err == nil {
		return ok("%s", describe(how))
	}
	var no *images.NoEmulationError
	if !errors.As(err, &no) {
		return failure(Fail, err, "see doc/operating.md")
	}
	if !fix {
		return bad(Fail, no.Cure, "its programs do not run here: %s", no.Why)
	}
	did, ferr := Register(arch)
	if ferr != nil {
		return bad(Fail, ferr.Error(), "its programs do not run here: %s", no.Why)
	}
	how, err = images.Emulation(arch)
	if err != nil {
		return bad(Fail, no.Cure, "still do not run after: %s", did)
	}
	f := ok("%s, as of now: %s", describe(how), did)
	f.Fixed = true
	return f
}

func describe(how string) string {
	switch how {
	case images.Native:
		return "native"
	case images.Compat:
		return "compat: this processor runs it beside its own"
	}
	return "emulated, through binfmt_misc: some ten times slower"
}

// Register tells the kernel to run programs of an arch with qemu's user-mode
// emulator: it mounts binfmt_misc where that is missing and replaces an entry
// that lacks flag F. It holds until the next boot and needs root. The text says
// what was done; an error ends in the cure.
func Register(arch string) (did string, err error) {
	name := "qemu-" + images.QemuName(arch)
	interpreter := ""
	for _, n := range []string{name + "-static", name} {
		path, err := podman.LookPath(n)
		if err == nil && static(path) {
			interpreter = path
			break
		}
	}
	if interpreter == "" {
		return "", fmt.Errorf("apt-get install qemu-user-static (no static %s was found), then quarry doctor --fix again", name)
	}
	line, err := images.BinfmtLine(arch, interpreter)
	if err != nil {
		return "", err
	}
	var acts []string
	if _, err := os.Stat(filepath.Join(binfmtDir, "register")); err != nil {
		if err := unix.Mount("binfmt_misc", binfmtDir, "binfmt_misc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return "", fmt.Errorf("as root: modprobe binfmt_misc; mount -t binfmt_misc binfmt_misc %s (it could not be mounted: %w)", binfmtDir, err)
		}
		acts = append(acts, "mounted binfmt_misc")
	}
	entry := filepath.Join(binfmtDir, name)
	if _, err := os.Stat(entry); err == nil {
		if err := os.WriteFile(entry, []byte("-1"), 0); err != nil {
			return "", fmt.Errorf("as root: echo -1 > %s (it could not be removed: %w)", entry, err)
		}
		acts = append(acts, "removed the entry "+name+" that was no use")
	}
	if err := os.WriteFile(filepath.Join(binfmtDir, "register"), []byte(line), 0); err != nil {
		return "", fmt.Errorf("as root: printf '%%s' '%s' > %s/register (it could not be written: %w)", line, binfmtDir, err)
	}
	acts = append(acts, "registered "+interpreter+" with flag F, until the next boot")
	return strings.Join(acts, ", "), nil
}

// static reports whether a program runs without anything else, as it must
// inside of somebody else's system.
func static(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

func guest(ctx context.Context, o *Options) Finding {
	if o.Guest == "" {
		return bad(Fail, "reinstall Quarry", "no guest program is known")
	}
	st, err := os.Stat(o.Guest)
	if err != nil {
		return failure(Fail, err, "reinstall Quarry")
	}
	if st.Mode().Perm()&0o111 != 0o111 {
		return bad(Fail, "chmod a+rx "+o.Guest, "%s may not be run by everybody, and a build's root is nobody on this machine", o.Guest)
	}
	if !static(o.Guest) {
		return bad(Fail, "build it with CGO_ENABLED=0 (make build does)", "%s is not a static program, so it would need libraries of every base", o.Guest)
	}
	return ok("%s is static", o.Guest)
}
