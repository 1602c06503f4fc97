package results

import (
	"strings"
	"testing"
	"time"
)

func sampleVote() *Vote {
	hex := func(c string, n int) string { return strings.Repeat(c, n) }
	return &Vote{
		Package: "zlib", Version: "1.3.1", Arch: "x86_64", Channel: "testing", Record: hex("a", 40), Build: 17, Key: hex("b", 64), Source: hex("c", 40),
		Artifact: hex("d", 64), Same: true, Got: hex("d", 64), Builder: "farm1", At: time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC), Quarry: "v1",
	}
}

const sampleSig = "-----BEGIN SSH SIGNATURE-----\nAAAA\n-----END SSH SIGNATURE-----\n"

func TestVoteText(t *testing.T) {
	v := sampleVote()
	v.Same, v.Got = false, strings.Repeat("e", 64)
	v.Changed = []string{"instance"}
	v.Differences = []string{"/usr/bin/x: content", "  ELF section .rodata", "\x1b[2J" + strings.Repeat("y", 1000), sampleSig}
	for range 60 {
		v.Differences = append(v.Differences, "more")
	}
	text, err := v.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseVote(append(text, sampleSig...))
	if err != nil {
		t.Fatal(err)
	}
	if got.Got != v.Got || got.Build != 17 || len(got.Differences) != maxVoteLines || got.Differences[1] != "  ELF section .rodata" || len(got.Differences[2]) > 300 || strings.ContainsRune(got.Differences[2], 0x1b) {
		t.Errorf("got %+v", got)
	}
	// A line that looks like a signature is none: the text is taken whole.
	body, sig, err := SplitVote(append(text, sampleSig...))
	if err != nil || string(body) != string(text) || string(sig) != sampleSig {
		t.Errorf("taken apart as\n%s\nand\n%s\n%v", body, sig, err)
	}
	again, err := got.Marshal()
	if err != nil || string(again) != string(text) {
		t.Errorf("written again it is\n%s\nand was\n%s\n%v", again, text, err)
	}
	for name, spoil := range map[string]func(*Vote){
		"no artifact": func(v *Vote) { v.Artifact = "" }, "lie": func(v *Vote) { v.Got = strings.Repeat("e", 64) },
		"odd package": func(v *Vote) { v.Package = "../x" }, "no time": func(v *Vote) { v.At = time.Time{} }, "no builder": func(v *Vote) { v.Builder = "" },
		"odd digest": func(v *Vote) { v.Got = "x"; v.Same = false }, "no build": func(v *Vote) { v.Build = 0 },
	} {
		v := sampleVote()
		spoil(v)
		if _, err := v.Marshal(); err == nil {
			t.Errorf("%s: it is written", name)
		}
	}
	if _, err := ParseVote([]byte("schema = 2\n")); err == nil {
		t.Error("a vote of another schema is read")
	}
	if _, err := ParseVote(make([]byte, maxVote+1)); err == nil {
		t.Error("a huge vote is read")
	}
}

// TestVotes keeps votes, by key, and finds them in packed refs and in clones.
func TestVotes(t *testing.T) {
	repo := open(t, Options{MaxPacks: -1})
	v := sampleVote()
	text, err := v.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	one, two := strings.Repeat("1", 64), strings.Repeat("2", 64)
	if err := repo.KeepVote(t.Context(), one, text); err == nil {
		t.Error("a vote without a signature is kept")
	}
	signed := append(text, sampleSig...)
	if err := repo.KeepVote(t.Context(), "x/../y", signed); err == nil {
		t.Error("a key that is none is a name")
	}
	for _, key := range []string{one, two, one} {
		if err := repo.KeepVote(t.Context(), key, signed); err != nil {
			t.Fatal(err)
		}
	}
	check := func(get func(string) (map[string][]byte, error)) {
		t.Helper()
		votes, err := get(v.Artifact)
		if err != nil || len(votes) != 2 || string(votes[one]) != string(signed) || string(votes[two]) != string(signed) {
			t.Errorf("got %d votes, %v", len(votes), err)
		}
		if votes, err := get(strings.Repeat("f", 64)); err != nil || len(votes) != 0 {
			t.Errorf("another artifact has %d votes, %v", len(votes), err)
		}
	}
	check(repo.Votes)
	git(t, repo.Path(), "pack-refs", "--all")
	check(repo.Votes)
	// What somebody puts there by hand is told of, and hides no other.
	blob := strings.TrimSpace(git(t, repo.Path(), "rev-parse", "refs/quarry/votes/"+v.Artifact+"/"+one))
	other := strings.Repeat("e", 64)
	git(t, repo.Path(), "update-ref", "refs/quarry/votes/"+other+"/"+one, blob)
	if votes, err := repo.Votes(other); err == nil || len(votes) != 0 {
		t.Errorf("a vote on another artifact counts: %d, %v", len(votes), err)
	}
	check(repo.Votes)
}
