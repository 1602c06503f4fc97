package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/bundle"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/queue"
	"github.com/spf13/pflag"
)

// buildVerb has a release built, or hands one in.
func (f *Farm) buildVerb() *Verb {
	return &Verb{Name: "build", Args: "NAME-VERSION|-", MinArgs: 1, MaxArgs: 1, Need: Push, File: 1, Short: "Have a release built, or hand one in as a tar",
		Long: "Of a release that was pushed: says which builds of it are under way, or what came\n" +
			"of them, and plans what was lost. What has failed is not built again; rebuild\n" +
			"does that. With -f it prints the logs until the builds have ended, and the exit\n" +
			"code is 6 when one did not succeed.\n\n" +
			"With - it takes a tar of a package's folder (package.json, srcs/, ...), plain or\n" +
			"with gzip or zstd, on standard input, and pushes it for you as git would.",
		Example: "build zlib-1.3.1\nbuild -f zlib-1.3.1 --arch x86_64\nbuild --channel testing - < zlib.tar",
		Flags: func(fs *pflag.FlagSet) {
			fs.String("channel", "", "channel to build for (default all that have it; of a tar the farm's default)")
			fs.String("arch", "", "only this arch")
			fs.String("group", "", "of a tar: the group that it is to land with")
			fs.Bool("confirm", false, "of a tar: push it however much it causes")
			fs.BoolP("follow", "f", false, "print the logs until the builds have ended")
		},
		Plain: Followed,
		Run:   f.have}
}

// Built is what build --json prints.
type Built struct {
	Pushed  *bundle.Pushed `json:"pushed,omitempty"` // what was handed in
	Builds  []quarry.Build `json:"builds"`           // the newest of each channel and arch
	Records []Recorded     `json:"records"`          // of what there is no build of any more
}

// Recorded is a record, in short.
type Recorded struct {
	quarry.Target
	Status quarry.State `json:"status"` // succeeded or failed
	Source string       `json:"source"` // commit that was built
	Build  int64        `json:"build"`
}

func (f *Farm) have(ctx context.Context, c *Call) error {
	if c.JSON() && c.bool("follow") {
		return usage("build: -f prints logs, which are text: leave out --json")
	}
	if ch := c.string("channel"); ch != "" && !slices.Contains(f.channelNames(), ch) {
		return notFound(fmt.Errorf("there is no channel %.80q: there is %s", ch, strings.Join(f.channelNames(), ", ")))
	}
	if c.Args[0] == "-" {
		return f.handIn(ctx, c)
	}
	if c.string("group") != "" || c.bool("confirm") {
		return usage("build: --group and --confirm are for a tar on standard input (build -)")
	}
	ways := f.known(c.Args[0])
	if len(ways) == 0 {
		return usage("release %.80q has not the form NAME-VERSION: write it as its branch is named, or - for a tar on standard input", c.Args[0])
	}
	var first error // the most likely reading's
	for _, w := range ways {
		b, err := f.haveRelease(ctx, c, w[0], w[1])
		if err == nil {
			return f.tellBuilt(ctx, c, b)
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// haveRelease finds what there is of a release, and has the farm look for what
// there should be.
func (f *Farm) haveRelease(ctx context.Context, c *Call, pkg, version string) (Built, error) {
	out := Built{Builds: []quarry.Build{}, Records: []Recorded{}}
	t := quarry.Target{Channel: c.string("channel"), Package: pkg, Version: version, Arch: c.string("arch")}
	if err := f.forbidden(c, t); err != nil {
		return out, err
	}
	if _, err := f.Queue.Pushed(ctx, pkg); err != nil {
		// What is wrong with other versions is no matter here.
		if p := (queue.Problem{}); !errors.As(err, &p) {
			return out, err
		}
		if err := problemOf(err, quarry.Branch(pkg, version)); err != nil {
			return out, err
		}
	}
	seen := map[quarry.Target]bool{}
	for _, b := range f.Queue.List(queue.Filter{Channel: t.Channel, Package: pkg, Version: version, Arch: t.Arch}) {
		if !seen[b.Target()] {
			seen[b.Target()] = true
			out.Builds = append(out.Builds, b)
		}
	}
	slices.Reverse(out.Builds) // as they were asked for
	for _, ch := range f.Channels {
		if t.Channel != "" && ch.Name != t.Channel {
			continue
		}
		recs, err := f.Queue.Look(ctx, ch.Name)
		if err != nil {
			return out, err
		}
		for _, arch := range append(slices.Clone(ch.Archs), quarry.Noarch) {
			at := quarry.Target{Channel: ch.Name, Package: pkg, Version: version, Arch: arch}
			if seen[at] || t.Arch != "" && t.Arch != arch {
				continue
			}
			ref, ok, err := recs.Lookup(pkg, version, arch)
			if err != nil {
				return out, err
			}
			if ok {
				out.Records = append(out.Records, Recorded{at, ref.Status, ref.Source, ref.Build})
			}
		}
	}
	if len(out.Builds)+len(out.Records) > 0 {
		return out, nil
	}
	for _, d := range f.Queue.Declined(pkg) {
		if d.Version == version && (t.Arch == "" || d.Arch == t.Arch) && (t.Channel == "" || d.Channel == t.Channel) {
			return out, notFound(fmt.Errorf("%s %s is not built for %s: %s", pkg, version, d.Arch, d.Reason))
		}
	}
	return out, notFound(fmt.Errorf("there is no release %s to build: push its branch, or hand in a tar of it (build -)", quarry.Branch(pkg, version)))
}

// problemOf gives what of a plan's problems is about one branch.
func problemOf(err error, branch string) error {
	list, ok := err.(interface{ Unwrap() []error })
	if !ok {
		if p := (queue.Problem{}); errors.As(err, &p) && (p.Branch == "" || p.Branch == branch) {
			return err
		}
		return nil
	}
	for _, err := range list.Unwrap() {
		if err := problemOf(err, branch); err != nil {
			return err
		}
	}
	return nil
}

// handIn pushes a tar.
func (f *Farm) handIn(ctx context.Context, c *Call) error {
	switch {
	case f.Bundles == nil:
		return errors.New("this farm takes no tars: push with git")
	case c.In == nil:
		return usage("build: there is no standard input: give the tar on it (build - < zlib.tar)")
	case c.string("arch") != "":
		return usage("build: a tar is for all archs of its recipe and channel: leave out --arch")
	}
	channel := c.string("channel")
	if channel == "" {
		channel = f.Default
	}
	p, err := f.Bundles.Take(ctx, c.Who, bundle.From(c.In), bundle.Request{Channel: channel, Group: c.string("group"), Confirm: c.bool("confirm")})
	if err != nil {
		return bundleError(err)
	}
	return f.tellBuilt(ctx, c, Built{Pushed: &p, Builds: f.BuildsOf(p), Records: []Recorded{}})
}

// BuildsOf lists the builds of a bundle that was pushed.
func (f *Farm) BuildsOf(p bundle.Pushed) []quarry.Build {
	builds := nonNil(f.Queue.List(queue.Filter{Package: p.Package, Version: p.Version, Channel: p.Channel, Commit: p.Commit}))
	slices.Reverse(builds)
	return builds
}

// bundleError gives what came of a bundle the exit code that it asks for.
func bundleError(err error) error {
	if bad := (*bundle.Bad)(nil); errors.As(err, &bad) {
		return &Error{ExitUsage, err}
	}
	if errors.Is(err, bundle.ErrForbidden) {
		return &Error{ExitForbidden, err}
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		return fmt.Errorf("the tar cannot be kept, which is no fault of yours: %w", path.Err)
	}
	return err
}

// tellBuilt prints what there is of a release, or follows it.
func (f *Farm) tellBuilt(ctx context.Context, c *Call, b Built) error {
	if c.JSON() {
		if err := c.emit(b); err != nil {
			return err
		}
	} else {
		if p := b.Pushed; p != nil {
			for _, line := range p.Said {
				fmt.Fprintln(c.Err, human.Safe(line, false))
			}
			if !p.New {
				fmt.Fprintf(c.Out, "%s %s stands on %s already, just so\n", p.Package, p.Version, p.Channel)
			}
		}
		for _, r := range b.Records {
			fmt.Fprintf(c.Out, "%s has its record on %s: it %s, in build %d\n", r.Target, r.Channel, r.Status, r.Build)
		}
	}
	var failed error
	for _, build := range b.Builds {
		switch {
		case c.bool("follow") && !build.State.Ended():
			if err := f.follow(ctx, c, build.Number); err != nil && !errors.Is(err, ErrBuild) {
				return err
			} else if err != nil {
				failed = err
			}
			continue
		case c.JSON():
		case build.State.Ended():
			fmt.Fprintln(c.Out, Verdict(build, c.Term.Color))
			if build.State == quarry.Failed || build.State == quarry.Errored || build.State == quarry.Cancelled {
				fmt.Fprintf(c.Out, "rebuild %d builds it again\n", build.Number)
			}
		default:
			fmt.Fprintln(c.Out, Announce(build))
		}
		if err := verdict(build); err != nil {
			failed = err
		}
	}
	return failed
}
