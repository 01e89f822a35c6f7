package server

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
)

// Promise 43: a socket has SocketBurst frames at once, and SocketRate a second after that; what is beyond is refused
// and can be sent again.
func TestBucket_refusesWhatIsTooFast(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		for range 5 {
			s.send(`{"type":"ping"}`)
		}
		assert.Equal(t, "pong, pong, pong, pong, pong", s.names())
		id := s.say("too fast")
		f := s.one()
		assert.Equal(t, "error RATE_LIMITED", f.String())
		assert.Equal(t, id, f.MessageID)
		assert.True(t, f.Error.Recoverable)
		assert.EqualValues(t, 1000, f.Error.RetryAfter)
		assert.Empty(t, r.turns.started)

		pass(time.Second)
		for range 3 {
			s.send(`{"type":"ping"}`)
		}
		assert.Equal(t, "pong, pong, error RATE_LIMITED", s.names())
		pass(time.Minute) // never more than the burst
		for range 6 {
			s.send(`{"type":"ping"}`)
		}
		assert.Equal(t, "pong, pong, pong, pong, pong, error RATE_LIMITED", s.names())
		other := r.dialQuiet(t, "ann")
		other.send(`{"type":"ping"}`)
		assert.Equal(t, "pong", other.names(), "each socket has its own")
		s.leave()
		other.leave()
	}, options(func(o *Options) { o.SocketBurst, o.SocketRate = 5, 2 }))
}

// Typing is passed on at most once in 2 s. Its end is passed on at once, but only once: the other side must not wait
// for an answer that nobody writes, and cannot be flooded with ends either.
func TestTyping_isPassedOnRarely(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s, other := r.dialQuiet(t, "ann"), r.dialQuiet(t, "ann")
		typing := func(active bool) string {
			s.send(`{"type":"typing_indicator","active":%t}`, active)
			s.take() // everybody on the session gets it, the sender too
			return other.names()
		}
		assert.Equal(t, "typing_indicator", typing(true))
		assert.Empty(t, typing(true))
		pass(1999 * time.Millisecond)
		assert.Empty(t, typing(true))
		pass(time.Millisecond)
		assert.Equal(t, "typing_indicator", typing(true))
		assert.Equal(t, "typing_indicator", typing(false))
		for range 10 {
			assert.Empty(t, typing(false))
		}
		assert.Empty(t, typing(true), "within 2 s of the last")
		assert.Empty(t, typing(false), "nobody has seen the beginning")
		pass(typingEvery)
		assert.Equal(t, "typing_indicator", typing(true))
		s.leave()
		other.leave()
	})
}

// A frame costs its token whatever is in it: broken ones cannot be sent without limit.
func TestBucket_countsBrokenFramesToo(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		for range 3 {
			s.send(`not JSON`)
		}
		assert.Equal(t, "error BAD_FRAME, error BAD_FRAME, error RATE_LIMITED", s.names())
		pass(time.Second)
		s.send(`{"type":"ping"}`)
		assert.Equal(t, "pong", s.names(), "the connection lives on")
		s.leave()
	}, options(func(o *Options) { o.SocketBurst, o.SocketRate = 2, 1 }))
}

// A client that goes on sending far beyond its rate is told so and closed; it backs off and comes again. Frames in
// between that are within the rate start the count anew.
func TestBucket_closesAFlood(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		s.send(`{"type":"ping"}`)
		for range 2 {
			for range maxStrikes {
				s.send(`{"type":"ping"}`)
			}
			assert.Zero(t, s.code())
			pass(time.Second)
			s.send(`{"type":"ping"}`)
		}
		for range maxStrikes {
			s.send(`{"type":"ping"}`)
		}
		s.take()
		assert.Zero(t, s.code())
		s.send(`{"type":"ping"}`)
		f := s.one()
		require.NotNil(t, f.Error)
		assert.Equal(t, "error RATE_LIMITED", f.String())
		assert.True(t, f.Error.Recoverable)
		assert.EqualValues(t, 60_000, f.Error.RetryAfter)
		assert.Equal(t, hub.CodeOverloaded, s.code())
		assert.Len(t, r.logs.lines(t, "client broke the protocol"), 1)
	}, options(func(o *Options) { o.SocketBurst, o.SocketRate = 1, 1 }))
}

// A client cannot fill the log: refusals of one socket are logged once in a second, while every one is answered.
func TestRefusals_areLoggedRarely(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		for range 50 {
			s.send(`not JSON`)
		}
		assert.Len(t, s.take(), 50)
		assert.Len(t, r.logs.lines(t, "request refused"), 1)
		pass(time.Second)
		s.send(`not JSON`)
		assert.Len(t, r.logs.lines(t, "request refused"), 2)
		s.leave()
	})
}
