package results

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"

	"github.com/Morphux/quarry"
)

// The trailers of a commit. They stand in the message's last paragraph, where
// git log --format='%(trailers)' and git interpret-trailers find them.
const (
	TrailerPackage  = "Package"
	TrailerVersion  = "Version"
	TrailerArch     = "Arch"
	TrailerChannel  = "Channel"
	TrailerStatus   = "Status"
	TrailerClass    = "Class" // of a failure: what kind of trouble it is
	TrailerSource   = "Source-Commit"
	TrailerBuild    = "Build"
	TrailerBuildKey = "Build-Key"
	TrailerLog      = "Log"
	TrailerPushedBy = "Pushed-By"
)

// subject is what a reviewer reads in git log --oneline.
func subject(r *Record) string {
	where := r.Package + " " + r.Version + " " + r.Arch
	if r.Status == quarry.Succeeded {
		return fmt.Sprintf("%s: succeeded in %s", where, humanSeconds(r.Time.Total))
	}
	f := r.Failure
	if f == nil {
		return where + ": failed"
	}
	return fmt.Sprintf("%s: failed in %s (%s)", where, oneLine(f.Step, 40), causeText(f))
}

func causeText(f *Failure) string {
	switch f.Cause {
	case quarry.CauseExit:
		return fmt.Sprintf("exit status %d", f.Status)
	case quarry.CauseTime:
		return "took too long"
	case quarry.CauseSilence:
		return "printed nothing for too long"
	case quarry.CauseMemory:
		return "out of memory"
	case quarry.CauseProcs:
		return "too many processes"
	case quarry.CauseDisk:
		return "used too much disk"
	case quarry.CauseLog:
		return "printed too much"
	case quarry.CauseEscape:
		return "wrote outside the staging directory"
	case quarry.CauseOutput:
		return "installed what cannot be accepted"
	case quarry.CauseRecipe:
		return "broken recipe"
	}
	return oneLine(string(f.Cause), 40)
}

// humanSeconds writes a duration for people: 0.4 s, 41 s, 3 min 20 s, 2 h 5 min.
func humanSeconds(s float64) string {
	switch n := int64(s + 0.5); {
	case s < 9.95:
		return strconv.FormatFloat(s, 'f', 1, 64) + " s"
	case n < 60:
		return fmt.Sprintf("%d s", n)
	case n < 3600:
		return fmt.Sprintf("%d min %d s", n/60, n%60)
	default:
		return fmt.Sprintf("%d h %d min", n/3600, n%3600/60)
	}
}

// message is the whole text of a commit. Words that came through a grammar
// stand as they are; whatever else came from outside is one line, and outside
// the trailers it is indented, so that no text can pass for a trailer.
func (r *Repo) message(rec *Record, b quarry.Build) string {
	var m strings.Builder
	m.WriteString(subject(rec) + "\n\n")
	if d := oneLine(rec.Description, 200); d != "" && rec.Status == quarry.Succeeded {
		m.WriteString("    " + d + "\n\n")
	}
	if rec.Why != "" {
		m.WriteString("    " + oneLine(rec.Why, 500) + "\n\n")
	}
	if f := rec.Failure; f != nil {
		m.WriteString("    " + oneLine(f.Message, 500) + "\n")
		if f.Error != "" && f.Error != f.Message {
			m.WriteString("    " + where(f) + oneLine(f.Error, 500) + "\n")
		}
		if f.Hint != "" {
			m.WriteString("    " + oneLine(f.Hint, 500) + "\n")
		}
		if f.Reproduce != "" {
			m.WriteString("    To see it again: " + oneLine(f.Reproduce, 500) + "\n")
		}
		m.WriteString("\n")
	}
	trailer := func(key, value string) {
		if value = oneLine(value, 300); value != "" {
			m.WriteString(key + ": " + value + "\n")
		}
	}
	trailer(TrailerPackage, rec.Package)
	trailer(TrailerVersion, rec.Version)
	trailer(TrailerArch, rec.Arch)
	trailer(TrailerChannel, rec.Channel)
	trailer(TrailerStatus, string(rec.Status))
	if f := rec.Failure; f != nil && word(f.Class) {
		trailer(TrailerClass, f.Class)
	}
	trailer(TrailerSource, rec.Source)
	trailer(TrailerBuild, strconv.FormatInt(rec.Build, 10))
	trailer(TrailerBuildKey, rec.Key)
	trailer(TrailerLog, r.opts.Log(b))
	pushed := rec.Packager.User
	if rec.Packager.Key != "" {
		pushed += " (" + rec.Packager.Key + ")"
	}
	trailer(TrailerPushedBy, strings.TrimSpace(pushed))
	return m.String()
}

// word reports whether a class is one word, as all are that Quarry gives.
func word(s string) bool {
	return s != "" && len(s) <= 40 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz-") == ""
}

// where says which line of the log an error is.
func where(f *Failure) string {
	if f.Line <= 0 {
		return ""
	}
	return fmt.Sprintf("Log, line %d: ", f.Line)
}

// trailers reads the last paragraph of a commit's message. A key given twice
// has its last value.
func trailers(message string) map[string]string {
	message = strings.TrimRight(message, "\n")
	if i := strings.LastIndex(message, "\n\n"); i >= 0 {
		message = message[i+2:]
	} else {
		return nil
	}
	out := make(map[string]string)
	for line := range strings.SplitSeq(message, "\n") {
		if key, value, ok := strings.Cut(line, ": "); ok && !strings.ContainsAny(key, " \t") {
			out[key] = strings.TrimSpace(value)
		}
	}
	return out
}

// signature makes an identity that git accepts out of what a key file says.
func signature(name, email, or string, t time.Time) object.Signature {
	clean := func(s string) string {
		return strings.Trim(strings.Map(func(r rune) rune {
			if r == '<' || r == '>' {
				return -1
			}
			return r
		}, oneLine(s, 200)), " .,:;\"'\\")
	}
	name, email = clean(name), clean(email)
	if name == "" {
		name = clean(or)
	}
	if name == "" {
		name = "unknown"
	}
	// Git keeps seconds since 1970 and calls what lies before damaged.
	if t.Unix() < 0 || t.Year() > 9999 {
		t = time.Unix(0, 0)
	}
	return object.Signature{Name: name, Email: strings.ReplaceAll(email, " ", ""), When: t.UTC()}
}

// commitObject encodes a commit of the farm's, made now, and signs it if it can.
func (r *Repo) commitObject(tree, parent plumbing.Hash, author object.Signature, message string) ([]byte, error) {
	committer := signature(r.opts.Name, r.opts.Email, "Quarry", r.opts.Now())
	head, body := commitText(tree, parent, author, committer, message)
	if r.opts.Sign == nil {
		return append(head, body...), nil
	}
	sig, err := r.opts.Sign(slices.Concat(head, body))
	if err != nil {
		return nil, fmt.Errorf("the commit cannot be signed: %w", err)
	}
	// As gitformat-signature(5) has it: lines but the first begin with a blank.
	lines := strings.ReplaceAll(strings.TrimRight(string(sig), "\n"), "\n", "\n ")
	return slices.Concat(head, []byte("gpgsig "+lines+"\n"), body), nil
}

// commitText is a commit in the two parts between which a signature stands.
func commitText(tree, parent plumbing.Hash, author, committer object.Signature, message string) (head, body []byte) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "tree %s\n", tree)
	if !parent.IsZero() {
		fmt.Fprintf(&b, "parent %s\n", parent)
	}
	for _, who := range []struct {
		role string
		object.Signature
	}{{"author", author}, {"committer", committer}} {
		fmt.Fprintf(&b, "%s %s <%s> %d +0000\n", who.role, who.Name, who.Email, who.When.Unix())
	}
	return b.Bytes(), []byte("\n" + message)
}

// commit is what is needed of a commit.
type commit struct {
	tree    plumbing.Hash
	parent  plumbing.Hash // the first; zero for none
	when    time.Time     // of the committer
	message string
}

func (o *odb) commit(h plumbing.Hash) (*commit, error) {
	b, err := o.get(plumbing.CommitObject, h)
	if err != nil {
		return nil, err
	}
	obj := new(plumbing.MemoryObject)
	obj.SetType(plumbing.CommitObject)
	if _, err := obj.Write(b); err != nil {
		return nil, err
	}
	var c object.Commit
	if err := c.Decode(obj); err != nil {
		return nil, fmt.Errorf("commit %s is damaged: %w", h, err)
	}
	out := &commit{tree: c.TreeHash, when: c.Committer.When.UTC(), message: c.Message}
	if len(c.ParentHashes) > 0 {
		out.parent = c.ParentHashes[0]
	}
	return out, nil
}
