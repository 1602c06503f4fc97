package api

import (
	"cmp"
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/bundle"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/durable"
	"github.com/Morphux/quarry/queue"
)

// The states of a task.
const (
	TaskNew       = "new"       // it lacks its bundle, or where it is to go
	TaskReady     = "ready"     // it can be built
	TaskBuilding  = "building"  // it was pushed, and its builds are under way
	TaskSucceeded = "succeeded" // all its builds did
	TaskFailed    = "failed"    // one did not
)

// Task is a package that is handed in over /task.
type Task struct {
	ID      string        `json:"id"`
	State   string        `json:"state"` // new, ready, building, succeeded or failed
	By      string        `json:"by"`    // user who made it
	Created time.Time     `json:"created"`
	Expires time.Time     `json:"expires"` // when it is forgotten
	Bundle  *BundleStatus `json:"bundle,omitempty"`
	Branch  string        `json:"branch,omitempty"` // channel
	Group   string        `json:"group,omitempty"`
	Confirm bool          `json:"confirm,omitempty"`
	Commit  string        `json:"commit,omitempty"` // of the release, once pushed
	Said    []string      `json:"said,omitempty"`   // what was said of the push
	Reason  string        `json:"reason,omitempty"` // why the last try to push it was refused
	Builds  []TaskBuild   `json:"builds"`
}

// BundleStatus is the bundle of a task.
type BundleStatus struct {
	Package string `json:"package"`
	Version string `json:"version"`
	Files   int    `json:"files"`
	Size    int64  `json:"size"` // bytes, as it was sent
}

// TaskBuild is a build of a task.
type TaskBuild struct {
	Number int64        `json:"number"`
	Arch   string       `json:"arch"`
	State  quarry.State `json:"state"`
	Reason string       `json:"reason,omitempty"`
	Step   string       `json:"step,omitempty"`
}

// TaskLimits bound what is kept of tasks. 0 stands for the default.
type TaskLimits struct {
	Each  int           // tasks of one user: 100
	All   int           // tasks: 1000
	Bytes int64         // of bundles that are not pushed: 8 GiB
	Keep  time.Duration // after the last change: 7 days
}

// tasks is a folder with a file ID.json for each task, and its bundle as ID.tar
// until that is pushed.
type tasks struct {
	dir    string
	limits TaskLimits
	farm   *control.Farm
	log    *slog.Logger

	mu       sync.Mutex // guards the following
	by       map[string]*task
	arriving int64 // bytes of bundles that are being sent
}

// task is a task. What of it is in use says who may touch it.
type task struct {
	Task
	busy   bool  // somebody is changing it; guarded by tasks.mu
	bytes  int64 // of the bundle on disk; guarded by tasks.mu
	pushed bundle.Pushed
}

var taskID = regexp.MustCompile(`^[a-z2-7]{13}$`)

// openTasks reads the tasks there are.
func openTasks(dir string, l TaskLimits, farm *control.Farm, log *slog.Logger) (*tasks, error) {
	l.Each, l.All = cmp.Or(l.Each, 100), cmp.Or(l.All, 1000)
	l.Bytes, l.Keep = cmp.Or(l.Bytes, 8<<30), cmp.Or(l.Keep, 7*24*time.Hour)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder of tasks cannot be made: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("folder of tasks cannot be read: %w", err)
	}
	ts := &tasks{dir: dir, limits: l, farm: farm, log: log, by: map[string]*task{}}
	for _, e := range entries {
		id, ext := strings.TrimSuffix(e.Name(), filepath.Ext(e.Name())), filepath.Ext(e.Name())
		switch {
		case ext == ".json" && taskID.MatchString(id):
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			t := &task{}
			if err == nil {
				err = json.Unmarshal(data, &t.Task)
			}
			if err != nil || t.ID != id {
				log.Warn("a task cannot be read, and is forgotten", "task", id, "err", err)
				continue
			}
			if info, err := os.Stat(ts.tar(id)); err == nil {
				t.bytes = info.Size()
			} else if t.Commit == "" {
				t.Bundle = nil // gone, or never whole
			}
			ts.by[id] = t
		case ext == ".json", ext == ".tar" && taskID.MatchString(id):
		default: // what a crash left half written
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.forget(time.Now())
	return ts, nil
}

func (ts *tasks) tar(id string) string  { return filepath.Join(ts.dir, id+".tar") }
func (ts *tasks) file(id string) string { return filepath.Join(ts.dir, id+".json") }

// forget removes tasks whose time is over. mu is held.
func (ts *tasks) forget(now time.Time) {
	for id, t := range ts.by {
		if !t.busy && now.After(t.Expires) {
			delete(ts.by, id)
			_ = os.Remove(ts.tar(id))
			_ = os.Remove(ts.file(id))
		}
	}
}

// save writes a task down. Who calls has it for themselves.
func (ts *tasks) save(t *task) error {
	data, err := json.MarshalIndent(t.Task, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.WriteFile(ts.file(t.ID), append(data, '\n'), 0o600, ".task-*"); err != nil {
		return fmt.Errorf("task cannot be written down: %w", err)
	}
	return nil
}

// create makes a task.
func (ts *tasks) create(who quarry.Identity) (Task, error) {
	random := make([]byte, 8)
	if _, err := rand.Read(random); err != nil {
		return Task{}, err
	}
	now := time.Now().UTC().Truncate(time.Second)
	t := &task{Task: Task{ID: strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random)),
		State: TaskNew, By: who.User, Created: now, Expires: now.Add(ts.limits.Keep), Builds: []TaskBuild{}}}
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.forget(now)
	mine := 0
	for _, o := range ts.by {
		if o.By == who.User {
			mine++
		}
	}
	if mine >= ts.limits.Each || len(ts.by) >= ts.limits.All {
		return Task{}, &statusError{http.StatusTooManyRequests, fmt.Errorf("there are too many tasks (%d of %s's, %d in all): use those there are, or wait until some are forgotten", mine, who.User, len(ts.by))}
	}
	if err := ts.save(t); err != nil {
		return Task{}, err
	}
	ts.by[t.ID] = t
	return t.Task, nil
}

// list gives all tasks, newest first.
func (ts *tasks) list() []Task {
	ts.mu.Lock()
	ts.forget(time.Now())
	out := make([]Task, 0, len(ts.by))
	for _, t := range ts.by {
		out = append(out, t.Task)
	}
	ts.mu.Unlock()
	for i := range out {
		ts.look(&out[i])
	}
	slices.SortFunc(out, func(a, b Task) int { return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID)) })
	return out
}

// get gives a task as it stands.
func (ts *tasks) get(id string) (Task, error) {
	ts.mu.Lock()
	t := ts.by[id]
	if t == nil {
		ts.mu.Unlock()
		return Task{}, notFound("there is no task %.40q: GET /task lists those there are", id)
	}
	out := t.Task
	ts.mu.Unlock()
	ts.look(&out)
	return out, nil
}

// look brings a copy of a task up to date with the queue. What the queue has
// forgotten stays as it was seen last.
func (ts *tasks) look(t *Task) {
	switch {
	case t.Commit != "":
	case t.Bundle != nil && t.Branch != "":
		t.State = TaskReady
		return
	default:
		t.State = TaskNew
		return
	}
	if t.State != TaskBuilding {
		return
	}
	found := ts.farm.Queue.List(queue.Filter{Package: t.Bundle.Package, Version: t.Bundle.Version, Channel: t.Branch, Commit: t.Commit})
	slices.Reverse(found)
	newest := map[string]TaskBuild{} // by arch
	for _, b := range append(slices.Clone(t.Builds), builds(found)...) {
		newest[b.Arch] = b
	}
	t.Builds = make([]TaskBuild, 0, len(newest))
	ended, failed := len(newest) > 0, false
	for _, b := range newest {
		t.Builds = append(t.Builds, b)
		ended = ended && b.State.Ended()
		failed = failed || b.State.Ended() && b.State != quarry.Succeeded
	}
	slices.SortFunc(t.Builds, func(a, b TaskBuild) int { return cmp.Compare(a.Number, b.Number) })
	switch {
	case !ended:
		return
	case failed:
		t.State = TaskFailed
	default:
		t.State = TaskSucceeded
	}
	ts.keep(*t)
}

func builds(list []quarry.Build) (out []TaskBuild) {
	for _, b := range list {
		out = append(out, TaskBuild{b.Number, b.Arch, b.State, b.Reason, b.Step})
	}
	return out
}

// keep writes down how a task has ended, as the queue may forget it.
func (ts *tasks) keep(ended Task) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t := ts.by[ended.ID]; t != nil && !t.busy && t.State == TaskBuilding {
		t.Task = ended
		if err := ts.save(t); err != nil {
			ts.log.Warn("a task cannot be written down", "task", t.ID, "err", err)
		}
	}
}

// own takes a task for its maker, or an admin, to change it. done gives it back.
func (ts *tasks) own(who quarry.Identity, id string) (work *task, done func(), err error) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t := ts.by[id]
	switch {
	case t == nil:
		return nil, nil, notFound("there is no task %.40q: GET /task lists those there are", id)
	case who.Role != quarry.RoleAdmin && (who.User == "" || who.User != t.By):
		return nil, nil, forbidden("task %s is %s's", id, t.By)
	case t.busy:
		return nil, nil, conflict("task %s is being changed by another request: wait for that", id)
	}
	t.busy = true
	work = &task{Task: t.Task, bytes: t.bytes}
	return work, func() {
		ts.mu.Lock()
		defer ts.mu.Unlock()
		t.busy, t.Task, t.bytes = false, work.Task, work.bytes
	}, nil
}

// change changes a task that has not been pushed.
func (ts *tasks) change(who quarry.Identity, id string, f func(*task) error) (Task, error) {
	t, done, err := ts.own(who, id)
	if err != nil {
		return Task{}, err
	}
	defer done()
	if t.Commit != "" {
		return Task{}, conflict("task %s was pushed before: make a new one (POST /task)", id)
	}
	was := t.Task
	if err := f(t); err != nil {
		t.Task = was
		return Task{}, err
	}
	t.Reason = ""
	t.Expires = time.Now().UTC().Truncate(time.Second).Add(ts.limits.Keep)
	ts.look(&t.Task)
	if err := ts.save(t); err != nil {
		return Task{}, err
	}
	return t.Task, nil
}

// bundle keeps a bundle, after a look at it.
func (ts *tasks) bundle(t *task, r io.Reader) error {
	f, err := os.CreateTemp(ts.dir, ".bundle-*")
	if err != nil {
		return fmt.Errorf("bundle cannot be kept: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	in := &arrival{ts: ts, id: t.ID, to: f}
	defer in.end()
	n, err := io.CopyBuffer(in, struct{ io.Reader }{r}, make([]byte, 256<<10))
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	tree, err := ts.farm.Bundles.Check(f)
	if err != nil {
		return bundleError(err)
	}
	if err := errors.Join(f.Sync(), os.Rename(f.Name(), ts.tar(t.ID)), durable.SyncDir(ts.dir)); err != nil {
		return fmt.Errorf("bundle cannot be kept: %w", err)
	}
	t.Bundle, t.bytes = &BundleStatus{tree.Package, tree.Version, len(tree.Files), n}, n
	return nil
}

// arrival is a bundle that is being sent. There has to be room for all of it beside
// those that are kept, and those that arrive at the same time.
type arrival struct {
	ts *tasks
	id string
	to io.Writer
	n  int64 // bytes until now
}

func (a *arrival) Write(p []byte) (int, error) {
	a.ts.mu.Lock()
	room := a.ts.limits.Bytes - a.ts.arriving
	for _, o := range a.ts.by {
		if o.ID != a.id {
			room -= o.bytes
		}
	}
	fits := int64(len(p)) <= room
	if fits {
		a.n += int64(len(p))
		a.ts.arriving += int64(len(p))
	}
	a.ts.mu.Unlock()
	if !fits {
		return 0, &statusError{http.StatusInsufficientStorage, errors.New("there is no room for more bundles: build those that were sent, or try again later")}
	}
	return a.to.Write(p)
}

// end is called when it is kept, or thrown away.
func (a *arrival) end() {
	a.ts.mu.Lock()
	defer a.ts.mu.Unlock()
	a.ts.arriving -= a.n
}

// build has a task pushed. Of one that was pushed before, nothing is done.
func (ts *tasks) build(who quarry.Identity, id string, push func(*task) error) (Task, error) {
	t, done, err := ts.own(who, id)
	if err != nil {
		return Task{}, err
	}
	defer done()
	switch {
	case t.Commit != "":
		out := t.Task
		ts.look(&out)
		return out, nil
	case t.Bundle == nil:
		return Task{}, conflict("task %s has no bundle: PUT /task/%s/build_bundle first", id, id)
	case t.Branch == "":
		return Task{}, conflict("task %s is for no channel yet: PUT /task/%s/branch first", id, id)
	}
	if err := push(t); err != nil {
		t.Reason = err.Error()
		return Task{}, errors.Join(err, ts.save(t))
	}
	p := t.pushed
	t.Commit, t.Said, t.Reason, t.State = p.Commit, p.Said, "", TaskBuilding
	t.Expires = time.Now().UTC().Truncate(time.Second).Add(ts.limits.Keep)
	if err := ts.save(t); err != nil {
		return Task{}, err
	}
	if err := os.Remove(ts.tar(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		ts.log.Warn("a bundle that was pushed cannot be removed", "task", id, "err", err)
	}
	t.bytes = 0
	out := t.Task
	ts.look(&out)
	return out, nil
}
