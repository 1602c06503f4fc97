package jobserver

import "fmt"

// The forms in which clients are told where the jobserver is.
const (
	// FIFO names it by its path: GNU make from 4.4, ninja from 1.13, cargo.
	FIFO = "fifo"
	// Descriptor has it open as descriptor 3: GNU make from 4.2, cargo, gcc's LTO.
	Descriptor = "descriptor"
	// None is for a make that knows no jobserver from outside.
	None = "none"
)

// FD is the number that the FIFO has in the form Descriptor: the lowest that a
// make would give to a jobserver of its own.
const FD = 3

// Flags is what MAKEFLAGS says to have up to n jobs share the jobserver at path.
func Flags(form, path string, n int) string {
	switch form {
	case FIFO:
		return fmt.Sprintf("-j%d --jobserver-auth=fifo:%s", n, path)
	case Descriptor:
		return fmt.Sprintf("-j%d --jobserver-auth=%d,%d", n, FD, FD)
	}
	return fmt.Sprintf("-j%d", n)
}
