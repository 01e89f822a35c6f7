package live

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/sessionstore"
)

// Known returns the seq under which Redis knows an event by its idempotency key. That it knows none does not say that
// there is none: MongoDB may have it. Errors: ErrAway.
func (s *Store) Known(ctx context.Context, sid string, sender sessionstore.Sender, messageID string) (seq int64, known bool, err error) {
	p, err := s.part(sid)
	if err != nil {
		return 0, false, nil //nolint:nilerr // what is no session id is known to nobody
	}
	seq, err = s.client.HGet(ctx, p.session(sid).ids(), sessionstore.MessageKey(sender, messageID)).Int64()
	if errors.Is(err, redis.Nil) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look up event in session %s: %w", sid, redisError(err))
	}
	return seq, true, nil
}

// Find returns an event by its idempotency key, if it is still in the log. Errors: ErrAway, ErrNotFound, ErrUnsealed.
func (s *Store) Find(ctx context.Context, sid string, sender sessionstore.Sender, messageID string) (ev sessionstore.Event, found bool, err error) {
	seq, known, err := s.Known(ctx, sid, sender, messageID)
	if err != nil || !known {
		return ev, false, err
	}
	events, _, err := s.Before(ctx, sid, seq+1, 1)
	if err != nil || len(events) == 0 || events[0].Seq != seq {
		return ev, false, err
	}
	return events[0], true, nil
}
