package provenance

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	slsa "github.com/in-toto/attestation/go/predicates/provenance/v1"
	intoto "github.com/in-toto/attestation/go/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
	"github.com/Morphux/quarry/results/resultstest"
	"github.com/Morphux/quarry/trust"
)

var farm = Farm{ID: BuilderID("https://farm.example.org/", "farm1"), Repos: "ssh://farm.example.org:2222"}

func signer(t testing.TB) *trust.Signer {
	t.Helper()
	s, err := trust.Open(filepath.Join(t.TempDir(), "signing_key"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func signers(s *trust.Signer) trust.AllowedSigners {
	return trust.AllowedSigners{{Principal: "quarry@localhost", Key: s.Public(), Namespaces: []string{trust.Git, trust.Provenance}}}
}

// outcome is a success with something in all that a statement says.
func outcome(i int, number int64) *quarry.Outcome {
	o := resultstest.Outcome(i, 0, "x86_64", number)
	o.Build.Nonce, o.Build.Why, o.Build.Without = "abi-3-00ff", "libfoo has changed", []string{"bash"}
	o.Build.Key = quarry.BuildKey(o.Build.Target(), o.Build.Commit, o.Build.Nonce)
	o.Build.Packager.Signed, o.Build.Packager.Certificate = "SHA256:other", strings.Repeat("0c", 20)
	o.LogSum = strings.Repeat("10", 32)
	o.Host.Cross, o.Host.Command, o.Host.Jobs, o.Host.Binary, o.Host.Step, o.Host.Silence, o.Host.Log = "i686", "mpm build", 2, strings.Repeat("b1", 32), 3600, 600, 64<<20
	o.Deps = append(o.Deps, quarry.DepUsed{Package: "gcc", Version: "14.2+really", Arch: "i686", Artifact: strings.Repeat("9c", 32)})
	return o
}

func record(t testing.TB, o *quarry.Outcome) *results.Record {
	t.Helper()
	rec, err := results.NewRecord(o, 0)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// The reference implementation of the form reads what is written, without a key
// that it does not know, and finds nothing missing.
func TestForm(t *testing.T) {
	o := outcome(61, 7)
	rec := record(t, o)
	s, err := New(rec, farm)
	if err != nil {
		t.Fatal(err)
	}
	text, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var statement intoto.Statement
	if err := protojson.Unmarshal(text, &statement); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if err := statement.Validate(); err != nil {
		t.Error(err)
	}
	if statement.GetType() != intoto.StatementTypeUri || statement.GetPredicateType() != PredicateType {
		t.Errorf("it is a %s with %s", statement.GetType(), statement.GetPredicateType())
	}
	predicate, err := protojson.Marshal(statement.GetPredicate())
	if err != nil {
		t.Fatal(err)
	}
	var made slsa.Provenance
	if err := protojson.Unmarshal(predicate, &made); err != nil {
		t.Fatalf("%v\n%s", err, predicate)
	}
	if err := made.Validate(); err != nil {
		t.Error(err)
	}

	digests := map[string]string{}
	for _, r := range made.GetBuildDefinition().GetResolvedDependencies() {
		for _, d := range r.GetDigest() {
			digests[r.GetName()] = d
		}
	}
	want := map[string]string{
		"source": rec.Source, "push certificate": rec.Packager.Certificate, "quarry": rec.Host.Binary,
		"base": strings.TrimPrefix(rec.Host.Base, "sha256:"), "instance": strings.TrimPrefix(rec.Host.Instance, "sha256:"),
	}
	for _, d := range rec.Dependencies {
		want[d.Package+" "+d.Version] = d.Artifact
	}
	if len(rec.Dependencies) < 2 {
		t.Fatalf("the record has %d dependencies: this test needs more", len(rec.Dependencies))
	}
	for name, d := range want {
		if digests[name] != d {
			t.Errorf("the digest of %s is %q, and %q is right", name, digests[name], d)
		}
	}
	if len(digests) != len(want) {
		t.Errorf("there are %d resolved dependencies, %v: %d are right", len(digests), digests, len(want))
	}
	if got := statement.GetSubject()[0].GetDigest()["sha256"]; got != rec.Artifact {
		t.Errorf("the subject is %s", got)
	}
	details := made.GetRunDetails()
	if id := details.GetBuilder().GetId(); id != "https://farm.example.org/builders/farm1" {
		t.Errorf("the builder is %s", id)
	}
	if details.GetMetadata().GetInvocationId() != rec.Key || !details.GetMetadata().GetFinishedOn().AsTime().Equal(rec.Ended.Truncate(time.Second)) {
		t.Errorf("the metadata is %v", details.GetMetadata())
	}
	if by := details.GetByproducts(); len(by) != 1 || by[0].GetDigest()["sha256"] != rec.LogSum {
		t.Errorf("the byproducts are %v", by)
	}
	external := made.GetBuildDefinition().GetExternalParameters().AsMap()
	if external["channel"] != rec.Channel || external["recipe"] != rec.Recipe.Digest || external["why"] != rec.Why || external["push"].(map[string]any)["signed"] != "SHA256:other" {
		t.Errorf("the external parameters are %v", external)
	}
	if limits := made.GetBuildDefinition().GetInternalParameters().AsMap()["limits"].(map[string]any); len(limits) != 6 || limits["log"] != float64(64<<20) {
		t.Errorf("the limits are %v", limits)
	}
	if again, err := New(record(t, outcome(61, 7)), farm); err != nil {
		t.Error(err)
	} else if second, _ := again.Encode(); !bytes.Equal(text, second) {
		t.Error("the statement on the same record is another one")
	}
	if _, err := New(record(t, resultstest.Failure(1, 0, "x86_64", 1)), farm); err == nil {
		t.Error("there is a statement on a failure")
	}
}

// A record of which little is known has a statement that is well-formed, too.
func TestLittleKnown(t *testing.T) {
	rec := &results.Record{Status: quarry.Succeeded, Package: "a", Version: "1", Arch: "noarch", Channel: "testing", Source: strings.Repeat("ab", 20),
		Key: strings.Repeat("ab", 32), Artifact: strings.Repeat("cd", 32)}
	s, err := New(rec, Farm{ID: BuilderID("", "")})
	if err != nil {
		t.Fatal(err)
	}
	text, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var statement intoto.Statement
	if err := protojson.Unmarshal(text, &statement); err != nil {
		t.Fatal(err)
	}
	if err := statement.Validate(); err != nil {
		t.Error(err)
	}
	if err := Check(text, rec); err != nil {
		t.Error(err)
	}
}

// TestOpenSSH checks a signature with the commands that doc/trust.md gives.
func TestOpenSSH(t *testing.T) {
	for _, tool := range []string{"sh", "ssh-keygen"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing: make deps installs what the tests need", tool)
		}
	}
	s := signer(t)
	p, err := Prove(record(t, outcome(61, 7)), farm, s)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("x86_64.provenance.json", p.Statement)
	write("x86_64.provenance.sig", p.Signature)
	write("allowed_signers", []byte(signers(s).String()))
	doc, err := os.ReadFile("../doc/trust.md")
	if err != nil {
		t.Fatal(err)
	}
	const script = `f=x86_64.provenance
{ printf 'DSSEv1 28 application/vnd.in-toto+json %d ' $(wc -c < $f.json); cat $f.json; } |
    ssh-keygen -Y verify -n quarry-slsa -I quarry@localhost -f allowed_signers -s $f.sig
`
	if !strings.Contains(strings.ReplaceAll(string(doc), "\n    ", "\n"), script) {
		t.Error("doc/trust.md does not have the commands that this test runs")
	}
	check := func() error {
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		t.Logf("%s", out)
		return err
	}
	if err := check(); err != nil {
		t.Error(err)
	}
	write("x86_64.provenance.json", bytes.Replace(p.Statement, []byte(`"network": false`), []byte(`"network": true`), 1))
	if err := check(); err == nil {
		t.Error("ssh-keygen takes another statement for the one that was signed")
	}
}

func TestVerify(t *testing.T) {
	s := signer(t)
	rec := record(t, outcome(61, 7))
	p, err := Prove(rec, farm, s)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if _, err := Verify(p, rec, signers(s), now); err != nil {
		t.Errorf("it is not taken: %v", err)
	}
	// What a repository has is what was given to sign.
	text, err := rec.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	read, err := results.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	read.Revision = 3 // is known only when it is written, and may change when a group lands
	if _, err := Verify(p, read, signers(s), now); err != nil {
		t.Errorf("it is not taken for the record as it is read: %v", err)
	}
	env, err := Envelope(p)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Open(env)
	if err != nil || !bytes.Equal(back.Statement, p.Statement) || !bytes.Equal(back.Signature, p.Signature) {
		t.Errorf("out of its envelope it is another: %v", err)
	}

	if _, err := Verify(p, rec, signers(signer(t)), now); !errors.Is(err, trust.ErrUntrusted) {
		t.Errorf("of a key that nobody trusts: %v", err)
	}
	old := signers(s)
	old[0].Before = now.Add(-time.Hour)
	if _, err := Verify(p, rec, old, now); !errors.Is(err, trust.ErrUntrusted) {
		t.Errorf("of a key that was given up before: %v", err)
	}
	git, err := s.Sign(trust.Git, PAE(p.Statement))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(results.Provenance{Statement: p.Statement, Signature: git}, rec, signers(s), now); err == nil {
		t.Error("a signature for another purpose is taken")
	}
	for what, change := range map[string]func(*results.Record){
		"artifact":   func(r *results.Record) { r.Artifact = strings.Repeat("0", 64) },
		"source":     func(r *results.Record) { r.Source = strings.Repeat("0", 40) },
		"packager":   func(r *results.Record) { r.Packager.User = "mallory" },
		"instance":   func(r *results.Record) { r.Host.Instance = "" },
		"dependency": func(r *results.Record) { r.Dependencies = r.Dependencies[1:] },
		"log":        func(r *results.Record) { r.LogSum = "" },
		"version":    func(r *results.Record) { r.Version = "2" },
		"key":        func(r *results.Record) { r.Key = strings.Repeat("0", 64) },
		"status":     func(r *results.Record) { r.Status = quarry.Failed },
	} {
		other := *rec
		change(&other)
		if _, err := Verify(p, &other, signers(s), now); err == nil {
			t.Errorf("it is taken for a record with another %s", what)
		}
	}
}

func FuzzCheck(f *testing.F) {
	rec := record(f, outcome(61, 7))
	s, err := New(rec, farm)
	if err != nil {
		f.Fatal(err)
	}
	text, err := s.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		Check(text, rec)
		if p, err := Open(text); err == nil {
			Envelope(p)
		}
	})
}

func BenchmarkProve(b *testing.B) {
	s := signer(b)
	rec := record(b, resultstest.Outcome(61, 0, "x86_64", 7))
	for b.Loop() {
		if _, err := Prove(rec, farm, s); err != nil {
			b.Fatal(err)
		}
	}
}
