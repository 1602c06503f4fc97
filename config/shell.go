package config

import (
	"errors"
	"time"
)

// Shell says how long the workspaces of failed builds are kept, for their
// packagers to look around in.
type Shell struct {
	Keep  Duration `toml:"keep"`  // after the build, and after the last shell; 0: none is kept
	Max   int      `toml:"max"`   // workspaces kept at one time
	Idle  Duration `toml:"idle"`  // a shell may go without input and output for
	Limit Duration `toml:"limit"` // a shell may take in all
}

func defaultShell() Shell {
	return Shell{Keep: Duration(10 * time.Minute), Max: 4, Idle: Duration(30 * time.Minute), Limit: Duration(8 * time.Hour)}
}

func (s Shell) check() error {
	switch {
	case s.Max < 1:
		return errors.New("shell.max counts workspaces: use 1 or more, or shell.keep = \"0s\" to keep none")
	case s.Idle <= 0, s.Limit <= 0:
		return errors.New("shell.idle and shell.limit must be more than 0: to give no shells, use shell.keep = \"0s\"")
	}
	return nil
}
