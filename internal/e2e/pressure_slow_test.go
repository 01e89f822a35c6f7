//go:build faults

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// valve is a client's end of a connection with a small window that can stop reading.
type valve struct {
	mu   sync.Mutex
	open chan struct{} // closed: what comes is read
	drip time.Duration // between reads of at most dripBytes; zero: none, and they may be of any size
}

const dripBytes = 1 << 10

func newValve() *valve {
	v := &valve{open: make(chan struct{})}
	close(v.open)
	return v
}

// shut lets the reads after the one under way wait until let.
func (v *valve) shut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.open = make(chan struct{})
}

func (v *valve) let() {
	v.mu.Lock()
	defer v.mu.Unlock()
	select {
	case <-v.open:
	default:
		close(v.open)
	}
}

// client opens connections that the valve is in.
func (v *valve) client() *http.Client {
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if cerr := raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) }); cerr != nil {
			return cerr
		}
		return err
	}}
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := d.DialContext(ctx, network, addr)
		return &valved{Conn: conn, v: v}, err
	}}}
}

type valved struct {
	net.Conn
	v *valve
}

// Read waits for the valve.
func (c *valved) Read(b []byte) (int, error) {
	c.v.mu.Lock()
	open, drip := c.v.open, c.v.drip
	c.v.mu.Unlock()
	<-open
	if drip > 0 {
		time.Sleep(drip) // a slow line, nothing waits for it
		b = b[:min(len(b), dripBytes)]
	}
	return c.Conn.Read(b)
}

// pings sends one ping after the other until ctx ends, and returns how long each took to be answered.
func (u *user) pings(ctx context.Context) (took []time.Duration, err error) {
	for ctx.Err() == nil {
		u.mu.Lock()
		n := u.pongs()
		u.mu.Unlock()
		began := time.Now()
		if err := u.write(context.WithoutCancel(ctx), map[string]any{"type": "ping", "last_seq": u.at()}); err != nil {
			return nil, err
		}
		if err := u.until(context.WithoutCancel(ctx), 20*time.Second, "pong", func() bool { return u.pongs() > n }); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
		sleepFor(ctx, 10*time.Millisecond)
	}
	return took, nil
}

// pongs counts. With u.mu held.
func (u *user) pongs() (n int) {
	for _, f := range u.frames {
		if f.Type == "pong" {
			n++
		}
	}
	return n
}

// F6: one of two sockets of a session stops reading while long answers come. The other one and another user notice
// nothing, the slow one is closed with 4002 instead of being kept in memory without bound, and resumes with everything.
func TestSlow_isClosedAloneAndResumes(t *testing.T) {
	// The long wait leaves time to see the close: by then it is the queue's size that has decided, not a write's time.
	c := start(t, options{replicas: 1, chatbox: unlimited, websocket: `write_wait = "60s"`, env: []string{"CHATBOX__LIMITS__QUEUE_BYTES=262144"}, farMongo: true})
	v := newValve()
	slow, fast, other := newUser("ann", c.token("ann")), newUser("ann", c.token("ann")), newUser("bob", c.token("bob"))
	slow.via, slow.lossy = v.client(), true
	t.Cleanup(v.let)
	for _, u := range []*user{slow, fast, other} {
		require.NoError(t, u.connect(t.Context(), c.direct(0)))
		require.NoError(t, u.untilLive(t.Context()))
	}
	require.Equal(t, slow.sessionID, fast.sessionID)
	// talk lets long answers come, and returns how long the other user's pings took meanwhile.
	talk := func(what string, rounds int) time.Duration {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var took []time.Duration
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			took, err = other.pings(ctx)
		}()
		for range rounds {
			id, serr := fast.send(t.Context(), "!big 240")
			require.NoError(t, serr)
			require.NoError(t, fast.untilAnswered(t.Context(), id, 20*time.Second))
		}
		cancel()
		<-done
		require.NoError(t, err)
		return spread(t, "pongs "+what, took)
	}
	const rounds = 4 // finals of about 1 MiB: more than the queue and the buffers of a socket hold
	before := talk("while all read", rounds/2)
	at := fast.at()
	require.NoError(t, slow.until(t.Context(), 10*time.Second, "reading with a small window", func() bool { return slow.seq == at && slow.closed == 0 }))
	c.mongoLink.Cut() // the log keeps what is not in MongoDB: the slow one resumes without a snapshot
	v.shut()
	during := talk("while one does not read", rounds)
	assert.Less(t, during, 5*before+500*time.Millisecond, "another user waits for the slow one")
	assert.Less(t, slow.at(), fast.at(), "the slow one has read on")
	v.let()
	require.NoError(t, slow.until(t.Context(), 20*time.Second, "the end of the slow socket", func() bool { return slow.closed != 0 }))
	<-slow.done
	assert.EqualValues(t, 4002, slow.closed)
	assert.False(t, dead(fast))
	assert.False(t, dead(other))

	require.NoError(t, slow.connect(t.Context(), c.direct(0)))
	require.NoError(t, slow.untilLive(t.Context()))
	last := fast.at()
	require.NoError(t, slow.until(t.Context(), 10*time.Second, "what was missed", func() bool { return slow.seq >= last }))
	require.NoError(t, c.mongoLink.Heal())
	stored := c.flushed(fast.sessionID, last)
	for _, u := range []*user{slow, fast} {
		u.mu.Lock()
		assert.Empty(t, u.faults)
		assertSame(t, u.events, stored)
		u.mu.Unlock()
	}
	slow.mu.Lock()
	defer slow.mu.Unlock()
	assert.Equal(t, 1, slow.snapshots)
}

// deltas is how many bytes the pieces of answers took on the wire.
func (u *user) deltas() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.wire
}

// pieces is how many there were.
func (u *user) pieces() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.chunks
}

// dripping sets the pace.
func (v *valve) dripping(d time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.drip = d
}

// Beyond B6, F6: a client on a line that is too slow for every small delta, but not for the text, gets bigger deltas. It is
// not closed, though its queue holds far less than the deltas take one by one, and is shown all of the text.
func TestSlow_getsBiggerDeltasAndStays(t *testing.T) {
	const queue, most = 256 << 10, 2 << 20 // far more than the queue and the buffers of a socket hold
	c := start(t, options{replicas: 1, chatbox: unlimited, env: []string{fmt.Sprintf("CHATBOX__LIMITS__QUEUE_BYTES=%d", queue)}})
	v := newValve()
	slow, fast := newUser("ann", c.token("ann")), newUser("ann", c.token("ann"))
	slow.via, slow.lossy = v.client(), true
	for _, u := range []*user{slow, fast} {
		require.NoError(t, u.connect(t.Context(), c.direct(0)))
		require.NoError(t, u.untilLive(t.Context()))
	}
	v.dripping(50 * time.Millisecond) // 20 KiB/s
	for rounds := 0; fast.deltas() < most; rounds++ {
		require.Less(t, rounds, 8, "the deltas take %d bytes only", fast.deltas())
		id, err := fast.send(t.Context(), "!tokens 8000 1")
		require.NoError(t, err)
		require.NoError(t, fast.untilAnswered(t.Context(), id, 90*time.Second))
	}
	// What waits now has to come while the next answer is being written: its final would stand for it.
	before := fast.pieces()
	id, err := fast.send(t.Context(), "!tokens 8000 1")
	require.NoError(t, err)
	require.NoError(t, fast.until(t.Context(), 60*time.Second, "a part of the answer", func() bool { return fast.chunks > before+1000 }))
	v.dripping(0)
	require.NoError(t, fast.untilAnswered(t.Context(), id, 90*time.Second))
	last := fast.at()
	require.NoError(t, slow.until(t.Context(), 60*time.Second, "the answer", func() bool { return slow.seq >= last || slow.closed != 0 }))
	fast.mu.Lock()
	quick := fast.chunks
	fast.mu.Unlock()
	slow.mu.Lock()
	defer slow.mu.Unlock()
	t.Logf("the answers came in %d frames of %d KiB to the fast client, in %d of %d KiB to the slow one, %d of which were merged",
		quick, fast.deltas()>>10, slow.chunks, slow.wire>>10, slow.merged)
	assert.Zero(t, slow.closed, "closed")
	assert.Positive(t, slow.merged)
	assert.Less(t, slow.chunks, quick)
	assert.Empty(t, slow.faults) // of the text, too
}

// logged counts the lines in the log of replica i that hold a text.
func (c *cluster) logged(i int, text string) (n int) {
	c.t.Helper()
	log, err := os.ReadFile(c.replicas[i].Log)
	require.NoError(c.t, err)
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// F29: a replica runs out of file descriptors. Those who are connected stay and are served, those who come are not let
// in, and when descriptors are free again everything is as before.
func TestDescriptors_runOutAndCome(t *testing.T) {
	prlimit, err := exec.LookPath("prlimit")
	if err != nil {
		t.Skip("prlimit is not installed")
	}
	c := start(t, options{replicas: 1, chatbox: unlimited})
	var old []*user
	for n := range 5 {
		u := newUser(fmt.Sprintf("old-%d", n), c.token(fmt.Sprintf("old-%d", n)))
		require.NoError(t, askThrough(t.Context(), c, u, "!tokens 3 1"))
		old = append(old, u)
	}
	const room = 10
	limit := slices.Max(c.descriptors()) + room
	out, err := exec.CommandContext(t.Context(), prlimit, fmt.Sprintf("--pid=%d", c.replicas[0].Pid), fmt.Sprintf("--nofile=%d", limit)).CombinedOutput()
	require.NoError(t, err, string(out))
	var late []*user
	refused := 0
	for n := 0; n < 3*room && refused < 3; n++ {
		u := newUser(fmt.Sprintf("late-%d", n), c.token(fmt.Sprintf("late-%d", n)))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		err := u.connect(ctx, c.direct(0))
		cancel()
		if err != nil {
			refused++
			continue
		}
		late = append(late, u)
	}
	require.GreaterOrEqual(t, refused, 3, "the limit of %d descriptors was never reached", limit)
	t.Logf("%d more were let in, then no more; %d lines about it", len(late), c.logged(0, "too many open files"))
	for _, u := range old {
		u.mu.Lock()
		n, closed := u.pongs(), u.closed
		u.mu.Unlock()
		require.Zero(t, closed, "%s was thrown out", u.id)
		require.NoError(t, u.write(t.Context(), map[string]any{"type": "ping", "last_seq": u.at()}))
		require.NoError(t, u.until(t.Context(), 10*time.Second, "pong", func() bool { return u.pongs() > n }))
	}
	for _, u := range late {
		u.leave()
	}
	began := time.Now()
	for _, u := range old {
		require.NoError(t, askThrough(t.Context(), c, u, "!tokens 3 1"))
		u.mu.Lock()
		assert.Zero(t, u.closed)
		assert.Empty(t, u.faults)
		u.mu.Unlock()
	}
	again := newUser("again", c.token("again"))
	require.Eventually(t, func() bool { return again.connect(t.Context(), c.direct(0)) == nil }, 20*time.Second, 50*time.Millisecond)
	require.NoError(t, again.untilLive(t.Context()))
	require.NoError(t, askThrough(t.Context(), c, again, "!tokens 3 1"))
	t.Logf("all was as before %v after descriptors were free", time.Since(began).Round(time.Millisecond))
}
