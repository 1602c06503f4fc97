package mpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/mirror"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/trust"
)

// gitSource is a bare clone that stock git fetches and package results reads.
type gitSource struct {
	c      *Client
	repo   string
	reader *results.Reader
	index  *results.Index
	view   *results.View
}

func newGitSource(c *Client) *gitSource {
	return &gitSource{c: c, repo: filepath.Join(c.dir, "results.git")}
}

func (g *gitSource) close() (err error) {
	if g.reader != nil {
		err = g.reader.Close()
	}
	if g.index != nil {
		err = errors.Join(err, g.index.Close())
	}
	g.reader, g.index, g.view = nil, nil, nil
	return err
}

// incoming is where what is fetched stays until it is believed.
const incoming = "refs/quarry-mpm/incoming"

// git runs git in the clone. The lock of the cache is handed on to it, so that
// after a kill nobody begins beside a git that still works.
func (g *gitSource) git(ctx context.Context, in string, args ...string) ([]byte, error) {
	args = append([]string{"-C", g.repo, "-c", "core.hooksPath=/dev/null", "-c", "protocol.ext.allow=never", "-c", "gc.autoDetach=false", "-c", "maintenance.autoDetach=false"}, args...)
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Env = append(os.Environ(), "GIT_TERMINAL_PROMPT=0", "LC_ALL=C", "GIT_DIR="+g.repo, "GIT_PROTOCOL=version=2")
	if g.c.o.SSH != "" {
		cmd.Env = append(cmd.Env, "GIT_SSH_COMMAND="+g.c.o.SSH)
	}
	cmd.ExtraFiles = []*os.File{g.c.lock}
	cmd.WaitDelay = 5 * time.Second
	if in != "" {
		cmd.Stdin = strings.NewReader(in)
	}
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(err, exec.ErrNotFound) {
			return nil, errors.New("git is not installed: install it, or read the channel over HTTP")
		}
		text := complaint.Bytes()
		return nil, fmt.Errorf("git: %w: %s", err, bytes.TrimSpace(text[max(0, len(text)-1000):]))
	}
	return out.Bytes(), nil
}

// prepare makes the clone, and clears away what a git that was killed left locked.
func (g *gitSource) prepare(ctx context.Context) error {
	if _, err := os.Stat(filepath.Join(g.repo, "objects")); errors.Is(err, fs.ErrNotExist) {
		// Under its name it is whole.
		tmp := g.repo + ".new"
		if err := os.RemoveAll(tmp); err != nil {
			return err
		}
		made := &gitSource{c: g.c, repo: tmp}
		if err := os.Mkdir(tmp, 0o755); err != nil {
			return err
		}
		if _, err := made.git(ctx, "", "init", "-q", "--bare", "."); err != nil {
			return err
		}
		config := [][2]string{{"remote.origin.url", g.c.o.From}, {"gc.pruneExpire", "now"}}
		if g.c.o.Git == GitPartial {
			config = append(config, [2]string{"remote.origin.promisor", "true"}, [2]string{"remote.origin.partialclonefilter", "blob:none"},
				[2]string{"extensions.partialClone", "origin"}, [2]string{"core.repositoryFormatVersion", "1"})
		}
		for _, kv := range config {
			if _, err := made.git(ctx, "", "config", kv[0], kv[1]); err != nil {
				return err
			}
		}
		if err := os.Rename(tmp, g.repo); err != nil {
			return err
		}
	}
	return filepath.WalkDir(g.repo, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && filepath.Base(filepath.Dir(path)) == "objects" {
			return filepath.SkipDir
		}
		if err == nil && !d.IsDir() && strings.HasSuffix(path, ".lock") {
			return os.Remove(path)
		}
		return err
	})
}

func (g *gitSource) update(ctx context.Context, last Head, check func(Head) error) (Head, error) {
	if err := g.close(); err != nil {
		return Head{}, err
	}
	if err := g.prepare(ctx); err != nil {
		return Head{}, err
	}
	args := []string{"fetch", "-q", "--no-tags", "--no-write-fetch-head"}
	if last.Commit == "" && g.c.o.Git != GitFull {
		args = append(args, "--depth=1")
	}
	if g.c.o.Git == GitPartial {
		args = append(args, "--filter=blob:none")
	}
	g.c.o.Progress("results.git", 0, -1)
	branch := "refs/heads/" + g.c.o.Channel
	if _, err := g.git(ctx, "", append(args, "origin", "+"+branch+":"+incoming)...); err != nil {
		if strings.Contains(err.Error(), "couldn't find remote ref") {
			return Head{}, fmt.Errorf("channel %s is not in the repository: %w", g.c.o.Channel, ErrNotFound)
		}
		return Head{}, err
	}
	crash()
	out, err := g.git(ctx, "", "rev-parse", "--verify", incoming+"^{commit}")
	if err != nil {
		return Head{}, err
	}
	commit := strings.TrimSpace(string(out))
	h, err := g.inspect(ctx, commit)
	if err != nil {
		return Head{}, err
	}
	if err := check(h); err != nil {
		return Head{}, err
	}
	if last.Commit != "" && last.Commit != commit && !g.c.o.Older {
		if _, err := g.git(ctx, "", "merge-base", "--is-ancestor", last.Commit, commit); err != nil {
			return Head{}, fmt.Errorf("commit %.12s does not come after %.12s, which was here: %w: if the farm was restored from a backup, say --older", commit, last.Commit, ErrOlder)
		}
	}
	if g.c.o.Git == GitPartial {
		if err := g.records(ctx, last.Commit, commit); err != nil {
			return Head{}, err
		}
	}
	crash()
	if _, err := g.git(ctx, "", "update-ref", branch, commit); err != nil {
		return Head{}, err
	}
	g.c.o.Progress("results.git", 1, 1)
	return h, nil
}

// inspect reads a commit's header, and verifies its signature.
func (g *gitSource) inspect(ctx context.Context, commit string) (Head, error) {
	raw, err := g.git(ctx, "", "cat-file", "commit", commit)
	if err != nil {
		return Head{}, err
	}
	payload, sig, when, err := takeApart(raw)
	if err != nil {
		return Head{}, fmt.Errorf("commit %.12s: %w", commit, err)
	}
	h := Head{Channel: g.c.o.Channel, Commit: commit, Time: when}
	if g.c.o.Signers == nil {
		return h, nil
	}
	if sig == nil {
		return Head{}, fmt.Errorf("commit %.12s has no signature: %w", commit, ErrUntrusted)
	}
	// As of the commit's time: the newest may be of long ago.
	key, err := g.c.o.Signers.Verify(trust.Git, payload, sig, when)
	if err != nil {
		return Head{}, fmt.Errorf("commit %.12s: %w: %w", commit, ErrUntrusted, err)
	}
	h.Signer = ssh.FingerprintSHA256(key)
	return h, nil
}

// takeApart gives what of a commit is signed, the signature, and its committer's
// time.
func takeApart(raw []byte) (payload, sig []byte, when time.Time, err error) {
	var out bytes.Buffer
	inSig := false
	rest := raw
	for len(rest) > 0 {
		line := rest
		if i := bytes.IndexByte(rest, '\n'); i >= 0 {
			line = rest[:i+1]
		}
		if len(line) == 1 { // the message begins
			break
		}
		rest = rest[len(line):]
		switch {
		case bytes.HasPrefix(line, []byte("gpgsig ")):
			if sig != nil {
				return nil, nil, when, errors.New("it has two signatures")
			}
			inSig = true
			sig = append(sig, line[len("gpgsig "):]...)
			continue
		case inSig && line[0] == ' ':
			sig = append(sig, line[1:]...)
			continue
		case bytes.HasPrefix(line, []byte("committer ")):
			fields := bytes.Fields(line)
			n, err := strconv.ParseInt(string(fields[max(0, len(fields)-2)]), 10, 64)
			if err != nil {
				return nil, nil, when, errors.New("its time cannot be read")
			}
			when = time.Unix(n, 0).UTC()
		}
		inSig = false
		out.Write(line)
	}
	out.Write(rest)
	if when.IsZero() {
		return nil, nil, when, errors.New("it has no committer")
	}
	return out.Bytes(), sig, when, nil
}

// records fetches the records of the arch that a partial clone does not have yet.
func (g *gitSource) records(ctx context.Context, from, to string) error {
	want := map[string]bool{}
	list := func(commit string, each func(id string)) error {
		out, err := g.git(ctx, "", "ls-tree", "-r", "-z", commit, "packages/")
		if err != nil {
			return err
		}
		for entry := range strings.SplitSeq(string(out), "\x00") {
			meta, path, ok := strings.Cut(entry, "\t")
			fields := strings.Fields(meta)
			base := path[strings.LastIndexByte(path, '/')+1:]
			if ok && len(fields) == 3 && (base == g.c.o.Arch+".toml" || base == quarry.Noarch+".toml") {
				each(fields[2])
			}
		}
		return nil
	}
	if err := list(to, func(id string) { want[id] = true }); err != nil {
		return err
	}
	if from != "" {
		if err := list(from, func(id string) { delete(want, id) }); err != nil {
			return err
		}
	}
	if len(want) == 0 {
		return nil
	}
	var in strings.Builder
	for id := range want {
		in.WriteString(id + "\n")
	}
	_, err := g.git(ctx, in.String(), "-c", "fetch.negotiationAlgorithm=noop", "fetch", "-q", "--no-tags", "--no-write-fetch-head", "--filter=blob:none", "--stdin", "origin")
	return err
}

// open opens the clone at the commit that the state names.
func (g *gitSource) open() (*results.Reader, error) {
	if g.reader != nil {
		return g.reader, nil
	}
	r, err := results.OpenReader(g.repo, g.c.o.Channel)
	if err == nil && r.Commit() != g.c.head.Commit {
		if err = r.Switch(g.c.head.Commit); err != nil {
			r.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cache %s is damaged, remove it: %w", g.c.dir, err)
	}
	g.reader = r
	return r, nil
}

func (g *gitSource) versions(_ context.Context, name string) ([]mirror.Package, error) {
	r, err := g.open()
	if err != nil {
		return nil, err
	}
	versions, err := r.Versions(name, g.c.o.Arch)
	if err != nil {
		return nil, err
	}
	var out []mirror.Package
	for _, v := range versions {
		a, ok, err := r.Available(name, v, g.c.o.Arch)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		e, err := r.Entry(name, v, a.Arch)
		if err != nil {
			return nil, err
		}
		out = append(out, packageOf(e))
	}
	return out, nil
}

func packageOf(e *results.Entry) mirror.Package {
	return mirror.Package{Name: e.Package, Version: e.Version, Arch: e.Arch, Revision: e.Revision, Description: e.Description(), Category: e.Category(),
		Needed: e.Needed(), Recommended: e.Recommended(), Optional: e.Optional(), Provides: e.Provides(), Artifact: e.Artifact(), ArtifactSize: e.ArtifactSize, InstalledSize: e.Size,
		ABI: e.ABI(), Build: e.Build, Ended: e.Ended(), Source: e.Source(), Record: e.Blob()}
}

// all reads all records, for what looks at all of them.
func (g *gitSource) all(ctx context.Context) (*results.View, error) {
	if g.view != nil {
		return g.view, nil
	}
	if _, err := g.open(); err != nil {
		return nil, err
	}
	x, err := results.OpenIndex(g.repo)
	if err != nil {
		return nil, err
	}
	v, err := x.View(ctx, g.c.o.Channel)
	if err != nil {
		return nil, errors.Join(err, x.Close())
	}
	g.index, g.view = x, v
	return v, nil
}

func (g *gitSource) newest(ctx context.Context, each func(*mirror.Package) bool) error {
	v, err := g.all(ctx)
	if err != nil {
		return err
	}
	for p := range v.Packages("") {
		// The newest version comes first; of one version the arch's goes before noarch.
		var found *results.Entry
		for _, e := range p.Entries {
			if e.Fault != nil || e.Arch != g.c.o.Arch && e.Arch != quarry.Noarch {
				continue
			}
			if found == nil || e.Version == found.Version && e.Arch == g.c.o.Arch {
				found = e
			}
		}
		if found == nil {
			continue
		}
		pkg := packageOf(found)
		if !each(&pkg) {
			break
		}
	}
	return nil
}

func (g *gitSource) providers(ctx context.Context, name string) ([]string, error) {
	v, err := g.all(ctx)
	if err != nil {
		return nil, err
	}
	return slices.Clone(v.Providers(name, 0)), nil
}

var _ io.Closer = (*Client)(nil)
