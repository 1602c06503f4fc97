package images

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containers/podman/v4/pkg/bindings/system"
)

// storageRoot is a folder in which podman keeps images: the farm's own, or a
// further one that is only read.
type storageRoot struct {
	dir      string // on the host, e.g. /var/lib/quarry/podman/root
	driver   string // overlay or vfs
	readOnly bool
}

// storages finds where podman keeps images, the farm's own first.
func (s *Store) storages(ctx context.Context) ([]storageRoot, error) {
	driver := s.conn.Driver()
	root := filepath.Join(s.conn.Dir(), "root")
	further := s.conn.ImageStores()
	if !s.conn.Own() {
		call, err := s.conn.Context(ctx)
		if err != nil {
			return nil, err
		}
		info, err := system.Info(call, nil)
		if err != nil {
			return nil, fmt.Errorf("podman does not tell where its storage is: %w", gone(err))
		}
		if info.Store == nil || info.Store.GraphRoot == "" {
			return nil, errors.New("podman does not tell where its storage is: see podman info")
		}
		driver, root = info.Store.GraphDriverName, info.Store.GraphRoot
	}
	if driver == "fuse-overlayfs" {
		driver = "overlay"
	}
	roots := []storageRoot{{dir: root, driver: driver}}
	for _, dir := range further {
		roots = append(roots, storageRoot{dir: dir, driver: driver, readOnly: true})
	}
	return roots, nil
}

// diskLayer is one layer of images, as podman's storage (containers/storage,
// layers.json) knows it.
type diskLayer struct {
	ID     string `json:"id"`
	Parent string `json:"parent"`
	root   storageRoot
}

// dir is the folder with what the layer holds.
func (l diskLayer) dir() string {
	if l.root.driver == "vfs" {
		return filepath.Join(l.root.dir, "vfs", "dir", l.ID)
	}
	return filepath.Join(l.root.dir, "overlay", l.ID, "diff")
}

// diskImage is one image (images.json).
type diskImage struct {
	ID    string   `json:"id"`
	Names []string `json:"names"`
	Layer string   `json:"layer"`
	// Mapped are copies of Layer whose files belong to other users. Where the
	// kernel cannot map the users of a layer when it is mounted, podman makes
	// one for each user namespace, and containers are made from that.
	Mapped []string `json:"mapped-layers"`
	root   storageRoot
}

// disk is what podman's storage holds.
type disk struct {
	images []diskImage
	layers map[string]diskLayer // by id; where several storages have one, the farm's own
	known  map[string]bool      // ids of the farm's own layers, those of containers included
}

// readDisk reads podman's own notes. Podman replaces those files as a whole, so
// each is one state of the storage.
func (s *Store) readDisk(ctx context.Context) (*disk, error) {
	roots, err := s.storages(ctx)
	if err != nil {
		return nil, err
	}
	d := &disk{layers: map[string]diskLayer{}, known: map[string]bool{}}
	for _, root := range roots {
		var layers []diskLayer
		if err := readNotes(root, "layers", &layers); err != nil {
			return nil, err
		}
		for _, l := range layers {
			l.root = root
			if !isHex(l.ID) || l.Parent != "" && !isHex(l.Parent) {
				continue
			}
			if !root.readOnly {
				d.known[l.ID] = true
			}
			if _, twice := d.layers[l.ID]; !twice {
				d.layers[l.ID] = l
			}
		}
		var images []diskImage
		if err := readNotes(root, "images", &images); err != nil {
			return nil, err
		}
		for _, img := range images {
			img.root = root
			d.images = append(d.images, img)
		}
	}
	return d, nil
}

func readNotes(root storageRoot, what string, to any) error {
	path := filepath.Join(root.dir, root.driver+"-"+what, what+".json")
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // a storage that nothing was put into yet
	}
	if err == nil {
		err = json.Unmarshal(data, to)
	}
	if err != nil {
		return fmt.Errorf("podman's storage cannot be read: %s: %w", path, err)
	}
	return nil
}

// isHex reports whether s is an id of podman's, and so safe in a path.
func isHex(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32
}

// chain lists the layers that containers of an image are made from, its mapped
// ones included. missing is a layer that should be there and is not.
func (d *disk) chain(img diskImage) (layers []diskLayer, missing string) {
	seen := map[string]bool{}
	for _, top := range append([]string{img.Layer}, img.Mapped...) {
		for id := top; id != "" && !seen[id]; {
			seen[id] = true
			l, ok := d.layers[id]
			if !ok {
				return layers, id
			}
			layers = append(layers, l)
			id = l.Parent
		}
	}
	return layers, ""
}

// image finds an image by its id. One with a name can be in two storages.
func (d *disk) image(id string) (diskImage, bool) {
	id = strings.TrimPrefix(id, "sha256:")
	i := slices.IndexFunc(d.images, func(img diskImage) bool { return img.ID == id })
	if i < 0 {
		return diskImage{}, false
	}
	return d.images[i], true
}
