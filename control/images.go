package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/human"
	"github.com/spf13/pflag"
)

// imageVerbs are the verbs on bases, on the channels' instances of them, and on
// the workspaces that are kept ready. Looking is for everybody; the rest changes
// what all builds start from, and is for admins.
func (f *Farm) imageVerbs() Table {
	bootstrap := func(fs *pflag.FlagSet) {
		fs.String("suite", "", "release of Debian (default bookworm)")
		fs.String("mirror", "", "mirror of Debian (default mmdebstrap's choice)")
		fs.String("variant", "", "variant of mmdebstrap (default minbase)")
		fs.StringSlice("include", nil, "packages to install, instead of the usual ones")
	}
	t := Table{
		{Name: "images list", Looks: true, Alone: true, Short: "List bases, and the environments that stand on them",
			Long: "A base is the clean, installed system for one arch. An instance is a base that a\n" +
				"channel's setup has brought up to date. An environment is a channel and an arch,\n" +
				"written CHANNEL/ARCH; its builds start from its instance.",
			Example: "images list\nimages list --json", Run: f.imagesList},
		{Name: "images show", Looks: true, Args: "NAME|REF", MinArgs: 1, MaxArgs: 1, Alone: true, Short: "Show an environment or a base in full",
			Long: "NAME is CHANNEL/ARCH, or CHANNEL for all its archs; REF is ARCH, or ARCH:NAME for\n" +
				"a base that was loaded under a name.",
			Example: "images show testing/x86_64\nimages show x86_64\nimages show x86_64:trixie --json", Run: f.imagesShow},
		{Name: "images load", Args: "REF FILE", MinArgs: 2, MaxArgs: 2, Need: Admin, Alone: true, File: 2,
			Short: "Make a base of a tarball or an OCI archive",
			Long: "REF is the arch, or ARCH:NAME for a further base that channels ask for by name.\n" +
				"FILE is a tarball of a root file system, or an image as podman save and skopeo\n" +
				"write it (oci-archive, docker-archive); plain, or compressed with gzip, bzip2, xz\n" +
				"or zstd. What it is shows from its content. A system of another arch is refused.\n" +
				"The file is one of the farm's machine; - is standard input. A base that was there\n" +
				"before is replaced at once when the new one is whole; builds that run keep theirs.",
			Example: "images load x86_64 vanilla-morphux.tar.xz\nimages load aarch64:trixie image.oci.tar\nimages load x86_64 - < vanilla-morphux.tar.xz",
			Run:     f.imagesLoad},
		{Name: "images bootstrap", Args: "REF", MinArgs: 1, MaxArgs: 1, Need: Admin, Alone: true, Flags: bootstrap,
			Short: "Make a base of Debian with mmdebstrap",
			Long: "Makes the base with mmdebstrap, from Debian's packages: a compiler and what plain\n" +
				"C software takes to build. It is the stand-in where no tarball of Vanilla Morphux\n" +
				"is at hand. It takes a minute and some hundred megabytes of download, and several\n" +
				"minutes for an emulated arch.",
			Example: "images bootstrap x86_64\nimages bootstrap aarch64 --include build-essential,cmake", Run: f.imagesBootstrap},
		{Name: "images renew", Args: "[REF]", MaxArgs: 1, Need: Admin, Alone: true, Short: "Make bases anew that mmdebstrap made",
			Long: "With the same options as before, from the packages that there are now: one base,\n" +
				"or all of them. Those that were loaded from a file are left alone: load a newer\n" +
				"file. The old base serves until the new one is whole.",
			Example: "images renew\nimages renew x86_64:trixie", Run: f.imagesRenew},
		{Name: "images update", Args: "[NAME]", MaxArgs: 1, Need: Admin, Alone: true, Short: "Bring instances up to date",
			Long: "NAME is CHANNEL/ARCH, or CHANNEL for all its archs; without it all environments are\n" +
				"looked at. An instance is made anew from its base when it is older than its\n" +
				"channel's max_age, or when the base or the setup is another one; with --force in\n" +
				"any case. It takes the old one's place when it is whole: when an update fails, the\n" +
				"old one stays in use. The daemon does this by itself, before builds need it.",
			Example: "images update\nimages update testing --force\nimages update testing/aarch64",
			Flags: func(fs *pflag.FlagSet) {
				fs.BoolP("force", "f", false, "also where nothing is due")
			},
			Run: f.imagesUpdate},
		{Name: "images verify", Need: Admin, Alone: true, Short: "Compare bases and instances on disk with what they were when they were made",
			Long: "Every file is read; --quick goes by names, sizes, owners, modes and times. --repair\n" +
				"also makes again what is damaged: bases from their clean copies, instances from\n" +
				"their bases. The daemon does this by itself at its start.",
			Example: "images verify\nimages verify --quick\nimages verify --repair",
			Flags: func(fs *pflag.FlagSet) {
				fs.Bool("quick", false, "do not read the files")
				fs.Bool("repair", false, "make again what is damaged")
			},
			Run: f.imagesVerify},
		{Name: "images clean", Args: "all|base REF|NAME", MinArgs: 1, MaxArgs: 2, Need: Admin, Alone: true,
			Short: "Throw away instances or bases",
			Long: "all is every instance, and every base with its clean copy; base REF is one base\n" +
				"with its clean copy, and the instances on it; any other word is the name of\n" +
				"instances: CHANNEL/ARCH, or CHANNEL for all of its (instance NAME says so for a\n" +
				"channel that is called all). Builds that run end undisturbed. An instance is made\n" +
				"again when it is needed, a base is not.",
			Example: "images clean testing/x86_64\nimages clean base x86_64:trixie\nimages clean all --yes",
			Flags: func(fs *pflag.FlagSet) {
				fs.BoolP("yes", "y", false, "do not ask")
			},
			Ask: cleanQuestion, Run: f.imagesClean},
		{Name: "images remove", Args: "REF", MinArgs: 1, MaxArgs: 1, Need: Admin, Alone: true, Short: "Remove a base",
			Long:    "The clean copy that is kept of it goes too. Builds for it wait until there is\nanother one; builds that run keep it until they end.",
			Example: "images remove i686\nimages remove x86_64:trixie", Run: f.imagesRemove},
		{Name: "sanitize", Args: "[ARCH] [CHANNEL]", MaxArgs: 2, Need: Admin, Alone: true, Short: "Throw away workspaces and instances, and make them again from the clean bases",
			Long: "For one arch, one channel, both, or all of them. Bases are read in full first; one\n" +
				"that is not what it was when it was made is made again from its clean copy. Builds\n" +
				"that run end in workspaces of their own, unless --running ends them: those are\n" +
				"run again. Builds that begin meanwhile wait.",
			Example: "sanitize\nsanitize x86_64\nsanitize x86_64 testing --running",
			Flags: func(fs *pflag.FlagSet) {
				fs.Bool("running", false, "end builds that run, too: they are run again")
			},
			Run: f.sanitize},
		{Name: "install", Args: "REF [FILE]", MinArgs: 1, MaxArgs: 2, Need: Admin, Alone: true, File: 2, Flags: bootstrap,
			Short: "Make a new installation: a fresh clean base, swapped in at once",
			Long: "With FILE as images load, without as images bootstrap. The base that was there\n" +
				"before serves until the new one is whole.",
			Example: "install x86_64\ninstall x86_64 vanilla-morphux.tar.xz", Run: f.install},
		{Name: "start", Args: "NAME", MinArgs: 1, MaxArgs: 1, Need: Admin, Short: "Keep an environment warm: a clean workspace is always ready",
			Long: "NAME is CHANNEL/ARCH, or CHANNEL for all its archs. By itself the farm keeps\n" +
				"workspaces ready where builds were made lately; a started environment has one\n" +
				"however long nothing is built, also after a restart, until it is stopped.",
			Example: "start testing/x86_64\nstart testing", Run: f.start},
		{Name: "stop", Args: "NAME", MinArgs: 1, MaxArgs: 1, Need: Admin, Short: "Let the workspaces go that an environment keeps ready",
			Long: "None is kept ready there until it is started. Builds go on; their workspaces are\n" +
				"made when they begin.",
			Example: "stop testing/x86_64\nstop testing", Run: f.stop},
	}
	for _, v := range t {
		v.Systems = true
	}
	return t
}

// store is the store of images, and an error where there is none.
func (f *Farm) store() (*images.Store, error) {
	if f.Images == nil {
		return nil, errors.New("this daemon keeps no images")
	}
	return f.Images, nil
}

// refError says that words of the caller's name no base that can be.
func refError(ref string) error {
	if _, err := images.ParseBaseRef(ref); err != nil {
		return &Error{ExitUsage, err}
	}
	return nil
}

// missing gives an error about a base that is not there its exit code.
func missing(err error) error {
	if errors.As(err, new(*images.NoBaseError)) {
		return notFound(err)
	}
	return err
}

func (f *Farm) imagesLoad(ctx context.Context, c *Call) error {
	return f.load(ctx, c, c.Args[0], c.Args[1])
}

func (f *Farm) load(ctx context.Context, c *Call, ref, file string) error {
	return f.makeBase(ctx, c, ref, func(s *images.Store, show func(images.Progress)) (images.Base, error) {
		if file != "-" {
			return s.Load(ctx, ref, file, show)
		}
		if c.In == nil {
			return images.Base{}, usage("%s: there is no standard input here: name a file", c.Verb.Name)
		}
		return s.LoadFrom(ctx, ref, c.In, "standard input", show)
	})
}

func (f *Farm) imagesBootstrap(ctx context.Context, c *Call) error {
	return f.makeBase(ctx, c, c.Args[0], func(s *images.Store, show func(images.Progress)) (images.Base, error) {
		include, _ := c.Flags.GetStringSlice("include")
		return s.Bootstrap(ctx, c.Args[0], images.BootstrapOptions{
			Suite: c.string("suite"), Mirror: c.string("mirror"), Variant: c.string("variant"), Include: include,
		}, show)
	})
}

func (f *Farm) install(ctx context.Context, c *Call) error {
	if len(c.Args) == 1 {
		return f.imagesBootstrap(ctx, c)
	}
	for _, flag := range []string{"suite", "mirror", "variant", "include"} {
		if c.Flags.Changed(flag) {
			return usage("install: --%s is for bases that mmdebstrap makes: leave it out, or leave out FILE", flag)
		}
	}
	return f.load(ctx, c, c.Args[0], c.Args[1])
}

// makeBase makes a base and says what it is.
func (f *Farm) makeBase(ctx context.Context, c *Call, ref string, fresh func(*images.Store, func(images.Progress)) (images.Base, error)) error {
	if err := refError(ref); err != nil {
		return err
	}
	s, err := f.store()
	if err != nil {
		return err
	}
	before, _ := s.Base(ctx, ref) // none before is no trouble
	p := newProgress(c)
	base, err := fresh(s, p.show)
	p.end()
	if err != nil {
		return err
	}
	if c.JSON() {
		return c.emit(base)
	}
	sayBase(c, base, before)
	return nil
}

// sayBase says in a line what a base is that was made in place of another.
func sayBase(c *Call, base, before images.Base) {
	same := ""
	if base.Digest == before.Digest {
		same = ", the same content as before"
	}
	fmt.Fprintf(c.Out, "base %s: %s, %s, from %s%s\n", base.Ref(), short(base.Digest), human.Size(base.Size), human.Safe(base.Source, false), same)
}

// imagesRenew bootstraps bases again.
func (f *Farm) imagesRenew(ctx context.Context, c *Call) error {
	s, err := f.store()
	if err != nil {
		return err
	}
	var bases []images.Base
	if len(c.Args) == 1 {
		if err := refError(c.Args[0]); err != nil {
			return err
		}
		b, err := s.Base(ctx, c.Args[0])
		if err != nil {
			return missing(err)
		}
		bases = append(bases, b)
	} else if bases, err = s.Bases(ctx); err != nil {
		return err
	}
	done := []images.Base{}
	for _, b := range bases {
		o, ok := images.Bootstrapped(b.Source)
		if !ok {
			err := fmt.Errorf("base %s comes from %s and is left as it is: load a newer one with images load %[1]s FILE", b.Ref(), b.Source)
			if len(c.Args) == 1 {
				return err
			}
			fmt.Fprintln(c.Err, human.Safe(err.Error(), false))
			continue
		}
		p := newProgress(c)
		fresh, err := s.Bootstrap(ctx, b.Ref(), o, p.show)
		p.end()
		if err != nil {
			return err
		}
		done = append(done, fresh)
		if !c.JSON() {
			sayBase(c, fresh, b)
		}
	}
	if c.JSON() {
		return c.emit(done)
	}
	if len(bases) == 0 {
		fmt.Fprintln(c.Out, "no bases yet: quarry images load ARCH FILE, or quarry images bootstrap ARCH, makes one")
	}
	return nil
}

func (f *Farm) imagesRemove(ctx context.Context, c *Call) error {
	if err := refError(c.Args[0]); err != nil {
		return err
	}
	s, err := f.store()
	if err != nil {
		return err
	}
	if err := s.Remove(ctx, c.Args[0]); err != nil {
		return missing(err)
	}
	if c.JSON() {
		return c.emit(map[string]string{"removed": c.Args[0]})
	}
	_, err = fmt.Fprintf(c.Out, "base %s is removed\n", c.Args[0])
	return err
}

// short is a digest as lists show it.
func short(digest string) string {
	const algorithm = "sha256:"
	if len(digest) > len(algorithm)+12 && digest[:len(algorithm)] == algorithm {
		return digest[len(algorithm) : len(algorithm)+12]
	}
	return digest
}

func runs(arch string) string {
	how, err := images.Emulation(arch)
	if err != nil {
		return "not here"
	}
	return how
}

// day writes a time for people: when it was, and how long ago.
func day(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339) + " (" + human.Ago(t, time.Now()) + ")"
}
