package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/compare"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/keys"
	"github.com/Morphux/quarry/pipeline"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/trust"
)

// verifier builds again what records say, beside the queue: with workers that it
// lends, in workspaces like any build's. What is made lies in a folder of its own
// and goes with the call; after a crash the next start removes it.
type verifier struct {
	*stages
	queue  *queue.Queue
	pipe   *pipeline.Pipeline // without what belongs to builds: usage, kept workspaces
	sign   *trust.Signer      // nil: votes are not recorded
	people *keys.Store
	dir    string // of what is being made
	count  atomic.Int64
}

func newVerifier(st *stages, q *queue.Queue, sign *trust.Signer, people *keys.Store) (*verifier, error) {
	dir := filepath.Join(st.cfg.State, "verify")
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("what verifications have left cannot be removed: %w", err)
	}
	p := st.pipeline
	return &verifier{stages: st, queue: q, sign: sign, people: people, dir: dir,
		pipe: &pipeline.Pipeline{Images: p.Images, Artifacts: p.Artifacts, Settings: p.Settings, Libraries: p.Libraries, Layers: p.Layers}}, nil
}

func (v *verifier) Archs(channel, pkg, version string) ([]string, error) {
	s, err := v.results.Snapshot(channel)
	if err != nil {
		return nil, err
	}
	return s.Archs(pkg, version)
}

// inputs are all that a recorded build was made from, and its record.
type inputs struct {
	record *results.Record
	blob   string // the record's
	input  pipeline.Input
	close  func()
}

// inputs finds what a record says that its build was made from. What is there no
// more is an error that names it.
func (v *verifier) inputs(ctx context.Context, t quarry.Target) (*inputs, error) {
	snap, err := v.results.Snapshot(t.Channel)
	if err != nil {
		return nil, err
	}
	rec, err := snap.Get(t.Package, t.Version, t.Arch)
	if err != nil {
		return nil, err
	}
	blob, err := snap.Blob(results.Spread(t.Package) + "/" + t.Version + "/" + t.Arch + ".toml")
	if err != nil {
		return nil, err
	}
	b := buildOf(rec, snap.Commit())
	b.Channel = t.Channel // whose instance it is built in
	if rec.Channel != t.Channel && v.cfg.Channels[rec.Channel] != nil {
		b.Channel = rec.Channel // it was promoted
	}
	b.Why, b.Attempt = "", 1
	if rec.Host.Cross != "" {
		b.Traits = map[string]quarry.Traits{b.Arch: {Cross: rec.Host.Cross}}
	}
	if b.Repo, err = v.repos.Path(b.Package); err != nil {
		return nil, fmt.Errorf("%s cannot be built again: %w", t, err)
	}
	r, err := v.repos.Recipe(ctx, b.Release)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be built again: its source commit %s cannot be read: %w", t, rec.Source, err)
	}
	in := &inputs{record: rec, blob: blob, close: func() {}}
	for _, d := range rec.Dependencies {
		if err := v.pipeline.Artifacts.Verify(d.Artifact); err != nil {
			return nil, fmt.Errorf("%s cannot be built again, as it was built with %s %s: %w", t, d.Package, d.Version, err)
		}
		dep := pipeline.Dependency{DepUsed: d}
		// Only facts are made of the list, and those are not compared.
		if a, ok, err := snap.Available(d.Package, d.Version, machine(cmp.Or(d.Arch, b.Arch))); err == nil && ok && a.Artifact == d.Artifact {
			if dep.Files, err = snap.Files(d.Package, d.Version, a.Arch); err != nil {
				return nil, err
			}
		}
		in.input.Deps = append(in.input.Deps, dep)
	}
	source, err := v.repos.Source(b.Release)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be built again: its source commit %s cannot be read: %w", t, rec.Source, err)
	}
	if c, ok := source.(io.Closer); ok {
		in.close = func() { c.Close() }
	}
	in.input.Build, in.input.Recipe, in.input.Source = b, r, source
	return in, nil
}

func (v *verifier) Verify(ctx context.Context, t quarry.Target, o control.VerifyOptions) (*control.Verified, error) {
	if err := results.CheckTarget(t); err != nil {
		return nil, &control.Error{Code: control.ExitUsage, Err: err}
	}
	select {
	case <-v.verified:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	// Nothing of it may go while it is needed.
	free, err := v.hold(t)
	if err != nil {
		return nil, err
	}
	defer free()
	in, err := v.inputs(ctx, t)
	if err != nil {
		return nil, err
	}
	defer in.close()
	n := v.count.Add(1)
	scratch := filepath.Join(v.dir, fmt.Sprint(n))
	store, err := extract.OpenArtifacts(scratch)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(scratch)
	in.input.Name, in.input.Into, in.input.Log, in.input.Weight = fmt.Sprintf("verify-%d", n), store, o.Log, idleWeight
	if o.Log == nil {
		in.input.Log = io.Discard
	}
	in.input.OnStep = func(step string) { o.Tell(step) }
	out, err := v.build(ctx, in.input, o.Tell)
	if err != nil {
		return nil, err
	}
	return v.compare(ctx, t, in, out, store, o)
}

// build makes an attempt with a worker that nothing else needs, as often as it
// takes until it was left alone.
func (v *verifier) build(ctx context.Context, in pipeline.Input, tell func(string)) (*quarry.Outcome, error) {
	for {
		tell("waits until a worker has nothing to build")
		work, done, err := v.queue.Lend(ctx, in.Recipe.Traits(in.Build.Arch, in.Build.Environment().Cross != "").Memory)
		if err != nil {
			return nil, err
		}
		var out *quarry.Outcome
		if err = v.probe(work); err == nil {
			out, err = v.pipe.Run(work, in)
		}
		recalled := errors.Is(context.Cause(work), queue.ErrRecalled)
		done()
		switch {
		case err == nil:
			return out, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !recalled:
			return nil, err
		}
		tell("put back: a build needs the worker")
	}
}

// compare holds what was built against what is recorded, and records the outcome.
func (v *verifier) compare(ctx context.Context, t quarry.Target, in *inputs, out *quarry.Outcome, store *extract.Artifacts, o control.VerifyOptions) (*control.Verified, error) {
	rec := in.record
	done := &control.Verified{
		Vote: results.Vote{
			Package: t.Package, Version: t.Version, Arch: t.Arch, Channel: t.Channel, Record: in.blob, Build: rec.Build, Key: rec.Key, Source: rec.Source, Artifact: rec.Artifact,
			Builder: v.cfg.Builder, At: time.Now(), Quarry: version, Base: out.Host.Base, Instance: out.Host.Instance, Changed: surroundings(rec.Host, out.Host),
		},
		Took: out.Ended.Sub(out.Started).Seconds(),
	}
	switch {
	case out.Failure != nil:
		done.Failure = out.Failure.Reason()
	default:
		done.Got = out.Artifact.SHA256
		done.Same = done.Got == rec.Artifact
	}
	if done.Got != "" && !done.Same {
		if err := v.differences(ctx, done, store); err != nil {
			return nil, err
		}
	}
	if o.Keep && done.Got != "" {
		f, err := store.Open(done.Got)
		if err != nil {
			return nil, err
		}
		_, err = v.pipeline.Artifacts.Put(f)
		f.Close()
		if err != nil {
			return nil, err
		}
		done.Kept = true
		done.Notes = append(done.Notes, "kept as "+v.pipeline.Artifacts.Path(done.Got))
	}
	if v.sign == nil {
		done.Notes = append(done.Notes, "not recorded, as this farm signs nothing (sign.off)")
		return done, nil
	}
	text, err := done.Vote.Marshal()
	if err != nil {
		return nil, err
	}
	sig, err := v.sign.Sign(trust.Vote, text)
	if err != nil {
		return nil, fmt.Errorf("the vote cannot be signed: %w", err)
	}
	if err := v.results.KeepVote(ctx, keyID(v.sign.Public()), slices.Concat(text, sig)); err != nil {
		return nil, err
	}
	done.Recorded = true
	v.log.Info("a record was built again", "release", t, "build", rec.Build, "same", done.Same, "by", o.By)
	return done, nil
}

// differences looks into both artifacts.
func (v *verifier) differences(ctx context.Context, done *control.Verified, store *extract.Artifacts) error {
	was, err := v.pipeline.Artifacts.Open(done.Artifact)
	if errors.Is(err, os.ErrNotExist) {
		done.Notes = append(done.Notes, "the recorded artifact is not kept here any more: only the digests were compared")
		return nil
	}
	if err != nil {
		return err
	}
	defer was.Close()
	is, err := store.Open(done.Got)
	if err != nil {
		return err
	}
	defer is.Close()
	if done.Report, err = compare.Artifacts(ctx, was, is); err != nil {
		if ctx.Err() != nil {
			return err
		}
		done.Notes = append(done.Notes, "how they differ is not known: "+err.Error())
		return nil
	}
	done.Differences = control.Lines(done.Report)
	return nil
}

// surroundings names what of a machine is not as a record says, and can matter to
// what is made.
func surroundings(was results.Host, is quarry.HostInfo) []string {
	var out []string
	for _, c := range []struct{ what, was, is string }{
		{"base", digest(was.Base), digest(is.Base)}, {"instance", digest(was.Instance), digest(is.Instance)},
		{"emulation", was.Emulation, is.Emulation}, {"Quarry", was.Quarry, is.Quarry},
	} {
		if c.what == "base" && was.Base == was.Instance && is.Base == is.Instance {
			continue // said once
		}
		if c.was != c.is {
			out = append(out, human.Safe(fmt.Sprintf("%s %s is not used any more, %s is", c.what, orNone(c.was), orNone(c.is)), false))
		}
	}
	return out
}
