package results

import (
	"fmt"
	"testing"
	"time"
)

// TestPast: the times of what stands in the channel, in the order of the ends.
func TestPast(t *testing.T) {
	r := open(t, Options{})
	at := time.Unix(1_700_000_000, 0).UTC()
	for i, p := range []struct {
		pkg     string
		took    time.Duration
		ended   time.Duration
		failing bool
	}{
		{"slow", time.Hour, 3 * time.Hour, false},
		{"quick", time.Second, time.Hour, false},
		{"broken", time.Minute, 2 * time.Hour, true},
		{"backwards", -time.Minute, 4 * time.Hour, false},
	} {
		o := sample(p.pkg, "1.0", "x86_64", int64(i+1))
		if p.failing {
			o = failing(p.pkg, "1.0", "x86_64", int64(i+1))
		}
		o.Ended = at.Add(p.ended)
		o.Started = o.Ended.Add(-p.took)
		record(t, r, o)
	}
	list, err := snapshot(t, r).Past(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range list {
		got = append(got, fmt.Sprint(p.Package, " ", p.Took, " ", p.Ended.Sub(at)))
	}
	if fmt.Sprint(got) != "[quick 1s 1h0m0s slow 1h0m0s 3h0m0s]" {
		t.Errorf("the past: %v", got)
	}
}
