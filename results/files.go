package results

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/Morphux/quarry"
)

// fileList is ARCH.files.toml. It says nothing of the build, so that two builds
// which install the same have the same list, stored once.
type fileList struct {
	Schema  int         `toml:"schema"`
	Package string      `toml:"package"`
	Version string      `toml:"version"`
	Arch    string      `toml:"arch"`
	Files   []fileEntry `toml:"files,multiline,inline"`
}

// fileEntry is a quarry.File on one line, with what is common left out: a kind
// of file, an owner of 0:0.
type fileEntry struct {
	Path        string    `toml:"path"`
	Kind        string    `toml:"kind,omitempty"` // absent: file
	Class       string    `toml:"class,omitempty"`
	Mode        string    `toml:"mode"` // octal, four digits
	UID         uint32    `toml:"uid,omitempty"`
	GID         uint32    `toml:"gid,omitempty"`
	Size        int64     `toml:"size,omitempty"`
	Target      string    `toml:"target,omitempty"`
	Major       uint32    `toml:"major,omitempty"`
	Minor       uint32    `toml:"minor,omitempty"`
	SHA256      string    `toml:"sha256,omitempty"`
	Interpreter string    `toml:"interpreter,omitempty"`
	ELF         *elfEntry `toml:"elf,omitempty"`
}

type elfEntry struct {
	Arch        string   `toml:"arch"`
	Type        string   `toml:"type"`
	Interpreter string   `toml:"interpreter,omitempty"`
	Soname      string   `toml:"soname,omitempty"`
	Needed      []string `toml:"needed,omitempty"`
	RPath       []string `toml:"rpath,omitempty"`
	RunPath     []string `toml:"runpath,omitempty"`
	Static      bool     `toml:"static,omitempty"`
	Stripped    bool     `toml:"stripped,omitempty"`
	BuildID     string   `toml:"build_id,omitempty"`
	PIE         bool     `toml:"pie,omitempty"`
	RELRO       string   `toml:"relro,omitempty"`
	NX          bool     `toml:"nx,omitempty"`
	Symbols     string   `toml:"symbols,omitempty"`
	Exports     int      `toml:"exports,omitempty"`
}

// MarshalFiles writes a list of files as ARCH.files.toml has it.
func MarshalFiles(pkg, version, arch string, files []quarry.File) ([]byte, error) {
	if err := checkPlace(pkg, version, arch); err != nil {
		return nil, err
	}
	l := fileList{Schema: Schema, Package: pkg, Version: version, Arch: arch, Files: make([]fileEntry, 0, len(files))}
	for i, f := range files {
		if f.Path == "" {
			return nil, fmt.Errorf("file %d of %s %s %s has no path", i, pkg, version, arch)
		}
		l.Files = append(l.Files, entryOf(f))
	}
	return encode(l)
}

// ParseFiles reads an ARCH.files.toml. Unknown keys are passed over, another
// schema is an error wrapping [ErrSchema].
func ParseFiles(data []byte) ([]quarry.File, error) {
	_, files, err := parseFiles(data)
	return files, err
}

func parseFiles(data []byte) (*fileList, []quarry.File, error) {
	var l fileList
	if err := decodeVersioned(data, &l); err != nil {
		return nil, nil, err
	}
	if l.Schema != Schema {
		return nil, nil, schemaError(l.Schema)
	}
	if err := checkPlace(l.Package, l.Version, l.Arch); err != nil {
		return nil, nil, fmt.Errorf("list of files is unfit: %w", err)
	}
	files := make([]quarry.File, 0, len(l.Files))
	for i, e := range l.Files {
		f, err := e.file()
		if err != nil {
			return nil, nil, fmt.Errorf("file %d (%.100q) of the list is unfit: %w", i+1, e.Path, err)
		}
		files = append(files, f)
	}
	return &l, files, nil
}

func entryOf(f quarry.File) fileEntry {
	e := fileEntry{
		Path: escape(f.Path), Kind: text(string(f.Kind)), Class: text(string(f.Class)), Mode: fmt.Sprintf("%04o", f.Mode),
		UID: f.UID, GID: f.GID, Size: f.Size, Target: escape(f.Target), Major: f.Major, Minor: f.Minor,
		SHA256: text(f.SHA256), Interpreter: escape(f.Interpreter),
	}
	if f.Kind == quarry.KindRegular {
		e.Kind = ""
	}
	if x := f.ELF; x != nil {
		e.ELF = &elfEntry{
			Arch: text(x.Arch), Type: text(x.Type), Interpreter: escape(x.Interpreter), Soname: escape(x.Soname),
			Needed: escapeAll(x.Needed), RPath: escapeAll(x.RPath), RunPath: escapeAll(x.RunPath),
			Static: x.Static, Stripped: x.Stripped, BuildID: text(x.BuildID), PIE: x.PIE, RELRO: text(x.RELRO), NX: x.NX, Symbols: text(x.Symbols), Exports: x.Exports,
		}
	}
	return e
}

// file is the way back. The first bad escape is what the error says.
func (e fileEntry) file() (quarry.File, error) {
	mode, err := strconv.ParseUint(e.Mode, 8, 32)
	if err != nil {
		return quarry.File{}, fmt.Errorf("its mode %.20q is no octal number", e.Mode)
	}
	if e.Path == "" {
		return quarry.File{}, fmt.Errorf("it has no path")
	}
	raw := func(s string) string {
		out, e := unescape(s)
		if e != nil && err == nil {
			err = e
		}
		return out
	}
	raws := func(ss []string) []string {
		var out []string
		for _, s := range ss {
			out = append(out, raw(s))
		}
		return out
	}
	f := quarry.File{
		Path: raw(e.Path), Kind: quarry.FileKind(e.Kind), Class: quarry.Class(e.Class), Mode: uint32(mode),
		UID: e.UID, GID: e.GID, Size: e.Size, Target: raw(e.Target), Major: e.Major, Minor: e.Minor,
		SHA256: e.SHA256, Interpreter: raw(e.Interpreter),
	}
	if f.Kind == "" {
		f.Kind = quarry.KindRegular
	}
	if x := e.ELF; x != nil {
		f.ELF = &quarry.ELF{
			Arch: x.Arch, Type: x.Type, Interpreter: raw(x.Interpreter), Soname: raw(x.Soname),
			Needed: raws(x.Needed), RPath: raws(x.RPath), RunPath: raws(x.RunPath),
			Static: x.Static, Stripped: x.Stripped, BuildID: x.BuildID, PIE: x.PIE, RELRO: x.RELRO, NX: x.NX, Symbols: x.Symbols, Exports: x.Exports,
		}
	}
	return f, err
}

func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }
