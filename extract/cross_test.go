package extract

import (
	"fmt"
	"strings"
	"testing"

	"github.com/Morphux/quarry/internal/podman/tinyelf"
)

// elfFor is a program for an arch.
func elfFor(t *testing.T, arch string) []byte {
	t.Helper()
	m, _ := tinyelf.Of(arch)
	prog, ok := m.Program()
	if !ok {
		t.Fatalf("no program for %s", arch)
	}
	return prog
}

// arMember is a member of an ar archive.
func arMember(name, data string) string {
	return fmt.Sprintf("%-16s%-12d%-6d%-6d%-8s%-10d`\n", name, 0, 0, 0, "644", len(data)) + data + strings.Repeat("\n", len(data)%2)
}

func TestCrossRefused(t *testing.T) {
	ar := func(members ...string) string {
		s := "!<arch>\n"
		for i := 0; i < len(members); i += 2 {
			s += arMember(members[i], members[i+1])
		}
		return s
	}
	x86, arm, risc := string(elfFor(t, "x86_64")), string(elfFor(t, "aarch64")), string(elfFor(t, "riscv64"))
	for name, tt := range map[string]struct {
		cross *Cross
		files map[string]string
		want  string
	}{
		"right":     {&Cross{"x86_64", "aarch64"}, map[string]string{"bin/a": arm, "lib/liba.a": ar("/", "index", "a.o/", arm), "etc/a": "text"}, ""},
		"not cross": {nil, map[string]string{"bin/a": x86}, ""},
		// Programs for other processors still are no mistake of the compiler's.
		"firmware": {&Cross{"x86_64", "aarch64"}, map[string]string{"lib/firmware/a.bin": risc, "bin/a": arm}, ""},
		"programs": {&Cross{"x86_64", "aarch64"}, map[string]string{"bin/a": x86, "bin/b": arm, "bin/c": x86},
			"2 files are for x86_64 and not for aarch64: the cross build did not use its compiler, have it honour CC (and AR, LD), or say nocross (/bin/a, /bin/c)"},
		"library": {&Cross{"x86_64", "aarch64"}, map[string]string{"lib/liba.a": ar("//", "long names", "/0", x86)},
			"1 file is for x86_64 and not for aarch64"},
		"names of ELF": {&Cross{"x86_64", "armv6l"}, map[string]string{"bin/a": x86}, "for x86_64 and not for armv6l"},
		"one machine":  {&Cross{"i586", "i686"}, map[string]string{"bin/a": string(elfFor(t, "i686"))}, ""},
		"odd archive":  {&Cross{"x86_64", "aarch64"}, map[string]string{"lib/liba.a": "!<arch>\n" + strings.Repeat("x", 100), "lib/libb.a": "!<arch>\n" + arMember("a.o/", x86[:12])}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			var list []testFile
			seen := map[string]bool{}
			for p, data := range tt.files {
				for i, c := range p {
					if c == '/' && !seen[p[:i]] {
						seen[p[:i]] = true
						list = append(list, dir(p[:i], 0o755))
					}
				}
				list = append(list, file(p, data, 0o755))
			}
			build(t, root, list...)
			o := Options{Cross: tt.cross}
			if tt.want != "" {
				if got := refusedBy(t, root, o).Error(); !strings.Contains(got, tt.want) {
					t.Errorf("refused with %s, want %s in it", got, tt.want)
				}
				return
			}
			if _, _, err := Tree(t.Context(), root, options(o)); err != nil {
				t.Error(err)
			}
		})
	}
}
