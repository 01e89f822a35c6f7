package live

import (
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/internal/rig/rigtest"
	"github.com/real-rm/chatbox/sessionstore"
)

func TestParseTarget_readsEveryForm(t *testing.T) {
	for in, want := range map[string]target{
		"redis://127.0.0.1:6379":       {addrs: []string{"127.0.0.1:6379"}},
		"redis://cache":                {addrs: []string{"cache:6379"}},
		"redis://cache/":               {addrs: []string{"cache:6379"}},
		"redis://:p%40ss@cache:1/3":    {addrs: []string{"cache:1"}, password: "p@ss", db: 3},
		"rediss://u:p@cache?db=2":      {addrs: []string{"cache:6379"}, tls: true, username: "u", password: "p", db: 2},
		"redis://[::1]:7":              {addrs: []string{"[::1]:7"}},
		"redis://[::1]":                {addrs: []string{"[::1]:6379"}},
		"redis+sentinel://a:1,b/main":  {mode: modeSentinel, addrs: []string{"a:1", "b:26379"}, master: "main"},
		"redis+cluster://a:1,b:2,c":    {mode: modeCluster, addrs: []string{"a:1", "b:2", "c:6379"}},
		"rediss+cluster://u:p@a:1,b:2": {mode: modeCluster, tls: true, addrs: []string{"a:1", "b:2"}, username: "u", password: "p"},
		"redis+sentinel://u:p@a/m?db=4&sentinel_username=s&sentinel_password=t": {
			mode: modeSentinel, addrs: []string{"a:26379"}, master: "m", db: 4, username: "u", password: "p",
			sentinelUsername: "s", sentinelPassword: "t",
		},
	} {
		t.Run(in, func(t *testing.T) {
			got, err := parseTarget(in)
			require.NoError(t, err)
			assert.Equal(t, want, got)
		})
	}
}

func TestParseTarget_refusesWithoutRepeatingThePassword(t *testing.T) {
	for _, in := range []string{
		"", "cache:6379", "http://u:hunter2@cache", "redis+wrong://u:hunter2@cache", "redis://u:hunter2@", "redis://u:hunter2@a,b",
		"redis://u:hunter2@a/x", "redis://u:hunter2@a?db=-1", "redis://u:hunter2%zz@a", "redis+sentinel://u:hunter2@a:1",
		"redis+cluster://u:hunter2@a,b/3", "redis+cluster://u:hunter2@a,,b", "redis://u:hunter2@a?db=%zz",
	} {
		_, err := Connect(ConnectOptions{URL: in})
		if assert.Error(t, err, in) {
			assert.NotContains(t, err.Error(), "hunter2", "the error repeats the password")
			assert.True(t, strings.HasPrefix(err.Error(), "redis url: "))
		}
	}
}

func TestConnect_makesTheClientOfTheForm(t *testing.T) {
	for in, want := range map[string]redis.UniversalClient{
		"redis://127.0.0.1:1":           &redis.Client{},
		"redis+sentinel://127.0.0.1:1/": nil,
		"redis+cluster://127.0.0.1:1":   &redis.ClusterClient{},
	} {
		c, err := Connect(ConnectOptions{URL: in})
		if want == nil {
			require.Error(t, err)
			continue
		}
		require.NoError(t, err)
		assert.IsType(t, want, c)
		require.NoError(t, c.Close())
	}
}

func instOf(t *testing.T, c redis.UniversalClient, prefix string, p int) string {
	t.Helper()
	v, err := c.Get(t.Context(), partitionKeys(prefix, p).inst()).Result()
	require.NoError(t, err)
	return v
}

// client connects as production does and makes a first connection.
func client(t *testing.T, r *rig.Proc, prefix string) redis.UniversalClient {
	t.Helper()
	c := connect(t, redisURL(r), prefix)
	require.NoError(t, c.Ping(t.Context()).Err())
	return c
}

func TestConnect_names_the_primary_before_anything_else_and_again_after_a_restart(t *testing.T) {
	r := startRedis(t)
	prefix := testPrefix()
	c := client(t, r, prefix)
	first := instOf(t, c, prefix, 0)
	require.NotEmpty(t, first)
	require.Equal(t, first, instOf(t, c, prefix, Partitions-1))
	require.Equal(t, first, instOf(t, client(t, r, prefix), prefix, 0), "another replica says the same")

	// An empty Redis is named by the scripts, which count it as changed; a known primary is not named again.
	require.NoError(t, c.FlushAll(t.Context()).Err())
	require.NoError(t, newInstGuard(prefix, discard).check(t.Context(), c), "a new process names it")
	require.Equal(t, first, instOf(t, c, prefix, 0))
	require.NoError(t, c.FlushAll(t.Context()).Err())
	g := newInstGuard(prefix, discard)
	g.known[first] = struct{}{}
	require.NoError(t, g.check(t.Context(), c))
	require.ErrorIs(t, c.Get(t.Context(), partitionKeys(prefix, 0).inst()).Err(), redis.Nil)
}

func TestConnect_names_a_promoted_primary_anew_and_refuses_replicas(t *testing.T) {
	a, b := startRedis(t), startRedis(t)
	prefix := testPrefix()
	ca := client(t, a, prefix)
	plain := redis.NewClient(&redis.Options{Addr: b.Addr})
	t.Cleanup(func() { _ = plain.Close() })
	host, port, _ := strings.Cut(a.Addr, ":")
	require.NoError(t, plain.Do(t.Context(), "replicaof", host, port).Err())
	require.Eventually(t, func() bool {
		info, err := plain.Info(t.Context(), "replication").Result()
		return err == nil && strings.Contains(info, "master_link_status:up")
	}, 10*time.Second, 20*time.Millisecond)

	cb := connect(t, redisURL(b), prefix)
	require.ErrorIs(t, cb.Ping(t.Context()).Err(), errReplica)
	require.NoError(t, ca.Set(t.Context(), "x", "1", 0).Err())
	before := instOf(t, ca, prefix, 9)

	require.NoError(t, plain.Do(t.Context(), "replicaof", "no", "one").Err())
	require.NoError(t, cb.Ping(t.Context()).Err())
	promoted := instOf(t, cb, prefix, 9)
	require.NotEqual(t, before, promoted)

	// Demoted and promoted again in the same run: the connections may have lived through it, the name has changed.
	require.NoError(t, plain.Do(t.Context(), "replicaof", host, port).Err())
	require.NoError(t, plain.Do(t.Context(), "replicaof", "no", "one").Err())
	s, err := New(Options{Client: cb, Keyring: testKeyring(t), Replica: "r1", Prefix: prefix})
	require.NoError(t, err)
	require.NoError(t, s.pl.checkInst(t.Context()))
	require.NotEqual(t, promoted, instOf(t, cb, prefix, 9))
}

func TestConnect_works_when_redis_is_full(t *testing.T) {
	r := startRedis(t, "--maxmemory", "1")
	prefix := testPrefix()
	c := client(t, r, prefix)
	require.NotEmpty(t, instOf(t, c, prefix, 1))
	require.ErrorContains(t, c.Set(t.Context(), "x", "1", 0).Err(), "OOM")

	s, err := New(Options{Client: c, Keyring: testKeyring(t), Replica: "r1", Prefix: prefix})
	require.NoError(t, err)
	require.NoError(t, renewOnce(s), "keepers go on: they free memory")
	require.Equal(t, Partitions, kept(s))
}

func TestConnect_works_with_a_redis_that_has_no_run_id(t *testing.T) {
	m := miniredis.NewMiniRedis()
	require.NoError(t, m.StartAddr("127.0.0.1:"+strconv.Itoa(rig.FreePort())))
	t.Cleanup(m.Close)
	prefix := testPrefix()
	c := connect(t, "redis://"+m.Addr(), prefix)
	require.NoError(t, c.Ping(t.Context()).Err())
	first := instOf(t, c, prefix, 4)
	require.NotEmpty(t, first)
	other := connect(t, "redis://"+m.Addr(), prefix)
	require.NoError(t, other.Ping(t.Context()).Err())
	require.Equal(t, first, instOf(t, other, prefix, 4), "it was named once and for all")

	s, err := New(Options{Client: c, Keyring: testKeyring(t), Replica: "r1", Prefix: prefix})
	require.NoError(t, err)
	require.NoError(t, s.Ping(t.Context()))
	require.NoError(t, renewOnce(s))
	require.Equal(t, Partitions, kept(s))
	_, err = s.ReadWAL(t.Context(), 10)
	require.NoError(t, err)
	m.Close()
	require.ErrorIs(t, s.Ping(t.Context()), sessionstore.ErrAway)
}

var discard = slog.New(slog.DiscardHandler)

// Through Sentinel the same client works: connections to sentinels are not taken for connections to a server.
func TestConnect_findsThePrimaryThroughSentinel(t *testing.T) {
	s, err := rig.StartSentinel(t.Context(), t.TempDir(), rig.RedisOptions{})
	rigtest.Require(t, "redis-server", err)
	t.Cleanup(s.Kill)
	prefix := testPrefix()
	c := connect(t, s.URL(), prefix)
	require.NoError(t, c.Set(t.Context(), "x", "1", 0).Err())
	direct := connect(t, "redis://"+s.Servers[0].Addr, prefix)
	require.NoError(t, direct.Ping(t.Context()).Err())
	require.NotEmpty(t, instOf(t, c, prefix, 0))
	require.Equal(t, instOf(t, direct, prefix, 0), instOf(t, c, prefix, 0))
}
