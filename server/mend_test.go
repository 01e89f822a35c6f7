package server

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// mending is a mend whose Revive fails with err as long as it is not nil, and what it was called for.
type mending struct {
	*mend

	mu    sync.Mutex
	err   error
	calls []string
}

func newMending() *mending {
	m := &mending{}
	m.mend = newMend(fakeReviver(func(_, sessionID string) error {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.calls = append(m.calls, sessionID)
		return m.err
	}), slog.New(slog.DiscardHandler))
	return m
}

func (m *mending) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

// Beyond B2: however many sockets take a snapshot that lacks something, Redis is given it back once; after another
// loss, again.
func TestMend_seesToASessionOnceInEachEpoch(t *testing.T) {
	m := newMending()
	for range 5 {
		m.Ask("p01-a", "2-x")
	}
	m.Ask("p01-b", "2-y")
	m.round(t.Context())
	assert.ElementsMatch(t, []string{"p01-a", "p01-b"}, m.calls)
	m.Ask("p01-a", "2-x")
	m.round(t.Context())
	assert.Len(t, m.calls, 2, "it was seen to")
	m.Ask("p01-a", "3-z")
	m.round(t.Context())
	assert.Equal(t, "p01-a", m.calls[2])
}

// With MongoDB away nothing is given up, and what can never come back is not asked for again.
func TestMend_triesUntilMongoDBCanSay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		m := newMending()
		m.fail(fmt.Errorf("revive: %w", sessionstore.ErrArchive))
		var wg sync.WaitGroup
		wg.Go(func() { assert.NoError(t, m.Run(ctx)) })
		m.Ask("p01-a", "2-x")
		time.Sleep(3*mendEvery + mendEvery/2)
		m.mu.Lock()
		assert.Len(t, m.calls, 3)
		m.mu.Unlock()
		m.fail(sessionstore.ErrEnded)
		time.Sleep(5 * mendEvery)
		cancel()
		wg.Wait()
		assert.Len(t, m.calls, 4)
	})
}

// What is remembered is bounded, and what finds no room is taken when it is asked for again.
func TestMend_remembersSoManyAndNoMore(t *testing.T) {
	m := newMending()
	for i := range mendMost + 1 {
		m.Ask(fmt.Sprintf("p01-%d", i), "2-x")
	}
	m.round(t.Context())
	require.Len(t, m.calls, mendMost)
	m.Ask(fmt.Sprintf("p01-%d", mendMost), "2-x")
	m.round(t.Context())
	assert.Len(t, m.calls, mendMost+1)
	assert.Less(t, len(m.done), mendMost)
}
