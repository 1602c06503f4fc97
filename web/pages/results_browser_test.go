package pages

import (
	"strings"
	"testing"

	"github.com/Morphux/quarry/internal/testbrowser"
)

// TestRecordedPagesInBrowser loads the pages of what was recorded in a real browser:
// wide and as on a phone, light and dark, with JavaScript and without it.
func TestRecordedPagesInBrowser(t *testing.T) {
	s := smallShelf(t)
	s.until("a build runs", func() bool { return s.q.Status().Busy == 1 })
	b := testbrowser.Start(t)
	for name, path := range map[string]string{
		"results": "/results", "results-failed": "/results?status=failed&class=missing-header", "failures": "/failures", "grid": "/grid", "packages": "/packages",
		"package-zlib": "/packages/zlib", "package-vim": "/packages/vim", "package-evil": "/packages/evil", "package-fresh": "/packages/fresh",
		"record": "/packages/zlib/1.3.1/x86_64", "record-failed": "/packages/curl/1.0/aarch64", "record-evil": "/packages/evil/6.6.6/x86_64?files=evil/00",
		"record-evil-failed": "/packages/evil/6.6.6/aarch64",
	} {
		tab := b.Tab(t)
		tab.Go(s.srv.URL + path)
		tab.Shot("h8-" + name)
		tab.Audit()
		tab.Scheme("dark")
		tab.Shot("h8-" + name + "-dark")
		tab.Audit()
		tab.Size(375, 812)
		tab.Shot("h8-" + name + "-phone-dark")
		tab.Scheme("light")
		tab.Shot("h8-" + name + "-phone")
		tab.Audit()
		if title := testbrowser.Eval[string](tab, "document.title"); strings.Contains(title, "owned") {
			t.Errorf("%s: a text of the recipe has run: title %q", path, title)
		}
		tab.Check()
		tab.Script(false)
		tab.Size(1200, 900)
		tab.Go(s.srv.URL + path)
		if tab.Text("h1") == "" {
			t.Errorf("%s shows nothing without JavaScript", path)
		}
	}
}

// TestFiltersByKeyboard fills in a form and follows what comes, without JavaScript.
func TestFiltersByKeyboard(t *testing.T) {
	s := smallShelf(t)
	b := testbrowser.Start(t)
	tab := b.Tab(t)
	tab.Script(false)
	tab.Go(s.srv.URL + "/results")
	tab.Click(`input[name=package]`)
	tab.Key("tin\r")
	tab.Wait(`location.search.includes("package=tin") && document.querySelectorAll("tbody tr").length == 1`)
	if got := tab.Text("tbody"); !strings.Contains(got, "yacc not found") {
		t.Errorf("results of tin: %s", got)
	}
	tab.Click(`tbody a[href="/packages/tin/2.0/x86_64"]`)
	tab.Wait(`location.pathname == "/packages/tin/2.0/x86_64"`)
	if got := tab.Text(".failure"); !strings.Contains(got, "yacc not found") || !strings.Contains(got, "quarry build --arch x86_64 tin") {
		t.Errorf("record of tin: %s", got)
	}
	tab.Click(`h1 a[href="/packages/tin"]`)
	tab.Wait(`location.pathname == "/packages/tin"`)
	tab.Click(`a[href="/grid"]`)
	tab.Wait(`location.pathname == "/grid"`)
	tab.Click(`.filters input[name=q]`)
	tab.Key("zl\r")
	tab.Wait(`document.querySelectorAll("table.grid tbody tr").length == 1`)
	tab.Check()
}
