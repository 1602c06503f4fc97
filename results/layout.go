package results

import (
	"fmt"
	"strings"

	"github.com/Morphux/quarry"
)

// The two halves of a channel's tree. A success stays in packages/ until a
// newer success of the same target replaces it; a failure stays in failures/
// until the next success of the same target removes it.
const (
	packagesDir = "packages"
	failuresDir = "failures"
)

// Endings of the files of one architecture.
const (
	recordExt = ".toml"
	filesExt  = ".files.toml"
)

// Spread is the folder, below packages/ or failures/, under which all versions
// of a package lie: 1/a, 2/ab, 3/a/abc, ab/cd/abcd, as in the index of
// crates.io. The spreading part is lower-cased and the name itself is kept, so
// that names which differ only in case lie beside each other. The name must
// have passed [quarry.CheckName].
func Spread(name string) string {
	low := strings.ToLower(name)
	switch len(name) {
	case 0:
		return ""
	case 1, 2:
		return fmt.Sprintf("%d/%s", len(name), name)
	case 3:
		return "3/" + low[:1] + "/" + name
	}
	return low[:2] + "/" + low[2:4] + "/" + name
}

// RecordPath is where the record of a target's success lies in the tree of its
// channel, e.g. packages/zl/ib/zlib/1.3.1/x86_64.toml.
func RecordPath(t quarry.Target) string { return targetPath(packagesDir, t, recordExt) }

// FilesPath is where the list of installed files lies, e.g.
// packages/zl/ib/zlib/1.3.1/x86_64.files.toml.
func FilesPath(t quarry.Target) string { return targetPath(packagesDir, t, filesExt) }

// FailurePath is where the record of a target's failure lies, e.g.
// failures/zl/ib/zlib/1.3.1/x86_64.toml.
func FailurePath(t quarry.Target) string { return targetPath(failuresDir, t, recordExt) }

func targetPath(top string, t quarry.Target, ext string) string {
	return top + "/" + Spread(t.Package) + "/" + t.Version + "/" + t.Arch + ext
}

// CheckTarget reports whether a target's words can be a place in the
// repository. Besides the grammars of the words, an architecture may not end in
// .files: its record would be taken for the list of files of another.
func CheckTarget(t quarry.Target) error {
	if err := quarry.CheckChannel(t.Channel); err != nil {
		return err
	}
	return checkPlace(t.Package, t.Version, t.Arch)
}

func checkPlace(pkg, version, arch string) error {
	if err := quarry.CheckName(pkg); err != nil {
		return err
	}
	if err := quarry.CheckVersion(version); err != nil {
		return err
	}
	if err := quarry.CheckArch(arch); err != nil {
		return err
	}
	if strings.HasSuffix(arch, ".files") {
		return fmt.Errorf("architecture %q may not end in .files: the results repository keeps that ending for lists of files", arch)
	}
	return nil
}

// archOf is the architecture that a file of a version's folder is the record
// of; false for lists of files and for what other software may have put there.
func archOf(file string) (string, bool) {
	arch, ok := strings.CutSuffix(file, recordExt)
	if !ok || strings.HasSuffix(arch, ".files") || quarry.CheckArch(arch) != nil {
		return "", false
	}
	return arch, true
}
