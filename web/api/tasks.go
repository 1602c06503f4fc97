package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/bundle"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/web"
)

// Branch is where a task goes, as JSON.
type Branch struct {
	Branch  string `json:"branch"`            // channel, e.g. testing
	Group   string `json:"group,omitempty"`   // to land with
	Confirm bool   `json:"confirm,omitempty"` // push it however much it causes
}

func (a *API) taskRoutes() []route {
	id := param{"path", "id", "the task", map[string]any{"type": "string", "pattern": "^[a-z2-7]{13}$"}, true}
	one := []answer{{200, "the task", jsonOf[Task](), nil}}
	return []route{
		{method: "GET", path: "/task", id: "listTasks", tag: "tasks", short: "List the tasks, newest first",
			answers: []answer{{200, "the tasks", jsonOf[[]Task](), []string{"ETag"}}}, handle: a.listTasks},
		{method: "POST", path: "/task", id: "createTask", tag: "tasks", need: control.Push, short: "Make a task",
			long:    "Who accepts text/plain alone gets the id and nothing else.",
			answers: []answer{{201, "the task", map[string]any{"application/json": schemaOf[Task](), "text/plain": text}, []string{"Location"}}}, errors: []int{401, 403, 429}, handle: a.createTask},
		{method: "PUT", path: "/task/{id}/build_bundle", id: "putBundle", tag: "tasks", need: control.Push, short: "Upload the build bundle: a tar of a package's repository",
			long:   "A tar, plain or with gzip or zstd, with package.json at its top or in its only\nfolder. It replaces one that was sent before.",
			params: []param{id}, body: &body{types: map[string]any{"application/octet-stream": nil, "application/x-tar": nil, "application/gzip": nil, "application/zstd": nil}, required: true},
			answers: one, errors: []int{400, 401, 403, 404, 409, 413, 507}, handle: a.putBundle},
		{method: "PUT", path: "/task/{id}/branch", id: "putBranch", tag: "tasks", need: control.Push, short: "Say on which channel it is to be built",
			params: []param{id}, body: &body{types: map[string]any{"text/plain": text, "application/json": schemaOf[Branch]()}, required: true},
			answers: one, errors: []int{400, 401, 403, 404, 409}, handle: a.putBranch},
		{method: "PUT", path: "/task/{id}/build", id: "putBuild", tag: "tasks", need: control.Push, short: "Have it built",
			long:   "Pushes the bundle as its sender, as git push would. Once that is done, asking\nagain changes nothing.",
			params: []param{id}, answers: []answer{{200, "it was done before", jsonOf[Task](), nil}, {202, "its builds are planned", jsonOf[Task](), nil}}, errors: []int{401, 403, 404, 409, 422}, handle: a.putBuild},
		{method: "GET", path: "/task/{id}/status", id: "getTask", tag: "tasks", short: "Show a task and its builds",
			params: []param{id}, answers: []answer{{200, "the task", jsonOf[Task](), []string{"ETag"}}}, errors: []int{404}, handle: a.getTask},
		{method: "GET", path: "/builder/status", id: "getBuilder", tag: "tasks", short: "Show what builds, and what it does",
			answers: []answer{{200, "the builders", jsonOf[[]control.Builder](), []string{"ETag"}}}, handle: a.listBuilders},
	}
}

func (a *API) listTasks(w http.ResponseWriter, r *http.Request) error {
	return send(w, r, http.StatusOK, a.tasks.list())
}

func (a *API) createTask(w http.ResponseWriter, r *http.Request) error {
	t, err := a.tasks.create(web.Who(r.Context()))
	if err != nil {
		return err
	}
	w.Header().Set("Location", "/task/"+t.ID+"/status")
	w.Header().Set("Cache-Control", "no-store")
	if prefers(r, "text/plain", "application/json") {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintln(w, t.ID)
		return nil
	}
	return send(w, r, http.StatusCreated, t)
}

func (a *API) getTask(w http.ResponseWriter, r *http.Request) error {
	t, err := a.tasks.get(r.PathValue("id"))
	if err != nil {
		return err
	}
	return send(w, r, http.StatusOK, t)
}

func (a *API) putBundle(w http.ResponseWriter, r *http.Request) error {
	web.Upload(r)
	t, err := a.tasks.change(web.Who(r.Context()), r.PathValue("id"), func(t *task) error {
		return a.tasks.bundle(t, r.Body)
	})
	if err != nil {
		return err
	}
	return send(w, r, http.StatusOK, t)
}

func (a *API) putBranch(w http.ResponseWriter, r *http.Request) error {
	var b Branch
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind == "application/json" {
		if err := decode(r, &b); err != nil {
			return err
		}
	} else {
		data, err := io.ReadAll(io.LimitReader(r.Body, 1024))
		if err != nil {
			return err
		}
		b.Branch = strings.TrimSpace(string(data))
	}
	if !a.isChannel(b.Branch) {
		return usage("there is no channel %.40q: /api/v1/channels lists those there are", b.Branch)
	}
	if b.Group != "" {
		if err := quarry.CheckGroup(b.Group); err != nil {
			return usage("%w", err)
		}
	}
	t, err := a.tasks.change(web.Who(r.Context()), r.PathValue("id"), func(t *task) error {
		t.Branch, t.Group, t.Confirm = b.Branch, b.Group, b.Confirm
		return nil
	})
	if err != nil {
		return err
	}
	return send(w, r, http.StatusOK, t)
}

func (a *API) putBuild(w http.ResponseWriter, r *http.Request) error {
	who := web.Who(r.Context())
	status := http.StatusOK
	t, err := a.tasks.build(who, r.PathValue("id"), func(t *task) error {
		status = http.StatusAccepted
		f, err := os.Open(a.tasks.tar(t.ID))
		if err != nil {
			return err
		}
		defer f.Close()
		// Who goes away meanwhile has asked for it all the same.
		p, err := a.farm.Bundles.Push(context.WithoutCancel(r.Context()), who, f, bundle.Request{Channel: t.Branch, Group: t.Group, Confirm: t.Confirm})
		t.pushed = p
		return bundleError(err)
	})
	if err != nil {
		return err
	}
	return send(w, r, status, t)
}

// bundleError gives what came of a bundle the status that it asks for.
func bundleError(err error) error {
	var bad *bundle.Bad
	var refused *bundle.Refused
	switch {
	case errors.As(err, &bad):
		return usage("%w", err)
	case errors.As(err, &refused):
		return &statusError{http.StatusUnprocessableEntity, err}
	case errors.Is(err, bundle.ErrForbidden):
		return forbidden("%w", err)
	}
	return err
}
