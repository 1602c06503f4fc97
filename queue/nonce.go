package queue

import "strings"

// Change gives what names the change in the nonce of a build that the planner
// wanted because what the package had been built against is another (see
// [Records].Stale); false for the nonce of any other build.
func Change(nonce string) (string, bool) { return strings.CutPrefix(nonce, rebuildNonce) }
