package testbrowser

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
)

// fake takes what a check says instead of failing.
type fake struct {
	testing.TB
	said []string
}

func (f *fake) Helper() {}
func (f *fake) Errorf(format string, args ...any) {
	f.said = append(f.said, fmt.Sprintf(format, args...))
}

// TestAudit: a page that is bad in every way is found to be.
func TestAudit(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", "default-src 'self'")
		if r.URL.Path == "/good" {
			fmt.Fprint(w, `<!doctype html><html lang="en"><title>Good</title><main><h1>Good</h1><p>Text</p></main>`)
			return
		}
		fmt.Fprint(w, `<!doctype html><title></title><script>alert(1)</script><h1>A</h1><h3>B</h3><img src="/good"><a href="/"></a><input>
			<div id="x"></div><p id="x">twice</p><table><tr><td>1</td></tr></table><svg></svg><font color="#bbbbbb">pale</font>
			<pre>`+strings.Repeat("wide", 1000)+`</pre><img alt="" src="http://127.0.0.2:1/x.png">`)
	}))
	defer srv.Close()
	b := Start(t)

	tab := b.Tab(t)
	tab.Go(srv.URL + "/good")
	tab.Check()
	tab.Audit()
	f := &fake{TB: t}
	tab = b.Tab(t)
	tab.Go(srv.URL + "/bad")
	for deadline := time.Now().Add(patience); !strings.Contains(strings.Join(tab.Problems(), "\n"), "Content Security Policy"); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the browser does not complain: %q", tab.Problems())
		}
	}
	tab.t = f
	tab.Check()
	tab.Audit()
	for _, want := range []string{"Content Security Policy", "no language", "no title", "one main", "skips a level", "no alt", "control has no name",
		"no label", "id x is used 2", "table has no name", "no heads", "drawing has no name", "contrast is 1.9", "wide and its window"} {
		if !slices.ContainsFunc(f.said, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("nothing is said of %q in\n%s", want, strings.Join(f.said, "\n"))
		}
	}
}
