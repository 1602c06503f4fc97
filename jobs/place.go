package jobs

// Place is where a build runs, as far as its jobs are concerned. Whoever runs
// the build tells it once, before anything of the build does.
type Place struct {
	Dir      string // a folder on this machine that the build sees too
	Inside   string // the same, as the build sees it, e.g. /quarry
	UID, GID int    // ids on this machine of the build's root, who owns what is made for it

	// Tasks looks at what runs of the build.
	Tasks func() (Tasks, error)
	// CPU bounds the build's processor time: cpus of them at most, and a share of
	// weight (100 is everybody's) where others want some; 0 leaves either as it is.
	CPU func(cpus float64, weight int) error
	// Over is to be called when the build is seen to run clearly more than it was
	// given, with what was seen, e.g. "ran 8 processes at one time where 2 may
	// run". It may be called at any time and more than once: the build gets one
	// warning of it.
	Over func(what string)
}

// Tasks is what runs of a build at one moment.
type Tasks struct {
	// Leaves are the threads of all processes that have no children: those that
	// work for a job, whatever waits above them. No more jobs than that can be
	// under way.
	Leaves int
	// Running are the tasks that run, are ready to run or wait for a disk.
	Running int
}
