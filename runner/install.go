package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/Morphux/quarry/internal/overlay"
	"github.com/Morphux/quarry/layers"
	"github.com/Morphux/quarry/runner/guest"
)

// layIn lays those dependencies into the workspace that the farm has unpacked, or
// can unpack now, as read-only layers, and returns the rest of them. An error is
// about a workspace that is of no use any more, or about ctx. In any other trouble,
// which is in the farm's log, there is the slower way, which also finds
// out what is wrong with an artifact.
func (r *run) layIn(ctx context.Context, deps []Dep) (rest []Dep, err error) {
	if r.job.Layers == nil || len(deps) == 0 {
		return deps, nil
	}
	root, err := r.ws.LayerRoot()
	if err != nil {
		return deps, nil
	}
	defer root.Close()
	ready := make([]*layers.Layer, len(deps))
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for i, d := range deps {
		group.Go(func() error {
			ready[i], _ = r.job.Layers.Get(ctx, root, d.Artifact, d.Path)
			return nil
		})
	}
	_ = group.Wait()
	n := 0
	for n < len(ready) && ready[n] != nil {
		n++
	}
	laid := 0
	defer func() {
		for _, l := range ready[laid:] {
			if l != nil {
				l.Release()
			}
		}
	}()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	laid, err = r.ws.Lay(ctx, ready[:n])
	if broken := (*overlay.BrokenError)(nil); errors.As(err, &broken) {
		return nil, fmt.Errorf("workspace %s: %w", r.ws.Name, err)
	}
	for i, l := range ready[:laid] {
		files, _ := l.Size()
		r.log.farm("prepare: %s %s laid in, %.12s, %d files", deps[i].Package, deps[i].Version, deps[i].Artifact, files)
	}
	return deps[laid:], nil
}

// install lays a dependency's artifact into the workspace. The guest gets the
// open file and not a copy: the workspace sees neither the artifact store nor
// a name in it.
func (r *run) install(ctx context.Context, d Dep) error { return r.installInto(ctx, d, "") }

// installInto does that in a folder that stands for a system's /.
func (r *run) installInto(ctx context.Context, d Dep, root string) error {
	f, err := os.Open(d.Path)
	if err != nil {
		return fmt.Errorf("dependency %s %s: its artifact cannot be read: %w", d.Package, d.Version, err)
	}
	defer f.Close()
	reply, err := r.guest.ask(ctx, guest.Request{Op: guest.OpInstall, Name: d.Package + "-" + d.Version, Root: root}, f, r.limits.Step, nil)
	if err != nil {
		return r.lost(ctx, "prepare", err)
	}
	if why := reply.Error + reply.Problem; why != "" {
		return fmt.Errorf("dependency %s %s cannot be installed: %s", d.Package, d.Version, why)
	}
	where := ""
	if root != "" {
		where = " in " + root
	}
	r.log.farm("prepare: %s %s installed%s, %.12s", d.Package, d.Version, where, d.Artifact)
	return nil
}

// linkerCache has the base's ldconfig, if there is one, learn of the libraries
// that were installed. Without it those in folders that only ld.so.conf names
// would not be found.
func (r *run) linkerCache(ctx context.Context) error {
	out := &output{left: 1 << 20}
	reply, err := r.guest.ask(ctx, guest.Request{Op: guest.OpRun, Run: &guest.Run{
		Commands: []guest.Command{{Args: []string{"ldconfig"}}}, Dir: "/", Env: r.environment(nil),
		Wall: 5 * time.Minute, Log: out.left, Compat: r.ws.Emulation == "compat",
	}}, nil, 5*time.Minute+r.patience(), out)
	switch {
	case err != nil:
		return r.lost(ctx, "prepare", err)
	case reply.Status == 127:
		return nil // the base has none, so it needs none
	case reply.Error != "" || reply.Status != 0 || reply.Killed != "":
		r.warn("ldconfig failed after the dependencies had been installed (status %d): their libraries may not be found", reply.Status)
	}
	return nil
}

// unreadable is an error of reading what the workspace wrote.
func (r *run) unreadable(name string, err error) error {
	var much *tooMuchError
	if errors.As(err, &much) {
		r.fail(much.failure(name))
		return nil
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return fmt.Errorf("%s: what the build changed in its base cannot be read: %w", name, err)
	}
	return err
}
