package protocol

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry/internal/words"
)

// Call is one use of a verb.
type Call struct {
	Words []string
	// ID is a request id, under which the verb is done once however often it is
	// asked for. With it, [Client.Do] connects again when it is cut off.
	ID  string
	In  io.Reader // what the verb may read; nil: nothing
	Out io.Writer
	Err io.Writer
}

// NewID makes a request id that nobody else uses.
func NewID() string { return strings.ToLower(rand.Text()) }

// Reply is a reply of the farm's that is none of a verb's, as an error.
type Reply struct {
	Code int
	Text string
}

func (r *Reply) Error() string { return fmt.Sprintf("the farm says: %s", r.Text) }

// ExitCode is the exit code that goes with the reply.
func (r *Reply) ExitCode() int {
	switch {
	case r.Code < 500:
		return exitUnreachable
	case r.Code == codeStranger, r.Code == codeToken:
		return exitForbidden
	case r.Code == codeUncertain:
		return exitError
	}
	return exitUsage
}

// Unreachable is that no farm answers.
type Unreachable struct{ err error }

func (u *Unreachable) Error() string { return u.err.Error() }

// Unwrap gives why.
func (u *Unreachable) Unwrap() error { return u.err }

// ExitCode is the exit code that goes with it.
func (u *Unreachable) ExitCode() int { return exitUnreachable }

// Client calls verbs of a farm through the text protocol. It has one connection,
// and one call goes over it at a time.
type Client struct {
	// Patience is for how long [Client.Do] tries to connect again after it was cut
	// off.
	Patience time.Duration

	network, addr, token string
	terminal             Terminal
	tls                  *tls.Config

	mu   sync.Mutex // guards the following
	conn net.Conn   // nil: not connected
	r    *bufio.Reader
}

// Dial connects to a farm, e.g. tcp://localhost:6694, tls://farm.example.org:6694
// or unix:///var/lib/quarry/quarry.text, and shows a token, if there is one. With
// tls a certificate that no authority of this machine has signed is taken when it
// is in the file of ?ca=FILE, or its key is that of ?pin=sha256//DIGEST, as the
// daemon's log shows it. With a terminal, answers are for a person, and no verb
// has input.
func Dial(ctx context.Context, farm, token string, t Terminal) (*Client, error) {
	c, err := newClient(farm, token)
	if err != nil {
		return nil, err
	}
	c.terminal = t
	c.mu.Lock()
	defer c.mu.Unlock()
	return c, c.connect(ctx)
}

func newClient(farm, token string) (*Client, error) {
	wrong := func(why string) error {
		return &Reply{codeSyntax, fmt.Sprintf("farm %.100q is none: %s", farm, why)}
	}
	u, err := url.Parse(farm)
	if err != nil {
		return nil, wrong("write it as tcp://HOST:PORT or tls://HOST:PORT")
	}
	c := &Client{Patience: 2 * time.Minute, network: "tcp", addr: u.Host, token: token}
	switch u.Scheme {
	case "unix":
		if c.network, c.addr = "unix", u.Path; u.Host != "" || c.addr == "" {
			return nil, wrong("a path follows unix://, as in unix:///var/lib/quarry/quarry.text")
		}
		return c, nil
	case "tcp", "tls":
		host, port, err := net.SplitHostPort(u.Host)
		if err != nil || host == "" || port == "" || u.Path != "" {
			return nil, wrong("write it as " + u.Scheme + "://HOST:PORT")
		}
		if u.Scheme == "tls" {
			c.tls = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
		} else if ip := net.ParseIP(host); token != "" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return nil, wrong("over the network a token can be read on the way: use tls://")
		}
	default:
		return nil, wrong("write it as tcp://HOST:PORT, tls://HOST:PORT or unix:///PATH")
	}
	for key, values := range u.Query() {
		switch {
		case c.tls != nil && key == "ca":
			pem, err := os.ReadFile(values[0])
			if err != nil {
				return nil, wrong(err.Error())
			}
			c.tls.RootCAs = x509.NewCertPool()
			if !c.tls.RootCAs.AppendCertsFromPEM(pem) {
				return nil, wrong(values[0] + " holds no certificate")
			}
		case c.tls != nil && key == "pin":
			want := strings.ReplaceAll(values[0], " ", "+") // as it is in a URL that was not escaped
			c.tls.InsecureSkipVerify = true                 // the key is known, whoever signed it
			c.tls.VerifyConnection = func(st tls.ConnectionState) error {
				sum := sha256.Sum256(st.PeerCertificates[0].RawSubjectPublicKeyInfo)
				if have := "sha256//" + base64.StdEncoding.EncodeToString(sum[:]); have != want {
					return fmt.Errorf("its key is %s and not the one that was expected", have)
				}
				return nil
			}
		default:
			return nil, wrong("?" + key + " is unknown: ca and pin are known, with tls")
		}
	}
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hangUp()
	return nil
}

func (c *Client) hangUp() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// connect connects and shows the token. mu is held, as in the following.
func (c *Client) connect(ctx context.Context) error {
	d := net.Dialer{Timeout: 30 * time.Second}
	conn, err := d.DialContext(ctx, c.network, c.addr)
	if err != nil {
		return &Unreachable{fmt.Errorf("no farm answers at %s: %w", c.addr, err)}
	}
	if c.tls != nil {
		t := tls.Client(conn, c.tls)
		if err := t.HandshakeContext(ctx); err != nil {
			conn.Close()
			return &Unreachable{fmt.Errorf("farm at %s cannot be trusted: %w", c.addr, err)}
		}
		conn = t
	}
	c.conn, c.r = conn, bufio.NewReaderSize(conn, 32<<10)
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	say := func(want int, line string) error {
		if line != "" {
			if _, err := io.WriteString(conn, line+"\n"); err != nil {
				return err
			}
		}
		code, text, err := c.reply()
		if err == nil && code != want {
			err = &Reply{code, text}
		}
		return err
	}
	conn.SetDeadline(time.Now().Add(time.Minute))
	err = say(codeGreeting, "")
	if err == nil && c.token != "" {
		if strings.ContainsAny(c.token, " \t\r\n") {
			err = &Reply{codeToken, "token is none: it is one word"}
		} else {
			err = say(codeKnown, "AUTH "+c.token)
		}
	}
	if t := c.terminal; err == nil && t.TTY {
		line := fmt.Sprintf("TERMINAL %d %d", t.Width, t.Height)
		if t.Color {
			line += " color"
		}
		err = say(codeDone, line)
	}
	conn.SetDeadline(time.Time{})
	if err != nil {
		c.hangUp()
		if reply := new(Reply); !errors.As(err, &reply) {
			err = &Unreachable{fmt.Errorf("farm at %s cut the connection off: %w", c.addr, err)}
		}
	}
	return err
}

// maxReply bounds a reply of one line.
const maxReply = 1 << 20

// reply reads one line with a code.
func (c *Client) reply() (code int, text string, err error) {
	var line []byte
	for {
		part, err := c.r.ReadSlice('\n')
		if line = append(line, part...); err == nil {
			break
		}
		if err != bufio.ErrBufferFull || len(line) > maxReply {
			return 0, "", cmp.Or(cutOff(err), err)
		}
	}
	word, text, _ := strings.Cut(strings.TrimRight(string(line), "\r\n"), " ")
	if code, err = strconv.Atoi(word); err != nil || code < 100 || code > 599 {
		return 0, "", fmt.Errorf("line %.40q is no reply: this is no farm's text protocol", line)
	}
	return code, text, nil
}

func cutOff(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// lines reads a body. Without ends, the last line's end is none of the output.
func (c *Client) lines(w io.Writer, ends bool) error {
	start := true
	for {
		part, err := c.r.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			return cmp.Or(cutOff(err), err)
		}
		whole := err == nil
		if start && part[0] == '.' {
			if part = part[1:]; whole && len(bytes.TrimRight(part, "\r\n")) == 0 {
				return nil
			}
		}
		if whole && !ends {
			part = part[:len(part)-1]
		}
		if _, err := w.Write(part); err != nil {
			return &sinkError{err}
		}
		start = whole
	}
}

// sinkError is that what the farm has answered cannot be written.
type sinkError struct{ error }

// skipper writes what was not written before.
type skipper struct {
	w    io.Writer
	done int64 // bytes written
	skip int64 // of those that come
}

func (s *skipper) Write(p []byte) (int, error) {
	n := int(min(s.skip, int64(len(p))))
	s.skip -= int64(n)
	if n == len(p) {
		return n, nil
	}
	m, err := s.w.Write(p[n:])
	s.done += int64(m)
	return n + m, err
}

// Do calls a verb and returns its exit code. What the verb has said is written by
// then. The error is a [Reply] when the farm does not take the call, and
// [Unreachable] when it is not there, or went away in the middle; with a request
// id that is so only after more than Patience. Then nobody knows whether the verb
// was begun.
func (c *Client) Do(ctx context.Context, call Call) (exit int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out, errOut := &skipper{w: cmp.Or[io.Writer](call.Out, io.Discard)}, &skipper{w: cmp.Or[io.Writer](call.Err, io.Discard)}
	var until time.Time // when patience ends
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		sent := false
		exit, sent, err = c.try(ctx, call, out, errOut)
		reply, gone := new(Reply), new(Unreachable)
		busy := errors.As(err, &reply) && reply.Code == codeBusy // it was not looked at
		lost := errors.As(err, &gone) || errors.As(err, &reply) && reply.Code == codeClosing
		// A farm that was there is asked how it ended.
		if again := busy || lost && call.ID != "" && (sent || !until.IsZero()); !again || ctx.Err() != nil {
			break
		}
		if until.IsZero() {
			until = time.Now().Add(c.Patience)
		}
		if time.Now().After(until) {
			break
		}
		out.skip, errOut.skip = out.done, errOut.done
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return exit, err
}

// try calls a verb once. sent reports whether the farm may have begun it.
func (c *Client) try(ctx context.Context, call Call, out, errOut io.Writer) (exit int, sent bool, err error) {
	if c.conn == nil {
		if err := c.connect(ctx); err != nil {
			return exitUnreachable, false, err
		}
	}
	line := words.Quote(call.Words)
	if call.ID != "" {
		line = "@" + call.ID + " " + line
	}
	if len(line) > maxLine || strings.ContainsAny(line, "\r\n") {
		return exitUsage, false, &Reply{codeLine, fmt.Sprintf("words cannot be sent: they take more than %d bytes, or hold a line's end", maxLine)}
	}
	conn := c.conn
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	sending := make(chan error, 1)
	asked := false
	exit, err = func() (int, error) {
		if _, err := io.WriteString(conn, line+"\n"); err != nil {
			return 0, err
		}
		for {
			code, text, err := c.reply()
			if err != nil {
				return 0, err
			}
			switch {
			case code == codeErr:
				err = say(errOut, text)
			case code == codeCut:
				err = say(errOut, prefix+text)
			case code < 200:
			case code == codeBody || code == codePart:
				err = c.lines(out, code == codeBody)
			case code == codeInput && asked:
				err = errors.New("the farm wants the input twice")
			case code == codeInput:
				asked = true
				go func() { sending <- sendBody(conn, call.In) }()
			case code == codeDone || code == 550+exitBuild:
				return code % 10, nil
			case code > 550 && code < 556 || code == 455:
				return code % 10, say(errOut, prefix+text)
			default:
				return 0, &Reply{code, text}
			}
			if err != nil {
				return 0, err
			}
		}
	}()
	if asked {
		select {
		case bad := <-sending: // the input is all there, unless it could not be read
			if bad != nil {
				err = bad
			}
		default: // the verb did not wait for the rest of it
			c.hangUp()
		}
	}
	if err == nil {
		return exit, true, nil
	}
	reply, sink, unread := new(Reply), new(sinkError), new(inputError)
	switch {
	case errors.As(err, &reply):
		if reply.Code == codeClosing || reply.Code == codeLine || reply.Code == codeToken {
			c.hangUp()
		}
		return reply.ExitCode(), true, err
	case errors.As(err, &sink):
		c.hangUp()
		return exitError, true, sink.error
	case errors.As(err, &unread):
		c.hangUp()
		return exitError, true, err
	}
	c.hangUp()
	return exitUnreachable, true, &Unreachable{fmt.Errorf("the farm went away before it had answered: ask again when it is back: %w", err)}
}

func say(w io.Writer, line string) error {
	if _, err := fmt.Fprintln(w, line); err != nil {
		return &sinkError{err}
	}
	return nil
}

// inputError is that the input for a verb cannot be read.
type inputError struct{ error }

// sendBody sends the input of a verb. That the farm does not take it is no error.
func sendBody(w net.Conn, in io.Reader) error {
	if in != nil {
		head := make([]byte, 0, 64<<10)
		for {
			b := head[:cap(head)]
			// The announcement stands before what it announces.
			const room = 20
			n, err := in.Read(b[room:])
			if n > 0 {
				line := fmt.Appendf(nil, ".DATA %d\n", n)
				at := room - len(line)
				copy(b[at:], line)
				if _, err := w.Write(b[at : room+n]); err != nil {
					return nil
				}
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				w.Close()
				return &inputError{fmt.Errorf("standard input cannot be read: %w", err)}
			}
		}
	}
	io.WriteString(w, ".\n")
	return nil
}
