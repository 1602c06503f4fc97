package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/internal/doctor"
	"github.com/Morphux/quarry/internal/human"
	"github.com/Morphux/quarry/results"
)

// troubles is what is wrong with the farm's bases and instances: their records
// tell it, then the daemon if there is one, else a quick look at the storage.
func troubles(ctx context.Context, c *config.Config) ([]doctor.Trouble, error) {
	all := append(lost(ctx, c), instanceTroubles(c, time.Now())...)
	more, err := daemonTroubles(ctx, c)
	if errors.Is(err, control.ErrUnreachable) {
		more, err = damages(ctx, c)
	}
	return append(all, more...), err
}

// lost finds that a part of what cannot be made again is not there while another is:
// as a rule somebody has begun to recover a farm.
func lost(ctx context.Context, c *config.Config) (all []doctor.Trouble) {
	has := func(pattern ...string) bool {
		found, _ := filepath.Glob(filepath.Join(pattern...))
		return len(found) > 0
	}
	const cure = "restore it from the backup before quarry serve is started (doc/backup.md)"
	built := func() bool {
		r, err := results.OpenReader(c.Results(), "")
		if err != nil {
			return false
		}
		defer r.Close()
		for _, err := range r.Targets(ctx, false) {
			return err == nil
		}
		return false
	}
	if has(c.Repos(), "*.git") && !has(c.Results(), "HEAD") {
		all = append(all, doctor.Trouble{What: "results", Why: fmt.Sprintf("there are packages in %s and no results repository at %s: all of them would be built again", c.Repos(), c.Results()), Cure: cure, Builds: true})
	}
	if !has(c.Artifacts(), "??") && built() {
		all = append(all, doctor.Trouble{What: "artifacts", Why: fmt.Sprintf("there are records in %s and no artifacts in %s: what needs another package cannot be built", c.Results(), c.Artifacts()), Cure: cure, Builds: true})
	}
	return all
}

// instanceTroubles reads the records of instances, with a daemon or without.
func instanceTroubles(c *config.Config, now time.Time) []doctor.Trouble {
	dir := filepath.Join(c.State, "instances")
	files, _ := filepath.Glob(filepath.Join(dir, "*.json")) // sorted; none is no trouble
	var all []doctor.Trouble
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		channel, arch, _ := strings.Cut(name, ".")
		if ch := c.Channels[channel]; ch == nil || !slices.Contains(ch.Archs, arch) {
			continue // of a channel that was
		}
		env := channel + "/" + arch
		t := doctor.Trouble{What: "instance " + env, Builds: true,
			Cure: fmt.Sprintf("mend what %s shows, then quarry images update %s --force", filepath.Join(dir, name+".log"), env)}
		data, err := os.ReadFile(file)
		var inst images.Instance
		if err == nil {
			err = json.Unmarshal(data, &inst)
		}
		switch {
		case err != nil:
			t.Why = fmt.Sprintf("its record %s cannot be read: %v", file, err)
			t.Cure = "quarry images update " + env + " --force"
		case inst.Trouble == "":
			continue
		case inst.Digest == "":
			t.Why = fmt.Sprintf("it could not be made (%s): %s", human.Ago(inst.TroubleAt, now), inst.Trouble)
			t.Builds = false
		default:
			t.Why = fmt.Sprintf("its last update failed (%s): %s; that of %s stays in use", human.Ago(inst.TroubleAt, now), inst.Trouble, inst.Made.UTC().Format("2006-01-02 15:04 UTC"))
		}
		all = append(all, t)
	}
	return all
}

// daemonTroubles asks the daemon about the environments that it keeps ready.
func daemonTroubles(ctx context.Context, c *config.Config) ([]doctor.Trouble, error) {
	ctx, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	var out, errOut bytes.Buffer
	code, err := control.Client{Socket: c.Socket()}.Call(ctx, []string{"images", "list", "--json"}, control.Terminal{}, &out, &errOut)
	if err != nil {
		return nil, err
	}
	if code != control.ExitOK {
		return nil, fmt.Errorf("the daemon does not tell of its images: %s", strings.TrimSpace(errOut.String()))
	}
	var list struct {
		Environments []struct {
			Name   string `json:"name"`
			Paused string `json:"paused"`
		} `json:"environments"`
	}
	if err := json.Unmarshal(out.Bytes(), &list); err != nil {
		return nil, fmt.Errorf("the daemon tells of its images what this quarry cannot read: %w", err)
	}
	var all []doctor.Trouble
	for _, e := range list.Environments {
		if e.Paused != "" {
			all = append(all, doctor.Trouble{What: "ready " + e.Name, Why: "no workspace is kept ready: " + e.Paused, Builds: true,
				Cure: "see to it, or let it be: builds run all the same and begin a little later"})
		}
	}
	return all, nil
}
