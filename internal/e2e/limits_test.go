//go:build faults

package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Promise 43: a user is throttled over all replicas together: no more than the rate gets through, what is refused says
// when to try again, and what was accepted before is free.
func TestRate_isCountedOverAllReplicas(t *testing.T) {
	const limit = 30
	c := start(t, options{env: quick, chatbox: fmt.Sprintf("rate_limit = %d", limit)})
	tabs := []*user{c.online("keen", 0), c.online("keen", 1), c.online("keen", 2)}
	calm := c.online("calm", 0)
	var wg sync.WaitGroup
	ids := make([][]string, len(tabs))
	for i, u := range tabs {
		wg.Go(func() {
			for range 20 {
				id, err := u.send(t.Context(), "!tokens 1")
				if !assert.NoError(t, err) {
					return
				}
				ids[i] = append(ids[i], id)
			}
		})
	}
	wg.Wait()
	accepted, refused := 0, 0
	for i, u := range tabs {
		var mine int
		require.NoError(t, u.until(t.Context(), 20*time.Second, "all acks and refusals", func() bool {
			mine = 0
			for _, id := range ids[i] {
				if u.acked[id] > 0 || u.refusals(id) > 0 {
					mine++
				}
			}
			return mine == len(ids[i])
		}))
		u.mu.Lock()
		for _, id := range ids[i] {
			if u.acked[id] > 0 {
				accepted++
			}
		}
		for _, f := range u.frames {
			if f.Type == "error" {
				refused++
				assert.Equal(t, "RATE_LIMITED", f.Error.Code)
				assert.True(t, f.Error.Recoverable)
				assert.Positive(t, f.Error.RetryAfter)
				assert.LessOrEqual(t, f.Error.RetryAfter, int64(62_000))
			}
		}
		assert.Zero(t, u.closed)
		u.mu.Unlock()
	}
	t.Logf("%d accepted, %d refused of %d at a limit of %d", accepted, refused, 60, limit)
	assert.LessOrEqual(t, accepted, limit)
	assert.GreaterOrEqual(t, accepted, limit-9, "reservations cost too much")
	assert.Equal(t, 60, accepted+refused)
	asks(t, calm, "!tokens 1") // Promise 8: nobody else is disturbed

	// Duplicates are free.
	u := tabs[0]
	u.mu.Lock()
	var known string
	for _, id := range ids[0] {
		if u.acked[id] > 0 {
			known = id
		}
	}
	dups := u.dups
	u.mu.Unlock()
	require.NoError(t, u.write(t.Context(), map[string]any{"type": "user_message", "message_id": known, "content": "!tokens 1"}))
	require.NoError(t, u.until(t.Context(), 10*time.Second, "a duplicate", func() bool { return u.dups > dups }))
}

// SPEC, close codes: one user has a bounded number of sockets in the whole cluster, and so has an address on a replica.
func TestSockets_ofAUserAndOfAnAddressAreBounded(t *testing.T) {
	c := start(t, options{env: append([]string{"CHATBOX__LIMITS__SOCKETS_PER_USER=3", "CHATBOX__LIMITS__SOCKETS_PER_ADDRESS=3"}, quick...)})
	tabs := []*user{c.online("ann", 0), c.online("ann", 1), c.online("ann", 2)}
	fourth := newUser("ann", c.token("ann"))
	require.ErrorContains(t, fourth.connect(t.Context(), c.direct(1)), "429")
	c.online("bob", 0).leave()
	tabs[2].leave()
	require.Eventually(t, func() bool { return fourth.connect(t.Context(), c.direct(1)) == nil }, 10*time.Second, 50*time.Millisecond)
	require.NoError(t, fourth.untilLive(t.Context()))

	c.online("bob", 1) // the third of this address on replica 1
	require.ErrorContains(t, newUser("eve", c.token("eve")).connect(t.Context(), c.direct(1)), "429")
	c.online("eve", 2)
}
