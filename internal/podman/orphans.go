package podman

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/Morphux/quarry/internal/podman/deltree"
)

// dropOrphans removes from a storage the layers that nothing uses, and folders
// that it does not list. Being killed leaves some: a layer is made before the
// image or the container it is for is written down, and its folder before the
// layer is; podman of this age never finds them again. Half a base takes as
// much room as a whole one.
//
// It knows the files of containers/storage (layers.go, images.go,
// containers.go), which have been the same for years, and touches nothing when
// one of them is not as it should be. No service may run meanwhile.
func dropOrphans(root string) error {
	if _, err := os.Stat(filepath.Join(root, "overlay-layers", "layers.json")); errors.Is(err, os.ErrNotExist) {
		return nil // a storage of another driver, or none yet
	}
	images, err := readRecords(root, "overlay-images/images.json")
	if err != nil {
		return err
	}
	containers, err := readRecords(root, "overlay-containers/containers.json", "overlay-containers/volatile-containers.json")
	if err != nil {
		return err
	}
	layers, err := readRecords(root, "overlay-layers/layers.json", "overlay-layers/volatile-layers.json")
	if err != nil {
		return err
	}
	parent := map[string]string{}
	for _, l := range layers {
		parent[l.ID] = l.Parent
	}
	used := map[string]bool{}
	use := func(id string) {
		for id != "" && !used[id] {
			used[id] = true
			id = parent[id]
		}
	}
	for _, r := range append(images, containers...) {
		use(r.Layer)
		for _, m := range r.Mapped {
			use(m)
		}
	}
	var errs []error
	for _, name := range []string{"layers.json", "volatile-layers.json"} {
		errs = append(errs, keepRecords(filepath.Join(root, "overlay-layers", name), used))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	known := func(records []record) map[string]bool {
		m := map[string]bool{}
		for _, r := range records {
			m[r.ID] = true
		}
		return m
	}
	errs = append(errs, keepFolders(filepath.Join(root, "overlay"), used),
		keepFolders(filepath.Join(root, "overlay-layers"), used), // ID.tar-split.gz
		keepFolders(filepath.Join(root, "overlay-images"), known(images)),
		keepFolders(filepath.Join(root, "overlay-containers"), known(containers)))
	// The layers' short names are links to ../ID/diff.
	links, _ := os.ReadDir(filepath.Join(root, "overlay", "l"))
	for _, l := range links {
		path := filepath.Join(root, "overlay", "l", l.Name())
		if target, err := os.Readlink(path); err == nil && !used[filepath.Base(filepath.Dir(target))] {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}

// record is what the storage's lists of images, containers and layers say, as
// far as it matters here.
type record struct {
	ID     string   `json:"id"`
	Layer  string   `json:"layer"`         // of an image or a container
	Mapped []string `json:"mapped-layers"` // of an image
	Parent string   `json:"parent"`        // of a layer
}

func readRecords(root string, names ...string) (all []record, err error) {
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(root, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var list []record
		if err := json.Unmarshal(data, &list); err != nil {
			return nil, fmt.Errorf("%s is broken: %w", name, err)
		}
		for _, r := range list {
			if !storageID.MatchString(r.ID) {
				return nil, fmt.Errorf("%s names a thing %q", name, r.ID)
			}
		}
		all = append(all, list...)
	}
	return all, nil
}

// keepRecords rewrites a list with only the given ones, each as it was.
func keepRecords(path string, keep map[string]bool) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var list []json.RawMessage
	if err := json.Unmarshal(data, &list); err != nil {
		return err
	}
	kept := []json.RawMessage{}
	for _, raw := range list {
		var r record
		if err := json.Unmarshal(raw, &r); err != nil {
			return err
		}
		if keep[r.ID] {
			kept = append(kept, raw)
		}
	}
	if len(kept) == len(list) {
		return nil
	}
	if data, err = json.Marshal(kept); err != nil {
		return err
	}
	return writeFile(path, data)
}

// keepFolders removes what is named by an id that is not to be kept.
func keepFolders(dir string, keep map[string]bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var errs []error
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name(), ".")
		if storageID.MatchString(id) && !keep[id] {
			errs = append(errs, deltree.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

var storageID = regexp.MustCompile(`^[0-9a-f]{64}$`)
