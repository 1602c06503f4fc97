package extract

import (
	"strings"
	"testing"

	"github.com/Morphux/quarry"
)

func TestClassify(t *testing.T) {
	member := func(name, data string) string {
		h := name + strings.Repeat(" ", 16-len(name)) + "0           0     0     100644  "
		size := len(data)
		s := ""
		for ; size > 0; size /= 10 {
			s = string(rune('0'+size%10)) + s
		}
		h += s + strings.Repeat(" ", 10-len(s)) + "`\n"
		if len(data)%2 == 1 {
			data += "\n"
		}
		return h + data
	}
	for _, c := range []struct {
		path, data string
		class      quarry.Class
		interp     string
	}{
		{"/usr/bin/a", "#!/bin/sh\n", quarry.ClassScript, "/bin/sh"},
		{"/usr/bin/a", "#! /usr/bin/perl -w\n", quarry.ClassScript, "/usr/bin/perl"},
		{"/usr/bin/a", "#!\t/usr/bin/env python3\nx", quarry.ClassScript, "/usr/bin/env python3"},
		{"/usr/bin/a", "#!/usr/bin/env -S A=1 B=2 node --x", quarry.ClassScript, "/usr/bin/env node"},
		{"/usr/bin/a", "#!/usr/bin/env", quarry.ClassScript, "/usr/bin/env"},
		{"/usr/bin/a", "#!", quarry.ClassOther, ""},
		{"/usr/bin/a", "#!\n/bin/sh", quarry.ClassOther, ""},
		{"/usr/lib/a.rs", "#![no_std]\n", quarry.ClassOther, ""},
		{"/usr/bin/a", "#!/bin/\xff\xfe\n", quarry.ClassOther, ""},
		{"/usr/bin/a", "#!/bin/\x1b[2J\n", quarry.ClassOther, ""},
		{"/usr/bin/a", "#!/" + strings.Repeat("x", 5000), quarry.ClassScript, "/" + strings.Repeat("x", headBytes-3)},
		{"/etc/init.d/a", "#!/bin/sh\n", quarry.ClassConfig, "/bin/sh"},
		{"/etc/a.conf", "", quarry.ClassConfig, ""},
		{"/usr/etc/a.conf", "", quarry.ClassOther, ""},
		{"/usr/include/zlib.h", "", quarry.ClassHeader, ""},
		{"/usr/include/c++/12/vector", "", quarry.ClassHeader, ""},
		{"/usr/lib/gcc/x86_64/12/include/stddef.h", "", quarry.ClassHeader, ""},
		{"/usr/share/app/a.hpp", "", quarry.ClassHeader, ""},
		{"/usr/bin/include", "", quarry.ClassOther, ""},
		{"/usr/share/man/man1/a.1.gz", "", quarry.ClassMan, ""},
		{"/usr/share/man/fr/man3/a.3", "", quarry.ClassMan, ""},
		{"/opt/a/man/mann/a.n", "", quarry.ClassMan, ""},
		{"/usr/share/man/index", "", quarry.ClassOther, ""},
		{"/usr/share/man/manual/x", "", quarry.ClassOther, ""},
		{"/usr/share/info/a.info-1.gz", "", quarry.ClassInfo, ""},
		{"/usr/share/info/dir", "", quarry.ClassInfo, ""},
		{"/usr/share/locale/fr/LC_MESSAGES/a.mo", "", quarry.ClassLocale, ""},
		{"/opt/a/fr/LC_MESSAGES/a.mo", "", quarry.ClassLocale, ""},
		{"/usr/lib/locale/C.utf8/LC_CTYPE", "", quarry.ClassLocale, ""},
		{"/usr/share/doc/a/README", "", quarry.ClassDoc, ""},
		{"/usr/share/doc/a/run.sh", "#!/bin/sh\n", quarry.ClassDoc, "/bin/sh"},
		{"/usr/share/licenses/a", "", quarry.ClassDoc, ""},
		{"/lib/modules/6.1/a.ko.xz", "\xfd7zXZ", quarry.ClassObject, ""},
		{"/usr/share/a.ko.xz", "\xfd7zXZ", quarry.ClassOther, ""},
		{"/usr/lib/liba.a", "!<arch>\n", quarry.ClassStatic, ""},
		{"/usr/lib/liba", "!<arch>\n", quarry.ClassOther, ""},
		{"/usr/lib/liba", "!<thin>\n", quarry.ClassStatic, ""},
		{"/usr/lib/liba", "!<arch>\n" + member("/", "x"), quarry.ClassStatic, ""},
		{"/usr/lib/liba", "!<arch>\n" + member("x.txt", "odd") + member("a.o/", elfMagic+"..."), quarry.ClassStatic, ""},
		{"/srv/a.deb", "!<arch>\n" + member("debian-binary", "2.0\n") + member("control.tar", "x"), quarry.ClassOther, ""},
		{"/srv/bad", "!<arch>\n" + strings.Repeat("x", 100), quarry.ClassOther, ""},
		{"/srv/huge", "!<arch>\n" + "x               0           0     0     100644  9999999999`\n", quarry.ClassOther, ""},
		{"/srv/neg", "!<arch>\n" + "x               0           0     0     100644  -60       `\n", quarry.ClassOther, ""},
		{"/x", "", quarry.ClassOther, ""},
	} {
		in := inspect(c.path, strings.NewReader(c.data), int64(len(c.data)))
		if in.class != c.class || in.interpreter != c.interp || in.elf != nil || in.warning != "" {
			t.Errorf("%s %.40q: %q %q %q, want %q %q", c.path, c.data, in.class, in.interpreter, in.warning, c.class, c.interp)
		}
	}
}
