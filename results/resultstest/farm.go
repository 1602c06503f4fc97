package resultstest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/results"
)

// generation is part of a cached repository's name: it goes up when what is made
// changes otherwise than [sampleOf] sees.
const generation = 2

// sampleOf is a digest of what is written of some packages. It is part of a cached
// repository's name, so that nobody is given what other code has made.
var sampleOf = sync.OnceValues(func() (string, error) {
	var text bytes.Buffer
	for i := range 100 {
		for _, fails := range []bool{false, true} {
			if err := commit(&text, []place{{i, i % 3, Archs[i%len(Archs)], int64(i + 1), fails}}); err != nil {
				return "", err
			}
		}
	}
	return digest(text.String())[:12], nil
})

// Farm is a results repository of a size, out of the cache. It is to be read only:
// see [Copy]. 1,000 packages take seconds to make, 100,000 many minutes.
func Farm(tb testing.TB, size Size) string {
	tb.Helper()
	path, err := farm(size.whole())
	if err != nil {
		tb.Fatalf("results repository for tests cannot be made: %v", err)
	}
	return path
}

// Copy is a copy of [Farm]'s repository, to write to. Its packs are shared.
func Copy(tb testing.TB, size Size) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "results.git")
	if err := link(Farm(tb, size), path); err != nil {
		tb.Fatal(err)
	}
	return path
}

// link copies a repository. Packs are never written to, only replaced: they are
// links where the file system has both. All else git might write in place.
func link(master, path string) error {
	return filepath.WalkDir(master, func(p string, d fs.DirEntry, err error) error {
		to := path + strings.TrimPrefix(p, master)
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.Mkdir(to, 0o755)
		case strings.Contains(p, "/objects/pack/") && os.Link(p, to) == nil:
			return nil
		}
		return copyFile(p, to)
	})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// Next is an outcome for each of n packages of a repository, that comes after all
// that it has: a new version of packages here and there.
func Next(size Size, n int) []*quarry.Outcome {
	size = size.whole()
	r := rand.New(rand.NewPCG(uint64(size.Packages), 13))
	var out []*quarry.Outcome
	for k := range n {
		out = append(out, Outcome(r.IntN(size.Packages), size.Versions+k/size.Packages, Archs[0], int64(size.Records()+k+1)))
	}
	return out
}

// cacheDir is $QUARRY_CACHE, else /var/cache/quarry for root and ~/.cache/quarry
// for others.
func cacheDir() (string, error) {
	if dir := os.Getenv("QUARRY_CACHE"); dir != "" {
		return dir, nil
	}
	if os.Geteuid() == 0 {
		return "/var/cache/quarry", nil
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".cache", "quarry"), err
}

func farm(size Size) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "results-test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("%w: set QUARRY_CACHE", err)
	}
	sample, err := sampleOf()
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("%d-%s-%dx%dx%d-%d.git", generation, sample, size.Packages, size.Archs, size.Versions, size.Batch)
	if size.Tended {
		name = "tended-" + name
	}
	final := filepath.Join(dir, name)
	lock, err := os.OpenFile(filepath.Join(dir, name+".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil { // another process makes the same
		return "", err
	}
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	tmp := final + ".new"
	if err := os.RemoveAll(tmp); err != nil { // of a process that was killed
		return "", err
	}
	makeIt := create
	if size.Tended {
		makeIt = tended
	}
	if err := makeIt(tmp, size); err != nil {
		return "", errors.Join(err, os.RemoveAll(tmp))
	}
	return final, os.Rename(tmp, final)
}

// tended makes a repository as it is after maintenance.
func tended(path string, size Size) error {
	size.Tended = false
	master, err := farm(size)
	if err != nil {
		return err
	}
	if err := link(master, path); err != nil {
		return err
	}
	r, err := results.Open(path, results.Options{MaxPacks: -1})
	if err != nil {
		return err
	}
	return errors.Join(r.Maintain(context.Background()), r.Close())
}

func create(path string, size Size) error {
	if size.Packages < 1 || size.Archs < 1 || size.Archs > len(Archs) {
		return fmt.Errorf("%+v is no size: it has 1 package and 1 to %d architectures at least", size, len(Archs))
	}
	r, err := results.Open(path, results.Options{Head: Channel})
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("git", "-C", path, "fast-import", "--quiet")
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null")
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Start(); err != nil {
		return err
	}
	w := bufio.NewWriterSize(in, 1<<20)
	err = errors.Join(stream(w, size), w.Flush(), in.Close())
	if e := cmd.Wait(); e != nil {
		return fmt.Errorf("git fast-import: %w: %s", e, &complaint)
	}
	return err
}

// place is one record that is to be made.
type place struct {
	pkg, version int
	arch         string
	number       int64
	fails        bool
}

// stream writes all commits, in the language of git fast-import. What is in them
// is made by all CPUs.
func stream(w io.Writer, size Size) error {
	type job struct {
		places []place
		done   chan []byte
		err    error
	}
	queue := make(chan *job, 4*runtime.NumCPU())
	ordered := make(chan *job, 4*runtime.NumCPU())
	var workers sync.WaitGroup
	for range runtime.NumCPU() {
		workers.Go(func() {
			for j := range queue {
				var text bytes.Buffer
				j.err = commit(&text, j.places)
				j.done <- text.Bytes()
			}
		})
	}
	go func() {
		defer close(ordered)
		defer close(queue)
		var places []place
		send := func() {
			if len(places) > 0 {
				j := &job{places: places, done: make(chan []byte, 1)}
				ordered <- j
				queue <- j
				places = nil
			}
		}
		number := int64(0)
		for v := range size.Versions {
			for _, i := range rand.New(rand.NewPCG(uint64(v), 17)).Perm(size.Packages) {
				for k, arch := range Archs[:size.Archs] {
					number++
					places = append(places, place{i, v, arch, number, Fails(i) && v == size.Versions-1 && k == size.Archs-1})
					if len(places) == size.Batch {
						send()
					}
				}
			}
		}
		send()
	}()
	var err error
	for j := range ordered { // to the end, so that nobody waits for ever
		text := <-j.done
		if err == nil {
			err = j.err
		}
		if err == nil {
			_, err = w.Write(text)
		}
	}
	workers.Wait()
	return err
}

// commit writes one commit with its records.
func commit(w *bytes.Buffer, places []place) error {
	var message strings.Builder
	var files bytes.Buffer
	var last *results.Record
	if len(places) > 1 {
		fmt.Fprintf(&message, "group of %d records\n\n", len(places))
	}
	for _, p := range places {
		o := Outcome(p.pkg, p.version, p.arch, p.number)
		if p.fails {
			o = Failure(p.pkg, p.version, p.arch, p.number)
		}
		rec, err := results.NewRecord(o, 0)
		if err != nil {
			return err
		}
		t := rec.Target()
		at := results.FailurePath(t)
		if !p.fails {
			rec.Revision = 1
			list, err := results.MarshalFiles(t.Package, t.Version, t.Arch, o.Facts.Files)
			if err != nil {
				return err
			}
			put(&files, results.FilesPath(t), list)
			at = results.RecordPath(t)
		}
		text, err := rec.Marshal()
		if err != nil {
			return err
		}
		put(&files, at, text)
		indent := ""
		if len(places) > 1 {
			indent = "    "
		}
		fmt.Fprintf(&message, "%s%s %s %s: %s\n", indent, t.Package, t.Version, t.Arch, rec.Status)
		last = rec
	}
	who := last.Packager
	fmt.Fprintf(&message, "\nPackage: %s\nVersion: %s\nArch: %s\nChannel: %s\nStatus: %s\nSource-Commit: %s\nBuild: %d\nBuild-Key: %s\nLog: quarry log %d\nPushed-By: %s (%s)\n",
		last.Package, last.Version, last.Arch, last.Channel, last.Status, last.Source, last.Build, last.Key, last.Build, who.User, who.Key)
	fmt.Fprintf(w, "commit refs/heads/%s\nauthor %s <%s> %d +0000\ncommitter Quarry <quarry@localhost> %d +0000\n", Channel, who.Name, who.Email, last.Pushed.Unix(), last.Ended.Unix())
	fmt.Fprintf(w, "data %d\n%s\n", message.Len(), message.String())
	w.Write(files.Bytes())
	return nil
}

func put(w *bytes.Buffer, path string, data []byte) {
	fmt.Fprintf(w, "M 100644 inline %s\ndata %d\n", path, len(data))
	w.Write(data)
	w.WriteByte('\n')
}
