package recipe

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// fail notes an error at a value.
func (rd *reader) fail(n *node, format string, args ...any) {
	if len(rd.errs) >= maxErrors {
		return
	}
	problem := fmt.Sprintf(format, args...)
	if n.parent == nil {
		problem = "the document " + problem
	}
	rd.errs = append(rd.errs, at(rd.data, n.start, n.path(), "%s", problem))
}

// maxWarnings keeps a document of nothing but unknown fields from flooding the
// maintainer's terminal.
const maxWarnings = 50

func (rd *reader) warn(n *node, format string, args ...any) {
	switch w := &rd.r.Warnings; {
	case len(*w) < maxWarnings:
		*w = append(*w, at(rd.data, n.start, n.path(), format, args...).Error())
	case len(*w) == maxWarnings:
		*w = append(*w, FileName+": more warnings are left out")
	}
}

// want reports whether a value has the kind, and notes an error otherwise.
func (rd *reader) want(n *node, k kind) bool {
	if n.kind != k {
		rd.fail(n, "is %s: it must be %s", n.kind, k)
	}
	return n.kind == k
}

// field is how to read one member of an object.
type field struct {
	key  string
	read func(*node)
}

// fields reads an object by a table, in the order of the document, and keeps
// what the table does not know. It reports whether it was an object.
func (rd *reader) fields(n *node, table ...field) bool {
	if !rd.want(n, object) {
		return false
	}
	for _, m := range n.members {
		i := slices.IndexFunc(table, func(f field) bool { return f.key == m.key })
		if i < 0 {
			rd.unknown(m, table)
			continue
		}
		table[i].read(m)
	}
	return true
}

// unknown keeps a field that nobody knows: a later Morphux may.
func (rd *reader) unknown(n *node, table []field) {
	if rd.r.Unknown == nil {
		rd.r.Unknown = map[string]json.RawMessage{}
	}
	rd.r.Unknown[n.path()] = json.RawMessage(slices.Clone(rd.data[n.start:n.end]))
	for _, f := range table {
		if near(n.key, f.key) && n.parent.get(f.key) == nil {
			rd.warn(n, "is not known, so it is kept but has no effect: did you mean %q?", f.key)
			return
		}
	}
	rd.warn(n, "is not known, so it is kept but has no effect")
}

// near reports whether two keys differ in case only or by two edits at most.
func near(a, b string) bool {
	a, b = strings.ToLower(a), strings.ToLower(b)
	if len(a) > 2*len(b) || len(b) > 2*len(a) {
		return false
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)] <= min(2, len(b)/3)
}

// either reads a field that has two spellings, of which a recipe may use one.
func (rd *reader) either(a, b string, read func(*node)) []field {
	once := func(n *node) {
		if n.key == b && n.parent.get(a) != nil {
			rd.fail(n, "says the same as %s: keep one of them", a)
			return
		}
		read(n)
	}
	return []field{{a, once}, {b, once}}
}

// str reads one line of text of at most limit bytes. Control characters are
// refused: no value of a recipe needs one, and they end up in arguments, logs
// and terminals.
func (rd *reader) str(n *node, limit int) (string, bool) {
	if !rd.want(n, text) {
		return "", false
	}
	return n.text, rd.clean(n, n.text, limit, "")
}

// clean checks text, which is the value of n or its key. Control characters in
// allowed may be in it.
func (rd *reader) clean(n *node, s string, limit int, allowed string) bool {
	if len(s) > limit {
		rd.fail(n, "has %d bytes: %d is the most", len(s), limit)
		return false
	}
	for _, c := range s {
		if unicode.IsControl(c) && !strings.ContainsRune(allowed, c) {
			rd.fail(n, "holds the control character %+q: remove it", c)
			return false
		}
	}
	return true
}

// items reads a list of at most limit members.
func (rd *reader) items(n *node, limit int, read func(*node)) bool {
	if !rd.want(n, list) {
		return false
	}
	if len(n.members) > limit {
		rd.fail(n, "has %d members: %d is the most", len(n.members), limit)
		return false
	}
	for _, m := range n.members {
		read(m)
	}
	return true
}

// into is a reader of one line of text.
func (rd *reader) into(to *string, limit int) func(*node) {
	return func(n *node) { *to, _ = rd.str(n, limit) }
}

// flag is a reader of true or false.
func (rd *reader) flag(to *bool) func(*node) {
	return func(n *node) {
		if rd.want(n, boolean) {
			*to = n.truth
		}
	}
}
