package live

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/sessionstore"
)

// call is a call of a model whose prompt is estimated at so many tokens.
func call(prompt int64) sessionstore.Call { return sessionstore.Call{ModelID: "m", Prompt: prompt} }

// whole is what a call cost that its provider has reported.
func whole(in, out int64) sessionstore.Spent {
	return sessionstore.Spent{Tokens: in + out, TokensIn: in, TokensOut: out}
}

// guess is what a call cost of which nobody knows more.
func guess(in, out int64) sessionstore.Spent {
	u := whole(in, out)
	u.Estimated = true
	return u
}

func begin(tb testing.TB, s *Store, sid string) sessionstore.Generation {
	tb.Helper()
	g, err := s.Acquire(testContext(tb), sid)
	require.NoError(tb, err)
	return g
}

// lapse makes the lease of the running answer lapse, as after the death of its producer.
func lapse(tb testing.TB, s *Store, sid string) {
	tb.Helper()
	p, err := s.part(sid)
	require.NoError(tb, err)
	require.NoError(tb, s.client.ZRem(testContext(tb), p.due(), "gen:"+sid).Err())
}

// finish ends the answer as one that cost what is known by now.
func finish(tb testing.TB, s *Store, g *sessionstore.Generation) {
	tb.Helper()
	ev := finalEvent(*g)
	ev.Spent = g.Spent
	_, _, err := s.Finish(testContext(tb), g, ev)
	require.NoError(tb, err)
}

// Beyond B8: what a call cost whose replica was killed is estimated by the heir: the prompt as booked, and what was
// published since.
func TestAcquire_estimatesTheCallOfAReplicaThatIsGone(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	g := begin(t, s, sid)
	require.NoError(t, s.Book(ctx, &g, call(40)))
	g.Spent = g.Plus(whole(50, 0)) // it failed, and its provider has told what that cost
	require.NoError(t, s.Book(ctx, &g, call(41)))
	require.NoError(t, s.Chunk(ctx, &g, "one two three four.", false))
	lapse(t, s, sid)

	heir := begin(t, beside(t, s, "r2"), sid)
	assert.Equal(t, sessionstore.Spent{Tokens: 96, TokensIn: 91, TokensOut: 5, Calls: 2, Estimated: true}, heir.Spent)
	lapse(t, s, sid)
	other := beside(t, s, "r3")
	third := begin(t, other, sid)
	assert.Equal(t, heir.Spent, third.Spent, "an heir that dies before its own call adds nothing")
	require.NoError(t, other.Book(ctx, &third, call(42)))
	require.NoError(t, other.Chunk(ctx, &third, "again.", true))
	lapse(t, s, sid)
	last := begin(t, s, sid)
	assert.Equal(t, sessionstore.Spent{Tokens: 140, TokensIn: 133, TokensOut: 7, Calls: 3, Estimated: true}, last.Spent)
	finish(t, s, &last)
	assert.Equal(t, sessionstore.Spent{Tokens: 140, TokensIn: 133, TokensOut: 7, Calls: 3}, session(t, s, sid).Spent)
}

// An answer whose user has asked to stop costs no further call, whoever goes on with it: the stop outlives its producer.
func TestBook_refusesAnAnswerThatIsToStop(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	g := begin(t, s, sid)
	require.NoError(t, s.Book(ctx, &g, call(40)))
	require.NoError(t, s.Stop(ctx, sid, ""))
	require.ErrorIs(t, s.Book(ctx, &g, call(40)), sessionstore.ErrStopped)
	lapse(t, s, sid)

	other := beside(t, s, "r2")
	heir := begin(t, other, sid)
	require.ErrorIs(t, other.Book(ctx, &heir, call(40)), sessionstore.ErrStopped)
	assert.Equal(t, 1, heir.Calls)
	finish(t, other, &heir)
	assert.Equal(t, 1, session(t, s, sid).Spent.Calls)
}

// What a replica knew when it handed the answer over is not estimated again.
func TestRelease_tellsWhatTheAnswerCost(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	g := begin(t, s, sid)
	require.NoError(t, s.Book(ctx, &g, call(40)))
	require.NoError(t, s.Chunk(ctx, &g, "one two three four.", false))
	g.Spent = g.Plus(whole(44, 9))
	require.NoError(t, s.Release(ctx, &g))
	heir := begin(t, s, sid)
	assert.Equal(t, sessionstore.Spent{Tokens: 53, TokensIn: 44, TokensOut: 9, Calls: 1}, heir.Spent)
}

// Promise 62, beyond B8: what an answer cost that a person or the end cut off is kept with its partial text, and counts
// also if nothing of it was shown.
func TestCut_keepsWhatTheAnswerCost(t *testing.T) {
	for name, shown := range map[string]string{"shown": "twelve chars", "nothing shown": ""} {
		t.Run(name, func(t *testing.T) {
			s := newTestStore(t, nil)
			ctx := testContext(t)
			sid := openSession(t, s, "u1")
			ask(t, s, sid, "q")
			g := begin(t, s, sid)
			require.NoError(t, s.Book(ctx, &g, call(40)))
			if shown != "" {
				require.NoError(t, s.Chunk(ctx, &g, shown, false))
			}
			_, err := s.Cut(ctx, joinEvent(sid), &Hold{AdminID: "a1", Name: "Eve"})
			require.NoError(t, err)
			require.NoError(t, s.Settle(ctx, sid))
			want := whole(40, int64(len(shown)/4))
			want.Calls = 1
			assert.Equal(t, want, session(t, s, sid).Spent)
			events := transcript(t, s, sid)
			if shown != "" {
				want.Estimated = true
				assert.Equal(t, want, events[len(events)-2].Spent)
			}
		})
	}
}

// Beyond B8: whatever becomes of an answer, its calls are counted once each, and so are their tokens.
func TestSpent_isTheSumOfAllCallsWhateverHappens(t *testing.T) {
	s := newTestStore(t, func(o *Options) { o.EstimateTokens = func(text string) int { return len(text) } })
	stores := []*Store{s, beside(t, s, "r2")}
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		user := fmt.Sprintf("u%d", n)
		sid := openSession(t, s, user)
		ctx := testContext(t)
		var bill sessionstore.Spent
		for range rapid.IntRange(1, 3).Draw(rt, "answers") {
			ask(t, s, sid, "q")
			at := stores[rapid.IntRange(0, 1).Draw(rt, "replica")]
			g := begin(t, at, sid)
			over := false
			for !over {
				prompt := rapid.Int64Range(1, 100).Draw(rt, "prompt")
				require.NoError(t, at.Book(ctx, &g, call(prompt)))
				twin := g
				twin.Calls-- // the reply was lost
				require.NoError(t, at.Book(ctx, &twin, call(prompt)))
				bill.Calls++
				text := rapid.StringN(0, 8, 8).Draw(rt, "text")
				if text != "" {
					require.NoError(t, at.Chunk(ctx, &g, text, g.Chunk > 0))
				}
				known := whole(rapid.Int64Range(0, 100).Draw(rt, "in"), rapid.Int64Range(0, 100).Draw(rt, "out"))
				switch rapid.IntRange(0, 5).Draw(rt, "then") {
				case 0: // another try
					g.Spent, bill = g.Plus(known), bill.Plus(known)
				case 1: // killed
					bill = bill.Plus(guess(prompt, int64(len(text))))
					lapse(t, s, sid)
					at = stores[rapid.IntRange(0, 1).Draw(rt, "heir")]
					g = begin(t, at, sid)
				case 2: // handed over
					g.Spent, bill = g.Plus(known), bill.Plus(known)
					require.NoError(t, at.Release(ctx, &g))
					g = begin(t, at, sid)
				case 3: // a person comes and goes
					bill = bill.Plus(guess(prompt, int64(len(text))))
					join := joinEvent(sid)
					_, err := at.Cut(ctx, join, &Hold{AdminID: "a1", Name: "Eve"})
					require.NoError(t, err)
					_, err = at.Leave(ctx, sid, "a1", join.MessageID, "leave-"+join.MessageID)
					require.NoError(t, err)
					over = true
				default: // to its end, successful or not
					g.Spent, bill = g.Plus(known), bill.Plus(known)
					ev := finalEvent(g)
					ev.Spent = g.Spent
					for range 2 {
						_, _, err := at.Finish(ctx, &g, ev)
						require.NoError(t, err)
					}
					over = true
				}
			}
		}
		bill.Estimated = false // kept with the messages
		require.Equal(t, bill, session(t, s, sid).Spent)
		day, err := s.client.HGet(ctx, s.parts[Partition(user)].spent(user), "n").Int64()
		if bill.Tokens > 0 {
			require.NoError(t, err)
		}
		require.Equal(t, bill.Tokens, day)
	})
}

// A user's tokens of a day are used up for all replicas at once, and come back with the new day.
func TestBudget_isOneForAllReplicas(t *testing.T) {
	s := newTestStore(t, func(o *Options) { o.TokensPerDay = 100 })
	other := beside(t, s, "r2")
	ctx := testContext(t)
	require.NoError(t, s.CheckBudget(ctx, "u1"))
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	g := begin(t, s, sid)
	require.NoError(t, s.Book(ctx, &g, call(1)))
	g.Spent = g.Plus(whole(60, 39))
	finish(t, s, &g)
	require.NoError(t, other.CheckBudget(ctx, "u1"), "one token is left")
	ask(t, s, sid, "q")
	g = begin(t, other, sid)
	require.NoError(t, other.Book(ctx, &g, call(1)), "the answer that goes beyond is not broken off")
	g.Spent = g.Plus(whole(1, 0))
	var used *sessionstore.BudgetError
	require.ErrorAs(t, other.Book(ctx, &g, call(1)), &used, "but it gets no further call")
	assert.Equal(t, 1, g.Calls)
	finish(t, other, &g)
	used = nil
	require.ErrorAs(t, s.CheckBudget(ctx, "u1"), &used)
	assert.Positive(t, used.Wait)
	assert.LessOrEqual(t, used.Wait, 24*time.Hour)
	require.NoError(t, s.CheckBudget(ctx, "u2"), "another user's are their own")

	key := s.parts[Partition("u1")].spent("u1")
	left, err := s.client.PTTL(ctx, key).Result()
	require.NoError(t, err)
	assert.Greater(t, left, 47*time.Hour)
	day, err := s.client.HGet(ctx, key, "d").Int64()
	require.NoError(t, err)
	assert.InDelta(t, time.Now().Unix()/86400, day, 1)
	require.NoError(t, s.client.HIncrBy(ctx, key, "d", -1).Err()) // that was yesterday
	require.NoError(t, s.CheckBudget(ctx, "u1"))
	ask(t, s, sid, "q")
	g = begin(t, s, sid)
	require.NoError(t, s.Book(ctx, &g, call(1)))
	g.Spent = g.Plus(whole(2, 3))
	finish(t, s, &g)
	spent, err := s.client.HGet(ctx, key, "n").Int64()
	require.NoError(t, err)
	assert.EqualValues(t, 5, spent)
}

// What somebody does whose tokens are not limited counts for their session only.
func TestBudget_doesNotCountTheUnmetered(t *testing.T) {
	s := newTestStore(t, func(o *Options) { o.TokensPerDay = 10 })
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	for range 3 {
		q := question(sid, "q")
		q.Unmetered = true
		_, err := s.Append(ctx, q)
		require.NoError(t, err)
		g := begin(t, s, sid)
		require.NoError(t, s.Book(ctx, &g, call(1)))
		g.Spent = g.Plus(whole(50, 50))
		finish(t, s, &g)
	}
	require.NoError(t, s.CheckBudget(ctx, "u1"))
	assert.EqualValues(t, 300, session(t, s, sid).Tokens)
}

// Of racing replicas none lets a user spend more than the limit and what was under way when it was reached: one call
// of each session that the user has had.
func TestBudget_isNeverExceededByMoreThanWhatWasUnderWay(t *testing.T) {
	n := 0
	const limit = 500
	s := newTestStore(t, func(o *Options) { o.TokensPerDay = limit })
	stores := []*Store{s, beside(t, s, "r2"), beside(t, s, "r3")}
	rapid.Check(t, func(rt *rapid.T) {
		n++
		user := fmt.Sprintf("u%d", n)
		sid := openSession(t, s, user)
		costs := rapid.SliceOfN(rapid.Int64Range(1, 200), 3, 12).Draw(rt, "costs")
		ctx := testContext(t)
		var mu sync.Mutex
		var most, spent int64
		var wg sync.WaitGroup
		for i, st := range stores {
			wg.Go(func() {
				for j := i; j < len(costs); j += len(stores) {
					if st.CheckBudget(ctx, user) != nil {
						return
					}
					if _, err := st.Append(ctx, question(sid, "q")); !assert.NoError(t, err) {
						return
					}
					g, err := st.Acquire(ctx, sid)
					if err != nil {
						continue // another replica answers
					}
					if st.Book(ctx, &g, call(costs[j])) == nil {
						g.Spent = g.Plus(whole(costs[j], 0))
						mu.Lock()
						most, spent = max(most, costs[j]), spent+costs[j]
						mu.Unlock()
					}
					ev := finalEvent(g)
					ev.Spent = g.Spent
					_, _, err = st.Finish(ctx, &g, ev)
					assert.NoError(t, err)
				}
			})
		}
		wg.Wait()
		require.Less(t, spent-most, int64(limit))
		require.Equal(t, spent, session(t, s, sid).Tokens)
	})
}

// What providers remember is kept by model, with the events that they have seen; a question that came during the answer
// is not among those.
func TestConversations_areKeptByModel(t *testing.T) {
	s := newTestStore(t, nil)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "one")
	g := begin(t, s, sid)
	ask(t, s, sid, "two")
	g.Said, g.SaidBy, g.SaidUpTo = "id with spaces", "dify", g.UpTo
	finish(t, s, &g)
	g = begin(t, s, sid)
	c := g.Conversations["dify"]
	assert.Equal(t, sessionstore.Conversation{ID: "id with spaces", UpTo: 2, Answer: 4}, c)
	assert.Equal(t, []bool{true, true, false, true, false}, []bool{c.Knows(1), c.Knows(2), c.Knows(3), c.Knows(4), c.Knows(5)})
	finish(t, s, &g)
	ask(t, s, sid, "three")
	g = begin(t, s, sid)
	assert.Equal(t, c, g.Conversations["dify"], "an answer of another model changes nothing")
	assert.Empty(t, begin(t, s, other(t, s)).Conversations)
}

// other is a session of somebody else with a question.
func other(tb testing.TB, s *Store) string {
	tb.Helper()
	sid := openSession(tb, s, "u2")
	ask(tb, s, sid, "q")
	return sid
}
