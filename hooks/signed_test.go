package hooks

import (
	"strings"
	"testing"
)

func TestCertificateRefs(t *testing.T) {
	id, none := strings.Repeat("a", 40), strings.Repeat("0", 40)
	head := "certificate version 0.1\npusher SHA256:x 1700000000 +0000\nnonce n\n\n"
	sig := "-----BEGIN SSH SIGNATURE-----\nx\n-----END SSH SIGNATURE-----\n"
	list, err := certificateRefs([]byte(head + none + " " + id + " refs/heads/hello-1.0\n" + id + " " + none + " refs/tags/a\n" + sig))
	if err != nil || len(list) != 2 || list[0] != [3]string{none, id, "refs/heads/hello-1.0"} || list[1][2] != "refs/tags/a" {
		t.Errorf("%q, %v", list, err)
	}
	for _, bad := range []string{"", head, head + sig[1:], "certificate version 0.2\n\n" + sig, head + "x\n" + sig, head + id + " " + id + "\n" + sig, head + id + " " + id + " \n" + sig} {
		if list, err := certificateRefs([]byte(bad)); err == nil {
			t.Errorf("%q is read as %q", bad, list)
		}
	}
}

func FuzzCertificateRefs(f *testing.F) {
	f.Add([]byte("certificate version 0.1\npusher x\n\n" + strings.Repeat("a", 40) + " " + strings.Repeat("0", 40) + " refs/heads/x\n-----BEGIN SSH SIGNATURE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := certificateRefs(text)
		if err != nil {
			return
		}
		for _, r := range list {
			if !isOID(r[0]) || !isOID(r[1]) || r[2] == "" || strings.Contains(r[2], "\n") {
				t.Fatalf("%q", r)
			}
		}
	})
}

// A channel that takes only signed pushes is so for hooks, too.
func TestSignedChannelWord(t *testing.T) {
	for _, c := range []Channel{{Name: "a"}, {Name: "a", Signed: true}, {Name: "a", Push: []string{"alice", "role:admin"}, Signed: true}, {Name: "a", Push: []string{"bob"}}} {
		if got := parseChannel(c.String()); got.String() != c.String() || got.Signed != c.Signed || got.Name != c.Name {
			t.Errorf("%+v is read as %+v", c, got)
		}
	}
}
