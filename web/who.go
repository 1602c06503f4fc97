package web

import (
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/Morphux/quarry"
)

// Anonymous is who gives no token where everybody may look. It has no name, so
// that nothing that is somebody's is its.
var Anonymous = quarry.Identity{Role: quarry.RoleReader}

// refusal is why a request has no caller.
type refusal struct {
	status    int
	detail    string
	challenge string
}

func (e *refusal) answer(w http.ResponseWriter, r *http.Request) {
	if e.challenge != "" {
		w.Header().Set("WWW-Authenticate", e.challenge)
	}
	Error(w, r, e.status, e.detail)
}

// realm is what a client is asked for a token to.
const realm = `Bearer realm="quarry"`

// gitRealm is the same for git, which knows names and passwords: the token is the
// password, and the name may be any.
const gitRealm = `Basic realm="quarry", charset="UTF-8"`

// Unauthorized answers that a token is needed.
func Unauthorized(w http.ResponseWriter, r *http.Request, detail string) {
	challenge := realm
	if isGit(r.URL.Path) {
		challenge = gitRealm
	}
	(&refusal{http.StatusUnauthorized, detail, challenge}).answer(w, r)
}

// identify finds out who asks. A token that is not good is refused where nobody
// needs one, too: who gives one means to be somebody.
func (s *Server) identify(r *http.Request, rq *request) *refusal {
	all := r.Header.Values("Authorization")
	challenge, malformed, wrong := realm, realm+`, error="invalid_request"`, realm+`, error="invalid_token"`
	if isGit(r.URL.Path) {
		challenge, malformed, wrong = gitRealm, gitRealm, gitRealm
	}
	if len(all) == 0 {
		if !s.opts.Public {
			return &refusal{http.StatusUnauthorized, "this farm shows itself only to those with a token: send it as Authorization: Bearer TOKEN, or to git as the password", challenge}
		}
		rq.who = Anonymous
		return nil
	}
	scheme, token, _ := strings.Cut(all[0], " ")
	token = strings.TrimSpace(token)
	if strings.EqualFold(scheme, "Basic") && isGit(r.URL.Path) {
		_, token, _ = r.BasicAuth()
		scheme = "Bearer"
	}
	if len(all) > 1 || !strings.EqualFold(scheme, "Bearer") || token == "" {
		return &refusal{http.StatusUnauthorized, "the header Authorization has not the form Bearer TOKEN", malformed}
	}
	if !s.private(r, rq.from) && !s.opts.InsecureTokens {
		return &refusal{status: http.StatusForbidden, detail: "the token came over plain HTTP, readable for everybody on the way: revoke it, and use https"}
	}
	var err error
	if s.opts.Identify == nil {
		return &refusal{http.StatusUnauthorized, "this farm has no tokens", wrong}
	}
	if rq.who, err = s.opts.Identify(token); err != nil {
		rq.who = quarry.Identity{}
		return &refusal{http.StatusUnauthorized, err.Error(), wrong}
	}
	return nil
}

// private reports whether nobody on the network could read what was sent.
func (s *Server) private(r *http.Request, from string) bool {
	if r.TLS != nil || s.opts.Proxy && last(r.Header.Values("X-Forwarded-Proto")) == "https" {
		return true
	}
	ip, err := netip.ParseAddr(from)
	return err == nil && ip.Unmap().IsLoopback()
}

// from is the address of a client, e.g. 192.0.2.7.
func (s *Server) from(r *http.Request) string {
	if s.opts.Proxy {
		// Our proxy adds the address that it was called from at the end. What stands
		// before is the client's word.
		if ip, err := netip.ParseAddr(last(r.Header.Values("X-Forwarded-For"))); err == nil {
			return ip.Unmap().WithZone("").String()
		}
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// last is the last of a header's values, which may be several in one line.
func last(values []string) string {
	if len(values) == 0 {
		return ""
	}
	v := values[len(values)-1]
	return strings.TrimSpace(v[strings.LastIndexByte(v, ',')+1:])
}

// client is what is counted as one client: a network of IPv6 is as easily had as
// an address of IPv4.
func client(addr string) string {
	ip, err := netip.ParseAddr(addr)
	if err != nil {
		return addr
	}
	if ip = ip.Unmap().WithZone(""); ip.Is6() && !ip.IsLoopback() {
		if p, err := ip.Prefix(64); err == nil {
			return p.String()
		}
	}
	return ip.String()
}
