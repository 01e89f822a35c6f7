package live

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/sessionstore"
)

// Top is how far a session has got.
type Top struct {
	sessionstore.Position       // of the newest durable event
	Durable               int64 // everything up to here is in MongoDB
}

// Positions returns the tops of sessions, in few round trips. Sessions that Redis does not have are left out. It changes
// nothing: a top below what was delivered means that Redis has lost its tail, and Read begins the new epoch. An error
// is about those sessions that could not be asked; the others are returned beside it.
func (s *Store) Positions(ctx context.Context, sids []string) (map[string]Top, error) {
	out := make(map[string]Top, len(sids))
	var errs []error
	for from := 0; from < len(sids); from += maxBatchCalls {
		batch := sids[from:min(from+maxBatchCalls, len(sids))]
		cmds := make(map[string]*redis.SliceCmd, len(batch))
		pipe := s.client.Pipeline()
		for _, sid := range batch {
			if p, err := s.part(sid); err == nil {
				cmds[sid] = pipe.HMGet(ctx, p.session(sid).hash(), "e", "s", "d")
			}
		}
		if len(cmds) == 0 {
			continue
		}
		execute(ctx, pipe)
		for sid, cmd := range cmds {
			v, err := cmd.Result()
			if err != nil {
				errs = append(errs, fmt.Errorf("position of session %s: %w", sid, redisError(err)))
				continue
			}
			epoch, _ := v[0].(string)
			if epoch == "" {
				continue
			}
			out[sid] = Top{
				Position: sessionstore.Position{Epoch: epoch, Seq: number(v[1])},
				Durable:  number(v[2]),
			}
		}
	}
	return out, errors.Join(errs...)
}

// number reads a field that holds a decimal number, 0 if it is absent.
func number(v any) int64 {
	text, _ := v.(string)
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}
