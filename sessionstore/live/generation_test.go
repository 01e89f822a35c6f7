package live

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

func finalEvent(g sessionstore.Generation) sessionstore.Event {
	return sessionstore.Event{
		Header: sessionstore.Header{Spent: sessionstore.Spent{Tokens: 10, TokensIn: 7, TokensOut: 3, Calls: g.Calls}, ResponseTime: 120},
		Body: sessionstore.Body{Content: g.Text, Metadata: map[string]string{
			sessionstore.MetaAnswers: strings.Join(g.Questions, " "),
		}},
	}
}

func TestAnswer_fromQuestionToFinal(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	_, err := s.Acquire(ctx, sid)
	require.ErrorIs(t, err, sessionstore.ErrNotOwed)

	q1, q2 := ask(t, s, sid, "one"), ask(t, s, sid, "two")
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	assert.Equal(t, AnswerID(sid, q1), g.AnswerID)
	assert.Equal(t, []string{q1, q2}, g.Questions)
	assert.EqualValues(t, 3, g.UpTo)
	assert.Equal(t, 1, g.Attempt)
	assert.Zero(t, dueAt(t, s, "ask", sid))
	assert.NotZero(t, dueAt(t, s, "gen", sid))
	_, err = beside(t, s, "r2").Acquire(ctx, sid)
	require.ErrorIs(t, err, sessionstore.ErrHeld)

	require.NoError(t, s.Book(ctx, &g, sessionstore.Call{ModelID: "gpt", Prompt: 7}))
	require.NoError(t, s.Chunk(ctx, &g, "Hel", false))
	require.NoError(t, s.Chunk(ctx, &g, "lo", false))
	require.NoError(t, s.Renew(ctx, &g))
	assert.Equal(t, "Hello", g.Text)

	page, err := s.Read(ctx, sid, sessionstore.Position{})
	require.NoError(t, err)
	require.NotNil(t, page.Running)
	ev, err := sessionstore.ParseFrame(page.Running.Frame)
	require.NoError(t, err)
	assert.Equal(t, "Hello", ev.Delta)
	assert.True(t, ev.Reset)
	assert.Equal(t, 2, page.Running.Chunk)

	q3 := ask(t, s, sid, "three")
	a, more, err := s.Finish(ctx, &g, finalEvent(g))
	require.NoError(t, err)
	assert.True(t, more)
	assert.False(t, a.Duplicate)
	again, more, err := s.Finish(ctx, &g, finalEvent(g))
	require.NoError(t, err)
	assert.True(t, again.Duplicate)
	assert.True(t, more)
	assert.Equal(t, a.Position, again.Position)
	assert.Zero(t, dueAt(t, s, "gen", sid))
	assert.LessOrEqual(t, dueAt(t, s, "ask", sid), time.Now().UnixMilli()+1000)
	require.ErrorIs(t, s.Chunk(ctx, &g, "late", false), sessionstore.ErrFenced)
	require.ErrorIs(t, s.Renew(ctx, &g), sessionstore.ErrFenced)
	require.ErrorIs(t, s.Book(ctx, &g, sessionstore.Call{ModelID: "gpt"}), sessionstore.ErrFenced)

	g2, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	assert.Equal(t, []string{q3}, g2.Questions)
	assert.Zero(t, g2.Chunk)
	assert.Zero(t, g2.Calls)
	_, more, err = s.Finish(ctx, &g2, finalEvent(g2))
	require.NoError(t, err)
	assert.False(t, more)
	ses, err := s.Session(ctx, sid)
	require.NoError(t, err)
	assert.EqualValues(t, 5, ses.Messages)
	assert.Equal(t, sessionstore.Spent{Tokens: 20, TokensIn: 14, TokensOut: 6, Calls: 1}, ses.Spent)
	assert.EqualValues(t, 240, ses.ResponseSum)
	assert.EqualValues(t, 120, ses.ResponseMax)
	assert.EqualValues(t, 2, ses.ResponseCount)
	transcript(t, s, sid)
}

func TestChunk_namesItsPlace(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "a", false))

	before := g
	require.NoError(t, s.Chunk(ctx, &g, "b", false))
	retried := before
	require.NoError(t, s.Chunk(ctx, &retried, "b", false), "a retried chunk is kept once")
	assert.Equal(t, g, retried)

	ahead := g
	ahead.Chunk += 5
	require.ErrorIs(t, s.Chunk(ctx, &ahead, "x", false), sessionstore.ErrGap)
	wrong := g
	wrong.Chunk = 1
	_, _, err = s.Finish(ctx, &wrong, finalEvent(wrong))
	require.ErrorIs(t, err, sessionstore.ErrGap)

	require.NoError(t, s.Chunk(ctx, &g, "new", true))
	assert.Equal(t, 2, g.Attempt)
	assert.Equal(t, 1, g.Chunk)
	assert.Equal(t, "new", g.Text)
	page, err := s.Read(ctx, sid, sessionstore.Position{})
	require.NoError(t, err)
	assert.Contains(t, string(page.Running.Frame), `"delta":"new"`)
}

// Beyond B1: an answer goes on under another replica, as a new attempt; the old producer is fenced.
func TestAcquire_stealsALapsedLease(t *testing.T) {
	s := newTestStore(t, func(o *Options) { o.GenLease = 30 * time.Millisecond })
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	q := ask(t, s, sid, "q")
	old, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &old, "half", false))

	other := beside(t, s, "r2")
	var g sessionstore.Generation
	require.Eventually(t, func() bool { g, err = other.Acquire(ctx, sid); return err == nil }, 5*time.Second, 10*time.Millisecond)
	assert.Equal(t, old.AnswerID, g.AnswerID)
	assert.Equal(t, []string{q}, g.Questions)
	assert.Equal(t, "half", g.Text)
	assert.Equal(t, 1, g.Chunk)
	assert.Equal(t, 1, g.Takeovers)
	require.ErrorIs(t, s.Chunk(ctx, &old, "zombie", false), sessionstore.ErrFenced)
	_, _, err = s.Finish(ctx, &old, finalEvent(old))
	require.ErrorIs(t, err, sessionstore.ErrFenced)
	require.NoError(t, s.Release(ctx, &old), "not to hold it is no error")

	require.NoError(t, other.Chunk(ctx, &g, "whole", true))
	_, _, err = other.Finish(ctx, &g, finalEvent(g))
	require.NoError(t, err)
	events := transcript(t, s, sid)
	assert.Equal(t, "whole", events[len(events)-1].Content)
}

func TestRelease_makesTheAnswerDueAtOnce(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "half", false))
	require.NoError(t, s.Release(ctx, &g))
	require.NoError(t, s.Release(ctx, &g))
	require.ErrorIs(t, s.Chunk(ctx, &g, "x", false), sessionstore.ErrFenced)
	g2, err := beside(t, s, "r2").Acquire(ctx, sid)
	require.NoError(t, err)
	assert.Equal(t, "half", g2.Text)
	assert.Zero(t, g2.Takeovers, "to hand over is not to fall silent")
}

// Beyond B8: each provider call is booked once, before its request leaves.
func TestBook_twiceCountsOnce(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	twin := g
	require.NoError(t, s.Book(ctx, &g, sessionstore.Call{ModelID: "m"}))
	require.NoError(t, s.Book(ctx, &twin, sessionstore.Call{ModelID: "m"}))
	p, _ := s.part(sid)
	calls, err := s.client.HGet(ctx, p.session(sid).gen(), "calls").Int()
	require.NoError(t, err)
	assert.Equal(t, 1, calls)

	late := g
	late.Calls = 0 // a delayed repetition of the first booking, after the second
	require.NoError(t, s.Book(ctx, &g, sessionstore.Call{ModelID: "other", Prompt: 9}))
	require.NoError(t, s.Book(ctx, &late, sessionstore.Call{ModelID: "m", Prompt: 1}))
	gen, err := s.client.HGetAll(ctx, p.session(sid).gen()).Result()
	require.NoError(t, err)
	assert.Equal(t, []string{"2", "other", "9", "1"}, []string{gen["calls"], gen["model"], gen["pe"], gen["sn"]})
}

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

func TestAcquire_ofAnAnswerThatIsThereOnlyClears(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	q := ask(t, s, sid, "q")
	require.NoError(t, s.Restore(ctx, sid, sessionstore.SenderAI, AnswerID(sid, q), 3))
	_, err := s.Acquire(ctx, sid)
	require.ErrorIs(t, err, sessionstore.ErrNotOwed)
	assert.Zero(t, dueAt(t, s, "ask", sid))
}

// Redis has lost an answer's end, so that it seems to run, and gets it back from MongoDB: that ends it. Else it would be
// produced again and again, its end would be a duplicate each time, and no later question would ever be answered.
func TestAcquire_endsAnAnswerWhoseEndHasComeBack(t *testing.T) {
	for name, notice := range map[string]func(*testing.T, *Store, *sessionstore.Generation){
		"by who takes it over": func(t *testing.T, s *Store, g *sessionstore.Generation) {
			t.Helper()
			require.NoError(t, s.Release(testContext(t), g))
			_, err := s.Acquire(testContext(t), g.SessionID)
			require.ErrorIs(t, err, sessionstore.ErrNotOwed)
		},
		"by who finishes it": func(t *testing.T, s *Store, g *sessionstore.Generation) {
			t.Helper()
			a, _, err := s.Finish(testContext(t), g, finalEvent(*g))
			require.NoError(t, err)
			require.True(t, a.Duplicate)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestStore(t, nil)
			ctx := testContext(t)
			sid := openSession(t, s, "u1")
			ask(t, s, sid, "first")
			g, err := s.Acquire(ctx, sid)
			require.NoError(t, err)
			require.NoError(t, s.Restore(ctx, sid, sessionstore.SenderAI, g.AnswerID, 3))
			notice(t, s, &g)
			assert.Zero(t, dueAt(t, s, "gen", sid))
			second := ask(t, s, sid, "second")
			g, err = s.Acquire(ctx, sid)
			require.NoError(t, err)
			assert.Equal(t, []string{second}, g.Questions)
			_, _, err = s.Finish(ctx, &g, finalEvent(g))
			require.NoError(t, err)
		})
	}
}

func TestAcquire_ofARegenerationNamesWhatItReplaces(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	r := question(sid, "")
	r.Event.Type, r.Event.Target = sessionstore.TypeRegenerate, "old-answer"
	_, err := s.Append(ctx, r)
	require.NoError(t, err)
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	assert.Equal(t, "old-answer", g.Replaces)
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

func TestEnd_isIdempotentAndCutsARunningAnswer(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "half", false))
	require.NoError(t, s.End(ctx, sid, "explicit", "next-session"))
	require.NoError(t, s.End(ctx, sid, "explicit", ""))
	events := transcript(t, s, sid)
	assert.Equal(t, []string{"session_started", "user_message", "ai_response", "session_ended"}, types(events))
	assert.Equal(t, map[string]string{"reason": "explicit", "next": "next-session"}, events[3].Metadata)
	_, found, err := s.Active(ctx, "u1")
	require.NoError(t, err)
	assert.False(t, found)
	_, err = s.Acquire(ctx, sid)
	require.ErrorIs(t, err, sessionstore.ErrEnded)
	for _, kind := range []string{"end", "ask", "gen", "cut"} {
		assert.Zero(t, dueAt(t, s, kind, sid), kind)
	}
	missing, err := s.Touch(ctx, []Conn{{sid, "r1.1"}})
	require.NoError(t, err)
	assert.Len(t, missing, 1)
	require.NoError(t, s.Gone(ctx, Conn{sid, "r1.1"}))
	assert.Zero(t, dueAt(t, s, "end", sid), "a late leave revives nothing")
}

func TestExpire_sparesASessionWithARunningAnswer(t *testing.T) {
	s := newTestStore(t, func(o *Options) { o.Window, o.Presence = time.Millisecond, time.Millisecond })
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return dueAt(t, s, "end", sid) < s.client.Time(ctx).Val().UnixMilli() },
		time.Second, time.Millisecond)
	require.NoError(t, s.expire(ctx, sid))
	ses, err := s.Session(ctx, sid)
	require.NoError(t, err)
	assert.True(t, ses.Active)
	assert.Greater(t, dueAt(t, s, "end", sid), s.client.Time(ctx).Val().UnixMilli(), "it is looked at again later")
	o, err := s.Open(ctx, sessionstore.OpenRequest{UserID: "u1", Want: sid})
	require.NoError(t, err)
	assert.True(t, o.Resumed)

	_, _, err = s.Finish(ctx, &g, finalEvent(g))
	require.NoError(t, err)
	require.NoError(t, s.expire(ctx, sid))
	require.NoError(t, s.expire(ctx, sid))
	assert.Equal(t, []string{"session_started", "user_message", "ai_response", "session_ended"}, types(transcript(t, s, sid)))
}

// Whatever comes together, the end comes last and comes once.
func TestRace_endAgainstEverything(t *testing.T) {
	s := newTestStore(t, func(o *Options) {
		o.GenLease = 5 * time.Millisecond
		o.Window = time.Millisecond
		o.Presence = time.Millisecond
	})
	for round := range 30 {
		ctx := testContext(t)
		user := fmt.Sprintf("u%d", round)
		sid := openSession(t, s, user)
		ask(t, s, sid, "q")
		g, err := s.Acquire(ctx, sid)
		require.NoError(t, err)
		require.NoError(t, s.Chunk(ctx, &g, "half", false))
		other := beside(t, s, "r2")
		var wg sync.WaitGroup
		wg.Go(func() {
			for s.Chunk(ctx, &g, ".", false) == nil && g.Chunk < 10 {
			}
			_, _, _ = s.Finish(ctx, &g, finalEvent(g))
		})
		wg.Go(func() { assert.NoError(t, other.End(ctx, sid, "explicit", "")) })
		wg.Go(func() { _ = s.expire(ctx, sid) })
		wg.Go(func() { _, _ = other.Cut(ctx, joinEvent(sid), &Hold{AdminID: "a1"}) })
		wg.Go(func() {
			if g, err := other.Acquire(ctx, sid); err == nil {
				_ = other.Chunk(ctx, &g, "stolen", true)
			}
		})
		wg.Go(func() { _, _ = s.Append(ctx, question(sid, "another")) })
		wg.Go(func() { _, _ = s.Touch(ctx, []Conn{{sid, "r1.1"}}); _ = s.Gone(ctx, Conn{sid, "r1.1"}) })
		wg.Go(func() { _ = s.Settle(ctx, sid) })
		wg.Wait()
		events := transcript(t, s, sid)
		ended, joined := 0, false
		for _, ev := range events {
			switch ev.Type {
			case sessionstore.TypeEnded:
				ended++
			case sessionstore.TypeAdminJoin:
				joined = true
			case sessionstore.TypeAIResponse:
				assert.False(t, joined, "no AI text follows a join")
			}
		}
		assert.Equal(t, 1, ended)
		assert.Equal(t, sessionstore.TypeEnded, events[len(events)-1].Type)
		for _, kind := range []string{"end", "ask", "gen", "cut", "hold"} {
			assert.Zero(t, dueAt(t, s, kind, sid), kind)
		}
	}
}
