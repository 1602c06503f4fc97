package images_test

import (
	"bytes"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
)

func TestSetupCheck(t *testing.T) {
	file := func(path string) images.Setup {
		return images.Setup{Files: []images.SetupFile{{Path: path}}}
	}
	for _, ok := range []images.Setup{
		{}, file("/etc/apt/sources.list"), file("/a"), file("/etc/é"), file("/etc/a b"), file("/runs"), file("/etc/...x"),
		{Update: []string{"apt-get update", " x\ny"}, MaxAge: time.Hour, Timeout: time.Second},
		{Files: []images.SetupFile{{Path: "/a", Mode: 0o777, Data: make([]byte, 4<<20)}, {Path: "/ab"}}},
	} {
		if err := ok.Check(); err != nil {
			t.Errorf("%.200v: %v", ok, err)
		}
	}
	many := images.Setup{}
	large := images.Setup{}
	for i := range 101 {
		many.Files = append(many.Files, images.SetupFile{Path: "/" + strings.Repeat("x", i+1)})
		if i < 5 {
			large.Files = append(large.Files, images.SetupFile{Path: many.Files[i].Path, Data: make([]byte, 4<<20)})
		}
	}
	for want, bad := range map[string]images.Setup{
		"not absolute":       file("etc/apt"),
		"not absolute ":      file(""),
		"no clean path":      file("/etc/../x"),
		"no clean path ":     file("/.."),
		"no clean path  ":    file("/"),
		"no clean path   ":   file("/etc/"),
		"no clean path    ":  file("//etc"),
		"no clean path     ": file("/etc/./x"),
		"control characters": file("/etc/a\nb"),
		"broken UTF-8":       file("/etc/\xff"),
		"mounted over":       file("/tmp/x"),
		"mounted over ":      file("/etc/resolv.conf"),
		"mounted over  ":     file("/quarry/x"),
		"mounted over   ":    file("/.quarry/guest"),
		"mounted over    ":   file("/var/tmp/x"),
		"1000 are the most":  file("/" + strings.Repeat("abcdefghi/", 100) + "x"),
		"255 are the most":   file("/" + strings.Repeat("x", 256)),
		"twice":              {Files: []images.SetupFile{{Path: "/a"}, {Path: "/a"}}},
		"a file too":         {Files: []images.SetupFile{{Path: "/a/b/c"}, {Path: "/a"}}},
		"permissions only":   {Files: []images.SetupFile{{Path: "/a", Mode: fs.ModeSymlink | 0o777}}},
		"permissions only ":  {Files: []images.SetupFile{{Path: "/a", Mode: fs.ModeSetuid | 0o755}}},
		"4194305 bytes":      {Files: []images.SetupFile{{Path: "/a", Data: make([]byte, 4<<20+1)}}},
		"together":           large,
		"101 files":          many,
		"101 update":         {Update: slicesRepeat("x", 101)},
		"blank":              {Update: []string{"true", " \n"}},
		"zero byte":          {Update: []string{"a\x00b"}},
		"65536 bytes":        {Update: slicesRepeat(strings.Repeat("x", 1000), 66)},
		"age":                {MaxAge: -1},
		"timeout":            {Timeout: -1},
	} {
		err := bad.Check()
		if err == nil || !strings.Contains(err.Error(), strings.TrimSpace(want)) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 1500 {
			t.Errorf("%s: %v", want, err)
		}
	}
	// A store takes none that is wrong.
	conn := startPodman(t, podman.Config{})
	for _, c := range []images.Channel{
		{Name: "testing", Setup: file("x")}, {Name: "Testing"}, {Name: "testing", Archs: []string{"a.b"}},
		{Name: "testing", Archs: []string{"x86_64:a"}}, {Name: "testing", Archs: []string{"x86_64", "x86_64"}}, {Name: "testing", Base: "a/b"},
	} {
		if _, err := images.New(conn, images.Options{WorkDir: t.TempDir(), Guest: guest(t), Channels: []images.Channel{c}}); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}

func slicesRepeat(s string, n int) []string {
	return strings.Split(strings.Repeat(s+"\x01", n-1)+s, "\x01")
}

// No two setups have the same digest, however their parts are cut.
func TestSetupDigest(t *testing.T) {
	type f = images.SetupFile
	seen := map[string]int{}
	for i, u := range []images.Setup{
		{}, {Update: []string{"ab"}}, {Update: []string{"a", "b"}}, {Update: []string{"b", "a"}}, {Update: []string{"", "ab"}},
		{Files: []f{{Path: "/a", Data: []byte("b")}}}, {Files: []f{{Path: "/ab"}}}, {Files: []f{{Path: "/a", Data: []byte("b"), Mode: 0o600}}},
		{Files: []f{{Path: "/a"}, {Path: "/b"}}}, {Files: []f{{Path: "/b"}, {Path: "/a"}}}, {Files: []f{{Path: "/a", Data: bytes.Repeat([]byte("file"), 2)}}},
		{Files: []f{{Path: "/a"}}, Update: []string{"a"}},
	} {
		d := u.Digest()
		if j, twice := seen[d]; twice {
			t.Errorf("%d and %d have the same digest", i, j)
		}
		seen[d] = i
		// What does not change the content does not count.
		u.MaxAge, u.Timeout, u.LocalMirror = time.Hour, time.Hour, true
		if u.Digest() != d {
			t.Errorf("%d: its digest counts more than content", i)
		}
	}
	explicit := images.Setup{Files: []f{{Path: "/a", Mode: 0o644}}}
	if explicit.Digest() != (images.Setup{Files: []f{{Path: "/a"}}}).Digest() {
		t.Error("the default mode is another")
	}
}
