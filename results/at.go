package results

import (
	"fmt"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
)

// minAbbreviation is how many hex digits of a commit are taken for it at least.
const minAbbreviation = 7

// moments are the forms in which a time can be given to [Snapshot.At]. Where no
// zone is named it is UTC, and a day is meant to its end.
var moments = []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly}

// At finds the channel as it was: at a commit (40 hex digits, or the first seven or
// more of them) or at a time (2026-03-14, 2026-03-14T15:09:26Z), which is the last
// commit that was made by then. It goes back over the channel's history. What is
// not there is [ErrNotFound].
func (s *Snapshot) At(word string) (*Snapshot, error) {
	hash := len(word) >= minAbbreviation && len(word) <= 40 && isHex(strings.ToLower(word), len(word))
	when, isTime := moment(word)
	if !hash && !isTime {
		return nil, fmt.Errorf("%.60q is neither a commit nor a time: give 7 hex digits or more, or a day such as 2026-03-14", word)
	}
	word = strings.ToLower(word)
	for h := s.commit; !h.IsZero(); {
		c, err := s.odb.commit(h)
		if err != nil {
			return nil, err
		}
		if isTime && !c.when.After(when) || hash && strings.HasPrefix(h.String(), word) {
			return s.odb.snapshot(s.channel, h)
		}
		h = c.parent
	}
	if isTime {
		// Before the first commit there was nothing, which is an answer.
		return s.odb.snapshot(s.channel, plumbing.ZeroHash)
	}
	return nil, fmt.Errorf("commit %s is not in the history of channel %s: %w", word, s.channel, ErrNotFound)
}

func moment(word string) (time.Time, bool) {
	for _, form := range moments {
		t, err := time.ParseInLocation(form, word, time.UTC)
		if err != nil {
			continue
		}
		if form == time.DateOnly {
			t = t.AddDate(0, 0, 1).Add(-time.Nanosecond)
		}
		return t, true
	}
	return time.Time{}, false
}

// Find takes the name of a release, such as zlib-1.3.1, apart at the dash where the
// channel has a success of it. Names and versions may both hold dashes.
func (s *Snapshot) Find(branch string) (pkg, version string, err error) {
	for i := range branch {
		if branch[i] != '-' {
			continue
		}
		name, v := branch[:i], branch[i+1:]
		archs, err := s.Archs(name, v)
		if err == nil && len(archs) > 0 {
			if pkg != "" {
				return "", "", fmt.Errorf("%s may be %s %s or %s %s: write it with a blank", branch, pkg, version, name, v)
			}
			pkg, version = name, v
		}
	}
	// With a blank, as records have it, there is nothing to guess.
	if name, v, ok := strings.Cut(branch, " "); ok && pkg == "" {
		archs, err := s.Archs(name, v)
		if err != nil {
			return "", "", err
		}
		if len(archs) > 0 {
			return name, v, nil
		}
	}
	if pkg == "" {
		return "", "", fmt.Errorf("%.100q has no success on %s: name a release as NAME-VERSION: %w", branch, s.channel, ErrNotFound)
	}
	return pkg, version, nil
}
