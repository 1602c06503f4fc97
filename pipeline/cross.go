package pipeline

import (
	"cmp"
	"errors"
	"sync"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/runner"
)

// toolchains remembers of instances that they lack a cross toolchain, so that
// nobody has to look again before they have changed.
type toolchains struct {
	mu    sync.Mutex
	lacks map[quarry.Environment]*runner.ToolchainError
}

// toolchain notes how a build in an environment went.
func (p *Pipeline) toolchain(env quarry.Environment, err error) {
	if env.Cross == "" {
		return
	}
	p.toolchains.mu.Lock()
	defer p.toolchains.mu.Unlock()
	bad, lacks := errors.AsType[*runner.ToolchainError](err)
	if !lacks {
		if err == nil {
			delete(p.toolchains.lacks, env)
		}
		return
	}
	if p.toolchains.lacks == nil {
		p.toolchains.lacks = map[quarry.Environment]*runner.ToolchainError{}
	}
	p.toolchains.lacks[env] = bad
}

// Lacks tells whether an instance, by its digest, is known to have no toolchain
// for the environment's cross builds: nil where it has one, or where nobody has
// looked.
func (p *Pipeline) Lacks(env quarry.Environment, instance string) error {
	p.toolchains.mu.Lock()
	defer p.toolchains.mu.Unlock()
	if bad := p.toolchains.lacks[env]; bad != nil && bad.Instance == instance {
		return bad
	}
	return nil
}

func (p *Pipeline) triplet(arch string) string {
	return cmp.Or(p.Settings.Triplets[arch], runner.Triplet(arch))
}

func crossOf(env quarry.Environment) *extract.Cross {
	if env.Cross == "" {
		return nil
	}
	return &extract.Cross{Machine: env.Cross, Arch: env.Arch}
}
