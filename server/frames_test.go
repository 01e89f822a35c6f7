package server

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
	"github.com/real-rm/chatbox/server/auth"
	"github.com/real-rm/chatbox/sessionstore"
)

// dialQuiet opens a socket and drops the frames of the opening.
func (r *replica) dialQuiet(t *testing.T, user string) *socket {
	t.Helper()
	s := r.dial(t, user)
	s.take()
	return s
}

// Promise 9: a frame that does not conform gets an error that names it, and the connection lives on.
func TestFrame_thatDoesNotConform(t *testing.T) {
	id := uuid.NewString()
	for name, c := range map[string]struct{ frame, code string }{
		"no JSON":            {`hello`, "BAD_FRAME"},
		"a list":             {`[]`, "BAD_FRAME"},
		"no type":            {`{"message_id":"` + id + `"}`, "MISSING_FIELD"},
		"unknown type":       {`{"type":"made_up_by_me"}`, "UNKNOWN_TYPE"},
		"a server's type":    {`{"type":"ai_response","content":"I am the AI"}`, "UNKNOWN_TYPE"},
		"a later part's":     {`{"type":"help_request","message_id":"` + id + `"}`, "UNKNOWN_TYPE"},
		"no content":         {`{"type":"user_message","message_id":"` + id + `"}`, "MISSING_FIELD"},
		"no UUID":            {`{"type":"user_message","message_id":"1","content":"x"}`, "BAD_FRAME"},
		"unknown model":      {`{"type":"model_select","message_id":"` + id + `","model_id":"nope"}`, "INVALID_MODEL"},
		"twice the same key": {`{"type":"ping","type":"ping"}`, "BAD_FRAME"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *replica) {
				t := r.t
				s := r.dialQuiet(t, "ann")
				s.send("%s", c.frame)
				f := s.one()
				require.NotNil(t, f.Error)
				assert.EqualValues(t, c.code, f.Error.Code)
				assert.False(t, f.Error.Recoverable)
				lines := r.logs.lines(t, "request refused")
				require.Len(t, lines, 1)
				lacks(t, fmt.Sprint(lines), "made_up_by_me", "I am the AI") // what clients make up stays out of logs
				s.send(`{"type":"ping"}`)
				assert.Equal(t, "pong", s.names())
				s.leave()
			})
		})
	}
}

// Promise 9: too large, or not UTF-8 text: an error, then a close that says why.
func TestFrame_thatEndsTheConnection(t *testing.T) {
	big := []byte(`{"type":"ping","x":"` + strings.Repeat("x", 64<<10) + `"}`)
	for name, c := range map[string]struct {
		typ  websocket.MessageType
		data []byte
		code string
		end  hub.Code
	}{
		"too large": {websocket.MessageText, big, "TOO_LARGE", hub.CodeTooBig},
		"not UTF-8": {websocket.MessageText, []byte("{\"type\":\"ping\xff\"}"), "BAD_FRAME", hub.CodeInvalid},
		"binary":    {websocket.MessageBinary, []byte(`{"type":"ping"}`), "BAD_FRAME", hub.CodeInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *replica) {
				t := r.t
				s := r.dialQuiet(t, "ann")
				_ = s.conn.Write(t.Context(), c.typ, c.data) // the server may have closed before all of it is out
				f := s.one()
				require.NotNil(t, f.Error)
				assert.EqualValues(t, c.code, f.Error.Code)
				assert.Equal(t, c.end, s.code())
				assert.Len(t, r.logs.lines(t, "client broke the protocol"), 1)
			})
		})
	}
}

// What the policy does not allow is refused, also where the type is known.
func TestFrame_thatThePolicyDoesNotAllow(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		s.say("hello")
		assert.Equal(t, "error FORBIDDEN", s.names())
		assert.Empty(t, r.turns.started)
		s.leave()
	}, func(d *Deps) {
		table := auth.DefaultTable()
		delete(table, auth.Frame(sessionstore.TypeUserMessage))
		d.Policy = auth.NewPolicy(auth.PolicyOptions{Table: table})
	})
}

// Promise 3: nothing that a client sends makes it somebody else.
func TestFrame_cannotChangeWhoOneIs(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		other := r.live.begin("bob", "p01-bob")
		s := r.dialQuiet(t, "ann")
		s.send(`{"type":"user_message","message_id":%q,"content":"x","session_id":"p01-bob","sender":"admin","seq":99,"user_id":"bob"}`, uuid.NewString())
		assert.Equal(t, "ack 2", s.names())
		assert.EqualValues(t, 1, other.Seq)
		ev := r.live.sessions[r.live.active["ann"]].events[1]
		assert.Equal(t, sessionstore.SenderUser, ev.Sender)
		s.leave()
	})
}

// Beyond B12: every socket of the session gets the event, the sender its ack in the event's place, nobody else anything.
func TestMessage_reachesAllSocketsOfItsSession(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		one, two, stranger := r.dialQuiet(t, "ann"), r.dialQuiet(t, "ann"), r.dialQuiet(t, "bob")
		id := one.say("hello")
		assert.Equal(t, "ack 2", one.names())
		f := two.one()
		assert.Equal(t, "user_message 2", f.String())
		assert.Equal(t, id, f.MessageID)
		assert.Equal(t, "hello", f.Content)
		two.say("me too")
		assert.Equal(t, "ack 3", two.names())
		assert.Equal(t, "user_message 3", one.names())
		assert.Empty(t, stranger.take()) // Promise 11

		one.send(`{"type":"user_message","message_id":%q,"content":"hello"}`, id) // Beyond B7
		f = one.one()
		assert.True(t, f.Duplicate)
		assert.EqualValues(t, 2, f.Seq)
		assert.Empty(t, two.take())

		one.send(`{"type":"model_select","message_id":%q,"model_id":"gpt"}`, uuid.NewString())
		assert.Equal(t, "ack 4", one.names())
		one.send(`{"type":"stop","message_id":%q,"target":%q}`, uuid.NewString(), id)
		assert.Equal(t, "ack", one.names())
		assert.Equal(t, []string{id}, r.live.stopped)
		for _, s := range []*socket{one, two, stranger} {
			s.leave()
		}
	})
}

// Promise 12: many frames at once are handled in the order in which they were sent.
func TestMessage_manyAtOnceKeepTheirOrder(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		var sent []string
		for i := range 100 {
			id := uuid.NewString()
			sent = append(sent, id)
			frame := fmt.Appendf(nil, `{"type":"user_message","message_id":%q,"content":"%d"}`, id, i)
			require.NoError(t, s.conn.Write(t.Context(), websocket.MessageText, frame))
		}
		var acked []string
		for i, f := range s.take() {
			assert.EqualValues(t, i+2, f.Seq)
			acked = append(acked, f.MessageID)
		}
		assert.Equal(t, sent, acked)
		s.leave()
	})
}

// Promise 5: every ping gets its pong, which says how far the session is and how much of it MongoDB has.
func TestPing_isAnsweredWithTheStateOfTheSession(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		s.say("hello")
		s.take()
		r.live.set(func() { r.live.sessions["p01-ann-1"].Durable = 1 })
		s.send(`{"type":"ping","last_seq":2}`)
		f := s.one()
		assert.JSONEq(t, `{"type":"pong","session_id":"p01-ann-1","seq":2,"durable":1}`, f.raw)
		require.NoError(t, s.conn.Ping(t.Context()), "pings of the WebSocket too")
		s.leave()
	})
}

// The end of the stream that the bus has lost shows in no later event: the ping finds it.
func TestPing_findsWhatTheBusHasLost(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s, other := r.dialQuiet(t, "ann"), r.dialQuiet(t, "ann")
		r.live.set(func() { r.live.mute = true })
		s.say("lost on the bus")
		assert.Empty(t, other.take())
		other.send(`{"type":"ping"}`)
		assert.Equal(t, "pong, user_message 2", other.names())
		assert.Equal(t, "ack 2", s.names(), "the others are helped along")

		// A new epoch is found in the same way, whatever its number.
		r.live.set(func() { r.live.sessions["p01-ann-1"].Epoch = "2-b" })
		other.send(`{"type":"ping"}`)
		assert.Equal(t, "pong, snapshot", other.names())
		s.leave()
		other.leave()
	})
}

// A session that Redis does not know any more is being restored: the client is told, and comes again.
func TestPing_ofASessionThatIsNotThere(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		r.live.set(func() { delete(r.live.sessions, "p01-ann-1") })
		s.send(`{"type":"ping"}`)
		assert.Equal(t, "error STORE_UNAVAILABLE", s.names())
		assert.Equal(t, hub.CodeResync, s.code())
	})
}

// A store that is silent costs a frame frameTimeout, not the socket.
func TestFrame_thatTheStoreDoesNotAnswer(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		r.live.set(func() {
			r.live.SessionFn = func(ctx context.Context, _ string) (sessionstore.Session, error) {
				<-ctx.Done()
				return sessionstore.Session{}, ctx.Err()
			}
		})
		s.send(`{"type":"ping"}`)
		assert.Empty(t, s.take())
		pass(pongTimeout)
		assert.Equal(t, "pong", s.names(), "Promise 5: every ping gets its pong, also while Redis is away")
		r.live.set(func() {
			r.live.SessionFn = nil
			r.live.AppendFn = func(ctx context.Context, _ sessionstore.Append) (sessionstore.Appended, error) {
				<-ctx.Done()
				return sessionstore.Appended{}, ctx.Err()
			}
		})
		s.send(`{"type":"user_message","message_id":"3f0c1c6e-5b1e-4a63-9d5e-0d3f6f3a7a11","content":"hello"}`)
		assert.Empty(t, s.take())
		pass(frameTimeout)
		assert.Equal(t, "error STORE_UNAVAILABLE", s.names())
		r.live.set(func() { r.live.AppendFn = nil })
		s.send(`{"type":"ping"}`)
		assert.Equal(t, "pong", s.names())
		s.leave()
	})
}

// A client that leaves in the middle of a frame is no failure: nothing is logged as one.
func TestFrame_ofAClientThatHasGone(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		begun := make(chan struct{})
		r.live.set(func() {
			r.live.AppendFn = func(ctx context.Context, _ sessionstore.Append) (sessionstore.Appended, error) {
				close(begun)
				<-ctx.Done()
				return sessionstore.Appended{}, errors.Join(sessionstore.ErrAway, ctx.Err())
			}
		})
		s.say("bye")
		<-begun
		require.NoError(t, s.conn.CloseNow())
		pass(time.Minute)
		assert.Empty(t, r.logs.lines(t, "request failed"))
		assert.Zero(t, r.hub.Len())
	}, options(func(o *Options) { o.WriteWait = frameTimeout / 2 })) // which is also how long the hub waits for handlers
}

// A panic in the middle of a frame costs one socket.
func TestFrame_thatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReplica(t)
		defer r.run(t)()
		s, other := r.dialQuiet(t, "ann"), r.dialQuiet(t, "bob")
		r.live.set(func() {
			r.live.AppendFn = func(context.Context, sessionstore.Append) (sessionstore.Appended, error) { panic("oh") }
		})
		s.say("hello")
		assert.Equal(t, hub.CodeInternal, s.code())
		other.send(`{"type":"ping"}`)
		assert.Equal(t, "pong", other.names())
		assert.Len(t, r.logs.lines(t, "handler panicked"), 1)
		other.leave()
	})
}

// Promise 5: 90 s without a frame from the client, and the server closes.
func TestIdle_isClosedAfterNinetySeconds(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		pass(80 * time.Second)
		s.send(`{"type":"ping"}`)
		pass(88 * time.Second)
		assert.Zero(t, s.code())
		pass(4 * time.Second)
		assert.Equal(t, hub.CodeHeartbeat, s.code())
	})
}

// A message that comes with the handshake gets its ack like any other.
func TestMessage_rightAfterTheHandshake(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		for range 50 {
			s, _, err := r.ask(t, r.token(t, "ann"), nil)
			require.NoError(t, err)
			s.say("at once")
			assert.Contains(t, s.names(), "ack")
			s.leave()
		}
	})
}
