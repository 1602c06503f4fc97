package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/explain"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/results"
)

// explain fills a failure with what the attempt's log says. from is how many
// lines of the log are of the attempts before.
func (f *stages) explain(b quarry.Build, from int64, failure *quarry.Failure) {
	log, err := f.logs.Open(b.Number)
	if err != nil {
		f.log.With(b.LogAttrs()...).Warn("a failure is not explained: its log cannot be read", "err", err)
		return
	}
	defer log.Close()
	explain.Classify(explain.Input{Failure: failure, Log: log, From: from}).Into(failure)
}

// logLines counts the lines that a build's log has.
func (f *stages) logLines(number int64) (n int64) {
	log, err := f.logs.Open(number)
	if err != nil {
		return 0
	}
	defer log.Close()
	buf := make([]byte, 64<<10)
	for {
		k, err := log.Read(buf)
		for _, c := range buf[:k] {
			if c == '\n' {
				n++
			}
		}
		if err != nil {
			return n
		}
	}
}

// why explains builds out of their records and their packages' repositories.
type why struct{ *stages }

func (w why) Last(_ context.Context, t quarry.Target) (quarry.Build, bool, error) {
	snap, err := w.results.Snapshot(t.Channel)
	if err != nil {
		return quarry.Build{}, false, err
	}
	rec, err := newest(snap, t)
	if errors.Is(err, results.ErrNotFound) {
		return quarry.Build{}, false, nil
	}
	if err != nil {
		return quarry.Build{}, false, err
	}
	return buildOf(rec, snap.Commit()), true, nil
}

// newest reads the newest record of a target, success or failure.
func newest(snap *results.Snapshot, t quarry.Target) (*results.Record, error) {
	bad, err := snap.Failure(t.Package, t.Version, t.Arch)
	if err != nil && !errors.Is(err, results.ErrNotFound) {
		return nil, err
	}
	good, err := snap.Get(t.Package, t.Version, t.Arch)
	switch {
	case err == nil && (bad == nil || good.Build > bad.Build):
		return good, nil
	case bad != nil && (err == nil || errors.Is(err, results.ErrNotFound)):
		return bad, nil
	}
	return nil, err
}

// buildOf is a build as its record tells.
func buildOf(rec *results.Record, commit string) quarry.Build {
	b := quarry.Build{
		Number: rec.Build, Key: rec.Key, Nonce: rec.Nonce, Arch: rec.Arch, Why: rec.Why, Without: rec.Without,
		State: rec.Status, Attempt: max(1, rec.Attempt), Created: rec.Pushed, Started: rec.Started, Ended: rec.Ended, Record: commit,
		Release: quarry.Release{Package: rec.Package, Version: rec.Version, Channel: rec.Channel, Commit: rec.Source, Time: rec.SourceTime,
			Pushed: rec.Pushed, Packager: rec.Packager},
	}
	if b.Created.IsZero() {
		b.Created = rec.Started
	}
	if f := failureOf(rec); f != nil {
		b.Reason = f.Reason()
	}
	return b
}

// failureOf is a record's failure, made safe to show: records may be written by
// others than this farm.
func failureOf(rec *results.Record) *quarry.Failure {
	f := rec.Failure
	if f == nil {
		return nil
	}
	safe := func(s string) string { return human.Safe(s, false) }
	return &quarry.Failure{
		Step: safe(f.Step), Cause: quarry.Cause(safe(string(f.Cause))), Message: safe(f.Message), Status: f.Status, Command: safe(f.Command), Reproduce: safe(f.Reproduce),
		Paths: each(f.Paths, safe), Class: safe(f.Class), Error: safe(f.Error), Line: f.Line, Excerpt: each(f.Excerpt, safe), Hint: safe(f.Hint),
	}
}

func each(list []string, do func(string) string) []string {
	out := slices.Clone(list)
	for i := range out {
		out[i] = do(out[i])
	}
	return out
}

func (w why) Why(ctx context.Context, b quarry.Build) (*control.Report, error) {
	if !b.State.Ended() {
		return nil, fmt.Errorf("%v is %s: there is nothing to explain yet", b, b.State)
	}
	r := &control.Report{Build: b}
	if b.State != quarry.Succeeded && b.State != quarry.Failed {
		// It was called off, or the farm lost it: there is no record, and as a
		// rule a log.
		if lines, err := w.logs.Tail(b.Number, 200); err == nil {
			r.Log = each(lines, func(s string) string { return human.Safe(s, false) })
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return r, nil
	}
	rec, snap, err := w.recordAt(b)
	if err != nil {
		return nil, err
	}
	if rec.Failure == nil {
		return r, nil
	}
	r.Failure = failureOf(rec)
	r.Reproduce = r.Failure.Reproduce
	r.Log = each(rec.Failure.Log, func(s string) string { return human.Safe(s, false) })
	r.Since, err = w.since(ctx, b, rec, snap)
	return r, err
}

// recordAt finds the record of a build, where it was written or still stands.
func (w why) recordAt(b quarry.Build) (*results.Record, *results.Snapshot, error) {
	views := []func() (*results.Snapshot, error){func() (*results.Snapshot, error) { return w.view(b.View()) }}
	if b.Record != "" {
		views = append([]func() (*results.Snapshot, error){func() (*results.Snapshot, error) { return w.results.SnapshotAt(b.Channel, b.Record) }}, views...)
	}
	for _, view := range views {
		snap, err := view()
		if errors.Is(err, results.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		read := snap.Get
		if b.State == quarry.Failed {
			read = snap.Failure
		}
		rec, err := read(b.Package, b.Version, b.Arch)
		switch {
		case errors.Is(err, results.ErrNotFound):
		case err != nil:
			return nil, nil, err
		case rec.Build == b.Number:
			return rec, snap, nil
		}
	}
	return nil, nil, fmt.Errorf("the record of %v is not there any more: %w", b, results.ErrNotFound)
}

// since compares a failure with the last success before it.
func (w why) since(ctx context.Context, b quarry.Build, rec *results.Record, snap *results.Snapshot) (*control.Since, error) {
	if b.Stage != "" { // a group's commit only has the group's records
		whole, err := w.view(b.View())
		if err != nil {
			return nil, err
		}
		snap = whole
	}
	good, err := lastGood(snap, rec)
	if err != nil || good == nil {
		return nil, err
	}
	s := &control.Since{Build: good.Build, Version: good.Version, Commit: good.Source, Record: snap.Commit(), Ended: good.Ended,
		Recipe: []control.FileDiff{}, Dependencies: depsChanged(good.Dependencies, rec.Dependencies), Builder: builderChanged(good.Host, rec.Host)}
	s.Base = changed("base", digest(good.Host.Base), digest(rec.Host.Base))
	if rec.Host.Base != rec.Host.Instance || good.Host.Base != good.Host.Instance {
		s.Instance = changed("instance", digest(good.Host.Instance), digest(rec.Host.Instance))
	}
	if good.Source == rec.Source {
		return s, nil
	}
	if s.Recipe, err = w.recipeChanged(ctx, b, good.Source, rec.Source); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		s.Note = human.Safe(err.Error(), false)
	}
	return s, nil
}

// lastGood finds the last success before a build: of its version, or else of the
// newest version before, or after; nil when there is none.
func lastGood(snap *results.Snapshot, rec *results.Record) (*results.Record, error) {
	get := func(version string) (*results.Record, error) {
		a, ok, err := snap.Available(rec.Package, version, rec.Arch)
		if err != nil || !ok || a.Ref.Build >= rec.Build {
			return nil, err
		}
		return snap.Get(rec.Package, version, a.Arch)
	}
	if good, err := get(rec.Version); err != nil || good != nil {
		return good, err
	}
	versions, err := snap.Versions(rec.Package, rec.Arch)
	if err != nil {
		return nil, err
	}
	slices.Reverse(versions)
	slices.SortStableFunc(versions, func(a, b string) int { // what is older first
		later := func(v string) int {
			if quarry.CompareVersions(v, rec.Version) > 0 {
				return 1
			}
			return 0
		}
		return later(a) - later(b)
	})
	for _, v := range versions {
		if good, err := get(v); err != nil || good != nil {
			return good, err
		}
	}
	return nil, nil
}

func digest(s string) string { return fmt.Sprintf("%.19s", s) }

func changed(what, was, is string) string {
	if was == is {
		return ""
	}
	return human.Safe(fmt.Sprintf("%s %s is now %s", what, orNone(was), orNone(is)), false)
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func depsChanged(was, is []quarry.DepUsed) []string {
	key := func(d quarry.DepUsed) string {
		if d.Arch != "" {
			return d.Package + " for " + d.Arch
		}
		return d.Package
	}
	old := map[string]quarry.DepUsed{}
	for _, d := range was {
		old[key(d)] = d
	}
	out := []string{}
	say := func(format string, args ...any) { out = append(out, human.Safe(fmt.Sprintf(format, args...), false)) }
	for _, d := range is {
		k := key(d)
		o, ok := old[k]
		delete(old, k)
		switch {
		case !ok:
			say("%s %s is new among the dependencies", k, d.Version)
		case o.Version != d.Version:
			say("%s %s is now %s", k, o.Version, d.Version)
		case o.Artifact != d.Artifact:
			say("%s %s was built again: artifact %.12s is now %.12s", k, d.Version, o.Artifact, d.Artifact)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(old)) {
		say("%s %s is no dependency any more", k, old[k].Version)
	}
	return out
}

func builderChanged(was, is results.Host) []string {
	out := []string{}
	add := func(line string) {
		if line != "" {
			out = append(out, line)
		}
	}
	add(changed("builder", was.Builder, is.Builder))
	add(changed("emulation", was.Emulation, is.Emulation))
	if was.Cross != is.Cross {
		add(changed("machine of the cross build", was.Cross, is.Cross))
	}
	add(changed("kernel", was.Kernel, is.Kernel))
	add(changed("runtime", was.Runtime, is.Runtime))
	add(changed("processors", fmt.Sprint(was.CPUs), fmt.Sprint(is.CPUs)))
	add(changed("Quarry", was.Quarry, is.Quarry))
	if was.Memory+was.Disk+was.Processes+was.Step+was.Silence == 0 {
		return out // of before limits were recorded
	}
	add(changed("limit of memory", human.Size(was.Memory), human.Size(is.Memory)))
	add(changed("limit of disk", human.Size(was.Disk), human.Size(is.Disk)))
	add(changed("limit of processes", fmt.Sprint(was.Processes), fmt.Sprint(is.Processes)))
	span := func(seconds int64) string { return human.Duration(time.Duration(seconds) * time.Second) }
	add(changed("limit of a step", span(was.Step), span(is.Step)))
	add(changed("limit of silence", span(was.Silence), span(is.Silence)))
	return out
}

// explainLocal is a scanner of a log that is printed and kept nowhere.
func explainLocal(log io.Writer) (io.Writer, func(*quarry.Failure)) {
	scan := explain.NewScanner()
	return io.MultiWriter(log, scan), func(f *quarry.Failure) {
		found := scan.Finding(f)
		found.Line = 0
		found.Into(f)
	}
}
