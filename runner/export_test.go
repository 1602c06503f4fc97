package runner

import (
	"io"
	"strings"
	"time"

	"github.com/Morphux/quarry/recipe"
)

// SetPatience makes the runner's own deadline follow the guest's sooner.
func (j *Job) SetPatience(d time.Duration) { j.patience = d }

// Forced says what chunks of output, one after another, give away of a -j, and
// what goes on into the log.
func Forced(chunks ...string) (found []string, out string) {
	var w strings.Builder
	f := &forcedWatch{w: &w, found: func(what string) { found = append(found, what) }}
	for _, c := range chunks {
		if n, err := io.WriteString(f, c); n != len(c) || err != nil {
			panic("a chunk was not taken")
		}
	}
	return found, w.String()
}

// ForcedBy says what a recipe's own MAKEFLAGS ask for.
func ForcedBy(makeflags string) string {
	return forcedBy(&recipe.Recipe{Env: []recipe.EnvVar{{Key: "MAKEFLAGS", Value: makeflags}}})
}
