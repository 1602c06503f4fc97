package repos

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/gitfs"
	"github.com/Morphux/quarry/recipe"
)

// Releases lists what is released: every branch NAME-VERSION of every
// repository, or of one package's when pkg is not "". channelArchs tells which
// archs a channel builds for, nil when there is no such channel.
//
// What keeps a repository or branch from being built comes back as a problem,
// and the others are listed all the same. Branches of another shape, such as
// master, are neither. An error says that nothing could be listed at all.
func (r *Repos) Releases(ctx context.Context, pkg string, channelArchs func(channel string) []string) ([]quarry.Release, []Problem, error) {
	var found map[string]string
	var problems []Problem
	round := 0
	if pkg != "" {
		path, err := r.Path(pkg)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, nil
		}
		if err != nil {
			return nil, []Problem{{Package: pkg, Repo: pkg + ".git", Err: err}}, nil
		}
		found = map[string]string{pkg: path}
	} else {
		var err error
		if found, problems, err = r.all(); err != nil {
			return nil, nil, err
		}
		r.mu.Lock()
		r.round++
		round = r.round
		r.mu.Unlock()
	}

	var mu sync.Mutex // guards the following
	var releases []quarry.Release
	names := slices.Sorted(maps.Keys(found))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2 * runtime.GOMAXPROCS(0)) // half of it waits for the disk
	for _, name := range names {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			rels, probs := r.repo(ctx, name, found[name], channelArchs)
			mu.Lock()
			defer mu.Unlock()
			releases, problems = append(releases, rels...), append(problems, probs...)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, nil, fmt.Errorf("listing of the repositories was broken off: %w", err)
	}
	if round > 0 {
		r.forget(round)
	}
	slices.SortFunc(releases, func(a, b quarry.Release) int {
		return cmp.Or(strings.Compare(a.Package, b.Package), strings.Compare(a.Version, b.Version))
	})
	slices.SortFunc(problems, func(a, b Problem) int {
		return cmp.Or(strings.Compare(a.Repo, b.Repo), strings.Compare(a.Branch, b.Branch))
	})
	return releases, problems, nil
}

// forget drops commits that neither of the last two full listings had.
func (r *Repos) forget(round int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for hash, c := range r.commits {
		if c.round < round-1 {
			delete(r.commits, hash)
		}
	}
	// Notes are small and mostly one for each commit.
	if len(r.pushes) > 2*len(r.commits)+1000 {
		clear(r.pushes)
	}
}

// pushFolder holds who pushed what: the ref for a branch is a blob, see Push.
// nextFolder holds the same of pushes that have been let in and may not have
// moved their branch yet, see [WriteNext].
const (
	pushFolder = "refs/quarry/push"
	nextFolder = "refs/quarry/next"
)

// reading is one repository while it is listed. It is opened only if it has
// something new.
type reading struct {
	repos *Repos
	path  string
	git   *gitfs.Repo
}

func (rd *reading) open() (*gitfs.Repo, error) {
	if rd.git == nil {
		var err error
		if rd.git, err = gitfs.OpenRepo(rd.path); err != nil {
			return nil, err
		}
	}
	return rd.git, nil
}

// repo lists one repository.
func (r *Repos) repo(ctx context.Context, name, path string, channelArchs func(string) []string) (releases []quarry.Release, problems []Problem) {
	bad := func(branch string, err error) {
		problems = append(problems, Problem{Package: name, Repo: path, Branch: branch, Err: err})
	}
	// Without these it is none of git's, whatever it holds: no refs would mean
	// that all releases were taken back.
	for _, part := range []string{"HEAD", "objects", "refs"} {
		if !isThere(path + "/" + part) {
			bad("", fmt.Errorf("is no bare git repository, as it has no %s: make one with git init --bare, or move it elsewhere", part))
			return nil, problems
		}
	}
	heads, err := gitfs.Refs(ctx, path, "refs/heads")
	if err != nil {
		bad("", err)
		return nil, problems
	}
	notes, err := gitfs.Refs(ctx, path, pushFolder)
	if err != nil {
		bad("", err)
		return nil, problems
	}
	next, err := gitfs.Refs(ctx, path, nextFolder)
	if err != nil {
		bad("", err)
		return nil, problems
	}
	rd := &reading{repos: r, path: path}
	defer func() {
		if rd.git != nil {
			rd.git.Close()
		}
	}()
	for _, branch := range slices.Sorted(maps.Keys(heads)) {
		version, ok, err := quarry.ParseBranch(name, branch)
		switch {
		case err != nil:
			bad(branch, fmt.Errorf("%w; push it under another name", err))
			continue
		case !ok:
			continue
		case heads[branch] == "":
			bad(branch, errors.New("does not point to a commit: push it again"))
			continue
		}
		rel, problem := rd.release(name, version, heads[branch], [2]string{notes[branch], next[branch]}, channelArchs)
		if problem != nil {
			bad(branch, problem)
		}
		if rel != nil {
			releases = append(releases, *rel)
		}
	}
	return releases, problems
}

// release makes a release of a branch. There may be both: one that nothing can
// build.
func (rd *reading) release(name, version, hash string, notes [2]string, channelArchs func(string) []string) (*quarry.Release, error) {
	c, err := rd.commit(hash)
	if err != nil {
		return nil, err
	}
	switch {
	case c.err != nil:
		return nil, c.err
	case c.recipe.Package != name:
		return nil, fmt.Errorf("package.json says that it is %s: push it to %s.git, or change package.name", c.recipe.Package, c.recipe.Package)
	case c.recipe.Version != version:
		return nil, fmt.Errorf("package.json says version %s: push it as %s, or change package.version", c.recipe.Version, quarry.Branch(name, c.recipe.Version))
	}
	rel := &quarry.Release{
		Package: name, Version: version, Channel: rd.repos.DefaultChannel, Commit: hash,
		Time: c.time, Pushed: c.time, Packager: c.by, Repo: rd.path,
	}
	var last *Push
	for _, note := range notes {
		if note == "" {
			continue
		}
		push, err := rd.push(note)
		if err != nil {
			return nil, fmt.Errorf("who pushed it cannot be read: %w", err)
		}
		// A branch that was moved past the farm since has another pusher, of
		// whom only the commit tells.
		if push != nil && push.Commit == hash && (last == nil || push.Pushed.After(last.Pushed)) {
			last = push
		}
	}
	if last != nil {
		rel.Packager, rel.Pushed, rel.Group = last.Packager, last.Pushed, last.Group
		if last.Channel != "" {
			rel.Channel = last.Channel
		}
	}
	archs := channelArchs(rel.Channel)
	c.recipe.Fill(rel, archs)
	switch {
	case len(archs) == 0:
		return rel, fmt.Errorf("channel %s has no architecture to build for: add it to the configuration, or push to another channel", rel.Channel)
	case len(rel.Archs) == 0:
		return rel, fmt.Errorf("package.json allows only %s, and channel %s has %s: nothing can be built",
			strings.Join(c.recipe.Ext.Archs, ", "), rel.Channel, strings.Join(archs, ", "))
	}
	return rel, nil
}

// commit reads what a commit says, or remembers it. An error is trouble in
// reading, which may pass; what is wrong with the commit stays with it.
func (rd *reading) commit(hash string) (*commit, error) {
	r := rd.repos
	r.mu.Lock()
	c := r.commits[hash]
	if c != nil {
		c.round = r.round
	}
	r.mu.Unlock()
	if c != nil {
		return c, nil
	}
	g, err := rd.open()
	if err != nil {
		return nil, err
	}
	f, err := g.Tree(hash)
	if err != nil {
		return nil, err
	}
	info := f.Commit()
	c = &commit{time: info.Committer.Time.UTC(), by: quarry.Packager{Name: info.Committer.Name, Email: info.Committer.Email}}
	if err := quarry.CheckTime(info.Committer.Time); err != nil {
		c = &commit{err: err}
		r.remember(hash, c)
		return c, nil
	}
	loaded, err := recipe.Load(f)
	if err == nil {
		_, err = f.Measure()
	}
	var tree *gitfs.BadTreeError
	switch {
	case err == nil:
		c.recipe = &recipe.Recipe{Package: loaded.Package, Version: loaded.Version, Info: quarry.Info{Needed: loaded.Info.Needed, Provides: loaded.Info.Provides},
			Ext: recipe.Extension{Archs: loaded.Ext.Archs, Noarch: loaded.Ext.Noarch, Memory: loaded.Ext.Memory,
				Conditions: loaded.Ext.Conditions, When: loaded.Ext.When}}
	case len(recipe.Problems(err)) > 0, errors.As(err, &tree):
		c = &commit{err: err}
	default:
		return nil, err
	}
	r.remember(hash, c)
	return c, nil
}

func (r *Repos) remember(hash string, c *commit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c.round = r.round
	r.commits[hash] = c
}

// push reads who pushed, or remembers it. nil is a note that nobody can read,
// which counts as none.
func (rd *reading) push(hash string) (*Push, error) {
	r := rd.repos
	r.mu.Lock()
	p, ok := r.pushes[hash]
	r.mu.Unlock()
	if ok {
		return p, nil
	}
	g, err := rd.open()
	if err != nil {
		return nil, err
	}
	data, err := g.Blob(hash, maxPush)
	switch {
	case err == nil:
		p, _ = parsePush(data) // nil where it cannot be read
	case !errors.Is(err, gitfs.ErrTooLarge):
		return nil, err
	}
	r.mu.Lock()
	r.pushes[hash] = p
	r.mu.Unlock()
	return p, nil
}
