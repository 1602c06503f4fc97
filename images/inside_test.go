package images

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/Morphux/quarry/internal/podman/tinyelf"
)

func TestParseBinfmt(t *testing.T) {
	e := parseBinfmt("qemu-aarch64", []byte("enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POCF\noffset 0\nmagic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n"))
	m, _ := tinyelf.Of("aarch64")
	if !e.Enabled || e.Flags != "POCF" || e.Interpreter != "/usr/libexec/qemu-binfmt/aarch64-binfmt-P" || !e.matches(m.Header()) {
		t.Errorf("%+v", e)
	}
	for _, arch := range []string{"x86_64", "armv7l", "riscv64", "s390x"} {
		m, _ := tinyelf.Of(arch)
		if e.matches(m.Header()) {
			t.Errorf("a program for %s goes to aarch64's interpreter", arch)
		}
	}
	for _, text := range []string{"", "disabled\n", "enabled\ninterpreter /usr/bin/python\nflags: \noffset 99999999\nmagic 00\n",
		"enabled\noffset -1\nmagic 7f\n", "enabled\nmagic zz\nmask zz\n", "enabled\nextension .jar\n"} {
		if e := parseBinfmt("x", []byte(text)); e.matches(m.Header()) {
			t.Errorf("%q matches", text)
		}
	}
}

func TestLimitsOr(t *testing.T) {
	d := DefaultLimits()
	if err := d.fit().check(); err != nil {
		t.Errorf("the defaults do not pass: %v", err)
	}
	if got := (Limits{}).or(d); got != d {
		t.Errorf("%+v is not %+v", got, d)
	}
	all := Limits{Memory: 1, Pids: 2, CPUs: 3, Disk: 4, NoFile: 5, NProc: 6, FileSize: 7, Shm: 8}
	if got := all.or(d); got != all {
		t.Errorf("%+v is not %+v", got, all)
	}
	if got := (Limits{Memory: -1, CPUs: -1}).or(d); got != d {
		t.Errorf("negative limits count: %+v", got)
	}
	big := Limits{Memory: 1 << 40, Pids: 100, CPUs: 1e9, Disk: 1 << 20, NoFile: 1 << 40, FileSize: 1 << 40}.fit()
	if big.NoFile > 1<<20 || big.CPUs > 4096 || big.FileSize > big.Disk || big.NProc != 200 {
		t.Errorf("%+v", big)
	}
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr", filepath.Join(dir, "usr")); err != nil {
		t.Fatal(err)
	}
	n, err := usage(dir, 1<<40)
	if err != nil || n < 1<<20 || n > 1<<20+5*entryCost+8192 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := usage(dir, 1000); !errors.Is(err, errTooMuch) {
		t.Errorf("%v", err)
	}
	if n, err := usage(filepath.Join(dir, "nothing"), 1); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	deep := dir
	for range maxDepth + 2 {
		deep += "/d"
	}
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := usage(dir, 1<<40); !errors.Is(err, errTooDeep) {
		t.Errorf("%v", err)
	}
}

func FuzzSniff(f *testing.F) {
	f.Add([]byte("\x1f\x8b\x08\x00"))
	f.Add([]byte("\xfd7zXZ\x00\x00"))
	f.Add(make([]byte, 1024))
	f.Fuzz(func(t *testing.T, data []byte) {
		sniff(data)
		parseBinfmt("x", data).matches(data)
		checkELF("x86_64", data)
		withoutNames("index.json", data)
		withoutNames("manifest.json", data)
	})
}
