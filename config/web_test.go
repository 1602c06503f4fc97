package config

import (
	"strings"
	"testing"
)

func TestWeb(t *testing.T) {
	for _, tt := range []struct{ text, base, err string }{
		{"", "http://127.0.0.1:6680", ""},
		{`listen = ""`, "", ""},
		{`listen = ":80"`, "http://localhost:80", ""},
		{`listen = "[::]:80"`, "http://localhost:80", ""},
		{"listen = \":443\"\ntls = \"self\"", "https://localhost:443", ""},
		{"url = \"https://farm.example.org/\"\nproxy = true", "https://farm.example.org", ""},
		{"cert = \"c.pem\"\nkey = \"k.pem\"", "https://127.0.0.1:6680", ""},
		{`listen = "here"`, "", "is no address"},
		{`url = "farm.example.org"`, "", "none that a browser can begin from"},
		{`url = "https://farm.example.org/below"`, "", "without a path"},
		{`tls = "yes"`, "", `use "self"`},
		{`cert = "c.pem"`, "", "web.key is blank"},
		{`key = "k.pem"`, "", "web.cert is blank"},
		{"tls = \"self\"\ncert = \"c\"\nkey = \"k\"", "", "remove one"},
		{`max_upload = 1000`, "", "web.max_upload"},
	} {
		c, err := Parse([]byte("[web]\n"+tt.text+"\n"), "quarry.toml")
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, and it should tell of %q", tt.text, err, tt.err)
			}
			continue
		}
		if err != nil || c.Web.Base() != tt.base {
			t.Errorf("%s: %v, %q and not %q", tt.text, err, c.Web.Base(), tt.base)
		}
	}
}
