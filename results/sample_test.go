package results

import (
	"fmt"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// sample is an outcome with something in every field, shaped like zlib's.
func sample(pkg, version, arch string, number int64) *quarry.Outcome {
	start := time.Date(2026, 3, 14, 15, 9, 26, 535_000_000, time.UTC)
	commit := strings.Repeat("1b", 20)
	target := quarry.Target{Channel: "testing", Package: pkg, Version: version, Arch: arch}
	nonce := fmt.Sprint(number)
	o := &quarry.Outcome{
		Build: quarry.Build{
			Number: number, Key: quarry.BuildKey(target, commit, nonce), Nonce: nonce, Arch: arch, Attempt: 1,
			Release: quarry.Release{
				Package: pkg, Version: version, Channel: "testing", Commit: commit, Time: start.Add(-time.Hour), Pushed: start.Add(-time.Minute),
				Packager: quarry.Packager{User: "alice", Name: "Alice Liddell", Email: "alice@morphux.org", Key: "SHA256:uNiVztksCsDhcc0u9e8BrmkyZ1h1gDQ2aQrvjLQ"},
			},
		},
		Status: quarry.Succeeded,
		Info: quarry.Info{
			Description: "A compression library", Category: "libs", Needed: []string{"glibc-2.39"}, Recommended: []string{"bash"}, Optional: []string{"ed>=1.0"},
			Groups: []quarry.Group{{Name: "zlib", GID: "90"}}, Users: []quarry.User{{Name: "zlib", UID: "90", Shell: "/bin/false"}},
			Kernel: []string{"+CONFIG_TUN"}, Files: []quarry.FileRule{{Path: "/etc/zlib.conf", Mode: "0644", Type: "config"}}, Recipe: strings.Repeat("ab", 32),
		},
		Usage: quarry.Usage{PeakMemory: 131072000, PeakAnon: 104857600, User: 41 * time.Second, Sys: 2500 * time.Millisecond,
			Read: 4096, Written: 8192000, PeakProcs: 17, PeakDisk: 20000000, SourceSize: 1500000,
			SlotTime: 58 * time.Second, PeakJobs: 4, Width: 3.25, Forced: "make was called with -j8"},
		Facts: &quarry.Facts{
			Size: 700000, DiskSize: 720896, SizeBefore: 460000000, Warnings: []string{"libbroken.so.1 is needed by /usr/bin/minigzip and comes from nowhere"},
			Libraries: []quarry.NeededLibrary{{Soname: "libc.so.6", Arch: "x86_64", From: "base", Path: "/lib/x86_64-linux-gnu/libc.so.6", By: []string{"/usr/bin/minigzip", "/usr/lib/libz.so.1.3.1"}}},
			Files: []quarry.File{
				{Path: "/usr/bin", Kind: quarry.KindDir, Mode: 0o755},
				{Path: "/usr/bin/minigzip", Kind: quarry.KindRegular, Class: quarry.ClassBinary, Mode: 0o4755, Size: 86016, SHA256: strings.Repeat("cd", 32),
					ELF: &quarry.ELF{Arch: "x86_64", Type: "dyn", Interpreter: "/lib64/ld-linux-x86-64.so.2", Needed: []string{"libz.so.1", "libc.so.6"}, RunPath: []string{"/usr/lib"}, BuildID: "abcdef", PIE: true, RELRO: "full", NX: true}},
				{Path: "/usr/lib/libz.so", Kind: quarry.KindSymlink, Mode: 0o777, Target: "libz.so.1.3.1"},
				{Path: "/usr/lib/libz.so.1.3.1", Kind: quarry.KindRegular, Class: quarry.ClassShared, Mode: 0o755, Size: 117000, SHA256: strings.Repeat("ef", 32),
					ELF: &quarry.ELF{Arch: "x86_64", Type: "dyn", Soname: "libz.so.1", Needed: []string{"libc.so.6"}, Stripped: true}},
				{Path: "/usr/share/odd\n\xff\\name", Kind: quarry.KindRegular, Class: quarry.ClassOther, Mode: 0o644, UID: 90, GID: 90, Size: 1, SHA256: strings.Repeat("01", 32)},
				{Path: "/usr/share/pipe", Kind: quarry.KindChar, Mode: 0o644, Major: 1, Minor: 3},
			},
		},
		Artifact: &quarry.Artifact{SHA256: strings.Repeat("45", 32), Size: 250000},
		Deps:     []quarry.DepUsed{{Package: "glibc", Version: "2.39", Artifact: strings.Repeat("67", 32), ABI: strings.Repeat("ab", 32), Direct: true}},
		Host:     quarry.HostInfo{Builder: "farm1", Base: "sha256:" + strings.Repeat("89", 32), Emulation: "native", Kernel: "6.1.0", Runtime: "runc", CPUs: 2, Quarry: "0.1.0"},
		Started:  start, Ended: start.Add(41200 * time.Millisecond),
		Warnings: []string{"unknown field colour in package.json"},
	}
	for i, name := range []string{quarry.StepPrepare, quarry.StepConfigure, quarry.StepMake, quarry.StepTest, quarry.StepInstall, quarry.StepExtract} {
		o.Steps = append(o.Steps, quarry.Step{Name: name, Wall: time.Duration(i+1) * 1234567 * time.Microsecond, User: time.Second, Sys: 250 * time.Millisecond, RSS: 65536000})
	}
	return o
}

// failing is the outcome of a build that failed in make.
func failing(pkg, version, arch string, number int64) *quarry.Outcome {
	o := sample(pkg, version, arch, number)
	o.Status, o.Facts, o.Artifact = quarry.Failed, nil, nil
	o.Steps = o.Steps[:3]
	o.Steps[2].Status = 2
	o.Failure = &quarry.Failure{
		Step: quarry.StepMake, Cause: quarry.CauseExit, Message: "make ended with status 2", Status: 2,
		Command: "make", Reproduce: "quarry build zlib --arch x86_64",
	}
	o.LogLines = []string{"cc -c adler32.c", "adler32.c:1:1: error: unknown type name 'foo'", "make: *** [Makefile:7: adler32.o] Error 1"}
	return o
}
