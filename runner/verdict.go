package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/runner/guest"
	"golang.org/x/sys/unix"
)

// step runs one step and judges how it ended.
func (r *run) step(ctx context.Context, s step) error {
	r.job.OnStep(s.name)
	r.at, r.ran = s, 0
	for _, c := range s.cmds {
		r.log.farm("%s: %s", s.name, human.Safe(typed(c), false))
	}
	dir := s.dir
	if dir == "" {
		dir = r.dir
	}
	wall, total := r.wall(s.name)
	began := time.Now()
	shared, told := r.sharing(s)
	extra := slices.Concat(told, s.env)
	if r.job.Slots != nil {
		r.job.Slots.Step(s.parallel)
		extra = slices.Concat(r.job.Slots.Env(), extra)
	}
	out := &output{left: r.logLeft}
	if shared != nil {
		r.watchJobs(s, out)
	}
	reply, err := r.guest.ask(ctx, guest.Request{Op: guest.OpRun, Run: &guest.Run{
		Commands: s.cmds, Dir: dir, Env: r.environment(extra),
		Wall: wall, Silence: r.limits.Silence, Log: r.logLeft,
		Compat: r.ws.Emulation == "compat", Jobserver: shared,
	}}, nil, wall+r.patience(), out)
	took := time.Since(began)
	r.logLeft = out.left
	if err != nil {
		r.result.Steps = append(r.result.Steps, quarry.Step{Name: s.name, Status: 137, Wall: took})
		return r.lost(ctx, s.name, err)
	}
	r.tellForced(s)
	r.ran = reply.Command
	if reply.Error != "" {
		return r.unable(s.name, reply.Error)
	}
	cpus := time.Duration(max(1, int(r.ws.Limits.CPUs+0.999)))
	done := quarry.Step{
		Name: s.name, Status: reply.Status,
		// The guest's clock is as good as this one, unless somebody sits in it.
		Wall: min(reply.Wall, took), User: min(reply.User, took*cpus*2), Sys: min(reply.Sys, took*cpus*2),
		RSS: min(reply.RSS, max(r.ws.Limits.Memory, 0)),
	}
	// Between steps nothing of the build runs, so this is what the next one
	// begins with.
	before := r.before
	r.before, _ = r.ws.Usage()
	hit := hits{oom: r.before.OOMKills - before.OOMKills, pids: r.before.PidsHits - before.PidsHits}
	f := r.judge(s, reply, wall, total, hit, &done)
	r.result.Steps = append(r.result.Steps, done)
	if reply.NLeft > 0 {
		r.warn("%s left %d %s running, which were ended: %s", s.name, reply.NLeft, plural(reply.NLeft, "process", "processes"), list(reply.Left, reply.NLeft))
	}
	if f == nil {
		r.log.farm("%s: ended with status 0 in %s", s.name, human.Duration(done.Wall))
		if hit.oom > 0 {
			r.warn("%s succeeded though the kernel ended %d of its processes for want of memory", s.name, hit.oom)
		}
		return nil
	}
	r.log.farm("%s: ended with status %d in %s", s.name, reply.Status, human.Duration(done.Wall))
	// Whatever failed on a full disk would have failed on any recipe.
	if err := full(r.ws.Dir, r.ws.Upper); err != nil {
		return fmt.Errorf("%s failed (%s), but %w", s.name, f.Message, err)
	}
	if s.lax && f.Cause != quarry.CauseLog {
		r.warn("%s, which this recipe allows", f.Message)
		return nil
	}
	r.fail(f)
	return nil
}

// patience is how long to wait for a guest that should have ended a step.
func (r *run) patience() time.Duration {
	if r.job.patience > 0 {
		return r.job.patience
	}
	return backstop
}

// hits counts how often a step ran into what the kernel bounds.
type hits struct{ oom, pids int64 }

// judge says why a step failed; nil when it did not.
func (r *run) judge(s step, reply guest.Reply, wall time.Duration, total bool, hit hits, done *quarry.Step) *quarry.Failure {
	if reply.Killed == "" && reply.Status == 0 {
		return nil
	}
	f := &quarry.Failure{Step: s.name, Status: reply.Status}
	if i := reply.Command; i < len(s.cmds) {
		f.Command = typed(s.cmds[i])
	}
	who := s.name
	if i := reply.Command; i < len(s.what) {
		who = human.Safe(s.what[i], false)
	}
	also := ""
	switch {
	case hit.oom > 0:
		also = fmt.Sprintf(", and ran out of its %s of memory before", human.Size(r.ws.Limits.Memory))
	case hit.pids > 0:
		also = fmt.Sprintf(", and ran into its limit of %d processes before", r.ws.Limits.Pids)
	}
	switch reply.Killed {
	case guest.KilledTime:
		f.Cause, f.Message = quarry.CauseTime, fmt.Sprintf("%s took longer than %s", who, wall)
		done.Killed = fmt.Sprintf("longer than %s", wall)
		if total {
			f.Message = fmt.Sprintf("the build took longer than %s, and was in %s then", r.limits.Total, s.name)
			done.Killed = fmt.Sprintf("build longer than %s", r.limits.Total)
		}
		f.Message += also
		return f
	case guest.KilledSilence:
		f.Cause, f.Message = quarry.CauseSilence, fmt.Sprintf("%s printed nothing for %s", who, r.limits.Silence)+also
		done.Killed = fmt.Sprintf("no output for %s", r.limits.Silence)
		return f
	case guest.KilledLog:
		f.Cause, f.Message = quarry.CauseLog, fmt.Sprintf("the build printed more than %s, and was in %s then", human.Size(r.limits.Log), s.name)
		done.Killed = fmt.Sprintf("log over %s", human.Size(r.limits.Log))
		return f
	}
	switch {
	case hit.oom > 0:
		f.Cause, f.Message = quarry.CauseMemory, r.memory(who)+", and ended with "+status(reply)
	case hit.pids > 0:
		f.Cause, f.Message = quarry.CauseProcs, r.processes(who)+", and ended with "+status(reply)
	case reply.Signal == int(unix.SIGXFSZ):
		f.Cause, f.Message = quarry.CauseDisk, fmt.Sprintf("%s wrote a file of more than %s", who, human.Size(r.ws.Limits.FileSize))
	case reply.Problem != "":
		f.Cause, f.Message = quarry.CauseExit, who+": "+reply.Problem
	case s.name == quarry.StepPatches:
		f.Cause, f.Message = quarry.CauseExit, fmt.Sprintf("%s does not apply: patch ended with %s", who, status(reply))
	default:
		f.Cause, f.Message = quarry.CauseExit, fmt.Sprintf("%s ended with %s", who, status(reply))
	}
	return f
}

func (r *run) memory(who string) string {
	return fmt.Sprintf("%s needed more than the %s of memory that the build may have", who, human.Size(r.ws.Limits.Memory))
}

func (r *run) processes(who string) string {
	return fmt.Sprintf("%s needed more than the %d processes that the build may have", who, r.ws.Limits.Pids)
}

func status(reply guest.Reply) string {
	if reply.Signal != 0 {
		return fmt.Sprintf("signal %d (%s)", reply.Signal, unix.SignalName(unix.Signal(reply.Signal)))
	}
	return fmt.Sprintf("status %d", reply.Status)
}

// unable is about a step that the guest could not run. As a rule that is the
// farm's trouble, but a build may bring it about by using up what it has.
func (r *run) unable(name, why string) error {
	now, err := r.ws.Usage()
	if err == nil && now.PidsHits > r.before.PidsHits {
		r.fail(&quarry.Failure{Step: name, Cause: quarry.CauseProcs, Message: r.processes(name) + ": " + why})
		return nil
	}
	if err == nil && now.OOMKills > r.before.OOMKills {
		r.fail(&quarry.Failure{Step: name, Cause: quarry.CauseMemory, Message: r.memory(name) + ": " + why})
		return nil
	}
	return fmt.Errorf("%s cannot be run: %s", name, why)
}

// lost finds out why the guest does not answer. Its end by a limit is the
// recipe's failure, everything else is the farm's.
func (r *run) lost(ctx context.Context, name string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && name != quarry.StepPrepare {
		// The guest did not see to the limit, so it could not: a workspace may
		// be so short of memory that nothing in it moves.
		r.guest.kill()
		r.fail(&quarry.Failure{Step: name, Cause: quarry.CauseTime, Status: 137,
			Message: fmt.Sprintf("%s ran into its limit of time and could not be ended in good order: the workspace was killed", name)})
		return nil
	}
	if !ended(err) {
		return fmt.Errorf("workspace %s in %s: %w", r.ws.Name, name, err)
	}
	// The kernel closes the socket before it has reaped the process.
	var death images.Death
	for until := time.Now().Add(5 * time.Second); ; {
		var derr error
		if death, derr = r.ws.Died(ctx); derr != nil {
			return fmt.Errorf("workspace %s ended in %s: %w", r.ws.Name, name, derr)
		}
		if death.Dead || time.Now().After(until) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	f := &quarry.Failure{Step: name, Status: 137}
	// What happened in an earlier step, and was survived, did not end this one.
	now, _ := r.ws.Usage()
	hungry := death.OOM && (now.OOMKills > r.before.OOMKills || r.before.OOMKills == 0)
	crowded := death.Pids && !death.Killed && now.PidsHits > r.before.PidsHits
	switch {
	case death.Disk:
		if err := full(r.ws.Dir, r.ws.Upper); err != nil {
			return fmt.Errorf("%s was ended: %w", name, err)
		}
		f.Cause, f.Message = quarry.CauseDisk, fmt.Sprintf("%s needed more than the %s of disk that the build may have", name, human.Size(r.ws.Limits.Disk))
	case hungry:
		f.Cause, f.Message = quarry.CauseMemory, r.memory(name)+": the whole workspace was killed"
	case crowded && name != quarry.StepPrepare:
		f.Cause, f.Message = quarry.CauseProcs, r.processes(name)+": the whole workspace ended"
	default:
		return fmt.Errorf("workspace %s ended in %s: %s (%w)", r.ws.Name, name, death, err)
	}
	r.fail(f)
	return nil
}

// Below this a file system counts as full. A compiler that gets no more space
// prints its own words for it; nobody can tell those from a recipe's fault.
const (
	leastBytes  = 32 << 20
	leastInodes = 256
)

// full says so when the file systems of a build have no room left: then the
// farm is at fault, as builds have limits of their own.
func full(dirs ...string) error {
	for _, dir := range dirs {
		var st unix.Statfs_t
		if dir == "" || unix.Statfs(dir, &st) != nil {
			continue
		}
		if int64(st.Bavail)*st.Bsize < leastBytes || st.Files > 0 && st.Ffree < leastInodes {
			return fmt.Errorf("the farm's disk is full at %s: free some space or lower the limit on disk", dir)
		}
	}
	return nil
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// list names some of n things.
func list(names []string, n int) string {
	const most = 8
	if len(names) > most {
		names = names[:most]
	}
	s := strings.Join(names, ", ")
	if more := n - len(names); more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}
