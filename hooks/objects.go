package hooks

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
)

// objects reads git objects through one stock git cat-file, which sees the
// quarantine of a push that is under way: go-git and other readers of packs
// would have to be told of it, and of every format that git may get.
type objects struct {
	ctx  context.Context
	env  Env
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	errs strings.Builder
}

// errMissing is what get says of an object that is not there.
var errMissing = errors.New("object is missing")

// skip is how much of an object that is too large is read only to be thrown
// away; beyond that a new cat-file is cheaper.
const skip = 4 << 20

func newObjects(ctx context.Context, env Env) *objects { return &objects{ctx: ctx, env: env} }

func (o *objects) start() error {
	o.cmd = exec.CommandContext(o.ctx, "git", "cat-file", "--batch")
	o.cmd.Dir = o.env.Repo
	// Replacement refs would show the hook another commit than the builder's.
	o.cmd.Env = append(o.env.Environ, "GIT_NO_REPLACE_OBJECTS=1", "GIT_NO_LAZY_FETCH=1", "LC_ALL=C")
	o.errs.Reset()
	o.cmd.Stderr = &o.errs
	in, err := o.cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := o.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	o.in, o.out = in, bufio.NewReaderSize(out, 64<<10)
	if err := o.cmd.Start(); err != nil {
		o.cmd = nil
		return fmt.Errorf("git cannot be run: %w", err)
	}
	return nil
}

// get reads an object, of its content at most limit bytes. size is that of the
// whole content.
func (o *objects) get(oid string, limit int64) (kind string, size int64, data []byte, err error) {
	if !isOID(oid) {
		return "", 0, nil, fmt.Errorf("%.80q is no object id", oid)
	}
	if o.cmd == nil {
		if err := o.start(); err != nil {
			return "", 0, nil, err
		}
	}
	fail := func(err error) (string, int64, []byte, error) {
		o.close()
		if msg := strings.TrimSpace(o.errs.String()); msg != "" {
			err = fmt.Errorf("%w (%s)", err, msg)
		}
		return "", 0, nil, fmt.Errorf("git cat-file: %w", err)
	}
	if _, err := io.WriteString(o.in, oid+"\n"); err != nil {
		return fail(err)
	}
	head, err := o.out.ReadString('\n')
	if err != nil {
		return fail(err)
	}
	f := strings.Fields(head)
	if len(f) == 2 && f[1] == "missing" {
		return "", 0, nil, errMissing
	}
	if len(f) != 3 {
		return fail(fmt.Errorf("unexpected answer %.80q", head))
	}
	kind = f[1]
	size, err = strconv.ParseInt(f[2], 10, 64)
	if err != nil || size < 0 {
		return fail(fmt.Errorf("unexpected answer %.80q", head))
	}
	data = make([]byte, min(size, limit))
	if _, err := io.ReadFull(o.out, data); err != nil {
		return fail(err)
	}
	if rest := size - int64(len(data)); rest > skip {
		o.close()
	} else if _, err := io.CopyN(io.Discard, o.out, rest+1); err != nil {
		return fail(err)
	}
	return kind, size, data, nil
}

// close ends cat-file. The next get starts another.
func (o *objects) close() {
	if o.cmd == nil {
		return
	}
	o.in.Close()
	o.cmd.Process.Kill()
	o.cmd.Wait()
	o.cmd = nil
}

// isOID reports whether s is an object id, of SHA-1 or SHA-256.
func isOID(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

// isZero reports whether s is the id of no object, which git gives for a ref
// that is made or deleted.
func isZero(s string) bool { return isOID(s) && strings.Trim(s, "0") == "" }
