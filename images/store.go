// Package images keeps the bases and makes the workspaces in which builds run,
// through podman.
package images

import "context"

// Store keeps bases and makes workspaces.
type Store struct{}

type cgroupPaths struct{}

// Workspace makes a clean workspace for one build.
func (s *Store) Workspace(ctx context.Context, spec Spec) (*Workspace, error) { panic("soon") }

// Close ends the workspace.
func (w *Workspace) Close(ctx context.Context) error { panic("soon") }

// Kill ends every process in the workspace.
func (w *Workspace) Kill(ctx context.Context) error { panic("soon") }

// Died says why the first process is gone.
func (w *Workspace) Died(ctx context.Context) (Death, error) { panic("soon") }

// Usage says what it used.
func (w *Workspace) Usage() (Usage, error) { panic("soon") }
