// Package fsck looks whether a results repository is whole: its records, what they
// refer to, its signatures and its history. It only reads, beside whoever writes.
package fsck

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/trust"
)

// Level is how bad something is.
type Level string

// The levels. Only errors are damage.
const (
	Error Level = "error"
	Note  Level = "note" // nothing wrong, and good to know
)

// Finding is one thing that was found.
type Finding struct {
	Level   Level  `json:"level"`
	Channel string `json:"channel,omitempty"`
	Where   string `json:"where"` // a path in the channel, a commit, an artifact, a ref
	What    string `json:"what"`
	Do      string `json:"do,omitempty"` // what to do about it
}

func (f Finding) String() string {
	s := f.Where + ": " + f.What
	if f.Channel != "" {
		s = f.Channel + " " + s
	}
	if f.Do != "" {
		s += ": " + f.Do
	}
	return s
}

// Options say what is looked at.
type Options struct {
	Repo     string   // the results repository, or a bare clone
	Channels []string // none: all
	// Since is a commit: only what has come to the channel since is looked at. Then
	// Channels names one.
	Since     string
	Artifacts string // the folder of artifacts; "": they are not looked for
	// Deep reads each artifact, and has git read each object of the history.
	Deep bool
	// Signers are the keys that the farm has signed with; nil: signatures are not
	// checked.
	Signers trust.AllowedSigners
	Git     string // the git program; "": git
	Workers int    // at once; 0: as many as there are cores
	// Progress, which may be nil, is told how far it is with what; total is 0 where
	// that is not known. It is called by several goroutines, one at a time.
	Progress func(what string, done, total int)
}

// Summary counts what was looked at.
type Summary struct {
	Channels  int  `json:"channels"`
	Records   int  `json:"records"`
	Files     int  `json:"files"` // in the lists
	Commits   int  `json:"commits"`
	Signed    int  `json:"signed"`    // commits whose signature holds
	Attested  int  `json:"attested"`  // successes with a provenance that holds
	Artifacts int  `json:"artifacts"` // that records name
	Orphans   int  `json:"orphans"`   // artifacts that no channel's head and no group names
	Errors    int  `json:"errors"`
	Notes     int  `json:"notes"`
	Deep      bool `json:"deep"`
}

// checker is one run.
type checker struct {
	Options
	ctx      context.Context
	found    func(Finding)
	channels []string // that there are

	mu        sync.Mutex // guards the following, and calls of found and Progress
	sum       Summary
	artifacts map[string]artifact // by hash: what the records looked at name
	wanted    map[string]need     // of dependencies, likewise
}

// artifact is what a record says of one.
type artifact struct {
	size           int64
	channel, where string
	files          func() ([]quarry.File, error) // that it is to hold; nil: not known
}

// need is a dependency that something was built with.
type need struct{ channel, where, pkg, version string }

// Run looks at everything that Options say, and calls found for what it finds, one
// at a time. What is damaged stops nothing. The error says that it could not look.
func Run(ctx context.Context, o Options, found func(Finding)) (Summary, error) {
	o.Git = cmp.Or(o.Git, "git")
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	c := &checker{Options: o, ctx: ctx, found: found, artifacts: map[string]artifact{}, wanted: map[string]need{}}
	c.sum.Deep = o.Deep
	r, err := results.OpenRepository(o.Repo)
	if err != nil {
		return c.sum, err
	}
	defer r.Close()
	if c.channels, err = r.Channels(); err != nil {
		return c.sum, err
	}
	channels := o.Channels
	if len(channels) == 0 {
		channels = c.channels
	}
	if o.Since != "" && len(channels) != 1 {
		return c.sum, fmt.Errorf("a commit is of one channel, and there are %s: name one", strings.Join(channels, ", "))
	}
	c.sum.Channels = len(channels)
	if err := c.git(r, channels); err != nil {
		return c.sum, err
	}
	if err := c.refs(r); err != nil {
		return c.sum, err
	}
	for _, name := range channels {
		s, err := r.Other(name)
		if errors.Is(err, results.ErrNotFound) {
			return c.sum, err
		}
		if err != nil {
			c.bad(name, "head", "it cannot be read: "+err.Error(), "restore the object from a clone or a backup")
			continue
		}
		var since *results.Snapshot
		if o.Since != "" {
			if since, err = s.At(o.Since); err != nil {
				return c.sum, err
			}
		}
		if err := c.records(s, since); err != nil {
			return c.sum, err
		}
		if err := c.history(s, since); err != nil {
			return c.sum, err
		}
	}
	if err := c.needs(r); err != nil {
		return c.sum, err
	}
	if o.Artifacts != "" {
		err = c.store()
	}
	c.sum.Artifacts = len(c.artifacts)
	return c.sum, err
}

// tell tells of something.
func (c *checker) tell(f Finding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.Level == Error {
		c.sum.Errors++
	} else {
		c.sum.Notes++
	}
	c.found(f)
}

// bad tells of an error.
func (c *checker) bad(channel, where, what, do string) {
	c.tell(Finding{Error, channel, where, oneLine(what), do})
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// begin begins a part of the work, of total steps.
func (c *checker) begin(what string, total int) (step func()) {
	done := 0
	tell := func() {
		if c.Progress != nil {
			c.Progress(what, done, total)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	tell()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		done++
		if done%256 == 0 || done == total {
			tell()
		}
	}
}

// git has git look at its objects: at all, or at those that have come since.
func (c *checker) git(r *results.Reader, channels []string) error {
	c.begin("git objects", 0)
	// Each bit is git's to check only where all is read: that takes four times as
	// long. Records that stand, commits and folders are read here in any case.
	args := []string{"-C", c.Repo, "fsck", "--connectivity-only", "--no-dangling", "--no-progress"}
	if c.Deep {
		args = []string{"-C", c.Repo, "fsck", "--full", "--strict", "--no-dangling", "--no-progress"}
	}
	if c.Since != "" {
		args = []string{"-C", c.Repo, "rev-list", "--objects", "--quiet", "refs/heads/" + channels[0], "--not", c.Since}
	}
	cmd := exec.CommandContext(c.ctx, c.Git, args...)
	cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "GIT_") }),
		"LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("git cannot be run: %w", err)
	}
	told := 0
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := oneLine(lines.Text())
		if line == "" || strings.HasPrefix(line, "notice:") || strings.HasPrefix(line, "dangling ") {
			continue
		}
		told++
		c.bad("", "git", line, "restore the object from a clone or a backup")
	}
	err = cmd.Wait()
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	if err != nil && told == 0 {
		c.bad("", "git", fmt.Sprintf("%s: %v", strings.Join(args[2:], " "), err), "run it by hand")
	}
	return nil
}

// refs looks at what is kept beside the channels.
func (c *checker) refs(r *results.Reader) error {
	refs, err := r.Refs("refs/quarry/")
	if err != nil {
		return err
	}
	for name, id := range refs {
		if len(id) != 40 || strings.Trim(id, "0123456789abcdef") != "" {
			c.bad("", name, fmt.Sprintf("it holds %.60q, and no object", id), "restore it with git update-ref, or remove it")
			continue
		}
		at, ok := strings.CutPrefix(name, "refs/quarry/group/")
		if !ok {
			if _, err := r.ReadBlob(id); err != nil {
				c.bad("", name, "what it points to cannot be read: "+err.Error(), "restore the object from a backup, or remove the ref with git update-ref -d")
			}
			continue
		}
		sub, group, err := r.Group(id)
		if err == nil && sub.Channel+"/"+sub.Group != at {
			err = fmt.Errorf("it says that it is group %s on %s", sub.Group, sub.Channel)
		}
		if err != nil {
			c.bad("", name, "the group cannot be read: "+err.Error(), "remove it with git update-ref -d, and submit the group again")
			continue
		}
		if err := c.tree(group, nil, name); err != nil {
			return err
		}
	}
	return nil
}
