package jobs

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/cgroup"
)

// Signals is what a machine tells of itself, as far as the policy asks. What is
// not known is zero.
type Signals struct {
	Others  float64       `json:"others"`       // processors that processes take which are not the farm's
	Stall   float64       `json:"memory_stall"` // percent of the time that something waited for memory
	Person  bool          `json:"person"`       // it is known since when nobody has done anything here:
	Idle    time.Duration `json:"idle_ns,omitempty"`
	Battery bool          `json:"battery"` // there is no mains
}

// Places say where a machine tells of itself.
type Places struct {
	Proc  string // "": /proc
	Dev   string // "": /dev
	Power string // "": /sys/class/power_supply
	Bus   string // address of the D-Bus on which logind is; "": the system's, "none": nobody asks
}

// sensor reads a machine. It is used by one goroutine at a time.
type sensor struct {
	policy Policy
	places Places
	own    func() []string
	logind *logind

	at     time.Time        // of the last look
	busy   int64            // µs of all processors
	mine   map[string]int64 // µs of each of the farm's groups
	self   int64            // µs of this process and its children
	stall  int64            // µs
	others float64
	known  bool
	last   Signals
}

func newSensor(p Policy, places Places, own func() []string) *sensor {
	for _, x := range []struct {
		at *string
		or string
	}{{&places.Proc, "/proc"}, {&places.Dev, "/dev"}, {&places.Power, "/sys/class/power_supply"}} {
		if *x.at == "" {
			*x.at = x.or
		}
	}
	return &sensor{policy: p, places: places, own: own, logind: newLogind(places.Bus)}
}

// A rate over less than shortest is mostly chance, and one over more than longest
// says little of now.
const (
	shortest = 200 * time.Millisecond
	longest  = 10 * time.Second
)

// look reads what the policy asks for. Rates are those since the last look; before
// there was one, they are zero.
func (s *sensor) look(now time.Time) Signals {
	var sig Signals
	passed := now.Sub(s.at)
	if passed >= 0 && passed < shortest && s.known {
		return s.last
	}
	s.at = now
	if s.policy.Others {
		s.lookOthers(passed)
		sig.Others = s.others
	}
	if s.policy.MemoryStall > 0 {
		sig.Stall = s.lookStall(passed)
	}
	if s.policy.Battery > 0 {
		sig.Battery = onBattery(s.places.Power)
	}
	if s.policy.Present > 0 {
		sig.Idle, sig.Person = lastKey(s.places.Dev, now)
		if idle, ok := s.logind.idle(now); ok && (!sig.Person || idle < sig.Idle) {
			sig.Idle, sig.Person = idle, true
		}
	}
	s.known, s.last = true, sig
	return sig
}

// lookOthers counts what processors do for others: all that they do, without what
// the farm's groups, this process and its children take.
func (s *sensor) lookOthers(passed time.Duration) {
	busy, ok := cpuBusy(filepath.Join(s.places.Proc, "stat"))
	if !ok {
		s.others = 0
		return
	}
	mine := map[string]int64{}
	took := int64(0)
	if s.own != nil {
		for _, dir := range s.own() {
			g := cgroup.Group{CPU: dir, Unified: dir}
			st := g.Read()
			if !st.User.Known {
				continue
			}
			mine[dir] = st.User.N + st.Sys.N
			took += max(0, mine[dir]-s.mine[dir])
		}
	}
	self := selfTime()
	took += max(0, self-s.self)
	if len(mine) == 0 {
		// Which is the farm's own load is not known: to take that for others' would
		// have builds stand back for themselves.
		s.others, passed = 0, 0
	}
	if s.known && passed > 0 && passed <= longest {
		x := max(0, float64(busy-s.busy-took)/float64(passed.Microseconds()))
		// Four seconds, so that a command that somebody gives is not a load.
		s.others += (x - s.others) * (1 - math.Exp(-passed.Seconds()/4))
	} else if passed > longest {
		s.others = 0
	}
	s.busy, s.mine, s.self = busy, mine, self
}

// cpuBusy is the time in µs that all processors have worked, as proc_stat(5) has
// it in ticks of 10 ms.
func cpuBusy(path string) (int64, bool) {
	text, err := os.ReadFile(path)
	line, _, _ := bytes.Cut(text, []byte{'\n'})
	f := strings.Fields(string(line))
	if err != nil || len(f) < 8 || f[0] != "cpu" {
		return 0, false
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} { // user nice system irq softirq
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/100_000 {
			return 0, false
		}
		ticks += n
	}
	return ticks * 10_000, true
}

// selfTime is what this process and the children that have ended took, in µs.
func selfTime() (us int64) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		if unix.Getrusage(who, &r) == nil {
			us += (r.Utime.Nano() + r.Stime.Nano()) / 1000
		}
	}
	return us
}

// lookStall is how much of the time something waited for memory. Where the kernel
// does not tell, having next to none is all of it.
func (s *sensor) lookStall(passed time.Duration) float64 {
	text, err := os.ReadFile(filepath.Join(s.places.Proc, "pressure/memory"))
	if err != nil {
		if total, free, ok := memory(filepath.Join(s.places.Proc, "meminfo")); ok && free < total/32 {
			return 100
		}
		return 0
	}
	stall, ok := someTotal(text)
	if !ok {
		return 0
	}
	was := s.stall
	s.stall = stall
	if !s.known || passed <= 0 || passed > longest {
		return 0
	}
	return min(100, max(0, float64(stall-was)*100/float64(passed.Microseconds())))
}

// someTotal finds the total of the line "some" (Documentation/accounting/psi.rst).
func someTotal(text []byte) (int64, bool) {
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) == 0 || f[0] != "some" {
			continue
		}
		for _, w := range f {
			if v, ok := strings.CutPrefix(w, "total="); ok {
				n, err := strconv.ParseInt(v, 10, 64)
				return n, err == nil && n >= 0
			}
		}
	}
	return 0, false
}

// memory reads how much there is, and how much of it somebody could have, in kB.
func memory(path string) (total, available int64, ok bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, 0, false
	}
	found := 0
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) < 2 {
			continue
		}
		var into *int64
		switch f[0] {
		case "MemTotal:":
			into = &total
		case "MemAvailable:":
			into = &available
		default:
			continue
		}
		if *into, err = strconv.ParseInt(f[1], 10, 64); err == nil {
			found++
		}
	}
	return total, available, found == 2
}

// lastKey is the time since something was last typed at any terminal: that is
// when it was last read from, as w(1) has it. The kernel notes it every 8 seconds.
func lastKey(dev string, now time.Time) (time.Duration, bool) {
	var last time.Time
	for _, pattern := range []string{"tty[0-9]*", "ttyS[0-9]*", "pts/[0-9]*"} {
		names, _ := filepath.Glob(filepath.Join(dev, pattern))
		for _, name := range names {
			var st unix.Stat_t
			if unix.Stat(name, &st) != nil {
				continue
			}
			if t := time.Unix(st.Atim.Unix()); t.After(last) && !t.After(now.Add(time.Minute)) {
				last = t
			}
		}
	}
	return max(0, now.Sub(last)), !last.IsZero()
}

// onBattery reports whether a battery is all that there is: it discharges, and no
// other source is online (Documentation/ABI/testing/sysfs-class-power).
func onBattery(dir string) bool {
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	read := func(name, file string) string {
		b, _ := os.ReadFile(filepath.Join(name, file))
		return strings.TrimSpace(string(b))
	}
	drains := false
	for _, name := range names {
		if read(name, "scope") == "Device" {
			continue // a mouse's, for example
		}
		switch read(name, "type") {
		case "Battery":
			drains = drains || read(name, "status") == "Discharging"
		case "UPS":
		default:
			if read(name, "online") == "1" {
				return false
			}
		}
	}
	return drains
}
