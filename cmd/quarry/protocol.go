package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/protocol"
	"github.com/Morphux/quarry/tokens"
)

// textDoor is the text protocol, and what it listens on.
type textDoor struct {
	server    *protocol.Server
	listeners []net.Listener
}

// newText makes the door of the text protocol and opens what it listens on.
func newText(c *config.Config, bearers *tokens.Store, verbs control.Table, log *slog.Logger) (_ *textDoor, err error) {
	server, err := protocol.New(protocol.Options{
		Version: version, Lookup: bearers.Lookup, Peer: control.Peer, Requests: c.Requests(), Log: log,
		Verbs: func(ctx context.Context, who quarry.Identity, argv []string, in io.Reader, out, errOut io.Writer, term protocol.Terminal) int {
			return verbs.Run(ctx, who, argv, in, out, errOut, control.Terminal{TTY: term.TTY, Width: term.Width, Height: term.Height, Color: term.Color})
		},
		Secret: func(argv []string) bool {
			v, _ := verbs.Find(argv...)
			return v != nil && v.Secret
		},
		Limits: protocol.Limits{Connections: c.Protocol.Connections, PerAddress: c.Protocol.PerAddress, PerToken: c.Protocol.PerToken},
	})
	if err != nil {
		return nil, err
	}
	door := &textDoor{server: server}
	defer func() {
		if err != nil {
			door.close()
		}
	}()
	local, err := control.Listen(c.Text(), c.Git.Group)
	if err != nil {
		return nil, err
	}
	door.listeners = append(door.listeners, patient{local, log})
	if c.Protocol.Listen == "" {
		return door, nil
	}
	l, err := net.Listen("tcp", c.Protocol.Listen)
	if err != nil {
		return nil, fmt.Errorf("protocol.listen %s cannot be listened on: %w", c.Protocol.Listen, err)
	}
	door.listeners = append(door.listeners, patient{l, log})
	if c.Protocol.TLS {
		cert, err := webCertificate(c, log)
		if err != nil {
			return nil, err
		}
		door.listeners[1] = tls.NewListener(patient{l, log}, cert.Config())
		log.Info("the text protocol speaks TLS", "pin", cert.Pin())
	}
	return door, nil
}

func (d *textDoor) close() {
	for _, l := range d.listeners {
		l.Close()
	}
}

// serve takes connections until ctx ends, then tells all that it does.
func (d *textDoor) serve(ctx context.Context) error {
	ended := make(chan error, len(d.listeners))
	for _, l := range d.listeners {
		go func() { ended <- d.server.Serve(l) }()
	}
	var err error
	left := len(d.listeners)
	select {
	case <-ctx.Done():
	case err = <-ended:
		left--
	}
	end, stop := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
	defer stop()
	err = errors.Join(err, d.server.Shutdown(end))
	for range left {
		err = errors.Join(err, <-ended)
	}
	return err
}
