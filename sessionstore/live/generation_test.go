package live

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

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
