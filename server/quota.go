package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/ulule/limiter/v3"
	counters "github.com/ulule/limiter/v3/drivers/store/redis"
)

// QuotaOptions are what NewQuota needs.
type QuotaOptions struct {
	Redis     redis.UniversalClient // required
	Prefix    string                // of keys; default "rt:"
	PerMinute int                   // messages of one user in a minute, over all replicas; required
	Log       *slog.Logger          // default: discard
}

// Limits of reservations.
const (
	quotaPeriod   = time.Minute
	quotaTimeout  = 500 * time.Millisecond
	mostReserved  = 8  // messages
	reservedShare = 10 // at most this part of what a user has left is reserved at a time
)

// Quota counts the messages of users over all replicas, in Redis, one counter a user and minute that begins with the
// first message. A replica takes small reservations and counts within them by itself, so that few messages wait for a
// round trip; what it has reserved and not used is lost to the user for the rest of the minute. The nearer the limit the
// smaller the reservations, so no more than the limit ever gets through. While Redis cannot be asked, the replica
// counts for itself. All methods may be called concurrently.
type Quota struct {
	opts QuotaOptions
	rate limiter.Rate
	log  *slog.Logger

	mu    sync.Mutex // guards the fields below; never held during I/O
	store limiter.Store
	users map[string]*allowance
	swept time.Time
}

// allowance is what this replica may let one user send.
type allowance struct {
	left   int64
	next   int64     // size of the next reservation
	until  time.Time // end of the minute; what is left then is void
	denied bool      // nothing is to be had until then
	alone  bool      // the minute is this replica's own: Redis could not be asked
}

// NewQuota makes a quota. It does no I/O.
func NewQuota(opts QuotaOptions) (*Quota, error) {
	if opts.Redis == nil || opts.PerMinute <= 0 {
		return nil, errors.New("quota: Redis and PerMinute are required")
	}
	if opts.Prefix == "" {
		opts.Prefix = "rt:"
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Quota{
		opts: opts, rate: limiter.Rate{Period: quotaPeriod, Limit: int64(opts.PerMinute)}, log: opts.Log,
		users: make(map[string]*allowance),
	}, nil
}

// Take takes one message from what the user may send. If it is used up, wait says when there is more.
func (q *Quota) Take(ctx context.Context, userID string) (wait time.Duration, ok bool) {
	size, wait, ok := q.take(userID, time.Now())
	if size == 0 {
		return wait, ok
	}
	got, err := q.reserve(ctx, userID, size)
	if err != nil && ctx.Err() == nil {
		q.log.Warn("rate is counted by this replica alone", "component", "quota", "error", err.Error())
	}
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	u := q.users[userID]
	if u == nil { // forgotten meanwhile
		u = &allowance{next: 1}
		q.users[userID] = u
	}
	switch {
	case err == nil:
		u.until, u.alone = resetAt(now, got.Reset), false
	case !u.alone: // a minute of this replica's own
		u.until, u.alone = now.Add(quotaPeriod), true
		got, size = limiter.Context{}, q.rate.Limit
	default:
		got.Reached = true
	}
	if !got.Reached {
		u.left += size - 1
		u.next = min(max(1, 2*size), mostReserved, max(1, got.Remaining/reservedShare))
		return 0, true
	}
	if u.left > 0 { // given back, or reserved by another call, meanwhile
		u.left--
		return 0, true
	}
	u.denied = true
	return max(u.until.Sub(now), 0), false
}

// resetAt is when the limiter's period ends, which it gives by the wall clock in whole seconds. What is returned does not
// move when that clock is set.
func resetAt(now time.Time, reset int64) time.Time {
	left := time.Unix(reset, 0).Sub(now) + time.Second
	return now.Add(min(max(left, 0), quotaPeriod+time.Second)) // the clock may have been set since it was read
}

// take answers from what is reserved. If nothing is, it returns how much to reserve.
func (q *Quota) take(userID string, now time.Time) (size int64, wait time.Duration, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.forget(now)
	u := q.users[userID]
	if u == nil || now.After(u.until) {
		u = &allowance{next: 1, until: now.Add(quotaPeriod)}
		q.users[userID] = u
	}
	switch {
	case u.left > 0:
		u.left--
		return 0, 0, true
	case u.denied:
		return 0, u.until.Sub(now), false
	}
	return u.next, 0, false
}

// Return gives one message back that turned out to be free.
func (q *Quota) Return(userID string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if u := q.users[userID]; u != nil {
		u.left++
		u.denied = false
	}
}

// reserve takes messages from the counter that all replicas share.
func (q *Quota) reserve(ctx context.Context, userID string, size int64) (limiter.Context, error) {
	ctx, cancel := context.WithTimeout(ctx, quotaTimeout)
	defer cancel()
	store, err := q.shared()
	if err != nil {
		return limiter.Context{}, err
	}
	got, err := store.Increment(ctx, userID, size, q.rate)
	if err != nil {
		return limiter.Context{}, fmt.Errorf("reserve messages: %w", err)
	}
	return got, nil
}

// shared makes the store when it is first needed: making it loads scripts, which needs Redis.
func (q *Quota) shared() (limiter.Store, error) {
	q.mu.Lock()
	store := q.store
	q.mu.Unlock()
	if store != nil {
		return store, nil
	}
	store, err := counters.NewStoreWithOptions(primaries{q.opts.Redis}, limiter.StoreOptions{Prefix: q.opts.Prefix + "rate"})
	if err != nil {
		return nil, fmt.Errorf("load scripts of the limiter: %w", err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.store = store
	return store, nil
}

// primaries loads scripts into the primaries only. A cluster's client loads them into all nodes, and connections to
// replicas are refused.
type primaries struct{ redis.UniversalClient }

// ScriptLoad returns the script's digest.
func (p primaries) ScriptLoad(ctx context.Context, script string) *redis.StringCmd {
	cluster, ok := p.UniversalClient.(*redis.ClusterClient)
	if !ok {
		return p.UniversalClient.ScriptLoad(ctx, script)
	}
	var mu sync.Mutex // guards first: the nodes are asked at once
	first := redis.NewStringCmd(ctx)
	err := cluster.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
		cmd := node.ScriptLoad(ctx, script)
		mu.Lock()
		defer mu.Unlock()
		if first.Val() == "" {
			first = cmd
		}
		return cmd.Err()
	})
	if err != nil {
		first.SetErr(err)
	}
	return first
}

// forget drops users whose minute is over, once a minute. With q.mu held.
func (q *Quota) forget(now time.Time) {
	if now.Sub(q.swept) < quotaPeriod {
		return
	}
	q.swept = now
	for id, u := range q.users {
		if now.After(u.until) {
			delete(q.users, id)
		}
	}
}
