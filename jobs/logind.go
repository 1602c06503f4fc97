package jobs

import (
	"context"
	"errors"
	"time"

	"github.com/godbus/dbus/v5"
)

// logind tells whether whoever is logged in is idle: desktops say so themselves,
// which no terminal does for them (org.freedesktop.login1(5)).
type logind struct {
	address string
	wait    time.Duration // for an answer
	conn    *dbus.Conn
	tried   time.Time // when it last could not be reached
	asked   time.Time
	since   time.Time // of the last activity; zero: it is now
	known   bool
}

const (
	logindEvery = 5 * time.Second
	logindRetry = time.Minute
	logindWait  = time.Second
)

func newLogind(address string) *logind {
	if address == "" {
		address = "unix:path=/run/dbus/system_bus_socket"
	}
	return &logind{address: address, wait: logindWait}
}

// idle is how long nobody has done anything, and whether there is a logind that
// knows.
func (l *logind) idle(now time.Time) (time.Duration, bool) {
	if l.address == "none" || now.Sub(l.tried) < logindRetry && now.After(l.tried) {
		return 0, false
	}
	if d := now.Sub(l.asked); d < 0 || d >= logindEvery {
		l.asked, l.known = now, l.ask() == nil
		if !l.known {
			l.tried = now
			if l.conn != nil {
				l.conn.Close()
				l.conn = nil
			}
		}
	}
	if !l.known {
		return 0, false
	}
	if l.since.IsZero() {
		return 0, true
	}
	return max(0, now.Sub(l.since)), true
}

func (l *logind) ask() error {
	ctx, cancel := context.WithTimeout(context.Background(), l.wait)
	defer cancel()
	if l.conn == nil {
		// The connection lives on: its end is Close, and not that of ctx.
		conn, err := dbus.Dial(l.address)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		err = conn.Auth(nil)
		if err == nil {
			err = conn.Hello()
		}
		if !stop() || err != nil {
			conn.Close()
			if err == nil {
				err = ctx.Err()
			}
			return err
		}
		l.conn = conn
	}
	var all map[string]dbus.Variant
	err := l.conn.Object("org.freedesktop.login1", "/org/freedesktop/login1").
		CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", 0, "org.freedesktop.login1.Manager").Store(&all)
	if err != nil {
		return err
	}
	hint, ok := all["IdleHint"].Value().(bool)
	us, ok2 := all["IdleSinceHint"].Value().(uint64)
	switch {
	case !ok:
		return errors.New("logind has no IdleHint")
	case hint && ok2 && us > 0 && us < 1<<62:
		l.since = time.UnixMicro(int64(us))
	case hint:
		l.since = time.Unix(0, 0) // nobody was there since the start
	default:
		l.since = time.Time{}
	}
	return nil
}

func (l *logind) close() {
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
}
