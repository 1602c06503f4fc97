package recipe

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// kind is what a JSON value is. Its text completes "is ..." in a message.
type kind string

const (
	object  kind = "an object"
	list    kind = "a list"
	text    kind = "a string"
	number  kind = "a number"
	boolean kind = "true or false"
	null    kind = "null"
)

// node is one JSON value and where it stands. encoding/json alone tells
// positions only for what it refuses itself, keeps the last of two equal keys
// without a word and matches keys in any case; a recipe's reader has to tell
// its maintainer about all of these.
type node struct {
	kind       kind
	start, end int    // offsets into the document
	text       string // of a string; of a number as written
	truth      bool
	members    []*node // of an object or list, in order

	parent *node
	key    string // name in the parent, when that is an object
	index  int    // place in the parent
}

// get is the member of an object with that name, or nil.
func (n *node) get(key string) *node {
	for _, m := range n.members {
		if m.key == key {
			return m
		}
	}
	return nil
}

// path names the value as a person would: compilation.configure[2].prefix.
func (n *node) path() string {
	if n.parent == nil {
		return ""
	}
	up := n.parent.path()
	if n.parent.kind == list {
		return up + "[" + strconv.Itoa(n.index) + "]"
	}
	key := n.key
	if !plainKey(key) {
		key = strconv.QuoteToASCII(key)
	}
	if up == "" {
		return key
	}
	return up + "." + key
}

// plainKey reports whether a key needs no quotes in a path.
func plainKey(key string) bool {
	for _, c := range []byte(key) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("_-/+", c) >= 0) {
			return false
		}
	}
	return key != ""
}

// position turns an offset into a line and a column, both from 1, the column
// in characters.
func position(data []byte, offset int) (line, column int) {
	offset = min(max(offset, 0), len(data))
	before := data[:offset]
	return bytes.Count(before, []byte("\n")) + 1, utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]) + 1
}

// at makes an error about the document at an offset.
func at(data []byte, offset int, field, format string, args ...any) *Error {
	line, column := position(data, offset)
	return &Error{File: FileName, Line: line, Column: column, Field: field, Problem: fmt.Sprintf(format, args...)}
}

// parser walks the tokens of a document that is known to be JSON.
type parser struct {
	data []byte
	dec  *json.Decoder
	n    int // values seen
}

// parseJSON reads a whole document within the limits.
func parseJSON(data []byte) (*node, *Error) {
	if len(data) > MaxSize {
		return nil, &Error{File: FileName, Problem: fmt.Sprintf("has %d bytes: %d is the most", len(data), MaxSize)}
	}
	if bytes.HasPrefix(data, []byte("\xef\xbb\xbf")) {
		return nil, at(data, 0, "", "the document begins with a byte order mark: save it as UTF-8 without one")
	}
	// encoding/json would put U+FFFD for every bad byte and go on.
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			return nil, at(data, i, "", "the document holds byte 0x%02x, which is no UTF-8: save it as UTF-8", data[i])
		}
		i += size
	}
	var whole json.RawMessage
	if err := json.Unmarshal(data, &whole); err != nil {
		return nil, syntaxError(data, err)
	}
	p := &parser{data: data, dec: json.NewDecoder(bytes.NewReader(data))}
	p.dec.UseNumber()
	return p.value(nil, "", 1)
}

// syntaxError says where a document stops being JSON, and what to do about the
// two mistakes that the format's own upstream documentation makes: a comma
// after the last member, and comments.
func syntaxError(data []byte, err error) *Error {
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) {
		return at(data, 0, "", "the document cannot be read: %v", err)
	}
	// Offset counts the bytes read, the offending one included.
	offset := int(syntax.Offset) - 1
	if offset < 0 || offset >= len(data) || strings.HasPrefix(syntax.Error(), "unexpected end") {
		return at(data, len(data), "", "the document ends too early: close what is open")
	}
	before := bytes.TrimRight(data[:offset], " \t\r\n")
	switch c := data[offset]; {
	case (c == '}' || c == ']') && bytes.HasSuffix(before, []byte(",")):
		return at(data, len(before)-1, "", "the document is not JSON: remove the comma before %q", c)
	case c == '/' || c == '#':
		return at(data, offset, "", "the document is not JSON: remove the comment, JSON has none")
	}
	return at(data, offset, "", "the document is not JSON: %v", syntax)
}

// start is where the token that the decoder just gave begins: after the one
// before it (which ended at after) and the space, commas and colons between.
func (p *parser) start(after int) int {
	for after < len(p.data) && strings.IndexByte(" \t\r\n,:", p.data[after]) >= 0 {
		after++
	}
	return after
}

func (p *parser) token() (tok json.Token, start int, e *Error) {
	after := int(p.dec.InputOffset())
	tok, err := p.dec.Token()
	start = p.start(after)
	if err == io.EOF { // not possible after the check of the whole; kept from ever being a loop
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, start, at(p.data, start, "", "the document cannot be read: %v", err)
	}
	return tok, start, nil
}

// value reads the next value, the member key of parent where that is an object;
// depth counts the values it is inside of, itself included.
func (p *parser) value(parent *node, key string, depth int) (*node, *Error) {
	tok, start, e := p.token()
	if e != nil {
		return nil, e
	}
	if p.n++; p.n > MaxValues {
		return nil, at(p.data, start, "", "the document holds more than %d values: that is the most", MaxValues)
	}
	n := &node{start: start, parent: parent, key: key}
	if parent != nil {
		n.index = len(parent.members)
	}
	switch tok := tok.(type) {
	case json.Delim:
		// A value begins with [ or {; the closing ones are read below.
		if depth > MaxDepth {
			return nil, at(p.data, start, "", "the document is nested deeper than %d values: that is the most", MaxDepth)
		}
		n.kind = list
		if tok == '{' {
			n.kind = object
		}
		if e := p.members(n, depth); e != nil {
			return nil, e
		}
	case string:
		n.kind, n.text = text, tok
	case json.Number:
		n.kind, n.text = number, tok.String()
	case bool:
		n.kind, n.truth = boolean, tok
	default:
		n.kind = null
	}
	n.end = int(p.dec.InputOffset())
	return n, nil
}

// members reads what is inside an object or list, and its end.
func (p *parser) members(n *node, depth int) *Error {
	seen := map[string]int{}
	for p.dec.More() {
		var key string
		var start int
		if n.kind == object {
			tok, s, e := p.token()
			if e != nil {
				return e
			}
			key, start = tok.(string), s // JSON has no other keys
			if len(key) > MaxKey {
				return at(p.data, start, n.path(), "has a key of %d bytes: %d is the most", len(key), MaxKey)
			}
			if first, ok := seen[key]; ok {
				line, _ := position(p.data, first)
				same := node{parent: n, key: key}
				return at(p.data, start, same.path(), "is given twice, first on line %d: keep one of them", line)
			}
			seen[key] = start
		}
		m, e := p.value(n, key, depth+1)
		if e != nil {
			return e
		}
		n.members = append(n.members, m)
	}
	_, _, e := p.token()
	return e
}
