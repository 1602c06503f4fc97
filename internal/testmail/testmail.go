// Package testmail runs Debian's exim as a mail server of a test's own: on free
// ports, with a spool, a certificate and a mailbox in a folder of its own, as
// somebody who owns nothing else. The machine's mail is not touched.
package testmail

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"mime"
	"mime/quotedprintable"
	"net"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry/internal/runnable"
	"github.com/Morphux/quarry/internal/testport"
)

// Who may log in.
const (
	User     = "farm"
	Password = "correct horse"
)

// Server is a mail server. It takes mail for example.org, from those who have
// logged in, which they can where the connection is encrypted. Mail to
// nobody@example.org is refused for good, and mail to later@example.org for now.
type Server struct {
	Addr     string // STARTTLS
	Implicit string // TLS from the first byte
	CA       string // file of the certificate, which is for localhost and 127.0.0.1

	dir     string
	program string
	uid     int
	cmd     *exec.Cmd
}

// anyone is who the server runs as where the tests run as root.
const anyone = 65534

// cache is where scripts/deps puts the server's program.
func cache() string {
	switch dir := os.Getenv("QUARRY_CACHE"); {
	case dir != "":
		return dir
	case os.Getuid() == 0:
		return "/var/cache/quarry"
	}
	home, _ := os.UserHomeDir()
	return filepath.Join(home, ".cache", "quarry")
}

// wrappers is where Debian keeps the library that gives a program users of its
// own: exim wants one named Debian-exim.
const wrappers = "/usr/lib/*/libnss_wrapper.so"

// New makes a server that does not run yet.
func New(t testing.TB) *Server {
	t.Helper()
	program := filepath.Join(cache(), "exim4")
	wrapper, _ := filepath.Glob(wrappers)
	if _, err := os.Stat(program); err != nil || len(wrapper) == 0 {
		t.Fatalf("%s or %s is missing: make deps installs what the tests need", program, wrappers)
	}
	dir, err := os.MkdirTemp("", "quarry-mail-")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{dir: dir, uid: os.Getuid(), CA: filepath.Join(dir, "cert.pem"), program: filepath.Join(dir, "exim4")}
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			t.Logf("the mail server's log:\n%s", s.Log())
		}
		os.RemoveAll(dir)
	})
	if s.uid == 0 {
		s.uid = anyone
	}
	// The cache may be closed to who runs it.
	data, err := os.ReadFile(program)
	if err == nil {
		err = runnable.WriteFile(s.program, data)
	}
	if err != nil {
		t.Fatal(err)
	}
	ports := testport.Free(t, 2)
	s.Addr, s.Implicit = fmt.Sprintf("127.0.0.1:%d", ports[0]), fmt.Sprintf("127.0.0.1:%d", ports[1])
	s.certificate(t)
	replace := strings.NewReplacer("DIR", dir, "PORT", fmt.Sprint(ports[0]), "TLSPORT", fmt.Sprint(ports[1]), "USER", User, "PASSWORD", Password)
	for name, text := range map[string]string{
		"exim.conf": replace.Replace(conf),
		"passwd":    fmt.Sprintf("Debian-exim:x:%d:%d::/:/bin/false\n", s.uid, s.uid),
		"group":     fmt.Sprintf("Debian-exim:x:%d:\n", s.uid),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if os.Getuid() == 0 {
		entries, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, path := range append(entries, dir) {
			if err := os.Chown(path, s.uid, s.uid); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

const conf = `exim_path = DIR/exim4
exim_user = Debian-exim
exim_group = Debian-exim
primary_hostname = mail.example.org
spool_directory = DIR/spool
log_file_path = DIR/%slog
log_selector = -queue_run
pid_file_path = DIR/pid
keep_environment = LD_PRELOAD : ^NSS_WRAPPER_
local_interfaces = 127.0.0.1
daemon_smtp_ports = PORT : TLSPORT
tls_on_connect_ports = TLSPORT
tls_advertise_hosts = *
tls_certificate = DIR/cert.pem
tls_privatekey = DIR/key.pem
acl_smtp_rcpt = rcpt
deliver_drop_privilege
never_users =
disable_ipv6
host_lookup =
rfc1413_query_timeout = 0s
queue_run_in_order
begin acl
rcpt:
  deny !authenticated = *
    message = log in first
  deny local_parts = nobody
    message = there is no such person
  defer local_parts = later
    message = come again
  accept domains = example.org
  deny message = no such domain
begin routers
all:
  driver = accept
  transport = box
begin transports
box:
  driver = appendfile
  directory = DIR/box
  create_directory
  maildir_format
  envelope_to_add
begin retry
* * F,1h,1s
begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if and {{eq{$auth2}{USER}}{eq{$auth3}{PASSWORD}}}}
  server_set_id = $auth2
  server_advertise_condition = ${if def:tls_in_cipher}
`

func (s *Server) certificate(t testing.TB) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(filepath.Join(s.dir, name), pem.EncodeToMemory(block), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// Start starts the server, on the ports that it had before, and waits until it
// answers.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	wrapper, _ := filepath.Glob(wrappers)
	out, err := os.OpenFile(filepath.Join(s.dir, "out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(s.program, "-C", filepath.Join(s.dir, "exim.conf"), "-bdf", "-q1s")
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LD_PRELOAD=" + wrapper[0],
		"NSS_WRAPPER_PASSWD=" + filepath.Join(s.dir, "passwd"), "NSS_WRAPPER_GROUP=" + filepath.Join(s.dir, "group")}
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(s.uid), Gid: uint32(s.uid), NoSetGroups: false}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.cmd = cmd
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if greets(s.Addr) {
			return
		}
		select {
		case err := <-ended:
			t.Fatalf("the mail server has ended: %v\n%s", err, s.Log())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("the mail server does not answer:\n%s", s.Log())
		}
	}
}

func greets(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	b := make([]byte, 3)
	_, err = io.ReadFull(c, b)
	fmt.Fprint(c, "QUIT\r\n")
	return err == nil && string(b) == "220"
}

// Kill ends the server and all its processes at once, with connections and
// deliveries under way.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	group := s.cmd.Process.Pid
	for deadline := time.Now().Add(time.Minute); alive(group) && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		syscall.Kill(-group, syscall.SIGKILL)
	}
	s.cmd = nil
}

// alive reports whether a process group has processes. Those that have ended and
// nobody has asked after do not count.
func alive(group int) bool {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(text), ") ") // behind the program's name: state, parent, group
		words := strings.Fields(rest)
		if len(words) > 2 && words[2] == fmt.Sprint(group) && words[0] != "Z" && words[0] != "X" {
			return true
		}
	}
	return false
}

// Log is what the server says of itself.
func (s *Server) Log() string {
	var b strings.Builder
	for _, name := range []string{"out", "mainlog", "rejectlog", "paniclog"} {
		text, _ := os.ReadFile(filepath.Join(s.dir, name))
		b.Write(text)
	}
	return b.String()
}

// Letter is one that was delivered.
type Letter struct {
	To     string // of the envelope
	Header mail.Header
	Body   string
	Raw    string
}

// ID is its Message-ID.
func (l Letter) ID() string { return l.Header.Get("Message-Id") }

// Subject is its subject, decoded.
func (l Letter) Subject() string {
	s, err := new(mime.WordDecoder).DecodeHeader(l.Header.Get("Subject"))
	if err != nil {
		return l.Header.Get("Subject")
	}
	return s
}

// Letters are those that were delivered, in the order of their dates and subjects.
func (s *Server) Letters(t testing.TB) (list []Letter) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "box", "new", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		m, err := mail.ReadMessage(bytes.NewReader(raw))
		if err != nil {
			t.Fatalf("a letter cannot be read: %v\n%s", err, raw)
		}
		body := io.Reader(m.Body)
		if m.Header.Get("Content-Transfer-Encoding") == "quoted-printable" {
			body = quotedprintable.NewReader(body)
		}
		text, err := io.ReadAll(body)
		if err != nil {
			t.Fatalf("a letter cannot be read: %v\n%s", err, raw)
		}
		list = append(list, Letter{m.Header.Get("Envelope-To"), m.Header, strings.ReplaceAll(string(text), "\r\n", "\n"), string(raw)})
	}
	slices.SortFunc(list, func(a, b Letter) int {
		x, _ := a.Header.Date()
		y, _ := b.Header.Date()
		if c := x.Compare(y); c != 0 {
			return c
		}
		return strings.Compare(a.Subject(), b.Subject())
	})
	return list
}

// Wait waits until so many letters have been delivered, and gives them.
func (s *Server) Wait(t testing.TB, n int) []Letter {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		list := s.Letters(t)
		if len(list) >= n {
			return list
		}
		if time.Now().After(deadline) {
			var subjects []string
			for _, l := range list {
				subjects = append(subjects, l.To+": "+l.Subject())
			}
			t.Fatalf("%d letters were delivered, not %d: %q", len(list), n, subjects)
		}
	}
}
