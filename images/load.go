package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"encoding/json"
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
	"golang.org/x/sys/unix"
)

// Load makes the base that ref names (ARCH or ARCH:NAME) from a file: a tarball of a root file system,
// or an image archive as podman save and skopeo write it (oci-archive,
// docker-archive); each plain or compressed with gzip, bzip2, xz or zstd. What
// it is shows from its content, not its name. From the moment Load returns new
// workspaces use the base; when it fails, nothing has changed. progress may be
// nil; it is called from another goroutine, a few times a second.
func (s *Store) Load(ctx context.Context, ref, file string, progress func(Progress)) (Base, error) {
	to, err := ParseBaseRef(ref)
	if err != nil {
		return Base{}, err
	}
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe's opening would wait for its writer
	if err != nil {
		return Base{}, fmt.Errorf("file %s cannot be opened: %w: name a tarball or an image archive", file, errors.Unwrap(err))
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return Base{}, err
	}
	if !st.Mode().IsRegular() {
		return Base{}, fmt.Errorf("base %s is not a regular file: give a tarball or an image archive", file)
	}
	return s.load(ctx, to, f, filepath.Base(file), st.Size(), "reading", progress)
}

// load is Load from a stream; total is its size, 0 when not known.
func (s *Store) load(ctx context.Context, ref BaseRef, r io.Reader, source string, total int64, step string, progress func(Progress)) (Base, error) {
	if err := s.loading.Acquire(ctx, 1); err != nil {
		return Base{}, err
	}
	defer s.loading.Release(1)

	meter := &meter{r: r, step: step}
	meter.total.Store(total)
	stop := meter.report(progress)
	defer stop()
	plain, err := decompress(meter)
	if err != nil {
		return Base{}, fmt.Errorf("base %s cannot be read: %w", source, brief(err))
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
	f := fresh{ref: ref, source: source, created: time.Now().UTC().Truncate(time.Second)}
	if f.before, err = s.layersNow(ctx); err != nil {
		return Base{}, err
	}
	if f.w, err = s.copies.create(); err != nil {
		return Base{}, err
	}
	defer f.w.discard()
	imported := func() { meter.setStep("importing") }
	var body *once
	f.kept.Kind = keptImage
	if kind == rootfs {
		f.kept.Kind = keptRootfs
		body = &once{r: io.TeeReader(buffered, f.w), done: imported}
		f.id, err = s.importRootfs(call, ref.Arch, source, body)
	} else {
		body = &once{r: buffered, done: imported}
		f.id, err = s.loadArchive(call, body, f.w)
	}
	if err == nil {
		err = body.whole()
	}
	if err != nil {
		if broken := body.failure(); broken != nil {
			err = broken // why the stream broke says more than what podman made of it
		}
		s.prune(context.WithoutCancel(ctx))
		return Base{}, fmt.Errorf("base %s cannot be imported: %w", source, brief(s.explain(gone(err))))
	}
	meter.setStep("checking")
	k, err := f.w.finish()
	if err != nil {
		s.prune(context.WithoutCancel(ctx))
		return Base{}, err
	}
	f.kept.Sum, f.kept.Bytes, f.path = k.Sum, k.Bytes, f.w.f.Name()
	return s.install(ctx, f, nil)
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

// loadArchive loads an image archive without the names that it brings: they
// could be anybody's, another base's among them. also gets what podman gets.
func (s *Store) loadArchive(call context.Context, body io.Reader, also io.Writer) (string, error) {
	pr, pw := io.Pipe()
	defer pr.Close()
	filter := make(chan error, 1)
	go func() {
		err := dropNames(io.MultiWriter(also, pw), body)
		filter <- err
		pw.CloseWithError(err)
	}()
	report, err := images.Load(call, &once{r: pr, done: func() {}})
	if err != nil {
		pr.Close()
		if ferr := <-filter; ferr != nil && !errors.Is(ferr, io.ErrClosedPipe) {
			return "", ferr
		}
		return "", err
	}
	if len(report.Names) != 1 {
		return "", fmt.Errorf("archive holds %d images: save one alone", len(report.Names))
	}
	img, err := images.GetImage(call, report.Names[0], nil)
	if err != nil {
		return "", err
	}
	if len(img.RepoTags) > 0 && !strings.HasPrefix(report.Names[0], "sha256:") {
		// An archive that names its image in a way that is not known here.
		if i := strings.LastIndexByte(report.Names[0], ':'); i > 0 {
			images.Untag(call, img.ID, report.Names[0][i+1:], report.Names[0][:i], nil)
		}
	}
	return img.ID, nil
}

// dropNames copies an image archive and leaves out what its images are called:
// the annotations of an OCI index.json, and the RepoTags of docker's
// manifest.json.
func dropNames(w io.Writer, r io.Reader) error {
	tr, tw := tar.NewReader(r), tar.NewWriter(w)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		var content io.Reader = tr
		switch name := strings.TrimPrefix(h.Name, "./"); name {
		case "repositories":
			continue
		case "index.json", "manifest.json":
			if h.Typeflag != tar.TypeReg || h.Size > 1<<20 {
				return fmt.Errorf("%s of the image archive is not a file of at most 1 MiB", name)
			}
			data, err := io.ReadAll(tr)
			if err != nil {
				return err
			}
			if data, err = withoutNames(name, data); err != nil {
				return fmt.Errorf("%s of the image archive: %w", name, err)
			}
			h = &tar.Header{Name: h.Name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data)), ModTime: h.ModTime}
			content = bytes.NewReader(data)
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(tw, content); err != nil {
			return err
		}
	}
	// Whoever reads r may have something to say at its end.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	return tw.Close()
}

func withoutNames(file string, data []byte) ([]byte, error) {
	if file == "manifest.json" {
		var manifest []map[string]json.RawMessage
		if err := json.Unmarshal(data, &manifest); err != nil {
			return nil, err
		}
		for _, m := range manifest {
			delete(m, "RepoTags")
		}
		return json.Marshal(manifest)
	}
	var index map[string]json.RawMessage
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, err
	}
	var manifests []map[string]json.RawMessage
	if err := json.Unmarshal(index["manifests"], &manifests); err != nil {
		return nil, err
	}
	if len(manifests) != 1 {
		return nil, fmt.Errorf("it holds %d images: save one alone", len(manifests))
	}
	delete(manifests[0], "annotations")
	var err error
	if index["manifests"], err = json.Marshal(manifests); err != nil {
		return nil, err
	}
	return json.Marshal(index)
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
	if err != nil && err != io.EOF {
		return nil, err
	}
	if len(magic) < 2 {
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
	out    io.ReadCloser
	cmd    *exec.Cmd
	errOut *tailBuffer
	ended  bool
	err    error // of every Read after the end
}

func startReader(cmd *exec.Cmd) (*commandReader, error) {
	c := &commandReader{cmd: cmd, errOut: new(tailBuffer)}
	if cmd.Stderr == nil {
		cmd.Stderr = c.errOut
	}
	var err error
	if c.out, err = cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *commandReader) Read(p []byte) (int, error) {
	if c.ended {
		return 0, c.err
	}
	n, err := c.out.Read(p)
	if err != nil {
		c.ended, c.err = true, err
		if werr := c.cmd.Wait(); werr != nil {
			c.err = fmt.Errorf("%s failed: %w: %s", filepath.Base(c.cmd.Path), werr, c.errOut)
		}
		return n, c.err
	}
	return n, nil
}

// Close ends the command. It must not be called during a Read.
func (c *commandReader) Close() error {
	if !c.ended {
		c.ended, c.err = true, errClosed
		c.out.Close()
		c.cmd.Process.Kill()
		c.cmd.Wait()
	}
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
	lines := strings.Split(s, "\n")
	// apt, dpkg and mmdebstrap mark what went wrong; around it is chatter.
	var marked []string
	for _, l := range lines {
		if strings.HasPrefix(l, "E: ") {
			marked = append(marked, strings.TrimPrefix(l, "E: "))
		}
	}
	if len(marked) > 0 {
		lines = marked
	}
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}

// brief makes an error that quotes hostile input, as podman's do, one line of
// bearable length.
func brief(err error) error {
	text := strings.Join(strings.Fields(err.Error()), " ")
	if len(text) > 500 {
		text = strings.ToValidUTF8(text[:250], "") + " ... " + strings.ToValidUTF8(text[len(text)-200:], "")
	}
	if text == err.Error() {
		return err
	}
	return &briefError{text, err}
}

type briefError struct {
	text string
	err  error
}

func (e *briefError) Error() string { return e.text }
func (e *briefError) Unwrap() error { return e.err }

// meter counts the bytes that were read.
type meter struct {
	r     io.Reader
	total atomic.Int64
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
	return Progress{Step: m.step, Done: m.done.Load(), Total: m.total.Load()}
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

// failure is why the body could not be read to its end.
func (o *once) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == io.EOF {
		return nil
	}
	return o.err
}

// whole makes sure that all of the body was taken.
func (o *once) whole() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		return errors.New("podman did not take all of it")
	}
	return nil
}

func (o *once) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	return nil
}
