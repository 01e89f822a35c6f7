package turn

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
)

// fullStore is a Redis that is full: chunks are refused, leases are renewed all the same.
type fullStore struct{ *fakeStore }

func (fullStore) Chunk(context.Context, *sessionstore.Generation, string, bool) error {
	return sessionstore.ErrFull
}

// A full Redis does not keep a replica from shutting down: the lease goes back in bounded time.
func TestTurn_shutsDownWhileRedisIsFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "hello")
		r, err := New(Options{Store: fullStore{f}, History: f, Models: words(time.Second, "a", "b", "c")})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		r.Start(sid)
		pass(time.Minute)
		assert.Empty(t, f.finals, "as long as Redis is full the answer waits")
		begun := time.Now()
		cancel()
		require.NoError(t, <-done)
		assert.LessOrEqual(t, time.Since(begun), 3*patience)
		assert.Equal(t, 1, f.released)
		assert.Empty(t, f.finals)
	})
}

// A take-over that brings no text does not pass the earlier attempt's text off as the answer.
func TestTurn_marksATakeOverWithoutTextAsFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{takeovers: 1, text: "half an ans", chunk: 3, attempt: 1}
		f.ask("q1", "hello")
		r, stop := start(t, f, fakeModels{stream: func(context.Context, llm.Request, func(llm.Delta) error) (llm.Result, error) {
			return llm.Result{Finish: llm.FinishStop}, nil
		}})
		defer stop()
		r.Start(sid)
		pass(time.Second)
		require.Len(t, f.finals, 1)
		assert.Equal(t, "half an ans", f.finals[0].Content)
		assert.Equal(t, failedCode, f.finals[0].Metadata[sessionstore.MetaFailed])
	})
}

// deaf is a store whose lease cannot be renewed, and whose history comes late.
type deaf struct {
	*fakeStore
	late time.Time
}

func (deaf) Renew(context.Context, *sessionstore.Generation) error { return sessionstore.ErrAway }

func (d deaf) Context(ctx context.Context, sid string, upTo int64) ([]sessionstore.Event, error) {
	if time.Now().Before(d.late) {
		return nil, sessionstore.ErrAway
	}
	return d.fakeStore.Context(ctx, sid, upTo)
}

// Invariant I2: what could be read says nothing about the lease. One that cannot be renewed is given up in time,
// however late the history came.
func TestTurn_readingDoesNotProlongTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "hello")
		d := deaf{f, time.Now().Add(9 * time.Second)}
		begun := time.Now()
		var held time.Duration
		r, err := New(Options{Store: d, History: d, Lease: 10 * time.Second, Models: fakeModels{
			stream: func(ctx context.Context, _ llm.Request, _ func(llm.Delta) error) (llm.Result, error) {
				<-ctx.Done()
				held = time.Since(begun)
				return llm.Result{}, &llm.Error{Kind: llm.KindCancelled}
			},
		}})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		r.Start(sid)
		pass(time.Minute)
		assert.Greater(t, held, 9*time.Second, "it was asked")
		assert.LessOrEqual(t, held, 10*time.Second+10*time.Second/3, "noticed with the next try to renew")
		assert.Empty(t, f.finals)
		cancel()
		require.NoError(t, <-done)
	})
}
