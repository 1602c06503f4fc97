package gitfs

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"
)

// Person is the author or committer of a commit. The names are whatever the
// commit says, made fit for one line.
type Person struct {
	Name, Email string
	Time        time.Time
}

// Info is what a commit says of itself.
type Info struct {
	Hash      string // 40 hex digits
	Tree      string // likewise
	Author    Person
	Committer Person // Committer.Time is what SOURCE_DATE_EPOCH is made of
	Subject   string // first line of the message
}

// Commit reads one commit of the bare repository at path.
func Commit(path, hex string) (Info, error) {
	r, err := OpenRepo(path)
	if err != nil {
		return Info{}, err
	}
	defer r.Close()
	return r.Commit(hex)
}

func parseHash(hex string) (plumbing.Hash, error) {
	if !plumbing.IsHash(hex) || len(hex) != 40 || strings.ToLower(hex) != hex {
		return plumbing.ZeroHash, fmt.Errorf("commit %.70q is no SHA-1 in 40 lower-case hex digits: give it in full (SHA-256 repositories are not supported)", hex)
	}
	return plumbing.NewHash(hex), nil
}

func (s *store) commit(hash plumbing.Hash) (Info, error) {
	data, err := s.whole(plumbing.CommitObject, hash)
	if err != nil {
		return Info{}, err
	}
	var o plumbing.MemoryObject
	o.SetType(plumbing.CommitObject)
	o.Write(data) // into memory: does not fail
	c := &object.Commit{}
	if err := c.Decode(&o); err != nil {
		return Info{}, fmt.Errorf("commit %s of %s cannot be read: %w", hash, s.path, err)
	}
	subject, _, _ := strings.Cut(c.Message, "\n")
	return Info{
		Hash:      hash.String(),
		Tree:      c.TreeHash.String(),
		Author:    person(c.Author),
		Committer: person(c.Committer),
		Subject:   line(subject),
	}, nil
}

func person(s object.Signature) Person {
	return Person{Name: line(s.Name), Email: line(s.Email), Time: s.When}
}

// line makes text that a stranger wrote fit for a log or a page: one line,
// UTF-8, nothing that steers a terminal, not endless.
func line(s string) string {
	const most = 500
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return strings.TrimSpace(s)
}
