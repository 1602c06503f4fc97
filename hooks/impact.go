package hooks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/Morphux/quarry/internal/human"
)

// Limits on asking what a push causes.
const (
	// impactTimeout is how long a push waits for the answer; then it goes on
	// without.
	impactTimeout = 8 * time.Second
	// maxRecipes is how many bytes of recipes are sent along.
	maxRecipes = 4 << 20
	maxShown   = 5    // entries of a list that are told
	maxText    = 1000 // bytes of an entry
)

// Proposal is a push none of whose refs has moved yet, as a daemon is asked what
// it would cause.
type Proposal struct {
	Package  string     `json:"package"`
	Channel  string     `json:"channel,omitempty"` // "": the daemon's default one
	Group    string     `json:"group,omitempty"`   // that the releases are to land with
	Releases []Proposed `json:"releases,omitempty"`
	Gone     []string   `json:"gone,omitempty"` // versions whose branches are deleted
}

// Proposed is a release of a [Proposal].
type Proposed struct {
	Version string `json:"version"`
	Commit  string `json:"commit"`
	Recipe  []byte `json:"recipe"` // package.json
}

// Impact is what a push would cause.
type Impact struct {
	Channels []ChannelImpact `json:"channels"`
	// Confirm says what about the push is so large that it is only taken with
	// -o confirm; "" when nothing is.
	Confirm string `json:"confirm,omitempty"`
	// Refuse says why the push must not be taken; "" when it may.
	Refuse string `json:"refuse,omitempty"`
}

// ChannelImpact is what a push would cause on one channel.
type ChannelImpact struct {
	Channel  string       `json:"channel"`
	Builds   int          `json:"builds"`             // of what is pushed
	Archs    []ArchBuilds `json:"archs,omitempty"`    // of Builds
	Rebuilds int          `json:"rebuilds,omitempty"` // builds of others that may be made again: at most that many
	Rebuilt  Names        `json:"rebuilt,omitzero"`   // packages of these, what is needed first comes first
	Freed    int          `json:"freed,omitempty"`    // builds of others that wait, and need wait no longer
	Frees    Names        `json:"frees,omitzero"`     // packages of these
	Seconds  float64      `json:"seconds,omitempty"`  // no farm of that many builders is through with all that sooner
	Work     float64      `json:"work,omitempty"`     // seconds of all that, one after the other
	Guessed  int          `json:"guessed,omitempty"`  // builds whose time is a guess
	Builders int          `json:"builders,omitempty"` // builds at once
	Cycles   Names        `json:"cycles,omitzero"`    // that the push would close, e.g. a 1.0 -> b 2.0 -> a 1.0 (x86_64)
	Cut      Names        `json:"cut,omitzero"`       // cycles that a declaration as bootstrap cuts, and where
	Unmet    Names        `json:"unmet,omitzero"`     // what the releases need and nobody offers
	Broken   Names        `json:"broken,omitzero"`    // what others need and nobody offers any longer
}

// ArchBuilds is how many builds are for an arch.
type ArchBuilds struct {
	Arch   string `json:"arch"`
	Builds int    `json:"builds"`
}

// Names is a list of which only the beginning is told.
type Names struct {
	List []string `json:"list,omitempty"`
	All  int      `json:"all,omitempty"` // how many there are
}

// propose makes the proposal of a push. It is nil when nothing is released and
// nothing taken back.
func (e Env) propose(releases []Proposed, gone []string, opts options) (*Proposal, error) {
	if len(releases)+len(gone) == 0 {
		return nil, nil
	}
	size := 0
	for _, r := range releases {
		size += len(r.Recipe)
	}
	if size > maxRecipes {
		return nil, fmt.Errorf("its recipes have more than %d MiB", maxRecipes>>20)
	}
	return &Proposal{Package: e.Package, Channel: opts.channel, Group: opts.group, Releases: releases, Gone: gone}, nil
}

// foresee tells the pusher what a push would cause, and reports whether it may
// be taken. Where nobody answers, or not soon, it is.
func (e Env) foresee(ctx context.Context, p *Proposal, lines [][3]string, opts options, say func(string, ...any), dial Dialer) (taken bool) {
	im, err := e.askImpact(ctx, p, dial)
	var refused *Refused
	switch {
	case errors.As(err, &refused):
		say("what this push causes is not known: %v", shorten(refused.Err.Error()))
		return true
	case errors.Is(err, context.DeadlineExceeded):
		say("what this push causes is not known: Quarry has not answered within %s", human.Duration(impactTimeout))
		return true
	case err != nil:
		say("what this push causes is not known, as no Quarry answers just now")
		return true
	}
	if im.Refuse != "" {
		say("refused: %s", shorten(im.Refuse))
		return false
	}
	taken = true
	for _, c := range im.Channels {
		if c.Cycles.All > 0 {
			c.refuse(say)
			taken = false
		}
	}
	if !taken {
		return false
	}
	for _, c := range im.Channels[:min(len(im.Channels), maxShown)] {
		c.tell(say)
	}
	if im.Confirm == "" || opts.confirm {
		return true
	}
	say("refused: %s. If it is meant, repeat it with -o confirm:", shorten(im.Confirm))
	say("  %s", e.repeat(lines))
	return false
}

// askImpact asks the daemon, within impactTimeout whatever it does.
func (e Env) askImpact(ctx context.Context, p *Proposal, dial Dialer) (Impact, error) {
	if e.Socket == "" {
		return Impact{}, errors.New("no socket is set")
	}
	ctx, cancel := context.WithTimeout(ctx, impactTimeout)
	defer cancel()
	type answer struct {
		im  Impact
		err error
	}
	got := make(chan answer, 1)
	go func() {
		daemon, err := dial(ctx, e.Socket)
		if err != nil {
			got <- answer{err: err}
			return
		}
		defer daemon.Close()
		im, err := daemon.Impact(ctx, *p)
		got <- answer{im, err}
	}()
	select {
	case a := <-got:
		if a.err != nil && ctx.Err() != nil {
			return a.im, context.Cause(ctx)
		}
		return a.im, a.err
	case <-ctx.Done():
		return Impact{}, context.Cause(ctx)
	}
}

// tell says in a few lines what happens on a channel. All names in it come from
// other people's recipes.
func (c ChannelImpact) tell(say func(string, ...any)) {
	on := "on " + show(c.Channel) + ": "
	switch takes := c.takes(); {
	case c.Rebuilds+c.Freed > 0:
		what := []string{}
		if c.Builds > 0 {
			what = append(what, c.builds())
		}
		if c.Rebuilds > 0 {
			what = append(what, fmt.Sprintf("at most %s in %s, fewer where it offers the same to build against",
				human.Count(c.Rebuilds, "rebuild"), c.Rebuilt.of("package")))
		}
		if c.Freed > 0 {
			what = append(what, fmt.Sprintf("it lets %s go on, in %s", human.Count(c.Freed, "waiting build"), c.Frees.of("package")))
		}
		say("%s%s", on, strings.Join(what, "; "))
		if takes != "" {
			say("%sall of it takes %s", on, takes)
		}
	case c.Builds > 0 && takes != "":
		say("%s%s, which takes %s", on, c.builds(), takes)
	case c.Builds > 0:
		say("%s%s", on, c.builds())
	}
	c.Cut.each(func(s string) { say("%scycle %s", on, s) })
	c.Unmet.each(func(s string) { say("%swarning: %s", on, s) })
	c.Broken.each(func(s string) { say("%swarning: this takes away what others need: %s", on, s) })
}

// refuse says which cycles the push would close.
func (c ChannelImpact) refuse(say func(string, ...any)) {
	on := "on " + show(c.Channel) + ": "
	c.Cycles.each(func(s string) { say("%srefused: this would close a cycle: %s", on, s) })
	say("%seach of them needs the next, so that none could be built first: take one of the dependencies out, or declare as bootstrap what can be built without (doc/recipe.md)", on)
}

// builds is e.g. "2 builds (x86_64, i686)".
func (c ChannelImpact) builds() string {
	var archs []string
	for i, a := range c.Archs {
		if i == 2*maxShown {
			archs = append(archs, fmt.Sprintf("%d archs more", len(c.Archs)-i))
			break
		}
		word := show(a.Arch)
		if a.Builds > 1 {
			word += fmt.Sprintf(" %d", a.Builds)
		}
		archs = append(archs, word)
	}
	s := human.Count(c.Builds, "build")
	if len(archs) > 0 {
		s += " (" + strings.Join(archs, ", ") + ")"
	}
	return s
}

// takes is e.g. "2 h 10 m or more with 4 builders (41 h of work; the times of 3
// builds are guesses)".
func (c ChannelImpact) takes() string {
	if c.Seconds <= 0 {
		return ""
	}
	all := c.Builds + c.Rebuilds + c.Freed
	seconds := func(s float64) string { return human.Duration(time.Duration(min(s, 1e9) * float64(time.Second))) }
	s := "about " + seconds(c.Seconds)
	var more []string
	if c.Rebuilds+c.Freed > 0 || c.Builds > 1 && c.Work > 1.5*c.Seconds {
		s = fmt.Sprintf("%s or more with %s", seconds(c.Seconds), human.Count(max(1, c.Builders), "builder"))
		more = append(more, seconds(c.Work)+" of work")
	}
	switch {
	case c.Guessed > 0 && c.Guessed >= all:
		more = append(more, "a guess, as nothing of it was built before")
	case c.Guessed > 0:
		more = append(more, fmt.Sprintf("a guess for %d of %d", c.Guessed, all))
	}
	if len(more) > 0 {
		s += " (" + strings.Join(more, "; ") + ")"
	}
	return s
}

// of is e.g. "104 packages (curl, git and 102 more)".
func (n Names) of(what string) string {
	list := n.List[:min(len(n.List), maxShown)]
	words := make([]string, len(list))
	for i, s := range list {
		words[i] = shorten(s)
	}
	s := human.Count(n.All, what) + " (" + strings.Join(words, ", ")
	if rest := n.All - len(list); rest > 0 {
		s += fmt.Sprintf(" and %d more", rest)
	}
	return s + ")"
}

// each calls f for the first few, and for what says how many more there are.
func (n Names) each(f func(string)) {
	list := n.List[:min(len(n.List), maxShown)]
	for _, s := range list {
		f(shorten(s))
	}
	if rest := n.All - len(list); rest > 0 && len(list) > 0 {
		f(fmt.Sprintf("and %d more of this kind", rest))
	}
}

func shorten(s string) string {
	if len(s) > maxText {
		return strings.ToValidUTF8(s[:maxText], "") + "..."
	}
	return s
}

// repeat is the command that makes the same push with -o confirm.
func (e Env) repeat(lines [][3]string) string {
	words := []string{"git push -o confirm"}
	for _, o := range e.Options {
		if key, _, _ := strings.Cut(o, "="); key == "follow" || key == "channel" || key == "group" {
			words = append(words, "-o "+show(o))
		}
	}
	words = append(words, cmp.Or(e.URL, "REMOTE"))
	for i, l := range lines {
		if i == 2*maxShown {
			words = append(words, "...")
			break
		}
		switch {
		case isZero(l[1]):
			words = append(words, ":"+show(l[2]))
		case isZero(l[0]):
			words = append(words, l[1][:12]+":"+show(l[2]))
		default:
			words = append(words, "+"+l[1][:12]+":"+show(l[2]))
		}
	}
	return strings.Join(words, " ")
}
