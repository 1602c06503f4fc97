package images

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// This file decides how many workspaces are kept ready; pool.go does it.

// demand is what is known of how much an environment is wanted.
type demand struct {
	started bool      // keep one at least, however idle
	stopped bool      // keep none
	queued  int       // builds that wait for it
	used    time.Time // when it was last asked for
	// want is how many would have been ready for everybody lately: one more for
	// each that found none, and one less now and then.
	want   int
	wanted time.Time // when want last changed
}

func (d *demand) use(now time.Time) { d.used = now }

// miss counts somebody who found none.
func (d *demand) miss(now time.Time, most int) {
	d.want = min(d.want+1, most)
	d.wanted = now
}

// calm lets the demand of a busy time fade.
func (d *demand) calm(now time.Time, idle time.Duration) {
	if d.want > 1 && now.Sub(d.wanted) > idle/8 {
		d.want--
		d.wanted = now
	}
}

// ready is how many should be ready, if there were room.
func (d *demand) ready(now time.Time, idle time.Duration) int {
	n := 0
	if !d.used.IsZero() && now.Sub(d.used) < idle {
		n = max(1, d.want)
	}
	n = max(n, d.queued)
	if d.started {
		n = max(n, 1)
	}
	if d.stopped {
		n = 0
	}
	return n
}

// targets shares out what may be kept: one for each environment that wants
// any, then another round, until there is no demand or no room. In a round
// those that were started come first, then those with builds waiting, then
// those used last. p.mu is held.
func (p *pool) targets(now time.Time) map[*shelf]int {
	t := map[*shelf]int{}
	if p.short != "" {
		return t
	}
	var order []*shelf
	for _, sh := range p.envs {
		if sh.held == 0 && sh.ready(now, p.opts.Idle) > 0 {
			order = append(order, sh)
		}
	}
	yes := func(b bool) int {
		if b {
			return 0
		}
		return 1
	}
	slices.SortFunc(order, func(a, b *shelf) int {
		return cmp.Or(yes(a.started)-yes(b.started), yes(a.queued > 0)-yes(b.queued > 0),
			b.used.Compare(a.used), cmp.Compare(a.String(), b.String()))
	})
	for left, more := p.opts.Max, true; more; {
		more = false
		for _, sh := range order {
			if left > 0 && t[sh] < sh.ready(now, p.opts.Idle) {
				t[sh]++
				left--
				more = true
			}
		}
	}
	return t
}

// poorest is the environment to make the next one for: of those that have less
// than they should, one for which somebody waits, else the one with the least.
// It is nil when all have enough, or rest after a failure.
func poorest(targets map[*shelf]int, now time.Time) *shelf {
	var best *shelf
	for _, sh := range slices.SortedFunc(maps.Keys(targets), func(a, b *shelf) int { return cmp.Compare(a.String(), b.String()) }) {
		if sh.has() >= targets[sh] || now.Before(sh.again) {
			continue
		}
		if best == nil || sh.has() < best.has() {
			best = sh
		}
	}
	return best
}

// has is how many it has that nobody waits for, those under way included.
func (sh *shelf) has() int { return len(sh.warm) + len(sh.making) - len(sh.waiting) }

// shortage says in one line what the machine is short of; "" for nothing.
type shortage string

// shortage finds out whether there is enough memory and disk to keep
// workspaces ready. Once there was not it takes a quarter more than the least
// until there is, so that what is given up does not come back at once.
func (s *Store) shortage(o PoolOptions, was shortage) shortage {
	more := func(n int64) int64 {
		if was != "" {
			n += n / 4
		}
		return n
	}
	if mem, ok := memAvailable(); ok && mem < more(o.MinMemory) {
		return shortage(fmt.Sprintf("memory is short: %d MiB are available and %d wanted (pool.min_memory)", mem>>20, more(o.MinMemory)>>20))
	}
	stalled := o.MaxStall
	if was != "" {
		stalled /= 4
	}
	if p, ok := memoryStall(); ok && p > stalled {
		return shortage(fmt.Sprintf("memory is short: everything stood still for want of it %.0f%% of the last 10 seconds (/proc/pressure/memory)", p))
	}
	for _, dir := range []string{s.conn.Dir(), s.opts.WorkDir} {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) != nil {
			continue
		}
		if free := int64(st.Bavail) * st.Bsize; free < more(o.MinDisk) {
			return shortage(fmt.Sprintf("disk is short: %d MiB are free in %s and %d wanted (pool.min_disk)", free>>20, dir, more(o.MinDisk)>>20))
		}
		if st.Files > 0 && st.Ffree < 1000 {
			return shortage(fmt.Sprintf("disk is short: %d more files are all that %s can hold", st.Ffree, dir))
		}
	}
	return ""
}

// memAvailable is what the kernel thinks programs can have without swapping
// (proc_meminfo(5)), bytes.
func memAvailable() (int64, bool) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			if f := strings.Fields(v); len(f) > 0 {
				n, err := strconv.ParseInt(f[0], 10, 64)
				return n << 10, err == nil
			}
		}
	}
	return 0, false
}

// memoryStall is the share of the last ten seconds, in percent, for which all
// tasks waited for memory (Documentation/accounting/psi.rst of Linux).
func memoryStall() (float64, bool) {
	data, err := os.ReadFile("/proc/pressure/memory")
	if err != nil {
		return 0, false // a kernel without it
	}
	for line := range strings.Lines(string(data)) {
		v, ok := strings.CutPrefix(line, "full avg10=")
		if ok {
			v, _, _ = strings.Cut(v, " ")
			p, err := strconv.ParseFloat(v, 64)
			return p, err == nil
		}
	}
	return 0, false
}

// weigh finds out what a workspace that is ready takes: bytes of memory that
// its guest, the kernel and its monitor have for it alone, and bytes of disk.
func (w *Workspace) weigh() (memory, disk int64) {
	if m := w.cgroup.Read().Memory; m.Known {
		memory = m.N
	} else {
		memory = pss(w.pid)
	}
	memory += pss(w.monitor())
	disk, _ = usage(w.Dir, 1<<62)
	if upper := w.upperDir(); upper != "" { // it may just have become a build's
		n, _ := usage(upper, 1<<62)
		disk += n
	}
	return memory, disk
}

// monitor is the process that podman leaves beside each container (conmon): the
// guest's parent. 0 when it cannot be seen.
func (w *Workspace) monitor() int {
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(w.pid), "status"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "PPid:"); ok {
			pid, _ := strconv.Atoi(strings.TrimSpace(v))
			if pid > 1 {
				return pid
			}
		}
	}
	return 0
}

// pss is the memory of a process, what it shares with others divided among them
// (proc_pid_smaps(5)), bytes.
func pss(pid int) int64 {
	if pid <= 0 {
		return 0
	}
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "Pss:"); ok {
			if f := strings.Fields(v); len(f) > 0 {
				n, _ := strconv.ParseInt(f[0], 10, 64)
				return n << 10
			}
		}
	}
	return 0
}
