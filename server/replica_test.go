package server

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/server/auth"
	"github.com/real-rm/chatbox/server/chat"
	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// replica is a real server with the real hub, chat, verifier and policy, on a store and an archive in memory.
type replica struct {
	*Server
	t        *testing.T // of the bubble, inside one
	live     *fakeLive
	archive  *fakeArchive
	turns    *fakeTurns
	ring     *seal.Keyring
	verifier *auth.Verifier
	logs     *logs
	echo     *echo.Echo
	client   *http.Client // through pipes; nil without inBubble
}

// keyring is made once: nothing here depends on which keys it holds.
var keyring = sync.OnceValues(func() (*seal.Keyring, error) {
	text, err := seal.NewKeyset()
	if err != nil {
		return nil, err
	}
	return seal.NewKeyring(text)
})

// newReplica makes a replica of which nothing runs yet. set may change its parts.
func newReplica(t *testing.T, set ...func(*Deps)) *replica {
	t.Helper()
	r := &replica{t: t, live: newFakeLive(), archive: &fakeArchive{}, turns: &fakeTurns{}, logs: &logs{}, echo: echo.New()}
	var err error
	r.ring, err = keyring()
	require.NoError(t, err)
	r.verifier, err = auth.New(auth.Options{Secret: []byte("a secret that only tests know, long enough")})
	require.NoError(t, err)
	history := &chat.History{Live: r.live, Stored: r.archive, Keys: r.ring}
	revival, err := chat.NewReviver(chat.ReviveOptions{Live: r.live, Archive: r.archive, Log: r.logs.logger()})
	require.NoError(t, err)
	talk, err := chat.New(chat.Options{
		Store: r.live, Archive: r.archive, History: history, Revival: revival, Turns: r.turns, Models: oneModel{}, Log: r.logs.logger(),
	})
	require.NoError(t, err)
	deps := Deps{
		Live: r.live, Archive: r.archive, History: history, Chat: talk, Revival: revival, Turns: r.turns,
		Verifier: r.verifier, Policy: auth.NewPolicy(auth.PolicyOptions{}), Models: []protocol.Model{{ID: "gpt", Name: "GPT"}}, Default: "gpt",
		Log: r.logs.logger(),
		// Tails are compared where a test asks for it, else that would hide what the other ways do not find.
		Options: Options{Replica: "r1", SocketBurst: 1000, TailEvery: 24 * time.Hour},
	}
	for _, f := range set {
		f(&deps)
	}
	r.Server, err = New(deps)
	require.NoError(t, err)
	r.Register(r.echo)
	return r
}

// options is a change of the options for newReplica.
func options(f func(*Options)) func(*Deps) {
	return func(d *Deps) { f(&d.Options) }
}

// token is a fresh token of a user.
func (r *replica) token(t *testing.T, user string) string {
	t.Helper()
	return r.tokenFor(t, user, time.Hour)
}

func (r *replica) tokenFor(t *testing.T, user string, life time.Duration) string {
	t.Helper()
	token, err := r.verifier.Issue(auth.Claims{UserID: user, Name: "Name of " + user, TTL: life})
	require.NoError(t, err)
	return token
}

// do makes a request; an empty user makes it without a token.
func (r *replica) do(t *testing.T, user, method, path string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), method, path, nil)
	if user != "" {
		req.Header.Set(echo.HeaderAuthorization, "Bearer "+r.token(t, user))
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	r.echo.ServeHTTP(rec, req)
	return rec
}

// decode reads a JSON body.
func decode[T any](t *testing.T, body io.Reader) T {
	t.Helper()
	var v T
	require.NoError(t, json.NewDecoder(body).Decode(&v))
	return v
}

// wireError is the error object of frames and problems.
type wireError struct {
	Code        protocol.Code `json:"code"`
	Message     string        `json:"message"`
	Recoverable bool          `json:"recoverable"`
	RetryAfter  int64         `json:"retry_after"`
}

// wireProblem is a problem as clients read it.
type wireProblem struct {
	Type      string    `json:"type"`
	Title     string    `json:"title"`
	Status    int       `json:"status"`
	Error     wireError `json:"error"`
	SessionID string    `json:"session_id"`
}

// refused requires a problem and returns it.
func refused(t *testing.T, rec *httptest.ResponseRecorder, status int, code protocol.Code) wireProblem {
	t.Helper()
	require.Equal(t, status, rec.Code, rec.Body.String())
	require.Equal(t, "application/problem+json", rec.Header().Get(echo.HeaderContentType))
	p := decode[wireProblem](t, rec.Body)
	require.Equal(t, code, p.Error.Code)
	require.Equal(t, status, p.Status)
	require.Equal(t, p.Error.Message, p.Title)
	return p
}

// pipes is a listener whose connections never leave the process, so that time can be faked.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	end   chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.end:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.end) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// inBubble runs f with a replica that runs, in a bubble where time goes by at once: a minute of waiting costs
// nothing, and synctest.Wait tells that everything that was to happen has happened. Afterwards the replica must be
// empty. f uses the bubble's own t, which is replica.t.
func inBubble(t *testing.T, f func(r *replica), set ...func(*Deps)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t, set...)
		stop := r.run(t)
		f(r)
		stop()
		synctest.Wait() // requests that were under way
		require.Zero(t, r.hub.Len(), "sockets left")
		require.Zero(t, r.hub.Topics(), "topics left")
		require.Zero(t, r.sockets.Load(), "places of sockets left")
		require.Empty(t, r.opening, "places of opens left")
		require.Empty(t, r.live.present, "leases left") // Promise 7
		require.NotContains(t, r.logs.String(), "panicked")
	})
}

// run starts the server behind pipes; stop ends it and waits.
func (r *replica) run(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { require.NoError(t, r.Run(ctx)) })
	p := &pipes{conns: make(chan net.Conn), end: make(chan struct{})}
	front := &http.Server{Handler: r.echo}
	wg.Go(func() { _ = front.Serve(p) })
	r.client = &http.Client{Transport: &http.Transport{DialContext: p.dial}}
	synctest.Wait()
	stop = sync.OnceFunc(func() {
		cancel()
		_ = front.Close()
		r.client.CloseIdleConnections()
		wg.Wait()
	})
	t.Cleanup(stop) // a failure must not look like a deadlock
	return stop
}

// pass lets time go by and waits until everybody has done what was to be done by then.
func pass(d time.Duration) {
	time.Sleep(d) // of a bubble: it takes no time
	synctest.Wait()
}

// lacks requires that none of the secrets is in the text.
func lacks(t *testing.T, text string, secrets ...string) {
	t.Helper()
	for _, s := range secrets {
		require.NotContains(t, strings.ToLower(text), strings.ToLower(s))
	}
}
