//go:build faults

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig/rigtest"
)

// guest is a user who comes back when the socket closes, when and as a browser does, and notes how that went.
type guest struct {
	*user
	talks   bool // asks again as soon as there is an answer; else only once
	tokens  int  // of every answer
	pace    time.Duration
	asked   int
	closes  []websocket.StatusCode
	gaps    []time.Duration // from each close to live
	refused []error         // upgrades that failed
}

func (c *cluster) guests(n, talkers, tokens int, pace time.Duration) []*guest {
	c.t.Helper()
	var out []*guest
	for i := range n {
		id := fmt.Sprintf("guest-%d", i)
		g := &guest{user: newUser(id, c.token(id)), talks: i < talkers, tokens: 3}
		if g.talks {
			g.tokens, g.pace = tokens, pace
		}
		out = append(out, g)
	}
	return out
}

// settled says that nothing that was said waits for its place or for its answer. With g.mu held.
func (g *guest) settled() bool {
	for id := range g.acked {
		if g.answerTo(id) == nil {
			return false
		}
	}
	return len(g.own) == 0
}

// ask sends a question that has a long answer if the guest is one who talks.
func (g *guest) ask(ctx context.Context) {
	g.asked++
	_, _ = g.send(ctx, fmt.Sprintf("!tokens %d %d", g.tokens, g.pace.Milliseconds())) // sent again if the socket broke under it
}

// host keeps guests connected through the balancer until leave is called, at most until the limit, when ctx ends. It
// returns when those who do not talk have their answer. leave waits until everybody has theirs and says who has not.
func (c *cluster) host(t *testing.T, guests []*guest, limit time.Duration) (ctx context.Context, leave func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	stop, finish := context.WithCancel(ctx)
	errs := make([]error, len(guests))
	var wg sync.WaitGroup
	t.Cleanup(func() {
		finish()
		cancel()
		wg.Wait()
	})
	for i, g := range guests {
		wg.Go(func() { errs[i] = g.stay(ctx, stop, c.lb) })
	}
	quiet := slices.DeleteFunc(slices.Clone(guests), func(g *guest) bool { return g.talks })
	all(t, quiet, 60*time.Second, "an answer", func(g *guest) bool { return g.live && len(g.acked) == 1 && g.settled() })
	return ctx, func() error {
		finish()
		wg.Wait()
		return errors.Join(errs...)
	}
}

// stay keeps the guest connected at where addr says until stop ends and all is answered, or ctx ends.
func (g *guest) stay(ctx, stop context.Context, addr func() string) error {
	for ctx.Err() == nil {
		if g.conn == nil || dead(g.user) {
			g.back(ctx, addr)
			continue
		}
		g.mu.Lock()
		settled := g.settled()
		g.mu.Unlock()
		switch {
		case settled && stop.Err() != nil:
			return nil
		case settled && (g.talks || g.asked == 0):
			g.ask(ctx)
		}
		_ = g.until(ctx, 200*time.Millisecond, "something to do", func() bool {
			return g.closed != 0 || g.talks && g.settled()
		})
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return fmt.Errorf("%s: %w: live %t, %d unacknowledged, seq %d, close code %d", g.id, ctx.Err(), g.live, len(g.own), g.seq, g.closed)
}

// back connects a guest, after a close when the server's hint says, and sends again what has no place yet.
func (g *guest) back(ctx context.Context, addr func() string) {
	var closed time.Time
	if g.conn != nil {
		<-g.done
		closed = time.Now()
		g.mu.Lock()
		g.closes = append(g.closes, g.closed)
		hint := g.last("connection_status")
		g.mu.Unlock()
		if hint != nil && hint.Status == "draining" {
			sleepFor(ctx, time.Duration(hint.After)*time.Millisecond)
		}
	}
	for ctx.Err() == nil {
		if err := g.connect(ctx, addr()); err != nil {
			g.mu.Lock()
			g.refused = append(g.refused, err)
			g.mu.Unlock()
			sleepFor(ctx, 200*time.Millisecond)
			continue
		}
		_ = g.until(ctx, 15*time.Second, "going live", func() bool { return g.live || g.closed != 0 })
		g.mu.Lock()
		live := g.live
		if live && !closed.IsZero() {
			g.gaps = append(g.gaps, time.Since(closed))
		}
		g.mu.Unlock()
		if live {
			_ = g.resend(ctx)
		}
		return // a socket that closed before it was live is the caller's next one to replace
	}
}

// all waits until cond holds for every guest; cond is called with the guest's lock held.
func all(t *testing.T, guests []*guest, limit time.Duration, what string, cond func(*guest) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for _, g := range guests {
		require.NoError(t, g.until(ctx, limit, what, func() bool { return cond(g) }), g.id)
	}
}

func isLive(g *guest) bool { return g.live }

// growingIn counts the guests who see an answer growing.
func growingIn(guests []*guest) (n int) {
	for _, g := range guests {
		g.mu.Lock()
		n += min(1, len(g.running))
		g.mu.Unlock()
	}
	return n
}

// checkGuests compares what every guest has with MongoDB: the same, every question once with one whole answer.
func checkGuests(t *testing.T, c *cluster, guests []*guest) {
	t.Helper()
	all := c.dump()
	for _, g := range guests {
		g.mu.Lock()
		assert.Empty(t, g.faults, g.id)
		stored, err := c.transcript(all, g.sessionID)
		if err != nil || len(stored) == 0 || stored[len(stored)-1].Seq < g.seq {
			stored = c.flushed(g.sessionID, g.seq)
		}
		assertExactlyOnce(t, g.user, stored, g.asked, words(g.tokens))
		assertSame(t, g.events, stored)
		g.mu.Unlock()
	}
}

// spread states p50, p99 and the largest of some durations and returns p99.
func spread(t *testing.T, what string, ds []time.Duration) (p99 time.Duration) {
	t.Helper()
	require.NotEmpty(t, ds, what)
	slices.Sort(ds)
	at := func(q float64) time.Duration { return ds[int(q*float64(len(ds)-1))].Round(time.Millisecond) }
	t.Logf("%s: %d, p50 %v, p99 %v, max %v", what, len(ds), at(0.5), at(0.99), at(1))
	return at(0.99)
}

// Beyond B6, F2: three replicas are restarted one after the other under sockets and answers. Clients see 1012 and
// nothing else, are back at once, and nothing is lost or doubled. A replica that drains is not ready, refuses upgrades
// and ends by itself within its grace.
func TestDrain_rollingRestart(t *testing.T) {
	c := start(t, options{chatbox: unlimited})
	guests := c.guests(inCI(60, 500), inCI(10, 50), 40, 50*time.Millisecond)
	talkers := guests[:inCI(10, 50)]
	_, leave := c.host(t, guests, inCI(90*time.Second, 5*time.Minute))

	for i := range c.replicas {
		all(t, guests, 30*time.Second, "being live", isLive)
		require.Eventually(t, func() bool { return growingIn(talkers) > len(talkers)/2 }, 20*time.Second, 5*time.Millisecond)
		var ready struct{ Sockets int }
		require.Equal(t, 200, c.request("GET", c.direct(i), "/chat/readyz", "", &ready))
		require.NotZero(t, ready.Sockets, "replica %d has nobody to send away", i)
		growing, began := growingIn(talkers), time.Now()
		require.NoError(t, c.replicas[i].Signal(syscall.SIGTERM))
		refusesNewOnes(t, c, i)
		select {
		case <-c.replicas[i].Done():
		case <-time.After(20 * time.Second): // 4 s for sockets, 2 s for requests, and a slow machine
			t.Fatalf("replica %d never ended", i)
		}
		require.NoError(t, c.replicas[i].Wait(), "a drained replica exits with 0")
		t.Logf("replica %d: %d sockets left, %d answers were live, ended after %v", i, ready.Sockets, growing, time.Since(began).Round(time.Millisecond))
		c.startReplica(i, binary(t))
		settled(t, c)
	}
	all(t, guests, 30*time.Second, "being live", isLive)
	require.NoError(t, leave())

	var gaps []time.Duration
	var refused []error
	for _, g := range guests {
		assert.NotEmpty(t, g.closes, "%s was never sent away", g.id)
		for _, code := range g.closes {
			assert.EqualValues(t, 1012, code, g.id)
		}
		gaps, refused = append(gaps, g.gaps...), append(refused, g.refused...)
	}
	assert.Empty(t, refused, "upgrades that failed on the way back")
	assert.Less(t, spread(t, "from close to live", gaps), inCI(8*time.Second, 2*time.Second))
	c.caughtUp(2*time.Second, 90*time.Second) // hundreds of sessions ended or went on at once
	checkGuests(t, c, guests)
}

// refusesNewOnes waits until replica i, which was told to stop, says that it is not ready, and checks that it refuses
// upgrades and says when to come again.
func refusesNewOnes(t *testing.T, c *cluster, i int) {
	t.Helper()
	addr := c.replicas[i].Addr
	get := func(path string, header http.Header) (int, http.Header) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+path, nil)
		require.NoError(t, err)
		req.Header = header
		res, err := (&http.Client{Timeout: 5 * time.Second}).Do(req)
		if err != nil {
			return 0, nil
		}
		_ = res.Body.Close()
		return res.StatusCode, res.Header
	}
	require.Eventually(t, func() bool { code, _ := get("/chat/readyz", http.Header{}); return code == 503 }, 10*time.Second, 5*time.Millisecond)
	code, header := get("/chat/ws", http.Header{
		"Authorization": {"Bearer " + c.token("late")}, "Connection": {"Upgrade"}, "Upgrade": {"websocket"},
		"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
	})
	assert.Equal(t, 503, code)
	assert.NotEmpty(t, header.Get("Retry-After"))
}

// F26: the balancer dies under all sockets, and everybody comes back in the same moment, while MongoDB is away: each
// resumes in the same session with exactly what was missed, and MongoDB is not needed for it.
func TestHerd_resumesWithoutMongoDB(t *testing.T) {
	c := start(t, options{chatbox: unlimited})
	guests := c.guests(inCI(200, 2000), inCI(20, 100), 40, 50*time.Millisecond)
	talkers := guests[:inCI(20, 100)]
	ctx, cancel := context.WithTimeout(t.Context(), inCI(90*time.Second, 20*time.Minute))
	defer cancel()
	everybody := func(of []*guest, f func(*guest)) {
		var wg sync.WaitGroup
		for _, g := range of {
			wg.Go(func() { f(g) })
		}
		wg.Wait()
	}
	everybody(guests, func(g *guest) { g.back(ctx, c.lb) })
	all(t, guests, 30*time.Second, "being live", isLive)
	earlier := guests[len(talkers) : 2*len(talkers)] // the rest has said nothing yet
	everybody(earlier, func(g *guest) { g.ask(ctx) })
	all(t, earlier, 60*time.Second, "an answer", func(g *guest) bool { return len(g.acked) == 1 && g.settled() })
	c.caughtUp(2*time.Second, 60*time.Second)

	c.mongo.Kill()
	for i := range c.replicas {
		require.Eventually(t, func() bool { _, status := c.readiness(i); return status == "degraded" }, 15*time.Second, 50*time.Millisecond)
	}
	everybody(talkers, func(g *guest) { g.ask(ctx) })
	require.Eventually(t, func() bool { return growingIn(talkers) > len(talkers)/2 }, 20*time.Second, 5*time.Millisecond)
	sessions, snapshots := map[string]string{}, map[string]int{}
	for _, g := range guests {
		g.mu.Lock()
		sessions[g.id], snapshots[g.id] = g.sessionID, g.snapshots
		g.mu.Unlock()
	}
	c.nginx.Kill()
	all(t, guests, 20*time.Second, "the cut", func(g *guest) bool { return g.closed != 0 })
	var upstreams []string
	for i := range c.replicas {
		upstreams = append(upstreams, c.direct(i))
	}
	c.nginx = rigtest.Nginx(t, upstreams...)
	began := time.Now()
	everybody(guests, func(g *guest) { g.back(ctx, c.lb) })
	all(t, guests, 30*time.Second, "being live again", isLive)
	t.Logf("%d sockets resumed within %v without MongoDB", len(guests), time.Since(began).Round(time.Millisecond))
	var gaps []time.Duration
	for _, g := range guests {
		g.mu.Lock()
		assert.Empty(t, g.refused, g.id)
		assert.Len(t, g.closes, 1, g.id)
		assert.Equal(t, sessions[g.id], g.sessionID, "%s has another session", g.id)
		assert.Equal(t, snapshots[g.id], g.snapshots, "%s was not resumed but begun anew", g.id)
		greeted := slices.IndexFunc(g.frames, func(f frame) bool { return f.Status == "connected" && f.Recovered && f.Resumed })
		assert.GreaterOrEqual(t, greeted, 0, "%s was not resumed", g.id)
		gaps = append(gaps, g.gaps...)
		g.mu.Unlock()
	}
	assert.Less(t, spread(t, "from coming back to live", gaps), inCI(10*time.Second, 20*time.Second))
	all(t, talkers, 30*time.Second, "the answer that was cut", func(g *guest) bool { return g.settled() })
	for i := range c.replicas {
		_, status := c.readiness(i)
		assert.Equal(t, "degraded", status, "MongoDB was there")
	}
	c.startMongo()
	c.caughtUp(2*time.Second, 60*time.Second)
	compared := time.Now()
	checkGuests(t, c, guests)
	t.Logf("%d transcripts compared in %v", len(guests), time.Since(compared).Round(time.Second))
}
