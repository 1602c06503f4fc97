package buildcontrol

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"sort"
	"strings"
	"syscall"
	"unicode"
)

// manual is what control connections are told that ask, as the original says it.
const manual = "Recognized commands:\n" +
	"\tnew\tcreate new builder, returns n-token\n" +
	"\t    (env params BUILDSOCKET=socket BUILDTOKEN=n-token)\n" +
	"\tdump\tdumps the status of all fds\n" +
	"\tn:jobs\tadjust jobs for builder #n\n" +
	"\tquit\n"

// cut takes the first whole line off b; \n, \r\n and \r end one.
func cut(b []byte) (line, rest []byte, ok bool) {
	i := bytes.IndexAny(b, "\r\n")
	if i < 0 {
		return nil, b, false
	}
	return b[:i], b[i+1:], true
}

// lines does what the lines say that have come in, until one of the answers has
// to wait for its reader.
func (c *client) lines() {
	m, s := c.more, c.l.s
	for len(m.out) == 0 {
		line, rest, ok := cut(m.in)
		if !ok && len(m.in) <= maxLine {
			break
		}
		if !ok || len(line) > maxLine {
			s.warn("a line is too long and its connection is closed", "max", maxLine)
			c.close()
			return
		}
		m.in = rest
		said := strings.Trim(string(line), " \t")
		if said == "" {
			continue
		}
		if !m.control {
			if !c.admit(said) || c.token != nil {
				return
			}
			continue
		}
		s.mu.Unlock() // Changed may want to set tokens
		answer, quit := s.command(said)
		s.mu.Lock()
		if c.gone {
			return
		}
		if quit {
			c.close()
			return
		}
		if answer != "" && !c.write([]byte(answer)) {
			if c.gone {
				return
			}
			if c.late { // nothing went
				c.late, m.out = false, []byte(answer)
			}
		}
	}
	if len(m.in) == 0 {
		m.in = nil
	} else if cap(m.in) > 2*maxLine {
		m.in = bytes.Clone(m.in)
	}
}

// admit lets a client in that shows its token, and closes others without a word.
func (c *client) admit(said string) bool {
	s, l := c.l.s, c.l
	t, control, ok := s.lookup(said, l.only)
	if !ok {
		s.warn("a connection has shown an unknown token and is closed")
		c.close()
		return false
	}
	if !control && len(t.clients) >= s.opts.MaxPerToken {
		s.warn("a token has too many connections, more are closed", "token", t.number, "max", s.opts.MaxPerToken)
		c.close()
		return false
	}
	l.strangers.Remove(c.more.stranger)
	if control {
		// People and programs read to the end.
		_ = syscall.SetsockoptLinger(int(c.fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{})
		c.more.control, c.more.stranger = true, nil
		return true
	}
	// The patched make programs take lines apart wrongly when more than 1,023 bytes
	// wait for them. A Unix socket with the smallest buffer holds about six lines;
	// after that the newest number waits here. TCP has no such bound.
	_ = syscall.SetsockoptInt(int(c.fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, 1)
	c.token, c.place = t, int32(len(t.clients))
	t.clients = append(t.clients, c)
	c.noise = uint16(len(c.more.in))
	c.more = nil
	if t.jobs != Unset {
		c.tell(t.line())
	}
	return !c.gone
}

// command does what a line of a control connection says. s.mu is not held.
func (s *Server) command(line string) (answer string, quit bool) {
	switch line {
	case "new":
		s.mu.Lock()
		defer s.mu.Unlock()
		t, err := s.add(newHash(), false)
		if err != nil {
			return err.Error() + "\n", false
		}
		return t.String() + "\n", false
	case "?", "help":
		return manual, false
	case "quit":
		return "", true
	case "dump":
		return s.dump(), false
	}
	number, count, ok := strings.Cut(line, ":")
	n, known := parse(number)
	jobs, counted := parse(count)
	if !ok || known && (!counted || jobs < 0) {
		return fmt.Sprintf("I don't understand %s\n%s", printable(line), manual), false
	}
	if !known || n < 0 {
		return fmt.Sprintf("Couldn't find builder %s\n", printable(number)), false
	}
	var t *Token
	s.mu.Lock()
	if n < len(s.tokens) {
		t = s.tokens[n]
	}
	s.mu.Unlock()
	if t == nil {
		return fmt.Sprintf("%d: no such builder\n", n), false
	}
	jobs = min(jobs, s.opts.Ceiling)
	if s.opts.Changed != nil {
		var err error
		if jobs, err = s.opts.Changed(t, jobs); err != nil {
			return fmt.Sprintf("%d: %s\n", n, printable(err.Error())), false
		}
		if jobs == Unset {
			return "", false
		}
	}
	t.set(jobs, true)
	return "", false
}

// dump tells of all connections and tokens, as the original does.
func (s *Server) dump() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	type row struct {
		fd     int
		token  int
		server int
		known  int
	}
	var rows []row
	controls := 0
	for l := range s.loops {
		rows = append(rows, row{l.listen, -1, 1, 0})
		for _, c := range l.clients {
			switch {
			case c.token != nil:
				rows = append(rows, row{int(c.fd), c.token.number, 0, 1})
			case c.more.control:
				controls++
				rows = append(rows, row{int(c.fd), 0, 0, 1})
			default:
				rows = append(rows, row{int(c.fd), -1, 0, 0})
			}
		}
	}
	sort.Slice(rows, func(i, j int) bool { return rows[i].fd < rows[j].fd })
	var b strings.Builder
	for _, r := range rows {
		fmt.Fprintf(&b, "fd %d points to job #%d (server %d/leggit %d)\n", r.fd, r.token, r.server, r.known)
	}
	if s.control != "" {
		fmt.Fprintf(&b, "Build number 0, hash %s, jobcount %d refs %d\n", s.control, Unset, controls)
	}
	for _, t := range s.tokens {
		if t != nil {
			fmt.Fprintf(&b, "Build number %d, hash %s, jobcount %d refs %d\n", t.number, t.hash, t.jobs, len(t.clients))
		}
	}
	return b.String()
}

// printable is what somebody sent, fit for a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// Console is a control connection for the person at r and w. It reports whether
// that person has said quit; otherwise r has ended.
func (s *Server) Console(r io.Reader, w io.Writer) (quit bool, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine+2)
	for lines.Scan() {
		line := strings.Trim(lines.Text(), " \t\r")
		if line == "" {
			continue
		}
		answer, quit := s.command(line)
		if quit {
			return true, nil
		}
		if answer == "" {
			continue
		}
		if _, err := io.WriteString(w, answer); err != nil {
			return false, err
		}
	}
	return false, lines.Err()
}
