package tinyelf_test

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/Morphux/quarry/internal/podman/tinyelf"
)

// run executes the program, under qemu when one is given.
func run(t *testing.T, prog []byte, qemu string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiny")
	if err := os.WriteFile(path, prog, 0o755); err != nil {
		t.Fatal(err)
	}
	argv := []string{path}
	if qemu != "" {
		argv = []string{qemu, path}
	}
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Errorf("%v: %v: %s", argv, err, out)
	}
}

// Every program whose machine code is known runs and ends with 0 under the
// emulator of its architecture.
func TestProgramsRun(t *testing.T) {
	for arch, qemu := range map[string]string{
		"x86_64": "x86_64", "i686": "i386", "aarch64": "aarch64", "armv7l": "arm", "riscv64": "riscv64",
		"riscv32": "riscv32", "loongarch64": "loongarch64", "ppc64le": "ppc64le", "s390x": "s390x",
	} {
		t.Run(arch, func(t *testing.T) {
			m, ok := tinyelf.Of(arch)
			if !ok {
				t.Fatal("arch is not in the table")
			}
			prog, ok := m.Program()
			if !ok {
				t.Fatal("no machine code")
			}
			f, err := elf.NewFile(bytes.NewReader(prog))
			if err != nil {
				t.Fatal(err)
			}
			if f.Machine != elf.Machine(m.EM) {
				t.Errorf("machine is %v", f.Machine)
			}
			path, err := exec.LookPath("qemu-" + qemu + "-static")
			if err != nil {
				t.Fatalf("%v: apt-get install qemu-user-static", err)
			}
			run(t, prog, path)
		})
	}
}

func TestUnknown(t *testing.T) {
	if _, ok := tinyelf.Of("pdp11"); ok {
		t.Error("pdp11 is in the table")
	}
	m, _ := tinyelf.Of("ppc64")
	if _, ok := m.Program(); ok {
		t.Error("a big-endian ppc64 program was made though it cannot work")
	}
	if len(m.Header()) != 52 {
		t.Error("header too short")
	}
}
