package live

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/sessionstore"
)

func redisZ(score float64, member string) redis.Z { return redis.Z{Score: score, Member: member} }

// ttls returns the keys of a session that will vanish.
func ttls(tb testing.TB, s *Store, sid string) []string {
	tb.Helper()
	p, err := s.part(sid)
	require.NoError(tb, err)
	var out []string
	for _, k := range p.session(sid).all() {
		d, err := s.client.PTTL(testContext(tb), k).Result()
		require.NoError(tb, err)
		if d > 0 && k != p.session(sid).conns() { // leases of sockets lapse in any session
			out = append(out, k)
		}
	}
	return out
}

// If Redis loses a session that was opened again and nobody has said anything yet, its window counts from the opening.
func TestActivate_isActivity(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	require.NoError(t, s.End(ctx, sid, "explicit", ""))
	p, _ := s.part(sid)
	require.NoError(t, s.client.HSet(ctx, p.session(sid).hash(), "la", "1000").Err())
	o, err := s.Activate(ctx, "u1", sid, false)
	require.NoError(t, err)
	assert.WithinDuration(t, time.Now(), o.Session.LastActivity, time.Minute)
}

// Promise 59: start, end and duration are tracked, over every time in which the session was active.
func TestActivate_reopensAnEndedSession(t *testing.T) {
	s := newTestStore(t, quick)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	q := question(sid, "before")
	q.Name = "Name"
	_, err := s.Append(ctx, q)
	require.NoError(t, err)
	require.NoError(t, s.End(ctx, sid, "explicit", ""))
	ended := session(t, s, sid)
	require.NoError(t, renewOnce(s))
	for _, b := range readWAL(t, s, 100) { // all of it is in MongoDB, so its keys would vanish
		require.NoError(t, s.DoneWAL(ctx, b))
	}
	require.NotEmpty(t, ttls(t, s, sid))

	o, err := s.Activate(ctx, "u1", sid, false)
	require.NoError(t, err)
	assert.True(t, o.Session.Active)
	assert.True(t, o.Session.End.IsZero())
	assert.Equal(t, "Name", o.Session.Name)
	assert.Equal(t, ended.Epoch, o.Session.Epoch)
	assert.Equal(t, ended.Seq+1, o.Session.Seq, "its numbering goes on")
	assert.Equal(t, ended.Start, o.Session.Start)
	assert.Equal(t, ended.Messages, o.Session.Messages)
	assert.Empty(t, ttls(t, s, sid), "it stays now")
	assert.NotZero(t, dueAt(t, s, "end", sid), "without a socket its window runs")
	events := transcript(t, s, sid)
	last := events[len(events)-1]
	assert.Equal(t, sessionstore.TypeStarted, last.Type)
	assert.Equal(t, "true", last.Metadata[sessionstore.MetaReopened])

	again, err := s.Activate(ctx, "u1", sid, false)
	require.NoError(t, err)
	assert.Equal(t, o.Session.Position, again.Session.Position, "once is enough")
	in, err := s.Open(ctx, sessionstore.OpenRequest{UserID: "u1", ConnID: "r1.2", Want: sid, Position: ended.Position})
	require.NoError(t, err)
	assert.True(t, in.Resumed)
	assert.True(t, in.Recovered)
	dup, err := s.Append(ctx, q)
	require.NoError(t, err)
	assert.True(t, dup.Duplicate)
	ask(t, s, sid, "after")
	_, err = s.Acquire(ctx, sid)
	require.NoError(t, err)

	require.NoError(t, s.End(ctx, sid, "explicit", ""))
	doc, _ := stored(t, s, sid)
	require.Len(t, doc.Intervals, 2)
	assert.Equal(t, ended.Start, doc.Intervals[0].Start)
	assert.Equal(t, ended.End, doc.Intervals[0].End)
	assert.False(t, doc.Intervals[1].Start.Before(ended.End))
	assert.True(t, doc.Final)
}

func TestActivate_ofWhatIsNotTheUsers(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	mine := openSession(t, s, "u1")
	require.NoError(t, s.End(ctx, mine, "explicit", ""))
	neighbour := "" // of the same partition
	for i := range 1000 {
		if u := fmt.Sprintf("n%d", i); Partition(u) == Partition("u1") {
			neighbour = u
			break
		}
	}
	for _, user := range []string{"u2", neighbour} {
		_, err := s.Activate(ctx, user, mine, true)
		require.ErrorIs(t, err, sessionstore.ErrNotFound, user)
	}
	for _, sid := range []string{newSessionID(Partition("u1")), "nonsense"} {
		_, err := s.Activate(ctx, "u1", sid, true)
		require.ErrorIs(t, err, sessionstore.ErrNotFound)
	}
	assert.False(t, session(t, s, mine).Active)
}

// Promise 48: a user has at most one active session.
func TestActivate_whileAnotherIsActive(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	old := openSession(t, s, "u1")
	require.NoError(t, s.End(ctx, old, "explicit", ""))
	cur := openSession(t, s, "u1")
	asked := ask(t, s, cur, "q")
	_, err := s.Activate(ctx, "u1", old, false)
	var active *sessionstore.ActiveError
	require.ErrorAs(t, err, &active)
	assert.Equal(t, cur, active.SessionID)
	assert.Equal(t, []string{"session_started", "user_message"}, types(transcript(t, s, cur)), "nothing has happened to it")

	g, err := s.Acquire(ctx, cur)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "half an ", false))
	require.NoError(t, s.Chunk(ctx, &g, "answer", false))
	o, err := s.Activate(ctx, "u1", old, true)
	require.NoError(t, err)
	assert.True(t, o.Session.Active)
	require.ErrorIs(t, s.Chunk(ctx, &g, "late", false), sessionstore.ErrFenced)
	events := transcript(t, s, cur)
	assert.Equal(t, []string{"session_started", "user_message", "ai_response", "session_ended"}, types(events))
	assert.Equal(t, "half an answer", events[2].Content)
	assert.Equal(t, map[string]string{"interrupted": "session_ended", "answers": asked}, events[2].Metadata)
	assert.Equal(t, map[string]string{"reason": "replaced", "next": old}, events[3].Metadata)
	assert.False(t, session(t, s, cur).Active)
	for _, kind := range []string{"end", "ask", "gen", "cut"} {
		assert.Zero(t, dueAt(t, s, kind, cur), kind)
	}
	ses, found, err := s.Active(ctx, "u1")
	require.NoError(t, err)
	assert.True(t, found)
	assert.Equal(t, old, ses.ID)
}

func TestActivate_whenTheWindowOfTheOtherIsOver(t *testing.T) {
	s := newTestStore(t, func(o *Options) { o.Window, o.Presence = 5*time.Millisecond, 5*time.Millisecond })
	ctx := testContext(t)
	old := openSession(t, s, "u1")
	require.NoError(t, s.End(ctx, old, "explicit", ""))
	cur := openSession(t, s, "u1")
	require.Eventually(t, func() bool {
		_, err := s.Activate(ctx, "u1", old, false)
		return err == nil
	}, patience, 5*time.Millisecond, "nobody has to ask for its end")
	events := transcript(t, s, cur)
	assert.Equal(t, map[string]string{"reason": "expired", "next": old}, events[len(events)-1].Metadata)
}

// An answer that grows meanwhile is kept as far as it was shown, and nothing of it comes after the end.
func TestActivate_racedAgainstAnAnswer(t *testing.T) {
	s := newTestStore(t, nil)
	other := beside(t, s, "r2")
	ctx := testContext(t)
	for round := range 20 {
		user := fmt.Sprintf("u%d", round)
		old := openSession(t, s, user)
		require.NoError(t, s.End(ctx, old, "explicit", ""))
		cur := openSession(t, s, user)
		ask(t, s, cur, "q")
		g, err := s.Acquire(ctx, cur)
		require.NoError(t, err)
		begun := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range 200 {
				err := s.Chunk(ctx, &g, "x", false)
				if i == 0 {
					close(begun)
				}
				if errors.Is(err, sessionstore.ErrStopped) {
					_, _, _ = s.Finish(ctx, &g, finalEvent(g))
				}
				if err != nil {
					return
				}
			}
		})
		<-begun
		_, err = other.Activate(ctx, user, old, true)
		require.NoError(t, err)
		wg.Wait()
		events := transcript(t, s, cur)
		require.Equal(t, []string{"session_started", "user_message", "ai_response", "session_ended"}, types(events))
		require.Equal(t, g.Text, events[2].Content)
		require.True(t, session(t, s, old).Active)
	}
}

// The answer that is to be ended stops growing at the first look, so that the second one finds what the first one read.
func TestActivate_stopsTheAnswerItReads(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	old := openSession(t, s, "u1")
	require.NoError(t, s.End(ctx, old, "explicit", ""))
	cur := openSession(t, s, "u1")
	ask(t, s, cur, "q")
	g, err := s.Acquire(ctx, cur)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "half", false))
	p, _ := s.part(old)
	r, err := s.run(ctx, s.sc.activate, s.activateKeys(p, old, "u1", cur), append(s.args(p, old, 18), "u1", cur,
		p.channel(cur), true, 1000, "system:x", "h", "", "system:y", "h", "", "replaced", "an older token", "1", "1", "", "", "")...)
	require.NoError(t, err)
	require.Equal(t, "RUNS", r.code())
	require.ErrorIs(t, s.Chunk(ctx, &g, "more", false), sessionstore.ErrStopped)
	assert.True(t, session(t, s, cur).Active)
}

// What this replica has seen of the one session says nothing about the other.
func TestActivate_keepsTheEpochOfTheSessionThatItEnds(t *testing.T) {
	s := newTestStore(t, nil)
	runBus(t, s)
	ctx := testContext(t)
	old := openSession(t, s, "u1")
	require.NoError(t, s.Subscribe(ctx, old))
	for range 10 {
		ask(t, s, old, "x")
	}
	require.NoError(t, s.End(ctx, old, "explicit", ""))
	require.Eventually(t, func() bool { return s.pl.seen(old) == 12 }, patience, time.Millisecond)
	cur := openSession(t, s, "u1")
	ask(t, s, cur, "q")
	g, err := s.Acquire(ctx, cur)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "half", false))
	before := epochOf(t, s, cur)
	o, err := s.Activate(ctx, "u1", old, true)
	require.NoError(t, err)
	assert.EqualValues(t, 13, o.Session.Seq)
	assert.Equal(t, before, epochOf(t, s, cur))
	assert.Len(t, transcript(t, s, cur), 4)
}

// Promise 48, raced: reopening from MongoDB by four replicas, opening and reopening others, leave one active session.
func TestActivate_racedByFourWithRebuild(t *testing.T) {
	r := startRedis(t)
	for _, endCurrent := range []bool{false, true} {
		for round := range 6 {
			s := newStoreAt(t, redisURL(r), nil)
			ctx := testContext(t)
			old := openSession(t, s, "u1")
			ask(t, s, old, "q")
			require.NoError(t, s.End(ctx, old, "explicit", ""))
			doc, events := stored(t, s, old)
			older := openSession(t, s, "u1")
			require.NoError(t, s.End(ctx, older, "explicit", ""))
			doc2, events2 := stored(t, s, older)
			require.NoError(t, s.client.FlushAll(ctx).Err())

			var wg sync.WaitGroup
			for i := range 4 {
				st := beside(t, s, fmt.Sprintf("r%d", i))
				d, evs := doc, events
				if round%2 == 1 && i%2 == 1 {
					d, evs = doc2, events2
				}
				wg.Go(func() {
					_, err := st.Activate(ctx, "u1", d.Session.ID, endCurrent)
					if errors.Is(err, sessionstore.ErrNotFound) {
						if err = st.Rebuild(ctx, d, evs); err == nil {
							_, err = st.Activate(ctx, "u1", d.Session.ID, endCurrent)
						}
					}
					if !endCurrent && errors.Is(err, sessionstore.ErrActive) {
						err = nil
					}
					assert.NoError(t, err)
				})
			}
			wg.Go(func() {
				_, err := s.Open(ctx, sessionstore.OpenRequest{UserID: "u1", ConnID: uuid.NewString()})
				assert.NoError(t, err)
			})
			wg.Wait()
			ses, found, err := s.Active(ctx, "u1")
			require.NoError(t, err)
			require.True(t, found)
			active := 0
			iter := s.client.Scan(ctx, 0, s.prefix+"*:s:p??-??????????????????????????", 1000).Iterator()
			for iter.Next(ctx) {
				if s.client.HGet(ctx, iter.Val(), "st").Val() == stateActive {
					active++
				}
			}
			require.NoError(t, iter.Err())
			require.Equal(t, 1, active)
			require.Empty(t, ttls(t, s, ses.ID))
			for _, sid := range []string{old, older} {
				if _, err := s.Session(ctx, sid); err == nil {
					checkSeqs(t, s, sid)
				}
			}
		}
	}
}

// checkSeqs checks that seqs rise, with the jump of a new epoch at most, and that no id comes twice.
func checkSeqs(t *testing.T, s *Store, sid string) {
	t.Helper()
	events, _, err := s.Before(testContext(t), sid, 0, 100000)
	require.NoError(t, err)
	ids := make(map[string]bool)
	var last int64
	for _, ev := range events {
		require.Greater(t, ev.Seq, last)
		last = ev.Seq
		require.False(t, ids[sessionstore.MessageKey(ev.Sender, ev.MessageID)])
		ids[sessionstore.MessageKey(ev.Sender, ev.MessageID)] = true
	}
}

func TestPositions_ofThoseThatAreThere(t *testing.T) {
	s := newTestStore(t, quick)
	ctx := testContext(t)
	var sids []string
	for i := range 300 { // more than one pipeline
		sids = append(sids, openSession(t, s, fmt.Sprintf("u%d", i)))
	}
	ask(t, s, sids[0], "q")
	require.NoError(t, renewOnce(s))
	for _, b := range readWAL(t, s, 1000) {
		require.NoError(t, s.DoneWAL(ctx, b))
	}
	ask(t, s, sids[0], "q")
	tops, err := s.Positions(ctx, append(sids, newSessionID(4), "nonsense"))
	require.NoError(t, err)
	require.Len(t, tops, len(sids))
	assert.Equal(t, Top{Position: session(t, s, sids[0]).Position, Durable: 2}, tops[sids[0]])
	assert.EqualValues(t, 3, tops[sids[0]].Seq)
	assert.EqualValues(t, 1, tops[sids[299]].Durable)
	none, err := s.Positions(ctx, nil)
	require.NoError(t, err)
	assert.Empty(t, none)
}

func TestPositions_onACluster(t *testing.T) {
	s := newStoreAt(t, rig.RedisClusterURL(sharedCluster(t)), nil)
	var sids []string
	for i := range 20 {
		sids = append(sids, openSession(t, s, fmt.Sprintf("u%d", i)))
	}
	tops, err := s.Positions(testContext(t), sids)
	require.NoError(t, err)
	require.Len(t, tops, len(sids))
}
