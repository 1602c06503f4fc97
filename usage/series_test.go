package usage

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Morphux/quarry/internal/cgroup"
)

var began = time.Date(2026, 3, 14, 15, 9, 26, 535_000_000, time.UTC)

// busy makes the samples of a build that works hard on everything: compilers
// that come and go, memory that jumps, a disk that is written to.
func busy(n int, every time.Duration) []Sample {
	r := rand.New(rand.NewPCG(1, 2))
	var s Sample
	list := make([]Sample, 0, n)
	grow := func(c *cgroup.Count, most int64) { *c = cgroup.Of(c.N + r.Int64N(most)) }
	move := func(c *cgroup.Count, by, lowest, most int64) {
		*c = cgroup.Of(min(max(c.N+r.Int64N(2*by)-by, lowest), most))
	}
	s.At = began
	for range n {
		s.At = s.At.Add(every + time.Duration(r.Int64N(3))*time.Millisecond)
		// Two processors nearly always busy.
		s.User = cgroup.Of(s.User.N + 5_000_000 + r.Int64N(600_000))
		s.Sys = cgroup.Of(s.Sys.N + 300_000 + r.Int64N(200_000))
		move(&s.Anon, 200<<20, 50<<20, 3<<30)
		move(&s.File, 20<<20, 100<<20, 1<<30)
		s.Memory = cgroup.Of(s.Anon.N + s.File.N + 20<<20 + r.Int64N(4<<20))
		s.PeakMemory = s.PeakMemory.Max(s.Memory)
		move(&s.Procs, 8, 2, 40)
		s.PeakProcs = s.PeakProcs.Max(s.Procs)
		if r.IntN(4) == 0 { // as a rule all that it may run does
			move(&s.Busy, 2, 1, 4)
		}
		if r.IntN(20) == 0 || !s.Jobs.Known {
			s.Jobs = cgroup.Of(4 + r.Int64N(2))
		}
		if r.IntN(3) == 0 { // what compilers read is cached as a rule
			grow(&s.Read, 4<<20)
			grow(&s.Reads, 100)
		}
		grow(&s.Written, 40<<20)
		grow(&s.Writes, 500)
		grow(&s.WaitCPU, 2_000_000)
		grow(&s.WaitIO, 200_000)
		s.WaitMemory, s.OOMKills, s.PidsHits = cgroup.Of(0), cgroup.Of(0), cgroup.Of(0)
		if r.IntN(2) == 0 { // measured less often
			grow(&s.Disk, 20<<20)
		}
		list = append(list, s)
	}
	return list
}

// encode writes one attempt as a recorder does.
func encode(b Build, every time.Duration, samples []Sample, ended bool) []byte {
	var e encoder
	out := []byte(magic)
	out = append(out, e.attempt(b, began, every)...)
	step := ""
	for i := range samples {
		if s := samples[i].Step; s != step {
			out = append(out, e.step(s)...)
			step = s
		}
		out = append(out, e.sample(&samples[i])...)
	}
	if ended {
		out = append(out, e.end()...)
	}
	return out
}

// near compares a sample that was read with the one that was written: values are
// kept with as many digits as their columns say.
func near(t *testing.T, want, got Sample) {
	t.Helper()
	if got.Step != want.Step {
		t.Errorf("step %q, want %q", got.Step, want.Step)
	}
	if d := want.At.Sub(got.At); d < 0 || d >= timeUnit*time.Millisecond {
		t.Errorf("at %v, want %v", got.At, want.At)
	}
	for _, c := range columns {
		w, g := *c.of(&want), *c.of(&got)
		most := c.unit + w.N>>c.bits
		if w.Known != g.Known || g.N < w.N-most || g.N > w.N+most {
			t.Errorf("%s is %+v, want %+v or within %d of it", c.name, g, w, most)
		}
	}
}

// strange samples: everything comes and goes.
func strange(n int) []Sample {
	r := rand.New(rand.NewPCG(3, 4))
	list := make([]Sample, n)
	at := began
	highest := map[string]int64{}
	for i := range list {
		at = at.Add(time.Duration(r.Int64N(10_000)) * time.Millisecond)
		list[i].At, list[i].Step = at, []string{"prepare", "make", "a step\n\x00"}[r.IntN(3)]
		for _, c := range columns {
			if r.IntN(4) > 0 {
				*c.of(&list[i]) = cgroup.Of(r.Int64N(1 << (1 + r.IntN(50))))
				if c.grows {
					highest[c.name] += c.of(&list[i]).N >> 10
					c.of(&list[i]).N = highest[c.name]
				}
			}
		}
	}
	return list
}

func TestRoundTrip(t *testing.T) {
	for name, samples := range map[string][]Sample{
		"none": nil, "busy": busy(500, 3*time.Second), "strange": strange(500),
		"one that knows nothing": {{At: began, Step: "prepare"}},
		"all at once":            {{At: began}, {At: began}, {At: began, Stat: cgroup.Stat{User: cgroup.Of(0)}}},
	} {
		t.Run(name, func(t *testing.T) {
			b := Build{Number: 17, Attempt: 2, Memory: 4 << 30, CPUs: 1.5}
			data := encode(b, 3*time.Second, samples, true)
			list, good, err := decode(data)
			if err != nil || good != len(data) || len(list) != 1 {
				t.Fatalf("%d attempts, %d of %d bytes, %v", len(list), good, len(data), err)
			}
			a := list[0]
			if a.Attempt != 2 || !a.Began.Equal(began) || a.Every != 3*time.Second || a.Memory != 4<<30 || a.CPUs != 1.5 || !a.Ended || len(a.Samples) != len(samples) {
				t.Fatalf("%+v", a)
			}
			for i := range samples {
				if near(t, samples[i], a.Samples[i]); t.Failed() {
					t.Fatalf("of sample %d", i)
				}
			}
		})
	}
}

// TestNoErrorAddsUp: a counter is as exact at the end as at the beginning.
func TestNoErrorAddsUp(t *testing.T) {
	samples := busy(5000, 3*time.Second)
	list, _, err := decode(encode(Build{}, 3*time.Second, samples, true))
	if err != nil {
		t.Fatal(err)
	}
	want, got := samples[len(samples)-1], list[0].Samples[len(samples)-1]
	for _, c := range columns {
		w, g := c.of(&want).N, c.of(&got).N
		if c.grows && (g < w-w/1000-c.unit || g > w+w/1000+c.unit) {
			t.Errorf("%s is %d after %d samples, want %d", c.name, g, len(samples), w)
		}
	}
	a, b := Attempt{Began: began, Samples: samples}, list[0]
	if x, y := a.Total().PeakMemory.N, b.Total().PeakMemory.N; y < x-4096 || y > x+x/100 {
		t.Errorf("peak memory is %d, want %d", y, x)
	}
}

func TestShorten(t *testing.T) {
	for digits := range uint(12) {
		last := int64(-1)
		for v := int64(0); v < 1<<60; v += 1 + v/1000 {
			c := shorten(v, digits)
			back, ok := expand(c, digits)
			if d := back - v; !ok || c < last || d > v>>(digits+1) || -d > v>>(digits+1) {
				t.Fatalf("%d with %d digits is %d, which is %d", v, digits, c, back)
			}
			last = c
		}
	}
}

// TestTorn: whatever a killed daemon leaves can be read up to the last whole
// sample, and added to.
func TestTorn(t *testing.T) {
	samples := busy(20, 3*time.Second)
	whole := encode(Build{Attempt: 1}, 3*time.Second, samples, false)
	full, _, _ := decode(whole)
	last := 0
	for cut := range len(whole) {
		list, good, err := decode(whole[:cut])
		switch {
		case cut < len(magic):
			if err == nil {
				t.Fatalf("%d bytes are a series", cut)
			}
			continue
		case err != nil || good > cut || good < last:
			t.Fatalf("cut at %d: %d bytes are good, %v", cut, good, err)
		}
		last = good
		if len(list) > 0 && len(list[0].Samples) > 0 && !cmp.Equal(list[0].Samples, full[0].Samples[:len(list[0].Samples)]) {
			t.Fatalf("cut at %d: %v", cut, list[0].Samples)
		}
		// Zeros are what a loss of power leaves. They may make whole what was torn.
		again, n, err := decode(append(whole[:cut:cut], make([]byte, 100)...))
		if err != nil || n < good || len(again) < len(list) || len(again) > len(list)+1 || len(list) > 0 && len(again[0].Samples) > len(list[0].Samples)+1 {
			t.Fatalf("cut at %d, zeros behind it: %d bytes are good, %+v, %v", cut, n, again, err)
		}
	}
	if want := len(whole) - 30; last < want {
		t.Errorf("with its last byte cut off %d of %d bytes are good", last, len(whole))
	}
}

// TestLater: frames and columns of a later version are passed over.
func TestLater(t *testing.T) {
	samples := busy(3, time.Second)
	columns = append(slices.Clone(columns), column{"gpu", 7, 3, true, func(*Sample) *cgroup.Count { return &cgroup.Count{N: 12345, Known: true} }})
	data := encode(Build{Attempt: 1}, time.Second, samples[:2], false)
	columns = columns[:len(columns)-1]
	data = append(data, frame(8, []byte{1, 2, 3})...) // a kind of frame that is not known
	list, good, err := decode(data)
	if err != nil || good != len(data) || len(list) != 1 || len(list[0].Samples) != 2 {
		t.Fatalf("%d of %d bytes, %+v, %v", good, len(data), list, err)
	}
	for i, s := range list[0].Samples {
		near(t, samples[i], s)
	}
}

// TestSize: six hours of a busy build take less than 100 kB.
func TestSize(t *testing.T) {
	samples := busy(7200, 3*time.Second)
	for i := range samples {
		samples[i].Step = "make"
	}
	data := encode(Build{Attempt: 1}, 3*time.Second, samples, true)
	t.Logf("%d samples take %d bytes, %.1f each", len(samples), len(data), float64(len(data))/float64(len(samples)))
	if len(data) >= 100_000 {
		t.Errorf("%d samples take %d bytes", len(samples), len(data))
	}
	idle := slices.Clone(samples)
	for i := range idle {
		at := idle[i].At
		idle[i] = idle[0]
		idle[i].At = at
	}
	data = encode(Build{Attempt: 1}, 3*time.Second, idle, true)
	t.Logf("of a build that sleeps: %d bytes", len(data))
	if len(data) > 40_000 {
		t.Errorf("%d samples in which nothing happens take %d bytes", len(idle), len(data))
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(magic))
	f.Add(encode(Build{Attempt: 1}, 3*time.Second, strange(4), true))
	f.Add(encode(Build{Attempt: 1}, 3*time.Second, busy(4, time.Second), false))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, good, err := decode(data)
		if err != nil {
			if list != nil || good != 0 {
				t.Fatalf("%v, but %d bytes are good", err, good)
			}
			return
		}
		again, n, err := decode(data[:good])
		if err != nil || n != good || !cmp.Equal(list, again) {
			t.Fatalf("the good part is read otherwise: %d of %d, %v", n, good, err)
		}
		for i := range list {
			a := &list[i]
			_ = a.Total()
			for j := range a.Samples {
				for _, c := range columns {
					if v := c.of(&a.Samples[j]); v.N < 0 || !v.Known && v.N != 0 {
						t.Fatalf("%s is %+v", c.name, *v)
					}
				}
				if j > 0 && a.Samples[j].At.Before(a.Samples[j-1].At) {
					t.Fatal("time goes back")
				}
			}
		}
	})
}

// FuzzEncode: what is written is read again, whatever the kernel tells.
func FuzzEncode(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10})
	f.Add(bytes.Repeat([]byte{0xff}, 200))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var samples []Sample
		at := began
		var sum int64
		next := func() int64 {
			if len(raw) == 0 {
				return 0
			}
			b := raw[0]
			raw = raw[1:]
			return int64(b&0x0f) << (b >> 4 * 4 % 50)
		}
		for len(raw) > 0 && len(samples) < 50 {
			at = at.Add(time.Duration(next()%1_000_000) * time.Millisecond)
			s := Sample{At: at, Step: "make"}
			for _, c := range columns {
				v := next()
				if c.grows { // counters do
					sum += v
					v = sum
				}
				if v&1 == 0 {
					*c.of(&s) = cgroup.Of(v)
				}
			}
			samples = append(samples, s)
		}
		list, good, err := decode(encode(Build{Attempt: 1}, time.Second, samples, true))
		if err != nil || len(list) != 1 || len(list[0].Samples) != len(samples) {
			t.Fatalf("%d samples were written: %d bytes, %v", len(samples), good, err)
		}
		for i := range samples {
			if near(t, samples[i], list[0].Samples[i]); t.Failed() {
				t.FailNow()
			}
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	samples := busy(1000, 3*time.Second)
	var e encoder
	e.attempt(Build{}, began, 3*time.Second)
	for i := 0; b.Loop(); i++ {
		e.sample(&samples[i%len(samples)])
	}
}

func BenchmarkDecode(b *testing.B) {
	data := encode(Build{}, 3*time.Second, busy(7200, 3*time.Second), true)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if list, _, err := decode(data); err != nil || len(list[0].Samples) != 7200 {
			b.Fatal(err)
		}
	}
}
