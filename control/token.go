package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/tokens"
	"github.com/spf13/pflag"
)

// tokenVerbs are those of bearer tokens, which let programs in that cannot hold
// an SSH key.
func (f *Farm) tokenVerbs() Table {
	return Table{
		{Name: "token add", Args: "[USER]", MaxArgs: 1, Secret: true, Short: "Make a token for a program that speaks HTTP or the text protocol",
			Long: "The token is printed once, and kept nowhere: who loses it makes another. It lets\n" +
				"in as its user, as far as the flags say, and never further than the user may go\n" +
				"at the time. Without USER it is yours; only admins make tokens for others.",
			Example: "token add alice --name crawler --package 'lib*' --expires 90d\ntoken add --role reader",
			Flags: func(fs *pflag.FlagSet) {
				fs.String("name", "", "what it is for, as token list shows it")
				fs.String("role", "", "at most this: admin, maintainer, reader or builder")
				fs.StringSlice("package", nil, "only this package, or those of a pattern such as 'lib*'; several times")
				fs.String("expires", "", "after this time it is worth nothing, e.g. 12h, 90d; never without it")
			},
			Run: f.tokenAdd},
		{Name: "token list", Looks: true, Args: "[USER]", MaxArgs: 1, Short: "List tokens, and when they were used last",
			Long:    "Yours, or for admins everybody's. The secrets are not among it: nobody has them.",
			Example: "token list\ntoken list alice --json", Run: f.tokenList},
		{Name: "token revoke", Args: "ID...", MinArgs: 1, MaxArgs: -1, Short: "Make tokens worth nothing, at once",
			Long:    "What was begun with them goes on; nothing more is begun, on open connections\neither.",
			Example: "token revoke k3j5x2ab", Run: f.tokenRevoke},
	}
}

// tokensOf says whose tokens a caller acts on.
func (f *Farm) tokensOf(c *Call, user string) error {
	switch {
	case f.Tokens == nil:
		return errors.New("this farm keeps no tokens")
	case isLocal(c.Who) && c.Who.Role != quarry.RoleAdmin:
		return &Error{ExitForbidden, fmt.Errorf("%s: whoever comes through the socket's group has no tokens: be the daemon's user, or ask over SSH", c.Verb.Name)}
	case c.Who.User == "":
		return &Error{ExitForbidden, fmt.Errorf("%s: nobody in particular has no tokens: say who you are", c.Verb.Name)}
	case c.Who.Role != quarry.RoleAdmin && user != c.Who.User:
		return &Error{ExitForbidden, fmt.Errorf("%s: only an admin may do this for others, and you are a %s", c.Verb.Name, c.Who.Role)}
	}
	return nil
}

// byToken refuses what whoever has come by a token of somebody's must not do
// with it: to make more of them would outlive its end.
func byToken(c *Call) error {
	if _, ok := tokens.ID(c.Who); !ok {
		return nil
	}
	return &Error{ExitForbidden, fmt.Errorf("%s: a token is not enough for this: ask over SSH, or on the farm's machine", c.Verb.Name)}
}

// NewToken is what token add --json prints.
type NewToken struct {
	Secret string `json:"token"`
	tokens.Token
}

func (f *Farm) tokenAdd(_ context.Context, c *Call) error {
	user := c.Who.User
	if len(c.Args) > 0 {
		user = c.Args[0]
	} else if isLocal(c.Who) {
		return usage("token add: say whose it is to be: token add USER")
	}
	if err := byToken(c); err != nil {
		return err
	}
	if err := f.tokensOf(c, user); err != nil {
		return err
	}
	o := tokens.Options{Name: c.string("name"), Role: quarry.Role(c.string("role")), By: c.Who.User}
	o.Packages, _ = c.Flags.GetStringSlice("package")
	if s := c.string("expires"); s != "" {
		d, err := lasting(s)
		if err != nil {
			return usage("token add: --expires %w", err)
		}
		o.Expires = time.Now().Add(d)
	}
	secret, t, err := f.Tokens.Add(user, o)
	if err != nil {
		return err
	}
	if c.JSON() {
		return c.emit(NewToken{secret, t})
	}
	// The secret has standard output for itself: TOKEN=$(quarry token add alice).
	if _, err := fmt.Fprintln(c.Out, secret); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.Err, "this is all that is ever seen of it; token revoke %s ends it\n", t.ID)
	return err
}

// lasting reads a time to come, as the configuration has them.
func lasting(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n > 0 && n < 36500 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%.40q is no span of time: write it as 30m, 12h or 90d", s)
	}
	return d, nil
}

func (f *Farm) tokenList(_ context.Context, c *Call) error {
	user := ""
	if len(c.Args) > 0 {
		user = c.Args[0]
	} else if c.Who.Role != quarry.RoleAdmin {
		user = c.Who.User
	}
	if err := f.tokensOf(c, user); err != nil {
		return err
	}
	all, problems, err := f.Tokens.List()
	if err != nil {
		return err
	}
	list := []tokens.Token{}
	for _, t := range all {
		if user == "" || t.User == user {
			list = append(list, t)
		}
	}
	if c.Who.Role == quarry.RoleAdmin {
		for _, p := range problems {
			fmt.Fprintf(c.Err, "%s: %s\n", p.File, human.Safe(p.Message, false))
		}
	}
	if c.JSON() {
		return c.emit(list)
	}
	if len(list) == 0 {
		_, err := fmt.Fprintln(c.Out, "no tokens: token add makes one")
		return err
	}
	now := time.Now()
	table := human.Table{Head: []string{"ID", "USER", "MAY", "MADE", "USED", "EXPIRES", "NAME"}, Color: c.Term.Color, Width: c.Term.Width}
	for _, t := range list {
		expires := any("never")
		switch {
		case t.Expired():
			expires = human.Cell("has expired", human.Red)
		case !t.Expires.IsZero():
			expires = "in " + human.Duration(t.Expires.Sub(now))
		}
		used := "never"
		switch ago := now.Sub(t.Used); {
		case t.Used.IsZero():
		case ago < 2*tokens.Coarse:
			used = "lately"
		default:
			used = human.Ago(t.Used, now)
		}
		table.Row(t.ID, t.User, tokenMay(t), human.Ago(t.Made, now), used, expires, t.Name)
	}
	_, err = table.WriteTo(c.Out)
	return err
}

// tokenMay says how far a token goes.
func tokenMay(t tokens.Token) string {
	switch {
	case len(t.Packages) > 0:
		return "push " + strings.Join(t.Packages, ", ")
	case t.Role != "":
		return "what a " + string(t.Role) + " may"
	}
	return "all of its user's"
}

func (f *Farm) tokenRevoke(_ context.Context, c *Call) error {
	type revoked struct {
		ID   string `json:"id"`
		User string `json:"user"`
	}
	gone := []revoked{}
	for _, id := range c.Args {
		// Its own end is the one thing that a token may bring about.
		if self, ok := tokens.ID(c.Who); !ok || self != id {
			if err := byToken(c); err != nil {
				return err
			}
		}
		t, err := tokens.Token{}, error(nil)
		if f.Tokens != nil {
			t, err = f.Tokens.Get(id)
		}
		if err != nil && (errors.Is(err, fs.ErrNotExist) || c.Who.Role != quarry.RoleAdmin) {
			// Whose it is that cannot be read, only admins need to know.
			return notFound(fmt.Errorf("there is no token %.40q: token list says which there are", id))
		}
		if err := f.tokensOf(c, t.User); err != nil {
			return err
		}
		if err := f.Tokens.Revoke(id); err != nil {
			return err
		}
		gone = append(gone, revoked{id, t.User})
		if !c.JSON() {
			fmt.Fprintf(c.Out, "token %s of %s is worth nothing now\n", id, orUnknown(t.User))
		}
	}
	if c.JSON() {
		return c.emit(gone)
	}
	return nil
}

func orUnknown(s string) string {
	if s == "" {
		return "nobody known"
	}
	return s
}
