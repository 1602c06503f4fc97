// Package jobserver keeps the GNU jobserver of one build, from the side that
// owns it: a FIFO with a byte for each job that may run beside the one that
// needs none (GNU make's manual, "POSIX Jobserver Interaction"). GNU make,
// ninja from 1.13, cargo and gcc's link-time optimizer take part by themselves
// when MAKEFLAGS names it ([Flags]).
//
// What makes this one unlike make's own is that the number of its tokens
// follows what [Pool.Set] says, while jobs run: up at once, down by what lies
// unused and then as jobs end. Tokens that die with their holder are written
// again ([Pool.Leaked]), those that somebody adds are taken out.
//
// Whoever has the FIFO is taken to be hostile. He can hoard tokens, which is to
// his own harm, and add some, which gives him no more than ignoring the
// jobserver does: it is a way to ask for few jobs, not to enforce it.
package jobserver
