package events

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
)

var steps = []string{quarry.StepPrepare, quarry.StepBefore, quarry.StepPatches, quarry.StepConfigure, quarry.StepMake,
	quarry.StepTest, quarry.StepInstall, quarry.StepAfter, quarry.StepExtract}

// text says in one line how a build stands, e.g. zlib 1.3.1 x86_64 failed in make:
// missing header zconf.h (build 17, alice).
func text(b quarry.Build, step bool, channel string) string {
	what, reason := string(b.State), oneLine(b.Reason, maxText)
	switch b.State {
	case quarry.Waiting:
		what = "waits"
		reason = strings.TrimPrefix(reason, "waits ")
		if rest, ok := strings.CutPrefix(reason, "for "); ok {
			what, reason = "waits for "+rest, ""
		}
	case quarry.Queued:
		what = "is queued"
	case quarry.Running:
		what, reason = "is started", ""
		if b.Attempt > 1 {
			what = fmt.Sprintf("is started, try %d", b.Attempt)
		}
		if step {
			what = "is in " + b.Step
		}
	case quarry.Recording:
		what = "is being recorded"
	case quarry.Succeeded:
		what += " in " + human.Duration(b.Ended.Sub(b.Started))
	case quarry.Failed:
		if i := slices.IndexFunc(steps, func(s string) bool { return strings.HasPrefix(reason, s+": ") || strings.HasPrefix(reason, s+" ") }); i >= 0 {
			what = "failed in " + steps[i]
			reason = strings.TrimPrefix(reason, steps[i]+": ")
			// The error says more than the status with which the step ended for it.
			if end, why, ok := strings.Cut(reason, ": "); ok && strings.HasPrefix(end, steps[i]+" ended with status ") {
				reason = why
			}
		}
	case quarry.Cancelled:
		if rest, ok := strings.CutPrefix(reason, "cancelled by "); ok {
			what, reason = "was cancelled by "+rest, ""
		}
	case quarry.Errored:
		what = "was given up"
	case quarry.Obsolete:
		what = "is obsolete"
	}
	after := fmt.Sprintf(" (build %d", b.Number)
	if b.Channel != channel {
		after += " on " + b.Channel
	}
	if b.Group != "" {
		after += ", group " + b.Group
	}
	if by := cmp.Or(b.Packager.User, b.Packager.Name); by != "" {
		after += ", " + by
	}
	after = oneLine(after, maxText/2) + ")"
	line := fmt.Sprintf("%s %s %s %s", b.Package, b.Version, b.Arch, what)
	if reason != "" {
		line += ": " + reason
	}
	return oneLine(line, maxText-len(after)-1) + " " + strings.TrimSpace(after)
}
