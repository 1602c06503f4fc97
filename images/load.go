package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containers/podman/v4/pkg/bindings/images"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	quarry "github.com/Morphux/quarry"
)

// Load makes the base of an arch from a file: a tarball of a root file system,
// or an image archive as podman save and skopeo write it (oci-archive,
// docker-archive); each plain or compressed with gzip, bzip2, xz or zstd. What
// it is shows from its content, not its name. From the moment Load returns new
// workspaces use the base; when it fails, nothing has changed. progress may be
// nil; it is called from another goroutine, a few times a second.
func (s *Store) Load(ctx context.Context, arch, file string, progress func(Progress)) (Base, error) {
	if err := quarry.CheckArch(arch); err != nil {
		return Base{}, err
	}
	if arch == quarry.Noarch {
		return Base{}, errors.New("noarch has no base of its own: its packages build on any other")
	}
	f, err := os.Open(file)
	if err != nil {
		return Base{}, fmt.Errorf("base cannot be opened: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Base{}, err
	}
	if !st.Mode().IsRegular() {
		return Base{}, fmt.Errorf("base %s is not a regular file: give a tarball or an image archive", file)
	}
	return s.load(ctx, arch, f, filepath.Base(file), st.Size(), "reading", progress)
}

// load is Load from a stream; total is its size, 0 when not known.
func (s *Store) load(ctx context.Context, arch string, r io.Reader, source string, total int64, step string, progress func(Progress)) (Base, error) {
	if err := s.loading.Acquire(ctx, 1); err != nil {
		return Base{}, err
	}
	defer s.loading.Release(1)

	meter := &meter{r: r, total: total, step: step}
	stop := meter.report(progress)
	defer stop()
	plain, err := decompress(meter)
	if err != nil {
		return Base{}, fmt.Errorf("base %s cannot be read: %w", source, err)
	}
	defer plain.Close()
	buffered := bufio.NewReaderSize(plain, 1<<20)
	head, err := buffered.Peek(1 << 20)
	if err != nil && err != io.EOF && len(head) == 0 {
		return Base{}, fmt.Errorf("base %s cannot be read: %w", source, err)
	}
	kind, err := sniff(head)
	if err != nil {
		return Base{}, fmt.Errorf("base %s: %w", source, err)
	}
	call, err := s.conn.Context(ctx)
	if err != nil {
		return Base{}, err
	}
	body := &once{r: buffered, done: func() { meter.setStep("importing") }}
	var id string
	if kind == rootfs {
		id, err = s.importRootfs(call, arch, source, body)
	} else {
		id, err = s.loadArchive(call, body)
	}
	if err != nil {
		if body.err != nil && body.err != io.EOF && !errors.Is(body.err, errClosed) {
			err = body.err // why the stream broke says more than what podman made of it
		}
		return Base{}, fmt.Errorf("base %s cannot be imported: %w", source, gone(err))
	}
	meter.setStep("checking")
	return s.adopt(ctx, arch, id, source)
}

func (s *Store) importRootfs(call context.Context, arch, source string, body io.Reader) (string, error) {
	name, variant := ociArch(arch)
	changes := []string{
		"LABEL " + labelArch + "=" + arch,
		"LABEL " + labelSource + "=" + label(source),
	}
	opts := new(images.ImportOptions).WithArchitecture(name).WithOS("linux").WithChanges(changes)
	if variant != "" {
		opts = opts.WithVariant(variant)
	}
	report, err := images.Import(call, body, opts)
	if err != nil {
		return "", err
	}
	return report.Id, nil
}

// label makes text fit for a LABEL instruction.
func label(s string) string {
	return `"` + strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r == '"' || r == '\\' || r == '$' {
			return '_'
		}
		return r
	}, s) + `"`
}

// loadArchive loads an image archive and takes away the names that it brings:
// they could be anybody's.
func (s *Store) loadArchive(call context.Context, body io.Reader) (string, error) {
	report, err := images.Load(call, body)
	if err != nil {
		return "", err
	}
	if len(report.Names) == 0 {
		return "", errors.New("archive holds no image")
	}
	id := ""
	for _, name := range report.Names {
		img, err := images.GetImage(call, name, nil)
		if err != nil {
			return "", err
		}
		if id != "" && id != img.ID {
			return "", fmt.Errorf("archive holds several images (%s): save one alone", strings.Join(report.Names, ", "))
		}
		id = img.ID
	}
	for _, name := range report.Names {
		repo, tag, ok := cutTag(name)
		if ok && repo != repository {
			if err := images.Untag(call, id, tag, repo, nil); err != nil {
				return "", err
			}
		}
	}
	return id, nil
}

// cutTag takes an image name apart at its tag.
func cutTag(name string) (repo, tag string, ok bool) {
	i := strings.LastIndexByte(name, ':')
	if i < 0 || strings.Contains(name[i:], "/") || strings.Contains(name, "@") {
		return name, "", false
	}
	return name[:i], name[i+1:], true
}

type archiveKind int

const (
	rootfs archiveKind = iota
	imageArchive
)

// sniff tells from the beginning of a plain tar what it is. An image archive
// names itself by a file at its top; a system has folders there.
func sniff(head []byte) (archiveKind, error) {
	tr := tar.NewReader(bytes.NewReader(head))
	for n := 0; n < 64; n++ {
		h, err := tr.Next()
		if err != nil {
			if n == 0 {
				return 0, errors.New("it is no tar archive (nor one compressed with gzip, bzip2, xz or zstd): give a tarball of a root file system or an image archive")
			}
			break // the rest lies beyond head
		}
		switch strings.TrimPrefix(h.Name, "./") {
		case "oci-layout", "manifest.json", "index.json", "repositories", "blobs/", "blobs/sha256/":
			return imageArchive, nil
		}
	}
	return rootfs, nil
}

// decompress undoes whatever compression the stream's first bytes show.
func decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 256<<10)
	magic, err := b.Peek(6)
	if err != nil && len(magic) < 2 {
		return nil, errors.New("it is empty: give a tarball of a root file system or an image archive")
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(b)
	case bytes.HasPrefix(magic, []byte("BZh")):
		return io.NopCloser(bzip2.NewReader(b)), nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		d, err := zstd.NewReader(b, zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		return unxz(b)
	}
	return io.NopCloser(b), nil
}

// unxz uses the xz program where there is one: it is three times as fast as
// the pure Go reader, and bases are large.
func unxz(r io.Reader) (io.ReadCloser, error) {
	path, err := exec.LookPath("xz")
	if err != nil {
		d, err := xz.NewReader(r)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(d), nil
	}
	cmd := exec.Command(path, "--decompress", "--stdout", "--threads=0")
	cmd.Stdin = r
	cmd.WaitDelay = time.Second
	return startReader(cmd)
}

// commandReader reads a command's output; its failure is an error of the last
// Read.
type commandReader struct {
	io.ReadCloser
	cmd    *exec.Cmd
	errOut *tailBuffer
	wait   sync.Once
	err    error
}

func startReader(cmd *exec.Cmd) (*commandReader, error) {
	c := &commandReader{cmd: cmd, errOut: new(tailBuffer)}
	if cmd.Stderr == nil {
		cmd.Stderr = c.errOut
	}
	var err error
	if c.ReadCloser, err = cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *commandReader) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if err != nil {
		c.wait.Do(func() { c.err = c.cmd.Wait() })
		if c.err != nil {
			name := filepath.Base(c.cmd.Path)
			return n, fmt.Errorf("%s failed: %w: %s", name, c.err, c.errOut)
		}
	}
	return n, err
}

func (c *commandReader) Close() error {
	c.wait.Do(func() {
		c.cmd.Process.Kill()
		c.err = c.cmd.Wait()
	})
	return nil
}

// tailBuffer keeps the last bytes written to it.
type tailBuffer struct {
	mu sync.Mutex
	b  []byte
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > 2000 {
		t.b = append([]byte(nil), t.b[len(t.b)-2000:]...)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := strings.TrimSpace(strings.ToValidUTF8(string(t.b), "?"))
	if s == "" {
		return "it said nothing"
	}
	return strings.Join(strings.Split(s, "\n"), "; ")
}

// meter counts the bytes that were read.
type meter struct {
	r     io.Reader
	total int64
	done  atomic.Int64
	mu    sync.Mutex // guards the following
	step  string
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.r.Read(p)
	m.done.Add(int64(n))
	return n, err
}

func (m *meter) setStep(step string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.step = step
}

func (m *meter) progress() Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Progress{Step: m.step, Done: m.done.Load(), Total: m.total}
}

// report calls f now and then until the function that it returns is called.
func (m *meter) report(f func(Progress)) (stop func()) {
	if f == nil {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			f(m.progress())
			select {
			case <-tick.C:
			case <-quit:
				f(m.progress())
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(quit); <-done })
}

var errClosed = errors.New("closed")

// once is a request's body that cannot be sent a second time: the bindings
// repeat a failed request with what is left of its body, which would import
// half a system as if it were whole.
type once struct {
	r      io.Reader
	mu     sync.Mutex
	closed bool
	err    error // the first that r returned
	done   func()
}

func (o *once) Read(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return 0, errClosed
	}
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.r.Read(p)
	if err != nil {
		o.err = err
		o.done()
	}
	return n, err
}

func (o *once) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	return nil
}
