package mpm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/durable"
	"github.com/Morphux/quarry/mirror"
	"github.com/Morphux/quarry/trust"
)

// crash is where a test ends the program.
var crash = func() {}

// ErrNotFound is wrapped by the error for a package that the channel does not have.
var ErrNotFound = errors.New("not found")

// ErrOlder is wrapped by the error for a source that shows an older state of the
// channel than was seen before.
var ErrOlder = errors.New("it shows an older state than was seen before")

// ErrUntrusted is wrapped by the error for a source whose signature is missing, or
// not of a key that is allowed.
var ErrUntrusted = errors.New("it is not signed by an allowed key")

// How a channel is read.
const (
	ByIndex  = "index"  // the compact index, brought up to date by deltas
	BySparse = "sparse" // a package's file when it is asked for
	ByGit    = "git"    // the results repository
)

// How much of the results repository is fetched.
const (
	GitShallow = "shallow" // the newest commit, and from then on all
	GitFull    = "full"    // all history
	GitPartial = "partial" // as shallow, without lists of files and other archs' records
)

// Options say what a client follows.
type Options struct {
	// From is where the channel is: http://HOST or https://HOST, with /db/CHANNEL or
	// without; a folder that was exported, or file:// and it; a results repository,
	// as git takes it, e.g. ssh://HOST/results.git.
	From string
	// By is how it is read; "": ByGit for repositories, else ByIndex.
	By  string
	Git string // for ByGit; "": GitShallow
	// Channel is testing where neither it nor From says.
	Channel string
	Arch    string // as uname -m has it; required
	Cache   string // folder for the local copy and for artifacts; required
	// Artifacts is where artifacts are, a URL or a folder, if not beside the channel.
	Artifacts string
	// Signers are the keys that may sign. nil: signatures are not looked at, and the
	// connection is all there is to trust.
	Signers trust.AllowedSigners
	// Offline uses what is here already.
	Offline bool
	// Older takes an older state than was seen before: for a farm that was restored
	// from a backup.
	Older bool
	// Progress, where it is set, is told how far a download has come, in bytes; total
	// is -1 where it is not known. done == total at its end.
	Progress func(what string, done, total int64)
	// Token is for a farm that does not show itself to everybody. Over git it is git's
	// own matter.
	Token string
	// HTTP is the client to use; nil: one with sane times.
	HTTP *http.Client
	// SSH is git's GIT_SSH_COMMAND; "": as the environment has it.
	SSH string
}

// Head is the state of the channel that answers come from.
type Head struct {
	Channel string    `json:"channel" toml:"channel"`
	Commit  string    `json:"commit" toml:"commit"`
	Time    time.Time `json:"time" toml:"time"`
	Checked time.Time `json:"checked" toml:"checked"`          // when the source last said so
	Signer  string    `json:"signer,omitempty" toml:"signer"`  // fingerprint of the key
	Expires time.Time `json:"expires,omitzero" toml:"expires"` // zero: it does not say
	Schema  int       `json:"-" toml:"schema"`
	ETag    string    `json:"-" toml:"etag"`
	File    string    `json:"-" toml:"file"` // that holds the head as it came
}

// Expired reports whether the source should have said something newer by now.
func (h Head) Expired(now time.Time) bool { return !h.Expires.IsZero() && !now.Before(h.Expires) }

// Client reads one channel. It is not for use by several goroutines at a time.
type Client struct {
	o    Options
	site site // of files; nil where there is only git
	dir  string
	src  source
	head Head
	lock *os.File
}

// source is one of the ways to read a channel.
type source interface {
	// update brings the local copy up to date, or leaves it as it is. It calls check
	// with what the source shows, before that is used.
	update(ctx context.Context, last Head, check func(Head) error) (Head, error)
	// versions lists what there is of a name, for any of the archs, in any order.
	versions(ctx context.Context, name string) ([]mirror.Package, error)
	// providers lists names of packages that may provide a virtual one.
	providers(ctx context.Context, name string) ([]string, error)
	// newest goes over the newest version of each package, by name.
	newest(ctx context.Context, each func(*mirror.Package) bool) error
	close() error
}

// Open opens a client, of which one at a time can use a cache for a channel. It
// reads nothing from afar: see [Client.Update].
func Open(o Options) (*Client, error) {
	if o.Arch == quarry.Noarch || quarry.CheckArch(o.Arch) != nil {
		return nil, fmt.Errorf("arch %.40q is none to install on: say which, e.g. x86_64", o.Arch)
	}
	if o.Cache == "" {
		return nil, errors.New("a cache folder is needed: say where")
	}
	if o.HTTP == nil {
		o.HTTP = newHTTPClient()
	}
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	cache, err := filepath.Abs(o.Cache)
	if err != nil {
		return nil, err
	}
	o.Cache = cache
	c := &Client{o: o}
	kind, err := c.o.locate()
	if err != nil {
		return nil, err
	}
	if err := quarry.CheckChannel(c.o.Channel); err != nil {
		return nil, err
	}
	// One folder for all that makes one copy.
	words := []string{c.o.From, c.o.By, c.o.Git, c.o.Channel, c.o.Arch}
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	c.dir = filepath.Join(o.Cache, "db", hex.EncodeToString(sum[:8]))
	for _, d := range []string{c.dir, filepath.Join(o.Cache, "artifacts")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	if c.lock, err = flock(filepath.Join(c.dir, "lock"), "cache "+c.dir); err != nil {
		return nil, err
	}
	if err := readTOML(filepath.Join(c.dir, "state.toml"), &c.head); err != nil && !errors.Is(err, fs.ErrNotExist) {
		c.lock.Close()
		return nil, fmt.Errorf("cache %s is damaged, remove it: %w", c.dir, err)
	}
	switch {
	case kind == ByGit:
		c.src = newGitSource(c)
	case c.o.By == BySparse:
		c.site = c.o.site(c.o.From)
		c.src = &sparseSource{indexSource: newIndexSource(c)}
	default:
		c.site = c.o.site(c.o.From)
		c.src = newIndexSource(c)
	}
	return c, nil
}

// Close lets go of the cache.
func (c *Client) Close() error { return errors.Join(c.src.close(), c.lock.Close()) }

// locate finds out what From is, and takes the channel off its end.
func (o *Options) locate() (kind string, err error) {
	if o.From == "" {
		return "", errors.New("nothing says where the channel is: give --from, QUARRY_MPM_FROM or from in mpm.toml")
	}
	switch o.By {
	case "", ByIndex, BySparse, ByGit:
	default:
		return "", fmt.Errorf("%.40q is no way to read a channel: say %s, %s or %s", o.By, ByIndex, BySparse, ByGit)
	}
	switch o.Git {
	case "", GitShallow, GitFull, GitPartial:
	default:
		return "", fmt.Errorf("%.40q is no kind of clone: say %s, %s or %s", o.Git, GitShallow, GitFull, GitPartial)
	}
	from, err := o.isGit()
	if err != nil {
		return "", err
	}
	if from {
		if o.By != "" && o.By != ByGit {
			return "", fmt.Errorf("%s is a repository, which is read by git: leave out --by %s", o.From, o.By)
		}
		o.By, o.Git = ByGit, cmp.Or(o.Git, GitShallow)
		o.Channel = cmp.Or(o.Channel, "testing")
		return ByGit, nil
	}
	if o.By == ByGit {
		return "", fmt.Errorf("%s does not look like a repository: give one, e.g. ssh://farm.example.org/results.git", o.From)
	}
	o.By, o.Git = cmp.Or(o.By, ByIndex), ""
	base := strings.TrimRight(o.From, "/")
	if i := strings.LastIndex(base, "/db/"); i >= 0 && quarry.CheckChannel(base[i+4:]) == nil {
		channel := base[i+4:]
		if o.Channel != "" && o.Channel != channel {
			return "", fmt.Errorf("%s is channel %s, and %s is asked for: leave one out", o.From, channel, o.Channel)
		}
		o.Channel, base = channel, base[:i]
	}
	o.From, o.Channel = base, cmp.Or(o.Channel, "testing")
	return ByIndex, nil
}

// isGit reports whether From is a repository; a path becomes one without file://.
func (o *Options) isGit() (bool, error) {
	scheme, rest, ok := strings.Cut(o.From, "://")
	switch {
	case ok && (scheme == "ssh" || scheme == "git"):
		return true, nil
	case ok && (scheme == "http" || scheme == "https"):
		return o.By == ByGit || strings.HasSuffix(strings.TrimRight(rest, "/"), ".git"), nil
	case ok && scheme != "file":
		return false, fmt.Errorf("%.80q is of no kind that is known: give http://, https://, ssh://, file:// or a folder", o.From)
	case ok:
		o.From = rest
	case strings.HasPrefix(o.From, "-"):
		return false, fmt.Errorf("%.80q is no place: it begins with a dash", o.From)
	case strings.Contains(o.From, ":") && !strings.HasPrefix(o.From, "/") && !strings.HasPrefix(o.From, "."):
		return true, nil // git@host:path
	}
	path, err := filepath.Abs(o.From)
	if err != nil {
		return false, err
	}
	o.From = path
	_, head := os.Stat(filepath.Join(path, "HEAD"))
	_, objects := os.Stat(filepath.Join(path, "objects"))
	return head == nil && objects == nil, nil
}

// Head is what the answers come from; its Commit is "" before the first Update.
func (c *Client) Head() Head { return c.head }

// Update brings the local copy up to date, and reports whether the channel has
// changed. On an error the copy is what it was.
func (c *Client) Update(ctx context.Context) (changed bool, err error) {
	if c.o.Offline {
		return false, errors.New("an update needs the source: leave out --offline")
	}
	head, err := c.src.update(ctx, c.head, c.check)
	if err != nil {
		return false, fmt.Errorf("channel %s of %s was not updated: %w", c.o.Channel, c.o.From, err)
	}
	head.Schema, head.Checked = 1, time.Now().UTC().Truncate(time.Second)
	data, err := toml.Marshal(head)
	if err == nil {
		crash()
		err = durable.WriteFile(filepath.Join(c.dir, "state.toml"), data, 0o644, ".state-*")
		crash()
	}
	if err != nil {
		return false, err
	}
	changed = head.Commit != c.head.Commit
	c.head = head
	return changed, nil
}

// check reports why what a source shows is not to be taken.
func (c *Client) check(h Head) error {
	if h.Channel != c.o.Channel {
		return fmt.Errorf("it is channel %s, and %s was asked for", h.Channel, c.o.Channel)
	}
	if h.Time.Before(c.head.Time) && !c.o.Older {
		return fmt.Errorf("it is of %s, and one of %s was here: %w: if the farm was restored from a backup, say --older",
			h.Time.Format(time.RFC3339), c.head.Time.Format(time.RFC3339), ErrOlder)
	}
	if h.Expired(time.Now()) {
		return fmt.Errorf("it has expired at %s: the mirror is not kept up to date, or holds news back", h.Expires.Format(time.RFC3339))
	}
	return nil
}

// ready sees to it that there is a local copy.
func (c *Client) ready(ctx context.Context) error {
	if c.head.Commit != "" {
		return nil
	}
	if c.o.Offline {
		return fmt.Errorf("nothing of channel %s is here yet: run quarry mpm update first, without --offline", c.o.Channel)
	}
	_, err := c.Update(ctx)
	return err
}

// Versions lists the versions of a package that can be had for the arch, the
// newest first; none is an empty list.
func (c *Client) Versions(ctx context.Context, name string) ([]mirror.Package, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	if err := quarry.CheckName(name); err != nil {
		return nil, err
	}
	list, err := c.src.versions(ctx, name)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(slices.Clone(list), func(p mirror.Package) bool {
		return p.Name != name || p.Arch != c.o.Arch && p.Arch != quarry.Noarch
	})
	slices.SortStableFunc(list, func(a, b mirror.Package) int {
		return cmp.Or(quarry.CompareVersions(b.Version, a.Version), strings.Compare(b.Version, a.Version), own(a, c.o.Arch)-own(b, c.o.Arch))
	})
	return slices.CompactFunc(list, func(a, b mirror.Package) bool { return a.Version == b.Version }), nil
}

// own is 0 for what is built for the arch, which goes before noarch.
func own(p mirror.Package, arch string) int {
	if p.Arch == arch {
		return 0
	}
	return 1
}

// Search lists the newest version of each package whose name or description holds
// a text, in either case, or whose whole name fits a pattern with * ? or [.
func (c *Client) Search(ctx context.Context, text string) ([]mirror.Package, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	fits, err := matcher(text)
	if err != nil {
		return nil, err
	}
	var out []mirror.Package
	err = c.src.newest(ctx, func(p *mirror.Package) bool {
		if (p.Arch == c.o.Arch || p.Arch == quarry.Noarch) && fits(p) {
			out = append(out, *p)
		}
		return true
	})
	return out, err
}

func matcher(text string) (func(*mirror.Package) bool, error) {
	text = strings.ToLower(text)
	if strings.ContainsAny(text, "*?[") {
		if _, err := filepath.Match(text, ""); err != nil {
			return nil, fmt.Errorf("pattern %.80q cannot be read: %w", text, err)
		}
		return func(p *mirror.Package) bool {
			ok, err := filepath.Match(text, strings.ToLower(p.Name))
			return ok && err == nil
		}, nil
	}
	return func(p *mirror.Package) bool {
		return strings.Contains(strings.ToLower(p.Name), text) || strings.Contains(strings.ToLower(p.Description), text)
	}, nil
}

// flock takes a lock for as long as the file is open.
func flock(path, what string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is in use by another quarry mpm: wait for it to end", what)
		}
		return nil, err
	}
	return f, nil
}

func readTOML(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return toml.Unmarshal(data, v)
}
