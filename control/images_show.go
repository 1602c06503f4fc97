package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/human"
)

// baseJSON is a base as the verbs tell it.
type baseJSON struct {
	images.Base
	Ref  string `json:"ref"`  // what it is called
	Runs string `json:"runs"` // native, compat or emulated; "not here"
}

func baseOf(b images.Base) baseJSON { return baseJSON{b, b.Ref(), runs(b.Arch)} }

// environmentJSON is an environment as the verbs tell it.
type environmentJSON struct {
	images.Environment
	// In place of those of Environment, so that what is not there is left out.
	Base     *images.Base     `json:"base,omitempty"`
	Instance *images.Instance `json:"instance,omitempty"`

	Name string   `json:"name"`          // e.g. testing/x86_64
	Runs string   `json:"runs"`          // as of baseJSON
	Log  []string `json:"log,omitempty"` // the last lines of the last update; only in images show
}

func (f *Farm) environments(ctx context.Context, s *images.Store) []environmentJSON {
	list := []environmentJSON{}
	for _, e := range s.Environments(ctx) {
		v := environmentJSON{Environment: e, Name: e.Name(), Runs: runs(e.Arch)}
		if e.Instance.Image != "" {
			v.Instance, v.Base = &e.Instance, &e.Instance.Base
		} else if i := slices.IndexFunc(f.Channels, func(c Channel) bool { return c.Name == e.Channel }); i >= 0 {
			if b, err := s.Base(ctx, images.BaseRef{Arch: e.Arch, Name: f.Channels[i].Base}.String()); err == nil {
				v.Base = &b
			}
		}
		list = append(list, v)
	}
	return list
}

type imagesJSON struct {
	Bases        []baseJSON        `json:"bases"`
	Environments []environmentJSON `json:"environments"`
}

func (f *Farm) imagesList(ctx context.Context, c *Call) error {
	s, err := f.store()
	if err != nil {
		return err
	}
	bases, err := s.Bases(ctx)
	if err != nil {
		return err
	}
	all := imagesJSON{Bases: []baseJSON{}, Environments: f.environments(ctx, s)}
	for _, b := range bases {
		all.Bases = append(all.Bases, baseOf(b))
	}
	if c.JSON() {
		return c.emit(all)
	}
	now := time.Now()
	t := human.Table{Head: []string{"BASE", "RUNS", "SIZE", "MADE", "DIGEST", "SOURCE"}, Color: c.Term.Color, Width: c.Term.Width}
	for _, b := range all.Bases {
		t.Row(b.Ref, b.Runs, human.Size(b.Size), human.Ago(b.Created, now), short(b.Digest), b.Source)
	}
	if t.Len() == 0 {
		fmt.Fprintln(c.Out, "no bases yet: quarry images load ARCH FILE, or quarry images bootstrap ARCH, makes one")
	} else if _, err := t.WriteTo(c.Out); err != nil {
		return err
	}
	if len(all.Environments) == 0 {
		return nil
	}
	fmt.Fprintln(c.Out)
	t = human.Table{Head: []string{"ENVIRONMENT", "RUNS", "BASE", "INSTANCE", "UPDATED", "READY", "BUSY", "NOTE"}, Color: c.Term.Color, Width: c.Term.Width}
	for _, e := range all.Environments {
		note, colour := noteOf(e)
		t.Row(e.Name, e.Runs, baseName(e), instanceName(e), updated(e, now), fmt.Sprintf("%d/%d", e.Warm, e.Target), e.Busy, human.Cell(note, colour))
	}
	_, err = t.WriteTo(c.Out)
	return err
}

// noteOf says what is in an environment's way, else what was last said of it.
func noteOf(e environmentJSON) (string, human.Colour) {
	switch {
	case e.Instance != nil && e.Instance.Trouble != "":
		return e.Instance.Trouble, human.Yellow
	case e.Paused != "":
		return e.Paused, human.Yellow
	case e.Started:
		return "started", human.Dim
	case e.Stopped:
		return "stopped", human.Dim
	}
	return "", human.Yellow
}

func baseName(e environmentJSON) string {
	if e.Base == nil {
		return "none"
	}
	return e.Base.Ref()
}

// bare reports whether an environment's builds start from the base itself, as
// its channel has no setup.
func bare(e environmentJSON) bool { return e.Instance != nil && e.Instance.Image == e.Base.Image }

func instanceName(e environmentJSON) string {
	switch {
	case e.Instance == nil:
		return "none"
	case bare(e):
		return "the base"
	}
	return short(e.Instance.Digest)
}

func updated(e environmentJSON, now time.Time) string {
	if e.Instance == nil || bare(e) {
		return "-"
	}
	return human.Ago(e.Instance.Checked, now)
}

func (f *Farm) imagesShow(ctx context.Context, c *Call) error {
	s, err := f.store()
	if err != nil {
		return err
	}
	if strings.Contains(c.Args[0], "/") || f.isChannel(c.Args[0]) {
		return f.showEnvironments(ctx, c, s)
	}
	if _, err := images.ParseBaseRef(c.Args[0]); err != nil {
		return usage("%.80q is no environment (CHANNEL or CHANNEL/ARCH) and no base (ARCH or ARCH:NAME): images list shows those there are", c.Args[0])
	}
	b, err := s.Base(ctx, c.Args[0])
	if err != nil {
		return missing(err)
	}
	if c.JSON() {
		return c.emit(baseOf(b))
	}
	fmt.Fprintf(c.Out, "base %s\n", b.Ref())
	t := facts{human.Table{Color: c.Term.Color}}
	t.row("arch", b.Arch+", "+runs(b.Arch))
	t.row("digest", b.Digest)
	t.row("image", b.Image)
	t.row("size", human.Size(b.Size))
	t.row("made", day(b.Created))
	t.row("source", b.Source)
	var on []string
	for _, e := range f.environments(ctx, s) {
		if e.Base != nil && e.Base.Ref() == b.Ref() {
			on = append(on, e.Name)
		}
	}
	t.row("used by", strings.Join(on, ", "))
	_, err = t.WriteTo(c.Out)
	return err
}

// tail is how many lines of an update are shown.
const tail = 20

func (f *Farm) showEnvironments(ctx context.Context, c *Call, s *images.Store) error {
	targets, err := f.named(c.Args[0])
	if err != nil {
		return err
	}
	all := f.environments(ctx, s)
	list := []environmentJSON{}
	for _, t := range targets {
		for _, e := range all {
			if e.Name == t.String() {
				e.Log = logTail(s.InstanceLog(t.channel, t.arch), tail)
				list = append(list, e)
			}
		}
	}
	if c.JSON() {
		return c.emit(list)
	}
	for i, e := range list {
		if i > 0 {
			fmt.Fprintln(c.Out)
		}
		if err := showEnvironment(c, e); err != nil {
			return err
		}
	}
	return nil
}

func showEnvironment(c *Call, e environmentJSON) error {
	fmt.Fprintf(c.Out, "environment %s\n", e.Name)
	t := facts{human.Table{Color: c.Term.Color}}
	t.row("arch", e.Arch+", "+e.Runs)
	t.row("base", baseName(e))
	if e.Base != nil {
		t.row("", e.Base.Digest)
	}
	inst := e.Instance
	switch {
	case inst == nil:
		t.row("instance", "none")
	case bare(e):
		t.row("instance", "the base itself: the channel has no setup")
	default:
		t.row("instance", inst.Digest)
		t.row("image", inst.Image)
		t.row("size", human.Size(inst.Size)+" with its base")
		t.row("made", day(inst.Made))
		t.row("updated", day(inst.Checked))
		t.row("setup", inst.Setup)
	}
	if inst != nil && inst.Trouble != "" {
		t.row("trouble", inst.Trouble)
		t.row("since", day(inst.TroubleAt))
	}
	ready := fmt.Sprintf("%d of %d, %d being made", e.Warm, e.Target, e.Making)
	switch {
	case e.Started:
		ready += ", started"
	case e.Stopped:
		ready += ", stopped"
	}
	if e.Warm > 0 {
		ready += fmt.Sprintf(", %s of memory, %s of disk", human.Size(e.Memory), human.Size(e.Disk))
	}
	t.row("ready", ready)
	t.row("note", e.Paused)
	t.row("busy", human.Count(e.Busy, "build"))
	if _, err := t.WriteTo(c.Out); err != nil {
		return err
	}
	if len(e.Log) > 0 {
		fmt.Fprintln(c.Out, "  the last update ended with")
		for _, l := range e.Log {
			fmt.Fprintf(c.Out, "    %s\n", human.Safe(l, false))
		}
	}
	return nil
}

// logTail gives the last lines of a log; none when it is not there.
func logTail(path string, lines int) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	const most = 16 << 10 // bytes that lines are looked for in
	if _, err := f.Seek(-most, io.SeekEnd); err != nil {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return nil
		}
	}
	data, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	var list []string
	for line := range bytes.Lines(bytes.TrimRight(data, "\n")) {
		list = append(list, strings.TrimRight(string(line), "\r\n"))
	}
	return list[max(0, len(list)-lines):]
}

// facts is a table of keys and what they say.
type facts struct{ human.Table }

func (t *facts) row(k, v string) {
	if v != "" {
		t.Row(human.Cell("  "+k, human.Dim), v)
	}
}
