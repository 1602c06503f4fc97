package runner

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/recipe"
	"github.com/Morphux/quarry/runner/guest"
)

// step is one step of a build, ready to be run.
type step struct {
	name   string
	cmds   []guest.Command
	env    []string // besides the build's
	dir    string   // blank: the build's working directory
	staged bool     // may write to the staging directory only
	// parallel steps are told how many jobs they may have at one time.
	parallel bool
	what     []string // for messages: what each command works on
	lax      bool     // its failure is a warning
}

// plan lists the steps of the recipe, in Morphux's order. A step for which the
// recipe says nothing is left out.
func (r *run) plan() []step {
	rec := r.job.Recipe
	if r.job.Command != "" {
		b := r.job.Build
		return []step{{
			name: quarry.StepMake, cmds: shell(r.job.Command), dir: SourcePath, staged: true, parallel: true,
			env: []string{"QUARRY_PACKAGE=" + b.Package, "QUARRY_VERSION=" + b.Version, "QUARRY_ARCH=" + b.Arch,
				"QUARRY_CHANNEL=" + b.Channel, "QUARRY_SOURCE=" + SourcePath},
		}}
	}
	var steps []step
	if r.has("scripts/before.sh") {
		steps = append(steps, step{name: quarry.StepBefore, cmds: script("before.sh")})
	}
	if len(rec.Patches) > 0 {
		s := step{name: quarry.StepPatches}
		for _, name := range rec.Patches {
			// --force asks no questions and takes no patch for a reversed one. The
			// name follows an option and begins with a slash, whatever is in it.
			s.cmds = append(s.cmds, guest.Command{Args: []string{
				"patch", "-p1", "--force", "--no-backup-if-mismatch", "-i", SourcePath + "/patches/" + name,
			}})
			s.what = append(s.what, "patches/"+name)
		}
		steps = append(steps, s)
	}
	if rec.HasConfigure {
		steps = append(steps, step{name: quarry.StepConfigure, parallel: true,
			cmds: []guest.Command{{Args: slices.Concat([]string{"./configure"}, r.job.crossConfigure(), rec.Configure), Shell: true}}})
	}
	steps = append(steps, step{name: quarry.StepMake, cmds: command(rec.Make), parallel: true})
	switch {
	case rec.Test.IsZero():
	case r.job.Cross != nil && !r.job.Cross.Runs:
		r.log.farm("test: left out: programs for %s do not run on this machine (quarry doctor says what it takes)", r.job.Build.Arch)
	default:
		steps = append(steps, step{name: quarry.StepTest, cmds: command(rec.Test), env: r.job.emulation(), parallel: true, lax: rec.Ext.TestsMayFail})
	}
	// Make gets DESTDIR on its command line, where it overrides the Makefile's
	// own: ncurses, readline, less, bash and screen ignore the environment's.
	// Installing is not parallel: too many makefiles get that wrong, and it
	// gains little.
	steps = append(steps, step{name: quarry.StepInstall, cmds: command(rec.Install, "DESTDIR="+DestPath), staged: true})
	if r.has("scripts/after.sh") {
		steps = append(steps, step{name: quarry.StepAfter, cmds: script("after.sh"), staged: true})
	}
	return steps
}

// has reports whether the sources, as they were written out, hold a regular
// file.
func (r *run) has(name string) bool {
	st, err := os.Lstat(filepath.Join(r.ws.Dir, "src", filepath.Dir(name)))
	if err != nil || !st.IsDir() {
		return false
	}
	st, err = os.Lstat(filepath.Join(r.ws.Dir, "src", name))
	return err == nil && st.Mode().IsRegular()
}

func script(name string) []guest.Command {
	return []guest.Command{{Args: []string{"/bin/sh", SourcePath + "/scripts/" + name}}}
}

func shell(line string) []guest.Command {
	return []guest.Command{{Args: []string{"/bin/sh", "-c", line}}}
}

// command is a recipe's make, test or install: a target of make, which gets
// the arguments, or a line for the shell, which finds the same in its
// environment.
func command(c recipe.Command, args ...string) []guest.Command {
	if c.Shell != "" {
		return shell(c.Shell)
	}
	argv := []string{"make"}
	if c.Target != "" {
		argv = append(argv, c.Target)
	}
	return []guest.Command{{Args: append(argv, args...)}}
}

const plainPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// plain is the environment that is every build's.
func (r *run) plain() []string {
	return []string{
		"PATH=" + plainPath,
		"HOME=" + UserPath,
		"USER=root", "LOGNAME=root", "SHELL=/bin/sh", "TERM=dumb",
		"LC_ALL=C.UTF-8", "TZ=UTC",
		fmt.Sprintf("SOURCE_DATE_EPOCH=%d", r.sourceTime().Unix()),
		"DESTDIR=" + DestPath,
		// GNU tar, coreutils and others refuse to be configured by root. The root
		// of a workspace is nobody on the host.
		"FORCE_UNSAFE_CONFIGURE=1",
	}
}

// environment is everything that a step finds in its environment. The
// recipe's own comes last and wins.
func (r *run) environment(extra []string) []string {
	env := slices.Concat(r.plain(), r.job.crossEnvironment(), extra)
	if len(r.job.Build.Without) > 0 {
		env = append(env, "QUARRY_BOOTSTRAP=1")
	}
	for _, e := range r.job.Recipe.Env {
		env = append(env, e.Key+"="+e.Value)
	}
	// The last of one name counts, and is the only one: programs differ in which
	// of two they take.
	seen := map[string]bool{}
	for i := len(env) - 1; i >= 0; i-- {
		key, _, _ := strings.Cut(env[i], "=")
		if seen[key] {
			env = slices.Delete(env, i, i+1)
		}
		seen[key] = true
	}
	return env
}

// wall is how long a step may take, and whether it is the whole build's limit
// that is closest.
func (r *run) wall(name string) (_ time.Duration, total bool) {
	limit := lower(r.limits.Step, 0)
	if own, ok := r.job.Recipe.Ext.Steps[name]; ok {
		// A step that is named may take longer than the recipe's others, but not
		// longer than the farm's limit.
		limit = lower(pick(r.job.Limits.Step, DefaultLimits.Step), own)
	}
	if r.limits.Total > 0 {
		if left := r.limits.Total - time.Since(r.began); left < limit {
			return max(left, time.Millisecond), true
		}
	}
	return limit, false
}

// typed is a command as a person would type it.
func typed(c guest.Command) string {
	args := c.Args
	if len(args) == 3 && args[0] == "/bin/sh" && args[1] == "-c" {
		return args[2]
	}
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = quote(a)
	}
	return strings.Join(quoted, " ")
}

// quote writes a word so that a shell reads it as it is.
func quote(s string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("%+,-./:=@_", c)
	}
	if s != "" && strings.IndexFunc(s, func(c rune) bool { return !plain(c) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
