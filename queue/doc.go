// Package queue owns the state of every build of the farm.
//
// What has to be built is never stored: it is planned, again and again, as
// releases x archs minus records minus builds under way (plan.go, pure). The
// queue adds to that what a plan cannot know: which builds are under way, which
// were given up or called off, and what number each has. One goroutine owns all
// of it; everything else (pushes, workers, people) sends it functions over one
// channel. Every change of state is in the journal, on disk, before anybody can
// see it; when the journal cannot be written the change has not happened yet
// and is tried again.
//
// The stages of a build are functions in [Options]; the queue knows the nouns
// of package quarry and no other room. doc/queue.md describes states,
// transitions, the journal's format and what is guaranteed.
package queue
