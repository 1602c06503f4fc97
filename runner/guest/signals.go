package guest

import (
	"os"
	"os/signal"
	"unsafe"

	"golang.org/x/sys/unix"
)

// nopAddr is where the machine code of a signal handler lies that does
// nothing; see nop.s.
var nopAddr uintptr

// kernelAction is struct sigaction as rt_sigaction(2) has it on 64-bit
// machines. Only the handler, which comes first on all of them, is looked at;
// the rest is carried over as it is.
type kernelAction struct {
	handler uintptr
	rest    [5]uint64
}

func sigaction(sig int, set, get *kernelAction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(get)), 8, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("rt_sigaction", errno)
	}
	return nil
}

// forgetSignals has this process take every signal and forget it. In children
// all are as by default, for these are handlers, which exec(2) removes.
//
// Process 1 of a namespace is said to get no signals from within that it has
// no handler for. That is not so: while its first thread has a signal blocked,
// as Go's has during each fork, the kernel (complete_signal) finds a thread
// that has not, and a default action that is fatal ends the process. Go leaves
// signals 32 and 34 at their default, so a build could end its guest with them.
func forgetSignals() error {
	signal.Notify(make(chan os.Signal, 1)) // all that Go can take; nobody reads them
	var like kernelAction
	if err := sigaction(int(unix.SIGUSR1), nil, &like); err != nil {
		return err
	}
	like.handler = nopAddr
	for sig := 1; sig <= 64; sig++ {
		var now kernelAction
		if sig == int(unix.SIGKILL) || sig == int(unix.SIGSTOP) {
			continue // these really do not reach it from within
		}
		if err := sigaction(sig, nil, &now); err != nil {
			return err
		}
		if now.handler > 1 { // neither SIG_DFL nor SIG_IGN, which children would inherit
			continue
		}
		if err := sigaction(sig, &like, nil); err != nil {
			return err
		}
	}
	return nil
}
