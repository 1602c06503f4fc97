package recipe

import (
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// Bounds of what the quarry object may ask for. They only refuse what cannot be
// meant; how much a build really gets is the farm's to say.
const (
	MinMemory    = 16 << 20 // bytes
	MaxMemory    = 1 << 44
	MaxProcesses = 1 << 20
	MaxJobs      = 4096
	MinTime      = time.Second
	MaxTime      = 14 * 24 * time.Hour
)

// timedSteps are the steps that may have a time of their own.
var timedSteps = []string{
	quarry.StepBefore, quarry.StepPatches, quarry.StepConfigure, quarry.StepMake,
	quarry.StepTest, quarry.StepInstall, quarry.StepAfter,
}

func (rd *reader) extension(n *node) {
	e := &rd.r.Ext
	rd.fields(n, append(rd.conditions(&e.Conditions),
		field{"provides", rd.provides},
		field{"when", rd.when},
		field{"archs", rd.archs},
		field{"noarch", rd.flag(&e.Noarch)},
		field{"network", rd.flag(&e.Network)},
		field{"tests_may_fail", rd.flag(&e.TestsMayFail)},
		field{"directory", rd.directory},
		field{"memory", rd.size(&e.Memory)},
		field{"disk", rd.size(&e.Disk)},
		field{"log", rd.size(&e.Log)},
		field{"processes", rd.count(&e.Processes, MaxProcesses)},
		field{"jobs", rd.count(&e.Jobs, MaxJobs)},
		field{"timeouts", rd.timeouts},
	)...)
	if e.Noarch && len(e.Archs) > 0 {
		rd.fail(n, `gives both noarch and archs: keep one of them`)
	}
}

func (rd *reader) archs(n *node) {
	e := &rd.r.Ext
	if rd.items(n, MaxArchs, func(n *node) {
		s, ok := rd.str(n, MaxText)
		if !ok {
			return
		}
		err := quarry.CheckArch(s)
		switch {
		case err != nil:
			rd.fail(n, "does not fit: %v", err)
		case s == quarry.Noarch:
			rd.fail(n, `is noarch: give "noarch": true instead of archs`)
		case slices.Contains(e.Archs, s):
			rd.warn(n, "names %s again", s)
		default:
			e.Archs = append(e.Archs, s)
		}
	}) && len(n.members) == 0 {
		// Archs being empty would say all, which is the opposite of the list.
		rd.fail(n, "is empty, so nothing would be built: name an arch, or leave the list out for all")
	}
}

func (rd *reader) directory(n *node) {
	s, ok := rd.str(n, MaxText)
	if !ok {
		return
	}
	if !fs.ValidPath(s) || strings.Contains(s, `\`) {
		rd.fail(n, "is %q: give a path below the repository, e.g. srcs/unix, without / at either end and without . and ..", shorten(s))
		return
	}
	rd.r.Ext.Directory = s
}

// count reads a whole number from 1 to most.
func (rd *reader) count(to *int, most int) func(*node) {
	return func(n *node) {
		if !rd.want(n, number) {
			return
		}
		v, err := strconv.Atoi(n.text)
		if err != nil || v < 1 || v > most {
			rd.fail(n, "is %s: give a whole number from 1 to %d", shorten(n.text), most)
			return
		}
		*to = v
	}
}

// size reads bytes: a number, or a string such as "512M" (powers of 1024).
func (rd *reader) size(to *int64) func(*node) {
	return func(n *node) {
		if n.kind != number && n.kind != text {
			rd.fail(n, `is %s: give a size, e.g. "2G"`, n.kind)
			return
		}
		v, ok := parseSize(n.text)
		least, most := int64(1), int64(math.MaxInt64)
		if n.key == "memory" {
			least, most = MinMemory, MaxMemory
		}
		if !ok || v < least || v > most {
			rd.fail(n, `is %q: give a whole number of bytes, or one with K, M, G or T, e.g. "2G" (memory is 16M to 16T)`, shorten(n.text))
			return
		}
		*to = v
	}
}

func parseSize(s string) (int64, bool) {
	shift := 0
	if i := strings.IndexByte("KMGT", last(s)); i >= 0 {
		shift = 10 * (i + 1)
		s = s[:len(s)-1]
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v < 0 || s[0] == '+' || v > math.MaxInt64>>shift {
		return 0, false
	}
	return v << shift, true
}

// last is the last byte of s, or one that no size ends in.
func last(s string) byte {
	if s == "" {
		return 0
	}
	return s[len(s)-1]
}

func (rd *reader) timeouts(n *node) {
	e := &rd.r.Ext
	table := []field{
		{"total", rd.duration(func(d time.Duration) { e.Total = d })},
		{"step", rd.duration(func(d time.Duration) { e.Step = d })},
		{"silence", rd.duration(func(d time.Duration) { e.Silence = d })},
	}
	for _, step := range timedSteps {
		table = append(table, field{step, rd.duration(func(d time.Duration) {
			if e.Steps == nil {
				e.Steps = map[string]time.Duration{}
			}
			e.Steps[step] = d
		})})
	}
	rd.fields(n, table...)
}

// duration reads a string such as "90m" or "1h30m".
func (rd *reader) duration(set func(time.Duration)) func(*node) {
	return func(n *node) {
		s, ok := rd.str(n, 64)
		if !ok {
			return
		}
		d, err := time.ParseDuration(s)
		if err != nil || d < MinTime || d > MaxTime {
			rd.fail(n, `is %q: give a time from 1s to 336h, e.g. "90m" or "1h30m"`, s)
			return
		}
		set(d)
	}
}
