// Package guest is the first process of a workspace: process 1 of the
// container in which a build runs. It connects to the runner's Unix socket,
// does what the runner asks and tells what came of it.
//
// Everything else that runs in the container comes out of a package and is
// taken to be hostile, and it runs as the same user. What keeps the two apart:
//
//   - Nothing of the build has the socket. It is closed on exec, the runner
//     takes exactly one connection and removes the socket's name before
//     anything of the build starts.
//   - The guest is not dumpable (prctl(2), PR_SET_DUMPABLE), so the build cannot
//     trace it nor reach its memory or its descriptors through /proc/1.
//   - The kernel drops signals to process 1 that it has no handler for; the rest
//     the guest takes and forgets. It ends when its connection does.
//   - What a step prints travels in frames of its own kind with a length before
//     them: no output can be taken for a message.
//
// A step may do anything to its own processes, fill the limit on processes or
// the memory, so while one runs the guest is a single-threaded loop around
// poll(2) which neither starts threads nor allocates memory.
package guest
