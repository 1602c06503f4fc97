package config

import "fmt"

// StateOf is how far what is in a channel can be relied on, as Morphux's package
// server counts it: 1 stable, 2 unstable, 3 development.
func (c *Config) StateOf(channel string) int {
	if ch := c.Channels[channel]; ch != nil && ch.State != "" {
		return states[ch.State]
	}
	switch channel {
	case "stable":
		return states["stable"]
	case "testing":
		return states["unstable"]
	}
	return states["development"]
}

var states = map[string]int{"stable": 1, "unstable": 2, "development": 3}

func checkState(word string) error {
	if word != "" && states[word] == 0 {
		return fmt.Errorf("%.40q is no state: write stable, unstable or development", word)
	}
	return nil
}
