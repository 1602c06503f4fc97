package gitfs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
)

// Refs reads the refs right below a folder such as refs/heads (not those in
// folders below it) of the bare repository at path, by name without the folder.
// A value is a hash of 40 hex digits; a ref that holds anything else, being
// symbolic or broken, is listed with an empty one. It runs no git, unless the
// repository keeps its refs in the reftable format.
func Refs(ctx context.Context, path, folder string) (map[string]string, error) {
	if _, err := os.Stat(filepath.Join(path, "reftable")); err == nil {
		return forEachRef(ctx, path, folder)
	}
	refs := map[string]string{}
	// git pack-refs writes packed-refs and then removes what it packed: read in
	// the other order, nothing is missed.
	entries, err := os.ReadDir(filepath.Join(path, folder))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("refs of %s cannot be read: %w", path, err)
	}
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() || strings.HasSuffix(name, ".lock") {
			continue
		}
		hash, err := readRef(filepath.Join(path, folder, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // packed or deleted since
		}
		if err != nil {
			return nil, fmt.Errorf("refs of %s cannot be read: %w", path, err)
		}
		refs[name] = hash
	}
	f, err := os.Open(filepath.Join(path, "packed-refs"))
	if errors.Is(err, fs.ErrNotExist) {
		return refs, nil
	}
	if err != nil {
		return nil, fmt.Errorf("refs of %s cannot be read: %w", path, err)
	}
	defer f.Close()
	// HASH SP refs/heads/NAME, with a header in # and peeled tags in ^.
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		hash, ref, _ := strings.Cut(lines.Text(), " ")
		name, ok := strings.CutPrefix(ref, folder+"/")
		if !ok || strings.Contains(name, "/") || hash == "#" {
			continue
		}
		if _, loose := refs[name]; !loose {
			refs[name] = onlyHash(hash)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("refs of %s cannot be read: packed-refs: %w", path, err)
	}
	return refs, nil
}

func readRef(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var buf [128]byte
	n, err := io.ReadFull(f, buf[:])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return "", err
	}
	return onlyHash(strings.TrimSpace(string(buf[:n]))), nil
}

func onlyHash(s string) string {
	if plumbing.IsHash(s) && len(s) == 40 {
		return s
	}
	return ""
}

func forEachRef(ctx context.Context, path, folder string) (map[string]string, error) {
	cmd := exec.CommandContext(ctx, "git", "--git-dir="+path, "for-each-ref", "--format=%(objectname) %(symref) %(refname)", folder+"/")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("git for-each-ref: %w: %s", err, line(string(exit.Stderr)))
		}
		return nil, fmt.Errorf("refs of %s cannot be read: %w", path, err)
	}
	refs := map[string]string{}
	for l := range strings.Lines(string(out)) {
		parts := strings.Split(strings.TrimSuffix(l, "\n"), " ")
		if len(parts) != 3 {
			continue
		}
		name := strings.TrimPrefix(parts[2], folder+"/")
		if strings.Contains(name, "/") {
			continue
		}
		refs[name] = ""
		if parts[1] == "" {
			refs[name] = onlyHash(parts[0])
		}
	}
	return refs, nil
}
