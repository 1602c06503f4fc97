package guest

import (
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/Morphux/quarry/extract"
)

// install lays a dependency's artifact into the system, or into a folder that
// stands for one. It runs before anything of the build does. What is wrong with
// an artifact that this farm made itself is the farm's trouble, so all errors
// are.
func install(r io.Reader, dir string) error {
	if dir == "" {
		_, err := extract.Install(r, "/")
		return err
	}
	placed, err := extract.Install(r, dir)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, p := range placed {
		if err := bend(root, strings.TrimPrefix(p, "/")); err != nil {
			return err
		}
	}
	return nil
}

// bend makes what was installed fit for a sysroot, which is no system's /: a link
// to an absolute path would lead out of it, and libtool's archives name folders
// of the system, where libtool would then look.
func bend(root *os.Root, name string) error {
	st, err := root.Lstat(name)
	if err != nil {
		return err
	}
	switch {
	case st.Mode().IsRegular() && strings.HasSuffix(name, ".la"):
		return root.Remove(name)
	case st.Mode()&fs.ModeSymlink == 0:
		return nil
	}
	target, err := root.Readlink(name)
	if err != nil || !path.IsAbs(target) {
		return err
	}
	to, err := filepath.Rel(path.Dir("/"+name), path.Clean(target))
	if err != nil {
		return err
	}
	if err := root.Remove(name); err != nil {
		return err
	}
	return root.Symlink(to, name)
}
