package main

import (
	"errors"
	"log/slog"
	"net"
	"time"
)

// patient is a listener that outlasts what is over in a moment: accept(2) passes on
// errors of a network and of a kernel without room, and a door that ends over one
// would end the farm.
type patient struct {
	net.Listener
	log *slog.Logger
}

func (p patient) Accept() (net.Conn, error) {
	for {
		c, err := p.Listener.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return c, err
		}
		p.log.Warn("no connections can be taken for now", "listen", p.Addr(), "err", err)
		time.Sleep(100 * time.Millisecond)
	}
}
