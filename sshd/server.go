package sshd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/hooks"
	"github.com/Morphux/quarry/keys"
	"github.com/gliderlabs/ssh"
	gossh "golang.org/x/crypto/ssh"
)

// Keys says whose a public key is. A *keys.Store does.
type Keys interface {
	Lookup(key gossh.PublicKey) (quarry.Identity, error)
}

// Repos is the folder of package repositories.
type Repos interface {
	// Path is where the repository of a package is; the error wraps
	// fs.ErrNotExist when there is none.
	Path(pkg string) (string, error)
	// Ensure makes the repository if there is none. It is asked before every
	// push; an error that wraps ErrReadOnly is told to the pusher as it is.
	Ensure(pkg string) (string, error)
}

// ErrReadOnly says that a repository can be fetched and not pushed to.
var ErrReadOnly = errors.New("only the farm writes it")

// Terminal says what stands at the other end of a verb.
type Terminal struct {
	TTY    bool
	Width  int // columns; 0: not known
	Height int // lines; 0: not known

	Name string // the kind of terminal, as TERM has it; what the client says
	// Resize gives columns and lines when they change; nil: without a terminal.
	Resize <-chan [2]int
}

// Verbs runs one verb and gives its exit status. argv is never empty; the
// context ends when the client is gone, presses Ctrl-C, or the server stops.
type Verbs func(ctx context.Context, id quarry.Identity, argv []string, stdin io.Reader, stdout, stderr io.Writer, term Terminal) int

// Options say what a server serves.
type Options struct {
	HostKey string // path of the server's own key; made at the first start
	Keys    Keys
	Repos   Repos
	Verbs   Verbs
	// Raw tells whether a verb, here with its first word after it, takes the
	// terminal as it is, and the rest of the line as one word; nil: none does.
	Raw      func(argv []string) bool
	Hooks    hooks.Options   // put into each repository before a push; Package is set for each
	Channels []hooks.Channel // that a push may name; nil: any
	// Signed has pushes be signed by those who want to, with one of their keys; zero:
	// git does not offer it.
	Signed  Signed
	Home    string // folder for git's configuration and HOME; made
	MaxPush int64  // bytes in one push; 0: no limit
	Host    string // name by which people reach the server; "": the address that they came to
	Limits  Limits
	Log     *slog.Logger
}

// Server is an SSH server.
type Server struct {
	opts Options
	log  *slog.Logger
	gate *gate
	ssh  *ssh.Server
	git  string // path of git
	held repoLocks

	verbs     context.Context // ends at once at a shutdown
	stopVerbs context.CancelFunc
	kill      context.Context // ends when a shutdown has waited long enough
	stopGit   context.CancelFunc
	running   sync.WaitGroup

	mu sync.Mutex // guards the following
	// sessions are the commands under way.
	sessions  int
	byUser    map[string]int // of them, where it is known whose they are
	listeners []net.Listener
	draining  bool
	// quiet are keys that some people have besides a known one.
	quiet map[string]bool
}

// New makes a server. It makes the host key and git's configuration if they are
// not there.
func New(o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.Limits.defaults()
	git, err := exec.LookPath("git")
	if err != nil {
		return nil, errors.New("git is not installed: apt-get install git")
	}
	signer, err := HostKey(o.HostKey)
	if err != nil {
		return nil, err
	}
	if o.Home, err = filepath.Abs(o.Home); err != nil {
		return nil, err
	}
	for _, p := range []*string{&o.Hooks.Binary, &o.Hooks.Socket, &o.Hooks.Spool} {
		if *p != "" {
			if *p, err = filepath.Abs(*p); err != nil {
				return nil, err
			}
		}
	}
	if err := o.Signed.check(); err != nil {
		return nil, err
	}
	if err := writeGitConfig(o.Home, o.MaxPush); err != nil {
		return nil, fmt.Errorf("configuration of git cannot be written: %w", err)
	}
	sweepSigners(o.Home)
	s := &Server{opts: o, log: o.Log, gate: &gate{limits: o.Limits}, git: git, quiet: map[string]bool{}, byUser: map[string]int{}}
	s.verbs, s.stopVerbs = context.WithCancel(context.Background())
	s.kill, s.stopGit = context.WithCancel(context.Background())
	s.ssh = &ssh.Server{
		Version:     "Quarry",
		HostSigners: []ssh.Signer{signer},
		// Every key may be asked about. This must be set, as without any
		// handler gliderlabs/ssh lets everybody in. What it remembers of the
		// key (ssh.ContextKeyPublicKey) is the one asked about last, verified
		// or not, and is used nowhere here.
		PublicKeyHandler:     func(_ ssh.Context, key ssh.PublicKey) bool { return keys.Check(key) == nil },
		ServerConfigCallback: s.config,
		ConnCallback:         s.connect,
		ConnectionFailedCallback: func(c net.Conn, err error) {
			s.log.Debug("connection failed", "from", c.RemoteAddr(), "err", err)
		},
		// Our own handler of sessions, as gliderlabs/ssh's takes any number of
		// environment variables, agrees to forward agents, and stops reading
		// requests when a terminal changes its size twice.
		ChannelHandlers:   map[string]ssh.ChannelHandler{"session": s.session},
		RequestHandlers:   map[string]ssh.RequestHandler{"keepalive@openssh.com": keepalive},
		SubsystemHandlers: map[string]ssh.SubsystemHandler{},
		Handler:           func(ssh.Session) {},
	}
	return s, nil
}

// keepalive answers clients that ask whether we are there.
func keepalive(ssh.Context, *ssh.Server, *gossh.Request) (bool, []byte) { return true, nil }

// PublicKey is the server's own key.
func (s *Server) PublicKey() gossh.PublicKey { return s.ssh.HostSigners[0].PublicKey() }

// Serve answers connections until Shutdown. It then returns nil.
func (s *Server) Serve(l net.Listener) error {
	// gliderlabs/ssh serves on when it is shut down before it has begun.
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		return l.Close()
	}
	s.listeners = append(s.listeners, l)
	s.mu.Unlock()
	err := s.ssh.Serve(l)
	if errors.Is(err, ssh.ErrServerClosed) || s.closing() {
		return nil
	}
	return fmt.Errorf("ssh server on %s: %w", l.Addr(), err)
}

func (s *Server) closing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// Shutdown stops accepting, ends verbs and whoever follows a build, and lets
// git finish what it has begun until ctx ends; what then still runs is killed.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.draining = true
	for _, l := range s.listeners {
		l.Close()
	}
	s.mu.Unlock()
	// gliderlabs/ssh would wait for connections that nobody uses, too.
	now, cancel := context.WithCancel(context.Background())
	cancel()
	s.ssh.Shutdown(now)
	s.stopVerbs()
	done := make(chan struct{})
	go func() {
		s.running.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		s.stopGit()
		select {
		case <-done:
			err = errors.New("ssh server stopped while git still ran: what was cut off must be pushed again")
		case <-time.After(2 * termTime):
			err = errors.New("ssh server stopped and something that it ran did not")
		}
	}
	s.stopGit()
	// Clients hang up by themselves when they have read the end of their
	// command; to close before that could cost them its last lines.
	for deadline := time.Now().Add(time.Second); s.gate.busy() && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	s.ssh.Close()
	return err
}

func (s *Server) connect(ctx ssh.Context, c net.Conn) net.Conn {
	wrapped, why := s.gate.admit(c)
	if wrapped == nil {
		s.log.Warn("connection turned away", "from", c.RemoteAddr(), "why", why)
		turnAway(c, why) // each connection has a goroutine of its own already
		return nil
	}
	ctx.SetValue(connKey, wrapped)
	return wrapped
}

type contextKey string

const (
	connKey     contextKey = "conn"     // *conn, in the connection's context
	verifiedKey contextKey = "verified" // gossh.PublicKey, in Permissions.ExtraData
)

// config is the SSH library's configuration for one connection.
func (s *Server) config(ctx ssh.Context) *gossh.ServerConfig {
	c := &gossh.ServerConfig{
		MaxAuthTries: s.opts.Limits.AuthTries,
		PublicKeyAuthAlgorithms: []string{
			gossh.KeyAlgoED25519, gossh.KeyAlgoSKED25519, gossh.KeyAlgoSKECDSA256,
			gossh.KeyAlgoECDSA256, gossh.KeyAlgoECDSA384, gossh.KeyAlgoECDSA521,
			gossh.KeyAlgoRSASHA256, gossh.KeyAlgoRSASHA512,
		},
	}
	c.KeyExchanges = []string{gossh.KeyExchangeMLKEM768X25519, gossh.KeyExchangeCurve25519, gossh.KeyExchangeECDHP256, gossh.KeyExchangeECDHP384, gossh.KeyExchangeECDHP521}
	c.Ciphers = []string{gossh.CipherAES128GCM, gossh.CipherAES256GCM, gossh.CipherChaCha20Poly1305}
	c.MACs = []string{gossh.HMACSHA256ETM, gossh.HMACSHA512ETM} // for ciphers to come: those above carry their own
	var unknown []string                                        // proved on this connection, and not taken
	c.VerifiedPublicKeyCallback = func(meta gossh.ConnMetadata, key gossh.PublicKey, _ *gossh.Permissions, _ string) (*gossh.Permissions, error) {
		fingerprint := gossh.FingerprintSHA256(key)
		id, err := s.opts.Keys.Lookup(key)
		if err != nil {
			unknown = append(unknown, fingerprint)
			s.log.Info("key refused", "from", meta.RemoteAddr(), "key", fingerprint, "why", err)
			return nil, s.refuseKey(key, fingerprint, err)
		}
		s.hush(unknown)
		if c, ok := ctx.Value(connKey).(*conn); ok {
			c.proved()
		}
		s.log.Debug("key proved", "from", meta.RemoteAddr(), "key", fingerprint, "user", id.User)
		return &gossh.Permissions{ExtraData: map[any]any{verifiedKey: key}}, nil
	}
	return c
}

// refuseKey is the error for a key that its owner holds, but that is not taken.
// The client goes on to its next key, so it is told in a banner, which it
// shows, and not in the end of a connection.
func (s *Server) refuseKey(key gossh.PublicKey, fingerprint string, err error) error {
	s.mu.Lock()
	quiet := s.quiet[fingerprint]
	s.mu.Unlock()
	cure := "ask an admin to add it with quarry key add NAME"
	switch {
	case errors.Is(err, keys.ErrUnknown):
	case errors.Is(err, keys.ErrDisabled):
		cure = "ask an admin"
	case errors.Is(err, keys.ErrShared):
		cure = "ask an admin to remove it from one of them"
	default:
		err, cure = errors.New("key cannot be looked up just now"), "tell an admin"
	}
	if quiet {
		return err
	}
	return &gossh.BannerError{Err: err, Message: fmt.Sprintf("quarry: %s %s: %v: %s\n", key.Type(), fingerprint, err, cure)}
}

// hush remembers keys whose owner has another that is known. They need not be
// told at every push of the one that is tried first.
func (s *Server) hush(fingerprints []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.quiet) > 10_000 {
		clear(s.quiet)
	}
	for _, f := range fingerprints {
		s.quiet[f] = true
	}
}

// verified is the key that a connection has proved.
func verified(c *gossh.ServerConn) (gossh.PublicKey, bool) {
	if c.Permissions == nil {
		return nil, false
	}
	key, ok := c.Permissions.ExtraData[verifiedKey].(gossh.PublicKey)
	return key, ok
}

// writeGitConfig writes the only configuration, besides the repository's own,
// that git reads here.
func writeGitConfig(home string, maxPush int64) error {
	if err := os.MkdirAll(home, 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf(gitConfig, maxPush)
	path := filepath.Join(home, "gitconfig")
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return nil
	}
	f, err := os.CreateTemp(home, ".gitconfig-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

const gitConfig = `# Written by quarry at its start; changes are lost.
[safe]
	directory = *
[core]
	# A push that was acknowledged survives the power going off.
	fsync = committed,reference
	fsyncMethod = batch
	logAllRefUpdates = true
[receive]
	advertisePushOptions = true
	fsckObjects = true
	maxInputSize = %d
[transfer]
	hideRefs = refs/quarry
[pack]
	# Several people fetch at once.
	threads = 1
	windowMemory = 256m
[gc]
	# The daemon tends the repositories, and prunes nothing.
	auto = 0
`
