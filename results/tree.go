package results

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
)

// tree is the content of a git tree, in git's order.
type tree []entry

type entry struct {
	name string
	dir  bool
	mode string // as git writes it, e.g. 100644
	hash plumbing.Hash
}

const (
	modeDir  = "40000"
	modeFile = "100644"
)

// compareEntries is git's order: as if the name of a folder ended in a slash.
func compareEntries(a, b entry) int {
	n := min(len(a.name), len(b.name))
	if c := strings.Compare(a.name[:n], b.name[:n]); c != 0 {
		return c
	}
	return a.after(n) - b.after(n)
}

// after is the byte that stands at n, behind what both names share.
func (e entry) after(n int) int {
	switch {
	case n < len(e.name):
		return int(e.name[n])
	case e.dir:
		return '/'
	}
	return 0
}

func parseTree(b []byte) (tree, error) {
	t := make(tree, 0, len(b)/40)
	text := string(b)
	for len(text) > 0 {
		mode, rest, ok := strings.Cut(text, " ")
		if !ok || len(mode) < 5 || len(mode) > 6 {
			return nil, errors.New("it has no mode where one must be")
		}
		name, rest, ok := strings.Cut(rest, "\x00")
		if !ok || name == "" || len(rest) < len(plumbing.Hash{}) {
			return nil, errors.New("it ends in the middle of an entry")
		}
		e := entry{name: name, mode: mode, dir: mode == modeDir}
		copy(e.hash[:], rest)
		text = rest[len(e.hash):]
		t = append(t, e)
	}
	// Searching relies on the order; git fsck does too.
	if !slices.IsSortedFunc(t, compareEntries) {
		return nil, errors.New("its entries are out of order")
	}
	return t, nil
}

func (t tree) encode() []byte {
	var b bytes.Buffer
	for _, e := range t {
		b.WriteString(e.mode)
		b.WriteByte(' ')
		b.WriteString(e.name)
		b.WriteByte(0)
		b.Write(e.hash[:])
	}
	return b.Bytes()
}

func (t tree) find(name string, dir bool) (plumbing.Hash, bool) {
	i, ok := slices.BinarySearchFunc(t, entry{name: name, dir: dir}, compareEntries)
	if !ok {
		return plumbing.ZeroHash, false
	}
	return t[i].hash, true
}

// with returns a copy in which an entry is set, or is gone when its hash is
// zero.
func (t tree) with(e entry) tree {
	out := make(tree, 0, len(t)+1)
	for _, old := range t {
		if old.name != e.name {
			out = append(out, old)
		}
	}
	if e.hash.IsZero() {
		return out
	}
	i, _ := slices.BinarySearchFunc(out, e, compareEntries)
	return slices.Insert(out, i, e)
}

// difference is an entry that two folders do not have alike; the zero hash where one
// of them has none.
type difference struct {
	name     string
	dir      bool
	old, now plumbing.Hash
}

// differences lists what differs from one folder to another, in git's order.
func differences(old, now tree) (list []difference) {
	for len(old) > 0 || len(now) > 0 {
		c := 0
		switch {
		case len(old) == 0:
			c = 1
		case len(now) == 0:
			c = -1
		default:
			c = compareEntries(old[0], now[0])
		}
		var d difference
		if c <= 0 {
			d = difference{old[0].name, old[0].dir, old[0].hash, d.now}
			old = old[1:]
		}
		if c >= 0 {
			d = difference{now[0].name, now[0].dir, d.old, now[0].hash}
			now = now[1:]
		}
		if d.old != d.now {
			list = append(list, d)
		}
	}
	return list
}

// lookup follows a path from a tree. The zero hash, without an error, says that
// nothing is there.
func (o *odb) lookup(root plumbing.Hash, path string, dir bool) (plumbing.Hash, error) {
	for root != plumbing.ZeroHash {
		name, rest, more := strings.Cut(path, "/")
		t, err := o.tree(root)
		if err != nil {
			return plumbing.ZeroHash, err
		}
		h, _ := t.find(name, more || dir)
		if !more {
			return h, nil
		}
		root, path = h, rest
	}
	return plumbing.ZeroHash, nil
}

// edit is one change to a tree: what to put at a path, which may be a blob that is
// there already, or neither to remove what is there.
type edit struct {
	path string
	blob []byte
	hash plumbing.Hash
}

// apply makes the edits in a tree and returns its new hash, the zero hash if
// nothing is left. What has to be written is put into out, and nothing else:
// the cost is the depth of the tree and the width of the folders on the path.
func (o *odb) apply(root plumbing.Hash, edits []edit, out *objectSet) (plumbing.Hash, error) {
	var t tree
	if root != plumbing.ZeroHash {
		var err error
		if t, err = o.tree(root); err != nil {
			return plumbing.ZeroHash, err
		}
	}
	below := make(map[string][]edit)
	var names []string
	for _, e := range edits {
		name, rest, more := strings.Cut(e.path, "/")
		if name == "" {
			return plumbing.ZeroHash, fmt.Errorf("path %q has an empty part", e.path)
		}
		switch {
		case more:
			if below[name] == nil {
				names = append(names, name)
			}
			below[name] = append(below[name], edit{rest, e.blob, e.hash})
		case !e.hash.IsZero():
			t = t.with(entry{name: name, mode: modeFile, hash: e.hash})
		case e.blob == nil:
			t = t.with(entry{name: name})
		default:
			t = t.with(entry{name: name, mode: modeFile, hash: out.add(plumbing.BlobObject, e.blob)})
		}
	}
	for _, name := range names {
		old, _ := t.find(name, true)
		h, err := o.apply(old, below[name], out)
		if err != nil {
			return plumbing.ZeroHash, err
		}
		if h != old {
			t = t.with(entry{name: name, dir: true, mode: modeDir, hash: h})
		}
	}
	if len(t) == 0 {
		return plumbing.ZeroHash, nil
	}
	b := t.encode()
	if h := plumbing.ComputeHash(plumbing.TreeObject, b); h == root {
		return h, nil
	}
	return out.add(plumbing.TreeObject, b), nil
}
