package live

import (
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

func TestStop_reachesTheProducer(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	require.NoError(t, s.Stop(ctx, sid, ""), "with nothing running it does nothing")
	ask(t, s, sid, "q")
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "half", false))
	require.NoError(t, s.Stop(ctx, sid, uuid.NewString()), "another answer is meant")
	require.NoError(t, s.Renew(ctx, &g))
	require.NoError(t, s.Stop(ctx, sid, g.AnswerID))
	require.ErrorIs(t, s.Renew(ctx, &g), sessionstore.ErrStopped)
	require.ErrorIs(t, s.Chunk(ctx, &g, "more", false), sessionstore.ErrStopped)
	assert.Equal(t, "half", g.Text)
	_, _, err = s.Finish(ctx, &g, finalEvent(g))
	require.NoError(t, err)
	ask(t, s, sid, "q")
	g, err = s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Renew(ctx, &g), "the next answer is not stopped")
}

// Beyond B4: takeover is a fence. Whatever was shown precedes its cause in the transcript, and no AI text follows.
func TestCut_partialPrecedesItsCause(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	q := ask(t, s, sid, "q")
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "half ", false))
	require.NoError(t, s.Chunk(ctx, &g, "an answer", false))

	join := joinEvent(sid)
	a, err := s.Cut(ctx, join, &Hold{AdminID: "a1", Name: "Eve"})
	require.NoError(t, err)
	assert.False(t, a.Duplicate)
	again, err := s.Cut(ctx, join, &Hold{AdminID: "a1", Name: "Eve"})
	require.NoError(t, err)
	assert.True(t, again.Duplicate)
	assert.Equal(t, a.Position, again.Position)
	require.ErrorIs(t, s.Chunk(ctx, &g, "late", false), sessionstore.ErrFenced)

	events := transcript(t, s, sid)
	partial, cause := events[len(events)-2], events[len(events)-1]
	assert.Equal(t, "half an answer", partial.Content)
	assert.Equal(t, map[string]string{sessionstore.MetaInterrupted: "admin_join", sessionstore.MetaAnswers: q}, partial.Metadata)
	assert.Equal(t, sessionstore.TypeAdminJoin, cause.Type)
	assert.Equal(t, a.Seq, cause.Seq)

	ses, err := s.Session(ctx, sid)
	require.NoError(t, err)
	assert.Equal(t, sessionstore.OwnerHuman, ses.Owner)
	assert.Equal(t, "a1", ses.AdminID)
	assert.Equal(t, "Eve", ses.AdminName)
	assert.True(t, ses.AdminAssisted)
	_, err = s.Acquire(ctx, sid)
	require.ErrorIs(t, err, sessionstore.ErrAssisted)
	owed, err := s.Append(ctx, question(sid, "to the admin"))
	require.NoError(t, err)
	assert.False(t, owed.Owed)
	_, err = s.Cut(ctx, joinEvent(sid), &Hold{AdminID: "a2", Name: "Bob"})
	require.ErrorIs(t, err, sessionstore.ErrAssisted)
}

// A stop that comes between the question and whoever begins to answer is kept: the answer ends before a model is asked.
// It is for what was asked before it, and for nothing later.
func TestStop_beforeAnybodyHasBegun(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	require.NoError(t, s.Stop(ctx, sid, ""), "nothing is owed: nothing to stop")
	call := sessionstore.Call{ModelID: "gpt", Prompt: 1}
	stopped := func(want bool) {
		t.Helper()
		g, err := s.Acquire(ctx, sid)
		require.NoError(t, err)
		if err = s.Book(ctx, &g, call); want {
			require.ErrorIs(t, err, sessionstore.ErrStopped)
		} else {
			require.NoError(t, err)
		}
		_, _, err = s.Finish(ctx, &g, finalEvent(g))
		require.NoError(t, err)
	}
	ask(t, s, sid, "one")
	stopped(false)
	ask(t, s, sid, "two")
	require.NoError(t, s.Stop(ctx, sid, ""))
	stopped(true)
	ask(t, s, sid, "three")
	stopped(false)
	ask(t, s, sid, "four")
	require.NoError(t, s.Stop(ctx, sid, ""))
	ask(t, s, sid, "five, after all")
	stopped(false)
	ask(t, s, sid, "six")
	require.NoError(t, s.Stop(ctx, sid, "another answer"))
	stopped(false)
}

// Beyond B11: what was shown of an answer that was to take another's place, or to go on after it, says so like its final
// would have, whatever cuts it. The next answer begins without that.
func TestCut_partialSaysWhatItIsAbout(t *testing.T) {
	for name, cut := range map[string]func(t *testing.T, s *Store, sid, past string){
		"join": func(t *testing.T, s *Store, sid, _ string) {
			t.Helper()
			_, err := s.Cut(testContext(t), joinEvent(sid), &Hold{AdminID: "a1", Name: "Eve"})
			require.NoError(t, err)
		},
		"end": func(t *testing.T, s *Store, sid, _ string) {
			t.Helper()
			require.NoError(t, s.End(testContext(t), sid, "explicit", ""))
		},
		"another session": func(t *testing.T, s *Store, _, past string) {
			t.Helper()
			_, err := s.Activate(testContext(t), "u1", past, true)
			require.NoError(t, err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestStore(t, nil)
			ctx := testContext(t)
			past := openSession(t, s, "u1")
			require.NoError(t, s.End(ctx, past, "explicit", ""))
			sid := openSession(t, s, "u1")
			wish := ask(t, s, sid, "")
			g, err := s.Acquire(ctx, sid)
			require.NoError(t, err)
			about := map[string]string{sessionstore.MetaAnswers: wish + " q1 q2", sessionstore.MetaReplaces: "a1", sessionstore.MetaContinues: "a0"}
			require.NoError(t, s.Book(ctx, &g, sessionstore.Call{ModelID: "gpt", Prompt: 7, About: about}))
			require.NoError(t, s.Chunk(ctx, &g, "half", false))
			cut(t, s, sid, past)
			events := transcript(t, s, sid)
			about[sessionstore.MetaInterrupted] = events[len(events)-1].Type
			assert.Equal(t, about, events[len(events)-2].Metadata)
		})
	}

	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "first")
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Book(ctx, &g, sessionstore.Call{ModelID: "gpt", About: map[string]string{sessionstore.MetaReplaces: "a1"}}))
	_, _, err = s.Finish(ctx, &g, finalEvent(g))
	require.NoError(t, err)
	q := ask(t, s, sid, "second")
	g, err = s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "half", false))
	require.NoError(t, s.End(ctx, sid, "explicit", ""))
	events := transcript(t, s, sid)
	assert.Equal(t, map[string]string{sessionstore.MetaInterrupted: "session_ended", sessionstore.MetaAnswers: q}, events[len(events)-2].Metadata)
}

func TestSettle_finishesACutThatWasLeftBehind(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "half", false))
	leaveCut(t, s, endedEvent(sid, "explicit", ""))
	assert.NotZero(t, dueAt(t, s, "cut", sid))
	_, _, err = s.Finish(ctx, &g, finalEvent(g))
	require.ErrorIs(t, err, sessionstore.ErrFenced)

	var wg sync.WaitGroup
	other := beside(t, s, "r2")
	for range 4 {
		wg.Go(func() { assert.NoError(t, s.Settle(ctx, sid)) })
		wg.Go(func() { assert.NoError(t, other.Settle(ctx, sid)) })
	}
	wg.Wait()
	assert.Equal(t, []string{"session_started", "user_message", "ai_response", "session_ended"}, types(transcript(t, s, sid)))
	assert.Zero(t, dueAt(t, s, "cut", sid))
	ses, err := s.Session(ctx, sid)
	require.NoError(t, err)
	assert.False(t, ses.Active)
}

// leaveCut runs cut.lua without what follows, as a replica does that dies then.
func leaveCut(tb testing.TB, s *Store, ev sessionstore.Event) {
	tb.Helper()
	ctx := testContext(tb)
	p, err := s.part(ev.SessionID)
	require.NoError(tb, err)
	f, err := s.facts(ctx, ev.SessionID)
	require.NoError(tb, err)
	e := sealEvent(f.key, ev)
	kind := map[string]string{sessionstore.TypeEnded: "end", sessionstore.TypeAdminJoin: "join"}[ev.Type]
	r, err := s.run(ctx, s.sc.cut, p.eventKeys(ev.SessionID, f.user), append(s.args(p, ev.SessionID, 11),
		e.id, e.h, e.c, kind, ev.Type, "a1", "Eve", ev.MessageID, 2000, 30000, "")...)
	require.NoError(tb, err)
	require.Equal(tb, "CUT", r.code())
}

func TestAcquire_settlesACutFirst(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "half", false))
	leaveCut(t, s, joinEvent(sid))
	_, err = s.Acquire(ctx, sid)
	require.ErrorIs(t, err, sessionstore.ErrAssisted)
	assert.Equal(t, []string{"session_started", "user_message", "ai_response", "admin_join"}, types(transcript(t, s, sid)))
}
