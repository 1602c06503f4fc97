package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/hooks"
	"github.com/Morphux/quarry/queue"
	"github.com/spf13/afero"
)

// past is what has been built: by NAME-VERSION and arch, +ARCH for a success and
// -ARCH for a failure.
type past map[string][]string

func (p past) Lookup(pkg, version, arch string) (quarry.RecordRef, bool, error) {
	for _, a := range p[quarry.Branch(pkg, version)] {
		ref := quarry.RecordRef{Source: commitOf(pkg, version), Status: quarry.Succeeded, Build: 77}
		if a[0] == '-' {
			ref.Status = quarry.Failed
		}
		if a[1:] == arch {
			return ref, true, nil
		}
	}
	return quarry.RecordRef{}, false, nil
}

func (p past) Resolve(dep, arch string) (quarry.DepUsed, bool, error) {
	for branch, archs := range p {
		i := strings.LastIndexByte(branch, '-')
		if (dep == branch || dep == branch[:i]) && slices.Contains(archs, "+"+arch) {
			return quarry.DepUsed{Package: branch[:i], Version: branch[i+1:]}, true, nil
		}
	}
	return quarry.DepUsed{}, false, nil
}

func (past) Stale(quarry.Release, string) (string, string, error) { return "", "", nil }

func commitOf(pkg, version string) string {
	return fmt.Sprintf("%x", pkg+version) + strings.Repeat("0", 40-2*len(pkg+version))
}

// release is on testing, for one arch.
func release(pkg, version string, needs ...string) quarry.Release {
	return quarry.Release{Package: pkg, Version: version, Channel: "testing", Commit: commitOf(pkg, version), Archs: []string{"x86_64"}, Needs: needs,
		Time: time.Unix(1e9, 0), Pushed: time.Unix(1e9, 0)}
}

func on(channel string, r quarry.Release) quarry.Release {
	r.Channel = channel
	return r
}

// graphFarm is a farm with a real queue that has read the releases. What it
// begins to build never ends.
func graphFarm(t testing.TB, built past, releases ...quarry.Release) *Farm {
	t.Helper()
	paused := make(chan struct{}) // no plan before that, so that nothing is begun
	q, err := queue.New(queue.Options{
		Fs: afero.NewMemMapFs(),
		Releases: func(ctx context.Context, pkg string) (list []quarry.Release, _ []queue.Problem, _ error) {
			select {
			case <-paused:
			case <-ctx.Done():
				return nil, nil, ctx.Err()
			}
			for _, r := range releases {
				if pkg == "" || pkg == r.Package {
					list = append(list, r)
				}
			}
			return list, nil, nil
		},
		Records: func(context.Context, string) (queue.Records, error) { return built, nil },
		Run: func(ctx context.Context, _ quarry.Build, _ []quarry.DepUsed, _ func(string)) (*quarry.Outcome, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		},
		Record:  func(context.Context, *quarry.Outcome) (string, error) { return "", nil },
		Workers: 2,
		Log:     slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if err := q.Pause(ctx, "root", "a test looks at it"); err != nil {
		t.Fatal(err)
	}
	close(paused)
	if err := q.Replan(ctx); err != nil {
		t.Fatal(err)
	}
	return &Farm{Queue: q, Version: "test", Default: "testing",
		Channels: []Channel{{Name: "stable", Archs: []string{"x86_64"}}, {Name: "testing", Archs: []string{"x86_64", "aarch64"}}}}
}

// propose asks what a push would cause, as the hook does.
func propose(t *testing.T, f *Farm, p hooks.Proposal) hooks.Impact {
	t.Helper()
	body, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	if code := Verbs(f).Run(t.Context(), Owner(), []string{"impact"}, bytes.NewReader(body), &out, &errOut, Terminal{}); code != ExitOK {
		t.Fatalf("impact ended with %d: %s", code, errOut.String())
	}
	var im hooks.Impact
	if err := json.Unmarshal(out.Bytes(), &im); err != nil {
		t.Fatal(err)
	}
	return im
}

// pushing is a release that is about to be pushed, for x86_64 alone; more goes
// into its recipe's quarry section.
func pushing(pkg, version, commit string, more string, needs ...string) hooks.Proposal {
	list, err := json.Marshal(append([]string{}, needs...))
	if err != nil {
		panic(err)
	}
	text := fmt.Sprintf(`{"package": {"name": %q, "version": %q, "description": "d"}, "compilation": {}, "dependencies": %s, "quarry": {"archs": ["x86_64"]%s}}`, pkg, version, list, more)
	return hooks.Proposal{Package: pkg, Releases: []hooks.Proposed{{Version: version, Commit: fmt.Sprintf("%040s", commit), Recipe: []byte(text)}}}
}

func TestImpactVerb(t *testing.T) {
	built := past{"libx-1.0": {"+x86_64"}, "user-1.0": {"+x86_64"}, "above-1.0": {"+x86_64"}, "fine-1.0": {"+x86_64"}, "oldlib-1.0": {"+x86_64"}, "strict-1.0": {"+x86_64"}, "solo-1.0": {"+x86_64"}}
	f := graphFarm(t, built,
		release("libx", "1.0"), release("user", "1.0", "libx"), release("above", "1.0", "user"), release("fine", "1.0"),
		release("oldlib", "1.0"), release("strict", "1.0", "oldlib<2"),
		release("late", "1.0", "early>=2"), release("later", "1.0", "late"), release("never", "1.0", "late", "ghost"),
		release("broken", "1.0", "libx"), // never built yet: waits for nothing but a builder
		release("a", "1.0", "b"), release("knot", "1.0", "tied"), release("tied", "1.0", "knot"),
		on("stable", release("solo", "1.0")), on("stable", release("uses-solo", "1.0", "solo")))
	one := func(c hooks.ChannelImpact) string {
		s := fmt.Sprintf("%s %d+%d", c.Channel, c.Builds, c.Rebuilds)
		for _, l := range []struct {
			word string
			hooks.Names
		}{{"rebuilt", c.Rebuilt}, {"frees", c.Frees}, {"cycle", c.Cycles}, {"cut", c.Cut}, {"unmet", c.Unmet}, {"broken", c.Broken}} {
			if l.All > 0 {
				s += fmt.Sprintf("; %s %s", l.word, strings.Join(l.List, ", "))
			}
			if l.All != len(l.List) {
				t.Errorf("%s tells %d of %d", l.word, len(l.List), l.All)
			}
		}
		return s
	}
	with := func(p hooks.Proposal, change func(*hooks.Proposal)) hooks.Proposal { change(&p); return p }
	for name, tt := range map[string]struct {
		p    hooks.Proposal
		want []string
	}{
		"what is built on it": {pushing("libx", "1.1", "1", ""), []string{"testing 1+2; rebuilt user, above"}},
		"the same version":    {pushing("libx", "1.0", "1", ""), []string{"testing 1+2; rebuilt user, above"}},
		"nobody needs it":     {pushing("alone", "1.0", "1", ""), []string{"testing 1+0"}},
		"as it is there":      {pushing("fine", "1.0", commitOf("fine", "1.0"), ""), []string{"testing 0+0"}},
		"too new for others":  {pushing("oldlib", "2.0", "1", ""), []string{"testing 1+0"}},
		"needs nobody offers": {pushing("odd", "1.0", "1", "", "ghost>=3", "libx>9"),
			[]string{"testing 1+0; unmet odd 1.0 needs ghost>=3: nobody has pushed it (x86_64), odd 1.0 needs libx>9: no version that is pushed fits (there is 1.0) (x86_64)"}},
		"what waits for it":  {pushing("early", "2.0", "1", ""), []string{"testing 1+0; frees late, later"}},
		"too old for it":     {pushing("early", "1.0", "1", ""), []string{"testing 1+0"}},
		"a cycle":            {pushing("b", "2.0", "1", "", "a"), []string{"testing 1+0; cycle a 1.0 -> b 2.0 -> a 1.0 (x86_64)"}},
		"a declared cycle":   {pushing("b", "2.0", "1", `, "bootstrap": true`, "a"), []string{"testing 1+0; frees a; cut b 2.0 -> a 1.0 -> b 2.0 (x86_64) is cut at b, which is built without a first, and again when that is there"}},
		"a long cycle":       {pushing("libx", "1.1", "1", "", "above"), []string{"testing 1+2; rebuilt above, user; cycle above 1.0 -> user 1.0 -> libx 1.1 -> above 1.0 (x86_64)"}},
		"a virtual cycle":    {pushing("c", "1.0", "1", `, "provides": ["b"]`, "a"), []string{"testing 1+0; cycle a 1.0 -> c 1.0 -> a 1.0 (x86_64)"}},
		"a cycle of before":  {pushing("knot", "1.0", "1", "", "tied"), []string{"testing 1+0"}},
		"that is mended":     {pushing("knot", "1.0", "1", ""), []string{"testing 1+0; frees tied"}},
		"not built anywhere": {pushing("libx", "1.1", "1", `, "broken": "it is"`), []string{"testing 0+0"}},
		"goes": {hooks.Proposal{Package: "oldlib", Gone: []string{"1.0"}},
			[]string{"testing 0+0; broken strict 1.0 needs oldlib<2: nobody has pushed it (x86_64)"}},
		"was not there":        {hooks.Proposal{Package: "oldlib", Gone: []string{"7"}}, nil},
		"another channel":      {with(pushing("late", "1.0", "1", "", "early>=2"), func(p *hooks.Proposal) { p.Channel = "stable" }), []string{"stable 1+0; unmet late 1.0 needs early>=2: nobody has pushed it (x86_64)", "testing 0+0; broken later 1.0 needs late: nobody has pushed it (x86_64), never 1.0 needs late: nobody has pushed it (x86_64)"}},
		"from another channel": {pushing("solo", "1.0", "1", ""), []string{"stable 0+0; broken uses-solo 1.0 needs solo: nobody has pushed it (x86_64)", "testing 1+0"}},
		"no such channel":      {with(pushing("libx", "1.1", "1", ""), func(p *hooks.Proposal) { p.Channel = "moon" }), nil},
		"several": {with(pushing("libx", "1.1", "1", ""), func(p *hooks.Proposal) {
			p.Releases = append(p.Releases, pushing("libx", "1.2", "2", "").Releases...)
			p.Gone = []string{"1.0"}
		}), []string{"testing 2+2; rebuilt user, above"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, c := range propose(t, f, tt.p).Channels {
				got = append(got, one(c))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("impact is\n%s, want\n%s", strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
	im := propose(t, f, pushing("libx", "1.1", "1", ""))
	if c := im.Channels[0]; c.Guessed != 3 || c.Seconds <= 0 || c.Work < c.Seconds || c.Builders != 2 || im.Confirm != "" ||
		!slices.Equal(c.Archs, []hooks.ArchBuilds{{Arch: "x86_64", Builds: 1}}) {
		t.Errorf("impact is %+v", im)
	}
	f.Confirm = Confirm{Builds: 2}
	if im := propose(t, f, pushing("libx", "1.1", "1", "")); im.Confirm != "it would make up to 3 builds, and more than 2 have to be confirmed here" {
		t.Errorf("to confirm: %q", im.Confirm)
	}
	f.Confirm = Confirm{Builds: 3, Time: time.Minute}
	if im := propose(t, f, pushing("libx", "1.1", "1", "")); !strings.Contains(im.Confirm, "or more, and more than 1 m 00 s has to be confirmed here") {
		t.Errorf("to confirm: %q", im.Confirm)
	}
	f.Confirm = Confirm{}

	// Asking changes nothing, and only hooks may ask.
	if g, err := f.Queue.Graph("testing"); err != nil || len(g.Of("alone")) > 0 {
		t.Errorf("the graph has %v, %v", g.Of("alone"), err)
	}
	if _, errOut, code := call(t, Verbs(f), admin, Terminal{}, "impact"); code != ExitUsage || !strings.Contains(errOut, "unknown") {
		t.Errorf("asked from elsewhere: %d, %s", code, errOut)
	}
	for what, in := range map[string]io.Reader{
		"nothing":   nil,
		"garbage":   strings.NewReader("\x00{"),
		"bad name":  strings.NewReader(`{"package": "../x"}`),
		"bad json":  strings.NewReader(`{"package": "x", "releases": [{"version": "1", "recipe": "e30="}]}`),
		"too large": strings.NewReader(`{"package": "x", "releases": [{"version": "1", "recipe": "` + strings.Repeat("A", 1<<20) + `"}]}`),
	} {
		var out, errOut bytes.Buffer
		if code := Verbs(f).Run(t.Context(), Owner(), []string{"impact"}, in, &out, &errOut, Terminal{}); code == ExitOK || errOut.Len() == 0 {
			t.Errorf("%s: ended with %d: %s", what, code, out.String())
		}
	}
}
