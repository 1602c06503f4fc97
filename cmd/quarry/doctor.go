package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/doctor"
	"github.com/Morphux/quarry/internal/human"
	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// newDoctorCmd is quarry doctor. options gives what the configuration says, as
// far as it can be read.
func newDoctorCmd(options func() (doctor.Options, error)) *cobra.Command {
	var asJSON, fix, yes bool
	var archs []string
	cmd := &cobra.Command{
		Use:   "doctor [CHECK...]",
		Short: "Find out whether Quarry can work on this machine",
		Long: `Tries everything that a farm on this machine needs and prints the cure for what
is wrong. It may run beside a daemon. Exit code 1 says that something failed.

With --fix it mends what takes no package manager: it mounts binfmt_misc and
registers qemu's emulators for the archs of the configuration, until the next
boot. That changes this machine for everybody on it, so it asks first; --yes
consents. Without a terminal and without --yes it only says what it would do.`,
		Example: `  quarry doctor
  quarry doctor --arch aarch64,riscv64
  quarry doctor --fix
  quarry doctor podman runtime build`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o, err := options()
			if err != nil {
				return err
			}
			o.Fix, o.Only = fix, args
			if len(archs) > 0 {
				o.Archs, o.Refs = archs, nil
			}
			out := cmd.OutOrStdout()
			term := terminal(out)
			o.Consent = consent(yes, cmd.InOrStdin(), cmd.ErrOrStderr())
			report := func(f doctor.Finding) { printFinding(out, f, term) }
			if asJSON {
				report = nil
			}
			all := doctor.Run(cmd.Context(), o, report)
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			if none := doctor.Unknown(args, all); len(none) > 0 {
				return &flagError{fmt.Errorf("no check is called %s: quarry doctor shows their names", strings.Join(none, " or "))}
			}
			if asJSON {
				if err := human.JSON(out, all); err != nil {
					return err
				}
			} else {
				printVerdict(out, all, term)
			}
			if doctor.Failed(all) > 0 {
				return &exitError{control.ExitError}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for scripts")
	cmd.Flags().BoolVar(&fix, "fix", false, "register emulators for the configured archs")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "consent to what --fix changes")
	cmd.Flags().StringSliceVar(&archs, "arch", nil, "archs to look at, instead of the configuration's")
	return cmd
}

// consent asks the person at the terminal, if there is one.
func consent(yes bool, in io.Reader, out io.Writer) func(would string) bool {
	if yes {
		return func(string) bool { return true }
	}
	f, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || !terminal(out).TTY {
		return nil
	}
	lines := bufio.NewReader(f)
	return func(would string) bool {
		fmt.Fprintf(out, "\nMay it %s? [y/N] ", would)
		answer, _ := lines.ReadString('\n')
		switch strings.ToLower(strings.TrimSpace(answer)) {
		case "y", "yes":
			return true
		}
		return false
	}
}

// doctor is what the configuration says about what doctor looks at.
func (a *app) doctor() (doctor.Options, error) {
	c, err := a.config()
	if err != nil {
		return doctor.Options{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return doctor.Options{}, err
	}
	o := doctor.Options{
		Podman: podmanConfig(c, nil), Guest: self, UIDBase: c.Podman.IDBase,
		Listen: c.SSH.Listen, Socket: c.Socket(), MinFree: int64(c.Queue.MinFree),
		Memory: int64(c.Limits.Memory), Workers: c.Workers(),
		Troubles: func(ctx context.Context) ([]doctor.Trouble, error) { return troubles(ctx, c) },
	}
	if m := mailer(c); m != nil {
		o.Mail, o.MailServer = m.Check, m.Server
	}
	for _, name := range slices.Sorted(maps.Keys(c.Channels)) {
		ch := c.Channels[name]
		for _, arch := range ch.Archs {
			o.Archs = append(o.Archs, arch)
			o.Refs = append(o.Refs, images.BaseRef{Arch: arch, Name: ch.Base}.String())
		}
		if len(ch.Setup.Update) > 0 {
			o.Setups = append(o.Setups, name)
		}
	}
	slices.Sort(o.Archs)
	slices.Sort(o.Refs)
	o.Archs, o.Refs = slices.Compact(o.Archs), slices.Compact(o.Refs)
	return o, nil
}

const nameWidth = 14

func printFinding(w io.Writer, f doctor.Finding, term control.Terminal) {
	colour := map[doctor.Status]human.Colour{doctor.OK: human.Green, doctor.Warn: human.Yellow, doctor.Fail: human.Red}[f.Status]
	text := f.Detail
	if f.Fixed {
		text = "fixed: " + text
	}
	name := fmt.Sprintf("%-*s", nameWidth, human.Safe(f.Name, false))
	if len(name) > nameWidth {
		name += "  " // instance testing/x86_64
	}
	fmt.Fprintf(w, "%s  %s%s\n", human.Paint(fmt.Sprintf("%4s", f.Status), colour, term.Color), human.Paint(name, human.Bold, term.Color),
		indent(human.Safe(text, false), 6+nameWidth, term.Width))
	if f.Cure != "" && f.Status != doctor.OK {
		fmt.Fprintf(w, "%*s%s %s\n", 6+nameWidth, "", human.Paint("->", colour, term.Color), indent(human.Safe(f.Cure, false), 9+nameWidth, term.Width))
	}
}

// indent breaks text at blanks so that it fits beside a margin. Without a
// width, as in a log, it stays one line.
func indent(text string, margin, width int) string {
	room := width - margin
	if room < 20 {
		return text
	}
	var b strings.Builder
	used := 0
	for _, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case used == 0:
		case used+1+n > room:
			b.WriteString("\n" + strings.Repeat(" ", margin))
			used = 0
		default:
			b.WriteByte(' ')
			used++
		}
		b.WriteString(word)
		used += n
	}
	return b.String()
}

func printVerdict(w io.Writer, all []doctor.Finding, term control.Terminal) {
	count := map[doctor.Status]int{}
	for _, f := range all {
		count[f.Status]++
	}
	text, colour := fmt.Sprintf("Everything is well (%s).", human.Count(len(all), "check")), human.Green
	switch {
	case count[doctor.Fail] > 0:
		text, colour = fmt.Sprintf("%d of %s failed. What follows -> cures them.", count[doctor.Fail], human.Count(len(all), "check")), human.Red
	case count[doctor.Warn] > 0:
		text, colour = fmt.Sprintf("Quarry works here; %d of %s would like something else.", count[doctor.Warn], human.Count(len(all), "check")), human.Yellow
	}
	fmt.Fprintf(w, "\n%s\n", human.Paint(text, colour, term.Color))
}
