package live

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// stored is what MongoDB would have of a session: its document and its events.
func stored(tb testing.TB, s *Store, sid string) (sessionstore.SessionDoc, []sessionstore.Stored) {
	tb.Helper()
	ctx := testContext(tb)
	p, err := s.part(sid)
	require.NoError(tb, err)
	h, err := s.client.HGetAll(ctx, p.session(sid).hash()).Result()
	require.NoError(tb, err)
	doc := sessionDoc(sid, h)
	entries, err := s.client.XRange(ctx, p.session(sid).log(), "-", "+").Result()
	require.NoError(tb, err)
	var events []sessionstore.Stored
	for _, e := range entries {
		var seq int64
		_, err := fmt.Sscanf(e.ID, "%d-0", &seq)
		require.NoError(tb, err)
		events = append(events, sessionstore.Stored{SessionID: sid, Epoch: e.Values["e"].(string), Seq: seq,
			H: []byte(e.Values["h"].(string)), C: []byte(e.Values["c"].(string))})
	}
	return doc, events
}

func TestEpoch_changesWithThePrimary(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "one")
	before, err := s.Session(ctx, sid)
	require.NoError(t, err)
	p, _ := s.part(sid)
	require.NoError(t, s.client.Set(ctx, p.inst(), "another", 0).Err())

	page, err := s.Read(ctx, sid, before.Position)
	require.NoError(t, err)
	assert.True(t, page.Snapshot, "the reader may have seen what is lost")
	assert.NotEqual(t, before.Epoch, page.Epoch)
	a, err := s.Append(ctx, question(sid, "two"))
	require.NoError(t, err)
	assert.Equal(t, page.Epoch, a.Epoch)
	assert.Greater(t, a.Seq, before.Seq+1000)
	next, err := s.Read(ctx, sid, page.Position)
	require.NoError(t, err)
	assert.False(t, next.Snapshot)
	require.Len(t, next.Messages, 1)
	assert.Equal(t, a.Seq, next.Messages[0].Seq)

	// A Redis that has lost even who it was.
	require.NoError(t, s.client.Del(ctx, p.inst()).Err())
	b, err := s.Append(ctx, question(sid, "three"))
	require.NoError(t, err)
	assert.NotEqual(t, a.Epoch, b.Epoch)
	assert.Greater(t, b.Seq, a.Seq+1000)
	c, err := s.Append(ctx, question(sid, "four"))
	require.NoError(t, err)
	assert.Equal(t, b.Epoch, c.Epoch, "once is enough")
	assert.Equal(t, b.Seq+1, c.Seq)
}

func TestRestore_ofAHigherSeqRaisesTheNumbering(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	q := question(sid, "found in MongoDB")
	require.NoError(t, s.Restore(ctx, sid, q.Event.Sender, q.Event.MessageID, 500))
	a, err := s.Append(ctx, q)
	require.NoError(t, err)
	assert.True(t, a.Duplicate)
	assert.EqualValues(t, 500, a.Seq)
	b, err := s.Append(ctx, question(sid, "new"))
	require.NoError(t, err)
	assert.Greater(t, b.Seq, int64(1500))
}

func TestReadmit_writesALostAnswerAgain(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	q := ask(t, s, sid, "q")
	answer := sessionstore.Event{
		Header: sessionstore.Header{Type: sessionstore.TypeAIResponse, SessionID: sid, MessageID: AnswerID(sid, q),
			Sender: sessionstore.SenderAI, Spent: sessionstore.Spent{Tokens: 7}},
		Body: sessionstore.Body{Content: "answer", Metadata: map[string]string{sessionstore.MetaAnswers: q}},
	}
	g, err := s.Acquire(ctx, sid) // another replica began to answer meanwhile
	require.NoError(t, err)
	first, err := s.Readmit(ctx, answer)
	require.NoError(t, err)
	second, err := s.Readmit(ctx, answer)
	require.NoError(t, err)
	assert.True(t, second.Duplicate)
	assert.Equal(t, first.Position, second.Position)
	require.ErrorIs(t, s.Chunk(ctx, &g, "x", false), sessionstore.ErrFenced)
	_, err = s.Acquire(ctx, sid)
	require.ErrorIs(t, err, sessionstore.ErrNotOwed)

	require.NoError(t, s.End(ctx, sid, "explicit", ""))
	dup, err := s.Readmit(ctx, answer)
	require.NoError(t, err, "a duplicate is told so before the end is")
	assert.Equal(t, first.Position, dup.Position)
	answer.MessageID = uuid.NewString()
	_, err = s.Readmit(ctx, answer)
	require.ErrorIs(t, err, sessionstore.ErrEnded)
	answer.SessionID = newSessionID(3)
	_, err = s.Readmit(ctx, answer)
	require.ErrorIs(t, err, sessionstore.ErrNotFound)
}

// Beyond B5: a hold that Redis has lost comes back with its event, unless somebody else has taken the session since.
func TestReadmit_ofJoinsAndLeaves(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	g, err := s.Acquire(ctx, sid) // the promoted primary knew nothing of the join
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "half", false))
	lost := joinEvent(sid)
	for _, again := range []bool{false, true} {
		a, err := s.Readmit(ctx, lost)
		require.NoError(t, err)
		assert.Equal(t, again, a.Duplicate)
	}
	require.ErrorIs(t, s.Chunk(ctx, &g, "x", false), sessionstore.ErrFenced)
	require.NoError(t, s.RenewHold(ctx, sid, "a1", lost.MessageID), "the admin goes on with the fence they have")
	theirs := joinEvent(sid)
	theirs.Metadata = map[string]string{"admin_id": "a2", "name": "Bob"}
	_, err = s.Readmit(ctx, theirs)
	require.ErrorIs(t, err, sessionstore.ErrAssisted)

	// An older join of the same admin is history, and so is its leave.
	older := joinEvent(sid)
	_, err = s.Readmit(ctx, older)
	require.NoError(t, err)
	left := leaveEvent(sid, "a1", "Eve", older.MessageID, "left")
	left.MessageID, left.Sender = uuid.NewString(), sessionstore.SenderAdmin
	_, err = s.Readmit(ctx, left)
	require.NoError(t, err)
	require.NoError(t, s.RenewHold(ctx, sid, "a1", lost.MessageID))

	left.MessageID, left.Target = uuid.NewString(), lost.MessageID
	for range 2 {
		_, err = s.Readmit(ctx, left)
		require.NoError(t, err)
	}
	require.ErrorIs(t, s.RenewHold(ctx, sid, "a1", lost.MessageID), sessionstore.ErrNotHolder)
	assert.Equal(t, sessionstore.OwnerAI, session(t, s, sid).Owner)
	assert.Zero(t, dueAt(t, s, "hold", sid))
	assert.Equal(t, []string{"session_started", "user_message", "ai_response", "admin_join", "admin_join", "admin_leave",
		"admin_leave"}, types(transcript(t, s, sid)))
}

// Beyond B5: a rebuilt session belongs to whom it belonged, and to nobody for ever.
func TestRebuild_keepsTheOwner(t *testing.T) {
	r := startRedis(t)
	s := newStoreAt(t, redisURL(r), nil)
	ctx := testContext(t)
	help := func(sid string) {
		h := question(sid, "please")
		h.Owe, h.Help, h.Event.Type = false, true, sessionstore.TypeHelpRequest
		_, err := s.Append(ctx, h)
		require.NoError(t, err)
	}
	for name, c := range map[string]struct {
		before, after func(sid string) // the document is written between the two
		owner         sessionstore.Owner
		owed          bool
	}{
		"held":                          {before: func(sid string) { join(t, s, sid, eve) }, owner: sessionstore.OwnerHuman},
		"held since after the document": {after: func(sid string) { join(t, s, sid, eve) }, owner: sessionstore.OwnerHuman},
		"left since": {before: func(sid string) { join(t, s, sid, eve) }, after: func(sid string) {
			_, err := s.Leave(ctx, sid, "a1", session(t, s, sid).Fence, uuid.NewString())
			require.NoError(t, err)
		}, owner: sessionstore.OwnerAI, owed: true},
		"waiting":       {before: help, owner: sessionstore.OwnerWaiting, owed: true},
		"waiting since": {after: help, owner: sessionstore.OwnerWaiting, owed: true},
	} {
		t.Run(name, func(t *testing.T) {
			sid := openSession(t, s, "u1")
			for _, f := range []func(string){c.before, c.after} {
				if f == nil {
					continue
				}
				f(sid)
			}
			if c.before != nil && c.after == nil {
				ask := question(sid, "before")
				_, err := s.Append(ctx, ask)
				require.NoError(t, err)
			}
			want := session(t, s, sid)
			doc, _ := stored(t, s, sid)
			if c.after != nil { // an older document
				doc.Session.Owner, doc.Session.AdminID, doc.Session.AdminName = sessionstore.OwnerAI, "", ""
				if c.before != nil {
					doc.Session.Owner, doc.Session.AdminID, doc.Session.AdminName = sessionstore.OwnerHuman, "a1", "Eve"
				}
			}
			_, err := s.Append(ctx, question(sid, "last"))
			require.NoError(t, err)
			_, events := stored(t, s, sid)
			doc.Session.Fence = "" // MongoDB does not keep it
			require.NoError(t, s.client.FlushAll(ctx).Err())
			require.NoError(t, s.Rebuild(ctx, doc, events))
			got := session(t, s, sid)
			assert.Equal(t, c.owner, got.Owner)
			assert.Equal(t, want.AdminID, got.AdminID)
			assert.Equal(t, want.AdminName, got.AdminName)
			assert.Equal(t, want.Fence, got.Fence)
			_, err = s.Acquire(ctx, sid)
			if c.owed {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, sessionstore.ErrAssisted)
				assert.NotZero(t, dueAt(t, s, "hold", sid), "it lapses")
				require.NoError(t, s.RenewHold(ctx, sid, "a1", got.Fence))
			}
			require.NoError(t, s.End(ctx, sid, "explicit", ""))
		})
	}

	t.Run("held since before the events", func(t *testing.T) {
		sid := openSession(t, s, "u2")
		join(t, s, sid, eve)
		_, err := s.Append(ctx, adminSays(sid, "a1", "x"))
		require.NoError(t, err)
		doc, events := stored(t, s, sid)
		doc.Session.Fence = ""
		require.NoError(t, s.client.FlushAll(ctx).Err())
		require.NoError(t, s.Rebuild(ctx, doc, events[2:]))
		a, fence, err := s.Join(ctx, sid, eve, uuid.NewString())
		require.NoError(t, err)
		assert.True(t, a.Duplicate)
		require.NotEmpty(t, fence)
		require.NoError(t, s.RenewHold(ctx, sid, "a1", fence))
		_, err = s.Leave(ctx, sid, "a1", fence, uuid.NewString())
		require.NoError(t, err)
	})
}

// Beyond B2: after Redis has lost everything, a session goes on from MongoDB, in one piece, whoever rebuilds it.
func TestRebuild_afterFlushAllRacedByFour(t *testing.T) {
	t.Run("race", func(t *testing.T) { rebuildByFour(t, false) })
	t.Run("the one that knows least comes first", func(t *testing.T) { rebuildByFour(t, true) })
}

func rebuildByFour(t *testing.T, first bool) {
	t.Helper()
	r := startRedis(t)
	s := newStoreAt(t, redisURL(r), nil)
	other := beside(t, s, "r2")
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	q := question(sid, "first")
	q.Name = "Name"
	_, err := s.Append(ctx, q)
	require.NoError(t, err)
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "answer", false))
	_, _, err = s.Finish(ctx, &g, finalEvent(g))
	require.NoError(t, err)
	unanswered := ask(t, s, sid, "second")
	before, err := s.Session(ctx, sid)
	require.NoError(t, err)
	doc, events := stored(t, s, sid)
	require.NoError(t, s.client.FlushAll(ctx).Err())

	_, err = s.Session(ctx, sid)
	require.ErrorIs(t, err, sessionstore.ErrNotFound)
	var wg sync.WaitGroup
	for i, st := range []*Store{s, other, s, other} {
		rebuild := func() {
			d, e := doc, events
			if i == 0 { // this one read MongoDB before the last event was there
				e = events[:len(events)-1]
				d.Session.Seq = e[len(e)-1].Seq
			}
			assert.NoError(t, st.Rebuild(ctx, d, e))
		}
		if i == 0 && first {
			rebuild()
		} else {
			wg.Go(rebuild)
		}
	}
	wg.Wait()

	after, err := s.Session(ctx, sid)
	require.NoError(t, err)
	assert.GreaterOrEqual(t, after.Seq, before.Seq+999)
	assert.NotEqual(t, before.Epoch, after.Epoch)
	assert.Equal(t, "Name", after.Name)
	assert.Equal(t, before.Messages, after.Messages)
	assert.Equal(t, before.Tokens, after.Tokens)
	assert.Equal(t, before.Start, after.Start)
	dup, err := s.Append(ctx, q)
	require.NoError(t, err)
	assert.True(t, dup.Duplicate)
	a, err := s.Append(ctx, question(sid, "third"))
	require.NoError(t, err)
	assert.Greater(t, a.Seq, before.Seq+999)
	g, err = s.Acquire(ctx, sid)
	require.NoError(t, err)
	assert.Contains(t, g.Questions, unanswered)
	ses, found, err := s.Active(ctx, "u1")
	require.NoError(t, err)
	assert.True(t, found)
	assert.Equal(t, sid, ses.ID)
	o, err := s.Open(ctx, sessionstore.OpenRequest{UserID: "u1", Want: sid, ConnID: "r1.9", Position: before.Position})
	require.NoError(t, err)
	assert.True(t, o.Resumed)
	assert.False(t, o.Recovered)
}

func TestRebuild_owesWhatNoAnswerNames(t *testing.T) {
	r := startRedis(t)
	s := newStoreAt(t, redisURL(r), nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "answered")
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	waiting := ask(t, s, sid, "asked meanwhile")
	_, _, err = s.Finish(ctx, &g, finalEvent(g))
	require.NoError(t, err)
	doc, events := stored(t, s, sid)
	require.NoError(t, s.client.FlushAll(ctx).Err())
	require.NoError(t, s.Rebuild(ctx, doc, events))
	assert.NotZero(t, dueAt(t, s, "ask", sid))
	g, err = s.Acquire(ctx, sid)
	require.NoError(t, err)
	assert.Equal(t, []string{waiting}, g.Questions)
}

// Beyond B2, B7: Redis has lost two questions and the answer to both. Its author has written the answer again before the
// questions come back from MongoDB, which does not have the answer yet: neither is answered a second time.
func TestRebuild_owesNothingForWhatWasAnsweredBeforeItCameBack(t *testing.T) {
	r := startRedis(t)
	s := newStoreAt(t, redisURL(r), nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	first, second := ask(t, s, sid, "first"), ask(t, s, sid, "second")
	doc, events := stored(t, s, sid)
	require.NoError(t, s.client.FlushAll(ctx).Err())
	require.NoError(t, s.Rebuild(ctx, doc, events[:1]))
	_, err := s.Readmit(ctx, sessionstore.Event{
		Header: sessionstore.Header{Type: sessionstore.TypeAIResponse, SessionID: sid, MessageID: AnswerID(sid, first), Sender: sessionstore.SenderAI},
		Body:   sessionstore.Body{Content: "answer", Metadata: map[string]string{sessionstore.MetaAnswers: first + " " + second}},
	})
	require.NoError(t, err)
	require.NoError(t, s.Rebuild(ctx, doc, events))
	for range 2 { // the first of them would be cleared by its answer's id
		_, err = s.Acquire(ctx, sid)
		require.ErrorIs(t, err, sessionstore.ErrNotOwed)
	}
}

func TestRebuild_yieldsToAnotherActiveSession(t *testing.T) {
	r := startRedis(t)
	s := newStoreAt(t, redisURL(r), nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	doc, events := stored(t, s, sid)
	require.NoError(t, s.client.FlushAll(ctx).Err())
	fresh := openSession(t, s, "u1")
	err := s.Rebuild(ctx, doc, events)
	var active *sessionstore.ActiveError
	require.ErrorAs(t, err, &active)
	assert.Equal(t, fresh, active.SessionID)

	doc.Final, doc.Session.Active, doc.Session.End = true, false, time.Now()
	require.NoError(t, s.Rebuild(ctx, doc, events), "an ended one may be read beside it")
	ses, err := s.Session(ctx, sid)
	require.NoError(t, err)
	assert.False(t, ses.Active)
	p, _ := s.part(sid)
	ttl, err := s.client.PTTL(ctx, p.session(sid).log()).Result()
	require.NoError(t, err)
	assert.Greater(t, ttl, time.Minute)
}
