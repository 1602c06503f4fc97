package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/mirror"
	"github.com/Morphux/quarry/mpm"
	"github.com/Morphux/quarry/trust"
	"github.com/pelletier/go-toml/v2"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
)

// mpmFile is where the settings of quarry mpm are looked for, beside
// QUARRY_MPM_CONFIG.
const mpmFile = "/etc/quarry/mpm.toml"

// mpmSettings are the flags, and with the same names the keys of mpm.toml.
type mpmSettings struct {
	From      string `toml:"from"`
	By        string `toml:"by"`
	Git       string `toml:"git"`
	Channel   string `toml:"channel"`
	Arch      string `toml:"arch"`
	Artifacts string `toml:"artifacts"`
	Signers   string `toml:"signers"`
	Cache     string `toml:"cache"`
	Root      string `toml:"root"`
}

// mpmCmd is what the commands share.
type mpmCmd struct {
	mpmSettings
	offline, older, json, dry bool

	cmd      *cobra.Command
	out      io.Writer
	terminal control.Terminal
}

// newMPMCmd is quarry mpm, the reference client. It needs no farm's configuration
// and no daemon of this machine.
func newMPMCmd() *cobra.Command {
	m := &mpmCmd{}
	cmd := &cobra.Command{
		Use:   "mpm",
		Short: "Install packages from a farm or a mirror",
		Long: `The reference client of the database: it finds packages, fetches and verifies
their artifacts, and installs them into a root. A channel is read by its index
over HTTP, from a folder that was exported, or out of the results repository by
git; the answers are the same.

Settings come from flags, from QUARRY_MPM_FROM and QUARRY_TOKEN (for a farm that
does not show itself to everybody, over HTTP), and from the file that
QUARRY_MPM_CONFIG names, else ` + mpmFile + `, which has the flags' names
as keys. What has been looked at before is answered from the cache: update
brings it up to date.`,
		Example: `  quarry mpm update --from https://farm.example.org/db/testing --signers allowed_signers
  quarry mpm search compress
  quarry mpm install greeter --root /mnt`,
	}
	f := cmd.PersistentFlags()
	f.StringVar(&m.From, "from", "", "https://HOST[/db/CHANNEL], a folder that was exported, or a results repository, e.g. ssh://HOST/results.git")
	f.StringVar(&m.By, "by", "", "how it is read: index, sparse (one package at a time) or git")
	f.StringVar(&m.Git, "git", "", "how much git fetches: shallow, full or partial (default shallow)")
	f.StringVar(&m.Channel, "channel", "", "channel to follow (default that of --from, else testing)")
	f.StringVar(&m.Arch, "arch", "", "arch to install for (default that of the root, else this machine's)")
	f.StringVar(&m.Artifacts, "artifacts", "", "where artifacts are, a URL or folder, if not beside the channel")
	f.StringVar(&m.Signers, "signers", "", "file of allowed signers: nothing is used that none of them has signed")
	f.StringVar(&m.Cache, "cache", "", "folder for what was fetched (default /var/cache/quarry-mpm for root, else ~/.cache/quarry-mpm)")
	f.BoolVar(&m.offline, "offline", false, "use only what is in the cache")
	f.BoolVar(&m.json, "json", false, "write JSON")
	sub := func(use, short string, args cobra.PositionalArgs, run func(context.Context, []string) error) *cobra.Command {
		c := &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
			m.cmd, m.out, m.terminal = cmd, cmd.OutOrStdout(), terminal(cmd.ErrOrStderr())
			if err := m.settle(); err != nil {
				return &control.Error{Code: control.ExitUsage, Err: err}
			}
			err := run(cmd.Context(), args)
			if errors.Is(err, mpm.ErrNotFound) {
				return &control.Error{Code: control.ExitNotFound, Err: err}
			}
			return err
		}}
		cmd.AddCommand(c)
		return c
	}
	rooted := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&m.Root, "root", "", "the system to work on: a folder")
		return c
	}
	update := sub("update", "Bring what is known of the channel up to date", cobra.NoArgs, m.update)
	update.Flags().BoolVar(&m.older, "older", false, "take a state that is older than the one seen before, as after a restore of the farm")
	sub("search TEXT", "Find packages by name or description", cobra.ExactArgs(1), m.search).Long =
		`Finds the packages whose name or description holds a text, in either case, or
whose whole name fits a pattern with * ? or [.`
	sub("show NAME", "Show the versions of a package", cobra.ExactArgs(1), m.show)
	sub("depends NAME...", "List what packages need, in the order of installation", cobra.MinimumNArgs(1), m.depends).Long =
		`Lists packages with all that they need, what is needed first. A package is
given as NAME, NAME-VERSION or 'NAME>=VERSION'.`
	sub("fetch NAME...", "Fetch artifacts into the cache, and verify them", cobra.MinimumNArgs(1), m.fetch).Long =
		`Fetches the artifact of each package, goes on with what was fetched of it
before, verifies its digest, and prints where it is.`
	install := rooted(sub("install NAME...", "Install packages, with what they need", cobra.MinimumNArgs(1), m.install))
	install.Flags().BoolVar(&m.dry, "dry-run", false, "only show what would be installed")
	remove := rooted(sub("remove NAME...", "Remove packages", cobra.MinimumNArgs(1), m.remove))
	remove.Flags().BoolVar(&m.dry, "dry-run", false, "only show what would be removed")
	rooted(sub("list", "List what is installed", cobra.NoArgs, m.list))
	rooted(sub("verify [NAME...]", "Hold installed files against what was installed", cobra.ArbitraryArgs, m.verify)).Long =
		`Holds the files in a root against what packages have installed there. It ends
with 1 if something is missing or changed; files under /etc, which people
change, are only shown.`
	upgrade := rooted(sub("upgrade [NAME...]", "Bring packages to their newest versions", cobra.ArbitraryArgs, m.upgrade))
	upgrade.Flags().BoolVar(&m.dry, "dry-run", false, "only show what would be installed")
	return cmd
}

// settle fills in what flags leave out.
func (m *mpmCmd) settle() error {
	path, explicit := os.LookupEnv("QUARRY_MPM_CONFIG")
	if !explicit {
		path = mpmFile
	}
	var file mpmSettings
	data, err := os.ReadFile(path)
	if err == nil {
		err = toml.NewDecoder(strings.NewReader(string(data))).DisallowUnknownFields().Decode(&file)
		if strict := new(toml.StrictMissingError); errors.As(err, &strict) && len(strict.Errors) > 0 {
			err = fmt.Errorf("key %q is unknown", strings.Join(strict.Errors[0].Key(), "."))
		}
	}
	if err != nil && (explicit || !errors.Is(err, fs.ErrNotExist)) {
		return fmt.Errorf("settings %s cannot be read: %w", path, err)
	}
	if env := os.Getenv("QUARRY_MPM_FROM"); env != "" {
		// The rest of the file is about another source.
		if file.From != env {
			file.Artifacts, file.By, file.Git, file.Channel = "", "", "", ""
		}
		file.From = env
	}
	if m.From != "" && m.From != file.From {
		file.Artifacts, file.By, file.Git, file.Channel = "", "", "", ""
	}
	for _, s := range []struct {
		to   *string
		from string
	}{{&m.From, file.From}, {&m.By, file.By}, {&m.Git, file.Git}, {&m.Channel, file.Channel}, {&m.Arch, file.Arch}, {&m.Artifacts, file.Artifacts},
		{&m.Signers, file.Signers}, {&m.Cache, file.Cache}, {&m.Root, file.Root}} {
		*s.to = cmp.Or(*s.to, s.from)
	}
	if m.Arch != "" {
		if err := quarry.CheckArch(m.Arch); err != nil {
			return err
		}
	}
	if m.Cache == "" {
		m.Cache = "/var/cache/quarry-mpm"
		if os.Geteuid() != 0 {
			dir, err := os.UserCacheDir()
			if err != nil {
				return fmt.Errorf("no folder for the cache is known: say --cache: %w", err)
			}
			m.Cache = filepath.Join(dir, "quarry-mpm")
		}
	}
	return nil
}

// client opens the client, for a function.
func (m *mpmCmd) client(arch string, f func(*mpm.Client) error) (err error) {
	o := mpm.Options{From: m.From, By: m.By, Git: m.Git, Channel: m.Channel, Arch: cmp.Or(m.Arch, arch, config.HostArch()), Cache: m.Cache,
		Artifacts: m.Artifacts, Offline: m.offline, Older: m.older, Token: os.Getenv(tokenEnv), Progress: m.progress()}
	if m.Signers != "" {
		data, err := os.ReadFile(m.Signers)
		if err != nil {
			return fmt.Errorf("allowed signers cannot be read: %w", err)
		}
		if o.Signers, err = trust.ParseAllowedSigners(data); err != nil {
			return fmt.Errorf("%s: %w", m.Signers, err)
		}
		if o.Signers == nil { // none is allowed; nil would be all
			o.Signers = trust.AllowedSigners{}
		}
	}
	c, err := mpm.Open(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := f(c); err != nil {
		return err
	}
	if h := c.Head(); h.Expired(time.Now()) {
		m.say("warning: what is known of channel %s has expired at %s: run quarry mpm update", h.Channel, h.Expires.Format(time.DateTime))
	}
	return nil
}

// say tells people what is not the answer.
func (m *mpmCmd) say(format string, a ...any) {
	fmt.Fprintln(m.cmd.ErrOrStderr(), human.Safe(fmt.Sprintf(format, a...), false))
}

// barFrom is the size of a download from which on its way is shown, in bytes.
const barFrom = 1 << 20

// progress shows downloads: as a bar on a terminal, else a line for each large one
// when it is done.
func (m *mpmCmd) progress() func(what string, done, total int64) {
	var bar *progressbar.ProgressBar
	var of string
	return func(what string, done, total int64) {
		if m.json || total < barFrom && what != "results.git" {
			return
		}
		if !m.terminal.TTY {
			if done == total {
				if what == "results.git" {
					m.say("fetched %s", what)
				} else {
					m.say("fetched %s, %s", what, human.Size(total))
				}
			}
			return
		}
		if of != what {
			of = what
			bar = progressbar.NewOptions64(total, progressbar.OptionSetWriter(m.cmd.ErrOrStderr()), progressbar.OptionSetDescription(human.Safe(what, false)),
				progressbar.OptionShowBytes(total > 1), progressbar.OptionFullWidth(), progressbar.OptionClearOnFinish())
		}
		if done == total {
			bar.Finish()
			of = ""
			return
		}
		bar.Set64(done)
	}
}

func (m *mpmCmd) update(ctx context.Context, _ []string) error {
	return m.client("", func(c *mpm.Client) error {
		changed, err := c.Update(ctx)
		if err != nil {
			return err
		}
		h := c.Head()
		if m.json {
			return human.JSON(m.out, h)
		}
		what := "is still"
		if changed {
			what = "is now"
		}
		signed := "not verified"
		if h.Signer != "" {
			signed = "signed by " + h.Signer
		}
		_, err = fmt.Fprintf(m.out, "%s %s at %.12s of %s, %s\n", h.Channel, what, h.Commit, h.Time.Format(time.DateTime), signed)
		return err
	})
}

// packageJSON is a package with the keys of doc/mirror.md.
type packageJSON struct {
	Name          string   `json:"name"`
	Version       string   `json:"version"`
	Arch          string   `json:"arch"`
	Revision      int64    `json:"revision,omitempty"`
	Description   string   `json:"description,omitempty"`
	Category      string   `json:"category,omitempty"`
	Needed        []string `json:"needed,omitempty"`
	Provides      []string `json:"provides,omitempty"`
	Artifact      string   `json:"artifact,omitempty"`
	ArtifactSize  int64    `json:"artifact_size,omitempty"`
	InstalledSize int64    `json:"installed_size,omitempty"`
}

func packagesJSON(list []mirror.Package) []packageJSON {
	out := []packageJSON{} // never null
	for _, p := range list {
		out = append(out, packageJSON{p.Name, p.Version, p.Arch, p.Revision, p.Description, p.Category, p.Needed, p.Provides, p.Artifact, p.ArtifactSize, p.InstalledSize})
	}
	return out
}

func (m *mpmCmd) packages(list []mirror.Package, what string) error {
	if m.json {
		return human.JSON(m.out, packagesJSON(list))
	}
	var t human.Table
	for _, p := range list {
		t.Row(p.Name, p.Version, p.Arch, human.Size(p.InstalledSize), human.Safe(p.Description, false))
	}
	if t.Len() == 0 {
		return &control.Error{Code: control.ExitNotFound, Err: errors.New(what)}
	}
	_, err := t.WriteTo(m.out)
	return err
}

func (m *mpmCmd) search(ctx context.Context, args []string) error {
	return m.client("", func(c *mpm.Client) error {
		list, err := c.Search(ctx, args[0])
		if err != nil {
			return err
		}
		return m.packages(list, fmt.Sprintf("no package of the channel has %.80q in its name or description", args[0]))
	})
}

func (m *mpmCmd) show(ctx context.Context, args []string) error {
	return m.client("", func(c *mpm.Client) error {
		list, err := c.Versions(ctx, args[0])
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return &control.Error{Code: control.ExitNotFound, Err: fmt.Errorf("%s is not in the channel: quarry mpm search finds what there is", args[0])}
		}
		if m.json {
			return human.JSON(m.out, packagesJSON(list))
		}
		p := list[0]
		var t human.Table
		row := func(key, value string) {
			if value != "" {
				t.Row(key, human.Safe(value, false))
			}
		}
		row("package", p.Name)
		row("description", p.Description)
		row("category", p.Category)
		row("version", fmt.Sprintf("%s, revision %d, for %s", p.Version, p.Revision, p.Arch))
		row("needs", strings.Join(p.Needed, ", "))
		row("recommends", strings.Join(p.Recommended, ", "))
		row("optional", strings.Join(p.Optional, ", "))
		row("provides", strings.Join(p.Provides, ", "))
		row("installed", human.Size(p.InstalledSize))
		row("archive", human.Size(p.ArtifactSize))
		row("sha256", p.Artifact)
		var older []string
		for _, o := range list[1:] {
			older = append(older, o.Version)
		}
		row("older", strings.Join(older, ", "))
		_, err = t.WriteTo(m.out)
		return err
	})
}

func (m *mpmCmd) depends(ctx context.Context, args []string) error {
	return m.client("", func(c *mpm.Client) error {
		list, err := c.Depends(ctx, args...)
		if err != nil {
			return err
		}
		return m.packages(list, "nothing is needed")
	})
}

func (m *mpmCmd) fetch(ctx context.Context, args []string) error {
	return m.client("", func(c *mpm.Client) error {
		wanted, err := c.Wanted(ctx, args...)
		if err != nil {
			return err
		}
		files := []string{}
		for _, p := range wanted {
			file, err := c.Fetch(ctx, p)
			if err != nil {
				return err
			}
			files = append(files, file)
		}
		if m.json {
			return human.JSON(m.out, files)
		}
		_, err = fmt.Fprintln(m.out, strings.Join(files, "\n"))
		return err
	})
}

// root opens the root, for a function.
func (m *mpmCmd) root(f func(*mpm.Root) error) (err error) {
	if m.Root == "" {
		return &control.Error{Code: control.ExitUsage, Err: errors.New("mpm " + m.cmd.Name() + " works on a root: say --root DIR, and / for this system")}
	}
	r, finished, err := mpm.OpenRoot(m.Root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if finished != "" {
		m.say("finished what was under way: %s", finished)
	}
	return f(r)
}

func (m *mpmCmd) done(d *mpm.Done, err error) error {
	if err != nil {
		return err
	}
	for _, n := range d.Notes {
		m.say("note: %s", n)
	}
	if m.json {
		return human.JSON(m.out, struct {
			Installed []packageJSON `json:"installed"`
			Removed   []packageJSON `json:"removed"`
			Notes     []string      `json:"notes,omitempty"`
		}{packagesJSON(d.Installed), packagesJSON(d.Removed), d.Notes})
	}
	verb := map[bool][2]string{false: {"installed", "removed"}, true: {"would be installed", "would be removed"}}[m.dry]
	for i, list := range [][]mirror.Package{d.Installed, d.Removed} {
		for _, p := range list {
			if _, err := fmt.Fprintf(m.out, "%s %s %s %s\n", p.Name, p.Version, p.Arch, verb[i]); err != nil {
				return err
			}
		}
	}
	if len(d.Installed)+len(d.Removed) == 0 {
		_, err = fmt.Fprintln(m.out, "nothing to do")
	}
	return err
}

func (m *mpmCmd) install(ctx context.Context, args []string) error {
	return m.root(func(r *mpm.Root) error {
		return m.client(r.Arch(), func(c *mpm.Client) error { return m.done(c.Install(ctx, r, args, m.dry)) })
	})
}

func (m *mpmCmd) upgrade(ctx context.Context, args []string) error {
	return m.root(func(r *mpm.Root) error {
		return m.client(r.Arch(), func(c *mpm.Client) error { return m.done(c.Upgrade(ctx, r, args, m.dry)) })
	})
}

func (m *mpmCmd) remove(_ context.Context, args []string) error {
	return m.root(func(r *mpm.Root) error { return m.done(r.Remove(args, m.dry)) })
}

func (m *mpmCmd) list(context.Context, []string) error {
	return m.root(func(r *mpm.Root) error {
		list := r.List()
		if m.json {
			return human.JSON(m.out, list)
		}
		var t human.Table
		for _, i := range list {
			why := "needed by others"
			if i.Asked {
				why = "asked for"
			}
			t.Row(i.Package, i.Version, i.Arch, human.Size(i.InstalledSize), i.Installed.Local().Format(time.DateOnly), why)
		}
		_, err := t.WriteTo(m.out)
		return err
	})
}

func (m *mpmCmd) verify(_ context.Context, args []string) error {
	return m.root(func(r *mpm.Root) error {
		found, err := r.Verify(args...)
		if err != nil {
			return err
		}
		bad := 0
		for _, d := range found {
			if !d.Config {
				bad++
			}
		}
		if m.json {
			out := found
			if out == nil {
				out = []mpm.Difference{}
			}
			if err := human.JSON(m.out, out); err != nil {
				return err
			}
		} else {
			for _, d := range found {
				if _, err := fmt.Fprintf(m.out, "%s: %s: %s\n", d.Package, human.Safe(d.Path, false), d.What); err != nil {
					return err
				}
			}
			if len(found) == 0 {
				fmt.Fprintln(m.out, "everything is as it was installed")
			}
		}
		if bad > 0 {
			return &exitError{control.ExitError}
		}
		return nil
	})
}
