package live

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/sessionstore"
)

// Check looks whether every Redis primary is one that this package can rely on, and returns what is not, as sentences
// for an operator: its version is 7.0 or newer, it never evicts keys, it keeps what it acknowledged on disk. None of it
// keeps a replica from working, so it is to be reported, not to stop at. What the user may not ask is passed over. The
// error, ErrAway, says that a primary did not answer; what was found out about the others is returned beside it.
func (s *Store) Check(ctx context.Context) ([]string, error) {
	var problems []string
	var err error
	switch c := s.client.(type) {
	case *redis.ClusterClient:
		var mu sync.Mutex // guards problems: the nodes are asked at once
		err = c.ForEachMaster(ctx, func(ctx context.Context, node *redis.Client) error {
			found, err := checkNode(ctx, node)
			mu.Lock()
			defer mu.Unlock()
			for _, p := range found {
				problems = append(problems, node.Options().Addr+": "+p)
			}
			return err
		})
		if !s.sharded {
			problems = append(problems, "redis is a cluster, but channels are not sharded: every node gets every message")
		}
	default:
		problems, err = checkNode(ctx, c)
		if s.sharded {
			problems = append(problems, "channels are sharded, but redis is no cluster")
		}
	}
	slices.Sort(problems)
	if err != nil {
		return problems, fmt.Errorf("check redis: %w", err)
	}
	return problems, nil
}

// asker is a client of one server.
type asker interface {
	Info(ctx context.Context, sections ...string) *redis.StringCmd
	ConfigGet(ctx context.Context, parameter string) *redis.MapStringStringCmd
}

func checkNode(ctx context.Context, n asker) ([]string, error) {
	info := make(map[string]string)
	for _, section := range []string{"server", "memory", "persistence"} { // Redis 6 knows one section at a time
		text, err := n.Info(ctx, section).Result()
		if err != nil {
			if isRefused(err) {
				continue
			}
			return nil, redisError(err)
		}
		for line := range strings.Lines(text) {
			if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
				info[k] = v
			}
		}
	}
	var problems []string
	if v := info["redis_version"]; v != "" && !atLeast7(v) {
		problems = append(problems, "redis "+v+" is older than 7.0: a full one refuses also what would free memory")
	}
	policy, err := setting(ctx, n, info, "maxmemory_policy", "maxmemory-policy")
	if err != nil {
		return problems, err
	}
	if policy != "" && policy != "noeviction" {
		problems = append(problems, "maxmemory-policy is "+policy+", must be noeviction: a full redis would drop sessions")
	}
	aof, err := setting(ctx, n, info, "aof_enabled", "appendonly")
	if err != nil {
		return problems, err
	}
	if aof == "0" || aof == "no" {
		problems = append(problems, "appendonly is off: a restart loses what was acknowledged and is not in MongoDB yet")
	}
	return problems, nil
}

// setting returns what INFO says under one name, else what CONFIG says under another one, ” if neither may be asked.
func setting(ctx context.Context, n asker, info map[string]string, field, parameter string) (string, error) {
	if v := info[field]; v != "" {
		return v, nil
	}
	got, err := n.ConfigGet(ctx, parameter).Result()
	if err != nil {
		if isRefused(err) {
			return "", nil
		}
		return "", redisError(err)
	}
	return got[parameter], nil
}

// isRefused tells that the server has answered, and not that it cannot now.
func isRefused(err error) bool {
	var refused redis.Error
	return errors.As(err, &refused) && !errors.Is(redisError(err), sessionstore.ErrAway)
}

func atLeast7(version string) bool {
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)
	return err != nil || n >= 7
}
