package config

import (
	"fmt"
	"net"
	"net/mail"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/Morphux/quarry"
)

// Mail says how packagers hear of their releases. Without a server nobody is
// written to.
type Mail struct {
	Server string `toml:"server"` // e.g. mail.example.org:587; blank: no mail
	// TLS is starttls, which is the default, implicit (as on port 465), or none.
	TLS          string `toml:"tls"`
	CA           string `toml:"ca"`            // file of the certificates that the server's is signed with; blank: the system's
	User         string `toml:"user"`          // to log in with; blank: without
	PasswordFile string `toml:"password_file"` // whose first line is the password
	From         string `toml:"from"`          // e.g. "Quarry <quarry@example.org>"
	// MaxRecipients is how many people one cause may be told to. Above it only who
	// caused it and the admins are.
	MaxRecipients int      `toml:"max_recipients"`
	Settle        Duration `toml:"settle"`  // how long after a build's end others of the same release are waited for
	GiveUp        Duration `toml:"give_up"` // how long a letter is tried
}

// Webhook is a place that is told of events by HTTP.
type Webhook struct {
	Name       string   `toml:"name"`        // blank: the host of URL
	URL        string   `toml:"url"`         // that is posted to
	SecretFile string   `toml:"secret_file"` // what it is signed with
	Events     []string `toml:"events"`      // kinds, or patterns such as build.*; none: all
	Packages   []string `toml:"packages"`    // names, or patterns such as lib*; none: all
	Timeout    Duration `toml:"timeout"`     // of one delivery; 0: 20 s
	GiveUp     Duration `toml:"give_up"`     // how long an event is tried; 0: 5 days
}

func defaultMail() Mail {
	return Mail{TLS: "starttls", MaxRecipients: 20, Settle: Duration(time.Minute), GiveUp: Duration(5 * 24 * time.Hour)}
}

func (c *Config) checkNotify() error {
	if err := c.Mail.check(); err != nil {
		return err
	}
	names := map[string]bool{}
	for i := range c.Webhooks {
		h := &c.Webhooks[i]
		u, err := url.Parse(h.URL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
			return fmt.Errorf("webhook %d: url %q cannot be posted to: write it as \"https://example.org/quarry\"", i+1, h.URL)
		}
		if h.Name == "" {
			h.Name = u.Hostname()
		}
		switch {
		case quarry.CheckUser(h.Name) != nil:
			return fmt.Errorf("webhook %d: name %.40q is not one: use letters, digits, dots and dashes", i+1, h.Name)
		case names[h.Name]:
			return fmt.Errorf("webhook %d: there is another one named %s: give it a name of its own", i+1, h.Name)
		case h.SecretFile == "":
			return fmt.Errorf("webhook %s has no secret_file: make one with openssl rand -base64 32, and give the same to who listens", h.Name)
		}
		names[h.Name] = true
		for _, p := range append(append([]string(nil), h.Events...), h.Packages...) {
			if _, err := path.Match(p, ""); err != nil || p == "" {
				return fmt.Errorf("webhook %s: pattern %q matches nothing: write it like \"build.*\" or \"lib*\"", h.Name, p)
			}
		}
	}
	return nil
}

func (m *Mail) check() error {
	if m.Server == "" {
		return nil
	}
	if host, port, err := net.SplitHostPort(m.Server); err != nil || host == "" || port == "" {
		return fmt.Errorf("mail.server %q is no address: write it as \"mail.example.org:587\"", m.Server)
	}
	from, err := mail.ParseAddress(m.From)
	switch {
	case err != nil:
		return fmt.Errorf("mail.from %q is no address: write it as \"Quarry <quarry@example.org>\"", m.From)
	case !strings.Contains(from.Address, "@") || strings.ContainsAny(m.From, "\r\n"):
		return fmt.Errorf("mail.from %q is no address: write it as \"Quarry <quarry@example.org>\"", m.From)
	case m.TLS != "starttls" && m.TLS != "implicit" && m.TLS != "none":
		return fmt.Errorf("mail.tls %q is not known: use \"starttls\", \"implicit\" or \"none\"", m.TLS)
	case (m.User == "") != (m.PasswordFile == ""):
		return fmt.Errorf("mail.user and mail.password_file go together: give both or none")
	case m.User != "" && m.TLS == "none":
		return fmt.Errorf("mail.tls is \"none\", and the password would be readable on its way: use \"starttls\" or \"implicit\"")
	case m.MaxRecipients < 1:
		return fmt.Errorf("mail.max_recipients is %d: use at least 1, or no mail.server to write to nobody", m.MaxRecipients)
	case m.Settle <= 0, m.GiveUp <= 0:
		return fmt.Errorf("mail.settle and mail.give_up must be more than 0")
	}
	return nil
}

// MailFiles gives the paths of mail.password_file and mail.ca, blank where they
// are.
func (c *Config) MailFiles() (password, ca string) {
	return c.besideIf(c.Mail.PasswordFile), c.besideIf(c.Mail.CA)
}

// SecretFile gives the path of a webhook's secret.
func (c *Config) SecretFile(h Webhook) string { return c.besideIf(h.SecretFile) }

func (c *Config) besideIf(name string) string {
	if name == "" {
		return ""
	}
	return c.beside(name)
}
