package extract

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
)

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

// sample has one file of every kind and class that needs no compiler.
func sample(t testing.TB) string {
	root := t.TempDir()
	build(t, root,
		dir("etc", 0o755), file("etc/app.conf", "a=1\n", 0o640),
		dir("usr", 0o755), dir("usr/bin", 0o755), dir("usr/share", 0o755), dir("usr/share/app", 0o700),
		testFile{path: "usr/bin/app", data: "#!/bin/sh\nexit 0\n", mode: unix.S_IFREG | 0o4755, uid: 7, gid: 9},
		hard("usr/bin/zapp", "usr/bin/app"),
		link("usr/bin/link", "app"),
		link("usr/bin/shadow", "/etc/shadow"),
		file("usr/bin-empty", "", 0o644),
		fifo("usr/share/app/trigger"),
		file("usr/share/app/déjà vu", "x", 0o000),
	)
	return root
}

func TestTreeFacts(t *testing.T) {
	root := sample(t)
	store := newStore(t)
	facts, art := extractTree(t, root, Options{Store: store})
	want := []quarry.File{
		{Path: "/etc", Kind: quarry.KindDir, Mode: 0o755},
		{Path: "/etc/app.conf", Kind: quarry.KindRegular, Class: quarry.ClassConfig, Mode: 0o640, Size: 4, SHA256: sum("a=1\n")},
		{Path: "/usr", Kind: quarry.KindDir, Mode: 0o755},
		{Path: "/usr/bin", Kind: quarry.KindDir, Mode: 0o755},
		{Path: "/usr/bin-empty", Kind: quarry.KindRegular, Class: quarry.ClassOther, Mode: 0o644, SHA256: sum("")},
		{Path: "/usr/bin/app", Kind: quarry.KindRegular, Class: quarry.ClassScript, Mode: 0o4755, UID: 7, GID: 9, Size: 17,
			SHA256: sum("#!/bin/sh\nexit 0\n"), Interpreter: "/bin/sh"},
		{Path: "/usr/bin/link", Kind: quarry.KindSymlink, Mode: 0o777, Target: "app"},
		{Path: "/usr/bin/shadow", Kind: quarry.KindSymlink, Mode: 0o777, Target: "/etc/shadow"},
		{Path: "/usr/bin/zapp", Kind: quarry.KindHardlink, Class: quarry.ClassScript, Mode: 0o4755, UID: 7, GID: 9, Target: "/usr/bin/app"},
		{Path: "/usr/share", Kind: quarry.KindDir, Mode: 0o755},
		{Path: "/usr/share/app", Kind: quarry.KindDir, Mode: 0o700},
		{Path: "/usr/share/app/déjà vu", Kind: quarry.KindRegular, Class: quarry.ClassOther, Size: 1, SHA256: sum("x")},
		{Path: "/usr/share/app/trigger", Kind: quarry.KindFIFO, Mode: 0o600},
	}
	if d := cmp.Diff(want, facts.Files); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
	if facts.Size != 4+17+1 {
		t.Errorf("size %d, want 22: hard links count once", facts.Size)
	}
	if facts.DiskSize < 3*512 || facts.DiskSize%512 != 0 {
		t.Errorf("disk size %d", facts.DiskSize)
	}
	if d := cmp.Diff([]string{"/usr/bin/app is setuid (user 7, mode 4755)"}, facts.Warnings); d != "" {
		t.Errorf("warnings (-want +got):\n%s", d)
	}
	plain, none := extractTree(t, root, Options{})
	if none != nil {
		t.Error("an artifact without a store")
	}
	// The file system may lay out what was just written otherwise at any time.
	if plain.DiskSize < 3*512 {
		t.Errorf("disk size %d", plain.DiskSize)
	}
	plain.DiskSize = facts.DiskSize
	if d := cmp.Diff(facts, plain); d != "" {
		t.Errorf("facts with (-) and without (+) an artifact differ:\n%s", d)
	}

	headers, data := untar(t, store, art.SHA256)
	if len(headers) != len(want) {
		t.Fatalf("%d entries, want %d", len(headers), len(want))
	}
	for i, h := range headers {
		f := want[i]
		if got := "/" + strings.TrimSuffix(h.Name, "/"); got != f.Path {
			t.Errorf("entry %d is %s, want %s", i, got, f.Path)
		}
		if h.Mode != int64(f.Mode) || h.Uid != int(f.UID) || h.Gid != int(f.GID) || h.Uname != "" || h.Gname != "" {
			t.Errorf("%s: mode %o, owner %d:%d (%s:%s)", h.Name, h.Mode, h.Uid, h.Gid, h.Uname, h.Gname)
		}
		if !h.ModTime.Equal(sourceTime) {
			t.Errorf("%s: time %v, want %v", h.Name, h.ModTime, sourceTime)
		}
		if want := f.Path == "/usr/share/app/déjà vu"; (h.Format == tar.FormatPAX) != want {
			t.Errorf("%s: format %v", h.Name, h.Format)
		}
		if f.SHA256 != "" && sum(data[h.Name]) != f.SHA256 {
			t.Errorf("%s: wrong contents", h.Name)
		}
	}
	if h := headers[8]; h.Typeflag != tar.TypeLink || h.Linkname != "usr/bin/app" {
		t.Errorf("hard link %q %q", h.Typeflag, h.Linkname)
	}
	st, err := os.Stat(store.Path(art.SHA256))
	if err != nil || st.Size() != art.Size {
		t.Errorf("artifact of %d bytes: %v, %v", art.Size, st, err)
	}
	if err := store.Verify(art.SHA256); err != nil {
		t.Error(err)
	}
}

// Made in another order, at another time, read with other numbers of cores:
// the same bytes.
func TestTreeReproducible(t *testing.T) {
	var files []testFile
	for i := range 60 {
		files = append(files, file(fmt.Sprintf("d%d/f%02d", i%3, i), noise(uint64(i), i*7001), 0o644))
	}
	files = append(files,
		file("d0/big", noise(1, 3*chunkSize+17), 0o644),
		file("d1/text", strings.Repeat("all work and no play\n", 700_000), 0o755),
		link("d2/l", "../d0/big"), fifo("d1/p"))
	dirs := []testFile{dir("d0", 0o755), dir("d1", 0o755), dir("d2", 0o750)}

	store := newStore(t)
	make1 := func(backwards bool) string {
		root := t.TempDir()
		fs := slices.Clone(files)
		if backwards {
			slices.Reverse(fs)
		}
		build(t, root, append(slices.Clone(dirs), fs...)...)
		if backwards {
			build(t, root, hard("d0/h", "d0/f00"))
			for i, f := range fs {
				at := time.Now().Add(time.Duration(i) * time.Hour)
				if err := os.Chtimes(filepath.Join(root, f.path), at, at); err != nil && f.mode&unix.S_IFMT == unix.S_IFREG {
					t.Fatal(err)
				}
			}
		} else {
			build(t, root, hard("d0/h", "d0/f00"))
		}
		return root
	}
	a, b := make1(false), make1(true)
	wantFacts, want := extractTree(t, a, Options{Store: store, Workers: 1})
	for _, workers := range []int{0, 2, 3, 7, 16} {
		for _, root := range []string{a, b} {
			facts, art := extractTree(t, root, Options{Store: store, Workers: workers})
			if *art != *want {
				t.Fatalf("%d workers: artifact %v, want %v", workers, art, want)
			}
			if d := cmp.Diff(wantFacts.Files, facts.Files); d != "" {
				t.Fatalf("%d workers: facts differ:\n%s", workers, d)
			}
		}
	}
	for _, f := range wantFacts.Files {
		if f.Path == "/d0/big" && f.SHA256 != sum(noise(1, 3*chunkSize+17)) {
			t.Error("wrong hash of a file that spans chunks")
		}
	}
	if m, err := filepath.Glob(filepath.Join(store.dir, artifactTmp, "*")); err != nil || len(m) > 0 {
		t.Errorf("left behind: %v %v", m, err)
	}
}

// The bytes of an artifact may only change on purpose: a new version of the
// encoder that compresses otherwise shows here. Then say so in the changelog,
// because every package built again gets a new artifact.
func TestArtifactGolden(t *testing.T) {
	root := t.TempDir()
	build(t, root,
		dir("usr", 0o755), dir("usr/bin", 0o755),
		file("usr/bin/a", strings.Repeat("one line of text, again and again\n", 3000)+noise(3, 5000), 0o755),
		link("usr/bin/b", "a"), hard("usr/bin/c", "usr/bin/a"), fifo("usr/p"), file("usr/é", "pax", 0o600))
	_, art := extractTree(t, root, Options{Store: newStore(t)})
	const want = "ad9617eb429385ca365c4d882c8aff4563c8ead52527f6228d7feecf36f2cac4"
	if art.SHA256 != want {
		t.Errorf("artifact %s of %d bytes, want %s", art.SHA256, art.Size, want)
	}
}

// Contents that end just before, at and just after the borders of chunks, tar
// blocks and headers.
func TestChunkBorders(t *testing.T) {
	store := newStore(t)
	var sizes []int
	for _, d := range []int{-1537, -1536, -1025, -1024, -1023, -513, -512, -511, -1, 0, 1, 512} {
		sizes = append(sizes, chunkSize+d)
	}
	sizes = append(sizes, 2*chunkSize-512, 2*chunkSize-1024, 2*chunkSize)
	for _, size := range sizes {
		root := t.TempDir()
		want := map[string]string{"a": noise(5, size), "b": "", "c": noise(6, 700), "d": ""}
		for name, data := range want {
			build(t, root, file(name, data, 0o644))
		}
		facts, art := extractTree(t, root, Options{Store: store})
		_, got := untar(t, store, art.SHA256)
		if d := cmp.Diff(want, got, cmp.Comparer(func(a, b string) bool { return a == b })); d != "" {
			t.Fatalf("size %d: contents differ", size)
		}
		for _, f := range facts.Files {
			if f.SHA256 != sum(want[f.Path[1:]]) {
				t.Errorf("size %d: wrong hash of %s", size, f.Path)
			}
		}
		plain, _ := extractTree(t, root, Options{Workers: 3})
		if d := cmp.Diff(facts.Files, plain.Files); d != "" {
			t.Errorf("size %d: without an artifact:\n%s", size, d)
		}
	}
}

func TestEmptyTree(t *testing.T) {
	store := newStore(t)
	facts, art := extractTree(t, t.TempDir(), Options{Store: store})
	if len(facts.Files) != 0 || len(facts.Warnings) != 1 || !strings.Contains(facts.Warnings[0], "DESTDIR") {
		t.Errorf("facts %+v", facts)
	}
	if h, _ := untar(t, store, art.SHA256); len(h) != 0 {
		t.Errorf("entries %v", h)
	}
}

// GNU tar is another implementation of what doc/artifact.md says.
func TestArtifactReadByGNUTar(t *testing.T) {
	root, store := sample(t), newStore(t)
	long := strings.Repeat("long", 40)
	build(t, root, dir("usr/"+long, 0o755), file("usr/"+long+"/"+long, "deep", 0o644))
	_, art := extractTree(t, root, Options{Store: store})
	f, err := store.Open(art.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dec, err := newDecoder(1)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	if err := dec.Reset(f); err != nil {
		t.Fatal(err)
	}
	tarFile := filepath.Join(t.TempDir(), "a.tar")
	w, err := os.Create(tarFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(w, dec); err != nil {
		t.Fatal(err)
	}
	w.Close()
	gnu, own := t.TempDir(), t.TempDir()
	run(t, "tar", "-xpf", tarFile, "-C", gnu, "--numeric-owner", "--same-owner")
	f.Seek(0, io.SeekStart)
	if _, err := Install(f, own); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(listing(t, gnu), listing(t, own)); d != "" {
		t.Errorf("GNU tar (-) and Install (+) differ:\n%s", d)
	}
}

func TestTreeRefuses(t *testing.T) {
	device := func(name string, kind uint32, dev int) func(*testing.T, string) {
		return func(t *testing.T, root string) {
			needRoot(t)
			if err := unix.Mknod(filepath.Join(root, name), kind|0o600, dev); err != nil {
				t.Fatal(err)
			}
		}
	}
	files := func(f ...testFile) func(*testing.T, string) {
		return func(t *testing.T, root string) { build(t, root, f...) }
	}
	deep := func(t *testing.T, root string) {
		p := ""
		for range 12 {
			p += "d"
			build(t, root, dir(p, 0o755))
			p += "/"
		}
	}
	for _, c := range []struct {
		name   string
		make   func(*testing.T, string)
		limits Limits
		paths  []string
		reason string
	}{
		{"char device", device("null", unix.S_IFCHR, int(unix.Mkdev(1, 3))), Limits{}, []string{"/null"}, "1 device node:"},
		{"whiteout", device("gone", unix.S_IFCHR, 0), Limits{}, []string{"/gone"}, "1 device node:"},
		{"block device", device("sda", unix.S_IFBLK, int(unix.Mkdev(8, 0))), Limits{}, []string{"/sda"}, "1 device node:"},
		{"socket", files(testFile{path: "sock", mode: unix.S_IFSOCK | 0o600}), Limits{}, []string{"/sock"}, "1 socket:"},
		{"newline", files(file("a\nb", "", 0o644)), Limits{}, []string{`"/a\nb"`}, "1 name that is not UTF-8"},
		{"escape", files(file("a\x1b[2J", "", 0o644)), Limits{}, []string{`"/a\x1b[2J"`}, "1 name that is not UTF-8"},
		{"not UTF-8", files(file("caf\xe9", "", 0o644)), Limits{}, []string{`"/caf\xe9"`}, "1 name that is not UTF-8"},
		{"target not UTF-8", files(link("l", "caf\xe9")), Limits{}, []string{"/l"}, "1 link whose target"},
		{"DESTDIR twice", files(dir("quarry", 0o755), dir("quarry/dest", 0o755), dir("quarry/dest/usr", 0o755)), Limits{}, []string{"/quarry/dest"}, "DESTDIR was applied twice"},
		{"two reasons", files(file("a\tb", "", 0o644), link("l", "x\ny")), Limits{}, []string{`"/a\tb"`, "/l"}, "; 1 name"},
		{"owner above", files(testFile{path: "o", mode: unix.S_IFREG, uid: 65536}), Limits{}, []string{"/o"}, "owner"},
		{"owner below", files(testFile{path: "o", mode: unix.S_IFREG, gid: -1}), Limits{}, []string{"/o"}, "owner"},
		{"too deep", deep, Limits{Depth: 10}, []string{"/d/d/d/d/d/d/d/d/d/d"}, "too deep"},
		{"too long", deep, Limits{Path: 20}, []string{"/d/d/d/d/d/d/d/d/d/d/d..."}, "too long"},
		{"too many", deep, Limits{Files: 11}, []string{"/d/d/d/d/d/d/d/d/d/d/d/d"}, "more than 11 files"},
		{"too much text", deep, Limits{Text: 100}, []string{"/d/d/d/d/d/d/d/d/d/d"}, "more than|longer than 100 bytes"},
		{"too large", func(t *testing.T, root string) {
			build(t, root, file("hole", "", 0o644), file("hole2", "", 0o644))
			for _, name := range []string{"hole", "hole2"} {
				if err := os.Truncate(filepath.Join(root, name), 9<<30); err != nil {
					t.Fatal(err)
				}
			}
		}, Limits{}, []string{"/hole2"}, "more than 17179869184 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			c.make(t, root)
			store := newStore(t)
			err := refusedBy(t, root, Options{Store: store, Limits: c.limits, BuildPaths: []string{"/quarry/dest"}})
			if d := cmp.Diff(c.paths, err.Paths); d != "" {
				t.Errorf("paths (-want +got):\n%s", d)
			}
			if !slices.ContainsFunc(strings.Split(c.reason, "|"), func(s string) bool { return strings.Contains(err.Reason, s) }) {
				t.Errorf("reason %q, want %q", err.Reason, c.reason)
			}
			if strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("message %q is no plain line", err.Error())
			}
			if m, _ := filepath.Glob(filepath.Join(store.dir, "*", "*")); len(m) > 0 {
				t.Errorf("left in the store: %v", m)
			}
		})
	}
}

// A tree full of what must not be opened or followed.
func TestTreeFollowsNothing(t *testing.T) {
	root := t.TempDir()
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	build(t, root,
		link("abs", outside), link("loop", "loop"), link("up", "../../../../../../etc"),
		link("self", "."), link("proc", "/proc/self/root"), fifo("pipe"), dir("d", 0), link("d/x", "/dev/zero"))
	done := make(chan *quarry.Facts)
	go func() {
		facts, _, _ := Tree(context.Background(), root, options(Options{Store: newStore(t)}))
		done <- facts
	}()
	select {
	case facts := <-done:
		if facts == nil || len(facts.Files) != 8 || facts.Size != 0 {
			t.Errorf("facts %+v, want eight paths without contents", facts)
		}
	case <-time.After(3 * time.Minute):
		t.Fatal("reading the tree blocks")
	}
}

// What changes between the walk and the reading is the farm's trouble, whatever
// it became.
func TestTreeChanging(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(p string) error{
		"gone":    func(p string) error { return os.Remove(p) },
		"link":    func(p string) error { return errors.Join(os.Remove(p), os.Symlink(secret, p)) },
		"hard":    func(p string) error { return errors.Join(os.Remove(p), os.Link(secret, p)) },
		"fifo":    func(p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o600)) },
		"longer":  func(p string) error { return os.WriteFile(p, []byte("1234567"), 0o600) },
		"shorter": func(p string) error { return os.Truncate(p, 2) },
		"other": func(p string) error {
			time.Sleep(20 * time.Millisecond)
			return os.WriteFile(p, []byte("54321"), 0o600)
		},
		"parent": func(p string) error {
			dir := filepath.Dir(p)
			return errors.Join(os.Rename(dir, dir+"-"), os.Symlink(filepath.Dir(secret), dir))
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			build(t, root, dir("d", 0o755), file("d/secret", "abcde", 0o644))
			tree, err := walk(context.Background(), root, options(Options{Limits: DefaultLimits}))
			if err != nil {
				t.Fatal(err)
			}
			defer tree.close()
			if err := change(filepath.Join(root, "d/secret")); err != nil {
				t.Fatal(err)
			}
			err = tree.read(context.Background(), nil)
			if err == nil || IsRefused(err) || !strings.Contains(err.Error(), "/d/secret") {
				t.Errorf("error %v, want one of the farm's that names the file", err)
			}
			for _, e := range tree.entries {
				if e.SHA256 == sum("12345") {
					t.Error("read a file outside of the tree")
				}
			}
		})
	}
}

func TestTreeCancelled(t *testing.T) {
	root := t.TempDir()
	build(t, root, file("big", noise(1, 4*chunkSize), 0o644), file("zbig", noise(2, 4*chunkSize), 0o644))
	for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(context.Background(), after)
		store := newStore(t)
		_, _, err := Tree(ctx, root, options(Options{Store: store}))
		cancel()
		if after > 0 && err == nil {
			continue // a fast machine was done by then
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: error %v", after, err)
		}
		if m, _ := filepath.Glob(filepath.Join(store.dir, "*", "*")); len(m) > 0 {
			t.Errorf("after %v: left in the store: %v", after, m)
		}
	}
}

func TestTreeNotThere(t *testing.T) {
	_, _, err := Tree(context.Background(), filepath.Join(t.TempDir(), "none"), options(Options{}))
	if !errors.Is(err, fs.ErrNotExist) || IsRefused(err) {
		t.Errorf("error %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Tree(context.Background(), link, options(Options{})); err == nil {
		t.Error("followed a link to the root")
	}
}

func TestWarnings(t *testing.T) {
	root := t.TempDir()
	build(t, root, dir("open", 0o777), dir("sticky", 0o1777),
		file("all", "", 0o666), file("gid", "", 0o2755), file("attr", "", 0o644),
		link("into", "/quarry/dest/usr/lib/x"), link("beside", "/quarryman"),
		file("script", "#! /quarry/src/tool -x\n", 0o755), file("fake", "\x7fELF\x02\x01", 0o755))
	if err := unix.Setxattr(filepath.Join(root, "attr"), "user.origin", []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	facts, _ := extractTree(t, root, Options{BuildPaths: []string{"/quarry"}})
	want := []string{
		"/all can be written by everybody (mode 0666)",
		`/attr has 1 extended attribute, the first "user.origin", which the artifact does not keep`,
		"/fake cannot be read as what it seems to be: it begins as an ELF file, but it is cut short",
		"/gid is setgid (group 0, mode 2755)",
		"/into points into the build, to /quarry/dest/usr/lib/x",
		"/open can be written by everybody (mode 0777)",
		"/script has its interpreter in the build, /quarry/src/tool",
	}
	if d := cmp.Diff(want, facts.Warnings); d != "" {
		t.Errorf("warnings (-want +got):\n%s", d)
	}

	many := t.TempDir()
	for i := range maxWarnings + 5 {
		build(t, many, file(fmt.Sprintf("f%03d", i), "", 0o666))
	}
	facts, _ = extractTree(t, many, Options{})
	if n := len(facts.Warnings); n != maxWarnings+1 || facts.Warnings[n-1] != "5 further warnings" {
		t.Errorf("%d warnings, the last %q", n, facts.Warnings[n-1])
	}
}

// caps builds a security.capability of one permitted capability.
func caps(revision uint32, permitted uint32, rootID ...uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, revision|capEffective)
	for _, v := range append([]uint32{permitted, 0, 0, 0}, rootID...) {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

func TestFileCapabilities(t *testing.T) {
	const netRaw = 1 << 13
	root, store := t.TempDir(), newStore(t)
	build(t, root, file("ping", "x", 0o755))
	set := func(b []byte) {
		t.Helper()
		if err := unix.Setxattr(filepath.Join(root, "ping"), capXattr, b, 0); err != nil {
			t.Fatal(err)
		}
	}
	// As setcap in the workspace leaves them on the host's disk.
	set(caps(capRevision3, netRaw, uidBase))
	facts, art := extractTree(t, root, Options{Store: store})
	if d := cmp.Diff([]string{"/ping has the file capabilities cap_net_raw"}, facts.Warnings); d != "" {
		t.Error(d)
	}
	h, _ := untar(t, store, art.SHA256)
	want := string(caps(capRevision2, netRaw))
	if got := h[0].PAXRecords[paxCaps]; got != want {
		t.Errorf("artifact has %x, want %x", got, want)
	}
	f, err := store.Open(art.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	to := t.TempDir()
	if _, err := Install(f, to); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	n, err := unix.Getxattr(filepath.Join(to, "ping"), capXattr, b)
	if err != nil || string(b[:n]) != want {
		t.Errorf("installed %x, %v; want %x", b[:max(n, 0)], err, want)
	}
	// Bound to a namespace that is not the workspace's.
	set(caps(capRevision3, netRaw, uidBase+5))
	if err := refusedBy(t, root, Options{}); !strings.Contains(err.Reason, "capabilities") {
		t.Error(err)
	}
}
