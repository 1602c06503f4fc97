// Package resultstest makes results repositories of any size for tests and
// benchmarks: names spread as a distribution's are, records of the usual weight,
// a history of versions. They are kept in a cache folder, as the large ones take
// minutes to make.
package resultstest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// Channel is the one that everything here is recorded on.
const Channel = "testing"

// Archs are the architectures in the order in which [Size].Archs counts them.
var Archs = []string{"x86_64", "aarch64", "riscv64", "i686"}

// Size says how large a repository is to be.
type Size struct {
	Packages int
	Archs    int // 1 to 4; 0 stands for 2
	// Versions of each package, one newer than the other, all of them in the tree
	// of the newest commit, as a channel keeps them; 0 stands for 1. They come in
	// rounds: each package has its first before any has its second.
	Versions int
	// Batch is how many records one commit has; 0 stands for one commit a record,
	// as the farm makes them, but for so many more that there are 20,000 commits at
	// most.
	Batch int
	// Tended has it as it is after maintenance: with bitmaps and a commit graph.
	Tended bool
}

// The sizes that are measured. All benchmarks use these, so that each is made once.
// Tests use Small, or less. Large has fewer versions only because it takes long to
// make.
var (
	Small  = Size{Packages: 1_000, Archs: 2, Versions: 10}
	Medium = Size{Packages: 10_000, Archs: 2, Versions: 10}
	Large  = Size{Packages: 100_000, Archs: 2, Versions: 2}
)

// Measured are the sizes that a benchmark is to go through: Small and Medium, and
// Large where QUARRY_BENCH_LARGE is set.
func Measured() []Size {
	if os.Getenv("QUARRY_BENCH_LARGE") == "" {
		return []Size{Small, Medium}
	}
	return []Size{Small, Medium, Large}
}

func (s Size) whole() Size {
	if s.Archs == 0 {
		s.Archs = 2
	}
	s.Versions = max(1, s.Versions)
	if s.Batch == 0 {
		s.Batch = max(1, (s.Records()+19_999)/20_000)
	}
	return s
}

// Records is how many records, of successes and failures, are made.
func (s Size) Records() int {
	if s.Archs == 0 {
		s.Archs = 2
	}
	return s.Packages * s.Archs * max(1, s.Versions)
}

// Name is the name of the package i, counted from 0. They crowd together as
// Debian's 63,682 do: of a hundred, 8 begin with python3-, 7 with libghc-, 35
// more with lib, 3 with golang-.
func Name(i int) string {
	r := rand.New(rand.NewPCG(uint64(i), 7))
	b := make([]byte, 4+r.IntN(8))
	for j := range b {
		b[j] = 'a' + byte(r.IntN(26))
	}
	prefix := ""
	switch c := i % 100; {
	case c < 8:
		prefix = "python3-"
	case c < 15:
		prefix = "libghc-"
	case c < 50:
		prefix = "lib"
	case c < 53:
		prefix = "golang-"
	}
	return fmt.Sprintf("%s%s%d", prefix, b, i)
}

// Version is the version v of each package, counted from 0, e.g. 1.4.
func Version(v int) string { return fmt.Sprintf("1.%d", v) }

// Artifact is the digest that the artifact of a target has here. There is no such
// artifact.
func Artifact(pkg, version, arch string) string { return digest("artifact", pkg, version, arch) }

func digest(words ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	return hex.EncodeToString(sum[:])
}

// Fails reports whether the package i is one of those whose newest version has
// failed on the last architecture: one in twenty.
func Fails(i int) bool { return i%20 == 19 }

// Needs are the packages that the package i needs, by number: lower ones, so that
// there are no circles, the lowest most often, none that fails.
func Needs(i int) []int {
	r := rand.New(rand.NewPCG(uint64(i), 11))
	var out []int
	seen := map[int]bool{}
	for range min(i, r.IntN(9)) {
		f := r.Float64()
		n := int(float64(i) * f * f * f)
		if !seen[n] && !Fails(n) {
			seen[n] = true
			out = append(out, n)
		}
	}
	return out
}

// Outcome is the success of a build of the package i: 26 files, some needed
// packages. number is the build's. In its weight it is like a package of a
// distribution: 4 KiB of record, 5 KiB of files.
func Outcome(i, v int, arch string, number int64) *quarry.Outcome {
	pkg, version := Name(i), Version(v)
	r := rand.New(rand.NewPCG(uint64(number), uint64(i)))
	hexes := func(n int) string {
		b := make([]byte, n)
		for j := range b {
			b[j] = "0123456789abcdef"[r.IntN(16)]
		}
		return string(b)
	}
	seconds := func(most int64) time.Duration { return time.Duration(r.Int64N(most*1000)) * time.Millisecond }
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(number)*time.Second + seconds(1))
	commit := hexes(40)
	target := quarry.Target{Channel: Channel, Package: pkg, Version: version, Arch: arch}
	who := r.IntN(40)
	o := &quarry.Outcome{
		Build: quarry.Build{
			Number: number, Key: quarry.BuildKey(target, commit, ""), Arch: arch, Attempt: 1,
			Release: quarry.Release{
				Package: pkg, Version: version, Channel: Channel, Commit: commit, Time: start.Add(-time.Hour), Pushed: start.Add(-time.Minute),
				Packager: quarry.Packager{User: fmt.Sprintf("user%d", who), Name: fmt.Sprintf("Packager %d", who), Email: fmt.Sprintf("user%d@morphux.org", who),
					Key: "SHA256:uNiVztksCsDhcc0u9e8BrmkyZ1h1gDQ2aQrvjLQ" + fmt.Sprint(who)},
			},
		},
		Status: quarry.Succeeded,
		Info: quarry.Info{
			Description: "Tools and a library for " + pkg + ", of the kind that others need", Category: []string{"libs", "devel", "net", "admin", "text"}[r.IntN(5)],
			Recipe: digest("recipe", pkg, version),
		},
		Usage: quarry.Usage{PeakMemory: r.Int64N(1 << 30), PeakAnon: r.Int64N(1 << 29), User: seconds(400), Sys: seconds(40),
			Read: r.Int64N(1<<20) * 4096, Written: r.Int64N(1<<16) * 4096, PeakProcs: r.Int64N(90), PeakDisk: r.Int64N(1 << 30), SourceSize: r.Int64N(1 << 24)},
		Facts:    &quarry.Facts{DiskSize: r.Int64N(1<<12) * 4096, SizeBefore: 460_000_000, ABI: digest("abi", pkg, arch)},
		Artifact: &quarry.Artifact{SHA256: Artifact(pkg, version, arch), Size: r.Int64N(1 << 22)},
		Host: quarry.HostInfo{Builder: "farm1", Base: "sha256:" + digest("base", arch), Instance: "sha256:" + digest("instance", arch), Emulation: "native",
			Kernel: "6.1.0", Runtime: "runc", CPUs: 2, Quarry: "0.1.0", Memory: 4 << 30, Disk: 20 << 30, Processes: 4096},
		Started: start,
	}
	total := time.Duration(0)
	for _, name := range []string{quarry.StepPrepare, quarry.StepConfigure, quarry.StepMake, quarry.StepTest, quarry.StepInstall, quarry.StepExtract} {
		s := quarry.Step{Name: name, Wall: seconds(60), User: seconds(60), Sys: seconds(6), RSS: r.Int64N(1<<16) * 4096}
		total += s.Wall
		o.Steps = append(o.Steps, s)
	}
	o.Ended = start.Add(total)
	for _, n := range Needs(i) {
		o.Info.Needed = append(o.Info.Needed, Name(n))
		o.Deps = append(o.Deps, quarry.DepUsed{Package: Name(n), Version: version, Artifact: Artifact(Name(n), version, arch), ABI: digest("abi", Name(n), arch), Direct: true})
	}
	add := func(f quarry.File) { o.Facts.Files = append(o.Facts.Files, f); o.Facts.Size += f.Size }
	soname := "lib" + pkg + ".so.1"
	add(quarry.File{Path: "/usr/bin", Kind: quarry.KindDir, Mode: 0o755})
	add(quarry.File{Path: "/usr/bin/" + pkg, Kind: quarry.KindRegular, Class: quarry.ClassBinary, Mode: 0o755, Size: r.Int64N(1 << 20), SHA256: hexes(64),
		ELF: &quarry.ELF{Arch: arch, Type: "dyn", Interpreter: "/lib64/ld-linux-x86-64.so.2", Needed: []string{soname, "libc.so.6"}, BuildID: hexes(40), PIE: true, RELRO: "full", NX: true}})
	add(quarry.File{Path: "/usr/lib/lib" + pkg + ".so", Kind: quarry.KindSymlink, Mode: 0o777, Target: soname})
	add(quarry.File{Path: "/usr/lib/" + soname, Kind: quarry.KindRegular, Class: quarry.ClassShared, Mode: 0o755, Size: r.Int64N(1 << 20), SHA256: hexes(64),
		ELF: &quarry.ELF{Arch: arch, Type: "dyn", Soname: soname, Needed: []string{"libc.so.6"}, BuildID: hexes(40), Stripped: true, RELRO: "partial", NX: true}})
	for k := range 22 {
		add(quarry.File{Path: fmt.Sprintf("/usr/share/%s/file-%02d", pkg, k), Kind: quarry.KindRegular, Class: quarry.ClassOther, Mode: 0o644, Size: r.Int64N(1 << 16), SHA256: hexes(64)})
	}
	o.Facts.Libraries = []quarry.NeededLibrary{
		{Soname: "libc.so.6", Arch: arch, From: "base", Path: "/lib/x86_64-linux-gnu/libc.so.6", By: []string{"/usr/bin/" + pkg, "/usr/lib/" + soname}},
		{Soname: soname, Arch: arch, From: "package", Path: "/usr/lib/" + soname, By: []string{"/usr/bin/" + pkg}},
	}
	return o
}

// Failure is the outcome of a build of the package i that failed in make.
func Failure(i, v int, arch string, number int64) *quarry.Outcome {
	o := Outcome(i, v, arch, number)
	o.Status, o.Facts, o.Artifact = quarry.Failed, nil, nil
	o.Steps = o.Steps[:3]
	o.Steps[2].Status = 2
	o.Failure = &quarry.Failure{
		Step: quarry.StepMake, Cause: quarry.CauseExit, Message: "make ended with status 2", Status: 2, Command: "make", Reproduce: "quarry build " + o.Build.Package + " --arch " + arch,
		Class: "compiler", Error: "main.c:1:1: error: unknown type name 'foo'", Line: 40, Hint: "the compiler does not know a type: a header may be missing",
	}
	for k := range 40 {
		o.LogLines = append(o.LogLines, fmt.Sprintf("cc -O2 -c file-%02d.c -o file-%02d.o", k, k))
	}
	o.LogLines = append(o.LogLines, o.Failure.Error, "make: *** [Makefile:7: main.o] Error 1")
	return o
}
