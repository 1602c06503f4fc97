package config

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// checkUnits refuses what the decoder takes for a Duration or a Size and nobody
// can mean: a number without a unit, which counts nanoseconds, and bytes below 0.
func (c *Config) checkUnits() error {
	return c.unitsOf(reflect.ValueOf(c).Elem(), nil)
}

func (c *Config) unitsOf(v reflect.Value, key []string) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%skey %q: %w", c.at(key...), strings.Join(key, "."), fmt.Errorf(format, args...))
	}
	switch x := v.Interface().(type) {
	case Duration:
		if d := time.Duration(x); d != 0 && d < time.Microsecond*100 {
			return bad("%d has no unit, or is less than any time here: write it as \"90s\", \"10m\", \"2h\" or \"30d\"", int64(d))
		}
		return nil
	case Size:
		if x < 0 {
			return bad("%d is less than 0: write a number of bytes as 512, \"64 MiB\" or \"2G\"", int64(x))
		}
		return nil
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			name := v.Type().Field(i).Tag.Get("toml")
			if name == "" || name == "-" {
				continue
			}
			if err := c.unitsOf(v.Field(i), append(key[:len(key):len(key)], name)); err != nil {
				return err
			}
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			if err := c.unitsOf(v.MapIndex(k), append(key[:len(key):len(key)], k.String())); err != nil {
				return err
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			if err := c.unitsOf(v.Index(i), key); err != nil {
				return err
			}
		}
	case reflect.Pointer:
		if !v.IsNil() {
			return c.unitsOf(v.Elem(), key)
		}
	}
	return nil
}
