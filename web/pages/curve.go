package pages

import (
	"strconv"
	"time"

	"github.com/Morphux/quarry/internal/cgroup"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/usage"
)

// curve is a drawing of something over the time of an attempt, in a box of 300 by
// 40, with its figures beside it.
type curve struct {
	Name  string // e.g. CPU
	Now   string // e.g. 1.8 of 2
	Peak  string
	Line  string // points of a polyline
	Area  string // the same, closed below
	Limit string // points of a polyline: what there might have been; "" for none
	Marks []mark // where steps begin
}

type mark struct {
	X    float64
	Step string
}

// curveWidth and curveHeight are the box that curves are drawn in, and points is
// how many they have at most: more cannot be seen.
const (
	curveWidth  = 300.0
	curveHeight = 40.0
	points      = 120
)

// Label is the drawing in words.
func (c curve) Label() string { return c.Name + ": " + c.Now + ", at most " + c.Peak }

// curves draws processors, memory and jobs over an attempt. live says that it
// goes on.
func curves(a *usage.Attempt, live bool) []curve {
	if a == nil || len(a.Samples) < 2 {
		return nil
	}
	total := a.Total()
	cpu := curve{Name: "CPU"}
	memory := curve{Name: "Memory"}
	jobs := curve{Name: "Jobs"}
	rates := make([]float64, len(a.Samples))
	used := make([]float64, len(a.Samples))
	busy, granted := make([]float64, len(a.Samples)), make([]float64, len(a.Samples))
	at := make([]time.Duration, len(a.Samples))
	var most float64
	var last cgroup.Count
	for i := range a.Samples {
		s := &a.Samples[i]
		at[i] = s.At.Sub(a.Began)
		used[i] = float64(s.Memory.N)
		busy[i], granted[i] = float64(s.Busy.N), float64(s.Jobs.N)
		if i > 0 {
			// Samples at the ends of steps come close upon others: of less than a
			// second rates say little.
			from := i - 1
			for from > 0 && s.At.Sub(a.Samples[from].At) < time.Second {
				from--
			}
			if r := usage.Between(&a.Samples[from], s).CPU; r.Known {
				rates[i], last = float64(r.N)/100, r
			} else {
				rates[i] = rates[i-1]
			}
		}
		most = max(most, rates[i])
		if i > 0 && s.Step != a.Samples[i-1].Step {
			m := mark{X: position(at[i-1], total.Wall), Step: s.Step}
			cpu.Marks, memory.Marks, jobs.Marks = append(cpu.Marks, m), append(memory.Marks, m), append(jobs.Marks, m)
		}
	}
	mean := 0.0
	if total.Wall > 0 {
		mean = float64(total.User.N+total.Sys.N) / 1e6 / total.Wall.Seconds()
	}
	instant := total.Wall < time.Second // what was used before its first sample counts too much
	if instant && a.CPUs > 0 {
		most, mean = min(most, a.CPUs), min(mean, a.CPUs)
	}
	top := max(most, a.CPUs, 0.1)
	cpu.Line, cpu.Area = draw(at, rates, total.Wall, top)
	cpu.Peak = processors(max(most, mean)) // of what took less than a second, samples tell little
	cpu.Now = processors(float64(last.N) / 100)
	if a.CPUs > 0 {
		cpu.Peak += " of " + processors(a.CPUs)
	}
	switch {
	case !live && instant:
		cpu.Now = human.Duration(time.Duration(total.User.N+total.Sys.N)*time.Microsecond) + " in all"
	case !live:
		cpu.Now = processors(mean) + " in the mean"
	}
	peak := float64(total.PeakMemory.N)
	memory.Line, memory.Area = draw(at, used, total.Wall, max(peak, 1))
	memory.Peak = human.Size(total.PeakMemory.N)
	if a.Memory > 0 {
		memory.Peak += " of " + human.Size(a.Memory)
	}
	memory.Now = human.Size(a.Samples[len(a.Samples)-1].Memory.N)
	if !live {
		memory.Now = memory.Peak
	}
	list := []curve{}
	of := func(busy, jobs cgroup.Count) string {
		return strconv.FormatInt(busy.N, 10) + " of " + strconv.FormatInt(jobs.N, 10)
	}
	top = float64(max(total.PeakJobs.N, total.PeakBusy.N, 1))
	jobs.Line, jobs.Area = draw(at, busy, total.Wall, top)
	jobs.Limit, _ = draw(at, granted, total.Wall, top)
	jobs.Peak = of(total.PeakBusy, total.PeakJobs)
	if total.PeakBusy.N > total.PeakJobs.N { // jobs that end when they have, or are forced
		jobs.Peak = strconv.FormatInt(total.PeakBusy.N, 10)
	}
	jobs.Now = of(a.Samples[len(a.Samples)-1].Busy, a.Samples[len(a.Samples)-1].Jobs)
	if !live {
		sum := 0.0
		for i := 1; i < len(at); i++ {
			sum += busy[i] * (at[i] - at[i-1]).Seconds()
		}
		if total.Wall > 0 {
			jobs.Now = processors(sum/total.Wall.Seconds()) + " in the mean"
		}
	}
	if total.User.Known {
		list = append(list, cpu)
	}
	if total.PeakMemory.Known {
		list = append(list, memory)
	}
	if total.PeakJobs.N > 1 || total.PeakBusy.N > 1 { // of one job there is nothing to draw
		list = append(list, jobs)
	}
	return list
}

func processors(n float64) string { return strconv.FormatFloat(n, 'f', 1, 64) }

func position(at, whole time.Duration) float64 {
	if whole <= 0 {
		return 0
	}
	return float64(int(float64(at)/float64(whole)*curveWidth*10)) / 10
}

// draw makes the points of values over time, no more than can be seen: of those
// that fall together the highest.
func draw(at []time.Duration, values []float64, whole time.Duration, top float64) (line, area string) {
	var b []byte
	add := func(x, y float64) {
		if len(b) > 0 {
			b = append(b, ' ')
		}
		b = strconv.AppendFloat(b, x, 'f', 1, 64)
		b = append(b, ',')
		b = strconv.AppendFloat(b, y, 'f', 1, 64)
	}
	bucket := max(1, (len(values)+points-1)/points)
	var lastX float64
	for i := 0; i < len(values); i += bucket {
		end := min(i+bucket, len(values))
		v := values[i]
		for _, w := range values[i:end] {
			v = max(v, w)
		}
		lastX = position(at[end-1], whole)
		if i == 0 {
			lastX = 0
		}
		add(lastX, curveHeight-1-min(v/top, 1)*(curveHeight-3))
	}
	line = string(b)
	add(lastX, curveHeight)
	add(0, curveHeight)
	return line, string(b)
}
