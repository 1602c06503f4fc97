// Package extract reads what a build installed, once, and says what it is.
//
// [Tree] walks a staging directory and returns the facts of every file in it
// and, where it is given a store, the artifact: the reproducible archive that
// other builds and MPM install from. [Install] lays an artifact into a root.
// The format between the two is written down in doc/artifact.md.
//
// A staged tree is hostile: a recipe may put anything there, and this package
// reads it as root of the host. So no link is ever followed, every file is
// opened relative to the folder it was found in and checked to be the one that
// was found, nothing but folders and regular files is opened at all, and
// everything that is counted has a limit ([Limits]). What cannot be accepted
// is a [RefusedError], the recipe's fault; trouble in reading or writing is any
// other error, the farm's.
package extract
