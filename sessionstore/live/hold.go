package live

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/real-rm/chatbox/sessionstore"
)

// Hold is an admin who takes a session.
type Hold struct {
	AdminID, Name string
	Steal         bool // also from another admin who has it
}

// Join makes an admin the holder of the session: from this moment the AI is silent, a running answer is cut (see Cut),
// and only this admin writes. The admin_join event has the given id, and that is also the fence of the hold, which
// RenewHold and Leave ask for. The hold lasts HoldLease beyond the last RenewHold or message of the admin.
//
// To join again is no error: who holds the session already gets the position of the event it began with, Duplicate, and
// the fence of that. An id that was used before is a duplicate as well; its fence is empty if the admin does not hold
// the session any more.
//
// With h.Steal it is taken from whoever has it; the event's Target is then the fence of the hold that it ends.
// Errors: ErrAssisted (another admin holds it), ErrNotFound, ErrEnded, ErrAway.
func (s *Store) Join(ctx context.Context, sid string, h Hold, messageID string) (a sessionstore.Appended, fence string, err error) {
	if h.AdminID == "" || messageID == "" {
		return a, "", fmt.Errorf("join session %s: admin and message id are required", sid)
	}
	kind := cutJoin
	if h.Steal {
		kind = cutSteal
	}
	a, fence, err = s.cut(ctx, sessionstore.Event{
		Header: sessionstore.Header{
			Type: sessionstore.TypeAdminJoin, SessionID: sid, MessageID: messageID, Sender: sessionstore.SenderAdmin,
		},
		Body: sessionstore.Body{Metadata: map[string]string{
			sessionstore.MetaAdminID: h.AdminID, sessionstore.MetaName: h.Name,
		}},
	}, kind, h)
	if err != nil {
		return a, "", fmt.Errorf("join session %s: %w", sid, err)
	}
	return a, fence, nil
}

// StealHold is Join with Steal.
func (s *Store) StealHold(ctx context.Context, sid string, h Hold, messageID string) (sessionstore.Appended, string, error) {
	h.Steal = true
	return s.Join(ctx, sid, h, messageID)
}

// RenewHold prolongs the admin's hold to HoldLease from now. Errors: ErrNotHolder (it has lapsed, was left or stolen),
// ErrNotFound, ErrEnded, ErrAway.
func (s *Store) RenewHold(ctx context.Context, sid, adminID, fence string) error {
	p, err := s.part(sid)
	if err == nil {
		_, err = s.run(ctx, s.sc.hold, []string{p.session(sid).hash(), p.due()},
			sid, adminID, fence, s.o.HoldLease.Milliseconds())
	}
	if err != nil {
		return fmt.Errorf("renew hold of session %s: %w", sid, err)
	}
	return nil
}

// Leave gives the session back to the AI, with an admin_leave event of the given id, whose Target is the fence. What
// the user wrote while the admin had it is not owed an answer. To leave again under the same id is a duplicate.
// Errors: ErrNotHolder, ErrNotFound, ErrEnded, ErrAway.
func (s *Store) Leave(ctx context.Context, sid, adminID, fence, messageID string) (sessionstore.Appended, error) {
	if adminID == "" || messageID == "" {
		return sessionstore.Appended{}, fmt.Errorf("leave session %s: admin and message id are required", sid)
	}
	ses, err := s.Session(ctx, sid)
	if err != nil {
		return sessionstore.Appended{}, fmt.Errorf("leave: %w", err)
	}
	ev := leaveEvent(sid, adminID, ses.AdminName, fence, "left")
	ev.MessageID, ev.Sender = messageID, sessionstore.SenderAdmin
	a, err := s.leave(ctx, ev, adminID)
	if err != nil {
		return a, fmt.Errorf("leave session %s: %w", sid, err)
	}
	return a, nil
}

func leaveEvent(sid, adminID, name, fence, reason string) sessionstore.Event {
	return sessionstore.Event{
		Header: sessionstore.Header{Type: sessionstore.TypeAdminLeave, SessionID: sid, Target: fence},
		Body: sessionstore.Body{Metadata: map[string]string{
			sessionstore.MetaAdminID: adminID, sessionstore.MetaName: name, sessionstore.MetaReason: reason,
		}},
	}
}

// leave writes an admin_leave; admin is empty for one that says that the hold has lapsed. errNotYet: it has not.
func (s *Store) leave(ctx context.Context, ev sessionstore.Event, admin string) (sessionstore.Appended, error) {
	var none sessionstore.Appended
	sid := ev.SessionID
	p, err := s.part(sid)
	if err != nil {
		return none, err
	}
	key, err := s.DataKey(ctx, sid)
	if err != nil {
		return none, err
	}
	e := sealEvent(key, ev)
	for range maxRounds {
		r, err := s.run(ctx, s.sc.leave, append(p.answerKeys(sid), p.beat()),
			append(s.args(p, sid, 5), e.id, e.h, e.c, admin, ev.Target, s.o.HoldLease.Milliseconds())...)
		if err != nil {
			return none, err
		}
		switch r.code() {
		case "SETTLE":
			if err := s.Settle(ctx, sid); err != nil {
				return none, err
			}
		case "NOTYET":
			return none, errNotYet
		default:
			return appended(r), nil
		}
	}
	return none, errRounds
}

var errNotYet = errors.New("the deadline is not reached")

// lapse gives the session back to the AI if nobody has renewed the hold in time. It is for keepers; whatever came
// between is no error. acted says that the session has been given back by this call.
func (s *Store) lapse(ctx context.Context, sid string) (acted bool, err error) {
	ses, err := s.Session(ctx, sid)
	if errors.Is(err, sessionstore.ErrNotFound) {
		return false, s.forgetHold(ctx, sid)
	}
	if err != nil {
		return false, fmt.Errorf("lapse: %w", err)
	}
	if ses.Owner != sessionstore.OwnerHuman {
		return false, s.forgetHold(ctx, sid)
	}
	ev := leaveEvent(sid, ses.AdminID, ses.AdminName, ses.Fence, "lapsed")
	// Two keepers make one event.
	ev.MessageID = uuid.NewSHA1(uuid.MustParse(answerSpace), []byte(sid+"|lapse|"+ses.Fence)).String()
	ev.Sender = sessionstore.SenderSystem
	a, err := s.leave(ctx, ev, "")
	switch {
	case errors.Is(err, errNotYet), errors.Is(err, sessionstore.ErrNotHolder), errors.Is(err, sessionstore.ErrEnded):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("lapse hold of session %s: %w", sid, err)
	}
	return !a.Duplicate, nil
}

// forgetHold has the script look at a session that nobody holds, so that its deadline is taken off the list.
func (s *Store) forgetHold(ctx context.Context, sid string) error {
	p, err := s.part(sid)
	if err != nil {
		return err
	}
	_, err = s.run(ctx, s.sc.leave, append(p.answerKeys(sid), p.beat()), append(s.args(p, sid, 5), "", "", "", "", "", 0)...)
	if errors.Is(err, sessionstore.ErrNotFound) || errors.Is(err, sessionstore.ErrEnded) || errors.Is(err, sessionstore.ErrNotHolder) {
		return nil
	}
	return err
}
