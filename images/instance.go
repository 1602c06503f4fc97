package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containers/podman/v4/pkg/bindings/images"
	"golang.org/x/sync/semaphore"

	quarry "github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/podman"
)

// NoInstanceError says that an environment has no instance: none could be made
// yet, or the last one was thrown away and no other could be made.
type NoInstanceError struct {
	Channel, Arch string
	Err           error // why
}

func (e *NoInstanceError) Error() string {
	name := env{e.Channel, e.Arch}
	return fmt.Sprintf("no instance of %s: %v: see to that, then run quarry images update %s", name, e.Err, name)
}

func (e *NoInstanceError) Unwrap() error { return e.Err }

// record is what is kept of an environment's instance, in
// STATE/instances/CHANNEL.ARCH.json.
type record struct {
	Instance
	// Content is the digest of what the setup changed; see layer.sum.
	Content string `json:"content,omitempty"`
	// Fails counts the updates that failed since one ended well, and Tried says
	// of what: a base and a setup. With another one a failure is no omen.
	Fails int    `json:"fails,omitempty"`
	Tried string `json:"tried,omitempty"`
}

// How long a failed update rests, each time twice as long.
const (
	retryFirst = time.Minute
	retryMost  = time.Hour
)

func attempt(base Base, setup Setup) string { return base.Digest + " " + setup.Digest() }

// again is the time of the next try after a failure; the zero time when there
// was none.
func (r record) again(base Base, setup Setup) time.Time {
	if r.Fails == 0 || r.Tried != attempt(base, setup) {
		return time.Time{}
	}
	return r.TroubleAt.Add(min(retryFirst<<min(r.Fails-1, 10), retryMost))
}

// due tells why an update is due, "" when it is not.
func (r record) due(base Base, setup Setup, now time.Time) string {
	switch {
	case r.Image == "":
		return "there is none"
	case r.Base.Digest != base.Digest:
		return "its base was replaced"
	case r.Setup != setup.Digest():
		return "the channel's setup was changed"
	case now.Sub(r.Checked) >= setup.maxAge():
		return fmt.Sprintf("it was last updated at %s", r.Checked.Format(time.RFC3339))
	}
	return ""
}

// instances is the part of the store that makes instances.
type instances struct {
	maker *semaphore.Weighted // one at a time: each takes the machine's network and disk
	nudge chan struct{}       // something may be due: Maintain looks
	// saving is read-locked while an instance is put into podman's storage, and
	// locked while that is cleared of what nothing names.
	saving sync.RWMutex

	mu    sync.Mutex // guards the following
	known map[env]record
	// forgotten counts how often any of them was forgotten: what was read before
	// is not known.
	forgotten int
	making    map[env]*making
	closed    bool
	work      sync.WaitGroup
}

func (in *instances) init() {
	in.maker = semaphore.NewWeighted(1)
	in.nudge = make(chan struct{}, 1)
	in.known = map[env]record{}
	in.making = map[env]*making{}
}

// wake has Maintain look what is due.
func (in *instances) wake() {
	select {
	case in.nudge <- struct{}{}:
	default:
	}
}

// close ends what is being made, and waits for that until ctx ends.
func (in *instances) close(ctx context.Context) error {
	in.mu.Lock()
	in.closed = true
	for _, m := range in.making {
		m.cancel()
	}
	in.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		in.work.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("an instance is still being made: %w", ctx.Err())
	}
}

// making is an instance being made, and those who wait for it.
type making struct {
	cancel context.CancelFunc
	done   chan struct{}
	inst   Instance // valid once done is closed
	err    error

	// Guarded by the mutex of instances.
	waiting   []chan Progress
	abandoned bool // everybody left: it is ending
}

// publish tells those who wait. One who does not listen misses lines and holds
// nobody up.
func (in *instances) publish(m *making, p Progress) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, c := range m.waiting {
		select {
		case c <- p:
		default:
		}
	}
}

// instance is what builds of an environment stand on now: the base itself when
// the channel has no setup, else the current instance, however old. When there
// is none yet it is made, and all who ask wait for the one that is made.
func (s *Store) instance(ctx context.Context, channel, arch string) (Instance, error) {
	e := env{channel, arch}
	r, ok, err := s.present(ctx, e)
	if err != nil || ok {
		return r.Instance, err
	}
	base, err := s.base(ctx, s.baseOf(e))
	if err != nil {
		return Instance{}, err
	}
	s.inst.mu.Lock()
	busy := s.inst.making[e] != nil
	s.inst.mu.Unlock()
	if at := r.again(base, s.channels[channel].Setup); !busy && time.Now().Before(at) {
		return Instance{}, &NoInstanceError{channel, arch, fmt.Errorf("%s (the next try is at %s)", r.Trouble, at.Format(time.RFC3339))}
	}
	return s.join(ctx, e, func(r record) bool { return r.Image != "" }, nil)
}

// present is what is known of an environment's instance, without making one;
// ok is false when there is none.
func (s *Store) present(ctx context.Context, e env) (r record, ok bool, err error) {
	base, err := s.base(ctx, s.baseOf(e))
	if err != nil {
		return record{}, false, err
	}
	if s.channels[e.channel].Setup.Empty() {
		return record{Instance: Instance{Channel: e.channel, Arch: e.arch, Base: base, Digest: base.Digest, Image: base.Image,
			Made: base.Created, Checked: base.Created, Size: base.Size}}, true, nil
	}
	r, err = s.recorded(ctx, e)
	return r, err == nil && r.Image != "", err
}

// Instance returns what builds of a channel on an arch stand on. When there is
// none yet it is made, which takes as long as the channel's setup does. The
// error is a *NoBaseError when there is no base, and a *NoInstanceError when
// the instance cannot be made.
func (s *Store) Instance(ctx context.Context, channel, arch string) (Instance, error) {
	if err := s.checkEnv(channel, arch); err != nil {
		return Instance{}, err
	}
	return s.instance(ctx, channel, arch)
}

// Instances lists what is known of all instances, by channel and arch: those of
// the configuration, and others that are still on disk. Where there is none,
// Image is empty and Trouble may tell why. Environments without a base are left
// out.
func (s *Store) Instances(ctx context.Context) ([]Instance, error) {
	var list []Instance
	for _, e := range s.everyEnv() {
		var r record
		var err error
		if s.configured(e.channel) {
			r, _, err = s.present(ctx, e)
		} else {
			r, err = s.recorded(ctx, e)
		}
		var none *NoBaseError
		if errors.As(err, &none) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, r.Instance)
	}
	return list, nil
}

// Update brings the instance of an environment up to date when that is due (see
// [Setup].MaxAge), or in any case with force. The result is the instance that
// is in use afterwards: with an error it is the old one, if there is one. An
// update that is under way already is waited for. When ctx ends and nobody else
// waits for it, it is broken off. progress may be nil.
func (s *Store) Update(ctx context.Context, channel, arch string, force bool, progress func(Progress)) (Instance, error) {
	if err := s.checkEnv(channel, arch); err != nil {
		return Instance{}, err
	}
	e := env{channel, arch}
	r, _, err := s.present(ctx, e)
	if err != nil {
		return Instance{}, err
	}
	setup := s.channels[channel].Setup
	if setup.Empty() {
		return r.Instance, nil
	}
	if force {
		return s.join(ctx, e, nil, progress)
	}
	base, err := s.base(ctx, s.baseOf(e))
	if err != nil || r.due(base, setup, time.Now()) == "" {
		return r.Instance, err
	}
	return s.join(ctx, e, func(r record) bool { return r.due(base, setup, time.Now()) == "" }, progress)
}

// join waits for the instance that is being made, or has it made: unless it has
// been made since the caller looked, so that the one there now will do.
func (s *Store) join(ctx context.Context, e env, will func(record) bool, progress func(Progress)) (Instance, error) {
	in := &s.inst
	for {
		in.mu.Lock()
		if in.closed {
			in.mu.Unlock()
			return Instance{}, fmt.Errorf("instance of %s is not made: the daemon ends", e)
		}
		m := in.making[e]
		if m != nil && m.abandoned {
			in.mu.Unlock()
			select {
			case <-m.done:
				continue
			case <-ctx.Done():
				return Instance{}, ctx.Err()
			}
		}
		if r, known := in.known[e]; m == nil && will != nil && known && will(r) {
			in.mu.Unlock()
			return r.Instance, nil
		}
		if m == nil {
			// Not the caller's context: others may wait for it too.
			run, cancel := context.WithCancel(context.WithoutCancel(ctx))
			m = &making{cancel: cancel, done: make(chan struct{})}
			in.making[e] = m
			in.work.Add(1)
			go func() {
				defer in.work.Done()
				m.inst, m.err = s.renew(run, e, func(p Progress) { in.publish(m, p) })
				cancel()
				in.mu.Lock()
				delete(in.making, e)
				in.mu.Unlock()
				close(m.done)
			}()
		}
		lines := make(chan Progress, 1024)
		m.waiting = append(m.waiting, lines)
		in.mu.Unlock()
		return s.await(ctx, m, lines, oneAtATime(progress))
	}
}

func (s *Store) await(ctx context.Context, m *making, lines chan Progress, progress func(Progress)) (Instance, error) {
	for {
		select {
		case p := <-lines:
			progress(p)
		case <-m.done:
			for len(lines) > 0 {
				progress(<-lines)
			}
			return m.inst, m.err
		case <-ctx.Done():
			s.inst.mu.Lock()
			m.waiting = slices.DeleteFunc(m.waiting, func(c chan Progress) bool { return c == lines })
			last := len(m.waiting) == 0
			if last {
				m.abandoned = true
				m.cancel()
			}
			s.inst.mu.Unlock()
			if last {
				<-m.done // so that nothing of it is left when this returns
			}
			return Instance{}, ctx.Err()
		}
	}
}

// checkEnv makes sure that a channel and arch can be those of an environment.
func (s *Store) checkEnv(channel, arch string) error {
	if channel != "" || len(s.channels) > 0 {
		if err := quarry.CheckChannel(channel); err != nil {
			return err
		}
	}
	if len(s.channels) > 0 && !s.configured(channel) {
		_, err := s.named(channel)
		return err
	}
	_, err := ParseBaseRef(arch)
	if err == nil && strings.Contains(arch, ":") {
		err = fmt.Errorf("%.100q is a base, not an arch", arch)
	}
	return err
}

// configuredEnvs are the environments of the configuration, sorted.
func (s *Store) configuredEnvs() []env {
	var all []env
	for _, c := range s.channels {
		for _, arch := range c.Archs {
			all = append(all, env{c.Name, arch})
		}
	}
	slices.SortFunc(all, compareEnv)
	return all
}

// liveEnvs are those of the configuration, and those besides that builds have used:
// what is noarch or cross built runs on an arch that its channel need not have.
func (s *Store) liveEnvs() []env {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	return s.pool.known()
}

func compareEnv(a, b env) int {
	return cmp.Or(cmp.Compare(a.channel, b.channel), cmp.Compare(a.arch, b.arch))
}

// instancesDir is where records and logs of instances are.
func (s *Store) instancesDir() string { return filepath.Join(filepath.Dir(s.conn.Dir()), "instances") }

func (s *Store) instancePath(e env, ext string) string {
	// Neither a channel nor an arch holds a dot.
	return filepath.Join(s.instancesDir(), e.channel+"."+e.arch+ext)
}

// InstanceLog is the file with the output of an environment's last update.
func (s *Store) InstanceLog(channel, arch string) string {
	return s.instancePath(env{channel, arch}, ".log")
}

// onDisk lists the environments that have a record.
func (s *Store) onDisk() []env {
	entries, _ := os.ReadDir(s.instancesDir())
	var all []env
	for _, d := range entries {
		name, ok := strings.CutSuffix(d.Name(), ".json")
		channel, arch, dot := strings.Cut(name, ".")
		if ok && dot && quarry.CheckChannel(channel) == nil && quarry.CheckArch(arch) == nil {
			all = append(all, env{channel, arch})
		}
	}
	return all
}

// recorded is the record of an environment, from memory when it can; an empty
// one when there is none. The image of one that has any is there.
func (s *Store) recorded(ctx context.Context, e env) (record, error) {
	s.inst.mu.Lock()
	r, ok := s.inst.known[e]
	since := s.inst.forgotten
	s.inst.mu.Unlock()
	if ok {
		return r, nil
	}
	r = s.readRecord(e)
	if r.Image != "" {
		digest, err := s.imageDigest(ctx, r.Image)
		if err != nil {
			return record{}, fmt.Errorf("instance of %s cannot be looked up: %w", e, err)
		}
		if digest != r.Digest {
			s.log.Warn("an instance is gone from podman's storage: another one is made", "environment", e.String(), "digest", r.Digest)
			r.Image, r.Digest, r.Size = "", "", 0
		}
	}
	s.inst.mu.Lock()
	defer s.inst.mu.Unlock()
	if now, ok := s.inst.known[e]; ok {
		return now, nil // somebody was quicker, or changed it meanwhile
	}
	if s.inst.forgotten == since {
		s.inst.known[e] = r
	}
	return r, nil
}

// imageDigest is the digest of an image's content, "" when there is no such
// image.
func (s *Store) imageDigest(ctx context.Context, image string) (string, error) {
	call, err := s.conn.Context(ctx)
	if err != nil {
		return "", err
	}
	img, err := images.GetImage(call, strings.TrimPrefix(image, "sha256:"), nil)
	if podman.Code(err) == 404 {
		return "", nil
	}
	if err != nil {
		return "", s.explain(gone(err))
	}
	return contentDigest(img)
}

// sweepInstances gives instances their names where an earlier daemon ended before
// it could, and takes those of drafts away.
func (s *Store) sweepInstances(ctx context.Context) error {
	var errs []error
	for _, e := range s.onDisk() {
		r, err := s.recorded(ctx, e)
		if err == nil && r.Image != "" {
			err = s.name(ctx, e, r.Image)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return err // a draft may be all that keeps an instance
	}
	call, err := s.conn.Context(ctx)
	if err != nil {
		return err
	}
	list, err := images.List(call, new(images.ListOptions).WithFilters(map[string][]string{"reference": {s.draftRepo()}}))
	if err != nil {
		return fmt.Errorf("instances cannot be listed: %w", gone(err))
	}
	for _, img := range list {
		for _, name := range img.RepoTags {
			if tag, ok := strings.CutPrefix(name, s.draftRepo()+":"); ok {
				errs = append(errs, gone(images.Untag(call, img.ID, tag, s.draftRepo(), nil)))
			}
		}
	}
	return errors.Join(errs...)
}

// forgetInstance has the next look at an instance be one at the disk: somebody
// may have removed its image.
func (s *Store) forgetInstance(channel, arch string) {
	s.inst.mu.Lock()
	defer s.inst.mu.Unlock()
	delete(s.inst.known, env{channel, arch})
	s.inst.forgotten++
}

// readRecord reads what is on disk. A record that is broken counts as none:
// instances can be made again.
func (s *Store) readRecord(e env) record {
	none := record{Instance: Instance{Channel: e.channel, Arch: e.arch}}
	data, err := os.ReadFile(s.instancePath(e, ".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return none
	}
	var r record
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err == nil && (r.Channel != e.channel || r.Arch != e.arch || r.Image != "" && (!isDigest(r.Image) || !isDigest(r.Digest)) || r.Fails < 0) {
		err = errors.New("it is of another instance, or was edited")
	}
	if err != nil {
		s.log.Warn("the record of an instance is broken: another instance is made", "file", s.instancePath(e, ".json"), "error", err)
		return none
	}
	return r
}

// keep makes a record the current one, on disk first.
func (s *Store) keep(e env, r record) error {
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	err = writeDurable(s.instancePath(e, ".json"), append(data, '\n'))
	if err != nil {
		err = fmt.Errorf("record of the instance of %s cannot be written: %w", e, s.explain(err))
	}
	s.inst.mu.Lock()
	defer s.inst.mu.Unlock()
	if err != nil && r.Trouble == "" {
		return err // nothing has changed
	}
	s.inst.known[e] = r
	return err
}
