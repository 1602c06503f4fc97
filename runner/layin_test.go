package runner_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/layers"
	"github.com/Morphux/quarry/runner"
)

// kept is a farm with artifacts and a cache of layers.
type kept struct {
	*farm
	store *extract.Artifacts
	cache *layers.Cache
}

func newKept(t testing.TB) *kept {
	t.Helper()
	k := &kept{farm: newFarm(t)}
	var err error
	if k.store, err = extract.OpenArtifacts(filepath.Join(t.TempDir(), "artifacts")); err != nil {
		t.Fatal(err)
	}
	if k.cache, err = layers.Open(layers.Options{Dir: filepath.Join(t.TempDir(), "layers"), Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.farm.store.Drain(context.Background()); err != nil {
			t.Error(err)
		}
		if _, _, busy := k.cache.Usage(); busy > 0 {
			t.Errorf("%d layers are still in use", busy)
		}
		k.cache.Close()
	})
	return k
}

// build builds what stages a dependency.
func (k *kept) dep(t testing.TB, name, install string) runner.Dep {
	t.Helper()
	var art *quarry.Artifact
	k.succeed(t, attempt{pkg: pkg{compilation: map[string]any{"install": install}}, look: func(ws *images.Workspace) {
		var err error
		_, art, err = extract.Tree(t.Context(), filepath.Join(ws.Dir, "dest"), extract.Options{
			UIDBase: ws.UID, GIDBase: ws.GID, Store: k.store, SourceTime: time.Unix(testpkg.Unix, 0)})
		if err != nil {
			t.Fatal(err)
		}
	}})
	return runner.Dep{DepUsed: quarry.DepUsed{Package: name, Version: "1.0", Artifact: art.SHA256}, Path: k.store.Path(art.SHA256)}
}

// using makes a build with dependencies that are laid in.
func (k *kept) using(p pkg, deps ...runner.Dep) attempt {
	return attempt{pkg: p, deps: deps, change: func(j *runner.Job) { j.Layers = k.cache }}
}

// Five dependencies with all that is awkward are laid in; the build may do to
// them what it likes, and the next one finds them as they were.
func TestLayIn(t *testing.T) {
	k := newKept(t)
	deps := []runner.Dep{
		k.dep(t, "merged", "mkdir -p $DESTDIR/lib $DESTDIR/bin; echo one >$DESTDIR/lib/libone; echo tool >$DESTDIR/bin/one ;"),
		k.dep(t, "links", "mkdir -p $DESTDIR/usr/lib/two; echo two >$DESTDIR/usr/lib/two/a; ln $DESTDIR/usr/lib/two/a $DESTDIR/usr/lib/two/b; ln -s two/a $DESTDIR/usr/lib/libtwo ;"),
		k.dep(t, "setuid", "mkdir -p $DESTDIR/usr/bin; cp /bin/true $DESTDIR/usr/bin/three; chown 7:8 $DESTDIR/usr/bin/three; chmod 4755 $DESTDIR/usr/bin/three ;"),
		k.dep(t, "again", "mkdir -p $DESTDIR/usr/bin; echo four >$DESTDIR/usr/bin/one; mkdir -m 2775 $DESTDIR/usr/share; mkdir -m 750 $DESTDIR/usr/share/four; mkfifo $DESTDIR/usr/share/four/p ;"),
		k.dep(t, "base", "mkdir -p $DESTDIR/etc; echo five >$DESTDIR/etc/issue ;"),
	}
	see := `cat /lib/libone /usr/bin/one /usr/lib/libtwo /etc/issue; stat -c '%n %a %u:%g %h %Y' /usr/lib/two/a /usr/bin/three /usr/share/four /usr/share/four/p;` +
		` test /usr/lib/two/a -ef /usr/lib/two/b && echo one file; readlink /lib /usr/lib/libtwo; stat -c '%n %a %u:%g' / /usr /usr/bin /usr/share ;`
	p := pkg{compilation: map[string]any{"make": see, "install": "mkdir -p $DESTDIR/usr; echo x >$DESTDIR/usr/x ;"}}
	said := func(out string) string {
		_, out, _ = strings.Cut(out, "==> make: cat")
		_, out, _ = strings.Cut(out, "\n")
		out, _, _ = strings.Cut(out, "==> make: ended")
		return out
	}
	streamed := k.using(p, deps...)
	streamed.change = nil
	_, out := k.succeed(t, streamed)
	want := said(out)
	if !strings.Contains(want, "one\nfour\ntwo\nfive\n") || !strings.Contains(want, "/usr/bin/three 4755 7:8") {
		t.Fatalf("streamed:\n%s", out)
	}

	check := func(t *testing.T) {
		a := k.using(p, deps...)
		a.look = func(ws *images.Workspace) {
			for _, name := range []string{"usr", "etc/issue"} {
				if _, err := os.Lstat(filepath.Join(ws.Upper, name)); err == nil {
					t.Errorf("/%s was written, though it was laid in", name)
				}
			}
		}
		_, out := k.succeed(t, a)
		if n := strings.Count(out, " laid in, "); n != len(deps) || strings.Contains(out, " installed, ") {
			t.Errorf("%d of %d dependencies were laid in\n%s", n, len(deps), out)
		}
		if got := said(out); got != want {
			t.Errorf("laid in:\n%s\nstreamed:\n%s", got, want)
		}
	}
	t.Run("first", check)
	t.Run("again", check)
	t.Run("spoilt by a build", func(t *testing.T) {
		spoil := "rm -r /usr/lib/two; echo spoilt >/lib/libone; echo spoilt >>/usr/bin/one; chmod 0 /usr/bin/three; chown 1:1 /usr/bin/three; rm /usr/share/four/p;" +
			" echo new >/usr/share/four/new; mv /etc/issue /etc/issue2; rm -f /usr/lib/libtwo; mkdir /usr/lib/libtwo; touch /usr/lib ;"
		k.succeed(t, k.using(pkg{compilation: map[string]any{"make": spoil}}, deps...))
		check(t)
	})
	t.Run("written to by install", func(t *testing.T) {
		p := pkg{compilation: map[string]any{"install": "rm /usr/lib/two/b; echo >>/usr/bin/one; chmod 700 /usr/share/four; echo >/usr/share/four/q; mkdir -p $DESTDIR/usr ;"}}
		fail, _ := k.fails(t, k.using(p, deps...), "install", quarry.CauseEscape)
		if got := fmt.Sprint(fail.Paths); got != "[/usr/bin/one /usr/lib/two/b /usr/share/four/q]" {
			t.Errorf("paths %s", got)
		}
	})
}

// A library that is laid in is found by the compiler and the linker.
func TestLayInLibrary(t *testing.T) {
	k := newKept(t)
	var art *quarry.Artifact
	k.succeed(t, attempt{pkg: testPackage(t, "libgreet"), look: func(ws *images.Workspace) {
		var err error
		_, art, err = extract.Tree(t.Context(), filepath.Join(ws.Dir, "dest"), extract.Options{
			UIDBase: ws.UID, GIDBase: ws.GID, Store: k.store, SourceTime: time.Unix(testpkg.Unix, 0)})
		if err != nil {
			t.Fatal(err)
		}
	}})
	dep := runner.Dep{DepUsed: quarry.DepUsed{Package: "libgreet", Version: "1.0", Artifact: art.SHA256}, Path: k.store.Path(art.SHA256)}
	for range 2 {
		res, out := k.succeed(t, k.using(testPackage(t, "greeter"), dep))
		if !strings.Contains(out, "==> prepare: libgreet 1.0 laid in, ") || names(res.Steps) != "prepare make test install" {
			t.Errorf("steps %s\n%s", names(res.Steps), out)
		}
	}
	// What cannot be unpacked is streamed, where its fault shows.
	bad := dep
	bad.Path = filepath.Join(t.TempDir(), "x.tar.zst")
	if err := os.WriteFile(bad.Path, []byte("nonsense"), 0o644); err != nil {
		t.Fatal(err)
	}
	bad.Artifact = strings.Repeat("0", 64)
	if _, _, err := k.try(t, k.using(pkg{}, dep, bad)); err == nil || !strings.Contains(err.Error(), "libgreet 1.0 cannot be installed") {
		t.Errorf("error %v, want the farm's", err)
	}
}

// Where one dependency is in the other's way the later ones are installed, with
// the same result as if all were.
func TestLayInPartly(t *testing.T) {
	k := newKept(t)
	deps := []runner.Dep{
		k.dep(t, "real", "mkdir -p $DESTDIR/opt/real; echo a >$DESTDIR/opt/real/a; ln -s real $DESTDIR/opt/name ;"),
		k.dep(t, "through", "mkdir -p $DESTDIR/opt/name; echo b >$DESTDIR/opt/name/b ;"),
		k.dep(t, "after", "mkdir -p $DESTDIR/opt; echo c >$DESTDIR/opt/c ;"),
	}
	_, out := k.succeed(t, k.using(pkg{compilation: map[string]any{"make": "cat /opt/real/a /opt/real/b /opt/c; readlink /opt/name ;"}}, deps...))
	for _, want := range []string{"real 1.0 laid in", "through 1.0 installed", "after 1.0 installed", "a\nb\nc\nreal\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// The disk limit counts what the build writes, not what was laid in.
func TestLayInDisk(t *testing.T) {
	k := newKept(t)
	dep := k.dep(t, "large", "mkdir -p $DESTDIR/opt; dd if=/dev/urandom of=$DESTDIR/opt/large bs=1M count=30 2>/dev/null ;")
	a := k.using(pkg{compilation: map[string]any{"make": "sleep 5; test -s /opt/large ;"}}, dep)
	a.spec.Limits.Disk = 20 << 20
	a.look = func(ws *images.Workspace) {
		u, err := ws.Usage()
		if err != nil || u.Disk > 5<<20 {
			t.Errorf("%d bytes of disk, %v", u.Disk, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(ws.Upper, &st); err != nil || st.Uid != uint32(ws.UID) {
			t.Errorf("layer belongs to %d, %v", st.Uid, err)
		}
	}
	k.succeed(t, a)
	a.pkg.compilation["make"] = "head -c 15000000 /dev/zero >/usr/fill; head -c 15000000 /dev/zero >/usr/more; sleep 240 ;"
	a.look = nil
	k.fails(t, a, "make", quarry.CauseDisk)
}
