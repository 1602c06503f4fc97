package notify

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/durable"
)

const stateFile = "state.json"

// state is what outlives a restart, besides the letters. It can be lost: then
// what is under way is not told, nor that what failed is fixed.
type state struct {
	Begun   bool              `json:"begun"`  // whether Cursor means something
	Cursor  int64             `json:"cursor"` // the last event that was dealt with
	Batches []*batch          `json:"batches,omitempty"`
	Told    map[string][]Told `json:"told,omitempty"` // by place

	dirty bool
	kept  int64 // the cursor that is on the disk
}

// batch is what has been decided of builds of one cause, and not yet told.
type batch struct {
	Cause Cause     `json:"cause"`
	N     int64     `json:"n"`     // the event that it began with
	First time.Time `json:"first"` // when that was seen
	Last  time.Time `json:"last"`  // when the last one was
	Items []item    `json:"items,omitempty"`
	Over  bool      `json:"over,omitempty"` // nothing more comes: of a mass rebuild
}

type item struct {
	Kind  Kind     `json:"kind"`
	Build Build    `json:"build"`
	Users []string `json:"users,omitempty"` // to be told that it is fixed
}

func loadState(dir string) (s state, err error) {
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		err = nil
	case err == nil:
		if err = json.Unmarshal(data, &s); err != nil {
			err = fmt.Errorf("%s is damaged: remove it, and whoever is to be told of something now will not be: %w", filepath.Join(dir, stateFile), err)
		}
	}
	s.kept = s.Cursor
	if s.Told == nil {
		s.Told = map[string][]Told{}
	}
	return s, err
}

func (s *state) save(dir string) error {
	data, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(dir, stateFile), data, 0o600, ".new-*"); err != nil {
		return fmt.Errorf("what has been told cannot be noted: %w", err)
	}
	s.dirty, s.kept = false, s.Cursor
	return nil
}

// place is what somebody is told of: all versions of a package on an arch.
func place(t quarry.Target) string { return t.Channel + " " + t.Package + " " + t.Arch }

func (s *state) told(t quarry.Target) []Told { return s.Told[place(t)] }

// batch gives the one of a cause, a new one if there is none.
func (s *state) batch(c Cause, n int64) *batch {
	for _, b := range s.Batches {
		if b.Cause == c {
			return b
		}
	}
	b := &batch{Cause: c, N: n, First: time.Now().UTC(), Last: time.Now().UTC()}
	s.Batches = append(s.Batches, b)
	return b
}

// take notes a decision. What is decided while something else of the same place
// waits to be told may take that back: who never heard of a failure need not hear
// of its end.
func (s *state) take(b Build, d Decision, n int64) {
	at := place(b.Target)
	switch d.Kind {
	case Fails, Breaks, Mass:
		// Told to be fixed, and not: what they know is true again.
		if s.unfix(at, b.Packager.User) {
			return
		}
	case Fixed, Nothing:
		if b.Status == quarry.Succeeded {
			s.drop(func(i *item) bool {
				return i.Kind != Fixed && place(i.Build.Target) == at && (i.Build.Version == b.Version || b.Pushed.After(i.Build.Pushed))
			})
		}
		if d.Kind == Nothing {
			return
		}
	}
	to := s.batch(d.Cause, n)
	to.Last = time.Now().UTC()
	s.dirty = true
	if d.Kind == Mass {
		return // its report names what has failed
	}
	new := item{Kind: d.Kind, Build: b, Users: d.Users}
	for i := range to.Items {
		// The same event again, or a later build of the same place.
		if it := &to.Items[i]; it.Build.Target == b.Target {
			*it = new
			return
		}
	}
	to.Items = append(to.Items, new)
}

// drop takes items out of all batches.
func (s *state) drop(f func(*item) bool) {
	for _, b := range s.Batches {
		before := len(b.Items)
		b.Items = slices.DeleteFunc(b.Items, func(i item) bool { return f(&i) })
		s.dirty = s.dirty || len(b.Items) != before
	}
}

// unfix takes somebody out of those who wait to hear that a place is fixed.
func (s *state) unfix(at, user string) (found bool) {
	for _, b := range s.Batches {
		for i := range b.Items {
			it := &b.Items[i]
			if it.Kind == Fixed && place(it.Build.Target) == at {
				before := len(it.Users)
				it.Users = slices.DeleteFunc(it.Users, func(u string) bool { return u == user })
				found = found || len(it.Users) != before
			}
		}
	}
	s.dirty = s.dirty || found
	s.drop(func(i *item) bool { return i.Kind == Fixed && len(i.Users) == 0 })
	return found
}

// note remembers that somebody was told of failures, or that they are fixed.
func (s *state) note(l *Letter, items []item) {
	for _, it := range items {
		at := place(it.Build.Target)
		list := slices.DeleteFunc(s.Told[at], func(t Told) bool { return t.User == l.User })
		if it.Kind != Fixed {
			list = append(list, Told{User: l.User, Version: it.Build.Version, Pushed: it.Build.Pushed, Build: it.Build.Number,
				Message: l.ID, Subject: l.Subject, At: l.Made})
		}
		if s.Told[at] = list; len(list) == 0 {
			delete(s.Told, at)
		}
	}
	s.dirty = true
}
