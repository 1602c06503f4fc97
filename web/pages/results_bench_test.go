package pages

import (
	"bufio"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
)

// distribution is a farm of n packages on ten archs, one record in twenty a
// failure, and one release in fifty newer than its records. They are written as
// git fast-import takes them: the farm's own way syncs each.
func distribution(b *testing.B, n int) *shelf {
	archs := []string{"aarch64", "armv7l", "i686", "loongarch64", "mips64", "ppc64le", "riscv64", "s390x", "sparc64", "x86_64"}
	return newShelf(b, archs, func(s *shelf) {
		cmd := exec.Command("git", "-C", s.repo.Path(), "fast-import", "--quiet")
		in, err := cmd.StdinPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		w := bufio.NewWriterSize(in, 1<<20)
		fmt.Fprintf(w, "commit refs/heads/testing\ncommitter Quarry <quarry@localhost> 1700000000 +0000\ndata 5\nsetup\n")
		for i := range n {
			pkg := fmt.Sprintf("package-%05d", i)
			for k, arch := range archs {
				s.number++
				o := s.outcome(pkg, "1.0", arch)
				used("package-00000", fmt.Sprintf("package-%05d", i/2))(o)
				path := results.RecordPath(o.Build.Target())
				if (i*10+k)%20 == 0 {
					o.Status, o.Facts, o.Artifact = quarry.Failed, nil, nil
					o.Failure = &quarry.Failure{Step: quarry.StepMake, Cause: quarry.CauseExit, Message: "make ended with status 2", Class: "compiler", Error: fmt.Sprintf("a.c:%d: error: trouble of kind %c", i, 'a'+i%26)}
					path = results.FailurePath(o.Build.Target())
				}
				rec, err := results.NewRecord(o, 0)
				if err != nil {
					b.Fatal(err)
				}
				data, err := rec.Marshal()
				if err != nil {
					b.Fatal(err)
				}
				fmt.Fprintf(w, "M 100644 inline %s\ndata %d\n%s\n", path, len(data), data)
			}
			s.release(pkg, "1.0", archs, needs("package-00000"))
		}
		w.Flush()
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkRecordedPages is 200 readers at once of a page of a farm with 10,000
// packages on ten archs, beside a static file of the same size: cold is what one
// page takes to make.
func BenchmarkRecordedPages(b *testing.B) {
	s := distribution(b, 10_000)
	h := s.srv.Config.Handler
	ask := func(h http.Handler, path string) int {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", path, nil)
		r.Header.Set("Accept-Encoding", "gzip")
		h.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			b.Fatalf("%s: %d", path, w.Code)
		}
		return w.Body.Len()
	}
	crowd := func(b *testing.B, h http.Handler, path string) {
		var left atomic.Int64
		left.Store(int64(b.N))
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				for left.Add(-1) >= 0 {
					w := httptest.NewRecorder()
					r := httptest.NewRequest("GET", path, nil)
					r.Header.Set("Accept-Encoding", "gzip")
					h.ServeHTTP(w, r)
				}
			})
		}
		wg.Wait()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "pages/s")
	}
	for _, path := range []string{"/grid", "/failures", "/results", "/packages/package-00000", "/packages/package-05000", "/packages?q=77"} {
		b.Run("cold"+path, func(b *testing.B) {
			ask(h, path)
			var size int
			for range b.N {
				b.StopTimer()
				s.site.cache.mu.Lock()
				clear(s.site.cache.kept)
				s.site.cache.size = 0
				s.site.cache.mu.Unlock()
				for _, l := range s.site.recorded.grids {
					l.mu.Lock()
					l.until = l.until.AddDate(-1, 0, 0)
					l.mu.Unlock()
				}
				b.StartTimer()
				size = ask(h, path)
			}
			b.ReportMetric(float64(size), "B")
		})
		b.Run("crowd"+path, func(b *testing.B) { ask(h, path); crowd(b, h, path) })
		b.Run("static"+path, func(b *testing.B) {
			body := make([]byte, ask(h, path))
			crowd(b, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "text/html")
				w.Header().Set("Content-Length", fmt.Sprint(len(body)))
				_, _ = w.Write(body)
			}), path)
		})
	}
}
