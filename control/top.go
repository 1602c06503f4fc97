package control

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/cgroup"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/jobs"
	"github.com/Morphux/quarry/queue"
	use "github.com/Morphux/quarry/usage"
)

// Usage is what the verbs need of the store of what builds use.
type Usage interface {
	// Live gives the builds that are being sampled.
	Live() []use.Live
	// Read gives the series of all attempts at a build.
	Read(number int64) ([]use.Attempt, error)
}

func (f *Farm) topVerb() *Verb {
	return &Verb{Name: "top", Looks: true, Short: "Show what running builds use, live", Keys: true,
		Long: "On a terminal it is drawn anew every two seconds until q or ^C; elsewhere it is\n" +
			"printed once. CPU is of one processor (two that are busy are 200%) over the last\n" +
			"second or more, JOBS is how many jobs run of how many may (see jobs), memory\n" +
			"counts the file cache as the limit does, and PROCS counts threads too. \"-\" stands\n" +
			"for what is not known (yet).",
		Example: "top\ntop -n 5 --every 10s\ntop --json",
		Flags:   liveFlags,
		Run:     f.top}
}

func (f *Farm) top(ctx context.Context, c *Call) error { return c.live(ctx, f.look) }

// running is a build that runs, with what is known of what it uses.
type running struct {
	Build   int64     `json:"build"`
	Attempt int       `json:"attempt"`
	Package string    `json:"package"`
	Version string    `json:"version"`
	Arch    string    `json:"arch"`
	Channel string    `json:"channel"`
	Step    string    `json:"step"`
	Started time.Time `json:"started"`
	Usage   *use.Live `json:"usage"` // null while it has no workspace
	// Jobs is what it has of the machine's slots; absent where nobody shares them out.
	Jobs *jobs.BuildStatus `json:"jobs,omitempty"`
}

type topJSON struct {
	At      time.Time   `json:"at"`
	Machine use.Machine `json:"machine"`
	Builds  []running   `json:"builds"`
}

// running gives the builds that run, those that work most first.
func (f *Farm) running() []running {
	list := []running{} // never null
	live := map[int64]use.Live{}
	if f.Usage != nil {
		for _, l := range f.Usage.Live() {
			live[l.Build] = l
		}
	}
	slots, _ := f.JobsNow()
	for _, b := range f.Queue.List(queue.Filter{States: []quarry.State{quarry.Running}}) {
		r := running{Build: b.Number, Attempt: b.Attempt, Package: b.Package, Version: b.Version, Arch: b.Arch, Channel: b.Channel, Step: b.Step, Started: b.Started}
		if l, ok := live[b.Number]; ok {
			r.Usage, r.Step = &l, l.Now.Step
		}
		if j, ok := slots.OfBuild(b.Number); ok {
			r.Jobs = &j.BuildStatus
		}
		list = append(list, r)
	}
	cpu := func(r running) int64 {
		if r.Usage == nil || !r.Usage.Rate.CPU.Known {
			return -1
		}
		// What differs by less than a tenth of a processor would only dance.
		return r.Usage.Rate.CPU.N / 10
	}
	slices.SortFunc(list, func(a, b running) int {
		if x, y := cpu(a), cpu(b); x != y {
			return int(y - x)
		}
		return int(a.Build - b.Build)
	})
	return list
}

// look writes how things stand at this moment.
func (f *Farm) look(c *Call, w io.Writer, v view) error {
	now := time.Now()
	machine, builds := use.ThisMachine(), f.running()
	if c.JSON() {
		return human.JSON(w, topJSON{now.UTC(), machine, builds})
	}
	st := f.Queue.Status()
	head := "nothing is being built"
	if len(builds) > 0 {
		head = human.Count(len(builds), "build") + " running"
	}
	head = human.Paint(head, human.Bold, c.Term.Color)
	if n := st.Counts[quarry.Queued] + st.Counts[quarry.Waiting]; n > 0 {
		head += fmt.Sprintf(", %d queued, %d waiting", st.Counts[quarry.Queued], st.Counts[quarry.Waiting])
	}
	var total topTotal
	add := func(to *cgroup.Count, n cgroup.Count) {
		if n.Known {
			*to = cgroup.Of(to.N + n.N)
		}
	}
	for _, r := range builds {
		if j := r.Jobs; j != nil {
			total.known = true
			total.used += j.Used
			total.granted += j.Granted
		}
		if u := r.Usage; u != nil {
			add(&total.cpu, u.Rate.CPU)
			add(&total.memory, u.Now.Memory)
			add(&total.read, u.Rate.Read)
			add(&total.written, u.Rate.Written)
			add(&total.procs, u.Now.Procs)
			add(&total.disk, u.Now.Disk)
		}
	}
	fmt.Fprintln(w, head+v.note(now, c.Term.Color))
	fmt.Fprintln(w, machineText(machine))
	if slots, ok := f.JobsNow(); ok && slots.Bounded() {
		fmt.Fprintln(w, human.Paint(slots.LimitText(), human.Yellow, c.Term.Color))
	}
	for _, p := range st.Paused {
		fmt.Fprintln(w, pauseText(p, c.Term.Color))
	}
	if len(builds) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	t := topTable{color: c.Term.Color, width: c.Term.Width}
	rows := builds
	if most := v.height - 7 - len(st.Paused); v.draw && len(rows) > most {
		rows = rows[:max(1, most)]
	}
	for _, r := range rows {
		t.build(r, now)
	}
	if len(builds) > 1 {
		t.rows = append(t.rows, []any{"total", "", "", "", "", "", "", percent(total.cpu), "", total.jobs(), size(total.memory), "", size(total.read), size(total.written), count(total.procs), size(total.disk)})
	}
	if err := t.writeTo(w); err != nil {
		return err
	}
	if n := len(builds) - len(rows); n > 0 {
		fmt.Fprintf(w, "and %d more\n", n)
	}
	return nil
}

// topTotal is what all builds use together.
type topTotal struct {
	cpu, memory, read, written, procs, disk cgroup.Count

	used, granted int // slots
	known         bool
}

func (t topTotal) jobs() string {
	if !t.known {
		return "-"
	}
	return fmt.Sprintf("%d/%d", t.used, t.granted)
}

func machineText(m use.Machine) string {
	s := human.Count(m.CPUs, "CPU")
	if m.Memory.Known && m.Available.Known {
		s += fmt.Sprintf(", memory %s of %s in use", human.Size(m.Memory.N-m.Available.N), human.Size(m.Memory.N))
	}
	if len(m.Load) == 3 {
		s += fmt.Sprintf(", load %.2f %.2f %.2f", m.Load[0], m.Load[1], m.Load[2])
	}
	return s
}

// topTable is a table whose numbers stand at the right of their columns, and
// that leaves columns out where the terminal is narrow.
type topTable struct {
	color bool
	width int
	rows  [][]any
}

var (
	topHead  = []string{"BUILD", "PACKAGE", "VERSION", "ARCH", "CHANNEL", "STEP", "SINCE", "CPU", "", "JOBS", "MEMORY", "OF", "READ/S", "WRITE/S", "PROCS", "DISK"}
	topRight = 6 // numbers begin here
	// What to leave out first.
	topSpare = []string{"", "OF", "CHANNEL", "DISK", "VERSION", "ARCH", "READ/S", "WRITE/S", "JOBS"}
)

func (t *topTable) build(r running, now time.Time) {
	since := "-"
	if !r.Started.IsZero() {
		since = human.Duration(now.Sub(r.Started))
	}
	row := []any{r.Build, r.Package, r.Version, r.Arch, r.Channel, human.Cell(r.Step, human.Blue), since}
	u := r.Usage
	if u == nil {
		u = &use.Live{}
	}
	bar, slots := "", "-"
	if j := r.Jobs; j != nil && !j.Waiting {
		slots = fmt.Sprintf("%d/%d", j.Used, j.Granted)
	}
	memory := human.Cell(size(u.Now.Memory), human.Plain)
	of := "-"
	if u.Memory > 0 {
		of = human.Size(u.Memory)
		if u.Now.Memory.N > u.Memory/10*9 { // file cache goes when it must
			memory = human.Cell(size(u.Now.Memory), human.Yellow)
		}
	}
	if u.CPUs > 0 && u.Rate.CPU.Known {
		bar = gauge(float64(u.Rate.CPU.N) / 100 / u.CPUs)
	}
	t.rows = append(t.rows, append(row, percent(u.Rate.CPU), human.Cell(bar, human.Green), slots, memory, of,
		size(u.Rate.Read), size(u.Rate.Written), count(u.Now.Procs), size(u.Now.Disk)))
}

// gauge draws a share of 1.
func gauge(share float64) string {
	const wide = 8
	n := int(min(max(share, 0), 1)*wide*8 + 0.5)
	s := strings.Repeat("█", n/8)
	if n%8 > 0 {
		s += string(rune('█' + 8 - n%8)) // U+2589 to U+258F are narrower and narrower
	}
	return s + strings.Repeat("·", wide-utf8.RuneCountInString(s))
}

func (t *topTable) writeTo(w io.Writer) error {
	skip := map[string]bool{}
	for _, name := range topSpare {
		if t.width <= 0 || widest(t.format(skip, false)) <= t.width {
			break
		}
		skip[name] = true
	}
	_, err := io.WriteString(w, t.format(skip, t.color))
	return err
}

func widest(text string) (wide int) {
	for line := range strings.Lines(text) {
		wide = max(wide, utf8.RuneCountInString(strings.TrimRight(line, "\n")))
	}
	return wide
}

func (t *topTable) format(skip map[string]bool, color bool) string {
	table := human.Table{Color: color}
	for i, h := range topHead {
		if !skip[h] {
			table.Head = append(table.Head, h)
			if i >= topRight && h != "" {
				table.Right = append(table.Right, len(table.Head)-1)
			}
		}
	}
	for _, row := range t.rows {
		var cells []any
		for i, cell := range row {
			if !skip[topHead[i]] {
				cells = append(cells, cell)
			}
		}
		table.Row(cells...)
	}
	var b strings.Builder
	_, _ = table.WriteTo(&b)
	return b.String()
}

// percent, size and count write what may not be known.
func percent(n cgroup.Count) string {
	if !n.Known {
		return "-"
	}
	return fmt.Sprintf("%d%%", n.N)
}

func size(n cgroup.Count) string {
	if !n.Known {
		return "-"
	}
	return human.Size(n.N)
}

func count(n cgroup.Count) string {
	if !n.Known {
		return "-"
	}
	return fmt.Sprint(n.N)
}
