package hooks

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Run is a hook as git starts it: pre-receive or post-receive, in the
// environment and working directory of this process. It gives the exit status.
func Run(ctx context.Context, hook string, s Settings, stdin io.Reader, stderr io.Writer, dial Dialer) int {
	// A client that hangs up closes standard error. Writing to it must fail
	// instead of killing us: the push may not have been handed over yet.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	say := speaker(stderr)
	dir, err := os.Getwd()
	if err != nil {
		say("the repository cannot be found: %v", err)
		return 1
	}
	env, err := NewEnv(os.Environ(), dir, s)
	if err != nil {
		say("%v", err)
		return 1
	}
	switch hook {
	case Pre:
		return PreReceive(ctx, env, stdin, stderr, dial)
	case Post:
		return PostReceive(ctx, env, stdin, stderr, dial)
	}
	fmt.Fprintf(stderr, "quarry: hook %q is none: %s and %s are\n", hook, Pre, Post)
	return 2
}
