package runner

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/jobs"
	"github.com/Morphux/quarry/jobserver"
	"github.com/Morphux/quarry/recipe"
	"github.com/Morphux/quarry/runner/guest"
)

// Slots is what a build may do at one time, where that changes while it runs.
type Slots = jobs.Slots

// openSlots tells whoever shares out the machine where the build runs.
func (r *run) openSlots() error {
	s := r.job.Slots
	if s == nil {
		return nil
	}
	err := s.Open(jobs.Place{
		Dir: r.ws.Dir, Inside: images.HomePath, UID: r.ws.UID, GID: r.ws.GID,
		Tasks: func() (jobs.Tasks, error) {
			t, err := r.ws.Tasks()
			return jobs.Tasks(t), err
		},
		CPU: r.ws.SetCPU, Over: r.over.set,
	})
	if err != nil {
		return fmt.Errorf("workspace %s gets no slots: %w", r.ws.Name, err)
	}
	return nil
}

// parallel is how many jobs the build may have at one time, at the most.
func (r *run) parallel() int {
	n := r.job.Jobs
	if r.job.Slots != nil {
		n = r.job.Slots.Ceiling()
	}
	if wish := r.job.Recipe.Ext.Jobs; wish > 0 {
		n = min(n, wish)
	}
	return max(n, 1)
}

// sharing is what a step's commands are told of what they may do in parallel:
// a jobserver, or a number in the environment.
func (r *run) sharing(s step) (*guest.Jobserver, []string) {
	n := r.parallel()
	if !s.parallel || n == 1 {
		return nil, nil
	}
	if r.job.Slots != nil {
		if path := r.job.Slots.Fifo(); path != "" {
			return &guest.Jobserver{Path: path, Jobs: n}, nil
		}
	}
	return nil, []string{fixedJobs(n)}
}

func fixedJobs(n int) string { return "MAKEFLAGS=" + jobserver.Flags(jobserver.None, "", n) }

// watchJobs notices at once when the step that begins does not keep to the
// jobserver that it gets: from then on it counts with what it really runs.
func (r *run) watchJobs(s step, out *output) {
	if own := forcedBy(r.job.Recipe); own != "" {
		r.noteForced(own)
	}
	out.to = &forcedWatch{w: r.log, found: r.noteForced}
	out.form = func(form string) {
		switch form {
		case jobserver.None:
			r.noteForced("has a make that takes no jobserver (GNU make does from 4.2)")
		case guest.JobserverLost:
			r.noteForced("has lost its jobserver")
		}
	}
}

// noteForced keeps the first thing that shows that the build runs as many jobs
// as it likes, and passes it on.
func (r *run) noteForced(what string) {
	if r.forced == "" {
		r.forced = what
		r.job.Slots.Forced(what)
	}
}

// tellForced warns of it, once a step has ended in which it was seen.
func (r *run) tellForced(s step) {
	if what := r.over.get(); what != "" {
		r.noteForced(what)
	}
	if r.forced != "" && !r.told {
		r.told = true
		r.warn("in %s the build %s, and so does not keep to its share of the machine's jobs", s.name, r.forced)
	}
}

// over is what somebody else has seen of a build's jobs.
type over struct {
	mu   sync.Mutex
	what string
}

func (o *over) set(what string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.what == "" {
		o.what = what
	}
}

func (o *over) get() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.what
}

// flagRE finds -j in the value of MAKEFLAGS, which may begin with letters that
// have no dash.
var flagRE = regexp.MustCompile(`(?:^| )(?:-[a-ik-zA-Z]*j|[a-ik-zA-Z]*j|--jobs)[ =]?([0-9]*)(?: |$)`)

// forcedBy says whether a recipe's own MAKEFLAGS ask for more than one job,
// whatever the farm grants.
func forcedBy(rec *recipe.Recipe) string {
	for _, e := range rec.Env {
		if e.Key != "MAKEFLAGS" || strings.Contains(e.Value, "--jobserver-auth=") {
			continue
		}
		if m := flagRE.FindStringSubmatch(e.Value); m != nil && m[1] != "1" {
			return "has MAKEFLAGS of the recipe's own, which ask for " + jobsIn(m[1])
		}
	}
	return ""
}

func jobsIn(digits string) string {
	n, err := strconv.Atoi(digits)
	switch {
	case digits == "", digits == "N", n == 0, err != nil:
		return "any number of jobs"
	default:
		return fmt.Sprintf("%d jobs", n)
	}
}

// forcedRE is what GNU make prints when a -j of its own command line or of the
// makefile takes the place of the jobserver that it was given; N is what
// versions before 4.2 print.
var (
	forcedRE   = regexp.MustCompile(`warning: -j([0-9]{1,9}|N) forced in (submake|makefile): `)
	forcedMark = []byte("forced in ")
)

// forcedWatch looks for that, for the first time, in what a step prints, on its way into the log.
type forcedWatch struct {
	w     io.Writer
	found func(what string) // is called once
	tail  []byte            // the end of what went by, in which the words may have begun
	over  bool
}

func (f *forcedWatch) Write(b []byte) (int, error) {
	if !f.over {
		f.look(b)
	}
	return f.w.Write(b)
}

func (f *forcedWatch) look(b []byte) {
	const most = 64 // more than the words have
	// The seam first, then what is whole in b.
	if len(f.tail) > 0 {
		f.find(append(f.tail, b[:min(len(b), most)]...))
	}
	f.find(b)
	if len(b) < most {
		b = append(f.tail, b...)
	}
	f.tail = append(f.tail[:0:0], b[max(0, len(b)-most):]...)
}

func (f *forcedWatch) find(b []byte) {
	for !f.over {
		i := bytes.Index(b, forcedMark)
		if i < 0 {
			return
		}
		from := max(0, i-len("warning: -j123456789 "))
		to := min(len(b), i+len("forced in makefile: "))
		if m := forcedRE.FindSubmatch(b[from:to]); m != nil && string(m[1]) != "1" {
			where := "on make's command line"
			if string(m[2]) == "makefile" {
				where = "in its makefile"
			}
			f.over = true
			f.found(fmt.Sprintf("forces %s %s", jobsIn(string(m[1])), where))
		}
		b = b[i+len(forcedMark):]
	}
}
