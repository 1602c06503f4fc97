package pipeline

import (
	"errors"
	"fmt"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/runner"
)

// What an instance lacks it lacks until it is another one, or a build went well.
func TestLacks(t *testing.T) {
	p := &Pipeline{}
	env := quarry.Environment{Channel: "testing", Arch: "aarch64", Cross: "x86_64"}
	other := quarry.Environment{Channel: "stable", Arch: "aarch64", Cross: "x86_64"}
	bad := &runner.ToolchainError{Arch: "aarch64", Machine: "x86_64", Instance: "sha256:1", Missing: []string{"aarch64-linux-gnu-gcc"}}
	lacks := func(env quarry.Environment, instance string, want bool) {
		t.Helper()
		if err := p.Lacks(env, instance); (err != nil) != want {
			t.Errorf("%s in %s lacks a toolchain: %v", env, instance, err)
		}
	}
	lacks(env, "sha256:1", false)
	p.toolchain(env, fmt.Errorf("build 1: %w", bad))
	lacks(env, "sha256:1", true)
	lacks(env, "sha256:2", false)
	lacks(other, "sha256:1", false)
	p.toolchain(env, errors.New("podman is gone")) // says nothing of it
	lacks(env, "sha256:1", true)
	p.toolchain(env, nil)
	lacks(env, "sha256:1", false)
}
