//go:build faults

package e2e

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig/fault"
)

// F4. One replica is cut from Redis with its clients still attached: they are told, the replica stops being ready
// after its grace, everybody can go on elsewhere in the same session, and nothing is lost or doubled.
func TestRedis_replicaCutOff(t *testing.T) {
	heal := func(l *fault.Link) { require.NoError(t, l.Heal()) }
	t.Run("silently", func(t *testing.T) { // what is sent vanishes: a partition
		cutOff(t, func(l *fault.Link) {
			require.NoError(t, l.Swallow())
			require.ErrorIs(t, pingWithin(l.Addr(), 300*time.Millisecond), os.ErrDeadlineExceeded, "the link is not cut")
		}, heal)
	})
	if !full() {
		return
	}
	t.Run("loudly", func(t *testing.T) { // connections are refused
		cutOff(t, func(l *fault.Link) {
			l.Cut()
			_, err := net.Dial("tcp", l.Addr())
			require.Error(t, err, "the link is not cut")
		}, heal)
	})
}

func cutOff(t *testing.T, cutLink, heal func(*fault.Link)) {
	t.Helper()
	c := start(t, options{linked: true, chatbox: unlimited})
	victim := newUser("ann", c.token("ann"))
	require.NoError(t, victim.connect(t.Context(), c.direct(0)))
	require.NoError(t, victim.untilLive(t.Context()))
	stays := newUser("eve", c.token("eve"))
	require.NoError(t, stays.connect(t.Context(), c.direct(0)))
	require.NoError(t, stays.untilLive(t.Context()))
	cr := c.talkStrictly(6, func(i int) string { return c.direct(1 + i%2) }, false)

	cut := time.Now()
	cutLink(c.links[0])
	id, err := victim.send(t.Context(), "!tokens 5 2")
	require.NoError(t, err)
	require.NoError(t, victim.until(t.Context(), 10*time.Second, "being told", func() bool {
		e := victim.last("error")
		return victim.closed != 0 || e != nil && e.MessageID == id && e.Error.Recoverable && e.Error.RetryAfter > 0
	}))
	t.Logf("told after %v", time.Since(cut).Round(time.Millisecond))

	// The same session goes on at another replica while this one still has the old socket.
	sid := victim.sessionID
	_ = victim.conn.CloseNow()
	<-victim.done
	require.NoError(t, victim.connect(t.Context(), c.direct(1)))
	require.NoError(t, victim.untilLive(t.Context()))
	require.Equal(t, sid, victim.sessionID, "no split session")
	require.NoError(t, victim.resend(t.Context()))
	require.NoError(t, victim.untilAnswered(t.Context(), id, 10*time.Second))

	// I6: it says that it is not ready once the grace of 15 s has passed, and the others go on.
	require.Eventually(t, func() bool { return c.request("GET", c.direct(0), "/chat/readyz", "", nil) == 503 }, 25*time.Second, 100*time.Millisecond)
	assert.GreaterOrEqual(t, time.Since(cut), 14*time.Second, "a short outage must not take it out")
	assert.Equal(t, 200, c.request("GET", c.direct(0), "/chat/healthz", "", nil), "and it is not restarted")
	assert.Equal(t, 200, c.request("GET", c.direct(1), "/chat/readyz", "", nil))
	cr.progress(6, 10*time.Second, "the others were stopped")
	if full() { // it sends its sockets elsewhere
		require.NoError(t, stays.until(t.Context(), time.Minute, "being moved", func() bool { return stays.closed != 0 }))
		assert.EqualValues(t, 1013, stays.closed)
		t.Logf("moved after %v", time.Since(cut).Round(time.Second))
	}

	heal(c.links[0])
	require.Eventually(t, func() bool { return c.request("GET", c.direct(0), "/chat/readyz", "", nil) == 200 }, 10*time.Second, 50*time.Millisecond)
	victim.leave()
	require.NoError(t, victim.connect(t.Context(), c.direct(0)))
	require.NoError(t, victim.untilLive(t.Context()))
	require.NoError(t, askThrough(t.Context(), c, victim, "!tokens 5 2"))
	cr.check()
	victim.mu.Lock()
	defer victim.mu.Unlock()
	assert.Empty(t, victim.faults)
	assertExactlyOnce(t, victim, c.flushed(sid, victim.seq), 2, words(5))
}

// F7. Redis does what it was asked and the reply is lost, over and over: what was asked is sent again, by the client
// library or by the user, and done once.
func TestRedis_lostReplyIsAppliedOnce(t *testing.T) {
	c := start(t, options{replicas: 1, linked: true, chatbox: unlimited})
	cr := c.talk(8, nil)
	m := c.resent(c.redis.Addr)
	want := inCI(5, 50)
	require.Eventually(t, func() bool {
		// On a connection that is made anew the first reply is that of its greeting, so the link must work in between.
		for range 5 {
			require.NoError(t, c.links[0].LoseReplies())
			sleepFor(t.Context(), 20*time.Millisecond)
			require.NoError(t, c.links[0].Heal())
			cr.progress(8, 20*time.Second, "did not go on")
		}
		return m.messages() >= want
	}, 5*time.Minute, time.Millisecond, "no reply was lost")
	cr.check()
	t.Logf("%d messages were sent to Redis more than once", m.messages())
}

// F8. Redis stalls with all connections open: what is sent is refused within a bounded time, nothing piles up, and
// the service goes on within 5 s of Redis doing so.
func TestRedis_stalled(t *testing.T) {
	c := start(t, options{chatbox: unlimited})
	cr := c.talk(9, func(i int) string { return c.direct(i) })
	u := newUser("ann", c.token("ann"))
	require.NoError(t, u.connect(t.Context(), c.direct(0)))
	require.NoError(t, u.untilLive(t.Context()))

	before := c.descriptors()
	require.NoError(t, c.redis.Signal(syscall.SIGSTOP))
	require.Eventually(t, func() bool { return processState(c.redis.Pid) == "T" }, 5*time.Second, time.Millisecond, "redis is not stopped")
	stalled := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	require.Error(t, c.client.Ping(ctx).Err(), "redis answers although it is stopped")
	cancel()
	id, err := u.send(t.Context(), "!tokens 5 2")
	require.NoError(t, err)
	require.NoError(t, u.until(t.Context(), 12*time.Second, "a bounded wait", func() bool { return u.refusals(id) > 0 || u.closed != 0 }))
	t.Logf("refused after %v", time.Since(stalled).Round(time.Millisecond))
	var ready struct{ MongoDB bool }
	c.request("GET", c.direct(0), "/chat/readyz", "", &ready)
	assert.True(t, ready.MongoDB, "MongoDB is not away") // I6
	if rest := inCI(5*time.Second, 30*time.Second) - time.Since(stalled); rest > 0 {
		sleepFor(t.Context(), rest)
	}
	for i, n := range c.descriptors() {
		assert.Less(t, n, before[i]+60, "connections of replica %d pile up", i)
	}

	require.NoError(t, c.redis.Signal(syscall.SIGCONT))
	t.Logf("going on after %v", cr.progress(1, 5*time.Second, "did not heal in time").Round(time.Millisecond))
	cr.check()
	require.NoError(t, u.resend(t.Context()))
	require.NoError(t, u.untilAnswered(t.Context(), id, 10*time.Second))
}

// F9. Redis is killed and restarted with its append-only file: sessions go on, nothing is lost or doubled, also what
// the last second of the file may lack.
func TestRedis_killedAndRestartedWithItsFile(t *testing.T) {
	c := start(t, options{aof: true, chatbox: unlimited})
	cr := c.talk(9, nil)
	for range inCI(2, 5) {
		before := c.runID()
		c.redis.Kill()
		_ = c.redis.Wait()
		c.startRedis()
		require.NotEqual(t, before, c.runID())
		cr.progress(9, 20*time.Second, "did not go on")
	}
	cr.check()
}

// F13. The connections that carry events are killed over and over: every gap is found and filled.
func TestRedis_subscriptionsFlap(t *testing.T) {
	c := start(t, options{chatbox: unlimited})
	cr := c.talk(9, func(i int) string { return c.direct(i) })
	killed := int64(0)
	until := time.Now().Add(inCI(8*time.Second, 60*time.Second))
	for time.Now().Before(until) {
		n, err := c.client.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Result()
		require.NoError(t, err)
		killed += n
		sleepFor(t.Context(), 500*time.Millisecond)
	}
	t.Logf("%d connections were killed", killed)
	require.Greater(t, killed, int64(10))
	// I4 within 2 s of the end: a fresh question gets its whole answer, live.
	first := cr.progress(9, 10*time.Second, "events do not flow")
	assert.Less(t, first, 2*time.Second)
	cr.check()
}

// F16. The scripts are forgotten, over and over: they are sent again.
func TestRedis_scriptsFlushed(t *testing.T) {
	c := start(t, options{replicas: 2, chatbox: unlimited})
	cr := c.talkStrictly(4, nil, false)
	for range 20 {
		require.NoError(t, c.client.ScriptFlush(t.Context()).Err())
		cr.progress(1, 5*time.Second, "did not go on")
	}
	cr.check()
	for _, u := range cr.users {
		u.mu.Lock()
		assert.Nil(t, u.last("error"), "users must not notice")
		u.mu.Unlock()
	}
}

// F28. The way to Redis is slow and shaky: slower, still right.
func TestRedis_slowLink(t *testing.T) {
	c := start(t, options{linked: true, chatbox: unlimited})
	cr := c.talkStrictly(9, nil, false)
	for i, l := range c.links {
		require.NoError(t, l.Delay(time.Duration(20+40*i)*time.Millisecond, 30*time.Millisecond))
	}
	began := time.Now()
	require.NoError(t, ping(c.links[2].Addr()))
	require.Greater(t, time.Since(began), 70*time.Millisecond, "the link is not slow")
	cr.progress(inCI(40, 400), 60*time.Second, "too slow")
	cr.check()
}

// ping asks a Redis server, or a link to one, once.
func ping(addr string) error { return pingWithin(addr, 5*time.Second) }

// runID names the run of the Redis server.
func (c *cluster) runID() string {
	c.t.Helper()
	info, err := c.client.Info(c.t.Context(), "server").Result()
	require.NoError(c.t, err)
	_, rest, _ := strings.Cut(info, "run_id:")
	id, _, _ := strings.Cut(rest, "\r\n")
	require.Len(c.t, id, 40, strconv.Quote(info))
	return id
}
