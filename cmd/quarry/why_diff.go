package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/internal/gitfs"
	"github.com/Morphux/quarry/internal/human"
	"github.com/go-git/go-git/v5/utils/diff"
)

// Limits on what is shown of the differences between two recipes.
const (
	maxDiffFiles = 100
	maxDiffLines = 300      // of all files
	maxDiffLine  = 500      // bytes
	maxDiffSize  = 64 << 10 // bytes of a file that is compared by line
	maxDiffNames = 200_000  // files of a commit
	diffContext  = 3        // lines around a change
)

// recipeChanged compares two commits of a package: what people write line by
// line, the sources by name, size and git's hash.
func (w why) recipeChanged(ctx context.Context, b quarry.Build, was, is string) ([]control.FileDiff, error) {
	repo := b.Repo
	if repo == "" {
		var err error
		if repo, err = w.repos.Path(b.Package); err != nil {
			return nil, err
		}
	}
	old, err := gitfs.Open(repo, was)
	if err != nil {
		return nil, err
	}
	defer old.Close()
	now, err := gitfs.Open(repo, is)
	if err != nil {
		return nil, err
	}
	defer now.Close()
	return compareTrees(ctx, old, now)
}

// blob is a file as a tree lists it.
type blob struct {
	hash string
	mode fs.FileMode
	size int64
}

func (b blob) String() string { return fmt.Sprintf("%s, git's hash %.12s", human.Size(b.size), b.hash) }

func compareTrees(ctx context.Context, was, is fs.FS) ([]control.FileDiff, error) {
	old, err := blobs(ctx, was)
	if err != nil {
		return nil, err
	}
	now, err := blobs(ctx, is)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, m := range []map[string]blob{old, now} {
		for name := range m {
			if old[name] != now[name] {
				names[name] = true
			}
		}
	}
	out := []control.FileDiff{}
	room := maxDiffLines
	for _, name := range byWeight(names) {
		if len(out) == maxDiffFiles {
			out = append(out, control.FileDiff{Path: "and " + human.Count(len(names)-maxDiffFiles, "more file"), What: "changed"})
			break
		}
		o, before := old[name]
		n, after := now[name]
		d := control.FileDiff{Path: human.Safe(name, false), What: "changed"}
		switch {
		case !before:
			d.What = "added"
		case !after:
			d.What = "removed"
		case o.hash == n.hash:
			d.What = fmt.Sprintf("mode %v is now %v", o.mode, n.mode)
		}
		if o.hash != n.hash && room > 0 && writtenByHand(name) && o.size <= maxDiffSize && n.size <= maxDiffSize && o.mode.Type()|n.mode.Type() == 0 {
			a, b := read(was, name, before), read(is, name, after)
			if isText(a) && isText(b) {
				d.Diff = unified(a, b, room)
				room -= len(d.Diff)
			}
		}
		if len(d.Diff) == 0 {
			switch {
			case !before:
				d.What += fmt.Sprintf(" (%v)", n)
			case !after:
				d.What += fmt.Sprintf(" (%v)", o)
			case o.hash != n.hash:
				d.What += fmt.Sprintf(" (%v; was %v)", n, o)
			}
		}
		out = append(out, d)
	}
	return out, nil
}

// byWeight sorts the names that changed: what is written by hand tells most.
func byWeight(names map[string]bool) []string {
	weight := func(name string) int {
		for i, top := range []string{"package.json", "scripts/", "patches/"} {
			if strings.HasPrefix(name, top) {
				return i
			}
		}
		return 9
	}
	list := slices.Sorted(maps.Keys(names))
	slices.SortStableFunc(list, func(a, b string) int { return weight(a) - weight(b) })
	return list
}

func writtenByHand(name string) bool {
	return name == "package.json" || strings.HasPrefix(name, "scripts/") || strings.HasPrefix(name, "patches/")
}

// blobs lists the files and links of a commit.
func blobs(ctx context.Context, tree fs.FS) (map[string]blob, error) {
	out := map[string]blob{}
	err := fs.WalkDir(tree, ".", func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return ctx.Err()
		case e.IsDir():
			return nil
		case len(out) == maxDiffNames:
			return fmt.Errorf("the commit has more than %d files", maxDiffNames)
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		out[name] = blob{fmt.Sprint(info.Sys()), info.Mode(), info.Size()}
		return nil
	})
	return out, err
}

func read(tree fs.FS, name string, there bool) []byte {
	if !there {
		return nil
	}
	data, err := fs.ReadFile(tree, name)
	if err != nil {
		return []byte{0} // which is no text
	}
	return data
}

func isText(data []byte) bool { return utf8.Valid(data) && bytes.IndexByte(data, 0) < 0 }

// unified gives the differences between two texts as diff -u has them, without
// the names, at most so many lines.
func unified(was, is []byte, most int) []string {
	type line struct {
		sign byte
		text string
	}
	var all []line
	for _, d := range diff.DoWithTimeout(string(was), string(is), 2*time.Second) {
		sign := byte(' ')
		switch d.Type {
		case -1:
			sign = '-'
		case 1:
			sign = '+'
		}
		for l := range strings.Lines(d.Text) {
			all = append(all, line{sign, strings.TrimRight(l, "\r\n")})
		}
	}
	var out []string
	a, b := 1, 1 // the next line's number in each
	for i := 0; i < len(all); {
		if all[i].sign == ' ' {
			i, a, b = i+1, a+1, b+1
			continue
		}
		begin := max(0, i-diffContext)
		end, same := i, 0 // a hunk ends where more than twice the context is the same
		for end < len(all) && same <= 2*diffContext {
			if all[end].sign == ' ' {
				same++
			} else {
				same = 0
			}
			end++
		}
		end -= max(0, same-diffContext)
		fromA, fromB, lenA, lenB := a-(i-begin), b-(i-begin), 0, 0
		var hunk []string
		for _, l := range all[begin:end] {
			if l.sign != '+' {
				lenA++
			}
			if l.sign != '-' {
				lenB++
			}
			hunk = append(hunk, human.Safe(string(l.sign)+cutLine(l.text), false))
		}
		a, b, i = fromA+lenA, fromB+lenB, end
		if lenA == 0 {
			fromA--
		}
		if lenB == 0 {
			fromB--
		}
		out = append(append(out, fmt.Sprintf("@@ -%d,%d +%d,%d @@", fromA, lenA, fromB, lenB)), hunk...)
		if len(out) >= most {
			return append(out[:max(1, most-1)], "(cut here)")
		}
	}
	return out
}

func cutLine(s string) string {
	if len(s) > maxDiffLine {
		return strings.ToValidUTF8(s[:maxDiffLine], "") + "…"
	}
	return s
}
