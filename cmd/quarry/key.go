package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/keys"
	"github.com/spf13/cobra"
)

// newKeyCmd is quarry key. It works on the folder itself, so it needs no
// running daemon; one that runs sees the change at the next connection. dir
// says where the folder is.
func newKeyCmd(dir func() (string, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Say who may connect and what they may push",
		Long: `The folder of keys holds a file of public keys for each person (alice.pub) and
may hold one that says who they are and what they may do (alice.toml). These
commands write those files; changing them by hand does the same.`,
	}
	cmd.AddCommand(newKeyAddCmd(dir), newKeyListCmd(dir), newKeyRemoveCmd(dir))
	return cmd
}

func openKeys(dir func() (string, error)) (*keys.Store, error) {
	d, err := dir()
	if err != nil {
		return nil, err
	}
	return keys.Open(d, nil)
}

func newKeyAddCmd(dir func() (string, error)) *cobra.Command {
	var role, name, email, mail string
	var packages []string
	var disable, enable, asJSON bool
	cmd := &cobra.Command{
		Use:   "add NAME [FILE|-]",
		Short: "Add keys of a person, or change what they may do",
		Long: `Adds the public keys in FILE (-: standard input) to NAME's. Without FILE, only
what the flags say is changed. Somebody new is a maintainer of every package
unless the flags say otherwise.`,
		Example: `  quarry key add alice ~alice/.ssh/id_ed25519.pub --name "Alice Liddell" --email alice@morphux.org
  quarry key add bob bob.pub --package zlib --package 'lib*'
  quarry key add bob --disable                        keep bob's keys, and let him in no more
  quarry key add carol --role admin                   carol is known already`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var data []byte
			var err error
			switch {
			case len(args) == 2 && args[1] == "-":
				data, err = io.ReadAll(io.LimitReader(cmd.InOrStdin(), keys.MaxFile+1))
			case len(args) == 2:
				data, err = readSome(args[1])
			}
			if err != nil {
				return fmt.Errorf("key of %s cannot be read: %w", args[0], err)
			}
			var c keys.Change
			set := cmd.Flags().Changed
			if set("role") {
				r := quarry.Role(role)
				c.Role = &r
			}
			if set("name") {
				c.Name = &name
			}
			if set("email") {
				c.Email = &email
			}
			if set("package") {
				c.Packages = packages
			}
			if set("mail") {
				c.Mail = &mail
			}
			if disable || enable {
				c.Disabled = &disable
			}
			s, err := openKeys(dir)
			if err != nil {
				return err
			}
			p, err := s.Add(args[0], data, c)
			if err != nil {
				return err
			}
			if asJSON {
				return human.JSON(cmd.OutOrStdout(), p)
			}
			keys := "1 key"
			if len(p.Keys) != 1 {
				keys = fmt.Sprintf("%d keys", len(p.Keys))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, %s\n", p.User, may(p), keys)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", "maintainer", "admin, maintainer, reader or builder")
	f.StringArrayVar(&packages, "package", nil, "package, or pattern such as 'lib*', that a maintainer may push; several times; '*' is everything")
	f.StringVar(&name, "name", "", "name of the packager, as records show it")
	f.StringVar(&email, "email", "", "e-mail address of the packager")
	f.StringVar(&mail, "mail", keys.MailAll, "what the person is written about: all, failures or none")
	f.BoolVar(&disable, "disable", false, "let the person in no more, but keep the keys")
	f.BoolVar(&enable, "enable", false, "let the person in again")
	f.BoolVar(&asJSON, "json", false, "print JSON for scripts")
	cmd.MarkFlagsMutuallyExclusive("disable", "enable")
	return cmd
}

func newKeyListCmd(dir func() (string, error)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List people, their keys, and what in the folder is not taken",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := openKeys(dir)
			if err != nil {
				return err
			}
			people, problems, err := s.List()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return human.JSON(out, struct {
					People   []keys.Person  `json:"people"`
					Problems []keys.Problem `json:"problems"`
				}{append([]keys.Person{}, people...), append([]keys.Problem{}, problems...)})
			}
			if len(people) == 0 {
				fmt.Fprintf(out, "nobody yet: quarry key add NAME FILE.pub, or put NAME.pub into %s\n", s.Dir())
			}
			t := human.Table{Color: terminal(out).Color}
			for _, p := range people {
				who := p.Name
				if p.Email != "" {
					who = strings.TrimSpace(who + " <" + p.Email + ">")
				}
				t.Row(human.Cell(p.User, human.Bold), may(p), who)
				for _, k := range p.Keys {
					t.Row("", k.Type+" "+k.Fingerprint, k.Comment)
				}
			}
			if _, err := t.WriteTo(out); err != nil {
				return err
			}
			for _, p := range problems {
				fmt.Fprintf(cmd.ErrOrStderr(), "quarry: %s\n", p)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for scripts")
	return cmd
}

func newKeyRemoveCmd(dir func() (string, error)) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "remove NAME",
		Aliases: []string{"rm"},
		Short:   "Remove a person with all their keys",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := openKeys(dir)
			if err != nil {
				return err
			}
			if err := s.Remove(args[0]); err != nil {
				return err
			}
			if asJSON {
				return human.JSON(cmd.OutOrStdout(), map[string]string{"removed": args[0]})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is removed: what they built stays, what they start from now on is refused\n", args[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for scripts")
	return cmd
}

// may says in a few words what somebody may do.
func may(p keys.Person) string {
	switch {
	case p.Disabled:
		return "disabled " + string(p.Role)
	case p.Role == quarry.RoleMaintainer && len(p.Packages) > 0:
		return "maintainer of " + strings.Join(p.Packages, ", ")
	case p.Role == quarry.RoleMaintainer:
		return "maintainer of every package"
	}
	return string(p.Role)
}

// readSome reads a file of at most a little more than a file of keys may have.
func readSome(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, keys.MaxFile+1))
}
