package extract

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// baseRoot is a root as a usr-merged base has it, beside a folder that nothing
// may reach.
func baseRoot(t testing.TB) (root, outside string) {
	t.Helper()
	d := t.TempDir()
	root, outside = filepath.Join(d, "root"), filepath.Join(d, "outside")
	for _, p := range []string{"usr/lib", "usr/bin", "etc", "tmp", "run", "usr/lib/terminfo", "../outside/dir"} {
		if err := os.MkdirAll(filepath.Join(root, p), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for p, to := range map[string]string{
		"lib": "usr/lib", "bin": "/usr/bin", "var": "usr/../var-real", "lock": "/run/lock/deep",
		"abs": outside, "up": "../../../../../../../../.." + outside, "usr/bin/awk": "/etc/alternatives/awk",
		"usr/bin/vi": "true", "etc/loop": "loop",
	} {
		if err := os.Symlink(to, filepath.Join(root, p)); err != nil {
			t.Fatal(err)
		}
	}
	for p, data := range map[string]string{"usr/bin/true": "old true", "usr/lib/libz.so.1": "old libz", "../outside/secret": "secret", "../outside/dir/x": "x"} {
		if err := os.WriteFile(filepath.Join(root, p), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "tmp"), 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	return root, outside
}

// item is an entry of an archive made by hand.
type item struct {
	name string
	typ  byte
	link string
	data string
	edit func(*tar.Header)
}

func archive(t testing.TB, items ...item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, it := range items {
		h := &tar.Header{Name: it.name, Typeflag: it.typ, Linkname: it.link, Size: int64(len(it.data)), Mode: 0o755, ModTime: sourceTime}
		if it.typ == 0 {
			h.Typeflag = tar.TypeReg
		}
		if it.edit != nil {
			it.edit(h)
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, it.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func packed(t testing.TB, tarball []byte) io.Reader {
	t.Helper()
	enc, err := newEncoder()
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	var out []byte
	for len(tarball) > 0 {
		n := min(len(tarball), chunkSize)
		out = enc.EncodeAll(tarball[:n], out)
		tarball = tarball[n:]
	}
	return bytes.NewReader(out)
}

// What Tree reads, Install lays in; and Tree of that finds the same.
func TestRoundTrip(t *testing.T) {
	needRoot(t)
	src, store := sample(t), newStore(t)
	build(t, src, file("usr/big", noise(9, 3*chunkSize+5), 0o600), file("usr/setgid", "x", 0o2711))
	facts, art := extractTree(t, src, Options{Store: store})
	f, err := store.Open(art.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dst := t.TempDir()
	installed, err := Install(f, dst)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, f := range facts.Files {
		want = append(want, f.Path)
	}
	if d := cmp.Diff(want, installed); d != "" {
		t.Errorf("installed (-want +got):\n%s", d)
	}
	o := options(Options{Store: store})
	o.UIDBase, o.GIDBase = 0, 0
	again, art2, err := Tree(t.Context(), dst, o)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(facts.Files, again.Files); d != "" {
		t.Errorf("files (-staged +installed):\n%s", d)
	}
	if *art2 != *art {
		t.Errorf("artifact of the installed tree %v, of the staged one %v", art2, art)
	}
	st, err := os.Lstat(filepath.Join(dst, "usr"))
	if err != nil || !st.ModTime().Equal(sourceTime) {
		t.Errorf("time of a folder %v, %v", st.ModTime(), err)
	}
}

func TestInstallIntoBase(t *testing.T) {
	needRoot(t)
	root, outside := baseRoot(t)
	held, err := os.Open(filepath.Join(root, "usr/lib/libz.so.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	before := listing(t, outside)
	dirOf := func(name string) item {
		return item{name: name, typ: tar.TypeDir, edit: func(h *tar.Header) { h.Mode, h.Uid = 0o700, 5 }}
	}
	installed, err := Install(packed(t, archive(t,
		dirOf("bin/"),
		item{name: "bin/new", data: "new", edit: func(h *tar.Header) { h.Mode, h.Uid, h.Gid = 0o4711, 3, 4 }},
		item{name: "bin/true", data: "true of bin"},
		dirOf("etc/"),
		item{name: "etc/loop", data: "no loop any more"},
		dirOf("lib/"),
		item{name: "lib/dirlink", typ: tar.TypeSymlink, link: "../usr/lib/dirlink"},
		item{name: "lib/libfoo.so.1", data: "foo"},
		item{name: "lib/libz.so.1", data: "new libz"},
		item{name: "lib64", typ: tar.TypeSymlink, link: "usr/lib"},
		dirOf("lock/"),
		item{name: "lock/me", data: "locked"},
		dirOf("tmp/"),
		dirOf("usr/"),
		dirOf("usr/bin/"),
		item{name: "usr/bin/again", typ: tar.TypeLink, link: "bin/new"},
		item{name: "usr/bin/awk", data: "an awk"},
		item{name: "usr/bin/new", typ: tar.TypeLink, link: "bin/new"},
		item{name: "usr/bin/vi", typ: tar.TypeSymlink, link: "vim"},
		dirOf("usr/lib/"),
		dirOf("usr/lib/dirlink/"),
		item{name: "usr/lib/dirlink/x", data: "x"},
		item{name: "usr/lib/libfoo.so.1", typ: tar.TypeSymlink, link: "../../lib/libfoo.so.1"},
		item{name: "usr/lib/terminfo", typ: tar.TypeSymlink, link: "/usr/share/terminfo"},
		item{name: "var/cache", data: "cache"},
	)), root)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"/usr/bin/new", "/usr/bin/true", "/etc/loop", "/usr/lib/dirlink", "/usr/lib/libfoo.so.1", "/usr/lib/libz.so.1", "/lib64",
		"/run/lock/deep/me", "/usr/bin/again", "/usr/bin/awk", "/usr/bin/vi",
		"/usr/lib/dirlink", "/usr/lib/dirlink/x", "/var-real/cache",
	}
	if d := cmp.Diff(want, installed); d != "" {
		t.Errorf("installed (-want +got):\n%s", d)
	}
	var kept []string
	for _, line := range strings.Split(listing(t, root), "\n") {
		for _, p := range []string{"lib ", "bin ", "tmp ", "usr ", "lib64", "usr/bin/", "usr/lib/", "run/", "var", "etc/"} {
			if strings.HasPrefix(line, p) {
				kept = append(kept, line)
				break
			}
		}
	}
	hex := func(s string) string { return fmt.Sprintf("%x", s) }
	wantLines := []string{
		"bin Lrwxrwxrwx 0:0 -> /usr/bin",
		"etc/loop -rwxr-xr-x 0:0 1 links " + hex("no loop any more"),
		"lib Lrwxrwxrwx 0:0 -> usr/lib",
		"lib64 Lrwxrwxrwx 0:0 -> usr/lib",
		"run/lock drwxr-xr-x 0:0",
		"run/lock/deep drwxr-xr-x 0:0",
		"run/lock/deep/me -rwxr-xr-x 0:0 1 links " + hex("locked"),
		"tmp dtrwxrwxrwx 0:0",
		"usr drwxr-xr-x 0:0",
		"usr/bin/again urwx--x--x 3:4 2 links " + hex("new"),
		"usr/bin/awk -rwxr-xr-x 0:0 1 links " + hex("an awk"),
		"usr/bin/new urwx--x--x 3:4 2 links " + hex("new"),
		"usr/bin/true -rwxr-xr-x 0:0 1 links " + hex("true of bin"),
		"usr/bin/vi Lrwxrwxrwx 0:0 -> vim",
		"usr/lib/dirlink drwx------ 5:0",
		"usr/lib/dirlink/x -rwxr-xr-x 0:0 1 links " + hex("x"),
		"usr/lib/libfoo.so.1 -rwxr-xr-x 0:0 1 links " + hex("foo"),
		"usr/lib/libz.so.1 -rwxr-xr-x 0:0 1 links " + hex("new libz"),
		"usr/lib/terminfo drwxr-xr-x 0:0",
		"var Lrwxrwxrwx 0:0 -> usr/../var-real",
		"var-real drwxr-xr-x 0:0",
		"var-real/cache -rwxr-xr-x 0:0 1 links " + hex("cache"),
	}
	if d := cmp.Diff(wantLines, kept); d != "" {
		t.Errorf("root (-want +got):\n%s", d)
	}
	// Who had the old library open still has it.
	if b, err := io.ReadAll(held); err != nil || string(b) != "old libz" {
		t.Errorf("a file in use was written into: %q, %v", b, err)
	}
	if after := listing(t, outside); after != before {
		t.Errorf("outside changed:\n%s", after)
	}
}

func TestInstallHostile(t *testing.T) {
	needRoot(t)
	mode := func(m int64) func(*tar.Header) { return func(h *tar.Header) { h.Mode = m } }
	dirItem := func(name string) item { return item{name: name, typ: tar.TypeDir} }
	for _, c := range []struct {
		name  string
		items []item
		want  string
	}{
		{"absolute", []item{{name: "/etc/x"}}, "leads elsewhere"},
		{"dots", []item{{name: "../outside/x"}}, "leads elsewhere"},
		{"dots inside", []item{{name: "usr/../../outside/x"}}, "leads elsewhere"},
		{"dot", []item{{name: "./etc/x"}}, "leads elsewhere"},
		{"double slash", []item{{name: "etc//x"}}, "leads elsewhere"},
		{"root itself", []item{dirItem("./")}, "leads elsewhere"},
		{"newline", []item{{name: "a\nb"}}, "leads elsewhere"},
		{"through its own link", []item{{name: "esc", typ: tar.TypeSymlink, link: "/etc"}, {name: "esc/x"}}, "other entries lead through it"},
		{"through its own link up", []item{{name: "esc", typ: tar.TypeSymlink, link: "../outside"}, {name: "esc/x"}}, "other entries lead through it"},
		{"through its own renamed link", []item{{name: "usr/esc", typ: tar.TypeSymlink, link: "lib"}, {name: "usr/esc/dir/", typ: tar.TypeDir}}, "other entries lead through it"},
		{"link as folder", []item{{name: "esc", typ: tar.TypeSymlink, link: "../outside"}, {name: "esc", typ: tar.TypeDir}}, "comes after"},
		{"through a link of the base", []item{{name: "abs/secret", data: "changed"}}, "ok"},
		{"through a climbing link of the base", []item{{name: "up/secret", data: "changed"}}, "ok"},
		{"link loop", []item{{name: "etc/loop/x"}}, "too many levels"},
		{"folder missing", []item{{name: "none/x"}}, "neither it nor the root has"},
		{"below a file", []item{{name: "usr/bin/true/x"}}, "not a directory|is not a folder"},
		{"hard link outside", []item{{name: "h", typ: tar.TypeLink, link: "../outside/secret"}}, "leads elsewhere"},
		{"hard link absolute", []item{{name: "h", typ: tar.TypeLink, link: "/etc/shadow"}}, "leads elsewhere"},
		{"hard link to the base's", []item{{name: "zz", typ: tar.TypeLink, link: "usr/bin/true"}}, "no file that the artifact has before it"},
		{"hard link through a link", []item{{name: "a", typ: tar.TypeSymlink, link: "../outside"}, {name: "b", typ: tar.TypeLink, link: "a/secret"}}, "no file that the artifact has"},
		{"hard link to a later one", []item{{name: "a", typ: tar.TypeLink, link: "b"}, {name: "b"}}, "no file that the artifact has"},
		{"hard link to a link", []item{{name: "a", typ: tar.TypeSymlink, link: "/etc"}, {name: "b", typ: tar.TypeLink, link: "a"}}, "no file that the artifact has"},
		{"device", []item{{name: "null", typ: tar.TypeChar}}, "only files, folders, links and FIFOs"},
		{"block device", []item{{name: "sda", typ: tar.TypeBlock}}, "only files, folders, links and FIFOs"},
		{"twice", []item{{name: "a"}, {name: "a"}}, "comes after"},
		{"unsorted", []item{{name: "b"}, {name: "a"}}, "comes after"},
		{"file over folder", []item{{name: "usr", data: "x"}}, "a folder is there already"},
		{"file over link to folder", []item{{name: "lib", data: "x"}}, "a link to a folder is there already"},
		{"FIFO over folder", []item{{name: "usr", typ: tar.TypeFifo}}, "a folder is there already"},
		{"folder over file", []item{dirItem("usr/bin/true/")}, "a file is there already"},
		{"folder over link to file", []item{dirItem("usr/bin/vi/")}, "is not a folder"},
		{"mode", []item{{name: "a", edit: mode(0o100644)}}, "unknown bits"},
		{"owner", []item{{name: "a", edit: func(h *tar.Header) { h.Uid = 65536 }}}, "owners are 0 to 65535"},
		{"group", []item{{name: "a", edit: func(h *tar.Header) { h.Gid = 1 << 30; h.Format = tar.FormatPAX }}}, "owners are 0 to 65535"},
		{"before 1970", []item{{name: "a", edit: func(h *tar.Header) { h.ModTime = time.Unix(-5, 0); h.Format = tar.FormatPAX }}}, "has the time -5"},
		{"xattr", []item{{name: "a", edit: func(h *tar.Header) { h.PAXRecords = map[string]string{"SCHILY.xattr.user.x": "y"} }}}, "unknown extended header"},
		{"capabilities", []item{{name: "a", edit: func(h *tar.Header) { h.PAXRecords = map[string]string{paxCaps: "y"} }}}, "capabilities of an unknown form"},
		{"long name", []item{{name: strings.Repeat("x/", 1100) + "y"}}, "leads elsewhere or cannot be shown"},
		{"deep name", []item{{name: strings.Repeat("x/", 200) + "y"}}, "folders deep"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, outside := baseRoot(t)
			before := listing(t, outside)
			_, err := Install(packed(t, archive(t, c.items...)), root)
			if c.want == "ok" {
				// The link leads to the folder of that name below the root.
				if err != nil {
					t.Error(err)
				}
				if b, err := os.ReadFile(filepath.Join(root, outside, "secret")); err != nil || string(b) != "changed" {
					t.Errorf("%q, %v", b, err)
				}
			} else if err == nil || !slices.ContainsFunc(strings.Split(c.want, "|"), func(s string) bool { return strings.Contains(err.Error(), s) }) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if after := listing(t, outside); after != before {
				t.Errorf("outside changed from\n%s\nto\n%s", before, after)
			}
			if err == nil {
				return
			}
			if strings.ContainsAny(err.Error(), "\n\x1b") || len(err.Error()) > 600 {
				t.Errorf("message %q is no short plain line", err.Error())
			}
		})
	}
}

func TestInstallLimits(t *testing.T) {
	var items []item
	for i := range 10 {
		items = append(items, item{name: fmt.Sprintf("f%d", i), data: "12345"})
	}
	ok, err := installTar(bytes.NewReader(archive(t, items...)), t.TempDir(), DefaultLimits)
	if err != nil || len(ok) != 10 {
		t.Fatalf("%v, %v", ok, err)
	}
	for want, l := range map[string]Limits{
		"more than 9 entries":    {Files: 9},
		"larger than 49 bytes":   {Bytes: 49},
		"leads elsewhere or can": {Path: 1},
	} {
		if _, err := installTar(bytes.NewReader(archive(t, items...)), t.TempDir(), l.or(DefaultLimits)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

// Damage is found wherever it is.
func TestInstallDamaged(t *testing.T) {
	tarball := archive(t, item{name: "a", data: noise(1, 50_000)}, item{name: "b", data: strings.Repeat("text ", 9000)})
	b, err := io.ReadAll(packed(t, tarball))
	if err != nil {
		t.Fatal(err)
	}
	install := func(b []byte) error {
		_, err := Install(bytes.NewReader(b), t.TempDir())
		return err
	}
	if err := install(b); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 5, 100, len(b) / 2, len(b) - 5, len(b) - 1} {
		if install(b[:n]) == nil {
			t.Errorf("cut to %d of %d bytes: no error", n, len(b))
		}
		spoilt := slices.Clone(b)
		spoilt[n] ^= 0x10
		if install(spoilt) == nil {
			t.Errorf("byte %d spoilt: no error", n)
		}
	}
	// Cut between entries, and between the two blocks of the end: as frames end.
	for _, n := range []int{0, len(tarball) - 1024, len(tarball) - 512, 512 + 50_176} {
		if _, err := installTar(bytes.NewReader(tarball[:n]), t.TempDir(), DefaultLimits); err == nil || !strings.Contains(err.Error(), "cut short") {
			t.Errorf("archive cut to %d of %d bytes: %v", n, len(tarball), err)
		}
	}
	if err := install(append(slices.Clone(b), b...)); err == nil || !strings.Contains(err.Error(), "goes on after its end") {
		t.Errorf("two archives in one: %v", err)
	}
}

// Files may be laid in without root; owners are then the user's.
func TestInstallSetsTimesAndFIFO(t *testing.T) {
	root := t.TempDir()
	installed, err := Install(packed(t, archive(t,
		item{name: "d", typ: tar.TypeDir},
		item{name: "d/l", typ: tar.TypeSymlink, link: "x"},
		item{name: "d/p", typ: tar.TypeFifo, edit: func(h *tar.Header) { h.Mode = 0o622 }},
		item{name: "d/x", data: "x"})), root)
	if err != nil || len(installed) != 4 {
		t.Fatalf("%v, %v", installed, err)
	}
	for _, p := range installed {
		st, err := os.Lstat(filepath.Join(root, p))
		if err != nil || !st.ModTime().Equal(sourceTime) {
			t.Errorf("%s: %v, %v", p, st.ModTime(), err)
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(root, "d/p"), &st); err != nil || st.Mode != unix.S_IFIFO|0o622 {
		t.Errorf("FIFO: mode %o, %v", st.Mode, err)
	}
}
