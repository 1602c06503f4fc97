package config

// Web is the door for browsers and for programs that speak HTTP.
type Web struct {
	Listen string `toml:"listen"` // e.g. 127.0.0.1:6680; blank: there is none
}

// Protocol is the door for programs that speak the text protocol.
type Protocol struct {
	Listen string `toml:"listen"` // e.g. 127.0.0.1:6694; blank: only the Unix socket
}
