package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/human"
)

// target is an environment by the words for it.
type target struct{ channel, arch string }

func (t target) String() string { return t.channel + "/" + t.arch }

// named lists the environments that a name means: CHANNEL/ARCH is one, CHANNEL
// all of its, and "" all there are.
func (f *Farm) named(name string) ([]target, error) {
	channel, arch, one := strings.Cut(name, "/")
	var all []target
	var names []string
	for _, ch := range f.Channels {
		for _, a := range ch.Archs {
			t := target{ch.Name, a}
			names = append(names, t.String())
			if name == "" || ch.Name == channel && (!one || a == arch) {
				all = append(all, t)
			}
		}
	}
	if len(all) == 0 {
		return nil, notFound(fmt.Errorf("environment %.80q is not there: there is %s", name, strings.Join(names, ", ")))
	}
	return all, nil
}

// isChannel reports whether a word is a channel's name.
func (f *Farm) isChannel(word string) bool {
	return slices.ContainsFunc(f.Channels, func(c Channel) bool { return c.Name == word })
}

// updateJSON is what came of an environment's update.
type updateJSON struct {
	images.Instance
	Name    string `json:"name"`    // e.g. testing/x86_64
	Changed bool   `json:"changed"` // builds start from another system than before
	Error   string `json:"error,omitempty"`
}

func (f *Farm) imagesUpdate(ctx context.Context, c *Call) error {
	s, err := f.store()
	if err != nil {
		return err
	}
	name := ""
	if len(c.Args) > 0 {
		name = c.Args[0]
	}
	targets, err := f.named(name)
	if err != nil {
		return err
	}
	list := []updateJSON{}
	var failed []error
	for _, t := range targets {
		u, err := f.update(ctx, c, s, t)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			u.Error = err.Error()
			failed = append(failed, err)
		}
		list = append(list, u)
	}
	if c.JSON() {
		if err := c.emit(list); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

// update updates one environment and says what came of it.
func (f *Farm) update(ctx context.Context, c *Call, s *images.Store, t target) (updateJSON, error) {
	before, err := known(ctx, s, t)
	if err != nil {
		return updateJSON{Name: t.String()}, err
	}
	began := time.Now()
	p := newProgress(c)
	inst, err := s.Update(ctx, t.channel, t.arch, c.bool("force"), func(now images.Progress) {
		now.Step = t.String() + ": " + now.Step
		p.show(now)
	})
	p.end()
	u := updateJSON{Instance: inst, Name: t.String(), Changed: inst.Digest != before.Digest}
	if err != nil || c.JSON() {
		return u, missing(err)
	}
	switch took := human.Duration(time.Since(began)); {
	case inst.Digest == inst.Base.Digest && inst.Image == inst.Base.Image:
		_, err = fmt.Fprintf(c.Out, "%s: builds start from its base, as its channel has no setup\n", t)
	case u.Changed:
		_, err = fmt.Fprintf(c.Out, "%s: updated in %s to %s, %s\n", t, took, short(inst.Digest), human.Size(inst.Size))
	case !inst.Checked.Equal(before.Checked):
		_, err = fmt.Fprintf(c.Out, "%s: up to date already, found in %s\n", t, took)
	default:
		_, err = fmt.Fprintf(c.Out, "%s: up to date, last looked at %s: --force looks now\n", t, human.Ago(inst.Checked, time.Now()))
	}
	return u, err
}

// known is the instance that an environment has now, zero when none.
func known(ctx context.Context, s *images.Store, t target) (images.Instance, error) {
	list, err := s.Instances(ctx)
	for _, inst := range list {
		if inst.Channel == t.channel && inst.Arch == t.arch {
			return inst, err
		}
	}
	return images.Instance{}, err
}

func (f *Farm) start(ctx context.Context, c *Call) error {
	return f.warm(ctx, c, (*images.Store).Start)
}

func (f *Farm) stop(ctx context.Context, c *Call) error {
	return f.warm(ctx, c, (*images.Store).Stop)
}

// warm starts or stops environments and says how they stand then.
func (f *Farm) warm(ctx context.Context, c *Call, do func(*images.Store, context.Context, string) error) error {
	s, err := f.store()
	if err != nil {
		return err
	}
	targets, err := f.named(c.Args[0])
	if err != nil {
		return err
	}
	if err := do(s, ctx, c.Args[0]); err != nil {
		return missing(err)
	}
	var list []environmentJSON
	for _, e := range f.environments(ctx, s) {
		if slices.Contains(targets, target{e.Channel, e.Arch}) {
			list = append(list, e)
		}
	}
	if c.JSON() {
		return c.emit(list)
	}
	for _, e := range list {
		state := "runs warm, " + human.Count(e.Warm, "workspace") + " ready"
		if !e.Started {
			state = "is stopped: its builds make their workspaces when they begin"
		}
		fmt.Fprintf(c.Out, "%s %s\n", e.Name, state)
	}
	return nil
}
