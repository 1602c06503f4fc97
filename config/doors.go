package config

// Web is the door for browsers and for programs that speak HTTP.
type Web struct {
	Listen string `toml:"listen"` // e.g. 127.0.0.1:6680; blank: there is none
	// URL is how people reach it, e.g. https://farm.example.org; blank: by what it
	// listens on.
	URL    string `toml:"url"`
	Public bool   `toml:"public"` // whoever has no token may look
	// PublicSources lets them clone the packages' repositories, too, and not only the
	// results.
	PublicSources bool `toml:"public_sources"`
	// MetricsPublic lets whoever has no token see /metrics, whatever Public says.
	MetricsPublic bool   `toml:"metrics_public"`
	TLS           string `toml:"tls"`        // self: with a certificate of the farm's own making
	Cert          string `toml:"cert"`       // file with a certificate, and those that it leads to
	Key           string `toml:"key"`        // file with its key
	MaxUpload     Size   `toml:"max_upload"` // bytes of the largest upload
	Fetches       int    `toml:"fetches"`    // git clones and fetches that run at one time; 0: four for each core
	// Proxy says that every connection comes from a proxy of one's own, and that
	// what it says of its clients is true.
	Proxy bool `toml:"proxy"`
	// InsecureTokens has tokens taken that came over the network readable for
	// everybody on the way.
	InsecureTokens bool `toml:"insecure_tokens"`
}

// Protocol is the door for programs that speak the text protocol.
type Protocol struct {
	Listen string `toml:"listen"` // e.g. 127.0.0.1:6694; blank: only the Unix socket
	// TLS says that connections are encrypted, with the web's certificate. What is
	// listened on for other machines has to be.
	TLS         bool `toml:"tls"`
	Connections int  `toml:"connections"` // at once
	PerAddress  int  `toml:"per_address"` // connections of one address at once
	PerToken    int  `toml:"per_token"`   // connections of one token at once
}
