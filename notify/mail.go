package notify

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	netmail "net/mail"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/wneessen/go-mail"
	"github.com/wneessen/go-mail/smtp"
)

// Mail says how letters are sent.
type Mail struct {
	Server string // host:port
	TLS    string // starttls, implicit or none
	CA     string // file of certificates; "": the system's
	User   string // to log in with; "": without
	// PasswordFile is read anew for every connection; its first line counts.
	PasswordFile string
	From         netmail.Address
	Farm         string        // name of the farm
	Agent        string        // e.g. Quarry 1.2
	Timeout      time.Duration // of reaching the server, and of each letter; 0: 30 s
}

func (m *Mail) farm() string { return m.Farm }

// domain is what Message-IDs end with.
func (m *Mail) domain() string {
	_, domain, _ := strings.Cut(m.From.Address, "@")
	return domain
}

// sendError is an error of sending.
type sendError struct {
	error
	server bool // it is not about the letter: the others would meet it too
	final  bool // it would be the same the next time
}

// Unwrap gives the error itself.
func (f *sendError) Unwrap() error { return f.error }

// conn is a connection to the mail server, logged in.
type conn struct {
	mail   *Mail
	client *mail.Client
	smtp   *smtp.Client
	done   func() bool
}

// dial connects. Whatever goes wrong here is no fault of a letter.
func (m *Mail) dial(ctx context.Context) (*conn, error) {
	host, port, err := net.SplitHostPort(m.Server)
	if err != nil {
		return nil, fmt.Errorf("mail server %q is no address: %w", m.Server, err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		if number, err = net.DefaultResolver.LookupPort(ctx, "tcp", port); err != nil {
			return nil, fmt.Errorf("mail server %q has no port: %w", m.Server, err)
		}
	}
	security := &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
	if m.CA != "" {
		pem, err := os.ReadFile(m.CA)
		if err != nil {
			return nil, fmt.Errorf("mail.ca cannot be read: %w", err)
		}
		security.RootCAs = x509.NewCertPool()
		if !security.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("mail.ca %s has no certificate in PEM form", m.CA)
		}
	}
	opts := []mail.Option{mail.WithPort(number), mail.WithTimeout(m.timeout()), mail.WithTLSConfig(security)}
	switch m.TLS {
	case "none":
		opts = append(opts, mail.WithTLSPolicy(mail.NoTLS))
	case "implicit":
		opts = append(opts, mail.WithSSL())
	default:
		opts = append(opts, mail.WithTLSPolicy(mail.TLSMandatory))
	}
	if m.User != "" {
		password, err := secretOf(m.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("mail.password_file: %w", err)
		}
		opts = append(opts, mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover), mail.WithUsername(m.User), mail.WithPassword(string(password)))
	}
	client, err := mail.NewClient(host, opts...)
	if err != nil {
		return nil, fmt.Errorf("mail server %s: %w", m.Server, err)
	}
	s, err := client.DialToSMTPClientWithContext(ctx)
	if err != nil {
		return nil, fmt.Errorf("mail server %s: %w", m.Server, err)
	}
	// What hangs is cut off when the farm stops.
	return &conn{m, client, s, context.AfterFunc(ctx, func() { s.Close() })}, nil
}

func (m *Mail) timeout() time.Duration {
	if m.Timeout > 0 {
		return m.Timeout
	}
	return 30 * time.Second
}

func (c *conn) close() {
	c.done()
	if c.client.CloseWithSMTPClient(c.smtp) != nil {
		c.smtp.Close()
	}
}

// send hands a letter over. nil says that the server has taken it.
func (c *conn) send(l *Letter, name, address string) *sendError {
	m, err := c.mail.message(l, name, address)
	if err != nil {
		return &sendError{err, false, true}
	}
	err = c.client.SendWithSMTPClient(c.smtp, m)
	if m.IsDelivered() || err == nil { // what fails after that is of no consequence
		return nil
	}
	var sent *mail.SendError
	if !errors.As(err, &sent) {
		return &sendError{err, true, false}
	}
	switch code := sent.ErrorCode(); {
	case sent.Reason == mail.ErrGetRcpts, sent.Reason == mail.ErrGetSender:
		return &sendError{err, false, true}
	case code == 421, code == 530, code == 535, sent.Reason == mail.ErrSMTPMailFrom && code >= 500:
		// It closes, or it does not want us: that is for an admin to mend, and no
		// reason to throw a letter away.
		return &sendError{err, true, false}
	case code >= 500:
		return &sendError{err, false, true}
	case code >= 400:
		return &sendError{err, false, false}
	}
	return &sendError{err, true, false} // the connection is lost
}

// message is a letter as it goes out. Nothing in it can become another header, or
// anything but plain text.
func (m *Mail) message(l *Letter, name, address string) (*mail.Msg, error) {
	msg := mail.NewMsg(mail.WithEncoding(mail.EncodingQP), mail.WithCharset(mail.CharsetUTF8), mail.WithNoDefaultUserAgent())
	msg.FromMailAddress(&m.From)
	to, err := netmail.ParseAddress(address)
	if err != nil || strings.ContainsAny(address, "\r\n") {
		return nil, fmt.Errorf("%.80q is no address that can be written to", address)
	}
	to.Name = oneLine(name)
	msg.ToMailAddress(to)
	msg.Subject(oneLine(l.Subject))
	msg.SetMessageIDWithValue(l.ID)
	msg.SetDateWithValue(l.Made)
	if l.Reply != "" {
		msg.SetGenHeader(mail.HeaderInReplyTo, "<"+oneLine(l.Reply)+">")
		msg.SetGenHeader(mail.HeaderReferences, "<"+oneLine(l.Reply)+">")
	}
	// RFC 3834: nobody answers this by itself.
	msg.SetGenHeader("Auto-Submitted", "auto-generated")
	msg.SetGenHeader("List-Id", "Quarry build farm <quarry."+m.domain()+">")
	msg.SetGenHeader(mail.HeaderUserAgent, oneLine(m.Agent))
	for key, value := range map[string]string{"Farm": m.Farm, "Kind": string(l.Kind), "Channel": l.Channel, "Package": l.Package, "Version": l.Version, "Arch": l.Arch, "Build": build(l.Build)} {
		if value != "" {
			msg.SetGenHeader(mail.Header("X-Quarry-"+key), oneLine(value))
		}
	}
	msg.SetBodyString(mail.TypeTextPlain, l.Body)
	return msg, nil
}

func build(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// Check reaches the mail server and logs in, and sends nothing.
func (m *Mail) Check(ctx context.Context) error {
	c, err := m.dial(ctx)
	if err != nil {
		return err
	}
	c.close()
	return nil
}

// secretOf reads the first line of a file.
func secretOf(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	if line = bytes.TrimSpace(line); len(line) == 0 {
		return nil, fmt.Errorf("%s is empty", path)
	}
	return line, nil
}

// ErrNoMail is the error of a farm that sends no mail.
var ErrNoMail = errors.New("no mail is sent from here: set mail.server in the configuration")

// ErrNobody is wrapped by the error for a reader who is not known.
var ErrNobody = errors.New("is nobody known here who has an address")

// Test sends a letter to a user, or to somebody's address, at once, and returns
// the address that the server has taken it for.
func (n *Notifier) Test(ctx context.Context, to, by string) (string, error) {
	if n.opts.Mail == nil {
		return "", ErrNoMail
	}
	people, err := n.opts.People()
	if err != nil {
		return "", err
	}
	for _, p := range people {
		if p.Email == "" || p.User != to && !strings.EqualFold(p.Email, to) {
			continue
		}
		now := time.Now().UTC().Truncate(time.Second)
		l := &Letter{ID: fmt.Sprintf("test-%x@%s", now.UnixNano()+int64(os.Getpid()), n.opts.Mail.domain()), User: p.User, Kind: "test", Made: now,
			Subject: "[quarry] a test of the farm's mail"}
		var text page
		text.say("Mail from this farm reaches you. %s has asked for this letter; nothing needs to be done.", by)
		l.Body = text.String()
		c, err := n.opts.Mail.dial(ctx)
		if err != nil {
			return "", err
		}
		defer c.close()
		if err := c.send(l, p.Name, p.Email); err != nil {
			return "", fmt.Errorf("mail server %s does not take a letter to %s: %w", n.opts.Mail.Server, p.Email, err)
		}
		return p.Email, nil
	}
	return "", fmt.Errorf("%.80q %w: see quarry key list", to, ErrNobody)
}

// Retry has all letters and deliveries tried at once, also letters that were given
// up, and returns how many letters there are.
func (n *Notifier) Retry() (int, error) {
	for _, h := range n.hooks {
		h.retry()
	}
	return n.box.retry()
}

// Drop forgets the letters that were given up, and how many events webhooks were
// not told of. It returns how many letters and events those were.
func (n *Notifier) Drop() int {
	dropped := n.box.drop()
	for _, h := range n.hooks {
		dropped += h.drop()
	}
	return dropped
}
