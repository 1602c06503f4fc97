package quarry

import (
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	long := strings.Repeat("a", MaxName)
	for _, tt := range []struct {
		check func(string) error
		in    string
		ok    bool
	}{
		{CheckName, "zlib", true}, {CheckName, "gtk-doc", true}, {CheckName, "libstdc++", true},
		{CheckName, "4ti2", true}, {CheckName, "X11_foo.bar", true}, {CheckName, long, true},
		{CheckName, "", false}, {CheckName, long + "a", false}, {CheckName, "-rf", false},
		{CheckName, "--upload-pack=x", false}, {CheckName, ".git", false}, {CheckName, "a/b", false},
		{CheckName, "a b", false}, {CheckName, "a\n", false}, {CheckName, "a;b", false},
		{CheckName, "é", false}, {CheckName, "a..b", false}, {CheckName, "a.git", false},
		{CheckName, "a.lock", false}, {CheckName, "a.", false}, {CheckName, "a\x00", false},
		{CheckVersion, "1.3.1", true}, {CheckVersion, "7.0-p1", true}, {CheckVersion, "2024a", true},
		{CheckVersion, "1.0+git20", true}, {CheckVersion, "1:2", false}, {CheckVersion, "1~rc1", false},
		{CheckVersion, "-1", false}, {CheckVersion, "1..2", false}, {CheckVersion, "1.lock", false},
		{CheckArch, "x86_64", true}, {CheckArch, "noarch", true}, {CheckArch, "vax-11", true},
		{CheckArch, "../x", false}, {CheckArch, "x.files", false}, {CheckArch, "x/y", false},
		{CheckChannel, "testing", true}, {CheckChannel, "Testing", false}, {CheckChannel, "a/b", false},
		{CheckUser, "alice", true}, {CheckUser, "../alice", false},
	} {
		err := tt.check(tt.in)
		if (err == nil) != tt.ok {
			t.Errorf("%q: error %v, want ok %v", tt.in, err, tt.ok)
		}
		if err != nil && (strings.Contains(err.Error(), "\n") || len(err.Error()) > 300) {
			t.Errorf("%q: error is not one short line: %v", tt.in, err)
		}
	}
}

func TestParseBranch(t *testing.T) {
	for _, tt := range []struct {
		name, branch, version string
		ok, err               bool
	}{
		{"zlib", "zlib-1.3.1", "1.3.1", true, false},
		{"openssh", "openssh-7.0-p1", "7.0-p1", true, false},
		{"gtk-doc", "gtk-doc-1.33", "1.33", true, false},
		{"gtk", "gtk-doc-1.33", "doc-1.33", true, false}, // pre-receive compares with package.json
		{"zlib", "master", "", false, false},
		{"zlib", "zlib-dev", "", false, false},
		{"zlib", "zlib-", "", false, false},
		{"zlib", "zlib", "", false, false},
		{"zlib", "other-1.0", "", false, false},
		{"zlib", "zlib--1", "", true, true},
		{"zlib", "zlib-1;reboot", "", true, true},
		{"zlib", "zlib-1/../../x", "", true, true},
	} {
		v, ok, err := ParseBranch(tt.name, tt.branch)
		if v != tt.version || ok != tt.ok || (err != nil) != tt.err {
			t.Errorf("ParseBranch(%q, %q) = %q, %v, %v", tt.name, tt.branch, v, ok, err)
		}
	}
}

func FuzzParseBranch(f *testing.F) {
	f.Add("zlib", "zlib-1.3.1")
	f.Add("gtk-doc", "gtk-doc-1.33-p1")
	f.Add("x", "--upload-pack=x-1.0")
	f.Fuzz(func(t *testing.T, name, branch string) {
		if CheckName(name) != nil {
			return
		}
		v, ok, err := ParseBranch(name, branch)
		if err != nil || !ok {
			if v != "" {
				t.Fatalf("a refused branch gave version %q", v)
			}
			return
		}
		if Branch(name, v) != branch {
			t.Fatalf("%q and %q do not make %q", name, v, branch)
		}
		if strings.ContainsAny(v, "/\x00\n ;$`'\"\\") || strings.HasPrefix(branch, "-") || strings.Contains(v, "..") {
			t.Fatalf("version %q got through", v)
		}
	})
}

// TestBuildKey holds the identity of builds still: records in the wild name it.
func TestBuildKey(t *testing.T) {
	tg := Target{"testing", "zlib", "1.3.1", "x86_64"}
	a := BuildKey(tg, "c0ffee", "")
	if len(a) != 64 || a != BuildKey(tg, "c0ffee", "") {
		t.Fatalf("key %q is not a stable SHA-256", a)
	}
	seen := map[string]string{a: "the first"}
	for what, k := range map[string]string{
		"nonce":    BuildKey(tg, "c0ffee", "n"),
		"commit":   BuildKey(tg, "c0ffef", ""),
		"arch":     BuildKey(Target{"testing", "zlib", "1.3.1", "i686"}, "c0ffee", ""),
		"shifted":  BuildKey(Target{"testing", "zlib1", ".3.1", "x86_64"}, "c0ffee", ""),
		"channel":  BuildKey(Target{"stable", "zlib", "1.3.1", "x86_64"}, "c0ffee", ""),
		"boundary": BuildKey(tg, "c0ffe", "e"),
	} {
		if other, dup := seen[k]; dup {
			t.Errorf("%s and %s have one key", what, other)
		}
		seen[k] = what
	}
}

func TestMayPush(t *testing.T) {
	for _, tt := range []struct {
		id   Identity
		pkg  string
		want bool
	}{
		{Identity{Role: RoleAdmin}, "zlib", true},
		{Identity{Role: RoleMaintainer}, "zlib", true},
		{Identity{Role: RoleMaintainer, Packages: []string{"lib*", "zlib"}}, "zlib", true},
		{Identity{Role: RoleMaintainer, Packages: []string{"lib*"}}, "zlib", false},
		{Identity{Role: RoleMaintainer, Packages: []string{"["}}, "zlib", false},
		{Identity{Role: RoleReader}, "zlib", false},
		{Identity{Role: RoleBuilder}, "zlib", false},
		{Identity{}, "zlib", false},
	} {
		if got := tt.id.MayPush(tt.pkg); got != tt.want {
			t.Errorf("%+v pushing %s: %v, want %v", tt.id, tt.pkg, got, tt.want)
		}
	}
}
