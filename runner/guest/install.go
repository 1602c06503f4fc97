package guest

import (
	"io"

	"github.com/Morphux/quarry/extract"
)

// install lays a dependency's artifact into the system. It runs before
// anything of the build does. What is wrong with an artifact that this farm
// made itself is the farm's trouble, so all errors are.
func install(r io.Reader) error {
	_, err := extract.Install(r, "/")
	return err
}
