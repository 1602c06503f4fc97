// Package cgroup reads what the kernel counts for one control group, of version
// 1, 2, or hybrid (version 1's controllers beside an empty version 2 tree).
//
// What the kernel does not tell is not known, which is not the same as 0:
// kernels, their settings and the delegation of groups differ. The sources of
// the rules are Linux' Documentation/admin-guide/cgroup-v1 and cgroup-v2.rst.
package cgroup

import (
	"bytes"
	"encoding/json"
	"errors"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Count is a number that may not be known. The zero value is not known.
type Count struct {
	N     int64
	Known bool
}

// Of is a count that is known.
func Of(n int64) Count { return Count{n, true} }

// IsZero reports whether the count is not known, so that omitzero leaves it out.
func (c Count) IsZero() bool { return !c.Known }

// MarshalJSON writes the number, or null.
func (c Count) MarshalJSON() ([]byte, error) {
	if !c.Known {
		return []byte("null"), nil
	}
	return strconv.AppendInt(nil, c.N, 10), nil
}

// UnmarshalJSON reads a number or null.
func (c *Count) UnmarshalJSON(data []byte) error {
	*c = Count{}
	if string(data) == "null" {
		return nil
	}
	c.Known = true
	return json.Unmarshal(data, &c.N)
}

// Max is the higher of two counts; what is not known is lower than any.
func (c Count) Max(d Count) Count {
	if !d.Known || c.Known && c.N >= d.N {
		return c
	}
	return d
}

// Stat is what a control group has used and uses at one moment. Counters only
// grow. They are of all processes that are or were in the group.
type Stat struct {
	User Count `json:"user_us,omitzero"` // CPU time, µs
	Sys  Count `json:"sys_us,omitzero"`  // CPU time in the kernel, µs

	Memory     Count `json:"memory,omitzero"`      // bytes now: what counts against the limit, file cache and kernel included
	Anon       Count `json:"anon,omitzero"`        // bytes now that no file backs
	File       Count `json:"file,omitzero"`        // bytes now of file cache, /dev/shm included
	PeakMemory Count `json:"peak_memory,omitzero"` // the most that Memory ever was

	// Bytes and requests that reached a disk. What was written into the cache
	// and is removed again reaches none. Version 1 counts what processes wait
	// for (reads, fsync, direct), and not what the kernel writes back later.
	Read    Count `json:"read,omitzero"`
	Written Count `json:"written,omitzero"`
	Reads   Count `json:"reads,omitzero"`
	Writes  Count `json:"writes,omitzero"`

	Procs     Count `json:"procs,omitzero"`      // processes and threads now, as the limit counts them
	PeakProcs Count `json:"peak_procs,omitzero"` // the most that Procs ever was; Linux 6.1 and later

	OOMKills Count `json:"oom_kills,omitzero"` // processes killed for want of memory
	PidsHits Count `json:"pids_hits,omitzero"` // forks refused by the limit on processes

	// How long at least one process could not go on for want of something, µs
	// (Documentation/accounting/psi.rst).
	WaitCPU    Count `json:"wait_cpu_us,omitzero"`
	WaitMemory Count `json:"wait_memory_us,omitzero"`
	WaitIO     Count `json:"wait_io_us,omitzero"`
}

// Known reports whether anything is known at all; it is not once the group is
// gone.
func (s Stat) Known() bool { return s != Stat{} }

// Group is where the counters of one group are found: a folder for each
// controller, empty where there is none. The zero value knows nothing.
type Group struct {
	V2 bool // the controllers are version 2's and all folders the same

	CPU, Memory, Pids, IO string // CPU is cpuacct in version 1, IO is blkio
	// Unified is the group in the version 2 tree. In a hybrid setup it has no
	// controllers, but a finer clock of CPU time, and pressure.
	Unified string

	// Counted says that this kernel counts the io of version 1, so that no
	// counter means none: see [CountIO].
	Counted bool

	// Sys is where sysfs is mounted; empty: /sys.
	Sys string
}

// Read takes what the kernel tells at this moment.
func (g *Group) Read() Stat {
	var s Stat
	r := reader{buf: make([]byte, 0, 8<<10)}
	g.cpu(&r, &s)
	g.memory(&r, &s)
	if g.Pids != "" {
		s.Procs = r.number(g.Pids, "pids.current")
		s.PeakProcs = r.number(g.Pids, "pids.peak")
		s.PidsHits = field(r.file(g.Pids, "pids.events"), "max")
	}
	g.io(&r, &s)
	if g.Unified != "" {
		s.WaitCPU = pressure(r.file(g.Unified, "cpu.pressure"))
		s.WaitMemory = pressure(r.file(g.Unified, "memory.pressure"))
		s.WaitIO = pressure(r.file(g.Unified, "io.pressure"))
	}
	return s
}

func (g *Group) cpu(r *reader, s *Stat) {
	if g.Unified != "" {
		// There with and without the cpu controller.
		stat := r.file(g.Unified, "cpu.stat")
		s.User, s.Sys = field(stat, "user_usec"), field(stat, "system_usec")
	}
	if s.User.Known || g.CPU == "" || g.V2 {
		return
	}
	// The kernel tells all of it in ns, and user and system only in ticks of
	// 10 ms (USER_HZ): the ticks say how to divide it.
	stat := r.file(g.CPU, "cpuacct.stat")
	user, sys := field(stat, "user"), field(stat, "system")
	all := r.number(g.CPU, "cpuacct.usage")
	switch ticks := user.N + sys.N; {
	case !user.Known || !sys.Known:
	case !all.Known:
		s.User, s.Sys = Of(user.N*10_000), Of(sys.N*10_000)
	case ticks <= 0: // less than a tick: nobody knows of which kind
		s.User, s.Sys = Of(all.N/1000), Of(0)
	default:
		s.User = Of(int64(float64(all.N) / 1000 * (float64(user.N) / float64(ticks))))
		s.Sys = Of(max(0, all.N/1000-s.User.N))
	}
}

func (g *Group) memory(r *reader, s *Stat) {
	if g.Memory == "" {
		return
	}
	if g.V2 {
		s.Memory = r.number(g.Memory, "memory.current")
		s.PeakMemory = r.number(g.Memory, "memory.peak") // Linux 5.19 and later
		s.OOMKills = field(r.file(g.Memory, "memory.events"), "oom_kill")
		stat := r.file(g.Memory, "memory.stat")
		s.Anon, s.File = field(stat, "anon"), field(stat, "file")
		return
	}
	s.Memory = r.number(g.Memory, "memory.usage_in_bytes")
	s.PeakMemory = r.number(g.Memory, "memory.max_usage_in_bytes")
	s.OOMKills = field(r.file(g.Memory, "memory.oom_control"), "oom_kill") // Linux 4.13 and later
	stat := r.file(g.Memory, "memory.stat")
	s.Anon, s.File = field(stat, "total_rss"), field(stat, "total_cache")
}

// reader reads small files, each into the same memory.
type reader struct{ buf []byte }

// maxFile bounds what is read of one file; the largest, memory.stat and io.stat
// of a machine with many disks, are some kilobytes.
const maxFile = 1 << 20

// file gives a file's text, valid until the next call; nil when it cannot be
// read.
func (r *reader) file(dir, name string) []byte {
	fd, err := open(filepath.Join(dir, name))
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	r.buf = r.buf[:0]
	for len(r.buf) < maxFile {
		if cap(r.buf)-len(r.buf) < 4096 {
			r.buf = append(make([]byte, 0, 2*cap(r.buf)+4096), r.buf...)
		}
		n, err := unix.Read(fd, r.buf[len(r.buf):cap(r.buf)])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil: // ENODEV once the group is gone
			return nil
		case n == 0:
			return r.buf
		default:
			r.buf = r.buf[:len(r.buf)+n]
		}
	}
	return r.buf
}

func open(path string) (fd int, err error) {
	for {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func (r *reader) number(dir, name string) Count { return number(r.file(dir, name)) }

// number reads a count. One that does not fit is as good as none: it is
// somebody's way to say that there is no limit.
func number(text []byte) Count {
	n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	if err != nil || n < 0 {
		return Count{}
	}
	return Of(n)
}

// field finds a line "key number".
func field(text []byte, key string) Count {
	for len(text) > 0 {
		line, rest, _ := bytes.Cut(text, []byte{'\n'})
		text = rest
		if len(line) > len(key) && line[len(key)] == ' ' && string(line[:len(key)]) == key {
			return number(line[len(key)+1:])
		}
	}
	return Count{}
}

// pressure finds the total of the line "some".
func pressure(text []byte) Count {
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(line, []byte("some ")) {
			continue
		}
		if _, total, ok := bytes.Cut(line, []byte("total=")); ok {
			return number(total)
		}
	}
	return Count{}
}
