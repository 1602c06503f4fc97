// Package mpm is a reference client of the database that Quarry keeps for MPM: it
// searches channels, finds what a package needs, fetches and verifies artifacts,
// and installs them into a root.
//
// [Open] is a client of one channel for one arch. Its local copy of the channel
// comes by git, by the compact index with its deltas, or one package's file at a
// time; all give the same answers. What is signed is verified before anything of
// it is used, and a farm or mirror that shows an older state than was seen before
// is refused. [OpenRoot] is a system that packages are installed into.
//
// Whatever ends the program, the local copy is the old one or the new one, and a
// root holds what it held or what was asked for: the next call finishes what was
// begun, or takes it back.
//
// doc/mpm.md describes both for those who write another client.
package mpm
