package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/podman/deltree"
)

// bench is a podman service of doctor's own, with the bases of the state folder
// to look at and a storage of its own for what is tried. It stands beside that
// of a daemon, which may be running. The first who needs it starts it.
type bench struct {
	o       *Options
	tried   bool
	err     error
	tmp     string
	conn    *podman.Conn
	store   *images.Store
	took    time.Duration // to start
	list    []images.Base
	listed  bool
	listErr error
}

func (b *bench) open(ctx context.Context) error {
	if b.tried {
		return b.err
	}
	b.tried = true
	// The daemon clears away what has this name when it starts.
	b.tmp = filepath.Join(b.o.Podman.State, "podman", "tmp-doctor-"+strconv.Itoa(os.Getpid()))
	if b.err = os.MkdirAll(b.tmp, 0o711); b.err != nil {
		return b.err
	}
	cfg := b.o.Podman
	bases := filepath.Join(cfg.State, "podman", "root")
	cfg.State = b.tmp
	if _, err := os.Stat(filepath.Join(bases, "overlay-images")); err == nil && cfg.URI == "" {
		cfg.ImageStores = append(append([]string(nil), cfg.ImageStores...), bases)
	}
	began := time.Now()
	conn, err := podman.Start(ctx, cfg)
	if err != nil {
		b.err = err
		return err
	}
	b.conn, b.took = conn, time.Since(began)
	b.store, b.err = images.New(b.conn, images.Options{WorkDir: filepath.Join(b.tmp, "work"), Guest: b.o.Guest, UIDBase: b.o.UIDBase})
	return b.err
}

func (b *bench) close(ctx context.Context) {
	if b.store != nil {
		// What is left after that goes with the folder.
		end, stop := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		b.store.Close(end)
		stop()
	}
	if b.conn != nil {
		b.conn.Close()
	}
	if b.tmp != "" {
		deltree.Remove(b.tmp)
	}
	*b = bench{o: b.o}
}

func (b *bench) bases(ctx context.Context) ([]images.Base, error) {
	if b.listed {
		return b.list, b.listErr
	}
	b.listed = true
	if b.listErr = b.open(ctx); b.listErr == nil {
		b.list, b.listErr = b.store.Bases(ctx)
	}
	return b.list, b.listErr
}

// refs are the bases of an arch that channels stand on.
func (b *bench) refs(arch string) (refs []string) {
	for _, r := range b.o.Refs {
		if a, _, _ := strings.Cut(r, ":"); a == arch {
			refs = append(refs, r)
		}
	}
	if len(refs) == 0 && slices.Contains(b.o.Archs, arch) {
		return []string{arch}
	}
	return refs
}

// arch says whether and how builds for an arch can run here, and in what.
func (b *bench) arch(ctx context.Context, arch string) Finding {
	f := runsArch(arch, b.o)
	bases, err := b.bases(ctx)
	if err != nil {
		return f // build says so
	}
	var have, missing []string
	for _, base := range bases {
		if base.Arch == arch {
			have = append(have, fmt.Sprintf("base %s %s (%s)", base.Ref(), short(base.Digest), human.Size(base.Size)))
		}
	}
	for _, ref := range b.refs(arch) {
		if !slices.ContainsFunc(bases, func(base images.Base) bool { return base.Ref() == ref }) {
			missing = append(missing, ref)
		}
	}
	if len(have) > 0 {
		f.Detail += "; " + strings.Join(have, ", ")
	}
	if len(missing) == 0 {
		if !slices.Contains(b.o.Archs, arch) {
			f.Detail += "; no channel is built for it"
			if f.Status == Fail {
				f.Status = Warn
			}
		}
		return f
	}
	f.Detail += "; no base " + strings.Join(missing, ", ")
	if f.Status == OK {
		f.Status = Warn
		f.Cure = fmt.Sprintf("quarry images bootstrap %s, or quarry images load %[1]s FILE", missing[0])
	}
	return f
}

func short(digest string) string { return digest[:min(len(digest), len("sha256:")+12)] }

// build makes a workspace in each base that is to be built in and can be, which
// is the only proof that counts.
func (b *bench) build(ctx context.Context, o *Options) Finding {
	if err := b.open(ctx); err != nil {
		return failure(Fail, err, "mend what is named above, or run with --verbose")
	}
	bases, err := b.bases(ctx)
	if err != nil {
		return failure(Fail, err, "mend what is named above, or run with --verbose")
	}
	var done []string
	for _, base := range bases {
		if base.Name != "" || len(o.Archs) > 0 && !slices.Contains(o.Archs, base.Arch) {
			continue
		}
		if _, err := images.Emulation(base.Arch); err != nil {
			continue // said above
		}
		w, err := b.store.Workspace(ctx, images.Spec{Name: "doctor", Arch: base.Arch})
		var none *images.NoBaseError
		if errors.As(err, &none) {
			continue // removed meanwhile
		}
		if err != nil {
			return failure(Fail, fmt.Errorf("%s: %w", base.Arch, err), "mend what is named above, or run with --verbose")
		}
		done = append(done, fmt.Sprintf("%s in %s", base.Arch, human.Duration(w.Made.Total())))
		if err := w.Close(ctx); err != nil {
			return failure(Fail, err, "run with --verbose")
		}
	}
	detail := fmt.Sprintf("podman's service up in %s", human.Duration(b.took))
	if len(done) == 0 {
		return bad(Warn, "make a base, and mend the archs named above", "%s; no container was tried, for want of a base", detail)
	}
	return ok("%s; a clean container made for %s", detail, strings.Join(done, ", "))
}

// ofSystems reports whether a name is that of a check that troubles makes, be
// there such trouble or not.
func ofSystems(name string) bool {
	first, _, _ := strings.Cut(name, " ")
	return slices.Contains([]string{"systems", "base", "instance", "ready"}, first)
}

// Unknown are those of some names of checks that nothing was found under,
// because there is no such check: all of them when nothing was found at all. An
// arch that the farm does not have is one all the same, as ever.
func Unknown(only []string, found []Finding) (none []string) {
	if len(found) == 0 {
		return only
	}
	for _, name := range only {
		if !ofSystems(name) && !strings.HasPrefix(name, "arch ") && !slices.ContainsFunc(found, func(f Finding) bool { return f.Name == name }) {
			none = append(none, name)
		}
	}
	return none
}

// troubles are what the farm knows to be wrong with its bases and instances.
func troubles(ctx context.Context, o *Options) []check {
	if o.Troubles == nil || ctx.Err() != nil || len(o.Only) > 0 && !slices.ContainsFunc(o.Only, ofSystems) {
		return nil
	}
	list, err := o.Troubles(ctx)
	say := func(name string, f Finding) check {
		return check{name, func(context.Context, *Options) Finding { return f }}
	}
	if err != nil {
		return []check{say("systems", failure(Warn, err, "mend what is named above, or run with --verbose"))}
	}
	if len(list) == 0 {
		return []check{say("systems", ok("no base and no instance is in trouble"))}
	}
	var checks []check
	for _, t := range list {
		status := Fail
		if t.Builds {
			status = Warn
		}
		checks = append(checks, say(t.What, bad(status, t.Cure, "%s", t.Why)))
	}
	return checks
}
