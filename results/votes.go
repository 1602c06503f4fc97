package results

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/Morphux/quarry"
)

// Vote is what came of building again what a record says, by the farm itself or by
// somebody else who has its inputs.
type Vote struct {
	Schema int `toml:"schema" json:"-"`

	// Of the record: its place, its git id, the build, and what it says was made.
	Package  string `toml:"package" json:"package"`
	Version  string `toml:"version" json:"version"`
	Arch     string `toml:"arch" json:"arch"`
	Channel  string `toml:"channel" json:"channel"`
	Record   string `toml:"record" json:"record"`
	Build    int64  `toml:"build" json:"build"`
	Key      string `toml:"key" json:"key"`           // of the build, see quarry.BuildKey
	Source   string `toml:"source" json:"source"`     // commit in the package's repository
	Artifact string `toml:"artifact" json:"artifact"` // SHA-256, hex

	Same bool `toml:"same" json:"same"` // bit for bit
	// Got is the artifact that was made; "" when the build did not succeed, and then
	// Failure says why.
	Got     string `toml:"got,omitempty" json:"got,omitempty"`
	Failure string `toml:"failure,omitempty" json:"failure,omitempty"`

	Builder string    `toml:"builder" json:"builder"` // name of the machine
	At      time.Time `toml:"at" json:"at"`
	Quarry  string    `toml:"quarry,omitempty" json:"quarry,omitempty"` // its version
	// Base and Instance are the digests of the systems that it was built in. Changed
	// names what of the surroundings is not what the record says, e.g. instance.
	Base     string   `toml:"base,omitempty" json:"base,omitempty"`
	Instance string   `toml:"instance,omitempty" json:"instance,omitempty"`
	Changed  []string `toml:"changed,omitempty" json:"changed,omitempty"`
	// Differences sums up how the artifacts differ, in lines for people.
	Differences []string `toml:"differences,omitempty,multiline" json:"differences,omitempty"`
}

const (
	votesDir = "votes"
	// maxVote is the most bytes that a vote may have with its signature.
	maxVote = 64 << 10
	// maxVoteLines is how many lines of differences a vote has.
	maxVoteLines = 50
)

// sigBegin begins an SSH signature. No line of a vote's own text does: it is TOML
// whose lists are quoted.
const sigBegin = "-----BEGIN SSH SIGNATURE-----\n"

// Target is the place of the record.
func (v *Vote) Target() quarry.Target {
	return quarry.Target{Channel: v.Channel, Package: v.Package, Version: v.Version, Arch: v.Arch}
}

// Marshal writes the vote, as it is signed. Text of unknown origin is made safe and
// bounded.
func (v *Vote) Marshal() ([]byte, error) {
	c := *v
	c.Schema, c.At = Schema, v.At.UTC().Truncate(time.Second)
	c.Builder, c.Quarry, c.Failure = oneLine(v.Builder, 200), oneLine(v.Quarry, 200), oneLine(v.Failure, 500)
	c.Differences = nil
	for i, line := range v.Differences {
		if i == maxVoteLines-1 && len(v.Differences) > maxVoteLines {
			c.Differences = append(c.Differences, fmt.Sprintf("and %d more lines", len(v.Differences)-i))
			break
		}
		c.Differences = append(c.Differences, strings.Repeat(" ", len(line)-len(strings.TrimLeft(line, " ")))+oneLine(line, 300))
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	return toml.Marshal(&c)
}

func (v *Vote) check() error {
	if v.Schema != Schema {
		return fmt.Errorf("vote has schema %d: this program reads %d", v.Schema, Schema)
	}
	if err := errors.Join(CheckTarget(v.Target()), quarry.CheckChannel(v.Channel)); err != nil {
		return fmt.Errorf("vote: %w", err)
	}
	switch {
	case !isHex(v.Record, 40), !isHex(v.Key, 64), !isHex(v.Source, 40), !isHex(v.Artifact, 64), v.Build <= 0:
		return errors.New("vote does not say which record it is on: record, key, source, artifact and build are needed")
	case v.Got != "" && !isHex(v.Got, 64):
		return errors.New("vote: got is no SHA-256")
	case v.Same != (v.Got == v.Artifact):
		return errors.New("vote says that the artifact is the same, or not, and its digests say otherwise")
	case v.At.IsZero():
		return errors.New("vote has no time")
	case v.Builder == "":
		return errors.New("vote has no builder")
	}
	return nil
}

// SplitVote takes a signed vote apart, into what was signed and the signature.
func SplitVote(signed []byte) (text, signature []byte, err error) {
	if len(signed) > maxVote {
		return nil, nil, fmt.Errorf("vote has %d bytes: %d is the most", len(signed), maxVote)
	}
	at := bytes.Index(signed, []byte("\n"+sigBegin))
	if at < 0 {
		return nil, nil, errors.New("vote is not signed")
	}
	return signed[:at+1], signed[at+1:], nil
}

// ParseVote reads a vote, signed or not. The signature is not checked.
func ParseVote(text []byte) (*Vote, error) {
	if len(text) > maxVote {
		return nil, fmt.Errorf("vote has %d bytes: %d is the most", len(text), maxVote)
	}
	if body, _, err := SplitVote(text); err == nil {
		text = body
	}
	var v Vote
	if err := toml.Unmarshal(text, &v); err != nil {
		return nil, fmt.Errorf("vote cannot be read: %w", err)
	}
	if err := v.check(); err != nil {
		return nil, err
	}
	for _, list := range []*[]string{&v.Changed, &v.Differences} {
		for i, s := range *list {
			(*list)[i] = strings.Repeat(" ", min(40, len(s)-len(strings.TrimLeft(s, " ")))) + oneLine(s, 300)
		}
	}
	v.Builder, v.Quarry, v.Failure = oneLine(v.Builder, 200), oneLine(v.Quarry, 200), oneLine(v.Failure, 500)
	v.Base, v.Instance = oneLine(v.Base, 100), oneLine(v.Instance, 100)
	return &v, nil
}

// KeepVote writes a signed vote, over the one of the same key on the same artifact.
// key is the SHA-256 of the public key that signed it, in hex: who signed it, and
// that it is signed at all, is the caller's to have checked.
func (r *Repo) KeepVote(ctx context.Context, key string, signed []byte) error {
	v, err := ParseVote(signed)
	if err == nil {
		_, _, err = SplitVote(signed)
	}
	if err != nil {
		return err
	}
	if !isHex(key, 64) {
		return fmt.Errorf("key %.80q is no SHA-256", key)
	}
	return r.keepBelow(ctx, votesDir+"/"+v.Artifact, key, signed)
}

// Votes reads the signed votes on an artifact, by the SHA-256 of the key that is
// said to have signed them, in hex. Whether it has is the caller's to check. Votes
// that cannot be read are told of in the error; the others are there all the same.
func (r *Repo) Votes(artifact string) (map[string][]byte, error) {
	return r.odb.votes(r.path, artifact)
}

// Votes is [Repo.Votes] of any bare clone that has refs/quarry/votes/*.
func (r *Reader) Votes(artifact string) (map[string][]byte, error) {
	return r.odb.votes(r.path, artifact)
}

func (o *odb) votes(repo, artifact string) (map[string][]byte, error) {
	if !isHex(artifact, 64) {
		return nil, fmt.Errorf("artifact %.80q is no SHA-256: give 64 lower-case hex digits", artifact)
	}
	refs, err := keptRefs(repo, votesDir+"/"+artifact)
	if err != nil {
		return nil, err
	}
	texts, err := o.keptTexts(votesDir+"/"+artifact, refs)
	for key, text := range texts {
		if v, perr := ParseVote(text); perr != nil || v.Artifact != artifact || !isHex(key, 64) {
			delete(texts, key)
			if perr == nil {
				perr = errors.New("it is on another artifact, or named by no key")
			}
			err = errors.Join(err, fmt.Errorf("vote %s on %.12s: %w", shortKey(key), artifact, perr))
		}
	}
	return texts, err
}

func shortKey(key string) string { return key[:min(len(key), 12)] }

// CompareVotes orders votes: the newest first.
func CompareVotes(a, b *Vote) int {
	if c := b.At.Compare(a.At); c != 0 {
		return c
	}
	return slices.Compare([]string{a.Builder, a.Got}, []string{b.Builder, b.Got})
}
