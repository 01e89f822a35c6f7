package live

import (
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

func TestFind_byIdempotencyKey(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	q := question(sid, "one")
	a, err := s.Append(ctx, q)
	require.NoError(t, err)
	seq, known, err := s.Known(ctx, sid, sessionstore.SenderUser, q.Event.MessageID)
	require.NoError(t, err)
	assert.True(t, known)
	assert.Equal(t, a.Seq, seq)
	ev, found, err := s.Find(ctx, sid, sessionstore.SenderUser, q.Event.MessageID)
	require.NoError(t, err)
	require.True(t, found)
	assert.Equal(t, "one", ev.Content)
	assert.Equal(t, a.Seq, ev.Seq)

	_, known, err = s.Known(ctx, sid, sessionstore.SenderAI, q.Event.MessageID)
	require.NoError(t, err)
	assert.False(t, known, "the sender is a part of the key")
	for _, nobody := range []string{"not an id", "p01-nobody"} {
		_, found, err = s.Find(ctx, nobody, sessionstore.SenderUser, q.Event.MessageID)
		require.NoError(t, err)
		assert.False(t, found)
	}
	p, _ := s.part(sid) // known, but trimmed from the log
	require.NoError(t, s.client.XDel(ctx, p.session(sid).log(), strconv.FormatInt(a.Seq, 10)+"-0").Err())
	_, found, err = s.Find(ctx, sid, sessionstore.SenderUser, q.Event.MessageID)
	require.NoError(t, err)
	assert.False(t, found)
}

// A session that no Redis but this one has ever had is whole, also when it has ended; one that was written on another
// primary before may lack something.
func TestSession_saysWhetherItIsWhole(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	whole, broken := openSession(t, s, "u1"), openSession(t, s, "u2")
	p, _ := s.part(broken)
	require.NoError(t, s.client.HSet(ctx, p.session(broken).hash(), "inst", "the primary before").Err())
	for _, sid := range []string{whole, broken} {
		require.NoError(t, s.End(ctx, sid, "explicit", ""))
	}
	assert.True(t, session(t, s, whole).Whole)
	assert.False(t, session(t, s, broken).Whole)
}

// What asks for another answer is a turn of its own, in the order in which all was asked; messages between are one.
func TestAcquire_takesWishesOneByOne(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	add := func(typ string) string {
		id := uuid.NewString()
		_, err := s.Append(ctx, sessionstore.Append{Owe: true, Event: sessionstore.Event{
			Header: sessionstore.Header{Type: typ, SessionID: sid, MessageID: id, Sender: sessionstore.SenderUser, Target: "x"},
			Body:   sessionstore.Body{Content: "text"},
		}})
		require.NoError(t, err)
		return id
	}
	m1, m2 := add(sessionstore.TypeUserMessage), add(sessionstore.TypeUserMessage)
	w1, w2 := add(sessionstore.TypeRegenerate), add(sessionstore.TypeContinue)
	m3 := add(sessionstore.TypeUserMessage)
	w3 := add(sessionstore.TypeRetry)
	for i, want := range [][]string{{m1, m2}, {w1}, {w2}, {m3}, {w3}} {
		g, err := s.Acquire(ctx, sid)
		require.NoError(t, err)
		assert.Equal(t, want, g.Questions, "turn %d", i)
		_, more, err := s.Finish(ctx, &g, finalEvent(g))
		require.NoError(t, err)
		assert.Equal(t, i < 4, more)
	}
	_, err := s.Acquire(ctx, sid)
	require.ErrorIs(t, err, sessionstore.ErrNotOwed)
}

// Redis has lost its tail and was written on since; MongoDB has what was lost. Everything is known by its id again, what
// was answered is not owed, the log has no hole, and readers are told by a new epoch.
func TestRebuild_ofASessionThatIsThereAddsWhatItLacks(t *testing.T) {
	for name, goesOn := range map[string]bool{"nothing was written since": false, "it was written on": true} {
		t.Run(name, func(t *testing.T) {
			s := newTestStore(t, nil)
			ctx := testContext(t)
			sid := openSession(t, s, "u1")
			ask(t, s, sid, "one")
			before, err := s.Session(ctx, sid)
			require.NoError(t, err)
			q2, q3 := question(sid, "two"), question(sid, "three")
			for _, q := range []sessionstore.Append{q2, q3} {
				_, err = s.Append(ctx, q)
				require.NoError(t, err)
			}
			g, err := s.Acquire(ctx, sid)
			require.NoError(t, err)
			require.Len(t, g.Questions, 3)
			_, _, err = s.Finish(ctx, &g, finalEvent(g))
			require.NoError(t, err)
			doc, events := stored(t, s, sid)

			p, _ := s.part(sid)
			k := p.session(sid)
			lose := []any{}
			for _, e := range events[2:] {
				require.NoError(t, s.client.XDel(ctx, k.log(), strconv.FormatInt(e.Seq, 10)+"-0").Err())
				head, err := sessionstore.ParseFrame(sessionstore.Frame(e.Seq, e.H, nil))
				require.NoError(t, err)
				lose = append(lose, sessionstore.MessageKey(head.Sender, head.MessageID))
			}
			for _, id := range lose {
				require.NoError(t, s.client.HDel(ctx, k.ids(), id.(string)).Err())
			}
			require.NoError(t, s.client.Do(ctx, "XSETID", k.log(), strconv.FormatInt(before.Seq, 10)+"-0").Err())
			require.NoError(t, s.client.HSet(ctx, k.hash(), "s", before.Seq).Err())
			for i, q := range g.Questions { // as it was before the answer
				require.NoError(t, s.client.ZAdd(ctx, k.ask(), redis.Z{Score: float64(i), Member: q}).Err())
			}
			require.NoError(t, s.client.Set(ctx, p.inst(), "promoted", 0).Err())
			if goesOn {
				_, err = s.Append(ctx, sessionstore.Append{Event: question(sid, "since").Event})
				require.NoError(t, err)
			}
			at, err := s.Session(ctx, sid)
			require.NoError(t, err)

			require.NoError(t, s.Rebuild(ctx, doc, events))
			now, err := s.Session(ctx, sid)
			require.NoError(t, err)
			assert.NotEqual(t, at.Epoch, now.Epoch, "readers must be told")
			assert.Greater(t, now.Seq, doc.Session.Seq)
			for _, e := range events {
				head, _ := sessionstore.ParseFrame(sessionstore.Frame(e.Seq, e.H, nil))
				seq, known, err := s.Known(ctx, sid, head.Sender, head.MessageID)
				require.NoError(t, err)
				assert.True(t, known)
				assert.Equal(t, e.Seq, seq)
			}
			_, err = s.Acquire(ctx, sid)
			require.ErrorIs(t, err, sessionstore.ErrNotOwed, "it was answered, MongoDB says so")
			log, _, err := s.Before(ctx, sid, 0, 100)
			require.NoError(t, err)
			if goesOn {
				require.Len(t, log, 1, "what lies before the hole is read from MongoDB")
				assert.Equal(t, "since", log[0].Content)
			} else {
				assert.Len(t, log, len(events))
			}

			require.NoError(t, s.Rebuild(ctx, doc, events)) // a second one finds nothing to add
			again, err := s.Session(ctx, sid)
			require.NoError(t, err)
			assert.Equal(t, now.Position, again.Position)
		})
	}
}

// Redis remembers since when it has kept everything; after FLUSHALL that begins again.
func TestMayHaveLost_whenRedisIsYoung(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	lost := func() bool {
		may, err := s.MayHaveLost(ctx, sid)
		require.NoError(t, err)
		return may
	}
	assert.True(t, lost(), "nothing is known")
	require.NoError(t, s.Remember(ctx))
	assert.True(t, lost(), "it is young")
	p, _ := s.part(sid)
	old := time.Now().Add(-2 * time.Hour).UnixMilli()
	require.NoError(t, s.client.Set(ctx, p.born(), old, 0).Err())
	assert.False(t, lost(), "what is not there has ended")
	require.NoError(t, s.Remember(ctx))
	assert.Equal(t, strconv.FormatInt(old, 10), s.client.Get(ctx, p.born()).Val(), "what is noted stays")
	require.NoError(t, s.client.Del(ctx, p.born()).Err())
	assert.True(t, lost())
	may, err := s.MayHaveLost(ctx, "not an id")
	require.NoError(t, err)
	assert.False(t, may)
}

// Beyond B1: Redis has lost questions with their answers; who asked was quicker than who answered, and in another order,
// so that one answer is to both. The lost answers do not come on top.
func TestReadmit_addsNoSecondAnswer(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	lost := func(q string) sessionstore.Event {
		return sessionstore.Event{
			Header: sessionstore.Header{Type: sessionstore.TypeAIResponse, SessionID: sid, MessageID: AnswerID(sid, q), Sender: sessionstore.SenderAI},
			Body:   sessionstore.Body{Content: "lost", Metadata: map[string]string{sessionstore.MetaAnswers: q}},
		}
	}
	q1, q2 := question(sid, "one"), question(sid, "two")
	for _, q := range []sessionstore.Append{q2, q1} {
		_, err := s.Append(ctx, q)
		require.NoError(t, err)
	}
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.Len(t, g.Questions, 2)
	_, err = s.Readmit(ctx, lost(q1.Event.MessageID))
	require.ErrorIs(t, err, sessionstore.ErrHeld, "an answer to it is on its way")
	_, _, err = s.Finish(ctx, &g, finalEvent(g))
	require.NoError(t, err)
	a, err := s.Readmit(ctx, lost(q1.Event.MessageID))
	require.NoError(t, err)
	assert.True(t, a.Duplicate, "it is answered")
	_, known, err := s.Known(ctx, sid, sessionstore.SenderAI, AnswerID(sid, q1.Event.MessageID))
	require.NoError(t, err)
	assert.False(t, known)

	// Questions that were not asked again yet get their answer back, and are not owed another when they come, however
	// they come: a turn would take them together with those that are owed one.
	q3, q4 := question(sid, "three"), question(sid, "four")
	both := lost(q3.Event.MessageID)
	both.Metadata[sessionstore.MetaAnswers] += " " + q4.Event.MessageID
	a, err = s.Readmit(ctx, both)
	require.NoError(t, err)
	assert.False(t, a.Duplicate)
	q5 := question(sid, "five")
	for _, q := range []sessionstore.Append{q4, q5, q3} {
		got, err := s.Append(ctx, q)
		require.NoError(t, err)
		assert.Equal(t, q.Event.MessageID == q5.Event.MessageID, got.Owed)
	}
	g, err = s.Acquire(ctx, sid)
	require.NoError(t, err)
	assert.Equal(t, []string{q5.Event.MessageID}, g.Questions)
}
