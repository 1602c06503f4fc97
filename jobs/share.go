package jobs

import "math"

// Want is what one build has to say about how many slots it gets.
type Want struct {
	Min    int     // it gets these before anybody gets more; at least 1
	Max    int     // it gets no more; at least 1
	Use    int     // jobs that it runs, or ran of late
	Hungry bool    // it would run more than it has slots for
	Weight float64 // its part of what several want, e.g. 1, or 0.25 for work in bulk
	// Fixed is what it runs whatever it is given, since something in it forces a
	// number of jobs; 0: it does as it is told.
	Fixed int
}

// Divide shares total slots among builds, and tells what each gets: at least one,
// and max(total, len(wants)) at most in all. In this order:
//
//  1. Each build gets one.
//  2. What runs by force is taken as it is, as far as there are slots.
//  3. Each gets up to its Min.
//  4. What builds could run, Max of the hungry and Use of the others, is shared
//     evenly: the next slot goes to the one that has the fewest for its weight.
//  5. One more goes to each that is not hungry, so that its hunger can show.
//  6. What nobody wants lies ready with all alike, up to their Max. It can be
//     taken back at any time.
//
// Among equals the first in the list comes first. Nothing else matters, neither
// time nor what anybody had before, so the same wants always come to the same.
func Divide(total int, wants []Want) []int {
	got := make([]int, len(wants))
	left := total
	for i := range wants {
		got[i] = 1
		left--
	}
	if left <= 0 {
		return got
	}
	top := make([]int, len(wants)) // up to where one gets slots in the round at hand
	for i, w := range wants {
		if w.Fixed > 0 {
			n := min(w.Fixed-1, left)
			got[i] += n
			left -= n
		}
	}
	round := func(weighted bool, upTo func(w Want, has int) int) {
		for i, w := range wants {
			if top[i] = 0; w.Fixed == 0 {
				top[i] = min(upTo(w, got[i]), max(1, w.Max))
			}
		}
		left = fill(left, got, top, wants, weighted)
	}
	round(false, func(w Want, _ int) int { return w.Min })
	round(true, func(w Want, _ int) int {
		if w.Hungry {
			return w.Max
		}
		return w.Use
	})
	round(false, func(w Want, has int) int {
		if w.Hungry {
			return has
		}
		return max(has, w.Use+1)
	})
	round(true, func(w Want, _ int) int { return w.Max })
	return got
}

// fill gives out slots one at a time, until none is left or all have what they
// may have in this round, and tells how many are left.
func fill(left int, got, top []int, wants []Want, weighted bool) int {
	for ; left > 0; left-- {
		best, least := -1, math.Inf(1)
		for i := range got {
			if got[i] >= top[i] {
				continue
			}
			// As Webster divides seats: half a slot more than one has.
			has := float64(got[i]) + 0.5
			if weighted {
				has /= weight(wants[i].Weight)
			}
			if has < least {
				best, least = i, has
			}
		}
		if best < 0 {
			break
		}
		got[best]++
	}
	return left
}

// weight takes what makes no sense for 1.
func weight(w float64) float64 {
	if !(w > 0) {
		return 1
	}
	return min(max(w, 1e-3), 1e3)
}
