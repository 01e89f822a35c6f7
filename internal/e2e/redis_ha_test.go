//go:build faults

package e2e

import (
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/internal/rig/rigtest"
)

// failoverLimit is how soon after the death of a primary new messages are accepted.
const failoverLimit = 10 * time.Second

// F10. The primary dies, again and again; the sentinels promote its replica. New messages are accepted within 10 s.
// What was acknowledged and not yet replicated comes back from the clients, under the same ids.
func TestSentinel_failover(t *testing.T) {
	s, err := rig.StartSentinel(t.Context(), t.TempDir(), rig.RedisOptions{})
	rigtest.Require(t, "redis-server", err)
	t.Cleanup(s.Kill)
	c := start(t, options{redisURL: s.URL(), chatbox: unlimited})
	cr := c.talk(9, nil)
	probes := c.probes(3, func(string) bool { return true })
	cr.known()
	for range inCI(3, 10) {
		old, err := s.Primary(t.Context())
		require.NoError(t, err)
		s.Servers[old].Kill()
		took := c.accepted(probes, failoverLimit)
		now, err := s.Primary(t.Context())
		require.NoError(t, err)
		require.NotEqual(t, old, now, "there was no failover")
		t.Logf("new messages after %v", took.Round(10*time.Millisecond))
		cr.progress(9, 30*time.Second, "not everybody goes on")
		require.NoError(t, s.Rejoin(t.Context(), old))
	}
	cr.check(probes...)
}

// F11. A primary whose replica does not answer any more accepts nothing (min-replicas-to-write), so that nothing is
// acknowledged that a failover would take back. Users are told, and it heals by itself.
func TestRedis_primaryWithoutItsReplicaAcceptsNothing(t *testing.T) {
	c := start(t, options{replicas: 2, chatbox: unlimited, redisArgs: []string{"--min-replicas-to-write", "0"}})
	_, port, err := net.SplitHostPort(c.redis.Addr)
	require.NoError(t, err)
	replica, err := rig.StartRedis(t.Context(), filepath.Join(c.dir, "redis-replica"), rig.RedisOptions{Args: []string{"--replicaof", "127.0.0.1 " + port}})
	require.NoError(t, err)
	t.Cleanup(replica.Kill)
	require.Eventually(t, func() bool {
		info, err := c.client.Info(t.Context(), "replication").Result()
		return err == nil && strings.Contains(info, "state=online")
	}, 10*time.Second, 20*time.Millisecond)
	require.NoError(t, c.client.ConfigSet(t.Context(), "min-replicas-max-lag", "2").Err())
	require.NoError(t, c.client.ConfigSet(t.Context(), "min-replicas-to-write", "1").Err())
	cr := c.talk(4, nil)
	probe := c.probes(1, func(string) bool { return true })[0]

	require.NoError(t, replica.Signal(syscall.SIGSTOP))
	require.Eventually(t, func() bool {
		err := c.client.Set(t.Context(), "probe", "1", 0).Err()
		return err != nil && strings.HasPrefix(err.Error(), "NOREPLICAS")
	}, 15*time.Second, 20*time.Millisecond, "the primary goes on alone")
	u := newUser("ann", c.token("ann"))
	assert.ErrorContains(t, u.connect(t.Context(), c.lb()), "503", "no session is made")
	sleepFor(t.Context(), 200*time.Millisecond) // acknowledgements from before are on their way
	before := make([]int, len(cr.users))
	for i, u := range cr.users {
		u.mu.Lock()
		before[i] = len(u.acked)
		u.mu.Unlock()
	}
	id, err := probe.send(t.Context(), fmt.Sprintf("!tokens %d 2", crowdWords))
	require.NoError(t, err)
	require.NoError(t, probe.until(t.Context(), 10*time.Second, "being told", func() bool { return probe.refusals(id) > 0 }))
	probe.mu.Lock()
	assert.Equal(t, "STORE_UNAVAILABLE", probe.last("error").Error.Code)
	assert.True(t, probe.last("error").Error.Recoverable)
	assert.Zero(t, probe.acked[id])
	probe.mu.Unlock()
	for i, u := range cr.users {
		u.mu.Lock()
		assert.Len(t, u.acked, before[i], "%s has an acknowledgement that a failover would take back", u.id)
		u.mu.Unlock()
	}
	assert.ErrorContains(t, newUser("bob", c.token("bob")).connect(t.Context(), c.lb()), "503", "it still accepts nothing")
	require.NoError(t, replica.Signal(syscall.SIGCONT))
	cr.progress(4, 10*time.Second, "did not heal")
	require.NoError(t, probe.resend(t.Context()))
	require.NoError(t, probe.untilAnswered(t.Context(), id, 10*time.Second))
	cr.check(probe)
}

// F12. In a cluster of three primaries with replicas one primary dies: new messages within 10 s, also in its
// partitions. Then slots with sessions in them move to another node under load. Users see no MOVED, no ASK.
func TestRedisCluster_primaryDiesAndSlotsMove(t *testing.T) {
	nodes, err := rig.StartRedisCluster(t.Context(), t.TempDir(), 1, rig.RedisOptions{})
	rigtest.Require(t, "redis-server", err)
	t.Cleanup(func() {
		for _, p := range nodes {
			p.Kill()
		}
	})
	c := start(t, options{redisURL: rig.RedisClusterURL(nodes), chatbox: unlimited})
	cc := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs(nodes)})
	t.Cleanup(func() { _ = cc.Close() })
	cr := c.talk(12, nil)
	cr.known()
	homes := func() map[string]string {
		cc.ReloadState(t.Context())
		out := map[string]string{}
		for _, u := range cr.users {
			node, err := cc.MasterForKey(t.Context(), "{"+u.session()[:3]+"}")
			if err == nil {
				out[u.id] = node.Options().Addr
			}
		}
		return out
	}

	victim := homes()[cr.users[0].id]
	probes := c.probes(3, func(sid string) bool {
		node, err := cc.MasterForKey(t.Context(), "{"+sid[:3]+"}")
		return err == nil && node.Options().Addr == victim
	})
	for _, p := range nodes {
		if p.Addr == victim {
			p.Kill()
		}
	}
	t.Logf("new messages in the partitions of the dead primary after %v", c.accepted(probes, failoverLimit).Round(10*time.Millisecond))
	require.Eventually(t, func() bool { now := homes()[cr.users[0].id]; return now != "" && now != victim }, 10*time.Second, 50*time.Millisecond, "there was no failover")
	cr.progress(24, 30*time.Second, "not everybody goes on")

	before := homes()
	from, to, count := cheapestMove(t, cc, cr.users, victim)
	began := time.Now()
	out, err := rig.RedisCLI(t.Context(), from, "--cluster", "reshard", from, "--cluster-from", nodeID(t, from), "--cluster-to", nodeID(t, to),
		"--cluster-slots", strconv.Itoa(inCI(count, 5461)), "--cluster-yes", "--cluster-timeout", "5000")
	require.NoError(t, err, out[max(0, len(out)-500):])
	moved := 0
	require.Eventually(t, func() bool {
		moved = 0
		for user, home := range homes() {
			if home != before[user] {
				moved++
			}
		}
		return moved > 0
	}, 10*time.Second, 100*time.Millisecond, "no slot with a session in it has moved")
	t.Logf("%d slots with %d of %d sessions moved in %v", inCI(count, 5461), moved, len(cr.users), time.Since(began).Round(10*time.Millisecond))
	cr.progress(12, failoverLimit, "did not go on after the move")
	cr.check(probes...)
	for _, u := range cr.users {
		u.mu.Lock()
		for _, f := range u.frames {
			if f.Type == "error" {
				assert.Equal(t, "STORE_UNAVAILABLE", f.Error.Code, "%s was shown something else", u.id)
			}
		}
		u.mu.Unlock()
	}
}

// cheapestMove picks two primaries, and the number of slots to move from the first one's lowest so that at least
// one of the users' sessions is among them.
func cheapestMove(t *testing.T, cc *redis.ClusterClient, users []*user, dead string) (from, to string, count int) {
	t.Helper()
	ranges, err := cc.ClusterSlots(t.Context()).Result() //nolint:staticcheck // simpler than shards, and what the client itself asks for
	require.NoError(t, err)
	for _, u := range users {
		slot, err := cc.ClusterKeySlot(t.Context(), "{"+u.session()[:3]+"}").Result()
		require.NoError(t, err)
		for _, r := range ranges {
			if n := int(slot) - r.Start + 1; r.Start <= int(slot) && int(slot) <= r.End && (count == 0 || n < count) {
				from, count = r.Nodes[0].Addr, n
			}
		}
	}
	for _, r := range ranges {
		if addr := r.Nodes[0].Addr; addr != from && addr != dead {
			to = addr
		}
	}
	require.NotEmpty(t, from)
	require.NotEmpty(t, to)
	return from, to, max(count, 100)
}

func nodeID(t *testing.T, addr string) string {
	t.Helper()
	out, err := rig.RedisCLI(t.Context(), addr, "cluster", "myid")
	require.NoError(t, err)
	return out
}

// probes connects n users whose sessions are wanted, one to each replica in turn.
func (c *cluster) probes(n int, wanted func(sid string) bool) []*user {
	c.t.Helper()
	var out []*user
	for i := 0; len(out) < n; i++ {
		require.Less(c.t, i, 50, "no session is where it is wanted")
		id := fmt.Sprintf("probe-%d", i)
		u := newUser(id, c.token(id))
		u.lossy = true
		require.NoError(c.t, u.connect(c.t.Context(), c.direct(i)))
		require.NoError(c.t, u.untilLive(c.t.Context()))
		if wanted(u.session()) {
			out = append(out, u)
			continue
		}
		u.leave()
	}
	return out
}

// accepted has each probe send a message, again and again until it is acknowledged, and returns how long the last
// one took. Then it waits until all are answered.
func (c *cluster) accepted(probes []*user, limit time.Duration) time.Duration {
	c.t.Helper()
	start := time.Now()
	ids := make([]string, len(probes))
	for i, u := range probes {
		ids[i], _ = u.send(c.t.Context(), fmt.Sprintf("!tokens %d 2", crowdWords))
	}
	for i, u := range probes {
		require.Eventually(c.t, func() bool {
			u.mu.Lock()
			acked := u.acked[ids[i]] > 0
			u.mu.Unlock()
			switch {
			case acked:
			case dead(u):
				if u.connect(c.t.Context(), c.direct(i)) == nil && u.untilLive(c.t.Context()) == nil {
					_ = u.resend(c.t.Context())
				}
			default:
				_ = u.resend(c.t.Context())
			}
			return acked
		}, limit, 200*time.Millisecond, "%s: no message was accepted in time", u.id)
	}
	took := time.Since(start)
	for i, u := range probes {
		require.NoError(c.t, u.untilAnswered(c.t.Context(), ids[i], 30*time.Second))
		u.mu.Lock()
		assert.Empty(c.t, u.faults, u.id)
		u.mu.Unlock()
	}
	return took
}

func (u *user) session() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.sessionID
}

func addrs(procs []*rig.Proc) []string {
	out := make([]string, len(procs))
	for i, p := range procs {
		out[i] = p.Addr
	}
	return out
}
