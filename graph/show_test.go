package graph

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/Morphux/quarry"
)

func text(t *testing.T, g *Graph, q Query) string {
	t.Helper()
	s, err := g.Select(q)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.Text(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func shown() *Graph {
	git := release("git", "2.40", two, "zlib>=1.2", "openssl", "gone-1")
	git.Traits = map[string]quarry.Traits{"aarch64": {Needs: []string{"atomics"}, HostNeeds: []string{"perl"}}}
	gcc := release("gcc", "13", two, "glibc")
	gcc.Traits = map[string]quarry.Traits{"x86_64": {Bootstrap: true}, "aarch64": {Bootstrap: true}}
	bad := release("atomics", "1", two[1:])
	bad.Traits = map[string]quarry.Traits{"aarch64": {Broken: "on \"new\" kernels"}}
	return New([]quarry.Release{git, gcc, bad, release("openssl", "3.0", two, "zlib", "perl"), release("zlib", "1.3", two, "glibc"),
		release("glibc", "2.38", two, "gcc"), release("perl", "5", []string{quarry.Noarch}), release("zlib", "1.1", two)},
		Options{Archs: two, Weak: func(r *quarry.Release) (recommended, optional []string) {
			if r.Package == "git" {
				return []string{"perl"}, []string{"zlib<1.2"}
			}
			return nil, nil
		}})
}

func TestText(t *testing.T) {
	g := shown()
	for _, tt := range []struct {
		q    Query
		want string
	}{
		{Query{Package: "git", Arch: "x86_64"}, `
git 2.40
|- zlib 1.3 (zlib>=1.2)
|  ` + "`- glibc 2.38" + `
|     ` + "`- gcc 13 [bootstrap]" + `
|        ` + "`- glibc 2.38 ^" + `
|- openssl 3.0
|  |- zlib 1.3 ^
|  ` + "`- perl 5" + `
` + "`- gone-1 [nobody has pushed it]" + `
`},
		{Query{Package: "git", Depth: 1}, `
git 2.40
|- zlib 1.3 (zlib>=1.2) ...
|- openssl 3.0 ...
|- gone-1 [nobody has pushed it]
|- atomics 1 [broken: on "new" kernels]
` + "`- perl 5 (perl, host)" + `
`},
		{Query{Package: "zlib-1.3", Reverse: true, Arch: "x86_64"}, `
zlib 1.3
|- git 2.40 (zlib>=1.2)
` + "`- openssl 3.0 (zlib)" + `
   ` + "`- git 2.40 (openssl)" + `
`},
		{Query{Package: "git", Depth: 1, Arch: "x86_64", Weak: true, Status: g.Status(StatusOptions{})}, `
git 2.40 [blocked]
|- zlib 1.3 (zlib>=1.2) [waiting] ...
|- openssl 3.0 [waiting] ...
|- gone-1 [nobody has pushed it]
|- perl 5 (perl, recommended) [ready]
` + "`- zlib 1.1 (zlib<1.2, optional) [ready]" + `
`},
		{Query{Package: "perl", Reverse: true, Depth: 1, Weak: true}, `
perl 5
|- git 2.40 (perl, host)
|- git 2.40 (perl, recommended)
` + "`- openssl 3.0 (perl) ..." + `
`},
	} {
		got := "\n" + text(t, g, tt.q)
		if got != tt.want {
			t.Errorf("%+v:%s\nwant%s", tt.q, got, tt.want)
		}
	}
	// Everything: each release once with what it needs.
	all := text(t, g, Query{})
	for _, r := range []string{"git 2.40", "zlib 1.1", "gcc 13"} {
		if !strings.Contains(all, r) {
			t.Errorf("%s is missing in\n%s", r, all)
		}
	}
	for _, q := range []Query{{Package: "zlip"}, {Package: "zl"}, {Package: "git-1"}, {Package: "git", Arch: "vax"}, {Package: "atomics", Arch: "x86_64"}} {
		if _, err := g.Select(q); err == nil {
			t.Errorf("%+v is there", q)
		} else {
			t.Log(err)
		}
	}
}

// svg has the real Graphviz read what DOT wrote, and gives its picture.
func svg(t *testing.T, s *Sub) string {
	t.Helper()
	var b bytes.Buffer
	if err := s.DOT(&b); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("dot"); err != nil {
		t.Fatal("dot is missing: install Debian's package graphviz (make deps does)")
	}
	cmd := exec.Command("dot", "-Tsvg")
	cmd.Stdin = bytes.NewReader(b.Bytes())
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil || errs.Len() > 0 {
		t.Fatalf("dot: %v\n%s\n%s", err, errs.String(), b.String())
	}
	return string(out)
}

func TestDOT(t *testing.T) {
	g := shown()
	s, err := g.Select(Query{Status: g.Status(StatusOptions{}), Weak: true})
	if err != nil {
		t.Fatal(err)
	}
	picture := svg(t, s)
	for _, want := range []string{">git 2.40<", ">x86_64 aarch64<", ">zlib&gt;=1.2<", ">gone&#45;1<"} {
		if !strings.Contains(picture, want) {
			t.Errorf("the picture has no %s", want)
		}
	}
	if n := strings.Count(picture, `class="edge"`); n != len(s.Edges) {
		t.Errorf("%d edges in the picture, want %d", n, len(s.Edges))
	}
	// Names past the doors: nothing in them ends a string, opens an entity or
	// another statement.
	var list []quarry.Release
	for i, name := range hostile {
		r := release(name, hostile[(i+1)%len(hostile)], []string{hostile[(i+2)%len(hostile)], "x"}, hostile...)
		r.Traits = map[string]quarry.Traits{"x": {Broken: name}}
		list = append(list, r)
	}
	s, err = New(list, Options{}).Select(Query{})
	if err != nil {
		t.Fatal(err)
	}
	picture = svg(t, s)
	if n := strings.Count(picture, `class="node"`); n != len(s.Nodes) || n < len(hostile) {
		t.Errorf("%d nodes in the picture, want %d", n, len(s.Nodes))
	}
	var b bytes.Buffer
	if err := s.Text(&b); err != nil || !utf8.Valid(b.Bytes()) || strings.ContainsAny(b.String(), "\x1b\x00\r") {
		t.Errorf("text: %v\n%q", err, b.String())
	}
	b.Reset()
	if err := s.JSON(&b); err != nil || !json.Valid(b.Bytes()) {
		t.Errorf("json: %v", err)
	}
}

var hostile = []string{`"`, `\`, `a\`, `"];evil [label="x`, "new\nline", "nul\x00byte", "\x1b[2J", "&amp;&lt;", "\xff\xfe", "<b>html</b>", "--help", "",
	"..", "{", "}", "->", "a;b", "ü", strings.Repeat("x", 500), "\u202e", "%s%n", "n0", "digraph"}

func TestJSON(t *testing.T) {
	s, err := shown().Select(Query{Package: "zlib", Arch: "x86_64", Depth: 1})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := s.JSON(&b); err != nil {
		t.Fatal(err)
	}
	var got Sub
	if err := json.Unmarshal(b.Bytes(), &got); err != nil || len(got.Nodes) != 3 || len(got.Roots) != 2 || got.Edges[0] != (SubEdge{0, 2, "glibc", "needed"}) {
		t.Errorf("%+v, %v", got, err)
	}
}

// The whole of a deep graph is written without recursion and without a page of
// indentation for every line.
func TestDeepText(t *testing.T) {
	var list []quarry.Release
	for i := range 5000 {
		list = append(list, release(fmt.Sprintf("p%d", i), "1", two[:1], fmt.Sprintf("p%d", i+1)))
	}
	got := text(t, New(list, Options{}), Query{Package: "p0"})
	if len(got) > 1<<20 || strings.Count(got, "\n") != 5001 || !strings.Contains(got, "(4999) p4999 1") {
		t.Errorf("%d bytes, %d lines", len(got), strings.Count(got, "\n"))
	}
}
