package main

import (
	"context"

	"github.com/Morphux/quarry/config"
	"github.com/Morphux/quarry/graph"
	"github.com/Morphux/quarry/queue"
)

// graph says what the graph of a channel is of.
func (f *stages) graph(channel string) graph.Options {
	return graph.Options{Archs: f.channelArchs(channel), Machine: config.HostArch()}
}

// past tells the queue how long builds have taken, as the records say.
func (f *stages) past(ctx context.Context, observe func(queue.Past)) error {
	channels, err := f.results.Channels()
	if err != nil {
		return err
	}
	for _, ch := range channels {
		s, err := f.results.Snapshot(ch)
		if err != nil {
			return err
		}
		list, err := s.Past(ctx)
		if err != nil {
			return err
		}
		for _, p := range list {
			observe(queue.Past{Package: p.Package, Arch: p.Arch, Took: p.Took})
		}
	}
	return nil
}
