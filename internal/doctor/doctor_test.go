package doctor_test

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/doctor"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/podman/tinyelf"
	"github.com/Morphux/quarry/internal/runnable"
	"github.com/Morphux/quarry/internal/testbase"
	"golang.org/x/sys/unix"
)

const guestPackage = "github.com/Morphux/quarry/images/testdata/guest"

func TestMain(m *testing.M) {
	code := m.Run()
	testbase.Clean()
	os.Exit(code)
}

func options(t *testing.T) doctor.Options {
	t.Helper()
	return doctor.Options{
		Podman: podman.Config{State: t.TempDir(), ImageStores: []string{testbase.ImageStore(t)}},
		Archs:  []string{testbase.Arch}, Guest: testbase.Guest(t, guestPackage), Listen: "127.0.0.1:0",
	}
}

func find(t *testing.T, all []doctor.Finding, name string) doctor.Finding {
	t.Helper()
	for _, f := range all {
		if f.Name == name {
			return f
		}
	}
	t.Fatalf("no finding about %s", name)
	return doctor.Finding{}
}

// A machine on which the tests pass is healthy, and looking leaves no trace.
func TestHealthy(t *testing.T) {
	o := options(t)
	var told []doctor.Finding
	all := doctor.Run(t.Context(), o, func(f doctor.Finding) { told = append(told, f) })
	if len(told) != len(all) || len(all) < 14 {
		t.Errorf("told %d of %d", len(told), len(all))
	}
	for _, f := range all {
		if f.Status == doctor.Fail {
			t.Errorf("%+v", f)
		}
		if f.Detail == "" || f.Status != doctor.OK && f.Cure == "" || strings.Contains(f.Detail+f.Cure, "\n") {
			t.Errorf("unclear: %+v", f)
		}
	}
	if f := find(t, all, "build"); f.Status != doctor.OK || !strings.Contains(f.Detail, "clean container made for "+testbase.Arch) {
		t.Errorf("%+v", f)
	}
	left, err := filepath.Glob(filepath.Join(o.Podman.State, "*/*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// It works beside a daemon and sees that daemon's bases.
func TestBesideDaemon(t *testing.T) {
	o := options(t)
	o.Podman.ImageStores = nil
	conn, err := podman.Start(t.Context(), podman.Config{State: o.Podman.State})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	all := doctor.Run(t.Context(), o, nil)
	if f := find(t, all, "arch "+testbase.Arch); f.Status != doctor.Warn || !strings.HasPrefix(f.Detail, "native; no base") || !strings.Contains(f.Cure, "quarry images bootstrap "+testbase.Arch) {
		t.Errorf("without a base: %+v", f)
	}
	if f := find(t, all, "build"); f.Status != doctor.Warn || !strings.Contains(f.Detail, "for want of a base") {
		t.Errorf("without a base: %+v", f)
	}
	s, err := images.New(conn, images.Options{WorkDir: filepath.Join(o.Podman.State, "work")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(t.Context(), testbase.Arch, testbase.Tiny(t, testbase.Arch), nil); err != nil {
		t.Fatal(err)
	}
	b, err := s.Base(t.Context(), testbase.Arch)
	if err != nil || b.Digest == "" {
		t.Fatalf("%+v, %v", b, err)
	}
	// A base that no channel asks for is shown too, and one that is asked for by
	// name is another one.
	o.Archs, o.Refs = []string{testbase.Foreign}, []string{testbase.Foreign + ":trixie"}
	testbase.Emulate(t)
	all = doctor.Run(t.Context(), o, nil)
	if f := find(t, all, "arch "+testbase.Arch); f.Status != doctor.OK || !strings.HasPrefix(f.Detail, "native; base "+testbase.Arch+" "+b.Digest[:19]) || !strings.Contains(f.Detail, "no channel") {
		t.Errorf("with a base: %+v", f)
	}
	if f := find(t, all, "arch "+testbase.Foreign); f.Status != doctor.Warn || !strings.HasPrefix(f.Detail, "emulated") || !strings.Contains(f.Cure, "bootstrap "+testbase.Foreign+":trixie") {
		t.Errorf("with another base: %+v", f)
	}
	o.Archs, o.Refs = []string{testbase.Arch}, nil
	if f := find(t, doctor.Run(t.Context(), o, nil), "build"); f.Status != doctor.OK {
		t.Errorf("with a base: %+v", f)
	}
	if b, err := s.Base(t.Context(), testbase.Arch); err != nil || b.Digest == "" {
		t.Errorf("the daemon lost its base: %v", err)
	}
}

func TestFailures(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	script := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := runnable.WriteFile(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	dynamic, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	tomorrow := time.Now().Add(48 * time.Hour)
	for name, c := range map[string]struct {
		change func(*doctor.Options)
		check  string
		status doctor.Status
		says   string
	}{
		"no podman":      {func(o *doctor.Options) { o.Podman.Podman = "/nowhere/podman" }, "podman", doctor.Fail, "apt-get install podman"},
		"old podman":     {func(o *doctor.Options) { o.Podman.Podman = script("podman", "#!/bin/sh\necho podman version 3.4.4\n") }, "podman", doctor.Fail, "3.4.4 is too old"},
		"broken podman":  {func(o *doctor.Options) { o.Podman.Podman = script("podman", "#!/bin/sh\nexit 1\n") }, "podman", doctor.Fail, "does not run"},
		"broken service": {func(o *doctor.Options) { o.Podman.Podman = script("podman", "#!/bin/sh\necho broken >&2\nexit 1\n") }, "build", doctor.Fail, "broken"},
		"runtime":        {func(o *doctor.Options) { o.Podman.Runtime = "/bin/false" }, "runtime", doctor.Fail, "apt-get install runc"},
		"driver":         {func(o *doctor.Options) { o.Podman.Driver = "zfs" }, "storage", doctor.Fail, "not known"},
		"vfs":            {func(o *doctor.Options) { o.Podman.Driver = "vfs" }, "storage", doctor.Warn, "copies the whole base"},
		"memory":         {func(o *doctor.Options) { o.Memory = 1 << 60 }, "memory", doctor.Warn, "limits.memory"},
		"disk":           {func(o *doctor.Options) { o.MinFree = 1 << 60 }, "disk", doctor.Fail, "make room"},
		"arch":           {func(o *doctor.Options) { o.Archs = []string{"pdp11"} }, "arch pdp11", doctor.Fail, "machine of its own"},
		"fix hopeless":   {func(o *doctor.Options) { o.Archs = []string{"pdp11"}; o.Fix = true }, "arch pdp11", doctor.Fail, "apt-get install qemu-user-static"},
		"port":           {func(o *doctor.Options) { o.Listen = taken.Addr().String() }, "ssh", doctor.Fail, "ssh.listen"},
		"address":        {func(o *doctor.Options) { o.Listen = "192.0.2.1:22" }, "ssh", doctor.Fail, "ssh.listen"},
		"clock":          {func(o *doctor.Options) { o.Guest = script("g", "x"); os.Chtimes(o.Guest, tomorrow, tomorrow) }, "clock", doctor.Fail, "set-ntp"},
		"no guest":       {func(o *doctor.Options) { o.Guest = "/nowhere" }, "guest", doctor.Fail, "reinstall"},
		"dynamic guest":  {func(o *doctor.Options) { o.Guest = dynamic }, "guest", doctor.Fail, "CGO_ENABLED=0"},
		"closed guest":   {func(o *doctor.Options) { o.Guest = script("g", "x"); os.Chmod(o.Guest, 0o700) }, "guest", doctor.Fail, "chmod a+rx"},
		"uri":            {func(o *doctor.Options) { o.Podman.URI = "unix:///nowhere.sock" }, "build", doctor.Fail, "podman system service"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			o.Only = []string{c.check}
			c.change(&o)
			all := doctor.Run(t.Context(), o, nil)
			f := find(t, all, c.check)
			if f.Status != c.status || !strings.Contains(f.Detail+" "+f.Cure, c.says) {
				t.Errorf("%+v does not say %q", f, c.says)
			}
			if (doctor.Failed(all) > 0) != (c.status == doctor.Fail) {
				t.Errorf("%d failures", doctor.Failed(all))
			}
		})
	}
}

func TestDaemonsPort(t *testing.T) {
	o := options(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	o.Listen = l.Addr().String()
	o.Socket = filepath.Join(t.TempDir(), "quarry.sock")
	u, err := net.Listen("unix", o.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	o.Only = []string{"ssh"}
	if f := find(t, doctor.Run(t.Context(), o, nil), "ssh"); f.Status != doctor.OK {
		t.Errorf("%+v", f)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	<-ctx.Done()
	if all := doctor.Run(ctx, options(t), nil); len(all) != 0 {
		t.Errorf("%v", all)
	}
}

// Fixing makes programs of a foreign arch run, inside of containers too. It
// changes the machine, so it is tried in a user and mount namespace whose
// binfmt_misc is its own (Linux 6.7).
func TestFix(t *testing.T) {
	if os.Getenv("QUARRY_TEST_FIX") == "" {
		cmd := exec.Command("unshare", "--user", "--map-root-user", "--mount", os.Args[0], "-test.run=^TestFix$", "-test.v")
		cmd.Env = append(os.Environ(), "QUARRY_TEST_FIX=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return
	}
	if err := unix.Mount("binfmt_misc", "/proc/sys/fs/binfmt_misc", "binfmt_misc", 0, ""); err != nil {
		t.Fatalf("binfmt_misc: %v: needs Linux 6.7", err)
	}
	const arch = "riscv64"
	m, _ := tinyelf.Of(arch)
	prog, _ := m.Program()
	path := filepath.Join(t.TempDir(), "tiny")
	if err := runnable.WriteFile(path, prog); err != nil {
		t.Fatal(err)
	}
	var asked []string
	consent := false
	o := doctor.Options{Podman: podman.Config{State: t.TempDir()}, Archs: []string{arch}, Fix: true, Only: []string{"arch " + arch}}
	look := func() doctor.Finding { return find(t, doctor.Run(t.Context(), o, nil), "arch "+arch) }
	// Nobody is there to consent; somebody is, and does not; and does.
	if f := look(); f.Status != doctor.Fail || !strings.HasPrefix(f.Cure, "quarry doctor --fix --yes would register /") {
		t.Errorf("without anybody to ask: %+v", f)
	}
	o.Consent = func(would string) bool {
		asked = append(asked, would)
		return consent
	}
	if f := look(); f.Status != doctor.Fail || f.Fixed {
		t.Errorf("without consent: %+v", f)
	}
	if err := exec.Command(path).Run(); err == nil {
		t.Errorf("a program for %s runs, and nobody consented", arch)
	}
	consent = true
	if f := look(); f.Status == doctor.Fail || !f.Fixed || !strings.Contains(f.Detail, "flag F") {
		t.Errorf("with consent: %+v: needs qemu-user-static", f)
	}
	if len(asked) != 2 || !strings.Contains(asked[0], "for programs of "+arch) || !strings.Contains(asked[0], "until the next boot") {
		t.Errorf("asked: %q", asked)
	}
	if err := exec.Command(path).Run(); err != nil {
		t.Errorf("a program for %s: %v", arch, err)
	}
	if how, err := images.Emulation(arch); how != images.Emulated || err != nil {
		t.Errorf("%q, %v", how, err)
	}
	// It is well now, and nobody is asked; an entry of that name would be replaced.
	if f := look(); f.Fixed || len(asked) != 2 {
		t.Errorf("once more: %+v, asked %q", f, asked)
	}
	if did, err := doctor.Register(arch); err != nil || !strings.Contains(did, "removed the entry") {
		t.Errorf("%q, %v", did, err)
	}
}

// What the farm knows to be wrong is shown, each thing by its name.
func TestTroubles(t *testing.T) {
	o := options(t)
	o.Only = []string{"systems", "instance testing/x86_64", "base i686"}
	o.Troubles = func(context.Context) ([]doctor.Trouble, error) { return nil, nil }
	if f := find(t, doctor.Run(t.Context(), o, nil), "systems"); f.Status != doctor.OK {
		t.Errorf("%+v", f)
	}
	o.Troubles = func(context.Context) ([]doctor.Trouble, error) {
		return []doctor.Trouble{{What: "instance testing/x86_64", Why: "its last update failed", Cure: "mend it", Builds: true}, {What: "base i686", Why: "gone", Cure: "make it"}}, nil
	}
	all := doctor.Run(t.Context(), o, nil)
	if f := find(t, all, "instance testing/x86_64"); f.Status != doctor.Warn || f.Cure != "mend it" {
		t.Errorf("%+v", f)
	}
	if f := find(t, all, "base i686"); f.Status != doctor.Fail || f.Detail != "gone" {
		t.Errorf("%+v", f)
	}
	if none := doctor.Unknown([]string{"base i686", "instance gone/x86_64", "nonsense"}, all); !slices.Equal(none, []string{"nonsense"}) {
		t.Errorf("unknown are %q", none)
	}
	o.Only = []string{"systems"} // all that is in trouble
	if all := doctor.Run(t.Context(), o, nil); len(all) != 2 {
		t.Errorf("systems: %+v", all)
	}
	o.Only = []string{"base i686"}
	if all := doctor.Run(t.Context(), o, nil); len(all) != 1 || all[0].Name != "base i686" {
		t.Errorf("base i686: %+v", all)
	}
	o.Only = []string{"systems"}
	o.Troubles = func(context.Context) ([]doctor.Trouble, error) { return nil, errors.New("no answer") }
	if f := find(t, doctor.Run(t.Context(), o, nil), "systems"); f.Status != doctor.Warn || !strings.Contains(f.Detail, "no answer") {
		t.Errorf("%+v", f)
	}
}
