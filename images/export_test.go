package images

import "context"

// RunPool keeps a store's pool filled until ctx ends.
func RunPool(ctx context.Context, s *Store) { s.pool.run(ctx) }
