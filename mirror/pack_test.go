package mirror

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// made writes a list into a folder, out of another one and of what has changed.
func made(t *testing.T, dir, old string, l *List, changes map[string]int) (string, File) {
	t.Helper()
	ch := make(chan change, len(changes))
	names := make([]string, 0, len(changes))
	for name := range changes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		c := change{name: name}
		if v := changes[name]; v > 0 {
			c.with = []byte(blockOf(name, v))
		}
		ch <- c
	}
	close(ch)
	f, _, tmp, err := writeList(dir, old, l, ch)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Base(tmp), f
}

// A list that was made out of the one before is, packed and all, the list that is
// made out of nothing.
func TestListsDoNotTellWhatWasThereBefore(t *testing.T) {
	dir := t.TempDir()
	l := &List{Channel: "testing", Arch: "x86_64"}
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 12))
		now := map[string]int{}
		old := ""
		for step := range 12 {
			changes := map[string]int{}
			for range r.IntN(25) {
				name := fmt.Sprint("p", r.IntN(60))
				changes[name] = 0
				delete(now, name)
				if r.IntN(3) > 0 {
					changes[name] = 3 + r.IntN(90)
					now[name] = changes[name]
				}
			}
			file, f := made(t, dir, old, l, changes)
			fresh, want := made(t, dir, "", l, now)
			a, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(filepath.Join(dir, fresh))
			if err != nil {
				t.Fatal(err)
			}
			if f != want || !bytes.Equal(a, b) {
				t.Fatalf("seed %d, step %d: the list is %+v, and made out of nothing %+v", seed, step, f, want)
			}
			f.Name = file
			if text, err := f.Unpack(a); err != nil || string(text) != listOf(*l, now) {
				t.Fatalf("seed %d, step %d: %v: the list reads\n%s\nand not\n%s", seed, step, err, text, listOf(*l, now))
			}
			old = file
		}
	}
}

// What is no list is an error, and not the end of the program.
func FuzzReadFrames(f *testing.F) {
	f.Add(pack([]byte("schema = 1\n\n")))
	f.Add(append(pack([]byte("schema = 1\n\n")), pack([]byte(blockOf("a", 4)))...))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &merger{out: newPacker(&bytes.Buffer{}, &List{Channel: "testing"})}
		var err error
		if m.old, err = newFrames(bytes.NewReader(data)); err == nil {
			if err = m.put("b", nil); err == nil {
				err = m.upTo("", true)
			}
		}
		m.old.close()
		if _, e := m.out.close(); e != nil && err == nil {
			t.Fatal(e)
		}
	})
}
