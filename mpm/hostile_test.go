package mpm

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/Morphux/quarry"
)

// hostile makes an artifact by hand and a package of it.
func (w *world) hostile(name string, entries ...tar.Header) {
	w.Helper()
	var text bytes.Buffer
	tw := tar.NewWriter(&text)
	for _, h := range entries {
		body := ""
		if h.Typeflag == tar.TypeReg {
			body = "evil"
		}
		h.Size = int64(len(body))
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := tw.WriteHeader(&h); err != nil {
			w.Fatal(err)
		}
		if _, err := tw.Write([]byte(body)); err != nil {
			w.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		w.Fatal(err)
	}
	z, err := zstd.NewWriter(nil, zstd.WithWindowSize(1<<20))
	if err != nil {
		w.Fatal(err)
	}
	a, err := w.store.Put(bytes.NewReader(z.EncodeAll(text.Bytes(), nil)))
	if err != nil {
		w.Fatal(err)
	}
	w.record(name, "1", &quarry.Facts{}, &a)
}

// Artifacts that try to get out of the root, or to bring what no package may, are
// refused whole, and nothing outside is touched.
func TestHostileArtifacts(t *testing.T) {
	w := newWorld(t)
	outside := filepath.Join(w.dir, "outside")
	if err := os.Mkdir(outside, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := func(n string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: n + "/"} }
	file := func(n string) tar.Header { return tar.Header{Typeflag: tar.TypeReg, Name: n} }
	link := func(n, to string) tar.Header { return tar.Header{Typeflag: tar.TypeSymlink, Name: n, Linkname: to} }
	hard := func(n, to string) tar.Header { return tar.Header{Typeflag: tar.TypeLink, Name: n, Linkname: to} }
	for name, entries := range map[string][]tar.Header{
		"dots":        {file("../evil")},
		"dots-inside": {dir("usr"), file("usr/../../evil")},
		"absolute":    {file("/evil")},
		"link-out":    {link("a", outside), file("a/evil")},
		"link-up":     {link("a", "../../../../../.."), file("a/evil")},
		"hard-out":    {hard("evil", "../../../etc/passwd")},
		"hard-abs":    {hard("evil", "/etc/passwd")},
		"hard-link":   {link("a", "/etc/passwd"), hard("b", "a")},
		"device":      {{Typeflag: tar.TypeBlock, Name: "disk", Devmajor: 8}},
		"char":        {{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}},
		"twice":       {file("a"), file("a")},
		"unsorted":    {file("b"), file("a")},
		"no-folder":   {file("usr/bin/evil")},
		"control":     {file("a\x1b[31m")},
		"owner":       {{Typeflag: tar.TypeReg, Name: "a", Uid: 1 << 20}},
	} {
		w.hostile(name, entries...)
	}
	// Through a link that the root has it is as for a process in the root.
	w.hostile("through", dir("out"), file("out/evil"))
	w.hostile("database", dir("var"), dir("var/lib"), dir("var/lib/quarry-mpm"), file("var/lib/quarry-mpm/journal.toml"))
	w.hostile("database-link", dir("var"), dir("var/lib"), link("var/lib/quarry-mpm", "/tmp"))
	w.hostile("good", dir("usr"), file("usr/good"))
	c := w.client()
	r := w.root(files{"out": "-> " + strings.Repeat("../", 20) + outside, "etc/passwd": "root"})
	before := tree(t, r.dir)
	all, err := c.Search(t.Context(), "*")
	if err != nil || len(all) != 19 {
		t.Fatalf("%d packages, %v", len(all), err)
	}
	for _, p := range all {
		_, err := c.Install(t.Context(), r, []string{"good", p.Name}, false)
		if p.Name == "good" {
			if err != nil {
				t.Errorf("%v", err)
			}
			if _, err := r.Remove([]string{"good"}, false); err != nil {
				t.Error(err)
			}
		} else if err == nil {
			t.Errorf("%s is installed", p.Name)
		}
		if now := tree(t, r.dir); now != before {
			t.Fatalf("%s changed the root to\n%s", p.Name, now)
		}
		w.whole(r)
	}
	for _, d := range []string{outside, w.dir, filepath.Dir(r.dir)} {
		entries, err := os.ReadDir(d)
		if err != nil || slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() == "evil" }) {
			t.Errorf("%s holds %v, %v", d, entries, err)
		}
	}
}

// A journal that was tampered with does not reach out of the root.
func TestDamagedJournal(t *testing.T) {
	w := newWorld(t)
	outside := filepath.Join(w.dir, "victim")
	if err := os.WriteFile(outside, []byte("safe"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, o := range []op{
		{Kind: opRemove, Path: "../../../../../../../../../../" + outside},
		{Kind: opRemove, Path: "link/victim"},
		{Kind: opPut, Path: "a", From: "../../../../../../victim"},
		{Kind: opPut, Path: "a", From: outside},
		{Kind: "burn", Path: "a"},
	} {
		r := w.root(files{"link": "-> " + w.dir})
		data, err := marshal(journal{rootSchema, "test", []op{o}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(r.path(journalFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
		r.Close()
		if r, _, err := OpenRoot(r.dir); err == nil {
			r.Close()
		}
		if got := read(t, outside); got != "safe" {
			t.Fatalf("%+v: %s", o, got)
		}
	}
}
