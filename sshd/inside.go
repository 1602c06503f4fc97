package sshd

import (
	"errors"

	"github.com/Morphux/quarry"
)

// Push makes the repository of a package ready for a push that comes through
// another door, as for one that comes through this: it is made if there is none,
// and has its hooks. leave is to be called after the push; it removes a
// repository that was made for a push that was refused.
func (s *Server) Push(pkg string) (path string, leave func(), err error) {
	if err := quarry.CheckName(pkg); err != nil {
		return "", nil, err
	}
	h := s.held.use(pkg)
	leave = func() {
		s.held.leave(pkg, h, func() {
			if h.created && path != "" {
				s.removeEmpty(path)
			}
		})
	}
	path, err = s.ready(h, pkg, true)
	if err != nil {
		leave()
		if !errors.Is(err, ErrReadOnly) {
			s.log.Error("repository is not ready", "package", pkg, "err", err)
		}
		return "", nil, err
	}
	return path, leave, nil
}

// GitEnv is the environment of a git that reads a repository for somebody.
func (s *Server) GitEnv() []string { return s.gitEnv() }

// PushEnv is the environment of a git that pushes to such a repository for
// somebody.
func (s *Server) PushEnv(id quarry.Identity, pkg string) []string {
	return append(s.gitEnv(), s.hookEnv(id, pkg)...)
}
