package live

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/sessionstore"
)

// replicaOf starts a replica of the server and waits until it follows.
func replicaOf(t *testing.T, primary *rig.Proc) (*rig.Proc, *redis.Client) {
	t.Helper()
	host, port, _ := strings.Cut(primary.Addr, ":")
	r := startRedis(t, "--replicaof", host, port)
	c := redis.NewClient(&redis.Options{Addr: r.Addr, MaxRetries: -1})
	t.Cleanup(func() { _ = c.Close() })
	require.Eventually(t, func() bool {
		info, err := c.Info(t.Context(), "replication").Result()
		return err == nil && strings.Contains(info, "master_link_status:up")
	}, 20*time.Second, 20*time.Millisecond)
	return r, c
}

// Beyond B2, as an option: what is acknowledged has left the primary.
func TestWait_replicasHaveWhatWasAcknowledged(t *testing.T) {
	primary := startRedis(t)
	replica, copies := replicaOf(t, primary)
	pipes := &pipes{}
	s := newStoreAt(t, redisURL(primary), func(o *Options) {
		o.Wait, o.WaitTimeout = 1, time.Second
		o.Client = connect(t, redisURL(primary), o.Prefix)
		o.Client.AddHook(pipes)
	})
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	p, _ := s.part(sid)
	seqOnReplica := func() string { return copies.HGet(ctx, p.session(sid).hash(), "s").Val() }
	for i := range 20 {
		if i == 10 {
			require.NoError(t, s.client.ScriptFlush(ctx).Err())
		}
		a, err := s.Append(ctx, question(sid, "x"))
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(a.Seq), seqOnReplica())
	}
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	a, _, err := s.Finish(ctx, &g, finalEvent(g))
	require.NoError(t, err)
	require.Equal(t, fmt.Sprint(a.Seq), seqOnReplica())
	a, _, err = s.Join(ctx, sid, eve, uuid.NewString())
	require.NoError(t, err)
	require.Equal(t, fmt.Sprint(a.Seq), seqOnReplica())
	require.Zero(t, s.Unacked())

	// Many at once wait together.
	pipes.mu.Lock()
	pipes.sizes = nil
	pipes.mu.Unlock()
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			_, err := s.Append(ctx, question(sid, "x"))
			assert.NoError(t, err)
		})
	}
	wg.Wait()
	require.Less(t, len(pipes.trips()), 100, "one wait for each pipeline")
	require.Equal(t, fmt.Sprint(a.Seq+200), seqOnReplica())

	replica.Kill()
	s.pl.acks.timeout = 10 * time.Millisecond
	a, err = s.Append(ctx, question(sid, "nobody acknowledges"))
	require.NoError(t, err, "too few are no error")
	require.False(t, a.Duplicate)
	require.EqualValues(t, 1, s.Unacked())
}

func TestWait_onACluster(t *testing.T) {
	nodes := sharedCluster(t)
	s := newStoreAt(t, rig.RedisClusterURL(nodes), func(o *Options) { o.Wait, o.WaitTimeout = 1, 5*time.Millisecond })
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "x")
	require.EqualValues(t, 1, s.Unacked(), "these nodes have no replicas")

	// A node that does not have the slot any more is followed to the one that has.
	cc := s.client.(*redis.ClusterClient)
	slot, err := cc.ClusterKeySlot(ctx, s.channelOf(sid)).Result()
	require.NoError(t, err)
	from, err := cc.MasterForKey(ctx, s.channelOf(sid))
	require.NoError(t, err)
	moveSlot(t, nodes, from, int(slot))
	for i := range 5 {
		a, err := s.Append(ctx, question(sid, "y"))
		require.NoError(t, err)
		require.Equal(t, i, int(a.Seq)%1000-3, "written once")
	}
	story(t, s, "u2")
	require.Greater(t, s.Unacked(), int64(6))
}

func TestWait_isOffByDefault(t *testing.T) {
	s := newTestStore(t, nil)
	require.Nil(t, s.pl.acks)
	require.Zero(t, s.Unacked())
	_, err := New(Options{Client: s.client, Keyring: s.keyring, Replica: "r", Wait: -1, WaitTimeout: time.Minute})
	require.ErrorContains(t, err, "Wait is negative")
	require.ErrorContains(t, err, "WaitTimeout")
}

func TestCheck_saysWhatIsWrongWithRedis(t *testing.T) {
	r := startRedis(t)
	s := newStoreAt(t, redisURL(r), nil)
	ctx := testContext(t)
	require.NoError(t, s.client.ConfigSet(ctx, "maxmemory-policy", "allkeys-lru").Err())
	problems, err := s.Check(ctx)
	require.NoError(t, err)
	require.Len(t, problems, 2)
	assert.Contains(t, problems[0], "appendonly")
	assert.Contains(t, problems[1], "allkeys-lru")

	require.NoError(t, s.client.ConfigSet(ctx, "maxmemory-policy", "noeviction").Err())
	require.NoError(t, s.client.ConfigSet(ctx, "appendonly", "yes").Err())
	problems, err = s.Check(ctx)
	require.NoError(t, err)
	require.Empty(t, problems)
	s.sharded = true
	problems, err = s.Check(ctx)
	require.NoError(t, err)
	require.Len(t, problems, 1)

	r.Kill()
	short, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = s.Check(short)
	require.ErrorIs(t, err, sessionstore.ErrAway)
}

func TestCheck_onACluster(t *testing.T) {
	s := newStoreAt(t, rig.RedisClusterURL(sharedCluster(t)), nil)
	problems, err := s.Check(testContext(t))
	require.NoError(t, err)
	require.Len(t, problems, 3, "each node is asked: %v", problems)
	s.sharded = false
	problems, err = s.Check(testContext(t))
	require.NoError(t, err)
	require.Len(t, problems, 4)
}

// A user who may not ask is no reason not to start.
func TestCheck_ofWhatItMayNotAsk(t *testing.T) {
	for name, c := range map[string]struct {
		info   map[string]string
		config map[string]string
		want   []string
	}{
		"nothing":   {},
		"old":       {info: map[string]string{"server": "redis_version:6.2.14"}, want: []string{"6.2.14"}},
		"newer":     {info: map[string]string{"server": "redis_version:10.0.1\r\n", "persistence": "aof_enabled:1"}},
		"by config": {config: map[string]string{"appendonly": "no", "maxmemory-policy": "volatile-ttl"}, want: []string{"volatile-ttl", "appendonly"}},
	} {
		t.Run(name, func(t *testing.T) {
			problems, err := checkNode(t.Context(), refusing{c.info, c.config})
			require.NoError(t, err)
			require.Len(t, problems, len(c.want))
			for i, w := range c.want {
				assert.Contains(t, problems[i], w)
			}
		})
	}
}

// refusing is a server that answers only what it has.
type refusing struct{ info, config map[string]string }

type noPerm string

func (e noPerm) Error() string { return string(e) }
func (noPerm) RedisError()     {}

func (r refusing) Info(_ context.Context, sections ...string) *redis.StringCmd {
	if text, ok := r.info[sections[0]]; ok {
		return redis.NewStringResult(text, nil)
	}
	return redis.NewStringResult("", noPerm("NOPERM this user has no permissions to run the 'info' command"))
}

func (r refusing) ConfigGet(_ context.Context, parameter string) *redis.MapStringStringCmd {
	if v, ok := r.config[parameter]; ok {
		return redis.NewMapStringStringResult(map[string]string{parameter: v}, nil)
	}
	return redis.NewMapStringStringResult(nil, noPerm("NOPERM this user has no permissions to run the 'config|get' command"))
}
