package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/real-rm/chatbox/server/chat"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

var (
	_ chat.ReviveStore = (*fakeLive)(nil)
	_ AuthoredStore    = (*fakeLive)(nil)
)

// lose forgets a session as a FLUSHALL does: nobody is told.
func (f *fakeLive) lose(sid string) {
	f.set(func() {
		if b := f.sessions[sid]; b != nil && f.active[b.UserID] == sid {
			delete(f.active, b.UserID)
		}
		delete(f.sessions, sid)
		for c := range f.present {
			if c.SessionID == sid {
				delete(f.present, c)
			}
		}
	})
}

// Rebuild makes a session anew in another epoch, its numbers above all that were given.
func (f *fakeLive) Rebuild(_ context.Context, doc sessionstore.SessionDoc, stored []sessionstore.Stored) error {
	ring, err := keyring()
	if err != nil {
		return err
	}
	key, err := ring.Unwrap(doc.Session.ID, doc.WrappedKey)
	if err != nil {
		return err
	}
	b := &book{Session: doc.Session, ids: map[string]int64{}}
	name, err := key.Open(doc.SealedName, seal.NameAD(b.ID))
	if err != nil {
		return err
	}
	b.Name, b.Active, b.Owner = string(name), !doc.Final, sessionstore.OwnerAI
	for _, s := range stored {
		head, err := sessionstore.ParseFrame(sessionstore.Frame(s.Seq, s.H, nil))
		if err != nil {
			return err
		}
		body, err := key.Open(s.C, seal.MessageAD(b.ID, head.MessageID))
		if err != nil {
			return err
		}
		ev, err := sessionstore.ParseFrame(sessionstore.Frame(s.Seq, s.H, body))
		if err != nil {
			return err
		}
		b.events, b.ids[sessionstore.MessageKey(ev.Sender, ev.MessageID)] = append(b.events, ev), ev.Seq
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rebuilt = append(f.rebuilt, b.ID)
	if f.sessions[b.ID] != nil {
		return nil
	}
	if other, found := f.active[b.UserID]; found && b.Active {
		return &sessionstore.ActiveError{SessionID: other}
	}
	if len(b.events) > 0 {
		b.trimmed = b.events[0].Seq - 1
	}
	b.Epoch, b.Seq = "2-b", b.Seq+1000
	f.sessions[b.ID] = b
	if b.Active {
		f.active[b.UserID] = b.ID
	}
	return nil
}

// AskResync is heard by nobody: there is one replica.
func (f *fakeLive) AskResync(context.Context, string) error { return nil }

// Activate reopens an ended session.
func (f *fakeLive) Activate(ctx context.Context, user, sid string, endCurrent bool) (sessionstore.Opened, error) {
	f.mu.Lock()
	b, other := f.sessions[sid], f.active[user]
	f.mu.Unlock()
	if b == nil || b.UserID != user {
		return sessionstore.Opened{}, fmt.Errorf("activate session %s: %w", sid, sessionstore.ErrNotFound)
	}
	if other != "" && other != sid {
		if !endCurrent {
			return sessionstore.Opened{}, &sessionstore.ActiveError{SessionID: other}
		}
		if err := f.End(ctx, other, "replaced", sid); err != nil {
			return sessionstore.Opened{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !b.Active {
		b.Active, b.End, f.active[user] = true, time.Time{}, sid
		b.add(sessionstore.Event{
			Header: sessionstore.Header{Type: sessionstore.TypeStarted, SessionID: sid, Sender: sessionstore.SenderSystem},
			Body:   sessionstore.Body{Metadata: map[string]string{sessionstore.MetaReopened: "true"}},
		})
	}
	return sessionstore.Opened{Session: b.Session, Resumed: true}, nil
}

func (f *fakeLive) Positions(ctx context.Context, sids []string) (map[string]live.Top, error) {
	if positions := fn(f, &f.PositionsFn); positions != nil {
		return positions(ctx, sids)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]live.Top{}
	for _, sid := range sids {
		if b := f.sessions[sid]; b != nil {
			out[sid] = live.Top{Position: b.Position, Durable: b.Durable}
		}
	}
	return out, nil
}

func (f *fakeLive) Remember(context.Context) error {
	f.set(func() { f.remembered++ })
	return nil
}

func (f *fakeLive) MayHaveLost(ctx context.Context, sid string) (bool, error) {
	if lost := fn(f, &f.MayHaveLostFn); lost != nil {
		return lost(ctx, sid)
	}
	return true, nil
}

func (f *fakeLive) Known(_ context.Context, sid string, sender sessionstore.Sender, id string) (int64, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.sessions[sid]
	if b == nil {
		return 0, false, nil
	}
	seq, known := b.ids[sessionstore.MessageKey(sender, id)]
	return seq, known, nil
}

func (f *fakeLive) Find(ctx context.Context, sid string, sender sessionstore.Sender, id string) (sessionstore.Event, bool, error) {
	seq, known, err := f.Known(ctx, sid, sender, id)
	if err != nil || !known {
		return sessionstore.Event{}, false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	events := f.sessions[sid].events
	i := slices.IndexFunc(events, func(ev sessionstore.Event) bool { return ev.Seq == seq })
	if i < 0 {
		return sessionstore.Event{}, false, nil
	}
	return events[i], true, nil
}

func (f *fakeLive) Readmit(ctx context.Context, ev sessionstore.Event) (sessionstore.Appended, error) {
	return f.Append(ctx, sessionstore.Append{Event: ev})
}

// fakeReviver is asked for every session that is to be brought back, with what is to be done.
type fakeReviver func(what, sid string) error

func (f fakeReviver) Revive(_ context.Context, sid, _ string) error { return f("revive", sid) }
func (f fakeReviver) Reopen(_ context.Context, sid, _ string) error { return f("reopen", sid) }
func (f fakeReviver) Load(_ context.Context, sid, _ string, _ bool) error {
	return f("load", sid)
}
