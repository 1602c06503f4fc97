package repos

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/pelletier/go-toml/v2"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/gitfs"
)

// Push is who released a branch, when and where to. Git does not know: author
// and committer are what a commit claims, and it may be years old. So it is
// written into the repository as a small TOML file, a blob that the ref
// refs/quarry/push/BRANCH points to; git show prints it.
type Push struct {
	Packager quarry.Packager `toml:"packager"`
	Pushed   time.Time       `toml:"pushed"`
	Commit   string          `toml:"commit"`            // what was pushed, 40 hex digits
	Channel  string          `toml:"channel,omitempty"` // "": the default one
	Group    string          `toml:"group,omitempty"`   // to land with, see [quarry.Release.Group]
}

// pushSchema is the version of the format.
const pushSchema = 1

type pushFile struct {
	Schema int `toml:"schema"`
	Push
}

const maxPush = 64 << 10 // bytes in a note

// WritePush notes who pushed a branch, with stock git. Where the branch is not
// at p.Commit any more, it writes nothing and that is no error: whoever moved it
// notes it. It may be called from a hook.
func WritePush(ctx context.Context, repo, branch string, p Push) error {
	fail := func(err error) error { return notNoted(branch, repo, err) }
	blob, err := writeNote(ctx, repo, branch, p)
	if err != nil {
		return err
	}
	// One transaction, which holds only if the branch is still there.
	ref := "refs/heads/" + branch
	change := fmt.Sprintf("verify %s %s\nupdate %s/%s %s\n%s", ref, p.Commit, pushFolder, branch, blob, keepCert(p.Packager.Certificate))
	if _, err = git(ctx, "", []byte(change), append(durably(repo), "update-ref", "--stdin")...); err == nil {
		return nil
	}
	heads, rerr := gitfs.Refs(ctx, repo, "refs/heads")
	if rerr == nil && heads[branch] != p.Commit {
		return nil
	}
	return fail(err)
}

// Next is a push that is about to move a branch.
type Next struct {
	Branch string
	Push
}

// WriteNext notes who is about to push, before any branch moves: a hook that
// lets a push in calls it, so that no moment is left in which the branch has
// moved and nobody knows who moved it, or to which channel. What comes of the
// push does not matter: a note about another commit than the branch is at says
// nothing. [WritePush] notes it for good.
//
// cert is the certificate of the push, or nil. It is kept from now on: git throws
// away that of a push which is refused, and any that nothing refers to.
func WriteNext(ctx context.Context, repo string, list []Next, cert []byte) error {
	var change strings.Builder
	if len(cert) > 0 && len(list) > 0 {
		id, err := git(ctx, "", cert, append(durably(repo), "hash-object", "-w", "--stdin")...)
		if err != nil {
			return notNoted(list[0].Branch, repo, err)
		}
		change.WriteString(keepCert(id))
	}
	for _, n := range list {
		blob, err := writeNote(ctx, repo, n.Branch, n.Push)
		if err != nil {
			return err
		}
		fmt.Fprintf(&change, "update %s/%s %s\n", nextFolder, n.Branch, blob)
	}
	if len(list) == 0 {
		return nil
	}
	if _, err := git(ctx, "", []byte(change.String()), append(durably(repo), "update-ref", "--stdin")...); err != nil {
		return notNoted(list[0].Branch, repo, err)
	}
	return nil
}

// certFolder holds the certificates of signed pushes, each under its own ID: what
// has been built of a branch that has moved on since refers to them too.
const certFolder = "refs/quarry/cert"

func keepCert(id string) string {
	if id == "" {
		return ""
	}
	return fmt.Sprintf("update %s/%s %s\n", certFolder, id, id)
}

// maxCert is the most bytes of a certificate that are read.
const maxCert = 1 << 20

// Certificate reads a certificate that is kept: as git push --signed has made it.
func Certificate(repo, id string) ([]byte, error) {
	if !isHash(id) {
		return nil, fmt.Errorf("certificate %.60q is no hash of 40 hex digits", id)
	}
	g, err := gitfs.OpenRepo(repo)
	if err != nil {
		return nil, err
	}
	defer g.Close()
	return g.Blob(id, maxCert)
}

func notNoted(branch, repo string, err error) error {
	return fmt.Errorf("push of %s cannot be noted in %s: %w", branch, repo, err)
}

// durably begins git's arguments. Repositories of other servers may not be set
// to keep what they confirm.
func durably(repo string) []string {
	return []string{"-c", "core.fsync=committed,reference", "-c", "core.filesRefLockTimeout=10000", "--git-dir=" + repo}
}

// writeNote makes the blob of a note.
func writeNote(ctx context.Context, repo, branch string, p Push) (blob string, err error) {
	if !plainRef(branch) {
		return "", notNoted(branch, repo, errors.New("the name of the branch does not fit: use ASCII letters, digits and + - . _"))
	}
	if err := p.check(); err != nil {
		return "", notNoted(branch, repo, err)
	}
	p.Pushed = p.Pushed.UTC().Truncate(time.Second)
	data, err := toml.Marshal(pushFile{pushSchema, p})
	if err == nil && len(data) > maxPush {
		err = fmt.Errorf("it takes %d bytes, and %d is the most", len(data), maxPush)
	}
	if err == nil {
		blob, err = git(ctx, "", data, append(durably(repo), "hash-object", "-w", "--stdin")...)
	}
	if err != nil {
		return "", notNoted(branch, repo, err)
	}
	return blob, nil
}

// plainRef reports whether a branch is of the letters that a release is made
// of, so that it needs no quoting anywhere.
func plainRef(branch string) bool {
	for _, c := range []byte(branch) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("+-._", c) >= 0) {
			return false
		}
	}
	return branch != "" && branch[0] != '-' && branch[0] != '.' && len(branch) <= quarry.MaxName+1+quarry.MaxVersion &&
		!strings.Contains(branch, "..") && !strings.HasSuffix(branch, ".lock")
}

// ReadPush gives who pushed a branch, if that is noted. The note may be about
// another commit than the branch is at now: compare.
func ReadPush(ctx context.Context, repo, branch string) (p Push, ok bool, err error) {
	notes, err := gitfs.Refs(ctx, repo, pushFolder)
	if err != nil || notes[branch] == "" {
		return Push{}, false, err
	}
	g, err := gitfs.OpenRepo(repo)
	if err != nil {
		return Push{}, false, err
	}
	defer g.Close()
	data, err := g.Blob(notes[branch], maxPush)
	if err != nil {
		return Push{}, false, err
	}
	read, err := parsePush(data)
	if err != nil {
		return Push{}, false, fmt.Errorf("note of who pushed %s to %s cannot be read: %w", branch, repo, err)
	}
	return *read, true, nil
}

func parsePush(data []byte) (*Push, error) {
	var f pushFile
	if err := toml.Unmarshal(data, &f); err != nil {
		return nil, err
	}
	if f.Schema != pushSchema {
		return nil, fmt.Errorf("it has schema %d, and this Quarry knows %d: use a newer Quarry", f.Schema, pushSchema)
	}
	if err := f.check(); err != nil {
		return nil, err
	}
	return &f.Push, nil
}

// check guards the way in and the way out: in a repository of another server,
// others than the farm may have written the note.
func (p *Push) check() error {
	if len(p.Commit) != 40 || strings.Trim(p.Commit, "0123456789abcdef") != "" {
		return fmt.Errorf("commit %.60q is no hash of 40 hex digits", p.Commit)
	}
	if p.Channel != "" {
		if err := quarry.CheckChannel(p.Channel); err != nil {
			return err
		}
	}
	if p.Group != "" {
		if err := quarry.CheckGroup(p.Group); err != nil {
			return err
		}
	}
	if p.Packager.User != "" {
		if err := quarry.CheckUser(p.Packager.User); err != nil {
			return err
		}
	}
	if p.Pushed.Year() < 2000 || p.Pushed.Year() > 9999 {
		return fmt.Errorf("time of the push is %v: give the time when it came", p.Pushed)
	}
	if c := p.Packager.Certificate; c != "" && !isHash(c) {
		return fmt.Errorf("certificate %.60q is no hash of 40 hex digits", c)
	}
	for _, s := range []string{p.Packager.Name, p.Packager.Email, p.Packager.Key, p.Packager.Signed} {
		if len(s) > 1000 || strings.ContainsFunc(s, unicode.IsControl) || strings.ToValidUTF8(s, "") != s {
			return fmt.Errorf("%.60q is not fit for one line of text", s)
		}
	}
	return nil
}
