package live

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// lettersOf returns all dead letters of a partition.
func lettersOf(t *testing.T, s *Store, p int) []Letter {
	t.Helper()
	var out []Letter
	require.NoError(t, s.Letters(t.Context(), p, func(l Letter) bool { out = append(out, l); return true }))
	return out
}

// Promise 15: what MongoDB refused is not lost: it can be looked at, and written when the reason is gone, once.
func TestLetters_areListedAndPutBackOnce(t *testing.T) {
	s := keeping(t, nil)
	sid := newSession(t, s)
	p := partOf(t, sid)
	for i := range 2*lettersPage + 3 {
		say(t, s, sid, fmt.Sprint("secret ", i))
	}
	b := readOne(t, s, 1000)
	for _, e := range b.Entries[1:] {
		require.NoError(t, s.DeadWAL(t.Context(), b, e, "refused: code 1"))
	}
	require.NoError(t, s.DoneWAL(t.Context(), sessionstore.WALBatch{Partition: p, Token: b.Token, Inst: b.Inst, Entries: b.Entries[:1], Docs: b.Docs}))
	_, _, dead, err := s.Backlog(t.Context())
	require.NoError(t, err)
	require.EqualValues(t, 2*lettersPage+3, dead)

	list := lettersOf(t, s, p)
	require.Len(t, list, 2*lettersPage+3)
	for i, l := range list {
		require.Equal(t, sid, l.SessionID)
		require.EqualValues(t, i+2, l.Seq)
		require.Equal(t, "refused: code 1", l.Reason)
		require.Equal(t, sessionstore.TypeUserMessage, l.Type)
		require.Equal(t, "user", l.Sender)
		require.Equal(t, len(b.Entries[i+1].H)+len(b.Entries[i+1].C), l.Bytes)
		require.WithinDuration(t, time.Now(), l.Aside, time.Minute)
		require.WithinDuration(t, time.Now(), l.Accepted, time.Minute)
	}
	seen := 0
	require.NoError(t, s.Letters(t.Context(), p, func(Letter) bool { seen++; return false }))
	require.Equal(t, 1, seen, "whoever has seen enough is not told more")

	for want := range 2 {
		found, err := s.RetryLetter(t.Context(), p, list[0].ID)
		require.NoError(t, err)
		require.Equal(t, want == 0, found, "the second time there is nothing to put back")
	}
	again := readOne(t, s, 1000)
	require.Len(t, again.Entries, 1)
	require.Equal(t, b.Entries[1].Stored, again.Entries[0].Stored, "what comes back is what was set aside, byte for byte")
	require.NoError(t, s.DoneWAL(t.Context(), again))

	for want := range 2 {
		found, err := s.DropLetter(t.Context(), p, list[1].ID)
		require.NoError(t, err)
		require.Equal(t, want == 0, found)
	}
	require.Empty(t, readWAL(t, s, 1000))
	require.Len(t, lettersOf(t, s, p), 2*lettersPage+1)
	_, err = s.RetryLetter(t.Context(), Partitions, "1-1")
	require.Error(t, err)
}

// What an operator has dropped is not waited for: the end of a session may be such, and it goes like any other.
func TestDropLetter_ofANewestEventLetsItsSessionGo(t *testing.T) {
	s := keeping(t, nil)
	sid := newSession(t, s)
	require.NoError(t, s.End(t.Context(), sid, "explicit", ""))
	b := readOne(t, s, 1000)
	last := len(b.Entries) - 1
	require.NoError(t, s.DeadWAL(t.Context(), b, b.Entries[last], "refused: code 1"))
	b.Entries = b.Entries[:last]
	require.NoError(t, s.DoneWAL(t.Context(), b))
	require.Empty(t, ttls(t, s, sid), "it may be put back")
	require.Less(t, session(t, s, sid).Durable, session(t, s, sid).Seq)

	found, err := s.DropLetter(t.Context(), partOf(t, sid), lettersOf(t, s, partOf(t, sid))[0].ID)
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, session(t, s, sid).Seq, session(t, s, sid).Durable)
	require.NoError(t, s.DoneWAL(t.Context(), readOne(t, s, 1000)))
	require.NotEmpty(t, ttls(t, s, sid))
}

// An entry of a form that nobody here writes must not keep its partition from being read.
func TestReadWAL_readsPastAnEntryOfAnotherForm(t *testing.T) {
	s := keeping(t, nil)
	sid := newSession(t, s)
	p := partOf(t, sid)
	id, err := s.client.Do(t.Context(), "xadd", s.parts[p].wal(), "*", "x", "y").Text()
	require.NoError(t, err)
	say(t, s, sid, "after it")
	b := readOne(t, s, 100)
	require.Len(t, b.Entries, 3)
	require.Equal(t, sid, b.Entries[2].SessionID)
	require.EqualValues(t, 2, b.Entries[2].Seq)
	require.Equal(t, id, b.Entries[1].ID)
	require.NoError(t, s.DeadWAL(t.Context(), b, b.Entries[1], "unreadable"))
	l := lettersOf(t, s, p)
	require.Len(t, l, 1)
	require.Empty(t, l[0].Type)
	require.True(t, l[0].Accepted.IsZero())
}

func TestBacklog_countsWhatThisReplicaKeeps(t *testing.T) {
	s := keeping(t, nil)
	entries, oldest, dead, err := s.Backlog(t.Context())
	require.NoError(t, err)
	require.Zero(t, entries+int64(oldest)+dead)
	for range 3 {
		say(t, s, newSession(t, s), "x")
	}
	require.Eventually(t, func() bool {
		entries, oldest, _, err = s.Backlog(t.Context())
		return err == nil && entries == 6 && oldest >= 20*time.Millisecond
	}, patience, time.Millisecond)
	require.Less(t, oldest, time.Minute)
	for _, b := range readWAL(t, s, 100) {
		require.NoError(t, s.DoneWAL(t.Context(), b))
	}
	entries, oldest, _, err = s.Backlog(t.Context())
	require.NoError(t, err)
	require.Zero(t, entries+int64(oldest))

	other := newTestStore(t, nil)
	say(t, other, newSession(t, other), "x")
	entries, _, _, err = other.Backlog(t.Context())
	require.NoError(t, err)
	require.Zero(t, entries, "whoever keeps nothing has nothing waiting")
}

func TestMemoryUsed_isAPartOfTheLimit(t *testing.T) {
	s := newTestStore(t, nil)
	used, err := s.MemoryUsed(t.Context())
	require.NoError(t, err)
	require.GreaterOrEqual(t, used, 0.0)
	require.NoError(t, errors.Join(s.client.Close()))
	_, err = s.MemoryUsed(t.Context())
	require.ErrorIs(t, err, sessionstore.ErrAway)
}
