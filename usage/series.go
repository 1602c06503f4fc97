package usage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"time"

	"github.com/Morphux/quarry/internal/cgroup"
)

// magic begins a file of series; its last digit is the version.
const magic = "QUsage1\n"

// What a file is made of. An odd tag is a sample's mask, twice and one; the others
// are followed by the length of what belongs to them.
const (
	tagAttempt = 0
	tagStep    = 2
	tagEnd     = 4
	tagLost    = 6
)

// The first bit of a sample's mask says that it is not on time; those of the
// columns follow.
const (
	bitTime     = 1
	firstColumn = 1
)

// Time is kept in units of this many milliseconds: timers are not better.
const timeUnit = 10

// Bounds on what is read and written. A build of six hours has 7,200 samples in
// some 100 kB.
const (
	maxFile    = 4 << 20
	maxFrame   = 4096
	maxSamples = 300_000
	maxColumns = 60 // what a mask has bits for
	maxName    = 100
	maxUnit    = 1 << 40
	maxBits    = 32
	maxValue   = 1 << 60
)

// column is one value of a sample in a file.
type column struct {
	name  string
	unit  int64 // values are counted in this
	bits  uint  // as many after the first are kept of a value, see [shorten]
	grows bool  // a counter: what is kept is its growth
	of    func(*Sample) *cgroup.Count
}

// columns are those that are written, the busiest first: the mask of a sample
// that changes only the first twelve takes two bytes.
var columns = []column{
	{"user", 1000, 6, true, func(s *Sample) *cgroup.Count { return &s.User }},
	{"sys", 1000, 6, true, func(s *Sample) *cgroup.Count { return &s.Sys }},
	{"memory", 4096, 6, false, func(s *Sample) *cgroup.Count { return &s.Memory }},
	{"anon", 4096, 6, false, func(s *Sample) *cgroup.Count { return &s.Anon }},
	{"file", 4096, 6, false, func(s *Sample) *cgroup.Count { return &s.File }},
	{"procs", 1, 10, false, func(s *Sample) *cgroup.Count { return &s.Procs }},
	{"wait_cpu", 1000, 4, true, func(s *Sample) *cgroup.Count { return &s.WaitCPU }},
	{"written", 4096, 4, true, func(s *Sample) *cgroup.Count { return &s.Written }},
	{"writes", 1, 4, true, func(s *Sample) *cgroup.Count { return &s.Writes }},
	{"wait_io", 1000, 4, true, func(s *Sample) *cgroup.Count { return &s.WaitIO }},
	{"read", 4096, 4, true, func(s *Sample) *cgroup.Count { return &s.Read }},
	{"reads", 1, 4, true, func(s *Sample) *cgroup.Count { return &s.Reads }},
	{"disk", 4096, 6, false, func(s *Sample) *cgroup.Count { return &s.Disk }},
	{"busy", 1, 10, false, func(s *Sample) *cgroup.Count { return &s.Busy }},
	{"jobs", 1, 10, false, func(s *Sample) *cgroup.Count { return &s.Jobs }},
	{"peak_memory", 4096, 20, false, func(s *Sample) *cgroup.Count { return &s.PeakMemory }},
	{"peak_procs", 1, 20, false, func(s *Sample) *cgroup.Count { return &s.PeakProcs }},
	{"wait_memory", 1000, 4, true, func(s *Sample) *cgroup.Count { return &s.WaitMemory }},
	{"oom_kills", 1, 20, false, func(s *Sample) *cgroup.Count { return &s.OOMKills }},
	{"pids_hits", 1, 20, false, func(s *Sample) *cgroup.Count { return &s.PidsHits }},
}

// shorten makes a short number of a value that keeps only its first bits+1
// binary digits, rounded, as floating point does: a change by a few percent is a
// small one, whatever the size. Values that have no more digits are themselves.
func shorten(v int64, digits uint) int64 {
	n := uint(bits.Len64(uint64(v)))
	if n <= digits+1 {
		return v
	}
	e := n - 1 - digits
	// Rounding up may give one digit more, which is where the next e begins.
	return int64(e)<<digits + (v+1<<(e-1))>>e
}

// expand is the value that a short number stands for; false when it would not
// fit.
func expand(c int64, digits uint) (int64, bool) {
	if c < 0 || c>>digits > 63 {
		return 0, false
	}
	if c < 2<<digits {
		return c, true
	}
	e := uint(c>>digits) - 1
	if e+digits+1 > 62 {
		return 0, false
	}
	return (c&(1<<digits-1) | 1<<digits) << e, true
}

// known are the same by name, for reading.
var known = func() map[string]func(*Sample) *cgroup.Count {
	m := map[string]func(*Sample) *cgroup.Count{}
	for _, c := range columns {
		m[c.name] = c.of
	}
	return m
}()

// state is where a column stands: what the next value is told from.
type state struct {
	known bool
	value int64 // in units, as a reader knows it
	short int64 // of the last value or growth
}

// set takes the next short number, and reports whether it makes sense.
func (s *state) set(c *column, short int64) bool {
	v, ok := expand(short, c.bits)
	if !ok {
		return false
	}
	if c.grows {
		v += s.value
	}
	if v > math.MaxInt64/2/c.unit {
		return false
	}
	s.known, s.value, s.short = true, v, short
	return true
}

// encoder makes the frames of one attempt.
type encoder struct {
	began time.Time
	every time.Duration
	at    int64 // of the last sample, in units of time since began
	cols  [maxColumns]state
}

// attempt is the frame that begins an attempt. Times are kept in ms.
func (e *encoder) attempt(b Build, began time.Time, every time.Duration) []byte {
	*e = encoder{began: began, every: every.Truncate(time.Millisecond)}
	p := binary.AppendUvarint(nil, uint64(max(0, b.Attempt)))
	p = binary.AppendVarint(p, e.began.UnixMilli())
	p = binary.AppendUvarint(p, uint64(e.every.Milliseconds()))
	p = binary.AppendUvarint(p, uint64(max(0, b.Memory)))
	p = binary.AppendUvarint(p, uint64(max(0, math.Round(b.CPUs*1000))))
	p = binary.AppendUvarint(p, uint64(len(columns)))
	for _, c := range columns {
		p = appendString(p, c.name)
		p = binary.AppendUvarint(p, uint64(c.unit))
		grows := byte(0)
		if c.grows {
			grows = 1
		}
		p = append(p, byte(c.bits), grows)
	}
	return frame(tagAttempt, p)
}

// step is the frame that begins a step.
func (e *encoder) step(name string) []byte {
	return frame(tagStep, []byte(name[:min(len(name), maxName)]))
}

func (e *encoder) end() []byte { return frame(tagEnd, nil) }

// sample is the frame of a sample, after one that says what is not known any
// more.
func (e *encoder) sample(s *Sample) []byte {
	var mask, lost uint64
	var values []byte
	at := max(e.at, s.At.Sub(e.began).Milliseconds()/timeUnit)
	if late := at - e.at - e.every.Milliseconds()/timeUnit; late != 0 {
		mask |= bitTime
		values = binary.AppendVarint(values, late)
	}
	e.at = at
	for i := range columns {
		c, st := &columns[i], &e.cols[i]
		now := *c.of(s)
		if !now.Known {
			if st.known {
				lost |= 1 << i
				*st = state{}
			}
			continue
		}
		v := min(max(now.N, 0), maxValue) + c.unit/2
		v /= c.unit
		if c.grows {
			v = max(0, v-st.value) // from what a reader knows, so that no error adds up
		}
		was := *st
		short := shorten(v, c.bits)
		st.set(c, short)
		if short != was.short || !was.known {
			mask |= 1 << (firstColumn + i)
			values = binary.AppendVarint(values, short-was.short)
		}
	}
	var p []byte
	if lost != 0 {
		p = frame(tagLost, binary.AppendUvarint(nil, lost))
	}
	return append(binary.AppendUvarint(p, mask<<1|1), values...)
}

func appendString(p []byte, s string) []byte {
	return append(binary.AppendUvarint(p, uint64(len(s))), s...)
}

func frame(tag uint64, payload []byte) []byte {
	p := binary.AppendUvarint(make([]byte, 0, len(payload)+3), tag)
	return append(binary.AppendUvarint(p, uint64(len(payload))), payload...)
}

// errFormat says that a file is none of series that this version reads.
var errFormat = errors.New("it is no series of samples that this version knows")

// decode reads a file. Where it stops making sense, as it does when its daemon
// was killed in the middle of a write, it ends; good is how many of its bytes
// do. Only a file that is none at all is an error.
func decode(data []byte) (list []Attempt, good int, err error) {
	if len(data) < len(magic) || string(data[:len(magic)]) != magic {
		return nil, 0, errFormat
	}
	good = len(magic)
	var d decoder
	for good < len(data) && d.samples < maxSamples {
		n, ok := d.frame(data[good:])
		if !ok {
			break
		}
		good += n
	}
	return d.list, good, nil
}

// decoder takes frames.
type decoder struct {
	list    []Attempt
	step    string
	at      int64
	cols    []column
	states  []state
	lost    uint64 // columns that the next sample does not know
	samples int
}

// frame takes the frame that data begins with, and gives its length; false when
// it makes no sense, or is not whole.
func (d *decoder) frame(data []byte) (n int, ok bool) {
	r := &bytesReader{p: data}
	tag := r.uvarint()
	if tag&1 == 1 {
		ok = !r.bad && len(d.list) > 0 && d.sample(r, tag>>1)
		return len(data) - len(r.p), ok
	}
	size := r.bounded(maxFrame)
	if r.bad || size > int64(len(r.p)) || size == 0 && tag != tagEnd {
		return 0, false
	}
	n = len(data) - len(r.p) + int(size)
	r.p = r.p[:size]
	switch {
	case tag == tagAttempt:
		return n, d.attempt(r)
	case len(d.list) == 0:
		return n, false
	case tag == tagStep:
		d.step = string(r.p[:min(len(r.p), maxName)])
	case tag == tagEnd:
		d.list[len(d.list)-1].Ended = true
	case tag == tagLost:
		d.lost = r.uvarint()
	}
	return n, !r.bad // one that this version does not know is passed over
}

func (d *decoder) attempt(r *bytesReader) bool {
	var a Attempt
	a.Attempt = int(r.bounded(math.MaxInt32))
	a.Began = time.UnixMilli(r.varint()).UTC()
	a.Every = time.Duration(r.bounded(math.MaxInt64/int64(time.Millisecond))) * time.Millisecond
	a.Memory = r.bounded(math.MaxInt64)
	a.CPUs = float64(r.bounded(math.MaxInt32)) / 1000
	cols := make([]column, r.bounded(maxColumns))
	for i := range cols {
		c := &cols[i]
		c.name = r.string()
		c.unit = r.bounded(maxUnit)
		c.bits = uint(r.bounded(maxBits))
		c.grows = r.bounded(1) == 1
		c.of = known[c.name] // nil: a column of a later version
		if c.unit == 0 {
			return false
		}
	}
	if r.bad || a.Every <= 0 || a.Began.UnixMilli() <= 0 || a.Began.Year() > 9999 {
		return false
	}
	d.list = append(d.list, a)
	d.cols, d.states, d.at, d.step, d.lost = cols, make([]state, len(cols)), 0, "", 0
	return true
}

func (d *decoder) sample(r *bytesReader, mask uint64) bool {
	a := &d.list[len(d.list)-1]
	dt := a.Every.Milliseconds() / timeUnit
	if mask&bitTime != 0 {
		dt += r.varint()
	}
	at := d.at + dt
	if r.bad || dt < 0 || at < d.at || at > math.MaxInt64/timeUnit/int64(time.Millisecond) {
		return false
	}
	for i := range d.cols {
		c, st := &d.cols[i], &d.states[i]
		if d.lost>>i&1 == 1 {
			*st = state{}
		}
		given := mask>>(firstColumn+i)&1 == 1
		if !given && !st.known {
			continue
		}
		short := st.short
		if given {
			short += r.varint()
		}
		if r.bad || !st.set(c, short) {
			return false
		}
	}
	d.lost = 0
	s := Sample{At: a.Began.Add(time.Duration(at) * timeUnit * time.Millisecond), Step: d.step}
	for i := range d.cols {
		if c, st := &d.cols[i], &d.states[i]; st.known && c.of != nil {
			*c.of(&s) = cgroup.Of(st.value * c.unit)
		}
	}
	d.at = at
	a.Samples = append(a.Samples, s)
	d.samples++
	return true
}

// bytesReader reads numbers; bad stays once something is amiss.
type bytesReader struct {
	p   []byte
	bad bool
}

func (r *bytesReader) take(n int) {
	if n <= 0 || n > len(r.p) {
		r.bad, r.p = true, nil
		return
	}
	r.p = r.p[n:]
}

func (r *bytesReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.p)
	r.take(n)
	return v
}

func (r *bytesReader) varint() int64 {
	v, n := binary.Varint(r.p)
	r.take(n)
	return v
}

func (r *bytesReader) bounded(most int64) int64 {
	v := r.uvarint()
	if v > uint64(most) {
		r.bad = true
		return 0
	}
	return int64(v)
}

func (r *bytesReader) string() string {
	n := r.bounded(maxName)
	if r.bad || n > int64(len(r.p)) {
		r.bad = true
		return ""
	}
	s := string(r.p[:n])
	r.p = r.p[n:]
	return s
}

// path of a build's file.
func path(number int64) string { return fmt.Sprintf("%04d/%d.usage", number/1000, number) }
