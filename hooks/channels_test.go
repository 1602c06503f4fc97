package hooks_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Morphux/quarry/hooks"
	"github.com/Morphux/quarry/internal/testpkg"
)

// Who may push to a channel is checked before any ref moves, whether the
// environment tells it (our own SSH server) or the spool (another git server).
func TestChannelPermission(t *testing.T) {
	list := []hooks.Channel{{Name: "stable", Push: []string{"carol", "role:maintainer"}}, {Name: "sealed", Push: []string{"role:admin"}}, {Name: "testing"}}
	env := hooks.ChannelsEnv(list)
	for name, tt := range map[string]struct {
		user, role string
		standard   string // default channel, which the spool tells
		args       []string
		refused    string
	}{
		"open channel":       {user: "alice", role: "maintainer", args: []string{"HEAD:hello-1.0"}},
		"by role":            {user: "alice", role: "maintainer", args: []string{"-o", "channel=stable", "HEAD:hello-1.0"}},
		"admins always":      {user: "root", role: "admin", args: []string{"-o", "channel=sealed", "HEAD:hello-1.0"}},
		"not on the list":    {user: "alice", role: "maintainer", args: []string{"-o", "channel=sealed", "HEAD:hello-1.0"}, refused: "quarry: alice may not push to sealed: admins may;"},
		"default channel":    {user: "alice", role: "maintainer", standard: "sealed", args: []string{"HEAD:hello-1.0"}, refused: "quarry: alice may not push to sealed"},
		"branch not built":   {user: "alice", role: "maintainer", args: []string{"-o", "channel=sealed", "HEAD:master"}},
		"unknown channel":    {user: "alice", role: "maintainer", args: []string{"-o", "channel=moon", "HEAD:hello-1.0"}, refused: "there is no channel moon: there is stable, sealed, testing"},
		"told before others": {user: "alice", role: "maintainer", args: []string{"-o", "channel=sealed", "HEAD:hello-7.7"}, refused: "alice may not push to sealed"},
	} {
		for _, way := range []string{"environment", "spool"} {
			if way == "environment" && tt.standard != "" {
				continue
			}
			t.Run(name+" by "+way, func(t *testing.T) {
				t.Parallel()
				s := newServer(t, "hello")
				vars := []string{"QUARRY_USER=" + tt.user, "QUARRY_ROLE=" + tt.role}
				if way == "environment" {
					vars = append(vars, env)
				} else {
					standard := tt.standard
					if standard == "" {
						standard = "testing"
					}
					for range 2 { // as at each start
						if err := hooks.Share(s.opts.Spool, standard, list); err != nil {
							t.Fatal(err)
						}
					}
				}
				args := append(tt.args[:len(tt.args)-1:len(tt.args)-1], s.repo, tt.args[len(tt.args)-1])
				out, err := s.push(t, testpkg.Init(t, "hello"), vars, args...)
				if tt.refused == "" {
					if err != nil {
						t.Errorf("refused: %v\n%s", err, out)
					}
					return
				}
				if err == nil || !strings.Contains(out, tt.refused) {
					t.Errorf("want a refusal with %q, got %v\n%s", tt.refused, err, out)
				}
				if refs := s.refs(t); refs != "" {
					t.Errorf("refs moved: %s", refs)
				}
				if n := strings.Count(out, "remote: quarry: "); n != 1 && strings.Contains(tt.refused, "may not") {
					t.Errorf("the refusal has %d lines:\n%s", n, out)
				}
			})
		}
	}
}

// Who may not push to a channel cannot take anything out of it either: neither
// by deleting the branch, nor by moving it to another channel.
func TestChannelTaken(t *testing.T) {
	list := []hooks.Channel{{Name: "sealed", Push: []string{"role:admin"}}, {Name: "testing"}}
	s := newServer(t, "hello")
	if err := hooks.Share(s.opts.Spool, "testing", list); err != nil {
		t.Fatal(err)
	}
	alice, root := []string{"QUARRY_USER=alice", "QUARRY_ROLE=maintainer"}, []string{"QUARRY_USER=root", "QUARRY_ROLE=admin"}
	dir := testpkg.Init(t, "hello")
	push := func(who []string, refused string, args ...string) {
		t.Helper()
		out, err := s.push(t, dir, who, args...)
		switch {
		case refused == "" && err != nil:
			t.Errorf("push %v: %v\n%s", args, err, out)
		case refused != "" && (err == nil || !strings.Contains(out, refused)):
			t.Errorf("push %v: want a refusal with %q, got %v\n%s", args, refused, err, out)
		}
	}
	push(root, "", "-o", "channel=sealed", s.repo, "HEAD:hello-1.0")
	testpkg.Git(t, dir, "commit", "-q", "--allow-empty", "-m", "Change")
	push(alice, "hello-1.0 is on sealed, and alice may not push there: admins may", s.repo, "HEAD:hello-1.0")
	push(alice, "hello-1.0 is on sealed", s.repo, ":hello-1.0")
	push(root, "", s.repo, "HEAD:hello-1.0") // moves it to testing
	testpkg.Git(t, dir, "commit", "-q", "--allow-empty", "-m", "Change again")
	push(alice, "", s.repo, "HEAD:hello-1.0")
	push(alice, "", s.repo, ":hello-1.0")
}

// A list that cannot be read lets nobody through: it may hold the channel that
// is pushed to. It is no push either.
func TestChannelsBroken(t *testing.T) {
	s := newServer(t, "hello")
	path := filepath.Join(s.opts.Spool, "channels")
	dir := testpkg.Init(t, "hello")
	for _, text := range []string{"", "{", `{"quarry_channels":2}`, `{"quarry_channels":1,"channels":7}`} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := s.push(t, dir, []string{"QUARRY_USER=alice"}, s.repo, "HEAD:hello-1.0")
		if err == nil || !strings.Contains(out, "list of channels cannot be read") {
			t.Errorf("%q: %v\n%s", text, err, out)
		}
	}
	if err := hooks.Share(s.opts.Spool, "testing", []hooks.Channel{{Name: "testing"}}); err != nil {
		t.Fatal(err)
	}
	if err := hooks.Drain(s.opts.Spool, func(p hooks.Push) error { t.Errorf("the list is taken for a push: %+v", p); return nil }); err != nil {
		t.Error(err)
	}
	if out, err := s.push(t, dir, []string{"QUARRY_USER=alice"}, s.repo, "HEAD:hello-1.0"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
