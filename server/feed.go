package server

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/real-rm/chatbox/hub"
	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore"
)

// Events is what the feed needs of the live store: the session's log, and its channel.
type Events interface {
	Read(ctx context.Context, sessionID string, pos sessionstore.Position) (sessionstore.Page, error)
	Subscribe(ctx context.Context, sessionID string) error
	Unsubscribe(sessionID string)
}

// feed is the only place that knows both the store's events and the hub's messages. As the hub's source it reads
// what a socket has missed; see delivery for the other direction.
type feed struct {
	events  Events
	revival Reviver
	whole   *whole
}

var _ hub.Source = feed{}

// Read returns the next page of a session for the hub. A snapshot is one message: the frame that replaces all
// that a client has.
func (f feed) Read(ctx context.Context, topic string, pos hub.Position) (hub.Page, error) {
	p, err := f.events.Read(ctx, topic, sessionstore.Position(pos))
	if errors.Is(err, sessionstore.ErrNotFound) { // Redis may have lost the session
		rerr := f.revival.Revive(ctx, topic, "")
		switch {
		case rerr == nil:
			p, err = f.events.Read(ctx, topic, sessionstore.Position(pos))
		case !gone(rerr):
			return hub.Page{}, rerr // it cannot be known yet: the hub tries again
		}
	}
	switch {
	case errors.Is(err, sessionstore.ErrNotFound), errors.Is(err, sessionstore.ErrUnsealed):
		return hub.Page{}, fmt.Errorf("%w: %w", hub.ErrLost, err)
	case err != nil:
		return hub.Page{}, err
	}
	page := hub.Page{Position: hub.Position(p.Position), Snapshot: p.Snapshot, More: p.More}
	if p.Session.ID != "" && !p.Session.Active {
		page.Over = overOf(p.Messages)
	}
	if p.Running != nil {
		running := hubMessage(*p.Running)
		page.Running = &running
	}
	if p.Snapshot {
		f.whole.complete(ctx, topic, &p)
		frames := make([][]byte, len(p.Messages))
		for i, m := range p.Messages {
			frames[i] = m.Frame
		}
		page.Messages = []hub.Message{{
			Topic: topic, Epoch: p.Epoch, Seq: p.Seq,
			Data: protocol.SnapshotFrame(topic, p.Position, p.HasMore, frames),
		}}
		return page, nil
	}
	page.Messages = make([]hub.Message, len(p.Messages))
	for i, m := range p.Messages {
		page.Messages[i] = hubMessage(m)
	}
	return page, nil
}

// overOf says how the sockets of an ended session are closed: with the code that fits its last event.
func overOf(messages []sessionstore.Message) *hub.Over {
	for _, m := range slices.Backward(messages) {
		if m.Type == sessionstore.TypeEnded {
			return endOf(m)
		}
	}
	return &hub.Over{Code: hub.CodeEnded, Reason: reasonEnded}
}

// endOf says how the sockets of a session are closed by its session_ended.
func endOf(m sessionstore.Message) *hub.Over {
	if ev, err := sessionstore.ParseFrame(m.Frame); err == nil && ev.Metadata[sessionstore.MetaNext] != "" {
		return &hub.Over{Code: hub.CodeResync, Reason: reasonElsewhere}
	}
	return &hub.Over{Code: hub.CodeEnded, Reason: reasonEnded}
}

// Reasons of closes.
const (
	reasonEnded     = "session ended"
	reasonElsewhere = "session goes on elsewhere"
	reasonCutOff    = "redis is away from this replica"
)

// Subscribe makes sure that the session's channel reaches this replica.
func (f feed) Subscribe(ctx context.Context, topic string) error {
	return f.events.Subscribe(ctx, topic)
}

// Unsubscribe gives the channel up once nobody else here needs it.
func (f feed) Unsubscribe(topic string) { f.events.Unsubscribe(topic) }

func hubMessage(m sessionstore.Message) hub.Message {
	out := hub.Message{Topic: m.SessionID, Epoch: m.Epoch, Seq: m.Seq, Data: m.Frame}
	if m.Seq > 0 && m.MessageID != "" {
		out.Key = sessionstore.MessageKey(m.Sender, m.MessageID)
	}
	if m.Type == sessionstore.TypeAIResponse {
		out.Answer, out.Attempt, out.Chunk, out.Reset, out.Delta = m.MessageID, m.Attempt, m.Chunk, m.Reset, m.Delta
	}
	return out
}

// mergeChunks is the hub's Merge.
func mergeChunks(first, last *hub.Message, text []byte) []byte {
	return sessionstore.Merge(last.Data, last.Delta, first.Chunk, first.Reset, text)
}

// Signaler hears what happens in sessions that this replica is answering in.
type Signaler interface{ Signal(m sessionstore.Message) }

// delivery hands what the bus brings to the sockets and to the turns of this replica. It never blocks.
type delivery struct {
	hub   *hub.Hub
	turns Signaler
}

// Message delivers one event.
func (d delivery) Message(m sessionstore.Message) {
	if m.Type == sessionstore.TypeResync {
		d.hub.Resync(m.SessionID)
		return
	}
	d.hub.Publish(hubMessage(m))
	d.turns.Signal(m)
	if m.Type == sessionstore.TypeEnded {
		d.closeEnded(m)
	}
}

// Resync has the hub make sure that nothing was missed.
func (d delivery) Resync(sessionID string) { d.hub.Resync(sessionID) }

// closeEnded closes the sockets of a session that has ended, which have got the event by now. One that is still catching
// up, or waits for what it has missed, is closed when it gets there: its client would have a hole else.
func (d delivery) closeEnded(m sessionstore.Message) {
	if d.hub.Topic(m.SessionID) == 0 {
		return
	}
	over := endOf(m)
	d.hub.Each(func(c *hub.Client) {
		if at, joined := c.Cursor(m.SessionID); joined && at.Seq >= m.Seq {
			c.Close(over.Code, over.Reason)
		}
	})
}
