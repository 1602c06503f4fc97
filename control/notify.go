package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/notify"
)

// Notify is what the verbs need of who tells people and programs.
type Notify interface {
	Status() notify.Status
	// Problems are what status shows.
	Problems() []string
	// Test sends a letter to a user or to somebody's address, for by, and gives the
	// address.
	Test(ctx context.Context, to, by string) (string, error)
	// Retry has everything tried at once, and Drop forgets what was given up. Both
	// say how much that is.
	Retry() (int, error)
	Drop() int
}

// untold is what keeps people and programs from being told, for the status. It may
// name people and files, and is not for who does not say who they are.
func (f *Farm) untold(c *Call) []string {
	if f.Notify == nil || c.Who.User == "" {
		return nil
	}
	return f.Notify.Problems()
}

func (f *Farm) notifyVerb() *Verb {
	return &Verb{
		Name: "notify", Args: "[test [USER|ADDRESS]|retry|drop]", MaxArgs: 2, Need: Admin,
		Short: "Show the letters and webhooks that are to be sent, or send a test",
		Long: "Without an argument: the letters that no mail server has taken yet, those that\n" +
			"were given up, and how far each webhook is.\n\n" +
			"notify test sends a letter at once, to the caller or to somebody who is known\n" +
			"here. notify retry has everything tried now, also what was given up. notify drop\n" +
			"forgets what was given up.",
		Example: "notify\nnotify --json\nnotify test\nnotify test alice\nnotify retry",
		Run:     f.notify,
	}
}

func (f *Farm) notify(ctx context.Context, c *Call) error {
	if f.Notify == nil {
		return &Error{ExitError, errors.New("notify: nobody is told of anything here: set mail.server or a webhook in the configuration")}
	}
	if len(c.Args) == 0 {
		return f.notifyStatus(c)
	}
	what := c.Args[0]
	if what != "test" && len(c.Args) > 1 {
		return usage("notify %.20q takes nothing more: see help notify", what)
	}
	switch what {
	case "test":
		to := c.Who.User
		if len(c.Args) > 1 {
			to = c.Args[1]
		} else if to == LocalUser {
			return usage("notify test: say who is to get the letter: notify test USER")
		}
		address, err := f.Notify.Test(ctx, to, c.Who.User)
		switch {
		case errors.Is(err, notify.ErrNobody):
			return notFound(fmt.Errorf("notify test: %w", err))
		case err != nil:
			return fmt.Errorf("notify test: %w", err)
		case c.JSON():
			return c.emit(struct {
				Sent string `json:"sent"`
			}{address})
		}
		fmt.Fprintf(c.Out, "the mail server has taken a letter to %s\n", human.Safe(address, false))
		return nil
	case "retry":
		if _, err := f.Notify.Retry(); err != nil {
			return err
		}
		return f.notifyStatus(c)
	case "drop":
		n := f.Notify.Drop()
		if c.JSON() {
			return f.notifyStatus(c)
		}
		fmt.Fprintf(c.Out, "%d dropped\n", n)
		return nil
	}
	return usage("notify takes test, retry or drop, and not %.20q: see help notify", what)
}

func (f *Farm) notifyStatus(c *Call) error {
	s := f.Notify.Status()
	if c.JSON() {
		return c.emit(s)
	}
	now := time.Now()
	for _, p := range s.Problems {
		fmt.Fprintln(c.Out, human.Paint("problem", human.Red, c.Term.Color)+": "+human.Safe(p, false))
	}
	when := func(t time.Time) string {
		if t.After(now) {
			return "in " + human.Duration(t.Sub(now))
		}
		return "now"
	}
	switch {
	case !s.Mail && len(s.Letters) == 0:
		fmt.Fprintln(c.Out, "no mail is sent from here (mail.server)")
	case len(s.Letters) == 0:
		fmt.Fprintln(c.Out, "all letters have been sent")
	default:
		table := human.Table{Head: []string{"to", "written", "tries", "next", "subject", "last error"}, Right: []int{2}, Color: c.Term.Color, Width: c.Term.Width}
		for _, l := range s.Letters {
			next := when(l.Next)
			if !l.GivenUp.IsZero() {
				next = "given up"
			}
			table.Row(l.User, human.Ago(l.Made, now), l.Tries, next, l.Subject, l.Error)
		}
		if _, err := table.WriteTo(c.Out); err != nil {
			return err
		}
	}
	if len(s.Hooks) == 0 {
		return nil
	}
	fmt.Fprintln(c.Out)
	table := human.Table{Head: []string{"webhook", "behind", "tries", "next", "given up", "last error"}, Right: []int{1, 2, 4}, Color: c.Term.Color, Width: c.Term.Width}
	for _, h := range s.Hooks {
		next := "-"
		if h.Next != nil {
			next = when(*h.Next)
		}
		table.Row(h.Name, h.Behind, h.Tries, next, h.GivenUp, h.Error)
	}
	_, err := table.WriteTo(c.Out)
	return err
}
