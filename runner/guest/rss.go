package guest

import (
	"bytes"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// slim makes this process as small as it can be before it forks. A process that
// is forked as Go does it shares its parent's memory until it executes its own
// program, and the kernel notes that memory's high-water mark as the child's
// (exec_mmap in fs/exec.c): no process of a step would seem smaller than the
// guest ever was. Most of that is the guest's program, which the kernel has at
// hand anyway, and what it once took to lay dependencies in.
type slim struct {
	program [][]byte // its mappings that are only read
	refs    int      // /proc/self/clear_refs, or -1
}

func openSlim() slim {
	s := slim{refs: -1}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return s
	}
	maps, err := os.ReadFile("/proc/self/smaps") // proc_pid_smaps(5)
	if err != nil {
		return s
	}
	var at []byte // the mapping of the program that the lines are about; nil: another
	for line := range bytes.Lines(maps) {
		f := bytes.Fields(line)
		switch {
		case len(f) > 0 && !bytes.HasSuffix(f[0], []byte(":")):
			// from-to perms offset dev inode path
			at = nil
			if len(f) == 6 && string(f[5]) == self && len(f[1]) == 4 && f[1][1] == '-' && f[1][3] == 'p' {
				at = mapping(f[0])
			}
		case at != nil && len(f) == 3 && string(f[0]) == "Anonymous:" && string(f[1]) == "0":
			// Nothing was ever changed there, as a relocation would have, so that
			// all of it is in the file.
			s.program = append(s.program, at)
		}
	}
	if s.refs, err = unix.Open("/proc/self/clear_refs", unix.O_WRONLY|unix.O_CLOEXEC, 0); err != nil {
		s.refs = -1 // a kernel without: the mark stays where it is
	}
	return s
}

// mapping gives the memory of a range such as 400000-bf2000, nil for another
// word.
func mapping(word []byte) []byte {
	a, b, _ := bytes.Cut(word, []byte{'-'})
	from, err1 := strconv.ParseUint(string(a), 16, 64)
	to, err2 := strconv.ParseUint(string(b), 16, 64)
	if err1 != nil || err2 != nil || from >= to {
		return nil
	}
	// Go knows nothing of it, and so does not move it.
	at := uintptr(from)
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&at)), to-from)
}

// down gives the program's pages back, which come again as they are needed, and
// has the kernel begin its mark anew from what is left (proc_pid_clear_refs(5)).
func (s slim) down() {
	if s.refs < 0 {
		return
	}
	for _, m := range s.program {
		_ = unix.Madvise(m, unix.MADV_DONTNEED)
	}
	_, _ = unix.Pwrite(s.refs, []byte("5"), 0)
}
