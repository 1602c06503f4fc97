package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/Morphux/quarry/internal/human"
	"github.com/spf13/pflag"
)

// Pruner removes artifacts that nothing refers to. Without now it only looks.
type Pruner interface {
	Prune(ctx context.Context, now bool) (*Pruned, error)
}

// Amount is how many artifacts, and how large they are together.
type Amount struct {
	Count int   `json:"count"`
	Bytes int64 `json:"bytes"`
}

// Add counts one more.
func (a *Amount) Add(size int64) {
	a.Count++
	a.Bytes += size
}

func (a Amount) String() string { return human.Count(a.Count, "artifact") + ", " + human.Size(a.Bytes) }

// Pruned is what there is to remove, or was removed.
type Pruned struct {
	Dry        bool      `json:"dry_run"`
	Since      time.Time `json:"since"`      // what is newer is kept, and what was referred to since
	All        Amount    `json:"all"`        // in the store
	Recent     Amount    `json:"recent"`     // kept, as they were made since then
	Referenced Amount    `json:"referenced"` // kept, as something refers to them
	Unused     Amount    `json:"unused"`     // that nothing refers to
	Removed    Amount    `json:"removed"`    // of these
	// Linked are those among the removed that are still in the output folder: removing
	// them frees nothing.
	Linked Amount `json:"linked"`
	// Artifacts are the digests of what is unused, the first ten thousand, where they
	// are asked for.
	Artifacts []string `json:"artifacts,omitempty"`
}

func (f *Farm) pruneVerb() *Verb {
	return &Verb{Name: "prune", Need: Admin, Short: "Show which artifacts nothing refers to any more, or remove them",
		Long: "Kept is what a record of any channel or submitted group refers to, as what it made\n" +
			"or as what it was built with; what did so within retention.artifacts, so that a\n" +
			"rollback finds it; and what was made within that time. Without --now nothing is\n" +
			"removed. With retention.daily the daemon removes it by itself.",
		Example: "prune\nprune --list\nprune --now",
		Flags: func(fs *pflag.FlagSet) {
			fs.Bool("now", false, "remove them")
			fs.Bool("dry-run", false, "only show them, which is the default")
			fs.Bool("list", false, "print their digests")
		},
		Run: f.prune}
}

func (f *Farm) prune(ctx context.Context, c *Call) error {
	if c.bool("now") && c.bool("dry-run") {
		return usage("prune: --now removes and --dry-run does not: leave one out")
	}
	if f.Pruner == nil {
		return errors.New("this farm keeps no artifacts")
	}
	p, err := f.Pruner.Prune(ctx, c.bool("now"))
	if err != nil {
		return err
	}
	if c.JSON() {
		if !c.bool("list") {
			p.Artifacts = nil
		}
		return c.emit(p)
	}
	if c.bool("list") {
		for _, sha := range p.Artifacts {
			if _, err := fmt.Fprintln(c.Out, sha); err != nil {
				return err
			}
		}
		if more := p.Unused.Count - len(p.Artifacts); more > 0 {
			fmt.Fprintf(c.Out, "and %d more\n", more)
		}
	}
	t := human.Table{Color: c.Term.Color}
	t.Row("kept, as something refers to it", p.Referenced.String())
	t.Row("kept, as it was made since "+p.Since.UTC().Format(time.DateOnly), p.Recent.String())
	if p.Dry {
		t.Row("nothing refers to", p.Unused.String())
	} else {
		t.Row("removed", p.Removed.String())
	}
	if p.Linked.Count > 0 {
		t.Row("of these also in the output folder", p.Linked.String())
	}
	if _, err := t.WriteTo(c.Out); err != nil {
		return err
	}
	if p.Dry && p.Unused.Count > 0 {
		_, err = fmt.Fprintln(c.Out, "nothing was removed: prune --now does it")
	}
	return err
}
