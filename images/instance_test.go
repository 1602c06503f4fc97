package images_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bindings "github.com/containers/podman/v4/pkg/bindings/images"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/testbase"
)

// A setup copies files and runs commands, as root with the network; builds see
// all of it, under the right owners, and have no network.
func TestInstance(t *testing.T) {
	web := newSite(t)
	f, _ := setupFarm(t, images.Setup{
		Files: []images.SetupFile{
			tool(t),
			{Path: "/etc/apt/sources.list", Data: []byte("# none\n")},
			{Path: "/new/folder/secret", Mode: 0o600, Data: []byte("s")},
		},
		Update: []string{
			`test "$(id -u) $HOME $QUARRY_CHANNEL $QUARRY_ARCH $PWD" = "0 /root testing ` + testbase.Arch + ` /" && test -z "$GOPATH$USER$SSH_AUTH_SOCK"`,
			"tool fetch " + web.URL + "/news >/news; cat /news",
			// Owners, modes, links, attributes and deleted things come out as they are.
			`mkdir /owned && cd /owned && echo x >a && chown nobody:bin a && chmod 4751 a && chown 65000:65535 . && ln a hard && ln -s ../nowhere soft && mkfifo pipe && chmod g+s .
cp a 'odd name
é' && touch -d @1234567890 old && : >cap && tool setcap cap && echo hello >'-rf'`,
			"rm /etc/debian_version; rm -rf /usr/share/perl5; mkdir /usr/share/perl5; : >/usr/share/perl5/fresh",
			// What is written there while a container runs is none of the layer's.
			"echo x >/tmp/x; echo x >/var/tmp/x; mkdir -p /run/x; echo x >/dev/shm/x; echo nameserver 1.2.3.4 >/etc/resolv.conf; echo x >/etc/hostname; echo x",
			// A package manager installs a package, with a script and a user.
			`set -e; mkdir -p /tmp/p/DEBIAN /tmp/p/usr/bin; printf 'Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: a <a@example.org>\nDescription: tiny\n' >/tmp/p/DEBIAN/control
printf '#!/bin/sh\nset -e\nSOURCE_DATE_EPOCH=86400 useradd --system tinyuser\ninstall -o tinyuser -d /var/lib/tiny\n' >/tmp/p/DEBIAN/postinst; chmod 755 /tmp/p/DEBIAN/postinst
printf '#!/bin/sh\necho tiny\n' >/tmp/p/usr/bin/tiny; chmod 755 /tmp/p/usr/bin/tiny
dpkg-deb --build /tmp/p /tmp/tiny.deb; apt-get update; apt-get install -y /tmp/tiny.deb; rm -rf /var/lib/apt/lists/*`,
			"(sleep 1000 >/dev/null 2>&1 </dev/null &) ; true", // does not keep the update from ending
		},
		LocalMirror: true,
	})
	base, err := f.store.Base(t.Context(), testbase.Arch)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	in, err := f.store.Update(t.Context(), "testing", testbase.Arch, false, func(p images.Progress) { lines = append(lines, p.Step+": "+p.Line) })
	if err != nil {
		t.Fatal(err)
	}
	if in.Channel != "testing" || in.Arch != testbase.Arch || in.Base != base || in.Digest == base.Digest || in.Image == base.Image || len(in.Digest) != 71 ||
		in.Made.IsZero() || in.Checked != in.Made || in.Size <= base.Size || in.Trouble != "" || !in.TroubleAt.IsZero() {
		t.Errorf("%+v", in)
	}
	all := strings.Join(lines, "\n")
	for _, want := range []string{"command 2 of 7: $ tool fetch " + web.URL, "command 2 of 7: this is /news", "command 6 of 7: Setting up tiny", "saving: "} {
		if !strings.Contains(all, want) {
			t.Errorf("progress lacks %q:\n%s", want, all)
		}
	}
	log, err := os.ReadFile(f.store.InstanceLog("testing", testbase.Arch))
	if err != nil || !strings.Contains(string(log), "this is /news\n") || !strings.Contains(string(log), "== done: "+in.Digest) {
		t.Errorf("log: %v:\n%s", err, log)
	}

	w, err := f.store.Workspace(t.Context(), images.Spec{Name: "1", Arch: testbase.Arch, Channel: "testing"})
	if err != nil {
		t.Fatal(err)
	}
	if w.Instance != in || w.Base != base {
		t.Errorf("%+v, %+v", w.Instance, w.Base)
	}
	for line, want := range map[string]string{
		"cat /news":                                                             "this is /news",
		"stat -c '%U:%G %a %h' /owned/a":                                        "nobody:bin 4751 2",
		"stat -c '%u:%g %a' /owned":                                             "65000:65535 2755",
		"stat -c '%u:%g %a' / /etc /usr/local/bin":                              "0:0 555\n0:0 755\n0:0 755",
		"stat -c '%i' /owned/a /owned/hard | uniq | wc -l":                      "1",
		"readlink /owned/soft; test -p /owned/pipe && echo pipe":                "../nowhere\npipe",
		"cat /owned/odd*é; stat -c %Y /owned/old; cat /owned/-rf":               "x\n1234567890\nhello",
		"tool getcap /owned/cap":                                                "0100000200200000000000000000000000000000",
		"ls /etc/debian_version 2>&1; ls /usr/share/perl5":                      "ls: cannot access '/etc/debian_version': No such file or directory\nfresh",
		"ls -A /tmp /var/tmp /dev/shm; ls -d /run/x 2>&1":                       "/dev/shm:\n\n/tmp:\n\n/var/tmp:\nls: cannot access '/run/x': No such file or directory",
		"stat -c '%U:%G %a %s' /new/folder/secret; stat -c %a /new":             "root:root 600 1\n755",
		"cat /etc/apt/sources.list; tiny; id -un tinyuser":                      "# none\ntiny\ntinyuser",
		"stat -c %U /var/lib/tiny":                                              "tinyuser",
		"grep ^tinyuser: /etc/shadow | cut -d: -f3":                             "1", // the day, which the next update is to have too
		"tool fetch " + web.URL + "/x >/dev/null 2>&1; echo $?":                 "3",
		"ls /sys/class/net":                                                     "lo",
		"grep -c . /proc/net/route; ps ax 2>/dev/null | grep -c '[s]leep 1000'": "1\n0",
	} {
		if got := strings.TrimSpace(ask(t, w, request{Shell: line}).Output); got != want {
			t.Errorf("%s: %q, not %q", line, got, want)
		}
	}
	w.Close(t.Context())

	// The layer, listed.
	files := f.layerOf(t, in)
	for _, p := range files {
		for _, no := range []string{"tmp/", "var/tmp/", "run/", "dev/", "proc/", "sys/"} {
			if strings.HasPrefix(p, no) {
				t.Errorf("layer holds %s", p)
			}
		}
		if slices.Contains([]string{"etc/resolv.conf", "etc/hostname", "etc/hosts", "etc/mtab", ".quarry", "quarry"}, p) {
			t.Errorf("layer holds %s", p)
		}
	}
	for _, p := range []string{"news", "owned/a", "etc/debian_version", "usr/bin/tiny", "etc/passwd"} {
		if !slices.Contains(files, p) {
			t.Errorf("layer lacks %s", p)
		}
	}

	// The same again is the same: a setup that changes nothing keeps the instance.
	again := f.update(t, true)
	if again.Digest != in.Digest || again.Image != in.Image || again.Made != in.Made || again.Checked.Before(in.Checked) {
		t.Errorf("%+v became %+v", in, again)
	}
	list, err := f.store.Instances(t.Context())
	if err != nil || len(list) != 1 || list[0] != again {
		t.Errorf("%+v, %v", list, err)
	}
	if bad, err := f.store.Verify(t.Context(), true, nil); err != nil || len(bad) > 0 {
		t.Errorf("%v, %v", bad, err)
	}
	f.clean(t)
	f.nothingHalf(t)
}

// Without LocalMirror the host's loopback is out of reach, and what a mirror
// does to its content shows in the instance.
func TestInstanceOfMirror(t *testing.T) {
	t.Parallel()
	web := newSite(t)
	f, _ := setupFarm(t, images.Setup{Files: []images.SetupFile{tool(t)}, Update: []string{"tool fetch " + web.URL + "/"}})
	_, err := f.store.Instance(t.Context(), "testing", testbase.Arch)
	var none *images.NoInstanceError
	if !errors.As(err, &none) || !strings.Contains(err.Error(), "ended with status 3") {
		t.Errorf("%v", err)
	}
	if n := web.n.Load(); n != 0 {
		t.Errorf("the host's loopback was reached %d times", n)
	}
	f.nothingHalf(t)
}

// A failed update says why, leaves the old instance in use and nothing half
// made, and is remembered over a restart of the daemon.
func TestUpdateFails(t *testing.T) {
	conn := testbase.Podman(t)
	good := images.Setup{Files: []images.SetupFile{{Path: "/v", Data: []byte("1")}}, Update: []string{"true"}}
	f, _ := farmWith(t, conn, channel(good))
	first := f.update(t, false)

	bad := good
	bad.Update = []string{"echo fine", "echo first words; echo E: the last words >&2; exit 7", "echo never"}
	f, log := farmWith(t, conn, channel(bad))
	in, err := f.store.Update(t.Context(), "testing", testbase.Arch, false, nil)
	if err == nil || in.Image != first.Image {
		t.Fatalf("%+v, %v", in, err)
	}
	for _, want := range []string{"the old one stays in use", "ended with status 7: the last words", "echo first words"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %v", want, err)
		}
	}
	if log.count("level=ERROR") != 1 || log.count("the old one stays in use") == 0 {
		t.Errorf("log: %s", log)
	}
	if !strings.Contains(in.Trouble, "status 7") || strings.Contains(in.Trouble, "\n") || in.TroubleAt.IsZero() || in.Checked != first.Checked {
		t.Errorf("%+v", in)
	}
	text, err := os.ReadFile(f.store.InstanceLog("testing", testbase.Arch))
	if err != nil || !strings.Contains(string(text), "first words") || strings.Contains(string(text), "never\n$") {
		t.Errorf("%v: %s", err, text)
	}
	f.nothingHalf(t)

	// Another daemon knows of it.
	f, _ = farmWith(t, conn, channel(bad))
	in2, err := f.store.Instance(t.Context(), "testing", testbase.Arch)
	if err != nil || in2 != in {
		t.Errorf("%+v is not %+v: %v", in2, in, err)
	}
	w := f.workspace(t, images.Limits{})
	if got := sh(t, w, "cat /v"); got != "1" || w.Instance != in {
		t.Errorf("%q, %+v", got, w.Instance)
	}
	w.Close(t.Context())

	// And one that ends well clears it.
	good.Files[0].Data = []byte("2")
	f, _ = farmWith(t, conn, channel(good))
	in = f.update(t, false)
	if in.Trouble != "" || !in.TroubleAt.IsZero() || in.Digest == first.Digest {
		t.Errorf("%+v", in)
	}
	w = f.workspace(t, images.Limits{})
	if got := sh(t, w, "cat /v"); got != "2" {
		t.Errorf("%q", got)
	}
	w.Close(t.Context())
	f.clean(t)
	f.nothingHalf(t)
}

// A first instance that cannot be made is a *NoInstanceError, and is not tried
// again by every build that asks.
func TestNoInstance(t *testing.T) {
	t.Parallel()
	web := newSite(t)
	conn := testbase.Podman(t)
	u := images.Setup{Files: []images.SetupFile{tool(t)}, Update: []string{"tool fetch " + web.URL + "/ && exit 9"}, LocalMirror: true}
	f, _ := farmWith(t, conn, channel(u))
	for range 3 {
		_, err := f.store.Workspace(t.Context(), images.Spec{Name: "1", Arch: testbase.Arch, Channel: "testing"})
		var none *images.NoInstanceError
		if !errors.As(err, &none) || none.Channel != "testing" || none.Arch != testbase.Arch || !strings.Contains(err.Error(), "status 9") {
			t.Fatalf("%v", err)
		}
	}
	if n := web.n.Load(); n != 1 {
		t.Errorf("it was tried %d times", n)
	}
	list, err := f.store.Instances(t.Context())
	if err != nil || len(list) != 1 || list[0].Image != "" || !strings.Contains(list[0].Trouble, "status 9") {
		t.Errorf("%+v, %v", list, err)
	}
	// Who asks for an update gets one.
	if _, err := f.store.Update(t.Context(), "testing", testbase.Arch, true, nil); err == nil {
		t.Error("it was made")
	}
	if n := web.n.Load(); n != 2 {
		t.Errorf("it was tried %d times", n)
	}
	// A channel with another setup does not wait for this one's failure.
	u.Update = []string{"true"}
	f, _ = farmWith(t, conn, channel(u))
	if _, err := f.store.Instance(t.Context(), "testing", testbase.Arch); err != nil {
		t.Error(err)
	}
	if _, err := f.store.Instance(t.Context(), "tseting", testbase.Arch); err == nil || !strings.Contains(err.Error(), "testing") {
		t.Errorf("%v", err)
	}
	var base *images.NoBaseError
	if _, err := f.store.Instance(t.Context(), "testing", "sparc"); !errors.As(err, &base) {
		t.Errorf("%v", err)
	}
}

// An update that does not end is ended.
func TestUpdateTimeout(t *testing.T) {
	t.Parallel()
	f, _ := setupFarm(t, images.Setup{Update: []string{"echo waiting for nothing", "sleep 100000"}, Timeout: 3 * time.Second})
	_, err := f.store.Instance(t.Context(), "testing", testbase.Arch)
	if err == nil || !strings.Contains(err.Error(), "not done after 3s") {
		t.Fatalf("%v", err)
	}
	f.nothingHalf(t)
}

// Whoever broke it off, nothing is left and the old instance is in use.
func TestUpdateBrokenOff(t *testing.T) {
	web := newSite(t)
	web.ask, web.ok = make(chan string), make(chan bool)
	conn := testbase.Podman(t)
	u := images.Setup{Update: []string{"true"}, LocalMirror: true}
	f, _ := farmWith(t, conn, channel(u))
	old := f.update(t, false)
	u.Files, u.Update = []images.SetupFile{tool(t)}, []string{"echo x >/x", "tool fetch " + web.URL + "/"}
	f, _ = farmWith(t, conn, channel(u))
	begin := func(ctx context.Context) <-chan error {
		done := make(chan error, 1)
		go func() {
			_, err := f.store.Update(ctx, "testing", testbase.Arch, true, nil)
			done <- err
		}()
		return done
	}
	current := func() images.Instance {
		t.Helper()
		in, err := f.store.Instance(t.Context(), "testing", testbase.Arch)
		if err != nil || in.Image != old.Image {
			t.Fatalf("%+v, %v", in, err)
		}
		return in
	}
	// over waits until the site has noticed that who asked is gone, and answers it
	// in nobody else's place.
	over := func() {
		t.Helper()
		await(t, "the site is at peace", func() bool { return web.busy.Load() == 0 })
	}
	// Nobody wants it any more: that is no failure.
	ctx, cancel := context.WithCancel(t.Context())
	first, second := begin(ctx), begin(t.Context())
	<-web.ask
	await(t, "two wait for one", func() bool { waiting, making := images.Updates(f.store); return waiting == 2 && making == 1 })
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	// The other one still waits for it.
	web.ok <- true
	if err := <-second; err != nil {
		t.Errorf("%v", err)
	}
	if n := web.n.Load(); n != 1 {
		t.Errorf("made %d times", n)
	}
	old, _ = f.store.Instance(t.Context(), "testing", testbase.Arch)

	ctx, cancel = context.WithCancel(t.Context())
	first = begin(ctx)
	<-web.ask
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	over()
	if in := current(); in.Trouble != "" {
		t.Errorf("%+v", in)
	}
	f.nothingHalf(t)

	// podman dies.
	first = begin(t.Context())
	<-web.ask
	victim, err := os.FindProcess(conn.PID())
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-first; !errors.Is(err, podman.ErrGone) {
		t.Errorf("%v", err)
	}
	over()
	if in := current(); !strings.Contains(in.Trouble, "gone") {
		t.Errorf("%+v", in)
	}
	f.nothingHalf(t)

	// And then it works.
	first = begin(t.Context())
	<-web.ask
	web.ok <- true
	if err := <-first; err != nil {
		t.Error(err)
	}
	if in := current(); in.Trouble != "" {
		t.Errorf("%+v", in)
	}
	f.nothingHalf(t)

	// A store that is closed ends what it makes.
	first = begin(t.Context())
	<-web.ask
	if err := f.store.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-first; err == nil {
		t.Error("it was made")
	}
	f.nothingHalf(t)
}

// However many ask, one is made.
func TestOneMaker(t *testing.T) {
	t.Parallel()
	f, log := smallFarm(t, channel(images.Setup{Files: []images.SetupFile{{Path: "/v", Data: []byte("1")}}}))
	type answer struct {
		in  images.Instance
		err error
	}
	answers := make(chan answer)
	for i := range 20 {
		go func() {
			var a answer
			if i%2 == 0 {
				a.in, a.err = f.store.Instance(t.Context(), "testing", testbase.Arch)
			} else {
				a.in, a.err = f.store.Update(t.Context(), "testing", testbase.Arch, false, nil)
			}
			answers <- a
		}()
	}
	var first images.Instance
	for i := range 20 {
		a := <-answers
		if i == 0 {
			first = a.in
		}
		if a.err != nil || a.in != first {
			t.Errorf("%+v, %v", a.in, a.err)
		}
	}
	if n := log.count("an instance is made"); n != 1 {
		t.Errorf("%d were made", n)
	}
	f.nothingHalf(t)
}

// An instance follows its base and its setup, and otherwise stays.
func TestInstanceDue(t *testing.T) {
	t.Parallel()
	u := images.Setup{Files: []images.SetupFile{{Path: "/etc/v", Data: []byte("1")}}}
	f, log := smallFarm(t, channel(u))
	first := f.update(t, false)
	if again := f.update(t, false); again != first || log.count("an instance is") != 1 {
		t.Errorf("%+v became %+v", first, again)
	}
	w := f.workspace(t, images.Limits{})
	defer w.Close(t.Context())

	base := f.load(t, "second")
	if in, err := f.store.Instance(t.Context(), "testing", testbase.Arch); err != nil || in != first {
		t.Errorf("builds got %+v, %v before it was updated", in, err)
	}
	second := f.update(t, false)
	if second.Base != base || second.Digest == first.Digest {
		t.Errorf("%+v", second)
	}
	// The build that runs keeps the old one until it ends.
	if got, err := os.ReadFile(w.Root() + "/etc/mark"); err != nil || string(got) != "first" {
		t.Errorf("%q, %v", got, err)
	}
	w2 := f.workspace(t, images.Limits{})
	if got, err := os.ReadFile(w2.Root() + "/etc/mark"); err != nil || string(got) != "second" {
		t.Errorf("%q, %v", got, err)
	}
	w2.Close(t.Context())
	// The very base that is there already changes nothing.
	f.load(t, "second")
	if again := f.update(t, false); again.Digest != second.Digest || again.Made != second.Made {
		t.Errorf("%+v became %+v", second, again)
	}

	u.Files[0].Data = []byte("2")
	f2, _ := farmWith(t, f.conn, channel(u))
	if in, err := f2.store.Instance(t.Context(), "testing", testbase.Arch); err != nil || in.Digest != second.Digest {
		t.Errorf("%+v, %v", in, err)
	}
	third := f2.update(t, false)
	if third.Digest == second.Digest || third.Setup == second.Setup {
		t.Errorf("%+v", third)
	}
	u.MaxAge = time.Nanosecond
	f3, log3 := farmWith(t, f.conn, channel(u))
	if in := f3.update(t, false); in.Digest != third.Digest || log3.count("an instance is up to date") != 1 {
		t.Errorf("%+v", in)
	}
	// Without a setup the instance is the base.
	f4, _ := farmWith(t, f.conn, channel(images.Setup{}))
	in := f4.update(t, true)
	if in.Image != base.Image && in.Digest != base.Digest || in.Setup != "" {
		t.Errorf("%+v of %+v", in, base)
	}
}

// A daemon that was killed at any moment of a swap leaves an instance that
// the record tells of, under its name, and no draft.
func TestSweepInstances(t *testing.T) {
	t.Parallel()
	f, _ := smallFarm(t, channel(images.Setup{Files: []images.SetupFile{{Path: "/etc/v", Data: []byte("1")}}}))
	in := f.update(t, false)
	name := "localhost/quarry/instance:" + testbase.Arch + ".testing"
	if names := imageNames(t, f.conn); !slices.Contains(names, name) {
		t.Fatalf("%v", names)
	}
	call, err := f.conn.Context(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id := strings.TrimPrefix(in.Image, "sha256:")
	base := strings.TrimPrefix(in.Base.Image, "sha256:")
	for _, err := range []error{
		bindings.Tag(call, id, "aaaa", "localhost/quarry/instance-draft", nil),
		bindings.Tag(call, base, "bbbb", "localhost/quarry/instance-draft", nil),
		bindings.Untag(call, id, testbase.Arch+".testing", "localhost/quarry/instance", nil),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	next, _ := farmWith(t, f.conn, channel(images.Setup{Files: []images.SetupFile{{Path: "/etc/v", Data: []byte("1")}}}))
	if err := next.store.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if names := imageNames(t, f.conn); !slices.Equal(names, []string{"localhost/quarry/base:" + testbase.Arch, name}) {
		t.Errorf("%v", names)
	}
	if got, err := next.store.Instance(t.Context(), "testing", testbase.Arch); err != nil || got != in {
		t.Errorf("%+v, %v", got, err)
	}
	// An image that is gone, and a record that is no record, are as none.
	if _, errs := bindings.Remove(call, []string{id}, new(bindings.RemoveOptions).WithForce(true)); len(errs) > 0 {
		t.Fatal(errs)
	}
	next, log := farmWith(t, f.conn, channel(images.Setup{Files: []images.SetupFile{{Path: "/etc/v", Data: []byte("1")}}}))
	got, err := next.store.Instance(t.Context(), "testing", testbase.Arch)
	if err != nil || got.Image == "" || log.count("gone from podman's storage") != 1 {
		t.Errorf("%+v, %v: %s", got, err, log)
	}
	record := filepath.Join(filepath.Dir(f.conn.Dir()), "instances", "testing."+testbase.Arch+".json")
	whole, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	for _, broken := range []string{"", "{", "[]", `{"channel":"../../x"}`, strings.Replace(string(whole), got.Image, "sha256:../"+got.Image[10:], 1)} {
		if err := os.WriteFile(record, []byte(broken), 0o644); err != nil {
			t.Fatal(err)
		}
		next, log := farmWith(t, f.conn, channel(images.Setup{Files: []images.SetupFile{{Path: "/etc/v", Data: []byte("1")}}}))
		if got, err := next.store.Instance(t.Context(), "testing", testbase.Arch); err != nil || got.Image == "" || log.count("is broken") != 1 {
			t.Errorf("%q: %+v, %v", broken, got, err)
		}
	}
}
