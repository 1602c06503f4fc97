package gitfs

import (
	"errors"
	"strings"
	"testing"
)

// FuzzParseTree: whatever a tree object holds, what comes out of it are names
// that stay in their folder, each once, in order.
func FuzzParseTree(f *testing.F) {
	hash := strings.Repeat("h", 20)
	for _, s := range []string{
		"", "100644 a\x00" + hash, "40000 d\x00" + hash + "100755 x\x00" + hash, "120000 ..\x00" + hash, "160000 sub\x00" + hash,
		"100644 .GIT\x00" + hash, "100644 a/b\x00" + hash, "100644 a\x00" + hash + "40000 a\x00" + hash, "7777777 a\x00" + hash, "100644 a\x00short", " \x00",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseTree(data, "dir")
		if err != nil {
			var bad *BadTreeError
			if !errors.As(err, &bad) || strings.ContainsAny(err.Error(), "\n\x00\x1b") {
				t.Fatalf("%T: %q", err, err)
			}
			return
		}
		for i, e := range entries {
			if !validPath(e.name) || strings.Contains(e.name, "/") || strings.EqualFold(e.name, ".git") || len(e.name) > 255 {
				t.Fatalf("name %q", e.name)
			}
			if i > 0 && entries[i-1].name >= e.name {
				t.Fatalf("%q before %q", entries[i-1].name, e.name)
			}
		}
	})
}
