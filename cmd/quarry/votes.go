package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/durable"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/trust"
	"golang.org/x/crypto/ssh"
)

// keyID names a key among the votes on an artifact.
func keyID(key ssh.PublicKey) string {
	sum := sha256.Sum256(key.Marshal())
	return hex.EncodeToString(sum[:])
}

// counted are the votes whose signature holds, by a key that is trusted to vote and
// that their name names; the newest first. problems tell of the others.
func counted(signers trust.AllowedSigners, votes map[string][]byte) (list []control.Vote, problems []error) {
	for _, id := range slices.Sorted(maps.Keys(votes)) {
		v, err := results.ParseVote(votes[id])
		var text, sig []byte
		if err == nil {
			text, sig, err = results.SplitVote(votes[id])
		}
		var key ssh.PublicKey
		if err == nil {
			key, err = signers.Verify(trust.Vote, text, sig, v.At)
		}
		if err == nil && keyID(key) != id {
			err = errors.New("another key has signed it")
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("vote %.12s does not count: %w", id, err))
			continue
		}
		list = append(list, control.Vote{Vote: *v, Signer: signers.Principal(key), Fingerprint: ssh.FingerprintSHA256(key), ID: id})
	}
	slices.SortFunc(list, func(a, b control.Vote) int { return results.CompareVotes(&a.Vote, &b.Vote) })
	return list, problems
}

// readSigners reads a file of allowed signers; one that is not there has none.
func readSigners(path string) (trust.AllowedSigners, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := trust.ParseAllowedSigners(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

func (f *stages) Votes(artifact string) ([]control.Vote, error) {
	votes, err := f.results.Votes(artifact)
	if len(votes) == 0 {
		return nil, err
	}
	signers, serr := readSigners(f.cfg.AllowedSigners())
	if serr != nil {
		return nil, errors.Join(err, serr)
	}
	list, _ := counted(signers, votes)
	return list, err
}

func (v *verifier) Reproduced(b quarry.Build) string {
	rec, err := v.recordOf(context.Background(), b)
	if err != nil || rec == nil || rec.Artifact == "" {
		return ""
	}
	votes, err := v.Votes(rec.Artifact)
	if err != nil {
		return ""
	}
	return control.Reproduced(votes)
}

// Vote takes a vote of another farm: on a record that stands here, signed by a key
// of who hands it in. From then on that key is among the allowed signers, for votes
// alone, so that whoever reads the votes can check them.
func (v *verifier) Vote(ctx context.Context, who quarry.Identity, signed []byte) (*control.Vote, error) {
	vote, err := results.ParseVote(signed)
	if err != nil {
		return nil, &control.Error{Code: control.ExitUsage, Err: err}
	}
	text, sig, err := results.SplitVote(signed)
	if err != nil {
		return nil, &control.Error{Code: control.ExitUsage, Err: err}
	}
	key, err := trust.Signed(trust.Vote, text, sig)
	if err != nil {
		return nil, &control.Error{Code: control.ExitForbidden, Err: fmt.Errorf("vote: %w", err)}
	}
	owner, err := v.people.Lookup(key)
	if err != nil || owner.User != who.User && who.Role != quarry.RoleAdmin {
		return nil, &control.Error{Code: control.ExitForbidden, Err: fmt.Errorf("vote: %s has signed it, which is no key of %s here: quarry key add makes it one", ssh.FingerprintSHA256(key), who.User)}
	}
	if err := v.known(vote); err != nil {
		return nil, err
	}
	if err := allowVoter(v.cfg, owner.User, key); err != nil {
		return nil, err
	}
	if err := v.results.KeepVote(ctx, keyID(key), signed); err != nil {
		return nil, err
	}
	v.log.Info("a vote was taken", "release", vote.Target(), "build", vote.Build, "same", vote.Same, "by", owner.User)
	return &control.Vote{Vote: *vote, Signer: owner.User, Fingerprint: ssh.FingerprintSHA256(key), ID: keyID(key)}, nil
}

// known reports an error when no channel has the record that a vote is on.
func (v *verifier) known(vote *results.Vote) error {
	channels, err := v.results.Channels()
	if err != nil {
		return err
	}
	for _, channel := range channels {
		s, err := v.results.Snapshot(channel)
		if err != nil {
			return err
		}
		rec, err := s.Get(vote.Package, vote.Version, vote.Arch)
		if err == nil && rec.Artifact == vote.Artifact && rec.Key == vote.Key && rec.Source == vote.Source {
			return nil
		}
		if err != nil && !errors.Is(err, results.ErrNotFound) {
			return err
		}
	}
	return fmt.Errorf("no record here says that %s is artifact %.12s of build %d: %w", vote.Target(), vote.Artifact, vote.Build, results.ErrNotFound)
}

// signersMu is held while the file of allowed signers is changed.
var signersMu sync.Mutex

// allowVoter lets a key vote.
func allowVoter(c *config.Config, user string, key ssh.PublicKey) error {
	signersMu.Lock()
	defer signersMu.Unlock()
	list, err := readSigners(c.AllowedSigners())
	if err != nil {
		return err
	}
	if list.Allows(trust.Vote, key) {
		return nil
	}
	list = append(list, trust.AllowedSigner{Principal: user, Key: key, Namespaces: []string{trust.Vote}})
	return durable.WriteFile(c.AllowedSigners(), []byte(list.String()), 0o644, ".allowed_signers-*")
}
