package explain

// literals finds which rules a line may be about, in one pass over its bytes
// whatever the number of rules: the automaton of Aho and Corasick, made into a
// table. A regular expression only sees a line that has one of its words.
type literals struct {
	class [256]byte // letters that no word has are all the same one
	next  []uint16  // by state, then by class
	found []ruleSet // by state, counted from first
	first uint16    // states from here on have found something
}

// ruleSet is a set of places in the table of rules.
type ruleSet [2]uint64

const (
	maxRules = 128
	classes  = 64 // letters, digits and signs, without case
)

func (s *ruleSet) add(i int)                { s[i/64] |= 1 << (i % 64) }
func (s *ruleSet) merge(o ruleSet)          { s[0] |= o[0]; s[1] |= o[1] }
func (s ruleSet) has(i int) bool            { return s[i/64]&(1<<(i%64)) != 0 }
func (s ruleSet) empty() bool               { return s[0]|s[1] == 0 }
func (s ruleSet) without(o ruleSet) ruleSet { return ruleSet{s[0] &^ o[0], s[1] &^ o[1]} }

func lower(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// newLiterals makes the table out of each rule's words, which are in lower case.
func newLiterals(words [][]string) *literals {
	l := new(literals)
	known := byte(0)
	for _, list := range words {
		for _, w := range list {
			for i := range len(w) {
				if c := w[i]; l.class[c] == 0 {
					known++
					l.class[c] = known
				}
			}
		}
	}
	if known >= classes {
		panic("explain: the words of the rules have too many letters")
	}
	for c := 'A'; c <= 'Z'; c++ {
		l.class[c] = l.class[lower(byte(c))]
	}

	// The tree of all words. 0 stands for "no child yet" as well as for the root.
	type node struct {
		child [classes]uint16
		found ruleSet
		fail  uint16
	}
	tree := make([]node, 1)
	for rule, list := range words {
		for _, w := range list {
			at := uint16(0)
			for i := range len(w) {
				c := l.class[w[i]]
				if tree[at].child[c] == 0 {
					tree = append(tree, node{})
					tree[at].child[c] = uint16(len(tree) - 1)
				}
				at = tree[at].child[c]
			}
			tree[at].found.add(rule)
		}
	}
	// Breadth first: where no child is, one goes on at the longest suffix that is
	// the beginning of a word; what that has found is found here, too.
	queue := []uint16{0}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		for c := range classes {
			child := tree[at].child[c]
			on := uint16(0)
			if at != 0 {
				on = tree[tree[at].fail].child[c]
			}
			if child == 0 {
				tree[at].child[c] = on
				continue
			}
			tree[child].fail = on
			tree[child].found.merge(tree[on].found)
			queue = append(queue, child)
		}
	}
	// States that have found something come last: one comparison tells them.
	place := make([]uint16, len(tree))
	n := uint16(0)
	for _, finds := range []bool{false, true} {
		if finds {
			l.first = n
		}
		for i := range tree {
			if !tree[i].found.empty() == finds {
				place[i] = n
				n++
			}
		}
	}
	l.next = make([]uint16, len(tree)*classes)
	l.found = make([]ruleSet, len(tree)-int(l.first))
	for i := range tree {
		for c := range classes {
			l.next[int(place[i])*classes+c] = place[tree[i].child[c]]
		}
		if place[i] >= l.first {
			l.found[place[i]-l.first] = tree[i].found
		}
	}
	return l
}

// find gives the rules of which a word is in the text, whatever its case.
func (l *literals) find(text []byte) (set ruleSet) {
	state := uint16(0)
	next := l.next
	for _, c := range text {
		state = next[int(state)*classes+int(l.class[c]&(classes-1))]
		if state >= l.first {
			set.merge(l.found[state-l.first])
		}
	}
	return set
}
