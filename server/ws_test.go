package server

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/labstack/echo/v4"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
	"github.com/real-rm/chatbox/server/auth"
	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// refusedSocket requires that the request for a socket got a problem, and returns it.
func refusedSocket(t *testing.T, resp *http.Response, err error, status int, code protocol.Code) wireProblem {
	t.Helper()
	require.Error(t, err)
	require.NotNil(t, resp, err)
	require.Equal(t, status, resp.StatusCode)
	p := decode[wireProblem](t, resp.Body)
	require.Equal(t, code, p.Error.Code)
	return p
}

// Promise 4: a valid token opens a socket that works in both directions. The server speaks first and says who the
// client is, where it is, and what holds.
func TestOpen_greetsWithEverythingAClientNeeds(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dial(t, "ann")
		frames := s.take()
		require.Len(t, frames, 3)
		assert.JSONEq(t, `{
			"type": "connection_status", "status": "connected", "session_id": "p01-ann-1", "epoch": "1-a", "seq": 1,
			"resumed": false, "recovered": false, "user": {"id": "ann", "name": "Name of ann"},
			"models": [{"id": "gpt", "name": "GPT", "vision": false, "audio": false, "files": []}], "model_id": "gpt", "owner": "ai",
			"heartbeat_ms": 30000, "window_ms": 900000, "limits": {"frame_bytes": 65536, "per_minute": 100}
		}`, frames[0].raw)
		assert.Equal(t, "snapshot", frames[1].String())
		require.Len(t, frames[1].Messages, 1)
		assert.Equal(t, sessionstore.TypeStarted, frames[1].Messages[0].Type)
		assert.JSONEq(t, `{"type":"connection_status","status":"live","session_id":"p01-ann-1"}`, frames[2].raw)

		assert.Equal(t, []sessionstore.OpenRequest{{UserID: "ann", UserName: "Name of ann", ConnID: "r1.1", ModelID: "gpt"}}, r.live.opened)
		id := s.say("hello")
		ack := s.one()
		assert.Equal(t, "ack 2", ack.String())
		assert.Equal(t, id, ack.MessageID)
		assert.Equal(t, []string{"p01-ann-1"}, r.turns.started) // Promise 10
		s.leave()
		assert.Equal(t, []live.Conn{{SessionID: "p01-ann-1", ConnID: "r1.1"}}, r.live.gone) // Promise 7
		assert.Len(t, r.logs.lines(t, "client connected"), 1)                               // Promise 37
		assert.Len(t, r.logs.lines(t, "client disconnected"), 1)
	})
}

// A session that has a name, a model and an admin says so.
func TestOpen_greetsWithTheStateOfTheSession(t *testing.T) {
	offer := func(d *Deps) { d.Models = append(d.Models, protocol.Model{ID: "other"}) }
	inBubble(t, func(r *replica) {
		t := r.t
		b := r.live.begin("ann", "p01-s")
		r.live.set(func() {
			b.Name, b.ModelID, b.Owner, b.AdminName = "About passwords", "other", sessionstore.OwnerHuman, "Sam"
		})
		s := r.dial(t, "ann")
		raw := s.take()[0].raw
		for _, part := range []string{`"name":"About passwords"`, `"model_id":"other"`, `"owner":"human"`, `"assisted_by":"Sam"`} {
			assert.Contains(t, raw, part)
		}
		s.leave()
	}, offer)
}

// Promise 30: a session whose model is not on offer any more says which one answers it.
func TestOpen_modelNotOnOffer_greetsWithTheDefault(t *testing.T) {
	inBubble(t, func(r *replica) {
		b := r.live.begin("ann", "p01-s")
		r.live.set(func() { b.ModelID = "retired" })
		s := r.dial(r.t, "ann")
		assert.Contains(r.t, s.take()[0].raw, `"model_id":"gpt"`)
		s.leave()
	})
}

// Promise 6: a client that says how far it has read gets what it has missed, in order, then the running answer as a
// whole, then live.
func TestOpen_resumesWithTheMissedEvents(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		first := r.dial(t, "ann")
		for range 4 {
			first.say("hello")
		}
		sid := first.take()[0].SessionID
		first.leave()
		b := r.live.sessions[sid]
		r.live.set(func() {
			m := b.message(sessionstore.Event{
				Header: sessionstore.Header{Type: sessionstore.TypeAIResponse, SessionID: sid, MessageID: "a1", Sender: sessionstore.SenderAI,
					Attempt: 2, Chunk: 7, Reset: true},
				Body: sessionstore.Body{Delta: "so far"},
			})
			b.running = &m
		})
		s := r.dialWith(t, r.token(t, "ann"), resume(sid, "1-a", 2))
		frames := s.take()
		assert.True(t, frames[0].Resumed)
		assert.True(t, frames[0].Recovered)
		var names []string
		for _, f := range frames {
			names = append(names, f.String())
		}
		require.Equal(t, []string{"connected", "user_message 3", "user_message 4", "user_message 5", "ai_response chunk 7", "live"}, names)
		assert.True(t, frames[4].Reset)
		assert.Equal(t, "so far", frames[4].Delta)
		s.leave()

		// Nothing missed: nothing but the running answer.
		s = r.dialWith(t, r.token(t, "ann"), resume(sid, "1-a", 5))
		assert.Equal(t, "connected, ai_response chunk 7, live", s.names())
		s.leave()
	})
}

// What cannot be continued is replaced by a snapshot, which says whether there is more.
func TestOpen_replacesWhatCannotBeContinued(t *testing.T) {
	for name, query := range map[string]url.Values{
		"other epoch":     resume("p01-s", "0-x", 3),
		"trimmed":         resume("p01-s", "1-a", 1),
		"no epoch":        resume("p01-s", "", 3),
		"negative":        resume("p01-s", "1-a", -3),
		"not a number":    {"session_id": {"p01-s"}, "epoch": {"1-a"}, "last_seq": {"3; DROP"}},
		"foreign session": resume("p01-of-bob", "1-a", 3),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *replica) {
				t := r.t
				r.live.begin("bob", "p01-of-bob")
				b := r.live.begin("ann", "p01-s")
				r.live.set(func() {
					for range 3 {
						b.add(sessionstore.Event{Header: sessionstore.Header{Type: sessionstore.TypeModelSelect, SessionID: "p01-s"}})
					}
					b.trimmed = 2
				})
				s := r.dialWith(t, r.token(t, "ann"), query)
				frames := s.take()
				require.Len(t, frames, 3)
				assert.Equal(t, "p01-s", frames[0].SessionID) // Promise 3: whatever it asks for, it is the user's own
				assert.False(t, frames[0].Recovered)
				assert.Equal(t, "snapshot", frames[1].String())
				assert.EqualValues(t, 4, frames[1].Seq)
				assert.True(t, frames[1].HasMore)
				assert.Len(t, frames[1].Messages, 2)
				s.leave()
			})
		})
	}
}

// Promise 1: what is not a valid token does not reach the upgrade.
func TestOpen_refusesATokenBeforeTheUpgrade(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		_, resp, err := r.ask(t, "", nil)
		refusedSocket(t, resp, err, http.StatusUnauthorized, protocol.CodeUnauthorized)
		_, resp, err = r.ask(t, "a.b.c", nil)
		refusedSocket(t, resp, err, http.StatusUnauthorized, protocol.CodeUnauthorized)
		token := r.tokenFor(t, "ann", time.Minute)
		pass(2 * time.Minute)
		_, resp, err = r.ask(t, token, nil)
		refusedSocket(t, resp, err, http.StatusUnauthorized, protocol.CodeTokenExpired)
		assert.Empty(t, r.live.opened)
	})
}

// A page of somebody else's cannot open sockets for its visitors.
func TestOpen_refusesForeignOrigins(t *testing.T) {
	allowed, err := auth.NewOrigins([]string{"https://app.example.com"})
	require.NoError(t, err)
	inBubble(t, func(r *replica) {
		t := r.t
		for _, origin := range []string{"https://evil.example.com", "null", "http://app.example.com", "https://app.example.com.evil.com"} {
			_, resp, err := r.ask(t, r.token(t, "ann"), nil, echo.HeaderOrigin, origin)
			refusedSocket(t, resp, err, http.StatusForbidden, protocol.CodeForbidden)
		}
		// In the query a foreign page could put a token: then the origin must be there.
		_, resp, err := r.ask(t, "", url.Values{"token": {r.token(t, "ann")}})
		refusedSocket(t, resp, err, http.StatusForbidden, protocol.CodeForbidden)
		assert.Empty(t, r.live.opened)
		for _, origin := range []string{"https://app.example.com", "http://replica"} {
			r.dialWith(t, r.token(t, "ann"), nil, echo.HeaderOrigin, origin).leave()
		}
	}, func(d *Deps) { d.Origins, d.Options.QueryToken = allowed, true })
}

// A request that asks for no WebSocket opens no session.
func TestOpen_wantsAnUpgrade(t *testing.T) {
	r := newReplica(t)
	rec := r.do(t, "ann", http.MethodGet, "/chat/ws", "Sec-WebSocket-Protocol", "chatbox.v1, bearer."+r.token(t, "ann"))
	refused(t, rec, http.StatusUpgradeRequired, protocol.CodeBadFrame)
	assert.Equal(t, "websocket", rec.Header().Get(echo.HeaderUpgrade))
	assert.Empty(t, r.live.opened)

	// One that the library refuses leaves neither a lease nor a place behind.
	rec = r.do(t, "ann", http.MethodGet, "/chat/ws", "Sec-WebSocket-Protocol", "chatbox.v1, bearer."+r.token(t, "ann"),
		"Connection", "keep-alive", "Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "1")
	assert.Equal(t, http.StatusBadRequest, rec.Code)
	assert.Len(t, r.live.opened, 1)
	assert.Equal(t, []live.Conn{{SessionID: "p01-ann-1", ConnID: "r1.1"}}, r.live.gone)
	assert.Zero(t, r.sockets.Load())
	assert.Len(t, r.logs.lines(t, "upgrade refused"), 1)
}

// What keeps the session from being opened is told before the upgrade, and leaves no place taken.
func TestOpen_tellsWhatTheStoreSays(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		r.live.set(func() {
			r.live.OpenFn = func(context.Context, sessionstore.OpenRequest) (sessionstore.Opened, error) {
				return sessionstore.Opened{}, sessionstore.ErrAway
			}
		})
		_, resp, err := r.ask(t, r.token(t, "ann"), nil)
		p := refusedSocket(t, resp, err, http.StatusServiceUnavailable, protocol.CodeStoreUnavailable)
		assert.True(t, p.Error.Recoverable)
		assert.Equal(t, "1", resp.Header.Get(echo.HeaderRetryAfter))
		assert.Zero(t, r.sockets.Load())
		assert.Empty(t, r.live.gone)

		// A store that does not answer at all costs a client no longer than openTimeout.
		r.live.set(func() {
			r.live.OpenFn = func(ctx context.Context, _ sessionstore.OpenRequest) (sessionstore.Opened, error) {
				<-ctx.Done()
				return sessionstore.Opened{}, ctx.Err()
			}
		})
		begin := time.Now()
		_, resp, err = r.ask(t, r.token(t, "ann"), nil)
		refusedSocket(t, resp, err, http.StatusServiceUnavailable, protocol.CodeStoreUnavailable)
		assert.Equal(t, openTimeout, time.Since(begin))
	})
}

// A mass of clients does not open more than OpensInFlight sessions at a time; who would wait too long is sent away.
func TestOpen_boundsHowManyAreOpenedAtATime(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		release := make(chan struct{})
		var now, most int
		r.live.set(func() {
			r.live.OpenFn = func(_ context.Context, q sessionstore.OpenRequest) (sessionstore.Opened, error) {
				r.live.set(func() { now++; most = max(most, now) })
				<-release
				r.live.set(func() { now-- })
				return r.live.open(q)
			}
		})
		results := make(chan *http.Response, 5)
		for range 5 {
			token := r.token(t, "ann")
			go func() {
				s, resp, err := r.ask(t, token, nil)
				if err == nil {
					defer s.conn.CloseNow()
				}
				results <- resp
			}()
		}
		pass(openTimeout)
		close(release)
		codes := map[int]int{}
		for range 5 {
			codes[(<-results).StatusCode]++
		}
		assert.Equal(t, map[int]int{http.StatusSwitchingProtocols: 2, http.StatusServiceUnavailable: 3}, codes)
		assert.Equal(t, 2, most)
	}, options(func(o *Options) { o.OpensInFlight = 2 }))
}

// Promise 8: of many that connect at the same instant exactly as many get in as there is room for; a place that is
// given up is taken again.
func TestOpen_limitIsExact(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		const clients, room = 60, 10
		var wg sync.WaitGroup
		var mu sync.Mutex
		var in []*socket
		refusals := 0
		for range clients {
			token := r.token(t, "ann")
			wg.Go(func() {
				s, resp, err := r.ask(t, token, nil)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					in = append(in, s)
					return
				}
				p := decode[wireProblem](t, resp.Body)
				assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
				assert.Equal(t, protocol.CodeConnectionLimit, p.Error.Code)
				assert.True(t, p.Error.Recoverable)
				refusals++
			})
		}
		wg.Wait()
		synctest.Wait()
		assert.Len(t, in, room)
		assert.Equal(t, clients-room, refusals)
		assert.Equal(t, room, r.hub.Len())
		in[0].leave()
		r.dial(t, "bob").leave()
		for _, s := range in[1:] {
			s.leave()
		}
	}, options(func(o *Options) { o.MaxConnections = 10 }))
}

// Every connection has an id of its own.
func TestOpen_numbersConnections(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		seen := map[string]bool{}
		for range 40 {
			r.dial(t, "ann").leave()
		}
		for _, q := range r.live.opened {
			seen[q.ConnID] = true
		}
		assert.Len(t, seen, 40)
	})
}

// Beyond B6: a draining replica is not ready and refuses sockets with advice; the ones it has get a hint, then 1012.
func TestDrain_sendsEverybodyElsewhere(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		var all []*socket
		for range 5 {
			s := r.dial(t, "ann")
			s.take()
			all = append(all, s)
		}
		begin := time.Now()
		drained := make(chan error, 1)
		go func() { drained <- r.Drain(t.Context(), 10*time.Second) }()
		pass(time.Millisecond)

		_, resp, err := r.ask(t, r.token(t, "ann"), nil)
		refusedSocket(t, resp, err, http.StatusServiceUnavailable, protocol.CodeConnectionLimit)
		assert.Equal(t, "1", resp.Header.Get(echo.HeaderRetryAfter))
		code, got := r.ready(t)
		assert.Equal(t, http.StatusServiceUnavailable, code)
		assert.Equal(t, "draining", got.Status)
		assert.Equal(t, http.StatusOK, r.do(t, "ann", http.MethodGet, "/chat/me").Code, "requests go on")

		require.NoError(t, <-drained)
		assert.LessOrEqual(t, time.Since(begin), 11*time.Second)
		for _, s := range all {
			f := s.one()
			assert.Equal(t, "draining", f.String())
			assert.LessOrEqual(t, f.After, int64(1000))
			assert.Equal(t, hub.CodeDrain, s.code())
		}
	})
}

// A drain that is given too little time says how many are left.
func TestDrain_endsWithItsContext(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dial(t, "ann")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := r.Drain(ctx, time.Hour)
		require.ErrorIs(t, err, context.Canceled)
		s.leave()
	})
}

// A replica that is about to go says so before anybody is sent away, so that the balancer can look elsewhere first.
func TestStopAccepting_leavesSocketsAlone(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		r.StopAccepting()
		_, resp, err := r.ask(t, r.token(t, "ann"), nil)
		refusedSocket(t, resp, err, http.StatusServiceUnavailable, protocol.CodeConnectionLimit)
		_, got := r.ready(t)
		assert.Equal(t, report{Status: "draining", Redis: true, MongoDB: true, Sockets: 1}, got)
		pass(time.Minute)
		s.say("still here")
		assert.Equal(t, "ack 2", s.names())
		s.leave()
	})
}

// The moment between the check and the upgrade: the hub refuses, and nothing is left behind.
func TestOpen_inTheMomentOfTheDrain(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		r.live.set(func() {
			r.live.OpenFn = func(ctx context.Context, q sessionstore.OpenRequest) (sessionstore.Opened, error) {
				assert.NoError(t, r.hub.Drain(ctx, nil, 0))
				return r.live.open(q)
			}
		})
		_, resp, err := r.ask(t, r.token(t, "ann"), nil)
		require.Error(t, err)
		assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
		assert.Len(t, r.live.gone, 1)
	})
}

// A replica that ends closes its sockets properly, and gives their leases back; Redis may be away then.
func TestRun_endsWithAllSockets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t)
		stop := r.run(t)
		s := r.dial(t, "ann")
		r.live.set(func() {
			r.live.GoneFn = func(context.Context, live.Conn) error { return errors.New("connection refused") }
		})
		stop()
		assert.Equal(t, hub.CodeDrain, s.code())
		assert.Zero(t, r.hub.Len())
		assert.Len(t, r.logs.lines(t, "presence not removed"), 1)
	})
}

// Headers may come in several lines.
func TestIsUpgrade_readsHeadersAsProxiesSendThem(t *testing.T) {
	for name, c := range map[string]struct {
		header []string
		want   bool
	}{
		"plain":           {[]string{"Connection", "Upgrade", "Upgrade", "websocket"}, true},
		"with keep-alive": {[]string{"Connection", "keep-alive, Upgrade", "Upgrade", "WebSocket"}, true},
		"in two lines":    {[]string{"Connection", "keep-alive", "Connection", "upgrade", "Upgrade", "websocket"}, true},
		"another one":     {[]string{"Connection", "Upgrade", "Upgrade", "h2c"}, false},
		"no connection":   {[]string{"Upgrade", "websocket"}, false},
		"nothing":         {nil, false},
	} {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/chat/ws", nil)
		for i := 0; i+1 < len(c.header); i += 2 {
			req.Header.Add(c.header[i], c.header[i+1])
		}
		assert.Equal(t, c.want, isUpgrade(req), name)
	}
}
