package results

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
)

// Options says how a [Repo] is kept. The zero value is fit for use.
type Options struct {
	// Name and Email of the committer; the default is Quarry <quarry@localhost>.
	Name, Email string
	// SBU is how many seconds the farm's standard package takes to build, tests
	// left out; 0 records no SBU.
	SBU float64
	// Sign signs a commit, given whole, as git has it in its header gpgsig: the text
	// between the lines that begin and end a signature, these included. nil: commits
	// are not signed.
	Sign func(commit []byte) ([]byte, error)
	// Prove attests how the success in a record was made; nil: nobody does. The
	// revision of the record is not known yet.
	Prove func(*Record) (Provenance, error)
	// Log says where the full log of a build is found, for the trailer Log. The
	// default is the command that shows it.
	Log func(quarry.Build) string
	// Head is the channel that a clone checks out, for a new repository; the
	// default is testing.
	Head string
	// Git is the git program that repacks; the default is git.
	Git string
	// MaxPacks is how many packs may gather before they are melted together in
	// the background; the default is 100, a negative number leaves it to whoever
	// calls Maintain.
	MaxPacks int
	Logger   *slog.Logger
	// Now is the clock of the committer; the default is time.Now.
	Now func() time.Time
}

// Repo is the results repository, open for writing. It is safe for use by
// several goroutines, and beside other processes that use stock git or another
// Repo on the same folder.
type Repo struct {
	path string
	opts Options
	odb  *odb
	own  *workDir

	mu sync.Mutex // one Record at a time; guards own's files and the following
	// packs that were written since the last maintenance
	packs int

	bg struct { // maintenance in the background
		sync.Mutex
		cancel context.CancelFunc
		done   chan struct{}
	}
}

// Open opens the results repository at path for writing. It is made, bare, if
// there is nothing yet. What earlier writers left when they were killed,
// unfinished files and locks on branches, is cleared away; other programs'
// locks are not touched.
func Open(path string, opts Options) (*Repo, error) {
	if opts.Name == "" {
		opts.Name = "Quarry"
	}
	if opts.Email == "" {
		opts.Email = "quarry@localhost"
	}
	if opts.Log == nil {
		opts.Log = func(b quarry.Build) string { return "quarry log " + strconv.FormatInt(b.Number, 10) }
	}
	if opts.Head == "" {
		opts.Head = "testing"
	}
	if opts.Git == "" {
		opts.Git = "git"
	}
	if opts.MaxPacks == 0 {
		opts.MaxPacks = 100
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := quarry.CheckChannel(opts.Head); err != nil {
		return nil, err
	}
	if err := create(path, opts.Head); err != nil {
		return nil, fmt.Errorf("results repository %s cannot be made: %w", path, err)
	}
	if err := checkRepo(path); err != nil {
		return nil, err
	}
	if err := settle(path); err != nil {
		return nil, err
	}
	own, err := newWorkDir(path)
	if err != nil {
		return nil, fmt.Errorf("results repository %s cannot be opened for writing: %w", path, err)
	}
	r := &Repo{path: path, opts: opts, odb: openODB(path), own: own}
	r.packs = countPacks(path)
	return r, nil
}

// Close ends background work and lets go of the repository.
func (r *Repo) Close() error {
	r.stopMaintenance()
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.own.Close(), r.odb.Close())
}

// Path is the folder of the repository.
func (r *Repo) Path() string { return r.path }

// gitConfig is the configuration of a new repository.
//
//   - fsync: what stock git writes here, a repack above all, is as durable as
//     what Quarry writes.
//   - gc.auto: Quarry melts packs together itself, and it never prunes.
//   - allowFilter, allowAnySHA1InWant: a client may fetch the trees and only
//     the records that it wants (git clone --filter=blob:none).
//   - hideRefs: the farm's git hides these refs in packages' repositories; here
//     they are to be had. A plain clone does not ask for them.
const gitConfig = `[core]
	repositoryformatversion = 0
	filemode = true
	bare = true
	fsync = all
[gc]
	auto = 0
[receive]
	denyNonFastForwards = true
	denyDeletes = true
	fsckObjects = true
[uploadpack]
	allowFilter = true
	allowAnySHA1InWant = true
	hideRefs = !refs/quarry
`

// create makes a bare repository unless something is there. It is made beside
// and then renamed, so that nobody ever sees half of one.
func create(path, head string) error {
	entries, err := os.ReadDir(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		return nil
	}
	parent := filepath.Dir(path)
	if err := os.MkdirAll(parent, 0o777); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(parent, "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	for _, dir := range []string{"objects/info", "objects/pack", "refs/heads", "refs/tags", "info"} {
		if err := os.MkdirAll(filepath.Join(tmp, dir), 0o777); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"HEAD":        "ref: refs/heads/" + head + "\n",
		"config":      gitConfig,
		"description": "Results of the Quarry build farm; see doc/results.md of Quarry\n",
	} {
		if err := writeSynced(filepath.Join(tmp, name), []byte(text), 0o666); err != nil {
			return err
		}
	}
	for _, dir := range []string{"objects", "refs", "."} {
		if err := syncDir(filepath.Join(tmp, dir)); err != nil {
			return err
		}
	}
	// Renaming onto an empty folder replaces it, though os.Rename would refuse;
	// onto one that somebody filled meanwhile fails, and then theirs is used.
	if err := unix.Rename(tmp, path); err != nil {
		if entries, _ := os.ReadDir(path); len(entries) > 0 {
			return nil
		}
		return err
	}
	return syncDir(parent)
}

// checkRepo reports whether a folder is a repository that this package can
// read.
func checkRepo(path string) error {
	for _, name := range []string{"HEAD", "objects", "refs"} {
		if _, err := os.Stat(filepath.Join(path, name)); err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("%s is no bare git repository: it has no %s", path, name)
			}
			return err
		}
	}
	f, err := os.Open(filepath.Join(path, "config"))
	if errors.Is(err, os.ErrNotExist) {
		return nil // git takes the defaults too
	}
	if err != nil {
		return err
	}
	defer f.Close()
	cfg, err := config.ReadConfig(f)
	if err != nil {
		return fmt.Errorf("the git configuration of %s cannot be read: %w", path, err)
	}
	ext := cfg.Raw.Section("extensions")
	if v := ext.Option("objectformat"); v != "" && !strings.EqualFold(v, "sha1") {
		return fmt.Errorf("%s has objects named by %s: results need a repository with SHA-1", path, v)
	}
	if v := ext.Option("refstorage"); v != "" && !strings.EqualFold(v, "files") {
		return fmt.Errorf("%s keeps its branches in a %s: results need a repository made with --ref-format=files", path, v)
	}
	return nil
}

// channels lists the branches that are channels, sorted.
func channels(repo string) ([]string, error) {
	var out []string
	add := func(name string) {
		if quarry.CheckChannel(name) == nil && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	entries, err := os.ReadDir(filepath.Join(repo, "refs", "heads"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			add(e.Name())
		}
	}
	err = eachPackedRef(repo, func(name, _ string) {
		if branch, ok := strings.CutPrefix(name, "refs/heads/"); ok {
			add(branch)
		}
	})
	slices.Sort(out)
	return out, err
}

// Channels lists the channels that have records, sorted.
func (r *Repo) Channels() ([]string, error) { return channels(r.path) }

// historyLimit bounds every walk back through commits.
const historyLimit = 10_000

// walk goes back from a commit over first parents, historyLimit commits at
// most, until f says stop.
func (o *odb) walk(h plumbing.Hash, f func(plumbing.Hash, *commit) (stop bool)) error {
	for range historyLimit {
		if h.IsZero() {
			return nil
		}
		c, err := o.commit(h)
		if err != nil {
			return err
		}
		if f(h, c) {
			return nil
		}
		h = c.parent
	}
	return nil
}

// LastBuild is the highest number of a build that the last thousand commits of
// each channel, and of each submitted group, mention, 0 when there is none. A farm that has lost its state
// folder goes on counting from there.
func (r *Repo) LastBuild() (int64, error) {
	chs, err := r.Channels()
	if err != nil {
		return 0, err
	}
	var last int64
	var tips []plumbing.Hash
	for _, ch := range chs {
		h, err := readRef(r.path, ch)
		if err != nil {
			return 0, err
		}
		tips = append(tips, h)
	}
	groups, err := r.Groups()
	if err != nil {
		r.opts.Logger.Warn("not all groups can be read", "error", err)
	}
	for _, s := range groups {
		if g, err := r.group(s.Channel, s.Group); err == nil {
			tips = append(tips, g.tip)
		}
	}
	for _, h := range tips {
		seen := 0
		err = r.odb.walk(h, func(_ plumbing.Hash, c *commit) bool {
			if n, err := strconv.ParseInt(trailers(c.message)[TrailerBuild], 10, 64); err == nil {
				last = max(last, n)
			}
			seen++
			return seen == 1000
		})
		if err != nil {
			return 0, err
		}
	}
	return last, nil
}
