// Package testbrowser drives a real Chromium for tests of pages: it loads them
// as people would, notes everything that a browser complains of, and looks for
// what keeps people from using a page.
//
// QUARRY_SHOTS names a folder that screenshots go to, for looking at.
package testbrowser

import (
	"context"
	_ "embed"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// patience is how long anything may take on a slow machine that is busy.
const patience = 3 * time.Minute

// Browser is a Chromium with a profile of its own.
type Browser struct{ ctx context.Context }

// Start starts a browser that ends with the test.
func Start(t testing.TB) *Browser {
	t.Helper()
	bin, err := exec.LookPath("chromium")
	if err != nil {
		t.Fatal("chromium is missing: make deps installs what the tests need")
	}
	// Not in t.TempDir: what of the browser ends last may still write there.
	profile, err := os.MkdirTemp("", "quarry-chromium-")
	if err != nil {
		t.Fatal(err)
	}
	opts := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(bin), chromedp.UserDataDir(profile), chromedp.WSURLReadTimeout(patience),
		chromedp.DisableGPU, chromedp.Flag("hide-scrollbars", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("no-pings", true),
		chromedp.Flag("disable-domain-reliability", true))
	if os.Getuid() == 0 {
		opts = append(opts, chromedp.NoSandbox)
	}
	alloc, stopAlloc := chromedp.NewExecAllocator(context.Background(), opts...)
	ctx, stop := chromedp.NewContext(alloc)
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // closes the browser, and waits
		stop()
		stopAlloc()
		os.RemoveAll(profile)
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("chromium does not start: %v", err)
	}
	return &Browser{ctx}
}

// Tab is a page with cookies and a cache of its own.
type Tab struct {
	t   testing.TB
	ctx context.Context

	mu       sync.Mutex // guards the following
	problems []string
	hosts    map[string]bool // that it asked for something
	loaded   map[string]int64
	ids      map[network.RequestID]string
}

// Tab opens a page that is closed with the test: 1200 pixels wide, light.
func (b *Browser) Tab(t testing.TB) *Tab {
	t.Helper()
	ctx, stop := chromedp.NewContext(b.ctx, chromedp.WithNewBrowserContext())
	tab := &Tab{t: t, ctx: ctx, hosts: map[string]bool{}, loaded: map[string]int64{}, ids: map[network.RequestID]string{}}
	t.Cleanup(func() { _ = chromedp.Cancel(ctx); stop() })
	if err := chromedp.Listen(ctx, tab.hear); err != nil {
		t.Fatal(err)
	}
	tab.Size(1200, 900)
	tab.Scheme("light")
	return tab
}

// hear notes what is wrong.
func (t *Tab) hear(ev any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		text := ev.ExceptionDetails.Text
		if e := ev.ExceptionDetails.Exception; e != nil {
			text += " " + e.Description
		}
		t.problems = append(t.problems, "exception: "+text)
	case *runtime.EventConsoleAPICalled:
		if ev.Type == runtime.ConsoleAPICalledTypeError || ev.Type == runtime.ConsoleAPICalledTypeWarning {
			var words []string
			for _, a := range ev.Args {
				words = append(words, string(a.Value)+a.Description)
			}
			t.problems = append(t.problems, "console: "+strings.Join(words, " "))
		}
	case *log.EventEntryAdded: // violations of the policy for content, too
		if ev.Entry.Level == log.EntryLevelError || ev.Entry.Level == log.EntryLevelWarning {
			t.problems = append(t.problems, fmt.Sprintf("%s: %s %s", ev.Entry.Source, ev.Entry.Text, ev.Entry.URL))
		}
	case *network.EventRequestWillBeSent:
		if u, err := url.Parse(ev.Request.URL); err == nil && u.Scheme != "data" {
			t.hosts[u.Host] = true
			t.ids[ev.RequestID] = u.Path
		}
	case *network.EventLoadingFinished:
		if p, ok := t.ids[ev.RequestID]; ok {
			t.loaded[p] = int64(ev.EncodedDataLength)
		}
	}
}

func (t *Tab) do(steps ...chromedp.Action[chromedp.Void]) {
	t.t.Helper()
	ctx, stop := context.WithTimeout(t.ctx, patience)
	defer stop()
	if err := chromedp.Do(ctx, steps...); err != nil {
		t.t.Fatalf("browser: %v\n%s", err, strings.Join(t.Problems(), "\n"))
	}
}

func call[P, R any](t *Tab, cmd cdp.Command[P, R], params P) {
	t.t.Helper()
	ctx, stop := context.WithTimeout(t.ctx, patience)
	defer stop()
	if _, err := chromedp.Call(ctx, cmd, params); err != nil {
		t.t.Fatalf("browser: %v", err)
	}
}

// Go loads a page, whole.
func (t *Tab) Go(address string) { t.t.Helper(); t.do(chromedp.Navigate(address)) }

// Size gives the page so many pixels.
func (t *Tab) Size(width, height int64) {
	t.t.Helper()
	t.do(chromedp.EmulateViewport(width, height))
}

// Scheme is light or dark.
func (t *Tab) Scheme(scheme string) {
	t.t.Helper()
	call(t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
}

// Script turns JavaScript on or off, from the next page on.
func (t *Tab) Script(on bool) {
	t.t.Helper()
	call(t, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !on})
}

// Init has a script run in every page to come, before its own.
func (t *Tab) Init(source string) {
	t.t.Helper()
	call(t, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: source})
}

// Eval gives the value of an expression; a promise is waited for.
func Eval[T any](t *Tab, expression string) T {
	t.t.Helper()
	ctx, stop := context.WithTimeout(t.ctx, patience)
	defer stop()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		t.t.Fatalf("browser: %s: %v\n%s", expression, err, strings.Join(t.Problems(), "\n"))
	}
	return v
}

// Text is the text of the first element that a selector finds, as it is shown;
// "" where there is none.
func (t *Tab) Text(selector string) string {
	t.t.Helper()
	return Eval[string](t, fmt.Sprintf("(document.querySelector(%q)?.innerText ?? '')", selector))
}

// Wait waits until an expression is true of a page that is loaded whole, over pages
// that are left meanwhile: what is clicked on while the rest is still to come may
// have moved by the time that the click arrives.
func (t *Tab) Wait(expression string) {
	t.t.Helper()
	ctx, stop := context.WithTimeout(t.ctx, patience)
	defer stop()
	for {
		ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("document.readyState == 'complete' && !!("+expression+")"))
		if err == nil && ok {
			return
		}
		if ctx.Err() != nil {
			t.t.Fatalf("it does not come to be that %s (%v); the page says:\n%.4000s\n%s", expression, err, t.Text("body"), strings.Join(t.Problems(), "\n"))
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Key types keys.
func (t *Tab) Key(keys string) { t.t.Helper(); t.do(chromedp.KeyEvent(keys)) }

// Click clicks on what a selector finds.
func (t *Tab) Click(selector string) { t.t.Helper(); t.do(chromedp.Click(chromedp.CSS(selector))) }

// Shot keeps a picture of the whole page where QUARRY_SHOTS says so.
func (t *Tab) Shot(name string) {
	t.t.Helper()
	dir := os.Getenv("QUARRY_SHOTS")
	if dir == "" {
		return
	}
	ctx, stop := context.WithTimeout(t.ctx, patience)
	defer stop()
	data, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err == nil {
		if err = os.MkdirAll(dir, 0o755); err == nil {
			err = os.WriteFile(filepath.Join(dir, name+".png"), data, 0o644)
		}
	}
	if err != nil {
		t.t.Fatalf("screenshot %s: %v", name, err)
	}
}

// Loaded tells how many bytes came for each path, headers included.
func (t *Tab) Loaded() map[string]int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]int64{}
	for p, n := range t.loaded {
		out[p] = n
	}
	return out
}

// Problems is what the browser has complained of until now.
func (t *Tab) Problems() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.problems)
}

// Check fails the test when the browser complained, or asked another host than
// the one of the page for anything.
func (t *Tab) Check() {
	t.t.Helper()
	own := Eval[string](t, "location.host") // what the page has said by now comes before the answer
	for _, p := range t.Problems() {
		t.t.Errorf("browser: %s", p)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for h := range t.hosts {
		if h != own {
			t.t.Errorf("the page asks %q for something", h)
		}
	}
}

//go:embed audit.js
var audit string

// Audit fails the test for what keeps people from using the page: text that
// cannot be told from its background (WCAG 2.1, 1.4.3), controls and pictures
// without a name, headings out of order, tables without heads, ids used twice,
// and a page wider than its window.
func (t *Tab) Audit() {
	t.t.Helper()
	for _, p := range Eval[[]string](t, audit) {
		t.t.Errorf("%s: %s", Eval[string](t, "location.pathname"), p)
	}
}
