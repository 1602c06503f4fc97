package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/durable"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
)

// Change is what [Store.Add] sets besides keys. What is nil stays as it is.
type Change struct {
	Name     *string
	Email    *string
	Role     *quarry.Role
	Packages []string // nil: as it is; empty: everything
	Disabled *bool
	Mail     *string // MailAll, MailFailures or MailNone
}

// Add gives a person keys (in the form of a .pub file; none is fine for
// somebody who is there already) and changes what is known of them. Somebody
// new is made. It refuses keys that are not taken and keys of somebody else,
// and then changes nothing.
func (s *Store) Add(user string, data []byte, c Change) (Person, error) {
	if err := quarry.CheckUser(user); err != nil {
		return Person{}, err
	}
	unlock, err := s.lock()
	if err != nil {
		return Person{}, err
	}
	defer unlock()

	added, problems := ParseKeys(user+".pub", data)
	if len(problems) > 0 {
		return Person{}, fmt.Errorf("key of %s: line %d: %s", user, problems[0].Line, problems[0].Message)
	}
	people, _, err := s.List()
	if err != nil {
		return Person{}, err
	}
	var old *Person
	for i, p := range people {
		if p.User == user {
			old = &people[i]
			continue
		}
		for _, k := range p.Keys {
			if slices.ContainsFunc(added, func(a Key) bool { return a.blob == k.blob }) {
				return Person{}, fmt.Errorf("key %s is %s's: one key is one person's, so remove it there first or use another", k.Fingerprint, p.User)
			}
		}
	}
	if len(added) == 0 && (old == nil || len(old.Keys) == 0) {
		return Person{}, fmt.Errorf("no key was given for %s: name the .pub file, or - and give it on standard input", user)
	}

	if err := s.setPerson(user, c); err != nil {
		return Person{}, err
	}
	path := filepath.Join(s.dir, user+".pub")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Person{}, fmt.Errorf("keys of %s cannot be read: %w", user, err)
	}
	have, _ := ParseKeys(user+".pub", text)
	changed := false
	for _, k := range added {
		if slices.ContainsFunc(have, func(h Key) bool { return h.blob == k.blob }) {
			continue
		}
		if len(text) > 0 && text[len(text)-1] != '\n' {
			text = append(text, '\n')
		}
		text = append(text, k.Marshal()+"\n"...)
		changed = true
	}
	if n := len(have) + len(added); n > MaxKeys || len(text) > MaxFile {
		return Person{}, fmt.Errorf("%s would have more than %d keys or %d bytes of them: remove some first", user, MaxKeys, MaxFile)
	}
	if changed {
		if err := writeFile(path, text); err != nil {
			return Person{}, err
		}
	}
	people, _, err = s.List()
	if err != nil {
		return Person{}, err
	}
	i := slices.IndexFunc(people, func(p Person) bool { return p.User == user })
	if i < 0 {
		return Person{}, fmt.Errorf("%s was added and is gone again: somebody else is at work in %s", user, s.dir)
	}
	return people[i], nil
}

// setPerson writes the sidecar, if there is something to say that it does not
// say yet.
func (s *Store) setPerson(user string, c Change) error {
	path := filepath.Join(s.dir, user+".toml")
	var p person
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("what is known of %s cannot be read: %w", user, err)
	default:
		var bad *Problem
		if p, bad = parsePerson(user+".toml", data); bad != nil {
			return fmt.Errorf("%s: mend it first", bad)
		}
	}
	was := fmt.Sprint(p)
	if c.Name != nil {
		p.Name = *c.Name
	}
	if c.Email != nil {
		p.Email = *c.Email
	}
	if c.Role != nil {
		p.Role = string(*c.Role)
		if *c.Role != quarry.RoleMaintainer && c.Packages == nil {
			p.Packages = nil
		}
	}
	if c.Packages != nil {
		p.Packages = c.Packages
	}
	if c.Disabled != nil {
		p.Disabled = *c.Disabled
	}
	if c.Mail != nil {
		p.Mail = *c.Mail
	}
	if err := p.check(); err != nil {
		return fmt.Errorf("%s: %w", user, err)
	}
	if fmt.Sprint(p) == was {
		return nil
	}
	out, err := toml.Marshal(p)
	if err != nil {
		return fmt.Errorf("what is known of %s cannot be written: %w", user, err)
	}
	return writeFile(path, out)
}

// Remove takes a person's files away. Connections that they have can start
// nothing new.
func (s *Store) Remove(user string) error {
	if err := quarry.CheckUser(user); err != nil {
		return err
	}
	unlock, err := s.lock()
	if err != nil {
		return err
	}
	defer unlock()
	// The keys first: without them the rest lets nobody in.
	found := false
	for _, ext := range []string{".pub", ".toml"} {
		err := os.Remove(filepath.Join(s.dir, user+ext))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s cannot be removed: %w", user, err)
		}
		found = found || err == nil
	}
	if !found {
		people, _, err := s.List()
		if err != nil {
			return err
		}
		var users []string
		for _, p := range people {
			users = append(users, p.User)
		}
		return fmt.Errorf("there is no %s in %s: there is %s", user, s.dir, orNobody(users))
	}
	return durable.SyncDir(s.dir)
}

func orNobody(users []string) string {
	if len(users) == 0 {
		return "nobody"
	}
	return strings.Join(users, ", ")
}

// lock keeps two quarry key add from losing one another's lines.
func (s *Store) lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(s.dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("folder of keys cannot be locked: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("folder of keys cannot be locked: %w", err)
	}
	return func() { f.Close() }, nil
}

// writeFile replaces a file in one step: readers see the old text or the new.
func writeFile(path string, data []byte) error {
	// Through a link, as the reader reads: replace what it points to.
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if err := durable.WriteFile(path, data, 0o644, ".new-*"); err != nil {
		return fmt.Errorf("%s cannot be written: %w", path, err)
	}
	return nil
}
