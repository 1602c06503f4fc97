package control

import (
	"context"
	"fmt"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/human"
)

// baseJSON is a base as the verbs tell it.
type baseJSON struct {
	images.Base
	Ref  string `json:"ref"`  // what it is called
	Runs string `json:"runs"` // native, compat or emulated; "not here"
}

func baseOf(b images.Base) baseJSON { return baseJSON{b, b.Ref(), runs(b.Arch)} }

type imagesJSON struct {
	Bases []baseJSON `json:"bases"`
}

func (f *Farm) imagesList(ctx context.Context, c *Call) error {
	s, err := f.store()
	if err != nil {
		return err
	}
	bases, err := s.Bases(ctx)
	if err != nil {
		return err
	}
	all := imagesJSON{Bases: []baseJSON{}}
	for _, b := range bases {
		all.Bases = append(all.Bases, baseOf(b))
	}
	if c.JSON() {
		return c.emit(all)
	}
	if len(bases) == 0 {
		_, err := fmt.Fprintln(c.Out, "no bases yet: quarry images load ARCH FILE, or quarry images bootstrap ARCH, makes one")
		return err
	}
	now := time.Now()
	t := human.Table{Head: []string{"BASE", "RUNS", "SIZE", "MADE", "DIGEST", "SOURCE"}, Color: c.Term.Color}
	for _, b := range all.Bases {
		t.Row(b.Ref, b.Runs, human.Size(b.Size), human.Ago(b.Created, now), short(b.Digest), b.Source)
	}
	_, err = t.WriteTo(c.Out)
	return err
}

func (f *Farm) imagesShow(ctx context.Context, c *Call) error {
	s, err := f.store()
	if err != nil {
		return err
	}
	if err := refError(c.Args[0]); err != nil {
		return err
	}
	b, err := s.Base(ctx, c.Args[0])
	if err != nil {
		return missing(err)
	}
	if c.JSON() {
		return c.emit(baseOf(b))
	}
	return showBase(c, b)
}

func showBase(c *Call, b images.Base) error {
	fmt.Fprintf(c.Out, "base %s\n", b.Ref())
	t := facts{Table: human.Table{Color: c.Term.Color}}
	t.row("arch", b.Arch+", "+runs(b.Arch))
	t.row("digest", b.Digest)
	t.row("image", b.Image)
	t.row("size", human.Size(b.Size))
	t.row("made", day(b.Created))
	t.row("source", b.Source)
	_, err := t.WriteTo(c.Out)
	return err
}

// facts is a table of keys and what they say.
type facts struct{ human.Table }

func (t *facts) row(k, v string) {
	if v != "" {
		t.Row(human.Cell("  "+k, human.Dim), v)
	}
}
