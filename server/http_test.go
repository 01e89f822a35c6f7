package server

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/server/auth"
	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore"
)

// withPages mounts a widget page.
func withPages(d *Deps) {
	d.Pages = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("page")) })
}

// Every route that is served has a policy: a route that somebody adds and forgets there is refused to everybody.
func TestRoutes_allHaveAPolicy(t *testing.T) {
	r := newReplica(t, withPages)
	actions := r.deps.Policy.Actions()
	served := 0
	for _, route := range r.echo.Routes() {
		if route.Method == echo.RouteNotFound {
			continue // answers 404
		}
		method := route.Method
		if method == http.MethodHead {
			method = http.MethodGet // as allow has it
		}
		assert.Contains(t, actions, auth.Route(method, route.Path))
		served++
	}
	assert.Greater(t, served, 10)
}

// The public routes are these, and no others.
func TestRoutes_thatNeedNoToken(t *testing.T) {
	r := newReplica(t, withPages)
	public := []string{"/chat", "/chat/", "/chat/*", "/chat/healthz", "/chat/readyz"}
	for _, route := range r.echo.Routes() {
		if route.Method == echo.RouteNotFound {
			continue
		}
		rec := r.do(t, "", route.Method, strings.NewReplacer(":id", "p01-x", "*", "loader.js").Replace(route.Path))
		if slices.Contains(public, route.Path) {
			assert.NotEqual(t, http.StatusUnauthorized, rec.Code, route.Path)
			continue
		}
		refused(t, rec, http.StatusUnauthorized, protocol.CodeUnauthorized)
		assert.Equal(t, "Bearer", rec.Header().Get(echo.HeaderWWWAuthenticate))
	}
	assert.Empty(t, r.live.opened, "nothing is opened for somebody unknown")
}

// Every frame type that clients may send has a policy.
func TestFrames_allHaveAPolicy(t *testing.T) {
	r := newReplica(t)
	for _, typ := range []string{
		sessionstore.TypeUserMessage, sessionstore.TypeModelSelect, sessionstore.TypeStop, sessionstore.TypeTyping,
		protocol.TypePing, protocol.TypeAuth,
	} {
		require.True(t, protocol.ClientType(typ), typ)
		assert.Equal(t, auth.User, r.deps.Policy.Requirement(auth.Frame(typ)), typ)
	}
}

// What the policy does not know is refused, whoever asks.
func TestAllow_refusesRoutesWithoutAPolicy(t *testing.T) {
	r := newReplica(t, func(d *Deps) {
		table := auth.DefaultTable()
		delete(table, "GET /chat/models")
		d.Policy = auth.NewPolicy(auth.PolicyOptions{Table: table})
	})
	refused(t, r.do(t, "ann", http.MethodGet, "/chat/models"), http.StatusForbidden, protocol.CodeForbidden)
	refused(t, r.do(t, "ann", http.MethodPost, "/chat/nothing"), http.StatusForbidden, protocol.CodeForbidden)
	refused(t, r.do(t, "", http.MethodPost, "/chat/nothing"), http.StatusUnauthorized, protocol.CodeUnauthorized)
	refused(t, r.do(t, "ann", http.MethodGet, "/chat/nothing"), http.StatusNotFound, protocol.CodeNotFound)
	refused(t, r.do(t, "", http.MethodGet, "/chat"), http.StatusNotFound, protocol.CodeNotFound) // no pages here
}

// A wrong method is not told apart from a wrong path, and never reaches a handler.
func TestAllow_refusesOtherMethods(t *testing.T) {
	r := newReplica(t)
	for _, method := range []string{http.MethodDelete, http.MethodPut, http.MethodPatch, http.MethodPost} {
		rec := r.do(t, "ann", method, "/chat/me")
		assert.Contains(t, []int{http.StatusForbidden, http.StatusNotFound}, rec.Code, method)
	}
	assert.Equal(t, http.StatusNotFound, r.do(t, "ann", http.MethodHead, "/chat/me").Code)
}

func TestPages_areServedAlsoForHead(t *testing.T) {
	r := newReplica(t, withPages)
	for _, path := range []string{"/chat", "/chat/", "/chat/loader.js", "/chat/a/b"} {
		rec := r.do(t, "", http.MethodGet, path)
		assert.Equal(t, http.StatusOK, rec.Code, path)
		assert.Equal(t, "page", rec.Body.String())
		assert.Empty(t, rec.Header().Get(echo.HeaderCacheControl), "pages set their own")
		assert.Equal(t, http.StatusOK, r.do(t, "", http.MethodHead, path).Code, path)
	}
}

// Promise 1: what is not a valid token opens nothing. Which kind of invalid it is, is not said, except for expiry.
func TestToken_thatIsNotValid(t *testing.T) {
	r := newReplica(t)
	other, err := auth.New(auth.Options{Secret: []byte("another secret, of another installation")})
	require.NoError(t, err)
	foreign, err := other.Issue(auth.Claims{UserID: "ann", TTL: time.Hour})
	require.NoError(t, err)
	var bodies []string
	for _, header := range []string{"", "Bearer", "Bearer x", "Bearer " + foreign, "Basic " + r.token(t, "ann"), "Bearer a.b.c"} {
		rec := r.do(t, "", http.MethodGet, "/chat/me", echo.HeaderAuthorization, header)
		bodies = append(bodies, rec.Body.String())
		refused(t, rec, http.StatusUnauthorized, protocol.CodeUnauthorized)
	}
	assert.Len(t, slices.Compact(bodies), 1)
	lacks(t, r.logs.String(), foreign)

	old, err := auth.New(auth.Options{
		Secret: []byte("a secret that only tests know, long enough"), Now: func() time.Time { return time.Now().Add(-time.Hour) },
	})
	require.NoError(t, err)
	expired, err := old.Issue(auth.Claims{UserID: "ann", TTL: time.Minute})
	require.NoError(t, err)
	rec := r.do(t, "", http.MethodGet, "/chat/me", echo.HeaderAuthorization, "Bearer "+expired)
	refused(t, rec, http.StatusUnauthorized, protocol.CodeTokenExpired)
}

// ?token= counts only where the operator allows it.
func TestToken_inTheQuery(t *testing.T) {
	for allowed, status := range map[bool]int{true: http.StatusOK, false: http.StatusUnauthorized} {
		r := newReplica(t, options(func(o *Options) { o.QueryToken = allowed }))
		token := r.token(t, "ann")
		assert.Equal(t, status, r.do(t, "", http.MethodGet, "/chat/me?token="+token).Code)
		lacks(t, r.logs.String(), token)
	}
}

// Promise 36: every request has an id: the proxy's if that is fit for a log, else a new one.
func TestRequestID_isTakenOverOrMade(t *testing.T) {
	r := newReplica(t)
	get := func(id string) string {
		return r.do(t, "", http.MethodGet, "/chat/healthz", echo.HeaderXRequestID, id).Header().Get(echo.HeaderXRequestID)
	}
	assert.Equal(t, "abc-1.2_X", get("abc-1.2_X"))
	made := map[string]bool{}
	for _, bad := range []string{"", "two words", "new\nline", "<script>", strings.Repeat("x", 65), "ä"} {
		id := get(bad)
		assert.Len(t, id, 36)
		assert.NotEqual(t, bad, id)
		made[id] = true
	}
	assert.Len(t, made, 6)
	assert.Len(t, get(strings.Repeat("x", 64)), 64)
}

// Promise 2: who the token speaks for is what the client is told.
func TestMe_isWhoTheTokenSpeaksFor(t *testing.T) {
	r := newReplica(t)
	rec := r.do(t, "ann", http.MethodGet, "/chat/me")
	assert.Equal(t, http.StatusOK, rec.Code)
	assert.JSONEq(t, `{"user_id":"ann","name":"Name of ann","roles":[]}`, rec.Body.String())
	assert.Equal(t, "no-store", rec.Header().Get(echo.HeaderCacheControl))

	token, err := r.verifier.Issue(auth.Claims{UserID: "bob", Roles: []string{"admin", "x"}, TTL: time.Hour})
	require.NoError(t, err)
	rec = r.do(t, "", http.MethodGet, "/chat/me", echo.HeaderAuthorization, "Bearer "+token)
	assert.JSONEq(t, `{"user_id":"bob","name":"","roles":["admin","x"]}`, rec.Body.String())
}

func TestModels_areListedWithTheDefault(t *testing.T) {
	r := newReplica(t)
	rec := r.do(t, "ann", http.MethodGet, "/chat/models")
	assert.JSONEq(t, `{"items":[{"id":"gpt","name":"GPT","vision":false,"audio":false,"files":[]}],"default":"gpt"}`, rec.Body.String())

	r = newReplica(t, func(d *Deps) {
		d.Models = append(d.Models, protocol.Model{ID: "claude", Name: "Claude", Vision: true, Audio: true, Files: []string{"pdf", "txt"}})
	})
	rec = r.do(t, "ann", http.MethodGet, "/chat/models")
	assert.Contains(t, rec.Body.String(), `{"id":"claude","name":"Claude","vision":true,"audio":true,"files":["pdf","txt"]}`)

	r = newReplica(t, func(d *Deps) { d.Models, d.Default = nil, "" })
	rec = r.do(t, "ann", http.MethodGet, "/chat/models")
	assert.JSONEq(t, `{"items":[],"default":""}`, rec.Body.String())
}

// The application around the service keeps its own routes and its own errors.
func TestRegister_leavesTheHostAlone(t *testing.T) {
	r := newReplica(t)
	r.echo.GET("/own", func(echo.Context) error { return echo.NewHTTPError(http.StatusTeapot, "own") })
	rec := httptest.NewRecorder()
	r.echo.ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/own", nil))
	assert.Equal(t, http.StatusTeapot, rec.Code)
	assert.Empty(t, rec.Header().Get(echo.HeaderXRequestID))
}

// A server that lacks a part is not made, rather than failing at the first request.
func TestNew_wantsAllParts(t *testing.T) {
	whole := newReplica(t).deps
	for name, spoil := range map[string]func(*Deps){
		"live": func(d *Deps) { d.Live = nil }, "archive": func(d *Deps) { d.Archive = nil }, "history": func(d *Deps) { d.History = nil },
		"chat": func(d *Deps) { d.Chat = nil }, "revival": func(d *Deps) { d.Revival = nil }, "turns": func(d *Deps) { d.Turns = nil }, "verifier": func(d *Deps) { d.Verifier = nil },
		"policy": func(d *Deps) { d.Policy = nil }, "replica": func(d *Deps) { d.Options.Replica = "" },
		"hub's options": func(d *Deps) { d.Options.PingEvery = -1 },
	} {
		deps := whole
		spoil(&deps)
		_, err := New(deps)
		require.Error(t, err, name)
	}
	whole.Log = nil
	_, err := New(whole)
	require.NoError(t, err)
}

// Zero options are the documented defaults; leases are renewed often enough whatever is set.
func TestOptions_defaults(t *testing.T) {
	o := Options{}
	o.setDefaults()
	assert.Equal(t, Options{
		MaxConnections: 10000, Window: 15 * time.Minute, Presence: 95 * time.Second, TouchEvery: 95 * time.Second / 3, PerMinute: 100,
		SocketRate: 10, SocketBurst: 40, OpensInFlight: 128, QueueBytes: 1 << 20, WriteWait: 10 * time.Second, Idle: 90 * time.Second,
		RedisGrace: 15 * time.Second, TailEvery: 15 * time.Second, PerUser: 20,
	}, o)
	o = Options{Presence: 10 * time.Second, TouchEvery: time.Minute}
	o.setDefaults()
	assert.Equal(t, 5*time.Second, o.TouchEvery)
}

func TestSeconds_areRoundedUp(t *testing.T) {
	for d, want := range map[time.Duration]string{time.Millisecond: "1", time.Second: "1", 1001 * time.Millisecond: "2", 5 * time.Second: "5"} {
		assert.Equal(t, want, seconds(d))
	}
}
