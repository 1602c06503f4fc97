package extract

import (
	"encoding/binary"
	"io"
	"strconv"
	"strings"

	"github.com/Morphux/quarry"
)

// Cross says that a tree was built for one arch on a machine of another.
type Cross struct {
	Machine string // e.g. x86_64
	Arch    string // e.g. aarch64
}

// elfName is what ELF calls an arch: i486 and i686 are one machine to it, and so
// are all of ARM's 32-bit ones.
func elfName(arch string) string {
	switch arch {
	case "i386", "i486", "i586":
		return "i686"
	case "armv5tel", "armv6l", "armv7hl":
		return "armv7l"
	}
	return arch
}

// foreign refuses what a cross build made for the machine that it ran on:
// programs, libraries, objects and static libraries. That is what a compiler
// leaves which was not the one that the build was given. Files for third machines
// stay: firmware, and programs for the kernel's own (eBPF).
func (t *tree) foreign() error {
	if t.Cross == nil || elfName(t.Cross.Machine) == elfName(t.Cross.Arch) {
		return nil
	}
	machine := elfName(t.Cross.Machine)
	for i := range t.entries {
		e := &t.entries[i]
		if e.Kind == quarry.KindRegular && (e.objects == machine || e.ELF != nil && e.ELF.Arch == machine) {
			t.refused.add(refusal{
				"file is for " + t.Cross.Machine + " and not for " + t.Cross.Arch,
				"files are for " + t.Cross.Machine + " and not for " + t.Cross.Arch,
				"the cross build did not use its compiler, have it honour CC (and AR, LD), or say nocross",
			}, e.Path)
		}
	}
	return t.refused.err()
}

// maxMembers is how far a static library is looked through for an object.
const maxMembers = 64

// archiveArch is the arch of the first object in an ar archive, "" if none is
// near its beginning. A thin one holds none.
func archiveArch(f io.ReaderAt, size int64) string {
	const magic, hlen = "!<arch>\n", 60
	head := make([]byte, len(magic))
	if _, err := f.ReadAt(head, 0); err != nil || string(head) != magic {
		return ""
	}
	off := int64(len(magic))
	for range maxMembers {
		h := make([]byte, hlen+20)
		n, _ := f.ReadAt(h, off)
		if n < hlen || string(h[58:60]) != "`\n" {
			return ""
		}
		if obj := h[hlen:n]; len(obj) == 20 && string(obj[:4]) == elfMagic {
			little := obj[5] == 1
			order := binary.ByteOrder(binary.BigEndian)
			if little {
				order = binary.LittleEndian
			}
			return elfArch(order.Uint16(obj[18:]), obj[4] == 2, little)
		}
		length, err := strconv.ParseInt(strings.TrimRight(string(h[48:58]), " "), 10, 64)
		if err != nil || length < 0 || length > size-off-hlen {
			return ""
		}
		off += hlen + length + length&1
	}
	return ""
}
