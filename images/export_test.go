package images

import "context"

// RunPool keeps a store's pool filled until ctx ends.
func RunPool(ctx context.Context, s *Store) { s.pool.run(ctx) }

// Ready are the processes of the workspaces that are ready, by environment.
func Ready(s *Store) map[string][]int {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	m := map[string][]int{}
	for e, sh := range s.pool.envs {
		for _, w := range sh.warm {
			m[e.String()] = append(m[e.String()], w.pid)
		}
	}
	return m
}

// Waiting is how many takers wait for a workspace that is under way.
func Waiting(s *Store) (n int) {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	for _, sh := range s.pool.envs {
		n += len(sh.waiting)
	}
	return n
}

// Updates is how many wait for an instance that is being made, and how many are made.
func Updates(s *Store) (waiting, making int) {
	s.inst.mu.Lock()
	defer s.inst.mu.Unlock()
	for _, m := range s.inst.making {
		waiting += len(m.waiting)
	}
	return waiting, len(s.inst.making)
}

// SetMinMemory changes PoolOptions.MinMemory.
func SetMinMemory(s *Store, n int64) {
	s.pool.mu.Lock()
	s.pool.opts.MinMemory = n
	s.pool.mu.Unlock()
}

// SetMinDisk changes PoolOptions.MinDisk; with -1 a disk that is full does.
func SetMinDisk(s *Store, n int64) {
	s.pool.mu.Lock()
	s.pool.opts.MinDisk = n
	s.pool.mu.Unlock()
}

// DropWarm and HoldWarm are for those who replace what workspaces are made from.
func DropWarm(s *Store, channel, arch string) { s.dropWarm(channel, arch) }

func HoldWarm(s *Store, channel, arch, why string) func() { return s.holdWarm(channel, arch, why) }
