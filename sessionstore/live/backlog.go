package live

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Backlog returns what waits for MongoDB in the partitions that this replica keeps: entries of their WALs, the age of
// the oldest one by Redis' clock, and how many dead letters they have. All replicas together see every partition once,
// but for the moments in which one is handed over.
func (s *Store) Backlog(ctx context.Context) (entries int64, oldest time.Duration, dead int64, err error) {
	held := s.pl.keeper.holding()
	calls := make([]*invocation, 0, len(held))
	for p, l := range held {
		keys := s.parts[p]
		c, err := s.pl.invocation(ctx, s.pl.sc.backlog, []string{keys.keeper(), keys.wal(), keys.dead()}, l.token)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("backlog: %w", err)
		}
		calls = append(calls, c)
	}
	if len(calls) == 0 {
		return 0, 0, 0, nil
	}
	invoke(ctx, s.client, calls)
	for _, c := range calls {
		r, err := checked(s.pl.sc.backlog, c.val, c.err)
		if err != nil {
			return 0, 0, 0, fmt.Errorf("backlog: %w", err)
		}
		if r.code() == "OK" {
			entries, dead = entries+r.num(1), dead+r.num(3)
			oldest = max(oldest, time.Duration(r.num(2))*time.Millisecond)
		}
	}
	return entries, oldest, dead, nil
}

// MemoryUsed returns the part of its maxmemory that the fullest Redis primary uses, 0 where no limit is set or known.
func (s *Store) MemoryUsed(ctx context.Context) (float64, error) {
	c, cluster := s.client.(*redis.ClusterClient)
	if !cluster {
		used, err := memoryUsed(ctx, s.client)
		return used, redisError(err)
	}
	var mu sync.Mutex // guards most: the nodes are asked at once
	var most float64
	err := c.ForEachMaster(ctx, func(ctx context.Context, n *redis.Client) error {
		used, err := memoryUsed(ctx, n)
		mu.Lock()
		defer mu.Unlock()
		most = max(most, used)
		return err
	})
	return most, redisError(err)
}

func memoryUsed(ctx context.Context, n redis.Cmdable) (float64, error) {
	info, err := n.Info(ctx, "memory").Result()
	if err != nil {
		if isRefused(err) {
			return 0, nil
		}
		return 0, err
	}
	var used, limit float64
	for line := range strings.Lines(info) {
		switch k, v, _ := strings.Cut(strings.TrimSpace(line), ":"); k {
		case "used_memory":
			used, _ = strconv.ParseFloat(v, 64)
		case "maxmemory":
			limit, _ = strconv.ParseFloat(v, 64)
		}
	}
	if limit <= 0 {
		return 0, nil
	}
	return used / limit, nil
}
