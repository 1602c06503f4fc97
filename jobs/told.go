package jobs

import "github.com/Morphux/quarry/buildcontrol"

// OfToken tells which build a token of Options.Control belongs to. ok is false for
// tokens that others have made.
func (g *Governor) OfToken(t *buildcontrol.Token) (number int64, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.shares {
		if s.bridge != nil && s.bridge.token == t {
			return s.build.Number, true
		}
	}
	return 0, false
}
