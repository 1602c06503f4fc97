// Package runnable writes programs that are run at once.
package runnable

import (
	"os"
	"syscall"
)

// WriteFile writes a program that everybody may run. No process that another
// goroutine begins meanwhile has the file open: until such a one ran a program of its
// own the kernel would not run this one (ETXTBSY; golang.org/issue/22315).
func WriteFile(path string, data []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, data, 0o755)
}
