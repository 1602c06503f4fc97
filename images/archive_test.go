package images_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bindings "github.com/containers/podman/v4/pkg/bindings/images"
	"github.com/klauspost/compress/zstd"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/internal/testdisk"
)

func (f *diskFarm) copyPath(b images.Base) string {
	return filepath.Join(f.state, "bases", strings.TrimPrefix(b.Digest, "sha256:")+".tar.zst")
}

// kept lists the folder of clean copies.
func (f *diskFarm) kept(t testing.TB) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(f.state, "bases"))
	must(t, err)
	for _, e := range entries {
		if e.Name() != "layers" && e.Name() != "verified" {
			names = append(names, e.Name())
		}
	}
	return names
}

func decompressed(t testing.TB, path string) []byte {
	t.Helper()
	file, err := os.Open(path)
	must(t, err)
	defer file.Close()
	r, err := zstd.NewReader(file)
	must(t, err)
	defer r.Close()
	data, err := io.ReadAll(r)
	must(t, err)
	return data
}

// removeImage deletes an image underneath, as an admin with podman rmi would.
func (f *diskFarm) removeImage(t testing.TB, b images.Base) {
	t.Helper()
	must(t, f.store.Drain(t.Context())) // podman takes it ill when two remove a container
	call, err := f.conn.Context(t.Context())
	must(t, err)
	if _, errs := bindings.Remove(call, []string{b.Image}, new(bindings.RemoveOptions).WithForce(true)); len(errs) > 0 {
		t.Fatal(errs)
	}
}

func TestCleanCopies(t *testing.T) {
	f := newDiskFarm(t, podman.Config{})
	plain := small(t, testbase.Arch, entry{name: "./etc/", kind: tar.TypeDir}, entry{name: "./etc/mark", data: "x"})
	load := func(ref, name string, data []byte) images.Base {
		t.Helper()
		b, err := f.store.Load(t.Context(), ref, file(t, name, data), nil)
		must(t, err)
		return b
	}
	arch, second := testbase.Arch, testbase.Arch+":second"
	one := load(arch, "one.tar.xz", command(t, plain, "xz"))
	sum := sha256.Sum256(plain)
	if one.Digest != "sha256:"+hex.EncodeToString(sum[:]) || one.Ref() != arch || one.Name != "" {
		t.Errorf("%+v", one)
	}
	if !bytes.Equal(decompressed(t, f.copyPath(one)), plain) {
		t.Error("the copy is not what was loaded")
	}
	// The same under another name: one copy, which knows both.
	two := load(second, "two.tar", plain)
	if two.Digest != one.Digest || two.Name != "second" || two.Ref() != second || two.Source != "two.tar" {
		t.Errorf("%+v", two)
	}
	if again, err := f.store.Base(t.Context(), arch); err != nil || again.Source != "one.tar.xz" || again.Digest != one.Digest {
		t.Errorf("%+v, %v", again, err)
	}
	if list, err := f.store.Bases(t.Context()); err != nil || len(list) != 2 || list[0].Ref() != arch || list[1].Ref() != second {
		t.Errorf("%+v, %v", list, err)
	}
	if names := f.kept(t); len(names) != 2 {
		t.Errorf("%q", names)
	}
	// Each goes on alone.
	must(t, f.store.Remove(t.Context(), arch))
	f.removeImage(t, two)
	if b, err := f.store.Base(t.Context(), second); err != nil || b.Digest != two.Digest || b.Source != "two.tar" || !b.Created.Equal(two.Created) {
		t.Errorf("%+v, %v", b, err)
	}
	var none *images.NoBaseError
	if _, err := f.store.Base(t.Context(), arch); !errors.As(err, &none) || none.Arch != arch || none.Name != "" {
		t.Errorf("%v", err)
	}
	// Another takes its place, and its copy.
	three := load(second, "three.tar", small(t, testbase.Arch))
	if names := f.kept(t); len(names) != 2 || !slices.Contains(names, filepath.Base(f.copyPath(three))) {
		t.Errorf("%q", names)
	}
	must(t, f.store.Remove(t.Context(), second))
	if names := f.kept(t); len(names) != 0 {
		t.Errorf("%q", names)
	}
	if left := nameless(t, f.conn); len(left) > 0 {
		t.Errorf("images are left: %v", left)
	}
	if trees, err := os.ReadDir(filepath.Join(f.state, "bases/layers")); err != nil || len(trees) > 0 {
		t.Errorf("measures are left: %v, %v", trees, err)
	}
	if err := f.store.Remove(t.Context(), second); !errors.As(err, &none) || none.Name != "second" || !strings.Contains(err.Error(), "quarry images load "+second) {
		t.Errorf("%v", err)
	}
}

// An image archive keeps what it brings beside its files, but not its names.
func TestCleanCopyOfArchive(t *testing.T) {
	f := newDiskFarm(t, podman.Config{})
	one := f.load(t, testbase.Arch, marked)
	call, err := f.conn.Context(t.Context())
	must(t, err)
	for _, format := range []string{"oci-archive", "docker-archive"} {
		t.Run(format, func(t *testing.T) {
			var b bytes.Buffer
			must(t, bindings.Export(call, []string{"localhost/quarry/base:" + testbase.Arch}, &b, new(bindings.ExportOptions).WithFormat(format)))
			two, err := f.store.Load(t.Context(), testbase.Arch+":two", file(t, "two.tar", b.Bytes()), nil)
			must(t, err)
			if two.Digest != one.Digest {
				t.Errorf("%+v", two)
			}
			if data := decompressed(t, f.copyPath(two)); bytes.Contains(data, []byte("localhost/quarry")) {
				t.Error("the copy holds the archive's name")
			}
			f.removeImage(t, two)
			if damage, err := f.store.VerifyAtStart(t.Context()); err != nil || len(damage) == 0 {
				t.Errorf("%v, %v", damage, err)
			}
			if b, err := f.store.Base(t.Context(), testbase.Arch+":two"); err != nil || b.Digest != two.Digest || b.Image != two.Image {
				t.Errorf("%+v, %v, not %+v", b, err, two)
			}
			f.whole(t)
		})
	}
}

// However the image of a base gets lost, it comes back.
func TestLostStorage(t *testing.T) {
	f := newDiskFarm(t, podman.Config{})
	loaded := f.load(t, testbase.Arch, marked)
	for name, lose := range map[string]func(){
		"image deleted underneath": func() {
			if b, err := f.store.Base(t.Context(), testbase.Arch); err != nil {
				f.t.Error(err)
			} else {
				f.removeImage(t, b)
			}
		},
		"storage deleted":                func() { f.again(t, func() { must(t, os.RemoveAll(filepath.Join(f.state, "podman/root"))) }) },
		"all of podman's folder deleted": func() { f.again(t, func() { must(t, os.RemoveAll(filepath.Join(f.state, "podman"))) }) },
	} {
		for how, find := range map[string]func() error{
			"a build wants it": func() error {
				if got := f.reads(f.t, "/etc/mark"); got != "-rw-r--r-- "+marked {
					t.Errorf("it sees %q", got)
				}
				return nil
			},
			"at start": func() error {
				damage, err := f.store.VerifyAtStart(t.Context())
				if len(damage) != 1 || !strings.Contains(damage[0].String(), "gone from podman's storage") {
					t.Errorf("%v", damage)
				}
				return err
			},
			"repair": func() error {
				done, err := f.store.Repair(t.Context(), nil)
				if len(done) != 1 {
					t.Errorf("%q", done)
				}
				return err
			},
			"restore": func() error {
				b, err := f.store.Restore(t.Context(), testbase.Arch, nil)
				if b.Digest != loaded.Digest {
					t.Errorf("%+v", b)
				}
				return err
			},
		} {
			t.Run(name+", "+how, func(t *testing.T) {
				lose()
				must(t, find())
				b, err := f.store.Base(t.Context(), testbase.Arch)
				if err != nil || b.Digest != loaded.Digest || b.Source != loaded.Source || !b.Created.Equal(loaded.Created) {
					t.Errorf("%+v, %v", b, err)
				}
				f.whole(t)
			})
		}
	}
	if !strings.Contains(f.log.String(), "a base is gone from podman's storage, and is made again from its clean copy") {
		t.Errorf("the log does not say so: %s", f.log)
	}
}

// Copies that are lost are made again from podman's storage while that is whole.
func TestLostCopies(t *testing.T) {
	f := newDiskFarm(t, podman.Config{})
	b := f.load(t, testbase.Arch, marked)
	for name, lose := range map[string]func(){
		"copy":       func() { must(t, os.Remove(f.copyPath(b))) },
		"note":       func() { must(t, os.Remove(strings.TrimSuffix(f.copyPath(b), ".tar.zst")+".json")) },
		"everything": func() { must(t, os.RemoveAll(filepath.Join(f.state, "bases"))) },
		"broken note": func() {
			must(t, os.WriteFile(strings.TrimSuffix(f.copyPath(b), ".tar.zst")+".json", []byte(`{"digest":"../../x","kind":"rootfs"}`), 0o644))
		},
	} {
		t.Run(name, func(t *testing.T) {
			lose()
			done, err := f.store.Repair(t.Context(), nil)
			if err != nil || len(done) != 1 || !strings.Contains(done[0], "clean copy of base") {
				t.Errorf("%q, %v", done, err)
			}
			now, err := f.store.Base(t.Context(), testbase.Arch)
			if err != nil || now.Digest != b.Digest || now.Source != b.Source {
				t.Errorf("%+v, %v", now, err)
			}
			f.removeImage(t, now)
			f.whole(t)
		})
	}
}

// A copy that is not what it was is no base.
func TestDamagedCopy(t *testing.T) {
	for name, do := range map[string]func(t *testing.T, f *diskFarm, b images.Base){
		"a bit": func(t *testing.T, f *diskFarm, b images.Base) {
			data, err := os.ReadFile(f.copyPath(b))
			must(t, err)
			data[len(data)/2] ^= 0x10
			must(t, os.WriteFile(f.copyPath(b), data, 0o644))
		},
		"cut":   func(t *testing.T, f *diskFarm, b images.Base) { must(t, os.Truncate(f.copyPath(b), 100)) },
		"empty": func(t *testing.T, f *diskFarm, b images.Base) { must(t, os.Truncate(f.copyPath(b), 0)) },
		"gone":  func(t *testing.T, f *diskFarm, b images.Base) { must(t, os.Remove(f.copyPath(b))) },
		"another's": func(t *testing.T, f *diskFarm, b images.Base) {
			z, err := zstd.NewWriter(nil)
			must(t, err)
			must(t, os.WriteFile(f.copyPath(b), z.EncodeAll(small(t, testbase.Arch), nil), 0o644))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newDiskFarm(t, podman.Config{})
			b := f.load(t, testbase.Arch, marked)
			do(t, f, b)
			// As long as the image is whole nobody needs the copy.
			if now, err := f.store.Restore(t.Context(), testbase.Arch, nil); err != nil || now != b {
				t.Errorf("%+v, %v", now, err)
			}
			f.removeImage(t, b)
			says := func(err error) {
				t.Helper()
				if err == nil || !strings.Contains(err.Error(), "clean copy of base "+testbase.Arch+" is damaged") || !strings.Contains(err.Error(), "load the base again") || strings.Contains(err.Error(), "\n") {
					t.Errorf("%v", err)
				}
			}
			_, err := f.store.Restore(t.Context(), testbase.Arch, nil)
			says(err)
			_, err = f.store.Base(t.Context(), testbase.Arch)
			says(err)
			damage, err := f.store.VerifyAtStart(t.Context())
			says(err)
			if len(damage) != 1 {
				t.Errorf("%v", damage)
			}
			if left := nameless(t, f.conn); len(left) > 0 {
				t.Errorf("images are left: %v", left)
			}
			// The cure works.
			if again := f.load(t, testbase.Arch, marked); again.Digest != b.Digest {
				t.Errorf("%+v", again)
			}
			f.whole(t)
			f.removeImage(t, must2(f.store.Base(t.Context(), testbase.Arch))(t))
			f.whole(t)
		})
	}
}

func must2[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		must(t, err)
		return v
	}
}

// A note that promises another base than the copy holds is found out.
func TestWrongDigest(t *testing.T) {
	f := newDiskFarm(t, podman.Config{})
	b := f.load(t, testbase.Arch, marked)
	f.removeImage(t, b)
	wrong := b
	wrong.Digest = "sha256:" + strings.Repeat("ab", 32)
	note := strings.TrimSuffix(f.copyPath(b), ".tar.zst") + ".json"
	data, err := os.ReadFile(note)
	must(t, err)
	var m map[string]any
	must(t, json.Unmarshal(data, &m))
	m["digest"] = wrong.Digest
	data, err = json.Marshal(m)
	must(t, err)
	must(t, os.WriteFile(strings.TrimSuffix(f.copyPath(wrong), ".tar.zst")+".json", data, 0o644))
	must(t, os.Rename(f.copyPath(b), f.copyPath(wrong)))
	must(t, os.Remove(note))
	if got, err := f.store.Restore(t.Context(), testbase.Arch, nil); err == nil || !strings.Contains(err.Error(), "podman stored base") {
		t.Errorf("%+v, %v", got, err)
	}
	if left := nameless(t, f.conn); len(left) > 0 {
		t.Errorf("images are left: %v", left)
	}
}

// When a crash came between two bases, the one that podman names counts.
func TestTwoNotes(t *testing.T) {
	f := newDiskFarm(t, podman.Config{})
	old := f.load(t, testbase.Arch, "old")
	note := strings.TrimSuffix(f.copyPath(old), ".tar.zst")
	keep := map[string][]byte{}
	for _, ext := range []string{".json", ".tar.zst"} {
		data, err := os.ReadFile(note + ext)
		must(t, err)
		keep[ext] = data
	}
	f.load(t, testbase.Arch, marked)
	for ext, data := range keep {
		must(t, os.WriteFile(note+ext, data, 0o644))
	}
	must(t, os.WriteFile(filepath.Join(f.state, "bases", "new-1234.tar.zst"), []byte("half"), 0o644))
	must(t, os.WriteFile(filepath.Join(f.state, "bases", strings.Repeat("0", 64)+".tar.zst"), []byte("no note"), 0o644))
	if damage, err := f.store.VerifyAtStart(t.Context()); err != nil || len(damage) > 0 {
		t.Errorf("%v, %v", damage, err)
	}
	if names := f.kept(t); len(names) != 2 {
		t.Errorf("%q", names)
	}
	f.whole(t)
}

// Where there is no room for the copy, nothing has happened.
func TestCopyDiskFull(t *testing.T) {
	testdisk.Run(t, 4<<20, func(t *testing.T, dir string) {
		f := newDiskFarm(t, podman.Config{})
		store := newStore(t, f.conn, images.Options{BasesDir: filepath.Join(dir, "bases")})
		old, err := store.Load(t.Context(), testbase.Arch, file(t, "old.tar", small(t, testbase.Arch)), nil)
		must(t, err)
		noise := make([]byte, 16<<20)
		r := rand.NewChaCha8([32]byte{1})
		r.Read(noise)
		big := file(t, "big.tar", small(t, testbase.Arch, entry{name: "./noise", data: string(noise)}))
		list := func() []string {
			var names []string
			must(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
				names = append(names, p)
				return err
			}))
			return names
		}
		before := list()
		_, err = store.Load(t.Context(), testbase.Arch, big, nil)
		if err == nil || !strings.Contains(err.Error(), "no space left in "+filepath.Join(dir, "bases")) || !strings.Contains(err.Error(), "clean copy") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v", err)
		}
		if after := list(); !slices.Equal(before, after) {
			t.Errorf("%q is left of %q", after, before)
		}
		if left := nameless(t, f.conn); len(left) > 0 {
			t.Errorf("images are left: %v", left)
		}
		if now, err := store.Base(t.Context(), testbase.Arch); err != nil || now != old {
			t.Errorf("%+v, %v", now, err)
		}
		if damage, err := store.Verify(t.Context(), true, nil); err != nil || len(damage) > 0 {
			t.Errorf("%v, %v", damage, err)
		}
	})
}
