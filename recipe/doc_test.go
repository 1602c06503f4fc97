package recipe

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

// The page that maintainers read says what the code does: its examples are
// recipes, and its limits are the limits.
func TestDocumentation(t *testing.T) {
	data, err := os.ReadFile("../doc/recipe.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	examples := regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(page, -1)
	if len(examples) != 2 {
		t.Fatalf("%d examples, want the full and the smallest", len(examples))
	}
	for _, e := range examples {
		if r, err := Parse([]byte(e[1])); err != nil {
			t.Errorf("example is refused: %v\n%s", err, e[1])
		} else if len(r.Warnings) > 0 {
			t.Errorf("example is warned about: %q", r.Warnings)
		}
	}
	thousands := func(n int) string {
		s := fmt.Sprint(n)
		for i := len(s) - 3; i > 0; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		return s
	}
	for row, limit := range map[string]int{
		"| `package.json` | %s bytes |":                                      MaxSize,
		"| values in it, of any kind | %s |":                                 MaxValues,
		"| values in each other | %s deep |":                                 MaxDepth,
		"| a key | %s bytes |":                                               MaxKey,
		"| a string that has no limit above | %s bytes |":                    MaxText,
		"| `make`, `test`, `install` | %s bytes each |":                      MaxCommand,
		"| `patches`, `configure` | %s each |":                               MaxPatches,
		"| `env` | %s |":                                                     MaxEnv,
		"| `needed`, `recommended`, `optionnal` | %s each |":                 MaxDeps,
		"| `groups`, `users` | %s each |":                                    MaxUsers,
		"| `kernel` | %s |":                                                  MaxKernel,
		"| `files` | %s |":                                                   MaxFiles,
		"| `archs` | list of strings | 1 | %s entries |":                     MaxArchs,
		"| `processes` | number | 1 | %s |":                                  MaxProcesses,
		"| `jobs` | number | 1 | %s |":                                       MaxJobs,
		"| `when` | list of objects | | %s entries |":                        MaxClauses,
		"| `provides` | list of strings | | %s entries |":                    MaxDeps,
		"| `description` | string | one line for people, at most %s bytes |": MaxDescription,
	} {
		if row = fmt.Sprintf(row, thousands(limit)); !strings.Contains(page, row) {
			t.Errorf("doc/recipe.md does not say: %s", row)
		}
	}
}
