// Package keys knows people by their public keys.
//
// A folder holds one file of public keys for each person, in the form that
// OpenSSH writes (keys/alice.pub: several lines allowed), and may hold a second
// one beside it (keys/alice.toml) that says who they are and what they may do:
//
//	name = "Alice Liddell"
//	email = "alice@morphux.org"
//	role = "maintainer"          # or admin, reader, builder
//	packages = ["zlib", "lib*"]  # what a maintainer may push; absent: everything
//	disabled = false
//	mail = "failures"            # or none; absent: all
//
// Without it, the person is a maintainer of every package, and their name and
// e-mail address are taken from a key's comment of the form Name <e-mail>.
//
// The folder is the truth: whoever changes a file in it, by hand or with quarry
// key, changes what holds from the next look-up on. A file that cannot be read
// never disables anybody else; it is a [Problem].
package keys

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/Morphux/quarry"
	"github.com/fsnotify/fsnotify"
	"golang.org/x/crypto/ssh"
)

// Why a key is not taken.
var (
	ErrUnknown  = errors.New("key is unknown here")
	ErrDisabled = errors.New("this person is disabled")
	ErrShared   = errors.New("key belongs to two people, so it is taken for neither")
)

// Person is somebody with a file in the folder.
type Person struct {
	quarry.Identity
	Disabled bool   `json:"disabled,omitempty"`
	Mail     string `json:"mail,omitempty"` // what they want to be written about: MailAll, which "" is too, MailFailures or MailNone
	Keys     []Key  `json:"keys"`

	// broken is set when the sidecar cannot be read: then nobody knows what
	// the person may do, so they may do nothing.
	broken bool
}

// Problem is something in the folder that was not taken.
type Problem struct {
	File    string `json:"file"` // e.g. alice.pub
	Line    int    `json:"line,omitempty"`
	Message string `json:"message"`
}

func (p Problem) String() string {
	if p.Line > 0 {
		return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Message)
	}
	return p.File + ": " + p.Message
}

// Store is a folder of keys. Its methods may be called at the same time.
type Store struct {
	dir string
	log *slog.Logger

	mu sync.Mutex // guards the following
	// stamp describes every file as it was when it was read. A look-up
	// compares it with the folder, so that no event can get lost.
	stamp    string
	loaded   time.Time
	byKey    map[string]int // wire form of a key to its place in people; shared: -1
	people   []Person       // sorted by user
	problems []Problem
}

// Open reads the folder, which is made if it is not there. log gets the
// problems, each once; nil: nowhere.
func Open(dir string, log *slog.Logger) (*Store, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("folder of keys cannot be made: %w", err)
	}
	s := &Store{dir: dir, log: log}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fresh(); err != nil {
		return nil, err
	}
	return s, nil
}

// Dir is the folder.
func (s *Store) Dir() string { return s.dir }

// Lookup says whose key it is. The error is [ErrUnknown], [ErrDisabled] or
// [ErrShared], or says why the folder cannot be read.
func (s *Store) Lookup(key ssh.PublicKey) (quarry.Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fresh(); err != nil {
		return quarry.Identity{}, err
	}
	i, ok := s.byKey[string(key.Marshal())]
	switch {
	case !ok:
		return quarry.Identity{}, ErrUnknown
	case i < 0:
		return quarry.Identity{}, ErrShared
	case s.people[i].Disabled || s.people[i].broken:
		return quarry.Identity{}, ErrDisabled
	}
	id := s.people[i].Identity
	id.Key = ssh.FingerprintSHA256(key)
	id.Packages = slices.Clone(id.Packages)
	return id, nil
}

// User gives the identity of a person by name, without a key: for doors where
// something else than a key proves who is there. The error is [ErrDisabled], or
// says that there is nobody of the name, or why the folder cannot be read.
func (s *Store) User(name string) (quarry.Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fresh(); err != nil {
		return quarry.Identity{}, err
	}
	i, ok := slices.BinarySearchFunc(s.people, name, func(p Person, name string) int { return strings.Compare(p.User, name) })
	switch {
	case !ok:
		return quarry.Identity{}, fmt.Errorf("nobody here is called %.40q: quarry key list says who there is", name)
	case s.people[i].Disabled || s.people[i].broken:
		return quarry.Identity{}, ErrDisabled
	}
	id := s.people[i].Identity
	id.Packages = slices.Clone(id.Packages)
	return id, nil
}

// Keys are the public keys of a person by name.
func (s *Store) Keys(name string) ([]ssh.PublicKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fresh(); err != nil {
		return nil, err
	}
	var list []ssh.PublicKey
	for _, p := range s.people {
		if p.User != name || p.Disabled || p.broken {
			continue
		}
		for _, k := range p.Keys {
			if s.byKey[k.blob] < 0 {
				continue // belongs to two people
			}
			pub, err := ssh.ParsePublicKey([]byte(k.blob))
			if err != nil {
				return nil, err
			}
			list = append(list, pub)
		}
	}
	return list, nil
}

// List is everybody in the folder, by name, and what in it was not taken.
func (s *Store) List() ([]Person, []Problem, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fresh(); err != nil {
		return nil, nil, err
	}
	people := slices.Clone(s.people)
	for i := range people {
		people[i].Keys = slices.Clone(people[i].Keys)
		people[i].Packages = slices.Clone(people[i].Packages)
	}
	return people, slices.Clone(s.problems), nil
}

// Watch reads the folder again whenever something in it changes, so that
// problems are logged when they are made and not when the next person
// connects. It returns when ctx ends. Look-ups do not depend on it.
func (s *Store) Watch(ctx context.Context) error {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("folder of keys cannot be watched: %w", err)
	}
	defer w.Close()
	if err := w.Add(s.dir); err != nil {
		return fmt.Errorf("folder of keys cannot be watched: %w", err)
	}
	// An editor makes several events of one change: one look is enough for all
	// that come within a moment. It is not put off by further ones.
	var look <-chan time.Time
	soon := func() {
		if look == nil {
			look = time.After(tick)
		}
	}
	soon()
	for {
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-w.Events:
			if !ok {
				return nil
			}
			soon()
		case err, ok := <-w.Errors:
			if !ok {
				return nil
			}
			s.log.Warn("watching the folder of keys", "dir", s.dir, "err", err)
			soon()
		case <-look:
			look = nil
			s.mu.Lock()
			if err := s.fresh(); err != nil {
				s.log.Error("folder of keys cannot be read", "err", err)
			}
			s.mu.Unlock()
		}
	}
}

// tick is how long after a change a second one may carry the same time.
const tick = 50 * time.Millisecond

// fresh reads the folder if it is not as it was read last. mu is held.
func (s *Store) fresh() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("folder of keys cannot be read: %w", err)
	}
	var stamp strings.Builder
	var newest time.Time
	type file struct {
		name string
		info fs.FileInfo
		err  error
	}
	var files []file
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || !strings.HasSuffix(name, ".pub") && !strings.HasSuffix(name, ".toml") {
			continue
		}
		// Links are followed: configuration management likes them, and only
		// admins write here.
		info, err := os.Stat(filepath.Join(s.dir, name))
		files = append(files, file{name, info, err})
		if err != nil {
			fmt.Fprintf(&stamp, "%q %v\n", name, err)
			continue
		}
		var ctime int64
		var ino uint64
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			ctime, ino = st.Ctim.Nano(), st.Ino
			if t := time.Unix(0, ctime); t.After(newest) {
				newest = t
			}
		}
		fmt.Fprintf(&stamp, "%q %d %d %d %d %v\n", name, info.Size(), info.ModTime().UnixNano(), ctime, ino, info.Mode())
	}
	// A file changed within the clock's tick of the last reading may have
	// changed after it (git's racy index, for the same reason).
	if s.byKey != nil && stamp.String() == s.stamp && !newest.After(s.loaded.Add(-tick)) {
		return nil
	}
	now := time.Now()
	people := map[string]*Person{}
	var problems []Problem
	sidecars := map[string]bool{}
	for _, f := range files {
		user, kind := strings.TrimSuffix(f.name, filepath.Ext(f.name)), filepath.Ext(f.name)
		if err := quarry.CheckUser(user); err != nil {
			problems = append(problems, Problem{File: f.name, Message: err.Error()})
			continue
		}
		data, err := readFile(s.dir, f.name)
		p := people[user]
		if p == nil {
			p = &Person{Identity: quarry.Identity{Packager: quarry.Packager{User: user}, Role: quarry.RoleMaintainer}}
			people[user] = p
		}
		switch {
		case err != nil:
			problems = append(problems, Problem{File: f.name, Message: err.Error()})
			p.broken = p.broken || kind == ".toml"
		case kind == ".pub":
			keys, bad := ParseKeys(f.name, data)
			p.Keys = keys
			problems = append(problems, bad...)
		default:
			sidecars[user] = true
			side, bad := parsePerson(f.name, data)
			if bad != nil {
				bad.Message += "; until this is mended " + user + " may do nothing"
				problems = append(problems, *bad)
				p.broken, p.Mail = true, MailNone // they may have said so
				continue
			}
			p.Name, p.Email, p.Packages, p.Disabled, p.Mail = side.Name, side.Email, side.Packages, side.Disabled, side.Mail
			if side.Role != "" {
				p.Role = quarry.Role(side.Role)
			}
		}
	}
	s.byKey, s.people = map[string]int{}, nil
	for _, user := range slices.Sorted(maps.Keys(people)) {
		p := people[user]
		for _, k := range p.Keys {
			if name, email := fromComment(k.Comment); name != "" && p.Name == "" && p.Email == "" {
				p.Name, p.Email = name, email
			}
			if other, taken := s.byKey[k.blob]; taken {
				who := "others"
				if other >= 0 {
					who = s.people[other].User
				}
				problems = append(problems, Problem{File: user + ".pub", Line: k.Line,
					Message: fmt.Sprintf("key %s is also %s's, so it is taken for neither: remove it from one of the files", k.Fingerprint, who)})
				s.byKey[k.blob] = -1
				continue
			}
			s.byKey[k.blob] = len(s.people)
		}
		if len(p.Keys) == 0 && sidecars[user] {
			problems = append(problems, Problem{File: user + ".toml", Message: fmt.Sprintf("there is no usable key in %s.pub, so %s cannot connect", user, user)})
		}
		s.people = append(s.people, *p)
	}
	for _, p := range problems {
		if !slices.Contains(s.problems, p) {
			s.log.Warn("a key file was not taken", "dir", s.dir, "problem", p.String())
		}
	}
	s.problems, s.stamp, s.loaded = problems, stamp.String(), now
	return nil
}

// readFile reads a regular file of at most a byte over the limit. It does not
// wait for the writer of a FIFO.
func readFile(dir, name string) ([]byte, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", errors.Unwrap(err))
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.New("is no regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	return data, nil
}
