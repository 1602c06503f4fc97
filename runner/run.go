package runner

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/layers"
	"github.com/Morphux/quarry/recipe"
	"github.com/Morphux/quarry/runner/guest"
)

// Limits bound what one build may take. 0 means as in DefaultLimits. A recipe
// may ask for less, never for more. Memory, processes and disk are the
// workspace's (images.Limits).
type Limits struct {
	Total   time.Duration // all steps together; 0: as the steps allow
	Step    time.Duration // wall time of one step
	Silence time.Duration // time without any output
	Log     int64         // bytes of output, all steps together
}

// DefaultLimits are the limits where nobody says otherwise. Large C++ projects
// link for many minutes without a word; nothing known is silent for an hour.
var DefaultLimits = Limits{Step: 6 * time.Hour, Silence: time.Hour, Log: 256 << 20}

// Job is one build to be made.
type Job struct {
	Build  quarry.Build
	Recipe *recipe.Recipe
	Source fs.FS         // the commit without .git: package.json, srcs/, patches/, scripts/
	Deps   []Dep         // installed into the workspace in this order, before anything else
	Layers *layers.Cache // has dependencies unpacked; nil: they are unpacked into the workspace
	Limits Limits
	Jobs   int   // of make at one time; 0: one
	Slots  Slots // how many that are just now; nil: Jobs, for the whole build

	// Cross has the build made in a workspace of another arch; nil: of its own.
	// Of the dependencies those with an arch run in the workspace, the others are
	// what it is compiled against.
	Cross *Cross

	// Command is a line for the workspace's /bin/sh that builds the package
	// instead of the built-in steps; blank for these.
	Command string

	// Reproduce is a command that shows a failure again, for the record.
	Reproduce string

	Log    io.Writer         // gets what the build prints and lines of the farm's own
	OnStep func(step string) // called when a step begins; may be nil

	patience time.Duration // instead of backstop; for tests
}

// Dep is a dependency to install.
type Dep struct {
	quarry.DepUsed
	Path string // of its artifact on this host
}

// Result is what came of a build that the farm could make.
type Result struct {
	Steps    []quarry.Step   // in the order in which they ran, prepare first
	Failure  *quarry.Failure // nil: it succeeded
	Staged   string          // host folder with what was installed; hostile
	Usage    quarry.Usage
	Warnings []string // one line each
	Scene    *Scene   // where the last step ran
}

// Paths in a workspace that recipes may rely on.
const (
	SourcePath = images.HomePath + "/src"  // the package's repository
	DestPath   = images.HomePath + "/dest" // DESTDIR
	UserPath   = images.HomePath + "/home" // HOME
)

// run is one build under way.
type run struct {
	ws     *images.Workspace
	job    Job
	limits Limits
	log    *logWriter
	guest  *session
	result *Result

	began   time.Time
	dir     string       // working directory of the steps, as the workspace sees it
	logLeft int64        // bytes of output that are left
	before  images.Usage // when the step at hand began
	at      step         // the last that began
	ran     int          // which of its commands was the last to run
	over    over         // what was seen of its jobs from outside
	forced  string       // what shows that it does not keep to its jobs; for the first time
	told    bool         // the maintainer was told
}

// Run makes a build in a fresh workspace, whose guest it takes over. The
// workspace stays for whoever made it to read Staged and to close; nothing of
// the build runs in it any more.
//
// An error is the farm's fault, and the build may be tried again in another
// workspace. When ctx ends the error wraps ctx.Err().
func Run(ctx context.Context, ws *images.Workspace, job Job) (*Result, error) {
	if job.OnStep == nil {
		job.OnStep = func(string) {}
	}
	if job.Log == nil {
		job.Log = io.Discard
	}
	r := &run{
		ws: ws, job: job, limits: job.Limits.bounded(job.Recipe.Ext),
		log:    &logWriter{w: job.Log, fresh: true},
		result: &Result{Staged: filepath.Join(ws.Dir, "dest")},
		began:  time.Now(),
	}
	r.logLeft = r.limits.Log
	session, err := newSession(ctx, ws, r.log)
	if err != nil {
		return nil, err
	}
	defer session.close()
	r.guest = session
	if err := r.openSlots(); err != nil {
		session.kill()
		return nil, err
	}

	err = r.all(ctx)
	if e := r.log.err; err == nil && e != nil {
		err = fmt.Errorf("the build's log cannot be written: %w", e)
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("%v was stopped: %w", job.Build, ctx.Err())
	}
	if err != nil {
		// Whatever still runs is of no use to anybody. The caller's Close would
		// end it too; this is sooner.
		session.kill()
		return nil, err
	}
	if job.Slots != nil {
		job.Slots.Step(false)
	}
	r.used()
	r.result.Scene = r.scene()
	return r.result, nil
}

// used says in the result what the whole build used.
func (r *run) used() {
	r.ws.MeasureDisk()
	u, err := r.ws.Usage()
	if err != nil {
		return // this machine cannot tell
	}
	to := &r.result.Usage
	to.PeakMemory, to.PeakAnon = u.PeakMemory, u.Anonymous
	to.User, to.Sys = u.User, u.Sys
	to.Read, to.Written = u.Read, u.Written
	to.PeakProcs, to.PeakDisk = u.PeakProcs, u.Disk
}

// bounded is what the farm grants of what the recipe asks for.
func (l Limits) bounded(wish recipe.Extension) Limits {
	l.Step = pick(l.Step, DefaultLimits.Step)
	l.Silence = pick(l.Silence, DefaultLimits.Silence)
	l.Log = pick(l.Log, DefaultLimits.Log)
	l.Step = lower(l.Step, wish.Step)
	l.Silence = lower(l.Silence, wish.Silence)
	l.Log = lower(l.Log, wish.Log)
	l.Total = lower(l.Total, wish.Total)
	return l
}

func pick[T ~int64](a, b T) T {
	if a > 0 {
		return a
	}
	return b
}

// lower is the lower of two limits of which 0 is none.
func lower[T ~int64](farm, wish T) T {
	if wish > 0 && (farm == 0 || wish < farm) {
		return wish
	}
	return farm
}

// all is the build: what the farm does first, then the recipe's steps until
// one fails.
func (r *run) all(ctx context.Context) error {
	r.before, _ = r.ws.Usage() // where nothing is known nothing changes
	if err := r.prepare(ctx); err != nil || r.result.Failure != nil {
		return err
	}
	var watch *escapes
	for _, s := range r.plan() {
		if s.staged && watch == nil {
			var err error
			if watch, err = watchEscapes(ctx, r.ws.Upper); err != nil {
				return r.unreadable(s.name, err)
			}
		}
		if err := r.step(ctx, s); err != nil {
			return err
		}
		if s.staged && r.result.Failure == nil {
			if err := r.escaped(ctx, s, watch); err != nil {
				return err
			}
		}
		if r.result.Failure != nil {
			return nil
		}
	}
	// The folder lies where the build could put something else in its place.
	if st, err := os.Lstat(r.result.Staged); err != nil || !st.IsDir() {
		r.fail(&quarry.Failure{Step: quarry.StepInstall, Cause: quarry.CauseOutput,
			Message: "the staging directory ($DESTDIR) is gone, or is not a folder any more"})
	}
	return nil
}

// prepare brings sources and dependencies in.
func (r *run) prepare(ctx context.Context) error {
	r.job.OnStep(quarry.StepPrepare)
	r.at = step{name: quarry.StepPrepare}
	began := time.Now()
	defer func() {
		r.result.Steps = append(r.result.Steps, quarry.Step{Name: quarry.StepPrepare, Wall: time.Since(began)})
	}()
	total, err := writeSources(ctx, r.job.Source, r.ws.Dir, owner{r.ws.UID, r.ws.GID}, r.sourceTime(), r.ws.Limits.Disk)
	if failed := r.refused(quarry.StepPrepare, err); failed || err != nil {
		if failed {
			err = nil
		}
		return err
	}
	r.result.Usage.SourceSize = total.bytes
	r.log.farm("%s: %d files with %s, of %s", quarry.StepPrepare, total.files, human.Size(total.bytes), r.sourceTime().UTC().Format(time.RFC3339))

	system, sysroot := r.job.crossDeps()
	rest, err := r.layIn(ctx, system)
	if err != nil {
		return err
	}
	for _, d := range rest {
		if err := r.install(ctx, d); err != nil {
			return err
		}
	}
	if len(system) > 0 {
		if err := r.linkerCache(ctx); err != nil {
			return err
		}
	}
	if r.job.Cross != nil {
		// Tools may have come with the dependencies.
		if err := r.toolchain(ctx); err != nil {
			return err
		}
	}
	for _, d := range sysroot {
		if err := r.installInto(ctx, d, SysrootPath); err != nil {
			return err
		}
	}
	reply, err := r.guest.ask(ctx, guest.Request{Op: guest.OpPlace, Place: &guest.Place{
		Root: SourcePath, Dir: r.job.Recipe.Ext.Directory, Time: r.sourceTime(),
	}}, nil, r.limits.Step, nil)
	if err != nil {
		return r.lost(ctx, quarry.StepPrepare, err)
	}
	switch {
	case reply.Error != "":
		return fmt.Errorf("sources cannot be put in place: %s", reply.Error)
	case reply.Problem != "":
		r.fail(&quarry.Failure{Step: quarry.StepPrepare, Cause: quarry.CauseRecipe, Message: reply.Problem})
	}
	r.dir = reply.Dir
	return nil
}

// sourceTime is what all files of the sources get as their time, and
// SOURCE_DATE_EPOCH. Tools take only times from 1970 on.
func (r *run) sourceTime() time.Time {
	if t := r.job.Build.Time; t.Unix() > 0 {
		return time.Unix(t.Unix(), 0)
	}
	return time.Unix(0, 0)
}

// fail ends the build as the recipe's failure.
func (r *run) fail(f *quarry.Failure) {
	f.Reproduce = r.job.Reproduce
	r.result.Failure = f
	r.log.farm("failed: %s", f.Message)
	for _, p := range f.Paths {
		r.log.farm("%s: %s", f.Step, p)
	}
}

// warn keeps something that the maintainer should know.
func (r *run) warn(format string, args ...any) {
	w := fmt.Sprintf(format, args...)
	r.result.Warnings = append(r.result.Warnings, w)
	r.log.farm("warning: %s", w)
}

// logWriter writes the build's log. The farm's own lines are marked and always
// begin a line; the build's bytes pass through as they are.
type logWriter struct {
	w     io.Writer
	fresh bool  // at the beginning of a line
	err   error // the first that writing gave
}

func (l *logWriter) Write(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, l.err
	}
	l.fresh = b[len(b)-1] == '\n'
	if l.err == nil {
		_, l.err = l.w.Write(b)
	}
	return len(b), l.err
}

func (l *logWriter) farm(format string, args ...any) {
	line := "==> " + fmt.Sprintf(format, args...) + "\n"
	if !l.fresh {
		line = "\n" + line
	}
	_, _ = io.WriteString(l, line) // kept in l.err
}
