// Package metrics counts what the farm does, for Prometheus, and tells whether it
// is well (see [Health]).
//
// Labels are bounded: states, steps, causes and classes are lists of the program's,
// archs and channels are the configuration's, routes are patterns. No label names
// a package, a person or a build: that is what events are for. doc/metrics.md
// lists all.
package metrics

import (
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/queue"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Pool counts an environment's workspaces.
type Pool struct {
	Channel, Arch      string
	Warm, Making, Busy int
}

// Jobs counts the machine's slots: jobs that it can run at one time.
type Jobs struct {
	Total   int // slots that there are
	Limit   int // that builds may take now
	Out     int // that builds have
	Used    int // of them those in which a job runs
	Running int // builds that have some
	Waiting int // builds that wait for their first
	Clients int // connections of build programs that speak the build control protocol
}

// Options say where the figures come from that are looked up when they are asked
// for. A function that is nil leaves its figures out.
type Options struct {
	Version string
	Queue   func() queue.Status
	Pool    func() []Pool
	Jobs    func() (j Jobs, ok bool) // ok is false where nobody shares slots out
	State   string                   // the state folder; "": left out
	Parts   map[string]string        // its parts, by a name of one's own, e.g. logs
}

// Metrics are the farm's. Its methods may be called by several goroutines at
// once; those of nil do nothing.
type Metrics struct {
	registry *prometheus.Registry

	ended, failures       *prometheus.CounterVec
	start, record, commit prometheus.Histogram
	builds, steps         *prometheus.HistogramVec
	requests              *prometheus.CounterVec
	requestTime           *prometheus.HistogramVec
	slotTime, slotCPU     prometheus.Counter
	mu                    sync.Mutex // guards the following
	begun                 map[int64]bool
}

// spans are bounds for what takes from a second to a day.
var spans = []float64{1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400}

// New makes the metrics of a farm.
func New(o Options) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), begun: map[int64]bool{}}
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "quarry", Name: name, Help: help}
	}
	histogram := func(name, help string, buckets []float64) prometheus.HistogramOpts {
		return prometheus.HistogramOpts{Namespace: "quarry", Name: name, Help: help, Buckets: buckets}
	}
	m.ended = prometheus.NewCounterVec(prometheus.CounterOpts(opts("builds_ended_total", "Builds that have ended, by how.")), []string{"state", "channel", "arch"})
	m.failures = prometheus.NewCounterVec(prometheus.CounterOpts(opts("build_failures_total", "Builds that have failed, by what failed.")), []string{"step", "cause", "class"})
	m.start = prometheus.NewHistogram(histogram("push_to_start_seconds", "Time from a push to the beginning of a build of it.", spans))
	m.record = prometheus.NewHistogram(histogram("push_to_record_seconds", "Time from a push to the record of a build of it.", spans))
	m.commit = prometheus.NewHistogram(histogram("results_commit_seconds", "Time that the commit of a record to the results takes.",
		[]float64{0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10}))
	m.builds = prometheus.NewHistogramVec(histogram("build_duration_seconds", "Time that attempts at builds have taken that came to a result.", spans), []string{"state", "arch"})
	m.steps = prometheus.NewHistogramVec(histogram("step_duration_seconds", "Time that steps of builds have taken.", append([]float64{0.05, 0.1, 0.2, 0.5}, spans...)), []string{"step"})
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts(opts("http_requests_total", "Requests that were answered over HTTP, by route.")), []string{"route", "method", "code"})
	m.requestTime = prometheus.NewHistogramVec(histogram("http_request_duration_seconds", "Time that answers over HTTP took, streams left out.",
		[]float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}), []string{"route"})
	m.slotTime = prometheus.NewCounter(prometheus.CounterOpts(opts("build_slot_seconds_total", "Slots that builds with a result had, times how long they had them.")))
	m.slotCPU = prometheus.NewCounter(prometheus.CounterOpts(opts("build_slot_cpu_seconds_total", "CPU time of the same builds.")))
	info := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "quarry", Name: "build_info", Help: "What this farm runs; always 1.",
		ConstLabels: prometheus.Labels{"version": o.Version, "goversion": runtime.Version()}}, func() float64 { return 1 })
	m.registry.MustRegister(m.ended, m.failures, m.start, m.record, m.commit, m.builds, m.steps, m.requests, m.requestTime, m.slotTime, m.slotCPU, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if o.Queue != nil {
		m.registry.MustRegister(queueCollector{o.Queue})
	}
	if o.Pool != nil {
		m.registry.MustRegister(poolCollector{o.Pool})
	}
	if o.Jobs != nil {
		m.registry.MustRegister(jobsCollector{o.Jobs})
	}
	if o.State != "" {
		m.registry.MustRegister(&diskCollector{state: o.State, parts: o.Parts})
	}
	return m
}

// Gauge adds a figure that is looked up when it is asked for, e.g. of connections:
// quarry_NAME. The name says its unit.
func (m *Metrics) Gauge(name, help string, f func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "quarry", Name: name, Help: help}, f))
}

// Handler answers Prometheus.
func (m *Metrics) Handler() http.Handler {
	// What cannot be told is left out, and the rest told: a farm in trouble is
	// looked at most.
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, DisableCompression: true})
}

// Build is told of each build that comes to another state.
func (m *Metrics) Build(b quarry.Build) {
	if m == nil {
		return
	}
	if b.State.Ended() {
		m.ended.WithLabelValues(string(b.State), b.Channel, b.Arch).Inc()
	}
	if b.Nonce != "" || b.Pushed.IsZero() { // nobody pushed for it
		return
	}
	m.mu.Lock()
	first := b.State == quarry.Running && !m.begun[b.Number]
	if b.State.Ended() {
		delete(m.begun, b.Number)
	} else if first {
		m.begun[b.Number] = true
	}
	m.mu.Unlock()
	switch {
	case first && b.Attempt <= 1:
		m.start.Observe(max(0, b.Started.Sub(b.Pushed).Seconds()))
	case b.State == quarry.Succeeded, b.State == quarry.Failed:
		m.record.Observe(max(0, b.Ended.Sub(b.Pushed).Seconds()))
	}
}

// Recorded is told of each outcome that is in the results now, and of how long
// the commit took.
func (m *Metrics) Recorded(o *quarry.Outcome, took time.Duration) {
	if m == nil {
		return
	}
	m.commit.Observe(took.Seconds())
	m.builds.WithLabelValues(string(o.Status), o.Build.Arch).Observe(o.Ended.Sub(o.Started).Seconds())
	for _, s := range o.Steps {
		m.steps.WithLabelValues(s.Name).Observe(s.Wall.Seconds())
	}
	if u := o.Usage; u.SlotTime > 0 {
		m.slotTime.Add(u.SlotTime.Seconds())
		m.slotCPU.Add((u.User + u.Sys).Seconds())
	}
	if f := o.Failure; f != nil {
		m.failures.WithLabelValues(f.Step, string(f.Cause), f.Class).Inc()
	}
}

var methods = []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodPatch}

// Request is told of each answer over HTTP: route is the pattern that it came by,
// "" for none; stream says that its time is no figure of ours.
func (m *Metrics) Request(route, method string, status int, took time.Duration, stream bool) {
	if m == nil {
		return
	}
	if route == "" {
		route = "none"
	}
	if !slices.Contains(methods, method) {
		method = "other"
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
	if !stream {
		m.requestTime.WithLabelValues(route).Observe(took.Seconds())
	}
}
