package images

import "testing"

// Who looked a base up before another took its place, and hears of it late, does
// not bring the old one back.
func TestLateAnswer(t *testing.T) {
	s := &Store{bases: map[string]Base{}}
	old := Base{Arch: "x86_64", Image: "sha256:old"}
	since := s.looking()
	s.remember(since, old)
	if s.bases["x86_64"] != old {
		t.Error("what podman says is not remembered")
	}
	since = s.looking()
	s.forget("x86_64")
	s.remember(since, old)
	if b, ok := s.bases["x86_64"]; ok {
		t.Errorf("%+v is back", b)
	}
	since = s.looking()
	s.forgetAll()
	s.remember(since, old)
	if b, ok := s.bases["x86_64"]; ok {
		t.Errorf("%+v is back", b)
	}
}
