package sshd

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/Morphux/quarry"
)

// Limits on a command line.
const (
	maxCommand = 8 << 10 // bytes
	maxArgs    = 100
)

// split takes a command line apart as a shell would, and does nothing else that
// a shell does: what would be expanded, piped or redirected is refused, so that
// nobody believes it happened.
func split(line string) ([]string, error) {
	if len(line) > maxCommand {
		return nil, fmt.Errorf("command has %d bytes: %d is the most", len(line), maxCommand)
	}
	if !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }) {
		return nil, errors.New("command holds control characters or no UTF-8: type it on one line")
	}
	var args []string
	var word strings.Builder
	inWord := false
	end := func() {
		if inWord {
			args = append(args, word.String())
			word.Reset()
			inWord = false
		}
	}
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case c == ' ' || c == '\t':
			end()
		case c == '\'':
			j := strings.IndexByte(line[i+1:], '\'')
			if j < 0 {
				return nil, errors.New("command has a ' without an end: close the quotation")
			}
			word.WriteString(line[i+1 : i+1+j])
			inWord = true
			i += j + 1
		case c == '"':
			inWord = true
			for i++; ; i++ {
				if i >= len(line) {
					return nil, errors.New("command has a \" without an end: close the quotation")
				}
				if line[i] == '"' {
					break
				}
				if line[i] == '$' || line[i] == '`' {
					return nil, noShell(line[i])
				}
				if line[i] == '\\' && i+1 < len(line) && strings.IndexByte("\"\\$`", line[i+1]) >= 0 {
					i++
				}
				word.WriteByte(line[i])
			}
		case c == '\\':
			if i++; i >= len(line) {
				return nil, errors.New("command ends in a backslash: remove it")
			}
			word.WriteByte(line[i])
			inWord = true
		case strings.IndexByte("$`|&;<>(){}*?", c) >= 0:
			return nil, noShell(c)
		default:
			word.WriteByte(c)
			inWord = true
		}
	}
	end()
	if len(args) > maxArgs {
		return nil, fmt.Errorf("command has %d words: %d are the most", len(args), maxArgs)
	}
	return args, nil
}

func noShell(c byte) error {
	return fmt.Errorf("command holds a %q, and there is no shell here: quote it if it is meant as it is", c)
}

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
