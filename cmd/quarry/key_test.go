package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/keys"
)

// TestKeyCmd adds, lists, changes and removes people as an admin types it.
func TestKeyCmd(t *testing.T) {
	state := t.TempDir()
	pub := filepath.Join(t.TempDir(), "k")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "laptop", "-f", pub).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s (apt-get install openssh-client)", err, out)
	}
	pub += ".pub"
	text, err := os.ReadFile(pub)
	if err != nil {
		t.Fatal(err)
	}
	quarry := func(want int, stdin string, args ...string) string {
		t.Helper()
		var out, errOut bytes.Buffer
		code := run(t.Context(), append([]string{"--state", state, "key"}, args...), strings.NewReader(stdin), &out, &errOut)
		if code != want {
			t.Fatalf("quarry key %q: status %d, want %d\n%s%s", args, code, want, out.String(), errOut.String())
		}
		return out.String() + errOut.String()
	}
	if out := quarry(control.ExitOK, "", "list"); !strings.Contains(out, "nobody yet") {
		t.Errorf("empty list: %s", out)
	}
	if out := quarry(control.ExitOK, "", "add", "alice", pub, "--package", "zlib", "--package", "lib*", "--name", "Alice Liddell", "--email", "alice@morphux.org"); out != "alice: maintainer of zlib, lib*, 1 key\n" {
		t.Errorf("add: %s", out)
	}
	if out := quarry(control.ExitError, string(text), "add", "bob", "-"); !strings.Contains(out, "alice's") {
		t.Errorf("alice's key for bob: %s", out)
	}
	quarry(control.ExitError, "rubbish\n", "add", "bob", "-")
	quarry(control.ExitError, "", "add", "bob")
	quarry(control.ExitUsage, "", "add")
	if out := quarry(control.ExitOK, "", "add", "alice", "--disable"); !strings.Contains(out, "disabled maintainer") {
		t.Errorf("disable: %s", out)
	}
	if out := quarry(control.ExitOK, "", "add", "alice", "--enable", "--role", "admin"); out != "alice: admin, 1 key\n" {
		t.Errorf("promotion: %s", out)
	}
	if err := os.WriteFile(filepath.Join(state, "keys", "broken.pub"), []byte("x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out := quarry(control.ExitOK, "", "list"); !strings.Contains(out, "Alice Liddell <alice@morphux.org>") || !strings.Contains(out, "quarry: broken.pub:1: ") {
		t.Errorf("list: %s", out)
	}
	var listed struct {
		People   []keys.Person
		Problems []keys.Problem
	}
	if err := json.Unmarshal([]byte(quarry(control.ExitOK, "", "list", "--json")), &listed); err != nil {
		t.Fatal(err)
	}
	if len(listed.People) != 2 || listed.People[0].User != "alice" || listed.People[0].Keys[0].Comment != "laptop" || len(listed.Problems) != 1 {
		t.Errorf("list --json: %+v", listed)
	}
	quarry(control.ExitOK, "", "remove", "alice")
	if out := quarry(control.ExitError, "", "remove", "alice"); !strings.Contains(out, "there is no alice") {
		t.Errorf("remove: %s", out)
	}
}
