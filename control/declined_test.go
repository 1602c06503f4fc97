package control

import (
	"encoding/json"
	"testing"

	"github.com/Morphux/quarry"
)

// TestStatusTellsWhatIsDeclined has a package that is built for one arch and not
// for another: both stand in the list, and who reads builds reads it as before.
func TestStatusTellsWhatIsDeclined(t *testing.T) {
	r := release("odd", "1.0")
	r.Archs = []string{"x86_64", "aarch64"}
	r.Traits = map[string]quarry.Traits{"aarch64": {Broken: "no barriers"}}
	table := Verbs(graphFarm(t, past{}, r))
	out, errOut, code := call(t, table, reader, Terminal{}, "status", "odd", "--json")
	if code != ExitOK {
		t.Fatalf("exit %d: %s", code, errOut)
	}
	var list []quarry.Build
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 2 {
		t.Fatalf("%v: %s", err, out)
	}
	if b := list[0]; b.Arch != "x86_64" || b.Number == 0 || b.State == "declined" {
		t.Errorf("the first is %+v", b)
	}
	if b := list[1]; b.Target() != (quarry.Target{Channel: "testing", Package: "odd", Version: "1.0", Arch: "aarch64"}) || b.State != "declined" || b.Reason != "broken: no barriers" {
		t.Errorf("the last is %+v", b)
	}
}
