package mirror

import (
	"bytes"
	"context"
	"errors"
	"slices"

	"github.com/Morphux/quarry/results"
)

// errLarge says that so much has changed that who wants it takes the whole.
var errLarge = errors.New("too much has changed for a delta")

// deltaLimit is of how many packages a delta may be.
func deltaLimit(packages int) int { return max(1000, packages/4) }

// deltas makes the deltas between two snapshots of a channel for the lists of
// archs, packed, by their names. It costs what has changed.
func (l *loader) deltas(ctx context.Context, from, to *results.Snapshot, archs []string, limit int) (map[string][]byte, error) {
	folders, err := to.Folders(ctx, from)
	if err != nil {
		return nil, err
	}
	if len(folders) > limit {
		return nil, errLarge
	}
	type making struct {
		d    Delta
		body []byte
	}
	var list []*making
	for _, arch := range archs {
		for _, k := range Kinds {
			list = append(list, &making{d: Delta{List: List{Channel: to.Channel(), Arch: arch}, Kind: k, Old: from.Commit(), New: to.Commit()}})
		}
	}
	for chunk := range slices.Chunk(folders.Names(), some) {
		was, err := l.load(ctx, from, chunk)
		if err != nil {
			return nil, err
		}
		now, err := l.load(ctx, to, chunk)
		if err != nil {
			return nil, err
		}
		for i := range chunk {
			for j := 0; j < len(list); j += len(Kinds) {
				arch := list[j].d.Arch
				var pairs [2][2][]byte
				pairs[0][0], pairs[1][0] = entriesOf(was[i], arch)
				pairs[0][1], pairs[1][1] = entriesOf(now[i], arch)
				for k, p := range pairs {
					m := list[j+k]
					switch {
					case bytes.Equal(p[0], p[1]):
					case len(p[1]) == 0:
						m.d.Removed = append(m.d.Removed, chunk[i])
					default:
						m.body = append(m.body, p[1]...)
					}
				}
			}
		}
	}
	out := map[string][]byte{}
	for _, m := range list {
		out[deltaName(m.d.Kind, m.d.Arch, m.d.Old, m.d.New)] = pack(append([]byte(m.d.head()), m.body...))
	}
	return out, nil
}
