package jobs

import (
	"bufio"
	"context"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
)

// machine is a folder with files as kernels have them.
type machine struct {
	t   testing.TB
	dir string
	now time.Time
}

func newMachine(t testing.TB) *machine { return &machine{t, t.TempDir(), time.Unix(2_000_000_000, 0)} }

func (m *machine) file(name, text string) string {
	m.t.Helper()
	path := filepath.Join(m.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
	return path
}

func (m *machine) places() Places {
	return Places{Proc: m.dir + "/proc", Dev: m.dir + "/dev", Power: m.dir + "/power", Bus: "none"}
}

// TestOthersLoad: what the farm's own groups take is nobody else's load.
func TestOthersLoad(t *testing.T) {
	m := newMachine(t)
	// A group of version 1 counts ns, one of version 2 µs.
	v1, v2 := m.dir+"/v1", m.dir+"/v2"
	set := func(busy, one, two int) {
		m.file("proc/stat", "cpu  "+strconv.Itoa(busy)+" 0 100 9999 50 0 0 7000 3 0\ncpu0 1 2 3 4 5 6 7 8 9 10\nintr 5\n")
		m.file("v1/cpuacct.usage", strconv.Itoa(one*10_000_000)+"\n")
		m.file("v1/cpuacct.stat", "user "+strconv.Itoa(one)+"\nsystem 0\n")
		m.file("v2/cpu.stat", "usage_usec 1\nuser_usec "+strconv.Itoa(two*10_000)+"\nsystem_usec 0\n")
	}
	s := newSensor(Policy{Others: true}, m.places(), func() []string { return []string{v1, v2, m.dir + "/gone"} })
	busy, one, two := 1000, 0, 0
	look := func(after time.Duration, b, o, w int) float64 {
		m.now = m.now.Add(after)
		busy, one, two = busy+b, one+o, two+w
		set(busy, one, two)
		return s.look(m.now).Others
	}
	if x := look(0, 0, 0, 0); x != 0 {
		t.Errorf("before anything is known: %v", x)
	}
	// 8 of 8 processors work, 3 and 2 of them for builds. This process takes some,
	// too, of which nothing is known here, but not much.
	var x float64
	for range 30 {
		x = look(time.Second, 800, 300, 200)
	}
	if x < 2 || x > 3.01 {
		t.Errorf("others take %.2f processors, and not 3", x)
	}
	for range 30 {
		x = look(time.Second, 500, 300, 200)
	}
	if x < 0 || x > 0.1 {
		t.Errorf("others take %.2f processors, and not 0", x)
	}
	// A second of it is not a load yet; nor is what was before a long pause.
	if x = look(time.Second, 1300, 300, 200); x < 0.5 || x > 4 {
		t.Errorf("after a second of 8 processors: %.2f", x)
	}
	if again := look(time.Millisecond, 9999, 0, 0); again != x {
		t.Errorf("after a millisecond: %.2f", again)
	}
	if x = look(time.Hour, 100_000, 0, 0); x != 0 {
		t.Errorf("after an hour: %.2f", x)
	}
	// Clocks are set back, groups go, counters begin anew.
	os.RemoveAll(v1)
	for _, after := range []time.Duration{-time.Hour, time.Second, time.Second} {
		if x = look(after, -100_000, 0, 0); x < 0 || math.IsNaN(x) || math.IsInf(x, 0) {
			t.Errorf("others take %v processors", x)
		}
	}
	// Without any group it is not known whose load it is.
	blind := newSensor(Policy{Others: true}, m.places(), func() []string { return []string{m.dir + "/gone"} })
	for range 10 {
		m.now = m.now.Add(time.Second)
		set(busy, one, two)
		busy += 800
		if x := blind.look(m.now).Others; x != 0 {
			t.Errorf("with no group of the farm's others take %.2f processors", x)
		}
	}
	for _, text := range []string{"", "cpu", "cpu a b c d e f g h", "cpu -1 0 0 0 0 0 0 0", "cpu 99999999999999999999 0 0 0 0 0 0", "intr 1 2 3 4 5 6 7 8"} {
		m.file("proc/stat", text)
		m.now = m.now.Add(time.Second)
		if x := s.look(m.now).Others; x != 0 {
			t.Errorf("%q: others take %v processors", text, x)
		}
	}
}

func TestStall(t *testing.T) {
	m := newMachine(t)
	s := newSensor(Policy{MemoryStall: 10}, m.places(), nil)
	look := func(after time.Duration) float64 {
		m.now = m.now.Add(after)
		return s.look(m.now).Stall
	}
	psi := func(total string) {
		m.file("proc/pressure/memory", "some avg10=90.00 avg60=0.00 avg300=0.00 total="+total+"\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n")
	}
	psi("1000000")
	if x := look(0); x != 0 {
		t.Errorf("at first %v", x)
	}
	psi("1250000")
	if x := look(time.Second); x != 25 {
		t.Errorf("stalled for a quarter of a second: %v", x)
	}
	if x := look(time.Millisecond); x != 25 {
		t.Errorf("a millisecond later: %v", x)
	}
	psi("9250000")
	if x := look(time.Second); x != 100 {
		t.Errorf("stalled on all processors: %v", x)
	}
	psi("1")
	if x := look(time.Second); x != 0 {
		t.Errorf("counter began anew: %v", x)
	}
	for _, bad := range []string{"", "x", "-5", "99999999999999999999999"} {
		psi(bad)
		if x := look(time.Second); x != 0 {
			t.Errorf("total=%s: %v", bad, x)
		}
	}
	// Without pressure in the kernel, what is left counts.
	os.RemoveAll(m.dir + "/proc/pressure")
	m.file("proc/meminfo", "MemTotal:  3200000 kB\nMemFree: 1 kB\nMemAvailable: 99999 kB\n")
	if x := look(time.Second); x != 100 {
		t.Errorf("with next to no memory left: %v", x)
	}
	m.file("proc/meminfo", "MemTotal:  3200000 kB\nMemFree: 1 kB\nMemAvailable: 100001 kB\n")
	if x := look(time.Second); x != 0 {
		t.Errorf("with memory left: %v", x)
	}
	m.file("proc/meminfo", "MemTotal:  3200000 kB\n")
	if x := look(time.Second); x != 0 {
		t.Errorf("not knowing: %v", x)
	}
}

func TestKeys(t *testing.T) {
	m := newMachine(t)
	s := newSensor(Policy{Present: 1}, m.places(), nil)
	if sig := s.look(m.now); sig.Person {
		t.Errorf("without terminals: %+v", sig)
	}
	for name, ago := range map[string]time.Duration{"dev/tty1": time.Hour, "dev/pts/0": 3 * time.Minute, "dev/pts/ptmx": 0, "dev/tty": 0, "dev/ttyS0": 2 * time.Hour, "dev/null": 0} {
		path := m.file(name, "")
		if err := os.Chtimes(path, m.now.Add(-ago), m.now); err != nil {
			t.Fatal(err)
		}
	}
	m.now = m.now.Add(time.Second)
	if sig := s.look(m.now); !sig.Person || sig.Idle != 3*time.Minute+time.Second {
		t.Errorf("a key was pressed 3 minutes ago: %+v", sig)
	}
}

func TestBattery(t *testing.T) {
	for name, tt := range map[string]struct {
		files map[string]string
		want  bool
	}{
		"none":     {nil, false},
		"mains":    {map[string]string{"AC/type": "Mains", "AC/online": "1", "BAT0/type": "Battery", "BAT0/status": "Discharging"}, false},
		"battery":  {map[string]string{"AC/type": "Mains", "AC/online": "0", "BAT0/type": "Battery", "BAT0/status": "Discharging"}, true},
		"usb":      {map[string]string{"AC/type": "Mains", "AC/online": "0", "usb/type": "USB", "usb/online": "1", "BAT0/type": "Battery", "BAT0/status": "Discharging"}, false},
		"charging": {map[string]string{"BAT0/type": "Battery", "BAT0/status": "Charging"}, false},
		"full":     {map[string]string{"BAT0/type": "Battery", "BAT0/status": "Full"}, false},
		"mouse":    {map[string]string{"hid/type": "Battery", "hid/scope": "Device", "hid/status": "Discharging"}, false},
		"two":      {map[string]string{"BAT0/type": "Battery", "BAT0/status": "Unknown", "BAT1/type": "Battery", "BAT1/status": "Discharging"}, true},
	} {
		m := newMachine(t)
		for file, text := range tt.files {
			m.file("power/"+file, text+"\n")
		}
		s := newSensor(Policy{Battery: 1}, m.places(), nil)
		if got := s.look(m.now).Battery; got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// bus starts a D-Bus of the test's own.
func bus(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Fatal("dbus-daemon is not installed: make deps installs it")
	}
	dir := t.TempDir()
	conf := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(conf, []byte(`<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>session</type><listen>unix:path=`+dir+`/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--config-file="+conf, "--nofork", "--print-address")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("dbus-daemon says nothing: %v", err)
	}
	return strings.TrimSpace(line)
}

// TestLogind asks something that has logind's name and properties over a real bus.
func TestLogind(t *testing.T) {
	address := bus(t)
	now := time.Unix(2_000_000_000, 0)
	l := newLogind(address)
	l.wait = time.Minute // however slow the machine is
	defer l.close()
	if _, ok := l.idle(now); ok {
		t.Fatal("there is no logind, and it has answered")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := dbus.Connect(address, dbus.WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	props, err := prop.Export(conn, "/org/freedesktop/login1", prop.Map{"org.freedesktop.login1.Manager": {
		"IdleHint":      {Value: false, Writable: true},
		"IdleSinceHint": {Value: uint64(now.Add(-time.Hour).UnixMicro()), Writable: true},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName("org.freedesktop.login1", 0); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
	if _, ok := l.idle(now.Add(time.Second)); ok {
		t.Error("it was asked again at once")
	}
	now = now.Add(2 * logindRetry)
	if idle, ok := l.idle(now); !ok || idle != 0 {
		t.Errorf("somebody is there: %v, %v", idle, ok)
	}
	props.SetMust("org.freedesktop.login1.Manager", "IdleHint", true)
	if idle, ok := l.idle(now.Add(time.Second)); !ok || idle != 0 {
		t.Errorf("within seconds it need not know: %v, %v", idle, ok)
	}
	now = now.Add(logindEvery)
	if idle, ok := l.idle(now); !ok || idle != time.Hour+2*logindRetry+logindEvery {
		t.Errorf("nobody is there since an hour: %v, %v", idle, ok)
	}
	props.SetMust("org.freedesktop.login1.Manager", "IdleSinceHint", uint64(0))
	now = now.Add(logindEvery)
	if idle, ok := l.idle(now); !ok || idle < 24*time.Hour {
		t.Errorf("nobody was there: %v, %v", idle, ok)
	}
	conn.Close()
	now = now.Add(logindEvery)
	if _, ok := l.idle(now); ok {
		t.Error("logind is gone, and has answered")
	}
	// No bus at all.
	gone := newLogind("unix:path=" + t.TempDir() + "/none")
	if _, ok := gone.idle(now); ok {
		t.Error("there is no bus, and it has answered")
	}
	// One that takes connections and says nothing does not hold anybody up for good.
	silent, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	mute := newLogind("unix:path=" + silent.Addr().String())
	if _, ok := mute.idle(now); ok {
		t.Error("nobody has answered, and there is an answer")
	}
}

// TestThisMachine reads whatever machine this is: nothing must break.
func TestThisMachine(t *testing.T) {
	s := newSensor(Policy{Present: 1, Others: true, Battery: 1, MemoryStall: 10}, Places{}, nil)
	defer s.logind.close()
	now := time.Now()
	s.look(now)
	sig := s.look(now.Add(time.Second))
	if sig.Others < 0 || sig.Stall < 0 || sig.Stall > 100 || sig.Idle < 0 {
		t.Errorf("%+v", sig)
	}
}
