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

// TestQueue: every build that waits is there, in the order in which it is expected
// to begin, with the reason; the pages of thousands are short.
func TestQueue(t *testing.T) {
	w := newWorld(t, 1)
	d := tell(w)
	running := w.push("gcc", "13.2")[0]
	<-d.began
	w.push("git", "2.40", "gcc-13.2")
	var list []quarry.Release
	w.mu.Lock()
	for i := range 250 {
		list = append(list, quarry.Release{Package: fmt.Sprintf("lib%03d", i), Version: "1.0", Channel: "testing", Commit: fmt.Sprintf("%040x", 1000+i), Archs: []string{"x86_64", "aarch64"}})
	}
	w.releases = append(w.releases, list...)
	w.mu.Unlock()
	if err := w.q.Replan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.q.Pause(t.Context(), "alice", hostile); err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`<tr id="b(\d+)">`)
	var text string
	w.until("the queue has all", func() bool {
		_, text = w.get("/queue")
		return strings.Contains(text, "1 to 100 of 502") && strings.Contains(text, "502 builds with")
	})
	seen := map[string]bool{}
	for page := 1; page <= 6; page++ {
		_, text := w.get(fmt.Sprintf("/queue?page=%d", page))
		for i, m := range row.FindAllStringSubmatch(text, -1) {
			if page == 1 && i == 0 && m[1] != fmt.Sprint(running.Number) {
				t.Errorf("build %s is first, and %d runs", m[1], running.Number)
			}
			if seen[m[1]] {
				t.Errorf("build %s is there twice", m[1])
			}
			seen[m[1]] = true
		}
	}
	if len(seen) != 502 {
		t.Errorf("%d builds are shown, of 502", len(seen))
	}
	if strings.Contains(text, "<script>document") || !strings.Contains(text, "Paused by alice") {
		t.Error("the pause is not told, or is markup")
	}
	_, text = w.get("/queue?env=testing%2Faarch64")
	if n := len(row.FindAllString(text, -1)); n != 100 || !strings.Contains(text, "of 250") || strings.Contains(text, ">gcc<") {
		t.Errorf("an environment has %d rows", n)
	}
	w.until("the one that waits says for what", func() bool {
		for page := 1; page <= 6; page++ {
			if _, text := w.get(fmt.Sprintf("/queue?env=testing%%2Fx86_64&page=%d", page)); strings.Contains(text, "waits for gcc-13.2") {
				return true
			}
		}
		return false
	})
	if _, text = w.get("/"); !strings.Contains(text, "Paused by alice") || strings.Contains(text, "<script>document") {
		t.Error("the first page does not tell the pause, or it is markup")
	}
	d.say <- "END"
	w.end(running.Number)
}

// TestForgotten: a build that the queue has forgotten is shown from its record.
func TestForgotten(t *testing.T) {
	w := newWorld(t, 1)
	w.past = map[int64]quarry.Build{4711: {Number: 4711, Arch: "x86_64", State: quarry.Failed, Attempt: 1, Release: quarry.Release{Package: "old", Version: hostile, Channel: "testing"}}}
	resp, text := w.get("/builds/4711")
	if resp.StatusCode != 200 || !strings.Contains(text, ">old<") || !strings.Contains(text, "its log was old and is gone") || strings.Contains(text, "<script>document") {
		t.Errorf("%s\n%s", resp.Status, text)
	}
}
