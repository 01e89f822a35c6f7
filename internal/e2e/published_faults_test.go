//go:build faults

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/real-rm/chatbox/sessionstore"
)

// I2: what the checker of TestChaos takes for a fence that did not hold, with and without a Redis that was killed.
func TestPublished_knowsWhatAKilledRedisMaySayAgain(t *testing.T) {
	chunk := func(attempt, chunk int) string {
		h := sessionstore.Header{Type: sessionstore.TypeAIResponse, SessionID: "s", MessageID: "a", Sender: sessionstore.SenderAI, Attempt: attempt, Chunk: chunk}.Fragment()
		return fmt.Sprintf("e 0 %d %s{}", len(h), h)
	}
	play := func(killed time.Duration, before, after []string) []string {
		p := &published{seen: map[string]time.Time{}, at: map[string]int{}, began: map[string]time.Time{}, ended: map[string]time.Time{}}
		for _, r := range before {
			p.note(r)
		}
		if killed >= 0 {
			p.killed(time.Now().Add(killed))
		}
		for _, r := range after {
			p.note(r)
		}
		return p.wrong
	}
	never, soon, late := -time.Second, time.Duration(0), lostTail+time.Second
	assert.Empty(t, play(never, []string{chunk(1, 1)}, []string{chunk(1, 2), chunk(2, 3)}))
	assert.NotEmpty(t, play(never, []string{chunk(1, 1)}, []string{chunk(1, 1)}), "twice")
	assert.NotEmpty(t, play(never, []string{chunk(2, 1)}, []string{chunk(1, 2)}), "after a later attempt")
	assert.Empty(t, play(soon, []string{chunk(1, 1)}, []string{chunk(1, 1)}), "lost with the tail")
	assert.Empty(t, play(soon, []string{chunk(1, 1), chunk(2, 1)}, []string{chunk(1, 2)}), "the takeover is lost")
	assert.NotEmpty(t, play(late, []string{chunk(1, 1)}, []string{chunk(1, 1)}), "published long before")
}
