package sshd

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/words"
)

// gitCommand is one of the two that git clients ask for.
type gitCommand struct {
	service string // receive-pack or upload-pack
	pkg     string // package whose repository it is
}

var forms = regexp.MustCompile(`^git[- ](receive-pack|upload-pack)$`)

// parseGit reads what stock git sends: git-receive-pack '/zlib.git', or the
// newer form without the first dash. ok is false when the command is not git's.
func parseGit(args []string) (g gitCommand, ok bool, err error) {
	if len(args) == 0 {
		return g, false, nil
	}
	name, rest := args[0], args[1:]
	if name == "git" {
		if len(rest) == 0 {
			return g, true, errors.New("git needs one of its services: receive-pack or upload-pack, which git push and git fetch ask for")
		}
		name, rest = name+" "+rest[0], rest[1:]
	}
	if !strings.HasPrefix(name, "git-") && !strings.HasPrefix(name, "git ") {
		return g, false, nil
	}
	m := forms.FindStringSubmatch(name)
	if m == nil {
		return g, true, fmt.Errorf("%.40q is not served here: push, fetch and clone are", name)
	}
	if len(rest) != 1 {
		return g, true, fmt.Errorf("%s takes the name of one repository, such as zlib.git", name)
	}
	g.service = m[1]
	g.pkg, err = parsePath(rest[0])
	return g, true, err
}

// parsePath reads [/]NAME[.git]. Nothing that it takes can lead anywhere.
func parsePath(path string) (pkg string, err error) {
	pkg = strings.TrimSuffix(strings.TrimPrefix(path, "/"), ".git")
	if err := quarry.CheckName(pkg); err != nil {
		return "", fmt.Errorf("repository %.100q is none: write it as ssh://HOST/NAME.git, where NAME is the package's (%w)", path, err)
	}
	return pkg, nil
}

var gitProtocol = regexp.MustCompile(`^version=[0-2]$`)

// splitRaw takes a line apart whose verb wants all after its first word as one
// word, as it was typed: it will be a shell's, and not be taken apart here. ok is
// false for any other line.
func (s *Server) splitRaw(line string) (args []string, ok bool) {
	if s.opts.Raw == nil || len(line) > words.MaxLine || !utf8.ValidString(line) {
		return nil, false
	}
	verb, rest, _ := strings.Cut(strings.TrimLeft(line, " \t"), " ")
	word, rest, _ := strings.Cut(strings.TrimLeft(rest, " \t"), " ")
	if strings.ContainsAny(verb+word, "'\"\\") || word == "" || !s.opts.Raw([]string{verb, word}) {
		return nil, false
	}
	args = []string{verb, word}
	if rest = strings.TrimSpace(rest); rest != "" {
		args = append(args, rest)
	}
	return args, true
}
