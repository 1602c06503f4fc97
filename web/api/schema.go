package api

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry/internal/cgroup"
)

// The schemas (JSON Schema 2020-12, which OpenAPI 3.1 has) that need no type.
var (
	text      = map[string]any{"type": "string"}
	boolean   = map[string]any{"type": "boolean"}
	anyObject = map[string]any{"type": "object"}
	anyJSON   = map[string]any{}
	plain     = map[string]any{"text/plain": text}
)

func integer(least, most int64) any {
	s := map[string]any{"type": "integer", "minimum": least}
	if most > 0 {
		s["maximum"] = most
	}
	return s
}

func listOf(of any) any { return map[string]any{"type": "array", "items": of} }

func enum[T ~string](values []T) any { return map[string]any{"type": "string", "enum": values} }

// typed is a schema that is yet to be made of a Go type.
type typed struct{ t reflect.Type }

func schemaOf[T any]() any { return typed{reflect.TypeFor[T]()} }

func jsonOf[T any]() map[string]any { return map[string]any{"application/json": schemaOf[T]()} }

// schemas makes schemas of Go types, as encoding/json writes them. Structs become
// components of the document, by name.
type schemas struct {
	components map[string]any
	names      map[reflect.Type]string
}

// resolve puts schemas in place of types.
func (s *schemas) resolve(v any) any {
	switch v := v.(type) {
	case typed:
		return s.of(v.t)
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			out[k] = s.resolve(e)
		}
		return out
	}
	return v
}

var marshaler = reflect.TypeFor[json.Marshaler]()

func (s *schemas) of(t reflect.Type) any {
	switch t {
	case reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case reflect.TypeFor[cgroup.Count]():
		return map[string]any{"type": []string{"integer", "null"}}
	case reflect.TypeFor[json.RawMessage]():
		return anyJSON
	}
	if t.Kind() != reflect.Pointer && (t.Implements(marshaler) || reflect.PointerTo(t).Implements(marshaler)) {
		return anyJSON
	}
	switch t.Kind() {
	case reflect.Pointer:
		return map[string]any{"anyOf": []any{s.of(t.Elem()), map[string]any{"type": "null"}}}
	case reflect.Bool:
		return boolean
	case reflect.String:
		return text
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		return map[string]any{"type": "integer"}
	case reflect.Float32, reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return map[string]any{"type": "string", "contentEncoding": "base64"}
		}
		return map[string]any{"type": "array", "items": s.of(t.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": s.of(t.Elem())}
	case reflect.Struct:
		return map[string]any{"$ref": "#/components/schemas/" + s.component(t)}
	}
	return anyJSON
}

// component makes a component of a struct.
func (s *schemas) component(t reflect.Type) string {
	if name, ok := s.names[t]; ok {
		return name
	}
	name := t.Name()
	for i := 2; s.components[name] != nil; i++ { // another package's
		name = fmt.Sprintf("%s%d", t.Name(), i)
	}
	s.names[t] = name
	out := map[string]any{"type": "object"}
	s.components[name] = out // before its fields: it may hold itself
	properties, required := map[string]any{}, []string{}
	s.fields(t, properties, &required)
	out["properties"] = properties
	if slices.Sort(required); len(required) > 0 {
		out["required"] = required
	}
	return name
}

// fields adds those of a struct, and of structs within it that have no name.
func (s *schemas) fields(t reflect.Type, properties map[string]any, required *[]string) {
	for f := range t.Fields() {
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || !f.IsExported() && !f.Anonymous {
			continue
		}
		if f.Anonymous && name == "" {
			if e := f.Type; e.Kind() == reflect.Struct {
				s.fields(e, properties, required)
				continue
			}
		}
		if name == "" {
			name = f.Name
		}
		if _, taken := properties[name]; taken {
			continue // one that is nearer goes first
		}
		may := strings.Contains(opts, "omitempty") || strings.Contains(opts, "omitzero")
		schema := s.of(f.Type)
		if k := f.Type.Kind(); !may && (k == reflect.Slice || k == reflect.Map) {
			// One that was never made is null.
			schema = map[string]any{"anyOf": []any{schema, map[string]any{"type": "null"}}}
		}
		if may && f.Type.Kind() == reflect.Pointer { // then it is not there
			schema = s.of(f.Type.Elem())
		}
		properties[name] = schema
		if !may {
			*required = append(*required, name)
		}
	}
}
