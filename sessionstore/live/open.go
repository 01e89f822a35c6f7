package live

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/sessionstore"
)

// maxRounds bounds how often a call looks again because another one came between. Each round, somebody else has got
// on, so it is never reached but by a defect.
const maxRounds = 64

var errRounds = errors.New("session does not come to rest")

// newcomer is what a session is made of, if one has to be made.
type newcomer struct {
	sid     string
	wrapped []byte
	started sealedEvent
	ended   sealedEvent // of the session before it
}

// Open puts a connection into the user's active session, or makes one. However many replicas do so at once for one
// user, they all get the same session. Errors: *ActiveError (NewOnly), ErrNotFound (NoNew), ErrAway.
func (s *Store) Open(ctx context.Context, r sessionstore.OpenRequest) (sessionstore.Opened, error) {
	out, err := s.enter(ctx, r)
	if err != nil {
		return out, fmt.Errorf("open session: %w", err)
	}
	return out, nil
}

func (s *Store) enter(ctx context.Context, r sessionstore.OpenRequest) (sessionstore.Opened, error) {
	part := Partition(r.UserID)
	p := s.parts[part]
	cur, err := s.client.Get(ctx, p.user(r.UserID)).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return sessionstore.Opened{}, redisError(err)
	}
	n := newcomer{sid: newSessionID(part)}
	for range maxRounds {
		if cur == "" && r.NoNew {
			return sessionstore.Opened{}, sessionstore.ErrNotFound
		}
		if cur == "" && n.wrapped == nil {
			if err := s.make(&n, r); err != nil {
				return sessionstore.Opened{}, err
			}
		}
		rep, err := s.run(ctx, s.sc.open, s.openKeys(p, cur, r.UserID, n.sid), s.openArgs(p, cur, r, n)...)
		if err != nil {
			return sessionstore.Opened{}, err
		}
		switch rep.code() {
		case "RETRY":
			cur, n.ended = rep.str(1), sealedEvent{}
		case "NEW":
			if r.NoNew {
				return sessionstore.Opened{}, sessionstore.ErrNotFound
			}
			err = s.make(&n, r)
		case "TAKEN":
			n = newcomer{sid: newSessionID(part)}
		case "EXPIRED":
			if err = s.make(&n, r); err == nil {
				n.ended, err = s.endEvent(ctx, cur, "expired", n.sid)
			}
		case "SETTLE":
			err = s.Settle(ctx, cur)
		case "ACTIVE":
			return sessionstore.Opened{}, &sessionstore.ActiveError{SessionID: rep.str(1)}
		case "CREATED":
			return s.opened(n.sid, rep, r, n.sid)
		default:
			return s.opened(cur, rep, r, n.sid)
		}
		if err != nil {
			return sessionstore.Opened{}, err
		}
	}
	return sessionstore.Opened{}, errRounds
}

// opened reads `CREATED|RESUMED hash [recovered]`. A session of the id that this call proposed was made by it, also
// if the reply to that was lost.
func (s *Store) opened(sid string, rep reply, r sessionstore.OpenRequest, proposed string) (sessionstore.Opened, error) {
	ses, err := s.parseSession(sid, rep.list(1).fields())
	if err != nil {
		return sessionstore.Opened{}, err
	}
	return sessionstore.Opened{
		Session:   ses,
		Created:   sid == proposed,
		Resumed:   sid == r.Want,
		Recovered: rep.str(2) == "1",
		Sockets:   max(1, int(rep.num(3))),
	}, nil
}

// make fills in a data key and the first event of a new session.
func (s *Store) make(n *newcomer, r sessionstore.OpenRequest) error {
	if n.wrapped != nil {
		return nil
	}
	key, wrapped, err := s.keyring.NewDataKey(n.sid)
	if err != nil {
		return err
	}
	n.wrapped = wrapped
	n.started = sealEvent(key, sessionstore.Event{
		Header: sessionstore.Header{
			Type: sessionstore.TypeStarted, SessionID: n.sid, MessageID: uuid.NewString(),
			Sender: sessionstore.SenderSystem, ModelID: r.ModelID,
		},
		Body: sessionstore.Body{Metadata: map[string]string{"user_id": r.UserID, "name": r.UserName}},
	})
	return nil
}

func (s *Store) openKeys(p partition, cur, userID, sid string) []string {
	k := p.session(sid)
	if cur == "" {
		cur = sid // its keys are not used, but must be in the partition
	}
	return append(p.eventKeys(cur, userID), k.hash(), k.log(), k.ids(), k.conns(), p.beat())
}

func (s *Store) openArgs(p partition, cur string, r sessionstore.OpenRequest, n newcomer) []any {
	newOnly := r.NewOnly && cur != n.sid // this very call has made that one, and the reply was lost
	return append(s.args(p, cur, 20),
		cur, r.Want, r.Position.Epoch, r.Position.Seq, r.ConnID,
		s.o.Presence.Milliseconds(), s.o.Window.Milliseconds(), newOnly,
		r.UserID, r.UserName, n.sid, p.channel(n.sid), n.wrapped, r.ModelID,
		n.started.id, n.started.h, n.started.c, n.ended.id, n.ended.h, n.ended.c)
}

// Conn names a socket.
type Conn struct{ SessionID, ConnID string }

// Touch renews the leases of this replica's sockets. Those that Redis does not know any more are returned: who still
// has them opens them again. An error is about those calls that failed; the others have their effect.
func (s *Store) Touch(ctx context.Context, conns []Conn) (missing []Conn, err error) {
	bySession := make(map[string][]any)
	for _, c := range conns {
		if _, ok := PartitionOf(c.SessionID); !ok {
			missing = append(missing, c)
			continue
		}
		bySession[c.SessionID] = append(bySession[c.SessionID], c.ConnID)
	}
	form, err := s.usable(ctx, s.sc.touch)
	if err != nil {
		return missing, fmt.Errorf("touch: %w", err)
	}
	calls := make([]*invocation, 0, len(bySession))
	sids := make([]string, 0, len(bySession))
	for sid, ids := range bySession {
		part, _ := PartitionOf(sid)
		p := s.parts[part]
		calls = append(calls, &invocation{script: form, keys: p.presenceKeys(sid),
			args: append([]any{sid, s.o.Presence.Milliseconds(), s.o.Window.Milliseconds()}, ids...)})
		sids = append(sids, sid)
	}
	var errs []error
	for from := 0; from < len(calls); from += maxBatchCalls {
		to := min(from+maxBatchCalls, len(calls))
		invoke(ctx, s.client, calls[from:to])
		for i, c := range calls[from:to] {
			r, err := checked(s.sc.touch, c.val, c.err)
			if err != nil {
				errs = append(errs, fmt.Errorf("touch session %s: %w", sids[from+i], err))
				continue
			}
			for _, id := range r.list(1) {
				if id, ok := id.(string); ok {
					missing = append(missing, Conn{sids[from+i], id})
				}
			}
		}
	}
	return missing, errors.Join(errs...)
}

// Gone removes a closed socket. The last one of a session starts its window.
func (s *Store) Gone(ctx context.Context, c Conn) error {
	_, err := s.remove(ctx, c.SessionID, c.ConnID)
	return err
}

// remove removes sockets and returns how many are left.
func (s *Store) remove(ctx context.Context, sid string, conns ...any) (left int, err error) {
	p, err := s.part(sid)
	if err != nil {
		return 0, err
	}
	r, err := s.run(ctx, s.sc.gone, p.presenceKeys(sid), append([]any{sid, s.o.Window.Milliseconds()}, conns...)...)
	if err != nil {
		return 0, fmt.Errorf("remove sockets from session %s: %w", sid, err)
	}
	return int(r.num(1)), nil
}

// Bury removes the sockets that dead replicas have left in a session, whose leases would take a while to lapse, and
// returns how many sockets remain. A replica that lives and is thought dead opens its own again when Touch names them.
func (s *Store) Bury(ctx context.Context, sid string) (sockets int, err error) {
	p, err := s.part(sid)
	if err != nil {
		return 0, err
	}
	pipe := s.client.Pipeline()
	living, conns := pipe.ZRange(ctx, s.parts[0].replicas(), 0, -1), pipe.ZRange(ctx, p.session(sid).conns(), 0, -1)
	if _, err := pipe.Exec(ctx); err != nil {
		return 0, fmt.Errorf("read sockets of session %s: %w", sid, redisError(err))
	}
	dead := []any{""} // no socket's name: those whose leases have lapsed go in any case
	for _, id := range conns.Val() {
		replica := id[:max(0, strings.LastIndexByte(id, '.'))]
		if replica != s.replica && !slices.Contains(living.Val(), replica) {
			dead = append(dead, id)
		}
	}
	return s.remove(ctx, sid, dead...)
}
