// Package tokens knows people by bearer tokens: secrets for programs that cannot
// hold an SSH key, as those that speak HTTP or the text protocol.
//
// A folder holds one TOML file for each token (ID.toml), which says whose it is
// and what it narrows:
//
//	user = "alice"
//	name = "the crawler"
//	hash = "9f86d0..."              # SHA-256 of the whole token, in hex
//	made = 2026-05-04T12:00:00Z
//	by = "alice"
//	role = "reader"                 # absent: alice's
//	packages = ["zlib", "lib*"]     # absent: alice's
//	expires = 2026-08-04T12:00:00Z  # absent: never
//
// The secret itself is in no file. A token lets in as its user, who is looked up
// at each use: it never exceeds what they may do then, and ends with them. The
// folder is the truth: a file that is removed, by hand too, is a token that is
// revoked from the next look-up on, and a file that cannot be read disables no
// other. When a token was used last is told by the time of a file beside (ID.used).
package tokens

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/durable"
	"github.com/pelletier/go-toml/v2"
)

// Why a token is not taken.
var (
	ErrUnknown = errors.New("token is unknown here: it was revoked, or never made by this farm")
	ErrExpired = errors.New("token has expired: ask for a new one with quarry token add")
	ErrBroken  = errors.New("token has a file on the farm that cannot be taken: quarry token list tells an admin why")
	ErrUser    = errors.New("token is of somebody who is here no more, or disabled")
)

// Limits on tokens. They are far above what people need.
const (
	MaxToken    = 200      // bytes of a token that somebody shows
	MaxPerUser  = 100      // tokens of one person
	MaxName     = 100      // bytes in a token's name
	MaxPatterns = 100      // package patterns of one token
	maxFile     = 64 << 10 // bytes in a token's file
)

// Coarse is how exactly it is kept when a token was used last.
const Coarse = time.Hour

// keyPrefix begins what stands where other people's fingerprint stands.
const keyPrefix = "token "

// ID tells which token an identity has shown; ok is false when it came another way.
func ID(who quarry.Identity) (id string, ok bool) { return strings.CutPrefix(who.Key, keyPrefix) }

// Token is what is known of a token, which is all but its secret.
type Token struct {
	ID       string      `json:"id"` // e.g. k3j5x2ab; it is part of the secret and none itself
	User     string      `json:"user"`
	Name     string      `json:"name,omitempty"`     // what it is for
	Role     quarry.Role `json:"role,omitempty"`     // at most this one; "": the user's
	Packages []string    `json:"packages,omitempty"` // only these, as of path.Match; none: all of the user's
	Made     time.Time   `json:"made,omitzero"`
	By       string      `json:"by,omitempty"`     // who made it
	Expires  time.Time   `json:"expires,omitzero"` // zero: never
	Used     time.Time   `json:"used,omitzero"`    // last, by and large: see Coarse
}

// Expired reports whether the token's time is over.
func (t Token) Expired() bool { return !t.Expires.IsZero() && !time.Now().Before(t.Expires) }

// Problem is a file in the folder that was not taken.
type Problem struct {
	File    string `json:"file"` // e.g. k3j5x2ab.toml
	Message string `json:"message"`
}

// file is a token as its file has it.
type file struct {
	User     string      `toml:"user"`
	Name     string      `toml:"name,omitempty"`
	Hash     string      `toml:"hash"`
	Made     time.Time   `toml:"made,omitzero"`
	By       string      `toml:"by,omitempty"`
	Role     quarry.Role `toml:"role,omitempty"`
	Packages []string    `toml:"packages,omitempty"`
	Expires  time.Time   `toml:"expires,omitzero"`
}

// Store is a folder of tokens. Its methods may be called at the same time.
type Store struct {
	dir  string
	user func(name string) (quarry.Identity, error)

	mu   sync.Mutex           // guards the following
	used map[string]time.Time // when the use of a token was noted last
}

// Open opens the folder, which is made if it is not there, for its owner alone.
// user gives a person as they are now; its error says that there is nobody.
func Open(dir string, user func(name string) (quarry.Identity, error)) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder of tokens cannot be made: %w", err)
	}
	return &Store{dir: dir, user: user, used: map[string]time.Time{}}, nil
}

// Dir is the folder.
func (s *Store) Dir() string { return s.dir }

// Options say what a token is to be.
type Options struct {
	Name     string
	Role     quarry.Role // "": the user's, whatever that comes to be
	Packages []string    // none: the user's
	Expires  time.Time   // zero: never
	By       string      // who makes it
}

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

var form = regexp.MustCompile(`^qry_([a-z2-7]{8})_[a-z2-7]{52}$`)

// Add makes a token for a user. The secret is told this once.
func (s *Store) Add(user string, o Options) (secret string, t Token, err error) {
	who, err := s.user(user)
	if err != nil {
		return "", t, fmt.Errorf("token for %.40q cannot be made: %w", user, err)
	}
	if o.Role != "" && narrow(who.Role, o.Role) != o.Role {
		return "", t, fmt.Errorf("token of role %s cannot be made: %s is a %s, and a token may do no more than its user", o.Role, user, who.Role)
	}
	if o.Role == "" && len(o.Packages) > 0 && who.Role == quarry.RoleAdmin {
		o.Role = quarry.RoleMaintainer // an admin has every package
	}
	if role := narrow(who.Role, o.Role); len(o.Packages) > 0 && role != quarry.RoleMaintainer {
		return "", t, fmt.Errorf("token of role %s cannot be narrowed to packages: they only mean something for a maintainer", role)
	}
	if !o.Expires.IsZero() && !time.Now().Before(o.Expires) {
		return "", t, errors.New("token would have expired already: give a later end")
	}
	mine, _, err := s.list(user)
	if err != nil {
		return "", t, err
	}
	if len(mine) >= MaxPerUser {
		return "", t, fmt.Errorf("%s has %d tokens, which is the most: revoke some that are not used", user, len(mine))
	}
	random := make([]byte, 5+32) // 40 bits to tell tokens apart, 256 that nobody guesses
	if _, err := rand.Read(random); err != nil {
		return "", t, err
	}
	id := encoding.EncodeToString(random[:5])
	secret = "qry_" + id + "_" + encoding.EncodeToString(random[5:])
	sum := sha256.Sum256([]byte(secret))
	f := file{User: user, Name: o.Name, Hash: hex.EncodeToString(sum[:]), Made: time.Now().UTC().Truncate(time.Second), By: o.By,
		Role: o.Role, Packages: o.Packages, Expires: o.Expires.UTC().Truncate(time.Second)}
	if err := f.check(); err != nil {
		return "", t, err
	}
	data, err := toml.Marshal(f)
	if err != nil {
		return "", t, fmt.Errorf("token cannot be written: %w", err)
	}
	if err := durable.WriteFile(s.path(id), data, 0o600, ".new-*"); err != nil {
		return "", t, fmt.Errorf("token cannot be written: %w", err)
	}
	return secret, s.token(id, f), nil
}

// Lookup says who shows a token. What it returns holds now: who keeps a
// connection open asks again for each thing that is done. The error is
// [ErrUnknown], [ErrExpired], [ErrBroken] or [ErrUser], and gives away nothing of
// the folder.
func (s *Store) Lookup(secret string) (quarry.Identity, error) {
	none := quarry.Identity{}
	if len(secret) > MaxToken {
		return none, ErrUnknown
	}
	m := form.FindStringSubmatch(secret)
	if m == nil {
		return none, ErrUnknown
	}
	id := m[1]
	f, err := s.read(id)
	if errors.Is(err, fs.ErrNotExist) {
		return none, ErrUnknown
	}
	if err != nil {
		return none, ErrBroken
	}
	have, err := hex.DecodeString(f.Hash)
	sum := sha256.Sum256([]byte(secret))
	if err != nil || subtle.ConstantTimeCompare(have, sum[:]) != 1 {
		return none, ErrUnknown
	}
	t := s.token(id, f)
	if t.Expired() {
		return none, ErrExpired
	}
	who, err := s.user(t.User)
	if err != nil {
		return none, ErrUser
	}
	who.Role, who.Only, who.Key = narrow(who.Role, t.Role), t.Packages, keyPrefix+id
	if len(who.Only) > 0 && who.Role == quarry.RoleAdmin { // of somebody who became one
		who.Role = quarry.RoleMaintainer
	}
	s.note(id)
	return who, nil
}

// List gives all tokens, by user and by age, and what in the folder was not
// taken. Those that have expired are among them.
func (s *Store) List() ([]Token, []Problem, error) { return s.list("") }

func (s *Store) list(user string) (list []Token, problems []Problem, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("folder of tokens cannot be read: %w", err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".toml")
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		f, err := s.read(name)
		switch {
		case errors.Is(err, fs.ErrNotExist): // revoked this moment
		case err != nil:
			problems = append(problems, Problem{e.Name(), err.Error()})
		case user == "" || user == f.User:
			list = append(list, s.token(name, f))
		}
	}
	slices.SortFunc(list, func(a, b Token) int {
		if c := strings.Compare(a.User, b.User); c != 0 {
			return c
		}
		if c := a.Made.Compare(b.Made); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list, problems, nil
}

// Get gives a token by its id.
func (s *Store) Get(id string) (Token, error) {
	f, err := s.read(id)
	if errors.Is(err, fs.ErrNotExist) || !idForm.MatchString(id) {
		return Token{}, fmt.Errorf("there is no token %.40q: quarry token list says which there are: %w", id, fs.ErrNotExist)
	}
	return s.token(id, f), err
}

// Revoke ends a token at once.
func (s *Store) Revoke(id string) error {
	if !idForm.MatchString(id) {
		return fmt.Errorf("token %.40q is none: give its id, as quarry token list shows it: %w", id, fs.ErrNotExist)
	}
	err := os.Remove(s.path(id))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no token %s: it was revoked before: %w", id, err)
	}
	if err != nil {
		return fmt.Errorf("token %s cannot be revoked: %w", id, err)
	}
	os.Remove(s.usedPath(id)) // says nothing any more
	s.mu.Lock()
	delete(s.used, id)
	s.mu.Unlock()
	return durable.SyncDir(s.dir)
}

// narrow gives the role that has no more rights than either.
func narrow(a, b quarry.Role) quarry.Role {
	within := func(a, b quarry.Role) bool { return a == b || b == quarry.RoleAdmin || a == quarry.RoleReader }
	switch {
	case b == "" || within(a, b):
		return a
	case within(b, a):
		return b
	}
	return quarry.RoleReader // a maintainer is no builder, nor the other way round
}

var (
	idForm   = regexp.MustCompile(`^[a-z2-7]{8}$`)
	hashForm = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func (s *Store) path(id string) string     { return filepath.Join(s.dir, id+".toml") }
func (s *Store) usedPath(id string) string { return filepath.Join(s.dir, id+".used") }

// read reads a token's file.
func (s *Store) read(id string) (f file, err error) {
	if !idForm.MatchString(id) {
		return f, errors.New("is not named as tokens are: ID.toml, where ID is eight of a to z and 2 to 7")
	}
	// A FIFO would keep its reader waiting.
	if info, err := os.Stat(s.path(id)); err != nil || !info.Mode().IsRegular() || info.Size() > maxFile {
		if err == nil {
			err = fmt.Errorf("is no regular file of at most %d bytes", maxFile)
		}
		return f, err
	}
	data, err := os.ReadFile(s.path(id))
	if err != nil {
		return f, err
	}
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		var strict *toml.StrictMissingError
		if errors.As(err, &strict) && len(strict.Errors) > 0 {
			return f, fmt.Errorf("key %q is unknown: remove it or mend its spelling", strings.Join(strict.Errors[0].Key(), "."))
		}
		return f, errors.New(strings.ReplaceAll(err.Error(), "\n", " "))
	}
	return f, f.check()
}

func (f file) check() error {
	if err := quarry.CheckUser(f.User); err != nil {
		return err
	}
	if !hashForm.MatchString(f.Hash) {
		return errors.New("hash is no SHA-256 in 64 hex digits")
	}
	switch f.Role {
	case "", quarry.RoleAdmin, quarry.RoleMaintainer, quarry.RoleReader, quarry.RoleBuilder:
	default:
		return fmt.Errorf("role %.40q is unknown: use admin, maintainer, reader or builder", f.Role)
	}
	if len(f.Name) > MaxName || !printable(f.Name) {
		return fmt.Errorf("name %.40q is none: use at most %d bytes of UTF-8 without control characters", f.Name, MaxName)
	}
	if len(f.Packages) > MaxPatterns {
		return fmt.Errorf("%d package patterns: %d are the most", len(f.Packages), MaxPatterns)
	}
	for _, pattern := range f.Packages {
		if _, err := path.Match(pattern, "x"); err != nil || pattern == "" || len(pattern) > quarry.MaxName || !printable(pattern) || strings.ContainsAny(pattern, " /") {
			return fmt.Errorf("package pattern %.40q is none: write a name, or one with * ? [a-z] in it, such as lib*", pattern)
		}
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// token gives what a file says, and when the token was used.
func (s *Store) token(id string, f file) Token {
	t := Token{ID: id, User: f.User, Name: f.Name, Role: f.Role, Packages: f.Packages, Made: f.Made, By: f.By, Expires: f.Expires}
	if info, err := os.Stat(s.usedPath(id)); err == nil {
		t.Used = info.ModTime().UTC().Truncate(time.Second)
	}
	return t
}

// note notes that a token was used. It is no matter when that fails.
func (s *Store) note(id string) {
	now := time.Now()
	s.mu.Lock()
	recent := now.Sub(s.used[id]) < Coarse
	if !recent {
		s.used[id] = now
	}
	s.mu.Unlock()
	if recent {
		return
	}
	if f, err := os.OpenFile(s.usedPath(id), os.O_WRONLY|os.O_CREATE, 0o600); err == nil {
		f.Close()
		os.Chtimes(s.usedPath(id), now, now)
	}
}
