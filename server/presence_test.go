package server

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// touchEvery is how often leases are renewed by default; restAfter is a little later.
const (
	touchEvery = 95 * time.Second / 3
	restAfter  = touchEvery + time.Millisecond
)

// keepAlive lets time go by like a client does that pings.
func (s *socket) keepAlive(d time.Duration) {
	s.t.Helper()
	for ; d > Heartbeat; d -= Heartbeat {
		pass(Heartbeat)
		s.send(`{"type":"ping"}`)
	}
	pass(d)
}

// Beyond B9: leases of all sockets are renewed in time, and of no others.
func TestTouch_renewsTheLeasesOfAllSockets(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		pass(restAfter)
		assert.Empty(t, r.live.touched, "nothing to renew, nothing asked")
		one, two := r.dialQuiet(t, "ann"), r.dialQuiet(t, "bob")
		pass(restAfter)
		require.Len(t, r.live.touched, 1)
		assert.ElementsMatch(t, []live.Conn{{SessionID: "p01-ann-1", ConnID: "r1.1"}, {SessionID: "p01-bob-2", ConnID: "r1.2"}}, r.live.touched[0])
		two.leave()
		pass(restAfter)
		require.Len(t, r.live.touched, 2)
		assert.Len(t, r.live.touched[1], 1)
		one.leave()
	})
}

// More sockets than one call may carry are renewed in several.
func TestTouch_goesInBatches(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		all := make([]*socket, touchBatch+1)
		for i := range all {
			all[i] = r.dial(t, "ann")
		}
		pass(restAfter)
		var sizes []int
		seen := map[live.Conn]bool{}
		for _, batch := range r.live.touched {
			sizes = append(sizes, len(batch))
			for _, c := range batch {
				seen[c] = true
			}
		}
		assert.Equal(t, []int{touchBatch, 1}, sizes)
		assert.Len(t, seen, len(all))
	}, options(func(o *Options) { o.PerUser = touchBatch + 1 }))
}

// A lease that Redis has forgotten is taken anew while the socket lives: its session must not be counted as left.
func TestTouch_takesAForgottenLeaseAnew(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s, other := r.dialQuiet(t, "ann"), r.dialQuiet(t, "bob")
		conn := live.Conn{SessionID: "p01-ann-1", ConnID: "r1.1"}
		r.live.set(func() { delete(r.live.present, conn) })
		pass(restAfter)
		r.live.set(func() { assert.True(t, r.live.present[conn]) })
		require.Len(t, r.live.opened, 3)
		assert.Equal(t, sessionstore.OpenRequest{
			UserID: "ann", UserName: "Name of ann", ConnID: "r1.1", Want: "p01-ann-1", ModelID: "gpt", NoNew: true,
		}, r.live.opened[2])
		assert.Zero(t, s.code())
		assert.Empty(t, s.take(), "the client notices nothing")
		s.leave()
		other.leave()
	})
}

// A session that has ended, without the bus having said so, has no sockets any more: they get the end and the close,
// and no session is made that nobody asked for.
func TestTouch_sendsSocketsOfAnEndedSessionAway(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		r.live.set(func() { r.live.mute = true })
		require.NoError(t, r.live.End(t.Context(), "p01-ann-1", "expired", ""))
		pass(restAfter)
		assert.Equal(t, hub.CodeEnded, s.code())
		assert.Len(t, r.live.opened, 1)
	})
}

// What Redis does not take is tried again with the next round; the socket lives on.
func TestTouch_bearsThatRedisIsAway(t *testing.T) {
	for name, spoil := range map[string]func(*fakeLive){
		"touch": func(f *fakeLive) {
			f.TouchFn = func(context.Context, []live.Conn) ([]live.Conn, error) { return nil, sessionstore.ErrAway }
		},
		"reopen": func(f *fakeLive) {
			f.TouchFn = func(_ context.Context, c []live.Conn) ([]live.Conn, error) { return c, nil }
			f.OpenFn = func(context.Context, sessionstore.OpenRequest) (sessionstore.Opened, error) {
				return sessionstore.Opened{}, sessionstore.ErrAway
			}
		},
		"silence": func(f *fakeLive) {
			f.TouchFn = func(ctx context.Context, _ []live.Conn) ([]live.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *replica) {
				t := r.t
				s := r.dialQuiet(t, "ann")
				r.live.set(func() { spoil(r.live) })
				s.keepAlive(2*touchEvery + 2*openTimeout)
				assert.Zero(t, s.code())
				assert.GreaterOrEqual(t, len(r.live.touched), 2)
				assert.NotEmpty(t, append(r.logs.lines(t, "presence not renewed"), r.logs.lines(t, "presence not restored")...))
				s.leave()
			})
		})
	}
}

// A socket whose session is lost while its user has another one by now goes there; the lease that it was given in the
// other one is given back. One that could not be given back lapses by itself; the socket goes all the same.
func TestTouch_cannotGiveTheOtherLeaseBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t)
		defer r.run(t)()
		s := r.dialQuiet(t, "ann")
		r.live.set(func() {
			r.live.GoneFn = func(context.Context, live.Conn) error { return errors.New("connection refused") }
		})
		r.live.lose("p01-ann-1")
		r.live.begin("ann", "p01-ann-2")
		pass(restAfter)
		assert.Equal(t, hub.CodeResync, s.code())
		assert.Len(t, r.logs.lines(t, "presence not removed"), 2)
		assert.ElementsMatch(t, []live.Conn{{SessionID: "p01-ann-2", ConnID: "r1.1"}, {SessionID: "p01-ann-1", ConnID: "r1.1"}}, r.live.gone)
	})
}

// A socket that is on its way out is not put back, and makes no session anew.
func TestTouch_leavesClosingSocketsAlone(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		r.dialQuiet(t, "ann")
		r.live.set(func() {
			r.live.TouchFn = func(_ context.Context, conns []live.Conn) ([]live.Conn, error) {
				r.hub.Each(func(c *hub.Client) { c.Close(hub.CodeEnded, "session ended") })
				return conns, nil
			}
		})
		pass(restAfter)
		assert.Len(t, r.live.opened, 1)
	})
}

// Promise 7: a socket that leaves while its lease is being taken anew leaves none behind.
func TestTouch_leavesNoLeaseOfASocketThatHasGone(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		gone := make(chan struct{}, 2)
		r.live.set(func() {
			clear(r.live.present)
			r.live.GoneFn = func(context.Context, live.Conn) error { gone <- struct{}{}; return nil }
			r.live.OpenFn = func(_ context.Context, q sessionstore.OpenRequest) (sessionstore.Opened, error) {
				_ = s.conn.CloseNow()
				<-gone
				return r.live.open(q)
			}
		})
		pass(restAfter)
		r.live.set(func() { assert.Empty(t, r.live.present) })
	})
}

// A client is asked for a fresh token 60 s before the end of the old one, once; with the fresh one it goes on.
func TestToken_isRenewedInTime(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialWith(t, r.tokenFor(t, "ann", 3*time.Minute), nil)
		s.keepAlive(2 * time.Minute)
		assert.NotContains(t, s.names(), "auth_required")
		pass(time.Second)
		f := s.one()
		assert.Equal(t, "auth_required", f.Type)
		assert.InDelta(t, 59000, f.RetryAfter, 1000)
		assert.Equal(t, "p01-ann-1", f.SessionID)
		pass(10 * time.Second)
		assert.Empty(t, s.take(), "asked once")

		id := uuid.NewString()
		s.send(`{"type":"auth","message_id":%q,"token":%q}`, id, r.tokenFor(t, "ann", 3*time.Minute))
		assert.JSONEq(t, `{"type":"ack","session_id":"p01-ann-1","message_id":"`+id+`"}`, s.one().raw)
		s.keepAlive(110 * time.Second)
		assert.NotContains(t, s.names(), "auth_required")
		assert.Zero(t, s.code())
		s.keepAlive(15 * time.Second)
		assert.Contains(t, s.names(), "auth_required", "asked for the next one")

		s.send(`{"type":"auth","token":%q}`, r.tokenFor(t, "ann", time.Hour))
		assert.Empty(t, s.take(), "without an id there is nothing to acknowledge")
		s.keepAlive(10 * time.Minute)
		assert.Zero(t, s.code())
		assert.NotContains(t, s.names(), "auth_required")
		s.leave()
		lacks(t, r.logs.String(), "eyJ")
	})
}

// A token that is not renewed ends its socket with 4101 25 s after its own end, the reason first.
func TestToken_thatIsNotRenewedEndsTheSocket(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialWith(t, r.tokenFor(t, "ann", 30*time.Second), nil)
		s.take()
		pass(time.Second)
		f := s.one()
		assert.Equal(t, "auth_required", f.Type, "at once when there are less than 60 s left")
		assert.InDelta(t, 29000, f.RetryAfter, 1000)
		pass(53 * time.Second)
		assert.Zero(t, s.code())
		pass(3 * time.Second)
		assert.Equal(t, "error TOKEN_EXPIRED", s.names()) // Promise 34
		assert.Equal(t, hub.CodeTokenExpired, s.code())
	})
}

// Within the difference of clocks an expired token still opens; there is no time left on it.
func TestToken_thatHasJustExpired(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		token := r.tokenFor(r.t, "ann", time.Second)
		pass(11 * time.Second)
		s := r.dialWith(t, token, nil)
		s.take()
		pass(time.Second)
		f := s.one()
		assert.Equal(t, "auth_required", f.Type)
		assert.Zero(t, f.RetryAfter)
		s.send(`{"type":"auth","token":%q}`, r.token(t, "ann"))
		pass(time.Minute)
		assert.Zero(t, s.code())
		s.leave()
	})
}

// Promise 3: a connection stays its user's; a token that is not theirs, or not valid, does not renew it.
func TestToken_thatDoesNotRenew(t *testing.T) {
	for name, c := range map[string]struct {
		token func(*replica) string
		code  string
		end   hub.Code
	}{
		"another user's": {func(r *replica) string { return r.token(r.t, "bob") }, "FORBIDDEN", 0},
		"no token":       {func(*replica) string { return "a.b.c" }, "UNAUTHORIZED", hub.CodeAuth},
		"expired": {func(r *replica) string {
			token := r.tokenFor(r.t, "ann", time.Second)
			pass(40 * time.Second)
			return token
		}, "TOKEN_EXPIRED", hub.CodeTokenExpired},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *replica) {
				t := r.t
				s := r.dialQuiet(t, "ann")
				id := uuid.NewString()
				s.send(`{"type":"auth","message_id":%q,"token":%q}`, id, c.token(r))
				f := s.one()
				require.NotNil(t, f.Error)
				assert.EqualValues(t, c.code, f.Error.Code)
				assert.Equal(t, id, f.MessageID)
				assert.Equal(t, c.end, s.code())
				if c.end == 0 {
					s.say("still ann")
					assert.Equal(t, "ack 2", s.names())
					_ = s.conn.Close(websocket.StatusNormalClosure, "")
				}
			})
		})
	}
}
