package auth

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Ways by which a token comes.
const (
	ViaSubprotocol = "subprotocol" // Sec-WebSocket-Protocol: chatbox.v1, bearer.<jwt>
	ViaHeader      = "header"      // Authorization: Bearer <jwt>
	ViaQuery       = "query"       // ?token=<jwt>
)

// bearerPrefix starts the subprotocol that carries a token. The server never echoes it.
const bearerPrefix = "bearer."

// TokenFromRequest finds the token of a request and says by which way it came: subprotocol, header, then, if
// allowed, query. Both results are empty when there is none. Cookies are never looked at.
func TokenFromRequest(r *http.Request, allowQuery bool) (token, via string) {
	for _, line := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(line, ",") {
			if t, ok := strings.CutPrefix(strings.TrimSpace(p), bearerPrefix); ok && t != "" {
				return t, ViaSubprotocol
			}
		}
	}
	scheme, t, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if t = strings.TrimSpace(t); strings.EqualFold(scheme, "Bearer") && t != "" {
		return t, ViaHeader
	}
	if allowQuery {
		if t := r.URL.Query().Get("token"); t != "" {
			return t, ViaQuery
		}
	}
	return "", ""
}

// nullOrigin is what sandboxed frames and some WebViews send.
const nullOrigin = "null"

// Origins are the pages that may open sockets: exact scheme, host and port. The zero value allows only the
// service's own pages. It does not change and may be used concurrently.
type Origins struct{ allowed []string }

// NewOrigins reads a list of origins such as https://app.example.com or null, and returns every problem at once.
func NewOrigins(list []string) (Origins, error) {
	var o Origins
	for _, s := range list {
		if s == nullOrigin {
			o.allowed = append(o.allowed, s)
			continue
		}
		origin, ok := canonicalOrigin(s)
		if !ok {
			return Origins{}, fmt.Errorf("origin %q is not scheme://host[:port] or null", s)
		}
		o.allowed = append(o.allowed, origin)
	}
	return o, nil
}

// Check returns nil if the page that made the request may do so, else ErrForbidden. via is what TokenFromRequest
// said. Browsers always send Origin with a WebSocket; a request without one passes only if its token came by a
// way that a page on a foreign site cannot make a browser use.
func (o Origins) Check(r *http.Request, via string) error {
	values := r.Header.Values("Origin")
	switch {
	case len(values) > 1:
		return fmt.Errorf("more than one origin: %w", ErrForbidden)
	case len(values) == 0 || values[0] == "":
		if via == ViaHeader || via == ViaSubprotocol {
			return nil
		}
		return fmt.Errorf("no origin: %w", ErrForbidden)
	case values[0] == nullOrigin:
		if slices.Contains(o.allowed, nullOrigin) {
			return nil
		}
		return fmt.Errorf("origin null: %w", ErrForbidden)
	}
	origin, ok := canonicalOrigin(values[0])
	if ok && (slices.Contains(o.allowed, origin) || sameOrigin(origin, r)) {
		return nil
	}
	return fmt.Errorf("foreign origin: %w", ErrForbidden)
}

// sameOrigin compares with the host that the request was sent to. Behind a proxy that ends TLS the scheme cannot
// be known, so it counts only where this process ended TLS itself.
func sameOrigin(origin string, r *http.Request) bool {
	scheme, _, _ := strings.Cut(origin, "://")
	if scheme != "http" && scheme != "https" || r.TLS != nil && scheme != "https" {
		return false
	}
	own, ok := canonicalOrigin(scheme + "://" + r.Host)
	return ok && own == origin
}

// canonicalOrigin lowers scheme and host and drops the scheme's own port.
func canonicalOrigin(s string) (string, bool) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.Hostname() == "" || u.User != nil || u.Opaque != "" ||
		u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.ContainsAny(s, "*#? ") {
		return "", false
	}
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch {
	case scheme == "http" || scheme == "ws":
		host = strings.TrimSuffix(host, ":80")
	case scheme == "https" || scheme == "wss":
		host = strings.TrimSuffix(host, ":443")
	}
	return scheme + "://" + strings.TrimSuffix(host, ":"), true
}
