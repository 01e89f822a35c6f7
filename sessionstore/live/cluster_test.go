package live

import (
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig"
)

// On a cluster everything runs as it is, with one subscription per partition.
func TestCluster_delivers_keeps_and_takes_off_the_WAL(t *testing.T) {
	nodes := sharedCluster(t)
	s := newStoreAt(t, rig.RedisClusterURL(nodes), nil)
	require.True(t, s.sharded)
	h := runBus(t, s)
	require.NoError(t, renewOnce(s))
	require.Equal(t, Partitions, kept(s))

	sids := make([]string, 40)
	seqs := make(map[string]int64)
	for i := range sids {
		sids[i] = newSession(t, s)
		require.NoError(t, s.Subscribe(t.Context(), sids[i]))
		seqs[sids[i]] = say(t, s, sids[i], "x")
	}
	for _, sid := range sids {
		require.Eventually(t, func() bool { m := h.of(sid); return len(m) == 1 && m[0].Seq == seqs[sid] }, patience, time.Millisecond)
	}

	entries := 0
	for _, b := range readWAL(t, s, 100) {
		entries += len(b.Entries)
		require.NoError(t, s.DoneWAL(t.Context(), b))
	}
	require.Equal(t, 2*len(sids), entries)
	require.Empty(t, readWAL(t, s, 100))

	// Every node loses its subscriptions.
	for _, n := range nodes {
		c := redis.NewClient(&redis.Options{Addr: n.Addr})
		require.NoError(t, c.Do(t.Context(), "client", "kill", "type", "pubsub").Err())
		require.NoError(t, c.Close())
	}
	for _, sid := range sids {
		require.Eventually(t, func() bool { return h.resynced(sid) > 0 }, patience, time.Millisecond)
		seq := say(t, s, sid, "again")
		require.Eventually(t, func() bool { m := h.of(sid); return m[len(m)-1].Seq == seq }, patience, time.Millisecond)
	}
}

func TestCluster_names_the_primary_of_every_partition(t *testing.T) {
	s := newStoreAt(t, rig.RedisClusterURL(sharedCluster(t)), nil)
	newSession(t, s)
	names := map[string]int{}
	for p := range Partitions {
		require.NoError(t, s.client.Ping(t.Context()).Err())
		// A node is named when a connection to it is made, so before the first key on it is read.
		names[instOf(t, s.client, s.prefix, p)]++
	}
	require.Len(t, names, 3)
}

func TestCluster_resyncs_what_a_moved_slot_carried(t *testing.T) {
	nodes := sharedCluster(t)
	s := newStoreAt(t, rig.RedisClusterURL(nodes), nil)
	h := runBus(t, s)
	sid := newSession(t, s)
	require.NoError(t, s.Subscribe(t.Context(), sid))

	cc := s.client.(*redis.ClusterClient)
	slot, err := cc.ClusterKeySlot(t.Context(), s.channelOf(sid)).Result()
	require.NoError(t, err)
	from, err := cc.MasterForKey(t.Context(), s.channelOf(sid))
	require.NoError(t, err)
	moveSlot(t, nodes, from, int(slot))

	require.Eventually(t, func() bool { return h.resynced(sid) > 0 }, 20*time.Second, 10*time.Millisecond, "the loss was not noticed")
	seq := say(t, s, sid, "on the other node")
	require.Eventually(t, func() bool { m := h.of(sid); return len(m) > 0 && m[len(m)-1].Seq == seq }, patience, 5*time.Millisecond)
}

// moveSlot moves a slot with all its keys from one node to another one.
func moveSlot(t *testing.T, nodes []*rig.Proc, from *redis.Client, slot int) {
	t.Helper()
	ctx := t.Context()
	fromID, err := from.Do(ctx, "cluster", "myid").Text()
	require.NoError(t, err)
	var to *redis.Client
	var toID string
	for _, n := range nodes {
		if n.Addr != from.Options().Addr {
			to = redis.NewClient(&redis.Options{Addr: n.Addr})
			break
		}
	}
	t.Cleanup(func() { _ = to.Close() })
	toID, err = to.Do(ctx, "cluster", "myid").Text()
	require.NoError(t, err)
	require.NoError(t, to.Do(ctx, "cluster", "setslot", slot, "importing", fromID).Err())
	require.NoError(t, from.Do(ctx, "cluster", "setslot", slot, "migrating", toID).Err())
	for {
		keys, err := from.ClusterGetKeysInSlot(ctx, slot, 100).Result()
		require.NoError(t, err)
		if len(keys) == 0 {
			break
		}
		host, port := "127.0.0.1", to.Options().Addr[len("127.0.0.1:"):]
		args := []any{"migrate", host, port, "", 0, 5000, "keys"}
		for _, k := range keys {
			args = append(args, k)
		}
		require.NoError(t, from.Do(ctx, args...).Err())
	}
	for _, c := range []*redis.Client{to, from} {
		require.NoError(t, c.Do(ctx, "cluster", "setslot", slot, "node", toID).Err())
	}
}

func TestCluster_gathers_calls_of_each_primary_apart(t *testing.T) {
	s := newStoreAt(t, rig.RedisClusterURL(sharedCluster(t)), nil)
	nodes := map[*batcher]bool{}
	for p := range Partitions {
		b := s.pl.batch.of(t.Context(), s.parts[p].wal())
		require.Same(t, b, s.pl.batch.of(t.Context(), s.parts[p].due()), "a partition stays with its node")
		nodes[b] = true
	}
	require.Len(t, nodes, 3)
}
