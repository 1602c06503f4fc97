package mpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/Morphux/quarry/internal/durable"
	"github.com/Morphux/quarry/mirror"
)

// indexSource is the compact index: doc/mirror.md, Updating.
type indexSource struct {
	c     *Client
	head  *mirror.Head
	lists map[mirror.Kind]map[string][]mirror.Package // parsed, by name
	names []mirror.Package                            // the newest of each, as the index has them
}

func newIndexSource(c *Client) *indexSource { return &indexSource{c: c} }

func (x *indexSource) close() error { return nil }

// maxList is what a list may have at most, packed.
const maxList = 1 << 30

// stored reads the head that the state names; nil when there is none.
func (x *indexSource) stored() (*mirror.Head, error) {
	if x.head != nil || x.c.head.File == "" {
		return x.head, nil
	}
	data, err := os.ReadFile(filepath.Join(x.c.dir, filepath.Base(x.c.head.File)))
	if err == nil {
		x.head, err = mirror.ParseHead(data)
	}
	if err != nil {
		return nil, fmt.Errorf("cache %s is damaged, remove it: %w", x.c.dir, err)
	}
	return x.head, nil
}

func (x *indexSource) update(ctx context.Context, last Head, check func(Head) error) (Head, error) {
	// A list may be gone when it is asked for, as the head was renewed in between.
	for try := 0; ; try++ {
		h, err := x.once(ctx, last, check)
		if err == nil || try == 2 || !errors.Is(err, errGone) {
			return h, err
		}
	}
}

// errGone says that a list that the head names is not there.
var errGone = errors.New("the list that the head names is not there")

func (x *indexSource) once(ctx context.Context, last Head, check func(Head) error) (Head, error) {
	h, m, err := x.getHead(ctx, last, check)
	if err != nil {
		return Head{}, err
	}
	old, err := x.stored()
	if err != nil {
		return Head{}, err
	}
	for _, kind := range mirror.Kinds {
		f, of, ok := m.File(kind, x.c.o.Arch)
		if !ok {
			continue
		}
		if err := x.getList(ctx, old, m, kind, f, of); err != nil {
			return Head{}, err
		}
	}
	x.head, x.lists, x.names = m, nil, nil
	x.clear(h.File, old)
	return h, nil
}

// getHead gets the head, and looks whether it is to be believed.
func (x *indexSource) getHead(ctx context.Context, last Head, check func(Head) error) (Head, *mirror.Head, error) {
	tag := last.ETag
	if last.File == "" {
		tag = ""
	}
	data, tag, err := x.c.site.get(ctx, mirror.HeadName(x.c.o.Channel), tag, mirror.MaxHead)
	same := errors.Is(err, errSame)
	if same {
		data, err = os.ReadFile(filepath.Join(x.c.dir, filepath.Base(last.File)))
	}
	if err != nil {
		return Head{}, nil, err
	}
	m, err := mirror.ParseHead(data)
	if err != nil {
		return Head{}, nil, err
	}
	sum := sha256.Sum256(data)
	h := Head{Channel: m.Channel, Commit: m.Commit, Time: m.Time, Expires: m.Expires, ETag: tag, File: "head-" + hex.EncodeToString(sum[:]) + ".json"}
	if x.c.o.Signers != nil {
		sig, _, err := x.c.site.get(ctx, mirror.SignatureName(x.c.o.Channel, data), "", 64<<10)
		if errors.Is(err, fs.ErrNotExist) {
			return Head{}, nil, fmt.Errorf("the head has no signature: %w", ErrUntrusted)
		}
		if err != nil {
			return Head{}, nil, err
		}
		// As of now: a key that is not good any more must not sign what is to be good.
		key, err := x.c.o.Signers.Verify(mirror.Namespace, data, sig, time.Now())
		if err != nil {
			return Head{}, nil, fmt.Errorf("%w: %w", ErrUntrusted, err)
		}
		h.Signer = ssh.FingerprintSHA256(key)
	}
	if err := check(h); err != nil {
		return Head{}, nil, err
	}
	if !same {
		crash()
		if err := durable.WriteFile(filepath.Join(x.c.dir, h.File), data, 0o644, ".head-*"); err != nil {
			return Head{}, nil, err
		}
	}
	return h, m, nil
}

func listFile(kind mirror.Kind, f mirror.File) string {
	return string(kind) + "-" + f.TextSHA256 + ".toml"
}

// getList sees to it that a list is in the cache: as it was, by a delta, or whole.
func (x *indexSource) getList(ctx context.Context, old, m *mirror.Head, kind mirror.Kind, f mirror.File, of string) error {
	path := filepath.Join(x.c.dir, listFile(kind, f))
	if text, err := os.ReadFile(path); err == nil && f.Check(text) == nil {
		return nil
	}
	text := x.byDelta(ctx, old, m, kind, f, of)
	if text == nil {
		packed, err := x.download(ctx, mirror.InChannel(m.Channel, f.Name), f.Size)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %w", errGone, err)
		}
		if err != nil {
			return err
		}
		if text, err = f.Unpack(packed); err != nil {
			return err
		}
	}
	crash()
	return durable.WriteFile(path, text, 0o644, ".list-*")
}

// byDelta makes a list of the one that is here; nil when that does not do, for
// whatever reason: then it is got whole.
func (x *indexSource) byDelta(ctx context.Context, old, m *mirror.Head, kind mirror.Kind, f mirror.File, of string) []byte {
	if old == nil || old.Commit == m.Commit {
		return nil
	}
	was, wasOf, ok := old.File(kind, x.c.o.Arch)
	if !ok || wasOf != of {
		return nil
	}
	base, err := os.ReadFile(filepath.Join(x.c.dir, listFile(kind, was)))
	if err != nil {
		return nil
	}
	packed, _, err := x.c.site.get(ctx, mirror.DeltaName(m.Channel, kind, of, old.Commit, m.Commit), "", min(f.Size+1<<20, maxList))
	if err != nil {
		return nil
	}
	delta, err := mirror.Unpack(packed, was.TextSize+f.TextSize)
	if err != nil {
		return nil
	}
	text, err := mirror.ApplyDelta(base, delta)
	if err != nil || f.Check(text) != nil {
		return nil
	}
	return text
}

func (x *indexSource) download(ctx context.Context, name string, size int64) ([]byte, error) {
	if size > maxList {
		return nil, fmt.Errorf("%s has %d bytes: %d is the most", name, size, maxList)
	}
	r, _, err := x.c.site.open(ctx, name, 0)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var b bytes.Buffer
	p := progress{x.c.o.Progress, filepath.Base(name), 0, size}
	if err := p.copy(&b, r, size); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// clear removes what neither the new state nor the one before it needs: that is
// still what the state file names.
func (x *indexSource) clear(file string, old *mirror.Head) {
	keep := map[string]bool{file: true, x.c.head.File: true}
	for _, h := range []*mirror.Head{x.head, old} {
		for _, kind := range mirror.Kinds {
			if h != nil {
				if f, _, ok := h.File(kind, x.c.o.Arch); ok {
					keep[listFile(kind, f)] = true
				}
			}
		}
	}
	entries, err := os.ReadDir(x.c.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		name := e.Name()
		for _, prefix := range []string{"head-", "index-", "older-", ".head-", ".list-", ".state-"} {
			if strings.HasPrefix(name, prefix) && !keep[name] {
				os.Remove(filepath.Join(x.c.dir, name))
			}
		}
	}
}

// load reads a list out of the cache, once.
func (x *indexSource) load(kind mirror.Kind) (map[string][]mirror.Package, error) {
	if l := x.lists[kind]; l != nil {
		return l, nil
	}
	h, err := x.stored()
	if err != nil {
		return nil, err
	}
	by := map[string][]mirror.Package{}
	if f, _, ok := h.File(kind, x.c.o.Arch); ok {
		text, err := os.ReadFile(filepath.Join(x.c.dir, listFile(kind, f)))
		if err == nil {
			err = f.Check(text)
		}
		var l *mirror.List
		if err == nil {
			l, err = mirror.ParseList(text)
		}
		if err != nil {
			return nil, fmt.Errorf("cache %s is damaged, remove it: %w", x.c.dir, err)
		}
		for from := 0; from < len(l.Packages); {
			to := from + 1
			for to < len(l.Packages) && l.Packages[to].Name == l.Packages[from].Name {
				to++
			}
			by[l.Packages[from].Name] = l.Packages[from:to:to]
			from = to
		}
		if kind == mirror.Newest {
			x.names = l.Packages
		}
	}
	if x.lists == nil {
		x.lists = map[mirror.Kind]map[string][]mirror.Package{}
	}
	x.lists[kind] = by
	return by, nil
}

func (x *indexSource) versions(_ context.Context, name string) ([]mirror.Package, error) {
	var out []mirror.Package
	for _, kind := range mirror.Kinds {
		l, err := x.load(kind)
		if err != nil {
			return nil, err
		}
		out = append(out, l[name]...)
	}
	return out, nil
}

func (x *indexSource) newest(_ context.Context, each func(*mirror.Package) bool) error {
	if _, err := x.load(mirror.Newest); err != nil {
		return err
	}
	for i := range x.names {
		if !each(&x.names[i]) {
			break
		}
	}
	return nil
}

func (x *indexSource) providers(_ context.Context, name string) ([]string, error) {
	var out []string
	for _, kind := range mirror.Kinds {
		l, err := x.load(kind)
		if err != nil {
			return nil, err
		}
		for pkg, versions := range l {
			for i := range versions {
				if offers(&versions[i], name) {
					out = append(out, pkg)
					break
				}
			}
		}
	}
	return out, nil
}
