package live

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/real-rm/chatbox/sessionstore"
)

// keptDelay is after which time a session that may not expire yet is looked at again.
const keptDelay = 5 * time.Second

// End ends the session now, for the given reason; next, if not empty, is the session that follows. A running answer
// is cut. To end a session that has ended is no error. Errors: ErrNotFound, ErrAway.
func (s *Store) End(ctx context.Context, sid, reason, next string) error {
	if _, err := s.Cut(ctx, endedEvent(sid, reason, next), nil); err != nil && !errors.Is(err, sessionstore.ErrEnded) {
		return fmt.Errorf("end: %w", err)
	}
	return nil
}

func endedEvent(sid, reason, next string) sessionstore.Event {
	meta := map[string]string{sessionstore.MetaReason: reason}
	if next != "" {
		meta[sessionstore.MetaNext] = next
	}
	return sessionstore.Event{
		Header: sessionstore.Header{
			Type: sessionstore.TypeEnded, SessionID: sid, MessageID: uuid.NewString(), Sender: sessionstore.SenderSystem,
		},
		Body: sessionstore.Body{Metadata: meta},
	}
}

func (s *Store) endEvent(ctx context.Context, sid, reason, next string) (sealedEvent, error) {
	key, err := s.DataKey(ctx, sid)
	if err != nil {
		return sealedEvent{}, err
	}
	return sealEvent(key, endedEvent(sid, reason, next)), nil
}

// expire ends the session if its window is over and nothing keeps it: no answer runs, no person holds it, no request
// for help waits. It is for keepers: the deadline that brought them here is checked again.
func (s *Store) expire(ctx context.Context, sid string) error {
	if err := s.expireNow(ctx, sid); err != nil {
		return fmt.Errorf("expire session %s: %w", sid, err)
	}
	return nil
}

func (s *Store) expireNow(ctx context.Context, sid string) error {
	p, err := s.part(sid)
	if err != nil {
		return err
	}
	var f facts
	var e sealedEvent
	f, err = s.facts(ctx, sid)
	switch {
	case err == nil:
		e = sealEvent(f.key, endedEvent(sid, "expired", ""))
	case !errors.Is(err, sessionstore.ErrNotFound): // absent: the script takes it off the lists
		return err
	}
	for range maxRounds {
		r, err := s.run(ctx, s.sc.expire, append(p.eventKeys(sid, f.user), p.beat()), append(s.args(p, sid, 5),
			e.id, e.h, e.c, s.o.Window.Milliseconds(), keptDelay.Milliseconds())...)
		if err != nil {
			return err
		}
		if r.code() != "SETTLE" {
			return nil
		}
		if err := s.Settle(ctx, sid); err != nil {
			return err
		}
	}
	return errRounds
}
