package images

import (
	"bytes"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

// A base says how it was bootstrapped, so that it can be made anew the same way.
func TestBootstrapped(t *testing.T) {
	for _, o := range []BootstrapOptions{
		{Suite: "bookworm"},
		{Suite: "trixie", Mirror: "http://deb.example.org/debian"},
		{Suite: "sid", Mirror: "file:///srv/debian", Variant: "buildd", Include: []string{"gcc", "make"}},
		{Suite: "sid", Variant: "buildd"},
		{Suite: "sid", Include: []string{"g++"}},
	} {
		if got, ok := Bootstrapped(o.source()); !ok || !reflect.DeepEqual(got, o) {
			t.Errorf("%q is read as %+v, %t", o.source(), got, ok)
		}
	}
	if got := (BootstrapOptions{Variant: defaultVariant}).source(); got != "mmdebstrap bookworm" {
		t.Errorf("the usual base comes from %q", got)
	}
	for _, s := range []string{"", "base.tar", "mmdebstrap", "mmdebstrap ", "mmdebstrap a b c", "standard input"} {
		if o, ok := Bootstrapped(s); ok {
			t.Errorf("%q was bootstrapped with %+v", s, o)
		}
	}
}

// A tarball that comes as a stream is whole, or an error.
func TestWhole(t *testing.T) {
	end := strings.Repeat("\x00", tarEnd)
	for _, tt := range []struct {
		name, in string
		ok       bool
	}{
		{"tarball", "files" + end, true},
		{"padded tarball", "files" + strings.Repeat(end, 10), true},
		{"cut tarball", "files", false},
		{"cut in its end", "files" + end[1:], false},
		{"zeros before the end", end + "files", false},
		{"nothing", "", false},
		{"gzip", "\x1f\x8bfiles", true}, // whose end its decompressor looks for
		{"xz", "\xfd7zXZfiles", true},
		{"zstd", "\x28\xb5\x2f\xfdfiles", true},
		{"bzip2", "BZhfiles", true},
	} {
		for _, r := range []io.Reader{strings.NewReader(tt.in), iotest.OneByteReader(strings.NewReader(tt.in)), iotest.DataErrReader(strings.NewReader(tt.in))} {
			got, err := io.ReadAll(&whole{r: r})
			if (err == nil) != tt.ok || !bytes.Equal(got, []byte(tt.in)) {
				t.Errorf("%s: %v after %d bytes of %d", tt.name, err, len(got), len(tt.in))
			}
		}
	}
}
