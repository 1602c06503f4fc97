package usage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/Morphux/quarry/internal/cgroup"
)

// magic begins a file of series; its last digit is the version.
const magic = "QUsage1\n"

// The frames of a file. An odd tag is a sample's mask.
const (
	tagAttempt = 0
	tagStep    = 2
	tagEnd     = 4
)

// The first bits of a sample's mask; those of the columns follow.
const (
	bitTime = 1 << iota
	bitLost
	firstColumn = 2
)

// Bounds on what is read and written. A build of six hours has 7,200 samples in
// some 100 kB.
const (
	maxFile    = 4 << 20
	maxFrame   = 4096
	maxSamples = 300_000
	maxColumns = 60 // what a mask has bits for
	maxName    = 100
	maxUnit    = 1 << 40
)

// column is one value of a sample in a file.
type column struct {
	name  string
	unit  int64 // values are kept in multiples of this
	grows bool  // a counter: what is kept is how its growth changes
	of    func(*Sample) *cgroup.Count
}

// columns are those that are written, the busiest first: a sample that changes
// only these has a short mask.
var columns = []column{
	{"user", 10_000, true, func(s *Sample) *cgroup.Count { return &s.User }},
	{"sys", 10_000, true, func(s *Sample) *cgroup.Count { return &s.Sys }},
	{"memory", 64 << 10, false, func(s *Sample) *cgroup.Count { return &s.Memory }},
	{"anon", 64 << 10, false, func(s *Sample) *cgroup.Count { return &s.Anon }},
	{"file", 64 << 10, false, func(s *Sample) *cgroup.Count { return &s.File }},
	{"procs", 1, false, func(s *Sample) *cgroup.Count { return &s.Procs }},
	{"written", 4096, true, func(s *Sample) *cgroup.Count { return &s.Written }},
	{"writes", 1, true, func(s *Sample) *cgroup.Count { return &s.Writes }},
	{"disk", 64 << 10, false, func(s *Sample) *cgroup.Count { return &s.Disk }},
	{"wait_cpu", 10_000, true, func(s *Sample) *cgroup.Count { return &s.WaitCPU }},
	{"wait_io", 10_000, true, func(s *Sample) *cgroup.Count { return &s.WaitIO }},
	{"read", 4096, true, func(s *Sample) *cgroup.Count { return &s.Read }},
	{"reads", 1, true, func(s *Sample) *cgroup.Count { return &s.Reads }},
	{"peak_memory", 64 << 10, false, func(s *Sample) *cgroup.Count { return &s.PeakMemory }},
	{"peak_procs", 1, false, func(s *Sample) *cgroup.Count { return &s.PeakProcs }},
	{"wait_memory", 10_000, true, func(s *Sample) *cgroup.Count { return &s.WaitMemory }},
	{"oom_kills", 1, false, func(s *Sample) *cgroup.Count { return &s.OOMKills }},
	{"pids_hits", 1, false, func(s *Sample) *cgroup.Count { return &s.PidsHits }},
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
	known         bool
	value, growth int64 // in units
}

// next is what the value would be if nothing changed.
func (s *state) next(grows bool) int64 {
	if grows {
		return s.value + s.growth
	}
	return s.value
}

func (s *state) set(v int64) {
	if s.known {
		s.growth = v - s.value
	}
	s.known, s.value = true, v
}

// encoder makes the frames of one attempt.
type encoder struct {
	began time.Time
	every time.Duration
	at    int64 // of the last sample, ms since began
	cols  [maxColumns]state
}

// attempt is the frame that begins an attempt. Times are kept in ms.
func (e *encoder) attempt(b Build, began time.Time, every time.Duration) []byte {
	*e = encoder{began: began, every: every.Truncate(time.Millisecond)}
	p := binary.AppendUvarint(nil, tagAttempt)
	p = binary.AppendUvarint(p, uint64(max(0, b.Attempt)))
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
		p = append(p, grows)
	}
	return frame(p)
}

// step is the frame that begins a step.
func (e *encoder) step(name string) []byte {
	p := binary.AppendUvarint(nil, tagStep)
	return frame(append(p, name[:min(len(name), maxName)]...))
}

func (e *encoder) end() []byte { return frame(binary.AppendUvarint(nil, tagEnd)) }

// sample is the frame of a sample.
func (e *encoder) sample(s *Sample) []byte {
	var mask, lost uint64
	var values []byte
	at := max(e.at, s.At.Sub(e.began).Milliseconds())
	if late := at - e.at - e.every.Milliseconds(); late != 0 {
		mask |= bitTime
		values = binary.AppendVarint(values, late)
	}
	e.at = at
	var residuals []byte
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
		v := (now.N + c.unit/2) / c.unit
		if r := v - st.next(c.grows); r != 0 || !st.known {
			mask |= 1 << (firstColumn + i)
			residuals = binary.AppendVarint(residuals, r)
		}
		st.set(v)
	}
	if lost != 0 {
		mask |= bitLost
		values = binary.AppendUvarint(values, lost)
	}
	p := binary.AppendUvarint(nil, mask<<1|1)
	return frame(append(append(p, values...), residuals...))
}

func appendString(p []byte, s string) []byte {
	return append(binary.AppendUvarint(p, uint64(len(s))), s...)
}

func frame(payload []byte) []byte {
	return append(binary.AppendUvarint(make([]byte, 0, len(payload)+2), uint64(len(payload))), payload...)
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
		n, w := binary.Uvarint(data[good:])
		if w <= 0 || n == 0 || n > maxFrame || n > uint64(len(data)-good-w) {
			break
		}
		if !d.frame(data[good+w : good+w+int(n)]) {
			break
		}
		good += w + int(n)
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
	samples int
}

// frame takes one frame, and reports whether it makes sense.
func (d *decoder) frame(p []byte) bool {
	r := &bytesReader{p: p}
	tag := r.uvarint()
	switch {
	case r.bad:
	case tag == tagAttempt:
		return d.attempt(r)
	case tag&1 == 1:
		return len(d.list) > 0 && d.sample(r, tag>>1)
	case tag == tagStep:
		d.step = string(r.p[:min(len(r.p), maxName)])
	case tag == tagEnd && len(d.list) > 0:
		d.list[len(d.list)-1].Ended = true
	}
	return !r.bad // one that this version does not know is passed over
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
		c.grows = r.bounded(1) == 1
		c.of = known[c.name] // nil: a column of a later version
		if c.unit == 0 {
			return false
		}
	}
	if y := a.Began.Year(); r.bad || y < 1970 || y > 9999 {
		return false
	}
	d.list = append(d.list, a)
	d.cols, d.states, d.at, d.step = cols, make([]state, len(cols)), 0, ""
	return true
}

func (d *decoder) sample(r *bytesReader, mask uint64) bool {
	a := &d.list[len(d.list)-1]
	dt := a.Every.Milliseconds()
	if mask&bitTime != 0 {
		dt += r.varint()
	}
	at := d.at + dt
	if r.bad || dt < 0 || at < d.at || at > math.MaxInt64/int64(time.Millisecond) {
		return false
	}
	var lost uint64
	if mask&bitLost != 0 {
		lost = r.uvarint()
	}
	states := d.states
	for i := range d.cols {
		c, st := &d.cols[i], &states[i]
		given := mask>>(firstColumn+i)&1 == 1
		switch {
		case lost>>i&1 == 1:
			*st = state{}
		case given || st.known:
			v := st.next(c.grows)
			if given {
				v += r.varint()
			}
			if v < 0 || v > math.MaxInt64/2/c.unit {
				return false
			}
			st.set(v)
		}
	}
	if r.bad {
		return false
	}
	s := Sample{At: a.Began.Add(time.Duration(at) * time.Millisecond), Step: d.step}
	for i := range d.cols {
		if c, st := &d.cols[i], &states[i]; st.known && c.of != nil {
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
