package main

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/spf13/pflag"
)

// page reads a page of the documentation.
func page(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../doc", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	codeSpan = regexp.MustCompile("`([^`\n]+)`")
	capitals = regexp.MustCompile(`[A-Z]+`)
	pageLink = regexp.MustCompile(`\]\(([a-z]+\.md)`)
)

// The table of verbs in doc/control.md names each verb with its arguments, and
// the page each of its flags.
func TestVerbsAreDocumented(t *testing.T) {
	text := page(t, "control.md")
	verbs := control.Verbs(&control.Farm{})
	name := func(call string) string {
		if v, _ := verbs.Find(strings.Fields(call)...); v != nil {
			return v.Name
		}
		return ""
	}
	rows := map[string]string{} // what the first cells say in code, by verb
	_, table, _ := strings.Cut(text, "\n| verb |")
	table, _, _ = strings.Cut(table, "\n\n")
	for line := range strings.Lines(table) {
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " | ")
		last := ""
		for _, m := range codeSpan.FindAllStringSubmatch(cell, -1) {
			if n := name(m[1]); n != "" {
				last = n
			} else if !strings.HasPrefix(m[1], "-") && !strings.HasPrefix(m[1], "[-") { // flags of the one before
				t.Errorf("the table of verbs in doc/control.md has %q, and there is no such verb", m[1])
			}
			rows[last] += " " + m[1] + " "
		}
	}
	said := map[string]string{} // all that the page says of a verb in code
	for _, m := range codeSpan.FindAllStringSubmatch(text, -1) {
		said[name(m[1])] += " " + m[1] + " "
	}
	for _, v := range verbs {
		if v.Hidden {
			if said[v.Name] == "" && !strings.Contains(text, `"`+v.Name+`"`) {
				t.Errorf("doc/control.md does not tell of %s, which hooks call", v.Name)
			}
			continue
		}
		row := rows[v.Name]
		if row == "" {
			t.Errorf("the table of verbs in doc/control.md lacks %s", v.Usage())
			continue
		}
		for _, word := range capitals.FindAllString(v.Args, -1) {
			if !strings.Contains(row, word) {
				t.Errorf("%s: the table in doc/control.md does not show %s, only %q", v.Usage(), word, row)
			}
		}
		all := row + " " + said[v.Name]
		v.NewFlags().VisitAll(func(f *pflag.Flag) {
			long := regexp.MustCompile(`--` + regexp.QuoteMeta(f.Name) + `\b`)
			short := regexp.MustCompile(`(^|[ \[])-` + regexp.QuoteMeta(f.Shorthand) + `\b`)
			if f.Name == "json" || long.MatchString(all) || f.Shorthand != "" && short.MatchString(all) {
				return // each verb of the table has --json
			}
			t.Errorf("doc/control.md does not tell of %s --%s (%s)", v.Name, f.Name, f.Usage)
		})
		// What help shows has to be a call of this verb.
		for example := range strings.Lines(v.Example) {
			if got := name(strings.TrimSpace(example)); got != v.Name {
				t.Errorf("help %s has the example %q, which is one of %q", v.Name, example, got)
			}
		}
		for line := range strings.Lines(v.Long) {
			if n := utf8.RuneCountInString(strings.TrimSpace(line)); n > 80 {
				t.Errorf("help %s has a line of %d columns: %q", v.Name, n, line)
			}
		}
		if v.Short == "" || v.Example == "" {
			t.Errorf("help %s lacks a line on what it does, or an example", v.Name)
		}
	}
}

// Each key of the configuration stands in doc/operating.md, or in a table of a
// page that it links to under the name of its section.
func TestConfigurationIsDocumented(t *testing.T) {
	text := page(t, "operating.md")
	var tables []string // of other pages, with what they are headed by
	seen := map[string]bool{}
	for _, m := range pageLink.FindAllStringSubmatch(text, -1) {
		if !seen[m[1]] {
			seen[m[1]] = true
			for _, block := range strings.Split(page(t, m[1]), "\n\n") {
				if head, _, _ := strings.Cut(block, "\n"); strings.HasPrefix(head, "|") {
					tables = append(tables, block)
				}
			}
		}
	}
	told := func(key string) bool {
		if strings.Contains(text, "`"+key+"`") {
			return true
		}
		section, last := key[:max(0, strings.LastIndex(key, "."))], key[strings.LastIndex(key, ".")+1:]
		for _, table := range tables {
			head, rows, _ := strings.Cut(table, "\n")
			if strings.Contains(table, "| `"+key+"`") || strings.Contains(table, ", `"+key+"`") ||
				strings.Contains(head, "["+section+"]") && strings.Contains(rows, "`"+last+"`") {
				return true
			}
		}
		return false
	}
	keys := configKeys(reflect.TypeFor[config.Config](), "")
	if len(keys) < 60 {
		t.Fatalf("only %d keys are found", len(keys))
	}
	for _, key := range keys {
		if !told(key) {
			t.Errorf("neither doc/operating.md nor a table of a page that it links to tells of %s", key)
		}
	}
}

var (
	docLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	notSlug = regexp.MustCompile("[^a-z0-9 _-]")
)

// Links between the pages lead somewhere: to a file there is, and to a heading
// that stands in it.
func TestLinksOfTheDocumentation(t *testing.T) {
	root := "../../"
	pages, err := filepath.Glob(root + "doc/*.md")
	if err != nil || len(pages) < 10 {
		t.Fatalf("%d pages: %v", len(pages), err)
	}
	read := func(file string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Error(err)
		}
		return string(text)
	}
	headings := func(file string) map[string]bool {
		all := map[string]bool{}
		for line := range strings.Lines(read(file)) {
			if strings.HasPrefix(line, "#") {
				slug := notSlug.ReplaceAllString(strings.ToLower(strings.TrimSpace(strings.TrimLeft(line, "#"))), "")
				all[strings.ReplaceAll(slug, " ", "-")] = true
			}
		}
		return all
	}
	for _, from := range append(pages, root+"README.md", root+"CHANGELOG.md") {
		for _, m := range docLink.FindAllStringSubmatch(read(from), -1) {
			file, heading, _ := strings.Cut(m[1], "#")
			if strings.Contains(file, "://") {
				continue
			}
			to := from
			if file != "" {
				to = filepath.Join(filepath.Dir(from), file)
			}
			if heading != "" {
				if !headings(to)[heading] {
					t.Errorf("%s links to %s, and there is no such heading", filepath.Base(from), m[1])
				}
			} else if _, err := os.Stat(to); err != nil {
				t.Errorf("%s links to %s: %v", filepath.Base(from), m[1], err)
			}
		}
	}
}

// configKeys lists the keys of a type of the configuration, as dotted names.
func configKeys(typ reflect.Type, prefix string) (keys []string) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		tag := f.Tag.Get("toml")
		if tag == "" || tag == "-" {
			continue
		}
		key, of := prefix+tag, f.Type
		switch {
		case of.Kind() == reflect.Map && of.Elem().Kind() == reflect.Pointer:
			key, of = key+".NAME", of.Elem().Elem()
		case of.Kind() == reflect.Slice && of.Elem().Kind() == reflect.Struct:
			of = of.Elem()
		}
		if of.Kind() == reflect.Struct {
			keys = append(keys, configKeys(of, key+".")...)
		} else {
			keys = append(keys, key)
		}
	}
	return keys
}
