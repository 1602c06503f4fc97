package results

import (
	"fmt"

	"github.com/go-git/go-git/v5/plumbing"

	"github.com/Morphux/quarry"
)

// Endings of the files that say how an artifact was made.
const (
	provenanceExt = ".provenance.json"
	provenSigExt  = ".provenance.sig"
)

// Provenance says how the artifact of a record was made, in words that others than
// Quarry understand, signed by the farm; doc/trust.md has the form.
type Provenance struct {
	Statement []byte // an in-toto statement, JSON
	Signature []byte // of an SSH key, detached; over the statement in DSSE's encoding
}

func (p Provenance) whole() bool { return len(p.Statement) > 0 && len(p.Signature) > 0 }

// ProvenancePath is where the statement of a target's success lies, e.g.
// packages/zl/ib/zlib/1.3.1/x86_64.provenance.json.
func ProvenancePath(t quarry.Target) string { return targetPath(packagesDir, t, provenanceExt) }

// ProvenanceSigPath is where its signature lies, e.g.
// packages/zl/ib/zlib/1.3.1/x86_64.provenance.sig.
func ProvenanceSigPath(t quarry.Target) string { return targetPath(packagesDir, t, provenSigExt) }

// provenancePaths are both; who moves a record moves them with it.
var provenancePaths = []func(quarry.Target) string{ProvenancePath, ProvenanceSigPath}

// Provenance reads how the success of a target was made. It is [ErrNotFound] for
// what has no record, or one from before the farm said so.
func (s *Snapshot) Provenance(pkg, version, arch string) (p Provenance, err error) {
	if err := checkPlace(pkg, version, arch); err != nil {
		return p, err
	}
	t := s.target(pkg, version, arch)
	for i, to := range []*[]byte{&p.Statement, &p.Signature} {
		path := provenancePaths[i](t)
		h, err := s.blob(path)
		if err == nil && h.IsZero() {
			return Provenance{}, fmt.Errorf("provenance of %s in channel %s: %w", t, s.channel, ErrNotFound)
		}
		if err == nil {
			*to, err = s.odb.get(plumbing.BlobObject, h)
		}
		if err != nil {
			return Provenance{}, s.bad(path, err)
		}
	}
	return p, nil
}

// prove has a success's provenance made and signed, if the farm does that.
func (r *Repo) prove(rec *Record) (p Provenance, err error) {
	if r.opts.Prove == nil || rec.Status != quarry.Succeeded {
		return p, nil
	}
	if p, err = r.opts.Prove(rec); err == nil && len(p.Statement)+len(p.Signature) > maxRecord {
		err = fmt.Errorf("it has %d bytes: %d is the most", len(p.Statement), maxRecord)
	}
	if err != nil {
		return p, fmt.Errorf("how it was made cannot be attested: %w", err)
	}
	return p, nil
}

// edits puts the provenance where it belongs, or takes away what is there of an
// older build.
func (p Provenance) edits(t quarry.Target) []edit {
	if !p.whole() {
		return []edit{{path: ProvenancePath(t)}, {path: ProvenanceSigPath(t)}}
	}
	return []edit{{path: ProvenancePath(t), blob: p.Statement}, {path: ProvenanceSigPath(t), blob: p.Signature}}
}
