package live

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// shortQuiet is how long nothing more is logged of pipelines that too few replicas have acknowledged.
const shortQuiet = 30 * time.Second

// acks has durable events acknowledged by replicas of Redis before who wrote them goes on. That narrows the time in
// which a failover can lose what was acknowledged; it does not close it, because a replica that has not acknowledged
// may be promoted, and because too few acknowledgements are counted and not an error: the event is written.
type acks struct {
	// Set once by newAcks.
	replicas int
	timeout  time.Duration
	log      *slog.Logger

	short  atomic.Int64 // pipelines with fewer acknowledgements
	logged atomic.Int64 // when that was last logged, Unix nanoseconds
}

// newAcks returns nil if nobody is to be waited for.
func newAcks(replicas int, timeout time.Duration, log *slog.Logger) *acks {
	if replicas <= 0 {
		return nil
	}
	return &acks{replicas: replicas, timeout: timeout, log: log}
}

// invoke is invoke, which waits if one of the calls writes a durable event: once, behind all of them. The calls are for
// one primary.
func (a *acks) invoke(ctx context.Context, client redis.UniversalClient, calls []*invocation) {
	if a == nil || !anyDurable(calls) {
		invoke(ctx, client, calls)
		return
	}
	node := nodeOf(ctx, client, calls[0].keys[0])
	if node == nil {
		a.pipelines(ctx, client, calls)
		return
	}
	// WAIT is about its own connection, so here the calls must go to the node themselves. Where the node is the wrong
	// one the cluster's client knows how to follow, but then nobody has waited.
	a.pipelines(ctx, node, calls)
	var failed []*invocation
	for _, c := range calls {
		if c.err != nil {
			failed = append(failed, c)
		}
	}
	if len(failed) > 0 && ctx.Err() == nil {
		invoke(ctx, client, failed)
		if anyDurable(failed) {
			a.note(0, nil)
		}
	}
}

func anyDurable(calls []*invocation) bool {
	for _, c := range calls {
		if c.durable {
			return true
		}
	}
	return false
}

func (a *acks) pipelines(ctx context.Context, client redis.UniversalClient, calls []*invocation) {
	unknown := a.pipeline(ctx, client, calls, (*redis.Script).EvalSha)
	if len(unknown) > 0 {
		a.pipeline(ctx, client, unknown, (*redis.Script).Eval)
	}
}

func (a *acks) pipeline(ctx context.Context, client redis.UniversalClient, calls []*invocation, eval evalFunc) (unknown []*invocation) {
	pipe := client.Pipeline()
	cmds := make([]*redis.Cmd, len(calls))
	for i, c := range calls {
		cmds[i] = eval(c.script, ctx, pipe, c.keys, c.args...)
	}
	wait := pipe.Do(ctx, "wait", a.replicas, a.timeout.Milliseconds())
	execute(ctx, pipe)
	unknown = outcomes(calls, cmds)
	for _, c := range calls {
		if c.durable && c.err == nil {
			a.note(wait.Int64())
			break
		}
	}
	return unknown
}

// note counts a pipeline that fewer replicas have acknowledged than was asked for.
func (a *acks) note(got int64, err error) {
	if err == nil && got >= int64(a.replicas) {
		return
	}
	n := a.short.Add(1)
	now, last := time.Now().UnixNano(), a.logged.Load()
	if now-last >= int64(shortQuiet) && a.logged.CompareAndSwap(last, now) {
		a.log.Warn("events were written, but too few replicas of redis have acknowledged them in time",
			"got", got, "want", a.replicas, "timeout", a.timeout, "so_far", n, "err", err)
	}
}

// Unacked returns how many times fewer than Options.Wait replicas had acknowledged what was written.
func (s *Store) Unacked() int64 {
	if s.pl.acks == nil {
		return 0
	}
	return s.pl.acks.short.Load()
}

// nodeOf returns the primary of a cluster that has the key, nil for a single Redis or where it is not known.
func nodeOf(ctx context.Context, client redis.UniversalClient, key string) *redis.Client {
	cluster, ok := client.(*redis.ClusterClient)
	if !ok {
		return nil
	}
	node, err := cluster.MasterForKey(ctx, key)
	if err != nil { // the call will say why
		return nil
	}
	return node
}
