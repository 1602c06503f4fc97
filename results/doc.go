// Package results is the database of the farm: a bare git repository with one
// TOML record for every package, version and architecture that was built, and
// one commit for every finished build.
//
// [Open] gives the writer, [Repo.Record] writes one outcome. [OpenReader] and
// [Repo.Snapshot] give a [Snapshot]: every question to one Snapshot is answered
// from the same commit, whatever is written meanwhile. The reader needs neither
// git nor a worktree, and works on any bare clone of the repository, so a
// package manager can import this package as it is.
//
// The format on disk, down to each key and its unit, is described in
// doc/results.md for those who write a client in another language.
package results
