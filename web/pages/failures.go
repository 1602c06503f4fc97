package pages

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
)

const (
	groupsShown   = 50 // groups of failures on a page
	failuresShown = 12 // of one group
	// failureIsNew is for how long a failure is marked as new.
	failureIsNew = 24 * time.Hour
)

// failuresData is what the template failures.html shows.
type failuresData struct {
	Channel  string
	Channels []choice
	Classes  []choice
	Class    string
	Groups   []failureGroup
	Failures int    // of all groups, those that are not shown too
	Packages int    // that have failures
	Known    int    // groups that match
	All      string // address of all groups; "" when all are shown
}

type failureGroup struct {
	Class, Error string
	Count        int
	Packages     int
	New          int // failures of the last day
	Since        time.Time
	Failures     []failureShown
	More         string // address of the rest; "" when all are shown
	MoreCount    int
}

type failureShown struct {
	quarry.Target
	Build int64
	Ended time.Time
	New   bool
	Log   string // address of the line that tells
	Step  string
}

func (s *Site) failures(ctx context.Context, r *http.Request) (*page, error) {
	p, err := params(r, "channel", "class", "all")
	if err != nil {
		return nil, err
	}
	v, err := s.view(ctx, p["channel"])
	if err != nil {
		return nil, err
	}
	d := &failuresData{Channel: v.Channel(), Channels: choices(v.Channel(), "", s.channels()...), Class: p["class"], Classes: choices(p["class"], "any", classes(v)...)}
	shown := groupsShown
	if p["all"] != "" {
		shown = 20 * groupsShown
	}
	now := time.Now()
	names := map[string]bool{}
	for _, g := range v.FailureGroups() {
		if d.Class != "" && g.Class != d.Class {
			continue
		}
		d.Known++
		d.Failures += len(g.Entries)
		for _, e := range g.Entries {
			names[e.Package] = true
		}
		if len(d.Groups) < shown {
			d.Groups = append(d.Groups, groupShown(v, g, now))
		}
	}
	d.Packages = len(names)
	if len(d.Groups) < d.Known && p["all"] == "" {
		d.All = with("/failures", p, "all", "1")
	}
	return &page{Title: "Failures on " + v.Channel(), Section: "failures", Template: "failures", Data: d, Feed: with("/feed.atom", map[string]string{"channel": p["channel"], "status": "failed"})}, nil
}

func groupShown(v *results.View, g results.FailureGroup, now time.Time) failureGroup {
	out := failureGroup{Class: g.Class, Error: g.Error, Count: len(g.Entries), Since: g.Since}
	var names []string
	for _, e := range g.Entries {
		names = append(names, e.Package)
		isNew := now.Sub(e.Ended()) < failureIsNew
		if isNew {
			out.New++
		}
		if len(out.Failures) < failuresShown {
			out.Failures = append(out.Failures, failureShown{e.Target(v.Channel()), e.Build, e.Ended(), isNew, logURL(e.Build, e.Fault.Line), e.Fault.Step})
		}
	}
	slices.Sort(names)
	out.Packages = len(slices.Compact(names))
	if out.MoreCount = out.Count - len(out.Failures); out.MoreCount > 0 {
		out.More = with("/results", map[string]string{"channel": v.Channel(), "status": "failed", "class": g.Class})
	}
	return out
}

// logURL is the address of a line of a build's log.
func logURL(build, line int64) string {
	if line <= 0 {
		return buildURL(build)
	}
	n := strconv.FormatInt(line, 10)
	return buildURL(build) + "?line=" + n + "#L" + n // the first is for a browser without scripts
}
