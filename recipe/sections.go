package recipe

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/Morphux/quarry"
)

func (rd *reader) document(n *node) {
	table := []field{
		{"package", rd.pkg},
		{"compilation", rd.compilation},
		{"dependencies", rd.dependencies},
		{"kernel", rd.kernel},
		{"init", func(n *node) { rd.r.Init = json.RawMessage(slices.Clone(rd.data[n.start:n.end])) }},
		{"files", rd.files},
		{"quarry", rd.extension},
	}
	table = append(table, rd.either("groups", "group", rd.groups)...)
	table = append(table, rd.either("users", "user", rd.users)...)
	// Whoever leaves make and install out gets the defaults.
	rd.r.PatchesAbsent, rd.r.Install = true, Command{Target: "install"}
	if !rd.fields(n, table...) {
		return
	}
	if n.get("package") == nil {
		rd.fail(n, `has no "package": give it with name, version and description`)
	}
	if n.get("compilation") == nil {
		rd.fail(n, `has no "compilation": give it, {} is make and make install`)
	}
	rd.selfNeed(n)
}

func (rd *reader) pkg(n *node) {
	numeric := func(n *node) { rd.want(n, number) } // the farm measures these itself
	named := func(to *string, check func(string) error) func(*node) {
		return func(n *node) {
			s, ok := rd.str(n, MaxText)
			if !ok {
				return
			}
			if err := check(s); err != nil {
				rd.fail(n, "does not fit: %v", err)
				return
			}
			*to = s
		}
	}
	ok := rd.fields(n,
		field{"name", named(&rd.r.Package, quarry.CheckName)},
		field{"version", named(&rd.r.Version, func(s string) error { return checkVersion(n, s) })},
		field{"description", rd.into(&rd.r.Info.Description, MaxDescription)},
		field{"category", rd.into(&rd.r.Info.Category, MaxCategory)},
		field{"SBU", numeric},
		field{"inst_size", numeric},
	)
	if !ok {
		return
	}
	for _, key := range []string{"name", "version"} {
		if n.get(key) == nil {
			rd.fail(n, "has no %q: give it", key)
		}
	}
	if rd.r.Info.Description == "" {
		rd.warn(n, `has no "description": people choose packages by it`)
	}
}

// checkVersion is quarry.CheckVersion, and that the branch made of name and
// version is one that releases (quarry.ParseBranch).
func checkVersion(pkg *node, version string) error {
	if err := quarry.CheckVersion(version); err != nil {
		return err
	}
	name := "NAME"
	if n := pkg.get("name"); n != nil && n.kind == text {
		name = n.text
	}
	if _, ok, err := quarry.ParseBranch(name, quarry.Branch(name, version)); err != nil || !ok {
		return errNoDigit(version)
	}
	return nil
}

type errNoDigit string

func (v errNoDigit) Error() string {
	return "version " + strconv.Quote(string(v)) + " holds no digit, so its branch would release nothing: add one, e.g. 0." + string(v)
}

func (rd *reader) compilation(n *node) {
	rd.fields(n,
		field{"patches", rd.patches},
		field{"configure", rd.configure},
		field{"make", rd.command(&rd.r.Make)},
		field{"test", rd.command(&rd.r.Test)},
		field{"install", rd.command(&rd.r.Install)},
		field{"env", rd.env},
	)
}

func (rd *reader) patches(n *node) {
	rd.r.PatchesAbsent = false
	seen := map[string]bool{}
	rd.items(n, MaxPatches, func(n *node) {
		name, ok := rd.str(n, MaxFileName)
		switch {
		case !ok:
		case badPatchName(name) != "":
			rd.fail(n, "%s", badPatchName(name))
		case seen[name]:
			rd.fail(n, "names %q again: a patch is applied once", name)
		default:
			seen[name] = true
			rd.r.Patches = append(rd.r.Patches, name)
		}
	})
}

// badPatchName says what keeps a name from being that of a patch; "" is
// nothing.
func badPatchName(name string) string {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, `/\`):
		return fmt.Sprintf("is %q: name a file in patches/, without a folder", name)
	case name[0] == '-' || name[0] == '.':
		return fmt.Sprintf("is %q: the name of a patch begins with neither a dash nor a dot", name)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Sprintf("is %q: the name of a patch is UTF-8 without control characters", name)
	}
	return ""
}

func (rd *reader) configure(n *node) {
	rd.r.HasConfigure = true
	rd.items(n, MaxConfigure, func(n *node) {
		switch n.kind {
		case text:
			flag, ok := rd.str(n, MaxText)
			if !ok {
				return
			}
			name, _, _ := strings.Cut(flag, "=")
			if rd.option(n, name) {
				rd.r.Configure = append(rd.r.Configure, "--"+flag)
			}
		case object:
			for _, m := range n.members {
				if value, ok := rd.str(m, MaxText); ok && rd.option(m, m.key) {
					rd.r.Configure = append(rd.r.Configure, "--"+m.key+"="+value)
				}
			}
			if len(n.members) == 0 {
				rd.fail(n, `is empty: give {"option": "value"} or "flag"`)
			}
		default:
			rd.fail(n, `is %s: give {"option": "value"} or "flag"`, n.kind)
		}
	})
	if len(rd.r.Configure) > MaxConfigure {
		rd.fail(n, "holds %d options: %d is the most", len(rd.r.Configure), MaxConfigure)
	}
}

// option checks the name of an option of configure, which gets its two dashes
// from us.
func (rd *reader) option(n *node, name string) bool {
	switch {
	case name == "":
		rd.fail(n, "is an option without a name: give one")
	case name[0] == '-':
		rd.fail(n, "is the option %q: leave out the dashes in front, they are added", name)
	case !word(name, "_-.+:@/"):
		rd.fail(n, "is the option %q: use ASCII letters, digits and _ - . + : @ /", name)
	default:
		return true
	}
	return false
}

// word reports whether s consists of ASCII letters, digits and the bytes of
// extra, and has at least one.
func word(s, extra string) bool {
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(extra, c) >= 0) {
			return false
		}
	}
	return s != ""
}

// command reads make, test or install. Upstream's documentation gives commands
// ("if blank, make install") while its template gives a target ("install":
// "install"): so one bare word is a target and anything longer is a command.
func (rd *reader) command(to *Command) func(*node) {
	return func(n *node) {
		if !rd.want(n, text) || !rd.clean(n, n.text, MaxCommand, "\n\t") {
			return
		}
		s := strings.TrimSpace(n.text)
		switch {
		case s == "":
			return // blank is the default
		case s == "make":
			// A target of this name does not happen; the command does.
			*to = Command{}
			if n.key != "make" {
				*to = Command{Shell: s}
			}
		case strings.HasPrefix(s, "-"):
			rd.fail(n, "begins with a dash: give a target, or a whole command such as \"make %.40s\"", s)
		case strings.Contains(s, "=") && word(s, "_-.+%,@/=:"):
			rd.fail(n, "only sets a variable: give a whole command such as \"make %.40s\"", s)
		case bareWord(s):
			*to = Command{Target: s}
		default:
			// "make install" is the target install too: told so, the runner can give
			// make what it has to, as DESTDIR on its command line.
			if words := strings.Fields(s); len(words) == 2 && words[0] == "make" && bareWord(words[1]) {
				*to = Command{Target: words[1]}
				return
			}
			*to = Command{Shell: s}
		}
	}
}

// bareWord reports whether s can only be meant as a target of make: no path, no
// variable, no option, nothing that a shell would do something about.
func bareWord(s string) bool {
	return word(s, "_-.+%") && strings.IndexByte("-.+%", s[0]) < 0
}

func (rd *reader) env(n *node) {
	seen := map[string]bool{}
	add := func(n *node, key, value string) {
		switch {
		case !word(key, "_") || '0' <= key[0] && key[0] <= '9':
			rd.fail(n, "sets the variable %q: use ASCII letters, digits and _, not beginning with a digit; a value goes into an object, {\"K\": \"V\"}", key)
		case key == "DESTDIR":
			rd.fail(n, "sets DESTDIR: leave it out, the farm sets it to where it wants the files")
		case seen[key]:
			rd.fail(n, "sets %s again: keep one of them", key)
		default:
			seen[key] = true
			rd.r.Env = append(rd.r.Env, EnvVar{key, value})
		}
	}
	rd.items(n, MaxEnv, func(n *node) {
		switch n.kind {
		case text:
			if key, ok := rd.str(n, MaxText); ok {
				add(n, key, "")
			}
		case object:
			for _, m := range n.members {
				if value, ok := rd.str(m, MaxText); ok && len(rd.r.Env) <= MaxEnv {
					add(m, m.key, value)
				}
			}
		default:
			rd.fail(n, `is %s: give {"K": "V"} or "K"`, n.kind)
		}
	})
	if len(rd.r.Env) > MaxEnv {
		rd.fail(n, "sets more than %d variables: that is the most", MaxEnv)
	}
}

func (rd *reader) dependencies(n *node) {
	info := &rd.r.Info
	switch n.kind {
	case list: // all needed
		rd.needs(&info.Needed)(n)
	case object:
		table := append(rd.either("optionnal", "optional", rd.needs(&info.Optional)),
			field{"needed", rd.needs(&info.Needed)}, field{"recommended", rd.needs(&info.Recommended)})
		rd.fields(n, table...)
	default:
		rd.fail(n, "is %s: give an object of needed, recommended and optionnal, or a list of what is needed", n.kind)
	}
}

func (rd *reader) needs(to *[]string) func(*node) {
	return func(n *node) {
		rd.items(n, MaxDeps, func(n *node) {
			s, ok := rd.str(n, MaxText)
			if !ok {
				return
			}
			if _, err := SplitDependency(s); err != nil {
				rd.fail(n, "does not fit: %v", err)
				return
			}
			if slices.Contains(*to, s) {
				rd.warn(n, "names %s again", s)
				return
			}
			*to = append(*to, s)
		})
	}
}

// selfNeed refuses a package that would wait for itself for ever.
func (rd *reader) selfNeed(root *node) {
	if rd.r.Package == "" {
		return
	}
	check := func(n *node, lists ...[]string) {
		for _, s := range slices.Concat(lists...) {
			// err: what does not fit is not in the list.
			if d, _ := SplitDependency(s); d.Name == rd.r.Package || s == rd.r.Package || s == quarry.Branch(rd.r.Package, rd.r.Version) {
				rd.fail(n, "needs %s, which is the package itself: remove it", s)
			}
		}
	}
	if deps := root.get("dependencies"); deps != nil {
		check(deps, rd.r.Info.Needed)
	}
	ext := root.get("quarry")
	if ext == nil {
		return
	}
	all := func(c Conditions) [][]string { return [][]string{c.Needed, c.Build, c.Host, c.Target} }
	check(ext, all(rd.r.Ext.Conditions)...)
	for _, c := range rd.r.Ext.When {
		if c.Cross != nil && *c.Cross {
			// Cross building a package with itself is how many are: with the one
			// of the machine that builds.
			c.Host = nil
		}
		check(ext, all(c.Conditions)...)
	}
}

func (rd *reader) groups(n *node) {
	rd.items(n, MaxGroups, func(n *node) {
		var g quarry.Group
		if !rd.fields(n, field{"group_name", rd.login(&g.Name)}, field{"guid", rd.id(&g.GID)}) {
			return
		}
		if n.get("group_name") == nil {
			rd.fail(n, `has no "group_name": give it`)
		}
		rd.r.Info.Groups = append(rd.r.Info.Groups, g)
	})
}

func (rd *reader) users(n *node) {
	rd.items(n, MaxUsers, func(n *node) {
		var u quarry.User
		// Upstream's own example has "home_dir": null.
		maybe := func(read func(*node)) func(*node) {
			return func(n *node) {
				if n.kind != null {
					read(n)
				}
			}
		}
		if !rd.fields(n,
			field{"username", rd.login(&u.Name)},
			field{"comment", maybe(rd.passwd(&u.Comment, false))},
			field{"home_dir", maybe(rd.passwd(&u.Home, true))},
			field{"group", maybe(rd.login(&u.Group))},
			field{"shell", maybe(rd.passwd(&u.Shell, true))},
			field{"uid", maybe(rd.id(&u.UID))},
		) {
			return
		}
		if n.get("username") == nil {
			rd.fail(n, `has no "username": give it`)
		}
		rd.r.Info.Users = append(rd.r.Info.Users, u)
	})
}

// login reads the name of a user or group.
func (rd *reader) login(to *string) func(*node) {
	return func(n *node) {
		s, ok := rd.str(n, MaxText)
		switch {
		case !ok:
		case len(s) > MaxLogin, !word(s, "_-."), strings.IndexByte("-.", s[0]) >= 0:
			rd.fail(n, "is %q: use at most %d ASCII letters, digits and _ - ., beginning with a letter, digit or _", shorten(s), MaxLogin)
		default:
			*to = s
		}
	}
}

// passwd reads a field of /etc/passwd, which has no colon.
func (rd *reader) passwd(to *string, isPath bool) func(*node) {
	return func(n *node) {
		s, ok := rd.str(n, MaxText)
		switch {
		case !ok:
		case strings.Contains(s, ":"):
			rd.fail(n, "is %q: remove the colon, /etc/passwd has no place for one", shorten(s))
		case isPath && s != "" && (s[0] != '/' || path.Clean(s) != s):
			rd.fail(n, "is %q: give a path that begins with / and has no .. in it", shorten(s))
		default:
			*to = s
		}
	}
}

// id reads a user or group number, which upstream writes as number or string.
func (rd *reader) id(to *string) func(*node) {
	return func(n *node) {
		if n.kind != number && n.kind != text {
			rd.fail(n, "is %s: give a number, e.g. 50", n.kind)
			return
		}
		// 4294967295 is -1, which is no one.
		v, err := strconv.ParseUint(n.text, 10, 32)
		if err != nil || v == 1<<32-1 {
			rd.fail(n, "is %q: give a whole number from 0 to 4294967294", shorten(n.text))
			return
		}
		*to = strconv.FormatUint(v, 10)
	}
}

func (rd *reader) kernel(n *node) {
	rd.items(n, MaxKernel, func(n *node) {
		s, ok := rd.str(n, MaxText)
		if !ok {
			return
		}
		if name := strings.TrimLeft(s, "+-"); len(s)-len(name) > 1 || len(name) > 128 || !word(name, "_") {
			rd.fail(n, "is %q: give the name of a kernel option, with + or - before it or bare, e.g. +CONFIG_TUN", shorten(s))
			return
		}
		rd.r.Info.Kernel = append(rd.r.Info.Kernel, s)
	})
}

// files reads {"/path": {"mode": 644, "type": 1}}, or a list of such objects.
func (rd *reader) files(n *node) {
	switch n.kind {
	case object:
		rd.fileRules(n)
	case list:
		rd.items(n, MaxFiles, func(n *node) {
			if rd.want(n, object) {
				rd.fileRules(n)
			}
		})
	default:
		rd.fail(n, `is %s: give an object, {"/path": {"mode": "644"}}`, n.kind)
	}
	if len(rd.r.Info.Files) > MaxFiles {
		rd.fail(n, "has more than %d files: that is the most", MaxFiles)
	}
}

func (rd *reader) fileRules(n *node) {
	for _, m := range n.members {
		rule := quarry.FileRule{Path: m.key}
		if !rd.clean(m, m.key, MaxText, "") {
			continue
		}
		if m.key == "" || m.key[0] != '/' || path.Clean(m.key) != m.key {
			rd.fail(m, "is no path of a file: begin it with / and leave out .. and double slashes")
			continue
		}
		rd.fields(m,
			field{"mode", rd.mode(&rule.Mode)},
			field{"type", func(n *node) {
				if n.kind == number {
					rule.Type = n.text
				} else {
					rule.Type, _ = rd.str(n, 64)
				}
			}})
		if len(rd.r.Info.Files) <= MaxFiles {
			rd.r.Info.Files = append(rd.r.Info.Files, rule)
		}
	}
}

// mode reads permission bits: the digits are octal, as string or number (JSON
// numbers being decimal, upstream's 644 means what chmod would make of it).
func (rd *reader) mode(to *string) func(*node) {
	return func(n *node) {
		if n.kind != number && n.kind != text {
			rd.fail(n, `is %s: give octal digits, e.g. "644"`, n.kind)
			return
		}
		if _, err := strconv.ParseUint(n.text, 8, 12); err != nil || len(n.text) > 5 {
			rd.fail(n, `is %q: give octal digits up to 7777, e.g. "644"`, shorten(n.text))
			return
		}
		*to = n.text
	}
}

// shorten keeps a hostile value from filling the line that complains about it.
func shorten(s string) string {
	if len(s) > 60 {
		return strings.ToValidUTF8(s[:57], "") + "..."
	}
	return s
}
