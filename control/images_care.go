package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/human"
)

// verifyJSON is what a look at everything found.
type verifyJSON struct {
	Damage   []images.Damage `json:"damage"`
	Repaired []string        `json:"repaired"` // a line for each thing done
}

func (f *Farm) imagesVerify(ctx context.Context, c *Call) error {
	s, err := f.store()
	if err != nil {
		return err
	}
	v := verifyJSON{Damage: []images.Damage{}, Repaired: []string{}}
	p := newProgress(c)
	damage, err := s.Verify(ctx, !c.bool("quick"), p.show)
	v.Damage = append(v.Damage, damage...)
	repair := err == nil && len(damage) > 0 && c.bool("repair")
	if repair {
		var done []string
		done, err = s.Repair(ctx, p.show)
		v.Repaired = append(v.Repaired, done...)
	}
	p.end()
	if c.JSON() {
		err = errors.Join(err, c.emit(v))
	} else {
		for _, d := range v.Damage {
			fmt.Fprintln(c.Out, human.Safe(d.String(), false))
		}
		for _, line := range v.Repaired {
			fmt.Fprintln(c.Out, human.Safe(line, false))
		}
	}
	switch {
	case err != nil:
		return err
	case len(damage) == 0:
		if !c.JSON() {
			fmt.Fprintln(c.Out, "all bases and instances are what they were when they were made")
		}
	case !repair:
		return fmt.Errorf("%s found: images verify --repair makes again what is damaged", human.Count(len(damage), "damage"))
	}
	return nil
}

// cleanQuestion asks before bases go: they cannot be made again without a file
// or the network.
func cleanQuestion(c *Call) string {
	switch {
	case len(c.Args) == 1 && c.Args[0] == "all":
		return "Every instance goes, and every base with its clean copy; no build can begin until there is a base again."
	case len(c.Args) == 2 && c.Args[0] == "base":
		return fmt.Sprintf("Base %.80s goes with its clean copy, and the instances on it.", human.Safe(c.Args[1], false))
	}
	return ""
}

func (f *Farm) imagesClean(ctx context.Context, c *Call) error {
	s, err := f.store()
	if err != nil {
		return err
	}
	word, name := c.Args[0], ""
	if len(c.Args) == 2 {
		name = c.Args[1]
	}
	switch {
	case word == "all" && name == "":
	case word == "base" && name != "":
		if err := refError(name); err != nil {
			return err
		}
	case word == "instance" && name != "":
		if err := f.instanceNamed(ctx, s, name); err != nil {
			return err
		}
	case name == "" && word != "base":
		if err := f.instanceNamed(ctx, s, word); err != nil {
			return err
		}
	default:
		return usage("images clean takes all, base REF, or the name of an instance: see help images clean")
	}
	done, err := s.Clean(ctx, strings.Join(c.Args, " "))
	if c.JSON() {
		err = errors.Join(missing(err), c.emit(struct {
			Removed []string `json:"removed"`
		}{append([]string{}, done...)}))
		return err
	}
	for _, what := range done {
		fmt.Fprintf(c.Out, "%s is removed\n", what)
	}
	if err == nil && len(done) == 0 {
		fmt.Fprintln(c.Out, "there was nothing to remove")
	}
	return missing(err)
}

// instanceNamed reports an error that lists the instances there are when a name
// is none of theirs.
func (f *Farm) instanceNamed(ctx context.Context, s *images.Store, name string) error {
	list, err := s.Instances(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, inst := range list {
		if inst.Image == "" || inst.Image == inst.Base.Image {
			continue
		}
		full := target{inst.Channel, inst.Arch}.String()
		if name == inst.Channel || name == full {
			return nil
		}
		names = append(names, full)
	}
	if len(names) == 0 {
		return notFound(fmt.Errorf("instance %.80q is not there: no environment has one of its own", name))
	}
	return notFound(fmt.Errorf("instance %.80q is not there: there is %s", name, strings.Join(names, ", ")))
}

// sanitizeJSON is what sanitize did.
type sanitizeJSON struct {
	Bases      []images.Base     `json:"bases"`      // made again from their clean copies
	Instances  []images.Instance `json:"instances"`  // made again
	Workspaces int               `json:"workspaces"` // that were ready, thrown away
	Ended      int               `json:"ended"`      // builds that ran
	Seconds    float64           `json:"seconds"`    // all of it took
}

func (f *Farm) sanitize(ctx context.Context, c *Call) error {
	s, err := f.store()
	if err != nil {
		return err
	}
	o, err := f.scope(c.Args)
	if err != nil {
		return err
	}
	o.Running = c.bool("running")
	p := newProgress(c)
	rep, err := s.Sanitize(ctx, o, p.show)
	p.end()
	if c.JSON() {
		return errors.Join(missing(err), c.emit(sanitizeJSON{append([]images.Base{}, rep.Bases...),
			append([]images.Instance{}, rep.Instances...), rep.Workspaces, rep.Killed, rep.Took.Seconds()}))
	}
	for _, b := range rep.Bases {
		fmt.Fprintf(c.Out, "base %s was not what it should be, and is made again from its clean copy\n", b.Ref())
	}
	for _, inst := range rep.Instances {
		fmt.Fprintf(c.Out, "instance %s is made again: %s\n", target{inst.Channel, inst.Arch}, short(inst.Digest))
	}
	if err == nil || len(rep.Bases)+len(rep.Instances)+rep.Workspaces+rep.Killed > 0 {
		fmt.Fprintf(c.Out, "sanitized in %s: %s thrown away, %s ended\n", human.Duration(rep.Took),
			human.Count(rep.Workspaces, "ready workspace"), human.Count(rep.Killed, "running build"))
	}
	return missing(err)
}

// scope reads [ARCH] [CHANNEL]; a channel's name stands for itself in either
// place.
func (f *Farm) scope(words []string) (o images.SanitizeOptions, err error) {
	var archs []string
	for _, ch := range f.Channels {
		archs = append(archs, ch.Archs...)
	}
	slices.Sort(archs)
	for _, w := range words {
		switch {
		case f.isChannel(w) && o.Channel == "":
			o.Channel = w
		case slices.Contains(archs, w) && o.Arch == "":
			o.Arch = w
		case quarry.CheckArch(w) != nil:
			return o, usage("%.80q is neither an arch nor a channel: see help sanitize", w)
		default:
			var names []string
			for _, ch := range f.Channels {
				names = append(names, ch.Name)
			}
			return o, notFound(fmt.Errorf("%.80q is no arch and no channel that builds are made for: there is %s, and %s", w,
				strings.Join(slices.Compact(archs), ", "), strings.Join(names, ", ")))
		}
	}
	return o, nil
}
