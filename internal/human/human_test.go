package human

import (
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1 << 20: "1.0 MiB",
		1<<20 - 1: "1.0 MiB", 5 << 30: "5.0 GiB", 1536: "1.5 KiB"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 µs", 250 * time.Microsecond: "250 µs", 12 * time.Millisecond: "12 ms", 999900 * time.Microsecond: "1.0 s",
		4200 * time.Millisecond: "4.2 s", 41 * time.Second: "41 s", 59700 * time.Millisecond: "1 m 00 s",
		185 * time.Second: "3 m 05 s", 130 * time.Minute: "2 h 10 m", 76 * time.Hour: "3 d 4 h", -time.Second: "-1.0 s",
	} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%d) = %q, want %q", d, got, want)
		}
	}
}

func TestSafe(t *testing.T) {
	for in, want := range map[string]string{
		"plain é": "plain é", "\x1b[31mred": `\x1b[31mred`, "a\xffb": `a\xffb`, "\u009b2J": `\x9b2J`, "two\nlines": `two\x0alines`,
	} {
		if got := Safe(in, false); got != want {
			t.Errorf("Safe(%q) = %q, want %q", in, got, want)
		}
	}
	if got := Safe("two\nlines\r", true); got != "two\nlines\\x0d" {
		t.Errorf("lines became %q", got)
	}
}

func TestTable(t *testing.T) {
	tb := Table{Head: []string{"A", "LONG"}}
	tb.Row("wider", 1)
	tb.Row(Cell("é", Red), "x\x1b[2J")
	var b strings.Builder
	if _, err := tb.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	if want := "A      LONG\nwider  1\né      x\\x1b[2J\n"; b.String() != want {
		t.Errorf("table is\n%q, want\n%q", b.String(), want)
	}
}

func TestTableRight(t *testing.T) {
	tb := Table{Head: []string{"A", "NUMBER", "Z"}, Right: []int{1}}
	tb.Row("x", 1, "z")
	tb.Row("x", "")
	tb.Row("x", 12)
	var b strings.Builder
	if _, err := tb.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	if want := "A  NUMBER  Z\nx       1  z\nx\nx      12\n"; b.String() != want {
		t.Errorf("table is\n%q, want\n%q", b.String(), want)
	}
}

func TestAgo(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		at   time.Time
		want string
	}{{time.Time{}, "-"}, {now, "just now"}, {now.Add(time.Hour), "just now"}, {now.Add(-90 * time.Second), "1 m 30 s ago"}} {
		if got := Ago(tt.at, now); got != tt.want {
			t.Errorf("Ago(%v) = %q, want %q", tt.at, got, tt.want)
		}
	}
}

// What is said last stands below its row where beside it there would be too little
// room to say it.
func TestTableBelow(t *testing.T) {
	table := Table{Head: []string{"BUILD", "PACKAGE", "STATE", "WHY"}, Width: 40, Color: true}
	table.Row(1, "a-package-with-a-name", Cell("failed", Red), Cell("make ended with status 2: a.c:1:10: fatal error: b.h: No such file", Red))
	table.Row(2, "zlib", Cell("succeeded", Green), "")
	var b strings.Builder
	if _, err := table.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	want := "BUILD  PACKAGE                STATE\n" +
		"1      a-package-with-a-name  failed\n" +
		"    make ended with status 2: a.c:1:10:…\n" +
		"2      zlib                   succeeded\n"
	if got := escapes.ReplaceAllString(b.String(), ""); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
	if !strings.Contains(b.String(), Paint("make ended with status 2: a.c:1:10:…", Red, true)) {
		t.Errorf("the colour is lost: %q", b.String())
	}
}

var escapes = regexp.MustCompile("\x1b\\[[0-9;]*m")

// TestTableWidth cuts what is said last where a terminal has no room for it.
func TestTableWidth(t *testing.T) {
	show := func(width int) string {
		table := Table{Head: []string{"BUILD", "WHY"}, Width: width, Color: true}
		table.Row(1, Cell("it did not compile: ünder no circumstances", Red))
		table.Row(22, "short")
		var b strings.Builder
		table.WriteTo(&b)
		return strings.NewReplacer("\x1b[2m", "", "\x1b[31m", "", "\x1b[0m", "").Replace(b.String())
	}
	for width, want := range map[int]string{
		0:   "1      it did not compile: ünder no circumstances\n",
		200: "1      it did not compile: ünder no circumstances\n",
		40:  "1      it did not compile: ünder no cir…\n",
		10:  "1      it did not compile:…\n",
	} {
		if got := show(width); got != "BUILD  WHY\n"+want+"22     short\n" {
			t.Errorf("%d columns: %q", width, got)
		}
	}
}
