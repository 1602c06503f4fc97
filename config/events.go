package config

import (
	"io"
	"log/slog"
	"path/filepath"
)

// Events bounds the log of events.
type Events struct {
	Keep Duration `toml:"keep"`
	Max  Size     `toml:"max"` // bytes; it is read when the farm starts
}

// Log says how the daemon logs.
type Log struct {
	Format string `toml:"format"` // text or json
}

// The forms of the daemon's log.
const (
	LogText = "text"
	LogJSON = "json"
)

// EventsDir is the folder of the log of events.
func (c *Config) EventsDir() string { return filepath.Join(c.State, "events") }

// Handler makes the daemon's log.
func (l Log) Handler(w io.Writer, level slog.Level) slog.Handler {
	opts := &slog.HandlerOptions{Level: level}
	if l.Format == LogJSON {
		return slog.NewJSONHandler(w, opts)
	}
	return slog.NewTextHandler(w, opts)
}

func (c *Config) checkEvents(bad func(string, ...any) error) error {
	switch {
	case c.Events.Keep <= 0:
		return bad("events.keep must be more than 0: who listens finds there what happened while they were away")
	case c.Events.Max < 1<<20:
		return bad("events.max is %d bytes: use at least 1 MiB", c.Events.Max)
	case c.Log.Format != LogText && c.Log.Format != LogJSON:
		return bad("log.format %q is none: use text or json", c.Log.Format)
	}
	return nil
}
