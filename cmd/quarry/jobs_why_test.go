package main

import (
	"testing"

	"github.com/Morphux/quarry/results"
)

// How many slots the machine had to spare says nothing of why a build failed: no
// list of what has changed tells of it.
func TestJobsAreNoChange(t *testing.T) {
	host := results.Host{Builder: "farm1", CPUs: 16, Memory: 1 << 30, Jobs: 16}
	with := host
	with.Jobs = 2
	if list := builderChanged(host, with); len(list) != 0 {
		t.Errorf("told: %q", list)
	}
}
