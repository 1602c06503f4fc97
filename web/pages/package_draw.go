package pages

import (
	"fmt"
	"strconv"
)

// picture is a package with what it needs at its left and what needs it at its
// right, laid out for SVG. It takes no program beside this one.
type picture struct {
	Width, Height int
	Nodes         []drawn
	Edges         []string // paths
	Left, Right   int      // how many there are on each side
}

// drawn is a package in a picture.
type drawn struct {
	X, Y, W, H   int
	TextX, TextY int
	Name, Text   string
	URL          string // "" for what is no package
	Class        string // its part: self, need, user, missing, more
}

const (
	drawnW     = 220 // pixels of a box
	drawnH     = 28
	drawnGap   = 8
	drawnAside = 90 // between columns
	drawnMost  = 16 // in a column
	drawnText  = 26 // characters that have room in a box
)

// drawNeighbours lays a package out; nil when it stands alone.
func drawNeighbours(d *packageData) *picture {
	left, right := drawnNeeds(d.Needs), drawnUsers(d.Users)
	if len(left)+len(right) == 0 {
		return nil
	}
	p := &picture{Left: len(left), Right: len(right)}
	left, right = shortened(left), shortened(right)
	rows := max(len(left), len(right), 1)
	p.Height = rows*(drawnH+drawnGap) + drawnGap
	x := drawnGap
	self := drawn{Name: d.Name, Text: clip(d.Name), Class: "self"}
	if len(left) > 0 {
		p.column(left, x)
		x += drawnW + drawnAside
	}
	self.X, self.Y = x, (p.Height-drawnH)/2
	if len(right) > 0 {
		p.column(right, x+drawnW+drawnAside)
		p.Width = x + 2*drawnW + drawnAside + drawnGap
	} else {
		p.Width = x + drawnW + drawnGap
	}
	self.place()
	for _, n := range p.Nodes { // the needs come first, and then the users
		if n.X < self.X {
			p.Edges = append(p.Edges, bend(self.X, self.Y, n.X+drawnW, n.Y))
		} else {
			p.Edges = append(p.Edges, bend(n.X, n.Y, self.X+drawnW, self.Y))
		}
	}
	p.Nodes = append(p.Nodes, self)
	return p
}

func (p *picture) column(list []drawn, x int) {
	all := len(list)*(drawnH+drawnGap) - drawnGap
	y := (p.Height - all) / 2
	for _, n := range list {
		n.X, n.Y = x, y
		n.place()
		p.Nodes = append(p.Nodes, n)
		y += drawnH + drawnGap
	}
}

func (n *drawn) place() { n.W, n.H, n.TextX, n.TextY = drawnW, drawnH, n.X+10, n.Y+19 }

// bend leads from the left side of the box at x1 to the right side of the box
// that ends at x2.
func bend(x1, y1, x2, y2 int) string {
	y1, y2 = y1+drawnH/2, y2+drawnH/2
	mid := (x1 + x2) / 2
	return fmt.Sprintf("M%d %dC%d %d %d %d %d %d", x1, y1, mid, y1, mid, y2, x2+6, y2)
}

func drawnNeeds(list []neighbour) (out []drawn) {
	seen := map[string]bool{}
	for _, n := range list {
		name := n.Name
		if name == "" {
			name = n.Need
		}
		if seen[name] {
			continue
		}
		seen[name] = true
		b := drawn{Name: name, Text: clip(name), Class: "need"}
		switch {
		case n.Name != "":
			b.URL = packageURL(n.Name)
		case n.Why != "":
			b.Class = "missing"
		}
		out = append(out, b)
	}
	return out
}

func drawnUsers(list []neighbour) (out []drawn) {
	for _, n := range list {
		if !n.Old {
			out = append(out, drawn{Name: n.Name, Text: clip(n.Name), URL: packageURL(n.Name), Class: "user"})
		}
	}
	return out
}

func shortened(list []drawn) []drawn {
	if len(list) <= drawnMost {
		return list
	}
	more := "and " + strconv.Itoa(len(list)-drawnMost+1) + " more"
	return append(list[:drawnMost-1:drawnMost-1], drawn{Name: more, Text: more, Class: "more"})
}

func clip(s string) string {
	if r := []rune(s); len(r) > drawnText {
		return string(r[:drawnText-1]) + "…"
	}
	return s
}
