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
	"github.com/Morphux/quarry/notify"
	"github.com/Morphux/quarry/protocol"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/sshd"
)

// newMetrics makes the farm's metrics. q is asked when somebody looks.
func newMetrics(c *config.Config, q func() *queue.Queue, store *images.Store, share *slots, happened *events.Log) *metrics.Metrics {
	m := metrics.New(metrics.Options{
		Version: version, State: c.State,
		Queue: func() queue.Status { return q().Status() },
		Jobs:  share.metrics,
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

// doorMetrics adds what is asked of the doors, and of who tells people (nil: nobody).
func doorMetrics(m *metrics.Metrics, door *sshd.Server, text *protocol.Server, teller *notify.Notifier) {
	m.Gauge("ssh_connections", "Connections of SSH.", func() float64 { n, _ := door.Load(); return float64(n) })
	m.Gauge("ssh_sessions", "Commands under way over SSH.", func() float64 { _, n := door.Load(); return float64(n) })
	m.Gauge("text_connections", "Connections of the text protocol.", func() float64 { n, _ := text.Load(); return float64(n) })
	m.Gauge("text_verbs", "Verbs under way over the text protocol.", func() float64 { _, n := text.Load(); return float64(n) })
	letters := func(givenUp bool) func() float64 {
		return func() float64 {
			n := 0
			if teller != nil {
				for _, l := range teller.Status().Letters {
					if l.GivenUp.IsZero() != givenUp {
						n++
					}
				}
			}
			return float64(n)
		}
	}
	m.Gauge("mail_letters", "Letters that no mail server has taken yet.", letters(false))
	m.Gauge("mail_letters_given_up", "Letters that were given up.", letters(true))
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
