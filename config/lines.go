package config

import (
	"slices"

	"github.com/pelletier/go-toml/v2/unstable"
)

// lineOf is the line of a TOML text on which a key is given, or 0 when it is
// not: the decoder tells positions of what it refuses itself, and nothing of
// values that are refused later. A key that is only the beginning of others
// ([channel.testing.setup] gives channel.testing) is on the line of the first.
func lineOf(text []byte, key ...string) int {
	var p unstable.Parser
	p.Reset(text)
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			var n int
			if table, n = keyOf(&p, nil, e); begins(table, key) {
				return n
			}
		case unstable.KeyValue:
			if n := lineIn(&p, table, e, key); n > 0 {
				return n
			}
		}
	}
	return 0
}

// lineIn looks for key in a key and its value; table is what stands before it.
func lineIn(p *unstable.Parser, table []string, kv *unstable.Node, key []string) int {
	path, n := keyOf(p, table, kv)
	if begins(path, key) {
		return n
	}
	if v := kv.Value(); v.Kind == unstable.InlineTable && begins(key, path) {
		for it := v.Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue {
				if n := lineIn(p, path, it.Node(), key); n > 0 {
					return n
				}
			}
		}
	}
	return 0
}

// keyOf is a node's key with what stands before it, and its line.
func keyOf(p *unstable.Parser, table []string, n *unstable.Node) (path []string, line int) {
	path = slices.Clone(table)
	for it := n.Key(); it.Next(); {
		if line == 0 {
			line = p.Shape(it.Node().Raw).Start.Line
		}
		path = append(path, string(it.Node().Data))
	}
	return path, line
}

func begins(path, with []string) bool {
	return len(path) >= len(with) && slices.Equal(path[:len(with)], with)
}
