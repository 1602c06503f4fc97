package config

import (
	"strings"
	"testing"
)

func TestWays(t *testing.T) {
	c, err := Parse([]byte("[build]\nworkers = 2\nworkers_for = ['x86_64:x86_64', 'x86_64:aarch64:50', 'aarch64:aarch64:300:false']\n[build.triplets]\naarch64 = 'aarch64-unknown-linux-gnu'\n"), "q.toml")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range c.Ways() {
		got = append(got, w.String())
	}
	if s := strings.Join(got, " "); s != "x86_64:x86_64:100 x86_64:aarch64:50 aarch64:aarch64:300" || !c.Ways()[1].Cross || c.Ways()[0].Cross {
		t.Errorf("workers are %s", s)
	}
	if c.Build.Triplets["aarch64"] != "aarch64-unknown-linux-gnu" || len(Default().Ways()) != 0 {
		t.Errorf("%+v", c.Build)
	}
	for in, want := range map[string]string{
		"[build]\nworkers_for = ['x86_64']\n":                                  `q.toml:2: build.workers_for: worker "x86_64" has 1 parts`,
		"[build]\n\nworkers_for = ['x86_64:noarch']\n":                         "q.toml:3: build.workers_for: worker",
		"[build]\nworkers_for = ['x86_64:aarch64:50:iscross']\n":               `ends in "iscross", which is neither true nor false`,
		"[build]\nworkers_for = 'x86_64:aarch64'\n":                            `key "build.workers_for": string is given, and it takes a list`,
		"[build.triplets]\n'a/b' = 'a-linux-gnu'\n":                            "build.triplets: ",
		"[build.triplets]\naarch64 = 'aarch64-linux-gnu; reboot'\n":            `q.toml:2: build.triplets: "aarch64-linux-gnu; reboot" is no name of a toolchain`,
		"[build.triplets]\naarch64 = '-linux-gnu'\n":                           "no name of a toolchain",
		"[build.triplets]\naarch64 = '../../bin/x'\n":                          "no name of a toolchain",
		"[build]\nworkers_for = [" + strings.Repeat("'a:b',", 1001) + "'a:b']": "build.workers_for has 1002 entries, more than 1000",
	} {
		if _, err := Parse([]byte(in), "q.toml"); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.60q: error %v, want %q in it", in, err, want)
		}
	}
}
