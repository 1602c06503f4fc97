package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/results"
	"github.com/klauspost/compress/zstd"
)

// testdataPackage makes a git repository of a package in this folder's testdata.
func testdataPackage(t testing.TB, name string) (dir string) {
	t.Helper()
	files := map[string]string{}
	root := os.DirFS(filepath.Join("testdata", name))
	err := fs.WalkDir(root, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(root, path)
		files[path] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return testpkg.Make(t, name, files)
}

// TestArchs has one push built for this machine's arch and for one that it
// emulates, beside archs that nothing here can build, and compares the records
// with what is in the artifacts.
func TestArchs(t *testing.T) {
	host, foreign := config.HostArch(), testbase.Foreign
	_, tarball := testbase.Emulated(t)
	s := newServer(t, t.TempDir())
	// One whose header is known and that has no base, and one nobody heard of.
	none := []string{"mips64el", "zarch"}
	s.writeConfig(t, fmt.Sprintf("[channel.testing]\narchs = [%q, %q, %q, %q]\n", none[0], host, none[1], foreign))
	if err := s.start(); err != nil {
		t.Fatal(err)
	}
	defer s.stop(syscall.SIGTERM)
	s.quarry(t, "images", "load", foreign, tarball)

	if err := s.push(testdataPackage(t, "tally"), "tally", "1.0"); err != nil {
		t.Fatal(err)
	}
	// A slow machine takes minutes under emulation.
	waitWithin(t, 10*time.Minute, s, "two builds to succeed, and two to wait with their reasons", func(st statusOut) bool {
		reasons := ""
		for _, p := range st.Queue.Paused {
			reasons += p.Reason + "\n"
		}
		return len(st.Ended) == 2 && len(st.Live) == 2 && len(st.Queue.Paused) == 2 &&
			strings.Contains(reasons, none[0]) && strings.Contains(reasons, none[1])
	})
	for _, b := range s.status(t).Live {
		if !slices.Contains(none, b.Arch) || b.State != quarry.Queued {
			t.Errorf("%s is %s", b.Target(), b.State)
		}
	}

	// A shell where it failed runs on either, in a system of that arch.
	if err := s.push(flawed(t, "flawed"), "flawed", "1.0"); err != nil {
		t.Fatal(err)
	}
	waitWithin(t, 10*time.Minute, s, "two builds to fail", func(st statusOut) bool {
		n := 0
		for _, b := range st.Ended {
			if b.State == quarry.Failed {
				n++
			}
		}
		return n == 2
	})
	for _, k := range s.keptOnes(t) {
		if got, code := s.screenOf(t, "shell", fmt.Sprint(k.Build), "uname -m; cat half.o; again; echo $?; stty size"); got != k.Arch+"\r\nhalf\r\nno more\r\n3\r\n25 80" || code != 0 {
			t.Errorf("%s: %q, status %d", k.Target, got, code)
		}
	}

	files := map[string]map[string]quarry.File{}
	for _, arch := range []string{host, foreign} {
		how := map[bool]string{true: "native", false: "emulated"}[arch == host]
		files[arch] = s.checkTally(t, arch, how)
	}
	if a, b := slices.Sorted(maps.Keys(files[host])), slices.Sorted(maps.Keys(files[foreign])); !slices.Equal(a, b) {
		t.Errorf("%s installs %v, %s installs %v", host, a, foreign, b)
	}
	for path, f := range files[host] {
		if g := files[foreign][path]; f.ELF != nil && f.SHA256 == g.SHA256 {
			t.Errorf("%s is the same file for both archs", path)
		}
	}
}

// checkTally checks the record of tally-1.0 for an arch, and gives its files.
func (s *server) checkTally(t *testing.T, arch, how string) map[string]quarry.File {
	t.Helper()
	target := quarry.Target{Package: "tally", Version: "1.0", Arch: arch, Channel: "testing"}
	show := func(path string) []byte {
		return []byte(s.must(t, "git", "-C", s.state("results.git"), "show", "testing:"+path))
	}
	rec, err := results.Parse(show(results.RecordPath(target)))
	if err != nil {
		t.Fatal(err)
	}
	list, err := results.ParseFiles(show(results.FilesPath(target)))
	if err != nil {
		t.Fatal(err)
	}
	if rec.Arch != arch || rec.Host.Emulation != how || rec.Status != quarry.Succeeded {
		t.Errorf("the record says %s, %s, %s: want %s, %s", rec.Status, rec.Arch, rec.Host.Emulation, arch, how)
	}
	// The test step ran what had been compiled.
	log := s.quarry(t, "log", strconv.FormatInt(rec.Build, 10))
	if want := fmt.Sprintf("a program for %s runs on %s", arch, arch); !strings.Contains(log, want) {
		t.Errorf("the log does not say %q:\n%s", want, log)
	}

	libs := map[string]string{}
	for _, l := range rec.Libraries {
		if l.Arch != arch {
			t.Errorf("%s is needed for %s", l.Soname, l.Arch)
		}
		libs[string(l.Soname)] = l.From
	}
	if libs["libtally.so.1"] != "package" || libs["libc.so.6"] != "base" || len(libs) != 2 {
		t.Errorf("%s: needed libraries come from %v", arch, libs)
	}

	content := artifactFiles(t, s.state("artifacts", rec.Artifact[:2], rec.Artifact+".tar.zst"), rec.Artifact)
	byPath := map[string]quarry.File{}
	elves, archives := 0, 0
	for _, f := range list {
		if f.SHA256 == "" {
			continue
		}
		byPath[f.Path] = f
		data, ok := content[f.Path]
		if sum := sha256.Sum256(data); !ok || hex.EncodeToString(sum[:]) != f.SHA256 {
			t.Errorf("%s: %s in the artifact is not what the record says", arch, f.Path)
		}
		if bytes.HasPrefix(data, []byte("!<arch>\n")) {
			archives++
			checkArchive(t, data, arch)
			continue
		}
		e, err := elf.NewFile(bytes.NewReader(data))
		if err != nil {
			if f.ELF != nil {
				t.Errorf("%s: %s is no ELF file", arch, f.Path)
			}
			continue
		}
		elves++
		if f.ELF == nil || f.ELF.Arch != arch || e.Machine != machineOf(t, arch) {
			t.Errorf("%s: %s is for %v, and the record says %+v", arch, f.Path, e.Machine, f.ELF)
		}
	}
	if len(content) != len(byPath) || elves != 3 || archives != 1 {
		t.Errorf("%s: %d files in the artifact and %d in the record; %d programs and libraries, %d archives", arch, len(content), len(byPath), elves, archives)
	}
	if so := byPath["/usr/lib/libtally.so.1"].ELF; so == nil || so.Soname != "libtally.so.1" {
		t.Errorf("%s: the library is %+v", arch, so)
	}
	if p := byPath["/usr/bin/tally"].ELF; p == nil || !slices.Equal(p.Needed, []string{"libtally.so.1", "libc.so.6"}) {
		t.Errorf("%s: the program is %+v", arch, p)
	}
	if p := byPath["/usr/bin/tally-static"].ELF; p == nil || !p.Static {
		t.Errorf("%s: the static program is %+v", arch, p)
	}
	return byPath
}

func machineOf(t *testing.T, arch string) elf.Machine {
	t.Helper()
	m, ok := map[string]elf.Machine{"x86_64": elf.EM_X86_64, "aarch64": elf.EM_AARCH64, "i686": elf.EM_386,
		"armv7l": elf.EM_ARM, "riscv64": elf.EM_RISCV, "ppc64le": elf.EM_PPC64, "s390x": elf.EM_S390, "loongarch64": elf.EM_LOONGARCH}[arch]
	if !ok {
		t.Fatalf("this test does not know the ELF machine of %s: name it here", arch)
	}
	return m
}

// checkArchive sees that the members of a static library are for an arch.
func checkArchive(t *testing.T, data []byte, arch string) {
	t.Helper()
	members := 0
	for data = data[8:]; len(data) >= 60; {
		size, err := strconv.Atoi(strings.TrimSpace(string(data[48:58])))
		if err != nil || 60+size > len(data) {
			t.Fatalf("%s: the static library cannot be read: %v", arch, err)
		}
		if data[0] != '/' { // not the index
			members++
			e, err := elf.NewFile(bytes.NewReader(data[60 : 60+size]))
			if err != nil || e.Machine != machineOf(t, arch) || e.Type != elf.ET_REL {
				t.Errorf("%s: member %s of the static library is no object for it: %v", arch, data[:16], err)
			}
		}
		data = data[min(len(data), 60+size+size%2):]
	}
	if members != 3 {
		t.Errorf("%s: the static library has %d members", arch, members)
	}
}

// artifactFiles reads the regular files of an artifact, whose hash it checks.
func artifactFiles(t *testing.T, path, hash string) map[string][]byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != hash {
		t.Errorf("artifact %s has another hash", path)
	}
	z, err := zstd.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	files := map[string][]byte{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if files["/"+h.Name], err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
		}
	}
}
