package server

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig/rigtest"
)

func quotaOn(t *testing.T, addr string, perMinute int) *Quota {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: addr, DialTimeout: time.Second, MaxRetries: -1})
	t.Cleanup(func() { _ = client.Close() })
	q, err := NewQuota(QuotaOptions{Redis: client, Prefix: strings.ReplaceAll(t.Name(), "/", "-") + ":", PerMinute: perMinute})
	require.NoError(t, err)
	return q
}

// Promise 43: three replicas let no more than the rate through, and lose little of it to reservations; every user has
// a rate of their own.
func TestQuota_isExactlyBoundedOverReplicas(t *testing.T) {
	p := rigtest.Redis(t)
	const limit = 60
	replicas := []*Quota{quotaOn(t, p.Addr, limit), quotaOn(t, p.Addr, limit), quotaOn(t, p.Addr, limit)}
	var wg sync.WaitGroup
	var passed [4]atomic.Int64
	for user := range passed {
		for _, q := range replicas {
			for range 2 { // tabs
				wg.Go(func() {
					for range limit {
						wait, ok := q.Take(t.Context(), fmt.Sprint("user-", user))
						if ok {
							passed[user].Add(1)
							continue
						}
						assert.Positive(t, wait)
						assert.LessOrEqual(t, wait, 62*time.Second)
					}
				})
			}
		}
	}
	wg.Wait()
	for user := range passed {
		n := passed[user].Load()
		t.Logf("user %d: %d of %d", user, n, limit)
		assert.LessOrEqual(t, n, int64(limit))
		assert.GreaterOrEqual(t, n, int64(limit*8/10))
	}
}

// One who sends alone gets the whole rate, and few messages cost a round trip.
func TestQuota_ofOneReplicaIsSpentToTheLast(t *testing.T) {
	p := rigtest.Redis(t)
	q := quotaOn(t, p.Addr, 100)
	var calls countCalls
	q.opts.Redis.AddHook(&calls)
	n := 0
	for range 150 {
		if _, ok := q.Take(t.Context(), "ann"); ok {
			n++
		}
	}
	t.Logf("%d passed, %d round trips", n, calls.n.Load())
	assert.Equal(t, 100, n)
	assert.Less(t, calls.n.Load(), int64(60))

	q.Return("ann") // a duplicate is free
	_, ok := q.Take(t.Context(), "ann")
	assert.True(t, ok)
	_, ok = q.Take(t.Context(), "ann")
	assert.False(t, ok)
	q.Return("nobody")
}

type countCalls struct{ n atomic.Int64 }

func (c *countCalls) DialHook(next redis.DialHook) redis.DialHook { return next }
func (c *countCalls) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		c.n.Add(1)
		return next(ctx, cmd)
	}
}
func (c *countCalls) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// A quota is made without Redis, and while Redis is away the replica counts for itself.
func TestQuota_countsAloneWhileRedisIsAway(t *testing.T) {
	q := quotaOn(t, "127.0.0.1:1", 10)
	n := 0
	for range 30 {
		if _, ok := q.Take(t.Context(), "ann"); ok {
			n++
		}
	}
	assert.Equal(t, 10, n)
}

// Users whose minute is over are forgotten.
func TestQuota_forgetsUsers(t *testing.T) {
	q := quotaOn(t, "127.0.0.1:1", 10)
	for i := range 100 {
		q.users[fmt.Sprint(i)] = &allowance{until: time.Now().Add(-time.Second)}
	}
	q.users["kept"] = &allowance{left: 3, until: time.Now().Add(time.Minute)}
	q.swept = time.Time{}
	_, ok := q.Take(t.Context(), "kept")
	assert.True(t, ok)
	assert.Len(t, q.users, 1)
}

func TestNewQuota_namesWhatIsMissing(t *testing.T) {
	_, err := NewQuota(QuotaOptions{})
	require.Error(t, err)
}
