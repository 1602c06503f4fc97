package layers

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/overlay"
	"github.com/Morphux/quarry/internal/podman/deltree"
)

// Options say how to keep layers.
type Options struct {
	// Dir is the cache's folder, which only one process may use at a time. It is
	// made where there is none, for its owner alone: setuid programs lie in it.
	Dir string
	// Limit is how many bytes of disk the layers may take together, and one of
	// them. Those in use stay, whatever they take. 0: 20 GiB. It is never
	// more than a quarter of the file system.
	Limit int64
	// Program is this program, started again to unpack (see [Unpacker]). Empty:
	// /proc/self/exe.
	Program string
	Log     *slog.Logger
}

// Root is the system over which artifacts are unpacked: a clean workspace's.
type Root struct {
	Digest   string          // names all its content, e.g. sha256:...
	Lower    []overlay.Lower // topmost first
	Options  []string        // of overlayfs, as the workspace has them
	UID, GID int             // host ids of its root
	Count    int             // of ids from there on
}

// Close lets go of what the layers are seen through.
func (r *Root) Close() {
	for _, l := range r.Lower {
		if l.IDs != nil {
			l.IDs.Close()
		}
	}
}

// Layer is an unpacked artifact. It stays as it is until Release.
type Layer struct {
	Dir      string // host folder; nobody may write to it
	Artifact string // SHA-256

	tree  *Tree
	seen  []string
	cache *Cache
	entry *entry
	once  sync.Once
}

// Size is how many paths it has, and the bytes that they take on disk.
func (l *Layer) Size() (files int, bytes int64) { return l.tree.Files, l.tree.Bytes }

// Release says that no overlay uses the layer any more. It may be called again.
func (l *Layer) Release() { l.once.Do(func() { l.cache.release(l.entry) }) }

// Cache keeps layers. A nil Cache has none and makes none. Its methods may be
// used by several goroutines.
type Cache struct {
	opts Options
	log  *slog.Logger
	lock *os.File
	work sync.WaitGroup // removals

	mu      sync.Mutex // guards the following
	entries map[string]*entry
	trash   int
	nodes   int // of all trees in memory
	fresh   int // layers that Flush has not written yet
}

// entry is a layer that is there, or is being made.
type entry struct {
	key   string
	ready chan struct{} // closed when it is made, or cannot be; then err counts
	err   error
	meta  meta

	// Guarded by Cache.mu.
	refs int
	used time.Time

	treeMu sync.Mutex // guards tree
	tree   *Tree      // nil when it has to be read again
}

// meta is meta.json of a layer; it is written last.
type meta struct {
	Version  int      `json:"version"`
	ID       string   `json:"id"` // of this making of it, for nameFlushed
	Artifact string   `json:"artifact"`
	Root     string   `json:"root"` // digest
	UID      int      `json:"uid"`
	GID      int      `json:"gid"`
	Files    int      `json:"files"`
	Bytes    int64    `json:"bytes"`
	Length   int64    `json:"length"`
	Seen     []string `json:"seen,omitempty"` // see extract.InstallSeen
}

// version changes when what unpacking makes of an artifact does.
const version = 2

// maxNodes is how many paths of layers that nobody uses are kept in memory.
const maxNodes = 300_000

// Names in the cache's folder. Layers have names of 40 digits.
const (
	nameLock    = "lock"
	nameBoot    = "boot"    // id of the boot in which it was last used
	nameFlushed = "flushed" // ids of layers that are known to be on disk, by line
	nameTmp     = "tmp"
	nameMeta    = "meta.json"
	nameDiff    = "diff"
)

var errOff = errors.New("there is no cache of layers")

// Open opens a cache and removes what may not be whole: what was being made
// when an earlier process died, and after a restart of the machine every layer
// that was not known to be on disk.
func Open(o Options) (_ *Cache, err error) {
	c := &Cache{opts: o, log: o.Log, entries: map[string]*entry{}}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("the cache of unpacked dependencies cannot be opened: %w", err)
			if c.lock != nil {
				c.lock.Close()
			}
		}
	}()
	if c.opts.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	if c.opts.Program == "" {
		c.opts.Program = "/proc/self/exe"
	}
	if err := os.MkdirAll(c.opts.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Chmod(c.opts.Dir, 0o700); err != nil {
		return nil, err
	}
	if c.lock, err = os.OpenFile(c.path(nameLock), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(c.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("%s is in use by another Quarry: %w", c.opts.Dir, err)
	}
	if c.opts.Limit == 0 {
		c.opts.Limit = 20 << 30
	}
	var st unix.Statfs_t
	if err := unix.Statfs(c.opts.Dir, &st); err == nil {
		c.opts.Limit = min(c.opts.Limit, int64(st.Blocks)*st.Bsize/4)
	}
	return c, c.sweep()
}

func (c *Cache) path(elem ...string) string {
	return filepath.Join(append([]string{c.opts.Dir}, elem...)...)
}

// sweep removes what may not be whole, and learns what is there.
func (c *Cache) sweep() error {
	flushed := map[string]bool{}
	data, _ := os.ReadFile(c.path(nameFlushed))
	for line := range strings.Lines(string(data)) {
		flushed[strings.TrimSpace(line)] = true
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	last, lerr := os.ReadFile(c.path(nameBoot))
	restarted := err != nil || lerr != nil || string(last) != string(boot)
	if err := deltree.Remove(c.path(nameTmp)); err != nil {
		return err
	}
	if err := os.Mkdir(c.path(nameTmp), 0o700); err != nil {
		return err
	}
	found, err := os.ReadDir(c.opts.Dir)
	if err != nil {
		return err
	}
	dropped := 0
	for _, d := range found {
		key := d.Name()
		if len(key) != keyLen || !d.IsDir() {
			continue
		}
		e := &entry{key: key, ready: make(chan struct{})}
		close(e.ready)
		data, err := os.ReadFile(c.path(key, nameMeta))
		st, serr := os.Stat(c.path(key))
		if err != nil || serr != nil || json.Unmarshal(data, &e.meta) != nil || e.meta.Version != version || restarted && !flushed[e.meta.ID] {
			dropped++
			if err := deltree.Remove(c.path(key)); err != nil {
				return err
			}
			continue
		}
		e.used = st.ModTime()
		c.entries[key] = e
		if !flushed[e.meta.ID] {
			c.fresh++
		}
	}
	if dropped > 0 {
		c.log.Info("unpacked dependencies were removed that the machine's restart may have damaged", "layers", dropped)
	}
	// Only now: what is made from here on belongs to this boot.
	if err := os.WriteFile(c.path(nameBoot), boot, 0o600); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.evict(c.opts.Limit)
	return nil
}

const keyLen = 40

func (r *Root) key(artifact string) string {
	h := sha256.Sum256(fmt.Appendf(nil, "%d\n%s\n%s\n%d %d %d\n", version, artifact, r.Digest, r.UID, r.GID, r.Count))
	return hex.EncodeToString(h[:])[:keyLen]
}

// Get returns the layer that an artifact makes over a root, from the cache or by
// unpacking the file at path, whose hash is held against artifact. Whoever asks
// for what is being unpacked waits for it. The caller releases the layer.
//
// An error means that there is no layer, for whatever reason, and that
// the artifact should be installed by other means, which will find out what is
// wrong with it; unless ctx is over.
func (c *Cache) Get(ctx context.Context, root *Root, artifact, path string) (*Layer, error) {
	if c == nil {
		return nil, errOff
	}
	if root.Digest == "" {
		return nil, errors.New("layers cannot be made over a root without a digest")
	}
	key := root.key(artifact)
	for {
		c.mu.Lock()
		e, there := c.entries[key]
		if !there {
			e = &entry{key: key, ready: make(chan struct{})}
			c.entries[key] = e
		}
		e.refs++
		c.mu.Unlock()
		if !there {
			e.meta, e.tree, e.err = c.unpack(ctx, root, key, artifact, path)
			c.finish(e)
			if e.err != nil {
				c.log.Debug("a dependency is not unpacked ahead", "error", e.err)
				return nil, e.err
			}
			return c.layer(e)
		}
		select {
		case <-e.ready:
		case <-ctx.Done():
			c.release(e)
			return nil, ctx.Err()
		}
		if e.err == nil {
			return c.layer(e)
		}
		c.release(e)
		if ctx.Err() == nil && (errors.Is(e.err, context.Canceled) || errors.Is(e.err, context.DeadlineExceeded)) {
			continue // it was somebody else's time that was over
		}
		return nil, e.err
	}
}

// finish ends the making of an entry.
func (c *Cache) finish(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.err != nil {
		delete(c.entries, e.key)
	} else {
		e.used = time.Now()
		c.nodes += e.tree.Files
		c.fresh++
		c.evict(c.opts.Limit)
	}
	close(e.ready)
}

// layer makes a Layer of an entry that the caller holds.
func (c *Cache) layer(e *entry) (*Layer, error) {
	e.treeMu.Lock()
	defer e.treeMu.Unlock()
	if e.tree == nil {
		tree, err := Scan(c.path(e.key, nameDiff), false)
		if err == nil && (tree.Files != e.meta.Files || tree.Length != e.meta.Length) {
			err = fmt.Errorf("it has %d files of %d bytes, not %d of %d", tree.Files, tree.Length, e.meta.Files, e.meta.Length)
		}
		if err != nil {
			// Somebody has been in there. The next time it is unpacked anew.
			c.mu.Lock()
			if c.entries[e.key] == e && e.refs == 1 {
				delete(c.entries, e.key)
				c.discard(e)
			}
			c.mu.Unlock()
			c.release(e)
			return nil, fmt.Errorf("unpacked dependency %s was altered and is given up: %w", e.key, err)
		}
		e.tree = tree
		c.mu.Lock()
		c.nodes += tree.Files
		c.mu.Unlock()
	}
	return &Layer{Dir: c.path(e.key, nameDiff), Artifact: e.meta.Artifact, tree: e.tree, seen: e.meta.Seen, cache: c, entry: e}, nil
}

// release takes back one use of an entry.
func (c *Cache) release(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.refs--
	if e.refs > 0 || !e.made() || c.entries[e.key] != e {
		return
	}
	e.used = time.Now()
	// So that the order of use outlives the process.
	_ = os.Chtimes(c.path(e.key), e.used, e.used)
	if c.nodes > maxNodes {
		for _, o := range c.entries {
			c.forget(o)
		}
	}
	c.evict(c.opts.Limit)
}

// forget drops a tree that nobody uses; mu is held.
func (c *Cache) forget(e *entry) {
	if e.refs > 0 || !e.made() {
		return
	}
	if e.treeMu.TryLock() {
		if e.tree != nil {
			c.nodes -= e.tree.Files
			e.tree = nil
		}
		e.treeMu.Unlock()
	}
}

func (e *entry) made() bool {
	select {
	case <-e.ready:
		return e.err == nil
	default:
		return false
	}
}

// evict removes layers that nobody uses, the longest unused first, until the
// rest takes no more than limit; mu is held.
func (c *Cache) evict(limit int64) (freed int64) {
	var total int64
	var idle []*entry
	for _, e := range c.entries {
		if !e.made() {
			continue
		}
		total += e.meta.Bytes
		if e.refs == 0 {
			idle = append(idle, e)
		}
	}
	if total <= limit {
		return 0
	}
	slices.SortFunc(idle, func(a, b *entry) int { return cmp.Or(a.used.Compare(b.used), strings.Compare(a.key, b.key)) })
	for _, e := range idle {
		if total <= limit {
			break
		}
		total -= e.meta.Bytes
		freed += e.meta.Bytes
		delete(c.entries, e.key)
		c.forget(e)
		c.discard(e)
	}
	return freed
}

// discard removes the files of an entry that is not in the cache any more; mu
// is held. Once they are renamed nothing finds them.
func (c *Cache) discard(e *entry) {
	c.trash++
	to := c.path(nameTmp, fmt.Sprintf("trash-%d", c.trash))
	if err := os.Rename(c.path(e.key), to); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			c.log.Warn("an unpacked dependency stays on disk until the next start", "layer", e.key, "error", err)
		}
		return
	}
	c.work.Go(func() {
		if err := deltree.Remove(to); err != nil {
			c.log.Warn("an unpacked dependency stays on disk until the next start", "layer", e.key, "error", err)
		}
	})
}

// Usage tells how many layers there are, the bytes that they take on disk, and
// how many of them workspaces use.
func (c *Cache) Usage() (layers int, bytes int64, busy int) {
	if c == nil {
		return 0, 0, 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.entries {
		if e.made() {
			layers++
			bytes += e.meta.Bytes
			busy += min(e.refs, 1)
		}
	}
	return layers, bytes, busy
}

// Clean removes all layers that nobody uses, waits until they are gone, and
// tells how many bytes that frees.
func (c *Cache) Clean() int64 {
	if c == nil {
		return 0
	}
	c.mu.Lock()
	freed := c.evict(-1)
	c.mu.Unlock()
	c.work.Wait()
	return freed
}

// Flush writes all layers to disk, with whatever else waits to be written on
// their file system, so that they outlive a power failure.
func (c *Cache) Flush() error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	if c.fresh == 0 {
		c.mu.Unlock()
		return nil
	}
	fresh := c.fresh
	var ids strings.Builder
	for _, e := range c.entries {
		if e.made() {
			ids.WriteString(e.meta.ID + "\n")
		}
	}
	c.mu.Unlock()
	if err := unix.Syncfs(int(c.lock.Fd())); err != nil {
		return fmt.Errorf("unpacked dependencies cannot be written to disk: %w", err)
	}
	if err := writeSynced(c.path(nameFlushed), ids.String()); err != nil {
		return fmt.Errorf("unpacked dependencies cannot be written to disk: %w", err)
	}
	c.mu.Lock()
	c.fresh -= fresh
	c.mu.Unlock()
	return nil
}

// Close waits for removals under way and writes the layers to disk. Nothing
// may be asked of the cache afterwards; overlays that use layers may stay.
func (c *Cache) Close() error {
	if c == nil {
		return nil
	}
	c.work.Wait()
	err := c.Flush()
	return errors.Join(err, c.lock.Close())
}

func writeSynced(path, text string) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
