package sshd

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/testpkg"
	"github.com/spf13/pflag"
)

// peers are two servers on loopback to push to with the same client and key:
// Quarry's, with its hooks in the real binary and a control socket that answers
// them, and OpenSSH's sshd with git receive-pack and nothing else.
type peers struct {
	f     *farm
	key   string
	plain string // port of OpenSSH's
	repos string // folder of its repositories
	work  []string
}

func newPeers(b *testing.B, pushers int) *peers {
	b.Helper()
	bin := filepath.Join(b.TempDir(), "quarry")
	build := exec.Command("go", "build", "-tags", "remote", "-o", bin, "./cmd/quarry")
	build.Dir, build.Env = testpkg.Root(b), append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("go build: %v\n%s", err, out)
	}
	run, err := os.MkdirTemp("", "quarry")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { os.RemoveAll(run) })
	socket := filepath.Join(run, "s")
	l, err := control.Listen(socket, "")
	if err != nil {
		b.Fatal(err)
	}
	verbs := control.Table{{Name: "pushed", Need: control.Local, MinArgs: 1, MaxArgs: 1, Flags: func(*pflag.FlagSet) {},
		Run: func(_ context.Context, c *control.Call) error {
			return json.NewEncoder(c.Out).Encode([]quarry.Build{{Number: 1, Arch: "x86_64", State: quarry.Queued, Release: quarry.Release{Package: c.Args[0], Version: "1.0", Channel: "testing"}}})
		}}}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- control.Serve(ctx, l, verbs, slog.New(slog.DiscardHandler)) }()
	b.Cleanup(func() { cancel(); <-served })

	p := &peers{repos: filepath.Join(b.TempDir(), "repos")}
	p.f = newFarm(b, func(o *Options) { o.Hooks.Binary, o.Hooks.Socket = bin, socket })
	p.key = p.f.person("alice", quarry.RoleMaintainer)
	p.openSSH(b)
	for i := range pushers {
		pkg := fmt.Sprintf("hello%d", i)
		testpkg.Git(b, b.TempDir(), "init", "-q", "--bare", filepath.Join(p.repos, pkg+".git"))
		dir := testpkg.Make(b, pkg, map[string]string{
			"package.json": fmt.Sprintf(`{"package": {"name": %q, "version": "1.0", "description": "Says hello"}, "compilation": {"patches": []}}`, pkg),
			"srcs/hello.c": "int main(void) { return 0; }\n", "srcs/Makefile": "all:\n\tcc -o hello hello.c\n",
		})
		p.work = append(p.work, dir)
		for _, url := range []string{p.quarry(i), p.openssh(i)} {
			if _, err := p.push(i, url); err != nil {
				b.Fatal(err)
			}
		}
	}
	return p
}

// openSSH starts OpenSSH's server.
func (p *peers) openSSH(b *testing.B) {
	b.Helper()
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		if sshd = "/usr/sbin/sshd"; !fileThere(sshd) {
			b.Fatal("sshd is not installed: apt-get install openssh-server")
		}
	}
	dir := b.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	_, p.plain, _ = net.SplitHostPort(l.Addr().String())
	l.Close()
	pub, err := os.ReadFile(p.key + ".pub")
	if err != nil {
		b.Fatal(err)
	}
	host := p.f.key("host")
	conf := fmt.Sprintf("Port %s\nListenAddress 127.0.0.1\nHostKey %s\nAuthorizedKeysFile %s\nPidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nMaxStartups 100:30:200\nLogLevel ERROR\n",
		p.plain, host, filepath.Join(dir, "authorized"))
	os.WriteFile(filepath.Join(dir, "authorized"), pub, 0o600)
	os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o600)
	os.MkdirAll("/run/sshd", 0o755) // sshd started by root wants it
	cmd := exec.Command(sshd, "-D", "-e", "-f", filepath.Join(dir, "conf"))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	hostPub, err := os.ReadFile(host + ".pub")
	if err != nil {
		b.Fatal(err)
	}
	known, err := os.OpenFile(filepath.Join(p.f.dir, "known_hosts"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer known.Close()
	fmt.Fprintf(known, "[127.0.0.1]:%s %s", p.plain, hostPub)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", "127.0.0.1:"+p.plain)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			b.Fatal("sshd does not listen")
		}
	}
}

func fileThere(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (p *peers) quarry(i int) string { return p.f.url(fmt.Sprintf("hello%d", i)) }
func (p *peers) openssh(i int) string {
	return fmt.Sprintf("ssh://127.0.0.1:%s%s/hello%d.git", p.plain, p.repos, i)
}

// push makes a commit and gives how long its push takes.
func (p *peers) push(i int, url string) (time.Duration, error) {
	commit := p.f.gitCmd(p.key, p.work[i], "commit", "-q", "--allow-empty", "-m", fmt.Sprint(time.Now().UnixNano()))
	if out, err := commit.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("commit: %w\n%s", err, out)
	}
	cmd := p.f.gitCmd(p.key, p.work[i], "push", "-q", "-f", url, fmt.Sprintf("HEAD:hello%d-1.0", i))
	start := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("push to %s: %w\n%s", url, err, out)
	}
	return time.Since(start), nil
}

func median(d []time.Duration) float64 {
	slices.Sort(d)
	return float64(d[len(d)/2].Microseconds()) / 1000
}

// BenchmarkPush is a small push until git push ends, through Quarry (checked,
// noted, handed over, fsynced) and through OpenSSH with git receive-pack alone,
// in turn.
func BenchmarkPush(b *testing.B) {
	p := newPeers(b, 1)
	var ours, theirs []time.Duration
	for b.Loop() {
		for _, peer := range []struct {
			url string
			to  *[]time.Duration
		}{{p.quarry(0), &ours}, {p.openssh(0), &theirs}} {
			d, err := p.push(0, peer.url)
			if err != nil {
				b.Fatal(err)
			}
			*peer.to = append(*peer.to, d)
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(ours), "ms-quarry")
	b.ReportMetric(median(theirs), "ms-openssh")
	b.ReportMetric(median(ours)/median(theirs), "x-openssh")
}

// BenchmarkPush20 is twenty people pushing at once, each to a package of their
// own.
func BenchmarkPush20(b *testing.B) {
	const n = 20
	p := newPeers(b, n)
	all := func(url func(int) string) time.Duration {
		start := time.Now()
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				if _, err := p.push(i, url(i)); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		return time.Since(start)
	}
	var ours, theirs []time.Duration
	for b.Loop() {
		ours = append(ours, all(p.quarry))
		theirs = append(theirs, all(p.openssh))
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(n*1000/median(ours), "pushes/s-quarry")
	b.ReportMetric(n*1000/median(theirs), "pushes/s-openssh")
	b.ReportMetric(median(ours)/median(theirs), "x-openssh")
}
