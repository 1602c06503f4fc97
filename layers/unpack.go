package layers

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/overlay"
	"github.com/Morphux/quarry/internal/podman/deltree"
)

// unpack makes a layer and gives it its name.
func (c *Cache) unpack(ctx context.Context, root *Root, key, artifact, path string) (_ meta, _ *Tree, err error) {
	dir, err := os.MkdirTemp(c.path(nameTmp), "layer-")
	if err != nil {
		return meta{}, nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		if e := deltree.Remove(dir); e != nil {
			c.log.Warn("what is left of unpacking a dependency stays on disk until the next start", "folder", dir, "error", e)
		}
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, errFull) {
			// Builds need the room more.
			c.mu.Lock()
			c.evict(0)
			c.mu.Unlock()
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		err = fmt.Errorf("artifact %.12s cannot be unpacked into the cache: %w", artifact, err)
	}()
	m := meta{Version: version, ID: random(), Artifact: artifact, Root: root.Digest, UID: root.UID, GID: root.GID}
	if m.Seen, err = c.run(ctx, root, dir, artifact, path); err != nil {
		return m, nil, err
	}
	tree, err := Scan(filepath.Join(dir, nameDiff), true)
	if err != nil {
		return m, nil, err
	}
	m.Files, m.Bytes, m.Length = tree.Files, tree.Bytes, tree.Length
	for _, name := range []string{nameWork, nameScratch} {
		if err := deltree.Remove(filepath.Join(dir, name)); err != nil {
			return m, nil, err
		}
	}
	data, err := json.Marshal(m)
	if err != nil {
		return m, nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, nameMeta), data, 0o600); err != nil {
		return m, nil, err
	}
	if err := os.Rename(dir, c.path(key)); err != nil {
		return m, nil, err
	}
	return m, tree, nil
}

const (
	nameWork    = "work"
	nameScratch = "scratch"
)

// run unpacks into an overlay over the root.
func (c *Cache) run(ctx context.Context, root *Root, dir, artifact, path string) (seen []string, err error) {
	spec := overlay.Spec{
		Lower: root.Lower, Upper: filepath.Join(dir, nameDiff), Work: filepath.Join(dir, nameWork),
		Scratch: filepath.Join(dir, nameScratch), Options: root.Options,
		Flags: unix.MS_NODEV | unix.MS_NOSUID | unix.MS_NOEXEC,
	}
	for _, d := range []string{spec.Upper, spec.Work, spec.Scratch} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.Chown(spec.Upper, root.UID, root.GID); err != nil {
		return nil, err
	}
	merged, err := overlay.New(spec)
	if err != nil {
		return nil, err
	}
	defer merged.Close()
	return c.install(ctx, root, merged, artifact, path)
}

// install has a process of its own install an artifact into the tree that merged
// is the root of.
func (c *Cache) install(ctx context.Context, root *Root, merged *os.File, artifact, path string) (seen []string, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	cmd := exec.CommandContext(ctx, c.opts.Program)
	cmd.Args = []string{unpackerName, artifact, strconv.FormatInt(max(c.opts.Limit, 0), 10)}
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{file, merged} // 3 and 4
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	ids := func(host int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: 0, HostID: host, Size: root.Count}}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET |
			syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		UidMappings: ids(root.UID), GidMappings: ids(root.GID), GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{},
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // a ^C on the terminal is for the daemon
	}
	done := make(chan error, 1)
	go func() {
		// The kernel sends Pdeathsig when the thread that forked ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- cmd.Run()
	}()
	if err := <-done; err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("the process that unpacks: %w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	var said result
	if err := json.Unmarshal(stdout.Bytes(), &said); err != nil {
		return nil, fmt.Errorf("the process that unpacks said %.100q", stdout.Bytes())
	}
	switch {
	case said.Full:
		return nil, fmt.Errorf("%w: %s", errFull, said.Error)
	case said.Error != "":
		return nil, errors.New(said.Error)
	}
	return said.Seen, nil
}

var errFull = errors.New("no space left")

// result is what the process that unpacks prints.
type result struct {
	Seen  []string `json:"seen,omitempty"`
	Error string   `json:"error,omitempty"`
	Full  bool     `json:"full,omitempty"` // the disk is
}

func random() string {
	b := make([]byte, 8)
	rand.Read(b)
	return hex.EncodeToString(b)
}
