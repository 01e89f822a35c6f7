//go:build faults

package e2e

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig/fault"
	"github.com/real-rm/chatbox/sessionstore"
)

// skew is how far clocks are off: much more than any lease, window or period of a rate here.
const skew = 10 * time.Minute

// skewable is the binary whose wall clock a fault.Clock moves.
var skewable = struct {
	sync.Once
	path string
	err  error
}{}

func skewableBinary(t testing.TB) string {
	t.Helper()
	skewable.Do(func() {
		var overlay string
		if overlay, skewable.err = fault.ClockOverlay(scratch); skewable.err == nil {
			skewable.path, skewable.err = buildBinary("chatbox-skewable", overlay)
		}
	})
	require.NoError(t, skewable.err)
	return skewable.path
}

// clocks are those of the replicas of one cluster.
type clocks struct {
	c   *cluster
	all []*fault.Clock
	off []time.Duration
}

// startSkewed starts a cluster with clocks that are off from the start, and asserts that they are.
func startSkewed(t testing.TB, o options, off ...time.Duration) *clocks {
	t.Helper()
	cs := &clocks{off: off}
	dir := t.TempDir()
	for i := range off {
		clock, err := fault.NewClock(dir, fmt.Sprint(i))
		require.NoError(t, err)
		require.NoError(t, clock.Set(off[i]))
		cs.all = append(cs.all, clock)
	}
	o.replicas, o.binary = len(off), skewableBinary(t)
	o.envOf = func(i int) []string { return []string{cs.all[i].Env()} }
	cs.c = start(t, o)
	for i := range off {
		cs.verify(i)
	}
	return cs
}

// step sets the clock of a replica, and asserts that it goes by it.
func (cs *clocks) step(i int, off time.Duration) {
	cs.c.t.Helper()
	require.NoError(cs.c.t, cs.all[i].Set(off))
	cs.off[i] = off
	cs.verify(i)
}

// verify asks a replica for the time.
func (cs *clocks) verify(i int) {
	t := cs.c.t
	t.Helper()
	var off time.Duration
	require.Eventually(t, func() bool { // its server writes the same date for up to a second
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+cs.c.direct(i)+"/chat/healthz", nil)
		require.NoError(t, err)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		at, err := http.ParseTime(res.Header.Get("Date"))
		require.NoError(t, err)
		off = time.Until(at)
		return (off - cs.off[i]).Abs() < time.Minute
	}, 10*time.Second, 50*time.Millisecond, "the clock of replica %d is not off by %v", i, cs.off[i])
	t.Logf("clock of replica %d: %v off", i, off.Round(time.Second))
}

// F27. Three replicas whose clocks are 10 minutes slow, right, and 10 minutes fast; then the right one steps back, and
// the fast one by 20 minutes, while replicas are killed, so that leases and sessions pass from clock to clock. Nobody
// notices: I1-I4 hold, leases are fenced, and no duration has a clock's error in it.
func TestClocks_differAndStepBack(t *testing.T) {
	seed := chaosSeed(t)
	cs := startSkewed(t, options{chatbox: unlimited}, -skew, 0, skew)
	c, published := cs.c, watchPublished(cs.c)
	tabs := raceTabs(c, seed)
	// A replica that is killed takes chunks along that it has published, in sockets.
	cr := c.talkOf(9, nil, true, 20, 20*time.Millisecond)
	const otherwise = "did not go on"
	replace := func(i int) {
		c.kill(i)
		cr.progress(9, 30*time.Second, otherwise)
		c.startReplica(i, skewableBinary(t))
		cs.verify(i)
		cr.progress(9, 30*time.Second, otherwise)
	}
	for range inCI(1, 10) {
		replace(2) // answers of the fast one go on at the slow and the right one
		cs.step(1, -skew)
		cr.progress(9, 30*time.Second, otherwise)
		cs.step(2, -skew)
		replace(0)
		cs.step(1, 0)
		cs.step(2, skew)
		cr.progress(9, 30*time.Second, otherwise)
		replace(1)
	}
	settled(t, c)
	cr.check()    // I1, I3, I4
	tabs.check(t) // I3
	published.check(t)
	for _, u := range cr.users {
		sound(t, c, u.sessionID)
		for _, ev := range c.flushed(u.sessionID, u.newest()) {
			assert.True(t, ev.ResponseTime >= 0 && ev.ResponseTime < skew.Milliseconds()/2, "response time of %v ms", ev.ResponseTime)
		}
	}
	for sid := range tabs.sessions() {
		sound(t, c, sid)
	}
}

// sound checks the times that MongoDB has of a session: by the clock of Redis, which is right.
func sound(t *testing.T, c *cluster, sid string) {
	t.Helper()
	var doc sessionstore.SessionDoc
	require.Eventually(t, func() bool {
		var found bool
		doc, found = c.doc(sid)
		return found
	}, 20*time.Second, 50*time.Millisecond, "session %s is not in MongoDB", sid)
	s := doc.Session
	assert.InDelta(t, 0, time.Since(s.Start).Seconds(), skew.Seconds()/2, "start of session %s", sid)
	assert.False(t, s.LastActivity.Before(s.Start), "last activity of session %s: %v after its start", sid, s.LastActivity.Sub(s.Start))
	assert.Less(t, s.LastActivity.Sub(s.Start), skew/2)
	if doc.Final {
		assert.False(t, s.End.Before(s.Start), "session %s lasted %v", sid, s.End.Sub(s.Start))
		assert.Less(t, s.End.Sub(s.Start), skew/2)
	}
	assert.True(t, s.ResponseSum >= 0 && s.ResponseMax >= 0 && s.ResponseMax < skew.Milliseconds()/2, "response times of session %s", sid)
}

// F27. With clocks 10 minutes apart a user comes back to their session within the window, and not after it, on any
// replica, also when Redis has lost the session and it is up to MongoDB's times.
func TestClocks_windowsEndByRedis(t *testing.T) {
	t.Parallel() // it waits more than it works
	const window = 8 * time.Second
	cs := startSkewed(t, options{chatbox: unlimited, window: window}, -skew, 0, skew)
	c := cs.c
	u := newUser("ann", c.token("ann"))
	visit := func(i int) (sid string) {
		t.Helper()
		require.NoError(t, u.connect(t.Context(), c.direct(i)))
		require.NoError(t, u.untilLive(t.Context()))
		sid = u.sessionID
		id, err := u.send(t.Context(), "!tokens 3")
		require.NoError(t, err)
		require.NoError(t, u.untilAnswered(t.Context(), id, 10*time.Second))
		u.leave()
		return sid
	}
	ended := func(sid string) sessionstore.Session {
		t.Helper()
		var s sessionstore.Session
		require.Eventually(t, func() bool {
			doc, found := c.doc(sid)
			s = doc.Session
			return found && doc.Final
		}, 40*time.Second, 100*time.Millisecond, "the window of session %s never ends", sid)
		return s
	}
	first := visit(0)
	for i := range 5 {
		require.Equal(t, first, visit((i+1)%3), "within the window the session goes on")
	}
	left := time.Now()
	s := ended(first)
	assert.GreaterOrEqual(t, time.Since(left), window-2*time.Second, "too early")
	assert.InDelta(t, 0, s.End.Sub(left).Seconds(), 5, "the end is when the user left")

	// Redis forgets a session of somebody who comes back at once, by the replica that thinks it is 10 minutes later.
	second := visit(0)
	require.NotEqual(t, first, second)
	c.flushed(second, u.newest())
	require.Eventually(t, func() bool { _, found := c.doc(second); return found }, 20*time.Second, 20*time.Millisecond)
	require.Equal(t, second, visit(2), "within the window")
	require.NoError(t, c.client.FlushAll(t.Context()).Err())
	require.Equal(t, second, visit(2), "within the window, although Redis has lost the session")

	// And one of somebody who stays away, and comes back by the replica that thinks it is 10 minutes earlier.
	c.flushed(second, u.newest())
	require.NoError(t, c.client.FlushAll(t.Context()).Err())
	sleepFor(t.Context(), window+3*time.Second)
	require.NotEqual(t, second, visit(0), "the window is over")
	ended(second)
	sound(t, c, first)
	sound(t, c, second)
	assert.Empty(t, u.faults)
}

// F27. Rates and readiness under clocks that differ and step: a user gets what the limit allows, over all replicas
// together, is told a time to wait within the minute, and can go on after it; a replica whose clock steps does not
// call Redis away when it is there, nor there when it is away.
func TestClocks_ratesAndReadinessGoByTimePassed(t *testing.T) {
	t.Parallel() // it waits more than it works
	const limit = 12
	cs := startSkewed(t, options{chatbox: fmt.Sprintf("rate_limit = %d", limit)}, -skew, 0, skew)
	c := cs.c
	began := time.Now()
	u := newUser("ann", c.token("ann"))
	accepted := 0
	refused := time.Duration(0)
	for i := 0; refused == 0; i++ {
		require.Less(t, accepted, limit+1, "more than the limit")
		require.NoError(t, u.connect(t.Context(), c.direct(i%3)))
		require.NoError(t, u.untilLive(t.Context()))
		id, err := u.send(t.Context(), "!tokens 1")
		require.NoError(t, err)
		require.NoError(t, u.until(t.Context(), 10*time.Second, "ack or refusal", func() bool { return u.acked[id] > 0 || u.refusals(id) > 0 }))
		u.mu.Lock()
		if u.acked[id] > 0 {
			accepted++
		} else {
			e := u.last("error").Error
			require.Equal(t, "RATE_LIMITED", e.Code)
			refused = time.Duration(e.RetryAfter) * time.Millisecond
			delete(u.own, id)
		}
		u.mu.Unlock()
		u.leave()
	}
	t.Logf("%d of %d accepted, then to wait for %v", accepted, limit, refused)
	assert.Positive(t, accepted)
	assert.LessOrEqual(t, refused, 62*time.Second)
	told := time.Now()

	for i, to := range []time.Duration{-2 * skew, -skew, 0} { // each 10 minutes back
		cs.step(i, to)
	}
	// It says that it is ready before and after a step into the future.
	for i := range 3 {
		cs.step(i, cs.off[i]+skew)
		for range 10 {
			require.Equal(t, 200, c.request("GET", c.direct(i), "/chat/readyz", "", nil), "Redis is there")
			sleepFor(t.Context(), 100*time.Millisecond)
		}
		cs.step(i, cs.off[i]-skew)
	}
	sleepFor(t.Context(), refused-time.Since(told)+time.Second)
	for i := range 3 {
		require.NoError(t, u.connect(t.Context(), c.direct(i)))
		require.NoError(t, u.untilLive(t.Context()))
		id, err := u.send(t.Context(), "!tokens 1")
		require.NoError(t, err)
		require.NoError(t, u.until(t.Context(), 10*time.Second, "ack or refusal", func() bool { return u.acked[id] > 0 || u.refusals(id) > 0 }))
		u.mu.Lock()
		assert.Positive(t, u.acked[id], "replica %d still refuses after %v: %+v", i, time.Since(began).Round(time.Second), u.last("error"))
		u.mu.Unlock()
		u.leave()
	}

	// Redis goes away, and the clocks step back: that does not make it seen a moment ago.
	c.redis.Kill()
	require.Error(t, ping(c.redis.Addr))
	for i := range 3 {
		cs.step(i, cs.off[i]-skew)
	}
	require.Eventually(t, func() bool {
		for i := range 3 {
			if c.request("GET", c.direct(i), "/chat/readyz", "", nil) != 503 {
				return false
			}
		}
		return true
	}, 40*time.Second, 200*time.Millisecond, "a replica does not say that Redis is away")
}
