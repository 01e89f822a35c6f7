package e2e

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// Promises 6, 8, 12, 15 and Beyond B1, B2: replicas are killed while twenty users talk and while they are being
// answered. Everybody is back elsewhere, every question gets one complete answer, and MongoDB ends up with exactly
// what was acknowledged, once, in order.
func TestKill_losesAndDoublesNothing(t *testing.T) {
	c := start(t, options{})
	const users, rounds = 20, 6
	everyone := make([]*user, users)
	var wg sync.WaitGroup
	for n := range everyone {
		u := newUser(fmt.Sprintf("user-%d", n), c.token(fmt.Sprintf("user-%d", n)))
		everyone[n] = u
		wg.Go(func() {
			for range rounds {
				if !assert.NoError(t, askThrough(t.Context(), c, u, "!tokens 20 40"), u.id) {
					return
				}
			}
		})
	}
	killed := 0
	for _, victim := range []int{0, 1} {
		// Kill while answers run there: wait until some user sees one growing.
		require.NoError(t, everyone[victim].until(t.Context(), 20*time.Second, "an answer to interrupt", func() bool {
			return len(everyone[victim].running) > 0
		}))
		c.kill(victim)
		killed++
		time.Sleep(3 * time.Second) // the others carry on without it
		c.startReplica(victim, binary(t))
	}
	wg.Wait()
	require.Equal(t, 2, killed)
	whole := words(20)
	for _, u := range everyone {
		u.mu.Lock()
		assert.Empty(t, u.faults, u.id)
		assert.Empty(t, u.own, "%s has messages that were never acknowledged", u.id)
		stored := c.flushed(u.sessionID, u.seq)
		assertExactlyOnce(t, u, stored, rounds, whole)
		u.mu.Unlock()
	}
}

// askThrough asks one question and does not rest until it is answered, reconnecting through the balancer.
func askThrough(ctx context.Context, c *cluster, u *user, content string) error {
	limit, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	id := ""
	for limit.Err() == nil {
		if u.conn == nil || dead(u) {
			if err := u.connect(limit, c.lb()); err != nil {
				select {
				case <-limit.Done():
				case <-time.After(200 * time.Millisecond):
				}
				continue
			}
			if u.untilLive(limit) != nil || u.resend(limit) != nil {
				continue
			}
		}
		if id == "" {
			id, _ = u.send(limit, content) // kept and sent again if the socket broke under it
		}
		err := u.until(limit, 60*time.Second, "answer", func() bool { return u.closed != 0 || u.answerTo(id) != nil })
		u.mu.Lock()
		answered := u.answerTo(id) != nil
		u.mu.Unlock()
		if answered {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("no answer to %q", content)
}

func dead(u *user) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.closed != 0
}

// words is the text of a whole answer of n tokens.
func words(n int) string {
	var b strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&b, "t%d ", i)
	}
	return strings.TrimSpace(b.String())
}

// assertExactlyOnce compares a user's acknowledged messages and answers with MongoDB. With u.mu held.
func assertExactlyOnce(t *testing.T, u *user, stored []sessionstore.Event, rounds int, whole string) {
	t.Helper()
	questions, answered := map[string]int{}, map[string]int{}
	last := int64(0)
	for _, ev := range stored {
		assert.Greater(t, ev.Seq, last, "order")
		last = ev.Seq
		switch {
		case ev.Type == sessionstore.TypeUserMessage:
			questions[ev.MessageID]++
			assert.Equal(t, u.acked[ev.MessageID], ev.Seq, "acknowledged under another seq")
		case ev.Type == sessionstore.TypeAIResponse:
			assert.Equal(t, whole, ev.Content, "%s: an answer is not complete: %v", u.id, ev.Metadata)
			for id := range strings.FieldsSeq(ev.Metadata["answers"]) {
				answered[id]++
			}
		}
	}
	assert.Len(t, questions, rounds, u.id)
	assert.Len(t, u.acked, rounds, u.id)
	for id := range u.acked {
		assert.Equal(t, 1, questions[id], "%s: question %s in the transcript", u.id, id)
		assert.Equal(t, 1, answered[id], "%s: answers to question %s", u.id, id)
	}
}

// Promises 6, 18, 59: the only replica dies; nobody comes back within the window; the session ends with its end time
// and duration, and a new one is made.
func TestKill_windowEndsTheSession(t *testing.T) {
	c := start(t, options{replicas: 2, window: 3 * time.Second, extra: ""})
	u := newUser("ann", c.token("ann"))
	require.NoError(t, u.connect(t.Context(), c.direct(0)))
	require.NoError(t, u.untilLive(t.Context()))
	require.NoError(t, askThrough(t.Context(), c, u, "!tokens 20 5"))
	sid := u.sessionID
	c.kill(0)
	<-u.done
	require.NoError(t, u.connect(t.Context(), c.direct(1)))
	require.NoError(t, u.untilLive(t.Context()))
	require.Equal(t, sid, u.sessionID, "within the window the session is restored")
	u.leave()
	// The killed replica's socket never said goodbye; its lease has to lapse before the session can end. The lease is
	// as long as in production, so the entry is removed here as its lapse would.
	keys, err := c.client.Keys(t.Context(), "rt:*:s:"+sid+":c").Result()
	require.NoError(t, err)
	for _, key := range keys {
		require.NoError(t, c.client.Del(t.Context(), key).Err())
	}
	require.NoError(t, u.connect(t.Context(), c.direct(1)))
	require.NoError(t, u.untilLive(t.Context()))
	u.leave()
	require.Eventually(t, func() bool { doc, found := c.doc(sid); return found && !doc.Session.End.IsZero() }, 20*time.Second, 100*time.Millisecond)
	doc, _ := c.doc(sid)
	assert.False(t, doc.Session.Active)
	assert.Positive(t, doc.Session.End.Sub(doc.Session.Start))
	require.NoError(t, u.connect(t.Context(), c.direct(1)))
	require.NoError(t, u.untilLive(t.Context()))
	assert.NotEqual(t, sid, u.sessionID)
}

// Beyond B6 (one replica): a replica that is told to stop sends its sockets away with 1012 and hands its answers over.
func TestDrain_handsSocketsAndAnswersOver(t *testing.T) {
	c := start(t, options{replicas: 2})
	u := newUser("ann", c.token("ann"))
	require.NoError(t, u.connect(t.Context(), c.direct(0)))
	require.NoError(t, u.untilLive(t.Context()))
	viewer := newUser("ann", u.token) // her second tab, on the other replica, sees how long the text stands still
	require.NoError(t, viewer.connect(t.Context(), c.direct(1)))
	require.NoError(t, viewer.untilLive(t.Context()))
	id, err := u.send(t.Context(), "!tokens 60 50")
	require.NoError(t, err)
	require.NoError(t, u.until(t.Context(), 10*time.Second, "chunks", func() bool { return len(u.running) == 1 }))
	require.NoError(t, c.replicas[0].Signal(syscall.SIGTERM))
	require.NoError(t, viewer.untilAnswered(t.Context(), id, 20*time.Second))
	viewer.mu.Lock()
	still := viewer.still
	viewer.mu.Unlock()
	require.NotZero(t, still, "the answer was not handed over, the replica finished it")
	t.Logf("the text stood still for %v", still.Round(time.Millisecond))
	assert.Less(t, still, time.Second) // nobody waits for a lease to lapse: that takes 10 s
	<-u.done
	assert.EqualValues(t, 1012, u.closed)
	hint := u.last("connection_status")
	assert.Equal(t, "draining", hint.Status)
	require.NoError(t, u.connect(t.Context(), c.lb()))
	require.NoError(t, u.untilAnswered(t.Context(), id, 20*time.Second))
	u.mu.Lock()
	defer u.mu.Unlock()
	assert.Equal(t, words(60), u.answerTo(id).Content)
	assert.Empty(t, u.faults)
	assert.NoError(t, c.replicas[0].Wait(), "a drained replica exits with 0")
}

// MongoDB is away at the start and in the middle: the chat goes on, readiness says degraded, and what was said is in
// MongoDB once it is back.
func TestMongoDB_awayIsNotNoticedByUsers(t *testing.T) {
	c := start(t, options{replicas: 2, noMongo: true})
	var ready struct{ Status string }
	require.Eventually(t, func() bool {
		return c.request("GET", c.direct(0), "/chat/readyz", "", &ready) == 200 && ready.Status == "degraded"
	}, 15*time.Second, 200*time.Millisecond)
	u := newUser("ann", c.token("ann"))
	require.NoError(t, askThrough(t.Context(), c, u, "!tokens 20 2"))
	var page struct {
		Items []any `json:"items"`
	}
	assert.Equal(t, 200, c.request("GET", c.lb(), "/chat/sessions/"+u.sessionID+"/messages", u.token, &page))
	assert.Len(t, page.Items, 3)
	var list struct {
		Partial bool
		Items   []any
	}
	assert.Equal(t, 200, c.request("GET", c.lb(), "/chat/sessions", u.token, &list))
	assert.True(t, list.Partial)
	assert.Len(t, list.Items, 1)

	c.startMongo()
	c.flushed(u.sessionID, 3)
	require.Eventually(t, func() bool {
		return c.request("GET", c.direct(0), "/chat/readyz", "", &ready) == 200 && ready.Status == "ready"
	}, 20*time.Second, 200*time.Millisecond)

	c.mongo.Kill()
	_ = c.mongo.Wait()
	require.NoError(t, askThrough(t.Context(), c, u, "!tokens 20 2"))
	c.startMongo()
	stored := c.flushed(u.sessionID, 5)
	u.mu.Lock()
	defer u.mu.Unlock()
	assertExactlyOnce(t, u, stored, 2, words(20))
	assert.Empty(t, u.faults)
}

// Redis is away at the start: sockets get 503, readiness says so, and the replica comes up by itself.
func TestRedis_awayAtStartHealsByItself(t *testing.T) {
	c := start(t, options{replicas: 1, noRedis: true})
	assert.Equal(t, 503, c.request("GET", c.direct(0), "/chat/readyz", "", nil))
	assert.Equal(t, 200, c.request("GET", c.direct(0), "/chat/healthz", "", nil))
	u := newUser("ann", c.token("ann"))
	err := u.connect(t.Context(), c.direct(0))
	require.ErrorContains(t, err, "503")
	c.startRedis()
	require.NoError(t, askThrough(t.Context(), c, u, "!tokens 20 2"))
	require.Eventually(t, func() bool { return c.request("GET", c.direct(0), "/chat/readyz", "", nil) == 200 }, 15*time.Second, 200*time.Millisecond)
}

// Redis is restarted in the middle (with its AOF): users get a recoverable error or wait, nothing is lost or doubled.
func TestRedis_restartLosesNothing(t *testing.T) {
	c := start(t, options{replicas: 2, aof: true})
	u := newUser("ann", c.token("ann"))
	require.NoError(t, askThrough(t.Context(), c, u, "!tokens 20 2"))
	c.redis.Kill()
	_ = c.redis.Wait()
	_, err := u.send(t.Context(), "!tokens 20 2")
	require.NoError(t, err)
	require.NoError(t, u.until(t.Context(), 20*time.Second, "recoverable error", func() bool {
		e := u.last("error")
		return u.closed != 0 || e != nil && e.Error.Recoverable && e.Error.Code == "STORE_UNAVAILABLE"
	}))
	c.startRedis()
	require.Eventually(t, func() bool {
		if dead(u) {
			return u.connect(t.Context(), c.lb()) == nil && u.untilLive(t.Context()) == nil && u.resend(t.Context()) == nil
		}
		_ = u.resend(t.Context())
		u.mu.Lock()
		defer u.mu.Unlock()
		return len(u.own) == 0
	}, 30*time.Second, 500*time.Millisecond)
	require.NoError(t, askThrough(t.Context(), c, u, "!tokens 20 2"))
	require.NoError(t, u.until(t.Context(), 20*time.Second, "all answers", func() bool {
		for id := range u.acked {
			if u.answerTo(id) == nil {
				return false
			}
		}
		return len(u.acked) == 3
	}))
	u.mu.Lock()
	defer u.mu.Unlock()
	stored := c.flushed(u.sessionID, u.seq)
	assertExactlyOnce(t, u, stored, 3, words(20))
}

// Promise 7: when sockets close, no presence record is left of them.
func TestClose_leavesNoPresence(t *testing.T) {
	c := start(t, options{replicas: 2})
	var wg sync.WaitGroup
	for n := range 30 {
		wg.Go(func() {
			u := newUser(fmt.Sprintf("user-%d", n), c.token(fmt.Sprintf("user-%d", n)))
			if assert.NoError(t, u.connect(t.Context(), c.direct(n))) && assert.NoError(t, u.untilLive(t.Context())) {
				if n%3 == 0 {
					_ = u.conn.CloseNow() // without a close frame
					<-u.done
					return
				}
				u.leave()
			}
		})
	}
	wg.Wait()
	require.Eventually(t, func() bool {
		keys, err := c.client.Keys(t.Context(), "rt:*:c").Result()
		if err != nil || len(keys) > 0 {
			return false
		}
		var ready struct{ Sockets int }
		for i := range 2 {
			c.request("GET", c.direct(i), "/chat/readyz", "", &ready)
			if ready.Sockets != 0 {
				return false
			}
		}
		return true
	}, 10*time.Second, 100*time.Millisecond)
}

// A session that ends while the bus misses it closes its sockets all the same, and no new session is made for them.
func TestEnd_whileTheBusIsCutStillClosesTheSockets(t *testing.T) {
	c := start(t, options{replicas: 1})
	for range 3 {
		u := newUser("ann", c.token("ann"))
		require.NoError(t, u.connect(t.Context(), c.direct(0)))
		require.NoError(t, u.untilLive(t.Context()))
		killed, err := c.client.Do(t.Context(), "CLIENT", "KILL", "TYPE", "pubsub").Int()
		require.NoError(t, err)
		require.Positive(t, killed)
		require.Equal(t, 200, c.request("POST", c.direct(0), "/chat/sessions/"+u.sessionID+"/end", u.token, nil))
		require.NoError(t, u.until(t.Context(), 10*time.Second, "close", func() bool { return u.closed != 0 }))
		assert.EqualValues(t, 4410, u.closed)
		assert.Equal(t, "session_ended", u.events[len(u.events)-1].Type)
		keys, err := c.client.Keys(t.Context(), "rt:*:u:*").Result()
		require.NoError(t, err)
		assert.Empty(t, keys, "nobody is active")
	}
}
