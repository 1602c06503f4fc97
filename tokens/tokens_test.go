package tokens

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
)

// folk are people whose rights a test changes.
type folk map[string]quarry.Identity

func (f folk) user(name string) (quarry.Identity, error) {
	id, ok := f[name]
	if !ok {
		return id, errors.New("nobody has that name")
	}
	id.User = name
	return id, nil
}

func open(t *testing.T, people folk) *Store {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "tokens"), people.user)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func add(t *testing.T, s *Store, user string, o Options) (string, Token) {
	t.Helper()
	secret, token, err := s.Add(user, o)
	if err != nil {
		t.Fatal(err)
	}
	return secret, token
}

func TestLookup(t *testing.T) {
	people := folk{"alice": {Role: quarry.RoleMaintainer, Packages: []string{"lib*"}, Packager: quarry.Packager{Email: "alice@example.org"}}}
	s := open(t, people)
	secret, token := add(t, s, "alice", Options{Name: "laptop", By: "local"})
	who, err := s.Lookup(secret)
	if err != nil || who.User != "alice" || who.Email != "alice@example.org" || who.Role != quarry.RoleMaintainer || who.Key != "token "+token.ID {
		t.Errorf("the token lets in %+v, %v", who, err)
	}
	if id, ok := ID(who); !ok || id != token.ID {
		t.Errorf("the identity shows token %q, %v", id, ok)
	}
	flip := []byte(secret)
	if flip[len(flip)-1]++; flip[len(flip)-1] == 'z'+1 || flip[len(flip)-1] == '8' {
		flip[len(flip)-1] = 'a'
	}
	for _, wrong := range []string{"", "qry_", secret[1:], secret + "a", strings.ToUpper(secret), string(flip), "qry_aaaaaaaa" + secret[12:],
		"qry_../../aa" + secret[12:], strings.Repeat("a", 1<<20), secret + "\n", "\xff\x00"} {
		if who, err := s.Lookup(wrong); !errors.Is(err, ErrUnknown) || who.User != "" {
			t.Errorf("%.80q lets in %+v, %v", wrong, who, err)
		}
	}
	// Nothing in the folder lets anybody in, and nobody else reads it.
	err = filepath.WalkDir(s.Dir(), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v (%v)", path, info.Mode(), err)
		}
		if d.IsDir() {
			return nil
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), secret[13:]) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	list, problems, err := s.List()
	if err != nil || len(problems) != 0 || len(list) != 1 || list[0].Name != "laptop" || list[0].By != "local" || list[0].Used.IsZero() || list[0].Made.IsZero() {
		t.Errorf("list gives %+v, %v, %v", list, problems, err)
	}
	// Another store on the same folder, as the command line is one, revokes it.
	other, err := Open(s.Dir(), people.user)
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Revoke(token.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Lookup(secret); !errors.Is(err, ErrUnknown) {
		t.Errorf("a revoked token: %v", err)
	}
	if err := s.Revoke(token.ID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("revoked twice: %v", err)
	}
	if err := s.Revoke("../keys/alice"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is no id is revoked: %v", err)
	}
	if _, err := s.Get(token.ID); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a revoked token is got: %v", err)
	}
}

// A token never exceeds what its user may do at the time of its use.
func TestNarrow(t *testing.T) {
	people := folk{}
	s := open(t, people)
	const a, m, r, b = quarry.RoleAdmin, quarry.RoleMaintainer, quarry.RoleReader, quarry.RoleBuilder
	for _, tt := range []struct{ made, role, now, want quarry.Role }{
		{a, "", a, a}, {a, "", r, r}, {a, a, m, m}, {a, m, a, m}, {a, m, r, r}, {a, b, a, b}, {a, b, m, r},
		{m, m, a, m}, {m, r, m, r}, {m, m, b, r}, {m, "", b, b}, {r, r, a, r}, {b, b, b, b}, {b, "", a, a},
	} {
		people["x"] = quarry.Identity{Role: tt.made}
		secret, token := add(t, s, "x", Options{Role: tt.role})
		people["x"] = quarry.Identity{Role: tt.now}
		if who, err := s.Lookup(secret); err != nil || who.Role != tt.want {
			t.Errorf("a token of role %q, made by a %s who is a %s now, lets in a %s, %v: want %s", tt.role, tt.made, tt.now, who.Role, err, tt.want)
		}
		if err := s.Revoke(token.ID); err != nil {
			t.Error(err)
		}
	}
	for _, tt := range []struct {
		who, role quarry.Role
		packages  []string
	}{{m, a, nil}, {r, m, nil}, {r, a, nil}, {m, b, nil}, {b, m, nil}, {r, "", []string{"zlib"}}, {a, r, []string{"zlib"}}} {
		people["x"] = quarry.Identity{Role: tt.who}
		if _, token, err := s.Add("x", Options{Role: tt.role, Packages: tt.packages}); err == nil {
			t.Errorf("a %s gets a token of role %q for %q: %+v", tt.who, tt.role, tt.packages, token)
		}
	}
	// Both the user's patterns and the token's have to match.
	people["x"] = quarry.Identity{Role: m, Packages: []string{"lib*", "zlib"}}
	secret, _ := add(t, s, "x", Options{Packages: []string{"*z*"}})
	may := func() (list []string) {
		who, err := s.Lookup(secret)
		if err != nil {
			t.Error(err)
		}
		for _, pkg := range []string{"libc", "libz", "zlib", "zsh"} {
			if who.MayPush(pkg) {
				list = append(list, pkg)
			}
		}
		return list
	}
	if got := may(); !slices.Equal(got, []string{"libz", "zlib"}) {
		t.Errorf("the token may push %q", got)
	}
	people["x"] = quarry.Identity{Role: a}
	if got := may(); !slices.Equal(got, []string{"libz", "zlib", "zsh"}) {
		t.Errorf("the token of one who became an admin may push %q", got)
	}
	people["x"] = quarry.Identity{Role: r}
	if got := may(); got != nil {
		t.Errorf("the token of one who became a reader may push %q", got)
	}
	delete(people, "x")
	if _, err := s.Lookup(secret); !errors.Is(err, ErrUser) {
		t.Errorf("the token of nobody: %v", err)
	}
}

func TestExpires(t *testing.T) {
	s := open(t, folk{"alice": {Role: quarry.RoleReader}})
	if _, _, err := s.Add("alice", Options{Expires: time.Now().Add(-time.Second)}); err == nil {
		t.Error("a token is made that has expired")
	}
	secret, token := add(t, s, "alice", Options{Expires: time.Now().Add(time.Hour)})
	if _, err := s.Lookup(secret); err != nil {
		t.Error(err)
	}
	edit(t, s, token.ID, func(text string) string {
		before, _, _ := strings.Cut(text, "expires = ")
		return before + "expires = 2020-01-01T00:00:00Z\n"
	})
	if _, err := s.Lookup(secret); !errors.Is(err, ErrExpired) {
		t.Errorf("a token of 2020: %v", err)
	}
}

func edit(t *testing.T, s *Store, id string, change func(string) string) {
	t.Helper()
	data, err := os.ReadFile(s.path(id))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.path(id), []byte(change(string(data))), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A file that cannot be taken is a problem, and nobody else's.
func TestProblems(t *testing.T) {
	s := open(t, folk{"alice": {Role: quarry.RoleMaintainer}})
	good, _ := add(t, s, "alice", Options{})
	bad := map[string]string{}
	for what, change := range map[string]func(string) string{
		"user":         func(x string) string { return strings.Replace(x, "alice", "../alice", 1) },
		"hash is no":   func(x string) string { return strings.Replace(x, "hash = '", "hash = '0", 1) },
		"role":         func(x string) string { return x + "role = 'king'\n" },
		"unknown":      func(x string) string { return x + "rolle = 'reader'\n" },
		"name":         func(x string) string { return x + "name = \"a\\u0007b\"\n" },
		"pattern":      func(x string) string { return x + "packages = ['[']\n" },
		"no regular":   func(x string) string { return x + strings.Repeat("#", maxFile) },
		"toml: ":       func(x string) string { return x + "=" },
		"are the most": func(x string) string { return x + "packages = [" + strings.Repeat("'a',", MaxPatterns+1) + "]\n" },
	} {
		secret, token := add(t, s, "alice", Options{})
		edit(t, s, token.ID, change)
		bad[token.ID+".toml"] = what
		if _, err := s.Lookup(secret); !errors.Is(err, ErrBroken) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, name := range []string{"notes.toml", "AAAAAAAA.toml"} {
		if err := os.WriteFile(filepath.Join(s.Dir(), name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		bad[name] = "not named"
	}
	if err := os.Mkdir(s.path("abcdefgh"), 0o700); err != nil {
		t.Fatal(err)
	}
	bad["abcdefgh.toml"] = "no regular"
	list, problems, err := s.List()
	if err != nil || len(list) != 1 || len(problems) != len(bad) {
		t.Errorf("list gives %+v, %+v, %v", list, problems, err)
	}
	for _, p := range problems {
		if !strings.Contains(p.Message, bad[p.File]) {
			t.Errorf("%s: %q, want something of %q", p.File, p.Message, bad[p.File])
		}
	}
	if _, err := s.Lookup(good); err != nil {
		t.Errorf("a good token beside bad ones: %v", err)
	}
}

func TestMany(t *testing.T) {
	s := open(t, folk{"alice": {Role: quarry.RoleReader}, "bob": {Role: quarry.RoleReader}})
	for range MaxPerUser {
		add(t, s, "alice", Options{})
	}
	if _, _, err := s.Add("alice", Options{}); err == nil || !strings.Contains(err.Error(), "revoke some") {
		t.Errorf("one token too many: %v", err)
	}
	add(t, s, "bob", Options{})
	if _, _, err := s.Add("carol", Options{}); err == nil {
		t.Error("a token for nobody")
	}
}
