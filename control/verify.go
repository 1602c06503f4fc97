package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/compare"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/results"
	"github.com/spf13/pflag"
)

// Verifier builds again what records say.
type Verifier interface {
	// Archs lists those that a release has a success for.
	Archs(channel, pkg, version string) ([]string, error)
	// Verify makes the recorded success of a target again and compares. An error
	// says that it could not be found out.
	Verify(ctx context.Context, t quarry.Target, o VerifyOptions) (*Verified, error)
	// Vote takes what came of it elsewhere, signed by a key of who hands it in.
	Vote(ctx context.Context, who quarry.Identity, signed []byte) (*Vote, error)
	// Votes are those on an artifact whose signature holds.
	Votes(artifact string) ([]Vote, error)
	// Reproduced says in a few words what the votes on a build's artifact are; "" for
	// none.
	Reproduced(b quarry.Build) string
}

// VerifyOptions say how to verify.
type VerifyOptions struct {
	By   string
	Keep bool               // what is built is kept among the artifacts
	Log  io.Writer          // gets the log of the build; nil: nobody wants it
	Tell func(state string) // what it waits for or does now, for people
}

// Verified is what came of it.
type Verified struct {
	results.Vote
	Took float64 `json:"seconds"` // of the build
	// Report is how the artifacts differ; absent where they are the same, or one of
	// them is not there.
	Report *compare.Report `json:"report,omitempty"`
	// Note says what there is to know besides, e.g. why nothing was recorded.
	Notes    []string `json:"notes,omitempty"`
	Recorded bool     `json:"recorded"`       // as a vote
	Kept     bool     `json:"kept,omitempty"` // what was built is among the artifacts
}

// Vote is a vote whose signature holds.
type Vote struct {
	results.Vote
	Signer      string `json:"signer"`      // whose key it is
	Fingerprint string `json:"fingerprint"` // of that, e.g. SHA256:uNiV...
	ID          string `json:"id"`          // last part of the name of its ref
}

// Reproduced counts who has made the very same, and who something else: "" when
// nobody has tried.
func Reproduced(votes []Vote) string {
	same := 0
	for _, v := range votes {
		if v.Same {
			same++
		}
	}
	switch {
	case len(votes) == 0:
		return ""
	case same == len(votes):
		return fmt.Sprintf("reproduced by %d", same)
	case same == 0:
		return fmt.Sprintf("not reproduced by %d", len(votes))
	}
	return fmt.Sprintf("reproduced by %d, not by %d", same, len(votes)-same)
}

func (f *Farm) verifyVerbs() Table {
	return Table{
		{Name: "verify", Args: "NAME-VERSION", MinArgs: 1, MaxArgs: 1, Need: Push, Short: "Build a record's release again, and compare bit for bit",
			Long: "What a record says is built again in a fresh workspace, of the very same commit, of\n" +
				"the very artifacts of its dependencies. Where it is not the same, it shows what\n" +
				"differs. The outcome is recorded as a vote that the farm signs; no record changes.\n\n" +
				"It is done when there is nothing else to build, and begins again when a build comes\n" +
				"up meanwhile. It goes on as long as this call does. The exit code is 6 when\n" +
				"something was not the same.",
			Example: "verify zlib-1.3.1\nverify zlib-1.3.1 --arch x86_64 --follow\nverify zlib-1.3.1 --channel stable --json",
			Flags: func(fs *pflag.FlagSet) {
				fs.String("channel", "", "channel whose record it is (default the farm's)")
				fs.String("arch", "", "only this arch")
				fs.BoolP("follow", "f", false, "print the log of the build")
				fs.Bool("keep", false, "keep what is built among the artifacts")
			},
			Plain: Followed,
			Run:   f.verify},
		{Name: "vote", Args: "-", MinArgs: 1, MaxArgs: 1, File: 1, Short: "Hand in what came of building a record again elsewhere",
			Long: "The vote is one that quarry db votes --raw prints on another farm that has the same\n" +
				"records, signed by that farm's key, which has to be a key of yours here. It is read\n" +
				"from standard input. Maintainers and builders may vote.",
			Example: "vote - <zlib.vote",
			Run:     f.vote},
	}
}

func (f *Farm) verify(ctx context.Context, c *Call) error {
	if c.JSON() && c.bool("follow") {
		return usage("verify: -f prints the log, which is text: leave out --json")
	}
	if f.Verifier == nil || f.Mover == nil {
		return errors.New("this farm verifies nothing")
	}
	channel, arch := c.string("channel"), c.string("arch")
	if channel == "" {
		channel = f.Default
	}
	if err := quarry.CheckChannel(channel); err != nil {
		return &Error{ExitUsage, err}
	}
	pkg, version, err := f.Mover.Find(channel, c.Args[0])
	if err != nil {
		return changeError(err)
	}
	if !c.Who.MayPush(pkg) {
		return &Error{ExitForbidden, fmt.Errorf("package %s is not among those of %s: ask an admin for it", pkg, c.Who.User)}
	}
	archs := []string{arch}
	if arch == "" {
		if archs, err = f.Verifier.Archs(channel, pkg, version); err != nil {
			return changeError(err)
		}
	} else if err := quarry.CheckArch(arch); err != nil {
		return &Error{ExitUsage, err}
	}
	var all []*Verified
	good := true
	for i, arch := range archs {
		t := quarry.Target{Channel: channel, Package: pkg, Version: version, Arch: arch}
		o := VerifyOptions{By: c.Who.User, Keep: c.bool("keep"), Tell: func(state string) {
			fmt.Fprintf(c.Err, "%s: %s\n", t, human.Safe(state, false))
		}}
		if c.bool("follow") {
			o.Log = c.writer()
		}
		v, err := f.Verifier.Verify(ctx, t, o)
		if err != nil {
			return changeError(err)
		}
		all = append(all, v)
		good = good && v.Same
		if !c.JSON() {
			if i > 0 || o.Log != nil {
				fmt.Fprintln(c.Out)
			}
			if err := writeVerified(c, v); err != nil {
				return err
			}
		}
	}
	if c.JSON() {
		if err := c.emit(all); err != nil {
			return err
		}
	}
	if !good {
		return ErrBuild
	}
	return nil
}

func writeVerified(c *Call, v *Verified) error {
	color := c.Term.Color
	verdict := human.Paint("the same, bit for bit", human.Green, color)
	switch {
	case v.Failure != "":
		verdict = human.Paint("it does not build any more", human.Red, color)
	case !v.Same && v.Report != nil && v.Report.Same:
		verdict = human.Paint("the same files, packed otherwise", human.Yellow, color)
	case !v.Same && v.Report != nil:
		verdict = human.Paint("not the same", human.Red, color) + fmt.Sprintf(": %d of %s differ", v.Report.Differ, human.Count(v.Report.Files, "path"))
	case !v.Same:
		verdict = human.Paint("not the same", human.Red, color)
	}
	took := human.Duration(time.Duration(v.Took * float64(time.Second)))
	fmt.Fprintf(c.Out, "%s, build %d: %s (in %s)\n", v.Target(), v.Build, verdict, took)
	fmt.Fprintf(c.Out, "  recorded  %s\n", v.Artifact)
	if v.Got != "" && !v.Same {
		fmt.Fprintf(c.Out, "  rebuilt   %s\n", v.Got)
	}
	if v.Failure != "" {
		fmt.Fprintf(c.Out, "  %s\n", human.Safe(v.Failure, false))
	}
	for _, s := range v.Changed {
		fmt.Fprintf(c.Out, "  %s: %s\n", human.Paint("not as it was", human.Yellow, color), human.Safe(s, false))
	}
	for _, s := range v.Notes {
		fmt.Fprintf(c.Out, "  %s\n", human.Safe(s, false))
	}
	if v.Report == nil {
		return nil
	}
	for _, d := range v.Report.Differences {
		fmt.Fprintf(c.Out, "\n%s  %s\n", human.Paint(d.Path, human.Bold, color), d.What)
		for _, l := range d.Details {
			if _, err := fmt.Fprintf(c.Out, "    %s\n", l); err != nil {
				return err
			}
		}
	}
	if more := v.Report.Differ - len(v.Report.Differences); more > 0 {
		_, err := fmt.Fprintf(c.Out, "\nand %s\n", human.Count(more, "more path"))
		return err
	}
	return nil
}

// Lines sums a report up, in lines for a vote.
func Lines(r *compare.Report) (lines []string) {
	if r.Same {
		return []string{"the files are the same, the archive is packed otherwise"}
	}
	for _, d := range r.Differences {
		lines = append(lines, d.Path+": "+d.What)
		for _, l := range d.Details {
			lines = append(lines, "  "+l)
		}
	}
	return lines
}

// maxVote is the most that is read of a vote, in bytes.
const maxVote = 64 << 10

func (f *Farm) vote(ctx context.Context, c *Call) error {
	switch c.Who.Role {
	case quarry.RoleAdmin, quarry.RoleMaintainer, quarry.RoleBuilder:
	default:
		return &Error{ExitForbidden, fmt.Errorf("vote: only maintainers and builders may do this, and you are a %s", c.Who.Role)}
	}
	if f.Verifier == nil {
		return errors.New("this farm takes no votes")
	}
	if c.Args[0] != "-" || c.In == nil {
		return usage("vote: give - and the vote on standard input")
	}
	text, err := io.ReadAll(io.LimitReader(c.In, maxVote+1))
	if err != nil {
		return err
	}
	if len(text) > maxVote {
		return usage("vote: it has more than %d bytes", maxVote)
	}
	v, err := f.Verifier.Vote(ctx, c.Who, text)
	if err != nil {
		return changeError(err)
	}
	if c.JSON() {
		return c.emit(v)
	}
	what := "not the same"
	if v.Same {
		what = "the same"
	}
	_, err = fmt.Fprintf(c.Out, "%s, build %d: %s by %s\n", v.Target(), v.Build, what, strings.TrimSpace(human.Safe(v.Builder, false)))
	return err
}
