package pages

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/livelog"
)

func readAll(t testing.TB, resp *http.Response) string {
	t.Helper()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestPages: every page answers, and says what it is for.
func TestPages(t *testing.T) {
	w := newWorld(t, 1)
	w.does(func(_ context.Context, b quarry.Build, log *livelog.Log, step func(string)) (*quarry.Failure, error) {
		step(quarry.StepMake)
		io.WriteString(log, "==> make: make\nhello "+b.Package+"\n")
		return nil, nil
	})
	b := w.end(w.push("zlib", "1.3.1")[0].Number)
	for path, want := range map[string]string{
		"/":                             "Nothing is being built",
		"/queue":                        "Nothing waits",
		"/builders":                     "testing/aarch64",
		buildURL(b.Number):              "hello zlib",
		buildURL(b.Number) + "?q=HELLO": `class="l hit"`,
	} {
		resp, text := w.get(path)
		if resp.StatusCode != 200 || !strings.Contains(text, want) {
			t.Errorf("%s: %s, without %q in\n%s", path, resp.Status, want, text)
		}
	}
	for path, status := range map[string]int{"/nowhere": 404, "/builds/0": 404, "/builds/99": 404, "/builds/x": 404, "/builds/01": 404, "/builds/1?line=0": 400,
		"/builds/1?line=x": 400, "/builds/1?from=99": 404, "/builds/9/log": 404, "/builds/9/live": 404, "/queue?page=9": 404, "/queue?page=-1": 400, "/static/x.css": 404,
		"/builds/1?q=" + strings.Repeat("x", 300): 400} {
		if resp, text := w.get(path); resp.StatusCode != status || !strings.Contains(text, "<main") {
			t.Errorf("%s: %s, want %d:\n%.400s", path, resp.Status, status, text)
		}
	}
}
