// Package runner makes one build in one workspace: it brings the sources and
// the dependencies in, has the guest run the recipe's steps, and says what came
// of it. doc/build.md tells the whole of it to those who write recipes.
//
// A build can end in three ways, which are never mixed up: it succeeds
// ([Result] without Failure), the recipe fails (Failure says why), or the farm
// fails (an error; the build is tried again). Whatever comes out of the
// workspace, the guest's own words included, is taken to be hostile.
package runner
