package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
)

// groups keeps submitted groups for the queue, in the results repository.
type groups struct{ *stages }

// List reads the submissions. One that cannot be read stops no other: its members
// are held.
func (f groups) List(context.Context) ([]quarry.Submission, error) {
	list, err := f.results.Groups()
	if list == nil {
		return nil, err
	}
	if err != nil {
		f.log.Warn("not all submitted groups can be read", "err", err)
	}
	return list, nil
}

func (f groups) Submit(ctx context.Context, s quarry.Submission) error {
	err := f.results.Submit(ctx, s)
	if err == nil {
		f.events.Group(events.GroupSubmitted, s, "")
	}
	return err
}

func (f groups) Drop(ctx context.Context, channel, group string) error {
	err := f.results.DropGroup(ctx, channel, group)
	if err == nil {
		f.events.Group(events.GroupDropped, quarry.Submission{Group: group, Channel: channel}, "")
	}
	return err
}

func (f groups) Land(ctx context.Context, s quarry.Submission) (string, error) {
	commit, err := f.results.Land(ctx, s.Channel, s.Group, s.ID)
	if errors.As(err, new(*results.BackwardsError)) {
		return "", fmt.Errorf("%w: %w", queue.ErrBackwards, err)
	}
	if err != nil {
		return "", err
	}
	f.events.Group(events.GroupLanded, s, commit)
	snap, err := f.results.Snapshot(s.Channel)
	if err != nil {
		f.log.Warn("artifacts of a group do not appear in the output folder", "group", s.Group, "err", err)
		return commit, nil
	}
	for _, m := range s.Members {
		for _, arch := range m.Archs {
			t := quarry.Target{Channel: s.Channel, Package: m.Package, Version: m.Version, Arch: arch}
			a, ok, err := snap.Available(m.Package, m.Version, arch)
			if err == nil && ok && a.Artifact != "" {
				err = publish(f.cfg, f.pipeline.Artifacts, t, a.Artifact)
			}
			if err != nil {
				f.log.Warn("a finished artifact does not appear in the output folder", "target", t, "err", err)
			}
		}
	}
	return commit, nil
}

// Landed reports whether a release stands in its channel. A release of a group
// never gets there but with it.
func (f groups) Landed(_ context.Context, r quarry.Release) (bool, error) {
	snap, err := f.results.Snapshot(r.Channel)
	if err != nil {
		return false, err
	}
	for _, arch := range r.Archs {
		newest, ok, err := snap.Lookup(r.Package, r.Version, arch)
		if err != nil {
			return false, err
		}
		if !ok || newest.Source != r.Commit {
			continue // failures of the group are there as well
		}
		a, ok, err := snap.Available(r.Package, r.Version, arch)
		if err != nil {
			return false, err
		}
		if ok && a.Ref.Source == r.Commit {
			return true, nil
		}
	}
	return false, nil
}

// view opens the records that a release is built against.
func (f *stages) view(view string) (*results.Snapshot, error) {
	channel, group := quarry.ParseView(view)
	if group == "" {
		return f.results.Snapshot(channel)
	}
	s, err := f.results.Staged(channel, group)
	if errors.Is(err, results.ErrNoGroup) { // it has just landed, or was taken back
		return f.results.Snapshot(channel)
	}
	return s, err
}

// Pending reports whether the group whose view this is has yet to build a release
// of a package.
func (r records) Pending(pkg, arch string) (bool, error) {
	return r.Snapshot.Pending(pkg, machine(arch))
}
