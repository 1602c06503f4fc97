package images_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containers/podman/v4/pkg/bindings/containers"
	bindings "github.com/containers/podman/v4/pkg/bindings/images"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/internal/treesum"
)

// diskFarm is a farm whose podman can be stopped and whose disk is meddled with.
type diskFarm struct {
	farm
	t     testing.TB // whose end is the farm's
	state string
	cfg   podman.Config
	log   *book
}

func newDiskFarm(t testing.TB, cfg podman.Config) *diskFarm {
	t.Helper()
	if cfg.State == "" {
		cfg.State = t.TempDir()
	}
	f := &diskFarm{t: t, state: cfg.State, cfg: cfg, log: new(book)}
	f.up()
	return f
}

func (f *diskFarm) up() {
	f.t.Helper()
	conn := startPodman(f.t, f.cfg)
	work := filepath.Join(f.t.TempDir(), "work")
	f.farm = farm{conn, newStore(f.t, conn, images.Options{WorkDir: work, Log: f.log.logger()}), work}
}

// again does something while the farm is down, and starts it again.
func (f *diskFarm) again(t testing.TB, meanwhile func()) {
	t.Helper()
	if err := f.store.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.conn.Close(); err != nil {
		t.Fatal(err)
	}
	meanwhile()
	f.up()
}

const marked = "what stands in the base"

// load loads a small system with a file that workspaces can tell.
func (f *diskFarm) load(t testing.TB, ref, mark string) images.Base {
	t.Helper()
	b, err := f.store.Load(t.Context(), ref, file(t, "morphux.tar", small(t, testbase.Arch,
		entry{name: "./etc/", kind: '5'}, entry{name: "./etc/mark", data: mark, mode: 0o644}, entry{name: "./etc/other", data: "other", mode: 0o600})), nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// reads makes a workspace and says what it sees of a file.
func (f *diskFarm) reads(t testing.TB, path string) string {
	t.Helper()
	w, err := f.store.Workspace(t.Context(), images.Spec{Name: "1", Arch: testbase.Arch})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close(t.Context())
	a := ask(t, w, request{Action: "read", Shell: path})
	return a.Output + a.Error
}

// whole fails the test unless workspaces see the base as it was loaded.
func (f *diskFarm) whole(t testing.TB) {
	t.Helper()
	if got := f.reads(t, "/etc/mark"); got != "-rw-r--r-- "+marked {
		t.Errorf("a workspace sees %q", got)
	}
	if got := f.reads(t, "/etc/other"); got != "-rw------- other" {
		t.Errorf("a workspace sees %q", got)
	}
	if damage, err := f.store.Verify(t.Context(), true, nil); err != nil || len(damage) > 0 {
		t.Errorf("%v, %v", damage, err)
	}
}

// layer is the folder on disk of the layer that holds etc/mark.
func (f *diskFarm) layers(t testing.TB) (dirs []string) {
	t.Helper()
	for _, pattern := range []string{"overlay/*/diff/etc/mark", "vfs/dir/*/etc/mark"} {
		found, err := filepath.Glob(filepath.Join(f.conn.Dir(), "root", pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range found {
			dirs = append(dirs, filepath.Dir(filepath.Dir(p)))
		}
	}
	if len(dirs) == 0 {
		t.Fatal("no layer is on disk")
	}
	return dirs
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// keeping alters a file and puts its time back.
func keeping(t testing.TB, path string, do func() error) {
	t.Helper()
	st, err := os.Stat(path)
	must(t, err)
	must(t, do())
	must(t, os.Chtimes(path, time.Time{}, st.ModTime()))
}

// ticked waits until the clock of file times has moved on, so that a change
// leaves a trace in them.
func ticked(t testing.TB, dir string) {
	t.Helper()
	stamp := func() time.Time {
		p := filepath.Join(dir, "tick")
		must(t, os.WriteFile(p, []byte("x"), 0o644))
		st, err := os.Stat(p)
		must(t, err)
		must(t, os.Remove(p))
		return st.ModTime()
	}
	for was := stamp(); !stamp().After(was); {
	}
}

// Whatever is done to a layer on disk is found and undone.
func TestAlteredLayer(t *testing.T) {
	f := newDiskFarm(t, podman.Config{})
	loaded := f.load(t, testbase.Arch, marked)
	for _, c := range []struct {
		name string
		do   func(layer string) error
		says string
	}{
		{"content, with its time put back", func(l string) error {
			keeping(t, l+"/etc/mark", func() error { return os.WriteFile(l+"/etc/mark", []byte(strings.ToUpper(marked)), 0) })
			return nil
		}, "etc/mark has other content"},
		{"mode", func(l string) error { return os.Chmod(l+"/etc/other", 0o666) }, "etc/other has mode 0666, not 0600"},
		{"deleted", func(l string) error { return os.Remove(l + "/etc/mark") }, "etc/mark is missing"},
		{"truncated", func(l string) error { return os.Truncate(l+"/etc/mark", 0) }, "etc/mark has 0 bytes"},
		{"added", func(l string) error { return os.WriteFile(l+"/etc/new\n", nil, 0o644) }, `"etc/new\n" was added`},
		{"owner", func(l string) error { return os.Lchown(l+"/bin", 1, 1) }, "bin belongs to 1:1"},
		{"all deleted", os.RemoveAll, "cannot be read"},
		{"everything of the layer deleted", func(l string) error { return os.RemoveAll(filepath.Dir(l)) }, "has lost its link"},
		{"empty link", func(l string) error { return os.Truncate(filepath.Dir(l)+"/link", 0) }, "broken link"},
		{"its notes deleted", func(l string) error {
			return os.WriteFile(filepath.Join(f.conn.Dir(), "root/overlay-layers/layers.json"), []byte("[]"), 0o600)
		}, "is gone from podman's storage"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ticked(t, f.state)
			f.again(t, func() { must(t, c.do(f.layers(t)[0])) })
			damage, err := f.store.Verify(t.Context(), false, nil)
			if err != nil || len(damage) == 0 || damage[0].What != "base "+testbase.Arch || !strings.Contains(fmt.Sprint(damage), c.says) {
				t.Fatalf("%v, %v", damage, err)
			}
			found, err := f.store.VerifyAtStart(t.Context())
			if err != nil || len(found) == 0 {
				t.Fatalf("%v, %v: %s", found, err, f.log)
			}
			b, err := f.store.Base(t.Context(), testbase.Arch)
			if err != nil || b.Digest != loaded.Digest || b.Source != loaded.Source || !b.Created.Equal(loaded.Created) {
				t.Errorf("%+v, %v, not %+v", b, err, loaded)
			}
			f.whole(t)
		})
	}
	for _, line := range []string{"podman's storage is damaged", "a damaged image is removed", "a base is made again from its clean copy"} {
		if !strings.Contains(f.log.String(), line) {
			t.Errorf("the log does not say %q", line)
		}
	}
	// Touched is not altered: nothing is thrown away for it.
	was := f.layers(t)[0] + "/etc/mark"
	before, err := os.Stat(was)
	must(t, err)
	ticked(t, f.state)
	must(t, os.Chmod(was, 0o600))
	must(t, os.Chmod(was, 0o644))
	if damage, err := f.store.VerifyAtStart(t.Context()); err != nil || len(damage) > 0 {
		t.Errorf("%v, %v", damage, err)
	}
	if after, err := os.Stat(was); err != nil || !os.SameFile(before, after) {
		t.Errorf("the layer was made again: %v", err)
	}
}

// A storage whose own notes are broken, as a loss of power leaves them, is begun
// anew.
func TestBrokenStorage(t *testing.T) {
	for _, c := range []struct{ driver, name string }{
		{"", "overlay-images/images.json"}, {"", "overlay-layers/layers.json"}, {"", "libpod/bolt_state.db"}, {"", "defaultNetworkBackend"},
		{"vfs", "vfs-images/images.json"}, {"vfs", "vfs-layers/layers.json"},
	} {
		f := newDiskFarm(t, podman.Config{Driver: c.driver})
		f.load(t, testbase.Arch, marked)
		for _, data := range []string{"", "no such thing"} {
			f.again(t, func() {
				path := filepath.Join(f.state, "podman/root", c.name)
				if _, err := os.Stat(path); err != nil {
					t.Fatal(err)
				}
				must(t, os.WriteFile(path, []byte(data), 0o600))
			})
			if _, err := f.store.VerifyAtStart(t.Context()); err != nil {
				t.Errorf("%s with %q: %v", c.name, data, err)
			}
			f.whole(t)
			if left, err := filepath.Glob(filepath.Join(f.state, "podman/root.broken")); err != nil || len(left) > 0 {
				t.Errorf("%q, %v", left, err)
			}
		}
	}
}

// What a quick check cannot see, because nothing wrote through the file system,
// is found when the machine was started anew.
func TestRot(t *testing.T) {
	f := newDiskFarm(t, podman.Config{})
	f.load(t, testbase.Arch, marked)
	if damage, err := f.store.VerifyAtStart(t.Context()); err != nil || len(damage) > 0 {
		t.Fatalf("%v, %v", damage, err)
	}
	// The disk is as it should be and the measure is not, which is the same to
	// who compares them.
	rot := func() {
		trees, err := filepath.Glob(filepath.Join(f.state, "bases/layers/*.tree"))
		if err != nil || len(trees) != 1 {
			t.Fatalf("%q, %v", trees, err)
		}
		data, err := os.ReadFile(trees[0])
		must(t, err)
		tree, err := treesum.Decode(data)
		must(t, err)
		for i := range tree.Entries {
			if tree.Entries[i].Path == "etc/mark" {
				tree.Entries[i].Sum[0] ^= 1
			}
		}
		data, err = tree.Encode()
		must(t, err)
		must(t, os.WriteFile(trees[0], data, 0o644))
	}
	rot()
	if damage, err := f.store.VerifyAtStart(t.Context()); err != nil || len(damage) > 0 {
		t.Fatalf("%v, %v", damage, err)
	}
	must(t, os.WriteFile(filepath.Join(f.state, "bases/verified"), []byte("another start\n"), 0o644))
	damage, err := f.store.VerifyAtStart(t.Context())
	if err != nil || len(damage) != 1 || damage[0].Path != "etc/mark" || !strings.Contains(damage[0].Detail, "other content") {
		t.Fatalf("%v, %v", damage, err)
	}
	f.whole(t)
	// Asked for, it is found too, and Repair knows of it.
	rot()
	var seen []images.Progress
	damage, err = f.store.Verify(t.Context(), true, func(p images.Progress) { seen = append(seen, p) })
	if err != nil || len(damage) != 1 {
		t.Fatalf("%v, %v", damage, err)
	}
	if last := seen[len(seen)-1]; last.Step != "verifying" || last.Done == 0 || last.Done != last.Total {
		t.Errorf("%+v", last)
	}
	done, err := f.store.Repair(t.Context(), nil)
	if err != nil || len(done) != 2 || !strings.Contains(done[1], "made again from its clean copy") {
		t.Errorf("%q, %v", done, err)
	}
	f.whole(t)
	// A measure that is damaged itself proves nothing.
	trees, _ := filepath.Glob(filepath.Join(f.state, "bases/layers/*.tree"))
	must(t, os.Truncate(trees[0], 10))
	if damage, err := f.store.VerifyAtStart(t.Context()); err != nil || len(damage) != 1 || !strings.Contains(damage[0].Detail, "cannot be told right from wrong") {
		t.Errorf("%v, %v", damage, err)
	}
	f.whole(t)
	if done, err := f.store.Repair(t.Context(), nil); err != nil || len(done) > 0 {
		t.Errorf("nothing was left to do, but: %q, %v", done, err)
	}
}

// Where podman keeps copies of layers with mapped users, those are what builds
// see.
func TestMappedLayer(t *testing.T) {
	f := newDiskFarm(t, podman.Config{Driver: "vfs"})
	f.load(t, testbase.Arch, marked)
	root := filepath.Join(f.conn.Dir(), "root")
	var imgs []struct {
		Mapped []string `json:"mapped-layers"`
	}
	data, err := os.ReadFile(filepath.Join(root, "vfs-images/images.json"))
	must(t, err)
	must(t, json.Unmarshal(data, &imgs))
	if len(imgs) != 1 || len(imgs[0].Mapped) != 1 {
		t.Fatalf("no mapped layer was made while loading: %s", data)
	}
	layer := filepath.Join(root, "vfs/dir", imgs[0].Mapped[0])
	if damage, err := f.store.Verify(t.Context(), false, nil); err != nil || len(damage) > 0 {
		t.Fatalf("%v, %v", damage, err)
	}
	ticked(t, f.state)
	keeping(t, layer+"/etc/mark", func() error { return os.WriteFile(layer+"/etc/mark", []byte(strings.ToUpper(marked)), 0) })
	damage, err := f.store.VerifyAtStart(t.Context())
	if err != nil || len(damage) != 1 || damage[0].Path != "etc/mark" {
		t.Fatalf("%v, %v", damage, err)
	}
	if _, err := os.Stat(layer); !os.IsNotExist(err) {
		t.Errorf("the damaged layer stays: %v", err)
	}
	f.whole(t)
}

// A layer that somebody's half-done work left is never used again unseen.
func TestLoadOverDamagedLayer(t *testing.T) {
	f := newDiskFarm(t, podman.Config{})
	b := f.load(t, testbase.Arch, marked)
	w, err := f.store.Workspace(t.Context(), images.Spec{Name: "1", Arch: testbase.Arch})
	must(t, err)
	for name, measured := range map[string]bool{"with a measure": true, "without one": false} {
		t.Run(name, func(t *testing.T) {
			l := f.layers(t)[0]
			ticked(t, f.state)
			must(t, os.Truncate(l+"/etc/mark", 0))
			if !measured {
				must(t, os.RemoveAll(filepath.Join(f.state, "bases/layers")))
			}
			if again := f.load(t, testbase.Arch+":second", marked); again.Digest != b.Digest {
				t.Errorf("%+v", again)
			}
			// The damaged image had to go, with what it was called.
			done, err := f.store.Repair(t.Context(), nil)
			if err != nil || len(done) != 1 {
				t.Errorf("%q, %v", done, err)
			}
			f.whole(t)
		})
	}
	if d, err := w.Died(t.Context()); !d.Dead && !errors.Is(err, podman.ErrGone) {
		t.Errorf("a build goes on in a damaged base: %v, %v", d, err)
	}
	must(t, w.Close(t.Context()))
}

// A build that runs in what must go is the farm's to repeat.
func TestRepairUnderBuild(t *testing.T) {
	f := newDiskFarm(t, podman.Config{})
	b := f.load(t, testbase.Arch, marked)
	w, err := f.store.Workspace(t.Context(), images.Spec{Name: "1", Arch: testbase.Arch})
	must(t, err)
	defer w.Close(t.Context())
	call, err := f.conn.Context(t.Context())
	must(t, err)
	// An instance on the same layer goes with it.
	must(t, bindings.Tag(call, b.Image, testbase.Arch+".testing", "localhost/quarry/instance", nil))
	ticked(t, f.state)
	must(t, os.Chmod(f.layers(t)[0]+"/etc/mark", 0o777))
	damage, err := f.store.Verify(t.Context(), false, nil)
	if err != nil || len(damage) != 2 {
		t.Fatalf("%v, %v", damage, err)
	}
	what := map[string]bool{damage[0].What: true, damage[1].What: true}
	if !what["base "+testbase.Arch] || !what["instance testing/"+testbase.Arch] {
		t.Errorf("%v", damage)
	}
	if _, err := f.store.Repair(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if d, err := w.Died(t.Context()); err == nil && !d.Dead {
		t.Error("a build goes on in a damaged base")
	}
	if _, err := bindings.GetImage(call, "localhost/quarry/instance:"+testbase.Arch+".testing", nil); podman.Code(err) != 404 {
		t.Errorf("a damaged instance stays: %v", err)
	}
	list, err := containers.List(call, new(containers.ListOptions).WithAll(true).WithExternal(true))
	if err != nil || len(list) > 0 {
		t.Errorf("%v, %v", list, err)
	}
	f.whole(t)
}

// A storage that is only read is verified too, and left alone.
func TestReadOnlyStore(t *testing.T) {
	shared := newDiskFarm(t, podman.Config{})
	base := shared.load(t, testbase.Arch, marked)
	root := filepath.Join(shared.conn.Dir(), "root")
	layer := shared.layers(t)[0]
	must(t, shared.store.Close(t.Context()))
	must(t, shared.conn.Close())

	f := newDiskFarm(t, podman.Config{ImageStores: []string{root}})
	if damage, err := f.store.VerifyAtStart(t.Context()); err != nil || len(damage) > 0 {
		t.Fatalf("%v, %v", damage, err)
	}
	if b, err := f.store.Restore(t.Context(), testbase.Arch, nil); err != nil || b.Digest != base.Digest {
		t.Errorf("%+v, %v", b, err)
	}
	f.whole(t)
	if copies, err := filepath.Glob(filepath.Join(f.state, "bases/*.tar.zst")); err != nil || len(copies) > 0 {
		t.Errorf("%q, %v", copies, err)
	}
	// One's own base is not given up for the shared one.
	own := f.load(t, testbase.Arch, "mine")
	f.removeImage(t, own)
	if damage, err := f.store.VerifyAtStart(t.Context()); err != nil || len(damage) != 1 {
		t.Errorf("%v, %v", damage, err)
	}
	if got := f.reads(t, "/etc/mark"); got != "-rw-r--r-- mine" {
		t.Errorf("a workspace sees %q", got)
	}
	must(t, f.store.Remove(t.Context(), testbase.Arch))
	f.whole(t)

	ticked(t, f.state)
	must(t, os.Truncate(layer+"/etc/mark", 0))
	damage, err := f.store.VerifyAtStart(t.Context())
	if err == nil || !strings.Contains(err.Error(), "only read here") || len(damage) != 1 {
		t.Errorf("%v, %v", damage, err)
	}
	if _, err := f.store.Restore(t.Context(), testbase.Arch, nil); err == nil || !strings.Contains(err.Error(), "only read here") {
		t.Errorf("%v", err)
	}
}
