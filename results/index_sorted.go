package results

import (
	"iter"
	"slices"
	"sort"
)

// sorted is a sorted list that is never changed: what is put in or taken out
// makes another one, which shares all but the touched pieces with the first.
// No two of its elements compare equal.
type sorted[T any] struct {
	cmp    func(a, b T) int
	pieces [][]T // none is empty
	n      int
}

// maxPiece is how many elements a piece has at most. The list of pieces is
// copied at every change, and every touched piece: the first grows with the
// whole, the second does not.
const maxPiece = 512

// with makes the list without the elements that compare equal to those of del,
// and with those of add. An element of add goes before an equal one that is
// there.
func (s sorted[T]) with(del, add []T) sorted[T] {
	if len(del)+len(add) == 0 {
		return s
	}
	del, add = slices.Clone(del), slices.Clone(add)
	slices.SortFunc(del, s.cmp)
	slices.SortFunc(add, s.cmp)
	add = slices.CompactFunc(add, func(a, b T) bool { return s.cmp(a, b) == 0 })
	out := sorted[T]{cmp: s.cmp, pieces: make([][]T, 0, len(s.pieces)+len(add)/(maxPiece/2)+1)}
	i := 0
	for len(del)+len(add) > 0 && i < len(s.pieces) {
		// The piece that the next change falls into: the last one that begins
		// not after it. All before that stay as they are.
		next := s.earliest(del, add)
		j := i + sort.Search(len(s.pieces)-i, func(k int) bool { return s.cmp(s.pieces[i+k][0], next) > 0 })
		j = max(i, j-1)
		out.pieces = append(out.pieces, s.pieces[i:j]...)
		d, a := len(del), len(add)
		if j+1 < len(s.pieces) {
			end := s.pieces[j+1][0]
			before := func(list []T) int {
				return sort.Search(len(list), func(k int) bool { return s.cmp(list[k], end) >= 0 })
			}
			d, a = before(del), before(add)
		}
		out.append(s.merge(s.pieces[j], del[:d], add[:a]))
		del, add, i = del[d:], add[a:], j+1
	}
	out.pieces = append(out.pieces, s.pieces[min(i, len(s.pieces)):]...)
	if len(s.pieces) == 0 {
		out.append(add)
	}
	for _, p := range out.pieces {
		out.n += len(p)
	}
	return out
}

func (s sorted[T]) earliest(del, add []T) T {
	if len(del) == 0 || len(add) > 0 && s.cmp(add[0], del[0]) < 0 {
		return add[0]
	}
	return del[0]
}

func (s sorted[T]) merge(old, del, add []T) []T {
	list := make([]T, 0, len(old)+len(add))
	for _, v := range old {
		for len(add) > 0 && s.cmp(add[0], v) < 0 {
			list, add = append(list, add[0]), add[1:]
		}
		for len(del) > 0 && s.cmp(del[0], v) < 0 {
			del = del[1:]
		}
		if len(add) > 0 && s.cmp(add[0], v) == 0 {
			list, add = append(list, add[0]), add[1:]
			continue
		}
		if len(del) > 0 && s.cmp(del[0], v) == 0 {
			continue
		}
		list = append(list, v)
	}
	return append(list, add...)
}

// append adds a merged piece, cut up if it is too long, or joined to the one
// before when both are short.
func (s *sorted[T]) append(list []T) {
	if n := len(s.pieces); n > 0 && len(list) < maxPiece/8 && len(s.pieces[n-1])+len(list) <= maxPiece {
		s.pieces[n-1] = slices.Concat(s.pieces[n-1], list)
		return
	}
	if len(list) <= maxPiece {
		if len(list) > 0 {
			s.pieces = append(s.pieces, list)
		}
		return
	}
	for p := range slices.Chunk(list, maxPiece*3/4) {
		s.pieces = append(s.pieces, p)
	}
}

// from goes over the elements, beginning with the first that is not before a
// place: before says so of an element, and is true for a first part of the list
// only.
func (s sorted[T]) from(before func(T) bool) iter.Seq[T] {
	return func(yield func(T) bool) {
		i := sort.Search(len(s.pieces), func(k int) bool { return !before(s.pieces[k][0]) })
		i = max(0, i-1)
		for first := true; i < len(s.pieces); i++ {
			p := s.pieces[i]
			if first {
				p = p[sort.Search(len(p), func(k int) bool { return !before(p[k]) }):]
				first = false
			}
			for _, v := range p {
				if !yield(v) {
					return
				}
			}
		}
	}
}

// all goes over all elements.
func (s sorted[T]) all() iter.Seq[T] { return s.from(func(T) bool { return false }) }
