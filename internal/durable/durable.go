// Package durable replaces small files such that a reader sees the old one or
// the new, and a loss of power leaves one of them.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// WriteFile replaces the file at path in one step. pattern names the file that it
// writes first, as of os.CreateTemp, in the same folder: one that whoever reads
// the folder passes over. It is removed when something fails.
func WriteFile(path string, data []byte, perm os.FileMode, pattern string) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, pattern)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(perm), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return SyncDir(dir)
}

// SyncDir makes names in a folder outlast a loss of power.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
