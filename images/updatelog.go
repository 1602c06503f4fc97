package images

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// shorten makes text one line of at most n bytes.
func shorten(s string, n int) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > n {
		s = strings.ToValidUTF8(s[:n], "") + "..."
	}
	return s
}

// updateLog takes the output of an update: into a file, bounded, and line by
// line to those who watch. Attach writes from one goroutine at a time.
type updateLog struct {
	file     *os.File
	size     int64
	progress func(Progress)
	last     tailBuffer
	rest     []byte
	mark     string // that begins the line before each command's output
	lines    []string
	n        int // of the command that runs, from 1
	stepName string
}

// A log has at most logMost bytes; when it would get longer, its first part
// goes and logKeep bytes stay.
const (
	logMost = 2 << 20
	logKeep = 1 << 20
	maxLine = 2000 // bytes
)

func newUpdateLog(path string, progress func(Progress)) (*updateLog, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("log of the update cannot be made: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("log of the update cannot be made: %w", err)
	}
	return &updateLog{file: f, progress: progress, stepName: "preparing"}, nil
}

func (u *updateLog) Write(p []byte) (int, error) {
	for _, b := range p {
		// A carriage return ends a line too: progress bars use it.
		if b != '\n' && b != '\r' {
			if len(u.rest) < maxLine {
				u.rest = append(u.rest, b)
			}
			continue
		}
		u.flush()
	}
	return len(p), nil
}

// flush takes what there is of a line for the whole of it.
func (u *updateLog) flush() {
	line := string(u.rest)
	u.rest = u.rest[:0]
	var n int
	if rest, ok := strings.CutPrefix(line, u.mark+" "); ok && u.mark != "" {
		if _, err := fmt.Sscan(rest, &n); err == nil && n == u.n+1 && n <= len(u.lines) {
			u.n = n
			u.last.reset()
			u.step(fmt.Sprintf("command %d of %d", n, len(u.lines)))
			u.emit("$ " + shorten(u.lines[n-1], maxLine))
			return
		}
	}
	if clean := plain(line); clean != "" {
		u.last.Write([]byte(clean + "\n"))
		u.emit(clean)
	}
}

// plain takes out what could steer a terminal.
func plain(s string) string {
	return strings.TrimRight(strings.Map(func(r rune) rune {
		switch {
		case r == '\t':
			return ' '
		case r < 0x20, r >= 0x7f && r < 0xa0:
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "?")), " ")
}

func (u *updateLog) step(name string) {
	u.stepName = name
	u.progress(Progress{Step: name})
}

// note says something of the farm's own.
func (u *updateLog) note(text string) { u.emit("== " + text) }

func (u *updateLog) emit(line string) {
	u.progress(Progress{Step: u.stepName, Line: line})
	// A log that cannot be written, as on a full disk, is no reason to fail.
	n, _ := u.file.WriteString(line + "\n")
	if u.size += int64(n); u.size > logMost {
		u.cut()
	}
}

// cut drops the beginning of the file.
func (u *updateLog) cut() {
	keep := make([]byte, logKeep)
	n, _ := u.file.ReadAt(keep, u.size-logKeep)
	keep = keep[:n]
	if i := bytes.IndexByte(keep, '\n'); i >= 0 {
		keep = keep[i+1:]
	}
	u.file.Truncate(0)
	u.file.Seek(0, io.SeekStart)
	head := fmt.Sprintf("== %d bytes are left out here\n", u.size-int64(len(keep)))
	m, _ := u.file.Write(append([]byte(head), keep...))
	u.size = int64(m)
}

// line is the command that runs.
func (u *updateLog) line() string {
	if u.n == 0 {
		return ""
	}
	return u.lines[u.n-1]
}

func (t *tailBuffer) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = nil
}

func (u *updateLog) tail() string { return u.last.String() }

func (u *updateLog) Close() error {
	u.flush()
	return u.file.Close()
}
