package hooks

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/recipe"
)

// Limits on one push.
const (
	maxRefs = 1000 // refs in one push
	maxRef  = 250  // bytes in the name of a branch or tag
	maxTold = 10   // problems, and warnings, told of one branch
)

// Ref is one ref of a push, as git gives it to hooks.
type Ref struct {
	Name    string `json:"name"`              // branch, e.g. zlib-1.3.1; of other refs the full name
	Old     string `json:"old"`               // object id; all zeros for a new branch
	New     string `json:"new"`               // object id; all zeros for a deletion
	Version string `json:"version,omitempty"` // of a release, e.g. 1.3.1
	Branch  bool   `json:"branch"`
}

// Release reports whether the ref releases a version (or took one back).
func (r Ref) Release() bool { return r.Version != "" }

// Deleted reports whether the push deletes the ref.
func (r Ref) Deleted() bool { return isZero(r.New) }

// readRefs reads what git writes to its hooks: lines of old, new and ref.
func readRefs(stdin io.Reader) ([][3]string, error) {
	var list [][3]string
	sc := bufio.NewScanner(stdin)
	sc.Buffer(nil, 64<<10)
	for sc.Scan() {
		old, rest, ok1 := strings.Cut(sc.Text(), " ")
		new, ref, ok2 := strings.Cut(rest, " ")
		if !ok1 || !ok2 || !isOID(old) || !isOID(new) || ref == "" {
			return nil, fmt.Errorf("git gave the hook a line it cannot read: %.100q", sc.Text())
		}
		if len(list) == maxRefs {
			return nil, fmt.Errorf("push has more than %d branches and tags: push them in parts", maxRefs)
		}
		list = append(list, [3]string{old, new, ref})
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("what git gives the hook cannot be read: %w", err)
	}
	return list, nil
}

// parseRef says what a ref is to a package, or why it is not taken.
func parseRef(pkg string, line [3]string) (Ref, error) {
	r := Ref{Old: line[0], New: line[1], Name: line[2]}
	branch, isBranch := strings.CutPrefix(line[2], "refs/heads/")
	tag, isTag := strings.CutPrefix(line[2], "refs/tags/")
	switch {
	case isBranch:
		if err := checkRefName("branch", branch); err != nil {
			return r, err
		}
		r.Name, r.Branch = branch, true
		version, _, err := quarry.ParseBranch(pkg, branch)
		if err != nil {
			return r, fmt.Errorf("branch %s: %w", show(branch), err)
		}
		r.Version = version
	case isTag:
		if err := checkRefName("tag", tag); err != nil {
			return r, err
		}
	default:
		return r, fmt.Errorf("%s is not taken: push to refs/heads/ (branches) or refs/tags/", show(line[2]))
	}
	return r, nil
}

// checkRefName is narrower than git, which takes --upload-pack=x-1.0 when it is
// sent raw, and every letter of Unicode.
func checkRefName(what, name string) error {
	fit := func(c byte) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
	}
	bad := ""
	switch {
	case name == "":
		bad = "is empty"
	case len(name) > maxRef:
		bad = fmt.Sprintf("has more than %d bytes", maxRef)
	}
	for part := range strings.SplitSeq(name, "/") {
		if bad == "" && (part == "" || !fit(part[0])) {
			bad = "has a part that does not begin with a letter or digit"
		}
	}
	for _, r := range name {
		if bad == "" && (r >= utf8.RuneSelf || !fit(byte(r)) && !strings.ContainsRune("+-._~@/", r)) {
			bad = fmt.Sprintf("may not hold %q", r)
		}
	}
	if bad != "" {
		return fmt.Errorf("%s %s %s: use ASCII letters, digits and + - . _, beginning with a letter or digit", what, show(name), bad)
	}
	return nil
}

// PreReceive looks at a push before any ref moves. stdin is what git gives it;
// stderr is the pusher's terminal. The status is 0 when the push may be stored.
// git takes a push whole or not at all here, so every problem is told at once.
// The daemon is asked what a push that is well in itself would cause.
func PreReceive(ctx context.Context, env Env, stdin io.Reader, stderr io.Writer, dial Dialer) (status int) {
	say := speaker(stderr)
	lines, err := readRefs(stdin)
	if err != nil {
		say("%v", err)
		return 1
	}
	if !env.Identity.MayPush(env.Package) {
		say("%s may not push %s: %s", show(env.Identity.User), env.Package, mayWhat(env.Identity))
		return 1
	}
	bad, good := 0, 0
	standard, err := env.learn()
	if err != nil {
		say("%v", err)
		return 1
	}
	opts, warnings, err := env.readOptions()
	for _, w := range warnings {
		say("warning: %s", w)
	}
	if err != nil {
		say("%v", err)
		bad++
	}
	objs := newObjects(ctx, env)
	defer objs.close()
	switch problem, err := env.certify(objs, lines); {
	case err != nil:
		say("the push could not be checked, which is no fault of yours: %v", err)
		return 1
	case problem != "":
		say("%s", problem)
		return 1
	}
	var releases []Ref
	var proposed []Proposed
	var gone []string
	asked := false
	for _, line := range lines {
		ref, err := parseRef(env.Package, line)
		if err != nil {
			say("%v", err)
			bad++
			continue
		}
		if err := env.mayTake(ctx, ref, standard); err != nil {
			say("%v", err)
			bad++
			continue
		}
		if ref.Deleted() || !ref.Release() {
			if ref.Release() {
				gone = append(gone, ref.Version)
			}
			good++
			continue
		}
		if !asked { // once, before anything costs time
			asked = true
			channel := cmp.Or(opts.channel, standard)
			if err := cmp.Or(env.mayRelease(channel), env.mustSign(channel)); err != nil {
				say("%v", err)
				return 1
			}
		}
		text, problems, warnings, err := env.check(objs, ref)
		for _, w := range warnings {
			say("%s: warning: %s", ref.Name, w)
		}
		for i, p := range problems {
			if i == maxTold {
				say("%s: and %d problems more", ref.Name, len(problems)-i)
				break
			}
			say("%s: %s", ref.Name, p)
		}
		switch {
		case err != nil:
			say("%s could not be checked, which is no fault of yours: %v", ref.Name, err)
			bad++
		case len(problems) > 0:
			bad++
		default:
			releases = append(releases, ref)
			proposed = append(proposed, Proposed{ref.Version, ref.New, text})
			good++
		}
	}
	if bad > 0 {
		if good > 0 {
			say("a push is stored whole or not at all: mend the above, or push the others by themselves")
		}
		return 1
	}
	p, err := env.propose(proposed, gone, opts)
	switch {
	case err != nil:
		say("what this push causes is not looked at: %v", err)
	case p != nil && !env.foresee(ctx, p, lines, opts, say, dial):
		return 1
	}
	if err := env.announce(ctx, releases, opts.channel, opts.group); err != nil {
		// post-receive tries again, and says so if it cannot.
		say("warning: %v", err)
	}
	return 0
}

// check looks at one release. problems are the maintainer's, err is trouble of
// the server's; text is its package.json.
func (e Env) check(objs *objects, ref Ref) (text []byte, problems, warnings []string, err error) {
	var mend refusal
	fsys, err := openCommit(objs, ref.New)
	if errors.As(err, &mend) {
		return nil, []string{mend.msg}, nil, nil
	}
	if err != nil {
		return nil, nil, nil, err
	}
	problems, warnings, err = fsys.sane()
	if errors.As(err, &mend) {
		return nil, append(problems, mend.msg), warnings, nil
	}
	if err != nil {
		return nil, nil, nil, err
	}
	r, err := recipe.Load(fsys)
	switch list := recipe.Problems(err); {
	case err == nil:
	case errors.As(err, &mend):
		return nil, append(problems, mend.msg), warnings, nil
	case len(list) == 0:
		return nil, nil, nil, err
	default:
		for _, p := range list {
			problems = append(problems, p.Error())
		}
		return nil, problems, warnings, nil
	}
	switch {
	case r.Package != e.Package:
		problems = append(problems, fmt.Sprintf("package.json: package.name is %q, and this repository is %s's: push to %s.git, or mend the name", r.Package, e.Package, r.Package))
	case r.Version != ref.Version:
		problems = append(problems, fmt.Sprintf("package.json: package.version is %q, and the branch says %s: push it as %s, or mend the version",
			r.Version, ref.Version, quarry.Branch(e.Package, r.Version)))
	}
	for i, w := range r.Warnings {
		if i == maxTold {
			warnings = append(warnings, fmt.Sprintf("and %d warnings more", len(r.Warnings)-i))
			break
		}
		warnings = append(warnings, w)
	}
	text, err = fs.ReadFile(fsys, recipe.FileName)
	return text, problems, warnings, err
}

// mayWhat says what somebody may do, and whom to ask for more.
func mayWhat(id quarry.Identity) string {
	const cure = ": ask an admin for more (quarry key add)"
	switch {
	case id.Role == quarry.RoleMaintainer:
		return "you maintain " + clean(strings.Join(id.Packages, ", ")) + cure
	case id.Role == "":
		return "you have no role here" + cure
	}
	return "a " + clean(string(id.Role)) + " pushes nothing" + cure
}

// speaker writes lines to the pusher's terminal. What they hold comes from the
// pusher, and from builds: nothing in it may steer a terminal.
func speaker(w io.Writer) func(format string, args ...any) {
	return func(format string, args ...any) {
		// One write a line: git's sideband keeps it together then.
		io.WriteString(w, "quarry: "+clean(fmt.Sprintf(format, args...))+"\n")
	}
}

// show is s as it is where it prints plainly, and quoted where it does not.
func show(s string) string {
	if len(s) > maxRef {
		return fmt.Sprintf("%.100q...", s)
	}
	if s == "" || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == '"' }) {
		return fmt.Sprintf("%q", s)
	}
	return s
}

// clean replaces what is no printable text.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' || r != utf8.RuneError && unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}
