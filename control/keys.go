package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/keys"
	"github.com/spf13/pflag"
)

// keysVerbs are those of people and their public keys.
func (f *Farm) keysVerbs() Table {
	return Table{
		{Name: "keys list", Looks: true, Args: "[USER]", MaxArgs: 1, Short: "List people, their keys and what they may do",
			Long: "Yours, or for admins everybody's.", Example: "keys list\nkeys list alice --json", Run: f.keysList},
		{Name: "keys add", Args: "USER FILE|-", MinArgs: 2, MaxArgs: 2, File: 2, Short: "Add public keys of a person, or of your own",
			Long: "FILE is one of the farm's machine, which only admins may name; - is standard\n" +
				"input. Everybody may add keys of their own; only admins add other people's, make\n" +
				"new people, and say who somebody is and what they may do.",
			Example: "keys add alice - < laptop.pub\nkeys add bob bob.pub --package 'lib*' --name 'Bob Hare'",
			Flags: func(fs *pflag.FlagSet) {
				fs.String("role", "", "admin, maintainer, reader or builder")
				fs.StringSlice("package", nil, "package, or pattern such as 'lib*', that a maintainer may push; several times; '*' is everything")
				fs.String("name", "", "name of the packager, as records show it")
				fs.String("email", "", "e-mail address of the packager")
			},
			Run: f.keysAdd},
		{Name: "keys remove", Args: "USER", MinArgs: 1, MaxArgs: 1, Need: Admin, Short: "Let a person in no more, and forget their keys",
			Long:    "Tokens of theirs end with it. What they have released stays.",
			Example: "keys remove mallory", Run: f.keysRemove},
	}
}

// mayKeys reports whether a caller may act on a person's keys.
func (f *Farm) mayKeys(c *Call, user string) error {
	switch {
	case f.Keys == nil:
		return errors.New("this farm keeps no keys of its own")
	case c.Who.Role == quarry.RoleAdmin:
		return nil
	case c.Who.User == "" || c.Who.User != user || isLocal(c.Who):
		return &Error{ExitForbidden, fmt.Errorf("%s: only an admin may do this for others, and you are a %s", c.Verb.Name, c.Who.Role)}
	}
	return nil
}

func (f *Farm) keysList(_ context.Context, c *Call) error {
	user := ""
	if len(c.Args) > 0 {
		user = c.Args[0]
	} else if c.Who.Role != quarry.RoleAdmin {
		user = c.Who.User
	}
	if err := f.mayKeys(c, user); err != nil {
		return err
	}
	people, problems, err := f.Keys.List()
	if err != nil {
		return err
	}
	list := []keys.Person{}
	for _, p := range people {
		if user == "" || p.User == user {
			list = append(list, p)
		}
	}
	if user != "" && len(list) == 0 {
		return notFound(fmt.Errorf("nobody here is called %.40q", user))
	}
	if c.Who.Role == quarry.RoleAdmin {
		for _, p := range problems {
			fmt.Fprintln(c.Err, human.Safe(p.String(), false))
		}
	}
	if c.JSON() {
		return c.emit(list)
	}
	if len(list) == 0 {
		_, err := fmt.Fprintln(c.Out, "nobody: keys add lets somebody in")
		return err
	}
	t := human.Table{Head: []string{"USER", "MAY", "COMMENT", "KEY"}, Color: c.Term.Color, Width: c.Term.Width}
	for _, p := range list {
		may := string(p.Role)
		switch {
		case p.Disabled:
			may = "nothing, being disabled"
		case p.Role == quarry.RoleMaintainer && len(p.Packages) > 0:
			may = "push " + strings.Join(p.Packages, ", ")
		}
		who := p.User
		if p.Name != "" {
			who += " (" + human.Safe(p.Name, false) + ")"
		}
		for _, k := range p.Keys {
			t.Row(who, may, human.Safe(k.Comment, false), k.Type+" "+k.Fingerprint)
			who, may = "", ""
		}
		if len(p.Keys) == 0 {
			t.Row(who, may, "", "none")
		}
	}
	_, err = t.WriteTo(c.Out)
	return err
}

func (f *Farm) keysAdd(_ context.Context, c *Call) error {
	user := c.Args[0]
	if err := byToken(c); err != nil {
		return err
	}
	if err := f.mayKeys(c, user); err != nil {
		return err
	}
	var ch keys.Change
	if c.Flags.Changed("role") {
		r := quarry.Role(c.string("role"))
		ch.Role = &r
	}
	for name, to := range map[string]**string{"name": &ch.Name, "email": &ch.Email} {
		if c.Flags.Changed(name) {
			s := c.string(name)
			*to = &s
		}
	}
	if c.Flags.Changed("package") {
		ch.Packages, _ = c.Flags.GetStringSlice("package")
	}
	admin := c.Who.Role == quarry.RoleAdmin
	if !admin && (ch.Role != nil || ch.Packages != nil || ch.Name != nil || ch.Email != nil) {
		return &Error{ExitForbidden, fmt.Errorf("keys add: only an admin says what somebody is called and may do, and you are a %s", c.Who.Role)}
	}
	var data []byte
	var err error
	switch {
	case c.Args[1] != "-" && !admin:
		return &Error{ExitForbidden, errors.New("keys add: only an admin may name a file of the farm's machine: give - and the key on standard input")}
	case c.Args[1] != "-":
		var file *os.File
		if file, err = os.Open(c.Args[1]); err != nil {
			return err
		}
		defer file.Close()
		data, err = io.ReadAll(io.LimitReader(file, keys.MaxFile+1))
	case c.In == nil:
		return usage("keys add: there is no standard input: give the key on it")
	default:
		data, err = io.ReadAll(io.LimitReader(c.In, keys.MaxFile+1))
	}
	if err != nil {
		return err
	}
	if len(data) > keys.MaxFile {
		return usage("keys add: that is more than %d bytes: give public keys, one a line", keys.MaxFile)
	}
	p, err := f.Keys.Add(user, data, ch)
	if err != nil {
		return err
	}
	if c.JSON() {
		return c.emit(p)
	}
	_, err = fmt.Fprintf(c.Out, "%s: %s, %s\n", p.User, p.Role, human.Count(len(p.Keys), "key"))
	return err
}

func (f *Farm) keysRemove(_ context.Context, c *Call) error {
	user := c.Args[0]
	if err := byToken(c); err != nil {
		return err
	}
	if err := f.mayKeys(c, user); err != nil {
		return err
	}
	if err := f.Keys.Remove(user); err != nil {
		return err
	}
	if c.JSON() {
		return c.emit(struct {
			User string `json:"user"`
		}{user})
	}
	_, err := fmt.Fprintf(c.Out, "%s is let in no more\n", user)
	return err
}
