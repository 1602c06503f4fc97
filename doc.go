// Package quarry holds the nouns of the Quarry build farm: packages, releases,
// builds, outcomes, facts and the people who push them.
//
// A maintainer pushes a branch name-version; that makes a [Release]. For every
// architecture it is wanted on there is one [Build], identified by what goes
// into it ([Build.Key]). A build ends in an [Outcome], which is written as one
// record into the git results repository. Everything else in this module moves
// these values along one path; this package only says what they are, checks the
// words they are made of ([CheckName], [CheckVersion], [CheckArch],
// [CheckChannel], [ParseBranch]) and does no I/O.
package quarry
