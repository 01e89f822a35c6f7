package server

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/real-rm/chatbox/server/chat"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// After Redis was replaced everybody takes a snapshot at once: so many may ask MongoDB at a time, for so long each.
const (
	wholeAtOnce = 64
	wholeWait   = 2 * time.Second
)

// Transcripts reads a session across Redis and MongoDB, see chat.History.
type Transcripts interface {
	Page(ctx context.Context, sessionID string, before int64, limit int) (chat.Transcript, error)
}

// whole completes snapshots of sessions of which Redis has lost events that MongoDB has. Without it a user would not see
// a question and its answer that were flushed, but not replicated, before a failover. Redis is given back what it lacks
// afterwards. Safe for concurrent use.
type whole struct {
	history Transcripts
	health  *health
	mend    *mend
	log     *slog.Logger
	places  chan struct{}
}

func newWhole(history Transcripts, h *health, m *mend, log *slog.Logger) *whole {
	return &whole{history: history, health: h, mend: m, log: log, places: make(chan struct{}, wholeAtOnce)}
}

// complete adds to a snapshot what MongoDB has of its newest events and the log does not. When that cannot be read the
// snapshot stays as it is: a client that asks for older messages is given them later.
func (w *whole) complete(ctx context.Context, sessionID string, p *sessionstore.Page) {
	if !lacking(p) {
		return
	}
	if w.health.archiveOff.Load() {
		w.mend.Ask(sessionID, p.Epoch) // what is missing, if anything is, shows when MongoDB is back
		return
	}
	ctx, cancel := context.WithTimeout(ctx, wholeWait)
	defer cancel()
	select {
	case w.places <- struct{}{}:
		defer func() { <-w.places }()
	case <-ctx.Done():
		w.mend.Ask(sessionID, p.Epoch)
		return
	}
	t, err := w.history.Page(ctx, sessionID, p.Seq+1, live.SnapshotEvents)
	if err != nil || t.Partial {
		if err != nil && !errors.Is(err, sessionstore.ErrArchive) && ctx.Err() == nil {
			w.log.Warn("snapshot not completed", "session_id", sessionID, "error", err.Error())
		}
		w.mend.Ask(sessionID, p.Epoch)
		return
	}
	if there(p, t.Events) {
		return // nothing was missing
	}
	w.mend.Ask(sessionID, p.Epoch)
	size, from := 0, len(t.Events)
	messages := make([]sessionstore.Message, 0, len(t.Events))
	for i, ev := range slices.Backward(t.Events) {
		frame := ev.Frame()
		if size += len(frame); size > live.SnapshotBytes && len(messages) > 0 {
			break
		}
		from = i
		messages = append(messages, sessionstore.Message{
			SessionID: sessionID, Epoch: p.Epoch, Seq: ev.Seq, Type: ev.Type, Sender: ev.Sender, MessageID: ev.MessageID, Frame: frame,
		})
	}
	slices.Reverse(messages)
	p.Messages, p.HasMore = messages, t.More || from > 0
}

// there says whether a snapshot has all of these events.
func there(p *sessionstore.Page, events []sessionstore.Event) bool {
	has := make(map[int64]bool, len(p.Messages))
	for _, m := range p.Messages {
		has[m.Seq] = true
	}
	return !slices.ContainsFunc(events, func(ev sessionstore.Event) bool { return !has[ev.Seq] })
}

// lacking says whether MongoDB may have events that belong into a snapshot: between two whose numbers do not follow each
// other, above the last one, or before the first where there is room.
func lacking(p *sessionstore.Page) bool {
	size, next := 0, p.Seq+1
	for _, m := range slices.Backward(p.Messages) {
		if m.Seq != next-1 {
			return true
		}
		size, next = size+len(m.Frame), m.Seq
	}
	// A log is cut at as many bytes as a snapshot holds; one that is shorter was cut for what it lacks.
	return p.HasMore && len(p.Messages) < live.SnapshotEvents && size < live.SnapshotBytes/2
}
