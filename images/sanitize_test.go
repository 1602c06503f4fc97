package images_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/testbase"
)

func oneFile(content string) images.Setup {
	return images.Setup{Files: []images.SetupFile{{Path: "/etc/v", Data: []byte(content)}}}
}

// twoChannels are two with a setup and one without.
func twoChannels() []images.Channel {
	archs := []string{testbase.Arch}
	return []images.Channel{
		{Name: "testing", Archs: archs, Setup: oneFile("testing")},
		{Name: "stable", Archs: archs, Setup: oneFile("stable")},
		{Name: "plain", Archs: archs},
	}
}

// inRoot reads a file of a workspace.
func inRoot(t testing.TB, w *images.Workspace, path string) string {
	t.Helper()
	data, err := os.ReadFile(w.Root() + path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// alter changes a file in a layer of podman's storage, behind everybody's back.
func (f farm) alter(t testing.TB, path, now, next string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(f.conn.Dir(), "root/overlay/*/diff", path))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range found {
		if data, err := os.ReadFile(p); err == nil && string(data) == now {
			n++
			if err := os.WriteFile(p, []byte(next), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n == 0 {
		t.Fatalf("no %s with %q in %v", path, now, found)
	}
}

func (f farm) on(t testing.TB, channel string) *images.Workspace {
	t.Helper()
	w, err := f.store.Workspace(t.Context(), images.Spec{Name: "1", Arch: testbase.Arch, Channel: channel})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close(context.Background()) })
	return w
}

// What was altered on disk is gone after sanitize, in the scope that was asked
// for; what runs goes on.
func TestSanitize(t *testing.T) {
	t.Parallel()
	f, _ := smallFarm(t, twoChannels())
	running := map[string]*images.Workspace{}
	before := map[string]images.Instance{}
	for _, c := range []string{"testing", "stable", "plain"} {
		running[c] = f.on(t, c)
		before[c] = running[c].Instance
		f.alter(t, "etc/v", c, "soiled "+c)
		if c == "stable" {
			break
		}
	}
	rep, err := f.store.Sanitize(t.Context(), images.SanitizeOptions{Channel: "testing"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Bases) != 0 || len(rep.Instances) != 1 || rep.Instances[0].Channel != "testing" || rep.Killed != 0 || rep.Took <= 0 {
		t.Errorf("%+v", rep)
	}
	if got := inRoot(t, f.on(t, "testing"), "/etc/v"); got != "testing" {
		t.Errorf("%q after sanitize", got)
	}
	if got := inRoot(t, f.on(t, "stable"), "/etc/v"); got != "soiled stable" {
		t.Errorf("%q where nobody sanitized", got)
	}
	for c, w := range running {
		if d, err := w.Died(t.Context()); err != nil || d.Dead {
			t.Errorf("the build on %s ended: %+v, %v", c, d, err)
		}
	}
	if rep, err = f.store.Sanitize(t.Context(), images.SanitizeOptions{Arch: testbase.Arch}, nil); err != nil || len(rep.Instances) != 2 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if got := inRoot(t, f.on(t, "stable"), "/etc/v"); got != "stable" {
		t.Errorf("%q after sanitize", got)
	}
	for _, o := range []images.SanitizeOptions{{Channel: "tseting"}, {Arch: "sparc"}, {Channel: "testing", Arch: "sparc"}} {
		if _, err := f.store.Sanitize(t.Context(), o, nil); err == nil {
			t.Errorf("%+v was sanitized", o)
		}
	}
	empty, _ := farmWith(t, startPodman(t, podman.Config{}), twoChannels())
	var none *images.NoBaseError
	if _, err := empty.store.Sanitize(t.Context(), images.SanitizeOptions{}, nil); !errors.As(err, &none) {
		t.Errorf("%v", err)
	}
}

// A base that was altered is made again from its clean copy, and with it all
// that stands on it, and builds are back in a clean system.
func TestSanitizeBase(t *testing.T) {
	t.Parallel()
	f, _ := smallFarm(t, twoChannels())
	var before []images.Instance
	for _, c := range []string{"testing", "stable"} {
		w := f.on(t, c)
		before = append(before, w.Instance)
		w.Close(t.Context())
	}
	f.alter(t, "etc/mark", "first", "FIRST")
	rep, err := f.store.Sanitize(t.Context(), images.SanitizeOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(rep.Bases) != 1 || rep.Bases[0].Digest != before[0].Base.Digest || len(rep.Instances) != 2 {
		t.Errorf("%+v", rep)
	}
	for _, c := range []string{"testing", "stable", "plain"} {
		w := f.on(t, c)
		if got := inRoot(t, w, "/etc/mark"); got != "first" {
			t.Errorf("%s: %q", c, got)
		}
		w.Close(t.Context())
	}
	if bad, err := f.store.Verify(t.Context(), true, nil); err != nil || len(bad) > 0 {
		t.Errorf("%v, %v", bad, err)
	}
}

// With Running, builds end by the farm's fault and not by their own.
func TestSanitizeRunning(t *testing.T) {
	t.Parallel()
	f, _ := smallFarm(t, twoChannels())
	mine, other := f.on(t, "testing"), f.on(t, "stable")
	rep, err := f.store.Sanitize(t.Context(), images.SanitizeOptions{Channel: "testing", Running: true}, nil)
	if err != nil || rep.Killed != 1 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if d, err := mine.Died(t.Context()); !errors.Is(err, podman.ErrGone) || !strings.Contains(err.Error(), "sanitized") {
		t.Errorf("%+v, %v", d, err)
	}
	if d, err := other.Died(t.Context()); err != nil || d.Dead {
		t.Errorf("%+v, %v", d, err)
	}
}

// What cannot be made again is not used as it was.
func TestSanitizeWithoutMirror(t *testing.T) {
	t.Parallel()
	web := newSite(t)
	f, _ := setupFarm(t, images.Setup{Files: []images.SetupFile{tool(t)},
		Update: []string{"tool fetch " + web.URL + "/a >/a && test -s /a"}, LocalMirror: true})
	f.update(t, false)
	web.down.Store(true)
	rep, err := f.store.Sanitize(t.Context(), images.SanitizeOptions{}, nil)
	var none *images.NoInstanceError
	if !errors.As(err, &none) || len(rep.Instances) != 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	if _, err := f.store.Workspace(t.Context(), images.Spec{Name: "1", Arch: testbase.Arch, Channel: "testing"}); !errors.As(err, &none) || !strings.Contains(err.Error(), "status") {
		t.Errorf("%v", err)
	}
	list, err := f.store.Instances(t.Context())
	if err != nil || len(list) != 1 || list[0].Image != "" || list[0].Trouble == "" {
		t.Errorf("%+v, %v", list, err)
	}
	f.nothingHalf(t)
	web.down.Store(false)
	if in := f.update(t, false); in.Image == "" || in.Trouble != "" {
		t.Errorf("%+v", in)
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	f, _ := smallFarm(t, twoChannels())
	arch := testbase.Arch
	fill := func() {
		t.Helper()
		for _, c := range []string{"testing", "stable"} {
			if _, err := f.store.Instance(t.Context(), c, arch); err != nil {
				t.Fatal(err)
			}
		}
	}
	fill()
	left := func() (names []string) {
		t.Helper()
		entries, err := os.ReadDir(filepath.Join(filepath.Dir(f.conn.Dir()), "instances"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return append(names, imageNames(t, f.conn)...)
	}
	whole := left()
	for _, what := range []string{"", "nonsense", "testing/sparc", "plain", "base", "instance", "instance nonsense", "all of it", "base sparc", "base ../x", "base", "testing stable", "../testing"} {
		done, err := f.store.Clean(t.Context(), what)
		if err == nil || len(done) > 0 {
			t.Errorf("%q was cleaned: %v", what, done)
			continue
		}
		if !strings.Contains(what, "base") && !strings.Contains(err.Error(), "stable/"+arch+", testing/"+arch) {
			t.Errorf("%q: %v", what, err)
		}
	}
	if now := left(); !slices.Equal(now, whole) {
		t.Errorf("%v became %v", whole, now)
	}
	for _, c := range []struct {
		what string
		done []string
		left []string
	}{
		{"testing", []string{"instance testing/" + arch},
			[]string{"stable." + arch + ".json", "stable." + arch + ".log", "localhost/quarry/base:" + arch, "localhost/quarry/instance:" + arch + ".stable"}},
		{"instance  stable/" + arch, []string{"instance stable/" + arch}, []string{"stable." + arch + ".json", "stable." + arch + ".log"}},
		{"all", []string{"instance stable/" + arch, "instance testing/" + arch, "base " + arch}, nil},
		{"base " + arch, []string{"instance stable/" + arch, "instance testing/" + arch, "base " + arch}, nil},
	} {
		f.load(t, "first")
		fill()
		done, err := f.store.Clean(t.Context(), c.what)
		if err != nil || !slices.Equal(done, c.done) {
			t.Errorf("%s: %v, %v", c.what, done, err)
		}
		now := left()
		if c.left == nil && len(now) > 0 {
			t.Errorf("%s left %v", c.what, now)
		}
		for _, name := range c.left {
			if strings.Contains(c.what, "stable") == slices.Contains(now, name) {
				t.Errorf("%s left %v", c.what, now)
			}
		}
	}
	var none *images.NoBaseError
	if _, err := f.store.Instance(t.Context(), "testing", arch); !errors.As(err, &none) {
		t.Errorf("%v", err)
	}
}

// A disk that is full while an instance is made is the farm's trouble, leaves
// nothing on it, and is over when there is room.
func TestInstanceDiskFull(t *testing.T) {
	store := testbase.ImageStore(t)
	state := t.TempDir()
	// Not testdisk's: podman takes none that is mounted nodev.
	if err := syscall.Mount("tmpfs", state, "tmpfs", 0, "size=96m"); err != nil {
		t.Fatalf("%v: run the tests as root, or inside podman unshare", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(state, 0); err != nil {
			t.Errorf("%s: %v", state, err)
		}
	})
	// The cleanups of the farms below run before the unmounting.
	t.Run("farm", func(t *testing.T) {
		conn := startPodman(t, podman.Config{State: state, ImageStores: []string{store}})
		u := oneFile("1")
		f, _ := farmWith(t, conn, channel(u))
		old := f.update(t, false)
		free := func() int64 {
			var st syscall.Statfs_t
			if err := syscall.Statfs(state, &st); err != nil {
				t.Fatal(err)
			}
			return int64(st.Bfree) * st.Bsize
		}
		before := free()
		for _, c := range []struct {
			what, line string
		}{
			{"while it runs", "dd if=/dev/urandom of=/big bs=1M count=200"},
			{"while it is saved", "dd if=/dev/urandom of=/big bs=1M count=60"},
		} {
			v := u
			v.Update = []string{c.line}
			f, _ = farmWith(t, conn, channel(v))
			in, err := f.store.Update(t.Context(), "testing", testbase.Arch, true, nil)
			if err == nil || in.Image != old.Image || !strings.Contains(strings.ToLower(err.Error()), "no space left") {
				t.Errorf("%s: %+v, %v", c.what, in, err)
			}
			if in, err := f.store.Instance(t.Context(), "testing", testbase.Arch); err != nil || in.Image != old.Image || in.Trouble == "" {
				t.Errorf("%s: %+v, %v", c.what, in, err)
			}
			if now := free(); now < before-4<<20 {
				t.Errorf("%s: %d bytes are still taken", c.what, before-now)
			}
			f.nothingHalf(t)
		}
		u.Update = []string{"dd if=/dev/urandom of=/big bs=1M count=5"}
		f, _ = farmWith(t, conn, channel(u))
		if in := f.update(t, true); in.Image == old.Image || in.Trouble != "" {
			t.Errorf("%+v", in)
		}
		f.nothingHalf(t)
	})
}

// maintained is a farm as the daemon starts one, whose Maintain is at work.
func maintained(t testing.TB, conn *podman.Conn, channels []images.Channel) (farm, *book) {
	t.Helper()
	f, log := farmWith(t, conn, channels)
	if _, err := f.store.VerifyAtStart(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.store.Maintain(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("maintain: %v", err)
		}
	})
	return f, log
}

// comes waits until an instance is as it should be.
func (f farm) comes(t testing.TB, what, channel string, ok func(images.Instance) bool) images.Instance {
	t.Helper()
	var in images.Instance
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		list, err := f.store.Instances(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, in = range list {
			if in.Channel == channel && ok(in) {
				return in
			}
		}
	}
	t.Fatalf("%s never came: %+v", what, in)
	return in
}

// The daemon makes instances of its own accord when a base comes, and renews
// them when another one does; a channel that is broken does not keep it from
// the others.
func TestMaintain(t *testing.T) {
	t.Parallel()
	channels := twoChannels()
	broken := images.Channel{Name: "broken", Archs: []string{testbase.Arch, "sparc64"}, Setup: oneFile("x")}
	broken.Setup.Update = []string{"exit 5"} // and the small base has no shell that runs it
	f, log := maintained(t, startPodman(t, podman.Config{}), append([]images.Channel{broken}, channels...))
	f.load(t, "first")
	made := func(in images.Instance) bool { return in.Image != "" }
	first := f.comes(t, "instance", "testing", made)
	f.comes(t, "instance", "stable", made)
	f.comes(t, "trouble", "broken", func(in images.Instance) bool { return in.Image == "" && in.Trouble != "" })

	base := f.load(t, "second")
	next := f.comes(t, "instance on the second base", "testing", func(in images.Instance) bool { return in.Base.Digest == base.Digest && in.Image != first.Image })
	if got := inRoot(t, f.on(t, "testing"), "/etc/mark"); got != "second" || next.Trouble != "" {
		t.Errorf("%q, %+v", got, next)
	}
	// What was thrown away is made again.
	if _, err := f.store.Clean(t.Context(), "testing"); err != nil {
		t.Fatal(err)
	}
	f.comes(t, "instance after clean", "testing", made)
	if n := log.count("updating an instance"); n > 20 {
		t.Errorf("%d updates: it does not rest", n)
	}
}

// An instance on an arch that the channel has not, as of what is noarch or cross
// built, is looked after as the others are once a build has used it.
func TestMaintainOtherArch(t *testing.T) {
	t.Parallel()
	conn := startPodman(t, podman.Config{})
	channels := []images.Channel{{Name: "testing", Archs: []string{"sparc64"}, Setup: oneFile("1")}}
	f, _ := maintained(t, conn, channels)
	f.load(t, "first")
	if got := inRoot(t, f.on(t, "testing"), "/etc/mark"); got != "first" {
		t.Errorf("%q", got)
	}
	base := f.load(t, "second")
	f.comes(t, "instance on the second base", "testing", func(in images.Instance) bool { return in.Base.Digest == base.Digest })
	if got := inRoot(t, f.on(t, "testing"), "/etc/mark"); got != "second" {
		t.Errorf("%q", got)
	}
	// Also one that an earlier daemon has left old.
	channels[0].Setup = oneFile("2")
	f, _ = maintained(t, conn, channels)
	before := f.on(t, "testing").Instance
	f.comes(t, "instance with the other setup", "testing", func(in images.Instance) bool { return in.Setup != before.Setup })
	if rep, err := f.store.Sanitize(t.Context(), images.SanitizeOptions{}, nil); err != nil || len(rep.Instances) != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
}

// One that is old is updated, though nobody asks.
func TestMaintainAge(t *testing.T) {
	t.Parallel()
	u := oneFile("1")
	u.MaxAge = time.Second
	conn := startPodman(t, podman.Config{})
	f, log := maintained(t, conn, channel(u))
	f.load(t, "first")
	first := f.comes(t, "instance", "testing", func(in images.Instance) bool { return in.Image != "" })
	last := f.comes(t, "update", "testing", func(in images.Instance) bool {
		return in.Checked.After(first.Checked) && log.count("an instance is up to date") > 0
	})
	if last.Image != first.Image || last.Made != first.Made {
		t.Errorf("%+v became %+v", first, last)
	}
}

// A layer that was altered while the daemon was down is found when it starts,
// and the instance made again.
func TestMaintainDamage(t *testing.T) {
	t.Parallel()
	first, _ := smallFarm(t, twoChannels())
	first.update(t, false)
	first.alter(t, "etc/v", "testing", "TESTING")
	f, log := maintained(t, first.conn, twoChannels())
	in := f.comes(t, "instance", "testing", func(in images.Instance) bool {
		return in.Image != "" && log.count(`msg="an instance is made" environment=testing/`) > 0
	})
	if got := inRoot(t, f.on(t, "testing"), "/etc/v"); got != "testing" || in.Trouble != "" {
		t.Errorf("%q, %+v", got, in)
	}
	if log.count("podman's storage is damaged") == 0 {
		t.Errorf("log: %s", log)
	}
}

// What is ready stands on the current instance: an update and sanitize have it
// made again.
func TestWarmInstances(t *testing.T) {
	t.Parallel()
	conn := startPodman(t, podman.Config{})
	start := func(content string) farm {
		t.Helper()
		log := new(book)
		f := farm{conn: conn, store: newStore(t, conn, images.Options{Channels: channel(oneFile(content)), Log: log.logger(),
			Pool: images.PoolOptions{Max: 1, MinMemory: 1, MinDisk: 1, MaxStall: 100}})}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- f.store.Maintain(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
		return f
	}
	f := start("1")
	f.load(t, "first")
	if err := f.store.Start(t.Context(), "testing"); err != nil {
		t.Fatal(err)
	}
	f.has(t, "one ready", func(e images.Environment) bool { return e.Warm == 1 })
	base := f.load(t, "second")
	f.comes(t, "instance on the second base", "testing", func(in images.Instance) bool { return in.Base.Digest == base.Digest })
	// The instance is there a moment before what stands on the old one goes.
	await(t, "the update is over", func() bool { _, making := images.Updates(f.store); return making == 0 })
	f.has(t, "one ready again", func(e images.Environment) bool { return e.Warm == 1 && e.Instance.Base.Digest == base.Digest })
	w := f.on(t, "testing")
	if got := inRoot(t, w, "/etc/mark"); got != "second" {
		t.Errorf("%q, warm %v", got, w.Warm)
	}
	f.has(t, "another ready", func(e images.Environment) bool { return e.Warm == 1 })
	rep, err := f.store.Sanitize(t.Context(), images.SanitizeOptions{}, nil)
	if err != nil || rep.Workspaces != 1 || len(rep.Instances) != 1 {
		t.Errorf("%+v, %v", rep, err)
	}
	f.has(t, "one ready after sanitize", func(e images.Environment) bool { return e.Warm == 1 })
	if got := f.on(t, "testing"); got.Instance != rep.Instances[0] {
		t.Errorf("%+v is not %+v", got.Instance, rep.Instances[0])
	}
	if d, err := w.Died(t.Context()); err != nil || d.Dead {
		t.Errorf("%+v, %v", d, err)
	}
}
