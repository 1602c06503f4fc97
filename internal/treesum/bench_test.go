package treesum_test

import (
	"crypto/sha256"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/Morphux/quarry/internal/testbase"
	"github.com/Morphux/quarry/internal/treesum"
)

// BenchmarkScan measures the layer of the tests' base, a Debian with a
// compiler: a deep scan beside reading and hashing the same files one after the
// other, and a quick one with its comparison beside nothing but lstat.
func BenchmarkScan(b *testing.B) {
	found, err := filepath.Glob(filepath.Join(testbase.ImageStore(b), "overlay/*/diff"))
	if err != nil || len(found) != 1 {
		b.Fatalf("%q, %v", found, err)
	}
	dir := found[0]
	known, err := treesum.Scan(b.Context(), dir, true, nil)
	if err != nil {
		b.Fatal(err)
	}
	data, err := known.Encode()
	if err != nil {
		b.Fatal(err)
	}
	plain := func(read bool) time.Duration {
		began := time.Now()
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if _, err := d.Info(); err != nil || !read || !d.Type().IsRegular() {
				return err
			}
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(sha256.New(), f)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		return time.Since(began)
	}
	run := func(name string, deep bool) {
		b.Run(name, func(b *testing.B) {
			var ours, peer time.Duration
			for b.Loop() {
				began := time.Now()
				was, err := treesum.Decode(data)
				if err != nil {
					b.Fatal(err)
				}
				now, err := treesum.Scan(b.Context(), dir, deep, nil)
				if err != nil {
					b.Fatal(err)
				}
				if path, touched := treesum.Touched(was, now); touched {
					b.Fatal(path)
				}
				if diffs, n := treesum.Compare(was, now, 1); n > 0 {
					b.Fatal(diffs)
				}
				ours += time.Since(began)
				peer += plain(deep)
			}
			b.ReportMetric(ours.Seconds()*1e3/float64(b.N), "ms")
			b.ReportMetric(peer.Seconds()*1e3/float64(b.N), "peer-ms")
			b.ReportMetric(ours.Seconds()/peer.Seconds(), "ratio")
			b.ReportMetric(float64(known.Files()), "files")
			b.ReportMetric(float64(len(data)), "bytes-on-disk")
			if deep {
				b.ReportMetric(float64(known.Bytes())*float64(b.N)/1e6/ours.Seconds(), "MB/s")
				b.ReportMetric(float64(known.Bytes())*float64(b.N)/1e6/peer.Seconds(), "peer-MB/s")
			}
		})
	}
	run("Deep", true)
	run("Quick", false)
}
