package mirror

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// A list as text, by name; several entries of one name stand together.
func listOf(l List, names map[string]int) string {
	w := writer{b: []byte(l.head())}
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for name := range names {
			if !yield(name) {
				return
			}
		}
	}) {
		w.b = append(w.b, blockOf(name, names[name])...)
	}
	return string(w.b)
}

func blockOf(name string, version int) string {
	w := writer{}
	for i := range version%3 + 1 {
		w.b = append(w.b, entryLine+"\n"...)
		w.string("name", name)
		w.string("version", fmt.Sprint(version-i))
		w.string("description", "what's \"in\" it: "+strings.Repeat("x", version%7))
		w.b = append(w.b, '\n')
	}
	return string(w.b)
}

// Whatever has happened in between, a delta makes of the old text the new one.
func TestDeltaMakesTheNewText(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 6))
		l := List{Channel: "testing", Arch: "x86_64"}
		old, now := map[string]int{}, map[string]int{}
		for range r.IntN(30) {
			old[fmt.Sprint("p", r.IntN(40))] = 3 + r.IntN(9)
		}
		for name, v := range old {
			now[name] = v
		}
		d := Delta{List: l, Kind: Newest, Old: "a", New: "b"}
		changed := map[string]int{}
		for range r.IntN(20) {
			name := fmt.Sprint("p", r.IntN(40))
			if r.IntN(3) == 0 {
				delete(now, name)
			} else {
				now[name] = 3 + r.IntN(9)
			}
		}
		for name, v := range now {
			if old[name] != v {
				changed[name] = v
			}
		}
		for name := range old {
			if now[name] == 0 {
				d.Removed = append(d.Removed, name)
			}
		}
		slices.Sort(d.Removed)
		delta := d.head() + strings.TrimPrefix(listOf(l, changed), l.head())
		got, err := ApplyDelta([]byte(listOf(l, old)), []byte(delta))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if want := listOf(l, now); string(got) != want {
			t.Fatalf("seed %d: the delta\n%s\nmade of\n%s\nthis:\n%s\nand not\n%s", seed, delta, listOf(l, old), got, want)
		}
	}
}

func TestDeltaOfAnotherListIsRefused(t *testing.T) {
	d := Delta{List: List{Channel: "testing", Arch: "x86_64"}, Kind: Newest, Old: "a", New: "b"}
	for _, l := range []List{{Channel: "stable", Arch: "x86_64"}, {Channel: "testing", Arch: "aarch64"}} {
		if _, err := ApplyDelta([]byte(l.head()), []byte(d.head())); err == nil {
			t.Errorf("a delta of testing x86_64 was applied to %s %s", l.Channel, l.Arch)
		}
	}
	if _, err := ApplyDelta([]byte(d.List.head()), []byte(d.List.head())); err == nil {
		t.Error("an index was taken for a delta")
	}
}

func TestListsAreReadStrictly(t *testing.T) {
	good := "schema = 1\nchannel = 'testing'\narch = 'x86_64'\n\n[[package]]\nname = 'zlib'\nversion = '1.3'\nneeded = ['a', \"b'c\"]\n"
	l, err := ParseList([]byte(good + "novel = {a = 1}\nother = 1979-05-27\n"))
	if err != nil || len(l.Packages) != 1 || l.Packages[0].Arch != "x86_64" || !slices.Equal(l.Packages[0].Needed, []string{"a", "b'c"}) {
		t.Fatalf("a list with keys to come reads as %+v, %v", l, err)
	}
	for name, text := range map[string]string{
		"schema":        strings.Replace(good, "schema = 1", "schema = 2", 1),
		"no schema":     strings.Replace(good, "schema = 1\n", "", 1),
		"schema behind": strings.Replace(good, "schema = 1\n", "", 1) + "schema = 1\n",
		"cut off":       strings.TrimSuffix(good, "\n"),
		"no name":       good + "[[package]]\nversion = '1'\n",
		"bad name":      good + "[[package]]\nname = 'zz/../x'\nversion = '1'\n",
		"bad artifact":  good + "artifact = '../../etc/passwd'\n",
		"not a pair":    good + "needed\n",
		"no string":     good + "description = 'a\n",
		"control":       good + "description = 'a\x1b[31m'\n",
		"escaped":       good + `description = "\u001b[31m"` + "\n",
		"kind of value": good + "artifact_size = '1'\n",
		"list":          good + "provides = ['a' 'b']\n",
		"out of order":  good + "[[package]]\nname = 'a'\nversion = '1'\n",
	} {
		if l, err := ParseList([]byte(text)); err == nil {
			t.Errorf("%s: this was read as %+v:\n%s", name, l, text)
		}
	}
}

func TestHeadsAreReadStrictly(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	good := `{"schema":1,"channel":"testing","commit":"` + sum[:40] + `","time":"2026-01-02T03:04:05Z","expires":"2026-01-09T00:00:00Z","packages":1,
		"index":{"x86_64":{"name":"index/x86_64-` + sum + `.toml.zst","size":10,"sha256":"` + sum + `","text_size":20,"text_sha256":"` + sum + `","packages":1}}}`
	h, err := ParseHead([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if f, arch, ok := h.File(Newest, "x86_64"); !ok || arch != "x86_64" || f.Size != 10 {
		t.Fatalf("the list for x86_64 is %+v, %s, %v", f, arch, ok)
	}
	if _, _, ok := h.File(Newest, "riscv64"); ok {
		t.Error("there is a list for an arch without one")
	}
	for _, bad := range [][2]string{{`"schema":1`, `"schema":2`}, {`testing"`, `../x"`}, {sum[:40] + `"`, `x"`}, {`index/x86_64-`, `../x86_64-`}, {`"size":10`, `"size":-1`}, {`"text_size":20`, `"text_size":9999999999999`}, {`{"schema"`, `{{"schema"`}} {
		if _, err := ParseHead([]byte(strings.Replace(good, bad[0], bad[1], 1))); err == nil {
			t.Errorf("a head with %s was read", bad[1])
		}
	}
	now := h.Expires.Add(-1)
	older := *h
	older.Time = h.Time.Add(-1)
	for name, err := range map[string]error{"another channel": h.Check("stable", nil, now), "expired": h.Check("testing", nil, h.Expires), "back in time": older.Check("testing", h, now)} {
		if err == nil {
			t.Errorf("a head was believed: %s", name)
		}
	}
	if err := h.Check("testing", h, now); err != nil {
		t.Error(err)
	}
}

// What is read here TOML reads likewise.
func FuzzParseList(f *testing.F) {
	l := List{Channel: "testing", Arch: "x86_64"}
	f.Add([]byte(listOf(l, map[string]int{"a": 4, "b": 5})))
	f.Add([]byte((&Delta{List: l, Kind: Older, Old: "a", New: "b", Removed: []string{"x", "y'z"}}).head()))
	f.Add([]byte("schema = 1\n\n[[package]]\nname = \"a\\u0041\"\nversion = '1'\narch = 'x'\nneeded = []\nended = 2026-01-02T03:04:05.5Z\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := ParseList(text)
		if err != nil {
			return
		}
		var v struct {
			Channel string
			Package []struct {
				Name, Version, Arch, Description, Artifact string
				Needed                                     []string
				ArtifactSize                               int64 `toml:"artifact_size"`
			}
		}
		if err := toml.Unmarshal(text, &v); err != nil {
			return // values of keys that are passed over may be anything
		}
		if v.Channel != l.Channel || len(v.Package) != len(l.Packages) {
			t.Fatalf("TOML reads %q as %+v, and here it is %+v", text, v, l)
		}
		for i, p := range l.Packages {
			q := v.Package[i]
			if q.Name != p.Name || q.Version != p.Version || q.Description != p.Description || q.Artifact != p.Artifact || q.ArtifactSize != p.ArtifactSize || len(q.Needed)+len(p.Needed) > 0 && !reflect.DeepEqual(q.Needed, p.Needed) {
				t.Fatalf("TOML reads %q as %+v, and here it is %+v", text, q, p)
			}
		}
	})
}

func FuzzApplyDelta(f *testing.F) {
	l := List{Channel: "testing", Arch: "x86_64"}
	d := Delta{List: l, Kind: Newest, Old: "a", New: "b", Removed: []string{"b"}}
	f.Add([]byte(listOf(l, map[string]int{"a": 4, "b": 5})), []byte(d.head()+blockOf("c", 3)))
	f.Fuzz(func(t *testing.T, old, delta []byte) {
		out, err := ApplyDelta(old, delta)
		if err == nil && len(out) > len(old)+len(delta) {
			t.Fatalf("%d and %d bytes made %d", len(old), len(delta), len(out))
		}
		again, err2 := ApplyDelta(out, delta)
		if err == nil && err2 == nil && !bytes.Equal(out, again) && slices.IsSorted(namesIn(old)) && slices.IsSorted(namesIn(delta)) {
			t.Fatalf("a delta that was applied already changes %q to %q", out, again)
		}
	})
}

func namesIn(text []byte) (names []string) {
	_, rest := cut(text)
	for {
		_, name, err := rest.next()
		if err != nil || name == "" {
			return names
		}
		names = append(names, name)
	}
}

func FuzzParseHead(f *testing.F) {
	f.Add([]byte(`{"schema":1,"channel":"testing","commit":"0000000000000000000000000000000000000000","index":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := ParseHead(data)
		if err != nil {
			return
		}
		out, err := h.marshal()
		if err != nil {
			return // e.g. a year that JSON cannot hold
		}
		if again, err := ParseHead(out); err != nil || !reflect.DeepEqual(again.Index, h.Index) {
			t.Fatalf("%q was read as %+v and written as %q, which is %+v, %v", data, h, out, again, err)
		}
	})
}

func FuzzUnpack(f *testing.F) {
	f.Add([]byte("(\xb5/\xfd\x04\x00A\x00\x00hello wo"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if text, err := Unpack(data, 1000); err == nil && len(text) > 1000 {
			t.Fatalf("%d bytes came out of %q", len(text), data)
		}
	})
}
