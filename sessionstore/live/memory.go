package live

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/sessionstore"
)

// Remember notes in every partition since when Redis keeps what is written there, where that is not noted yet. It is to
// be called at the start and now and then: after a FLUSHALL, or on a Redis without its data, the time begins again.
func (s *Store) Remember(ctx context.Context) error {
	now, err := s.client.Time(ctx).Result()
	if err != nil {
		return fmt.Errorf("remember: %w", redisError(err))
	}
	_, err = s.client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		for _, p := range s.parts {
			pipe.SetNX(ctx, p.born(), now.UnixMilli(), 0)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remember: %w", redisError(err))
	}
	return nil
}

// MayHaveLost says whether a session that Redis does not have may be one that it has lost. It may not if Redis has kept
// everything for longer than a session stays after its last use, ended or not: then one that is missing has ended.
func (s *Store) MayHaveLost(ctx context.Context, sid string) (bool, error) {
	p, err := s.part(sid)
	if err != nil {
		return false, nil //nolint:nilerr // what is no session id was never there
	}
	text, err := s.client.Get(ctx, p.born()).Result()
	if errors.Is(err, redis.Nil) {
		return true, nil
	}
	if err != nil {
		return true, fmt.Errorf("memory of redis: %w", redisError(err))
	}
	now, err := s.client.Time(ctx).Result()
	if err != nil {
		return true, fmt.Errorf("memory of redis: %w", redisError(err))
	}
	born, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return true, fmt.Errorf("memory of redis: %w: %w", sessionstore.ErrAway, err)
	}
	stays := s.o.Presence + s.o.Window + endedTTL
	return now.Sub(time.UnixMilli(born)) <= stays, nil
}
