package runner_test

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/images"
)

// timed is what GNU time -v says of one command.
type timed struct {
	cpu     time.Duration // user and system
	rss     int64         // bytes, of the largest process
	outputs int64         // bytes
}

func readTimed(t *testing.T, file string) timed {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	number := func(name string) float64 {
		m := regexp.MustCompile(regexp.QuoteMeta(name) + `: ([0-9.]+)\n`).FindSubmatch(text)
		if m == nil {
			t.Fatalf("time does not say %q:\n%s", name, text)
		}
		n, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return timed{
		cpu:     time.Duration((number("User time (seconds)") + number("System time (seconds)")) * float64(time.Second)),
		rss:     int64(number("Maximum resident set size (kbytes)")) << 10,
		outputs: int64(number("File system outputs")) * 512, // getrusage(2): blocks of 512 bytes
	}
}

// TestAgreesWithTime: what a build is said to use is what time -v says of the
// same commands, within 5%. Both look at one run, so nothing depends on how fast
// it is; there is enough work that 5% are far more than what the shells around
// it take.
func TestAgreesWithTime(t *testing.T) {
	path, err := exec.LookPath("time")
	if err != nil {
		t.Fatal("GNU time is missing: apt-get install time")
	}
	program, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const burn = `perl -e '1 while (times)[0] + (times)[1] < 5'`
	f := newFarm(t)
	got := map[string]timed{}
	var counted, disk bool
	res, _ := f.succeed(t, attempt{
		pkg: pkg{
			compilation: map[string]any{
				"make":    "./time.sh -v -o make.time " + burn,
				"test":    `./time.sh -v -o test.time perl -e '$x = "x" x (200 << 20)'`,
				"install": `./time.sh -v -o install.time dd if=/dev/zero of=big bs=1M count=96 oflag=direct 2>&1 && ` + burn + " && mkdir -p $DESTDIR/usr",
			},
			files: map[string]string{"srcs/time.sh": string(program)}, // of that name it may be executed
		},
		look: func(ws *images.Workspace) {
			for _, step := range []string{"make", "test", "install"} {
				got[step] = readTimed(t, filepath.Join(ws.Dir, "src/srcs", step+".time"))
			}
			now, _ := ws.Sample()
			counted = now.Written.Known
			var st unix.Statfs_t
			disk = unix.Statfs(ws.Dir, &st) == nil && st.Type != unix.TMPFS_MAGIC
		},
	})
	near := func(what string, is, want float64) {
		t.Helper()
		t.Logf("%s: %.4g, of time %.4g", what, is, want)
		if math.Abs(is-want) > want*0.05 {
			t.Errorf("%s is %.4g, and time says %.4g", what, is, want)
		}
	}
	steps := map[string]quarry.Step{}
	var cpu time.Duration
	for _, s := range res.Steps {
		steps[s.Name] = s
		cpu += s.User + s.Sys
	}
	near("CPU of make", (steps["make"].User + steps["make"].Sys).Seconds(), got["make"].cpu.Seconds())
	near("largest process of test", float64(steps["test"].RSS), float64(got["test"].rss))
	if got["test"].rss < 200<<20 {
		t.Errorf("200 MiB were touched, and time saw %d bytes", got["test"].rss)
	}
	u := res.Usage
	near("CPU of the workspace, against its steps'", (u.User + u.Sys).Seconds(), cpu.Seconds())
	if u.PeakMemory < got["test"].rss/100*95 || u.PeakAnon > u.PeakMemory/100*105 {
		t.Errorf("peak memory %d, anonymous %d, and one process had %d", u.PeakMemory, u.PeakAnon, got["test"].rss)
	}
	if u.PeakProcs < 2 || u.PeakDisk < 96<<20 {
		t.Errorf("peak processes %d, peak disk %d", u.PeakProcs, u.PeakDisk)
	}
	t.Logf("io is counted here: %v, on a disk: %v", counted, disk)
	if counted && disk {
		near("bytes written", float64(u.Written), float64(got["install"].outputs))
	}
}
