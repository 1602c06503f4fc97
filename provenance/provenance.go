// Package provenance says how an artifact was made, as an in-toto statement (v1)
// with the predicate of SLSA (v1), and signs and checks that. doc/trust.md is the
// description of the form, and of how to check it with ssh-keygen alone.
package provenance

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/trust"
)

// Types that statements name. BuildType is where the parameters are described.
const (
	StatementType = "https://in-toto.io/Statement/v1"
	PredicateType = "https://slsa.dev/provenance/v1"
	BuildType     = "https://github.com/Morphux/quarry/blob/main/doc/trust.md#build-type-1"
	PayloadType   = "application/vnd.in-toto+json"
)

// TreeDigest names the measure of bases and instances: SHA-256 over what a system
// holds, and not over an archive of it.
const TreeDigest = "quarryTree256"

// Farm is what a statement says of who built, besides what the record has.
type Farm struct {
	ID    string // of the builder, a URI: see [BuilderID]
	Repos string // what the packages' repositories are below, e.g. ssh://farm:2222
}

// BuilderID is the URI of a builder: where its pages are, if it has any, else its
// name.
func BuilderID(url, name string) string {
	if url != "" {
		return strings.TrimSuffix(url, "/") + "/builders/" + name
	}
	return "urn:quarry:builder:" + cmp.Or(name, "unknown")
}

// The statement; fields in the order in which they are written.
type (
	// Statement is in-toto's.
	Statement struct {
		Type          string    `json:"_type"`
		Subject       []Subject `json:"subject"`
		PredicateType string    `json:"predicateType"`
		Predicate     Predicate `json:"predicate"`
	}
	Subject struct {
		Name   string            `json:"name"`
		Digest map[string]string `json:"digest"`
	}
	// Predicate is SLSA's.
	Predicate struct {
		Definition Definition `json:"buildDefinition"`
		Details    Details    `json:"runDetails"`
	}
	Definition struct {
		BuildType string     `json:"buildType"`
		External  External   `json:"externalParameters"`
		Internal  Internal   `json:"internalParameters"`
		Resolved  []Resource `json:"resolvedDependencies"`
	}
	// External is what people have decided: a push, or who asked for a rebuild.
	External struct {
		Package string   `json:"package"`
		Version string   `json:"version"`
		Arch    string   `json:"arch"`
		Channel string   `json:"channel"`
		Source  Source   `json:"source"`
		Recipe  string   `json:"recipe,omitempty"` // SHA-256 of package.json
		Push    *Push    `json:"push,omitempty"`
		Nonce   string   `json:"nonce,omitempty"`
		Why     string   `json:"why,omitempty"`
		Without []string `json:"without,omitempty"`
	}
	Source struct {
		Repository string `json:"repository"`
		Ref        string `json:"ref"`
		Commit     string `json:"commit"`
	}
	Push struct {
		By          string     `json:"by,omitempty"`
		Name        string     `json:"name,omitempty"`
		Email       string     `json:"email,omitempty"`
		Key         string     `json:"key,omitempty"`         // that connected
		Signed      string     `json:"signed,omitempty"`      // key that signed the certificate
		Certificate string     `json:"certificate,omitempty"` // its blob
		At          *time.Time `json:"at,omitempty"`
	}
	// Internal is what the farm has decided.
	Internal struct {
		Build     int64            `json:"build"`
		Attempt   int              `json:"attempt,omitempty"`
		Worker    string           `json:"worker,omitempty"`
		Emulation string           `json:"emulation,omitempty"`
		Cross     string           `json:"cross,omitempty"`
		Kernel    string           `json:"kernel,omitempty"`
		Runtime   string           `json:"runtime,omitempty"`
		CPUs      int              `json:"cpus,omitempty"`
		Jobs      int              `json:"jobs,omitempty"`
		Command   string           `json:"command,omitempty"`
		Network   bool             `json:"network"`
		Epoch     int64            `json:"sourceDateEpoch"`
		Limits    map[string]int64 `json:"limits,omitempty"` // bytes, seconds, counts; none: no limit
	}
	// Resource is in-toto's ResourceDescriptor.
	Resource struct {
		Name        string            `json:"name,omitempty"`
		URI         string            `json:"uri,omitempty"`
		Digest      map[string]string `json:"digest"`
		Annotations map[string]any    `json:"annotations,omitempty"`
	}
	Details struct {
		Builder  Builder    `json:"builder"`
		Metadata Metadata   `json:"metadata"`
		By       []Resource `json:"byproducts,omitempty"`
	}
	Builder struct {
		ID      string            `json:"id"`
		Version map[string]string `json:"version,omitempty"`
	}
	Metadata struct {
		Invocation string     `json:"invocationId"`
		Started    *time.Time `json:"startedOn,omitempty"`
		Finished   *time.Time `json:"finishedOn,omitempty"`
	}
)

// New is the statement on the success in a record: the same for the same record.
func New(rec *results.Record, farm Farm) (*Statement, error) {
	if rec.Status != quarry.Succeeded || rec.Artifact == "" {
		return nil, fmt.Errorf("%s made no artifact that could be attested", rec.Target())
	}
	repo := strings.TrimSuffix(farm.Repos, "/") + "/" + rec.Package + ".git"
	branch := quarry.Branch(rec.Package, rec.Version)
	ref := "refs/heads/" + branch
	s := &Statement{
		Type: StatementType, PredicateType: PredicateType,
		Subject: []Subject{{Name: branch + "-" + rec.Arch + ".tar.zst", Digest: sha256Of(rec.Artifact)}},
	}
	h := rec.Host
	d := &s.Predicate.Definition
	d.BuildType = BuildType
	d.External = External{
		Package: rec.Package, Version: rec.Version, Arch: rec.Arch, Channel: rec.Channel,
		Source: Source{repo, ref, rec.Source}, Recipe: rec.Recipe.Digest, Nonce: rec.Nonce, Why: rec.Why, Without: rec.Without,
	}
	if p := rec.Packager; p != (quarry.Packager{}) || !rec.Pushed.IsZero() {
		d.External.Push = &Push{By: p.User, Name: p.Name, Email: p.Email, Key: p.Key, Signed: p.Signed, Certificate: p.Certificate, At: moment(rec.Pushed)}
	}
	d.Internal = Internal{
		Build: rec.Build, Attempt: rec.Attempt, Worker: h.Builder, Emulation: h.Emulation, Cross: h.Cross, Kernel: h.Kernel,
		Runtime: h.Runtime, CPUs: h.CPUs, Jobs: h.Jobs, Command: h.Command, Epoch: max(0, rec.SourceTime.Unix()),
		Limits: map[string]int64{},
	}
	for name, n := range map[string]int64{"memory": h.Memory, "disk": h.Disk, "processes": h.Processes, "step": h.Step, "silence": h.Silence, "log": h.Log} {
		if n > 0 {
			d.Internal.Limits[name] = n
		}
	}
	d.Resolved = append(d.Resolved, Resource{Name: "source", URI: "git+" + repo + "@" + ref, Digest: map[string]string{"gitCommit": rec.Source}})
	if c := rec.Packager.Certificate; c != "" {
		d.Resolved = append(d.Resolved, Resource{Name: "push certificate", URI: "git+" + repo + "@refs/quarry/cert/" + c, Digest: map[string]string{"gitBlob": c}})
	}
	for _, dep := range rec.Dependencies {
		arch := cmp.Or(dep.Arch, rec.Arch)
		d.Resolved = append(d.Resolved, Resource{
			Name: dep.Package + " " + dep.Version, URI: "pkg:generic/morphux/" + purl(dep.Package) + "@" + purl(dep.Version) + "?arch=" + purl(arch),
			Digest: sha256Of(dep.Artifact), Annotations: map[string]any{"direct": dep.Direct},
		})
	}
	for _, r := range []struct{ name, digest string }{{"base", h.Base}, {"instance", h.Instance}} {
		if r.digest != "" {
			d.Resolved = append(d.Resolved, Resource{Name: r.name, Digest: map[string]string{TreeDigest: strings.TrimPrefix(r.digest, "sha256:")}})
		}
	}
	if h.Binary != "" {
		d.Resolved = append(d.Resolved, Resource{Name: "quarry", Digest: sha256Of(h.Binary), Annotations: map[string]any{"version": h.Quarry}})
	}
	s.Predicate.Details = Details{
		Builder:  Builder{ID: farm.ID},
		Metadata: Metadata{Invocation: rec.Key, Started: moment(rec.Started), Finished: moment(rec.Ended)},
	}
	if h.Quarry != "" {
		s.Predicate.Details.Builder.Version = map[string]string{"quarry": h.Quarry}
	}
	if rec.LogSum != "" {
		s.Predicate.Details.By = []Resource{{Name: "log", Digest: sha256Of(rec.LogSum)}}
	}
	return s, nil
}

func sha256Of(hex string) map[string]string { return map[string]string{"sha256": hex} }

// moment is a time as statements have it, whole seconds: more is no use, and
// not all readers take it.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC().Truncate(time.Second)
	return &t
}

// purl escapes what a package URL cannot hold of the letters that names have.
func purl(s string) string { return strings.ReplaceAll(s, "+", "%2B") }

// Encode writes a statement, the same for the same statement, a line for each key.
func (s *Statement) Encode() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(s); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Prove makes the statement on a record and signs it.
func Prove(rec *results.Record, farm Farm, signer *trust.Signer) (p results.Provenance, err error) {
	s, err := New(rec, farm)
	if err != nil {
		return p, err
	}
	if p.Statement, err = s.Encode(); err != nil {
		return p, err
	}
	p.Signature, err = signer.Sign(trust.Provenance, PAE(p.Statement))
	return p, err
}

// PAE is what is signed of a statement: the pre-authentication encoding of DSSE v1.
func PAE(statement []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(PayloadType), PayloadType, len(statement), statement)
}

// envelope is DSSE's.
type envelope struct {
	PayloadType string `json:"payloadType"`
	Payload     []byte `json:"payload"`
	Signatures  []struct {
		KeyID string `json:"keyid"`
		Sig   []byte `json:"sig"`
	} `json:"signatures"`
}

// Envelope is a provenance as one DSSE envelope (JSON), for programs that want one.
// sig is the armoured SSH signature in base64, keyid the fingerprint of the key.
func Envelope(p results.Provenance) ([]byte, error) {
	sig, err := sshsig.Unarmor(bytes.TrimSpace(p.Signature))
	if err != nil {
		return nil, fmt.Errorf("signature cannot be read: %w", err)
	}
	e := envelope{PayloadType: PayloadType, Payload: p.Statement}
	e.Signatures = append(e.Signatures, struct {
		KeyID string `json:"keyid"`
		Sig   []byte `json:"sig"`
	}{ssh.FingerprintSHA256(sig.PublicKey), p.Signature})
	data, err := json.Marshal(e)
	return append(data, '\n'), err
}

// maxEnvelope is the most bytes of an envelope that are read.
const maxEnvelope = 32 << 20

// Open is the way back.
func Open(data []byte) (p results.Provenance, err error) {
	var e envelope
	if len(data) > maxEnvelope {
		return p, fmt.Errorf("envelope has %d bytes: %d is the most", len(data), maxEnvelope)
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return p, fmt.Errorf("envelope cannot be read: %w", err)
	}
	if e.PayloadType != PayloadType {
		return p, fmt.Errorf("envelope holds %.60q, not %s", e.PayloadType, PayloadType)
	}
	if len(e.Signatures) != 1 {
		return p, fmt.Errorf("envelope has %d signatures: a farm makes one", len(e.Signatures))
	}
	return results.Provenance{Statement: e.Payload, Signature: e.Signatures[0].Sig}, nil
}

// Verify checks the signature of a provenance as of a time, and that it says of a
// record what the record says. It returns the key that signed.
func Verify(p results.Provenance, rec *results.Record, signers trust.AllowedSigners, at time.Time) (ssh.PublicKey, error) {
	key, err := signers.Verify(trust.Provenance, PAE(p.Statement), p.Signature, at)
	if err != nil {
		return nil, err
	}
	return key, Check(p.Statement, rec)
}

// ErrDiffers is wrapped by the error for a statement that does not fit a record.
var ErrDiffers = errors.New("the statement does not fit the record")

// Check compares a statement with the record that it stands beside: all that both
// have must be the same.
func Check(statement []byte, rec *results.Record) error {
	var s Statement
	d := json.NewDecoder(bytes.NewReader(statement))
	if err := d.Decode(&s); err != nil {
		return fmt.Errorf("statement cannot be read: %w", err)
	}
	if d.More() {
		return errors.New("statement is followed by something")
	}
	if s.Type != StatementType || s.PredicateType != PredicateType {
		return fmt.Errorf("statement is a %.80q with a %.80q, and not %s with %s", s.Type, s.PredicateType, StatementType, PredicateType)
	}
	if t := s.Predicate.Definition.BuildType; t != BuildType {
		return fmt.Errorf("build type %.100q is not known here: use a newer Quarry", t)
	}
	// What only the farm knew is taken from the statement; the rest is made anew.
	repo, _ := strings.CutSuffix(s.Predicate.Definition.External.Source.Repository, "/"+rec.Package+".git")
	want, err := New(rec, Farm{ID: s.Predicate.Details.Builder.ID, Repos: repo})
	if err != nil {
		return err
	}
	is, err1 := s.Encode()
	should, err2 := want.Encode()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	a, b := strings.Split(string(is), "\n"), strings.Split(string(should), "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Errorf("%w: it says %.200s where %.200s would", ErrDiffers, strings.TrimSpace(a[i]), strings.TrimSpace(b[i]))
		}
	}
	if len(a) != len(b) {
		return fmt.Errorf("%w: it has %d lines where %d would", ErrDiffers, len(a), len(b))
	}
	return nil
}
