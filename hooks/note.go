package hooks

import (
	"context"
	"time"

	"github.com/Morphux/quarry/repos"
)

// noteTimeout bounds the writing of a note. It goes on when the hook is told to
// end: a second more now is better than a packager who is forgotten.
const noteTimeout = 30 * time.Second

// announce writes into the repository who is about to move which branches. A
// plan that is made between the moving and post-receive's note knows then whose
// they are, and so does every plan when post-receive dies.
func (e Env) announce(ctx context.Context, refs []Ref, channel, group string) error {
	now := time.Now()
	var list []repos.Next
	for _, r := range refs {
		list = append(list, repos.Next{Branch: r.Name, Push: repos.Push{
			Packager: e.packager(), Pushed: now, Commit: r.New, Channel: channel, Group: group,
		}})
	}
	ctx, cancel := context.WithTimeout(ctx, noteTimeout)
	defer cancel()
	return repos.WriteNext(ctx, e.Repo, list, e.Cert.text)
}

// note writes into the repository who released a branch, and to which channel.
func (e Env) note(ctx context.Context, p Push, r Ref) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), noteTimeout)
	defer cancel()
	return repos.WritePush(ctx, e.Repo, r.Name, repos.Push{
		Packager: p.Packager, Pushed: p.Time, Commit: r.New, Channel: p.Channel, Group: p.Group,
	})
}
