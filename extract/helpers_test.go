package extract

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
)

// uidBase is the host id of the root of the tests' workspaces.
const uidBase = 100000

var sourceTime = time.Unix(1_700_000_000, 0)

// node is one file to make in a tree. Its owner is the workspace's.
type testFile struct {
	path, data string
	mode       uint32 // with the kind, e.g. unix.S_IFDIR|0o755
	uid, gid   int
	target     string // of a link; with the kind of a regular file a hard link
}

func dir(p string, mode uint32) testFile { return testFile{path: p, mode: unix.S_IFDIR | mode} }
func file(p, data string, mode uint32) testFile {
	return testFile{path: p, data: data, mode: unix.S_IFREG | mode}
}
func link(p, to string) testFile { return testFile{path: p, target: to, mode: unix.S_IFLNK} }
func hard(p, to string) testFile { return testFile{path: p, target: to, mode: unix.S_IFREG} }
func fifo(p string) testFile     { return testFile{path: p, mode: unix.S_IFIFO | 0o600} }

// needRoot: owners, devices and capabilities are what is tested.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes files of several owners: run it as root, or in `unshare -r --map-auto`")
	}
}

// build makes files below root, in their order; folders have to come first.
func build(t testing.TB, root string, files ...testFile) {
	t.Helper()
	needRoot(t)
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, f := range files {
		p := filepath.Join(root, f.path)
		var err error
		switch {
		case f.mode&unix.S_IFMT == unix.S_IFDIR:
			err = os.Mkdir(p, 0o755)
		case f.mode&unix.S_IFMT == unix.S_IFLNK:
			err = os.Symlink(f.target, p)
		case f.target != "":
			err = os.Link(filepath.Join(root, f.target), p)
		case f.mode&unix.S_IFMT == unix.S_IFREG:
			err = os.WriteFile(p, []byte(f.data), 0o644)
		default:
			err = unix.Mknod(p, f.mode, 0)
		}
		if err == nil && (f.target == "" || f.mode&unix.S_IFMT == unix.S_IFLNK) {
			err = os.Lchown(p, uidBase+f.uid, uidBase+f.gid)
		}
		if err == nil && f.target == "" {
			err = unix.Chmod(p, f.mode&0o7777)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func options(o Options) Options {
	o.UIDBase, o.GIDBase = uidBase, uidBase
	if o.SourceTime.IsZero() {
		o.SourceTime = sourceTime
	}
	return o
}

func newStore(t testing.TB) *Artifacts {
	t.Helper()
	s, err := OpenArtifacts(filepath.Join(t.TempDir(), "artifacts"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// extractTree reads a tree that has to be accepted.
func extractTree(t testing.TB, root string, o Options) (*quarry.Facts, *quarry.Artifact) {
	t.Helper()
	facts, art, err := Tree(context.Background(), root, options(o))
	if err != nil {
		t.Fatal(err)
	}
	return facts, art
}

// refusedBy reads a tree that has to be refused.
func refusedBy(t testing.TB, root string, o Options) *RefusedError {
	t.Helper()
	facts, art, err := Tree(context.Background(), root, options(o))
	refused, ok := errors.AsType[*RefusedError](err)
	if !ok || facts != nil || art != nil {
		t.Fatalf("Tree = %v, %v, %v; want a refusal", facts, art, err)
	}
	return refused
}

// untar reads an artifact into headers and contents.
func untar(t testing.TB, s *Artifacts, sha string) (headers []*tar.Header, data map[string]string) {
	t.Helper()
	f, err := s.Open(sha)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dec, err := newDecoder(1)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	if err := dec.Reset(f); err != nil {
		t.Fatal(err)
	}
	data = map[string]string{}
	r := tar.NewReader(dec)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return headers, data
		}
		if err != nil {
			t.Fatal(err)
		}
		headers = append(headers, h)
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			data[h.Name] = string(b)
		}
	}
}

// noise is n bytes that do not compress, the same for the same seed.
func noise(seed uint64, n int) string {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return string(b)
}

// compile runs the C compiler of the machine.
func compile(t testing.TB, args ...string) {
	t.Helper()
	run(t, "cc", args...)
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is missing: install it (Debian: apt install build-essential binutils tar findutils)", name)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// listing is everything below a folder, one line a file, times left out.
func listing(t testing.TB, root string) string {
	t.Helper()
	var lines []string
	err := filepath.Walk(root, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		st := fi.Sys().(*syscall.Stat_t)
		line := fmt.Sprintf("%s %v %d:%d", rel, fi.Mode(), st.Uid, st.Gid)
		switch {
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d links %x", st.Nlink, bytes.TrimSpace(b[:min(len(b), 64)]))
		case fi.Mode()&os.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + to
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
