package recipe

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Morphux/quarry"
)

// full uses every field there is.
const full = `{
	"package": {
		"name": "openssh",
		"version": "7.0-p1",
		"description": "Secure shell",
		"category": "net",
		"SBU": 1.4,
		"inst_size": 34
	},
	"compilation": {
		"patches": ["b.patch", "a.patch"],
		"configure": [{"prefix": "/usr", "mandir": "/usr/share/man"}, "with-shared", "enable-x=$(rm -rf /) ;"],
		"make": " ",
		"test": "test-all",
		"install": "install",
		"env": [{"CFLAGS": "-O2 -g", "LDFLAGS": ""}, "EMPTY"]
	},
	"dependencies": {
		"needed": ["zlib-1.3.1", "openssl>=1.0"],
		"recommended": ["xauth"],
		"optionnal": ["x<2"]
	},
	"group": [{"group_name": "sshd", "guid": 50}],
	"users": [
		{"username": "sshd", "comment": "sshd PrivSep", "home_dir": "/var/lib/sshd", "group": "sshd", "shell": "/bin/false", "uid": 50},
		{"username": "other", "home_dir": null, "uid": "51"}
	],
	"kernel": ["+CONFIG_TUN", "-CONFIG_BAD", "CONFIG_BARE"],
	"init": ["whatever", {"undecided": true}],
	"files": {"/etc/ssh/sshd_config": {"mode": 644, "type": 1}, "/etc/x": {"mode": "0600"}},
	"quarry": {
		"archs": ["x86_64", "some-new-arch"],
		"network": true,
		"directory": "srcs/portable",
		"memory": "2G",
		"disk": 1000,
		"log": "16M",
		"processes": 200,
		"jobs": 1,
		"tests_may_fail": true,
		"timeouts": {"total": "2h", "step": "90m", "silence": "1m", "make": "1h30m"}
	}
}`

func TestParseFull(t *testing.T) {
	got, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(full))
	digest := hex.EncodeToString(sum[:])
	want := &Recipe{
		Package: "openssh",
		Version: "7.0-p1",
		Info: quarry.Info{
			Description: "Secure shell",
			Category:    "net",
			Needed:      []string{"zlib-1.3.1", "openssl>=1.0"},
			Recommended: []string{"xauth"},
			Optional:    []string{"x<2"},
			Groups:      []quarry.Group{{Name: "sshd", GID: "50"}},
			Users: []quarry.User{
				{Name: "sshd", Comment: "sshd PrivSep", Home: "/var/lib/sshd", Group: "sshd", Shell: "/bin/false", UID: "50"},
				{Name: "other", UID: "51"},
			},
			Kernel: []string{"+CONFIG_TUN", "-CONFIG_BAD", "CONFIG_BARE"},
			Files: []quarry.FileRule{
				{Path: "/etc/ssh/sshd_config", Mode: "644", Type: "1"},
				{Path: "/etc/x", Mode: "0600"},
			},
			Recipe: digest,
		},
		Patches:      []string{"b.patch", "a.patch"},
		Configure:    []string{"--prefix=/usr", "--mandir=/usr/share/man", "--with-shared", "--enable-x=$(rm -rf /) ;"},
		HasConfigure: true,
		Test:         Command{Target: "test-all"},
		Install:      Command{Target: "install"},
		Env:          []EnvVar{{"CFLAGS", "-O2 -g"}, {"LDFLAGS", ""}, {"EMPTY", ""}},
		Ext: Extension{
			Archs: []string{"x86_64", "some-new-arch"}, Network: true, Directory: "srcs/portable",
			Memory: 2 << 30, Disk: 1000, Log: 16 << 20, Processes: 200, Jobs: 1, TestsMayFail: true,
			Total: 2 * time.Hour, Step: 90 * time.Minute, Silence: time.Minute,
			Steps: map[string]time.Duration{"make": 90 * time.Minute},
		},
		Init:   json.RawMessage(`["whatever", {"undecided": true}]`),
		Digest: digest,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// with makes a recipe out of the smallest one and further members of the
// objects package, compilation and the document.
func with(pkg, compilation, document string) string {
	join := func(s string) string {
		if s == "" {
			return ""
		}
		return ", " + s
	}
	return fmt.Sprintf(`{"package": {"name": "a", "version": "1", "description": "d"%s}, "compilation": {"patches": []%s}%s}`,
		join(pkg), join(compilation), join(document))
}

func TestDefaults(t *testing.T) {
	r, err := Parse([]byte(`{"package": {"name": "a", "version": "1", "description": "d"}, "compilation": {}}`))
	if err != nil {
		t.Fatal(err)
	}
	if !r.PatchesAbsent || r.HasConfigure || !r.Make.IsZero() || !r.Test.IsZero() || r.Install.Target != "install" || len(r.Warnings) != 0 {
		t.Errorf("defaults: %+v", r)
	}
	// A plain list of dependencies is all needed.
	r, err = Parse([]byte(with("", `"configure": []`, `"dependencies": ["something-5.5", "yrdy"]`)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"something-5.5", "yrdy"}, r.Info.Needed); diff != "" || !r.HasConfigure || r.PatchesAbsent {
		t.Errorf("%s\n%+v", diff, r)
	}
}

func TestCommands(t *testing.T) {
	for in, want := range map[string]Command{
		"":                   {},
		"  \t\n":             {},
		"make":               {},
		"all":                {Target: "all"},
		" world ":            {Target: "world"},
		"doc.pdf":            {Target: "doc.pdf"},
		"make all":           {Target: "all"},
		"make -j2":           {Shell: "make -j2"},
		"make all doc":       {Shell: "make all doc"},
		"make V=1":           {Shell: "make V=1"},
		"./build.sh":         {Shell: "./build.sh"},
		"src/all":            {Shell: "src/all"},
		"a\nb":               {Shell: "a\nb"},
		"$(x)":               {Shell: "$(x)"},
		":":                  {Shell: ":"},
		"CC=gcc make x;true": {Shell: "CC=gcc make x;true"},
	} {
		r, err := Parse([]byte(with("", `"make": `+quote(in), "")))
		if err != nil {
			t.Errorf("make %q: %v", in, err)
		} else if r.Make != want {
			t.Errorf("make %q is %+v, want %+v", in, r.Make, want)
		}
	}
	for in, want := range map[string]Command{"": {Target: "install"}, "install-strip": {Target: "install-strip"}, "make": {Shell: "make"}} {
		r, err := Parse([]byte(with("", `"install": `+quote(in), "")))
		if err != nil || r.Install != want {
			t.Errorf("install %q is %+v, want %+v (%v)", in, r.Install, want, err)
		}
	}
	if s := (Command{Target: "x"}).String() + "|" + (Command{}).String() + "|" + (Command{Shell: "y z"}).String(); s != "make x|make|y z" {
		t.Error(s)
	}
}

func quote(s string) string { b, _ := json.Marshal(s); return string(b) }

// Every refusal: where, which field, and what it says.
func TestRefusals(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40)
	many := func(n int, one string) string { return "[" + strings.TrimSuffix(strings.Repeat(one+",", n), ",") + "]" }
	distinct := func(n int, format string) string {
		var l []string
		for i := range n {
			l = append(l, fmt.Sprintf(format, i))
		}
		return strings.Join(l, ",")
	}
	for _, tt := range []struct{ name, in, want string }{
		// The document.
		{"empty", "", "package.json:1:1: the document ends too early"},
		{"blank", " \n ", "package.json:2:2: the document ends too early"},
		{"cut", `{"package": {`, "package.json:1:14: the document ends too early"},
		{"text", "hello", "package.json:1:1: the document is not JSON: invalid character 'h'"},
		{"comma", "{\n\t\"a\": [1,2,\n\t]\n}", `package.json:2:11: the document is not JSON: remove the comma before ']'`},
		{"comment", "{\n\t// no\n}", "package.json:2:2: the document is not JSON: remove the comment"},
		{"trailing", `{} {}`, "package.json:1:4: the document is not JSON: invalid character '{' after top-level value"},
		{"bom", "\xef\xbb\xbf{}", "package.json:1:1: the document begins with a byte order mark"},
		{"utf-8", "{\"é\": \"\xff\"}", "package.json:1:8: the document holds byte 0xff, which is no UTF-8"},
		{"list", `[]`, "package.json:1:1: the document is a list: it must be an object"},
		{"null", `null`, "the document is null: it must be an object"},
		{"nothing in it", `{}`, `package.json:1:1: the document has no "package"`},
		{"deep", deep, "nested deeper than 32"},
		{"very deep", strings.Repeat("[", 200_000), "package.json:1:"},
		{"large", `"` + strings.Repeat("x", MaxSize) + `"`, "package.json: has 262146 bytes: 262144 is the most"},
		{"many", many(MaxValues+1, "1"), "more than 20000 values"},
		{"long key", `{"` + strings.Repeat("k", 257) + `": 1}`, "has a key of 257 bytes: 256 is the most"},
		{"twice", "{\"a\": 1,\n \"b\": 1, \"\\u0061\": 2}", "package.json:2:10: a is given twice, first on line 1"},
		{"twice inside", `{"a": [0, {"b c": 1, "b c": 1}]}`, `a[1]."b c" is given twice`},
		// package
		{"package type", `{"package": 1, "compilation": {}}`, "package.json:1:13: package is a number: it must be an object"},
		{"no name", `{"package": {"version": "1"}, "compilation": {}}`, `package.json:1:13: package has no "name"`},
		{"no version", `{"package": {"name": "a"}, "compilation": {}}`, `package has no "version"`},
		{"name", `{"package": {"name": "-a", "version": "1"}, "compilation": {}}`, `package.json:1:22: package.name does not fit: package name "-a" may not begin with '-'`},
		{"name upwards", `{"package": {"name": "../a", "version": "1"}, "compilation": {}}`, "package.name does not fit"},
		{"version slash", `{"package": {"name": "a", "version": "1/2"}, "compilation": {}}`, "package.version does not fit"},
		{"version without digit", `{"package": {"name": "a", "version": "git"}, "compilation": {}}`, "holds no digit, so its branch would release nothing: add one, e.g. 0.git"},
		{"version type", `{"package": {"name": "a", "version": 1.0}, "compilation": {}}`, "package.version is a number: it must be a string"},
		{"description control", with(`"category": "a\u001b[2Jb"`, "", ""), `package.category holds the control character '\x1b': remove it`},
		{"description long", `{"package": {"name": "a", "version": "1", "description": "` + strings.Repeat("x", 1001) + `"}, "compilation": {}}`, "package.description has 1001 bytes: 1000 is the most"},
		{"SBU", with(`"SBU": "1"`, "", ""), "package.SBU is a string: it must be a number"},
		// compilation
		{"no compilation", `{"package": {"name": "a", "version": "1"}}`, `has no "compilation"`},
		{"configure type", with("", `"configure": "prefix"`, ""), "compilation.configure is a string: it must be a list"},
		{"configure number", with("", `"configure": ["a", 3]`, ""), "compilation.configure[1] is a number: give"},
		{"configure value", with("", `"configure": [{"a": true}]`, ""), "compilation.configure[0].a is true or false: it must be a string"},
		{"configure dashes", with("", `"configure": ["--prefix=/usr"]`, ""), `compilation.configure[0] is the option "--prefix": leave out the dashes`},
		{"configure space", with("", `"configure": ["a b"]`, ""), `is the option "a b": use ASCII`},
		{"configure key", with("", `"configure": [{"a=b": ""}]`, ""), `is the option "a=b"`},
		{"configure empty", with("", `"configure": [{}]`, ""), "compilation.configure[0] is empty"},
		{"configure nameless", with("", `"configure": ["=x"]`, ""), "is an option without a name"},
		{"configure NUL", with("", `"configure": [{"a": "x\u0000y"}]`, ""), "holds the control character"},
		{"configure many", with("", `"configure": [{`+distinct(1001, `"o%d": ""`)+`}]`, ""), "1000 is the most"},
		{"make dash", with("", `"make": "-j4"`, ""), `compilation.make begins with a dash: give a target, or a whole command such as "make -j4"`},
		{"make variable", with("", `"make": "V=1"`, ""), `compilation.make only sets a variable`},
		{"make null", with("", `"make": null`, ""), "compilation.make is null: it must be a string"},
		{"make list", with("", `"make": ["a"]`, ""), "compilation.make is a list: it must be a string"},
		{"test long", with("", `"test": "x `+strings.Repeat("y", MaxCommand)+`"`, ""), "compilation.test has 16386 bytes"},
		{"env number", with("", `"env": [{"K": 1}]`, ""), "compilation.env[0].K is a number"},
		{"env key", with("", `"env": ["A=B"]`, ""), `compilation.env[0] sets the variable "A=B"`},
		{"env digit", with("", `"env": ["1A"]`, ""), `sets the variable "1A"`},
		{"env empty", with("", `"env": [{"": "x"}]`, ""), `sets the variable ""`},
		{"env twice", with("", `"env": ["A", {"A": "b"}]`, ""), "compilation.env[1].A sets A again"},
		{"env DESTDIR", with("", `"env": [{"DESTDIR": "/"}]`, ""), "sets DESTDIR: leave it out"},
		{"env many", with("", `"env": [{`+distinct(501, `"V%d": ""`)+`}]`, ""), "sets more than 500 variables"},
		// dependencies
		{"dependencies type", with("", "", `"dependencies": "zlib"`), "dependencies is a string: give an object"},
		{"needed type", with("", "", `"dependencies": {"needed": {}}`), "dependencies.needed is an object: it must be a list"},
		{"needed shell", with("", "", `"dependencies": ["a;rm"]`), "dependencies[0] does not fit: dependency \"a;rm\""},
		{"needed operator", with("", "", `"dependencies": ["zlib=1"]`), "dependencies[0] does not fit: dependency \"zlib=1\" has an operator that is not known"},
		{"needed space", with("", "", `"dependencies": ["zlib >= 1"]`), `may not hold ' '`},
		{"both optional", with("", "", `"dependencies": {"optionnal": [], "optional": []}`), "dependencies.optional says the same as optionnal"},
		{"itself", with("", "", `"dependencies": ["a-1"]`), "needs a-1, which is the package itself"},
		{"itself by name", with("", "", `"dependencies": ["a"]`), "which is the package itself"},
		{"itself by operator", with("", "", `"dependencies": ["a>0"]`), "which is the package itself"},
		// the other sections
		{"groups twice", with("", "", `"group": [], "groups": []`), "group says the same as groups"},
		{"group name", with("", "", `"groups": [{"group_name": "a:b"}]`), `groups[0].group_name is "a:b"`},
		{"group nameless", with("", "", `"groups": [{"guid": 1}]`), `groups[0] has no "group_name"`},
		{"gid", with("", "", `"groups": [{"group_name": "g", "guid": -1}]`), `groups[0].guid is "-1": give a whole number`},
		{"gid fraction", with("", "", `"groups": [{"group_name": "g", "guid": 1.5}]`), `groups[0].guid is "1.5"`},
		{"uid", with("", "", `"users": [{"username": "u", "uid": "4294967295"}]`), `users[0].uid is "4294967295"`},
		{"uid list", with("", "", `"users": [{"username": "u", "uid": []}]`), `users[0].uid is a list: give a number`},
		{"user nameless", with("", "", `"user": [{}]`), `user[0] has no "username"`},
		{"user shell", with("", "", `"users": [{"username": "u", "shell": "sh"}]`), `users[0].shell is "sh": give a path`},
		{"user home", with("", "", `"users": [{"username": "u", "home_dir": "/a/../b"}]`), `users[0].home_dir is`},
		{"user comment", with("", "", `"users": [{"username": "u", "comment": "x:0:0"}]`), `remove the colon`},
		{"kernel", with("", "", `"kernel": ["+-X"]`), `kernel[0] is "+-X"`},
		{"kernel space", with("", "", `"kernel": ["A B"]`), `kernel[0] is "A B"`},
		{"files path", with("", "", `"files": {"etc/x": {}}`), `files.etc/x is no path of a file`},
		{"files upwards", with("", "", `"files": [{"/etc/../x": {}}]`), `is no path of a file`},
		{"files mode", with("", "", `"files": {"/x": {"mode": 689}}`), `files./x.mode is "689": give octal digits`},
		{"files mode large", with("", "", `"files": {"/x": {"mode": "17777"}}`), `give octal digits up to 7777`},
		{"files type", with("", "", `"files": {"/x": 1}`), `files./x is a number: it must be an object`},
		// quarry
		{"arch", with("", "", `"quarry": {"archs": ["x86/64"]}`), "quarry.archs[0] does not fit"},
		{"arch noarch", with("", "", `"quarry": {"archs": ["noarch"]}`), `give "noarch": true instead`},
		{"archs empty", with("", "", `"quarry": {"archs": []}`), `quarry.archs is empty, so nothing would be built`},
		{"archs and noarch", with("", "", `"quarry": {"archs": ["i686"], "noarch": true}`), "quarry gives both noarch and archs"},
		{"noarch type", with("", "", `"quarry": {"noarch": "yes"}`), "quarry.noarch is a string: it must be true or false"},
		{"directory", with("", "", `"quarry": {"directory": "../.."}`), `quarry.directory is "../..": give a path below`},
		{"directory absolute", with("", "", `"quarry": {"directory": "/etc"}`), `quarry.directory is "/etc"`},
		{"memory", with("", "", `"quarry": {"memory": "lots"}`), `quarry.memory is "lots": give a whole number`},
		{"memory small", with("", "", `"quarry": {"memory": 5}`), `quarry.memory is "5"`},
		{"size overflow", with("", "", `"quarry": {"disk": "9999999999999T"}`), `quarry.disk is "9999999999999T"`},
		{"size sign", with("", "", `"quarry": {"disk": "+1"}`), `quarry.disk is "+1"`},
		{"size unit alone", with("", "", `"quarry": {"disk": "G"}`), `quarry.disk is "G"`},
		{"jobs", with("", "", `"quarry": {"jobs": 0}`), "quarry.jobs is 0: give a whole number from 1"},
		{"jobs exponent", with("", "", `"quarry": {"jobs": 1e3}`), "quarry.jobs is 1e3"},
		{"timeout", with("", "", `"quarry": {"timeouts": {"make": "10"}}`), `quarry.timeouts.make is "10": give a time`},
		{"timeout negative", with("", "", `"quarry": {"timeouts": {"step": "-1h"}}`), `quarry.timeouts.step is "-1h"`},
		// patches
		{"patch folder", `{"package": {"name": "a", "version": "1"}, "compilation": {"patches": ["../../etc/passwd"]}}`, `compilation.patches[0] is "../../etc/passwd": name a file in patches/`},
		{"patch dots", `{"package": {"name": "a", "version": "1"}, "compilation": {"patches": [".."]}}`, `compilation.patches[0] is ".."`},
		{"patch empty", `{"package": {"name": "a", "version": "1"}, "compilation": {"patches": [""]}}`, `compilation.patches[0] is ""`},
		{"patch option", `{"package": {"name": "a", "version": "1"}, "compilation": {"patches": ["-R"]}}`, "begins with neither a dash"},
		{"patch twice", `{"package": {"name": "a", "version": "1"}, "compilation": {"patches": ["a", "a"]}}`, `compilation.patches[1] names "a" again`},
		{"patch long", `{"package": {"name": "a", "version": "1"}, "compilation": {"patches": ["` + strings.Repeat("p", 256) + `"]}}`, "has 256 bytes: 255 is the most"},
		{"patches many", `{"package": {"name": "a", "version": "1"}, "compilation": {"patches": ` + many(1001, `"a"`) + `}}`, "compilation.patches has 1001 members: 1000 is the most"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := Parse([]byte(tt.in))
			if tt.want == "" {
				if err != nil {
					t.Fatalf("refused: %v", err)
				}
				return
			}
			if err == nil {
				t.Fatalf("accepted as %+v, want %q", r, tt.want)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error\n%q, want\n%q", err, tt.want)
			}
			if strings.ContainsAny(err.Error(), "\n\x1b\x00") || len(err.Error()) > 1000 {
				t.Errorf("the error is not one short line: %.200q", err)
			}
			for _, p := range Problems(err) {
				if p.File != FileName || p.Problem == "" {
					t.Errorf("problem %+v", p)
				}
			}
			if len(Problems(err)) == 0 {
				t.Errorf("%T is not the recipe's fault", err)
			}
		})
	}
}

func TestAllProblemsInOrder(t *testing.T) {
	_, err := Parse([]byte("{\n\"compilation\": {\"make\": 1},\n\"package\": {\"name\": 2, \"version\": \"\"}\n}"))
	var got []string
	for _, p := range Problems(err) {
		got = append(got, p.Error())
	}
	want := []string{
		`package.json:2:25: compilation.make is a number: it must be a string`,
		`package.json:3:21: package.name is a number: it must be a string`,
		`package.json:3:35: package.version does not fit: version is empty: give one`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if want := want[0] + " (and 2 more problems)"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
	if _, err := Parse([]byte(`{"package": [` + strings.Repeat("1,", 500) + `1], "compilation": {"patches": [` + strings.Repeat("1,", 500) + `1]}}`)); len(Problems(err)) != maxErrors {
		t.Errorf("%d problems, want %d", len(Problems(err)), maxErrors)
	}
}

func TestUnknownFieldsAreKept(t *testing.T) {
	r, err := Parse([]byte(with(`"licence": ["GPL", {"x":  1}]`, `"instal": "x"`, `"Dependancies": {}, "b c": null, "quarry": {"later": 1}`)))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]json.RawMessage{
		"package.licence":    json.RawMessage(`["GPL", {"x":  1}]`),
		"compilation.instal": json.RawMessage(`"x"`),
		"Dependancies":       json.RawMessage(`{}`),
		`"b c"`:              json.RawMessage(`null`),
		"quarry.later":       json.RawMessage(`1`),
	}
	if diff := cmp.Diff(want, r.Unknown); diff != "" {
		t.Error(diff)
	}
	warnings := strings.Join(r.Warnings, "\n")
	for _, s := range []string{
		"package.json:1:74: package.licence is not known, so it is kept but has no effect",
		`compilation.instal is not known, so it is kept but has no effect: did you mean "install"?`,
		`Dependancies is not known, so it is kept but has no effect: did you mean "dependencies"?`,
		"quarry.later is not known",
	} {
		if !strings.Contains(warnings, s) {
			t.Errorf("no warning %q in\n%s", s, warnings)
		}
	}
	var many []string
	for i := range 1000 {
		many = append(many, fmt.Sprintf(`"x%d": 1`, i))
	}
	if r, err = Parse([]byte(with("", "", strings.Join(many, ",")))); err != nil || len(r.Warnings) != maxWarnings+1 || len(r.Unknown) != 1000 {
		t.Errorf("%d warnings, %d fields kept: %v", len(r.Warnings), len(r.Unknown), err)
	}
}

func TestArchs(t *testing.T) {
	channel := []string{"x86_64", "aarch64", "riscv64"}
	for _, tt := range []struct {
		ext     Extension
		channel []string
		want    []string
	}{
		{Extension{}, channel, channel},
		{Extension{Archs: []string{"riscv64", "x86_64", "vax"}}, channel, []string{"x86_64", "riscv64"}},
		{Extension{Archs: []string{"vax"}}, channel, nil},
		{Extension{Noarch: true}, channel, []string{"noarch"}},
		{Extension{Noarch: true}, nil, nil},
		{Extension{}, []string{"noarch", "x86_64"}, []string{"x86_64"}},
	} {
		if diff := cmp.Diff(tt.want, (&Recipe{Ext: tt.ext}).Archs(tt.channel)); diff != "" {
			t.Errorf("%+v on %v: %s", tt.ext, tt.channel, diff)
		}
	}
}

func TestDependencies(t *testing.T) {
	type nv = NameVersion
	for in, want := range map[string][]nv{
		"zlib":           {{"zlib", ""}},
		"zlib-1.3.1":     {{"zlib-1.3.1", ""}, {"zlib", "1.3.1"}},
		"openssh-7.0-p1": {{"openssh-7.0-p1", ""}, {"openssh-7.0", "p1"}, {"openssh", "7.0-p1"}},
		"gtk-doc":        {{"gtk-doc", ""}},
		"gtk-doc-1.33":   {{"gtk-doc-1.33", ""}, {"gtk-doc", "1.33"}, {"gtk", "doc-1.33"}},
		"gtk+-3":         {{"gtk+-3", ""}, {"gtk+", "3"}},
		"zlib>=1.2-rc1":  {{"zlib", "1.2-rc1"}},
	} {
		d, err := SplitDependency(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if diff := cmp.Diff(want, d.Candidates()); diff != "" {
			t.Errorf("%s: %s", in, diff)
		}
	}
	for in, op := range map[string]string{"a>=1": ">=", "a<=1": "<=", "a>1": ">", "a<1": "<"} {
		if d, err := SplitDependency(in); err != nil || d.Op != op || d.Name != "a" || d.Version != "1" || d.Raw != in {
			t.Errorf("%s: %+v, %v", in, d, err)
		}
	}
	for _, in := range []string{"", "-", "-a", "a b", "a>", ">1", "a>>1", "a=>1", "a==1", "a>=1>2", "a/b", "../a", "a\n", "é", ".a", "a>=1/2", strings.Repeat("a", 300)} {
		if d, err := SplitDependency(in); err == nil {
			t.Errorf("%q was taken for %+v", in, d)
		} else if strings.Contains(err.Error(), "\n") || len(err.Error()) > 500 {
			t.Errorf("%q: %v", in, err)
		}
	}
}

// FuzzParse looks for panics, for errors that are not one clean line, and for
// recipes that mean something else when read again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(with("", "", "")))
	for _, s := range []string{
		"", "{", "[]", "nul", `{"a":1,"a":2}`, `{"package": {"name": "a", "version": "\ud800"}}`, "{\"a\": \"\x80\"}",
		`{"package": {"name": "a", "version": "1"}, "compilation": {"patches": ["..", "/etc/passwd"]}}`,
		with("", `"env": ["A", {"B": "C"}], "configure": [{"a": "b"}, "c"]`, `"dependencies": ["a-b-1", "c>=2"]`),
		with(`"x": [[[[1e999]]]]`, `"make": "\u202e"`, `"files": [{"/a": {"mode": 1}}], "kernel": ["+A"]`),
		with("", "", `"quarry": {"memory": "1G", "timeouts": {"make": "1h"}, "noarch": true}`),
	} {
		f.Add([]byte(s))
	}
	packages, err := filepath.Glob("../testdata/packages/*/package.json")
	if err != nil || len(packages) == 0 {
		f.Fatalf("no seeds in testdata/packages: %v", err)
	}
	for _, name := range packages {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Parse(data)
		if err != nil {
			if len(Problems(err)) == 0 {
				t.Fatalf("%v is nobody's fault", err)
			}
			for _, p := range Problems(err) {
				if s := p.Error(); strings.ContainsAny(s, "\n\r\x00\x1b") {
					t.Fatalf("not one line: %q", s)
				}
			}
			return
		}
		if err := quarry.CheckName(r.Package); err != nil {
			t.Fatal(err)
		}
		if version, ok, err := quarry.ParseBranch(r.Package, quarry.Branch(r.Package, r.Version)); err != nil || !ok || version != r.Version {
			t.Fatalf("branch of %s %s: %q %v %v", r.Package, r.Version, version, ok, err)
		}
		for _, arg := range r.Configure {
			if !strings.HasPrefix(arg, "--") || strings.ContainsRune(arg, 0) {
				t.Fatalf("argument %q", arg)
			}
		}
		for _, c := range []Command{r.Make, r.Test, r.Install} {
			if c.Target != "" && (c.Shell != "" || c.Target[0] == '-' || strings.ContainsAny(c.Target, " \t\n='\"$`;&|<>/")) {
				t.Fatalf("target %q", c.Target)
			}
		}
		for _, name := range r.Patches {
			if filepath.Base(name) != name || name[0] == '.' || name[0] == '-' {
				t.Fatalf("patch %q", name)
			}
		}
		again, err := Parse(data)
		if err != nil {
			t.Fatalf("refused the second time: %v", err)
		}
		if diff := cmp.Diff(r, again); diff != "" {
			t.Fatal(diff)
		}
		// White space means nothing: only the digest and positions change.
		var compact bytes.Buffer
		if err := json.Compact(&compact, data); err != nil {
			t.Fatal(err)
		}
		small, err := Parse(compact.Bytes())
		if err != nil {
			t.Fatalf("refused without white space: %v", err)
		}
		small.Digest, small.Info.Recipe, small.Warnings = r.Digest, r.Info.Recipe, r.Warnings
		small.Init, small.Unknown = r.Init, r.Unknown
		if diff := cmp.Diff(r, small); diff != "" {
			t.Fatal(diff)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		if _, err := Parse([]byte(full)); err != nil {
			b.Fatal(err)
		}
	}
}
