package images

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/podman/tinyelf"
	"github.com/Morphux/quarry/internal/runnable"
)

// How a machine runs programs of an architecture.
const (
	Native   = "native"   // its own
	Compat   = "compat"   // its processor's other mode, as i686 on x86_64
	Emulated = "emulated" // through binfmt_misc
)

// oci holds what the OCI image specification calls an arch where that is not
// uname's own name for it: architecture and variant, from Go's list of GOARCH.
var oci = map[string][2]string{
	"x86_64": {"amd64"}, "i386": {"386"}, "i486": {"386"}, "i586": {"386"}, "i686": {"386"},
	"aarch64": {"arm64"}, "armv5tel": {"arm", "v5"}, "armv6l": {"arm", "v6"}, "armv7l": {"arm", "v7"},
	"loongarch64": {"loong64"}, "mipsel": {"mipsle"}, "mips64el": {"mips64le"},
}

// ociArch returns the OCI name of an arch; one that nobody has heard of keeps
// its own.
func ociArch(arch string) (name, variant string) {
	if a, ok := oci[arch]; ok {
		return a[0], a[1]
	}
	return arch, ""
}

// NoEmulationError says that this machine cannot run programs of an arch.
type NoEmulationError struct {
	Arch string
	Why  string
	Cure string
}

func (e *NoEmulationError) Error() string {
	return fmt.Sprintf("programs for %s do not run on this machine: %s: %s", e.Arch, e.Why, e.Cure)
}

var compatCache sync.Map // of archs that run in compat mode

// Emulation tells how this machine runs programs of an arch: native, compat or
// emulated. When it cannot, the error is a *NoEmulationError with the cure.
func Emulation(arch string) (string, error) {
	host := podman.HostArch()
	if arch == host {
		return Native, nil
	}
	m, known := tinyelf.Of(arch)
	if !known {
		// Unknown to this table is not unknown to the admin, who may have
		// registered an interpreter under the arch's name.
		if _, err := os.Stat(filepath.Join(binfmtDir, "qemu-"+arch)); err == nil {
			return Emulated, nil
		}
		return "", &NoEmulationError{arch, "this Quarry does not know its ELF header", "build it on a machine of its own"}
	}
	if compatible(host, arch) {
		_, ok := compatCache.Load(arch)
		if !ok && tryRun(m, false) == nil {
			compatCache.Store(arch, nil)
			ok = true
		}
		if ok {
			return Compat, nil
		}
	}
	how, err := registered(arch, m.Header())
	if err != nil && tryRun(m, true) == nil {
		// The kernel knows more than this process is shown: in a container
		// binfmt_misc is often the host's, and mounted only there.
		return Emulated, nil
	}
	return how, err
}

// TryArch runs the smallest program of an arch, in a root with nothing else in it
// where that is allowed, as it is to root.
func TryArch(arch string) error {
	m, ok := tinyelf.Of(arch)
	if !ok {
		return nil // nothing to try it with; see Emulation
	}
	if _, ok := m.Program(); !ok {
		return nil
	}
	err := tryRun(m, true)
	if errors.Is(err, syscall.EPERM) {
		err = tryRun(m, false)
	}
	return err
}

// registered looks for an interpreter of an arch in binfmt_misc. Where several
// fit and one of them lacks flag F, which of them the kernel takes is for the
// caller to try.
func registered(arch string, header []byte) (string, error) {
	entries, err := Binfmt()
	if err != nil {
		return "", &NoEmulationError{arch, err.Error(), "run quarry doctor --fix, or mount -t binfmt_misc binfmt_misc " + binfmtDir}
	}
	how := ""
	for _, e := range entries {
		if !e.Enabled || !e.matches(header) {
			continue
		}
		if !strings.Contains(e.Flags, "F") {
			return "", &NoEmulationError{arch, fmt.Sprintf("binfmt_misc entry %s has no flag F, so its interpreter %s is not found inside a workspace", e.Name, e.Interpreter),
				"register it with flag F (quarry doctor --fix, or reinstall qemu-user-static)"}
		}
		how = Emulated
	}
	if how != "" {
		return how, nil
	}
	return "", &NoEmulationError{arch, "binfmt_misc has no enabled entry for it", "apt-get install qemu-user-static binfmt-support, then quarry doctor --fix"}
}

// compatible reports whether processors of the host's arch as a rule also run
// the other; the kernel may be built without it.
func compatible(host, arch string) bool {
	h, ok := tinyelf.Of(host)
	m, ok2 := tinyelf.Of(arch)
	if !ok || !ok2 {
		return false
	}
	switch {
	case h == m: // armv7l runs armv6l, i686 runs i586
		return true
	case host == "x86_64":
		return m.EM == 3
	case host == "aarch64":
		return m.EM == 40
	case h.EM == m.EM && h.Bits == 64 && m.Bits == 32: // ppc64 and ppc, mips64 and mips
		return h.Big == m.Big
	case host == "ppc64":
		return arch == "ppc"
	}
	return false
}

// tryRun runs the smallest program of a machine; with alone, where there is
// nothing else, as an emulator without flag F would have to be.
func tryRun(m tinyelf.Machine, alone bool) error {
	prog, ok := m.Program()
	if !ok {
		return errors.New("no probe program for it")
	}
	dir, err := os.MkdirTemp("", "quarry-probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "tiny")
	if err := runnable.WriteFile(path, prog); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // of a machine that is very busy
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	if alone {
		cmd.Path, cmd.Dir, cmd.SysProcAttr = "/tiny", "/", &syscall.SysProcAttr{Chroot: dir}
	}
	return cmd.Run()
}

const binfmtDir = "/proc/sys/fs/binfmt_misc"

// BinfmtEntry is one registered interpreter.
type BinfmtEntry struct {
	Name        string
	Enabled     bool
	Interpreter string // e.g. /usr/bin/qemu-aarch64-static
	Flags       string // e.g. F
	Offset      int
	Magic, Mask []byte
}

// matches reports whether the kernel gives a file that begins with header to
// the entry.
func (e BinfmtEntry) matches(header []byte) bool {
	if len(e.Magic) == 0 || e.Offset < 0 || e.Offset+len(e.Magic) > len(header) {
		return false
	}
	for i, b := range e.Magic {
		mask := byte(0xff)
		if i < len(e.Mask) {
			mask = e.Mask[i]
		}
		if (header[e.Offset+i]^b)&mask != 0 {
			return false
		}
	}
	return true
}

// Binfmt reads what is registered in binfmt_misc.
func Binfmt() ([]BinfmtEntry, error) {
	status, err := os.ReadFile(filepath.Join(binfmtDir, "status"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("binfmt_misc is not mounted on %s", binfmtDir)
	}
	if err != nil {
		return nil, fmt.Errorf("binfmt_misc cannot be read: %w", err)
	}
	if strings.TrimSpace(string(status)) != "enabled" {
		return nil, fmt.Errorf("binfmt_misc is disabled (echo 1 > %s/status enables it)", binfmtDir)
	}
	files, err := os.ReadDir(binfmtDir)
	if err != nil {
		return nil, err
	}
	var entries []BinfmtEntry
	for _, f := range files {
		if f.Name() == "register" || f.Name() == "status" {
			continue
		}
		data, err := os.ReadFile(filepath.Join(binfmtDir, f.Name()))
		if err != nil {
			continue // removed meanwhile
		}
		entries = append(entries, parseBinfmt(f.Name(), data))
	}
	return entries, nil
}

// parseBinfmt reads the text of an entry (admin-guide/binfmt-misc.rst).
func parseBinfmt(name string, data []byte) BinfmtEntry {
	e := BinfmtEntry{Name: name}
	for i, line := range bytes.Split(data, []byte("\n")) {
		key, value, _ := strings.Cut(string(line), " ")
		switch {
		case i == 0:
			e.Enabled = string(line) == "enabled"
		case key == "interpreter":
			e.Interpreter = value
		case key == "flags:":
			e.Flags = value
		case key == "offset":
			e.Offset, _ = strconv.Atoi(value)
		case key == "magic":
			e.Magic, _ = hex.DecodeString(value)
		case key == "mask":
			e.Mask, _ = hex.DecodeString(value)
		}
	}
	return e
}

// qemuName is what qemu calls the emulator of an arch where that is not
// uname's own name.
var qemuName = map[string]string{
	"i486": "i386", "i586": "i386", "i686": "i386", "armv5tel": "arm", "armv6l": "arm", "armv7l": "arm", "parisc": "hppa",
}

// QemuName returns qemu's name for an arch, e.g. arm for armv7l.
func QemuName(arch string) string {
	if n, ok := qemuName[arch]; ok {
		return n
	}
	return arch
}

// BinfmtLine returns the line to write into binfmt_misc's register file so that
// the interpreter runs programs of an arch, also inside containers: flag F
// makes the kernel open it now.
func BinfmtLine(arch, interpreter string) (string, error) {
	m, ok := tinyelf.Of(arch)
	if !ok {
		return "", fmt.Errorf("the ELF header of %s is not known: register its interpreter by hand", arch)
	}
	if strings.ContainsAny(interpreter, ": \n") || len(interpreter) > 127 {
		return "", fmt.Errorf("interpreter %q cannot be registered: binfmt_misc takes no colon, blank or newline and 127 bytes at most", interpreter)
	}
	// Header to e_machine. OS ABI and its version may be anything, the type
	// executable or shared, as in qemu-binfmt-conf.sh.
	magic := bytes.Clone(m.Header()[:20])
	mask := bytes.Repeat([]byte{0xff}, 20)
	mask[7] = 0x00
	low := 16
	if m.Big {
		low = 17
	}
	mask[low] = 0xfe
	var b strings.Builder
	fmt.Fprintf(&b, ":qemu-%s:M:0:", QemuName(arch))
	for _, c := range magic {
		fmt.Fprintf(&b, `\x%02x`, c)
	}
	b.WriteByte(':')
	for _, c := range mask {
		fmt.Fprintf(&b, `\x%02x`, c)
	}
	fmt.Fprintf(&b, ":%s:F", interpreter)
	if b.Len() > 255 {
		return "", fmt.Errorf("binfmt_misc line for %s has %d bytes and 255 are the most", arch, b.Len())
	}
	return b.String(), nil
}
