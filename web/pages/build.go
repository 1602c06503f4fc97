package pages

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/usage"
)

// maxQuery is how many bytes are looked for in a log.
const maxQuery = 200

// readers is how many logs are read through at one time.
const readers = 4

func (s *Site) buildRoutes() []route {
	return []route{
		{"GET /builds/{number}", s.page(fresh, s.build, "line", "from", "q", "tail")},
		{"GET /builds/{number}/live", http.HandlerFunc(s.live)},
		{"GET /builds/{number}/log", http.HandlerFunc(s.rawLog)},
		{"GET /builds", http.HandlerFunc(s.anyBuild)},
	}
}

// buildView is a build's page.
type buildView struct {
	buildParts
	Log    *excerpt // nil: there is none
	NoLog  string   // why
	Found  *found   // a search's result in its stead
	Query  string
	Follow bool // what comes is added to what is shown
}

// buildParts is what changes while a build runs.
type buildParts struct {
	quarry.Build
	Expected, Took time.Duration
	Known          bool // Expected is no guess
	Live           *usage.Live
	Slots          *control.JobsBuild // what it has of the machine's; nil: nothing, or nobody knows
	Curves         []curve
	Steps          []stepView
	Whole          time.Duration // of all steps
	Recorded       *results.Record
	Failure        *quarry.Failure
	Since          *control.Since
	Reproduce      string
	Note           string // why something of it is not there
}

// stepView is a step as it went, or goes.
type stepView struct {
	quarry.Step
	Began   time.Time // of the one that runs
	Running bool
	X, W    float64 // in the bar, which is 1000 wide
	Failed  bool
}

// Remaining is what is left of the expected time; negative when it is over.
func (b buildParts) Remaining() time.Duration { return b.Expected - b.Took }

// Over is by how much it takes longer than expected.
func (b buildParts) Over() time.Duration { return max(0, b.Took-b.Expected) }

// Verdict says in one line how the build stands.
func (b buildParts) Verdict() string { return control.Verdict(b.Build, false) }

// number reads the number of a build in a path.
func buildNumber(r *http.Request) (int64, error) {
	word := r.PathValue("number")
	n, err := strconv.ParseInt(word, 10, 64)
	if err != nil || n <= 0 || strconv.FormatInt(n, 10) != word {
		return 0, notFound("there is no build %.40q: builds have numbers", word)
	}
	return n, nil
}

// lookUp finds a build that the queue keeps, or that was recorded.
func (s *Site) lookUp(ctx context.Context, number int64) (quarry.Build, error) {
	b, err := s.Queue.Get(number)
	if errors.Is(err, queue.ErrUnknown) {
		if s.Past != nil {
			if past, ok := s.Past(ctx, number); ok {
				return past, nil
			}
		}
		return b, notFound("build %d is not kept: the records say what was built before", number)
	}
	return b, err
}

func (s *Site) build(ctx context.Context, r *http.Request) (*page, error) {
	number, err := buildNumber(r)
	if err != nil {
		return nil, err
	}
	b, err := s.lookUp(ctx, number)
	if err != nil {
		return nil, err
	}
	v := &buildView{buildParts: s.partsOf(ctx, b)}
	query := r.URL.Query()
	if v.Query = query.Get("q"); len(v.Query) > maxQuery {
		return nil, badRequest("the text to look for has %d bytes: %d is the most", len(v.Query), maxQuery)
	}
	var first int64
	for _, key := range []string{"line", "from"} {
		if word := query.Get(key); word != "" {
			n, err := strconv.ParseInt(word, 10, 64)
			if err != nil || n < 1 {
				return nil, badRequest("%.40q is no line: they are counted from 1", word)
			}
			if first = n; key == "line" {
				first = pageOf(n)
			}
		}
	}
	if first == 0 && query.Get("tail") == "" && v.Failure != nil && v.Failure.Line > 0 {
		first = pageOf(v.Failure.Line)
	}
	if err := s.readLog(ctx, v, first); err != nil {
		return nil, err
	}
	p := &page{Title: b.Package + " " + b.Version + " " + b.Arch + " #" + strconv.FormatInt(number, 10), Template: "build", Data: v}
	if !b.State.Ended() {
		p.Live = buildURL(number) + "/live"
		if v.Log != nil && v.Found == nil {
			p.Live += "?from=" + strconv.FormatInt(v.Log.Last+1, 10)
		} else if v.Found == nil {
			p.Live += "?from=1"
		}
		// What comes is only added to the end of what there is.
		if v.Follow = v.Found == nil && (v.Log == nil || v.Log.Last == v.Log.Lines); !v.Follow {
			p.Live = buildURL(number) + "/live"
		}
	}
	return p, nil
}

// pageOf is where the page of a log begins that shows a line with what comes
// before it.
func pageOf(line int64) int64 {
	const step = 100
	return max(1, (line-1)/step*step+1-2*step)
}

// readLog reads what a page shows of a log: from a line on, or for 0 its end.
func (s *Site) readLog(ctx context.Context, v *buildView, first int64) error {
	if err := s.takeReader(ctx); err != nil {
		return err
	}
	defer s.giveReader()
	r, err := s.Logs.Open(v.Number)
	if errors.Is(err, fs.ErrNotExist) {
		switch v.State {
		case quarry.Waiting, quarry.Queued:
			v.NoLog = "The build has not begun, so it has no log yet."
		case quarry.Running, quarry.Recording:
			v.NoLog = "Nothing has been written yet."
		default:
			v.NoLog = "The build never began, or its log was old and is gone."
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer r.Close()
	switch {
	case v.Query != "":
		v.Found, err = search(ctx, r, v.Number, v.Query)
	case first > 0:
		if v.Log, err = readFrom(ctx, r, first); err == nil && v.Log.First == 0 && v.Log.Lines > 0 {
			err = notFound("log of build %d has %d lines, and no line %d", v.Number, v.Log.Lines, first)
		}
	default:
		v.Log, err = readTail(ctx, r)
	}
	return err
}

// partsOf gathers what is known of a build.
func (s *Site) partsOf(ctx context.Context, b quarry.Build) buildParts {
	v := buildParts{Build: b, Expected: s.Queue.ExpectedOf(b), Known: s.Queue.Known(b.Package)}
	running := b.State == quarry.Running || b.State == quarry.Recording
	switch {
	case b.State.Ended() && b.Attempt > 0 && !b.Started.IsZero():
		v.Took = b.Ended.Sub(b.Started)
	case running:
		v.Took = time.Since(b.Started)
		v.Slots = slotsOf(s.slots(), b)
	}
	var attempt *usage.Attempt
	if s.Usage != nil && b.Attempt > 0 {
		if list, err := s.Usage.Read(b.Number); err == nil && len(list) > 0 {
			attempt = &list[len(list)-1]
		}
		if running {
			for _, l := range s.Usage.Live() {
				if l.Build == b.Number {
					v.Live = &l
				}
			}
		}
	}
	v.Curves = curves(attempt, running)
	if b.State.Ended() {
		s.explain(ctx, &v)
	}
	v.steps(attempt)
	return v
}

// explain adds what was recorded of a build that has ended, and why it failed.
func (s *Site) explain(ctx context.Context, v *buildParts) {
	if s.Record != nil {
		rec, err := s.Record(ctx, v.Build)
		if err == nil {
			v.Recorded = rec
		} else if ctx.Err() == nil {
			v.Note = err.Error()
		}
	}
	if s.Why == nil || v.State != quarry.Failed {
		return
	}
	rep, err := s.Why.Why(ctx, v.Build)
	if err != nil {
		return // its record says what it can
	}
	v.Failure, v.Since = rep.Failure, rep.Since
	v.Reproduce = rep.Reproduce
	if v.Failure != nil {
		v.Reproduce = cmp.Or(v.Reproduce, v.Failure.Reproduce)
	}
}

// steps takes the steps from the record or, where there is none, from what was
// sampled.
func (v *buildParts) steps(a *usage.Attempt) {
	switch {
	case v.Recorded != nil && len(v.Recorded.Steps) > 0:
		for _, st := range v.Recorded.Steps {
			d := func(f float64) time.Duration { return time.Duration(f * float64(time.Second)) }
			v.Steps = append(v.Steps, stepView{Step: quarry.Step{Name: st.Name, Status: st.Status, Wall: d(st.Wall),
				User: d(st.User), Sys: d(st.Sys), RSS: st.RSS, Killed: st.Killed}, Failed: st.Status != 0 || st.Killed != ""})
		}
		if f := v.Recorded.Failure; f != nil {
			if i := slices.IndexFunc(v.Steps, func(s stepView) bool { return s.Name == f.Step }); i >= 0 {
				v.Steps[i].Failed = true
			} else {
				v.Steps = append(v.Steps, stepView{Step: quarry.Step{Name: f.Step, Status: f.Status}, Failed: true})
			}
		}
	case a != nil:
		began := a.Began
		for i := range a.Samples {
			smp := &a.Samples[i]
			if n := len(v.Steps); n == 0 || v.Steps[n-1].Name != smp.Step {
				if i > 0 {
					began = a.Samples[i-1].At
				}
				v.Steps = append(v.Steps, stepView{Step: quarry.Step{Name: smp.Step}, Began: began})
			}
			last := &v.Steps[len(v.Steps)-1]
			last.Wall = smp.At.Sub(last.Began)
		}
	}
	if n := len(v.Steps); n > 0 && (v.State == quarry.Running || v.State == quarry.Recording) {
		if v.Live != nil && v.Live.Now.Step != v.Steps[n-1].Name {
			v.Steps = append(v.Steps, stepView{Step: quarry.Step{Name: v.Live.Now.Step}, Began: v.Live.StepBegan})
			n++
		}
		last := &v.Steps[n-1]
		last.Running = v.State == quarry.Running
		last.Wall = max(last.Wall, time.Since(last.Began))
	}
	for _, st := range v.Steps {
		v.Whole += st.Wall
	}
	x := 0.0
	for i := range v.Steps {
		if v.Whole > 0 {
			v.Steps[i].X, v.Steps[i].W = x, float64(v.Steps[i].Wall)/float64(v.Whole)*1000
			x += v.Steps[i].W
		}
	}
}

// partNames are the parts of a build's page that change while it runs.
var partNames = []string{"head", "why", "steps", "facts"}

// buildParts makes the parts anew.
func (s *Site) buildParts(ctx context.Context, b quarry.Build) ([]part, error) {
	return s.makeParts(&page{Template: "build", Data: &buildView{buildParts: s.partsOf(ctx, b)}}, partNames)
}

// makeParts makes parts of a page, each a template of its own whose element has
// the id part-NAME.
func (s *Site) makeParts(p *page, names []string) ([]part, error) {
	var parts []part
	for _, name := range names {
		html, err := s.renderPart(p, "part-"+name)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part{id: name, html: html})
	}
	return parts, nil
}

// live is the stream of a build's page: the parts that change, and the log from a
// line on.
func (s *Site) live(w http.ResponseWriter, r *http.Request) {
	number, err := buildNumber(r)
	if err == nil {
		_, err = s.Queue.Get(number)
	}
	if err != nil {
		s.fail(w, r, err)
		return
	}
	var from int64
	if word := r.URL.Query().Get("from"); word != "" {
		if from, err = strconv.ParseInt(word, 10, 64); err != nil || from < 1 {
			s.fail(w, r, badRequest("%.40q is no line: they are counted from 1", word))
			return
		}
	}
	h, leave := s.hubs.join(buildURL(number), func(ctx context.Context, h *hub) { s.watchBuild(ctx, number, h) })
	defer leave()
	stream(w, r, h, from)
}

func (s *Site) anyBuild(w http.ResponseWriter, r *http.Request) {
	word := strings.TrimPrefix(strings.TrimSpace(r.URL.Query().Get("number")), "#")
	if n, err := strconv.ParseInt(word, 10, 64); err == nil && n > 0 {
		http.Redirect(w, r, buildURL(n), http.StatusSeeOther)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}
