package bundle

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"
	"testing"
)

// watched is a reader that tells when it is first read, and holds it up.
type watched struct {
	io.Reader
	begin func()
	once  sync.Once
}

func (w *watched) Read(p []byte) (int, error) {
	w.once.Do(w.begin)
	return w.Reader.Read(p)
}

// However many bundles come at once, no more are unpacked than may be.
func TestCheckAtOnce(t *testing.T) {
	p, err := New(Options{Dir: t.TempDir(), AtOnce: 2})
	if err != nil {
		t.Fatal(err)
	}
	data := gzipped(t, pack(t, entry{name: "package.json", data: hello}))
	var under atomic.Int32
	begun, goOn := make(chan struct{}, 10), make(chan struct{})
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			tree, err := p.Check(&watched{Reader: bytes.NewReader(data), begin: func() {
				if n := under.Add(1); n > 2 {
					t.Errorf("%d are looked at at once", n)
				}
				begun <- struct{}{}
				<-goOn
				under.Add(-1)
			}})
			if err != nil || tree.Package != "hello" {
				t.Errorf("%+v, %v", tree, err)
			}
		})
	}
	for range 2 {
		<-begun
	}
	close(goOn)
	all.Wait()
}
