package layers

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/extract"
)

// unpackerName is the name by which a program is started to unpack.
const unpackerName = "quarry-unpack"

// Unpacker is the other end of a cache: when this process was started by one to
// unpack an artifact it does that and does not return. Programs that open a cache call it
// first of all.
func Unpacker() {
	if len(os.Args) != 3 || os.Args[0] != unpackerName {
		return
	}
	limit, err := strconv.ParseInt(os.Args[2], 10, 64)
	var r result
	if err == nil {
		r.Seen, err = unpackHere(os.Args[1], limit)
	}
	if err != nil {
		r = result{Error: err.Error(), Full: errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)}
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// unpackHere unpacks the artifact that is open as 3 into the root that is open
// as 4. The process is root in namespaces of its own, where it can
// see neither network nor processes, and leaves all it does not need.
func unpackHere(artifact string, limit int64) ([]string, error) {
	const file, root = 3, 4
	// Capabilities are a thread's; all that is done to files is done on this one.
	runtime.LockOSThread()
	debug.SetGCPercent(400)
	if err := confine(root); err != nil {
		return nil, err
	}
	in := newHashed(os.NewFile(file, "artifact"))
	defer in.stop()
	seen, err := extract.InstallSeen(in, "/", extract.Limits{Bytes: min(limit, extract.DefaultLimits.Bytes)}, 2)
	if err != nil {
		return nil, err
	}
	// It has been read to its end: what follows it would be an error.
	if got := in.digest(); got != artifact {
		return nil, fmt.Errorf("the artifact is damaged, its bytes have the hash %s: build its package again", got)
	}
	return seen, nil
}

func confine(root int) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl(PR_SET_NO_NEW_PRIVS)", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return os.NewSyscallError("setrlimit(RLIMIT_CORE)", err)
	}
	unix.Umask(0o022)
	if err := unix.Fchdir(root); err != nil {
		return os.NewSyscallError("fchdir", err)
	}
	if err := unix.Chroot("."); err != nil {
		return os.NewSyscallError("chroot", err)
	}
	if err := unix.Close(root); err != nil {
		return os.NewSyscallError("close", err)
	}
	// What the root of a workspace has of use here. SETFCAP is not among it:
	// artifacts are to be installed as they are in a workspace.
	var keep uint32
	for _, c := range []int{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID} {
		keep |= 1 << c
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: keep, Permitted: keep}}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	return nil
}

// hashed reads a file ahead and hashes it meanwhile.
type hashed struct {
	blocks chan block
	free   chan []byte
	quit   chan struct{}
	sum    hash.Hash // of whoever reads ahead, until blocks is closed
	left   []byte    // of the block at hand
	buf    []byte
	err    error
}

type block struct {
	data []byte
	err  error
}

func newHashed(r io.Reader) *hashed {
	h := &hashed{blocks: make(chan block, 4), free: make(chan []byte, 6), quit: make(chan struct{}), sum: sha256.New()}
	for range cap(h.free) {
		h.free <- make([]byte, 256<<10)
	}
	go func() {
		defer close(h.blocks)
		for {
			var buf []byte
			select {
			case buf = <-h.free:
			case <-h.quit:
				return
			}
			n, err := r.Read(buf)
			h.sum.Write(buf[:n])
			select {
			case h.blocks <- block{buf[:n], err}:
			case <-h.quit:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return h
}

func (h *hashed) Read(p []byte) (int, error) {
	for len(h.left) == 0 {
		if h.err != nil {
			return 0, h.err
		}
		if h.buf != nil {
			h.free <- h.buf[:cap(h.buf)]
			h.buf = nil
		}
		b, ok := <-h.blocks
		if !ok {
			h.err = io.ErrUnexpectedEOF
			return 0, h.err
		}
		h.buf, h.left, h.err = b.data, b.data, b.err
	}
	n := copy(p, h.left)
	h.left = h.left[n:]
	return n, nil
}

// digest is the hash of everything, once Read has said io.EOF.
func (h *hashed) digest() string {
	for range h.blocks { // until it is closed
	}
	return hex.EncodeToString(h.sum.Sum(nil))
}

func (h *hashed) stop() { close(h.quit) }
