package queue

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path"
	"strconv"
	"time"

	"github.com/Morphux/quarry"
	"github.com/spf13/afero"
)

// The journal is a text file with one line per entry:
//
//	CCCCCCCC {json}
//
// where CCCCCCCC is the CRC-32C of the JSON in hex. Each entry tells the whole
// of what it is about (a build with all its fields), so that any one line may
// be lost without a meaning being lost in another, and the last line about a
// build is the truth about it. Lines that do not check are skipped.
const (
	journalName = "journal"
	journalNew  = "journal.new" // a compaction in progress
	journalBad  = "journal.bad" // the last journal found with bad lines, for people
	maxLine     = 4 << 20       // bytes; a longer one is skipped
	maxBad      = 64 << 20      // bytes kept of a bad journal
)

// entry is one line. One of its fields is set.
type entry struct {
	Build *quarry.Build `json:"build,omitempty"`
	// Stop and StopReason go with a running Build that has been told to stop,
	// so that a crash does not start it again.
	Stop       quarry.State `json:"stop,omitempty"`
	StopReason string       `json:"stop_reason,omitempty"`
	// Urgent goes with a Build that nobody but the planner wanted at first, and
	// that a person has asked for since.
	Urgent bool `json:"urgent,omitempty"`

	Last  int64  `json:"last,omitempty"`  // the highest number used
	Pause *Pause `json:"pause,omitempty"` // somebody paused the queue, or (By empty) resumed it
}

// Pause says who stopped the queue from starting builds, and why.
type Pause struct {
	By     string    `json:"by,omitempty"`
	Reason string    `json:"reason,omitempty"`
	Since  time.Time `json:"since,omitzero"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// appendLine adds a value as a line with its checksum.
func appendLine(b []byte, v any) ([]byte, error) {
	js, err := json.Marshal(v)
	if err != nil {
		return b, err
	}
	b = fmt.Appendf(b, "%08x ", crc32.Checksum(js, castagnoli))
	b = append(b, js...)
	return append(b, '\n'), nil
}

var errLine = errors.New("line does not check")

// parseLine reads a line without its newline into v.
func parseLine(line []byte, v any) error {
	if len(line) < 9 || line[8] != ' ' {
		return errLine
	}
	sum, err := strconv.ParseUint(string(line[:8]), 16, 32)
	if err != nil || uint32(sum) != crc32.Checksum(line[9:], castagnoli) {
		return errLine
	}
	return json.Unmarshal(line[9:], v)
}

// check refuses entries that this queue could not have written, or not this
// version of it.
func (e *entry) check() error {
	b := e.Build
	if b == nil {
		return nil
	}
	switch b.State {
	case quarry.Waiting, quarry.Queued, quarry.Running, quarry.Recording,
		quarry.Succeeded, quarry.Failed, quarry.Errored, quarry.Cancelled, quarry.Obsolete:
	default:
		return fmt.Errorf("unknown state %q", b.State)
	}
	if b.Number <= 0 || b.Attempt < 0 || b.Key != quarry.BuildKey(b.Target(), b.Commit, b.Nonce) {
		return errors.New("not a build")
	}
	if err := quarry.CheckArch(b.Arch); err != nil {
		return err
	}
	return checkRelease(b.Release)
}

// journalReport says what reading a journal met.
type journalReport struct {
	Lines int  // good ones
	Bad   int  // skipped ones
	Torn  bool // the last line had no end: a crash while writing, no damage
	Size  int64
}

// readJournal calls fn for every good line. It fails only when r does.
func readJournal(r io.Reader, fn func(entry)) (rep journalReport, err error) {
	br := bufio.NewReaderSize(r, 64<<10)
	var line []byte
	tooLong := false
	for {
		chunk, err := br.ReadSlice('\n')
		rep.Size += int64(len(chunk))
		if len(line)+len(chunk) > maxLine {
			tooLong, line = true, line[:0]
		}
		if !tooLong {
			line = append(line, chunk...)
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		if err != nil && err != io.EOF {
			return rep, err
		}
		ended := bytes.HasSuffix(chunk, []byte("\n"))
		if text := bytes.TrimSuffix(line, []byte("\n")); tooLong {
			rep.Bad++
		} else if len(text) > 0 {
			var e entry
			perr := parseLine(text, &e)
			if perr == nil {
				perr = e.check()
			}
			switch {
			case perr == nil:
				rep.Lines++
				fn(e)
			case !ended:
				rep.Torn = true
			default:
				rep.Bad++
			}
		}
		if err == io.EOF {
			rep.Torn = rep.Torn || (len(line) > 0 || tooLong) && !ended
			return rep, nil
		}
		line, tooLong = line[:0], false
	}
}

// journal is the open file. Only the queue's owner uses it.
type journal struct {
	fs    afero.Fs
	log   *slog.Logger
	f     afero.File // nil until the first append
	size  int64      // bytes known to be good lines
	lines int
	// torn is set when the file may end in the middle of a line, rewrite when
	// what is on disk cannot be trusted (a failed fsync may have dropped what
	// was written, and the next one would not tell): then the whole is written
	// anew beside it.
	torn, rewrite bool
	// all yields everything that the journal has to hold, for compaction.
	all func() iter.Seq[entry]
}

// openJournal reads what is there. It has no error: a journal that cannot be
// read is set aside and costs time, as the planner finds the builds again.
func openJournal(fsys afero.Fs, log *slog.Logger, fn func(entry)) (*journal, journalReport) {
	j := &journal{fs: fsys, log: log}
	var rep journalReport
	f, err := fsys.Open(journalName)
	if err == nil {
		rep, err = readJournal(f, fn)
		f.Close()
	}
	j.size, j.lines, j.torn = rep.Size, rep.Lines+rep.Bad, rep.Torn
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		log.Error("the journal cannot be read: what it held is planned again", "error", err, "read", rep.Lines)
		j.rewrite = true
	case rep.Bad > 0:
		log.Error("the journal has bad lines, which were skipped: a copy is kept as "+journalBad, "bad", rep.Bad, "good", rep.Lines)
		j.keepBad()
		j.rewrite = true
	}
	fsys.Remove(journalNew) // of a compaction that a crash cut short
	return j, rep
}

// keepBad copies the journal aside before the rewrite makes the bad lines
// vanish. A copy, not a rename: there must be a journal at every moment.
func (j *journal) keepBad() {
	src, err := j.fs.Open(journalName)
	if err != nil {
		return
	}
	defer src.Close()
	dst, err := j.fs.Create(journalBad)
	if err != nil {
		return
	}
	io.Copy(dst, io.LimitReader(src, maxBad))
	dst.Close()
}

// append writes the entries and returns when they are on the disk. After an
// error none of them counts; they may still be found after a crash, which does
// no harm, being what was about to happen.
func (j *journal) append(entries ...entry) error {
	if j.rewrite {
		return j.compact() // all() holds the entries already
	}
	if err := j.open(); err != nil {
		return fmt.Errorf("cannot open the journal: %w", err)
	}
	var buf []byte
	if j.torn {
		buf = append(buf, '\n') // a new line after the torn one, which is then skipped
	}
	for _, e := range entries {
		var err error
		if buf, err = appendLine(buf, e); err != nil {
			return fmt.Errorf("cannot encode a journal entry: %w", err)
		}
	}
	if n, err := j.f.Write(buf); err != nil {
		if n > 0 {
			j.torn = j.torn || j.f.Truncate(j.size) != nil
		}
		return fmt.Errorf("cannot write the journal: %w", err)
	}
	if err := j.f.Sync(); err != nil {
		j.rewrite = true
		return fmt.Errorf("cannot sync the journal: %w", err)
	}
	j.size += int64(len(buf))
	j.lines += len(entries)
	j.torn = false
	return nil
}

func (j *journal) open() error {
	if j.f != nil {
		return nil
	}
	if err := j.fs.MkdirAll(".", 0o755); err != nil {
		return err
	}
	f, err := j.fs.OpenFile(journalName, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	if err := syncDir(j.fs, "."); err != nil {
		f.Close()
		return err
	}
	j.f = f
	return nil
}

// compact writes the journal anew with one line for everything it has to hold.
func (j *journal) compact() error {
	if err := j.fs.MkdirAll(".", 0o755); err != nil {
		return fmt.Errorf("cannot make the journal's folder: %w", err)
	}
	var size int64
	lines := 0
	replaced, err := writeFile(j.fs, journalName, journalNew, func(w io.Writer) error {
		var buf []byte
		for e := range j.all() {
			var err error
			if buf, err = appendLine(buf[:0], e); err != nil {
				return err
			}
			if _, err = w.Write(buf); err != nil {
				return err
			}
			size += int64(len(buf))
			lines++
		}
		return nil
	})
	if replaced && j.f != nil { // the open file has lost its name
		j.f.Close()
		j.f = nil
	}
	if err != nil {
		// Until the folder is synced either file may be found there.
		j.rewrite = j.rewrite || replaced
		return fmt.Errorf("cannot write the journal anew: %w", err)
	}
	j.size, j.lines, j.torn, j.rewrite = size, lines, false, false
	return nil
}

func (j *journal) close() error {
	if j.f == nil {
		return nil
	}
	err := j.f.Close()
	j.f = nil
	return err
}

// writeFile makes a file appear whole and synced under its name, or not at all.
// replaced tells whether the name is the new file's, although an error may say
// that this is not known to last.
func writeFile(fsys afero.Fs, name, temp string, fill func(io.Writer) error) (replaced bool, err error) {
	f, err := fsys.Create(temp)
	if err != nil {
		return false, err
	}
	w := bufio.NewWriterSize(f, 64<<10)
	err = fill(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = fsys.Rename(temp, name)
	}
	if err != nil {
		fsys.Remove(temp) // gives the space back on a full disk
		return false, err
	}
	return true, syncDir(fsys, path.Dir(name))
}

// syncDir makes names in a folder last. File systems in memory have nothing to
// sync.
func syncDir(fsys afero.Fs, dir string) error {
	d, err := fsys.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

const outcomesDir = "outcomes"

// outcomes keeps what finished attempts have to say until it is recorded: one
// file per build, in the form of a journal line.
type outcomes struct{ fs afero.Fs }

func (o outcomes) name(number int64) string {
	return path.Join(outcomesDir, strconv.FormatInt(number, 10)+".json")
}

func (o outcomes) save(number int64, out *quarry.Outcome) error {
	if err := o.fs.MkdirAll(outcomesDir, 0o755); err != nil {
		return fmt.Errorf("cannot make the folder of outcomes: %w", err)
	}
	line, err := appendLine(nil, out)
	if err != nil {
		return fmt.Errorf("cannot encode the outcome of build %d: %w", number, err)
	}
	name := o.name(number)
	_, err = writeFile(o.fs, name, name+".new", func(w io.Writer) error {
		_, err := w.Write(line)
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot save the outcome of build %d: %w", number, err)
	}
	return nil
}

// load gives the saved outcome of a build, if it is there, whole and of this
// very build.
func (o outcomes) load(number int64, key string) (*quarry.Outcome, error) {
	data, err := afero.ReadFile(o.fs, o.name(number))
	if err != nil {
		return nil, err
	}
	var out quarry.Outcome
	if err := parseLine(bytes.TrimSuffix(data, []byte("\n")), &out); err != nil {
		return nil, fmt.Errorf("the saved outcome of build %d is damaged: %w", number, err)
	}
	if out.Build.Number != number || out.Build.Key != key {
		return nil, fmt.Errorf("the saved outcome of build %d is of another build", number)
	}
	return &out, nil
}

func (o outcomes) remove(number int64) { o.fs.Remove(o.name(number)) }

// list gives the numbers of all saved outcomes and clears away half-written
// ones.
func (o outcomes) list() (numbers []int64) {
	infos, err := afero.ReadDir(o.fs, outcomesDir)
	if err != nil {
		return nil
	}
	for _, fi := range infos {
		base := fi.Name()
		if ext := path.Ext(base); ext == ".json" {
			if n, err := strconv.ParseInt(base[:len(base)-len(ext)], 10, 64); err == nil && n > 0 {
				numbers = append(numbers, n)
			}
		} else if ext == ".new" {
			o.fs.Remove(path.Join(outcomesDir, base))
		}
	}
	return numbers
}
