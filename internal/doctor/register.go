package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
)

const binfmtDir = "/proc/sys/fs/binfmt_misc"

// registration is what it takes to have the kernel run programs of an arch.
type registration struct {
	arch  string
	entry string // name in binfmt_misc
	qemu  string // the emulator
	line  string // for the kernel
}

// plan finds out how programs of an arch can be run with qemu's user-mode
// emulator, and changes nothing. An error ends in the cure.
func plan(arch string) (*registration, error) {
	r := &registration{arch: arch, entry: "qemu-" + images.QemuName(arch)}
	for _, n := range []string{r.entry + "-static", r.entry} {
		if path, err := podman.LookPath(n); err == nil && static(path) {
			r.qemu = path
			break
		}
	}
	if r.qemu == "" {
		return nil, fmt.Errorf("apt-get install qemu-user-static (no static %s was found), then quarry doctor --fix again", r.entry)
	}
	var err error
	r.line, err = images.BinfmtLine(arch, r.qemu)
	return r, err
}

func (r *registration) mounted() bool {
	_, err := os.Stat(filepath.Join(binfmtDir, "register"))
	return err == nil
}

func (r *registration) taken() bool {
	_, err := os.Stat(filepath.Join(binfmtDir, r.entry))
	return err == nil
}

// String says what do would do.
func (r *registration) String() string {
	var acts []string
	if !r.mounted() {
		acts = append(acts, "mount binfmt_misc")
	}
	if r.taken() {
		acts = append(acts, "remove its entry "+r.entry+", which is no use")
	}
	acts = append(acts, "register "+r.qemu+" with flag F for programs of "+r.arch)
	return strings.Join(acts, ", ") + ", for everybody on this machine, until the next boot"
}

// do does it. It needs root. The text says what was done.
func (r *registration) do() (did string, err error) {
	var acts []string
	if !r.mounted() {
		if err := unix.Mount("binfmt_misc", binfmtDir, "binfmt_misc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return "", fmt.Errorf("as root: modprobe binfmt_misc; mount -t binfmt_misc binfmt_misc %s (it could not be mounted: %w)", binfmtDir, err)
		}
		acts = append(acts, "mounted binfmt_misc")
	}
	status := filepath.Join(binfmtDir, "status")
	if text, err := os.ReadFile(status); err == nil && strings.TrimSpace(string(text)) == "disabled" {
		if err := os.WriteFile(status, []byte("1"), 0); err != nil {
			return "", fmt.Errorf("as root: echo 1 > %s (it could not be enabled: %w)", status, err)
		}
		acts = append(acts, "enabled it")
	}
	if r.taken() {
		entry := filepath.Join(binfmtDir, r.entry)
		if err := os.WriteFile(entry, []byte("-1"), 0); err != nil {
			return "", fmt.Errorf("as root: echo -1 > %s (it could not be removed: %w)", entry, err)
		}
		acts = append(acts, "removed the entry "+r.entry+" that was no use")
	}
	if err := os.WriteFile(filepath.Join(binfmtDir, "register"), []byte(r.line), 0); err != nil {
		return "", fmt.Errorf("as root: printf '%%s' '%s' > %s/register (it could not be written: %w)", r.line, binfmtDir, err)
	}
	acts = append(acts, "registered "+r.qemu+" with flag F, until the next boot")
	return strings.Join(acts, ", "), nil
}

// Register tells the kernel to run programs of an arch with qemu's user-mode
// emulator: it mounts binfmt_misc where that is missing and replaces an entry
// of that emulator. It holds until the next boot and needs root. The text says
// what was done; an error ends in the cure. Whoever calls it has consented.
func Register(arch string) (did string, err error) {
	r, err := plan(arch)
	if err != nil {
		return "", err
	}
	return r.do()
}
