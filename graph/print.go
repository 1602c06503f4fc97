package graph

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// JSON writes the part of the graph as one JSON object, see Sub.
func (s *Sub) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(s)
}

// maxIndent is how deep a tree is drawn. What is deeper has its depth as a
// number, or a chain of thousands would fill the disk with indentation.
const maxIndent = 24

// Text writes a tree for people. Each node is opened where it is met first; where
// it is met again it is marked with ^.
func (s *Sub) Text(w io.Writer) error {
	out := bufio.NewWriter(w)
	next := make([][]SubEdge, len(s.Nodes))
	for _, e := range s.Edges {
		if s.Reverse {
			next[e.To] = append(next[e.To], e)
		} else {
			next[e.From] = append(next[e.From], e)
		}
	}
	type line struct {
		node, depth int
		need        string
		last        []bool // by depth: nothing follows there
	}
	opened := make([]bool, len(s.Nodes))
	var stack []line
	for i := len(s.Roots) - 1; i >= 0; i-- {
		stack = append(stack, line{node: s.Roots[i]})
	}
	for len(stack) > 0 {
		l := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for d, last := range l.last {
			switch {
			case d == len(l.last)-1 && last:
				out.WriteString("`- ")
			case d == len(l.last)-1:
				out.WriteString("|- ")
			case last:
				out.WriteString("   ")
			default:
				out.WriteString("|  ")
			}
		}
		if l.depth > maxIndent {
			fmt.Fprintf(out, "(%d) ", l.depth)
		}
		out.WriteString(s.describe(l.node, l.need))
		children := next[l.node]
		if s.limit > 0 && l.depth >= s.limit {
			if len(children) > 0 || s.Nodes[l.node].More {
				out.WriteString(" ...")
			}
			children = nil
		}
		if opened[l.node] && len(children) > 0 {
			out.WriteString(" ^")
			children = nil
		}
		opened[l.node] = true
		out.WriteByte('\n')
		for i := len(children) - 1; i >= 0; i-- {
			e := children[i]
			c := line{node: e.To, depth: l.depth + 1, need: e.Need, last: l.last}
			if s.Reverse {
				c.node = e.From
			}
			if c.depth <= maxIndent {
				c.last = append(l.last[:len(l.last):len(l.last)], i == len(children)-1)
			}
			if !strings.Contains(e.Kind, "needed") {
				c.need += ", " + e.Kind
			}
			stack = append(stack, c)
		}
	}
	return out.Flush()
}

// describe is one line of the tree, without what leads to it.
func (s *Sub) describe(i int, need string) string {
	n := s.Nodes[i]
	var b strings.Builder
	b.WriteString(printable(n.Name()))
	if need != "" && need != n.Package && n.Missing == "" {
		fmt.Fprintf(&b, " (%s)", printable(need))
	}
	for _, note := range []string{n.Missing, n.Declined} {
		if note != "" {
			b.WriteString(" [" + printable(note) + "]")
		}
	}
	if n.Standing != "" {
		text := "[" + printable(n.Standing) + "]"
		if s.Paint != nil {
			text = s.Paint(n.Standing, text)
		}
		b.WriteString(" " + text)
	}
	if n.Bootstrap {
		b.WriteString(" [bootstrap]")
	}
	return b.String()
}

// printable keeps what could move a terminal's cursor, or is no UTF-8, out of
// text: names come from others.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// DOT writes the part of the graph in Graphviz's language.
func (s *Sub) DOT(w io.Writer) error {
	out := bufio.NewWriter(w)
	out.WriteString("digraph quarry {\n\trankdir=LR;\n\tnode [shape=box, fontname=\"sans-serif\"];\n")
	colors := map[string]string{"done": "palegreen", "ready": "lightskyblue", "waiting": "lightyellow", "blocked": "lightcoral",
		"failed": "tomato", "building": "deepskyblue"}
	for i, n := range s.Nodes {
		label := n.Name()
		if len(n.Archs) > 0 && len(n.Archs) <= 4 {
			label += "\n" + strings.Join(n.Archs, " ")
		} else if len(n.Archs) > 4 {
			label += fmt.Sprintf("\n%d archs", len(n.Archs))
		}
		fmt.Fprintf(out, "\tn%d [label=%s", i, quoteDOT(label))
		switch {
		case n.Missing != "":
			fmt.Fprintf(out, ", style=dashed, color=red, tooltip=%s", quoteDOT(n.Missing))
		case n.Declined != "":
			fmt.Fprintf(out, ", style=dashed, tooltip=%s", quoteDOT(n.Declined))
		case n.Standing != "":
			fmt.Fprintf(out, ", style=filled, fillcolor=%s, tooltip=%s", cmp.Or(colors[n.Standing], "white"), quoteDOT(n.Standing))
		}
		if n.Bootstrap {
			out.WriteString(", peripheries=2")
		}
		out.WriteString("];\n")
	}
	for _, e := range s.Edges {
		fmt.Fprintf(out, "\tn%d -> n%d", e.From, e.To)
		var attrs []string
		if e.Need != s.Nodes[e.To].Package {
			attrs = append(attrs, "label="+quoteDOT(e.Need))
		}
		if !strings.Contains(e.Kind, "needed") {
			attrs = append(attrs, "style=dotted", "tooltip="+quoteDOT(e.Kind))
		}
		if len(attrs) > 0 {
			fmt.Fprintf(out, " [%s]", strings.Join(attrs, ", "))
		}
		out.WriteString(";\n")
	}
	out.WriteString("}\n")
	return out.Flush()
}

// quoteDOT writes a string as Graphviz reads it: inside of quotes a backslash
// begins an escape and an ampersand an entity.
func quoteDOT(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i, line := range strings.Split(s, "\n") {
		if i > 0 {
			b.WriteString(`\n`)
		}
		for _, r := range printable(line) {
			switch r {
			case '"', '\\':
				b.WriteByte('\\')
				b.WriteRune(r)
			case '&':
				b.WriteString("&amp;")
			default:
				b.WriteRune(r)
			}
		}
	}
	b.WriteByte('"')
	return b.String()
}
