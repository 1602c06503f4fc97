package pages

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestLine(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                 "plain",
		"a\tb":                  "a\tb",
		"é 漢":                   "é 漢",
		`<b onclick="x">&'`:     `&lt;b onclick=&#34;x&#34;&gt;&amp;&#39;`,
		"crlf\r":                "crlf",
		"10%\r50%\r\r99%\r":     "10%&#10;50%&#10;99%",
		"\x1b[31mred\x1b[0m x":  `<span class="f1">red</span> x`,
		"\x1b[mx\x1b[;;my":      "xy",
		"\x1b[1;4;3;9mx":        `<span class="sb si ss">x</span>`,
		"\x1b[2mfaint\x1b[22mx": `<span class="f0">faint</span>x`,
		"\x1b[91;102mx":         `<span class="f1 b2">x</span>`,
		"\x1b[37mx\x1b[30my":    "xy",
		"\x1b[7;31mx\x1b[27my":  `<span class="sv">x</span><span class="f1">y</span>`,
		"\x1b[38;5;196mx\x1b[38;5;46my\x1b[38;5;244mz":        `<span class="f1">x</span><span class="f2">y</span>z`,
		"\x1b[38;2;0;0;250mx\x1b[48:2:200:200:0my":            `<span class="f4">x</span><span class="f4 b3">y</span>`,
		"\x1b[38;5mx\x1b[38mx\x1b[38;2;1mx":                   "xxx",
		"\x1b[99999999999999999999mx":                         "x",
		"\x1b[31mx\x1b[39my":                                  `<span class="f1">x</span>y`,
		"\x1b[01m\x1b[Kbold\x1b[m\x1b[K":                      `<span class="sb">bold</span>`,
		"\x1b]8;;https://evil.example/\x1b\\text\x1b]8;;\x07": "text",
		"\x1b[2Jx":             `<span class="odd">\x1b</span>[2Jx`,
		"\x1b[31":              `<span class="odd">\x1b</span>[31`,
		"\x1b":                 `<span class="odd">\x1b</span>`,
		"\x1b]0;title\x07":     `<span class="odd">\x1b</span>]0;title<span class="odd">\x07</span>`,
		"a\x00b\x7f":           `a<span class="odd">\x00</span>b<span class="odd">\x7f</span>`,
		"bad \xff\xc3":         `bad <span class="odd">\xff</span><span class="odd">\xc3</span>`,
		"\u009b31mx":           `<span class="odd">\x9b</span>31mx`,
		"a\u202eb\u2066\ufeff": `a<span class="odd">\u202e</span>b<span class="odd">\u2066</span><span class="odd">\ufeff</span>`,
		"\x1b[31m<\x1b[0m":     `<span class="f1">&lt;</span>`,
	} {
		if got := string(appendLine(nil, []byte(in), 0)); got != want {
			t.Errorf("%q becomes\n%s, want\n%s", in, got, want)
		}
	}
	long := strings.Repeat("é", maxLine)
	got := string(appendLine(nil, []byte(long), 5))
	if want := strings.Repeat("é", maxLine/2) + ` <span class="odd">… ` + strconv.Itoa(maxLine+5) + ` more bytes</span>`; got != want {
		t.Errorf("a long line becomes %d bytes that end in %.60q", len(got), got[max(0, len(got)-60):])
	}
}

// FuzzLine: whatever stands in a log, what comes of it is well formed, has no
// element and no class but ours, and nothing in it that is no text.
func FuzzLine(f *testing.F) {
	for _, s := range []string{hostile, "\x1b[1;31;42;7mx\x1b[0m", "\x1b[38;5;1;48;2;1;2;3mx", "\x1b]8;;x\x1b\\y", "a\rb\r\r", "\xff\xfe\u202e", "\x1b[", "==> make: make"} {
		f.Add([]byte(s))
	}
	class := regexp.MustCompile(`^(odd|(f[0-6]|b[1-7]|s[bisuv]|ss)( (f[0-6]|b[1-7]|s[bisuv]|ss))*)$`)
	f.Fuzz(func(t *testing.T, line []byte) {
		if bytes.IndexByte(line, '\n') >= 0 {
			return
		}
		row := appendRow(nil, 7, line, 0)
		d := xml.NewDecoder(bytes.NewReader(row))
		d.Strict = true
		depth := 0
		for {
			tok, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%q becomes %q: %v", line, row, err)
			}
			switch tok := tok.(type) {
			case xml.StartElement:
				depth++
				switch {
				case depth == 1 && tok.Name.Local == "div" || depth == 2 && tok.Name.Local == "a":
				case tok.Name.Local != "span" || len(tok.Attr) != 1 || tok.Attr[0].Name.Local != "class" || !class.MatchString(tok.Attr[0].Value):
					t.Fatalf("%q becomes %q, with %v", line, row, tok)
				}
			case xml.EndElement:
				depth--
			case xml.CharData:
				for _, r := range string(tok) {
					if r != '\t' && r != '\n' && unicode.IsControl(r) || turns(r) {
						t.Fatalf("%q becomes %q, with %U", line, row, r)
					}
				}
			default:
				t.Fatalf("%q becomes %q, with %T", line, row, tok)
			}
		}
		if !utf8.Valid(row) || bytes.ContainsAny(row, "\n\r") {
			t.Fatalf("%q becomes %q", line, row)
		}
		if bare := appendBare(nil, line); len(bare) > len(line) {
			t.Fatalf("%q grows to %q", line, bare)
		}
	})
}

// TestContrast: each text that the style sheet colours can be told from each
// ground that it may stand on, light and dark (WCAG 2.1, 1.4.3: 4.5 to 1).
func TestContrast(t *testing.T) {
	css, err := staticFiles.ReadFile("static/style.css")
	if err != nil {
		t.Fatal(err)
	}
	light, rest, _ := strings.Cut(string(css), "prefers-color-scheme: dark")
	dark, _, _ := strings.Cut(rest, "\n* {")
	for name, block := range map[string]string{"light": light, "dark": dark} {
		vars := map[string][3]float64{}
		for _, m := range regexp.MustCompile(`--([a-z-]+): #([0-9a-f]{6});`).FindAllStringSubmatch(block, -1) {
			n, err := strconv.ParseUint(m[2], 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			vars[m[1]] = [3]float64{float64(n >> 16), float64(n >> 8 & 255), float64(n & 255)}
		}
		if len(vars) < 20 {
			t.Fatalf("%s has only %d colours", name, len(vars))
		}
		lum := func(c [3]float64) float64 {
			var l [3]float64
			for i, v := range c {
				if v /= 255; v <= 0.04045 {
					l[i] = v / 12.92
				} else {
					l[i] = math.Pow((v+0.055)/1.055, 2.4)
				}
			}
			return 0.2126*l[0] + 0.7152*l[1] + 0.0722*l[2]
		}
		for _, fg := range []string{"text", "quiet", "link", "strong", "red", "green", "yellow", "blue", "magenta", "cyan"} {
			for bg := range vars {
				if bg != "bg" && bg != "panel" && !strings.HasSuffix(bg, "-t") {
					continue
				}
				a, b := lum(vars[fg]), lum(vars[bg])
				if ratio := (max(a, b) + 0.05) / (min(a, b) + 0.05); ratio < 4.5 {
					t.Errorf("%s: %s on %s is %.2f to 1", name, fg, bg, ratio)
				}
			}
		}
	}
}
