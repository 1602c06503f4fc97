package api

import (
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/Morphux/quarry/control"
)

func verb(t testing.TB, name ...string) *control.Verb {
	t.Helper()
	v, rest := control.Verbs(nil).Find(name...)
	if v == nil || len(rest) > 0 {
		t.Fatalf("there is no verb %q", name)
	}
	return v
}

// Words come from the query, a form or JSON; only names of flags become flags.
func TestWords(t *testing.T) {
	for _, tt := range []struct {
		verb, method, query, kind, body string
		want                            string // argv, or what the error tells
		input                           bool
	}{
		{verb: "log", method: "GET", query: "arg=17&lines=5", want: "log --lines=5 -- 17"},
		{verb: "log", method: "GET", query: "arg=17&follow", want: "log --follow -- 17"},
		{verb: "build", method: "GET", query: "channel=&arg=--json", want: "build --channel= -- --json"},
		{verb: "images show", method: "GET", query: "arg=--help", want: "images show -- --help"},
		{verb: "status", method: "GET", query: "-c=x", want: "is no flag"},
		{verb: "status", method: "GET", query: "x%3Dy=z", want: "is no flag"},
		{verb: "status", method: "GET", query: "%zz", want: "cannot be read"},
		{verb: "status", method: "GET", query: "arg=a%00b", want: "zero byte"},
		{verb: "status", method: "POST", kind: "application/json", body: `{"args":["a","b c"],"flags":{"limit":3}}`, want: "status --limit=3 -- a b c"},
		{verb: "rebuild", method: "POST", kind: "application/json; charset=utf-8", body: `{"flags":{"match":["a","b"],"mass":true}}`, want: "rebuild --mass=true --match=a --match=b --"},
		{verb: "status", method: "POST", kind: "application/json", body: `{"flags":{"limit":{"a":1}}}`, want: "no flag has"},
		{verb: "status", method: "POST", kind: "application/json", body: `{"flags":{"limit":null}}`, want: "no flag has"},
		{verb: "status", method: "POST", kind: "application/json", body: `{"argv":[]}`, want: "no JSON that is taken"},
		{verb: "status", method: "POST", kind: "application/json", body: `{} {}`, want: "more follows"},
		{verb: "status", method: "POST", kind: "application/json", body: ``, want: "status --"},
		{verb: "status", method: "POST", kind: "application/x-www-form-urlencoded", body: "arg=a&limit=2", want: "status --limit=2 -- a"},
		{verb: "status", method: "POST", kind: "text/csv", body: "a", want: "application/json only"},
		{verb: "build", method: "POST", query: "arg=-", kind: "application/x-www-form-urlencoded", body: "a tar", want: "build -- -", input: true},
	} {
		r := httptest.NewRequest(tt.method, "/?"+tt.query, strings.NewReader(tt.body))
		r.Header.Set("Content-Type", tt.kind)
		argv, in, err := words(r, verb(t, strings.Fields(tt.verb)...))
		if err != nil {
			if !strings.Contains(err.Error(), tt.want) || control.Code(err) != control.ExitUsage && control.Code(err) != control.ExitError {
				t.Errorf("%+v: %v", tt, err)
			}
			continue
		}
		// Flags of a map come in any order, which is no matter.
		slices.Sort(argv[len(strings.Fields(tt.verb)):slices.Index(argv, "--")])
		if got := strings.TrimSpace(strings.Join(argv, " ")); got != tt.want || (in != nil) != tt.input {
			t.Errorf("%+v: %q", tt, got)
		}
	}
}

// FuzzWords: whatever is sent, words keep to their places: no argument becomes a
// flag, and nothing panics.
func FuzzWords(f *testing.F) {
	f.Add("arg=17&lines=5", "application/json", `{"args":["a"],"flags":{"limit":3}}`)
	f.Add("follow&x=%00", "application/x-www-form-urlencoded", "arg=a&b=c")
	f.Add("arg=--json", "text/plain", "x")
	verbs := control.Verbs(nil)
	f.Fuzz(func(t *testing.T, query, kind, body string) {
		for _, v := range []*control.Verb{verb(t, "status"), verb(t, "build"), verbs[0]} {
			for _, method := range []string{"GET", "POST"} {
				r := httptest.NewRequest(method, "/", strings.NewReader(body))
				r.URL.RawQuery = query
				r.Header.Set("Content-Type", kind)
				argv, _, err := words(r, v)
				if err != nil {
					continue
				}
				at := slices.Index(argv, "--")
				if at < 0 {
					t.Fatalf("%q", argv)
				}
				for _, flag := range argv[len(strings.Fields(v.Name)):at] {
					name, _, _ := strings.Cut(strings.TrimPrefix(flag, "--"), "=")
					if !strings.HasPrefix(flag, "--") || !key.MatchString(name) {
						t.Errorf("%q among %q", flag, argv)
					}
				}
				fs := v.NewFlags()
				if fs.Parse(argv[len(strings.Fields(v.Name)):]) == nil && !slices.Equal(fs.Args(), argv[at+1:]) {
					t.Errorf("%q became %q", argv, fs.Args())
				}
			}
		}
	})
}

func TestAccept(t *testing.T) {
	for _, tt := range []struct {
		accept string
		text   bool
	}{{"", false}, {"*/*", false}, {"text/plain", true}, {"text/*", true}, {"application/json", false}, {"text/plain;q=0.5, application/json", false},
		{"text/plain, application/json;q=0.5", true}, {"text/plain;q=x", false}, {"application/*, text/plain;q=0.1", false}, {",;;,", false}} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header.Set("Accept", tt.accept)
		if got := prefers(r, "text/plain", "application/json"); got != tt.text {
			t.Errorf("Accept %q: text %v", tt.accept, got)
		}
	}
}

func TestByteRange(t *testing.T) {
	for _, tt := range []struct {
		s           string
		first, last int64
		ok          bool
	}{{"bytes=0-", 0, 1 << 53, true}, {"bytes=3-12", 3, 12, true}, {"bytes=12-3", 0, 0, false}, {"bytes=-5", 0, 0, false}, {"bytes=0-1,3-4", 0, 0, false},
		{"bytes=a-", 0, 0, false}, {"", 0, 0, false}, {"lines=1-2", 0, 0, false}, {"bytes=99999999999999999999-", 0, 0, false}} {
		first, last, ok := byteRange(tt.s)
		if first != tt.first || last != tt.last || ok != tt.ok {
			t.Errorf("%q: %d-%d, %v", tt.s, first, last, ok)
		}
	}
}
