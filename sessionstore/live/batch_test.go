package live

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// pipes is a go-redis hook that counts round trips of scripts and can hold them up.
type pipes struct {
	gate func() // called before each round trip, may be nil

	mu    sync.Mutex
	sizes []int // commands of each round trip
}

func (p *pipes) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

func (p *pipes) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		p.note([]redis.Cmder{cmd})
		return next(ctx, cmd)
	}
}

func (p *pipes) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		p.note(cmds)
		return next(ctx, cmds)
	}
}

func (p *pipes) note(cmds []redis.Cmder) {
	if !strings.HasPrefix(cmds[0].Name(), "eval") {
		return // go-redis greets a new connection
	}
	p.mu.Lock()
	p.sizes = append(p.sizes, len(cmds))
	p.mu.Unlock()
	if p.gate != nil {
		p.gate()
	}
}

func (p *pipes) trips() []int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]int(nil), p.sizes...)
}

var echo = redis.NewScript("return {KEYS[1], ARGV[1]}")

func (b *batcher) waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.queue)
}

func TestBatcher_sendsAtOnceWhenIdleAndGathersUnderLoad(t *testing.T) {
	client := newTestClient(t)
	require.NoError(t, echo.Load(t.Context(), client).Err())
	hold := make(chan struct{})
	hook := &pipes{gate: func() { <-hold }}
	client.AddHook(hook)
	b := newBatcher(client, nil)

	const callers = 100
	var wg sync.WaitGroup
	ask := func(i int) {
		got, err := b.Do(t.Context(), echo, []string{fmt.Sprintf("k%d", i)}, i)
		assert.NoError(t, err)
		assert.Equal(t, []any{fmt.Sprintf("k%d", i), fmt.Sprint(i)}, got, "a caller got somebody else's reply")
	}
	wg.Go(func() { ask(0) })
	require.Eventually(t, func() bool { return len(hook.trips()) == 1 }, time.Second, time.Millisecond)
	for i := 1; i <= callers; i++ {
		wg.Go(func() { ask(i) })
	}
	require.Eventually(t, func() bool { return b.waiting() == callers }, time.Second, time.Millisecond)
	close(hold)
	wg.Wait()
	require.Equal(t, []int{1, callers}, hook.trips())
}

func TestBatcher_bounds_a_pipeline(t *testing.T) {
	b := newBatcher(nil, nil)
	for range maxBatchCalls + 1 {
		b.queue = append(b.queue, &batchCall{size: 1})
	}
	require.Len(t, b.takeLocked(), maxBatchCalls)
	require.Len(t, b.takeLocked(), 1)
	for range 3 {
		b.queue = append(b.queue, &batchCall{size: maxBatchBytes/2 + 1})
	}
	require.Len(t, b.takeLocked(), 1, "two would be too large")
	b.queue = []*batchCall{{size: 1, state: callLeft}, {size: 2 * maxBatchBytes}, {size: 1}}
	require.Len(t, b.takeLocked(), 1, "a call that is too large by itself travels alone")
	require.Len(t, b.queue, 1)
}

func TestBatcher_givesEachCallerItsOwnError(t *testing.T) {
	client := newTestClient(t)
	hold := make(chan struct{})
	client.AddHook(&pipes{gate: func() { <-hold }})
	b := newBatcher(client, nil)
	fails := redis.NewScript("return redis.error_reply('ERR of ' .. ARGV[1])")
	nothing := redis.NewScript("return false")

	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			switch i % 3 {
			case 0:
				_, err := b.Do(t.Context(), fails, []string{"k"}, i)
				assert.ErrorContains(t, err, fmt.Sprintf("ERR of %d", i))
			case 1:
				_, err := b.Do(t.Context(), nothing, []string{"k"})
				assert.ErrorIs(t, err, redis.Nil)
			default:
				_, err := b.Do(t.Context(), echo, []string{"k"}, i)
				assert.NoError(t, err)
			}
		})
	}
	require.Eventually(t, func() bool { return b.waiting() == 29 }, time.Second, time.Millisecond)
	close(hold)
	wg.Wait()
}

func TestBatcher_sendsTheTextOfAScriptThatRedisHasForgotten(t *testing.T) {
	client := newTestClient(t)
	b := newBatcher(client, nil)
	script := redis.NewScript("return {KEYS[1], ARGV[1], 'forgotten'}") // this test's own: others run beside it
	for range 2 {
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				got, err := b.Do(t.Context(), script, []string{"k"}, i)
				assert.NoError(t, err)
				assert.Equal(t, []any{"k", fmt.Sprint(i), "forgotten"}, got)
			})
		}
		wg.Wait()
		require.NoError(t, client.ScriptFlush(t.Context()).Err())
	}
}

func TestBatcher_lets_an_impatient_caller_go_without_stopping_the_others(t *testing.T) {
	client := newTestClient(t)
	hold := make(chan struct{})
	hook := &pipes{gate: func() { <-hold }}
	client.AddHook(hook)
	b := newBatcher(client, nil)
	cause := errors.New("enough")

	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := b.Do(t.Context(), echo, []string{"first"}, 1)
		assert.NoError(t, err)
	})
	require.Eventually(t, func() bool { return len(hook.trips()) == 1 }, time.Second, time.Millisecond)

	// The next to lead waits no more; whoever is behind it must still be sent.
	ctx, cancel := context.WithCancelCause(t.Context())
	wg.Go(func() {
		_, err := b.Do(ctx, echo, []string{"impatient"}, 1)
		assert.ErrorIs(t, err, cause)
	})
	require.Eventually(t, func() bool { return b.waiting() == 1 }, time.Second, time.Millisecond)
	wg.Go(func() {
		_, err := b.Do(t.Context(), echo, []string{"behind"}, 1)
		assert.NoError(t, err)
	})
	require.Eventually(t, func() bool { return b.waiting() == 2 }, time.Second, time.Millisecond)
	cancel(cause)
	require.Eventually(t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.queue[0].state == callLeft
	}, time.Second, time.Millisecond)
	close(hold)
	wg.Wait()
	require.Zero(t, b.waiting())
	require.False(t, b.busy)
}

func TestBatcher_hands_the_lead_on_when_the_next_leader_has_just_left(t *testing.T) {
	b := newBatcher(nil, nil)
	b.busy = true
	first := &batchCall{wake: make(chan struct{}, 1)}
	second := &batchCall{wake: make(chan struct{}, 1)}
	b.queue = []*batchCall{first, second}
	b.handOverLocked()
	require.Equal(t, callLeading, first.state)
	b.leave(first)
	require.Equal(t, callLeading, second.state)
	b.leave(second)
	require.False(t, b.busy)
	require.Empty(t, b.queue)
}

func BenchmarkBatcher(b *testing.B) {
	client := newTestClient(b)
	batch := newBatcher(client, nil)
	b.SetParallelism(64)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := batch.Do(b.Context(), echo, []string{"k"}, 1); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
