package guest

import (
	"bytes"
	"io"
	"os"
	"strings"

	"github.com/Morphux/quarry/jobserver"
	"golang.org/x/sys/unix"
)

// Jobserver says where a step's commands find the tokens for what they do in
// parallel.
type Jobserver struct {
	Path string `json:"path"` // of the FIFO
	Jobs int    `json:"jobs"` // the most that there will be
}

// JobserverLost is in the place of a form when the build has removed its FIFO.
const JobserverLost = "lost"

// join has the step's commands take part in their jobserver: it puts MAKEFLAGS
// into their environment, unless the recipe has its own there, in the form that
// the system's make understands. What the build has done to the FIFO or to make
// in earlier steps is to its own harm: without the one or the other it gets the
// number alone. The runner hears of the form before anything runs.
func (s *step) join() error {
	j := s.run.Jobserver
	if j == nil {
		return nil
	}
	for _, kv := range s.run.Env {
		if strings.HasPrefix(kv, "MAKEFLAGS=") {
			return nil
		}
	}
	told := MakeForm("make", s.run.Dir, s.run.Env)
	form := told
	if told != jobserver.None {
		fd, err := openFIFO(j.Path)
		switch {
		case err != nil:
			form, told = jobserver.None, JobserverLost
		case form == jobserver.Descriptor:
			s.tokens = fd
		default:
			unix.Close(fd)
		}
	}
	s.run.Env = append(s.run.Env, "MAKEFLAGS="+jobserver.Flags(form, j.Path, j.Jobs))
	return s.g.sendRaw(KindForm, []byte(told))
}

// openFIFO opens a FIFO in a place where anything else may be by now.
func openFIFO(path string) (int, error) {
	// To read and write, so that it neither waits for anybody nor ever ends.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFIFO {
		err = unix.ENOTSUP
	}
	if err == nil {
		err = unix.SetNonblock(fd, false) // as make makes its own
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// mostMake is how much of a make is looked through; real ones have half a
// megabyte.
const mostMake = 32 << 20

// MakeForm finds out which form of jobserver a make takes, by what its program
// says: it may be for another arch, and running it could do anything. It is
// looked for by name where a step in dir with this environment would find it.
func MakeForm(name, dir string, env []string) string {
	path, err := lookPath(name, dir, env)
	if err != nil {
		return jobserver.FIFO // whatever else there is, it is newer than that form
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return jobserver.None
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return jobserver.None
	}
	return formOf(io.LimitReader(f, mostMake))
}

// formOf reads a make's program.
func formOf(r io.Reader) string {
	const overlap = 32 // more than any of the words has
	style, auth := []byte("jobserver-style"), []byte("jobserver-auth")
	form := jobserver.None
	buf := make([]byte, 64<<10)
	kept := 0
	for first := true; ; first = false {
		n, err := io.ReadFull(r, buf[kept:])
		have := buf[:kept+n]
		if first && bytes.HasPrefix(have, []byte("#!")) {
			// A script around a make that nobody knows; all GNU makes since 4.2 take
			// this one.
			return jobserver.Descriptor
		}
		if bytes.Contains(have, style) { // an option since 4.4, which brought fifo:
			return jobserver.FIFO
		}
		if bytes.Contains(have, auth) {
			form = jobserver.Descriptor
		}
		if err != nil {
			return form
		}
		kept = copy(buf, have[len(have)-overlap:])
	}
}
