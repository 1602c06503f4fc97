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
		switch {
		case p.pkg == "quick": // of before slots were shared out
			o.Usage.SlotTime, o.Host.Jobs = 0, 3
		case p.failing:
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
		got = append(got, fmt.Sprint(p.Package, " ", p.Took, " ", p.Ended.Sub(at), " ", p.Cost))
	}
	if fmt.Sprint(got) != "[quick 1s 1h0m0s {1500000 43.5s 0s 0 3 2} slow 1h0m0s 3h0m0s {1500000 43.5s 58s 3.25 0 2}]" {
		t.Errorf("the past: %v", got)
	}
}

// TestCost: odd texts say nothing, and never too much.
func TestCost(t *testing.T) {
	for text, want := range map[string]Cost{
		"": {},
		"\n[usage]\nuser = 1.5\nsys = 1\nsource_size = 7\nslot_seconds = 9.5\nwidth = 2.5\n\n[host]\njobs = 9\ncpus = 4\n": {7, 2500 * time.Millisecond, 9500 * time.Millisecond, 2.5, 9, 4},
		"\n[usage]\nuser = -1.5\nsource_size = -7\nwidth = nan\n\n[host]\njobs = 9":                                        {Jobs: 9},
		"\n[usage]\nuser = 99999999999999999\nwidth = 99999999\n[host]\njobs = 99999999999":                                {CPU: 1e9 * time.Second},
		"\n[usage]\nwidth = 0.5\n[other]\nuser = 5\n[host.x]\njobs = 4\n":                                                  {},
		"description = 'x'\n[host]\njobs = 4\n\n[[step]]\nuser = 7\n":                                                      {Jobs: 4},
	} {
		if got := costOf(text); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}
