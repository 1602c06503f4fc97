package images

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry/internal/podman"
)

// SanitizeOptions say what is to be sanitized.
type SanitizeOptions struct {
	Arch, Channel string // "" for all
	// Running ends builds that run there too. They are the farm's to repeat:
	// their workspaces' Died is an error that wraps podman.ErrGone.
	Running bool
}

// Report says what Sanitize has done.
type Report struct {
	Bases      []Base        // found altered and made again from their clean copies
	Instances  []Instance    // made again
	Workspaces int           // that were ready, thrown away
	Killed     int           // of running builds
	Took       time.Duration // all of it
}

// Sanitize throws away every instance and every workspace that is ready, of the
// arch and channel, and makes the instances again from the clean base. Bases
// are read in full before, and one that is not what was loaded is made again
// from its clean copy, as [Store.Restore] does; everything that stands on it
// goes with it, also what was not asked for. Builds that run end undisturbed in
// workspaces of their own otherwise, unless Running says that they are to be
// ended; those that begin meanwhile wait.
//
// What was there is not trusted, and so not kept: where an instance cannot be
// made again its environment has none, and builds get a *NoInstanceError, until
// Maintain or Update succeeds. The error tells of all that failed; the report
// holds what was done in any case. progress may be nil.
func (s *Store) Sanitize(ctx context.Context, o SanitizeOptions, progress func(Progress)) (rep Report, err error) {
	began := time.Now()
	defer func() { rep.Took = time.Since(began) }()
	progress = oneAtATime(progress)
	envs, err := s.scope(ctx, o.Channel, o.Arch)
	if err != nil {
		return rep, err
	}
	progress(Progress{Step: "waiting"}) // for an update that is under way
	if err := s.inst.maker.Acquire(ctx, 1); err != nil {
		return rep, err
	}
	locked := true
	unlock := func() {
		if locked {
			s.inst.maker.Release(1)
			locked = false
		}
	}
	defer unlock()

	progress(Progress{Step: "discarding"})
	for _, e := range envs {
		rep.Workspaces += s.pool.count(e)
		defer s.holdWarm(e.channel, e.arch, "it is being sanitized")()
	}
	if o.Running {
		rep.Killed = s.takeAway(ctx, envs, "the environment was sanitized")
	}
	s.discard()
	var errs []error
	failed := map[env]bool{}
	for _, e := range envs {
		if err := s.discardInstance(ctx, e, "it was thrown away by sanitize, and is made again"); err != nil {
			errs, failed[e] = append(errs, err), true
		}
	}
	for _, ref := range s.basesOf(envs) {
		was, err := s.Base(ctx, ref)
		if err == nil {
			var now Base
			if now, err = s.Restore(ctx, ref, progress); err == nil && now.Image != was.Image {
				rep.Bases = append(rep.Bases, now)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("base %s cannot be vouched for: %w", ref, err))
			for _, e := range envs {
				failed[e] = failed[e] || s.baseOf(e) == ref
			}
		}
	}
	unlock()
	for _, e := range envs {
		if failed[e] || s.channels[e.channel].Setup.Empty() {
			continue
		}
		inst, err := s.join(ctx, e, nil, progress)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		rep.Instances = append(rep.Instances, inst)
	}
	s.inst.wake()
	return rep, errors.Join(errs...)
}

// scope lists the environments of a channel and arch ("" for all) that have a
// base. It is an error when there is none.
func (s *Store) scope(ctx context.Context, channel, arch string) ([]env, error) {
	if channel != "" {
		if _, err := s.named(channel); err != nil {
			return nil, err
		}
	}
	var envs []env
	var missing error
	for _, e := range s.liveEnvs() {
		if !matching(channel, arch)(e) {
			continue
		}
		_, err := s.base(ctx, s.baseOf(e))
		var none *NoBaseError
		switch {
		case errors.As(err, &none):
			missing = err
		case err != nil:
			return nil, err
		default:
			envs = append(envs, e)
		}
	}
	switch {
	case len(envs) > 0:
		return envs, nil
	case missing != nil:
		return nil, missing
	case arch != "":
		return nil, fmt.Errorf("no channel is built for %.60q: give one of the archs of the configuration", arch)
	}
	return nil, errors.New("no channel is configured: there is nothing to sanitize")
}

// baseOf is the ref of the base that an environment stands on.
func (s *Store) baseOf(e env) string { return BaseRef{e.arch, s.channels[e.channel].Base}.String() }

// basesOf lists the refs of the bases that environments stand on, each once.
func (s *Store) basesOf(envs []env) (refs []string) {
	for _, e := range envs {
		refs = append(refs, s.baseOf(e))
	}
	slices.Sort(refs)
	return slices.Compact(refs)
}

// takeAway ends the workspaces of running builds, as the farm's doing.
func (s *Store) takeAway(ctx context.Context, envs []env, why string) (n int) {
	s.mu.Lock()
	open := slices.Collect(maps.Keys(s.open))
	s.mu.Unlock()
	for _, w := range open {
		if !slices.Contains(envs, env{w.Channel, w.Arch}) || w.kept.Load() {
			continue
		}
		w.mu.Lock()
		took := !w.closed && w.lost == "" && !w.spare // those end by themselves
		if took {
			w.lost = why
		}
		w.mu.Unlock()
		if !took {
			continue
		}
		n++
		if err := w.Kill(ctx); err != nil {
			w.log.Warn("a build cannot be ended", "workspace", w.Name, "error", err)
		}
	}
	return n
}

// lostError is what a workspace's end is to its build when the farm took it.
func (w *Workspace) lostError(why string) error {
	return fmt.Errorf("workspace %s was taken away, because %s: %w", w.Name, why, podman.ErrGone)
}

// discardInstance throws the instance of an environment away. Its image stays
// until workspaces that stand on it are gone.
func (s *Store) discardInstance(ctx context.Context, e env, why string) error {
	r, err := s.recorded(ctx, e)
	if err != nil {
		return err
	}
	if r.Image == "" {
		return nil
	}
	r = record{Instance: Instance{Channel: e.channel, Arch: e.arch, Base: r.Base, Trouble: why, TroubleAt: time.Now().UTC().Truncate(time.Second)}}
	if err := s.keep(e, r); err != nil {
		return err
	}
	s.untag(s.instanceRepo() + ":" + e.tag())
	return nil
}

// removeInstance removes all that is known of an environment's instance.
func (s *Store) removeInstance(ctx context.Context, e env) error {
	if err := s.discardInstance(ctx, e, "it was removed"); err != nil {
		return err
	}
	for _, ext := range []string{".json", ".log"} {
		if err := os.Remove(s.instancePath(e, ext)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("instance of %s cannot be removed: %w", e, err)
		}
	}
	s.forgetInstance(e.channel, e.arch)
	s.dropWarm(e.channel, e.arch)
	return nil
}

// Clean removes what it is told to, and returns what that was, in words:
//
//	all                     every instance, every base with its clean copy
//	base REF                a base with its clean copy, and the instances on it
//	instance NAME, or NAME  instances: NAME is CHANNEL/ARCH, or CHANNEL for all of its
//
// The workspaces that are ready on what is removed go with it; builds that run
// end undisturbed. An instance that is in the configuration is made again when
// it is needed; a base is not.
func (s *Store) Clean(ctx context.Context, what string) ([]string, error) {
	word, rest, _ := strings.Cut(strings.Join(strings.Fields(what), " "), " ")
	if err := s.inst.maker.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer s.inst.maker.Release(1)
	defer s.inst.wake()
	switch {
	case word == "all" && rest == "":
		s.discard()
		return s.cleanAll(ctx)
	case word == "base" && rest != "":
		return s.cleanBase(ctx, rest)
	case word == "instance" && rest != "":
		return s.cleanInstances(ctx, rest)
	case rest == "" && word != "base" && word != "instance" && word != "":
		return s.cleanInstances(ctx, word)
	}
	return nil, fmt.Errorf("%.100q cannot be cleaned: give all, base REF, or the name of an instance (%s)", what, s.instanceNames())
}

// OnDiscard has f called by Sanitize, and by Clean of everything: whoever keeps
// what was made in a system of this store throws it away then.
func (s *Store) OnDiscard(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.discarding = f
}

func (s *Store) discard() {
	s.mu.Lock()
	f := s.discarding
	s.mu.Unlock()
	if f != nil {
		f()
	}
}

func (s *Store) cleanAll(ctx context.Context) (done []string, err error) {
	for _, e := range s.everyEnv() {
		had := s.hasInstance(ctx, e)
		if err := s.removeInstance(ctx, e); err != nil {
			return done, err
		}
		if had {
			done = append(done, "instance "+e.String())
		}
	}
	s.dropWarm("", "")
	bases, err := s.Bases(ctx)
	if err != nil {
		return done, err
	}
	for _, b := range bases {
		if err := s.Remove(ctx, b.Ref()); err != nil {
			return done, err
		}
		done = append(done, "base "+b.Ref())
	}
	return done, nil
}

func (s *Store) cleanBase(ctx context.Context, name string) (done []string, err error) {
	ref, err := ParseBaseRef(name)
	if err != nil {
		return nil, err
	}
	for _, e := range s.everyEnv() {
		r, err := s.recorded(ctx, e)
		if err != nil {
			return done, err
		}
		if r.Image != "" && r.Base.Ref() == ref.String() {
			if err := s.removeInstance(ctx, e); err != nil {
				return done, err
			}
			done = append(done, "instance "+e.String())
		}
		if s.baseOf(e) == ref.String() {
			s.dropWarm(e.channel, e.arch)
		}
	}
	if err := s.Remove(ctx, ref.String()); err != nil {
		return done, err
	}
	return append(done, "base "+ref.String()), nil
}

func (s *Store) cleanInstances(ctx context.Context, name string) (done []string, err error) {
	channel, arch, _ := strings.Cut(name, "/")
	for _, e := range s.everyEnv() {
		if e.channel != channel || strings.Contains(name, "/") && e.arch != arch || !s.hasInstance(ctx, e) {
			continue
		}
		if err := s.removeInstance(ctx, e); err != nil {
			return done, err
		}
		done = append(done, "instance "+e.String())
	}
	if len(done) == 0 {
		return nil, fmt.Errorf("no instance %.100q: give all, base REF, or the name of an instance (%s)", name, s.instanceNames())
	}
	return done, nil
}

// hasInstance reports whether an environment has an instance of its own, or a
// record of one that could not be made.
func (s *Store) hasInstance(ctx context.Context, e env) bool {
	r, err := s.recorded(ctx, e)
	return err == nil && (r.Image != "" || r.Trouble != "")
}

// everyEnv are the environments of the configuration, and those on disk.
func (s *Store) everyEnv() []env {
	all := append(s.configuredEnvs(), s.onDisk()...)
	slices.SortFunc(all, compareEnv)
	return slices.Compact(all)
}

// instanceNames lists the names of instances that there are, for people.
func (s *Store) instanceNames() string {
	var names []string
	for _, e := range s.onDisk() {
		names = append(names, e.String())
	}
	if len(names) == 0 {
		return "there is none now"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
