// Package notes writes what came of builds into the packages' repositories, as
// notes of git on the commits that were built: who fetches refs/notes/quarry sees
// it in their own git log.
//
// It reads the log of events, from where it was, and keeps trying what does not
// succeed; a note says the same however often it is written.
package notes

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
)

// Line is what a note says of the newest build of its commit for one channel (or
// group in it) and arch:
//
//	testing/x86_64 failed 2026-11-21T21:18:05Z build 17 record 3f9a0c12d3e4 https://farm.example.org/builds/17 - make: missing header zconf.h
//
// The address is there where the farm has one, what follows " - " where the build
// failed.
func Line(b quarry.Build, url string) string {
	l := fmt.Sprintf("%s/%s %s %s build %d record %.12s", b.View(), b.Arch, b.State, b.Ended.UTC().Format(time.RFC3339), b.Number, b.Record)
	if url != "" {
		l += " " + url
	}
	if reason := strings.Join(strings.Fields(human.Safe(b.Reason, false)), " "); reason != "" && b.State == quarry.Failed {
		l += " - " + shorten(reason)
	}
	return l
}

func shorten(s string) string {
	const most = 300
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}

var form = regexp.MustCompile(`^(\S+/\S+) \S+ \S+ build (\d+) record `)

// Merge puts a line into a note, in the place of that of an older build of the same
// channel and arch. A line of a younger one stays, and so does what is not of this
// form.
func Merge(note, line string) string {
	m := form.FindStringSubmatch(line)
	if m == nil {
		return note
	}
	number, _ := strconv.ParseInt(m[2], 10, 64)
	var lines, others []string
	for old := range strings.Lines(note) {
		old = strings.TrimRight(old, "\n")
		o := form.FindStringSubmatch(old)
		switch {
		case o == nil && old != "":
			others = append(others, old)
		case o == nil:
		case o[1] != m[1]:
			lines = append(lines, old)
		default:
			if n, _ := strconv.ParseInt(o[2], 10, 64); n > number {
				return note
			}
		}
	}
	lines = append(lines, line)
	slices.Sort(lines)
	return strings.Join(append(lines, others...), "\n") + "\n"
}
