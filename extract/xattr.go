package extract

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// File capabilities are the one extended attribute that a package ships: they
// are what a setuid bit is, in smaller pieces. All others belong to the file
// system or to policy (security.selinux, trusted.*) and are left behind, the
// two kinds that a recipe may have meant (user.*, ACLs) with a warning.
const capXattr = "security.capability"

// The forms of security.capability, from include/uapi/linux/capability.h: the
// magic's high byte is the revision, 20 bytes in revision 2, and 4 more in
// revision 3 for the host's id of the user namespace's root that set them.
const (
	capRevision2 = 0x02000000
	capRevision3 = 0x03000000
	capEffective = 0x000001
	capLen2      = 20
	capLen3      = 24
)

var errCapForm = errors.New("capabilities of an unknown form")

// xattrs reads a file's capabilities, as they are inside the workspace
// (revision 2), and the names of the attributes that are left behind. A
// capability set in a user namespace comes as revision 3, bound to that
// namespace's root: in the package it is plain root's.
func xattrs(dir int, name string, rootID uint32) (caps []byte, left []string, err error) {
	// There is no listxattrat before Linux 6.13; the link in /proc names the
	// folder that is open, whatever has become of its path.
	p := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	buf := make([]byte, 1024)
	n, err := retry(func() (int, error) { return unix.Llistxattr(p, buf) })
	if err == unix.ERANGE {
		buf = make([]byte, 64<<10) // XATTR_LIST_MAX
		n, err = retry(func() (int, error) { return unix.Llistxattr(p, buf) })
	}
	if err == unix.ENOTSUP || err == unix.EOPNOTSUPP {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list extended attributes: %w", err)
	}
	for attr := range strings.SplitSeq(string(buf[:n]), "\x00") {
		switch {
		case attr == capXattr:
			b := make([]byte, capLen3+1)
			n, err := retry(func() (int, error) { return unix.Lgetxattr(p, attr, b) })
			if err != nil {
				if err == unix.ERANGE {
					err = errCapForm
				}
				return nil, nil, err
			}
			if caps, err = plainCaps(b[:n], rootID); err != nil {
				return nil, nil, err
			}
		case strings.HasPrefix(attr, "user."), strings.HasPrefix(attr, "system.posix_acl_"):
			left = append(left, attr)
		}
	}
	slices.Sort(left) // file systems list them in any order
	return caps, left, nil
}

// plainCaps turns capabilities into revision 2, for the root of the system
// that they are installed on.
func plainCaps(b []byte, rootID uint32) ([]byte, error) {
	if len(b) < capLen2 {
		return nil, errCapForm
	}
	magic := binary.LittleEndian.Uint32(b)
	switch {
	case magic&0xff000000 == capRevision2 && len(b) == capLen2:
	case magic&0xff000000 == capRevision3 && len(b) == capLen3 && binary.LittleEndian.Uint32(b[capLen2:]) == rootID:
	default:
		return nil, errCapForm
	}
	if magic&0x00fffffe != 0 {
		return nil, errCapForm
	}
	out := make([]byte, capLen2)
	copy(out, b)
	binary.LittleEndian.PutUint32(out, capRevision2|magic&capEffective)
	return out, nil
}

// capNames are the capabilities by number, from linux/capability.h.
var capNames = strings.Fields(`chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap
	linux_immutable net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio
	sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease
	audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon
	bpf checkpoint_restore`)

// showCaps lists what plainCaps returned, e.g. cap_net_raw, cap_setuid.
func showCaps(b []byte) string {
	permitted := uint64(binary.LittleEndian.Uint32(b[4:])) | uint64(binary.LittleEndian.Uint32(b[12:]))<<32
	inheritable := uint64(binary.LittleEndian.Uint32(b[8:])) | uint64(binary.LittleEndian.Uint32(b[16:]))<<32
	var names []string
	for i := range 64 {
		if (permitted|inheritable)>>i&1 == 0 {
			continue
		}
		if i < len(capNames) {
			names = append(names, "cap_"+capNames[i])
		} else {
			names = append(names, fmt.Sprintf("cap_%d", i))
		}
	}
	return strings.Join(names, ", ")
}
