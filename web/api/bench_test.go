package api

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/web"
	"github.com/spf13/afero"
)

// BenchmarkRequests measures lists of builds and the status over loopback, each
// beside a bare handler of net/http that writes the same bytes.
func BenchmarkRequests(b *testing.B) {
	builds := make([]quarry.Release, 200)
	for i := range builds {
		builds[i] = quarry.Release{Package: fmt.Sprintf("package-%d", i), Version: "1.0", Channel: "testing", Commit: fmt.Sprintf("%040d", i), Time: time.Unix(1, 0), Archs: []string{"x86_64"}}
	}
	q, err := queue.New(queue.Options{
		Fs: afero.NewMemMapFs(),
		Releases: func(context.Context, string) ([]quarry.Release, []queue.Problem, error) {
			return builds, nil, nil
		},
		Records: func(context.Context, string) (queue.Records, error) { return none{}, nil },
		Run: func(ctx context.Context, bd quarry.Build, _ []quarry.DepUsed, _ func(string)) (*quarry.Outcome, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		Record:  func(context.Context, *quarry.Outcome) (string, error) { return "", nil },
		Workers: 1, ReplanEvery: time.Hour,
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	b.Cleanup(func() { stop(); <-done })
	for q.Status().Last < int64(len(builds)) {
		time.Sleep(time.Millisecond)
	}
	farm := &control.Farm{Queue: q, Default: "testing", Channels: []control.Channel{{Name: "testing", Archs: []string{"x86_64"}}}}
	a, err := New(Options{Farm: farm, Verbs: control.Verbs(farm), Tasks: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	ours := web.New(web.Options{API: a, Public: true})
	for _, path := range []string{"/api/v1/builds?limit=10", "/api/v1/builds?limit=100", "/api/v1/builds/17", "/api/v1/builders"} {
		data := get(b, &http.Server{Handler: ours}, path, 1, nil)
		for _, as := range []struct {
			name string
			h    http.Handler
		}{{"quarry", ours}, {"bare", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(data)
		})}} {
			b.Run(path[8:]+"/"+as.name, func(b *testing.B) {
				get(b, &http.Server{Handler: as.h}, path, 8, b)
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
				b.ReportMetric(float64(len(data)), "bytes")
			})
		}
	}
}

// get asks a server of its own for a path, with some connections at once: once,
// or as often as a benchmark wants.
func get(b *testing.B, hs *http.Server, path string, conns int, loop *testing.B) []byte {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer hs.Close()
	go hs.Serve(l)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: conns, DisableCompression: true}}
	ask := func() []byte {
		resp, err := client.Get("http://" + l.Addr().String() + path)
		if err != nil {
			b.Error(err)
			return nil
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			b.Errorf("%v, status %d: %s", err, resp.StatusCode, data)
		}
		return data
	}
	if loop == nil {
		return ask()
	}
	loop.SetParallelism(conns / 2)
	loop.ResetTimer()
	loop.RunParallel(func(p *testing.PB) {
		for p.Next() {
			ask()
		}
	})
	return nil
}

// none is a channel without records.
type none struct{}

func (none) Lookup(string, string, string) (quarry.RecordRef, bool, error) {
	return quarry.RecordRef{}, false, nil
}
func (none) Resolve(string, string) (quarry.DepUsed, bool, error) {
	return quarry.DepUsed{}, false, nil
}
func (none) Stale(quarry.Release, string) (string, string, error) { return "", "", nil }
