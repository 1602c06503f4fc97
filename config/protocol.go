package config

import (
	"errors"
	"fmt"
	"net"
)

// check reports why the door cannot be opened as it is described.
func (p *Protocol) check(web *Web) error {
	switch {
	case p.Connections < 1 || p.PerAddress < 1 || p.PerToken < 1:
		return errors.New("protocol.connections, protocol.per_address and protocol.per_token count connections: use 1 or more")
	case p.Listen == "":
		return nil
	}
	host, port, err := net.SplitHostPort(p.Listen)
	if err != nil || port == "" {
		return fmt.Errorf("protocol.listen %q is no address: write it as \"127.0.0.1:6694\", or leave it blank", p.Listen)
	}
	if p.TLS && web.TLS == "" && web.Cert == "" {
		return errors.New("protocol.tls uses the web's certificate, and there is none: set web.tls = \"self\", or web.cert and web.key")
	}
	if ip := net.ParseIP(host); !p.TLS && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("protocol.listen %q can be reached from other machines, and tokens could be read on the way: set protocol.tls = true, or listen on 127.0.0.1", p.Listen)
	}
	return nil
}
