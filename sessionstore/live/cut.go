package live

import (
	"context"
	"fmt"
	"strings"

	"github.com/real-rm/chatbox/sessionstore"
)

// cutKind is what the event is that ends an answer from outside.
type cutKind string

const (
	cutEnd     cutKind = "end"
	cutJoin    cutKind = "join"
	cutSteal   cutKind = "steal"
	cutReadmit cutKind = "readmit" // a join that Redis has lost
	cutOther   cutKind = "other"
)

// Cut writes an event that ends the running answer from outside, whose producer is fenced before anything else
// happens. What was shown of the answer becomes a durable event of its own, directly before it. With hold the
// session belongs to that admin from the same moment on, as after Join. Errors: ErrNotFound, ErrEnded, ErrAssisted,
// ErrAway.
func (s *Store) Cut(ctx context.Context, causing sessionstore.Event, hold *Hold) (sessionstore.Appended, error) {
	kind := cutOther
	var h Hold
	switch {
	case causing.Type == sessionstore.TypeEnded:
		kind = cutEnd
	case hold != nil:
		kind, h = cutJoin, *hold
		if h.Steal {
			kind = cutSteal
		}
	}
	a, _, err := s.cut(ctx, causing, kind, h)
	if err != nil {
		return a, fmt.Errorf("cut answer in session %s: %w", causing.SessionID, err)
	}
	return a, nil
}

func (s *Store) cut(ctx context.Context, causing sessionstore.Event, kind cutKind, h Hold) (_ sessionstore.Appended, fence string, err error) {
	var none sessionstore.Appended
	sid := causing.SessionID
	p, err := s.part(sid)
	if err != nil {
		return none, "", err
	}
	f, err := s.facts(ctx, sid)
	if err != nil {
		return none, "", err
	}
	e := sealEvent(f.key, causing)
	cutHere := false
	for range maxRounds {
		r, err := s.run(ctx, s.sc.cut, p.eventKeys(sid, f.user), append(s.args(p, sid, 11),
			e.id, e.h, e.c, string(kind), causing.Type, h.AdminID, h.Name, causing.MessageID, s.o.CutDelay.Milliseconds(),
			s.o.HoldLease.Milliseconds(), causing.Target)...)
		if err != nil {
			return none, "", err
		}
		switch r.code() {
		case "CHANGED":
			ses, err := s.Session(ctx, sid)
			if err != nil {
				return none, "", err
			}
			causing.Target = ses.Fence
			e = sealEvent(f.key, causing)
			continue
		case "CUT":
			cutHere = true
		case "SETTLE":
		default:
			a := appended(r)
			if cutHere { // by this very event, which took the hold then, whatever has become of it since
				a.Duplicate = false
				return a, causing.MessageID, nil
			}
			return a, r.str(3), nil
		}
		if err := s.Settle(ctx, sid); err != nil {
			return none, "", err
		}
	}
	return none, "", errRounds
}

// Settle finishes a cut: it writes the partial answer and the event that caused it. It does nothing if there is no
// cut to settle. Errors: ErrNotFound, ErrAway.
func (s *Store) Settle(ctx context.Context, sid string) error {
	if err := s.settle(ctx, sid); err != nil {
		return fmt.Errorf("settle session %s: %w", sid, err)
	}
	return nil
}

func (s *Store) settle(ctx context.Context, sid string) error {
	p, err := s.part(sid)
	if err != nil {
		return err
	}
	k := p.session(sid)
	r, err := s.run(ctx, s.sc.running, []string{k.gen(), k.chunks(), k.hash()})
	if err != nil {
		return err
	}
	g := r.list(1).fields()
	if g["state"] != "cut" {
		return nil
	}
	partial, spent, err := s.partial(ctx, sid, g, r.list(2), g["cw"])
	if err != nil {
		return err
	}
	_, err = s.run(ctx, s.sc.settle, p.endKeys(sid, r.str(3)), append(s.args(p, sid, 5),
		g["cid"], partial.id, partial.h, partial.c, cost(spent))...)
	return err
}

// partial seals what was shown of an answer (its gen hash and chunks) as an event of its own, empty if nothing was, that
// says what it is about as its final would have, and tells what the answer cost.
func (s *Store) partial(ctx context.Context, sid string, g map[string]string, chunks reply, why string) (sealedEvent, sessionstore.Spent, error) {
	text, late, err := s.openChunks(ctx, sid, g["aid"], chunks, g["ba"])
	spent := s.spent(g, late)
	if err != nil || text == "" {
		return sealedEvent{}, spent, err
	}
	key, err := s.DataKey(ctx, sid)
	if err != nil {
		return sealedEvent{}, spent, err
	}
	meta := map[string]string{
		sessionstore.MetaInterrupted: why,
		sessionstore.MetaAnswers:     strings.Join(strings.Fields(g["q"]), " "),
	}
	for pair := range strings.Lines(g["ab"]) { // see subject
		if name, value, ok := strings.Cut(strings.TrimSuffix(pair, "\n"), "="); ok {
			meta[name] = value
		}
	}
	return sealEvent(key, sessionstore.Event{
		Header: sessionstore.Header{
			Type: sessionstore.TypeAIResponse, SessionID: sid, MessageID: g["aid"], Sender: sessionstore.SenderAI,
			ModelID: g["model"], Spent: spent,
		},
		Body: sessionstore.Body{Content: text, Metadata: meta},
	}), spent, nil
}
