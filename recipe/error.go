package recipe

import (
	"errors"
	"fmt"
	"strings"
)

// FileName is the file of a package repository that holds its recipe.
const FileName = "package.json"

// Error is one thing that is wrong with a recipe: the maintainer's to mend,
// never the farm's. It reads as one line:
//
//	package.json:12:14: compilation.patches[0] names "../x.patch": name a file in patches/, without a slash
type Error struct {
	File    string // e.g. package.json or patches/fix.patch
	Line    int    // from 1; 0 when the error is about the whole file
	Column  int    // from 1, in characters
	Field   string // e.g. compilation.configure[2].prefix; "" for the whole document
	Problem string // what is wrong and what to do, e.g. "is a number: give a string"
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	b.WriteString(": ")
	if e.Field != "" {
		b.WriteString(e.Field)
		b.WriteByte(' ')
	}
	b.WriteString(e.Problem)
	return b.String()
}

// Errors is everything that is wrong with one recipe, in the order of the file.
// Its Error is the first, on one line, with a count of the others; [Problems]
// gives all.
type Errors []*Error

func (e Errors) Error() string {
	switch len(e) {
	case 0:
		return "no error"
	case 1:
		return e[0].Error()
	case 2:
		return e[0].Error() + " (and 1 more problem)"
	}
	return fmt.Sprintf("%s (and %d more problems)", e[0], len(e)-1)
}

// Unwrap gives the single errors to [errors.As] and [errors.Is].
func (e Errors) Unwrap() []error {
	list := make([]error, len(e))
	for i, one := range e {
		list[i] = one
	}
	return list
}

// Problems gives all that is wrong with a recipe, one line each to show its
// maintainer. It is empty when err is nil or is no fault of the recipe (the
// disk, say): such an error says nothing about the package.
func Problems(err error) []*Error {
	var all Errors
	if errors.As(err, &all) {
		return all
	}
	var one *Error
	if errors.As(err, &one) {
		return []*Error{one}
	}
	return nil
}
