package live

import (
	"context"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// F9: a Redis that restarts refuses connections while it loads its data. Nothing that is asked of it then may look as if
// it had been done, or as if nothing were there: a session that is "forgotten" would lose its place in MongoDB.
func TestExecute_givesEveryCommandTheErrorOfItsConnection(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	loading := redis.NewClient(&redis.Options{Addr: sharedRedis(t).Addr, MaxRetries: -1,
		OnConnect: func(ctx context.Context, cn *redis.Conn) error { return cn.Do(ctx, "nonsense").Err() }})
	t.Cleanup(func() { _ = loading.Close() })
	_, err := loading.Pipelined(ctx, func(pipe redis.Pipeliner) error { pipe.Ping(ctx); return nil })
	require.ErrorContains(t, err, "nonsense", "as an error of Redis, not of the network")

	o := s.o
	o.Client, o.Wait = loading, 0
	away, err := New(o)
	require.NoError(t, err)
	sids := []string{sid, openSession(t, s, "u2")}

	tops, err := away.Positions(ctx, sids)
	assert.Error(t, err)
	assert.Empty(t, tops)

	n, _ := PartitionOf(sid)
	batches := []sessionstore.WALBatch{{Partition: n}}
	require.Error(t, away.readDocs(ctx, batches, []docRead{{sid: sid, drained: true}}))
	assert.Empty(t, batches[0].Docs)

	calls := make([]*invocation, 2)
	for i := range calls {
		calls[i], err = s.pl.invocation(ctx, s.pl.sc.keep, []string{s.parts[1].keeper(), s.parts[1].beat()}, modeKeep, "", strconv.Itoa(i), 1000, 1000)
		require.NoError(t, err)
	}
	invoke(ctx, loading, calls)
	for _, c := range calls {
		assert.Error(t, c.err)
	}
	(&acks{replicas: 1, log: discard}).pipelines(ctx, loading, calls)
	for _, c := range calls {
		assert.Error(t, c.err)
	}
	require.Error(t, (&instGuard{prefix: s.prefix}).write(ctx, loading, strings.Repeat("x", 33)))
}
