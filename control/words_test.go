package control

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/queue"
)

// TestWhy: the table says what a build was made again for, unless there is more
// to say of how it ended.
func TestWhy(t *testing.T) {
	var out bytes.Buffer
	c := &Call{Out: &out}
	if err := table(c, []quarry.Build{
		{Number: 1, State: quarry.Succeeded, Why: "rebuilt: libgreet has changed"},
		{Number: 2, State: quarry.Failed, Why: "mass rebuild 1", Reason: "make ended with status 2"},
		{Number: 3, State: quarry.Running, Why: "mass rebuild 1", Step: "make"},
	}, time.Now()); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(out.String(), "\n")
	for i, want := range []string{"  WHY", "rebuilt: libgreet has changed", "make ended with status 2", "  make"} {
		if !strings.HasSuffix(strings.TrimRight(lines[i], " "), want) {
			t.Errorf("line %d is %q, and should end in %q", i, lines[i], want)
		}
	}
	if strings.Contains(out.String(), "mass rebuild 1") {
		t.Errorf("what stands still more to the point is covered: %q", out.String())
	}
}

func TestEnvironmentNote(t *testing.T) {
	for _, tt := range []struct {
		e    images.Environment
		want string
	}{
		{images.Environment{}, ""},
		{images.Environment{Started: true}, "started"},
		{images.Environment{Stopped: true}, "stopped"},
		{images.Environment{Started: true, Paused: "no memory"}, "no memory"},
	} {
		if got, _ := noteOf(environmentJSON{Environment: tt.e}); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.e, got, tt.want)
		}
	}
}

// TestCalledOff: of what is called off, the counts are those of that moment.
func TestCalledOff(t *testing.T) {
	for _, tt := range []struct{ by, want string }{
		{"", "\n1 of 3 built: 1 succeeded, 0 failed, 2 queued\n"},
		{"carol", ": called off by carol\nby then 1 of 3 built: 1 succeeded, 0 failed, 2 queued\n"},
	} {
		var out bytes.Buffer
		m := massRebuild{queue.Campaign{ID: "1", By: "alice", Cancelled: tt.by}, queue.Report{Total: 3, Succeeded: 1, Queued: 2}}
		if err := printMass(&out, m, false); err != nil || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%v, %q, want %q", err, out.String(), tt.want)
		}
	}
}
