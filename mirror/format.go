package mirror

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
	"github.com/klauspost/compress/zstd"
)

// Schema is the version of the format, of heads and of lists. Others are refused.
const Schema = 1

// Namespace is what a head is signed for, as ssh-keygen -Y has it.
const Namespace = "quarry-head"

// What is read at most, in bytes. The sizes that a head may name bound everything
// else, and so does the memory of who reads.
const (
	MaxHead = 1 << 20
	MaxText = 1 << 30
)

// Kind is which versions a list of a channel has: [Newest] or [Older].
type Kind string

const (
	Newest Kind = "index" // of each package the newest
	Older  Kind = "older" // all others
)

// Kinds are all there are.
var Kinds = []Kind{Newest, Older}

// Head says what a channel is at one commit.
type Head struct {
	Schema  int       `json:"schema"`
	Channel string    `json:"channel"`
	Commit  string    `json:"commit"` // of the results repository, hex
	Time    time.Time `json:"time"`   // of the commit
	Expires time.Time `json:"expires"`
	// Packages is how many names have a success.
	Packages int `json:"packages"`
	// Index and Older are the lists by arch.
	Index map[string]File `json:"index"`
	Older map[string]File `json:"older,omitempty"`
}

// File is a list as it lies in its channel's folder, packed, and as it reads.
type File struct {
	Name       string `json:"name"` // below db/CHANNEL/
	Size       int64  `json:"size"` // bytes, packed
	SHA256     string `json:"sha256"`
	TextSize   int64  `json:"text_size"`
	TextSHA256 string `json:"text_sha256"`
	Packages   int    `json:"packages"` // entries
}

// Files are the lists of a kind.
func (h *Head) Files(k Kind) map[string]File {
	if k == Older {
		return h.Older
	}
	return h.Index
}

// File is the list of a kind for an arch. An arch that has none of its own has
// noarch's; false says that there is none either.
func (h *Head) File(k Kind, arch string) (f File, of string, ok bool) {
	if _, own := h.Index[arch]; !own {
		arch = quarry.Noarch
	}
	f, ok = h.Files(k)[arch]
	return f, arch, ok
}

// ParseHead reads head.json. It says nothing of whether the head is to be
// believed: see [Head.Check] and the signature.
func ParseHead(data []byte) (*Head, error) {
	if len(data) > MaxHead {
		return nil, fmt.Errorf("head.json has %d bytes: %d is the most", len(data), MaxHead)
	}
	var h Head
	if err := json.Unmarshal(data, &h); err != nil {
		return nil, fmt.Errorf("head.json is no JSON of a head: %w", err)
	}
	if h.Schema != Schema {
		return nil, fmt.Errorf("head.json is of schema %d, and this reads %d: a newer version is needed", h.Schema, Schema)
	}
	if err := quarry.CheckChannel(h.Channel); err != nil {
		return nil, fmt.Errorf("head.json: %w", err)
	}
	if !isHex(h.Commit, 40) && !isHex(h.Commit, 64) {
		return nil, fmt.Errorf("head.json: commit %.70q is none", h.Commit)
	}
	if h.Packages < 0 {
		return nil, errors.New("head.json: it has less than no packages")
	}
	for _, k := range Kinds {
		for arch, f := range h.Files(k) {
			if err := quarry.CheckArch(arch); err != nil {
				return nil, fmt.Errorf("head.json: %w", err)
			}
			if !isHex(f.SHA256, 64) || !isHex(f.TextSHA256, 64) || f.Size < 0 || f.TextSize < 0 || f.TextSize > MaxText || f.Size > MaxText || f.Packages < 0 {
				return nil, fmt.Errorf("head.json: digests or sizes of %s %s are none", k, arch)
			}
			// The name is used in URLs and as a file's: nothing else than this is good.
			if want := listName(k, arch, f.SHA256); f.Name != want {
				return nil, fmt.Errorf("head.json: %s %s is named %.120q, and must be %s", k, arch, f.Name, want)
			}
		}
	}
	return &h, nil
}

// Check says why a head is not to be believed by who asked for a channel and had
// the head last, which may be nil: it is of another channel, has expired, or is
// older than that.
func (h *Head) Check(channel string, last *Head, now time.Time) error {
	switch {
	case h.Channel != channel:
		return fmt.Errorf("the head is of channel %s, and %s was asked for", h.Channel, channel)
	case !now.Before(h.Expires):
		return fmt.Errorf("the head of channel %s has expired at %s: the mirror is not kept up to date, or holds news back", channel, h.Expires.Format(time.RFC3339))
	case last != nil && last.Channel == channel && h.Time.Before(last.Time):
		return fmt.Errorf("the head of channel %s is of %s, and one of %s was here already: the mirror goes back in time", channel, h.Time.Format(time.RFC3339), last.Time.Format(time.RFC3339))
	}
	return nil
}

// marshal writes head.json.
func (h *Head) marshal() ([]byte, error) {
	data, err := json.MarshalIndent(h, "", "  ")
	return append(data, '\n'), err
}

// Check reports whether a text is the list's.
func (f File) Check(text []byte) error {
	if sum := sha256.Sum256(text); int64(len(text)) != f.TextSize || hex.EncodeToString(sum[:]) != f.TextSHA256 {
		return fmt.Errorf("the text of %s is another one than the head says", f.Name)
	}
	return nil
}

// Unpack checks a list as it came against what its head says, and gives its text.
func (f File) Unpack(packed []byte) ([]byte, error) {
	if sum := sha256.Sum256(packed); int64(len(packed)) != f.Size || hex.EncodeToString(sum[:]) != f.SHA256 {
		return nil, fmt.Errorf("%s is another file than the head says", f.Name)
	}
	text, err := Unpack(packed, f.TextSize)
	if err == nil {
		err = f.Check(text)
	}
	if err != nil {
		return nil, err
	}
	return text, nil
}

// Unpack unpacks zstd to max bytes at most.
func Unpack(packed []byte, max int64) ([]byte, error) {
	// The reader takes a window for memory, and no window is smaller than a KiB.
	limit := uint64(min(max, MaxText)) + zstd.MinWindowSize
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(limit), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	// Room for what lists are packed to, so that it is not moved frame by frame.
	text, err := d.DecodeAll(packed, make([]byte, 0, min(max, int64(len(packed))*6)))
	if err != nil {
		return nil, fmt.Errorf("it cannot be unpacked: %w", err)
	}
	if int64(len(text)) > max {
		return nil, fmt.Errorf("it unpacks to %d bytes: %d is the most", len(text), max)
	}
	return text, nil
}

// maxWindow is the largest window that a reader has to keep for what is packed
// here. Frames are single segments, whose window is their size.
const maxWindow = 32 << 20

// Package is an artifact that can be installed. The last five are only said in
// package files.
type Package struct {
	Name, Version, Arch           string
	Revision                      int64
	Description, Category         string
	Needed, Recommended, Optional []string // as the recipe writes them
	Provides                      []string
	Artifact                      string // SHA-256, hex; "" where there is nothing to fetch
	ArtifactSize, InstalledSize   int64

	ABI    string
	Build  int64
	Ended  time.Time
	Source string
	Record string // git's id of the record
}

// List is packages of a channel: an index, what is older, those of a package's
// file.
type List struct {
	Channel  string
	Arch     string // of an index
	Packages []Package
}

// Delta is what differs between two lists of the same kind.
type Delta struct {
	List
	Kind     Kind
	Old, New string // commits
	Removed  []string
}

// ParseList reads a list's text. What it returns shares no memory with text.
func ParseList(text []byte) (*List, error) {
	d, err := parse(text)
	if err != nil {
		return nil, err
	}
	return &d.List, nil
}

// ParseDelta reads a delta's text.
func ParseDelta(text []byte) (*Delta, error) {
	d, err := parse(text)
	if err != nil {
		return nil, err
	}
	if d.Kind != Newest && d.Kind != Older || d.Old == "" || d.New == "" {
		return nil, errors.New("it is no delta: it does not say of what kind, or between which commits")
	}
	return d, nil
}

func parse(text []byte) (*Delta, error) {
	var d Delta
	schema, n := int64(0), 0
	var p *Package
	for rest := string(text); rest != ""; {
		n++
		line, after, whole := strings.Cut(rest, "\n")
		rest = after
		err := func() error {
			switch {
			case !whole:
				return errors.New("it ends in the middle of a line")
			case line == "":
				return nil
			case line == entryLine:
				if schema != Schema {
					return fmt.Errorf("it is of schema %d, and this reads %d: a newer version is needed", schema, Schema)
				}
				if err := p.check(&d.List); err != nil {
					return err
				}
				d.Packages = append(d.Packages, Package{})
				p = &d.Packages[len(d.Packages)-1]
				return nil
			}
			key, value, ok := strings.Cut(line, " = ")
			if !ok || !isKey(key) {
				return fmt.Errorf("it is not of the form KEY = VALUE: %.60q", line)
			}
			v, err := parseValue(value)
			if err != nil {
				return fmt.Errorf("%s: %w", key, err)
			}
			if p != nil {
				return p.set(key, v)
			}
			if key == "schema" {
				schema = v.number
			}
			return d.set(key, v)
		}()
		if err != nil {
			return nil, fmt.Errorf("list of packages, line %d: %w", n, err)
		}
	}
	if schema != Schema {
		return nil, fmt.Errorf("list of packages: it is of schema %d, and this reads %d: a newer version is needed", schema, Schema)
	}
	if err := p.check(&d.List); err != nil {
		return nil, fmt.Errorf("list of packages, at its end: %w", err)
	}
	return &d, nil
}

func (d *Delta) set(key string, v value) error {
	switch key {
	case "schema":
		return v.is(isNumber)
	case "channel":
		d.Channel = v.text
		return cmp.Or(v.is(isString), quarry.CheckChannel(v.text))
	case "arch":
		d.Arch = v.text
		return cmp.Or(v.is(isString), quarry.CheckArch(v.text))
	case "kind":
		d.Kind = Kind(v.text)
		return v.is(isString)
	case "old":
		d.Old = v.text
		return v.is(isString)
	case "new":
		d.New = v.text
		return v.is(isString)
	case "removed":
		d.Removed = v.list
		return v.is(isList)
	}
	return nil
}

func (p *Package) set(key string, v value) error {
	var s *string
	var n *int64
	var l *[]string
	switch key {
	case "name":
		s = &p.Name
	case "version":
		s = &p.Version
	case "arch":
		s = &p.Arch
	case "revision":
		n = &p.Revision
	case "description":
		s = &p.Description
	case "category":
		s = &p.Category
	case "needed":
		l = &p.Needed
	case "recommended":
		l = &p.Recommended
	case "optional":
		l = &p.Optional
	case "provides":
		l = &p.Provides
	case "artifact":
		s = &p.Artifact
	case "artifact_size":
		n = &p.ArtifactSize
	case "installed_size":
		n = &p.InstalledSize
	case "abi":
		s = &p.ABI
	case "build":
		n = &p.Build
	case "ended":
		p.Ended = v.time
		return v.is(isTime)
	case "source":
		s = &p.Source
	case "record":
		s = &p.Record
	}
	switch {
	case s != nil:
		*s = v.text
		return v.is(isString)
	case n != nil:
		*n = v.number
		return v.is(isNumber)
	case l != nil:
		*l = v.list
		return v.is(isList)
	}
	return nil
}

// check reports what is wrong with an entry that has been read; its words become
// parts of URLs and of the names of files.
func (p *Package) check(l *List) error {
	if p == nil {
		return nil
	}
	if p.Arch == "" {
		p.Arch = l.Arch
	}
	if err := cmp.Or(quarry.CheckName(p.Name), quarry.CheckVersion(p.Version), quarry.CheckArch(p.Arch)); err != nil {
		return err
	}
	if p.Artifact != "" && !isHex(p.Artifact, 64) {
		return fmt.Errorf("artifact %.70q of %s is no SHA-256", p.Artifact, p.Name)
	}
	if n := len(l.Packages); n > 1 && l.Packages[n-2].Name > p.Name {
		return fmt.Errorf("%s stands after %s: packages are sorted by name", p.Name, l.Packages[n-2].Name)
	}
	return nil
}

// ApplyDelta makes the text of a list out of an older one and a delta. What comes
// of it is to be checked by [File.Check]; a text and a delta that do not belong
// together are an error, or give another text.
func ApplyDelta(old, delta []byte) ([]byte, error) {
	d, err := ParseDelta(delta)
	if err != nil {
		return nil, err
	}
	head, was := cut(old)
	if want := (&List{Channel: d.Channel, Arch: d.Arch}).head(); string(head) != want {
		return nil, errors.New("the delta is of another list")
	}
	gone := make(map[string]bool, len(d.Removed))
	for _, name := range d.Removed {
		gone[name] = true
	}
	_, now := cut(delta)
	out := bytes.NewBuffer(make([]byte, 0, len(old)+len(delta)))
	out.Write(head)
	wasEntry, wasName, err := was.next()
	for err == nil && (wasEntry != nil || len(now) > 0) {
		var entry []byte
		var name string
		if entry, name, err = now.next(); err != nil {
			break
		}
		for wasEntry != nil && (entry == nil || wasName <= name) && err == nil {
			if wasName != name && !gone[wasName] {
				out.Write(wasEntry)
			}
			wasEntry, wasName, err = was.next()
		}
		for entry != nil && err == nil {
			out.Write(entry)
			if next, again := now.peek(); !again || next != name {
				break
			}
			entry, _, err = now.next()
		}
	}
	if err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// entries are what is left of a list's text, beginning with an entry.
type entries []byte

// entryLine begins an entry, and nameKey its second line.
const (
	entryLine = "[[package]]"
	nameKey   = "name = "
)

// cut takes a list's text apart: what stands before the entries, and these.
func cut(text []byte) (head []byte, rest entries) {
	if bytes.HasPrefix(text, []byte(entryLine+"\n")) {
		return nil, text
	}
	if i := bytes.Index(text, []byte("\n"+entryLine+"\n")); i >= 0 {
		return text[:i+1], text[i+1:]
	}
	return text, nil
}

// next takes the first entry off; nil when there is none.
func (e *entries) next() (entry []byte, name string, err error) {
	if len(*e) == 0 {
		return nil, "", nil
	}
	end := len(*e)
	if i := bytes.Index(*e, []byte("\n"+entryLine+"\n")); i >= 0 {
		end = i + 1
	}
	entry, *e = (*e)[:end], (*e)[end:]
	name, ok := nameOf(entry)
	if !ok {
		return nil, "", fmt.Errorf("list of packages: an entry does not begin with its name: %.60q", entry)
	}
	return entry, name, nil
}

func (e entries) peek() (name string, ok bool) { return nameOf(e) }

func nameOf(entry []byte) (string, bool) {
	rest, ok := bytes.CutPrefix(entry, []byte(entryLine+"\n"+nameKey))
	if !ok {
		return "", false
	}
	line, _, ok := bytes.Cut(rest, []byte("\n"))
	if !ok {
		return "", false
	}
	v, err := parseValue(string(line))
	return v.text, err == nil && v.form == isString
}

// The names of files, below the address of a farm or a mirror. Words must have
// passed their checks.

// ChannelsName is the list of channels.
const ChannelsName = "db/channels.json"

// SignersName is the file of allowed signers.
const SignersName = "db/allowed_signers"

// InChannel is the name of what lies in a channel's folder.
func InChannel(channel, name string) string { return "db/" + channel + "/" + name }

// HeadName is a channel's head.
func HeadName(channel string) string { return InChannel(channel, "head.json") }

// SignatureName is the signature of a head, given the bytes of that.
func SignatureName(channel string, head []byte) string {
	return InChannel(channel, signature(head))
}

func signature(head []byte) string {
	sum := sha256.Sum256(head)
	return "sig/" + hex.EncodeToString(sum[:]) + ".sig"
}

// DeltaName is the delta between the lists of two commits.
func DeltaName(channel string, k Kind, arch, old, new string) string {
	return InChannel(channel, deltaName(k, arch, old, new))
}

func deltaName(k Kind, arch, old, new string) string {
	return "delta/" + string(k) + "/" + arch + "-" + old + "-" + new + packedExt
}

func listName(k Kind, arch, sum string) string { return string(k) + "/" + arch + "-" + sum + packedExt }

const (
	textExt   = ".toml"
	packedExt = ".toml.zst"
)

// PackageName is a package's file.
func PackageName(channel, pkg string) string {
	return InChannel(channel, packagePrefix+results.Spread(pkg)+textExt)
}

// RecordName is the record of a target's success, as it is in git.
func RecordName(t quarry.Target) string {
	return InChannel(t.Channel, recordPrefix+results.Spread(t.Package)+"/"+t.Version+"/"+t.Arch+".toml")
}

// FilesName is the list of what a target installs, as it is in git.
func FilesName(t quarry.Target) string {
	return strings.TrimSuffix(RecordName(t), ".toml") + ".files.toml"
}

const (
	packagePrefix = "p/"
	recordPrefix  = "records/"
)

// ArtifactName is an archive, given its SHA-256.
func ArtifactName(sum string) string { return "artifacts/" + sum[:2] + "/" + sum + ".tar.zst" }

func isHex(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789abcdef") == ""
}

func isKey(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == ""
}
