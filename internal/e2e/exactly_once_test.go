//go:build faults

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// Beyond B7 (and promises 10, 12, 15): from thumb to transcript exactly once. A fifth of all acks never reach the
// clients, their sockets break at random in the middle of everything, and they send again whatever they have no ack
// of. Every message is in the transcript once, in the order in which it was first accepted, and is answered once.
func TestExactlyOnce_whenAcksAreDroppedAndSocketsBreak(t *testing.T) {
	c := start(t, options{chatbox: unlimited})
	seed := chaosSeed(t)
	const people = 20
	each := inCI(25, 250)
	var everyone []*sender
	var wg sync.WaitGroup
	for n := range people {
		id := fmt.Sprintf("thumb-%d", n)
		s := newSender(c, newUser(id, c.token(id)), rand.New(rand.NewPCG(seed, uint64(n))))
		everyone = append(everyone, s)
		wg.Go(func() { assert.NoError(t, s.talk(t.Context(), each), id) })
	}
	wg.Wait()
	c.caughtUp(2*time.Second, inCI(20*time.Second, 2*time.Minute))
	sends, cuts, acks, dropped := 0, 0, int64(0), int64(0)
	for _, s := range everyone {
		u := s.user
		stored := c.flushed(u.sessionID, u.at())
		u.mu.Lock()
		assert.Empty(t, u.faults, u.id)
		assert.Empty(t, u.own, u.id)
		assertExactlyOnce(t, u, stored, each, words(1))
		assertSame(t, u.events, stored)
		u.mu.Unlock()
		sends, cuts, acks, dropped = sends+s.sends, cuts+s.cuts, acks+s.acks.Load(), dropped+s.dropped.Load()
	}
	t.Logf("%d messages of %d people: %d sends, %d of %d acks dropped, %d sockets broken", people*each, people, sends, dropped, acks, cuts)
	assert.Greater(t, float64(dropped), 0.15*float64(acks), "too few acks were dropped")
	assert.Greater(t, sends, people*each, "nothing was sent again")
	assert.Greater(t, cuts, people, "too few sockets broke")
	// The model was asked as often as there are answers, or more where an answer had to be begun again: nobody was killed
	// here, so exactly as often (Beyond B8).
	answers := 0
	for _, s := range everyone {
		for _, e := range s.user.events {
			if e.Type == "ai_response" {
				answers++
			}
		}
	}
	assert.Len(t, c.llm.Bill().Lines, answers)
}

// sender is a user in a hurry, on a bad line.
type sender struct {
	*user
	c       *cluster
	dice    *rand.Rand // of talk alone
	sends   int        // frames with a message, again or not
	cuts    int
	acks    atomic.Int64
	dropped atomic.Int64 // of them
}

func newSender(c *cluster, u *user, dice *rand.Rand) *sender {
	s := &sender{user: u, c: c, dice: dice}
	acks := rand.New(rand.NewPCG(dice.Uint64(), 0)) // used by the socket's reader alone
	u.ignoreAck = func() bool {
		s.acks.Add(1)
		if acks.IntN(5) > 0 {
			return false
		}
		s.dropped.Add(1)
		return true
	}
	return s
}

// talk sends n messages, up to three at a time, and returns when each has an ack and an answer.
func (s *sender) talk(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute+time.Duration(n)*2*time.Second) // the database is what is slow here
	defer cancel()
	for sent := 0; ctx.Err() == nil; {
		if s.conn == nil || dead(s.user) {
			if err := s.connect(ctx, s.c.lb()); err != nil {
				sleepFor(ctx, 100*time.Millisecond)
				continue
			}
			if s.untilLive(ctx) != nil {
				_ = s.conn.CloseNow()
				<-s.done
				continue
			}
			s.again(ctx)
		}
		for range min(1+s.dice.IntN(3), n-sent) {
			_, _ = s.send(ctx, "!tokens 1") // kept, and sent again if the line broke under it
			sent++
			s.sends++
		}
		if s.dice.IntN(6) == 0 {
			sleepFor(ctx, time.Duration(s.dice.IntN(8000))*time.Microsecond)
			_ = s.conn.CloseNow()
			<-s.done
			s.cuts++
			continue
		}
		_ = s.until(ctx, 300*time.Millisecond, "acks and answers", func() bool { return s.closed != 0 || s.complete() })
		s.mu.Lock()
		complete := s.complete()
		s.mu.Unlock()
		if complete && sent == n {
			return nil
		}
		if !complete && !dead(s.user) {
			s.again(ctx)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Errorf("%d messages have no ack, %d of %d have one", len(s.own), len(s.acked), n)
}

// again sends everything once more that has no ack.
func (s *sender) again(ctx context.Context) {
	s.mu.Lock()
	s.sends += len(s.own)
	s.mu.Unlock()
	_ = s.resend(ctx)
	_ = s.write(ctx, map[string]any{"type": "ping", "last_seq": s.at()})
}

// complete says whether all that was sent has its ack and its answer. With u.mu held.
func (s *sender) complete() bool {
	if len(s.own) > 0 {
		return false
	}
	answered := map[string]bool{}
	for _, e := range s.events {
		if e.Type == "ai_response" {
			for id := range strings.FieldsSeq(e.Metadata["answers"]) {
				answered[id] = true
			}
		}
	}
	for id := range s.acked {
		if !answered[id] {
			return false
		}
	}
	return true
}

// Beyond B7: the page is closed before its messages are durable, some of them even before their acks, and opened again
// when the window is over. The page sends what it has kept to the new session; each message is in one of the two
// transcripts, once, and is answered once.
func TestExactlyOnce_whenThePageComesBackAfterTheWindow(t *testing.T) {
	c := start(t, options{chatbox: unlimited, window: time.Second, websocket: `idle_timeout = "9s"`, env: []string{
		"CHATBOX__CLUSTER__PRESENCE_LEASE=10s", "CHATBOX__CLUSTER__TOUCH_EVERY=3s",
	}})
	const people = 12
	everyone := make([]*user, people)
	first := make([]string, people)
	// MongoDB does not answer, so nothing becomes durable before the pages are closed.
	warm := newUser("warm", c.token("warm"))
	require.NoError(t, askThrough(t.Context(), c, warm, "!tokens 1"))
	require.NoError(t, c.mongo.Signal(syscall.SIGSTOP))
	for n := range everyone {
		u := newUser(fmt.Sprintf("page-%d", n), c.token(fmt.Sprintf("page-%d", n)))
		everyone[n] = u
		require.NoError(t, u.connect(t.Context(), c.lb()))
		require.NoError(t, u.untilLive(t.Context()))
		first[n] = u.sessionID
		for i := range 3 {
			id, err := u.send(t.Context(), "!tokens 1")
			require.NoError(t, err)
			if i < 2 { // the last one is under way when the page is closed
				require.NoError(t, u.untilAnswered(t.Context(), id, 20*time.Second))
			}
		}
		require.NoError(t, u.write(t.Context(), map[string]any{"type": "ping"}))
		if n%2 == 0 {
			_ = u.until(t.Context(), 5*time.Second, "pong", func() bool { return u.last("pong") != nil })
			u.mu.Lock()
			assert.Zero(t, u.last("pong").Durable, "nothing can be durable yet")
			u.mu.Unlock()
		}
		_ = u.conn.CloseNow()
		<-u.done
	}
	require.NoError(t, c.mongo.Signal(syscall.SIGCONT))
	for n, u := range everyone {
		require.Eventually(t, func() bool { doc, found := c.doc(first[n]); return found && !doc.Session.End.IsZero() }, 30*time.Second, 100*time.Millisecond,
			"the session of %s does not end", u.id)
	}
	for n, u := range everyone {
		kept := u.texts // the page's memory; acks of what was not durable are worth nothing after the window
		u = newUser(u.id, u.token)
		u.texts = kept
		require.NoError(t, u.connect(t.Context(), c.direct(n)))
		require.NoError(t, u.untilLive(t.Context()))
		require.NotEqual(t, first[n], u.sessionID, "the window is over")
		u.mu.Lock()
		for id, text := range kept {
			u.own[id] = text
		}
		u.mu.Unlock()
		for id, text := range kept {
			require.NoError(t, u.write(t.Context(), map[string]any{
				"type": "user_message", "message_id": id, "content": text, "resent": true, "session_id": first[n],
			}))
		}
		require.NoError(t, u.until(t.Context(), 20*time.Second, "acks", func() bool { return len(u.own) == 0 }))
		id, err := u.send(t.Context(), "!tokens 1")
		require.NoError(t, err)
		require.NoError(t, u.untilAnswered(t.Context(), id, 20*time.Second))
		u.mu.Lock()
		assert.Empty(t, u.faults, u.id)
		u.mu.Unlock()

		questions, answered := map[string]int{}, map[string]int{}
		stored := append(c.flushed(first[n], 1), c.flushed(u.sessionID, u.at())...)
		for _, ev := range stored {
			if ev.Type == sessionstore.TypeUserMessage {
				questions[ev.MessageID]++
			}
			for id := range strings.FieldsSeq(ev.Metadata[sessionstore.MetaAnswers]) {
				answered[id]++
			}
		}
		assert.Len(t, questions, 4, u.id)
		for id := range questions {
			assert.Equal(t, 1, questions[id], "%s: message %s", u.id, id)
			assert.Equal(t, 1, answered[id], "%s: answers to %s", u.id, id)
		}
		u.leave()
	}
}
