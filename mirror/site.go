package mirror

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/singleflight"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
)

// SiteOptions say what a [Site] is made of.
type SiteOptions struct {
	Results *results.Repo
	// Dir is a folder of its own, where lists are kept. It is a cache.
	Dir     string
	Default string // channel
	// Artifacts opens an archive by its SHA-256; the error wraps fs.ErrNotExist where
	// there is none. nil: there are none.
	Artifacts func(sum string) (*os.File, error)
	Sign      func(data []byte) ([]byte, error) // nil: nothing is signed
	Signers   func() ([]byte, error)            // the file of allowed signers
	Now       func() time.Time                  // nil: time.Now
	Log       *slog.Logger
}

// Site is the database as files, made when they are asked for. It may be used by
// several goroutines.
type Site struct {
	opts  SiteOptions
	log   *slog.Logger
	ctx   context.Context
	stop  context.CancelFunc
	end   sync.Once
	texts cache[string] // by the tag of their content, and how they are encoded
	work  singleflight.Group
	slots chan struct{} // of those who make deltas

	loader loader

	mu       sync.Mutex // guards the following
	channels map[string]*live
}

// live is a channel that is served.
type live struct {
	name string
	turn chan struct{} // holds one token: who has it may make the next head
	lay  *stage        // belongs to who has the turn

	mu    sync.Mutex // guards the following
	snap  *results.Snapshot
	shown []*shown  // the heads of the last minutes, the newest last
	next  time.Time // before which no other head is made
	past  past
}

// shown is a head that clients may have.
type shown struct {
	head *Head
	data []byte
	snap *results.Snapshot
	gone time.Time // when another one came
}

const (
	textCache = 64 << 20
	// What is asked for by name of digest can be had for so long after it was
	// replaced. A client that comes later begins again.
	siteGrace = 2 * time.Minute
	// A client gets the head before, when making the new one takes longer.
	patience = time.Second
	// A channel's heads are made in one part in so many of the time, but one a minute
	// is never too much.
	share = 20
	// A delta begins at one of so many commits, the newest.
	maxPast = 50_000
)

// NewSite makes a site.
func NewSite(o SiteOptions) (*Site, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	s := &Site{opts: o, log: o.Log, texts: cache[string]{max: textCache}, slots: make(chan struct{}, 2), channels: map[string]*live{}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// Close ends what is being made.
func (s *Site) Close() {
	s.end.Do(func() {
		s.stop()
		s.mu.Lock()
		list := slices.Collect(maps.Values(s.channels))
		s.mu.Unlock()
		for _, c := range list {
			<-c.turn // and it is not given back
		}
	})
}

// Warm makes the heads of all channels, so that the first client need not wait.
func (s *Site) Warm(ctx context.Context) error {
	list, err := s.opts.Results.Channels()
	for _, name := range list {
		if _, e := s.head(ctx, name, time.Hour); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// Answer is a file of a site.
type Answer struct {
	// Tag names the content, without quotes: the same name with the same tag is the
	// same content.
	Tag string
	// Forever says that the name never has another content.
	Forever bool
	Type    string // of the content, e.g. application/toml
	// Text makes the content, for an encoding: "", gzip or zstd. Of others than "" it
	// may return nil: then that is not worth it. It clears Tag when the content is not
	// whole, as a record cannot be read. nil: it is a file.
	Text func(encoding string) ([]byte, error)
	File *os.File // that the caller closes
}

const (
	typeTOML  = "application/toml"
	typeJSON  = "application/json"
	typePlain = "text/plain; charset=utf-8"
	typeZstd  = "application/zstd"
)

// Get is a file by its name, e.g. db/testing/p/zl/ib/zlib.toml. One that is not
// there is fs.ErrNotExist.
func (s *Site) Get(ctx context.Context, name string) (*Answer, error) {
	none := fmt.Errorf("%.200q: %w", name, fs.ErrNotExist)
	if sum, ok := strings.CutPrefix(name, "artifacts/"); ok {
		sum, ok = strings.CutSuffix(path.Base(sum), ".tar.zst")
		if !ok || !isHex(sum, 64) || ArtifactName(sum) != name || s.opts.Artifacts == nil {
			return nil, none
		}
		f, err := s.opts.Artifacts(sum)
		if err != nil {
			return nil, err
		}
		return &Answer{Tag: sum, Forever: true, Type: typeZstd, File: f}, nil
	}
	switch name {
	case ChannelsName:
		data, err := s.channelList()
		return s.whole(data, typeJSON), err
	case SignersName:
		if s.opts.Signers == nil {
			return nil, none
		}
		data, err := s.opts.Signers()
		return s.whole(data, typePlain), err
	}
	rest, ok := strings.CutPrefix(name, "db/")
	channel, rest, in := strings.Cut(rest, "/")
	if !ok || !in || quarry.CheckChannel(channel) != nil {
		return nil, none
	}
	kind, _, _ := strings.Cut(rest, "/")
	switch kind {
	case "head.json":
		h, err := s.head(ctx, channel, patience)
		if err != nil {
			return nil, err
		}
		return s.whole(h.data, typeJSON), nil
	case "sig", string(Newest), string(Older):
		return s.file(ctx, channel, rest)
	case "delta":
		return s.delta(ctx, channel, rest)
	case "p":
		return s.packageFile(ctx, channel, rest)
	case "records":
		return s.record(channel, strings.TrimPrefix(rest, recordPrefix))
	}
	return nil, none
}

// whole is an answer that is small, and there already.
func (s *Site) whole(data []byte, kind string) *Answer {
	sum := sha256.Sum256(data)
	tag := base64.RawURLEncoding.EncodeToString(sum[:15])
	return &Answer{Tag: tag, Type: kind, Text: s.encoded(tag, func() ([]byte, bool, error) { return data, true, nil })}
}

// worthIt is from how many bytes on something is compressed.
const worthIt = 1200

// encoded makes a text at the first time that it is asked for. If that says that it
// is whole it is kept, for all encodings.
func (s *Site) encoded(key string, text func() (data []byte, whole bool, err error)) func(string) ([]byte, error) {
	return func(encoding string) ([]byte, error) {
		if data, ok := s.texts.get(encoding + ":" + key); ok {
			return data, nil
		}
		data, whole := s.texts.get(":" + key)
		if !whole {
			var err error
			if data, whole, err = text(); err != nil {
				return nil, err
			}
			if whole {
				s.texts.put(":"+key, data)
			}
		}
		if encoding == "" {
			return data, nil
		}
		if len(data) < worthIt {
			return nil, nil
		}
		data = encode(encoding, data)
		if whole {
			s.texts.put(encoding+":"+key, data)
		}
		return data, nil
	}
}

func encode(encoding string, data []byte) []byte {
	if encoding == "zstd" {
		z := encoders.Get().(*zstd.Encoder)
		defer encoders.Put(z)
		return z.EncodeAll(data, nil)
	}
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, 5)
	if err == nil {
		_, err = z.Write(data)
	}
	if err = errors.Join(err, z.Close()); err != nil {
		panic(err) // memory takes it, and the level is one
	}
	return b.Bytes()
}

// ChannelList is channels.json.
type ChannelList struct {
	Schema   int      `json:"schema"`
	Default  string   `json:"default,omitempty"`
	Channels []string `json:"channels"`
}

func channelList(channels []string, def string) ([]byte, error) {
	l := ChannelList{Schema: Schema, Channels: append([]string{}, channels...)}
	if slices.Contains(channels, def) {
		l.Default = def
	}
	data, err := json.MarshalIndent(l, "", "  ")
	return append(data, '\n'), err
}

func (s *Site) channelList() ([]byte, error) {
	list, err := s.opts.Results.Channels()
	if err != nil {
		return nil, err
	}
	return channelList(list, s.opts.Default)
}

// at is a channel as it is now. One without a record is not there.
func (s *Site) at(channel string) (*live, *results.Snapshot, error) {
	s.mu.Lock()
	c := s.channels[channel]
	s.mu.Unlock()
	var last *results.Snapshot
	if c != nil {
		c.mu.Lock()
		last = c.snap
		c.mu.Unlock()
	}
	snap, err := s.opts.Results.Newer(channel, last)
	if err != nil {
		return nil, nil, err
	}
	if snap.Commit() == "" {
		return nil, nil, fmt.Errorf("channel %s: %w", channel, fs.ErrNotExist)
	}
	if c == nil {
		s.mu.Lock()
		if c = s.channels[channel]; c == nil {
			c = &live{name: channel, turn: make(chan struct{}, 1)}
			c.turn <- struct{}{}
			s.channels[channel] = c
		}
		s.mu.Unlock()
	}
	if snap != last {
		c.mu.Lock()
		c.snap = snap
		c.mu.Unlock()
	}
	return c, snap, nil
}

func (c *live) newest() (*shown, time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.shown) == 0 {
		return nil, c.next
	}
	return c.shown[len(c.shown)-1], c.next
}

// head is the channel's head. When a new one has to be made, and that takes
// longer than wait, it is the one before.
func (s *Site) head(ctx context.Context, channel string, wait time.Duration) (*shown, error) {
	c, snap, err := s.at(channel)
	if err != nil {
		return nil, err
	}
	now := s.opts.Now()
	cur, next := c.newest()
	if cur != nil {
		fresh := cur.head.Expires.Equal(expires(now))
		if fresh && (cur.head.Commit == snap.Commit() || now.Before(next)) {
			return cur, nil
		}
	}
	// Not the caller's context: what is made serves all, also when he goes away.
	made := s.work.DoChan("head "+channel, func() (any, error) { return s.make(c) })
	timer := time.NewTimer(wait)
	defer timer.Stop()
	late := timer.C
	if cur == nil {
		late = nil
	}
	select {
	case r := <-made:
		if r.Err != nil {
			if cur != nil && now.Before(cur.head.Expires) {
				s.log.Error("the head of a channel cannot be renewed: the one before is served", "channel", channel, "err", r.Err)
				return cur, nil
			}
			return nil, r.Err
		}
		return r.Val.(*shown), nil
	case <-late:
		return cur, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// make makes the head of a channel as it is now.
func (s *Site) make(c *live) (*shown, error) {
	select {
	case <-c.turn:
	case <-s.ctx.Done():
		return nil, context.Cause(s.ctx)
	}
	defer func() { c.turn <- struct{}{} }()
	_, snap, err := s.at(c.name)
	if err != nil {
		return nil, err
	}
	began, now := time.Now(), s.opts.Now()
	if c.lay == nil {
		if c.lay, err = openStage(filepath.Join(s.opts.Dir, c.name), s.log); err != nil {
			return nil, err
		}
		c.lay.loader = &s.loader
	}
	h, err := c.lay.build(s.ctx, snap, now)
	if err != nil {
		return nil, err
	}
	data, err := c.lay.show(h, s.opts.Sign, began)
	if err != nil {
		return nil, err
	}
	if _, err := c.lay.sweep(time.Now(), siteGrace); err != nil {
		s.log.Warn("old lists cannot be removed", "dir", c.lay.dir, "err", err)
	}
	took := time.Since(began)
	if took > patience {
		s.log.Info("index made", "channel", c.name, "commit", h.Commit[:12], "packages", h.Packages, "took", took.Round(time.Millisecond))
	}
	sh := &shown{head: h, data: data, snap: snap}
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := len(c.shown); n > 0 {
		c.shown[n-1].gone = now
	}
	c.shown = append(c.shown, sh)
	c.shown = slices.DeleteFunc(c.shown, func(o *shown) bool { return !o.gone.IsZero() && now.Sub(o.gone) > siteGrace })
	if n := len(c.shown); n > maxShown {
		c.shown = slices.Clone(c.shown[n-maxShown:])
	}
	c.next = now.Add(min(share*took, time.Minute))
	return sh, nil
}

// maxShown bounds how many heads of the last minutes are remembered.
const maxShown = 256

// recent finds a head of the last minutes.
func (c *live) recent(is func(*shown) bool) *shown {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range slices.Backward(c.shown) {
		if is(h) {
			return h
		}
	}
	return nil
}

// file is a list or a signature, as it lies in the cache. Its name is a digest.
func (s *Site) file(ctx context.Context, channel, name string) (*Answer, error) {
	none := fmt.Errorf("%.200q: %w", name, fs.ErrNotExist)
	kind, file, _ := strings.Cut(name, "/")
	a := &Answer{Forever: true, Type: typeZstd}
	stem, ok := strings.CutSuffix(file, packedExt)
	i := strings.LastIndexByte(stem, '-')
	switch {
	case kind == "sig":
		a.Type = typePlain
		if a.Tag, ok = strings.CutSuffix(file, ".sig"); !ok || !isHex(a.Tag, 64) {
			return nil, none
		}
	case !ok || i < 0 || quarry.CheckArch(stem[:i]) != nil || !isHex(stem[i+1:], 64):
		return nil, none
	default:
		a.Tag = stem[i+1:]
	}
	path := filepath.Join(s.opts.Dir, channel, kind, file)
	var err error
	if a.File, err = os.Open(path); errors.Is(err, fs.ErrNotExist) {
		// It may be of a head that nobody has asked this daemon for.
		if _, err := s.head(ctx, channel, patience); err != nil {
			return nil, err
		}
		a.File, err = os.Open(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = none
	}
	return a, err
}

// packageFile is a package's file, as the channel is now. While the package's
// folder is the same, so is the file.
func (s *Site) packageFile(ctx context.Context, channel, name string) (*Answer, error) {
	none := fmt.Errorf("%.200q: %w", name, fs.ErrNotExist)
	stem, ok := strings.CutSuffix(name, textExt)
	pkg := path.Base(stem)
	if !ok || quarry.CheckName(pkg) != nil || packagePrefix+results.Spread(pkg) != stem {
		return nil, none
	}
	_, snap, err := s.at(channel)
	if err != nil {
		return nil, err
	}
	folder, err := snap.Folder(pkg)
	if err != nil {
		return nil, err
	}
	if folder == "" {
		return nil, none
	}
	// Another version of this code may write the same otherwise.
	tag := fmt.Sprintf("%s-%d", folder, textVersion)
	a := &Answer{Tag: tag, Type: typeTOML}
	a.Text = s.encoded("p:"+channel+"/"+pkg+":"+tag, func() ([]byte, bool, error) {
		list, err := s.loader.load(ctx, snap, []string{pkg})
		if err != nil {
			return nil, false, err
		}
		whole := len(list[0].Problems) == 0
		if !whole {
			a.Tag = ""
		}
		if len(list[0].Entries) == 0 {
			return nil, false, none
		}
		return packageText(channel, list[0]), whole, nil
	})
	return a, nil
}

// textVersion goes up when a package's file is written otherwise than before.
const textVersion = 1

// record is a file that lies beside a record in git, as it is there.
func (s *Site) record(channel, at string) (*Answer, error) {
	none := fmt.Errorf("%.200q: %w", at, fs.ErrNotExist)
	dir, file := path.Split(at)
	dir, version := path.Split(strings.TrimSuffix(dir, "/"))
	pkg := path.Base(dir)
	if quarry.CheckName(pkg) != nil || quarry.CheckVersion(version) != nil || quarry.CheckVersion(file) != nil || results.Spread(pkg)+"/" != dir {
		return nil, none
	}
	_, snap, err := s.at(channel)
	if err != nil {
		return nil, err
	}
	id, err := snap.Blob(at)
	if err != nil {
		return nil, err
	}
	if id == "" {
		return nil, none
	}
	return &Answer{Tag: id, Type: typeOf(file), Text: s.encoded("blob:"+id, func() ([]byte, bool, error) {
		data, err := snap.ReadBlob(id)
		return data, true, err
	})}, nil
}

func typeOf(file string) string {
	switch path.Ext(file) {
	case ".toml":
		return typeTOML
	case ".json":
		return typeJSON
	}
	return typePlain
}

// delta is what differs between the lists of a commit and those of a head that is
// shown.
func (s *Site) delta(ctx context.Context, channel, name string) (*Answer, error) {
	none := fmt.Errorf("%.200q: %w", name, fs.ErrNotExist)
	parts := strings.Split(name, "/")
	if len(parts) != 3 {
		return nil, none
	}
	kind := Kind(parts[1])
	stem, ok := strings.CutSuffix(parts[2], packedExt)
	words := strings.Split(stem, "-")
	n := len(words)
	if !ok || n < 3 || kind != Newest && kind != Older {
		return nil, none
	}
	arch, old, new := strings.Join(words[:n-2], "-"), words[n-2], words[n-1]
	if quarry.CheckArch(arch) != nil || !isHex(old, 40) || !isHex(new, 40) || old == new || deltaName(kind, arch, old, new) != name {
		return nil, none
	}
	c, _, err := s.at(channel)
	if err != nil {
		return nil, err
	}
	h := c.recent(func(h *shown) bool { return h.head.Commit == new })
	if h == nil {
		return nil, none
	}
	if _, ok := h.head.Index[arch]; !ok {
		return nil, none
	}
	key := "delta:" + channel + "/" + name
	data, ok := s.texts.get(key)
	if !ok {
		if data, err = s.makeDelta(ctx, c, h, old, name); err != nil {
			return nil, err
		}
		if data == nil {
			return nil, none
		}
	}
	sum := sha256.Sum256(data)
	return &Answer{Tag: base64.RawURLEncoding.EncodeToString(sum[:15]), Forever: true, Type: typeZstd, Text: func(encoding string) ([]byte, error) {
		if encoding != "" {
			return nil, nil // it is packed
		}
		return data, nil
	}}, nil
}

// makeDelta makes all deltas between two commits, of which most clients want but
// one and some all. nil: there is none.
func (s *Site) makeDelta(ctx context.Context, c *live, h *shown, old, name string) ([]byte, error) {
	made := s.work.DoChan("delta "+c.name+" "+old+" "+h.head.Commit, func() (any, error) {
		s.slots <- struct{}{}
		defer func() { <-s.slots }()
		known, err := c.before(h.snap, old)
		if err != nil || !known {
			return map[string][]byte(nil), err
		}
		from, err := h.snap.AsOf(old)
		if err != nil {
			s.log.Warn("there is no delta from a commit", "channel", c.name, "commit", old, "err", err)
			return map[string][]byte(nil), nil
		}
		var archs []string
		for arch := range h.head.Index {
			archs = append(archs, arch)
		}
		all, err := s.loader.deltas(s.ctx, from, h.snap, archs, deltaLimit(h.head.Packages))
		if errors.Is(err, errLarge) {
			return map[string][]byte(nil), nil
		}
		for name, data := range all {
			s.texts.put("delta:"+c.name+"/"+name, data)
		}
		return all, err
	})
	select {
	case r := <-made:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(map[string][]byte)[name], nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// past is the newest commits of a channel.
type past struct {
	mu    sync.Mutex
	list  []string // the oldest first
	known map[string]bool
}

// before reports whether a commit is among those before a snapshot, as far as they
// are looked at.
func (c *live) before(s *results.Snapshot, commit string) (bool, error) {
	p := &c.past
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.known[commit] {
		return true, nil
	}
	var fresh []string
	for id, err := range s.Commits() {
		if err != nil {
			return false, err
		}
		if p.known[id] || len(fresh) == maxPast {
			break
		}
		fresh = append(fresh, id)
	}
	slices.Reverse(fresh)
	p.list = append(p.list, fresh...)
	if n := len(p.list) - maxPast; n > 0 {
		p.list = slices.Clone(p.list[n:])
	}
	if p.known == nil || len(p.known) > 2*maxPast {
		p.known = make(map[string]bool, len(p.list))
		fresh = p.list
	}
	for _, id := range fresh {
		p.known[id] = true
	}
	return p.known[commit], nil
}
