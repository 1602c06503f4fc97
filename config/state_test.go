package config

import (
	"strings"
	"testing"
)

// A channel's state follows its name, unless it says another.
func TestState(t *testing.T) {
	c, err := Parse([]byte("[channel.testing]\n[channel.stable]\n[channel.next]\n[channel.lts]\nstate = \"stable\"\n"), "quarry.toml")
	if err != nil {
		t.Fatal(err)
	}
	for channel, want := range map[string]int{"stable": 1, "testing": 2, "next": 3, "lts": 1, "gone": 3} {
		if got := c.StateOf(channel); got != want {
			t.Errorf("%s is %d, want %d", channel, got, want)
		}
	}
	_, err = Parse([]byte("[channel.testing]\nstate = \"good\"\n"), "quarry.toml")
	if err == nil || !strings.Contains(err.Error(), `quarry.toml:2: key "channel.testing.state": "good" is no state`) {
		t.Errorf("%v", err)
	}
}
