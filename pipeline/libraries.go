package pipeline

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/Morphux/quarry/extract"
	"github.com/Morphux/quarry/images"
)

// Libraries keeps the library index of each instance, in memory and as files by
// its digest: an instance never changes. The folder is disposable.
type Libraries struct {
	Dir string

	mu    sync.Mutex // guards known, and makes each index once
	known map[string]extract.LibraryIndex
}

// of gives the index of the workspace's instance, with the libraries of a cross
// toolchain where triplet names one. The workspace must still be clean when it is
// the first of that.
func (l *Libraries) of(ws *images.Workspace, triplet string) (extract.LibraryIndex, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := strings.ReplaceAll(ws.Instance.Digest, ":", "-")
	var further []string
	if triplet != "" {
		key += "-" + triplet
		for _, lib := range []string{"lib", "lib64", "lib32"} {
			further = append(further, "/usr/"+triplet+"/"+lib)
		}
	}
	if x, ok := l.known[key]; ok {
		return x, nil
	}
	file := filepath.Join(l.Dir, key+".json")
	var x extract.LibraryIndex
	if data, err := os.ReadFile(file); err != nil || json.Unmarshal(data, &x) != nil {
		if x, err = extract.IndexLibraries(ws.Root(), further...); err != nil {
			return x, err
		}
		if data, err := json.Marshal(x); err == nil && os.MkdirAll(l.Dir, 0o755) == nil {
			// A cache: losing it costs some milliseconds.
			if tmp := file + ".tmp"; os.WriteFile(tmp, data, 0o644) == nil {
				os.Rename(tmp, file)
			}
		}
	}
	if l.known == nil {
		l.known = map[string]extract.LibraryIndex{}
	}
	l.known[key] = x
	return x, nil
}
