package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/Morphux/quarry/control"
)

// Calls with wrong words end with the code for that and one line that says what
// would be right; none prints help and calls it a success.
func TestWrongWords(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.Mkdir("x", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ words, says string }{
		{"statuss", `command "statuss" is unknown: did you mean status? see quarry --help`},
		{"nonsense", `command "nonsense" is unknown: see quarry --help`},
		{"db serch x", `command "db serch" is unknown: did you mean search? see quarry db --help`},
		{"--state x images foo", `command "images foo" is unknown: see quarry images --help`},
		{"images load x", "images load takes REF FILE: see quarry images load --help"},
		{"images clean", "images clean takes all|base REF|NAME: see quarry images clean --help"},
		{"sanitize a b c", "sanitize takes [ARCH] [CHANNEL]: see quarry sanitize --help"},
		{"start", "start takes NAME: see quarry start --help"},
		{"cleanup", "cleanup takes all|baseos|NAME: see quarry cleanup --help"},
		{"load-baseos a b", "load-baseos takes [FILE]: see quarry load-baseos --help"},
		{"build x stable --channel testing", "build is told two channels, stable and testing: leave one out"},
		{"build zlib-1.3.1 stable", "zlib-1.3.1 is no folder, and of a release the channel is said with --channel: build zlib-1.3.1 --channel stable"},
		{"build", "build takes DIR [CHANNEL] | NAME-VERSION | -: see quarry build --help"},
		{"key remove a b", "key remove takes NAME: see quarry key remove --help"},
		{"serve now", "serve takes no arguments: see quarry serve --help"},
		{"status --bogus", "unknown flag: --bogus: see quarry status --help"},
		{"doctor nonsense", "no check is called nonsense: quarry doctor shows their names"},
	} {
		var out, errOut bytes.Buffer
		code := run(t.Context(), strings.Fields(tt.words), strings.NewReader(""), &out, &errOut)
		if got := errOut.String(); code != control.ExitUsage || got != "quarry: "+tt.says+"\n" || out.Len() > 0 {
			t.Errorf("%s: exit %d, says %q and %q; want exit %d and %q", tt.words, code, out.String(), got, control.ExitUsage, tt.says)
		}
	}
	for _, words := range []string{"db", "help db", "db --help", "db show --help", "--version", "completion bash", "images", "images load --help", "update-baseos --help"} {
		var out, errOut bytes.Buffer
		if code := run(t.Context(), strings.Fields(words), strings.NewReader(""), &out, &errOut); code != control.ExitOK || out.Len() == 0 {
			t.Errorf("%s: exit %d, %q", words, code, errOut.String())
		}
	}
}
