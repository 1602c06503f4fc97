package repos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/Morphux/quarry/internal/gitfs"
)

// NotesRef is where the farm keeps notes of git for those who made the commits:
// git log --notes=quarry shows them. It is nobody else's, and cannot be pushed to.
const NotesRef = "refs/notes/quarry"

const maxNote = 64 << 10 // bytes of one note that is read

var (
	// ErrNoCommit is the error for a note on a commit that is not there (any more).
	ErrNoCommit = errors.New("the commit is not in the repository any more")
	// ErrNotOurs is the error for a repository of another owner: what we wrote
	// there, that owner could not clean up.
	ErrNotOurs = errors.New("the repository belongs to another user: let the farm run as that user to have notes there")
)

// Note replaces the farm's note on a commit in a package's repository with what
// edit makes of it ("" for none); where that is the same, nothing is written. All
// is done with plumbing, and the ref moved only from where it was read: when others
// move it meanwhile, edit is called again.
func (r *Repos) Note(ctx context.Context, pkg, commit string, edit func(old string) string) error {
	repo, err := r.Path(pkg)
	if err != nil {
		return err
	}
	fi, err := os.Stat(repo)
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s: %w", repo, ErrNotOurs)
	}
	const tries = 5
	for range tries {
		if err = putNote(ctx, repo, commit, edit); !errors.Is(err, errMoved) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("note on %.12s cannot be written in %s: %w", commit, repo, err)
	}
	return nil
}

var errMoved = errors.New("others moved " + NotesRef + " meanwhile")

func putNote(ctx context.Context, repo, commit string, edit func(old string) string) error {
	in := durably(repo)
	run := func(input string, args ...string) (string, error) {
		return git(ctx, "", []byte(input), append(slices.Clone(in), args...)...)
	}
	if out, err := run(commit+"\n", "cat-file", "--batch-check"); err != nil {
		return err
	} else if !strings.HasPrefix(out, commit+" commit ") {
		return ErrNoCommit
	}
	refs, err := gitfs.Refs(ctx, repo, "refs/notes")
	if err != nil {
		return err
	}
	tip := refs[strings.TrimPrefix(NotesRef, "refs/notes/")]
	// Git may have spread the notes over folders by the beginnings of their
	// names. They go back flat: a package has few releases.
	var tree []string
	var old string
	if tip != "" {
		list, err := run("", "ls-tree", "-r", tip)
		if err != nil {
			return err
		}
		for line := range strings.Lines(list) {
			head, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
			name = strings.ReplaceAll(name, "/", "")
			f := strings.Fields(head)
			if !ok || len(f) != 3 || f[1] != "blob" || !isHash(name) || !isHash(f[2]) {
				continue
			}
			if name != commit {
				tree = append(tree, head+"\t"+name+"\n")
				continue
			}
			g, err := gitfs.OpenRepo(repo)
			if err != nil {
				return err
			}
			data, err := g.Blob(f[2], maxNote)
			g.Close()
			if err != nil {
				return err
			}
			old = string(data)
		}
	}
	text := edit(old)
	if text == old {
		return nil
	}
	blob, err := run(text, "hash-object", "-w", "--stdin")
	if err != nil {
		return err
	}
	tree = append(tree, "100644 blob "+blob+"\t"+commit+"\n")
	hash, err := run(strings.Join(tree, ""), "mktree")
	if err != nil {
		return err
	}
	words := []string{"-c", "user.name=Quarry", "-c", "user.email=quarry@localhost", "commit-tree", hash, "-m", "Tell of builds"}
	from := strings.Repeat("0", 40)
	if tip != "" {
		words, from = append(words, "-p", tip), tip
	}
	made, err := run("", words...)
	if err != nil {
		return err
	}
	_, err = run("", "update-ref", NotesRef, made, from)
	if now, rerr := gitfs.Refs(ctx, repo, "refs/notes"); err != nil && rerr == nil && now["quarry"] != tip {
		return errMoved
	}
	return err
}

func isHash(s string) bool { return len(s) == 40 && strings.Trim(s, "0123456789abcdef") == "" }
