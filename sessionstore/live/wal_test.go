package live

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// keeping returns a store that keeps all partitions, without a running keeper.
func keeping(t *testing.T, set func(*Options)) *Store {
	t.Helper()
	s := newTestStore(t, set)
	require.NoError(t, renewOnce(s))
	require.Equal(t, Partitions, kept(s))
	return s
}

func readWAL(t *testing.T, s *Store, limit int) []sessionstore.WALBatch {
	t.Helper()
	b, err := s.ReadWAL(t.Context(), limit)
	require.NoError(t, err)
	return b
}

func readOne(t *testing.T, s *Store, limit int) sessionstore.WALBatch {
	t.Helper()
	b := readWAL(t, s, limit)
	require.Len(t, b, 1)
	return b[0]
}

func TestWAL_givesEntriesInOrderAndForgetsThemWhenDone(t *testing.T) {
	s := keeping(t, nil)
	sid := newSession(t, s)
	for i := range 5 {
		say(t, s, sid, fmt.Sprint(i))
	}
	b := readOne(t, s, 100)
	require.Equal(t, b, readOne(t, s, 100), "reading changes nothing")
	require.Len(t, b.Entries, 6)
	for i, e := range b.Entries {
		require.Equal(t, int64(i+1), e.Seq)
		require.Equal(t, sid, e.SessionID)
	}
	m, err := s.open(t.Context(), sid, b.Entries[5].Epoch, 6, b.Entries[5].H, b.Entries[5].C)
	require.NoError(t, err, "the bytes are those that the session's key opens")
	require.Equal(t, "4", content(t, m))

	require.Len(t, b.Docs, 1, "the start of a session is written soon")
	doc := b.Docs[0]
	require.Equal(t, sid, doc.Session.ID)
	require.Equal(t, int64(6), doc.Session.Seq)
	require.NotEmpty(t, doc.WrappedKey)
	require.False(t, doc.Final)

	for range 2 { // twice is once
		require.NoError(t, s.DoneWAL(t.Context(), b))
		require.Empty(t, readWAL(t, s, 100))
		ses, err := s.Session(t.Context(), sid)
		require.NoError(t, err)
		require.Equal(t, int64(6), ses.Durable)
	}
}

func TestWAL_isReadInBoundedPieces(t *testing.T) {
	s := keeping(t, nil)
	sid := newSession(t, s)
	for range 99 {
		say(t, s, sid, "x")
	}
	var seqs []int64
	for range 3 {
		b := readOne(t, s, 40)
		require.LessOrEqual(t, len(b.Entries), 40)
		for _, e := range b.Entries {
			seqs = append(seqs, e.Seq)
		}
		if len(seqs) < 100 {
			require.Empty(t, b.Docs, "a document must not speak of messages that are not written yet")
		} else {
			require.Len(t, b.Docs, 1)
		}
		require.NoError(t, s.DoneWAL(t.Context(), b))
	}
	require.Len(t, seqs, 100)

	big := strings.Repeat("x", walMost*2/3)
	for range 3 {
		say(t, s, sid, big)
	}
	for range 3 {
		b := readOne(t, s, 40)
		require.Len(t, b.Entries, 1)
		require.NoError(t, s.DoneWAL(t.Context(), b))
	}
	require.Empty(t, readWAL(t, s, 40))
}

// Memory of a replica that catches up after an outage of MongoDB is bounded, however many partitions are behind; one that
// is behind alone gets all of the room.
func TestReadWAL_ofAllPartitionsTogetherIsBounded(t *testing.T) {
	const sessions, each, size = 30, 10, 20 << 10
	s := keeping(t, nil)
	big := strings.Repeat("x", size)
	written := 0
	for n := range sessions {
		sid := openSession(t, s, fmt.Sprintf("u%d", n))
		for range each {
			say(t, s, sid, big)
		}
		written += each + 1
	}
	read, most := 0, 0
	for rounds := 0; ; rounds++ {
		require.Less(t, rounds, 20)
		batches := readWAL(t, s, 500)
		if len(batches) == 0 {
			break
		}
		bytes := bytesOf(batches)
		for _, b := range batches {
			read += len(b.Entries)
			require.NoError(t, s.DoneWAL(t.Context(), b))
		}
		require.Less(t, bytes, walRound+sessions*(size+1000))
		most = max(most, bytes)
	}
	require.Equal(t, written, read)
	require.Greater(t, most, walRound/2, "the room is used")

	sid := openSession(t, s, "alone")
	for range 60 {
		say(t, s, sid, big)
	}
	require.Len(t, readOne(t, s, 500).Entries, 2, "nobody was behind")
	require.Greater(t, len(readOne(t, s, 500).Entries), 40)

	for n := range sessions { // and what others have by now is not read whole because one is behind
		sid := openSession(t, s, fmt.Sprintf("u%d", n))
		for range each {
			say(t, s, sid, big)
		}
	}
	require.Less(t, bytesOf(readWAL(t, s, 500)), walMost+sessions*walLeast+size)
}

func bytesOf(batches []sessionstore.WALBatch) (bytes int) {
	for _, b := range batches {
		for _, e := range b.Entries {
			bytes += len(e.H) + len(e.C)
		}
	}
	return bytes
}

func TestDoneWAL_deletesNothingAfterRedisHasChanged(t *testing.T) {
	s := keeping(t, nil)
	sid := newSession(t, s)
	b := readOne(t, s, 100)
	require.NoError(t, s.client.Set(t.Context(), s.parts[b.Partition].inst(), "another", 0).Err())
	require.ErrorIs(t, s.DoneWAL(t.Context(), b), sessionstore.ErrFenced)
	ses, err := s.Session(t.Context(), sid)
	require.NoError(t, err)
	require.Zero(t, ses.Durable)
	require.Equal(t, b.Entries, readOne(t, s, 100).Entries)
}

func TestDoneWAL_leavesWhatCameAfterTheRead(t *testing.T) {
	s := keeping(t, nil)
	sid := newSession(t, s)
	b := readOne(t, s, 100)
	seq := say(t, s, sid, "late")
	require.NoError(t, s.DoneWAL(t.Context(), b))
	next := readOne(t, s, 100)
	require.Len(t, next.Entries, 1)
	require.Equal(t, seq, next.Entries[0].Seq)
	require.Len(t, next.Docs, 1, "the document has changed since it was read")
	require.NoError(t, s.DoneWAL(t.Context(), next))
	require.Empty(t, readWAL(t, s, 100))
	say(t, s, sid, "ordinary")
	require.Empty(t, readOne(t, s, 100).Docs, "an ordinary message does not have the document written at once")
}

func TestDoneWAL_letsGoOfAnEndedSessionOnlyWhenAllOfItIsWritten(t *testing.T) {
	s := keeping(t, nil)
	sid := newSession(t, s)
	require.NoError(t, s.DoneWAL(t.Context(), readOne(t, s, 100)))
	say(t, s, sid, "x")
	require.NoError(t, s.End(t.Context(), sid, "explicit", ""))
	key := s.parts[partOf(t, sid)].session(sid)
	ttl := func() time.Duration {
		d, err := s.client.PTTL(t.Context(), key.hash()).Result()
		require.NoError(t, err)
		return d
	}

	b := readOne(t, s, 100)
	require.Len(t, b.Docs, 1)
	require.True(t, b.Docs[0].Final)
	require.Len(t, b.Docs[0].Intervals, 1)
	require.False(t, b.Docs[0].Session.End.IsZero())
	part := b
	part.Docs = nil
	require.NoError(t, s.DoneWAL(t.Context(), part))
	require.Negative(t, ttl(), "its document is not written")
	part = b
	part.Entries = nil
	require.NoError(t, s.DoneWAL(t.Context(), part))
	for _, k := range []string{key.hash(), key.log(), key.ids()} {
		d, err := s.client.PTTL(t.Context(), k).Result()
		require.NoError(t, err)
		require.InDelta(t, endedTTL.Minutes(), d.Minutes(), 1, k)
	}
	require.Empty(t, readWAL(t, s, 100))
}

func TestDoneWAL_trimsOnlyWhatIsDurable(t *testing.T) {
	s := keeping(t, func(o *Options) { o.LogBytes = 2000 })
	sid := newSession(t, s)
	text := strings.Repeat("x", 500)
	for range 10 {
		say(t, s, sid, text)
	}
	b := readOne(t, s, 100)
	for range 10 {
		say(t, s, sid, text)
	}
	require.NoError(t, s.DoneWAL(t.Context(), b))
	entries, err := s.client.XRange(t.Context(), s.parts[b.Partition].session(sid).log(), "-", "+").Result()
	require.NoError(t, err)
	require.Len(t, entries, 10, "what is durable went, what is not stayed")
	require.NoError(t, s.DoneWAL(t.Context(), readOne(t, s, 100)))
	n, err := s.client.XLen(t.Context(), s.parts[b.Partition].session(sid).log()).Result()
	require.NoError(t, err)
	require.Less(t, n, int64(4))
	require.Positive(t, n)
}

func TestDeadWAL_movesAnEntryOnce(t *testing.T) {
	s := keeping(t, nil)
	sid := newSession(t, s)
	say(t, s, sid, "bad")
	b := readOne(t, s, 100)
	for range 2 {
		require.NoError(t, s.DeadWAL(t.Context(), b, b.Entries[1], "refused"))
	}
	letters, err := s.client.XRange(t.Context(), s.parts[b.Partition].dead(), "-", "+").Result()
	require.NoError(t, err)
	require.Len(t, letters, 1)
	require.Equal(t, "refused", letters[0].Values["why"])
	require.Equal(t, sid, letters[0].Values["k"])
	require.Equal(t, string(b.Entries[1].C), letters[0].Values["c"])
	require.Equal(t, b.Entries[:1], readOne(t, s, 100).Entries)
}

func TestReadWAL_forgetsDocumentsOfSessionsThatAreGone(t *testing.T) {
	s := keeping(t, nil)
	sid := newSessionID(5)
	require.NoError(t, s.client.Do(t.Context(), "zadd", s.parts[5].doc(), 1, sid).Err())
	require.Empty(t, readWAL(t, s, 100))
	n, err := s.client.ZCard(t.Context(), s.parts[5].doc()).Result()
	require.NoError(t, err)
	require.Zero(t, n)
}

func TestReadWAL_readsNothingForOneWhoKeepsNothing(t *testing.T) {
	s := newTestStore(t, nil)
	newSession(t, s)
	require.Empty(t, readWAL(t, s, 100))
}

func partOf(t *testing.T, sid string) int {
	t.Helper()
	p, ok := PartitionOf(sid)
	require.True(t, ok)
	return p
}
