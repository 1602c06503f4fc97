package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
)

var today = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

// farm is a results repository that tests write to, with what is made of it.
type farm struct {
	t      *testing.T
	repo   *results.Repo
	reader *results.Reader
	site   *Site
	clock  atomic.Int64 // seconds since today
	store  string       // of artifacts
	n      int64        // of the last build
}

func newFarm(t *testing.T) *farm {
	f := &farm{t: t, store: t.TempDir()}
	path := filepath.Join(t.TempDir(), "results.git")
	var err error
	if f.repo, err = results.Open(path, results.Options{Head: "testing"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.repo.Close() })
	f.site, err = NewSite(SiteOptions{Results: f.repo, Dir: t.TempDir(), Default: "testing", Now: f.now, Sign: sign,
		Signers:   func() ([]byte, error) { return []byte("quarry@localhost ssh-ed25519 AAAA\n"), nil },
		Artifacts: func(sum string) (*os.File, error) { return os.Open(f.artifact(sum)) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.site.Close() })
	return f
}

func (f *farm) now() time.Time { return today.Add(time.Duration(f.clock.Load()) * time.Second) }

func sign(data []byte) ([]byte, error) { return []byte("signed: " + digestOf(data) + "\n"), nil }

func digestOf(data []byte) string {
	return strings.TrimSuffix(strings.TrimPrefix(signature(data), "sig/"), ".sig")
}

func (f *farm) artifact(sum string) string {
	return filepath.Join(f.store, sum[:2], sum+".tar.zst")
}

// record records a success, and puts its archive into the store.
func (f *farm) record(pkg, version int, arch string) {
	f.t.Helper()
	f.n++
	f.put(resultstest.Outcome(pkg, version, arch, f.n))
}

func (f *farm) fail(pkg, version int, arch string) {
	f.t.Helper()
	f.n++
	f.put(resultstest.Failure(pkg, version, arch, f.n))
}

func (f *farm) put(o *quarry.Outcome) {
	f.t.Helper()
	if _, err := f.repo.Record(context.Background(), o); err != nil {
		f.t.Fatal(err)
	}
	if o.Artifact != nil {
		path := f.artifact(o.Artifact.SHA256)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("archive of "+o.Build.Package), 0o644)); err != nil {
			f.t.Fatal(err)
		}
	}
}

// options are those of a whole export into a folder.
func (f *farm) options(dir string) ExportOptions {
	f.t.Helper()
	if f.reader == nil {
		var err error
		if f.reader, err = results.OpenReader(f.repo.Path(), "testing"); err != nil {
			f.t.Fatal(err)
		}
		f.t.Cleanup(func() { f.reader.Close() })
	}
	signers, _ := f.site.opts.Signers()
	return ExportOptions{Dir: dir, Results: f.reader, Default: "testing", Records: true, Artifacts: f.artifact, Sign: sign, Signers: signers, Grace: day, Now: f.now()}
}

func (f *farm) export(o ExportOptions) *Exported {
	f.t.Helper()
	out, err := Export(context.Background(), o)
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

// files are the files of an export that are part of it.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() == ownDir {
			if err == nil {
				err = fs.SkipDir
			}
			return err
		}
		if !d.IsDir() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			out[strings.TrimPrefix(path, dir+"/")] = string(data)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (f *farm) get(name string) (string, error) {
	a, err := f.site.Get(context.Background(), name)
	if err != nil {
		return "", err
	}
	if a.File != nil {
		defer a.File.Close()
		data, err := io.ReadAll(a.File)
		return string(data), err
	}
	data, err := a.Text("")
	return string(data), err
}

func (f *farm) must(name string) string {
	f.t.Helper()
	data, err := f.get(name)
	if err != nil {
		f.t.Fatal(err)
	}
	return data
}

// head waits for the head of the newest commit.
func (f *farm) head(channel string) *Head {
	f.t.Helper()
	s, err := f.repo.Snapshot(channel)
	if err != nil {
		f.t.Fatal(err)
	}
	for range 6000 {
		h, err := ParseHead([]byte(f.must(HeadName(channel))))
		if err != nil {
			f.t.Fatal(err)
		}
		if h.Commit == s.Commit() {
			return h
		}
		f.clock.Add(1) // one a minute is made at least
		time.Sleep(10 * time.Millisecond)
	}
	f.t.Fatal("the head of the newest commit does not come")
	return nil
}

// texts are all lists of a head, unpacked and checked.
func (f *farm) texts(h *Head) map[string]string {
	f.t.Helper()
	out := map[string]string{}
	for _, k := range Kinds {
		for arch, file := range h.Files(k) {
			text, err := file.Unpack([]byte(f.must(InChannel(h.Channel, file.Name))))
			if err != nil {
				f.t.Fatal(err)
			}
			l, err := ParseList(text)
			if err != nil || len(l.Packages) != file.Packages || l.Arch != arch || l.Channel != h.Channel {
				f.t.Fatalf("the list %s has %d packages of %s %s: %v", file.Name, len(l.Packages), l.Channel, l.Arch, err)
			}
			out[string(k)+" "+arch] = string(text)
		}
	}
	return out
}

// change does something at random to the channel.
func (f *farm) change(r *rand.Rand) {
	archs := []string{"x86_64", "aarch64", quarry.Noarch}
	for range 1 + r.IntN(6) {
		pkg, version, arch := r.IntN(30), r.IntN(4), archs[r.IntN(len(archs))]
		if r.IntN(5) == 0 {
			f.fail(pkg, version, arch)
		} else {
			f.record(pkg, version, arch)
		}
	}
	if r.IntN(4) == 0 {
		s, err := f.repo.Snapshot("testing")
		if err != nil {
			f.t.Fatal(err)
		}
		var past []string
		for id, err := range s.Commits() {
			if err != nil {
				f.t.Fatal(err)
			}
			past = append(past, id)
		}
		f.back(past[r.IntN(min(len(past), 15))])
	}
}

// back has the channel be what it was at a commit.
func (f *farm) back(commit string) {
	f.t.Helper()
	_, err := f.repo.Rollback(context.Background(), results.Rollback{Channel: "testing", Commit: commit, Restore: true, Force: true, By: quarry.Packager{User: "bob", Name: "Bob", Email: "bob@example.org"}})
	if err != nil && !errors.Is(err, results.ErrNothing) {
		f.t.Fatal(err)
	}
}

// Whatever happens to a channel, the daemon and an export say the same, lists that
// were made out of those before are those made out of nothing, and deltas lead
// from any commit to the newest.
func TestHistoriesOfAnyKind(t *testing.T) {
	seeds := uint64(4)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			f := newFarm(t)
			r := rand.New(rand.NewPCG(seed, 66))
			dir := t.TempDir()
			past := map[string]map[string]string{} // texts by commit
			for step := range 12 {
				f.change(r)
				h := f.head("testing")
				texts := f.texts(h)
				for commit, old := range past {
					for list, was := range old {
						k, arch, _ := strings.Cut(list, " ")
						if _, ok := texts[list]; !ok || commit == h.Commit {
							continue
						}
						delta, err := Unpack([]byte(f.must(DeltaName("testing", Kind(k), arch, commit, h.Commit))), MaxText)
						if err != nil {
							t.Fatal(err)
						}
						now, err := ApplyDelta([]byte(was), delta)
						if err != nil || string(now) != texts[list] {
							t.Fatalf("step %d: %s from %.8s to %.8s: %v\n%s\nmade of\n%s\nthis:\n%s\nand not\n%s", step, list, commit, h.Commit, err, delta, was, now, texts[list])
						}
					}
				}
				past[h.Commit] = texts
				o := f.options(dir)
				o.Force = true // it shrinks at random
				f.export(o)
				got := files(t, dir)
				for name, data := range got {
					if want, err := f.get(name); err != nil || want != data {
						if errors.Is(err, fs.ErrNotExist) && isOld(name, h) {
							continue
						}
						t.Fatalf("step %d: %s is\n%s\nin the export, and the daemon says\n%s\n%v", step, name, data, want, err)
					}
				}
				fresh := t.TempDir()
				f.export(f.options(fresh))
				for name, data := range files(t, fresh) {
					if got[name] != data {
						t.Fatalf("step %d: %s is\n%s\nin a new export, and in the old one\n%s", step, name, data, got[name])
					}
					delete(got, name)
				}
				for name := range got {
					if !isOld(name, h) {
						t.Fatalf("step %d: %s stayed in the export", step, name)
					}
				}
			}
		})
	}
}

// isOld reports whether a file may be there without being of the head: it stays for
// clients that were sent to it.
func isOld(name string, h *Head) bool {
	for _, top := range []string{"index/", "older/", "sig/", "delta/"} {
		if strings.HasPrefix(name, InChannel(h.Channel, top)) {
			return true
		}
	}
	return strings.HasPrefix(name, "artifacts/")
}

// The lists of an arch say of each package what can be installed on it.
func TestListsHaveWhatAnArchCanInstall(t *testing.T) {
	f := newFarm(t)
	f.record(1, 1, "x86_64")
	f.record(1, 2, quarry.Noarch)
	f.record(2, 3, "x86_64")
	f.record(2, 3, quarry.Noarch)
	f.record(3, 1, "aarch64")
	f.fail(3, 2, "aarch64")
	h := f.head("testing")
	if archs := slices.Sorted(maps.Keys(h.Index)); !slices.Equal(archs, []string{"aarch64", "noarch", "x86_64"}) || h.Packages != 3 {
		t.Fatalf("the head has the archs %v and %d packages", archs, h.Packages)
	}
	texts := f.texts(h)
	for list, want := range map[string]string{
		"index x86_64": "1 1.2 noarch,2 1.3 x86_64", "older x86_64": "1 1.1 x86_64,2 1.3 noarch",
		"index aarch64": "1 1.2 noarch,2 1.3 noarch,3 1.1 aarch64", "older aarch64": "",
		"index noarch": "1 1.2 noarch,2 1.3 noarch", "older noarch": "",
	} {
		var got []string
		if text := texts[list]; text != "" {
			l, err := ParseList([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range l.Packages {
				for i := range 4 {
					if p.Name == resultstest.Name(i) {
						got = append(got, fmt.Sprint(i, " ", p.Version, " ", p.Arch))
					}
				}
			}
		}
		slices.Sort(got)
		if strings.Join(got, ",") != want {
			t.Errorf("%s has %v, not %s", list, got, want)
		}
	}
	l, err := ParseList([]byte(f.must(PackageName("testing", resultstest.Name(2)))))
	if err != nil || len(l.Packages) != 2 {
		t.Fatalf("the package's file has %+v, %v", l, err)
	}
	p := l.Packages[1]
	rec, err := results.Parse([]byte(f.must(RecordName(quarry.Target{Channel: "testing", Package: p.Name, Version: p.Version, Arch: p.Arch}))))
	if err != nil {
		t.Fatal(err)
	}
	if p.Arch != "x86_64" || p.Artifact != rec.Artifact || p.ArtifactSize != rec.ArtifactSize || p.InstalledSize != rec.InstalledSize || p.ABI != rec.ABI ||
		p.Build != rec.Build || !p.Ended.Equal(rec.Ended) || p.Source != rec.Source || p.Revision != rec.Revision || !slices.Equal(p.Needed, rec.Recipe.Needed) ||
		p.Description != rec.Description || p.Category != rec.Category || p.Record == "" {
		t.Errorf("the package's file says %+v of the record %+v", p, rec)
	}
}

// What is not there, and what only looks like a name, is not there; nothing else
// than files of the site can be had.
func TestOtherNamesAreNotThere(t *testing.T) {
	f := newFarm(t)
	f.record(1, 1, "x86_64")
	h := f.head("testing")
	name := resultstest.Name(1)
	for _, name := range []string{
		"", "db", "db/", "db/testing", "db/testing/", "db/none/head.json", "db/../head.json", "db/testing/p/", "db/testing/p/zl/ib/zlib.toml", "db/testing/p/" + name + ".toml",
		"db/testing/p/../p/" + results.Spread(name) + ".toml", "db/testing/records/" + results.Spread(name), "db/testing/records/" + results.Spread(name) + "/1.1/../1.1/x86_64.toml",
		"db/testing/records/" + results.Spread(name) + "/1.1/x86_64.json", "db/testing/index/../head.json", "db/testing/index/x86_64-" + strings.Repeat("0", 64) + ".toml.zst",
		"db/testing/sig/x.sig", "db/testing/sig/" + strings.Repeat("0", 64) + ".sig", DeltaName("testing", Newest, "x86_64", h.Commit, h.Commit),
		DeltaName("testing", Newest, "x86_64", strings.Repeat("0", 40), h.Commit), DeltaName("testing", Newest, "x86_64", h.Commit, strings.Repeat("0", 40)),
		DeltaName("testing", "head", "x86_64", h.Commit, strings.Repeat("0", 40)), "artifacts/ab/abc.tar.zst", "artifacts/" + strings.Repeat("0", 64) + ".tar.zst", ArtifactName(strings.Repeat("0", 64)),
		"artifacts/../" + strings.Repeat("0", 64), "db/channels.json/x",
	} {
		if data, err := f.get(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q gives %q, %v", name, data, err)
		}
	}
}

// A head is renewed day by day, and signed anew.
func TestHeadsExpireAndAreRenewed(t *testing.T) {
	f := newFarm(t)
	f.record(1, 1, "x86_64")
	first := f.head("testing")
	if d := first.Expires.Sub(f.now()); d < 7*day || d > 8*day {
		t.Errorf("a head is good for %v", d)
	}
	f.clock.Add(int64(day / time.Second))
	data := f.must(HeadName("testing"))
	h, err := ParseHead([]byte(data))
	// Who asks gets the head before, while making the new one takes longer.
	for began := time.Now(); err == nil && h.Expires.Equal(first.Expires) && time.Since(began) < 5*time.Minute; {
		data = f.must(HeadName("testing"))
		h, err = ParseHead([]byte(data))
	}
	if err != nil || h.Commit != first.Commit || !h.Expires.Equal(first.Expires.Add(day)) {
		t.Fatalf("the next day the head is %+v, %v", h, err)
	}
	if sig := f.must(SignatureName("testing", []byte(data))); sig != "signed: "+digestOf([]byte(data))+"\n" {
		t.Errorf("its signature is %q", sig)
	}
}

// A daemon that was ended goes on with what it has made.
func TestSitesGoOnWithTheirCache(t *testing.T) {
	f := newFarm(t)
	for i := range 30 {
		f.record(i, 1, "x86_64")
	}
	want := f.texts(f.head("testing"))
	o := f.site.opts
	for name, spoil := range map[string]func(string){
		"whole":    func(string) {},
		"no lists": func(dir string) { os.RemoveAll(filepath.Join(dir, "testing", "index")) },
		"damaged": func(dir string) {
			list, _ := filepath.Glob(filepath.Join(dir, "testing", "index", "*"))
			for _, name := range list {
				data, _ := os.ReadFile(name)
				data[len(data)/2] ^= 1
				os.WriteFile(name, data, 0o644)
			}
		},
		"no head": func(dir string) { os.WriteFile(filepath.Join(dir, "testing", "head.json"), []byte("{"), 0o644) },
	} {
		f.site.Close()
		spoil(o.Dir)
		f.record(int(f.n)+100, 1, "x86_64")
		var err error
		if f.site, err = NewSite(o); err != nil {
			t.Fatal(err)
		}
		texts := f.texts(f.head("testing"))
		if texts["index x86_64"] == want["index x86_64"] || len(texts["index x86_64"]) < len(want["index x86_64"]) {
			t.Errorf("%s: the index is\n%s", name, texts["index x86_64"])
		}
		want = texts
	}
}

// Who reads while the channel moves gets what belongs together.
func TestReadersWhileTheChannelMoves(t *testing.T) {
	f := newFarm(t)
	f.site.opts.Now = time.Now
	f.record(0, 1, "x86_64")
	ctx, stop := context.WithCancel(context.Background())
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for ctx.Err() == nil {
				data, err := f.get(HeadName("testing"))
				if err != nil {
					t.Error(err)
					return
				}
				h, err := ParseHead([]byte(data))
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := f.get(SignatureName("testing", []byte(data))); err != nil {
					t.Error(err)
				}
				file := h.Index["x86_64"]
				packed, err := f.get(InChannel("testing", file.Name))
				if err == nil {
					_, err = file.Unpack([]byte(packed))
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 40 {
		f.record(i%7, 1+i/7, "x86_64")
	}
	stop()
	readers.Wait()
}

// An answer in an encoding is the same answer.
func TestEncodings(t *testing.T) {
	f := newFarm(t)
	for v := range 6 {
		f.record(1, v, "x86_64")
	}
	a, err := f.site.Get(context.Background(), PackageName("testing", resultstest.Name(1)))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := a.Text("")
	if err != nil {
		t.Fatal(err)
	}
	packed, err := a.Text("zstd")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := Unpack(packed, MaxText); err != nil || !bytes.Equal(text, plain) || len(packed) >= len(plain) {
		t.Errorf("%d bytes were packed to %d, and come back as %d: %v", len(plain), len(packed), len(text), err)
	}
}
