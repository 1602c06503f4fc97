package runner_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/testtools"
	"github.com/Morphux/quarry/runner"
	"github.com/Morphux/quarry/runner/guest"
	"golang.org/x/sys/unix"
)

// inMake is a package that does something in make.
func inMake(line string) pkg { return pkg{compilation: map[string]any{"make": line + " ;"}} }

// TestHostile builds packages that mean no good. Each ends in a failure of the
// right cause, soon, and the farm goes on: the same store builds on after each.
func TestHostile(t *testing.T) {
	f := newFarm(t)
	small := images.Limits{Memory: 256 << 20, Pids: 64, NProc: 1000, Disk: 128 << 20}
	for _, tt := range []struct {
		name   string
		make   string
		limits runner.Limits
		spec   images.Limits
		cause  quarry.Cause
		says   string
	}{
		{"endless loop", "while :; do :; done", runner.Limits{Step: time.Second}, small, quarry.CauseTime, "make took longer than 1s"},
		{"too long in all", "sleep 1000", runner.Limits{Total: 5 * time.Second}, small, quarry.CauseTime, "the build took longer than 5s, and was in make then"},
		{"silence", "echo x; sleep 1000", runner.Limits{Silence: time.Second}, small, quarry.CauseSilence, "make printed nothing for 1s"},
		{"endless output", "yes", runner.Limits{Log: 4 << 20}, small, quarry.CauseLog, "the build printed more than 4.0 MiB"},
		{"endless line", "cat /dev/zero", runner.Limits{Log: 4 << 20}, small, quarry.CauseLog, "the build printed more than 4.0 MiB"},
		{"fork storm", `perl -e 'while (1) { fork }'`, runner.Limits{Step: 6 * time.Second}, small, quarry.CauseTime, "and ran into its limit of 64 processes before"},
		{"fork storm that notices", "i=0; while [ $i -lt 200 ]; do sleep 100 & i=$((i+1)); done", runner.Limits{}, small, quarry.CauseProcs, "make needed more than the 64 processes"},
		{"storm of orphans", "i=0; while [ $i -lt 5000 ]; do (true &) ; i=$((i+1)); done; exit 4", runner.Limits{}, images.Limits{Pids: 2000}, quarry.CauseExit, "make ended with status 4"},
		{"much memory", `perl -e '$x = "x" x (600 << 20); print length $x'`, runner.Limits{}, small, quarry.CauseMemory, "make needed more than the 256.0 MiB of memory"},
		{"much memory in a child", `perl -e '$x = "x" x (600 << 20)' || exit 5`, runner.Limits{}, small, quarry.CauseMemory, "and ended with status 5"},
		{"much memory in many", `for i in 1 2 3 4 5 6 7 8 9; do (perl -e '$x = "x" x (60 << 20); sleep 1000' || echo >dead) & done; until [ -e dead ]; do sleep 0.1; done; exit 6`, runner.Limits{}, small, quarry.CauseMemory, ""},
		{"much memory with process 1 first in line", `echo 1000 >/proc/1/oom_score_adj; echo 0 >/proc/self/oom_score_adj; perl -e '$x = "x" x (600 << 20)'`, runner.Limits{}, small, quarry.CauseMemory, ""},
		{"memory as files", "cat /dev/zero >/dev/shm/x; exit 7", runner.Limits{}, images.Limits{Memory: 128 << 20, Shm: 1 << 30}, quarry.CauseMemory, ""},
		{"large file", "exec cat /dev/zero >big", runner.Limits{}, small, quarry.CauseDisk, "make wrote a file of more than 128.0 MiB"},
		{"many files", `i=0; while :; do head -c 20000000 /dev/zero >/var/f$i; i=$((i+1)); done`, runner.Limits{Step: 10 * time.Minute}, small, quarry.CauseDisk, "make needed more than the 128.0 MiB of disk"},
		{"ends its parent", "kill -9 $PPID; kill -9 1; kill -9 -1; exit 3", runner.Limits{}, small, quarry.CauseExit, "make ended with"},
		{"removes everything", "rm -rf --no-preserve-root / 2>/dev/null; exit 3", runner.Limits{}, small, quarry.CauseExit, "make ended with"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			fail, out := f.fails(t, attempt{pkg: inMake(tt.make), limits: tt.limits, spec: images.Spec{Limits: tt.spec}}, "make", tt.cause)
			if !strings.Contains(fail.Message, tt.says) {
				t.Errorf("%q, want %q\n%s", fail.Message, tt.says, tail(out))
			}
			if d := time.Since(began); d > 10*time.Minute {
				t.Errorf("it took %v", d)
			}
			if tt.limits.Log > 0 && int64(len(out)) > tt.limits.Log+10_000 {
				t.Errorf("the log has %d bytes", len(out))
			}
			f.succeed(t, attempt{})
		})
	}
}

// TestSurvivedHunger loses a process for want of memory and goes on.
func TestSurvivedHunger(t *testing.T) {
	f := newFarm(t)
	res, _ := f.succeed(t, attempt{pkg: inMake(`perl -e '$x = "x" x (600 << 20)' || true`), spec: images.Spec{Limits: images.Limits{Memory: 256 << 20}}})
	if len(res.Warnings) != 1 || !strings.HasPrefix(res.Warnings[0], "make succeeded though the kernel ended 1 of its processes") {
		t.Errorf("warnings %q", res.Warnings)
	}
	// It is forgotten by the next step.
	p := inMake(`perl -e '$x = "x" x (600 << 20)' || true`)
	p.compilation["install"] = "exit 3 ;"
	f.fails(t, attempt{pkg: p, spec: images.Spec{Limits: images.Limits{Memory: 256 << 20}}}, "install", quarry.CauseExit)
}

// TestGuestStuck stops the guest itself, as a machine does that swaps itself to
// death, so that it keeps no limit of time.
func TestGuestStuck(t *testing.T) {
	f := newFarm(t)
	in := make(chan *images.Workspace, 1)
	// Before the step, whose end by the guest could come first.
	stop := func(step string) {
		if step != quarry.StepMake {
			return
		}
		pid, err := strconv.Atoi(strings.Split((<-in).Root(), "/")[2])
		if err == nil {
			err = unix.Kill(pid, unix.SIGSTOP)
		}
		if err != nil {
			t.Errorf("stop the guest: %v", err)
			return
		}
		testtools.Until(t, func() string {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			if _, state, _ := strings.Cut(string(stat), ") "); err != nil || state == "" || state[0] != 'T' {
				return fmt.Sprintf("the guest is not stopped: %s, %v", stat, err)
			}
			return ""
		})
	}
	fail, _ := f.fails(t, attempt{pkg: inMake("sleep 1000"), limits: runner.Limits{Step: time.Second},
		change: func(j *runner.Job) { j.SetPatience(time.Second); j.OnStep = stop },
		began:  func(ws *images.Workspace, _ *log) { in <- ws },
	}, "make", quarry.CauseTime)
	if !strings.Contains(fail.Message, "the workspace was killed") {
		t.Errorf("failure %+v", *fail)
	}
}

// TestOutputPassesThrough prints what looks like frames, like the farm's own
// words, and what terminals obey.
func TestOutputPassesThrough(t *testing.T) {
	f := newFarm(t)
	want := string(guest.AppendFrame(nil, guest.KindReply, []byte(`{"id":5,"status":0}`))) +
		"\x00\x1b[2J\x1b]0;title\a\xff\xfe\r\n==> install: ended with status 0 in 1 ms\n" + strings.Repeat("long", 100_000) + "end without newline"
	p := inMake("cat bytes; exit 9")
	p.files = map[string]string{"srcs/bytes": want}
	fail, out := f.fails(t, attempt{pkg: p}, "make", quarry.CauseExit)
	if fail.Status != 9 || !strings.Contains(out, "\n"+want+"\n==> make: ended with status 9 in ") {
		t.Errorf("failure %+v, log of %d bytes: %s", *fail, len(out), tail(out))
	}
}

// TestStagingReplaced puts other things where the farm will read.
func TestStagingReplaced(t *testing.T) {
	f := newFarm(t)
	for _, install := range []string{
		"rm -rf /quarry/dest; ln -s /etc /quarry/dest", "rm -rf /quarry/dest; echo >/quarry/dest", "rm -rf /quarry/dest", "rm -rf /quarry/*",
	} {
		f.fails(t, attempt{pkg: pkg{compilation: map[string]any{"install": install + " ;"}}}, "install", quarry.CauseOutput)
	}
	if fail, _ := f.fails(t, attempt{pkg: pkg{compilation: map[string]any{"make": "cd /; rm -rf /quarry/src; ln -s / /quarry/src"}}}, "install", quarry.CauseExit); !strings.Contains(fail.Message, "the working directory /quarry/src/srcs is gone") {
		t.Errorf("failure %+v", *fail)
	}
}

// TestPrison tries the walls of a workspace from inside. Every line that gets
// through prints its name; some ends are the workspace's own business (a mount
// refused by seccomp or by want of a capability), the effect is what counts.
func TestPrison(t *testing.T) {
	f := newFarm(t)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("the host's secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := inMake("sh probe.sh " + secret)
	p.files = map[string]string{"srcs/probe.sh": `
cat /proc/1/environ && echo GOT environ
for fd in /proc/1/fd/*; do readlink $fd && echo GOT link of $fd; done
cat /proc/1/maps && echo GOT maps
ls /proc/1/root/ && echo GOT root
ls /proc/1/cwd/ && echo GOT cwd
dd if=/proc/1/mem bs=1 count=1 && echo GOT mem
for fd in 0 1 2 3 4 5 6 7 8 9; do echo x >/proc/1/fd/$fd && echo GOT fd $fd; done
ls -l /quarry | grep -q sock && echo GOT socket name
perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un("/quarry/ctl.sock")) and print "GOT socket\n"'
perl -e 'print "GOT ptrace $_\n" for grep { syscall(101, $_, 1, 0, 0) == 0 } 16, 0x4206'
perl -e 'my $p = syscall(434, 1, 0); if ($p >= 0) { print "GOT pidfd_getfd\n" if grep { syscall(438, $p, $_, 0) >= 0 } 0..20 }'
perl -e 'my $b = "x" x 64; my $l = pack("PQ", $b, 8); my $r = pack("QQ", 0x400000, 8); print "GOT process_vm_readv\n" if syscall(310, 1, $l, 1, $r, 1, 0) > 0'
mount -t tmpfs none /mnt && echo GOT mount
mount -o remount,rw / && echo GOT remount
mount -o remount,rw /.quarry/guest && echo GOT remount guest
mount --bind / /mnt && echo GOT bind
umount /quarry && echo GOT umount
umount /proc && echo GOT umount proc
echo x >/.quarry/guest && echo GOT guest
mv /.quarry/guest /.quarry/g && echo GOT guest moved
mknod /tmp/sda b 8 0 && echo GOT mknod
mknod /quarry/src/null c 1 3 && echo GOT mknod
unshare -U true && echo GOT userns
unshare -m true && echo GOT mountns
unshare -r sh -c 'mount -t tmpfs none /mnt' && echo GOT userns mount
chroot / true && echo GOT chroot
nsenter -t 1 -m true && echo GOT nsenter
cat "$1" && echo GOT the host file
perl -MSocket -e 'socket(S, AF_INET, SOCK_STREAM, 0); connect(S, sockaddr_in(53, inet_aton("8.8.8.8"))) and print "GOT network\n"; print "GOT address $_" for grep { !/^\s*lo:/ && /:/ } do { open F, "/proc/net/dev"; <F> }'
perl -MSocket -e 'socket(S, AF_INET, SOCK_RAW, 1) and print "GOT raw\n"'
hostname x && echo GOT hostname
date -s @0 && echo GOT clock
dmesg >/dev/null && echo GOT dmesg
echo 1 >/proc/sys/kernel/panic && echo GOT sysctl
echo b >/proc/sysrq-trigger && echo GOT sysrq
echo '|/tmp/x' >/proc/sys/kernel/core_pattern && echo GOT core_pattern
echo 1000 >/proc/sys/user/max_user_namespaces && echo GOT user ns sysctl
modprobe loop && echo GOT modprobe
insmod /x && echo GOT insmod
kill -9 1; kill -STOP 1; kill -SEGV 1; kill -34 1; kill -32 1
ls -d /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null | while read f; do echo $$ >"$f" && mkdir "$(dirname "$f")/x" && echo GOT cgroup; done
echo '* * * * * root id' >/proc/1/root/etc/crontab && echo GOT crontab
setpriv --no-new-privs true; grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd):' /proc/self/status
echo $(id -u) over; exit 0
`}
	_, out := f.succeed(t, attempt{pkg: p})
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "GOT ") {
			t.Errorf("a build %s", line)
		}
	}
	for _, want := range []string{"\n0 over\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("the log does not say %q:\n%s", want, out)
		}
	}
	if b, err := os.ReadFile(secret); err != nil || string(b) != "the host's secret" {
		t.Errorf("the host's file: %q %v", b, err)
	}
}

// TestLimitsOfOneProcess shows what a single process may have.
func TestLimitsOfOneProcess(t *testing.T) {
	f := newFarm(t)
	_, out := f.succeed(t, attempt{pkg: inMake("ulimit -a; cat /proc/self/oom_score_adj; cat /proc/self/cgroup | head -3"),
		spec: images.Spec{Limits: images.Limits{Pids: 77, NoFile: 512, Disk: 64 << 20}}})
	for _, want := range []string{"process", "154", "512", fmt.Sprint(64 << 20 / 512), "\n500\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("the log does not say %q:\n%s", want, out)
		}
	}
}
