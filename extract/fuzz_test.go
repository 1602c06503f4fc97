package extract

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
)

// Run these with -fuzzminimizetime 5x: seeds are real ELF files and archives,
// which the fuzzer would else spend its time on making smaller.

// FuzzInspect: whatever a file holds, looking into it ends, and what it says
// fits into a record.
func FuzzInspect(f *testing.F) {
	f.Add("/usr/bin/a", []byte("#!/usr/bin/env python3\n"))
	f.Add("/usr/lib/a.a", []byte("!<arch>\n/               0           0     0     0       4         `\n\x7fELF"))
	f.Add("/usr/lib/a.so", craft("\x00libz.so.1\x00/opt:$ORIGIN\x00", dtStrtab, 0, dtStrsz, 24, dtNeeded, 1, dtSoname, 1, dtRPath, 11, dtRunPath, 11, dtFlags1, df1PIE|df1Now, dtNull, 0))
	for _, p := range []string{"/bin/true", "/usr/bin/env"} {
		if b, err := os.ReadFile(p); err == nil {
			f.Add(p, b[:min(len(b), 8<<10)])
		}
	}
	if cc, err := exec.LookPath("cc"); err == nil {
		// Small real files: an object and a program without libc.
		d := f.TempDir()
		src := filepath.Join(d, "a.c")
		os.WriteFile(src, []byte("void _start(void) {}\n"), 0o644)
		for _, args := range [][]string{{"-c"}, {"-nostdlib", "-static", "-s"}, {"-nostdlib", "-pie", "-Wl,-rpath,/a:/b"}, {"-nostdlib", "-shared", "-Wl,-soname,a.so"}} {
			out := filepath.Join(d, "out")
			if exec.Command(cc, append(args, "-o", out, src)...).Run() == nil {
				if b, err := os.ReadFile(out); err == nil {
					f.Add("/usr/bin/out", b)
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		in := inspect(name, bytes.NewReader(data), int64(len(data)))
		if in.class == "" {
			t.Error("no class")
		}
		texts := []string{in.interpreter}
		if e := in.elf; e != nil {
			texts = append(append(append(append(texts, e.Interpreter, e.Soname), e.Needed...), e.RPath...), e.RunPath...)
			if err := quarry.CheckArch(e.Arch); err != nil {
				t.Error(err)
			}
			if len(e.BuildID) > 2*maxBuildID || len(e.Needed) > maxNeeded {
				t.Errorf("build-id of %d digits, %d needed", len(e.BuildID), len(e.Needed))
			}
		}
		for _, s := range texts {
			if s != "" && !fitText(s, maxPathBytes) {
				t.Errorf("text %q", s)
			}
		}
		if strings.ContainsAny(in.warning, "\n\x1b") {
			t.Errorf("warning %q", in.warning)
		}
	})
}

// FuzzCaps: capabilities come out in one form or not at all.
func FuzzCaps(f *testing.F) {
	f.Add(caps(capRevision2, 1), uint32(0))
	f.Add(caps(capRevision3, 1, 100000), uint32(100000))
	f.Fuzz(func(t *testing.T, b []byte, root uint32) {
		out, err := plainCaps(b, root)
		if err != nil {
			return
		}
		if again, err := plainCaps(out, 0); err != nil || !bytes.Equal(again, out) {
			t.Errorf("%x became %x, then %x, %v", b, out, again, err)
		}
		showCaps(out)
	})
}

// FuzzInstall: no archive reaches what is outside of the root, nor brings a
// device, nor leaves a half-written name behind.
func FuzzInstall(f *testing.F) {
	add := func(items ...item) { f.Add(archive(f, items...)) }
	add(item{name: "lib/", typ: tar.TypeDir}, item{name: "lib/x", data: "x"}, item{name: "usr/lib/y", typ: tar.TypeLink, link: "lib/x"})
	add(item{name: "esc", typ: tar.TypeSymlink, link: "../outside"}, item{name: "esc/x"})
	add(item{name: "abs/secret", data: "changed"}, item{name: "up/dir/x", data: "changed"}, item{name: "usr/bin/awk", data: "x"})
	add(item{name: "etc/loop/x"}, item{name: "lock/x", typ: tar.TypeFifo})
	add(item{name: "d/", typ: tar.TypeDir}, item{name: "d/é", data: "x"}, item{name: "usr/lib/terminfo", typ: tar.TypeSymlink, link: "/"})
	add(item{name: "a", edit: func(h *tar.Header) { h.PAXRecords = map[string]string{paxCaps: string(caps(capRevision2, 1<<13))} }})
	limits := Limits{Files: 50, Bytes: 1 << 20, Depth: 10, Path: 200}.or(DefaultLimits)
	f.Fuzz(func(t *testing.T, b []byte) {
		root, outside := baseRoot(t)
		before := listing(t, filepath.Dir(root)+"/outside")
		installed, err := installTar(bytes.NewReader(b), root, limits)
		if after := listing(t, outside); after != before {
			t.Fatalf("outside changed from\n%s\nto\n%s", before, after)
		}
		if names, _ := os.ReadDir(filepath.Dir(root)); len(names) != 2 {
			t.Fatalf("beside the root: %v", names)
		}
		for _, p := range installed {
			if _, err := os.Lstat(filepath.Join(root, p)); err != nil {
				t.Errorf("%v", err)
			}
		}
		for _, line := range strings.Split(listing(t, root), "\n") {
			name, _, _ := strings.Cut(line, " ")
			if err == nil && strings.Contains(name, ".quarry-") && !bytes.Contains(b, []byte(".quarry-")) {
				t.Errorf("left behind: %s", line)
			}
			if _, mode, _ := strings.Cut(line, " "); strings.HasPrefix(mode, "D") {
				t.Errorf("device: %s", line)
			}
		}
	})
}
