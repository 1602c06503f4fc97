package config

import (
	"strings"
	"testing"
)

// What can be reached from other machines is encrypted.
func TestProtocol(t *testing.T) {
	for text, want := range map[string]string{
		`listen = "127.0.0.1:1"`:                             "",
		`listen = "[::1]:1"`:                                 "",
		`listen = "localhost:1"`:                             "",
		`listen = ""`:                                        "",
		`listen = "127.0.0.1"`:                               "is no address",
		`listen = ":1"`:                                      "set protocol.tls = true",
		`listen = "0.0.0.0:1"`:                               "set protocol.tls = true",
		`listen = "farm.example.org:1"`:                      "set protocol.tls = true",
		"listen = \":1\"\ntls = true":                        "set web.tls",
		"listen = \":1\"\ntls = true\n[web]\ntls = \"self\"": "",
		"listen = \"\"\nper_token = 0":                       "use 1 or more",
		"listen = \"127.0.0.1:1\"\nper_address = 5000\nconnections = 10": "",
	} {
		_, err := Parse([]byte("[protocol]\n"+text+"\n"), "quarry.toml")
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
