package protocol

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/internal/durable"
)

// MaxID is the most bytes of a request id.
const MaxID = 64

var idForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// requests remembers what was asked under a request id, and how it ended, so that
// a client that was cut off can ask again. Each has a file of its own,
// FOLDER/WHO/ID.json with digests for names: it is there, and on disk, before the
// verb begins, and is replaced by one with the answer when the verb has ended. One
// without an answer that nobody is at work on was cut off with the farm: how it
// ended, nobody knows.
type requests struct {
	dir    string
	limits Limits

	mu      sync.Mutex             // guards the following
	working map[string]*keeper     // by path, those under way
	shelves map[string][]requested // by folder, the oldest first: what is on disk
	swept   time.Time
}

type requested struct {
	path string
	at   time.Time
}

// kept is a request's file.
type kept struct {
	ID    string    `json:"id"`
	Who   string    `json:"who"`   // user and key
	Words string    `json:"words"` // SHA-256 of them
	At    time.Time `json:"at"`
	// Reply is the answer as it was sent, up to a limit; empty: it is not known.
	Reply []byte `json:"reply,omitempty"`
}

// keeper gathers the answer to a request under way.
type keeper struct {
	of   *requests
	path string
	file kept
	done chan struct{} // closed when the answer is there, or never will be

	body bool // what is kept ends within a body
	cut  bool // the rest is not kept
}

func openRequests(dir string, l Limits) (*requests, error) {
	r := &requests{dir: dir, limits: l, working: map[string]*keeper{}, shelves: map[string][]requested{}}
	if dir == "" {
		return r, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("folder of requests cannot be made: %w", err)
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if !strings.HasSuffix(path, ".json") || strings.HasPrefix(d.Name(), ".") {
			return os.Remove(path) // of a write that was cut off
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		shelf := filepath.Dir(path)
		r.shelves[shelf] = append(r.shelves[shelf], requested{path, info.ModTime()})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("folder of requests cannot be read: %w", err)
	}
	for _, shelf := range r.shelves {
		slices.SortFunc(shelf, func(a, b requested) int { return a.at.Compare(b.at) })
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sweep(time.Now())
	return r, nil
}

// What becomes of a request.
var (
	errOther     = errors.New("request id was used for other words: take a new one for each thing that is asked")
	errUncertain = errors.New("the farm was stopped in the middle of this, and nobody knows how it ended: look how things stand, and ask under a new request id if need be")
)

// open gives the keeper of a request and whether it is new, in which case the
// caller has to run it and close the keeper. It is on disk by then.
func (r *requests) open(who quarry.Identity, id string, argv []string) (k *keeper, isNew bool, err error) {
	words, err := json.Marshal(argv)
	if err != nil {
		return nil, false, err
	}
	whose := who.User + "\x00" + who.Key // a token knows nothing of what another did
	shelf := filepath.Join(r.dir, digest(whose)[:32])
	k = &keeper{of: r, path: filepath.Join(shelf, digest(id)[:32]+".json"), done: make(chan struct{}),
		file: kept{ID: id, Who: who.User + " " + who.Key, Words: digest(string(words)), At: time.Now().UTC()}}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.working[k.path]; old != nil {
		if old.file.Words != k.file.Words {
			return nil, false, errOther
		}
		return old, false, nil
	}
	data, err := os.ReadFile(k.path)
	if err == nil {
		old := &keeper{done: make(chan struct{})}
		close(old.done)
		switch err := json.Unmarshal(data, &old.file); {
		case err != nil:
			return nil, false, errUncertain
		case old.file.Words != k.file.Words:
			return nil, false, errOther
		case len(old.file.Reply) == 0:
			return nil, false, errUncertain
		}
		return old, false, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, false, fmt.Errorf("request cannot be remembered: %w", err)
	}
	if r.dir == "" {
		return nil, false, errors.New("this farm remembers no requests: leave out the request id")
	}
	if err := os.MkdirAll(shelf, 0o700); err != nil {
		return nil, false, fmt.Errorf("request cannot be remembered: %w", err)
	}
	if err := k.write(); err != nil {
		return nil, false, fmt.Errorf("request cannot be remembered: %w", err)
	}
	r.working[k.path] = k
	r.shelves[shelf] = append(r.shelves[shelf], requested{k.path, k.file.At})
	r.trim(shelf, k.file.At)
	r.sweep(k.file.At)
	return k, true, nil
}

func digest(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func (k *keeper) write() error {
	data, err := json.Marshal(k.file)
	if err != nil {
		return err
	}
	return durable.WriteFile(k.path, data, 0o600, ".new-*")
}

// add keeps a part of the answer, which ends in the middle of a body or not.
func (k *keeper) add(b []byte, inBody bool) {
	if k.cut = k.cut || len(k.file.Reply)+len(b) > k.of.limits.KeepBytes; !k.cut {
		k.file.Reply, k.body = append(k.file.Reply, b...), inBody
	}
}

// finish keeps the last line of the answer, and has the whole on disk.
func (k *keeper) finish(line []byte) error {
	if k.cut {
		if k.body {
			k.file.Reply = append(k.file.Reply, ".\n"...)
		}
		k.file.Reply = appendReply(k.file.Reply, codeCut, "the rest of the answer was too long to be kept")
	}
	k.file.Reply = append(k.file.Reply, line...)
	err := k.write()
	k.close()
	return err
}

// abandon leaves a request as one of which nobody knows how it ended.
func (k *keeper) abandon() {
	k.file.Reply = nil
	k.close()
}

func (k *keeper) close() {
	k.of.mu.Lock()
	defer k.of.mu.Unlock()
	delete(k.of.working, k.path)
	close(k.done)
}

// sweep removes what is old, or too much. mu is held.
func (r *requests) sweep(now time.Time) {
	if now.Sub(r.swept) < time.Hour {
		return
	}
	r.swept = now
	for shelf := range r.shelves {
		r.trim(shelf, now)
	}
}

func (r *requests) trim(shelf string, now time.Time) {
	list := r.shelves[shelf]
	over := len(list) - r.limits.KeepCount
	rest := list[:0]
	for i, old := range list {
		if r.working[old.path] != nil || i >= over && now.Sub(old.at) < r.limits.KeepAge {
			rest = append(rest, old)
			continue
		}
		os.Remove(old.path) // what stays is removed by the next start
	}
	r.shelves[shelf] = rest
	if len(rest) == 0 {
		delete(r.shelves, shelf)
		os.Remove(shelf)
	}
}
