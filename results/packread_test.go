package results

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-git/go-git/v5/plumbing"
)

// TestReadsWhatGitPacks has stock git make packs with long chains of deltas, of
// both kinds, and compares every object with what git cat-file says.
func TestReadsWhatGitPacks(t *testing.T) {
	r := open(t, Options{MaxPacks: -1})
	files := sample("zlib", "1", "x86_64", 1).Facts.Files
	for i := range int64(60) {
		o := sample("zlib", fmt.Sprint(i), "x86_64", i)
		f := files[4]
		f.Path, f.SHA256 = fmt.Sprintf("/usr/share/%d", i), o.Build.Key
		files = append(files, f) // each list a little longer than the one before
		o.Facts.Files = files
		record(t, r, o)
	}
	for _, how := range [][]string{
		{"repack", "-a", "-d", "-f", "-q", "--depth=50", "--window=50"},
		{"-c", "repack.useDeltaBaseOffset=false", "repack", "-a", "-d", "-f", "-q", "--depth=50", "--window=50"},
	} {
		git(t, r.Path(), how...)
		cmd := exec.Command("git", "-C", r.Path(), "cat-file", "--batch", "--batch-all-objects")
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		o := openODB(r.Path())
		defer o.Close()
		types := map[string]plumbing.ObjectType{"blob": plumbing.BlobObject, "tree": plumbing.TreeObject, "commit": plumbing.CommitObject}
		n := 0
		for len(out) > 0 {
			head, rest, _ := bytes.Cut(out, []byte("\n"))
			var hex, typ string
			var size int
			if _, err := fmt.Sscan(string(head), &hex, &typ, &size); err != nil {
				t.Fatal(err)
			}
			got, err := o.get(types[typ], plumbing.NewHash(hex))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, rest[:size]) {
				t.Fatalf("%s %s reads as %q, git says %q", typ, hex, got, rest[:size])
			}
			if _, err := o.get(plumbing.TagObject, plumbing.NewHash(hex)); err == nil {
				t.Fatalf("%s %s was read as a tag", typ, hex)
			}
			out = rest[size+1:]
			n++
		}
		verify := git(t, r.Path(), "verify-pack", "-v", onePack(t, r.Path()))
		if n < 200 || !strings.Contains(verify, "chain length = 5") {
			t.Errorf("%d objects and no long chains of deltas, so this test shows little:\n%s", n, verify[max(0, len(verify)-400):])
		}
	}
}

func onePack(t testing.TB, repo string) string {
	packs, err := filepath.Glob(filepath.Join(repo, "objects/pack/*.idx"))
	if err != nil || len(packs) != 1 {
		t.Fatalf("there is not one pack: %v, %v", packs, err)
	}
	return packs[0]
}

func TestDamagedObjects(t *testing.T) {
	r := open(t, Options{MaxPacks: -1})
	record(t, r, sample("zlib", "1", "x86_64", 1))
	name := strings.TrimSuffix(onePack(t, r.Path()), ".idx") + ".pack"
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	for _, damage := range []func([]byte) []byte{
		func(b []byte) []byte { return b[:len(b)/2] },
		func(b []byte) []byte { return nil },
		func(b []byte) []byte {
			b = bytes.Clone(b)
			for i := 12; i < len(b); i += 7 {
				b[i] ^= 0xff
			}
			return b
		},
	} {
		if err := os.WriteFile(name, damage(data), 0o666); err != nil {
			t.Fatal(err)
		}
		reader, err := OpenReader(r.Path(), "testing")
		if err == nil {
			_, err = reader.Get("zlib", "1", "x86_64")
			reader.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "cannot be read") {
			t.Errorf("a damaged pack: %v", err)
		}
	}
}

type memoryFile struct{ *bytes.Reader }

func (memoryFile) Close() error { return nil }

// FuzzPack reads every object that a hostile index names out of a hostile
// pack.
func FuzzPack(f *testing.F) {
	r := open(f, Options{MaxPacks: -1})
	for i := range int64(4) {
		record(f, r, sample("zlib", fmt.Sprint(i), "x86_64", i))
	}
	for _, refs := range []string{"true", "false"} {
		git(f, r.Path(), "-c", "repack.useDeltaBaseOffset="+refs, "repack", "-a", "-d", "-f", "-q")
		name := strings.TrimSuffix(onePack(f, r.Path()), ".idx")
		idx, err := os.ReadFile(name + ".idx")
		if err != nil {
			f.Fatal(err)
		}
		data, err := os.ReadFile(name + ".pack")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(idx, data)
	}
	f.Fuzz(func(t *testing.T, idx, data []byte) {
		p, err := newPack("pack", idx)
		if err != nil {
			return
		}
		p.file = memoryFile{bytes.NewReader(data)}
		bases := bounded[baseKey, packed]{max: 1 << 20}
		for i := range min(p.n, 50) {
			var h plumbing.Hash
			copy(h[:], idx[idxHeader+idxFanout+i*20:])
			at, ok := p.offset(h)
			if !ok {
				continue
			}
			if obj, err := p.read(at, 0, &bases); err == nil && len(obj.data) > maxObject {
				t.Errorf("an object of %d bytes", len(obj.data))
			}
		}
	})
}
