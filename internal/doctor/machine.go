package doctor

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/internal/podman"
)

// memory compares what is free with what builds may use.
func memory(ctx context.Context, o *Options) Finding {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return failure(Warn, err, "mount /proc")
	}
	total, free := meminfo(data, "MemTotal"), meminfo(data, "MemAvailable")
	detail := fmt.Sprintf("%s of %s free", human.Size(free), human.Size(total))
	if swap := meminfo(data, "SwapTotal"); swap > 0 {
		detail += fmt.Sprintf(", %s of swap", human.Size(swap))
	}
	if o.Memory <= 0 {
		return ok("%s", detail)
	}
	detail += fmt.Sprintf("; a build may use %s, and %d run at once", human.Size(o.Memory), max(1, o.Workers))
	if total < o.Memory {
		return bad(Warn, "lower limits.memory, so that a build that wants too much is told so before the machine has none left", "%s", detail)
	}
	if free < 256<<20 {
		return bad(Warn, "end what uses it, or lower build.workers", "%s", detail)
	}
	return ok("%s", detail)
}

// meminfo is a value of /proc/meminfo in bytes; 0 when it is not there.
func meminfo(data []byte, key string) int64 {
	for line := range bytes.Lines(data) {
		if rest, found := bytes.CutPrefix(line, []byte(key+":")); found {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(string(rest)), " kB"), 10, 64)
			return n << 10
		}
	}
	return 0
}

// clock looks for a clock that is obviously wrong: records, logs and the age of
// instances go by it, and certificates of mirrors are refused by it.
func clock(ctx context.Context, o *Options) Finding {
	now := time.Now()
	detail := now.UTC().Format("2006-01-02 15:04:05 UTC")
	const cure = "set it: timedatectl set-ntp true, or date -s"
	// This program was not written in the future.
	if st, err := os.Stat(o.Guest); err == nil && now.Before(st.ModTime().Add(-24*time.Hour)) {
		return bad(Fail, cure, "it is %s here, which is before %s was installed", detail, o.Guest)
	}
	if now.Year() < 2024 {
		return bad(Fail, cure, "it is %s here, which it cannot be", detail)
	}
	var tx unix.Timex
	if state, err := unix.Adjtimex(&tx); err == nil && state != unix.TIME_ERROR && tx.Status&unix.STA_UNSYNC == 0 {
		detail += ", kept by NTP"
	}
	return ok("%s", detail)
}

// mmdebstrap is needed for nothing but to make bases of Debian.
func mmdebstrap(ctx context.Context, o *Options) Finding {
	path, err := podman.LookPath("mmdebstrap")
	if err != nil {
		return bad(Warn, "apt-get install mmdebstrap, or make bases with quarry images load", "it is not installed, so quarry images bootstrap makes no bases")
	}
	text, err := output(ctx, path, "--version")
	if err != nil {
		return bad(Warn, "reinstall mmdebstrap", "%s does not run: %v", path, err)
	}
	version, _ := atLeast(text, 0, 0)
	if _, err := podman.LookPath("arch-test"); err != nil && slices.ContainsFunc(o.Archs, foreign) {
		return bad(Warn, "apt-get install arch-test", "%s (%s), which asks arch-test about archs that are not this machine's", version, path)
	}
	return ok("%s (%s)", version, path)
}

func foreign(arch string) bool { return arch != podman.HostArch() }

// slirp4netns gives the commands of a setup their network, and nothing else.
func slirp4netns(ctx context.Context, o *Options) Finding {
	who := "no channel has a setup that runs commands"
	if len(o.Setups) > 0 {
		who = "the setup of " + strings.Join(o.Setups, ", ") + " has its network through it"
	}
	path, err := podman.LookPath("slirp4netns")
	if err != nil && len(o.Setups) == 0 {
		return ok("it is not installed, and not needed: %s", who)
	}
	if err != nil {
		return bad(Fail, "apt-get install slirp4netns", "it is not installed, and %s", who)
	}
	text, err := output(ctx, path, "--version")
	if err != nil {
		return bad(Fail, "reinstall slirp4netns", "%s does not run: %v", path, err)
	}
	version, _ := atLeast(text, 0, 0)
	return ok("%s (%s); %s", version, path, who)
}

// binfmt tells what the kernel was told of emulators.
func binfmt(ctx context.Context, o *Options) Finding {
	wanted := slices.ContainsFunc(o.Archs, foreign)
	entries, err := images.Binfmt()
	if err != nil && !wanted {
		return ok("%v, and nothing needs it", err)
	}
	if err != nil {
		// Each arch says below whether its programs run: in a container they may.
		return bad(Warn, "quarry doctor --fix", "%v", err)
	}
	var with, without []string
	for _, e := range entries {
		name, qemu := strings.CutPrefix(e.Name, "qemu-")
		if !qemu || !e.Enabled {
			continue
		}
		if strings.Contains(e.Flags, "F") {
			with = append(with, name)
		} else {
			without = append(without, name)
		}
	}
	detail := "enabled; no emulator is registered"
	if len(with) > 0 {
		detail = "enabled; emulators with flag F: " + strings.Join(with, ", ")
	}
	if len(without) > 0 {
		detail += "; without it, and so of no use in a container: " + strings.Join(without, ", ")
	}
	return ok("%s", detail)
}
