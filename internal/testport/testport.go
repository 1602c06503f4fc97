// Package testport finds ports for servers of tests that cannot be given a listener:
// programs of their own, and those that are started again where they were.
package testport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
)

// Where ports are looked for. From 32768 on, Linux takes them for connections that
// begin here, and between two starts of a server such a connection may get its
// port (ip(7), ip_local_port_range).
const first, last = 10_000, 32_000

// Free gives ports of 127.0.0.1 on which nobody listens, and that no other test
// is given, of whichever process, until t has ended.
func Free(t testing.TB, n int) (ports []int) {
	t.Helper()
	for range 10_000 {
		if len(ports) == n {
			return ports
		}
		port := first + rand.IntN(last-first)
		// A name that goes with the process, in the network that the port is of.
		mine, err := net.Listen("unix", fmt.Sprintf("@quarry-test-port-%d", port))
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			mine.Close()
			continue
		}
		l.Close()
		t.Cleanup(func() { mine.Close() })
		ports = append(ports, port)
	}
	t.Fatalf("there are no %d free ports from %d to %d", n, first, last)
	return nil
}
