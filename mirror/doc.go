// Package mirror is the database as files: what a package manager reads over
// HTTP, from the daemon or from any web server.
//
// This file's neighbours are two halves. The first is for clients: [Head],
// [List] and [Delta] read the format, and check it. The second makes the files
// out of commits of the results repository: [Export] writes a folder,
// [NewSite] gives the daemon its answers, and both give the same bytes for the same
// name.
//
// doc/mirror.md is the description of the format, and enough to write a client
// in another language.
package mirror
