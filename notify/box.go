package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry/events"
	"github.com/Morphux/quarry/internal/durable"
)

// Letter is an e-mail that is to be sent. Who gets it is a person, and the address
// is theirs at the time of sending.
type Letter struct {
	ID      string `json:"id"`              // Message-ID, without the angle brackets
	User    string `json:"user"`            // who it is to
	Email   string `json:"email,omitempty"` // where, if the person has no address in keys/
	Kind    Kind   `json:"kind"`
	Subject string `json:"subject"`
	Body    string `json:"body,omitempty"`
	Reply   string `json:"reply,omitempty"` // ID of the letter that it answers

	Channel string `json:"channel,omitempty"`
	Package string `json:"package,omitempty"`
	Version string `json:"version,omitempty"`
	Arch    string `json:"arch,omitempty"`
	Build   int64  `json:"build,omitempty"`

	Made    time.Time `json:"made"`
	Tries   int       `json:"tries"`
	Next    time.Time `json:"next,omitzero"` // when it is tried again
	Error   string    `json:"error,omitempty"`
	GivenUp time.Time `json:"given_up,omitzero"` // since when it is not tried any more
}

// keepGivenUp is how long a letter that was given up is kept to be looked at.
const keepGivenUp = 30 * 24 * time.Hour

// box is the folder of letters that are to be sent: one file each. A letter is
// removed when the mail server has taken it.
type box struct {
	dir  string
	opts *Options

	mu      sync.Mutex // guards the following
	letters map[string]*Letter
	away    time.Time // since when the server takes nothing; zero: it does
	tries   int       // of reaching it, since then
	next    time.Time // before which it is not tried
	why     string
	wake    chan struct{}
}

func openBox(dir string, opts *Options) (*box, error) {
	b := &box{dir: dir, opts: opts, letters: map[string]*Letter{}, wake: make(chan struct{}, 1)}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder of letters cannot be made: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("folder of letters cannot be read: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") { // half written, by somebody who was killed
			os.Remove(path)
			continue
		}
		data, err := os.ReadFile(path)
		var l Letter
		if err == nil {
			err = json.Unmarshal(data, &l)
		}
		if err == nil && b.path(l.ID) != path {
			err = errors.New("it is another letter's")
		}
		if err != nil {
			opts.Log.Error("a letter cannot be read, and is not sent", "file", path, "err", err)
			continue
		}
		b.letters[l.ID] = &l
	}
	return b, nil
}

func (b *box) path(id string) string {
	name, _, _ := strings.Cut(id, "@")
	return filepath.Join(b.dir, filepath.Base(name)+".json")
}

// put writes a letter to the disk, for add.
func (b *box) put(l *Letter) error {
	data, err := json.Marshal(l)
	if err == nil {
		err = durable.WriteFile(b.path(l.ID), data, 0o600, ".new-*")
	}
	if err != nil {
		return fmt.Errorf("a letter to %s cannot be kept: %w", l.User, err)
	}
	return nil
}

// add has letters sent that have been put.
func (b *box) add(list []*Letter) {
	if len(list) == 0 {
		return
	}
	b.mu.Lock()
	for _, l := range list {
		b.letters[l.ID] = l
	}
	b.mu.Unlock()
	b.nudge()
}

func (b *box) nudge() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// list is all letters that there are, the oldest first, without their text.
func (b *box) list() []Letter {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := make([]Letter, 0, len(b.letters))
	for _, l := range b.letters {
		c := *l
		c.Body = ""
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b Letter) int {
		if c := a.Made.Compare(b.Made); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return list
}

// trouble says why the server takes nothing; "" when it does, or has not for a
// short time only.
func (b *box) trouble() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away.IsZero() || time.Since(b.away) < troubleAfter {
		return ""
	}
	return fmt.Sprintf("%s takes nothing since %s: %s", b.opts.Mail.Server, b.away.UTC().Format("2006-01-02 15:04 UTC"), b.why)
}

// retry has everything tried at once, also what was given up.
func (b *box) retry() (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next = time.Time{}
	var errs []error
	for _, l := range b.letters {
		if l.GivenUp.IsZero() {
			l.Next = time.Time{}
			continue
		}
		again := *l
		again.GivenUp, again.Next, again.Tries, again.Made = time.Time{}, time.Time{}, 0, time.Now().UTC().Truncate(time.Second)
		if err := b.put(&again); err != nil {
			errs = append(errs, err)
			continue
		}
		*l = again
	}
	b.nudge()
	return len(b.letters), errors.Join(errs...)
}

// drop throws away what was given up.
func (b *box) drop() (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, l := range b.letters {
		if !l.GivenUp.IsZero() {
			b.remove(id)
			n++
		}
	}
	return n
}

// due gives the letters that are to be tried now, the oldest first; otherwise when
// the next one is, zero for never.
func (b *box) due(now time.Time) (list []Letter, next time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.letters {
		if !l.GivenUp.IsZero() {
			if now.Sub(l.GivenUp) > keepGivenUp {
				b.remove(l.ID)
			}
			continue
		}
		at := l.Next
		if b.next.After(at) {
			at = b.next
		}
		switch {
		case !at.After(now):
			list = append(list, *l)
		case next.IsZero() || at.Before(next):
			next = at
		}
	}
	slices.SortFunc(list, func(a, b Letter) int { return a.Made.Compare(b.Made) })
	return list, next
}

// remove takes a letter away. b.mu is held.
func (b *box) remove(id string) {
	delete(b.letters, id)
	if err := os.Remove(b.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		b.opts.Log.Warn("a letter that was sent cannot be removed, and is sent again after a restart", "id", id, "err", err)
		return
	}
	if err := durable.SyncDir(b.dir); err != nil {
		b.opts.Log.Warn("folder of letters cannot be synced", "err", err)
	}
}

// run sends letters until ctx ends.
func (b *box) run(ctx context.Context) {
	for ctx.Err() == nil {
		list, next := b.due(time.Now())
		if len(list) > 0 {
			b.round(ctx, list)
			continue
		}
		var timer <-chan time.Time
		if !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
		case <-b.wake:
		case <-timer:
		}
	}
}

// round tries to send letters over one connection.
func (b *box) round(ctx context.Context, list []Letter) {
	people, err := b.opts.People()
	if err != nil {
		b.unreachable(ctx, fmt.Errorf("nobody knows who may be written to: %w", err), list)
		return
	}
	byUser := map[string]Person{}
	for _, p := range people {
		byUser[p.User] = p
	}
	type to struct {
		letter  Letter
		name    string
		address string
	}
	var send []to
	for _, l := range list {
		p, known := byUser[l.User]
		address := p.Email
		if address == "" {
			address = l.Email
		}
		if !known || address == "" || !p.wants(l.Kind) {
			b.opts.Log.Info("a letter is not sent: its reader is not known here any more, has no address, or wants none", "user", l.User, "subject", l.Subject)
			b.mu.Lock()
			b.remove(l.ID)
			b.mu.Unlock()
			continue
		}
		send = append(send, to{l, p.Name, address})
	}
	if len(send) == 0 {
		return
	}
	conn, err := b.opts.Mail.dial(ctx)
	if err != nil {
		b.unreachable(ctx, err, list)
		return
	}
	defer conn.close()
	for _, s := range send {
		if ctx.Err() != nil {
			return
		}
		err := conn.send(&s.letter, s.name, s.address)
		switch {
		case err == nil:
			b.sent(s.letter)
		case err.server:
			b.unreachable(ctx, err, list)
			return
		default:
			b.refused(s.letter, err, err.final)
		}
	}
}

func (b *box) sent(l Letter) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.away.IsZero() {
		b.opts.Log.Info("the mail server takes letters again", "server", b.opts.Mail.Server)
	}
	b.away, b.tries, b.next, b.why = time.Time{}, 0, time.Time{}, ""
	b.remove(l.ID)
	b.opts.Log.Info("a letter was sent", "to", l.User, "subject", l.Subject, "id", l.ID)
}

// unreachable notes that the server takes nothing, whosever fault that is.
func (b *box) unreachable(ctx context.Context, err error, list []Letter) {
	if ctx.Err() != nil {
		return // we are being stopped
	}
	now := time.Now()
	b.mu.Lock()
	if b.away.IsZero() {
		b.away = now
		b.opts.Log.Warn("the mail server takes no letters, which is tried again", "server", b.opts.Mail.Server, "err", err, "waiting", len(list))
	}
	b.tries++
	b.next, b.why = now.Add(b.opts.Backoff(b.tries)), reason(err)
	b.mu.Unlock()
	for _, l := range list {
		if now.Sub(l.Made) > b.opts.GiveUp {
			b.refused(l, err, true)
		}
	}
}

// refused notes that one letter was not taken.
func (b *box) refused(l Letter, err error, final bool) {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	kept := b.letters[l.ID]
	if kept == nil {
		return
	}
	l.Tries++
	l.Error = reason(err)
	if final || now.Sub(l.Made) > b.opts.GiveUp {
		l.GivenUp = now.UTC().Truncate(time.Second)
		b.opts.Log.Error("a letter is given up: quarry notify shows it", "to", l.User, "subject", l.Subject, "err", err)
		b.opts.Events.Append(events.Event{Kind: events.Trouble, Reason: "a letter to " + l.User + " was given up: " + l.Error,
			Text: shorten("a letter to "+l.User+" was given up: "+l.Error, 390)})
	} else {
		l.Next = now.Add(b.opts.Backoff(l.Tries)).UTC()
		b.opts.Log.Warn("a letter was not taken, which is tried again", "to", l.User, "subject", l.Subject, "err", err)
	}
	*kept = l
	if err := b.put(&l); err != nil { // it is tried anew after a restart, no worse
		b.opts.Log.Warn("how often a letter was tried cannot be noted", "err", err)
	}
}

// reason is an error in one line of bounded length.
func reason(err error) string {
	return shorten(oneLine(err.Error()), 500)
}

func shorten(s string, most int) string {
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}

// backoff is the pause after the n-th try: 10 s, doubling, up to half an hour, a
// little at random, so that not all come back at once.
func backoff(n int) time.Duration {
	d := 30 * time.Minute
	if n < 9 {
		d = min(d, 10*time.Second<<max(n-1, 0))
	}
	return d - time.Duration(rand.Int64N(int64(d/5)))
}
