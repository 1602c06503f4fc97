package pages

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/livelog"
)

// logged is a world with a build that has logged something.
func logged(t testing.TB, write func(w io.Writer)) (*world, quarry.Build) {
	w := newWorld(t, 1)
	w.does(func(_ context.Context, _ quarry.Build, log *livelog.Log, _ func(string)) (*quarry.Failure, error) {
		write(log)
		return nil, nil
	})
	return w, w.end(w.push("zlib", "1.3.1")[0].Number)
}

var lineID = regexp.MustCompile(`id="L(\d+)"`)

// shown is the first and the last line that a page shows, and how many.
func shown(text string) (first, last string, n int) {
	ids := lineID.FindAllStringSubmatch(text, -1)
	if len(ids) == 0 {
		return "", "", 0
	}
	return ids[0][1], ids[len(ids)-1][1], len(ids)
}

// TestWindow: a long log is shown in pages, and every line can be linked to.
func TestWindow(t *testing.T) {
	w, b := logged(t, func(w io.Writer) {
		for i := range 12_345 {
			fmt.Fprintf(w, "line %d\n", i+1)
		}
		fmt.Fprint(w, "no end")
	})
	at := buildURL(b.Number)
	for _, tt := range []struct{ query, first, last string }{
		{"", "11847", "12346"}, {"?tail=1", "11847", "12346"}, {"?from=1", "1", "500"}, {"?from=501", "501", "1000"}, {"?from=12346", "12346", "12346"},
		{"?line=1", "1", "500"}, {"?line=200", "1", "500"}, {"?line=6789", "6501", "7000"}, {"?line=12346", "12101", "12346"},
	} {
		resp, text := w.get(at + tt.query)
		if first, last, _ := shown(text); resp.StatusCode != 200 || first != tt.first || last != tt.last {
			t.Errorf("%s: %s, lines %s to %s, want %s to %s", tt.query, resp.Status, first, last, tt.first, tt.last)
		}
	}
	_, text := w.get(at + "?from=501")
	for _, link := range []string{at + `?from=1#logs"`, at + `?from=1001#logs"`} {
		if !strings.Contains(text, link) {
			t.Errorf("there is no link %s", link)
		}
	}
	// Nobody makes a page that does not end.
	if resp, _ := w.get(at + "?line=99999999999999999999"); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a line beyond numbers: %s", resp.Status)
	}
	if resp, _ := w.get(at + "?line=9223372036854775807"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("a line beyond the end: %s", resp.Status)
	}
}

// TestSearch: what is looked for is found whatever its colours and letters, with
// what is around it, and is text.
func TestSearch(t *testing.T) {
	w, b := logged(t, func(w io.Writer) {
		for i := range 1000 {
			switch i + 1 {
			case 10, 12, 500:
				fmt.Fprint(w, "\x1b[31mEr\x1b[1mror\x1b[0m: here\n")
			case 999:
				fmt.Fprintln(w, hostile)
			default:
				fmt.Fprintf(w, "line %d\n", i+1)
			}
		}
	})
	at := buildURL(b.Number)
	_, text := w.get(at + "?q=error:")
	for _, want := range []string{"3 lines of 1\u202f000 have it", `?line=10#L10">10</a><span class="f1">Er</span><span class="f1 sb">ror</span>: here`, ">line 8<", ">line 14<", ">line 498<"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in what is found", want)
		}
	}
	if strings.Contains(text, ">line 15<") || strings.Count(text, `class="hits"`) != 2 {
		t.Errorf("what is found has %d groups", strings.Count(text, `class="hits"`))
	}
	if _, text = w.get(at + "?q=%3C%2Fscript%3E%22%27"); strings.Contains(text, `</script>"'`) || !strings.Contains(text, "None of") {
		t.Error("what is looked for becomes markup")
	}
	if _, text = w.get(at + "?q=%3Cimg"); !strings.Contains(text, "1 line of") || strings.Contains(text, "<img") {
		t.Error("what is found becomes markup")
	}
	if _, text = w.get(at + "?q=line"); !strings.Contains(text, "996 lines") || !strings.Contains(text, "the first 200") {
		t.Error("what is found has no bound")
	}
}

// TestRawLog: programs get a log as it was written, whole or in part, and are told
// when they have it.
func TestRawLog(t *testing.T) {
	var whole strings.Builder
	w, b := logged(t, func(w io.Writer) {
		for i := range 20_000 {
			fmt.Fprintf(io.MultiWriter(w, &whole), "%d %s\n", i, "\x1b[31m<script>\x00\xff")
		}
	})
	at := buildURL(b.Number) + "/log"
	resp, text := w.get(at)
	if resp.StatusCode != 200 || text != whole.String() {
		t.Fatalf("%s, %d bytes of %d", resp.Status, len(text), whole.Len())
	}
	for name, want := range map[string]string{"Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"} {
		if got := resp.Header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if csp := resp.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "sandbox") {
		t.Errorf("policy is %q", csp)
	}
	tag := resp.Header.Get("ETag")
	if resp, _ := w.get(at, "If-None-Match", tag); resp.StatusCode != http.StatusNotModified {
		t.Errorf("the same again: %s", resp.Status)
	}
	resp, text = w.get(at, "Range", "bytes=1000-1999")
	if resp.StatusCode != http.StatusPartialContent || text != whole.String()[1000:2000] {
		t.Errorf("a part: %s, %d bytes", resp.Status, len(text))
	}
	resp, text = w.get(at, "Range", "bytes=-10")
	if resp.StatusCode != http.StatusPartialContent || text != whole.String()[whole.Len()-10:] {
		t.Errorf("the end: %s, %q", resp.Status, text)
	}
	// A log is read through from its start for each part that lies before the last.
	resp, text = w.get(at, "Range", "bytes=2000-2001,1000-1001,0-0")
	if resp.StatusCode != http.StatusOK || text != whole.String() {
		t.Errorf("several parts: %s, %d bytes", resp.Status, len(text))
	}
	if resp, _ = w.get(at, "Range", "bytes=99999999-"); resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("beyond the end: %s", resp.Status)
	}
	resp, text = w.get(at, "Accept-Encoding", "gzip")
	if resp.Header.Get("Content-Encoding") != "gzip" || len(text) > whole.Len()/2 {
		t.Errorf("compressed: %q, %d bytes of %d", resp.Header.Get("Content-Encoding"), len(text), whole.Len())
	}
}

// TestSame: a page that has not changed is not sent again; static files never are.
func TestSame(t *testing.T) {
	w, b := logged(t, func(w io.Writer) { fmt.Fprintln(w, "hello") })
	for _, path := range []string{"/queue", buildURL(b.Number)} {
		// A page says how long ago things were: between two looks that may change,
		// but not each time.
		w.until(path+" is the same twice", func() bool {
			resp, _ := w.get(path)
			tag := resp.Header.Get("ETag")
			resp, text := w.get(path, "If-None-Match", tag)
			return tag != "" && resp.StatusCode == http.StatusNotModified && text == ""
		})
		if resp, _ := w.get(path, "If-None-Match", `"other"`); resp.StatusCode != 200 {
			t.Errorf("%s with another: %s", path, resp.Status)
		}
	}
	_, text := w.get("/")
	for _, m := range regexp.MustCompile(`"(/static/[^"]+)"`).FindAllStringSubmatch(text, -1) {
		resp, _ := w.get(m[1], "Accept-Encoding", "gzip")
		if resp.StatusCode != 200 || !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s: %s, kept %q", m[1], resp.Status, resp.Header.Get("Cache-Control"))
		}
	}
}
