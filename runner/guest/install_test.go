package guest

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/Morphux/quarry/extract"
)

// A sysroot is no system: links stay in it, and libtool's archives are left out.
func TestInstallSysroot(t *testing.T) {
	tree, root := t.TempDir(), t.TempDir()
	lib := filepath.Join(tree, "usr/lib")
	for _, err := range []error{
		os.MkdirAll(lib, 0o755),
		os.WriteFile(filepath.Join(lib, "liba.so.1"), []byte("a"), 0o644),
		os.WriteFile(filepath.Join(lib, "liba.la"), []byte("libdir='/usr/lib'"), 0o644),
		os.Symlink("liba.so.1", filepath.Join(lib, "liba.so")),
		os.Symlink("/usr/lib/../lib/liba.so.1", filepath.Join(lib, "libb.so")),
		os.Symlink("/", filepath.Join(lib, "top")),
		os.Symlink("/nowhere.la", filepath.Join(lib, "libc.la")),
		os.Mkdir(filepath.Join(lib, "dir.la"), 0o755),
		// The system's own /lib is a link, and the sysroot's too.
		os.MkdirAll(filepath.Join(root, "usr/lib"), 0o755),
		os.Symlink("usr/lib", filepath.Join(root, "lib")),
		os.MkdirAll(filepath.Join(tree, "lib"), 0o755),
		os.Symlink("/etc/deep", filepath.Join(tree, "lib/libd.so")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	store, err := extract.OpenArtifacts(filepath.Join(t.TempDir(), "artifacts"))
	if err != nil {
		t.Fatal(err)
	}
	_, art, err := extract.Tree(t.Context(), tree, extract.Options{UIDBase: os.Getuid(), GIDBase: os.Getgid(), Store: store, SourceTime: time.Unix(1e9, 0)})
	if err != nil {
		t.Fatal(err)
	}
	f, err := store.Open(art.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := install(f, root); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"liba.so": "liba.so.1", "libb.so": "liba.so.1", "top": "../..", "libc.la": "../../nowhere.la", "libd.so": "../../etc/deep",
	} {
		if to, err := os.Readlink(filepath.Join(root, "usr/lib", name)); err != nil || to != want {
			t.Errorf("%s leads to %q (%v), want %q", name, to, err, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(root, "usr/lib/liba.la")); err == nil {
		t.Error("liba.la is there")
	}
	if st, err := os.Stat(filepath.Join(root, "usr/lib/dir.la")); err != nil || !st.IsDir() {
		t.Errorf("a folder is gone: %v", err)
	}
	if st, err := os.Lstat(filepath.Join(root, "lib")); err != nil || st.Mode().IsDir() {
		t.Errorf("the link became a folder: %v", err)
	}
}
