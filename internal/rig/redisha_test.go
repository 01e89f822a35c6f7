package rig_test

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/internal/rig/rigtest"
)

func TestSentinel_promotesTheReplicaAndTakesTheOldPrimaryBack(t *testing.T) {
	s, err := rig.StartSentinel(t.Context(), t.TempDir(), rig.RedisOptions{})
	rigtest.Require(t, "redis-server", err)
	defer s.Kill()
	first, err := s.Primary(t.Context())
	require.NoError(t, err)
	require.Zero(t, first)
	s.Servers[0].Kill()
	require.Eventually(t, func() bool {
		now, err := s.Primary(t.Context())
		return err == nil && now == 1 && redisDo(t, s.Servers[1].Addr, "SET a 1") == "+OK"
	}, 15*time.Second, 50*time.Millisecond)
	require.NoError(t, s.Rejoin(t.Context(), 0))
	require.Equal(t, "1", redisDo(t, s.Servers[0].Addr, "GET a"))
}

func TestRedisCluster_promotesAReplica(t *testing.T) {
	nodes, err := rig.StartRedisCluster(t.Context(), t.TempDir(), 1, rig.RedisOptions{})
	rigtest.Require(t, "redis-server", err)
	for _, p := range nodes {
		defer p.Kill()
	}
	nodes[0].Kill()
	require.Eventually(t, func() bool {
		for i := range 20 { // keys on all primaries
			if _, err := rig.RedisCLI(t.Context(), nodes[1].Addr, "-c", "set", strconv.Itoa(i), "1"); err != nil {
				return false
			}
		}
		return true
	}, 20*time.Second, 50*time.Millisecond)
}
