package results

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
	"unique"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// Entry is what an [Index] keeps of one record. It is shared by all who read and
// is not to be changed.
type Entry struct {
	Package, Version, Arch string

	Build        int64 // number of the build; a higher one is newer
	Revision     int64 // of a success, from 1
	Size         int64 // installed, apparent bytes
	ArtifactSize int64 // bytes, compressed
	// SBU is how long the build took, in units of the farm's standard package; 0 where
	// the record does not say.
	SBU float64

	// Fault says why the build failed; nil for a success.
	Fault *Fault

	blob         plumbing.Hash
	ended, took  int64 // milliseconds; ended since 1970
	source       [32]byte
	artifact     [32]byte
	abi          [32]byte
	sourceLength uint8 // bytes: 20, or 32 in a repository of SHA-256
	hasArtifact  bool
	hasABI       bool
	who          unique.Handle[quarry.Packager]
	info         unique.Handle[info]
}

// Fault is what an [Entry] keeps of a failure.
type Fault struct {
	Step    string
	Cause   quarry.Cause
	Class   string // the finer cause, e.g. missing-header; "" where nothing tells
	Message string // one line
	Error   string // the first line of the log that says what went wrong; "" where none does
	Line    int64  // of it in the build's log, from 1; 0 where there is none
}

// info is what the records of one recipe have in common, on all its archs. The
// lists are one name to a line, so that two can be compared and are kept once.
type info struct {
	description, category  string
	needed, provides, used string
	recommended, optional  string
}

// Status is succeeded or failed.
func (e *Entry) Status() quarry.State {
	if e.Fault != nil {
		return quarry.Failed
	}
	return quarry.Succeeded
}

// Ended is when the build ended, in UTC; zero when the record does not say.
func (e *Entry) Ended() time.Time {
	if e.ended == 0 {
		return time.Time{}
	}
	return time.UnixMilli(e.ended).UTC()
}

// Took is how long the attempt took, from its start to its end; 0 when the record does not say.
func (e *Entry) Took() time.Duration { return time.Duration(e.took) * time.Millisecond }

// Source is the commit in the package's repository that was built.
func (e *Entry) Source() string { return hex.EncodeToString(e.source[:e.sourceLength]) }

// Artifact is the SHA-256 of the archive, hex; "" if there is none.
func (e *Entry) Artifact() string {
	if !e.hasArtifact {
		return ""
	}
	return hex.EncodeToString(e.artifact[:])
}

// ABI is what others are built against, see quarry.Facts.ABI; "" if there is nothing.
func (e *Entry) ABI() string {
	if !e.hasABI {
		return ""
	}
	return hex.EncodeToString(e.abi[:])
}

// Blob is git's name for the record's text: another one is another record.
func (e *Entry) Blob() string { return e.blob.String() }

// Packager is who released it.
func (e *Entry) Packager() quarry.Packager { return e.who.Value() }

// Description is one line of what the package is.
func (e *Entry) Description() string { return e.info.Value().description }

// Category is where the package belongs.
func (e *Entry) Category() string { return e.info.Value().category }

// Needed lists what the recipe needs, as it writes it: zlib-1.3.1 or zlib>=1.2.
func (e *Entry) Needed() []string { return split(e.info.Value().needed) }

// Recommended and Optional list what else the recipe names, likewise.
func (e *Entry) Recommended() []string { return split(e.info.Value().recommended) }
func (e *Entry) Optional() []string    { return split(e.info.Value().optional) }

// Provides lists the virtual packages that it stands for, as the recipe writes
// them: name or name-version.
func (e *Entry) Provides() []string { return split(e.info.Value().provides) }

// Used lists the packages that were installed for the build because its recipe
// names them, sorted: what really met Needed.
func (e *Entry) Used() []string { return split(e.info.Value().used) }

func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}

// Target is the place of the record in a channel.
func (e *Entry) Target(channel string) quarry.Target {
	return quarry.Target{Channel: channel, Package: e.Package, Version: e.Version, Arch: e.Arch}
}

// brief is what is read of a record for an entry.
type brief struct {
	schema                 int64
	status                 string
	pkg, version, arch     string
	source, artifact, abi  string
	build, revision        int64
	artifactSize, size     int64
	sbu                    float64
	started, ended         time.Time
	description, category  string
	needed, provides, used []string
	recommended, optional  []string
	who                    quarry.Packager
	step, cause, class     string
	message, err           string
	line                   int64
	failure, direct        bool
	dep                    string
}

// briefOf takes a record apart that was read whole.
func briefOf(r *Record) brief {
	b := brief{
		schema: int64(r.Schema), status: string(r.Status), pkg: r.Package, version: r.Version, arch: r.Arch, source: r.Source, artifact: r.Artifact,
		build: r.Build, revision: r.Revision, artifactSize: r.ArtifactSize, size: r.InstalledSize, started: r.Started, ended: r.Ended,
		description: r.Description, category: r.Category, needed: r.Recipe.Needed, provides: r.Recipe.Provides, who: r.Packager.Person(),
		abi: r.ABI, sbu: r.Time.SBU, recommended: r.Recipe.Recommended, optional: r.Recipe.Optional,
	}
	for _, d := range r.Dependencies {
		if d.Direct {
			b.used = append(b.used, d.Package)
		}
	}
	if f := r.Failure; f != nil {
		b.failure = true
		b.step, b.cause, b.class, b.message, b.err, b.line = f.Step, string(f.Cause), f.Class, f.Message, f.Error, f.Line
	}
	return b
}

// entry makes an entry of a record's text. Records are read by scan, which knows
// the form that Marshal gives them; a text of another form is read as TOML.
func newEntry(data []byte, blob plumbing.Hash, t quarry.Target) (*Entry, error) {
	b, ok := scan(data)
	if !ok {
		r, err := Parse(data)
		if err != nil {
			return nil, err
		}
		b = briefOf(r)
	}
	if err := misplaced(t, b.pkg, b.version, b.arch); err != nil {
		return nil, err
	}
	e := &Entry{
		Package: t.Package, Version: unique.Make(b.version).Value(), Arch: unique.Make(b.arch).Value(),
		Build: b.build, Revision: b.revision, Size: b.size, ArtifactSize: b.artifactSize, SBU: b.sbu,
		blob: blob, who: unique.Make(b.who),
		info: unique.Make(info{b.description, b.category, joined(b.needed), joined(b.provides), joined(b.used), joined(b.recommended), joined(b.optional)}),
	}
	if n := len(b.source); n == 40 || n == 64 {
		if k, err := hex.Decode(e.source[:], []byte(b.source)); err == nil {
			e.sourceLength = uint8(k)
		}
	}
	if len(b.artifact) == 64 {
		_, err := hex.Decode(e.artifact[:], []byte(b.artifact))
		e.hasArtifact = err == nil
	}
	if len(b.abi) == 64 {
		_, err := hex.Decode(e.abi[:], []byte(b.abi))
		e.hasABI = err == nil
	}
	if !b.ended.IsZero() {
		e.ended = b.ended.UnixMilli()
		if !b.started.IsZero() {
			e.took = max(0, b.ended.Sub(b.started).Milliseconds())
		}
	}
	if b.status == string(quarry.Failed) {
		e.Fault = &Fault{
			Step: unique.Make(b.step).Value(), Cause: quarry.Cause(unique.Make(b.cause).Value()), Class: unique.Make(b.class).Value(),
			Message: unique.Make(b.message).Value(), Error: unique.Make(b.err).Value(), Line: b.line,
		}
	}
	return e, nil
}

// joined is a list as info keeps it. Names with line ends in them are none, and
// are left out.
func joined(list []string) string {
	if len(list) == 0 {
		return ""
	}
	var b strings.Builder
	for _, s := range list {
		if s == "" || strings.ContainsRune(s, '\n') {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(s)
	}
	return b.String()
}

// scan reads what an entry needs of a record in the form that Marshal writes: a
// line is a table's header, key = value, or within a list that spans lines. It
// takes a fiftieth of the time that reading TOML does, and a hundred thousand
// records have to be read at a start. false says that a line has another form:
// then only a reader of TOML can tell what it says.
func scan(data []byte) (b brief, ok bool) {
	if bytes.Contains(data, []byte(`"""`)) || bytes.Contains(data, []byte(`'''`)) || bytes.IndexByte(data, '\r') >= 0 || !utf8.Valid(data) {
		return b, false
	}
	section, list := "", false
	for rest := string(data); rest != ""; {
		line := rest
		if i := strings.IndexByte(rest, '\n'); i >= 0 {
			line, rest = rest[:i], rest[i+1:]
		} else {
			rest = ""
		}
		switch {
		case list:
			if line == "]" {
				list = false
			} else if !strings.HasPrefix(line, "  ") {
				return b, false
			}
			continue
		case line == "":
			continue
		case line[0] == '[':
			name, closed := strings.CutSuffix(line[1:], "]")
			if inner, two := strings.CutPrefix(name, "["); two {
				name, closed = strings.CutSuffix(inner, "]")
			}
			if !closed || !isKey(name, '.') {
				return b, false
			}
			b.endDependency()
			section = name
			b.failure = b.failure || section == "failure"
			switch section {
			case "packager", "recipe", "failure", "dependency", "time":
			default: // to the next table: no line of a list begins with a bracket
				i := strings.Index(rest, "\n[")
				if strings.HasPrefix(rest, "[") {
					i = -1
				} else if i < 0 {
					i = len(rest) - 1
				}
				rest = rest[i+1:]
			}
			continue
		}
		key, value, isPair := strings.Cut(line, " = ")
		if !isPair || !isKey(key, '_') || value == "" {
			return b, false
		}
		wanted, good := b.set(section, key, value)
		switch {
		case wanted && !good:
			return b, false
		case wanted:
		case value == "[":
			list = true
		case value[0] == '[' && value[len(value)-1] != ']':
			return b, false
		}
	}
	b.endDependency()
	return b, !list && b.fit()
}

// isKey reports whether a word is one of small letters, digits, _ and one sign more.
func isKey(s string, also byte) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != also {
			return false
		}
	}
	return s != ""
}

// fit is what Record.check demands.
func (b *brief) fit() bool {
	return b.schema == Schema && b.build >= 0 && checkPlace(b.pkg, b.version, b.arch) == nil &&
		(b.status == string(quarry.Succeeded) || b.status == string(quarry.Failed))
}

func (b *brief) endDependency() {
	if b.dep != "" && b.direct {
		b.used = append(b.used, b.dep)
	}
	b.dep, b.direct = "", false
}

// set notes the value of a key. wanted is false for a key that an entry has no
// use for, good for a value whose form is not plain.
func (b *brief) set(section, key, value string) (wanted, good bool) {
	var s *string
	var n *int64
	var t *time.Time
	var l *[]string
	switch section {
	case "":
		switch key {
		case "schema":
			n = &b.schema
		case "status":
			s = &b.status
		case "package":
			s = &b.pkg
		case "version":
			s = &b.version
		case "arch":
			s = &b.arch
		case "source":
			s = &b.source
		case "build":
			n = &b.build
		case "revision":
			n = &b.revision
		case "description":
			s = &b.description
		case "category":
			s = &b.category
		case "artifact":
			s = &b.artifact
		case "abi":
			s = &b.abi
		case "artifact_size":
			n = &b.artifactSize
		case "installed_size":
			n = &b.size
		case "started":
			t = &b.started
		case "ended":
			t = &b.ended
		}
	case "time":
		if key == "sbu" {
			b.sbu, good = scanFloat(value)
			return true, good
		}
	case "packager":
		switch key {
		case "user":
			s = &b.who.User
		case "name":
			s = &b.who.Name
		case "email":
			s = &b.who.Email
		case "key":
			s = &b.who.Key
		}
	case "recipe":
		switch key {
		case "needed":
			l = &b.needed
		case "recommended":
			l = &b.recommended
		case "optional":
			l = &b.optional
		case "provides":
			l = &b.provides
		}
	case "failure":
		switch key {
		case "step":
			s = &b.step
		case "cause":
			s = &b.cause
		case "class":
			s = &b.class
		case "message":
			s = &b.message
		case "error":
			s = &b.err
		case "line":
			n = &b.line
		}
	case "dependency":
		switch key {
		case "package":
			s = &b.dep
		case "direct":
			b.direct = value == "true"
			return true, b.direct || value == "false"
		}
	}
	switch {
	case s != nil:
		*s, good = scanString(value)
	case n != nil:
		*n, good = scanInt(value)
	case t != nil:
		at, err := time.Parse(time.RFC3339Nano, value)
		if err == nil {
			at, err = cleanTime(at)
		}
		*t, good = at, err == nil
	case l != nil:
		*l, good = scanList(value)
	default:
		return false, true
	}
	return true, good
}

// scanString reads a literal string, or a basic one without escapes.
func scanString(v string) (string, bool) {
	if len(v) < 2 || v[0] != v[len(v)-1] || v[0] != '\'' && v[0] != '"' {
		return "", false
	}
	in := v[1 : len(v)-1]
	for i := 0; i < len(in); i++ {
		if c := in[i]; c == v[0] || c < 0x20 || c == 0x7f || c == '\\' && v[0] == '"' {
			return "", false
		}
	}
	return in, true
}

// scanInt reads digits as Marshal writes them.
func scanInt(v string) (n int64, ok bool) {
	if v == "" || len(v) > 18 || v[0] == '0' && v != "0" {
		return 0, false
	}
	for i := 0; i < len(v); i++ {
		if v[i] < '0' || v[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(v[i]-'0')
	}
	return n, true
}

// scanFloat reads a number as Marshal writes it: digits, and a point among them.
func scanFloat(v string) (float64, bool) {
	if v == "" || len(v) > 18 || strings.Trim(v, "0123456789.") != "" || v[0] == '.' || v[len(v)-1] == '.' || len(v) > 1 && v[0] == '0' && v[1] != '.' {
		return 0, false
	}
	n, err := strconv.ParseFloat(v, 64)
	return n, err == nil
}

func scanList(v string) (list []string, ok bool) {
	in, ok := strings.CutPrefix(v, "[")
	if !ok {
		return nil, false
	}
	if in, ok = strings.CutSuffix(in, "]"); !ok {
		return nil, false
	}
	for in != "" {
		end := strings.IndexByte(in[1:], in[0])
		if end < 0 {
			return nil, false
		}
		s, ok := scanString(in[:end+2])
		if !ok {
			return nil, false
		}
		list, in = append(list, s), in[end+2:]
		if in == "" {
			break
		}
		if in, ok = strings.CutPrefix(in, ", "); !ok || in == "" {
			return nil, false
		}
	}
	return list, true
}

// String is for messages about an entry.
func (e *Entry) String() string { return fmt.Sprintf("%s %s %s", e.Package, e.Version, e.Arch) }
