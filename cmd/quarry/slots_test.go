package main

import (
	"testing"

	"github.com/Morphux/quarry/jobs"
	"github.com/google/go-cmp/cmp"
)

func TestSharedSlots(t *testing.T) {
	st := jobs.Status{Total: 16, Max: 12, Limit: jobs.Limit{Slots: 8}, Builds: []jobs.BuildStatus{
		{Number: 1, Granted: 1, Ceiling: 12, Weight: 1},                 // in configure: it may count on its part
		{Number: 2, Granted: 6, Ceiling: 12, Parallel: true, Weight: 1}, // has what 1 leaves
		{Number: 3, Granted: 1, Ceiling: 12, Weight: 0.25},              // work in bulk
		{Number: 4, Granted: 2, Ceiling: 12, Weight: 1, Hand: 2},        // somebody said so
		{Number: 5, Granted: 1, Ceiling: 1, Weight: 1},                  // its recipe says one
		{Number: 6, Waiting: true, Ceiling: 12, Weight: 1},              // has none yet
	}}
	got := sharedSlots(st)
	want := map[int64]float64{1: 8 / 4.25, 2: 6, 3: 1, 4: 2, 5: 1}
	if got.All != 8 || got.Most != 12 || !cmp.Equal(got.Of, want) {
		t.Errorf("%+v, want %v", got, want)
	}
	if n := got.Each(2); n != 4 {
		t.Errorf("each of two: %v", n)
	}
	if n := got.Each(1); n != 8 {
		t.Errorf("one alone: %v", n)
	}
	if n := got.Each(100); n != 1 {
		t.Errorf("each of a hundred: %v", n)
	}
}
