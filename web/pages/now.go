package pages

import (
	"context"
	"net/http"
	"time"
)

// fresh is how old a page may be that shows what goes on.
const fresh = time.Second

func (s *site) nowRoutes() []route {
	return []route{
		{"GET /{$}", s.page(fresh, s.now)},
	}
}

func (s *site) now(context.Context, *http.Request) (*page, error) {
	return &page{Title: "Now", Section: "now", Template: "now"}, nil
}
