package results

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// Limits on what one record keeps, so that metadata stays small whatever a
// build prints.
const (
	maxLogLines = 200
	maxLogLine  = 1000 // bytes
	maxMessage  = 1000 // bytes
	maxCommand  = 8000 // bytes
	maxPaths    = 1000
	maxWarnings = 200
	maxBy       = 8
	maxExcerpt  = 20
	maxWidth    = 1 << 20 // jobs at one time
)

// NewRecord says in a record what an outcome has found. sbuSeconds is how long
// the farm's standard package takes, 0 when there is none. It fails for an
// outcome that cannot be recorded: an unfit name, no key, a state that is no
// end of a build.
func NewRecord(o *quarry.Outcome, sbuSeconds float64) (*Record, error) {
	if err := checkOutcome(o); err != nil {
		return nil, err
	}
	b := o.Build
	r := &Record{
		Schema: Schema, Status: o.Status,
		Package: b.Package, Version: b.Version, Arch: b.Arch, Channel: b.Channel,
		Source: b.Commit, Build: b.Number, Key: b.Key, Nonce: b.Nonce, Attempt: b.Attempt, Why: oneLine(b.Why, maxMessage),
		Without:     slices.Clone(b.Without),
		Description: oneLine(o.Info.Description, maxCommand), Category: oneLine(o.Info.Category, maxMessage),
		SourceTime: b.Time, Pushed: b.Pushed, Started: o.Started, Ended: o.Ended,
		Warnings: lines(o.Warnings, maxWarnings), LogSum: o.LogSum,
		Packager: b.Packager,
		Time:     times(o, sbuSeconds),
		Usage:    usage(o.Usage),
		Recipe: Recipe{
			Digest: o.Info.Recipe, Needed: o.Info.Needed, Recommended: o.Info.Recommended, Optional: o.Info.Optional, Provides: o.Info.Provides,
			Kernel: o.Info.Kernel, Groups: o.Info.Groups, Users: o.Info.Users, Files: o.Info.Files,
		},
		Dependencies: slices.Clone(o.Deps),
		Host:         Host(o.Host),
	}
	for _, s := range o.Steps {
		r.Steps = append(r.Steps, Step{
			Name: s.Name, Status: s.Status, Wall: s.Wall.Seconds(), User: s.User.Seconds(), Sys: s.Sys.Seconds(),
			RSS: s.RSS, Killed: oneLine(s.Killed, maxMessage), SlotSeconds: max(0, s.SlotTime.Seconds()),
		})
	}
	if o.Artifact != nil {
		r.Artifact, r.ArtifactSize = o.Artifact.SHA256, o.Artifact.Size
	}
	if f := o.Facts; f != nil {
		r.InstalledSize, r.ABI = f.Size, f.ABI
		r.Contents = contents(f)
		r.Libraries = libraries(f.Libraries)
	}
	if f := o.Failure; f != nil {
		r.Failure = &Failure{
			Step: oneLine(f.Step, maxMessage), Cause: f.Cause, Message: oneLine(f.Message, maxMessage), Status: f.Status,
			Command: cut(f.Command, maxCommand), Reproduce: cut(f.Reproduce, maxCommand),
			Paths: lines(f.Paths, maxPaths),
			Class: oneLine(f.Class, maxMessage), Error: oneLine(f.Error, maxMessage), Line: max(0, f.Line),
			Excerpt: excerpt(f.Excerpt), Hint: oneLine(f.Hint, maxMessage),
			Log: logTail(o.LogLines),
		}
	}
	// The record is normalised here, so that what was written compares equal to
	// what will be read, and the caller's values are not touched: clean copies.
	return r, r.clean()
}

func checkOutcome(o *quarry.Outcome) error {
	if o == nil {
		return fmt.Errorf("no outcome given: there is nothing to record")
	}
	b := o.Build
	if err := CheckTarget(b.Target()); err != nil {
		return fmt.Errorf("build %d cannot be recorded: %w", b.Number, err)
	}
	switch {
	case o.Status != quarry.Succeeded && o.Status != quarry.Failed:
		return fmt.Errorf("%v cannot be recorded: its outcome is %q, only succeeded and failed are facts about a package", b, o.Status)
	case o.Status == quarry.Succeeded && o.Failure != nil:
		return fmt.Errorf("%v cannot be recorded: it succeeded and has a failure", b)
	case o.Status == quarry.Failed && o.Failure == nil:
		return fmt.Errorf("%v cannot be recorded: it failed and does not say why", b)
	case !isHex(b.Key, 64):
		return fmt.Errorf("%v cannot be recorded: its key %.70q is not 64 hex digits", b, b.Key)
	case !isHex(b.Commit, 40) && !isHex(b.Commit, 64):
		return fmt.Errorf("%v cannot be recorded: its source commit %.70q is not 40 hex digits", b, b.Commit)
	case b.Number < 0:
		return fmt.Errorf("%v cannot be recorded: its number is negative", b)
	}
	return nil
}

func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for i := 0; i < n; i++ {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// times sums up the steps. The unit of build time leaves the tests out, as the
// Standard Build Unit of Linux From Scratch does, and the farm's own steps.
func times(o *quarry.Outcome, sbuSeconds float64) Times {
	var t Times
	var steps, tests time.Duration
	if total := o.Ended.Sub(o.Started); total > 0 && !o.Started.IsZero() {
		t.Total = total.Seconds()
	}
	for _, s := range o.Steps {
		if s.Name == quarry.StepPrepare || s.Name == quarry.StepExtract {
			continue
		}
		steps += s.Wall
		t.User += s.User.Seconds()
		t.Sys += s.Sys.Seconds()
		switch s.Name {
		case quarry.StepConfigure:
			t.Configure += s.Wall.Seconds()
		case quarry.StepMake:
			t.Make += s.Wall.Seconds()
		case quarry.StepTest:
			t.Test += s.Wall.Seconds()
			tests += s.Wall
		case quarry.StepInstall:
			t.Install += s.Wall.Seconds()
		}
	}
	t.Steps = steps.Seconds()
	if sbuSeconds > 0 {
		t.SBU, t.SBUSeconds = (steps-tests).Seconds()/sbuSeconds, sbuSeconds
	}
	return t
}

func usage(u quarry.Usage) Usage {
	r := Usage{
		PeakMemory: u.PeakMemory, PeakAnon: u.PeakAnon, User: u.User.Seconds(), Sys: u.Sys.Seconds(),
		Read: u.Read, Written: u.Written, PeakProcs: u.PeakProcs, PeakDisk: u.PeakDisk, SourceSize: u.SourceSize,
	}
	if u.SlotTime > 0 {
		r.SlotSeconds, r.PeakJobs, r.Efficiency, r.Forced = u.SlotTime.Seconds(), int64(max(0, u.PeakJobs)), u.Efficiency(), oneLine(u.Forced, maxMessage)
		if u.Width >= 1 && u.Width <= maxWidth { // and is a number
			r.Width = u.Width
		}
	}
	return r
}

func contents(f *quarry.Facts) *Contents {
	c := &Contents{DiskSize: f.DiskSize, SizeBefore: f.SizeBefore, Warnings: lines(f.Warnings, maxWarnings)}
	if f.SizeBefore > 0 {
		c.SizeAfter = f.SizeBefore + f.Size
	}
	for _, file := range f.Files {
		if file.Kind == quarry.KindRegular {
			c.Files++
		}
		if file.Class != "" {
			if c.Classes == nil {
				c.Classes = make(map[string]int64)
			}
			c.Classes[string(file.Class)]++
		}
		if file.ELF != nil && file.ELF.Soname != "" {
			c.Sonames = append(c.Sonames, Raw(file.ELF.Soname))
		}
	}
	slices.Sort(c.Sonames)
	c.Sonames = slices.Compact(c.Sonames)
	return c
}

func libraries(ls []quarry.NeededLibrary) []Library {
	var out []Library
	for _, l := range ls {
		out = append(out, Library{
			Soname: Raw(l.Soname), Arch: l.Arch, From: l.From, Path: Raw(l.Path), Owner: l.Owner,
			Count: int64(len(l.By)), By: raws(l.By[:min(len(l.By), maxBy)]),
		})
	}
	return out
}

// lines keeps the first max lines and says how many more there were.
func lines(ss []string, max int) []string {
	var out []string
	for i, s := range ss {
		if i == max {
			return append(out, fmt.Sprintf("and %d more", len(ss)-max))
		}
		out = append(out, oneLine(s, maxMessage))
	}
	return out
}

// excerpt keeps the lines around an error as they stand below each other.
func excerpt(ss []string) []string {
	var out []string
	for _, s := range ss[:min(len(ss), maxExcerpt)] {
		out = append(out, cut(strings.TrimRight(strings.ToValidUTF8(s, "\uFFFD"), "\r\n"), maxLogLine))
	}
	return out
}

// logTail keeps the last lines of a log as they were printed, colours and all,
// but without line ends, and each no longer than a person would read.
func logTail(ss []string) []string {
	ss = ss[max(0, len(ss)-maxLogLines):]
	var out []string
	for _, s := range ss {
		out = append(out, cut(strings.TrimRight(strings.ToValidUTF8(s, "\uFFFD"), "\r\n"), maxLogLine))
	}
	return out
}
