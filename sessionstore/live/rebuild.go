package live

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/real-rm/chatbox/sessionstore"
)

// Rebuild makes a session anew from its MongoDB document and its last events, ascending, if Redis has lost it. Its
// numbering goes on in a new epoch, above all that was ever given. If it is there already, only its numbering is
// raised where MongoDB knows a higher seq. Questions among the events that no answer names are owed one again.
// Errors: *ActiveError (the user has another active session), ErrAway.
func (s *Store) Rebuild(ctx context.Context, doc sessionstore.SessionDoc, events []sessionstore.Stored) error {
	if err := s.rebuild(ctx, doc, events); err != nil {
		return fmt.Errorf("rebuild session %s: %w", doc.Session.ID, err)
	}
	return nil
}

func (s *Store) rebuild(ctx context.Context, doc sessionstore.SessionDoc, events []sessionstore.Stored) error {
	sid := doc.Session.ID
	p, err := s.part(sid)
	if err != nil {
		return err
	}
	f, err := s.learn(sid, string(doc.WrappedKey), doc.Session.UserID)
	if err != nil {
		return err
	}
	stored := doc.Session.Seq
	if n := len(events); n > 0 {
		stored = max(stored, events[n-1].Seq)
	}
	active := !doc.Final
	args := append(s.args(p, sid, 64+6*len(events)), stored, s.o.Window.Milliseconds(), active,
		endedTTL.Milliseconds(), doc.Session.Epoch)
	owed := newOwed(doc.Session)
	records := make([]any, 0, 5*len(events))
	var answered []string
	for _, e := range events {
		ev, err := f.key.OpenEvent(sid, e)
		if err != nil {
			return err
		}
		owed.see(ev)
		if ev.Type == sessionstore.TypeAIResponse {
			answered = append(answered, questions(ev.Metadata[sessionstore.MetaAnswers])...)
		}
		records = append(records, e.Seq, e.Epoch, sessionstore.MessageKey(ev.Sender, ev.MessageID), e.H, e.C)
	}
	doc.Session = owed.state
	fields := docFields(doc)
	args = append(append(args, len(fields)/2), fields...)
	args = append(append(args, len(events)), records...)
	args = append(args, len(owed.order))
	for _, q := range owed.order {
		args = append(args, q.MessageID, q.Seq)
	}
	args = append(args, s.o.AskDelay.Milliseconds(), s.o.HoldLease.Milliseconds(), s.o.HelpWait.Milliseconds(),
		strings.Join(answered, " "))
	r, err := s.run(ctx, s.sc.rebuild, p.eventKeys(sid, doc.Session.UserID), args...)
	if err != nil {
		return err
	}
	if r.code() == "ACTIVE" {
		return &sessionstore.ActiveError{SessionID: r.str(1)}
	}
	return nil
}

// docFields are the fields of the session hash that come from its document, without those that rebuild.lua sets.
func docFields(doc sessionstore.SessionDoc) []any {
	d := doc.Session
	if d.Owner == sessionstore.OwnerHuman && d.Fence == "" {
		d.Fence = "lost-" + randomText(8) // its admin_join is older than the events; who joins again is told this one
	}
	var past []string
	start := d.Start
	for i, iv := range doc.Intervals {
		if iv.End.IsZero() || !doc.Final && i == len(doc.Intervals)-1 {
			start = iv.Start // the interval that goes on
			continue
		}
		past = append(past, millis(iv.Start)+"-"+millis(iv.End))
	}
	flag := func(b bool) string {
		if b {
			return "1"
		}
		return "0"
	}
	return []any{
		"u", d.UserID, "un", d.UserName, "nm", doc.SealedName, "key", doc.WrappedKey, "model", d.ModelID,
		"ow", string(d.Owner), "aid", d.AdminID, "an", d.AdminName, "fence", d.Fence, "asst", flag(d.AdminAssisted),
		"help", flag(d.HelpRequested), "ct", millis(d.Start), "is", millis(start), "et", millis(d.End),
		"la", millis(d.LastActivity), "iv", strings.Join(past, ","),
		"mc", d.Messages, "tk", d.Tokens, "ti", d.TokensIn, "to", d.TokensOut, "tc", d.TokensCached, "cl", d.Calls,
		"rs", d.ResponseSum, "rm", d.ResponseMax, "rn", d.ResponseCount,
	}
}

func millis(t time.Time) string {
	if t.IsZero() {
		return "0"
	}
	return strconv.FormatInt(t.UnixMilli(), 10)
}

// owedQuestions finds out which questions of a transcript are owed an answer, and who owns the session at its end: the
// document may be older than the newest events, never newer.
type owedQuestions struct {
	state sessionstore.Session
	order []sessionstore.Event // without their bodies
}

func newOwed(ses sessionstore.Session) *owedQuestions {
	if ses.Owner == "" {
		ses.Owner = sessionstore.OwnerAI
	}
	return &owedQuestions{state: ses}
}

func (o *owedQuestions) see(ev sessionstore.Event) {
	switch ev.Type {
	case sessionstore.TypeUserMessage, sessionstore.TypeVoiceMessage, sessionstore.TypeRegenerate,
		sessionstore.TypeContinue, sessionstore.TypeRetry:
		if ev.Sender == sessionstore.SenderUser && o.state.Owner != sessionstore.OwnerHuman {
			o.order = append(o.order, sessionstore.Event{Header: ev.Header, Seq: ev.Seq})
		}
	case sessionstore.TypeAIResponse:
		for _, id := range questions(ev.Metadata[sessionstore.MetaAnswers]) {
			o.remove(id)
		}
	default:
		o.owner(ev)
	}
}

// owner follows the events that change who answers.
func (o *owedQuestions) owner(ev sessionstore.Event) {
	s := &o.state
	switch ev.Type {
	case sessionstore.TypeHelpRequest:
		s.HelpRequested = true
		if s.Owner == sessionstore.OwnerAI {
			s.Owner = sessionstore.OwnerWaiting
		}
	case sessionstore.TypeAdminJoin:
		s.Owner, s.Fence, s.AdminAssisted = sessionstore.OwnerHuman, ev.MessageID, true
		s.AdminID, s.AdminName = ev.Metadata[sessionstore.MetaAdminID], ev.Metadata[sessionstore.MetaName]
		o.order = nil // what was asked so far was the admin's to answer
	case sessionstore.TypeAdminLeave:
		if s.Fence != "" && ev.Target != s.Fence {
			return // of an earlier hold, written again late
		}
		s.Owner, s.Fence = sessionstore.OwnerAI, ""
		o.order = nil
	case sessionstore.TypeEnded:
		s.Owner, s.Fence = sessionstore.OwnerAI, ""
		o.order = nil
	}
}

func (o *owedQuestions) remove(id string) {
	for i, q := range o.order {
		if q.MessageID == id {
			o.order = append(o.order[:i], o.order[i+1:]...)
			return
		}
	}
}
