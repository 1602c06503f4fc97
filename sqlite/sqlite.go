// Package sqlite writes a channel as the database that Morphux's package server
// reads: one table, pkgs. doc/mpm.md says what its columns hold, and where they
// come from.
package sqlite

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	_ "modernc.org/sqlite" // pure Go: the farm is built without a C compiler

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/internal/durable"
	"github.com/Morphux/quarry/results"
)

// State is how far a package can be relied on, as the package server counts it.
type State int

// The states.
const (
	Stable      State = 1
	Unstable    State = 2
	Development State = 3
)

// Options say what is exported.
type Options struct {
	// Arch is what the packages are for; those of noarch are for every one. The table
	// has no column for it, so that each arch has a file of its own.
	Arch  string
	State State // of all packages: they are of one channel
	// Archive is what the column archive says of an artifact, by its SHA-256: a file's
	// name or a URL.
	Archive func(sha string) string
	// Partial leaves out dependencies that nothing meets, instead of refusing to
	// write a database in which packages cannot be installed.
	Partial bool
}

// Summary is what was written.
type Summary struct {
	Rows    int
	New     int      // of these, not in the file before
	Missing []string // what was left out, for people: only with Options.Partial
}

// MissingError says which dependencies nothing meets.
type MissingError struct{ Missing []string }

func (e *MissingError) Error() string {
	list := e.Missing
	more := ""
	if len(list) > maxShown {
		more = fmt.Sprintf("\nand %d more", len(list)-maxShown)
		list = list[:maxShown]
	}
	return fmt.Sprintf("%d dependencies are not in the channel: build or promote them, or leave them out with --partial\n%s%s",
		len(e.Missing), strings.Join(list, "\n"), more)
}

const maxShown = 50

// uncategorised is the category of packages whose recipe names none: the package
// server finds a package by name only together with a category.
const uncategorised = "misc"

// schema is the package server's, with the names that Morphux's own test of it
// knows. It reads rows by the place of their columns, has no use for NULL, and of
// several rows with a name takes the first that it gets: that has to be the newest
// version. So the rows are written in that order, and the key has to be one that
// is not the row's place, which in SQLite is what DESC comes to here; the index
// keeps rows with one name in their order.
const schema = `
CREATE TABLE pkgs (
  id INTEGER PRIMARY KEY DESC NOT NULL,
  name TEXT NOT NULL,
  state INTEGER NOT NULL,
  version TEXT NOT NULL,
  category TEXT NOT NULL,
  description TEXT NOT NULL,
  dependencies TEXT NOT NULL,
  archive TEXT NOT NULL,
  SBU REAL NOT NULL,
  archiveSize REAL NOT NULL,
  installedSize REAL NOT NULL,
  archiveHash TEXT NOT NULL,
  timeAddPkg INTEGER NOT NULL
);
CREATE INDEX pkgs_name ON pkgs (name, category);
`

// row is a package on its way into the table.
type row struct {
	id                    int64
	name, version, arch   string
	category, description string
	needed, provides      []string
	deps                  string
	artifact              string
	sbu                   float64
	size, installed       int64
	added                 int64
}

// Export writes all packages of a channel that can be installed on an arch to a
// file, all their versions. The file is replaced as a whole: readers have the one
// before or this one. Ids of what it had stay, and what is new gets new ones that
// no package had before. The same channel gives the same bytes.
func Export(ctx context.Context, s *results.Snapshot, file string, o Options) (Summary, error) {
	if o.Arch == quarry.Noarch || quarry.CheckArch(o.Arch) != nil {
		return Summary{}, fmt.Errorf("arch %.40q is none to install on: say which, e.g. x86_64", o.Arch)
	}
	rows, err := read(ctx, s, o.Arch)
	if err != nil {
		return Summary{}, err
	}
	old, last, err := ids(ctx, file)
	if err != nil {
		return Summary{}, fmt.Errorf("%s cannot be written over: remove it, or name another file: %w", file, err)
	}
	sum := Summary{Rows: len(rows)}
	for i := range rows {
		r := &rows[i]
		id, ok := old[[2]string{r.name, r.version}]
		if !ok {
			sum.New++
		}
		r.id = id
	}
	// Counted from the oldest version of the first name, which is how they would
	// have come one after the other.
	for from := 0; from < len(rows); {
		to := from
		for to < len(rows) && rows[to].name == rows[from].name {
			to++
		}
		for i := to - 1; i >= from; i-- {
			if rows[i].id == 0 {
				last++
				rows[i].id = last
			}
		}
		from = to
	}
	if last > math.MaxInt32 {
		return Summary{}, fmt.Errorf("%s has given out all its ids: begin anew with another file", file)
	}
	if sum.Missing, err = resolve(ctx, s, rows, o.Arch); err != nil {
		return Summary{}, err
	}
	if len(sum.Missing) > 0 && !o.Partial {
		return Summary{}, &MissingError{sum.Missing}
	}
	return sum, replace(ctx, file, rows, last, o)
}

// read gives all that can be installed: by name, and the newest version first.
func read(ctx context.Context, s *results.Snapshot, arch string) ([]row, error) {
	var rows []row
	for e, err := range s.Entries(ctx, func(a string) bool { return a == arch || a == quarry.Noarch }) {
		if err != nil {
			return nil, err
		}
		if e.Artifact() == "" {
			continue
		}
		r := row{
			name: e.Package, version: e.Version, arch: e.Arch, category: cmp.Or(e.Category(), uncategorised), description: e.Description(),
			needed: e.Needed(), provides: e.Provides(), artifact: e.Artifact(), sbu: e.SBU, size: e.ArtifactSize, installed: e.Size,
		}
		if t := e.Ended(); !t.IsZero() {
			r.added = t.Unix()
		}
		rows = append(rows, r)
	}
	slices.SortStableFunc(rows, func(a, b row) int {
		if c := strings.Compare(a.name, b.name); c != 0 {
			return c
		}
		if c := quarry.CompareVersions(b.version, a.version); c != 0 {
			return c
		}
		if c := strings.Compare(b.version, a.version); c != 0 {
			return c
		}
		if a.arch == arch { // as everywhere, before noarch
			return -1
		}
		return 1
	})
	return slices.CompactFunc(rows, func(a, b row) bool { return a.name == b.name && a.version == b.version }), nil
}

// resolve finds the ids that each row needs, and tells in words of those that are
// not there.
func resolve(ctx context.Context, s *results.Snapshot, rows []row, arch string) (missing []string, err error) {
	byName := map[string][]quarry.DepUsed{}
	virtual := map[string][]graph.Offer{}
	id := map[[2]string]int64{}
	for _, r := range rows {
		d := quarry.DepUsed{Package: r.name, Version: r.version, Artifact: r.artifact}
		byName[r.name] = append(byName[r.name], d)
		id[[2]string{r.name, r.version}] = r.id
		for _, p := range graph.Provides(r.name, r.provides) {
			virtual[p.Name] = append(virtual[p.Name], graph.Offer{DepUsed: d, Provided: p.Version})
		}
	}
	c := graph.Catalog{
		There:   func(pkg, _ string) ([]quarry.DepUsed, error) { return byName[pkg], nil },
		Virtual: func(name, _ string) ([]graph.Offer, error) { return virtual[name], nil },
	}
	for i := range rows {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r := &rows[i]
		found, err := c.ResolveAll(r.needed, arch)
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s %s: %v", r.name, r.version, err))
			continue
		}
		var list, without []string
		for _, f := range found {
			if len(f.Missing) > 0 && without == nil {
				rec, err := s.Get(r.name, r.version, r.arch)
				if err != nil {
					return nil, err
				}
				without = append([]string{}, rec.Without...)
			}
			// What it was built without, as that needs it in turn, it can be used without.
			if f.Missing = slices.DeleteFunc(f.Missing, func(need string) bool { return slices.Contains(without, need) }); f.Package == "" && len(f.Missing) == 0 {
				continue
			}
			if len(f.Missing) > 0 {
				missing = append(missing, fmt.Sprintf("%s %s needs %s", r.name, r.version, strings.Join(f.Missing, ", ")))
				continue
			}
			if text := strconv.FormatInt(id[[2]string{f.Package, f.Version}], 10); !slices.Contains(list, text) {
				list = append(list, text)
			}
		}
		r.deps = strings.Join(list, ",")
	}
	return missing, nil
}

// open opens a database, or makes one.
func open(file, mode string) (*sql.DB, error) {
	name, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	// In a URI these end the path.
	name = strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23").Replace(name)
	db, err := sql.Open("sqlite", "file:"+name+"?mode="+mode)
	if err == nil {
		db.SetMaxOpenConns(1)
	}
	return db, err
}

// ids reads which ids packages have, and the highest that any ever had.
func ids(ctx context.Context, file string) (of map[[2]string]int64, last int64, err error) {
	of = map[[2]string]int64{}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return of, 0, nil
	}
	db, err := open(file, "ro")
	if err != nil {
		return nil, 0, err
	}
	defer db.Close()
	if err := db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&last); err != nil {
		return nil, 0, err
	}
	rows, err := db.QueryContext(ctx, "SELECT id, name, version FROM pkgs")
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var name, version string
		if err := rows.Scan(&id, &name, &version); err != nil {
			return nil, 0, err
		}
		of[[2]string{name, version}] = id
		last = max(last, id)
	}
	return of, last, rows.Err()
}

// replace writes the database beside the file and puts it in its place.
func replace(ctx context.Context, file string, rows []row, last int64, o Options) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if err != nil {
		return err
	}
	tmp := f.Name()
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(tmp)
			os.Remove(tmp + "-journal")
		}
	}()
	if err := write(ctx, tmp, rows, last, o); err != nil {
		return fmt.Errorf("%s cannot be written: %w", file, err)
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp, file); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(file))
}

func write(ctx context.Context, file string, rows []row, last int64, o Options) error {
	db, err := open(file, "rw")
	if err != nil {
		return err
	}
	defer db.Close()
	// Nobody else sees the file before it is whole.
	for _, pragma := range []string{"journal_mode = OFF", "synchronous = OFF", fmt.Sprintf("user_version = %d", last)} {
		if _, err := db.ExecContext(ctx, "PRAGMA "+pragma); err != nil {
			return err
		}
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, schema); err != nil {
		return err
	}
	insert, err := tx.PrepareContext(ctx, "INSERT INTO pkgs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
	if err != nil {
		return err
	}
	defer insert.Close()
	for _, r := range rows {
		if _, err := insert.ExecContext(ctx, r.id, r.name, int(o.State), r.version, r.category, r.description, r.deps, o.Archive(r.artifact),
			r.sbu, megabytes(r.size), megabytes(r.installed), r.artifact, r.added); err != nil {
			return fmt.Errorf("%s %s: %w", r.name, r.version, err)
		}
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	return db.Close()
}

// megabytes is the unit of sizes in the package server's protocol.
func megabytes(n int64) float64 { return float64(n) / 1e6 }
