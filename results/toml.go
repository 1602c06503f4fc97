package results

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/Morphux/quarry"
)

// ErrSchema is wrapped by the error for a record of a schema that this program
// does not know.
var ErrSchema = errors.New("unknown schema")

// Parse reads a record. Keys that this program does not know are passed over,
// as a newer Quarry may write more; a record of another schema, or one that
// lacks what identifies it, is an error.
func Parse(data []byte) (*Record, error) {
	r := new(Record)
	if err := decodeVersioned(data, r); err != nil {
		return nil, err
	}
	if err := r.fromTOML(); err != nil {
		return nil, err
	}
	return r, r.check()
}

// Marshal writes a record as TOML with its keys in a fixed order, so that two
// equal records are the same bytes. A record without its schema gets the
// current one.
func (r *Record) Marshal() ([]byte, error) {
	c := *r
	if c.Schema == 0 {
		c.Schema = Schema
	}
	if err := c.clean(); err != nil {
		return nil, err
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	if err := c.mapStrings(func(s string) (string, error) { return escape(s), nil }, keepText); err != nil {
		return nil, err
	}
	return encode(&c)
}

// fromTOML turns what was decoded into the record that it stands for.
func (r *Record) fromTOML() error {
	if err := r.mapStrings(unescape, keepText); err != nil {
		return err
	}
	return r.clean()
}

// check says what a record must have. It is the same for reading and writing.
func (r *Record) check() error {
	if r.Schema != Schema {
		return schemaError(r.Schema)
	}
	if err := checkPlace(r.Package, r.Version, r.Arch); err != nil {
		return fmt.Errorf("record is unfit: %w", err)
	}
	if r.Status != quarry.Succeeded && r.Status != quarry.Failed {
		return fmt.Errorf("record of %s has the status %.40q: it must be succeeded or failed", r.Target(), r.Status)
	}
	if r.Build < 0 {
		return fmt.Errorf("record of %s has the build number %d: it may not be negative", r.Target(), r.Build)
	}
	return nil
}

func schemaError(schema int) error {
	if schema > Schema {
		return fmt.Errorf("%w %d: this Quarry reads schema %d, use a newer one", ErrSchema, schema, Schema)
	}
	return fmt.Errorf("%w %d: a record begins with schema = %d", ErrSchema, schema, Schema)
}

// JSON writes a record with the keys, units and escapes that it has in TOML,
// for programs that would rather read that.
func (r *Record) JSON() ([]byte, error) {
	data, err := r.Marshal()
	if err != nil {
		return nil, err
	}
	return tomlToJSON(data)
}

// FilesJSON writes a list of files likewise.
func FilesJSON(pkg, version, arch string, files []quarry.File) ([]byte, error) {
	data, err := MarshalFiles(pkg, version, arch, files)
	if err != nil {
		return nil, err
	}
	return tomlToJSON(data)
}

func tomlToJSON(data []byte) ([]byte, error) {
	var v map[string]any
	if err := decode(data, &v); err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

// decodeVersioned reads TOML and, should that fail, looks whether the schema
// is why: in a later schema a key may have another type, and then that is what
// to say.
func decodeVersioned(data []byte, v any) error {
	err := decode(data, v)
	if err == nil {
		return nil
	}
	var head struct {
		Schema int `toml:"schema"`
	}
	if decode(data, &head) == nil && head.Schema != Schema {
		return schemaError(head.Schema)
	}
	return err
}

func decode(data []byte, v any) error {
	err := toml.Unmarshal(data, v)
	var de *toml.DecodeError
	if errors.As(err, &de) {
		row, col := de.Position()
		return fmt.Errorf("line %d, column %d: %s", row, col, strings.TrimPrefix(de.Error(), "toml: "))
	}
	if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "toml: "))
	}
	return nil
}

func encode(v any) ([]byte, error) {
	var buf bytes.Buffer
	if err := toml.NewEncoder(&buf).Encode(v); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// clean brings a record into the one form that it has in the repository, so
// that writing and reading it again changes nothing: valid UTF-8, times in UTC
// with milliseconds, durations with milliseconds, no empty lists. It copies
// the lists that it changes and never writes to memory of the caller's.
func (r *Record) clean() error {
	return r.mapStrings(keepText, func(s string) (string, error) { return text(s), nil })
}

func keepText(s string) (string, error) { return s, nil }

// mapStrings is clean with a choice of what becomes of the strings of any
// bytes and of the others.
func (r *Record) mapStrings(raw, text func(string) (string, error)) error {
	v, err := mapper{raw, text}.value(reflect.ValueOf(*r), "")
	if err != nil {
		return fmt.Errorf("record of %s %s %s is unfit: %w", r.Package, r.Version, r.Arch, err)
	}
	*r = v.Interface().(Record)
	return nil
}

var (
	timeType = reflect.TypeFor[time.Time]()
	rawType  = reflect.TypeFor[Raw]()
)

type mapper struct {
	raw, text func(string) (string, error)
}

func (m mapper) value(v reflect.Value, key string) (reflect.Value, error) {
	out := reflect.New(v.Type()).Elem()
	switch {
	case v.Type() == timeType:
		t, err := cleanTime(v.Interface().(time.Time))
		if err != nil {
			return out, fmt.Errorf("%s: %w", key, err)
		}
		out.Set(reflect.ValueOf(t))
		return out, nil
	case v.Kind() == reflect.String:
		f := m.text
		if v.Type() == rawType {
			f = m.raw
		}
		s, err := f(v.String())
		if err != nil {
			return out, fmt.Errorf("%s: %w", key, err)
		}
		out.SetString(s)
		return out, nil
	}
	switch v.Kind() {
	case reflect.Float64:
		f := v.Float()
		if math.IsNaN(f) || f < 0 || f > 1e12 {
			return out, fmt.Errorf("%s is %v: it must be a number of seconds", key, f)
		}
		out.SetFloat(math.Round(f*1000) / 1000)
	case reflect.Struct:
		for i := range v.NumField() {
			f, err := m.value(v.Field(i), v.Type().Field(i).Name)
			if err != nil {
				return out, err
			}
			out.Field(i).Set(f)
		}
	case reflect.Pointer:
		if v.IsNil() {
			return out, nil
		}
		e, err := m.value(v.Elem(), key)
		if err != nil {
			return out, err
		}
		p := reflect.New(v.Type().Elem())
		p.Elem().Set(e)
		out.Set(p)
	case reflect.Slice:
		if v.Len() == 0 {
			return out, nil
		}
		s := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			e, err := m.value(v.Index(i), key)
			if err != nil {
				return out, err
			}
			s.Index(i).Set(e)
		}
		out.Set(s)
	case reflect.Map:
		if v.Len() == 0 {
			return out, nil
		}
		dict := reflect.MakeMapWithSize(v.Type(), v.Len())
		for it := v.MapRange(); it.Next(); {
			k, err := m.value(it.Key(), key)
			if err != nil {
				return out, err
			}
			dict.SetMapIndex(k, it.Value())
		}
		out.Set(dict)
	default:
		return v, nil
	}
	return out, nil
}

// parseHead reads what stands before the first table of a record, which is all
// that planning and searching need, at a fraction of the cost. It is a record
// with the rest absent. Should cutting there not give sound TOML (a string of
// several lines may hold something like a table), the whole is read.
func parseHead(data []byte) (*Record, error) {
	head := data
	if i := bytes.Index(data, []byte("\n[")); i >= 0 {
		head = data[:i+1]
	}
	r := new(Record)
	if toml.Unmarshal(head, r) == nil && r.Schema == Schema && r.cleanTimes() == nil && r.check() == nil {
		return r, nil
	}
	return Parse(data)
}

// cleanTimes is clean for what stands in the head of a record: only the times
// have more than one form there, text is as TOML demands already.
func (r *Record) cleanTimes() error {
	for _, t := range []*time.Time{&r.SourceTime, &r.Pushed, &r.Started, &r.Ended} {
		c, err := cleanTime(*t)
		if err != nil {
			return err
		}
		*t = c
	}
	return nil
}

func cleanTime(t time.Time) (time.Time, error) {
	t = t.UTC().Truncate(time.Millisecond)
	if t.IsZero() {
		return time.Time{}, nil
	}
	// RFC 3339 has four digits for the year.
	if t.Year() < 1 || t.Year() > 9999 {
		return t, fmt.Errorf("it is in the year %d", t.Year())
	}
	return t, nil
}
