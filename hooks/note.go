package hooks

import (
	"context"
	"time"

	"github.com/Morphux/quarry/repos"
)

// noteTimeout bounds the writing of a note. It goes on when the hook is told to
// end: a second more now is better than a packager who is forgotten.
const noteTimeout = 30 * time.Second

// note writes into the repository who released a branch, and to which channel.
func (e Env) note(ctx context.Context, p Push, r Ref) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTimeout)
	defer cancel()
	return repos.WritePush(ctx, e.Repo, r.Name, repos.Push{
		Packager: p.Packager, Pushed: p.Time, Commit: r.New, Channel: p.Channel, Cert: e.Cert,
	})
}
