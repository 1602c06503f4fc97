package words

import (
	"slices"
	"strings"
	"testing"
)

func FuzzSplit(f *testing.F) {
	for _, s := range []string{"git-receive-pack '/zlib.git'", `log -f "a b"`, `a\ b 'x'\''y'`, "$(id)", "'"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		args, err := Split(line)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x1b") || len(err.Error()) > 300 {
				t.Fatalf("error %q is not one short line", err)
			}
			return
		}
		// What was taken reads back when every word is quoted.
		quoted := Quote(args)
		again, err := Split(quoted)
		if len(quoted) <= MaxLine && (err != nil || !slices.Equal(again, args)) {
			t.Fatalf("%q gave %q, which reads back as %q, %v", line, args, again, err)
		}
	})
}
