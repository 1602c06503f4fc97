package results

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestDocNamesEveryKey looks for every key of the format in doc/results.md, so
// that none is added and not described.
func TestDocNamesEveryKey(t *testing.T) {
	data, err := os.ReadFile("../doc/results.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(data)
	seen := make(map[reflect.Type]bool)
	var walk func(reflect.Type)
	walk = func(ty reflect.Type) {
		for ty.Kind() == reflect.Pointer || ty.Kind() == reflect.Slice {
			ty = ty.Elem()
		}
		if ty.Kind() != reflect.Struct || seen[ty] || ty.PkgPath() == "time" {
			return
		}
		seen[ty] = true
		for i := range ty.NumField() {
			f := ty.Field(i)
			key, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
			if key == "" {
				t.Errorf("%s.%s has no key", ty, f.Name)
			} else if !strings.Contains(doc, "`"+key+"`") && !strings.Contains(doc, key+"]`") && !strings.Contains(doc, key+"]]`") && !strings.Contains(doc, "."+key+"]") {
				t.Errorf("doc/results.md does not name the key %s of %s", key, ty)
			}
			walk(f.Type)
		}
	}
	walk(reflect.TypeFor[Record]())
	walk(reflect.TypeFor[fileList]())
	for _, trailer := range []string{TrailerPackage, TrailerVersion, TrailerArch, TrailerChannel, TrailerStatus, TrailerSource, TrailerBuild, TrailerBuildKey, TrailerLog, TrailerPushedBy} {
		if !strings.Contains(doc, "\n    "+trailer+": ") {
			t.Errorf("doc/results.md does not show the trailer %s", trailer)
		}
	}
}
