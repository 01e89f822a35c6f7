package chat

import (
	"context"
	"fmt"
	"math"
	"strings"

	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore"
)

// again accepts a wish for another answer: regenerate and continue name an answer, retry names a question. The wish is
// an event like a question and is owed an answer; what it names is checked once, when it is accepted.
func (c *Chat) again(ctx context.Context, conn Conn, from From, f protocol.Frame) error {
	if err := c.afford(ctx, from, f); err != nil {
		return err
	}
	sessionID := from.SessionID
	_, known, err := c.opts.Store.Known(ctx, sessionID, sessionstore.SenderUser, f.MessageID)
	if err != nil {
		return fmt.Errorf("look up %s: %w", f.Type, err)
	}
	if !known { // else it is a duplicate, whatever has become of its target since
		if err := c.mayAgain(ctx, sessionID, f); err != nil {
			return err
		}
	}
	ev := c.event(sessionID, f)
	ev.Target = f.Target
	a, err := c.append(ctx, conn, sessionstore.Append{Event: ev, Owe: true, Unmetered: from.Unmetered})
	if err != nil {
		return err
	}
	if a.Owed {
		c.opts.Turns.Start(sessionID)
	}
	c.log.Info("another answer asked for", "session_id", sessionID, "message_id", f.MessageID, "how", f.Type, "seq", a.Seq, "duplicate", a.Duplicate)
	return nil
}

// mayAgain says why the wish cannot be granted.
func (c *Chat) mayAgain(ctx context.Context, sessionID string, f protocol.Frame) error {
	sess, err := c.opts.Store.Session(ctx, sessionID)
	if err != nil {
		return fmt.Errorf("read session: %w", err)
	}
	if sess.Owner == sessionstore.OwnerHuman {
		return sessionstore.ErrAssisted
	}
	sender := sessionstore.SenderAI
	if f.Type == sessionstore.TypeRetry {
		sender = sessionstore.SenderUser
	}
	target, found, err := c.opts.History.Message(ctx, sessionID, sender, f.Target)
	if err != nil {
		return fmt.Errorf("find target of %s: %w", f.Type, err)
	}
	if !found || f.Type != sessionstore.TypeRetry && target.Type != sessionstore.TypeAIResponse {
		return &protocol.Error{Code: protocol.CodeNotFound, Message: "The message that this is about is not there."}
	}
	switch f.Type {
	case sessionstore.TypeContinue:
		if !Unfinished(target) {
			return refuse("There is nothing in this answer to go on with.")
		}
	case sessionstore.TypeRetry:
		return c.mayRetry(ctx, sessionID, target)
	}
	return nil
}

// mayRetry looks for the newest answer to the question.
func (c *Chat) mayRetry(ctx context.Context, sessionID string, question sessionstore.Event) error {
	switch question.Type {
	case sessionstore.TypeUserMessage, sessionstore.TypeVoiceMessage, sessionstore.TypeFileUpload:
	default:
		return refuse("This is not a question.")
	}
	events, err := c.opts.History.Context(ctx, sessionID, math.MaxInt64-1)
	if err != nil {
		return fmt.Errorf("find answer to %s: %w", question.MessageID, err)
	}
	answered := ""
	for _, ev := range events {
		if ev.Type == sessionstore.TypeAIResponse && names(ev, question.MessageID) {
			answered = "The question has been answered."
			if ev.Metadata[sessionstore.MetaFailed] != "" {
				answered = "failed"
			}
		}
	}
	switch answered {
	case "failed":
		return nil
	case "":
		return refuse("The question is still to be answered.")
	default:
		return refuse(answered)
	}
}

// Unfinished says whether an answer is one that can be gone on with: it says something, and was broken off.
func Unfinished(answer sessionstore.Event) bool {
	m := answer.Metadata
	return answer.Content != "" && (m[sessionstore.MetaStopped] != "" || m[sessionstore.MetaInterrupted] != "" ||
		m[sessionstore.MetaFailed] != "" || m[sessionstore.MetaLength] != "")
}

// names says whether the answer is one to the question.
func names(answer sessionstore.Event, question string) bool {
	for id := range strings.FieldsSeq(answer.Metadata[sessionstore.MetaAnswers]) {
		if id == question {
			return true
		}
	}
	return false
}

func refuse(why string) error { return &protocol.Error{Code: protocol.CodeBadFrame, Message: why} }
