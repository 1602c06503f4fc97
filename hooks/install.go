package hooks

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/Morphux/quarry"
)

// The hooks that Quarry has.
const (
	Pre  = "pre-receive"
	Post = "post-receive"
)

// marker is how Quarry knows its own hooks again.
const marker = "# Written by quarry hook install, which writes it anew when it runs again."

// Options say how hooks are put into a repository.
type Options struct {
	Settings
	Binary string // absolute path of the quarry binary
	Force  bool   // replace hooks that are somebody else's (they are kept as NAME.old)
}

// Install puts Quarry's hooks into a bare repository and lets git pass push
// options on to them. It may run again at any time.
//
// Where a server runs the files of a folder pre-receive.d (Gitea and Forgejo
// do), the hooks go there. A hook of somebody else is not touched unless Force
// says so.
func Install(repo string, o Options) error {
	repo, err := filepath.Abs(repo)
	if err != nil {
		return err
	}
	if o.Package == "" {
		o.Package = packageOf(repo)
	}
	if err := quarry.CheckName(o.Package); err != nil {
		return fmt.Errorf("repository %s is no package's: %w (--package NAME says which it is)", repo, err)
	}
	if !filepath.IsAbs(o.Binary) {
		return fmt.Errorf("hooks need the absolute path of the quarry binary, and %q is none", o.Binary)
	}
	for _, p := range []*string{&o.Socket, &o.Spool} {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	if err := bare(repo); err != nil {
		return err
	}
	for _, kv := range [][2]string{{"receive.advertisePushOptions", "true"}, {"transfer.hideRefs", "refs/quarry"}} {
		if err := setConfig(repo, kv[0], kv[1]); err != nil {
			return err
		}
	}
	out, err := git(repo, "rev-parse", "--git-path", "hooks") // honours core.hooksPath
	if err != nil {
		return err
	}
	dir := strings.TrimSuffix(out, "\n")
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(repo, dir)
	}
	// Look at both before writing one: half a pair would lose pushes silently.
	for _, hook := range []string{Pre, Post} {
		path, err := o.place(dir, hook)
		if err != nil {
			return err
		}
		if err := o.mayReplace(path, hook); err != nil {
			return err
		}
	}
	for _, hook := range []string{Pre, Post} {
		path, err := o.place(dir, hook)
		if err != nil {
			return err
		}
		if err := o.write(path, hook); err != nil {
			return fmt.Errorf("hook %s cannot be written: %w", path, err)
		}
	}
	return nil
}

// place is the file that a hook goes to.
func (o Options) place(dir, hook string) (string, error) {
	d := filepath.Join(dir, hook+".d")
	info, err := os.Stat(d)
	switch {
	case err == nil && info.IsDir():
		return filepath.Join(d, "quarry"), nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("hooks cannot be installed: %w", err)
	}
	return filepath.Join(dir, hook), nil
}

func (o Options) mayReplace(path, hook string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("hook cannot be installed: %w", err)
	case info.IsDir():
		return fmt.Errorf("hook %s is a folder: move it away", path)
	case o.Force:
		return nil
	}
	data, err := os.ReadFile(path)
	if err == nil && bytes.Contains(data, []byte(marker)) && info.Mode().IsRegular() {
		return nil
	}
	return fmt.Errorf("hook %s is somebody else's: let it end with %q (standard input goes to both), or replace it with --force, which keeps it as %s.old",
		path, o.Command(hook), path)
}

// Installed reports whether both hooks in a repository's own folder of hooks
// are as [Install] would write them there. It runs no git, so it is cheap
// enough to ask before every push.
func Installed(repo string, o Options) bool {
	dir := filepath.Join(repo, "hooks")
	for _, hook := range []string{Pre, Post} {
		path := filepath.Join(dir, hook)
		info, err := os.Lstat(path)
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 != 0o111 {
			return false
		}
		data, err := os.ReadFile(path)
		if err != nil || string(data) != o.script(hook) {
			return false
		}
	}
	return true
}

// Command is the shell command that runs a hook.
func (o Options) Command(hook string) string {
	args := []string{quote(o.Binary), "hook", hook, "--package", quote(o.Package)}
	for _, f := range [][2]string{{"--socket", o.Socket}, {"--spool", o.Spool}, {"--channel", o.Channel}} {
		if f[1] != "" {
			args = append(args, f[0], quote(f[1]))
		}
	}
	return strings.Join(args, " ")
}

func (o Options) script(hook string) string {
	// A binary that is gone refuses pushes rather than let them pass unseen.
	return "#!/bin/sh\n" + marker + "\n" +
		"[ -x " + quote(o.Binary) + " ] || { echo " + quote("quarry: "+o.Binary+" is gone from this server: tell its admin to run quarry hook install again") + " >&2; exit 1; }\n" +
		"exec " + o.Command(hook) + "\n"
}

func (o Options) write(path, hook string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if old, err := os.ReadFile(path); err == nil && !bytes.Contains(old, []byte(marker)) {
		if err := os.Rename(path, path+".old"); err != nil {
			return err
		}
	}
	// A child that is made meanwhile would have the file open for writing until it
	// is a program itself, and the kernel runs nothing that is open for writing.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := os.CreateTemp(filepath.Dir(path), ".quarry-*")
	if err != nil {
		return err
	}
	_, err = f.WriteString(o.script(hook))
	err = errors.Join(err, f.Chmod(0o755), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// quote makes s one word of /bin/sh.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func bare(repo string) error {
	if info, err := os.Stat(repo); err != nil || !info.IsDir() {
		return fmt.Errorf("there is no folder %s: name a bare repository", repo)
	}
	out, err := git(repo, "rev-parse", "--is-bare-repository", "--absolute-git-dir")
	if err != nil {
		return err
	}
	is, dir, _ := strings.Cut(strings.TrimSuffix(out, "\n"), "\n")
	real, err := filepath.EvalSymlinks(repo)
	if err != nil {
		return err
	}
	if is != "true" || dir != real {
		return fmt.Errorf("%s is no bare repository: name the folder that git init --bare made", repo)
	}
	return nil
}

// setConfig adds a setting unless the repository has that value already.
func setConfig(repo, key, value string) error {
	if out, err := git(repo, "config", "--local", "--get-all", key); err == nil {
		for line := range strings.Lines(out) {
			if strings.TrimSuffix(line, "\n") == value {
				return nil
			}
		}
	}
	_, err := git(repo, "config", "--local", "--add", key, value)
	return err
}

func git(repo string, args ...string) (string, error) {
	var stderr bytes.Buffer
	cmd := exec.Command("git", args...)
	cmd.Dir = repo
	cmd.Stderr = &stderr
	// The repository is the one that was named, whatever runs us.
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "GIT_DIR=") && !strings.HasPrefix(kv, "GIT_WORK_TREE=") && !strings.HasPrefix(kv, "GIT_INDEX_FILE=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s in %s: %w: %s", args[0], repo, err, strings.TrimSpace(stderr.String()))
	}
	return string(out), nil
}
