package config

import (
	"strings"
	"testing"
	"time"
)

func TestNotify(t *testing.T) {
	c, err := Parse([]byte(`
[mail]
server = "mail.example.org:587"
user = "farm"
password_file = "mail.secret"
from = "Quarry <quarry@example.org>"
max_recipients = 5
[[webhook]]
url = "https://chat.example.org/hooks/1"
secret_file = "/etc/quarry/hook"
events = ["build.*"]
packages = ["zlib", "lib*"]
[[webhook]]
name = "ci"
url = "http://127.0.0.1:8080/"
secret_file = "ci.secret"
`), "/etc/quarry.toml")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.finish("/etc"); err != nil {
		t.Fatal(err)
	}
	if password, ca := c.MailFiles(); password != "/etc/mail.secret" || ca != "" {
		t.Errorf("files are %q and %q", password, ca)
	}
	if m := c.Mail; m.TLS != "starttls" || m.MaxRecipients != 5 || time.Duration(m.Settle) != time.Minute {
		t.Errorf("mail is %+v", m)
	}
	if len(c.Webhooks) != 2 || c.Webhooks[0].Name != "chat.example.org" || c.Webhooks[1].Name != "ci" {
		t.Fatalf("webhooks are %+v", c.Webhooks)
	}
	if got := c.SecretFile(c.Webhooks[0]); got != "/etc/quarry/hook" {
		t.Errorf("secret is %q", got)
	}
}

func TestNotifyRefuses(t *testing.T) {
	mail := "[mail]\nserver='m:25'\nfrom='q@example.org'\n"
	hook := "[[webhook]]\nurl='http://h/'\nsecret_file='s'\n"
	for _, tt := range []struct{ name, in, want string }{
		{"server", "[mail]\nserver='mail'\n", `mail.server "mail" is no address`},
		{"no sender", "[mail]\nserver='m:25'\n", `mail.from "" is no address`},
		{"sender with a header", "[mail]\nserver='m:25'\nfrom=\"q@example.org\\r\\nBcc: x@y\"\n", "mail.from"},
		{"tls", mail + "tls='ssl'\n", `mail.tls "ssl" is not known`},
		{"user without password", mail + "user='x'\n", "go together"},
		{"password in the open", mail + "user='x'\npassword_file='p'\ntls='none'\n", "readable on its way"},
		{"recipients", mail + "max_recipients=0\n", "mail.max_recipients"},
		{"settle", mail + "settle=0\n", "mail.settle"},
		{"url", "[[webhook]]\nurl='ftp://x/'\nsecret_file='s'\n", `url "ftp://x/" cannot be posted to`},
		{"password in the url", "[[webhook]]\nurl='http://u:p@x/'\nsecret_file='s'\n", "cannot be posted to"},
		{"secret", "[[webhook]]\nurl='http://h/'\n", "webhook h has no secret_file"},
		{"two of one name", hook + hook, "another one named h"},
		{"pattern", hook + "events=['[']\n", `pattern "["`},
		{"name", hook + "name='-x'\n", "name"},
		{"unknown key", hook + "secret='x'\n", `key "webhook.secret" is unknown`},
		{"time without a unit", hook + "timeout=3\n", "has no unit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse([]byte(tt.in), "q.toml")
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error is %v, want it to hold %q", err, tt.want)
			}
		})
	}
}
