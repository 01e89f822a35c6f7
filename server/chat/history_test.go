package chat

import (
	"context"
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// book is a session of n events of which MongoDB has the first stored, and Redis those from trimmed on, without those
// that it has lost.
type book struct {
	n, stored, trimmed int64
	lost               map[int64]bool
	key                seal.DataKey
	wrapped            []byte
	ring               *seal.Keyring
	away               bool
	gone               bool // Redis has forgotten the session
	noDoc              bool // MongoDB has messages of it, but not yet the document
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

func (b *book) Before(_ context.Context, _ string, before int64, limit int) ([]sessionstore.Event, int64, error) {
	if b.gone {
		return nil, 0, sessionstore.ErrNotFound
	}
	var out []sessionstore.Event
	for seq := max(1, b.trimmed); seq < b.top(before); seq++ {
		if !b.lost[seq] {
			out = append(out, b.event(seq))
		}
	}
	return out[max(0, len(out)-limit):], b.n, nil
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
	if b.noDoc {
		return sessionstore.SessionDoc{}, false, nil
	}
	return sessionstore.SessionDoc{WrappedKey: b.wrapped}, true, nil
}

// Feature: chat-application-websocket, Properties 16 and 47 (Promises 16, 47), Beyond B2: whatever part of a session is in
// MongoDB and in Redis, and whatever Redis has lost of what MongoDB has, reading it page by page gives every event once,
// in order.
func TestHistory_readsEveryEventOnceInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(1, 60).Draw(t, "events")
		stored := rapid.Int64Range(0, n).Draw(t, "stored")
		trimmed := rapid.Int64Range(1, stored+1).Draw(t, "trimmed") // only what is stored is ever trimmed
		limit := rapid.IntRange(1, 25).Draw(t, "limit")
		b := newBook(t, n, stored, trimmed)
		b.gone = stored == n && rapid.Bool().Draw(t, "gone from redis")
		b.lost = map[int64]bool{}
		for _, seq := range rapid.SliceOfN(rapid.Int64Range(1, 60), 0, 10).Draw(t, "lost by redis") {
			b.lost[seq] = seq <= stored
		}
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

// MongoDB is not asked for what cannot be there, whatever the caller names as the end.
func TestHistory_looksForNothingAboveTheTop(t *testing.T) {
	b := newBook(t, 20, 10, 1)
	b.away = true
	h := &History{Live: b, Stored: b, Keys: b.ring}
	page, err := h.Page(t.Context(), sid, math.MaxInt64, 50)
	require.NoError(t, err)
	assert.Len(t, page.Events, 20)
	assert.False(t, page.Partial)
}

// What Redis has lost and cannot be read from MongoDB now is missing, and the page says so.
func TestHistory_isPartialWhereRedisHasAHole(t *testing.T) {
	b := newBook(t, 20, 15, 1)
	b.lost = map[int64]bool{10: true, 11: true}
	h := &History{Live: b, Stored: b, Keys: b.ring}
	page, err := h.Page(t.Context(), sid, 0, 50)
	require.NoError(t, err)
	require.Len(t, page.Events, 20)
	require.False(t, page.Partial)
	for _, fault := range []*bool{&b.away, &b.noDoc} {
		*fault = true
		page, err = h.Page(t.Context(), sid, 0, 50)
		require.NoError(t, err)
		require.Len(t, page.Events, 18)
		require.True(t, page.Partial)
		*fault = false
	}
	b.gone, b.noDoc = true, true
	_, err = h.Page(t.Context(), sid, 0, 50)
	require.ErrorIs(t, err, sessionstore.ErrUnsealed)
}

// An answer that came back under another number while MongoDB has it under its first one is there once.
func TestHistory_showsAnEventOnce(t *testing.T) {
	b := newBook(t, 20, 20, 1)
	b.lost = map[int64]bool{10: true}
	h := &History{Live: again{b}, Stored: b, Keys: b.ring}
	page, err := h.Page(t.Context(), sid, 0, 50)
	require.NoError(t, err)
	require.Len(t, page.Events, 20)
	assert.Equal(t, "m10", page.Events[19].MessageID)
	assert.EqualValues(t, 1021, page.Events[19].Seq)
}

// again is a book whose Redis got event 10 back after a new epoch had begun.
type again struct{ *book }

func (a again) Before(ctx context.Context, sid string, before int64, limit int) ([]sessionstore.Event, int64, error) {
	events, _, err := a.book.Before(ctx, sid, before, limit)
	ev := a.event(10)
	ev.Seq = 1021
	return append(events, ev), 1021, err
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
