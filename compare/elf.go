package compare

import (
	"bytes"
	"debug/elf"
	"fmt"
	"strings"

	"github.com/Morphux/quarry/internal/human"
)

const (
	maxSections = 10 // of one file that are looked into
	buildID     = ".note.gnu.build-id"
)

// section is one of an ELF file: those of one name are told apart by their order.
type section struct {
	name string
	data []byte
	size uint64
	kind elf.SectionType
}

// elfs compares two ELF files by their sections.
func elfs(was, is []byte, _ int) ([]string, bool) {
	if !bytes.HasPrefix(was, []byte(elf.ELFMAG)) || !bytes.HasPrefix(is, []byte(elf.ELFMAG)) {
		return nil, false
	}
	a, errA := sections(was)
	b, errB := sections(is)
	if errA != nil || errB != nil || len(a)+len(b) == 0 {
		return nil, false // looked at as bytes
	}
	var out []string
	other := map[string]section{}
	for _, s := range b {
		other[s.name] = s
	}
	looked, more := 0, 0
	for _, s := range a {
		t, ok := other[s.name]
		delete(other, s.name)
		switch {
		case !ok:
			out = append(out, fmt.Sprintf("ELF section %s is not in the rebuilt one", s.name))
			continue
		case s.size == t.size && s.kind == t.kind && bytes.Equal(s.data, t.data):
			continue
		case looked == maxSections:
			more++
			continue
		}
		looked++
		head := "ELF section " + s.name
		if s.size != t.size {
			head += fmt.Sprintf(" has %s, rebuilt %s", human.Count(int(min(s.size, 1<<40)), "byte"), human.Count(int(min(t.size, 1<<40)), "byte"))
		}
		if s.name == buildID {
			out = append(out, fmt.Sprintf("ELF build-id %x, rebuilt %x: it is made of all that is linked", tail(s.data), tail(t.data)))
			continue
		}
		if len(s.data)+len(t.data) == 0 || bytes.Equal(s.data, t.data) {
			out = append(out, head)
			continue
		}
		out = append(out, indented(head, strung(s.data, t.data))...)
	}
	for _, s := range b {
		if _, left := other[s.name]; left {
			out = append(out, fmt.Sprintf("ELF section %s is only in the rebuilt one", s.name))
		}
	}
	if more > 0 {
		out = append(out, human.Count(more, "more ELF section")+" differ")
	}
	if len(out) == 0 {
		out = append(out, indented("ELF: all sections are the same, what is between them differs", raw(was, is))...)
	}
	return out, true
}

// tail is the digest in a note of a build-id.
func tail(note []byte) []byte { return note[min(len(note), 16):] }

// sections takes an ELF file apart. Nothing in it is believed: what a header says
// is cut to what there is.
func sections(data []byte) ([]section, error) {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var list []section
	seen := map[string]int{}
	for i, s := range f.Sections {
		if i == 0 && s.Type == elf.SHT_NULL {
			continue
		}
		name := s.Name
		if seen[name]++; seen[name] > 1 {
			name = fmt.Sprintf("%s (%d)", name, seen[name])
		}
		sec := section{name: name, size: s.FileSize, kind: s.Type}
		if s.Type != elf.SHT_NOBITS && s.Offset < uint64(len(data)) {
			sec.data = data[s.Offset:][:min(s.FileSize, uint64(len(data))-s.Offset)]
		}
		list = append(list, sec)
	}
	return list, nil
}

// strung shows the words that only one of two sections has, or else their bytes.
func strung(was, is []byte) []string {
	a, b := wordSet(was), wordSet(is)
	only := func(of, without map[string]bool, order []string) (list []string) {
		for _, w := range order {
			if of[w] && !without[w] && len(list) < 3 {
				list = append(list, w)
			}
		}
		return list
	}
	onlyA, onlyB := only(a.set, b.set, a.list), only(b.set, a.set, b.list)
	if len(onlyA) == 0 || len(onlyB) == 0 {
		return raw(was, is)
	}
	nature := strings.TrimPrefix(natureOf(strings.Join(onlyA, "\n"), strings.Join(onlyB, "\n")), ": ")
	if nature == "" {
		nature = "text in it differs"
	}
	out := []string{nature}
	for _, w := range onlyA {
		out = append(out, fmt.Sprintf("- %q", w))
	}
	for _, w := range onlyB {
		out = append(out, fmt.Sprintf("+ %q", w))
	}
	return out
}

type wordList struct {
	set  map[string]bool
	list []string
}

// wordSet collects the texts of at least six characters, of a bounded part.
func wordSet(b []byte) wordList {
	out := wordList{set: map[string]bool{}}
	b = b[:min(len(b), 1<<20)]
	for len(b) > 0 {
		n := 0
		for n < len(b) && b[n] >= 0x20 && b[n] <= 0x7e {
			n++
		}
		// Texts that no byte ends, as Go's, come in pieces.
		for at := 0; n-at >= 6; at += 200 {
			if w := string(b[at:min(n, at+200)]); !out.set[w] {
				out.set[w] = true
				out.list = append(out.list, w)
			}
		}
		b = b[min(len(b), n+1):]
	}
	return out
}
