package jobs

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestDivide(t *testing.T) {
	hungry := func(most int) Want { return Want{Min: 1, Max: most, Use: 1, Hungry: true, Weight: 1} }
	uses := func(n int) Want { return Want{Min: 1, Max: 99, Use: n, Weight: 1} }
	serial := Want{Min: 1, Max: 1, Use: 1, Weight: 1}
	bulk := Want{Min: 1, Max: 99, Use: 1, Hungry: true, Weight: 0.25}
	for _, tt := range []struct {
		name  string
		total int
		wants []Want
		want  []int
	}{
		{"nobody", 8, nil, []int{}},
		{"one", 8, []Want{hungry(99)}, []int{8}},
		{"ceiling", 8, []Want{hungry(3)}, []int{3}},
		{"ceiling and another", 8, []Want{hungry(3), hungry(99)}, []int{3, 5}},
		{"alike", 8, []Want{hungry(99), hungry(99)}, []int{4, 4}},
		{"the first gets the odd one", 8, []Want{hungry(99), hungry(99), hungry(99)}, []int{3, 3, 2}},
		{"configure", 8, []Want{serial, hungry(99)}, []int{1, 7}},
		{"all serial", 8, []Want{serial, serial}, []int{1, 1}},
		{"sated", 8, []Want{uses(2), hungry(99)}, []int{2, 6}},
		{"use is no right", 8, []Want{uses(7), hungry(99)}, []int{4, 4}},
		{"headroom before what lies ready", 8, []Want{uses(1), uses(5)}, []int{2, 6}},
		{"what nobody wants", 8, []Want{uses(1), uses(1)}, []int{4, 4}},
		{"what nobody wants, under a ceiling", 8, []Want{serial, {Min: 1, Max: 3, Use: 1, Weight: 1}}, []int{1, 3}},
		{"bulk", 10, []Want{hungry(99), bulk}, []int{8, 2}},
		{"more builds than slots", 2, []Want{hungry(9), hungry(9), serial}, []int{1, 1, 1}},
		{"none left", 0, []Want{hungry(9)}, []int{1}},
		{"negative", -5, []Want{hungry(9), serial}, []int{1, 1}},
		{"by hand", 8, []Want{{Min: 6, Max: 6, Use: 1, Weight: 1}, hungry(99)}, []int{6, 2}},
		{"by hand, too much", 8, []Want{{Min: 20, Max: 20, Weight: 1}, hungry(99)}, []int{7, 1}},
		{"least", 8, []Want{{Min: 3, Max: 99, Use: 1, Weight: 0.01, Hungry: true}, hungry(99)}, []int{3, 5}},
		{"by force", 8, []Want{{Min: 1, Max: 99, Fixed: 6, Weight: 1}, hungry(99)}, []int{6, 2}},
		{"by much force", 8, []Want{{Min: 1, Max: 99, Fixed: 600, Weight: 1}, hungry(99), serial}, []int{6, 1, 1}},
		{"nonsense", 4, []Want{{Min: -3, Max: -3, Use: -9, Fixed: -1, Weight: math.NaN()}, {Weight: math.Inf(1), Max: 9, Hungry: true}}, []int{1, 3}},
	} {
		if got := Divide(tt.total, tt.wants); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func randomWants(r *rand.Rand) (int, []Want) {
	wants := make([]Want, r.IntN(12))
	for i := range wants {
		wants[i] = Want{Min: r.IntN(6), Max: r.IntN(40), Use: r.IntN(40), Hungry: r.IntN(2) == 0, Weight: []float64{1, 0.25, 0, 2.5}[r.IntN(4)]}
		if r.IntN(8) == 0 {
			wants[i].Fixed = r.IntN(30)
		}
	}
	return r.IntN(70), wants
}

// TestDivideHolds: what Divide promises holds whatever anybody wants.
func TestDivideHolds(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 50_000 {
		total, wants := randomWants(r)
		got := Divide(total, wants)
		bad := func(what string, args ...any) {
			t.Fatalf("%s: of %d got %v: %+v", fmt.Sprintf(what, args...), total, got, wants)
		}
		sum, room := 0, 0
		for i, n := range got {
			w := wants[i]
			sum += n
			switch {
			case n < 1:
				bad("%d got none", i)
			case w.Fixed == 0 && n > max(1, w.Max):
				bad("%d got more than it may have", i)
			case w.Fixed > 0 && n > w.Fixed:
				bad("%d got more than it runs", i)
			case w.Fixed == 0:
				room += max(1, w.Max) - n
			}
		}
		if sum > max(total, len(wants)) {
			bad("%d were given", sum)
		}
		if left := total - sum; left > 0 && room > 0 {
			bad("%d are left, and there is room for %d", left, room)
		}
		for i, a := range wants {
			for j, b := range wants {
				if a.Fixed > 0 || b.Fixed > 0 {
					continue
				}
				// Nobody has more than another of the same weight that would have more,
				// but by what the order gives; nor more than it could use meanwhile.
				wantsMore := b.Hungry && got[j] < b.Max || !b.Hungry && got[j] < min(b.Use, b.Max)
				if wantsMore && weight(a.Weight) == weight(b.Weight) && got[i] > got[j]+1 && got[i] > max(1, min(a.Min, a.Max)) {
					bad("%d would have more, and %d of the same weight has", j, i)
				}
				if could := a.Use; wantsMore && !a.Hungry && got[i] > max(1, could, min(a.Min, a.Max)) {
					bad("%d would have more, and %d has what it has no use for", j, i)
				}
			}
		}
		// More slots are never less for anybody, where nothing runs by force.
		more := Divide(total+1, wants)
		for i := range got {
			if more[i] < got[i] {
				bad("with one more %d gets %d", i, more[i])
			}
		}
	}
}

// BenchmarkDivide: a very large machine, full.
func BenchmarkDivide(b *testing.B) {
	for _, size := range [][2]int{{16, 4}, {256, 64}} {
		b.Run(fmt.Sprintf("slots=%d/builds=%d", size[0], size[1]), func(b *testing.B) {
			wants := make([]Want, size[1])
			for i := range wants {
				wants[i] = Want{Min: 1, Max: size[0], Use: i, Hungry: i%2 == 0, Weight: 1}
			}
			b.ReportAllocs()
			for b.Loop() {
				Divide(size[0], wants)
			}
		})
	}
}
