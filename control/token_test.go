package control

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/tokens"
)

// Who may make, see and revoke whose tokens.
func TestTokens(t *testing.T) {
	people := map[string]quarry.Role{"alice": quarry.RoleMaintainer, "bob": quarry.RoleReader, "root": quarry.RoleAdmin}
	person := func(user string) (quarry.Identity, error) {
		role, ok := people[user]
		if !ok {
			return quarry.Identity{}, errors.New("nobody has that name")
		}
		return quarry.Identity{Packager: quarry.Packager{User: user, Key: "SHA256:" + user}, Role: role}, nil
	}
	store, err := tokens.Open(t.TempDir(), person)
	if err != nil {
		t.Fatal(err)
	}
	table := Verbs(&Farm{Tokens: store})
	as := func(user string) quarry.Identity { id, _ := person(user); return id }
	run := func(who quarry.Identity, words string) (string, string, int) {
		t.Helper()
		return call(t, table, who, Terminal{}, strings.Fields(words)...)
	}
	secret := func(who quarry.Identity, words string) (string, string) {
		t.Helper()
		out, errOut, code := run(who, words)
		s := strings.TrimSuffix(out, "\n")
		id, err := store.Lookup(s)
		if code != ExitOK || err != nil || strings.Contains(errOut, s) {
			t.Fatalf("%s: exit %d, %q, %q, %v", words, code, out, errOut, err)
		}
		short, _ := tokens.ID(id)
		return s, short
	}
	mine, mineID := secret(as("alice"), "token add --name mine --expires 1d")
	_, bobID := secret(as("root"), "token add bob")
	_, narrowID := secret(Owner(), "token add alice --role reader")
	out, _, code := run(as("alice"), "token add --json --package lib*,zlib")
	var made NewToken
	if err := json.Unmarshal([]byte(out), &made); err != nil || code != ExitOK || made.User != "alice" || len(made.Packages) != 2 || made.By != "alice" {
		t.Errorf("--json says %s, exit %d, %v", out, code, err)
	}
	byToken, err := store.Lookup(mine)
	if err != nil {
		t.Fatal(err)
	}
	member := quarry.Identity{Packager: quarry.Packager{User: "alice", Key: socketKey}, Role: quarry.RoleReader}
	nobody := quarry.Identity{Role: quarry.RoleReader} // who may look without a token
	for _, tt := range []struct {
		who   quarry.Identity
		words string
		code  int
	}{
		{nobody, "token list", ExitForbidden}, {nobody, "token list --json", ExitForbidden}, {nobody, "token add", ExitForbidden}, {nobody, "token revoke " + mineID, ExitForbidden},
		{as("alice"), "token add bob", ExitForbidden}, {as("bob"), "token add --role maintainer", ExitError}, {as("root"), "token add nobody", ExitError},
		{Owner(), "token add", ExitUsage}, {as("alice"), "token add --expires soon", ExitUsage}, {as("alice"), "token add --expires -1h", ExitUsage},
		{byToken, "token add", ExitForbidden}, {member, "token add alice", ExitForbidden}, {member, "token list", ExitForbidden},
		{as("alice"), "token list bob", ExitForbidden}, {as("alice"), "token revoke " + bobID, ExitForbidden}, {as("alice"), "token revoke aaaaaaaa", ExitNotFound},
		{as("root"), "token revoke ../keys", ExitNotFound}, {byToken, "token revoke " + narrowID, ExitForbidden}, {member, "token revoke " + mineID, ExitForbidden},
	} {
		if out, errOut, code := run(tt.who, tt.words); code != tt.code || out != "" {
			t.Errorf("%s: %s: exit %d, %q, %q", tt.who.User, tt.words, code, out, errOut)
		}
	}
	for _, tt := range []struct {
		who   quarry.Identity
		words string
		n     int
	}{{as("alice"), "token list --json", 3}, {as("bob"), "token list --json", 1}, {as("root"), "token list --json", 4}, {Owner(), "token list bob --json", 1}, {byToken, "token list --json", 3}} {
		var list []tokens.Token
		out, errOut, code := run(tt.who, tt.words)
		if err := json.Unmarshal([]byte(out), &list); err != nil || code != ExitOK || len(list) != tt.n || strings.Contains(out, mine) {
			t.Errorf("%s: %s: exit %d, %s%s, %v", tt.who.User, tt.words, code, out, errOut, err)
		}
	}
	// A token may end itself.
	if _, errOut, code := run(byToken, "token revoke "+mineID); code != ExitOK {
		t.Errorf("exit %d, %s", code, errOut)
	}
	if _, err := store.Lookup(mine); !errors.Is(err, tokens.ErrUnknown) {
		t.Errorf("a revoked token: %v", err)
	}
	if out, _, code := run(as("root"), "token revoke --json "+bobID+" "+narrowID); code != ExitOK || strings.Count(out, `"id"`) != 2 {
		t.Errorf("exit %d, %s", code, out)
	}
}
