package server

import (
	"context"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/server/chat"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// noTranscripts is a MongoDB that is away.
type noTranscripts struct{}

func (noTranscripts) Page(context.Context, string, int64, int) (chat.Transcript, error) {
	return chat.Transcript{}, sessionstore.ErrArchive
}

// transcripts is a session of n events in MongoDB; asked says how often it was read.
type transcripts struct {
	n     int64
	asked int
}

func (f *transcripts) Page(_ context.Context, _ string, before int64, limit int) (chat.Transcript, error) {
	f.asked++
	var t chat.Transcript
	before = min(before, f.n+1)
	for seq := max(1, before-int64(limit)); seq < before; seq++ {
		ev, err := sessionstore.ParseFrame(snapshotEvent(seq).Frame)
		if err != nil {
			return t, err
		}
		t.Events = append(t.Events, ev)
	}
	t.More = len(t.Events) == limit
	return t, nil
}

func snapshotEvent(seq int64) sessionstore.Message {
	return event(seq, sessionstore.Header{Type: sessionstore.TypeUserMessage, Sender: sessionstore.SenderUser, MessageID: "m" + string(rune('a'+seq))}, "text")
}

func snapshotOf(top int64, hasMore bool, seqs ...int64) sessionstore.Page {
	p := sessionstore.Page{Snapshot: true, HasMore: hasMore, Position: sessionstore.Position{Epoch: "2-b", Seq: top}}
	for _, seq := range seqs {
		p.Messages = append(p.Messages, snapshotEvent(seq))
	}
	return p
}

// Beyond B2: a snapshot of a session of which Redis has lost events that MongoDB has shows them, in their places; one of
// a session that is whole asks nobody.
func TestSnapshot_isCompletedFromMongoDBWhereRedisLacksEvents(t *testing.T) {
	for name, c := range map[string]struct {
		page sessionstore.Page
		want []int64
		asks int
	}{
		"whole":                  {snapshotOf(3, false, 1, 2, 3), []int64{1, 2, 3}, 0},
		"a hole":                 {snapshotOf(5, false, 1, 2, 5), []int64{1, 2, 3, 4, 5}, 1},
		"a lost end":             {snapshotOf(1005, false, 1, 2, 3), []int64{1, 2, 3, 4, 5}, 1},
		"cut for what it lacked": {snapshotOf(5, true, 4, 5), []int64{1, 2, 3, 4, 5}, 1},
		"nothing left":           {snapshotOf(1005, true), []int64{1, 2, 3, 4, 5}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f, m := &transcripts{n: 5}, newMending()
			w := newWhole(f, &health{}, m.mend, slog.New(slog.DiscardHandler))
			w.complete(t.Context(), "p01-s", &c.page)
			m.round(t.Context())
			assert.Len(t, m.calls, c.asks, "what Redis lacks it is given back")
			var got []int64
			for _, m := range c.page.Messages {
				got = append(got, m.Seq)
			}
			assert.Equal(t, c.want, got)
			assert.Equal(t, c.asks, f.asked)
			assert.False(t, c.page.HasMore)
		})
	}
}

// A full snapshot with a hole has as many events as one without: it is completed all the same.
func TestSnapshot_ofManyEventsIsCompletedToo(t *testing.T) {
	var seqs, want []int64
	for seq := int64(1); seq <= live.SnapshotEvents+5; seq++ {
		if seq < 41 || seq > 45 {
			seqs = append(seqs, seq)
		}
		if seq > 5 {
			want = append(want, seq)
		}
	}
	page := snapshotOf(live.SnapshotEvents+5, true, seqs...)
	newWhole(&transcripts{n: live.SnapshotEvents + 5}, &health{}, newMending().mend, slog.New(slog.DiscardHandler)).complete(t.Context(), "p01-s", &page)
	var got []int64
	for _, m := range page.Messages {
		got = append(got, m.Seq)
	}
	assert.Equal(t, want, got)
	assert.True(t, page.HasMore)
}

// With MongoDB known to be away nobody waits for it, and a snapshot is what Redis has.
func TestSnapshot_doesNotWaitForAMongoDBThatIsAway(t *testing.T) {
	f, h := &transcripts{n: 5}, &health{}
	h.archiveOff.Store(true)
	page := snapshotOf(5, true, 1, 2, 5)
	newWhole(f, h, newMending().mend, slog.New(slog.DiscardHandler)).complete(t.Context(), "p01-s", &page)
	require.Len(t, page.Messages, 3)
	require.Zero(t, f.asked)
}
