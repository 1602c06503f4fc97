package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/containers/podman/v4/pkg/bindings/containers"
	"github.com/containers/podman/v4/pkg/bindings/images"
	"github.com/containers/podman/v4/pkg/specgen"

	"github.com/Morphux/quarry/internal/podman"
)

// setupCapabilities are what the root of a container keeps while a setup runs
// there: a workspace's, and what package managers take besides. All of it over
// the container's own user namespace only.
var setupCapabilities = append(slices.Clone(capabilities),
	"SETFCAP", // packages carry file capabilities, as ping's
)

// instanceRepo is the name of instances in podman's storage, where each is
// tagged ARCH.CHANNEL.
func (s *Store) instanceRepo() string {
	const name = "localhost/quarry/instance"
	if s.conn.Own() {
		return name
	}
	return name + "-" + s.conn.Farm() // others' may be there too
}

// draftRepo is the name of instances that do not count yet.
func (s *Store) draftRepo() string { return s.instanceRepo() + "-draft" }

func (e env) tag() string { return e.arch + "." + e.channel }

// renew makes the instance of an environment anew, from its base, and puts it in
// the old one's place. When that fails, the old one stays, with its Trouble set.
func (s *Store) renew(ctx context.Context, e env, progress func(Progress)) (Instance, error) {
	if err := s.inst.maker.Acquire(ctx, 1); err != nil {
		return Instance{}, err
	}
	defer s.inst.maker.Release(1)
	old, err := s.recorded(ctx, e)
	if err != nil {
		return Instance{}, err
	}
	setup := s.channels[e.channel].Setup
	base, err := s.Base(ctx, s.baseOf(e))
	if err != nil {
		return old.Instance, err
	}
	began := time.Now()
	r, err := s.make(ctx, e, base, old, progress)
	if err == nil {
		switch {
		case r.Image == old.Image:
			s.log.Info("an instance is up to date", "environment", e.String(), "digest", r.Digest, "took", time.Since(began))
		default:
			s.log.Info("an instance is made", "environment", e.String(), "digest", r.Digest, "base", r.Base.Digest, "took", time.Since(began))
			s.dropWarm(e.channel, e.arch)
		}
		if old.Image == "" {
			s.pool.used(e) // as at the start of the farm: the first build finds one ready
		}
		return r.Instance, nil
	}
	if ctx.Err() != nil {
		return old.Instance, err // nobody wants it any more
	}
	now := time.Now().UTC().Truncate(time.Second)
	old.Trouble, old.TroubleAt = brief(err).Error(), now
	if tried := attempt(base, setup); old.Tried != tried {
		old.Tried, old.Fails = tried, 0
	}
	old.Fails++
	if kerr := s.keep(e, old); kerr != nil {
		s.log.Warn("that an update failed is not written down", "environment", e.String(), "error", kerr)
	}
	if old.Image == "" {
		s.trouble(e.channel, e.arch, "its system cannot be made, and builds wait: "+old.Trouble)
		s.log.Error("an instance cannot be made: builds of its environment wait", "environment", e.String(), "error", err, "again", old.again(base, setup))
		return Instance{}, &NoInstanceError{e.channel, e.arch, err}
	}
	s.trouble(e.channel, e.arch, "its system cannot be updated, and the old one stays in use: "+old.Trouble)
	s.log.Error("an instance cannot be updated: the old one stays in use", "environment", e.String(), "error", err, "made", old.Made, "again", old.again(base, setup))
	return old.Instance, fmt.Errorf("instance of %s cannot be updated, and the old one stays in use: %w", e, err)
}

// make runs the setup in a container over the base and makes what it wrote into
// an image. It returns the record that is in force from then on.
func (s *Store) make(ctx context.Context, e env, base Base, old record, progress func(Progress)) (record, error) {
	ch := s.channels[e.channel]
	emulation, err := Emulation(e.arch)
	if err != nil {
		return record{}, err
	}
	if _, err := podman.LookPath("slirp4netns"); err != nil && len(ch.Setup.Update) > 0 {
		return record{}, errors.New("slirp4netns is not installed, and without it update commands have no network: apt-get install slirp4netns")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, ch.Setup.timeout(),
		fmt.Errorf("it was not done after %v: give the channel's setup a longer timeout, or see what it waits for", ch.Setup.timeout()))
	defer cancel()
	out, err := newUpdateLog(s.InstanceLog(e.channel, e.arch), progress)
	if err != nil {
		return record{}, s.explain(err)
	}
	r, err := s.setUp(ctx, e, base, emulation, old, out)
	if err != nil && context.Cause(ctx) != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("%w (%s)", context.Cause(ctx), out.tail())
	}
	if err != nil {
		out.note("failed: " + brief(err).Error())
	} else {
		out.note("done: " + r.Digest)
	}
	out.Close()
	return r, err
}

// setUp does what make is for.
func (s *Store) setUp(ctx context.Context, e env, base Base, emulation string, old record, out *updateLog) (record, error) {
	setup := s.channels[e.channel].Setup
	c := &setupContainer{s: s, gen: s.conn.Generation(), out: out}
	// Whatever happens, also while ctx is over.
	defer c.remove()
	out.note(fmt.Sprintf("instance of %s from base %s (%s), %s", e, base.Ref(), base.Digest, emulation))
	if err := c.create(ctx, e, base, emulation, setup); err != nil {
		return record{}, err
	}
	if err := c.copyIn(ctx, setup.Files); err != nil {
		return record{}, err
	}
	if err := c.run(ctx, setup.Update); err != nil {
		return record{}, err
	}
	out.step("saving")
	l := layer{upper: c.upper, uid: s.opts.UIDBase, gid: s.opts.UIDBase, count: s.opts.UIDCount, ctx: ctx}
	sum, err := l.sum()
	if err != nil {
		return record{}, err
	}
	now := time.Now().UTC().Truncate(time.Second)
	if old.Image != "" && old.Base.Digest == base.Digest && old.Content == sum.Content {
		// Nothing that a build could see has changed. The old image may have
		// been altered on disk, but to find that out is Verify's.
		r := old
		r.Base, r.Setup, r.Checked = base, setup.Digest(), now
		r.Trouble, r.TroubleAt, r.Fails, r.Tried = "", time.Time{}, 0, ""
		return r, s.keep(e, r)
	}
	r := record{Instance: Instance{Channel: e.channel, Arch: e.arch, Base: base, Setup: setup.Digest(), Made: now, Checked: now}, Content: sum.Content}
	draft := s.draftRepo() + ":" + random()
	err = s.saveLayer(ctx, l, sum, draft, &r)
	if err == nil {
		err = s.swap(ctx, e, draft, r)
	}
	if err != nil {
		s.untag(draft)
	}
	return r, err
}

// saveLayer makes the record's base and a layer into an image, under a draft's
// name, and notes it in the record.
func (s *Store) saveLayer(ctx context.Context, l layer, sum layerSum, draft string, r *record) error {
	s.inst.saving.RLock()
	defer s.inst.saving.RUnlock()
	call, err := s.conn.Context(ctx)
	if err != nil {
		return err
	}
	base, err := images.GetImage(call, strings.TrimPrefix(r.Base.Image, "sha256:"), nil)
	if err != nil {
		return fmt.Errorf("base %s cannot be looked up: %w", r.Base.Ref(), s.explain(gone(err)))
	}
	if base.RootFS == nil {
		return fmt.Errorf("base %s has no layers: load it again", r.Base.Ref())
	}
	over := imageOver{Created: r.Made, Labels: map[string]string{labelArch: r.Arch, labelFor: env{r.Channel, r.Arch}.String()}}
	over.Arch, over.Variant = ociArch(r.Arch)
	for _, d := range base.RootFS.Layers {
		over.DiffIDs = append(over.DiffIDs, d.String())
	}
	pr, pw := io.Pipe()
	wrote := make(chan error, 1)
	go func() {
		err := l.archive(pw, over, sum, draft)
		wrote <- err
		pw.CloseWithError(err)
	}()
	// Not ctx: what is broken off may go on in podman, and turn up later.
	call, err = s.conn.Context(context.WithoutCancel(ctx))
	if err != nil {
		pr.Close()
		return err
	}
	_, err = images.Load(call, &once{r: pr, done: func() {}})
	pr.Close()
	if werr := <-wrote; werr != nil && !errors.Is(werr, io.ErrClosedPipe) {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("instance cannot be stored: %w", brief(s.explain(gone(err))))
	}
	img, err := images.GetImage(call, draft, new(images.GetOptions).WithSize(true))
	if err != nil {
		return fmt.Errorf("instance cannot be looked up: %w", s.explain(gone(err)))
	}
	r.Image, r.Size = "sha256:"+strings.TrimPrefix(img.ID, "sha256:"), img.Size
	if r.Digest, err = contentDigest(img); err != nil {
		return err
	}
	// What the record says is there must be there after a power cut as well, and
	// it must show when it is altered. This also has podman prepare it for
	// workspaces, where it has to.
	if err := s.vouch(ctx, r.Image); err != nil {
		return fmt.Errorf("instance cannot be vouched for: %w", s.explain(gone(err)))
	}
	return nil
}

// untag takes a name away from an image, if it is there.
func (s *Store) untag(name string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	call, err := s.conn.Context(ctx)
	if err != nil {
		return // the next Sweep does it
	}
	repo, tag, _ := strings.Cut(name, ":")
	if img, err := images.GetImage(call, name, nil); err == nil {
		images.Untag(call, img.ID, tag, repo, nil)
		s.tidy(ctx)
	}
}

// tidy removes images without a name, unless a base is being loaded, which has
// none yet, and after which that is done in any case.
func (s *Store) tidy(ctx context.Context) {
	if s.loading.TryAcquire(1) {
		defer s.loading.Release(1)
		s.prune(ctx)
	}
}

// swap makes a draft the instance: from then on builds use it.
func (s *Store) swap(ctx context.Context, e env, draft string, r record) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// The record is what counts; names only keep images from being pruned. The
	// old one has its name until the new record is on disk, and the new one its
	// draft's until it has the other: whenever the end comes, the image that
	// the record tells of is there, and sweepInstances names it.
	if err := s.keep(e, r); err != nil {
		return err
	}
	if err := s.name(context.WithoutCancel(ctx), e, r.Image); err != nil {
		s.log.Warn("an instance keeps the name of its draft until the next start", "environment", e.String(), "error", err)
		return nil
	}
	s.untag(draft)
	return nil
}

// name gives an image the name of an environment's instance.
func (s *Store) name(ctx context.Context, e env, image string) error {
	call, err := s.conn.Context(ctx)
	if err != nil {
		return err
	}
	if err := images.Tag(call, strings.TrimPrefix(image, "sha256:"), e.tag(), s.instanceRepo(), nil); err != nil {
		return fmt.Errorf("instance of %s cannot be named: %w", e, s.explain(gone(err)))
	}
	return nil
}

// setupContainer is the container in which a setup runs.
type setupContainer struct {
	s     *Store
	gen   int64 // of the service
	out   *updateLog
	name  string // "" before podman was asked for one
	upper string // its writable folder on the host, once it is known
}

// setupScript runs its arguments one after the other and says which one is
// next. It is the container's first process: when it ends, nothing that they
// may have left running lives on, and nothing writes any more.
const setupScript = `exec 2>&1
mark=$1
shift
n=0
for line; do
	n=$((n+1))
	printf '\n%s %d\n' "$mark" $n
	/bin/sh -c "$line" </dev/null || exit
done
exit 0`

func (c *setupContainer) create(ctx context.Context, e env, base Base, emulation string, setup Setup) error {
	s := c.s
	c.out.mark = "quarry-" + random()
	w := s.blank(e, base, Instance{Image: base.Image}, emulation)
	w.Limits = s.wide()
	c.name = "quarry-" + s.conn.Farm() + "-setup-" + random()
	w.container = c.name

	// Confined as a workspace is, but for the network and what is needed to
	// install packages; and what it writes is kept.
	g := s.container(w, true)
	g.Entrypoint = []string{"/bin/sh"}
	g.Command = append([]string{"-c", setupScript, "setup", c.out.mark}, setup.Update...)
	g.Mounts = nil
	g.CapAdd = setupCapabilities
	g.Volatile = false
	g.Env = map[string]string{
		"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", "TERM": "dumb",
		"DEBIAN_FRONTEND": "noninteractive", "QUARRY_CHANNEL": e.channel, "QUARRY_ARCH": e.arch,
	}
	if len(setup.Update) == 0 {
		g.NetNS = specgen.Namespace{NSMode: specgen.NoNetwork}
	} else if setup.LocalMirror {
		g.NetworkOptions = map[string][]string{"slirp4netns": {"allow_host_loopback=true"}}
	}
	call, err := s.conn.Context(context.WithoutCancel(ctx)) // one that is broken off might be made after all
	if err != nil {
		return err
	}
	if _, err := containers.CreateWithSpec(call, g, nil); err != nil {
		if podman.Code(err) == 404 {
			s.forget(base.Ref())
		}
		return fmt.Errorf("container for the update cannot be made: %w", s.blame(c.gen, err))
	}
	return c.findUpper(ctx)
}

// findUpper asks podman where on the host it is what the container writes. To
// know it from the start helps in removing it from a full disk.
func (c *setupContainer) findUpper(ctx context.Context) error {
	call, err := c.s.conn.Context(ctx)
	if err != nil {
		return err
	}
	data, err := containers.Inspect(call, c.name, new(containers.InspectOptions).WithSize(false))
	if err != nil {
		return fmt.Errorf("container for the update cannot be inspected: %w", c.s.blame(c.gen, err))
	}
	if data.GraphDriver == nil || data.GraphDriver.Data["UpperDir"] == "" {
		return errors.New("storage driver vfs keeps no layers, so instances cannot be made with it: put the state folder on ext4, xfs or btrfs, or apt-get install fuse-overlayfs; or leave out the channel's setup")
	}
	c.upper = c.s.conn.HostPath(data.GraphDriver.Data["UpperDir"])
	return nil
}

// copyIn puts the setup's files into the container.
func (c *setupContainer) copyIn(ctx context.Context, files []SetupFile) error {
	if len(files) == 0 {
		return nil
	}
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, f := range files {
		c.out.note("file " + f.Path)
		h := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(f.Path, "/"), Mode: int64(f.mode().Perm()), Size: int64(len(f.Data)), ModTime: setupTime}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := tw.Write(f.Data); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return err
	}
	call, err := c.s.conn.Context(ctx)
	if err != nil {
		return err
	}
	copyFiles, err := containers.CopyFromArchive(call, c.name, "/", &once{r: &b, done: func() {}})
	if err == nil {
		err = copyFiles()
	}
	if err != nil {
		return fmt.Errorf("setup's files cannot be copied in: %w", brief(c.s.blame(c.gen, err)))
	}
	return nil
}

// setupTime is the modification time of files that a setup copies in. One that
// moved would make each instance differ from the last.
var setupTime = time.Unix(1, 0)

// run runs the update commands to their end.
func (c *setupContainer) run(ctx context.Context, lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	c.out.lines = lines
	call, err := c.s.conn.Context(ctx)
	if err != nil {
		return err
	}
	ready := make(chan bool)
	attached := make(chan error, 1)
	go func() { attached <- containers.Attach(call, c.name, nil, c.out, c.out, ready, nil) }()
	select {
	case <-ready:
	case err := <-attached:
		return fmt.Errorf("output of the update cannot be had: %w", c.s.blame(c.gen, cmpErr(err)))
	}
	if err := containers.Start(call, c.name, nil); err != nil {
		c.remove() // ends the attachment
		<-attached
		return fmt.Errorf("container for the update cannot be started: %w", c.s.blame(c.gen, err))
	}
	// The attachment breaks with the service; its end says nothing by itself.
	select {
	case <-attached:
	case <-ctx.Done():
		c.remove()
		<-attached
		return ctx.Err()
	}
	c.out.flush()
	status, err := c.status(ctx)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case c.s.conn.Lost(c.gen):
		return fmt.Errorf("update was broken off: %w", podman.ErrGone)
	case err != nil:
		return fmt.Errorf("end of the update cannot be seen: %w", c.s.blame(c.gen, err))
	case status != 0:
		return fmt.Errorf("update command %q ended with status %d: %s", shorten(c.out.line(), 200), status, c.out.tail())
	case c.out.n != len(lines):
		return fmt.Errorf("update ended after %d of %d commands, without saying why: %s", c.out.n, len(lines), c.out.tail())
	}
	return nil
}

// status waits for the end of the container and returns its first process's
// exit status. podman's own wait would take 20 s, because it counts on the
// clean-up that this farm's podman does without.
func (c *setupContainer) status(ctx context.Context) (int32, error) {
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		call, err := c.s.conn.Context(ctx)
		if err != nil {
			return 0, err
		}
		data, err := containers.Inspect(call, c.name, new(containers.InspectOptions).WithSize(false))
		if err != nil || c.s.conn.Lost(c.gen) {
			return 0, err
		}
		if st := data.State; st != nil && slices.Contains([]string{"exited", "stopped", "dead"}, st.Status) {
			if st.OOMKilled && st.ExitCode != 0 {
				return st.ExitCode, fmt.Errorf("kernel killed something in it for want of memory (it has %d bytes)", c.s.limits.Memory)
			}
			return st.ExitCode, nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(wait):
		}
	}
}

func cmpErr(err error) error {
	if err == nil {
		return io.ErrUnexpectedEOF
	}
	return err
}

// remove ends the container and removes it. It may be called again.
func (c *setupContainer) remove() {
	if c.name == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := c.s.removeContainer(ctx, c.name, c.upper); err != nil {
		c.s.log.Error("the container of an update stays until the next start", "error", err)
		return
	}
	c.name = ""
}
