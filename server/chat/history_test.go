package chat

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// book is a session of n events of which MongoDB has the first stored, and Redis those from trimmed on.
type book struct {
	n, stored, trimmed int64
	key                seal.DataKey
	wrapped            []byte
	ring               *seal.Keyring
	away               bool
	gone               bool // Redis has forgotten the session
}

func newBook(t require.TestingT, n, stored, trimmed int64) *book {
	text, err := seal.NewKeyset()
	require.NoError(t, err)
	ring, err := seal.NewKeyring(text)
	require.NoError(t, err)
	key, wrapped, err := ring.NewDataKey(sid)
	require.NoError(t, err)
	return &book{n: n, stored: stored, trimmed: trimmed, key: key, wrapped: wrapped, ring: ring}
}

func (b *book) event(seq int64) sessionstore.Event {
	return sessionstore.Event{
		Header: sessionstore.Header{Type: sessionstore.TypeUserMessage, SessionID: sid, MessageID: fmt.Sprint("m", seq), Sender: sessionstore.SenderUser},
		Body:   sessionstore.Body{Content: fmt.Sprint("text ", seq)}, Seq: seq,
	}
}

func (b *book) Before(_ context.Context, _ string, before int64, limit int) ([]sessionstore.Event, error) {
	if b.gone {
		return nil, sessionstore.ErrNotFound
	}
	var out []sessionstore.Event
	for seq := b.top(before) - int64(limit); seq < b.top(before); seq++ {
		if seq >= b.trimmed && seq >= 1 {
			out = append(out, b.event(seq))
		}
	}
	return out, nil
}

func (b *book) Find(_ context.Context, _ string, _ sessionstore.Sender, id string) (sessionstore.Event, bool, error) {
	for seq := b.trimmed; seq <= b.n && !b.gone; seq++ {
		if b.event(seq).MessageID == id {
			return b.event(seq), true, nil
		}
	}
	return sessionstore.Event{}, false, nil
}

func (b *book) Message(ctx context.Context, _ string, _ sessionstore.Sender, id string) (sessionstore.Stored, bool, error) {
	all, err := b.Messages(ctx, sid, 0, int(b.n))
	for _, s := range all {
		if b.event(s.Seq).MessageID == id {
			return s, true, nil
		}
	}
	return sessionstore.Stored{}, false, err
}

func (b *book) top(before int64) int64 {
	if before <= 0 || before > b.n+1 {
		return b.n + 1
	}
	return before
}

func (b *book) Messages(_ context.Context, _ string, before int64, limit int) ([]sessionstore.Stored, error) {
	if b.away {
		return nil, sessionstore.ErrArchive
	}
	top := min(b.top(before), b.stored+1)
	var out []sessionstore.Stored
	for seq := max(1, top-int64(limit)); seq < top; seq++ {
		ev := b.event(seq)
		c := b.key.Seal(ev.Body.Fragment(), seal.MessageAD(sid, ev.MessageID))
		out = append(out, sessionstore.Stored{SessionID: sid, Seq: seq, H: ev.Header.Fragment(), C: c})
	}
	return out, nil
}

func (b *book) Session(context.Context, string) (sessionstore.SessionDoc, bool, error) {
	return sessionstore.SessionDoc{WrappedKey: b.wrapped}, true, nil
}

// Feature: chat-application-websocket, Properties 16 and 47 (Promises 16, 47): whatever part of a session is in
// MongoDB and in Redis, reading it page by page gives every event once, in order.
func TestHistory_readsEveryEventOnceInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(1, 60).Draw(t, "events")
		stored := rapid.Int64Range(0, n).Draw(t, "stored")
		trimmed := rapid.Int64Range(1, stored+1).Draw(t, "trimmed") // only what is stored is ever trimmed
		limit := rapid.IntRange(1, 25).Draw(t, "limit")
		b := newBook(t, n, stored, trimmed)
		b.gone = stored == n && rapid.Bool().Draw(t, "gone from redis")
		h := &History{Live: b, Stored: b, Keys: b.ring}
		var all []sessionstore.Event
		for before := int64(0); ; {
			page, err := h.Page(t.Context(), sid, before, limit)
			require.NoError(t, err)
			require.LessOrEqual(t, len(page.Events), limit)
			all = append(append([]sessionstore.Event(nil), page.Events...), all...)
			if !page.More {
				break
			}
			before = page.Events[0].Seq
		}
		require.Len(t, all, int(n))
		for i, ev := range all {
			require.Equal(t, b.event(int64(i+1)), ev)
		}
	})
}

// With MongoDB away the newest part is there, and says that it is a part.
func TestHistory_isPartialWhileMongoDBIsAway(t *testing.T) {
	b := newBook(t, 20, 10, 6)
	b.away = true
	h := &History{Live: b, Stored: b, Keys: b.ring}
	page, err := h.Page(t.Context(), sid, 0, 50)
	require.NoError(t, err)
	assert.True(t, page.Partial)
	assert.Len(t, page.Events, 15)

	events, err := h.Context(t.Context(), sid, 12)
	require.NoError(t, err)
	assert.EqualValues(t, 12, events[len(events)-1].Seq)

	b.gone = true
	_, err = h.Page(t.Context(), sid, 0, 50)
	require.ErrorIs(t, err, sessionstore.ErrArchive)
}

// One event is found by its id wherever it is.
func TestHistory_findsOneEventInRedisOrMongoDB(t *testing.T) {
	b := newBook(t, 20, 10, 6)
	h := &History{Live: b, Stored: b, Keys: b.ring}
	for seq := int64(1); seq <= 20; seq++ {
		ev, found, err := h.Message(t.Context(), sid, sessionstore.SenderUser, fmt.Sprint("m", seq))
		require.NoError(t, err)
		require.True(t, found, "event %d", seq)
		require.Equal(t, b.event(seq), ev)
	}
	_, found, err := h.Message(t.Context(), sid, sessionstore.SenderUser, "m21")
	require.NoError(t, err)
	require.False(t, found)
	b.away = true
	_, _, err = h.Message(t.Context(), sid, sessionstore.SenderUser, "m2")
	require.ErrorIs(t, err, sessionstore.ErrArchive, "cannot know")
}
