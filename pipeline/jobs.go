package pipeline

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/jobs"
	"github.com/Morphux/quarry/runner"
)

// slots are what an attempt has of the machine's, and when it had them. With none
// to share out, all of it does nothing.
type slots struct {
	share *jobs.Share
	step  string
	had   time.Duration             // when the step began
	steps map[string]time.Duration  // slot time of those that have ended
	last  atomic.Pointer[jobs.Stat] // what it had when it gave all back
}

// slow is how long an attempt waits for its first slot before its log says so.
const slow = time.Second

// begin waits until the machine has a slot for the attempt.
func (p *Pipeline) begin(ctx context.Context, in *Input, log io.Writer) (*slots, error) {
	if p.Jobs == nil {
		return &slots{}, nil
	}
	b := jobs.Build{Number: in.Build.Number, Attempt: in.Build.Attempt, Name: in.Build.Package + "-" + in.Build.Version, Key: in.Build.Key,
		Max: in.Recipe.Ext.Jobs, Weight: in.Weight, Width: in.Width}
	if in.Name != "" { // the number is another's
		b.Number, b.Name = 0, in.Name+" "+b.Name
	}
	begun, said := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(said)
		select {
		case <-time.After(slow):
			fmt.Fprintln(log, "==> quarry: waits for a slot: other builds have all that the machine has for builds just now")
		case <-begun:
		}
	}()
	share, err := p.Jobs.Begin(ctx, b)
	close(begun)
	<-said
	if err != nil {
		return nil, err
	}
	s := &slots{share: share, steps: map[string]time.Duration{}}
	tell := in.OnStep
	in.OnStep = func(step string) { s.at(step); tell(step) }
	return s, nil
}

// at notes that a step begins, "" for none, and with it that another has ended.
func (s *slots) at(step string) {
	now := s.share.Now().SlotTime
	if s.step != "" {
		s.steps[s.step] += now - s.had
	}
	s.step, s.had = step, now
}

// give has a job run with what the machine has for it.
func (s *slots) give(job *runner.Job) {
	if s.share != nil {
		job.Slots, job.Jobs = s.share, s.share.Ceiling()
	}
}

// look tells what the attempt has and uses; nil when nobody knows.
func (s *slots) look() func() (granted, used int) {
	if s.share == nil {
		return nil
	}
	return func() (int, int) {
		n := s.share.Now()
		if last := s.last.Load(); last != nil {
			n = *last
		}
		return n.Granted, n.Used
	}
}

// end gives all back. Nothing of the build may run any more.
func (s *slots) end() {
	if s.share != nil {
		s.share.End()
	}
}

// fill notes in an outcome what the attempt had, and gives all back.
func (s *slots) fill(out *quarry.Outcome) {
	if s.share == nil {
		return
	}
	s.at("")
	last := s.share.Now()
	s.last.Store(&last)
	sum := s.share.End()
	u := &out.Usage
	u.SlotTime, u.PeakJobs, u.Width, u.Forced = sum.SlotTime, sum.Peak, sum.Width, cmp.Or(sum.Forced, u.Forced)
	for i := range out.Steps {
		out.Steps[i].SlotTime = s.steps[out.Steps[i].Name]
	}
}
