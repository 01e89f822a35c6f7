package chat

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// LiveHistory is what History needs of Redis: the newest events, those that are not in MongoDB yet included.
type LiveHistory interface {
	Before(ctx context.Context, sessionID string, before int64, limit int) (events []sessionstore.Event, top int64, err error)
	Find(ctx context.Context, sessionID string, sender sessionstore.Sender, messageID string) (sessionstore.Event, bool, error)
}

// StoredHistory is what History needs of MongoDB.
type StoredHistory interface {
	Messages(ctx context.Context, sessionID string, before int64, limit int) ([]sessionstore.Stored, error)
	Message(ctx context.Context, sessionID string, sender sessionstore.Sender, messageID string) (sessionstore.Stored, bool, error)
	Session(ctx context.Context, sessionID string) (sessionstore.SessionDoc, bool, error)
}

// Unwrapper opens the data keys of sessions.
type Unwrapper interface {
	Unwrap(sessionID string, wrapped []byte) (seal.DataKey, error)
}

// History reads transcripts across Redis and MongoDB. Only what MongoDB has is ever cut from the beginning of a
// session's log in Redis; so reading Redis first and MongoDB for what lies before gives every event once, in order, also
// while MongoDB lags behind. A Redis that has lost its newest events may lack some that MongoDB has: numbers jump there,
// and what belongs in between is read from MongoDB, too.
type History struct {
	Live   LiveHistory
	Stored StoredHistory
	Keys   Unwrapper
}

// Transcript is a run of events, oldest first.
type Transcript struct {
	Events []sessionstore.Event
	// More says that there are older events.
	More bool
	// Partial says that MongoDB is away and older events exist that could not be read.
	Partial bool
}

// firstSeq is the number of session_started, before which nothing can be.
const firstSeq = 1

// Page returns the newest limit events with a seq below before, or the newest of all if before is 0.
// The errors are those of the store; a session that neither has gives an empty transcript.
func (h *History) Page(ctx context.Context, sessionID string, before int64, limit int) (Transcript, error) {
	log, top, err := h.Live.Before(ctx, sessionID, before, limit)
	if err != nil && !errors.Is(err, sessionstore.ErrNotFound) {
		return Transcript{}, fmt.Errorf("read live history: %w", err)
	}
	r := reading{h: h, sessionID: sessionID, limit: limit, seen: make(map[string]bool, len(log))}
	for _, ev := range log {
		r.seen[sessionstore.MessageKey(ev.Sender, ev.MessageID)] = true
	}
	end := before
	if len(log) > 0 && (end <= 0 || end > top+1) {
		end = top + 1 // above it there is nothing to look for
	}
	for i := len(log) - 1; i >= 0 && len(r.newest) < limit; i-- {
		if err := r.between(ctx, log[i].Seq, end); err != nil {
			return Transcript{}, err
		}
		r.newest, end = append(r.newest, log[i]), log[i].Seq
	}
	if len(r.newest) < limit && end != firstSeq {
		if err := r.between(ctx, 0, end); err != nil {
			return Transcript{}, err
		}
	} else {
		r.more = end > firstSeq
	}
	if len(r.newest) > limit {
		r.newest, r.more = r.newest[:limit], true
	}
	slices.Reverse(r.newest)
	return Transcript{Events: r.newest, More: r.more, Partial: r.partial}, nil
}

// errNoDocument says that the messages of a session cannot be opened yet: its document, which holds the key, is written
// after them, and MongoDB went away in between.
var errNoDocument = errors.New("there are messages but no document")

// reading is one Page under way.
type reading struct {
	h         *History
	sessionID string
	limit     int
	seen      map[string]bool // ids in the log: MongoDB may have the same event under the number it had before it was lost

	newest        []sessionstore.Event // newest first
	more, partial bool
}

// between adds what MongoDB has between two seqs, both excluded. before 0 means no bound. What cannot be read now the page
// goes on without, if Redis has anything.
func (r *reading) between(ctx context.Context, after, before int64) error {
	if before > 0 && after+1 >= before {
		return nil
	}
	room := r.limit - len(r.newest)
	stored, err := r.h.archived(ctx, r.sessionID, before, room)
	if (errors.Is(err, sessionstore.ErrArchive) || errors.Is(err, errNoDocument)) && len(r.seen) > 0 {
		r.more, r.partial = true, true
		return nil
	}
	if err != nil {
		return fmt.Errorf("read stored history: %w", err)
	}
	for _, ev := range slices.Backward(stored) {
		if ev.Seq <= after {
			return nil
		}
		if !r.seen[sessionstore.MessageKey(ev.Sender, ev.MessageID)] {
			r.newest = append(r.newest, ev)
		}
	}
	if after == 0 {
		r.more = len(stored) == room && stored[0].Seq > firstSeq
	}
	return nil
}

func (h *History) archived(ctx context.Context, sessionID string, before int64, limit int) ([]sessionstore.Event, error) {
	stored, err := h.Stored.Messages(ctx, sessionID, before, limit)
	if err != nil {
		return nil, err
	}
	return h.open(ctx, sessionID, stored)
}

// Message returns one event of a session by its idempotency key, from Redis or else from MongoDB.
func (h *History) Message(ctx context.Context, sessionID string, sender sessionstore.Sender, messageID string) (sessionstore.Event, bool, error) {
	ev, found, err := h.Live.Find(ctx, sessionID, sender, messageID)
	if err != nil && !errors.Is(err, sessionstore.ErrNotFound) {
		return ev, false, fmt.Errorf("find live event: %w", err)
	}
	if found {
		return ev, true, nil
	}
	stored, found, err := h.Stored.Message(ctx, sessionID, sender, messageID)
	if err != nil || !found {
		return ev, false, err
	}
	events, err := h.open(ctx, sessionID, []sessionstore.Stored{stored})
	if err != nil {
		return ev, false, err
	}
	return events[0], true, nil
}

func (h *History) open(ctx context.Context, sessionID string, stored []sessionstore.Stored) ([]sessionstore.Event, error) {
	if len(stored) == 0 {
		return nil, nil
	}
	doc, found, err := h.Stored.Session(ctx, sessionID)
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("session %s: %w: %w", sessionID, errNoDocument, sessionstore.ErrUnsealed)
	}
	key, err := h.Keys.Unwrap(sessionID, doc.WrappedKey)
	if err != nil {
		return nil, err
	}
	events := make([]sessionstore.Event, 0, len(stored))
	for _, s := range stored {
		ev, err := key.OpenEvent(sessionID, s)
		if err != nil {
			return nil, err
		}
		events = append(events, ev)
	}
	return events, nil
}

// contextEvents is how many events a model's context is made of at the most; trimming to a model's window is
// the turn's business.
const contextEvents = 400

// Context returns the newest events up to and including upTo. With MongoDB away it returns those that Redis has:
// an answer with a shorter memory is better than none.
func (h *History) Context(ctx context.Context, sessionID string, upTo int64) ([]sessionstore.Event, error) {
	t, err := h.Page(ctx, sessionID, upTo+1, contextEvents)
	return t.Events, err
}

// Name opens the name of a stored session.
func (h *History) Name(doc sessionstore.SessionDoc) (string, error) {
	if len(doc.SealedName) == 0 {
		return "", nil
	}
	key, err := h.Keys.Unwrap(doc.Session.ID, doc.WrappedKey)
	if err != nil {
		return "", err
	}
	name, err := key.Open(doc.SealedName, seal.NameAD(doc.Session.ID))
	return string(name), err
}
