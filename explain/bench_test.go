package explain

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// bigLog is a failed build's 64 MiB as a large build prints it: compiler calls, what configure and
// libtool say, and now and then a line that speaks of errors.
func bigLog() []byte {
	var one bytes.Buffer
	for i := range 400 {
		one.WriteString("libtool: compile:  gcc -DHAVE_CONFIG_H -I. -I./include -D_GNU_SOURCE -Wall -Wno-error=format -g -O2 -fstack-protector-strong -MT libz_la-inflate.lo -MD -MP -MF .deps/libz_la-inflate.Tpo -c inflate.c  -fPIC -DPIC -o .libs/libz_la-inflate.o\n")
		one.WriteString("checking for sys/capability.h... no\n  CC       src/parser.o\nmake[3]: Entering directory '/quarry/src/build/lib'\n")
		if i%40 == 0 {
			one.WriteString("parse.c: In function 'yyerror':\nparse.c:120:9: warning: 'error' may be used uninitialized [-Wmaybe-uninitialized]\n  120 |   return error;\n      |          ^~~~~\n")
		}
	}
	return append(bytes.Repeat(one.Bytes(), 64<<20/one.Len()), "a.c:1:1: error: bad\nmake: *** [Makefile:2: a.o] Error 1\n"...)
}

func BenchmarkClassify(b *testing.B) {
	log := bigLog()
	b.SetBytes(int64(len(log)))
	for b.Loop() {
		if f := Classify(Input{Failure: exit("make", 2), Log: bytes.NewReader(log)}); f.Class != "compiler" {
			b.Fatal(f)
		}
	}
}

// BenchmarkHostile is a log of which each line looks like an error.
func BenchmarkHostile(b *testing.B) {
	line := "x: sh: 1: : not found error: fatal error: not ok Segmentation faul killed signal \x1b[31m undefined reference to\n"
	log := []byte(strings.Repeat(line, 64<<20/len(line)))
	b.SetBytes(int64(len(log)))
	for b.Loop() {
		Classify(Input{Failure: exit("make", 2), Log: bytes.NewReader(log)})
	}
}

// BenchmarkLines reads the log and counts its lines, which is the least there is.
func BenchmarkLines(b *testing.B) {
	log := bigLog()
	b.SetBytes(int64(len(log)))
	for b.Loop() {
		n, r := 0, bytes.NewReader(log)
		for buf := make([]byte, 32<<10); ; {
			k, err := r.Read(buf)
			n += bytes.Count(buf[:k], []byte("\n"))
			if err == io.EOF {
				break
			}
		}
	}
}

// BenchmarkGrep has grep -E find the same words.
func BenchmarkGrep(b *testing.B) {
	path := filepath.Join(b.TempDir(), "log")
	log := bigLog()
	if err := os.WriteFile(path, log, 0o644); err != nil {
		b.Fatal(err)
	}
	var all []string
	for _, r := range rules {
		for _, w := range r.words {
			all = append(all, strings.NewReplacer("[", `\[`, "(", `\(`, "*", `\*`, ".", `\.`, "]", `\]`).Replace(w))
		}
	}
	b.SetBytes(int64(len(log)))
	for b.Loop() {
		cmd := exec.Command("grep", "-Eic", strings.Join(all, "|"), path)
		cmd.Env = append(os.Environ(), "LC_ALL=C")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
	}
}
