package jobs

// Slots is what whoever runs a build's steps needs to know of its slots; [Share]
// is one.
type Slots interface {
	// Open makes what the build's tools speak with, in the place where it runs. It
	// is called once, before anything of the build runs.
	Open(Place) error
	// Env is what the environment of every step has besides its own.
	Env() []string
	// Fifo is the name of the jobserver inside, e.g. /quarry/.jobs; "" when there
	// is none, since no more than one job ever runs.
	Fifo() string
	// Ceiling is the most jobs that the build is ever granted.
	Ceiling() int
	// Step says that a step is about to begin, and nothing of the build runs at
	// this moment. Only a parallel one gets more than one slot.
	Step(parallel bool)
	// Forced says that something in the build runs a number of jobs of its own,
	// e.g. "make -j8".
	Forced(what string)
}
