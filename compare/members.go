package compare

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/Morphux/quarry/internal/human"
)

const (
	maxMembers  = 20_000 // of one archive that are looked at
	maxMemberOf = 8      // members of one archive of which a difference is told
)

// member is a file in an archive.
type member struct {
	name string
	head string // what the archive says of it: time, owner, mode
	data []byte
}

// archives compares two archives of one kind by their members.
func archives(was, is []byte, depth int) ([]string, bool) {
	for _, kind := range []struct {
		name string
		read func([]byte) ([]member, error)
	}{{"ar", arMembers}, {"zip", zipMembers}, {"tar", tarMembers}} {
		a, errA := kind.read(was)
		b, errB := kind.read(is)
		if errA != nil || errB != nil {
			continue
		}
		return members(kind.name, a, b, was, is, depth), true
	}
	return nil, false
}

func members(kind string, a, b []member, was, is []byte, depth int) []string {
	var out []string
	other := map[string]member{}
	for _, m := range b {
		other[m.name] = m
	}
	told, more := 0, 0
	order := len(a) == len(b)
	for i, m := range a {
		order = order && m.name == b[i].name
		n, ok := other[m.name]
		delete(other, m.name)
		if ok && m.head == n.head && bytes.Equal(m.data, n.data) {
			continue
		}
		if told == maxMemberOf {
			more++
			continue
		}
		told++
		what := fmt.Sprintf("%s: member %s", kind, m.name)
		switch {
		case !ok:
			out = append(out, what+" is not in the rebuilt one")
			continue
		case m.head != n.head:
			out = append(out, fmt.Sprintf("%s: %s, rebuilt %s", what, m.head, n.head))
		}
		if !bytes.Equal(m.data, n.data) {
			out = append(out, indented(what+" differs", look(m.data, n.data, depth+1))...)
		}
	}
	for _, m := range b {
		if _, left := other[m.name]; left && told < maxMemberOf {
			told++
			out = append(out, fmt.Sprintf("%s: member %s is only in the rebuilt one", kind, m.name))
		}
	}
	switch {
	case more > 0:
		out = append(out, human.Count(more, "more member")+" differ")
	case len(out) == 0 && !order:
		out = append(out, kind+": the same members in another order")
	case len(out) == 0:
		out = append(out, indented(kind+": all members are the same, what is between them differs", raw(was, is))...)
	}
	return out
}

var errNone = errors.New("it is none")

// arMembers reads a static library, as ar(5) and GNU's long names have it.
func arMembers(b []byte) (list []member, err error) {
	const magic, header = "!<arch>\n", 60
	rest, ok := bytes.CutPrefix(b, []byte(magic))
	if !ok {
		return nil, errNone
	}
	var long []byte
	seen := map[string]int{}
	for len(rest) >= header && len(list) < maxMembers {
		h := string(rest[:header])
		size, err := strconv.ParseInt(strings.TrimSpace(h[48:58]), 10, 64)
		if err != nil || h[58:] != "`\n" || size < 0 || size > int64(len(rest)-header) {
			return nil, errNone
		}
		data := rest[header:][:size]
		rest = rest[header+int(size):]
		if size%2 == 1 && len(rest) > 0 {
			rest = rest[1:]
		}
		name := strings.TrimRight(h[:16], " ")
		if name == "//" {
			long = data
			continue
		}
		if at, err := strconv.Atoi(strings.TrimPrefix(name, "/")); err == nil && strings.HasPrefix(name, "/") && at >= 0 && at < len(long) {
			name, _, _ = strings.Cut(string(long[at:]), "\n")
		}
		name = strings.TrimSuffix(name, "/")
		if name == "" {
			name = "(the index)"
		}
		if seen[name]++; seen[name] > 1 {
			name = fmt.Sprintf("%s (%d)", name, seen[name])
		}
		head := fmt.Sprintf("time %s, owner %s:%s, mode %s", strings.TrimSpace(h[16:28]), strings.TrimSpace(h[28:34]), strings.TrimSpace(h[34:40]), strings.TrimSpace(h[40:48]))
		list = append(list, member{name, head, data})
	}
	return list, nil
}

func zipMembers(b []byte) (list []member, err error) {
	if !bytes.HasPrefix(b, []byte("PK")) {
		return nil, errNone
	}
	z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, err
	}
	left := int64(maxHeld)
	for _, f := range z.File {
		if len(list) == maxMembers {
			break
		}
		r, err := f.Open()
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(io.LimitReader(r, left+1))
		r.Close()
		if left -= int64(len(data)); err != nil || left < 0 {
			return nil, errors.Join(err, errNone)
		}
		list = append(list, member{f.Name, fmt.Sprintf("time %s, mode %v", stamp(f.Modified), f.Mode()), data})
	}
	return list, nil
}

func tarMembers(b []byte) (list []member, err error) {
	if len(b) < 512 || !bytes.HasPrefix(b[257:], []byte("ustar")) {
		return nil, errNone
	}
	left := int64(maxHeld)
	for r := tar.NewReader(bytes.NewReader(b)); len(list) < maxMembers; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(io.LimitReader(r, left+1))
		if left -= int64(len(data)); err != nil || left < 0 {
			return nil, errors.Join(err, errNone)
		}
		list = append(list, member{h.Name, fmt.Sprintf("time %s, owner %d:%d, mode %04o", stamp(h.ModTime), h.Uid, h.Gid, h.Mode&0o7777), data})
	}
	return list, nil
}
