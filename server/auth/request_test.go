package auth_test

import (
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/server/auth"
)

// printable are the characters that names and ids of people consist of.
var printable = []*unicode.RangeTable{unicode.Letter, unicode.Digit, unicode.Punct, unicode.Symbol}

func errorsIs(err, target error) bool { return errors.Is(err, target) }

func request(target string, headers ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, target, nil)
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	return r
}

func TestTokenFromRequest_looksInTheThreePlaces(t *testing.T) {
	const ws = "Sec-WebSocket-Protocol"
	for name, c := range map[string]struct {
		r          *http.Request
		allowQuery bool
		token, via string
	}{
		"none":                       {request("/"), true, "", ""},
		"subprotocol":                {request("/", ws, "chatbox.v1, bearer.a.b.c"), false, "a.b.c", auth.ViaSubprotocol},
		"subprotocol in two lines":   {request("/", ws, "chatbox.v1", ws, "bearer.a.b.c"), false, "a.b.c", auth.ViaSubprotocol},
		"subprotocol, empty":         {request("/", ws, "chatbox.v1, bearer."), false, "", ""},
		"header":                     {request("/", "Authorization", "Bearer a.b.c"), false, "a.b.c", auth.ViaHeader},
		"header, any case":           {request("/", "Authorization", "bearer  a.b.c"), false, "a.b.c", auth.ViaHeader},
		"header of another scheme":   {request("/", "Authorization", "Basic a.b.c"), false, "", ""},
		"query":                      {request("/?token=a.b.c"), true, "a.b.c", auth.ViaQuery},
		"query, switched off":        {request("/?token=a.b.c"), false, "", ""},
		"subprotocol before the two": {request("/?token=q", ws, "bearer.s", "Authorization", "Bearer h"), true, "s", auth.ViaSubprotocol},
		"header before query":        {request("/?token=q", "Authorization", "Bearer h"), true, "h", auth.ViaHeader},
		"a cookie does not count":    {request("/", "Cookie", "token=a.b.c; jwt=a.b.c"), true, "", ""},
	} {
		token, via := auth.TokenFromRequest(c.r, c.allowQuery)
		assert.Equal(t, c.token, token, name)
		assert.Equal(t, c.via, via, name)
	}
}

func TestOrigins_allowExactlyListedAndOwnPages(t *testing.T) {
	o, err := auth.NewOrigins([]string{"https://app.example.com", "http://dev.example.com:8080", "HTTPS://Port.example.com:443"})
	require.NoError(t, err)
	for origin, want := range map[string]bool{
		"https://app.example.com":          true,
		"https://APP.example.com":          true,
		"https://app.example.com:443":      true,
		"https://port.example.com":         true,
		"http://dev.example.com:8080":      true,
		"https://chat.example.com":         true, // the host of the request
		"http://chat.example.com":          true, // TLS may have ended at a proxy
		"http://app.example.com":           false,
		"https://app.example.com:8443":     false,
		"https://x.app.example.com":        false,
		"https://app.example.com.evil.org": false,
		"https://evilapp.example.com":      false,
		"https://app.example.com/":         false,
		"https://app.example.com@evil.org": false,
		"https://user@app.example.com":     false,
		"http://dev.example.com":           false,
		"https://chat.example.com:444":     false,
		"file://":                          false,
		"file://chat.example.com":          false,
		"null":                             false,
		"*":                                false,
		"app.example.com":                  false,
		"https://":                         false,
	} {
		for _, via := range []string{auth.ViaHeader, auth.ViaSubprotocol, auth.ViaQuery} {
			err := o.Check(request("http://chat.example.com/chat/ws", "Origin", origin), via)
			assert.Equal(t, want, err == nil, "%s by %s: %v", origin, via, err)
			if err != nil {
				assert.ErrorIs(t, err, auth.ErrForbidden)
			}
		}
	}
}

func TestOrigins_atTheEdges(t *testing.T) {
	var none auth.Origins
	own := func(headers ...string) *http.Request { return request("http://chat.example.com:8080/", headers...) }
	assert.NoError(t, none.Check(own("Origin", "http://chat.example.com:8080"), auth.ViaQuery))
	assert.Error(t, none.Check(own("Origin", "http://chat.example.com"), auth.ViaQuery), "another port is another origin")
	assert.Error(t, none.Check(own("Origin", "http://chat.example.com:8080", "Origin", "http://evil.org"), auth.ViaHeader))

	assert.NoError(t, none.Check(own(), auth.ViaHeader))
	assert.NoError(t, none.Check(own(), auth.ViaSubprotocol))
	assert.Error(t, none.Check(own(), auth.ViaQuery))
	assert.Error(t, none.Check(own(), ""))

	secure := own("Origin", "http://chat.example.com:8080")
	secure.TLS = &tls.ConnectionState{}
	assert.Error(t, none.Check(secure, auth.ViaHeader), "a plain page is not the origin of a TLS service")

	null, err := auth.NewOrigins([]string{"null"})
	require.NoError(t, err)
	assert.NoError(t, null.Check(own("Origin", "null"), auth.ViaHeader))

	for _, bad := range []string{"", "*", "https://*.example.com", "example.com", "https://a/b", "https://a?x", "https://u@a"} {
		_, err := auth.NewOrigins([]string{bad})
		assert.Error(t, err, bad)
	}
}

// Promise 61: admin actions check the admin role every time; what is not in the table is refused to everybody.
func TestPolicy_deniesByDefault(t *testing.T) {
	p := auth.NewPolicy(auth.PolicyOptions{Now: func() time.Time { return now }})
	user := auth.Identity{UserID: "u", Expires: now.Add(time.Hour)}
	admin := auth.Identity{UserID: "a", Roles: []string{"admin"}, Expires: now.Add(time.Hour)}
	stale := auth.Identity{UserID: "a", Roles: []string{"admin"}, Expires: now.Add(-time.Minute)}

	for _, action := range p.Actions() {
		need := p.Requirement(action)
		require.NotEqual(t, auth.Nobody, need, action)
		for who, c := range map[string]struct {
			id   auth.Identity
			want error
		}{
			"nobody":      {auth.Identity{}, map[bool]error{true: nil, false: auth.ErrUnauthorized}[need == auth.Public]},
			"user":        {user, map[bool]error{true: auth.ErrForbidden, false: nil}[need == auth.Admin]},
			"admin":       {admin, nil},
			"stale admin": {stale, map[bool]error{true: auth.ErrExpired, false: nil}[need == auth.Admin]},
		} {
			err := p.Allow(action, c.id)
			if c.want == nil {
				assert.NoError(t, err, "%s: %s", who, action)
			} else {
				assert.ErrorIs(t, err, c.want, "%s: %s", who, action)
			}
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		action := rapid.String().Filter(func(s string) bool { return p.Requirement(s) == auth.Nobody }).Draw(t, "action")
		require.ErrorIs(t, p.Allow(action, admin), auth.ErrForbidden)
	})
}

func TestPolicy_ownsItsTable(t *testing.T) {
	table := map[string]auth.Requirement{auth.Route("GET", "/x"): auth.Admin}
	p := auth.NewPolicy(auth.PolicyOptions{Table: table})
	table[auth.Route("GET", "/x")] = auth.Public
	assert.Error(t, p.Allow("GET /x", auth.Identity{UserID: "u"}))
	assert.Error(t, p.Allow("GET /chat/healthz", auth.Identity{}), "a given table replaces the default one")
	assert.NotEqual(t, auth.Frame("watch"), auth.AdminFrame("watch"))
}
