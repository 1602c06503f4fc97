package pages

import (
	"context"
	"net/http"
	"time"

	"github.com/Morphux/quarry"
	"github.com/Morphux/quarry/control"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/images"
	"github.com/Morphux/quarry/queue"
	"github.com/Morphux/quarry/usage"
)

func (s *Site) builderRoutes() []route {
	return []route{{"GET /builders", s.page(2*time.Second, s.builders)}}
}

// buildersView is what this farm builds with.
type buildersView struct {
	Machine      usage.Machine
	Status       queue.Status
	Trouble      []trouble
	Running      []quarry.Build
	Environments []images.Environment
	Workers      []graph.Worker
	Memory       int64 // bytes that all builds may take; 0: no bound
	Disk         *disk
	Slots        *control.JobsStatus // nil: nobody shares them out
}

type disk struct{ Free, Size int64 }

// Used is what is not free.
func (d disk) Used() int64 { return d.Size - d.Free }

func (s *Site) builders(ctx context.Context, _ *http.Request) (*page, error) {
	v := &buildersView{Machine: s.Machine(), Status: s.Queue.Status(), Workers: s.Workers, Memory: s.Queue.Memory(), Slots: s.slots()}
	v.Trouble = troubles(v.Status)
	v.Running = s.Queue.List(queue.Filter{States: []quarry.State{quarry.Running, quarry.Recording}})
	if s.Environments != nil {
		v.Environments = s.Environments(ctx)
	}
	if s.Disk != nil {
		free, size, err := s.Disk()
		if err == nil {
			v.Disk = &disk{free, size}
		} else {
			v.Trouble = append(v.Trouble, trouble{What: "Disk", Why: err.Error()})
		}
	}
	return &page{Title: "Builders", Section: "builders", Template: "builders", Data: v}, nil
}
