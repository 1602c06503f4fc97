package hooks

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/durable"
	"github.com/Morphux/quarry/repos"
)

// Channel is a channel that may be pushed to.
type Channel struct {
	Name string   `json:"name"`
	Push []string `json:"push,omitempty"` // who may push to it (see [quarry.Identity.Among]); empty: everybody
	// Signed has releases come to it, and leave it, only with git push --signed.
	Signed bool `json:"signed,omitempty"`
}

// ChannelsEnv is the environment that tells a hook which channels there are.
func ChannelsEnv(list []Channel) string {
	var words []string
	for _, c := range list {
		words = append(words, c.String())
	}
	return "QUARRY_CHANNELS=" + strings.Join(words, " ")
}

// String is the channel as one word: stable=alice,role:admin, or stable!=... where
// pushes have to be signed.
func (c Channel) String() string {
	word := c.Name
	if c.Signed {
		word += "!"
	}
	if len(c.Push) == 0 {
		return word
	}
	return word + "=" + strings.Join(c.Push, ",")
}

func parseChannel(word string) Channel {
	name, push, limited := strings.Cut(word, "=")
	c := Channel{}
	c.Name, c.Signed = strings.CutSuffix(name, "!")
	if limited {
		c.Push = strings.Split(push, ",") // a blank list names nobody, which is safer than everybody
	}
	return c
}

// shared is the file in the spool that tells hooks which channels there are.
// Those of other git servers have no other way to know while no Quarry runs.
const shared = "channels"

const maxShared = 1 << 20 // bytes in it

// sharedFile is its form: version 1 of it.
type sharedFile struct {
	Version  int       `json:"quarry_channels"`
	Default  string    `json:"default"` // channel of a push that names none
	Channels []Channel `json:"channels"`
}

// Share leaves in the spool which channels there are, who may push to them, and
// which is the default one.
func Share(dir, standard string, list []Channel) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("channels cannot be told to hooks: %w", err)
		}
	}()
	data, err := json.MarshalIndent(sharedFile{1, standard, list}, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, shared)
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return nil
	}
	return durable.WriteFile(path, data, 0o644, "."+shared+"-*")
}

// readShared reads what Share left. A spool in which no Quarry has left anything
// knows of no channels.
func readShared(dir string) (sharedFile, error) {
	var s sharedFile
	f, err := os.Open(filepath.Join(dir, shared))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	var data []byte
	if err == nil {
		defer f.Close()
		data, err = io.ReadAll(io.LimitReader(f, maxShared))
	}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err == nil && s.Version != 1 {
		err = fmt.Errorf("version %d is not known here", s.Version)
	}
	if err != nil {
		return s, fmt.Errorf("the farm's list of channels cannot be read, tell its admin: %w", err)
	}
	return s, nil
}

// learn finds out which channels there are, unless the environment has said, and
// which is the default one.
func (e *Env) learn() (standard string, err error) {
	if e.Channels != nil || e.Spool == "" {
		return "", nil
	}
	s, err := readShared(e.Spool)
	e.Channels = s.Channels
	return s.Default, err
}

func (e Env) find(name string) *Channel {
	if i := slices.IndexFunc(e.Channels, func(c Channel) bool { return c.Name == name }); i >= 0 {
		return &e.Channels[i]
	}
	return nil
}

// mayTake reports why the pusher may not move or delete a branch whose release
// is on a channel of other people's: whoever may push to a channel decides what
// leaves it, too.
func (e Env) mayTake(ctx context.Context, ref Ref, standard string) error {
	if !ref.Release() || isZero(ref.Old) {
		return nil
	}
	push, ok, err := repos.ReadPush(ctx, e.Repo, ref.Name)
	if err != nil {
		return fmt.Errorf("%s: the channel that it is on cannot be read: %w", ref.Name, err)
	}
	on := cmp.Or(e.Channel, standard)
	if ok && push.Commit == ref.Old && push.Channel != "" {
		on = push.Channel
	}
	if c := e.find(on); c != nil && !e.Identity.Among(c.Push) {
		return fmt.Errorf("%s is on %s, and %s may not push there: %s may; ask one of them, or release another version",
			ref.Name, c.Name, show(e.Identity.User), quarry.People(c.Push))
	}
	return e.mustSign(on)
}

// mayRelease reports why the pusher may release nothing to a channel, in one
// line that says who may.
func (e Env) mayRelease(channel string) error {
	c := e.find(channel)
	if c == nil || e.Identity.Among(c.Push) {
		return nil
	}
	return fmt.Errorf("%s may not push to %s: %s may; push to another with -o channel=NAME, or ask one of them",
		show(e.Identity.User), c.Name, quarry.People(c.Push))
}
