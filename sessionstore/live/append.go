package live

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// sealedEvent is an event as Redis gets it.
type sealedEvent struct {
	id   string // field in ids
	h, c []byte
}

// sealEvent seals an event's body. An event without a time gets the present one.
func sealEvent(key seal.DataKey, ev sessionstore.Event) sealedEvent {
	if ev.Timestamp.IsZero() {
		ev.Timestamp = time.Now()
	}
	return sealedEvent{
		id: sessionstore.MessageKey(ev.Sender, ev.MessageID),
		h:  ev.Header.Fragment(),
		c:  key.Seal(ev.Body.Fragment(), seal.MessageAD(ev.SessionID, ev.MessageID)),
	}
}

// counts tells what a person or the AI said from what merely happened.
func counts(typ string) int {
	switch typ {
	case sessionstore.TypeUserMessage, sessionstore.TypeAIResponse, sessionstore.TypeFileUpload,
		sessionstore.TypeVoiceMessage, sessionstore.TypeLeaveMessage:
		return 1
	default:
		return 0
	}
}

func (s *Store) publishCommand() string {
	if s.sharded {
		return "spublish"
	}
	return "publish"
}

// args are ARGV 1-6 of event.lua, with room for n more.
func (s *Store) args(p partition, sid string, n int) []any {
	return append(make([]any, 0, 6+n), sid, p.channel(sid), s.publishCommand(), randomText(8), s.pl.seen(sid),
		s.o.DocEvery.Milliseconds())
}

// Append adds one durable event: it is stored, queued for MongoDB and published when Append returns, or it was there
// before (Duplicate). What an admin writes (SenderAdmin) is accepted from the holder of the session only, and renews
// the hold. Errors: ErrNotFound, ErrEnded, ErrAssisted (another admin holds it), ErrNotHolder (nobody does), ErrFull,
// ErrAway.
func (s *Store) Append(ctx context.Context, a sessionstore.Append) (sessionstore.Appended, error) {
	sid := a.Event.SessionID
	out, err := s.append(ctx, sid, a)
	if err != nil {
		return out, fmt.Errorf("append to session %s: %w", sid, err)
	}
	return out, nil
}

func (s *Store) append(ctx context.Context, sid string, a sessionstore.Append) (sessionstore.Appended, error) {
	p, err := s.part(sid)
	if err != nil {
		return sessionstore.Appended{}, err
	}
	key, err := s.DataKey(ctx, sid)
	if err != nil {
		return sessionstore.Appended{}, err
	}
	ev := sealEvent(key, a.Event)
	question, help := "", ""
	if a.Owe {
		question = a.Event.MessageID
	}
	if a.Help {
		help = fmt.Sprint(s.o.HelpWait.Milliseconds())
	}
	keys, admin := p.appendKeys(sid), ""
	if a.Event.Sender == sessionstore.SenderAdmin {
		if admin = a.AdminID; admin == "" {
			return sessionstore.Appended{}, sessionstore.ErrNotHolder
		}
		keys = p.answerKeys(sid)
	}
	name := key.Seal([]byte(a.Name), seal.NameAD(sid))
	for range maxRounds {
		r, err := s.runSoon(ctx, s.sc.append, keys, append(s.args(p, sid, 12),
			ev.id, ev.h, ev.c, counts(a.Event.Type), question, s.o.AskDelay.Milliseconds(),
			name, a.ModelID, help, admin, s.o.HoldLease.Milliseconds(), a.Unmetered)...)
		if err != nil {
			return sessionstore.Appended{}, err
		}
		if r.code() != "SETTLE" {
			out := appended(r)
			out.Owed = r.str(3) == "1"
			return out, nil
		}
		if err := s.Settle(ctx, sid); err != nil {
			return sessionstore.Appended{}, err
		}
	}
	return sessionstore.Appended{}, errRounds
}

// appended reads `OK|DUP epoch seq`.
func appended(r reply) sessionstore.Appended {
	return sessionstore.Appended{
		Position:  sessionstore.Position{Epoch: r.str(1), Seq: r.num(2)},
		Duplicate: r.code() == "DUP",
	}
}

// Publish sends an event that is not stored: it has no seq, and who does not listen now never learns of it. Errors:
// ErrNotFound, ErrEnded, ErrAway.
func (s *Store) Publish(ctx context.Context, ev sessionstore.Event) error {
	p, err := s.part(ev.SessionID)
	if err != nil {
		return err
	}
	key, err := s.DataKey(ctx, ev.SessionID)
	if err == nil {
		e := sealEvent(key, ev)
		_, err = s.runSoon(ctx, s.sc.publish, []string{p.session(ev.SessionID).hash()},
			p.channel(ev.SessionID), s.publishCommand(), e.h, e.c)
	}
	if err != nil {
		return fmt.Errorf("publish in session %s: %w", ev.SessionID, err)
	}
	return nil
}

// AskResync tells all replicas that take part in a session to read it again, also if Redis does not have it: those
// that have sockets on it bring it back then. Errors: ErrNotFound (not a session id), ErrAway.
func (s *Store) AskResync(ctx context.Context, sid string) error {
	p, err := s.part(sid)
	if err != nil {
		return err
	}
	h := sessionstore.Header{Type: sessionstore.TypeResync, SessionID: sid, Sender: sessionstore.SenderSystem}.Fragment()
	payload := fmt.Sprintf("- 0 %d %s", len(h), h) // see parseRecord; there is no epoch, and nothing sealed
	if s.sharded {
		err = s.client.SPublish(ctx, p.channel(sid), payload).Err()
	} else {
		err = s.client.Publish(ctx, p.channel(sid), payload).Err()
	}
	if err != nil {
		return fmt.Errorf("ask for resync of session %s: %w", sid, redisError(err))
	}
	return nil
}

// Readmit writes an event again that this replica has written and Redis has lost since; one that is there is a
// duplicate. It asks for no token, since that is lost as well. A join takes the session for its admin again and is
// refused with ErrAssisted if somebody else holds it by now; a leave gives up the hold that it names, if that is still
// there. An answer to questions that were asked and answered anew meanwhile is a duplicate, too. Errors: ErrNotFound,
// ErrEnded, ErrAssisted, ErrHeld (another answer to them is being produced: come again), ErrAway.
func (s *Store) Readmit(ctx context.Context, ev sessionstore.Event) (sessionstore.Appended, error) {
	if ev.Type == sessionstore.TypeAdminJoin {
		h := Hold{AdminID: ev.Metadata[sessionstore.MetaAdminID], Name: ev.Metadata[sessionstore.MetaName]}
		out, _, err := s.cut(ctx, ev, cutReadmit, h)
		if err != nil {
			return out, fmt.Errorf("readmit to session %s: %w", ev.SessionID, err)
		}
		return out, nil
	}
	out, err := s.readmit(ctx, ev)
	if err != nil {
		return out, fmt.Errorf("readmit to session %s: %w", ev.SessionID, err)
	}
	return out, nil
}

func (s *Store) readmit(ctx context.Context, ev sessionstore.Event) (sessionstore.Appended, error) {
	p, err := s.part(ev.SessionID)
	if err != nil {
		return sessionstore.Appended{}, err
	}
	f, err := s.facts(ctx, ev.SessionID)
	if err != nil {
		return sessionstore.Appended{}, err
	}
	e := sealEvent(f.key, ev)
	answer, fence := "", ""
	switch ev.Type {
	case sessionstore.TypeAIResponse:
		answer = ev.MessageID
	case sessionstore.TypeAdminLeave:
		fence = ev.Target
	}
	args := s.args(p, ev.SessionID, 9)
	args[4] = max(s.pl.seen(ev.SessionID), ev.Seq) // the number it had was given, whether Redis knows that or not
	r, err := s.run(ctx, s.sc.readmit, p.endKeys(ev.SessionID, f.user), append(args,
		e.id, e.h, e.c, counts(ev.Type), ev.Metadata[sessionstore.MetaAnswers], answer, cost(ev.Spent), ev.ResponseTime, fence)...)
	if err != nil {
		return sessionstore.Appended{}, err
	}
	return appended(r), nil
}

// Restore puts the id of an event that was found in MongoDB back among those that Redis knows, so that sending it
// again is a duplicate. Errors: ErrNotFound, ErrAway.
func (s *Store) Restore(ctx context.Context, sid string, sender sessionstore.Sender, messageID string, seq int64) error {
	p, err := s.part(sid)
	if err != nil {
		return err
	}
	_, err = s.run(ctx, s.sc.restore, p.appendKeys(sid), append(s.args(p, sid, 2),
		sessionstore.MessageKey(sender, messageID), seq)...)
	if err != nil {
		return fmt.Errorf("restore id in session %s: %w", sid, err)
	}
	return nil
}

// questions splits what MetaAnswers holds.
func questions(text string) []string { return strings.Fields(text) }
