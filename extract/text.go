package extract

import (
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// fitText reports whether s can be shown and kept anywhere: valid UTF-8 (TOML
// holds nothing else) without control characters, of 1 to max bytes.
func fitText(s string, max int) bool {
	return s != "" && len(s) <= max && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// quotePath shows a path as it is where that is safe on a terminal and
// unmistakable, else as a quoted Go string.
func quotePath(s string) string {
	odd := func(r rune) bool { return !unicode.IsPrint(r) || r == '"' || r == '\\' || r == ',' }
	if s == "" || !utf8.ValidString(s) || strings.ContainsFunc(s, odd) || strings.TrimSpace(s) != s {
		return strconv.Quote(s)
	}
	return s
}

// RefusedError says that what a build installed cannot be accepted. It is the
// recipe's fault; all other errors of this package are the farm's.
type RefusedError struct {
	Paths  []string // as installed, sorted, quoted when odd; the first 100
	Reason string   // half a sentence, e.g. "1 device node: a package cannot ship device nodes, create them at run time"
}

func (e *RefusedError) Error() string {
	const show = 5
	paths := strings.Join(e.Paths[:min(len(e.Paths), show)], ", ")
	if n := len(e.Paths) - show; n > 0 {
		paths += fmt.Sprintf(" and %d more", n)
	}
	return fmt.Sprintf("what it installed cannot be accepted: %s (%s)", e.Reason, paths)
}

// Why a file is refused: what it is, how many it are, and the cure.
type refusal struct{ one, many, cure string }

var (
	refuseDevice = refusal{"device node", "device nodes", "a package cannot ship these, let the system make them at run time"}
	refuseSocket = refusal{"socket", "sockets", "remove what the install step left running or behind"}
	refuseKind   = refusal{"file of an unknown kind", "files of unknown kinds", "install regular files, folders and links only"}
	refuseName   = refusal{"name that is not UTF-8 or holds control characters", "names that are not UTF-8 or hold control characters", "rename them, the record cannot hold them"}
	refuseTarget = refusal{"link whose target is not UTF-8 or holds control characters", "links whose targets are not UTF-8 or hold control characters", "mend them, the record cannot hold them"}
	refuseOwner  = refusal{"file whose owner is not one of the workspace's", "files whose owners are not the workspace's", "install with owners from 0 to 65535"}
	refuseCaps   = refusal{"file with capabilities of an unknown form", "files with capabilities of an unknown form", "set them with setcap, in the workspace"}
	refuseDepth  = refusal{"folder that is too deep", "folders that are too deep", "install in fewer levels"}
	refuseBuild  = refusal{"path inside the folders of the build itself", "paths inside the folders of the build itself", "DESTDIR was applied twice, or a path of the build was taken for one of the system"}
	refuseLong   = refusal{"path that is too long", "paths that are too long", "install under shorter names"}
)

// maxListed is how many paths an error or a list of users names.
const maxListed = 100

// refusals collects what is wrong with a tree, so that its maintainer hears of
// all of it at once.
type refusals struct {
	count map[refusal]int
	paths []string
}

func (r *refusals) add(why refusal, path string) {
	if r.count == nil {
		r.count = map[refusal]int{}
	}
	r.count[why]++
	if len(r.paths) < maxListed {
		r.paths = append(r.paths, quotePath(path))
	}
}

// err is nil while nothing was refused.
func (r *refusals) err() error {
	if len(r.count) == 0 {
		return nil
	}
	var reasons []string
	for why, n := range r.count {
		what := why.many
		if n == 1 {
			what = why.one
		}
		reasons = append(reasons, fmt.Sprintf("%d %s: %s", n, what, why.cure))
	}
	sort.Strings(reasons)
	sort.Strings(r.paths)
	return &RefusedError{Paths: r.paths, Reason: strings.Join(reasons, "; ")}
}

// refuse is the error for one path alone.
func refuse(path, format string, a ...any) error {
	return &RefusedError{Paths: []string{quotePath(path)}, Reason: fmt.Sprintf(format, a...)}
}

// IsRefused reports whether an error is the recipe's fault.
func IsRefused(err error) bool {
	_, ok := errors.AsType[*RefusedError](err)
	return ok
}

// plural writes 1 file, 2 files.
func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
