package config

import (
	"errors"
	"time"
)

// Retention says how long artifacts are kept that no channel has any more.
type Retention struct {
	// Artifacts is for how long one is kept after the last record that refers to it
	// has gone from every channel, and after it was made.
	Artifacts Duration `toml:"artifacts"`
	// Daily has the daemon remove once a day what quarry prune shows.
	Daily bool `toml:"daily"`
}

func defaultRetention() Retention { return Retention{Artifacts: Duration(90 * 24 * time.Hour)} }

func (r Retention) check() error {
	// A build takes hours, and what it was given has to be there to its end.
	if time.Duration(r.Artifacts) < 24*time.Hour {
		return errors.New("retention.artifacts has to be a day or more")
	}
	return nil
}
