package graph_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/graph/graphtest"
)

var sizes = []int{1_000, 10_000, 60_000}

func generated(n int) ([]quarry.Release, graph.Options) {
	return graphtest.Generate(graphtest.Options{Packages: n, Seed: 1}).Releases, graph.Options{Archs: graphtest.Archs}
}

// growth runs f at all sizes and reports the exponent of its time between the
// smallest and the largest.
func growth(b *testing.B, f func(b *testing.B, n int) float64) {
	var per []float64
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			// Time on the processor: others may be at work on the machine. The
			// preparation before the loop is taken off by measure.
			spent := f(b, n)
			per = append(per[:min(len(per), index(n))], spent/float64(b.N))
			b.ReportMetric(spent/float64(b.N)*1e3, "cpu-ms/op")
			if i := index(n); i > 0 && len(per) > i {
				b.ReportMetric(math.Log(per[i]/per[0])/math.Log(float64(n)/float64(sizes[0])), "exponent")
			}
		})
	}
}

func index(n int) int {
	for i, s := range sizes {
		if s == n {
			return i
		}
	}
	return 0
}

// measure runs the loop of a benchmark and tells the seconds of processor time
// that it took.
func measure(b *testing.B, f func(i int)) float64 {
	runtime.GC()
	b.ResetTimer()
	from := processor()
	for i := 0; b.Loop(); i++ {
		f(i)
	}
	return processor() - from
}

func processor() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkNew(b *testing.B) {
	growth(b, func(b *testing.B, n int) float64 {
		releases, o := generated(n)
		before := heap()
		g := graph.New(releases, o)
		bytes := float64(heap()) - float64(before)
		nodes := g.Len()
		runtime.KeepAlive(g)
		spent := measure(b, func(int) { graph.New(releases, o) })
		b.ReportMetric(bytes/float64(nodes), "B/node")
		b.ReportMetric(float64(nodes), "nodes")
		return spent
	})
}

// The package that most need gets another commit, or a new version, which all of
// them come to.
func BenchmarkWith(b *testing.B) {
	for _, kind := range []string{"commit", "version"} {
		b.Run(kind, func(b *testing.B) {
			growth(b, func(b *testing.B, n int) float64 {
				releases, o := generated(n)
				g := graph.New(releases, o)
				r := releases[mostNeeded(g, releases)]
				list := []quarry.Release{r}
				return measure(b, func(i int) {
					list[0].Commit = fmt.Sprintf("%040d", i)
					if kind == "version" {
						list[0].Version = fmt.Sprintf("%s.%d", r.Version, i)
					}
					g = g.With(r.Package, list)
				})
			})
		})
	}
}

func mostNeeded(g *graph.Graph, releases []quarry.Release) int {
	best, most := 0, -1
	for i := range releases {
		if k := len(g.Dependents(g.Of(releases[i].Package)[0])); k > most {
			best, most = i, k
		}
	}
	return best
}

// What a push of the most needed package causes, everything included: the next
// graph, its order, its cycles, what is rebuilt and how long that takes; and of
// one that nothing needs.
func BenchmarkImpact(b *testing.B) {
	for _, kind := range []string{"core", "leaf"} {
		b.Run(kind, func(b *testing.B) {
			growth(b, func(b *testing.B, n int) float64 {
				releases, o := generated(n)
				g := graph.New(releases, o)
				g.Cycles()
				r := releases[mostNeeded(g, releases)]
				if kind == "leaf" {
					for i := range releases {
						if len(g.Dependents(g.Of(releases[i].Package)[0])) == 0 {
							r = releases[i]
							break
						}
					}
				}
				var im *graph.Impact
				spent := measure(b, func(i int) {
					r.Commit = fmt.Sprintf("%040d", i)
					next := g.With(r.Package, []quarry.Release{r})
					im = graph.Compare(g, next, func(graph.Node) time.Duration { return time.Minute })
				})
				b.ReportMetric(float64(len(im.Builds)+len(im.Rebuilds)), "builds")
				return spent
			})
		})
	}
}

func BenchmarkPaths(b *testing.B) {
	growth(b, func(b *testing.B, n int) float64 {
		g := graph.New(generated(n))
		g.Order()
		return measure(b, func(int) { g.Paths(func(graph.Node) time.Duration { return time.Minute }) })
	})
}

func BenchmarkOrder(b *testing.B) {
	growth(b, func(b *testing.B, n int) float64 {
		g := graph.New(generated(n))
		// A push that changes nothing has a graph of its own, without order yet.
		return measure(b, func(int) { g.With("", nil).Order() })
	})
}

func BenchmarkStatus(b *testing.B) {
	growth(b, func(b *testing.B, n int) float64 {
		g := graph.New(generated(n))
		failed := map[graph.Node]bool{}
		for i, m := range g.Order() {
			failed[m] = i%50 == 49
		}
		var s *graph.Status
		spent := measure(b, func(int) {
			s = g.Status(graph.StatusOptions{State: func(m graph.Node) graph.State {
				if failed[m] {
					return graph.BuildFailed
				}
				return graph.Unbuilt
			}})
			s.Blockers(20)
		})
		b.ReportMetric(float64(s.Count(graph.Blocked)), "blocked")
		return spent
	})
}

// BenchmarkDebian reads a real index of sources: QUARRY_TEST_SOURCES is its path.
func BenchmarkDebian(b *testing.B) {
	path := os.Getenv("QUARRY_TEST_SOURCES")
	if path == "" {
		b.Skip("set QUARRY_TEST_SOURCES to an unpacked Sources file of Debian's")
	}
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	releases, err := graphtest.ParseSources(f, graphtest.Archs)
	if err != nil {
		b.Fatal(err)
	}
	o := graph.Options{Archs: graphtest.Archs}
	var g *graph.Graph
	for b.Loop() {
		g = graph.New(releases, o)
		g.Order()
	}
	cycles := g.Cycles()
	largest := 0
	for _, c := range cycles {
		largest = max(largest, c.Size/len(c.Archs))
	}
	b.ReportMetric(float64(len(releases)), "packages")
	b.ReportMetric(float64(g.Len()), "nodes")
	b.ReportMetric(float64(largest), "knot")
}

// What the rule of rebuilds saves, in a model of pushes: packages are pushed at
// random; one push in ten offers something else to build against, and so does
// one rebuild in fifty. Beside it, everything above a push built again, as farms
// without such a rule do. The shares are assumptions: the ratio shows what kind
// of saving there is, and no farm's own.
func BenchmarkReplay(b *testing.B) {
	releases, o := generated(10_000)
	g := graph.New(releases, o)
	rnd := rand.New(rand.NewPCG(1, 2))
	all, ruled, pushes := 0, 0, 0
	for b.Loop() {
		r := &releases[rnd.IntN(len(releases))]
		node, ok := g.Node(r.Package, r.Version, r.Archs[0])
		if !ok {
			continue
		}
		pushes++
		all += len(g.Above([]graph.Node{node}, nil))
		if rnd.IntN(10) != 0 {
			continue
		}
		built := map[graph.Node]bool{node: true}
		for changed := []graph.Node{node}; len(changed) > 0; {
			n := changed[0]
			changed = changed[1:]
			for _, d := range g.Dependents(n) {
				if built[d] {
					continue // once for all changes
				}
				built[d] = true
				ruled++
				if rnd.IntN(50) == 0 {
					changed = append(changed, d)
				}
			}
		}
	}
	b.ReportMetric(float64(all)/float64(pushes), "naive-rebuilds/push")
	b.ReportMetric(float64(ruled)/float64(pushes), "rebuilds/push")
	b.ReportMetric(100*(1-float64(ruled)/float64(max(all, 1))), "%-avoided")
}
