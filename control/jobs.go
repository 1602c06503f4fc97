package control

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/jobs"
	"github.com/Morphux/quarry/queue"
	"github.com/spf13/pflag"
)

// Jobs shares the machine's slots among the builds that run.
type Jobs interface {
	// Status tells who has what.
	Status() jobs.Status
	// Set fixes how many slots a running build has, as far as the limit and its
	// ceiling allow, and tells how many it may have; 0 leaves it to the farm again.
	Set(number int64, n int, by string) (int, error)
	// Limit says how many slots there are for all builds, until a time, or for good
	// when that is zero; 0 takes it back.
	Limit(n int, until time.Time, by string) error
}

// longestLimit is how far off the end of a limit may be.
const longestLimit = 366 * 24 * time.Hour

func (f *Farm) jobsVerbs() Table {
	return Table{
		{Name: "jobs", Looks: true, Short: "Show who has how many of the machine's slots, live", Keys: true,
			Long: "A slot is the right to run one job, such as a compiler, at one time. JOBS is how\n" +
				"many a build may run now, USED how many it runs, WANTS how many it could, and MOST\n" +
				"how many it is ever given. On a terminal it is drawn anew every two seconds until\n" +
				"q or ^C; elsewhere it is printed once.",
			Example: "jobs\njobs -n 5 --every 1s\njobs --json",
			Flags:   liveFlags,
			Run: func(ctx context.Context, c *Call) error {
				if _, err := f.governor(); err != nil {
					return err
				}
				return c.live(ctx, f.lookJobs)
			}},
		{Name: "jobs set", Args: "BUILD N|auto", MinArgs: 2, MaxArgs: 2, Need: Push, Short: "Give a running build that many jobs",
			Long: "It has them until it ends or until auto leaves them to the farm again, as far as the\n" +
				"machine's limit and the build's recipe allow. More are there at once, fewer as jobs\n" +
				"end. An admin may do so with every build; a maintainer may give the builds of their\n" +
				"packages fewer than they have, and take that back.",
			Example: "jobs set 17 1\njobs set 17 auto", Run: f.setJobs},
		{Name: "jobs limit", Args: "N|all|off", MinArgs: 1, MaxArgs: 1, Need: Admin, Short: "Say how many jobs all builds may run together",
			Long: "It counts whatever the schedule says and whoever works at the machine, over restarts\n" +
				"too, until off or the end of --for. A build that runs keeps one job. No further\n" +
				"builds begin than there are jobs.",
			Example: "jobs limit 2 --for 2h\njobs limit all --for 30m\njobs limit off",
			Flags: func(fs *pflag.FlagSet) {
				fs.Duration("for", 0, "how long, such as 90m or 2h (default until off)")
			},
			Run: f.limitJobs},
	}
}

func (f *Farm) governor() (Jobs, error) {
	if f.Jobs == nil {
		return nil, fmt.Errorf("this farm shares no jobs out")
	}
	return f.Jobs, nil
}

// JobsStatus is who has what of the machine's slots.
type JobsStatus struct {
	At     time.Time   `json:"at"`
	Builds []JobsBuild `json:"builds"` // those that wait for their first slot last
	jobs.Status
}

// JobsBuild is what one build has.
type JobsBuild struct {
	Package string `json:"package,omitempty"`
	Version string `json:"version,omitempty"`
	Arch    string `json:"arch,omitempty"`
	Channel string `json:"channel,omitempty"`
	Step    string `json:"step,omitempty"`
	jobs.BuildStatus
}

// JobsNow tells who has what; ok is false where the farm shares nothing out.
func (f *Farm) JobsNow() (st JobsStatus, ok bool) {
	if f.Jobs == nil {
		return st, false
	}
	st = JobsStatus{At: time.Now().UTC(), Builds: []JobsBuild{}, Status: f.Jobs.Status()}
	known := map[int64]quarry.Build{}
	for _, b := range f.Queue.List(queue.Filter{States: []quarry.State{quarry.Running}}) {
		known[b.Number] = b
	}
	for _, s := range st.Status.Builds {
		j := JobsBuild{BuildStatus: s}
		if b, ok := known[s.Number]; ok && s.Number > 0 {
			j.Package, j.Version, j.Arch, j.Channel, j.Step = b.Package, b.Version, b.Arch, b.Channel, b.Step
		}
		st.Builds = append(st.Builds, j)
	}
	return st, true
}

// OfBuild gives the part of one build, if it has one.
func (st *JobsStatus) OfBuild(number int64) (JobsBuild, bool) {
	i := slices.IndexFunc(st.Builds, func(b JobsBuild) bool { return b.Number == number })
	if i < 0 || number <= 0 {
		return JobsBuild{}, false
	}
	return st.Builds[i], true
}

// Text is in a few words what a build has, e.g. "3 of 4 in use".
func (b JobsBuild) Text() string {
	if b.Waiting {
		return "waits for a slot"
	}
	return fmt.Sprintf("%d of %d in use", b.Used, b.Granted)
}

// Note is what else there is to say of what a build has, one thing after the other.
func (b JobsBuild) Note() string {
	var list []string
	if b.Waiting {
		list = append(list, "waits for a slot")
	}
	if b.Hand > 0 {
		s := fmt.Sprintf("set to %d", b.Hand)
		if b.By != "" {
			s += " by " + b.By
		}
		list = append(list, s)
	}
	if n := b.Out - b.Granted; n > 0 && !b.Waiting {
		list = append(list, fmt.Sprintf("%d to come back", n))
	}
	if b.Clients > 0 {
		list = append(list, human.Count(b.Clients, "protocol client"))
	}
	if b.Forced != "" {
		list = append(list, b.Forced)
	}
	if b.Repaired > 0 {
		list = append(list, human.Count(b.Repaired, "lost token")+" made again")
	}
	return strings.Join(list, "; ")
}

// jobsOf says what a build has of the slots; "" where there is nothing to say.
func (f *Farm) jobsOf(number int64) string {
	st, _ := f.JobsNow()
	b, ok := st.OfBuild(number)
	switch {
	case !ok:
		return ""
	case b.Waiting || b.Note() == "":
		return b.Text()
	}
	return b.Text() + "; " + b.Note()
}

// LimitText says how many slots builds may take, and why, e.g. "2 of 8 slots for
// builds: by hand: alice, until 14:30".
func (st *JobsStatus) LimitText() string {
	if st.Hand == nil && st.Limit.Slots >= st.Total {
		return human.Count(st.Total, "slot") + " for builds"
	}
	return fmt.Sprintf("%d of %s for builds, %s", st.Limit.Slots, human.Count(st.Total, "slot"), human.Safe(st.Limit.Why, false))
}

// Bounded reports whether builds may take fewer slots than there are.
func (st *JobsStatus) Bounded() bool { return st.Limit.Slots < st.Total }

// SignalsText says what the machine's other users do, as far as that is known.
func (st *JobsStatus) SignalsText() string {
	var list []string
	g := st.Signals
	if g.Others >= 0.05 {
		list = append(list, fmt.Sprintf("others take %.1f processors", g.Others))
	}
	if g.Person {
		list = append(list, "somebody was here "+human.Duration(g.Idle.Round(time.Second))+" ago")
	}
	if g.Stall >= 0.05 {
		list = append(list, fmt.Sprintf("%.1f%% of the time something waits for memory", g.Stall))
	}
	if g.Battery {
		list = append(list, "on battery")
	}
	return strings.Join(list, ", ")
}

// lookJobs writes how the slots are shared at this moment.
func (f *Farm) lookJobs(c *Call, w io.Writer, v view) error {
	st, _ := f.JobsNow()
	if c.JSON() {
		return human.JSON(w, st)
	}
	fmt.Fprintln(w, human.Paint(st.LimitText(), human.Bold, c.Term.Color)+v.note(time.Now(), c.Term.Color))
	if s := st.SignalsText(); s != "" {
		fmt.Fprintln(w, s)
	}
	if len(st.Builds) == 0 {
		_, err := fmt.Fprintln(w, "nothing is being built")
		return err
	}
	fmt.Fprintf(w, "%d given, %d in use\n\n", st.Granted, st.Used)
	t := human.Table{Head: []string{"BUILD", "PACKAGE", "VERSION", "ARCH", "STEP", "JOBS", "USED", "", "WANTS", "MOST", "NOTE"}, Right: []int{5, 6, 8, 9}, Color: c.Term.Color, Width: c.Term.Width}
	rows := st.Builds
	if most := v.height - 7; v.draw && len(rows) > most {
		rows = rows[:max(1, most)]
	}
	for _, b := range rows {
		number, pkg := any(b.Number), cmp.Or(b.Package, b.Name)
		if b.Number <= 0 {
			number = "-"
		}
		if b.Waiting {
			t.Row(number, pkg, b.Version, b.Arch, human.Cell(b.Step, human.Blue), "-", "-", "", "-", b.Ceiling, human.Cell(b.Note(), human.Yellow))
			continue
		}
		wants := human.Cell(strconv.Itoa(b.Want), human.Plain)
		if b.Hungry && b.Want > b.Granted {
			wants = human.Cell(strconv.Itoa(b.Want), human.Yellow)
		}
		bar := gauge(float64(b.Used) / float64(max(1, b.Granted)))
		t.Row(number, pkg, b.Version, b.Arch, human.Cell(b.Step, human.Blue), b.Granted, b.Used, human.Cell(bar, human.Green), wants, b.Ceiling, b.Note())
	}
	if _, err := t.WriteTo(w); err != nil {
		return err
	}
	if n := len(st.Builds) - len(rows); n > 0 {
		fmt.Fprintf(w, "and %d more\n", n)
	}
	return nil
}

// setJobs gives a build a number of jobs.
func (f *Farm) setJobs(ctx context.Context, c *Call) error {
	gov, err := f.governor()
	if err != nil {
		return err
	}
	n := 0
	if c.Args[1] != "auto" {
		if n, err = jobCount(c.Args[1], "auto"); err != nil {
			return err
		}
	}
	b, err := f.build(ctx, c.Args[0])
	if err != nil {
		return err
	}
	if err := f.forbidden(c, b.Target()); err != nil {
		return err
	}
	st, _ := f.JobsNow()
	has, ok := st.OfBuild(b.Number)
	if !ok {
		return notFound(fmt.Errorf("build %d does not run, it is %s: jobs shows those that do", b.Number, b.State))
	}
	if err := mayGive(c.Who, has, n); err != nil {
		return err
	}
	may, err := gov.Set(b.Number, n, c.Who.User)
	if err != nil {
		return err
	}
	if c.JSON() {
		st, _ := f.JobsNow()
		has, _ := st.OfBuild(b.Number) // it may have ended
		has.Number = b.Number
		return c.emit(has)
	}
	switch {
	case n == 0:
		fmt.Fprintf(c.Out, "build %d has as many jobs as the farm gives it, now %d\n", b.Number, may)
	case may < min(n, has.Ceiling, st.Limit.Slots):
		fmt.Fprintf(c.Out, "build %d may run %s now, and up to %d as jobs of others end\n", b.Number, human.Count(may, "job"), min(n, has.Ceiling, st.Limit.Slots))
	case may < n:
		fmt.Fprintf(c.Out, "build %d may run %s: the machine's limit or its recipe allows no more\n", b.Number, human.Count(may, "job"))
	default:
		fmt.Fprintf(c.Out, "build %d may run %s\n", b.Number, human.Count(may, "job"))
	}
	return nil
}

// mayGive reports why somebody may not give a build of theirs n jobs, 0 for as many
// as the farm gives it. What one has more others have less, so that is for admins.
func mayGive(who quarry.Identity, has JobsBuild, n int) error {
	switch {
	case who.Role == quarry.RoleAdmin:
		return nil
	case has.Hand > 0 && has.By != who.User:
		return &Error{ExitForbidden, fmt.Errorf("build %d was set to %s by %s: only an admin may change that", has.Number, human.Count(has.Hand, "job"), has.By)}
	case n == 0, n == 1, n < has.Granted:
		return nil
	}
	return &Error{ExitForbidden, fmt.Errorf("build %d has %s: give it fewer, as only an admin may give it as many or more", has.Number, human.Count(has.Granted, "job"))}
}

// jobCount reads a number of jobs.
func jobCount(s string, or ...string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > jobs.MaxSlots {
		return 0, usage("%.40q is no number of jobs: give one from 1 to %d, or %s", s, jobs.MaxSlots, strings.Join(or, " or "))
	}
	return n, nil
}

// limitJobs sets how many slots all builds have.
func (f *Farm) limitJobs(_ context.Context, c *Call) error {
	gov, err := f.governor()
	if err != nil {
		return err
	}
	n, until := 0, time.Time{}
	lasts, _ := c.Flags.GetDuration("for")
	given := c.Flags.Changed("for")
	switch {
	case given && (lasts < time.Second || lasts > longestLimit):
		return usage("jobs limit: --for takes a time from 1s to %dh, such as 2h", longestLimit/time.Hour)
	case given && c.Args[0] == "off":
		return usage("jobs limit: off takes the limit back: leave out --for")
	case c.Args[0] == "all":
		n = gov.Status().Total
	case c.Args[0] != "off":
		if n, err = jobCount(c.Args[0], "all", "off"); err != nil {
			return err
		}
	}
	if given {
		until = time.Now().Add(lasts)
	}
	if err := gov.Limit(n, until, c.Who.User); err != nil {
		return err
	}
	st, _ := f.JobsNow()
	if c.JSON() {
		return c.emit(st)
	}
	_, err = fmt.Fprintln(c.Out, st.LimitText())
	return err
}
