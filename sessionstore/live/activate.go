package live

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/sessionstore"
)

// Activate reopens an ended session of the user: its numbering goes on, its end is taken back, its name, questions and
// counters are as they were. It has no socket yet, so its window runs from now; connections enter it with Open. A
// session that is active already is left as it is.
//
// While another session of the user is active the error is an *ActiveError that names it; with endCurrent that one is
// ended in the same step, with reason "replaced" and this one as next, and a running answer of it is kept as far as it
// was shown. Errors: ErrNotFound (no such session of this user in Redis: the caller may Rebuild it, ended, and call
// again), *ActiveError, ErrAway.
func (s *Store) Activate(ctx context.Context, userID, sid string, endCurrent bool) (sessionstore.Opened, error) {
	out, err := s.activate(ctx, userID, sid, endCurrent)
	if err != nil {
		return out, fmt.Errorf("activate session %s: %w", sid, err)
	}
	return out, nil
}

// ending is what activate.lua needs to end the session that the user is in.
type ending struct {
	reason                string
	ended                 sealedEvent
	token, attempt, chunk string // of the running answer as read
	calls                 string // booked and ended
	partial               sealedEvent
	spent                 sessionstore.Spent
}

func (s *Store) activate(ctx context.Context, userID, sid string, endCurrent bool) (sessionstore.Opened, error) {
	none := sessionstore.Opened{}
	if part, ok := PartitionOf(sid); !ok || part != Partition(userID) {
		return none, sessionstore.ErrNotFound
	}
	p := s.parts[Partition(userID)]
	f, err := s.facts(ctx, sid)
	if err != nil {
		return none, err
	}
	cur, err := s.client.Get(ctx, p.user(userID)).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return none, redisError(err)
	}
	started := sealEvent(f.key, sessionstore.Event{
		Header: sessionstore.Header{
			Type: sessionstore.TypeStarted, SessionID: sid, MessageID: uuid.NewString(), Sender: sessionstore.SenderSystem,
		},
		Body: sessionstore.Body{Metadata: map[string]string{"user_id": userID, sessionstore.MetaReopened: "true"}},
	})
	var end ending
	for range maxRounds {
		r, err := s.run(ctx, s.sc.activate, s.activateKeys(p, sid, userID, cur), append(s.args(p, sid, 20),
			userID, cur, p.channel(cur), endCurrent, s.o.Window.Milliseconds(), started.id, started.h, started.c,
			end.ended.id, end.ended.h, end.ended.c, end.reason, end.token, end.attempt, end.chunk,
			end.partial.id, end.partial.h, end.partial.c, cost(end.spent), end.calls)...)
		if err != nil {
			return none, err
		}
		switch r.code() {
		case "RETRY":
			cur, end = r.str(1), ending{}
		case "SETTLE":
			err = s.Settle(ctx, cur)
		case "ENDING":
			end = ending{reason: r.str(2)}
			end.ended, err = s.endEvent(ctx, cur, end.reason, sid)
		case "RUNS":
			err = s.readEnding(ctx, p, cur, &end)
		case "ACTIVE":
			return none, &sessionstore.ActiveError{SessionID: r.str(1)}
		default:
			ses, err := s.parseSession(sid, r.list(1).fields())
			return sessionstore.Opened{Session: ses, Resumed: true}, err
		}
		if err != nil && !errors.Is(err, sessionstore.ErrNotFound) { // gone meanwhile: the script sees it, too
			return none, err
		}
	}
	return none, errRounds
}

// readEnding reads the answer that runs in a session that is to be ended, and seals what was shown of it.
func (s *Store) readEnding(ctx context.Context, p partition, sid string, end *ending) error {
	k := p.session(sid)
	r, err := s.run(ctx, s.sc.running, []string{k.gen(), k.chunks(), k.hash()})
	if err != nil {
		return err
	}
	g := r.list(1).fields()
	end.token, end.attempt, end.chunk = g["tok"], g["attempt"], g["chunk"]
	end.calls = numberOr0(g["calls"]) + " " + numberOr0(g["sn"])
	end.partial, end.spent, err = s.partial(ctx, sid, g, r.list(2), sessionstore.TypeEnded)
	return err
}

func (s *Store) activateKeys(p partition, sid, userID, cur string) []string {
	if cur == "" {
		cur = sid // its keys are not used, but must be in the partition
	}
	return append(append(p.eventKeys(sid, userID), p.session(cur).all()...), p.beat(), p.spent(userID))
}

// numberOr0 is a field that may be absent, as activate.lua compares it.
func numberOr0(field string) string {
	if field == "" {
		return "0"
	}
	return field
}
