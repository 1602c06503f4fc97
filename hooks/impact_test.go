package hooks_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Morphux/quarry/hooks"
	"github.com/Morphux/quarry/internal/testpkg"
)

// names is a list that is told whole.
func names(list ...string) hooks.Names { return hooks.Names{List: list, All: len(list)} }

// TestImpact: what the daemon foresees is on the terminal before any ref has
// moved, in few lines, and what it refuses moves none.
func TestImpact(t *testing.T) {
	big := hooks.ChannelImpact{Channel: "testing", Builds: 3, Archs: []hooks.ArchBuilds{{Arch: "x86_64", Builds: 2}, {Arch: "i686", Builds: 1}},
		Rebuilds: 312, Rebuilt: hooks.Names{List: []string{"curl", "git", "openssh", "perl", "ruby", "vim"}, All: 104},
		Freed: 1, Frees: names("late"), Seconds: 7800, Work: 148000, Guessed: 17, Builders: 4,
		Unmet: names("hello 1.0 needs ghost: nobody has pushed it (i686)"), Broken: names("git 2.40 needs hello<1: no version that is pushed fits (x86_64)")}
	cycle := hooks.ChannelImpact{Channel: "testing", Builds: 1, Cycles: names("a 1.0 -> hello 1.0 -> a 1.0 (x86_64)")}
	for name, tt := range map[string]struct {
		im      hooks.Impact
		err     error
		args    []string
		refused bool
		says    []string
		silent  []string
	}{
		"small": {im: hooks.Impact{Channels: []hooks.ChannelImpact{{Channel: "testing", Builds: 2, Seconds: 12, Work: 12, Builders: 2,
			Archs: []hooks.ArchBuilds{{Arch: "i686", Builds: 1}, {Arch: "x86_64", Builds: 1}}}}},
			says: []string{"on testing: 2 builds (i686, x86_64), which takes about 12 s\n"}},
		"nothing": {im: hooks.Impact{}, silent: []string{"on testing"}},
		"large": {im: hooks.Impact{Channels: []hooks.ChannelImpact{big}}, says: []string{
			"on testing: 3 builds (x86_64 2, i686); at most 312 rebuilds in 104 packages (curl, git, openssh, perl, ruby and 99 more), fewer where it offers the same to build against; it lets 1 waiting build go on, in 1 package (late)\n",
			"on testing: all of it takes 2 h 10 m or more with 4 builders (1 d 17 h of work; a guess for 17 of 316)\n",
			"on testing: warning: hello 1.0 needs ghost: nobody has pushed it (i686)\n",
			"on testing: warning: this takes away what others need: git 2.40 needs hello<1"}},
		"cycle": {im: hooks.Impact{Channels: []hooks.ChannelImpact{cycle}}, refused: true, args: []string{"-o", "confirm"},
			says:   []string{"on testing: refused: this would close a cycle: a 1.0 -> hello 1.0 -> a 1.0 (x86_64)\n"},
			silent: []string{"1 build"}},
		"declared cycle": {im: hooks.Impact{Channels: []hooks.ChannelImpact{{Channel: "testing", Builds: 1, Cut: names("a 1.0 -> b 1.0 -> a 1.0 (i686) is cut at a")}}},
			says: []string{"on testing: cycle a 1.0 -> b 1.0 -> a 1.0 (i686) is cut at a\n"}, silent: []string{"refused"}},
		"unconfirmed": {im: hooks.Impact{Channels: []hooks.ChannelImpact{big}, Confirm: "it would make 315 builds, and more than 50 have to be confirmed here"},
			args: []string{"-o", "channel=testing"}, refused: true, says: []string{"at most 312 rebuilds",
				"refused: it would make 315 builds, and more than 50 have to be confirmed here. If it is meant, repeat it with -o confirm:\n",
				"git push -o confirm -o channel=testing ssh://farm/hello.git HEADID:refs/heads/hello-1.0\n"}},
		"confirmed": {im: hooks.Impact{Channels: []hooks.ChannelImpact{big}, Confirm: "it is large"}, args: []string{"-o", "confirm"},
			says: []string{"at most 312 rebuilds"}, silent: []string{"means nothing here", "refused"}},
		"no answer": {err: errors.New("the farm has just begun, and still reads what there is"),
			says: []string{"what this push causes is not known: the farm has just begun"}},
		// All that is told comes from other people's recipes.
		"hostile": {im: hooks.Impact{Channels: []hooks.ChannelImpact{{Channel: "x\x1b[2J\ny", Builds: 1,
			Archs: []hooks.ArchBuilds{{Arch: "\x1b]0;evil\a", Builds: 1}}, Rebuilds: 1, Rebuilt: names("\x1b[31mred\r"), Seconds: 1e300, Work: -5,
			Unmet: hooks.Names{List: []string{strings.Repeat("long", 100000), "a\nremote: faked"}, All: 1 << 40}}}},
			says: []string{"rebuild", "and 1099511627774 more of this kind"}, silent: []string{"\x1b", "\a", "\nremote: faked", strings.Repeat("long", 300)}},
		"hostile numbers": {im: hooks.Impact{Channels: []hooks.ChannelImpact{{Cycles: hooks.Names{All: -1, List: []string{"x"}}}}}, silent: []string{"refused"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t, "hello")
			dir := testpkg.Init(t, "hello")
			asked := make(chan hooks.Proposal, 1)
			s.daemon.OnImpact(func(_ context.Context, p hooks.Proposal) (hooks.Impact, error) {
				// No git, for which the hook might not wait.
				if refs, err := os.ReadDir(filepath.Join(s.repo, "refs", "heads")); err != nil || len(refs) > 0 {
					t.Errorf("refs have moved: %v, %v", refs, err)
				}
				asked <- p
				return tt.im, tt.err
			})
			out, err := s.push(t, dir, []string{"QUARRY_USER=alice", "QUARRY_URL=ssh://farm/hello.git"},
				append(tt.args, s.repo, "HEAD:refs/heads/hello-1.0")...)
			if refused := err != nil; refused != tt.refused || refused != (s.refs(t) == "") {
				t.Errorf("push: %v, refs %q\n%s", err, s.refs(t), out)
			}
			head := testpkg.Git(t, dir, "rev-parse", "HEAD")
			// git pads what it relays.
			plain := strings.ReplaceAll(strings.ReplaceAll(out, "\x1b[K", ""), "        \n", "\n")
			for _, want := range tt.says {
				if want = strings.ReplaceAll(want, "HEADID", head[:12]); !strings.Contains(plain, want) {
					t.Errorf("terminal does not show %q:\n%s", want, out)
				}
			}
			for _, bad := range tt.silent {
				if strings.Contains(plain, bad) {
					t.Errorf("terminal shows %q:\n%.3000s", bad, out)
				}
			}
			p := <-asked
			if p.Package != "hello" || len(p.Releases) != 1 || p.Releases[0].Version != "1.0" || p.Releases[0].Commit != head ||
				!strings.Contains(string(p.Releases[0].Recipe), `"hello"`) {
				t.Errorf("daemon was asked of %+v", p)
			}
		})
	}
}

// TestImpactOfOthers: deletions are asked about, other branches are not.
func TestImpactOfOthers(t *testing.T) {
	s := newServer(t, "hello")
	dir := testpkg.Init(t, "hello")
	proposals := make(chan hooks.Proposal, 10)
	s.daemon.OnImpact(func(_ context.Context, p hooks.Proposal) (hooks.Impact, error) {
		proposals <- p
		return hooks.Impact{}, nil
	})
	for _, ref := range []string{"HEAD:refs/heads/master", "HEAD:refs/tags/v1", "HEAD:refs/heads/hello-1.0", ":hello-1.0"} {
		if out, err := s.push(t, dir, nil, s.repo, ref); err != nil {
			t.Fatalf("%s: %v\n%s", ref, err, out)
		}
	}
	var asked []hooks.Proposal
	for range len(proposals) {
		asked = append(asked, <-proposals)
	}
	if len(asked) != 2 || len(asked[1].Gone) != 1 || asked[1].Gone[0] != "1.0" || len(asked[1].Releases) != 0 {
		t.Errorf("daemon was asked of %+v", asked)
	}
	// With nobody to ask the push is taken, and one line says so.
	s.daemon.Close()
	out, err := s.push(t, dir, nil, s.repo, "HEAD:refs/heads/hello-1.0")
	if err != nil || strings.Count(out, "what this push causes is not known, as no Quarry answers just now") != 1 {
		t.Errorf("push: %v\n%s", err, out)
	}
}
