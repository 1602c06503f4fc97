package results

import (
	"errors"
	"math"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/Morphux/quarry"
)

func marshal(t testing.TB, o *quarry.Outcome) []byte {
	t.Helper()
	rec, err := NewRecord(o, 12.5)
	if err != nil {
		t.Fatal(err)
	}
	data, err := rec.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestRecordRoundTrip(t *testing.T) {
	for _, o := range []*quarry.Outcome{
		sample("zlib", "1.3.1", "x86_64", 17), failing("zlib", "1.3.1", "x86_64", 18),
		{Build: sample("a", "1", "noarch", 1).Build, Status: quarry.Succeeded}, // everything else absent
	} {
		want, err := NewRecord(o, 12.5)
		if err != nil {
			t.Fatal(err)
		}
		data := marshal(t, o)
		got, err := Parse(data)
		if err != nil {
			t.Fatalf("%v\n%s", err, data)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("round trip changes the record (-want +got):\n%s", diff)
		}
		again, err := got.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(data), string(again)); diff != "" {
			t.Errorf("the second writing differs (-first +second):\n%s", diff)
		}
	}
}

// TestRecordHasEveryFact fills every field of an outcome, wherever it is, and
// looks for each in the record, so that a field added to the nouns is not
// forgotten here.
func TestRecordHasEveryFact(t *testing.T) {
	// These say nothing about the package, or stand elsewhere.
	elsewhere := map[string]string{
		"Outcome.Build.Repo":        "a path on the farm",
		"Outcome.Build.Archs":       "each has a record of its own",
		"Outcome.Build.Needs":       "the same as Info.Needed",
		"Outcome.Build.Provides":    "the same as Info.Provides",
		"Outcome.Build.Traits":      "for this arch, in Info.Needed",
		"Outcome.Build.Crossed":     "the same, for cross builds",
		"Outcome.Build.Group":       "in the commit that it lands with",
		"Outcome.Build.Stage":       "the same",
		"Outcome.Build.State":       "the queue's; the record has Status",
		"Outcome.Build.Reason":      "the queue's; the record has Failure",
		"Outcome.Build.Step":        "the queue's",
		"Outcome.Build.Created":     "the queue's",
		"Outcome.Build.Started":     "the same as Started",
		"Outcome.Build.Ended":       "the same as Ended",
		"Outcome.Build.Record":      "the commit itself",
		"Outcome.Build.Release":     "taken apart",
		"Outcome.Failure.Status":    "a small number",
		"Outcome.Steps.Status":      "a small number",
		"Outcome.Facts.Files.Major": "a small number", "Outcome.Facts.Files.Minor": "a small number",
		"Outcome.Facts.Files.ELF.Static": "a truth", "Outcome.Facts.Files.ELF.Stripped": "a truth",
		"Outcome.Facts.Files.ELF.PIE": "a truth", "Outcome.Facts.Files.ELF.NX": "a truth",
		"Outcome.Facts.Files.Mode": "octal", "Outcome.Build.Attempt": "a small number", "Outcome.Host.CPUs": "a small number",
	}
	var o quarry.Outcome
	n := int64(1_000_000)
	want := make(map[string]string)
	var fill func(v reflect.Value, at string)
	fill = func(v reflect.Value, at string) {
		if v.Kind() == reflect.Map && elsewhere[at] != "" {
			return
		}
		if v.Type() == reflect.TypeFor[time.Time]() {
			n++
			at0 := time.Unix(n, 0).UTC()
			v.Set(reflect.ValueOf(at0))
			want[at] = at0.Format(time.RFC3339)
			return
		}
		n++
		switch v.Kind() {
		case reflect.String:
			v.SetString("w" + strings.ReplaceAll(at, ".", ""))
			want[at] = v.String()
		case reflect.Int, reflect.Int64, reflect.Uint32:
			switch {
			case v.Type() == reflect.TypeFor[time.Duration]():
				v.SetInt(n * int64(time.Second))
				want[at] = itoa(n) + ".0"
			case v.Kind() == reflect.Uint32:
				v.SetUint(uint64(n))
				want[at] = itoa(n)
			default:
				v.SetInt(n)
				want[at] = itoa(n)
			}
		case reflect.Float64:
			v.SetFloat(float64(n))
			want[at] = itoa(n) + ".0"
		case reflect.Bool:
			v.SetBool(true)
			want[at] = "true"
		case reflect.Pointer:
			v.Set(reflect.New(v.Type().Elem()))
			fill(v.Elem(), at)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			fill(v.Index(0), at)
		case reflect.Struct:
			for i := range v.NumField() {
				f := v.Type().Field(i)
				name := at + "." + f.Name
				if f.Anonymous {
					name = at // its fields are the outer's
				}
				fill(v.Field(i), name)
			}
		default:
			t.Fatalf("%s has the kind %s, which this test does not know", at, v.Kind())
		}
	}
	fill(reflect.ValueOf(&o).Elem(), "Outcome")
	b := sample("zlib", "1.3.1", "x86_64", 17).Build
	o.Build.Package, o.Build.Version, o.Build.Arch, o.Build.Channel = b.Package, b.Version, b.Arch, b.Channel
	o.Build.Commit, o.Build.Key = b.Commit, b.Key
	want["Outcome.Build.Package"], want["Outcome.Build.Version"], want["Outcome.Build.Arch"] = "zlib", "1.3.1", "x86_64"
	want["Outcome.Build.Channel"], want["Outcome.Build.Commit"], want["Outcome.Build.Key"] = "testing", b.Commit, b.Key

	write := func(status quarry.State) string {
		o := o
		o.Status = status
		if status == quarry.Succeeded {
			o.Failure = nil
		}
		want["Outcome.Status"] = string(status)
		text := string(marshal(t, &o))
		files, err := MarshalFiles("zlib", "1.3.1", "x86_64", o.Facts.Files)
		if err != nil {
			t.Fatal(err)
		}
		return text + string(files)
	}
	succeeded, failed := write(quarry.Succeeded), write(quarry.Failed)
	for at, value := range want {
		if elsewhere[at] != "" || at == "Outcome.Status" {
			continue
		}
		text := succeeded
		if strings.HasPrefix(at, "Outcome.Failure") || at == "Outcome.LogLines" {
			text = failed
		}
		if !strings.Contains(text, value) {
			t.Errorf("%s (%s) is not in the record", at, value)
		}
	}
	if t.Failed() {
		t.Log(failed)
	}
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

func TestParseToleratesAndRefuses(t *testing.T) {
	good := string(marshal(t, sample("zlib", "1.3.1", "x86_64", 17)))
	newer := "colour = 'blue'\n" + good + "\n[weather]\nwind = 3\n[[wish]]\nname = 'x'\n"
	rec, err := Parse([]byte(newer))
	if err != nil {
		t.Errorf("keys of a newer Quarry are refused: %v", err)
	}
	same, err := Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(same, rec); diff != "" {
		t.Errorf("unknown keys change the record:\n%s", diff)
	}
	for name, data := range map[string]string{
		"newer schema":                  strings.Replace(good, "schema = 1", "schema = 2", 1),
		"newer schema of another shape": "schema = 2\npackage = ['a', 'b']\n",
		"no schema":                     strings.Replace(good, "schema = 1\n", "", 1),
		"older schema":                  strings.Replace(good, "schema = 1", "schema = 0", 1),
	} {
		if _, err := Parse([]byte(data)); !errors.Is(err, ErrSchema) {
			t.Errorf("%s: Parse = %v, want ErrSchema", name, err)
		}
	}
	for name, data := range map[string]string{
		"empty":             "",
		"no TOML":           "schema = 1\n!!",
		"wrong type":        strings.Replace(good, "build = 17", "build = 'x'", 1),
		"negative build":    strings.Replace(good, "build = 17", "build = -1", 1),
		"unfit name":        strings.Replace(good, "package = 'zlib'", "package = '../zlib'", 1),
		"unfit status":      strings.Replace(good, "'succeeded'", "'cancelled'", 1),
		"endless time":      strings.Replace(good, "total = 41.2", "total = inf", 1),
		"time that is none": strings.Replace(good, "total = 41.2", "total = nan", 1),
		"negative time":     strings.Replace(good, "total = 41.2", "total = -1.0", 1),
		"unknown escape":    strings.Replace(good, "'/usr/bin/minigzip'", `'/usr/bin\q'`, 1),
		"key twice":         "schema = 1\n" + good,
	} {
		if data == good {
			t.Fatalf("%s: the test changed nothing", name)
		}
		if rec, err := Parse([]byte(data)); err == nil {
			t.Errorf("%s: Parse accepts it: %+v", name, rec)
		}
	}
	if _, err := Parse([]byte("schema = 1\npackage = 3\n")); err == nil || !strings.Contains(err.Error(), "line 2, column") {
		t.Errorf("an error without its place: %v", err)
	}
}

func TestMarshalRefuses(t *testing.T) {
	rec, err := NewRecord(sample("zlib", "1.3.1", "x86_64", 17), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, spoil := range []func(*Record){
		func(r *Record) { r.Time.Make = math.NaN() },
		func(r *Record) { r.Started = time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC) },
		func(r *Record) { r.Package = "" },
		func(r *Record) { r.Schema = 2 },
	} {
		r := *rec
		spoil(&r)
		if data, err := r.Marshal(); err == nil {
			t.Errorf("it was written:\n%s", data)
		}
	}
}

func TestNewRecordLeavesOutcomeAlone(t *testing.T) {
	o, same := sample("zlib", "1.3.1", "x86_64", 17), sample("zlib", "1.3.1", "x86_64", 17)
	o.Info.Needed, same.Info.Needed = []string{"a\xff"}, []string{"a\xff"}
	if _, err := NewRecord(o, 1); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(same, o); diff != "" {
		t.Errorf("the outcome was changed:\n%s", diff)
	}
}

func TestSBU(t *testing.T) {
	o := sample("zlib", "1.3.1", "x86_64", 17)
	o.Steps = nil
	for name, d := range map[string]time.Duration{
		quarry.StepPrepare: time.Hour, quarry.StepExtract: time.Hour, quarry.StepTest: time.Hour,
		quarry.StepConfigure: 10 * time.Second, quarry.StepMake: 30 * time.Second, quarry.StepInstall: 5 * time.Second,
	} {
		o.Steps = append(o.Steps, quarry.Step{Name: name, Wall: d})
	}
	rec, err := NewRecord(o, 90)
	if err != nil {
		t.Fatal(err)
	}
	if rec.Time.SBU != 0.5 || rec.Time.SBUSeconds != 90 || rec.Time.Steps != 3645 {
		t.Errorf("times are %+v, want 0.5 SBU, the tests and the farm's steps left out", rec.Time)
	}
}

func TestEscape(t *testing.T) {
	for raw, want := range map[string]string{
		"/usr/bin/x": "/usr/bin/x", "é": "é", `a\b`: `a\\b`, "a\nb": `a\x0ab`, "\xff\xfe": `\xff\xfe`, "\u0085": "\u0085", "\uFFFD": "\uFFFD", "": "",
	} {
		if got := escape(raw); got != want {
			t.Errorf("escape(%q) = %q, want %q", raw, got, want)
		}
	}
	for _, bad := range []string{`\`, `\x`, `\x1`, `\xg0`, `\n`, `a\`} {
		if got, err := unescape(bad); err == nil {
			t.Errorf("unescape(%q) = %q", bad, got)
		}
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("/usr/share/odd\n\xff\\name")
	f.Fuzz(func(t *testing.T, raw string) {
		e := escape(raw)
		if got, err := unescape(e); err != nil || got != raw {
			t.Errorf("%q became %q and then %q, %v", raw, e, got, err)
		}
		if strings.ContainsAny(e, "\n\x00\x7f") {
			t.Errorf("%q holds control characters", e)
		}
	})
}

// FuzzRecord reads whatever comes. What is accepted must be written in one
// form, which reads as the same record; and the quick look at the head of a
// record must say what the whole says.
func FuzzRecord(f *testing.F) {
	f.Add(marshal(f, sample("zlib", "1.3.1", "x86_64", 17)))
	f.Add(marshal(f, failing("zlib", "1.3.1", "x86_64", 17)))
	f.Add([]byte("schema = 1\nstatus = 'failed'\npackage = 'a'\nversion = '1'\narch = 'x'\nstarted = 2026-01-01T00:00:00.5+14:00\ndescription = \"\"\"\n[x]\n\"\"\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := Parse(data)
		if err != nil {
			return
		}
		head, err := parseHead(data)
		if err != nil {
			t.Fatalf("the whole is accepted and the head is not: %v", err)
		}
		if head.Ref() != rec.Ref() || head.Target() != rec.Target() || head.Artifact != rec.Artifact || head.Description != rec.Description {
			t.Errorf("the head says %+v, the whole %+v", head, rec)
		}
		first, err := rec.Marshal()
		if err != nil {
			t.Fatalf("it was read and cannot be written: %v", err)
		}
		again, err := Parse(first)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, first)
		}
		if diff := cmp.Diff(rec, again); diff != "" {
			t.Errorf("round trip changes the record:\n%s", diff)
		}
		second, err := again.Marshal()
		if err != nil || string(second) != string(first) {
			t.Errorf("the second writing differs: %v\n%s\n%s", err, first, second)
		}
	})
}

func FuzzFiles(f *testing.F) {
	data, err := MarshalFiles("zlib", "1.3.1", "x86_64", sample("zlib", "1.3.1", "x86_64", 17).Facts.Files)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		l, files, err := parseFiles(data)
		if err != nil {
			return
		}
		first, err := MarshalFiles(l.Package, l.Version, l.Arch, files)
		if err != nil {
			t.Fatalf("it was read and cannot be written: %v", err)
		}
		again, err := ParseFiles(first)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, first)
		}
		if diff := cmp.Diff(files, again); diff != "" {
			t.Errorf("round trip changes the list:\n%s", diff)
		}
	})
}

func FuzzTree(f *testing.F) {
	f.Add(tree{{name: "a", mode: modeFile}, {name: "b", mode: modeDir, dir: true}}.encode(), "a")
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		tr, err := parseTree(data)
		if err != nil {
			return
		}
		if got := tr.encode(); string(got) != string(data) {
			t.Errorf("tree %q was written as %q", data, got)
		}
		for _, e := range tr {
			if h, ok := tr.find(e.name, e.dir); !ok {
				t.Errorf("%q is in the tree and is not found: %v", e.name, h)
			}
		}
		tr.find(name, true)
	})
}
