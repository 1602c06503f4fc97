package mpm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/Morphux/quarry/internal/durable"
	"github.com/Morphux/quarry/mirror"
	"github.com/Morphux/quarry/results"
)

// sparseSource asks for one package's file at a time. Only what looks at all
// packages at once, a search or a virtual package, gets the index.
type sparseSource struct {
	*indexSource
	asked map[string][]mirror.Package // in this process
}

// maxPackageFile is what a package's file may have at most, in bytes.
const maxPackageFile = 64 << 20

func (s *sparseSource) update(ctx context.Context, last Head, check func(Head) error) (Head, error) {
	if s.c.o.Signers != nil {
		return Head{}, fmt.Errorf("the files of single packages are not signed: read the index or git, or do without --signers: %w", ErrUntrusted)
	}
	h, m, err := s.getHead(ctx, last, check)
	if err != nil {
		return Head{}, err
	}
	s.asked, s.head, s.lists, s.names = nil, m, nil, nil
	s.clear(h.File, nil)
	return h, nil
}

func (s *sparseSource) versions(ctx context.Context, name string) ([]mirror.Package, error) {
	if list, ok := s.asked[name]; ok {
		return list, nil
	}
	list, err := s.ask(ctx, name)
	if err != nil {
		return nil, err
	}
	if s.asked == nil {
		s.asked = map[string][]mirror.Package{}
	}
	s.asked[name] = list
	return list, nil
}

// ask gets a package's file, or finds that the one in the cache is still right. A
// blank file stands for a package that is not there.
func (s *sparseSource) ask(ctx context.Context, name string) ([]mirror.Package, error) {
	path := filepath.Join(s.c.dir, "p", results.Spread(name)+".toml")
	cached, err := os.ReadFile(path)
	here := err == nil
	tag := ""
	var text []byte
	if here {
		first, rest, _ := strings.Cut(string(cached), "\n")
		tag, text = strings.TrimPrefix(first, "# "), []byte(rest)
	}
	switch {
	case s.c.o.Offline && !here:
		return nil, fmt.Errorf("%s was not looked at before: leave out --offline", name)
	case s.c.o.Offline:
	default:
		data, newTag, err := s.c.site.get(ctx, mirror.PackageName(s.c.o.Channel, name), tag, maxPackageFile)
		switch {
		case errors.Is(err, errSame):
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return nil, err
		default:
			text = data
			if strings.ContainsAny(newTag, "\r\n") {
				newTag = ""
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return nil, err
			}
			crash()
			if err := durable.WriteFile(path, append([]byte("# "+newTag+"\n"), data...), 0o644, ".p-*"); err != nil {
				return nil, err
			}
		}
	}
	if len(text) == 0 {
		return nil, nil
	}
	l, err := mirror.ParseList(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", mirror.PackageName(s.c.o.Channel, name), err)
	}
	if l.Channel != s.c.o.Channel {
		return nil, fmt.Errorf("%s is of channel %.40q", mirror.PackageName(s.c.o.Channel, name), l.Channel)
	}
	return l.Packages, nil
}

// whole gets the index for a question about all packages.
func (s *sparseSource) whole(ctx context.Context) error {
	if s.lists != nil {
		return nil
	}
	m, err := s.stored()
	if err != nil {
		return err
	}
	for _, kind := range mirror.Kinds {
		f, of, ok := m.File(kind, s.c.o.Arch)
		if !ok {
			continue
		}
		if s.c.o.Offline {
			if _, err := os.Stat(filepath.Join(s.c.dir, listFile(kind, f))); err != nil {
				return errors.New("the index is not here, as it was not asked for before: leave out --offline")
			}
		} else if err := s.getList(ctx, nil, m, kind, f, of); err != nil {
			return fmt.Errorf("the index, which this looks at, cannot be got: run quarry mpm update: %w", err)
		}
	}
	return nil
}

func (s *sparseSource) newest(ctx context.Context, each func(*mirror.Package) bool) error {
	if err := s.whole(ctx); err != nil {
		return err
	}
	return s.indexSource.newest(ctx, each)
}

func (s *sparseSource) providers(ctx context.Context, name string) ([]string, error) {
	if err := s.whole(ctx); err != nil {
		return nil, err
	}
	return s.indexSource.providers(ctx, name)
}
