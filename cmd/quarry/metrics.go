package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/metrics"
	"github.com/Morphux/quarry/queue"
)

// newMetrics makes the farm's metrics. q is asked when somebody looks.
func newMetrics(c *config.Config, q func() *queue.Queue, store *images.Store, happened *events.Log) *metrics.Metrics {
	m := metrics.New(metrics.Options{
		Version: version, State: c.State,
		Queue: func() queue.Status { return q().Status() },
		Pool: func() (list []metrics.Pool) {
			for _, e := range store.Workspaces() {
				list = append(list, metrics.Pool{Channel: e.Channel, Arch: e.Arch, Warm: e.Warm, Making: e.Making, Busy: e.Busy})
			}
			return list
		},
		Parts: map[string]string{
			"repositories": c.Repos(), "results": c.Results(), "artifacts": c.Artifacts(), "logs": c.LogDir(),
			"queue": c.Journal(), "events": c.EventsDir(), "cache": filepath.Join(c.State, "cache"),
		},
	})
	m.Gauge("events_last_number", "Number of the last event.", func() float64 { return float64(happened.Last()) })
	return m
}

// health is what keeps the farm from building, by what it is about.
func (f *stages) health(q *queue.Queue) map[string]metrics.Check {
	return map[string]metrics.Check{
		"journal": func(context.Context) error {
			t, err := os.CreateTemp(f.cfg.Journal(), ".ready-*")
			if err != nil {
				return err
			}
			_, err = t.WriteString("can be written\n")
			return errors.Join(err, t.Close(), os.Remove(t.Name()))
		},
		"podman": func(ctx context.Context) error {
			call, stop := context.WithTimeout(ctx, 4*time.Second)
			defer stop()
			_, err := f.conn.Context(call)
			return err
		},
		"results": func(context.Context) error { _, err := f.results.Channels(); return err },
		"disk":    func(context.Context) error { return f.room() },
		"verified": func(context.Context) error {
			select {
			case <-f.verified:
				return nil
			default:
				return errors.New("bases are being looked at since the start: wait")
			}
		},
		// A person's pause is as it should be.
		"queue": func(context.Context) error {
			for _, p := range q.Status().Paused {
				if p.Environment == nil && p.By == "" {
					return errors.New("no builds are begun: " + p.Reason)
				}
			}
			return nil
		},
	}
}
