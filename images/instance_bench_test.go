package images_test

import (
	"testing"

	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/podman"
	"github.com/Morphux/quarry/internal/testbase"
)

// BenchmarkInstance is what making an instance takes beside the setup's own
// commands, for layers of several sizes.
func BenchmarkInstance(b *testing.B) {
	for name, line := range map[string]string{
		"empty": "true", "10MB-1000files": "mkdir /d && cd /d && dd if=/dev/urandom of=f bs=10k count=1 && for i in $(seq 1000); do cp f $i; done",
		"200MB-20files": "mkdir /d && cd /d && for i in $(seq 20); do dd if=/dev/urandom of=$i bs=1M count=10; done",
	} {
		b.Run(name, func(b *testing.B) {
			f, _ := setupFarm(b, images.Setup{Update: []string{line + " 2>/dev/null; date +%N >/now"}})
			for b.Loop() {
				f.update(b, true)
			}
		})
	}
}

// BenchmarkSanitize is what it takes to have one environment vanilla again, the
// whole base read included.
func BenchmarkSanitize(b *testing.B) {
	f, _ := farmWith(b, startPodman(b, podman.Config{}), channel(images.Setup{Update: []string{"date >/now"}}))
	if _, err := f.store.Load(b.Context(), testbase.Arch, testbase.Tarball(b), nil); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := f.store.Sanitize(b.Context(), images.SanitizeOptions{}, nil); err != nil {
			b.Fatal(err)
		}
	}
}
