package cgroup

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// Of version 1. Without _recursive they are those of kernels before 5.2.
var (
	v1Bytes = []string{"blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes"}
	v1Ops   = []string{"blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced"}
)

// device is what one disk did for a group.
type device struct{ read, written int64 }

// io sums up over the disks. Each request is counted by the disk that a file
// system lies on and, when that is made of others (LVM, RAID, encryption),
// by these too: only the lowest that are listed count.
func (g *Group) io(r *reader, s *Stat) {
	if g.IO == "" {
		return
	}
	if g.V2 {
		text := r.file(g.IO, "io.stat")
		if text == nil {
			return // the io controller is not switched on for the group
		}
		b, ops := parseV2(text)
		s.Read, s.Written = g.sum(b)
		s.Reads, s.Writes = g.sum(ops)
		return
	}
	take := func(names []string) (Count, Count) {
		for _, name := range names {
			if text := r.file(g.IO, name); text != nil {
				devices := parseV1(text)
				if len(devices) == 0 && !g.Counted {
					return Count{}, Count{}
				}
				return g.sum(devices)
			}
		}
		return Count{}, Count{}
	}
	s.Read, s.Written = take(v1Bytes)
	s.Reads, s.Writes = take(v1Ops)
}

// parseV1 reads lines like "8:0 Read 4096".
func parseV1(text []byte) map[string]device {
	devices := map[string]device{}
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) != 3 || !bytes.ContainsRune(f[0], ':') {
			continue // the total
		}
		d, n := devices[string(f[0])], number(f[2]).N
		switch string(f[1]) {
		case "Read":
			d.read = n
		case "Write":
			d.written = n
		}
		devices[string(f[0])] = d
	}
	return devices
}

// parseV2 reads lines like "8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0".
func parseV2(text []byte) (b, ops map[string]device) {
	b, ops = map[string]device{}, map[string]device{}
	for line := range bytes.Lines(text) {
		f := bytes.Fields(line)
		if len(f) < 2 || !bytes.ContainsRune(f[0], ':') {
			continue // a disk that did nothing has no counters
		}
		var db, dops device
		known := false
		for _, kv := range f[1:] {
			k, v, _ := bytes.Cut(kv, []byte{'='})
			n := number(v).N
			switch string(k) {
			case "rbytes":
				db.read, known = n, true
			case "wbytes":
				db.written, known = n, true
			case "rios":
				dops.read = n
			case "wios":
				dops.written = n
			}
		}
		if known {
			b[string(f[0])], ops[string(f[0])] = db, dops
		}
	}
	return b, ops
}

func (g *Group) sum(devices map[string]device) (read, written Count) {
	read, written = Of(0), Of(0)
	for id, d := range devices {
		if len(devices) > 1 && slices.ContainsFunc(below(g.sys(), id), func(lower string) bool { _, ok := devices[lower]; return ok }) {
			continue
		}
		read.N += d.read
		written.N += d.written
	}
	return read, written
}

func (g *Group) sys() string {
	if g.Sys == "" {
		return "/sys"
	}
	return g.Sys
}

// made caches what disks are made of: by path, since that never changes while a
// disk is there.
var made sync.Map

// below lists the disks that a disk is made of, and those these are made of.
func below(sys, id string) []string {
	dir := filepath.Join(sys, "dev", "block", id)
	if v, ok := made.Load(dir); ok {
		return v.([]string)
	}
	var all []string
	var walk func(dir string, depth int)
	walk = func(dir string, depth int) {
		slaves, err := os.ReadDir(filepath.Join(dir, "slaves"))
		if err != nil || depth > 8 {
			return
		}
		for _, e := range slaves {
			lower := filepath.Join(dir, "slaves", e.Name())
			if _, err := os.Stat(filepath.Join(lower, "partition")); err == nil {
				// Groups count by whole disks.
				if real, err := filepath.EvalSymlinks(lower); err == nil {
					lower = filepath.Dir(real)
				}
			}
			if text, err := os.ReadFile(filepath.Join(lower, "dev")); err == nil {
				all = append(all, strings.TrimSpace(string(text)))
				walk(lower, depth+1)
			}
		}
	}
	walk(dir, 0)
	made.Store(dir, all)
	return all
}

// CountIO sees to it that the kernel counts the io of version 1's groups, and
// reports whether it does. root is the folder of the whole blkio tree, dir that
// of a group whose limits may be changed.
//
// From Linux 6.10 on ("blk-throttle: delay initialization until configuration")
// the kernel only counts for a disk when some group has had a limit for it. So
// dir is given one that no disk can reach, and that is taken back at once: the
// counting stays, until the disk goes.
func CountIO(root, dir, sys string) (bool, error) {
	if root == "" || dir == "" {
		return false, nil
	}
	counted := func() map[string]device {
		r := reader{}
		for _, name := range v1Bytes {
			if text := r.file(root, name); text != nil {
				return parseV1(text)
			}
		}
		return nil
	}
	have := counted()
	var errs []error
	for _, id := range disks(sys) {
		if _, ok := have[id]; ok {
			continue
		}
		file := filepath.Join(dir, "blkio.throttle.write_bps_device")
		for _, limit := range []string{"18446744073709551614", "0"} { // 0: none
			if err := os.WriteFile(file, []byte(id+" "+limit), 0o644); err != nil {
				errs = append(errs, fmt.Errorf("io of disk %s is not counted: %w", id, err))
				break
			}
		}
	}
	if len(counted()) > 0 {
		return true, nil
	}
	if len(errs) > 0 {
		return false, errs[0]
	}
	return false, nil
}

// disks lists the real disks: no memory and no image files, and nothing that
// is made of others.
func disks(sys string) []string {
	if sys == "" {
		sys = "/sys"
	}
	entries, err := os.ReadDir(filepath.Join(sys, "block"))
	if err != nil {
		return nil
	}
	var ids []string
	for _, e := range entries {
		name := e.Name()
		if slices.ContainsFunc([]string{"loop", "ram", "zram", "sr", "fd"}, func(p string) bool { return strings.HasPrefix(name, p) }) {
			continue
		}
		dir := filepath.Join(sys, "block", name)
		if made, err := os.ReadDir(filepath.Join(dir, "slaves")); err == nil && len(made) > 0 {
			continue
		}
		if text, err := os.ReadFile(filepath.Join(dir, "dev")); err == nil {
			ids = append(ids, strings.TrimSpace(string(text)))
		}
	}
	return ids
}
