package images

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	quarry "github.com/Morphux/quarry"
)

// BaseRef names a base: ARCH for the default base of an arch, ARCH:NAME for a
// further one, e.g. x86_64:trixie.
type BaseRef struct {
	Arch string // as uname -m prints it
	Name string // "" for the arch's default base
}

// ParseBaseRef reads a ref as people write it. An arch follows the grammar of
// archs, a name that of channels: lower-case letters, digits and dashes.
func ParseBaseRef(s string) (BaseRef, error) {
	arch, name, named := strings.Cut(s, ":")
	if err := quarry.CheckArch(arch); err != nil {
		return BaseRef{}, fmt.Errorf("base %.80q: %w", s, err)
	}
	if arch == quarry.Noarch {
		return BaseRef{}, errors.New("noarch has no base of its own: its packages build on any other")
	}
	if named {
		if err := checkBaseName(name); err != nil {
			return BaseRef{}, fmt.Errorf("base %.80q: %w", s, err)
		}
	}
	return BaseRef{arch, name}, nil
}

// checkBaseName has the grammar of channels, which a base is as a rule named
// after, and which podman takes as part of a tag.
func checkBaseName(name string) error {
	if quarry.CheckChannel(name) != nil {
		return fmt.Errorf("%.40q can be no base's name: use up to %d lower-case ASCII letters, digits and -, beginning with a letter", name, quarry.MaxArch)
	}
	return nil
}

// String writes the ref as [ParseBaseRef] reads it.
func (r BaseRef) String() string {
	if r.Name == "" {
		return r.Arch
	}
	return r.Arch + ":" + r.Name
}

// tag is the image's tag. No arch has a dot, so it can be taken apart again.
// The arch is the tag and not a part of the repository's name, because that
// takes no capitals.
func (r BaseRef) tag() string {
	if r.Name == "" {
		return r.Arch
	}
	return r.Arch + "." + r.Name
}

// image is the whole name by which podman knows the base.
func (r BaseRef) image() string { return repository + ":" + r.tag() }

// parseTag is the reverse of tag; ok is false for a tag that no base has.
func parseTag(tag string) (ref BaseRef, ok bool) {
	ref, err := ParseBaseRef(strings.Replace(tag, ".", ":", 1))
	return ref, err == nil && ref.tag() == tag
}

// chainID is the OCI image specification's ChainID of layers, given their
// DiffIDs (digests of the uncompressed layers) from the lowest up: it covers
// all content of the system, and nothing that differs from one loading of it
// to the next.
func chainID(diffs []string) (string, error) {
	if len(diffs) == 0 {
		return "", errors.New("image has no layers: a base is a whole system")
	}
	chain := ""
	for i, d := range diffs {
		if !isDigest(d) {
			return "", fmt.Errorf("image's layer %.90q is no sha256 digest", d)
		}
		if i == 0 {
			chain = d
			continue
		}
		sum := sha256.Sum256([]byte(chain + " " + d))
		chain = "sha256:" + hex.EncodeToString(sum[:])
	}
	return chain, nil
}

// isDigest reports whether s is a SHA-256 as podman writes it.
func isDigest(s string) bool {
	hexa, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(hexa) != 64 {
		return false
	}
	for i := range len(hexa) {
		if c := hexa[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func digestOfText(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha256:" + hex.EncodeToString(sum[:])
}
