// Package repos is the folder of package repositories: one bare git repository
// NAME.git for each package, whose branches NAME-VERSION are the releases.
//
// Git is the database here. What this package remembers in memory is only what
// a commit says, which never changes, so that looking again is cheap; beside
// each release it finds who pushed it ([Push]), which the push wrote into the
// repository. Repositories of other git servers take part where they are
// (extra).
package repos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/durable"
	"github.com/Morphux/quarry/internal/gitfs"
	"github.com/Morphux/quarry/recipe"
)

// Repos is the package repositories of a farm. Its methods may be called by
// several goroutines at once.
type Repos struct {
	// DefaultChannel is the channel of releases whose push named none. It is
	// testing where it is not set.
	DefaultChannel string
	// Prepare, if set, is run on a new repository before it takes its place,
	// where the first push finds it: to install hooks, say. path will not be the
	// repository's path for long.
	Prepare func(path string) error

	dir   string
	extra []string

	mu      sync.Mutex         // guards the following
	outside map[string]string  // package to path of what extra matched last
	commits map[string]*commit // by hash; entries do not change
	pushes  map[string]*Push   // by hash of the blob; nil: no push can be read there
	recipes map[string]*recipe.Recipe
	round   int // counts full listings, to forget commits that are in none
}

// maxRecipes is how many whole recipes are kept for builds about to start.
const maxRecipes = 256

// Problem is why a repository or branch takes no part. The others are not
// touched by it.
type Problem struct {
	Package string // "" when the repository's name names none
	Repo    string // path
	Branch  string // e.g. zlib-1.3.1; "" when it is about the whole repository
	Err     error
}

func (p Problem) Error() string {
	if p.Branch != "" {
		return fmt.Sprintf("branch %s of %s: %v", p.Branch, p.Repo, p.Err)
	}
	return fmt.Sprintf("%s: %v", p.Repo, p.Err)
}

// Unwrap gives the error itself.
func (p Problem) Unwrap() error { return p.Err }

// Open gives the repositories in dir, which is made if it is not there, and
// those that the globs of extra match (as of filepath.Match; each a bare
// repository NAME.git of another git server). A package that is in both is
// taken from dir. It sweeps dir of what a crash left half made, so it is for
// the one daemon of a state folder.
func Open(dir string, extra []string) (*Repos, error) {
	for _, glob := range extra {
		if _, err := filepath.Match(glob, ""); err != nil || !filepath.IsAbs(glob) {
			return nil, fmt.Errorf("extra repositories %q cannot be looked for: give an absolute path, with * and ? for what varies", glob)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("folder of the repositories cannot be made: %w", err)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	r := &Repos{
		DefaultChannel: "testing", dir: dir, extra: slices.Clone(extra),
		outside: map[string]string{}, commits: map[string]*commit{}, pushes: map[string]*Push{}, recipes: map[string]*recipe.Recipe{},
	}
	// What a crash in the middle of Ensure left.
	halves, err := filepath.Glob(filepath.Join(globEscape(dir), newPrefix+"*"))
	if err != nil {
		return nil, err
	}
	for _, half := range halves {
		if err := os.RemoveAll(half); err != nil {
			return nil, fmt.Errorf("half-made repository cannot be removed: %w", err)
		}
	}
	return r, settle(dir)
}

func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// newPrefix begins the names of repositories that are being made.
const newPrefix = ".new-"

// settings of a repository, each with its reason.
const settings = settled + `[core]
	# an acknowledged push survives a power cut; git leaves loose objects and refs to luck
	fsync = committed,reference
	fsyncMethod = batch
	# pushes and notes of who pushed wait for each other, in milliseconds
	filesRefLockTimeout = 10000
	# who moved what when
	logAllRefUpdates = true
[receive]
	# git push -o follow
	advertisePushOptions = true
	# who pushed is written there by the farm, and must not be pushable
	hideRefs = refs/quarry
	# hostile objects stay out
	fsckObjects = true
	# a release may be replaced, and taken back
	denyNonFastForwards = false
	denyDeletes = false
	denyDeleteCurrent = ignore
[uploadpack]
	allowFilter = true
`

// Ensure gives the path of a package's repository, which it makes and
// configures if there is none. Of several at once, one makes it.
func (r *Repos) Ensure(name string) (string, error) {
	switch path, err := r.Path(name); {
	case err == nil:
		return path, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	half, err := os.MkdirTemp(r.dir, newPrefix+name+"-")
	if err != nil {
		return "", fmt.Errorf("repository of %s cannot be made: %w", name, err)
	}
	defer os.RemoveAll(half) // nothing, once it has been renamed
	path := filepath.Join(r.dir, name+".git")
	if err := r.make(half); err != nil {
		return "", fmt.Errorf("repository of %s cannot be made: %w", name, err)
	}
	if err := os.Rename(half, path); err != nil {
		if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
			return r.Path(name) // somebody else was faster
		}
		return "", fmt.Errorf("repository of %s cannot be made: %w", name, err)
	}
	return path, durable.SyncDir(r.dir)
}

func (r *Repos) make(path string) error {
	if err := os.Chmod(path, 0o755); err != nil { // MkdirTemp makes it private
		return err
	}
	// No template: its sample hooks would be most of a small repository.
	if _, err := git(context.Background(), "", nil, "init", "-q", "--bare", "--template=", "-b", "master", path); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(path, "config"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(settings)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if r.Prepare != nil {
		return r.Prepare(path)
	}
	return nil
}

// git runs stock git and gives what it prints. Nothing of the environment that
// a hook runs in is passed on: it would point git at the pushed-to repository's
// quarantine.
func git(ctx context.Context, dir string, input []byte, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "GIT_") })
	cmd.Env = append(cmd.Env, "GIT_TERMINAL_PROMPT=0", "LC_ALL=C")
	cmd.Stdin = bytes.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		said := strings.Join(strings.FieldsFunc(stderr.String(), func(c rune) bool { return c == '\n' }), "; ")
		return "", fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, said)
	}
	return strings.TrimSpace(stdout.String()), nil
}

// Path is where a package's repository is. An error that is fs.ErrNotExist says
// that there is none.
func (r *Repos) Path(name string) (string, error) {
	if err := quarry.CheckName(name); err != nil {
		return "", err
	}
	path := filepath.Join(r.dir, name+".git")
	switch _, err := os.Stat(path); {
	case err == nil:
		return path, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("repository of %s cannot be looked at: %w", name, err)
	}
	if len(r.extra) > 0 {
		r.mu.Lock()
		path := r.outside[name]
		r.mu.Unlock()
		if path == "" || !isThere(path) {
			r.glob()
			r.mu.Lock()
			path = r.outside[name]
			r.mu.Unlock()
		}
		if path != "" {
			return path, nil
		}
	}
	return "", fmt.Errorf("package %s has no repository: push to it to make one: %w", name, fs.ErrNotExist)
}

func isThere(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// glob looks again for what extra matches.
func (r *Repos) glob() []Problem {
	var problems []Problem
	found := map[string]string{}
	for _, glob := range r.extra {
		paths, err := filepath.Glob(glob)
		if err != nil {
			problems = append(problems, Problem{Repo: glob, Err: err})
			continue
		}
		slices.Sort(paths)
		for _, path := range paths {
			name, problem := packageOf(path)
			switch first := found[name]; {
			case problem != nil:
				problems = append(problems, *problem)
			case name == "":
			case first != "" && first != path:
				problems = append(problems, Problem{Repo: path, Err: fmt.Errorf("package %s is in %s already: rename one of the two", name, first)})
			default:
				found[name] = path
			}
		}
	}
	r.mu.Lock()
	r.outside = found
	r.mu.Unlock()
	return problems
}

// packageOf tells the package of a repository by its path. Neither a name nor a
// problem is for what obviously is no repository.
func packageOf(path string) (string, *Problem) {
	base := filepath.Base(path)
	name, ok := strings.CutSuffix(base, ".git")
	if base[0] == '.' || base == "lost+found" {
		return "", nil
	}
	if !ok {
		return "", &Problem{Repo: path, Err: errors.New("is no repository of a package: move it elsewhere, or name it NAME.git")}
	}
	if err := quarry.CheckName(name); err != nil {
		return "", &Problem{Repo: path, Err: fmt.Errorf("%w; rename it or move it elsewhere", err)}
	}
	return name, nil
}

// all lists every package with its repository.
func (r *Repos) all() (map[string]string, []Problem, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("repositories cannot be listed: %w", err)
	}
	problems := r.glob()
	found := map[string]string{}
	for _, e := range entries {
		path := filepath.Join(r.dir, e.Name())
		name, problem := packageOf(path)
		if problem != nil {
			problems = append(problems, *problem)
		} else if name != "" {
			found[name] = path
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, path := range r.outside {
		if own, ok := found[name]; ok {
			problems = append(problems, Problem{Repo: path, Err: fmt.Errorf("package %s is in %s already: rename one of the two", name, own)})
			continue
		}
		found[name] = path
	}
	return found, problems, nil
}

// Recipe reads the recipe of a release, which is shared: do not change it. What
// is wrong with it is an error for which [recipe.Problems] is not empty.
func (r *Repos) Recipe(ctx context.Context, rel quarry.Release) (*recipe.Recipe, error) {
	r.mu.Lock()
	known := r.recipes[rel.Commit]
	r.mu.Unlock()
	if known != nil {
		return known, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := gitfs.Open(rel.Repo, rel.Commit)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	loaded, err := recipe.Load(f)
	if err != nil {
		return nil, err
	}
	r.keep(rel.Commit, loaded)
	return loaded, nil
}

// keep remembers a recipe. When there are too many all are forgotten: they are
// read again in a millisecond each.
func (r *Repos) keep(commit string, loaded *recipe.Recipe) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.recipes) >= maxRecipes {
		clear(r.recipes)
	}
	r.recipes[commit] = loaded
}

// Source is the tree of a release. It is an io.Closer too, to be closed after
// use. The tree has been measured: it is within the limits of [gitfs.FS.Measure].
func (r *Repos) Source(rel quarry.Release) (fs.FS, error) {
	f, err := gitfs.Open(rel.Repo, rel.Commit)
	if err != nil {
		return nil, err
	}
	if _, err := f.Measure(); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// commit is what a listing has to know of a commit.
type commit struct {
	err    error          // the recipe is not fit, and why; nothing else is set then
	recipe *recipe.Recipe // only what recipe.Fill needs
	time   time.Time
	by     quarry.Packager // committer
	round  int             // of the last full listing that had it
}
