package podman

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/Morphux/quarry/internal/podman/deltree"
)

// An own storage can be begun anew at any time: the farm keeps what images are
// made from elsewhere. That is what happens to one that podman cannot read, as
// a loss of power leaves it now and then.

const begunAnew = "podman's storage is broken and is begun anew: bases come back from their clean copies, and those without one must be loaded again"

// brokenNotes tells which of a storage's lists cannot be read. Podman does not
// mind at its start, and breaks off in the middle of what it is asked later.
func brokenNotes(root string) error {
	var errs []error
	for _, name := range []string{"overlay-images/images.json", "overlay-layers/layers.json", "vfs-images/images.json", "vfs-layers/layers.json"} {
		_, err := readRecords(root, name)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// lost reports whether an error of reading the lists is about what stands there.
// What this process lacks, as rights, open files or memory, says nothing of it.
func lost(err error) bool {
	for _, own := range []error{unix.EACCES, unix.EPERM, unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EINTR} {
		if errors.Is(err, own) {
			return false
		}
	}
	return true
}

// dropBroken removes a storage that podman could not read.
func (c *Conn) dropBroken(root string) error {
	// Of a start that was killed while it tried without.
	if err := deltree.Remove(root + ".broken"); err != nil {
		return err
	}
	err := brokenNotes(root)
	if err == nil {
		return nil
	}
	if !lost(err) {
		return fmt.Errorf("podman's storage cannot be read: %w", err)
	}
	c.log.Error(begunAnew, "error", err)
	deltree.Clear(root)
	return nil
}

// launch starts the service and waits until it answers. The service is nil when
// nothing could be started at all.
func (c *Conn) launch() (*service, error) {
	svc, err := c.setup.run(c.log)
	if err != nil {
		return nil, err
	}
	return svc, c.await(svc)
}

// relaunch is for when podman itself refused to start: it tries without the
// storage that is there, and puts it back when that was not the reason.
func (c *Conn) relaunch(refused *service, why error) (*service, error) {
	var exit *exec.ExitError
	if refused == nil || !errors.As(refused.failure(), &exit) || exit.ExitCode() != 125 {
		return refused, why
	}
	root := filepath.Join(c.dir, "root")
	aside := root + ".broken"
	if err := os.Rename(root, aside); err != nil {
		return refused, why
	}
	if err := os.Mkdir(root, 0o700); err != nil {
		os.Rename(aside, root)
		return refused, why
	}
	svc, err := c.launch()
	if err != nil {
		deltree.Remove(root)
		os.Rename(aside, root)
		return svc, why
	}
	c.log.Error(begunAnew, "error", why)
	if err := deltree.Remove(aside); err != nil {
		c.log.Warn("the broken storage cannot be removed", "error", err)
	}
	return svc, nil
}

// failure is why the service ended; nil while it runs.
func (s *service) failure() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}
