package runner_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/Morphux/quarry/runner"
	"golang.org/x/sys/unix"
)

func testPackage(t testing.TB, name string) pkg {
	return pkg{source: os.DirFS(testpkg.Copy(t, name))}
}

func TestPackages(t *testing.T) {
	f := newFarm(t)
	t.Run("hello", func(t *testing.T) {
		res, _ := f.succeed(t, attempt{pkg: testPackage(t, "hello"), look: func(ws *images.Workspace) {
			staged(t, &runner.Result{Staged: filepath.Join(ws.Dir, "dest")}, func(got string) {
				for _, want := range []string{"/usr/bin/hello", "/etc/hello.conf"} {
					if !strings.Contains(got, want) {
						t.Errorf("installed %s, want %s among them", got, want)
					}
				}
			})
		}})
		if got := names(res.Steps); got != "prepare make test install" {
			t.Errorf("steps %s", got)
		}
		for _, s := range res.Steps {
			if s.Wall <= 0 || s.Name == "make" && (s.User+s.Sys <= 0 || s.RSS < 1<<20) {
				t.Errorf("step %+v", s)
			}
		}
		if res.Usage.PeakMemory < 1<<20 || res.Usage.SourceSize < 100 {
			t.Errorf("usage %+v", res.Usage)
		}
		if len(res.Warnings) != 0 {
			t.Errorf("warnings %q", res.Warnings)
		}
	})
	t.Run("autohello", func(t *testing.T) {
		res, out := f.succeed(t, attempt{pkg: testPackage(t, "autohello"), jobs: 2})
		if got := names(res.Steps); got != "prepare before patches configure make test install after" {
			t.Errorf("steps %s", got)
		}
		at := -1
		for _, line := range []string{
			"==> prepare: ", "==> before: /bin/sh /quarry/src/scripts/before.sh\n", "autohello: before\n", "==> before: ended with status 0 in ",
			"==> patches: patch -p1 --force --no-backup-if-mismatch -i /quarry/src/patches/01-greeting.patch\n",
			"==> configure: ./configure --prefix=/usr '--with-greeting-to=the whole wide world' --enable-shouting\n",
			"==> make: make\n", "==> test: make check\n", "==> install: make install DESTDIR=/quarry/dest\n",
			"==> after: ", "autohello: after\n", "==> after: ended with status 0 in ",
		} {
			i := strings.Index(out, line)
			if i <= at {
				t.Errorf("%q does not come where it should in\n%s", line, out)
			}
			at = i
		}
	})
	t.Run("broken", func(t *testing.T) {
		fail, _ := f.fails(t, attempt{pkg: testPackage(t, "broken")}, "make", quarry.CauseExit)
		if fail.Message != "make ended with status 2" || fail.Status != 2 || fail.Command != "make" || len(fail.Paths) != 0 {
			t.Errorf("failure %+v", *fail)
		}
	})
	t.Run("escaper", func(t *testing.T) {
		fail, _ := f.fails(t, attempt{pkg: testPackage(t, "escaper")}, "install", quarry.CauseEscape)
		if fmt.Sprint(fail.Paths) != "[/usr/share/escaper/escaped.txt]" || !strings.Contains(fail.Message, "/usr/share/escaper/escaped.txt") {
			t.Errorf("failure %+v", *fail)
		}
	})
}

// TestDependency builds a library, makes its artifact and builds a program
// with it.
func TestDependency(t *testing.T) {
	f := newFarm(t)
	store, err := extract.OpenArtifacts(filepath.Join(t.TempDir(), "artifacts"))
	if err != nil {
		t.Fatal(err)
	}
	var art *quarry.Artifact
	f.succeed(t, attempt{pkg: testPackage(t, "libgreet"), look: func(ws *images.Workspace) {
		_, art, err = extract.Tree(t.Context(), filepath.Join(ws.Dir, "dest"), extract.Options{
			UIDBase: ws.UID, GIDBase: ws.GID, Store: store, SourceTime: time.Unix(testpkg.Unix, 0)})
		if err != nil {
			t.Fatal(err)
		}
	}})
	without, _ := f.fails(t, attempt{pkg: testPackage(t, "greeter")}, "make", quarry.CauseExit)
	if without.Status != 2 {
		t.Errorf("without its dependency: %+v", *without)
	}
	dep := runner.Dep{DepUsed: quarry.DepUsed{Package: "libgreet", Version: "1.0", Artifact: art.SHA256}, Path: store.Path(art.SHA256)}
	res, out := f.succeed(t, attempt{pkg: testPackage(t, "greeter"), deps: []runner.Dep{dep}, look: func(ws *images.Workspace) {
		if names, err := os.ReadDir(ws.Dir); err != nil || len(names) != 3 {
			t.Errorf("the workspace's folder holds %v, want src, dest and home", names)
		}
	}})
	if !strings.Contains(out, "==> prepare: libgreet 1.0 installed, ") || names(res.Steps) != "prepare make test install" {
		t.Errorf("steps %s\n%s", names(res.Steps), out)
	}

	t.Run("changed by install", func(t *testing.T) {
		// What dependencies brought was there before, and is not to be touched.
		p := pkg{compilation: map[string]any{"install": "rm /usr/include/greet.h; echo >>/usr/lib/libgreet.a; mkdir -p $DESTDIR/usr"}}
		fail, _ := f.fails(t, attempt{pkg: p, deps: []runner.Dep{dep}}, "install", quarry.CauseEscape)
		if fmt.Sprint(fail.Paths) != "[/usr/include/greet.h /usr/lib/libgreet.a]" ||
			!strings.Contains(fail.Message, "/usr/include/greet.h (removed), /usr/lib/libgreet.a (written)") {
			t.Errorf("failure %+v", *fail)
		}
	})
	t.Run("not an artifact", func(t *testing.T) {
		bad := dep
		bad.Path = filepath.Join(t.TempDir(), "x.tar.zst")
		if err := os.WriteFile(bad.Path, []byte("nonsense"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, _, err := f.try(t, attempt{deps: []runner.Dep{bad}}); err == nil || !strings.Contains(err.Error(), "libgreet 1.0 cannot be installed") {
			t.Errorf("error %v, want the farm's", err)
		}
	})
}

func TestSourcesAndEnvironment(t *testing.T) {
	f := newFarm(t)
	p := pkg{
		compilation: map[string]any{
			"env":       []any{map[string]string{"MINE": "a 'b' $c"}, "EMPTY", map[string]string{"LC_ALL": "C"}},
			"configure": []any{map[string]string{"opt": "$(id); *"}, "x"},
			"make":      "env | sort; pwd; umask; find /quarry/src -printf '%P %y %m %u %T@ %l\\n' | sort; ls -A /quarry/home /quarry/dest; ulimit -n",
		},
		files: map[string]string{
			"srcs/configure":                   "printf '<%s>' \"$@\"; echo\n", // not executable
			"srcs/run.sh":                      "#!/bin/sh\n",
			"srcs/shadow":                      "->/etc/shadow",
			"srcs/up":                          "->../..",
			"srcs/dangling":                    "->no\nwhere",
			"srcs/-rf":                         "x",
			"srcs/$(touch pwned)":              "x",
			"srcs/new\nline":                   "x",
			"srcs/d/e/e/p/file with a space.c": "x",
		},
	}
	_, out := f.succeed(t, attempt{pkg: p, jobs: 3, look: func(ws *images.Workspace) {
		st, err := os.Lstat(filepath.Join(ws.Dir, "src/srcs/shadow"))
		if err != nil || st.Mode()&fs.ModeSymlink == 0 || !st.ModTime().Equal(time.Unix(testpkg.Unix, 0)) {
			t.Errorf("the link is %v, %v", st, err)
		}
		var s unix.Stat_t
		if err := unix.Lstat(filepath.Join(ws.Dir, "src/srcs/d/e"), &s); err != nil || int(s.Uid) != ws.UID || int(s.Gid) != ws.GID {
			t.Errorf("a folder belongs to %d:%d, want %d:%d (%v)", s.Uid, s.Gid, ws.UID, ws.GID, err)
		}
	}})
	const at = "1500000000.0000000000"
	for _, want := range []string{
		"<--opt=$(id); *><--x>\n",
		"==> configure: ./configure '--opt=$(id); *' --x\n",
		"DESTDIR=/quarry/dest\nEMPTY=\nFORCE_UNSAFE_CONFIGURE=1\nHOME=/quarry/home\nLC_ALL=C\nLOGNAME=root\nMAKEFLAGS=-j3\nMINE=a 'b' $c\n" +
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPWD=/quarry/src/srcs\nSHELL=/bin/sh\nSOURCE_DATE_EPOCH=1500000000\nTERM=dumb\nTZ=UTC\nUSER=root\n",
		"\n/quarry/src/srcs\n0022\n",
		"srcs d 755 root " + at, "srcs/README f 644 root " + at, "srcs/run.sh f 755 root " + at,
		"srcs/shadow l 777 root " + at + " /etc/shadow\n", "srcs/up l 777 root " + at + " ../..\n",
		"srcs/-rf f 644 root " + at, "srcs/$(touch pwned) f 644 root " + at,
		"srcs/d/e/e/p/file with a space.c f 644 root " + at,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the log does not say %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "pwned f") {
		t.Error("a name was run")
	}
}

// oddFS is a file system that says what no git would.
type oddFS struct {
	fstest.MapFS
	odd func(name string) error
}

func (f oddFS) Open(name string) (fs.File, error) {
	if err := f.odd(name); err != nil {
		return nil, err
	}
	return f.MapFS.Open(name)
}

func TestSourcesRefused(t *testing.T) {
	f := newFarm(t)
	base := pkg{}.fs(t).(fstest.MapFS)
	with := func(name string, m *fstest.MapFile) pkg {
		c := fstest.MapFS{name: m}
		for k, v := range base {
			c[k] = v
		}
		return pkg{source: c}
	}
	deep := "srcs" + strings.Repeat("/d", 300) + "/x"
	for _, tt := range []struct {
		name string
		pkg  pkg
		disk int64
		says string
	}{
		{"device", with("srcs/null", &fstest.MapFile{Mode: fs.ModeDevice | fs.ModeCharDevice}), 0, "srcs/null is neither a file nor a folder nor a link"},
		{"fifo", with("srcs/a b", &fstest.MapFile{Mode: fs.ModeNamedPipe}), 0, `"srcs/a b" is neither`},
		{"depth", with(deep, &fstest.MapFile{}), 0, "is inside of more than 200 folders"},
		{"too large", with("srcs/big", &fstest.MapFile{Data: make([]byte, 3<<20)}), 2 << 20, "srcs/big makes the sources larger than the 2.0 MiB of disk"},
		{"empty link", with("srcs/l", &fstest.MapFile{Mode: fs.ModeSymlink}), 0, "srcs/l is a link whose target cannot be one"},
		{"no such directory", pkg{quarry: map[string]any{"directory": "srcs/unix"}}, 0, "the recipe's directory srcs/unix is not a folder"},
		{"broken tarball", pkg{source: fstest.MapFS{"package.json": base["package.json"], "srcs/x.tar.gz": {Data: []byte("\x1f\x8bno")}}}, 0, "unpack srcs/x.tar.gz: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			fail, _ := f.fails(t, attempt{pkg: tt.pkg, spec: images.Spec{Limits: images.Limits{Disk: tt.disk}}}, "prepare", quarry.CauseRecipe)
			if !strings.Contains(fail.Message, tt.says) {
				t.Errorf("%q, want %q", fail.Message, tt.says)
			}
		})
	}
	t.Run("unreadable is the farm's fault", func(t *testing.T) {
		src := oddFS{base, func(name string) error {
			if name == "srcs/README" {
				return errors.New("disk on fire")
			}
			return nil
		}}
		if _, _, err := f.try(t, attempt{pkg: pkg{source: src}}); err == nil || !strings.Contains(err.Error(), "disk on fire") {
			t.Errorf("error %v", err)
		}
	})
}

func TestSteps(t *testing.T) {
	f := newFarm(t)
	t.Run("patch does not apply", func(t *testing.T) {
		patch := "--- a/README\n+++ b/README\n@@ -1 +1 @@\n-not there\n+new\n"
		good := "--- a/README\n+++ b/README\n@@ -1 +1 @@\n-read me\n+new\n"
		fail, _ := f.fails(t, attempt{pkg: pkg{compilation: map[string]any{"patches": []string{"good.patch", "no -R.patch"}},
			files: map[string]string{"patches/good.patch": good, "patches/no -R.patch": patch}}}, "patches", quarry.CauseExit)
		if fail.Message != "patches/no -R.patch does not apply: patch ended with status 1" || !strings.HasSuffix(fail.Command, "-i '/quarry/src/patches/no -R.patch'") {
			t.Errorf("failure %+v", *fail)
		}
	})
	t.Run("patch that is in already", func(t *testing.T) {
		fail, _ := f.fails(t, attempt{pkg: pkg{compilation: map[string]any{"patches": []string{"in.patch"}},
			files: map[string]string{"patches/in.patch": "--- a/README\n+++ b/README\n@@ -1 +1 @@\n-old\n+read me\n"}}}, "patches", quarry.CauseExit)
		if fail.Status != 1 {
			t.Errorf("failure %+v", *fail)
		}
	})
	t.Run("no configure", func(t *testing.T) {
		fail, _ := f.fails(t, attempt{pkg: pkg{compilation: map[string]any{"configure": []any{}}}}, "configure", quarry.CauseExit)
		if fail.Message != "configure: ./configure: there is no such file in /quarry/src/srcs" || fail.Status != 127 {
			t.Errorf("failure %+v", *fail)
		}
	})
	t.Run("killed by a signal", func(t *testing.T) {
		fail, _ := f.fails(t, attempt{pkg: pkg{compilation: map[string]any{"make": "kill -SEGV $$"}}}, "make", quarry.CauseExit)
		if fail.Message != "make ended with signal 11 (SIGSEGV)" || fail.Status != 139 {
			t.Errorf("failure %+v", *fail)
		}
	})
	t.Run("tests may fail", func(t *testing.T) {
		res, _ := f.succeed(t, attempt{pkg: pkg{compilation: map[string]any{"test": "exit 3"}, quarry: map[string]any{"tests_may_fail": true}}})
		if names(res.Steps) != "prepare make test install" || res.Steps[2].Status != 3 || len(res.Warnings) != 1 ||
			res.Warnings[0] != "test ended with status 3, which this recipe allows" {
			t.Errorf("steps %+v, warnings %q", res.Steps, res.Warnings)
		}
		f.fails(t, attempt{pkg: pkg{compilation: map[string]any{"test": "exit 3"}}}, "test", quarry.CauseExit)
	})
	t.Run("before and after", func(t *testing.T) {
		f.fails(t, attempt{pkg: pkg{files: map[string]string{"scripts/before.sh": "exit 1"}}}, "before", quarry.CauseExit)
		f.fails(t, attempt{pkg: pkg{files: map[string]string{"scripts/after.sh": "exit 1"}}}, "after", quarry.CauseExit)
		fail, _ := f.fails(t, attempt{pkg: pkg{files: map[string]string{"scripts/after.sh": "echo >/etc/after"}}}, "after", quarry.CauseEscape)
		if fmt.Sprint(fail.Paths) != "[/etc/after]" {
			t.Errorf("failure %+v", *fail)
		}
		// What happens before the install stays in the workspace and is no escape.
		f.succeed(t, attempt{pkg: pkg{files: map[string]string{"scripts/before.sh": "echo >/etc/before; rm /etc/issue; chmod 700 /usr/share"}}})
	})
	t.Run("builder of the base", func(t *testing.T) {
		res, out := f.succeed(t, attempt{
			pkg: pkg{compilation: map[string]any{"make": "exit 9", "install": "exit 9"}},
			cmd: `pwd; echo "$QUARRY_PACKAGE $QUARRY_VERSION $QUARRY_CHANNEL $QUARRY_SOURCE"; mkdir -p "$DESTDIR/usr"; echo x >"$DESTDIR/usr/x"`,
		})
		if names(res.Steps) != "prepare make" || !strings.Contains(out, "\n/quarry/src\nprobe 1.0 testing /quarry/src\n") {
			t.Errorf("steps %s\n%s", names(res.Steps), out)
		}
		f.fails(t, attempt{cmd: "echo >/usr/lib/x"}, "make", quarry.CauseEscape)
	})
	t.Run("left behind", func(t *testing.T) {
		res, _ := f.succeed(t, attempt{pkg: pkg{compilation: map[string]any{"make": "sleep 1000 & setsid sleep 1000 & until [ $(grep -lx sleep /proc/[0-9]*/comm | wc -l) = 2 ]; do :; done",
			"install": "set -- /proc/[0-9]*; [ $# = 2 ]"}}})
		if len(res.Warnings) != 1 || res.Warnings[0] != "make left 2 processes running, which were ended: sleep, sleep" {
			t.Errorf("warnings %q", res.Warnings)
		}
	})
}

func TestEscapes(t *testing.T) {
	f := newFarm(t)
	for _, tt := range []struct {
		name, before, install, want string
	}{
		{"nothing", "", "true", ""},
		{"staged", "", "mkdir -p $DESTDIR/usr/bin; echo >$DESTDIR/usr/bin/x", ""},
		{"scratch and caches", "mkdir /usr/lib/python3", "echo >/tmp/x; echo >/var/tmp/x; echo >/run/x; echo >/dev/shm/x; ldconfig; mkdir /usr/lib/python3/__pycache__; echo >/usr/lib/python3/__pycache__/m.pyc; echo >$HOME/x; echo >/quarry/src/x", ""},
		{"came and went", "", "echo >/usr/lib/x; rm /usr/lib/x", ""},
		{"only read", "", "cat /etc/passwd >/dev/null; ls -lR /usr/share/doc >/dev/null", ""},
		{"file", "", "echo >/usr/share/x", "/usr/share/x written"},
		{"file of the base", "", "echo >>/etc/passwd", "/etc/passwd written"},
		{"removed", "", "rm /etc/issue", "/etc/issue removed"},
		{"removed folder", "", "rm -r /usr/share/doc/make", "/usr/share/doc/make removed"},
		{"empty folder", "", "mkdir -p /opt/a/b", "/opt/a/b made"},
		{"full folder", "", "mkdir -p /opt/a/b; echo >/opt/a/b/c", "/opt/a/b/c written"},
		{"mode of a file", "", "chmod 600 /etc/issue", "/etc/issue written"},
		{"mode of a folder", "", "chmod 700 /usr/share", "/usr/share given another owner or mode"},
		{"owner of a folder", "mkdir /opt/a", "chown 5 /opt/a", "/opt/a given another owner or mode"},
		{"link", "", "ln -s /etc/passwd /usr/bin/x", "/usr/bin/x written"},
		{"fifo", "", "mkfifo /etc/x", "/etc/x written"},
		{"renamed", "", "mv /etc/issue /etc/issue2", "/etc/issue removed, /etc/issue2 written"},
		{"odd name", "", "echo >\"$(printf '/etc/a\\nb\\377 c')\"", `"/etc/a\nb\xff c" written`},
		{"of an earlier step", "echo >/etc/mine; mkdir /opt/mine; rm /etc/issue", "true", ""},
		{"of an earlier step, written", "echo a >/etc/mine; mkdir /opt/mine", "echo b >/etc/mine; echo >/opt/mine/x", "/etc/mine written, /opt/mine/x written"},
		{"of an earlier step, same size and time", "echo a >/etc/mine", "echo b >/etc/mine; touch -d @5 /etc/mine", "/etc/mine written"},
		{"of an earlier step, removed", "mkdir -p /opt/mine/x; echo >/opt/mine/y", "rm -r /opt/mine/x /opt/mine/y", "/opt/mine/x removed, /opt/mine/y removed"},
		{"more removed after an earlier step", "rm /etc/issue", "rm /etc/issue.net; rm -f /tmp/*", "/etc/issue.net removed"},
		{"back again", "rm /etc/issue", "echo >/etc/issue", "/etc/issue written"},
		{"folder in place of a file", "", "rm /etc/issue; mkdir /etc/issue", "/etc/issue made"},
		{"replaced folder", "", "rm -r /usr/share/doc/make; mkdir /usr/share/doc/make", "/usr/share/doc/make made"},
		{"replaced folder of an earlier step", "mkdir /opt/m", "rmdir /opt/m; mkdir /opt/x; mkdir /opt/m", "/opt/m made, /opt/x made"},
		{"moved folder of an earlier step", "mkdir /opt/m; echo >/opt/m/f", "mv /opt/m /opt/n", "/opt/m removed, /opt/n/f written"},
		{"time only", "", "touch -d @0 /etc/issue", "/etc/issue written"},
		{"written through a hole in a link", "ln -s /etc $DESTDIR/etc", "echo >$DESTDIR/etc/via", "/etc/via written"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := pkg{compilation: map[string]any{"install": tt.install + " ;"}}
			if tt.before != "" {
				p.compilation["make"] = tt.before + " ;"
			}
			if tt.want == "" {
				f.succeed(t, attempt{pkg: p})
				return
			}
			fail, _ := f.fails(t, attempt{pkg: p}, "install", quarry.CauseEscape)
			var want []string
			for _, w := range strings.Split(tt.want, ", ") {
				// A path that is odd is quoted and holds a blank.
				i := strings.IndexByte(w, ' ')
				if w[0] == '"' {
					i = strings.LastIndexByte(w, '"') + 1
				}
				want = append(want, w[:i])
				if !strings.Contains(fail.Message, w[:i]+" ("+w[i+1:]+")") {
					t.Errorf("%q does not say %q", fail.Message, w)
				}
			}
			if fmt.Sprint(fail.Paths) != fmt.Sprint(want) {
				t.Errorf("paths %q, want %q", fail.Paths, want)
			}
		})
	}
	t.Run("many", func(t *testing.T) {
		fail, _ := f.fails(t, attempt{pkg: pkg{compilation: map[string]any{"install": "mkdir /opt/m; i=0; while [ $i -lt 500 ]; do echo >/opt/m/$i; i=$((i+1)); done"}}}, "install", quarry.CauseEscape)
		if len(fail.Paths) != 100 || !strings.Contains(fail.Message, "install changed 500 paths outside") || !strings.Contains(fail.Message, "and 497 more") {
			t.Errorf("%d paths, %s", len(fail.Paths), fail.Message)
		}
	})
	t.Run("too deep", func(t *testing.T) {
		f.fails(t, attempt{pkg: pkg{compilation: map[string]any{"install": "cd /opt; i=0; while [ $i -lt 400 ]; do mkdir d; cd d; i=$((i+1)); done"}}}, "install", quarry.CauseEscape)
	})
}

func TestCancelled(t *testing.T) {
	f := newFarm(t)
	for _, line := range []string{"sleep 1000", "yes", "trap '' TERM INT; while :; do :; done"} {
		ctx, cancel := context.WithCancel(context.Background())
		var asked time.Time
		_, _, err := f.try(t, attempt{ctx: ctx, pkg: pkg{compilation: map[string]any{"make": "echo up; " + line}}, limits: runner.Limits{Log: 1 << 40},
			began: func(_ *images.Workspace, out *log) {
				out.has(t, "\nup\n")
				asked = time.Now()
				cancel()
			}})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: error %v, want it cancelled", line, err)
		}
		if d := time.Since(asked); d > time.Minute {
			t.Errorf("%s: it took %v to stop", line, d)
		}
		cancel()
	}
	// Before it begins.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := f.try(t, attempt{ctx: ctx}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want it cancelled", err)
	}
}

// badWriter fails like a full disk.
type badWriter struct{}

func (badWriter) Write([]byte) (int, error) { return 0, unix.ENOSPC }

func TestFarmFails(t *testing.T) {
	f := newFarm(t)
	t.Run("workspace killed", func(t *testing.T) {
		_, _, err := f.try(t, attempt{pkg: pkg{compilation: map[string]any{"make": "echo up; sleep 1000"}},
			began: func(ws *images.Workspace, out *log) {
				out.has(t, "\nup\n")
				if err := ws.Kill(context.Background()); err != nil {
					t.Error(err)
				}
			}})
		if err == nil || !strings.Contains(err.Error(), "ended in make") {
			t.Errorf("error %v, want the farm's", err)
		}
	})
	t.Run("podman gone", func(t *testing.T) {
		own := newFarm(t)
		_, _, err := own.try(t, attempt{pkg: pkg{compilation: map[string]any{"make": "echo up; sleep 1000"}},
			began: func(ws *images.Workspace, out *log) {
				out.has(t, "\nup\n")
				if err := own.conn.Close(); err != nil {
					t.Error(err)
				}
				// The container goes on without its service; when that ends it,
				// nobody can tell why.
				if err := ws.Kill(context.Background()); err != nil && !podman.IsGone(err) {
					t.Error(err)
				}
			}})
		if err == nil {
			t.Error("no error, want the farm's")
		}
	})
	t.Run("log full", func(t *testing.T) {
		src := pkg{compilation: map[string]any{"make": "yes"}}
		if err := f.withLog(t, src, badWriter{}); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("error %v, want no space left", err)
		}
	})
}
