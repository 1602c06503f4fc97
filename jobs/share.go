package jobs

// Want is what one build has to say about how many slots it gets.
type Want struct {
	Min    int     // it gets these before anybody gets more; at least 1
	Max    int     // it gets no more
	Use    int     // jobs that it runs, or ran of late
	Hungry bool    // it would run more than it has slots for
	Weight float64 // its part of what several want, e.g. 1, or 0.25 for work in bulk
	// Fixed is what it runs whatever it is given, since something in it forces a
	// number of jobs; 0: it does as it is told. It counts, as far as the others
	// still have one slot each.
	Fixed int
}

// Divide shares total slots among builds and tells what each gets, at least one.
// So the sum is max(total, len(wants)) at most. In this order:
//
//  1. Every build gets one.
//  2. Every build gets up to its Min.
//  3. What builds could run (Max of the hungry, Use of the others) is filled up
//     evenly: always that build gets the next slot which has the fewest for its
//     weight.
//  4. One slot more for each that is not hungry, so that its hunger can show.
//  5. What nobody wants lies ready with all alike, up to their Max: it can be
//     taken back at any time.
//
// Among equals the first in the list comes first.
func Divide(total int, wants []Want) []int {
	return nil
}
