package hub

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// maxStagger bounds the reconnect_after of Drain: closing is spread already.
const maxStagger = time.Second

// Drain accepts no more clients, sends each a hint with a random time after which to reconnect (at most 1 s or
// spread), then closes them with CodeDrain at random moments within spread, and waits until all are gone or ctx
// ends, when it reports how many are left. hint nil sends none.
func (h *Hub) Drain(ctx context.Context, hint func(after time.Duration) []byte, spread time.Duration) error {
	h.refuse()
	clients := h.snapshot()
	rand.Shuffle(len(clients), func(i, j int) { clients[i], clients[j] = clients[j], clients[i] })
	if hint != nil {
		for _, c := range clients {
			c.Send(hint(jitter(min(spread, maxStagger))))
		}
	}
	gone := h.whenEmpty()
	timer := time.NewTimer(0)
	defer timer.Stop()
	begin := time.Now()
	for i, c := range clients {
		// One place for each in the order of the shuffle, and a random moment within it.
		place := spread / time.Duration(len(clients))
		if wait := time.Duration(i)*place + jitter(place) - time.Since(begin); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-gone:
				return nil
			case <-ctx.Done():
				return h.drainEnds(ctx)
			}
		}
		c.Close(CodeDrain, "server stops")
	}
	select {
	case <-gone:
		return nil
	case <-ctx.Done():
		return h.drainEnds(ctx)
	}
}

func (h *Hub) drainEnds(ctx context.Context) error {
	return fmt.Errorf("drain with %d clients left: %w", h.Len(), ctx.Err())
}

// jitter returns a random duration below d, zero if d is not positive.
func jitter(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}
