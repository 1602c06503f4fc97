package control

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/cgroup"
	"github.com/Morphux/quarry/internal/human"
	use "github.com/Morphux/quarry/usage"
)

// usedJSON is what log --usage --json prints.
type usedJSON struct {
	Build    int64         `json:"build"`
	Attempts []usedAttempt `json:"attempts"`
}

type usedAttempt struct {
	use.Attempt
	Total use.Total `json:"total"`
}

// How many lines a series takes where nobody says otherwise, and how many
// letters a sparkline.
const (
	usedLines = 30
	sparkWide = 10
)

// used prints what a build used over its time.
func (f *Farm) used(c *Call, n int64, lines int) error {
	list, err := f.series(n)
	if err != nil {
		return err
	}
	if c.JSON() {
		out := usedJSON{Build: n}
		for _, a := range list {
			if a.Samples == nil {
				a.Samples = []use.Sample{} // never null
			}
			out.Attempts = append(out.Attempts, usedAttempt{a, a.Total()})
		}
		return c.emit(out)
	}
	b, gone := f.Queue.Get(n)
	if lines == 0 {
		if lines = usedLines; c.Term.Height > 0 {
			lines = max(8, c.Term.Height-10)
		}
	}
	for i := range list {
		a := &list[i]
		what := fmt.Sprintf("build %d", n)
		if gone == nil {
			what += fmt.Sprintf(": %s %s %s", b.Package, b.Version, b.Arch)
		}
		what = human.Paint(what, human.Bold, c.Term.Color)
		if len(list) > 1 {
			what += fmt.Sprintf(", attempt %d", a.Attempt)
		}
		// The last one goes on while the build runs; any other was cut off.
		switch {
		case a.Ended:
			what += ", took " + human.Duration(a.Total().Wall)
		case i == len(list)-1 && gone == nil && b.State == quarry.Running:
			what += ", runs for " + human.Duration(time.Since(a.Began))
		default:
			what += ", ends here, as its daemon did"
		}
		if i > 0 {
			fmt.Fprintln(c.Out)
		}
		fmt.Fprintf(c.Out, "%s, %s, one every %s and at the ends of steps\n\n", what,
			human.Count(len(a.Samples), "sample"), human.Duration(a.Every))
		if err := writeSeries(c, a, lines); err != nil {
			return err
		}
		if _, err := fmt.Fprint(c.Out, "\n"+totalText(a)); err != nil {
			return err
		}
	}
	return nil
}

// series reads a build's series, and says why there is none.
func (f *Farm) series(n int64) ([]use.Attempt, error) {
	err := fs.ErrNotExist
	if f.Usage != nil {
		var list []use.Attempt
		if list, err = f.Usage.Read(n); err == nil {
			return list, nil
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("what build %d used cannot be read: the file is damaged, or of another version of quarry", n)
	}
	b, gone := f.Queue.Get(n)
	switch {
	case gone != nil:
		return nil, notFound(fmt.Errorf("build %d is not known here, and what it used is not kept: see quarry status for the builds that are", n))
	case b.State == quarry.Waiting || b.State == quarry.Queued:
		return nil, notFound(fmt.Errorf("build %d has not begun, so it has used nothing yet", n))
	case b.State == quarry.Running:
		return nil, notFound(fmt.Errorf("build %d has no workspace yet, so there is nothing to show: try again in a moment", n))
	}
	return nil, notFound(fmt.Errorf("build %d has no samples: it never had a workspace, or was built before they were kept, or they went with its old log", n))
}

// span is what happened in a part of a build's time.
type span struct {
	end                       time.Duration // since the beginning
	steps                     []string
	rate                      use.Rate
	memory, anon, procs, disk cgroup.Count // the highest
	jobs, busy                cgroup.Count // likewise
}

// spans divides a series into most parts of equal time at most; those with no
// sample are left out.
func spans(a *use.Attempt, most int) []span {
	if len(a.Samples) == 0 {
		return nil
	}
	wall := a.Samples[len(a.Samples)-1].At.Sub(a.Began)
	var list []span
	add := func(from *use.Sample, part []use.Sample) {
		s := span{end: part[len(part)-1].At.Sub(a.Began), rate: use.Between(from, &part[len(part)-1])}
		for i := range part {
			p := &part[i]
			if step := cmp.Or(p.Step, "-"); !slices.Contains(s.steps, step) {
				s.steps = append(s.steps, step)
			}
			s.memory, s.anon = s.memory.Max(p.Memory), s.anon.Max(p.Anon)
			s.procs, s.disk = s.procs.Max(p.Procs), s.disk.Max(p.Disk)
			s.jobs, s.busy = s.jobs.Max(p.Jobs), s.busy.Max(p.Busy)
		}
		list = append(list, s)
	}
	if len(a.Samples) == 1 {
		add(&a.Samples[0], a.Samples)
		return list
	}
	place := func(s *use.Sample) int64 { // of the part that a sample is in
		if wall <= 0 {
			return 0
		}
		// A sample ends what went before it.
		return (int64(s.At.Sub(a.Began).Milliseconds())*int64(most) - 1) / max(1, wall.Milliseconds())
	}
	first := 1
	for i := 1; i < len(a.Samples); i++ {
		// Where there is a line for each there is no need to lump them.
		if i+1 < len(a.Samples) && len(a.Samples)-1 > most && place(&a.Samples[i]) == place(&a.Samples[i+1]) {
			continue
		}
		add(&a.Samples[first-1], a.Samples[first:i+1])
		first = i + 1
	}
	return list
}

// writeSeries writes one attempt as a table.
func writeSeries(c *Call, a *use.Attempt, lines int) error {
	t := human.Table{Head: []string{"TIME", "STEP", "CPU", "MEMORY", "ANON", "READ/S", "WRITE/S", "PROCS", "DISK"},
		Right: []int{0, 2, 3, 4, 5, 6, 7, 8}, Color: c.Term.Color, Width: c.Term.Width}
	shared := a.Total().PeakJobs.Known
	if shared {
		t.Head, t.Right = append(t.Head, "JOBS"), append(t.Right, 9)
	}
	if c.Term.TTY {
		fine := spans(a, sparkWide)
		cells := []any{"", ""}
		for _, of := range []func(*span) cgroup.Count{
			func(s *span) cgroup.Count { return s.rate.CPU }, func(s *span) cgroup.Count { return s.memory },
			func(s *span) cgroup.Count { return s.anon }, func(s *span) cgroup.Count { return s.rate.Read },
			func(s *span) cgroup.Count { return s.rate.Written }, func(s *span) cgroup.Count { return s.procs },
			func(s *span) cgroup.Count { return s.disk },
		} {
			cells = append(cells, human.Cell(sparkline(fine, of), human.Green))
		}
		if shared {
			cells = append(cells, human.Cell(sparkline(fine, func(s *span) cgroup.Count { return s.busy }), human.Green))
		}
		t.Row(cells...)
	}
	for _, s := range spans(a, lines) {
		cells := []any{human.Duration(s.end), human.Cell(shorten(strings.Join(s.steps, " "), 24), human.Blue), percent(s.rate.CPU), size(s.memory), size(s.anon),
			size(s.rate.Read), size(s.rate.Written), count(s.procs), size(s.disk)}
		if shared {
			cells = append(cells, jobsText(s.busy, s.jobs))
		}
		t.Row(cells...)
	}
	_, err := t.WriteTo(c.Out)
	return err
}

// jobsText says how many jobs there are, of how many there may be.
func jobsText(busy, jobs cgroup.Count) string {
	if !jobs.Known {
		return "-"
	}
	return fmt.Sprintf("%d/%d", busy.N, jobs.N)
}

// sparkline draws values between 0 and the highest.
func sparkline(list []span, of func(*span) cgroup.Count) string {
	var top int64
	for i := range list {
		top = max(top, of(&list[i]).N)
	}
	var b strings.Builder
	for i := range list {
		n := of(&list[i])
		switch {
		case !n.Known:
			b.WriteByte(' ')
		case top == 0:
			b.WriteRune('▁')
		default:
			b.WriteRune([]rune("▁▂▃▄▅▆▇█")[int(float64(n.N)/float64(top)*7+0.5)])
		}
	}
	return b.String()
}

// totalText says what an attempt came to.
func totalText(a *use.Attempt) string {
	t := a.Total()
	var b strings.Builder
	line := func(known bool, name, format string, args ...any) {
		if known {
			fmt.Fprintf(&b, "%-10s %s\n", name, fmt.Sprintf(format, args...))
		}
	}
	us := func(n cgroup.Count) string { return human.Duration(time.Duration(n.N) * time.Microsecond) }
	line(t.User.Known && t.Sys.Known, "CPU", "%s: user %s, system %s", us(cgroup.Of(t.User.N+t.Sys.N)), us(t.User), us(t.Sys))
	also := func(n cgroup.Count, format string) string {
		if n.N == 0 {
			return ""
		}
		return fmt.Sprintf(format, n.N)
	}
	limit := ""
	if a.Memory > 0 {
		limit = " of " + human.Size(a.Memory)
	}
	line(t.PeakMemory.Known, "memory", "%s%s at most, %s without file cache%s", size(t.PeakMemory), limit, size(t.PeakAnon),
		also(t.OOMKills, ", processes killed for want of it: %d"))
	line(t.Read.Known && t.Written.Known, "disks", "%s read, %s written", size(t.Read), size(t.Written))
	line(t.PeakProcs.Known, "processes", "%s at most%s", count(t.PeakProcs), also(t.PidsHits, ", the limit refused %d more"))
	line(t.PeakJobs.Known, "jobs", "%s in use at most, %s granted at most", count(t.PeakBusy), count(t.PeakJobs))
	line(t.PeakDisk.Known, "workspace", "%s at most", size(t.PeakDisk))
	return b.String()
}
