// A program that is nothing but the guest, for tests of the runner.
package main

import (
	"os"

	"github.com/Morphux/quarry/runner/guest"
)

func main() { os.Exit(guest.Main(os.Args[2])) }
