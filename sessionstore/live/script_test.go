package live

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// question is a user's message with a new id.
func question(sid, text string) sessionstore.Append {
	return sessionstore.Append{Owe: true, Event: sessionstore.Event{
		Header: sessionstore.Header{
			Type: sessionstore.TypeUserMessage, SessionID: sid, MessageID: uuid.NewString(), Sender: sessionstore.SenderUser,
		},
		Body: sessionstore.Body{Content: text},
	}}
}

func ask(tb testing.TB, s *Store, sid, text string) string {
	tb.Helper()
	q := question(sid, text)
	a, err := s.Append(testContext(tb), q)
	require.NoError(tb, err)
	require.True(tb, a.Owed)
	return q.Event.MessageID
}

func joinEvent(sid string) sessionstore.Event {
	return sessionstore.Event{
		Header: sessionstore.Header{
			Type: sessionstore.TypeAdminJoin, SessionID: sid, MessageID: uuid.NewString(), Sender: sessionstore.SenderAdmin,
		},
		Body: sessionstore.Body{Metadata: map[string]string{"admin_id": "a1", "name": "Eve"}},
	}
}

// transcript is all of the session's log, checked to have no hole and no id twice.
func transcript(tb testing.TB, s *Store, sid string) []sessionstore.Event {
	tb.Helper()
	events, _, err := s.Before(testContext(tb), sid, 0, 100000)
	require.NoError(tb, err)
	ids := make(map[string]bool)
	for i, ev := range events {
		if i > 0 {
			require.Equal(tb, events[i-1].Seq+1, ev.Seq, "seqs rise by one")
		}
		id := sessionstore.MessageKey(ev.Sender, ev.MessageID)
		require.False(tb, ids[id], "event %s is in the log once", id)
		ids[id] = true
	}
	return events
}

func types(events []sessionstore.Event) []string {
	out := make([]string, len(events))
	for i, ev := range events {
		out[i] = ev.Type
	}
	return out
}

func walLen(tb testing.TB, s *Store, sid string) int64 {
	tb.Helper()
	p, err := s.part(sid)
	require.NoError(tb, err)
	n, err := s.client.XLen(testContext(tb), p.wal()).Result()
	require.NoError(tb, err)
	return n
}

// dueAt returns the deadline of a kind, 0 if there is none.
func dueAt(tb testing.TB, s *Store, kind, sid string) int64 {
	tb.Helper()
	p, err := s.part(sid)
	require.NoError(tb, err)
	all, err := s.client.ZRangeWithScores(testContext(tb), p.due(), 0, -1).Result()
	require.NoError(tb, err)
	for _, z := range all {
		if z.Member == kind+":"+sid {
			return int64(z.Score)
		}
	}
	return 0
}

func TestOpen_makesASessionAndThenFindsIt(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	first, err := s.Open(ctx, sessionstore.OpenRequest{UserID: "u1", UserName: "Ann", ConnID: "r1.1", ModelID: "m"})
	require.NoError(t, err)
	assert.True(t, first.Created)
	assert.False(t, first.Resumed)
	assert.True(t, first.Session.Active)
	assert.Equal(t, sessionstore.OwnerAI, first.Session.Owner)
	assert.Equal(t, "m", first.Session.ModelID)
	assert.EqualValues(t, 1, first.Session.Seq, "its start is an event")
	p, ok := PartitionOf(first.Session.ID)
	assert.True(t, ok)
	assert.Equal(t, Partition("u1"), p)

	again, err := s.Open(ctx, sessionstore.OpenRequest{UserID: "u1", ConnID: "r1.2", Want: first.Session.ID,
		Position: first.Session.Position})
	require.NoError(t, err)
	assert.False(t, again.Created)
	assert.True(t, again.Resumed)
	assert.True(t, again.Recovered)
	assert.Equal(t, first.Session.ID, again.Session.ID)

	// Promise 47: a foreign or unknown session id is as if absent.
	other, err := s.Open(ctx, sessionstore.OpenRequest{UserID: "u1", ConnID: "r1.3", Want: newSessionID(3)})
	require.NoError(t, err)
	assert.False(t, other.Resumed)
	assert.False(t, other.Recovered)
	assert.Equal(t, first.Session.ID, other.Session.ID)

	_, err = s.Open(ctx, sessionstore.OpenRequest{UserID: "u1", NewOnly: true})
	var active *sessionstore.ActiveError
	require.ErrorAs(t, err, &active)
	assert.Equal(t, first.Session.ID, active.SessionID)

	ses, found, err := s.Active(ctx, "u1")
	require.NoError(t, err)
	assert.True(t, found)
	assert.Equal(t, first.Session.ID, ses.ID)
	assert.Equal(t, []string{sessionstore.TypeStarted}, types(transcript(t, s, ses.ID)))
	assert.EqualValues(t, 1, walLen(t, s, ses.ID))
}

func TestAppend_ofTheSameIdIsADuplicate(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	q := question(sid, "hello")
	q.Name = "Greetings"
	first, err := s.Append(ctx, q)
	require.NoError(t, err)
	assert.EqualValues(t, 2, first.Seq)
	assert.True(t, first.Owed)
	second, err := s.Append(ctx, q)
	require.NoError(t, err)
	assert.Equal(t, sessionstore.Appended{Position: first.Position, Duplicate: true, Owed: true}, second)

	ses, err := s.Session(ctx, sid)
	require.NoError(t, err)
	assert.Equal(t, "Greetings", ses.Name)
	assert.EqualValues(t, 1, ses.Messages)
	assert.EqualValues(t, 2, walLen(t, s, sid))
	events := transcript(t, s, sid)
	assert.Equal(t, "hello", events[1].Content)
	assert.NotZero(t, dueAt(t, s, "ask", sid))
}

func TestAppend_toNoSessionOrAnEndedOne(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	_, err := s.Append(ctx, question(newSessionID(1), "x"))
	require.ErrorIs(t, err, sessionstore.ErrNotFound)
	_, err = s.Append(ctx, question("../../etc", "x"))
	require.ErrorIs(t, err, sessionstore.ErrNotFound)

	sid := openSession(t, s, "u1")
	q := question(sid, "before the end")
	first, err := s.Append(ctx, q)
	require.NoError(t, err)
	require.NoError(t, s.End(ctx, sid, "explicit", ""))
	_, err = s.Append(ctx, question(sid, "x"))
	require.ErrorIs(t, err, sessionstore.ErrEnded)
	dup, err := s.Append(ctx, q)
	require.NoError(t, err, "a duplicate is told so even after the end")
	assert.Equal(t, first.Seq, dup.Seq)
	require.ErrorIs(t, s.Publish(ctx, question(sid, "x").Event), sessionstore.ErrEnded)
}

func TestRead_continuesOrGivesASnapshot(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	for range 80 {
		ask(t, s, sid, "text")
	}
	snap, err := s.Read(ctx, sid, sessionstore.Position{})
	require.NoError(t, err)
	assert.True(t, snap.Snapshot)
	assert.True(t, snap.HasMore)
	assert.Len(t, snap.Messages, SnapshotEvents)
	assert.EqualValues(t, 81, snap.Seq)
	assert.EqualValues(t, 81, snap.Messages[len(snap.Messages)-1].Seq)

	page, err := s.Read(ctx, sid, sessionstore.Position{Epoch: snap.Epoch, Seq: 10})
	require.NoError(t, err)
	assert.False(t, page.Snapshot)
	assert.False(t, page.More)
	require.Len(t, page.Messages, 71)
	for i, m := range page.Messages {
		assert.EqualValues(t, 11+i, m.Seq)
	}
	top, err := s.Read(ctx, sid, page.Position)
	require.NoError(t, err)
	assert.Empty(t, top.Messages)
	assert.Equal(t, page.Position, top.Position)

	beyond, err := s.Read(ctx, sid, sessionstore.Position{Epoch: snap.Epoch, Seq: 1 << 40})
	require.NoError(t, err)
	assert.True(t, beyond.Snapshot, "who has read more than there is starts again")
	assert.Equal(t, snap.Position, beyond.Position)
}

func TestRead_cutsPagesBySize(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, string(make([]byte, pageBytes*2))) // NULs: six bytes each in JSON
	ask(t, s, sid, "small")
	ask(t, s, sid, "small")
	ses, err := s.Session(ctx, sid)
	require.NoError(t, err)
	pos := sessionstore.Position{Epoch: ses.Epoch, Seq: 1}
	page, err := s.Read(ctx, sid, pos)
	require.NoError(t, err)
	assert.True(t, page.More)
	assert.Len(t, page.Messages, 1, "one record is read, however large")
	page, err = s.Read(ctx, sid, page.Position)
	require.NoError(t, err)
	assert.False(t, page.More)
	assert.Len(t, page.Messages, 2)
}

func TestPresence_lastSocketStartsTheWindow(t *testing.T) {
	s := newTestStore(t, func(o *Options) { o.Presence = 10 * time.Second; o.Window = time.Minute })
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	with := dueAt(t, s, "end", sid)
	missing, err := s.Touch(ctx, []Conn{{sid, "r1.1"}, {sid, "r1.9"}, {"nonsense", "r1.2"}})
	require.NoError(t, err)
	assert.ElementsMatch(t, []Conn{{sid, "r1.9"}, {"nonsense", "r1.2"}}, missing)
	assert.GreaterOrEqual(t, dueAt(t, s, "end", sid), with)

	require.NoError(t, s.Gone(ctx, Conn{sid, "r1.1"}))
	left := dueAt(t, s, "end", sid)
	assert.Less(t, left, with, "the lease is not waited for")
	require.NoError(t, s.Gone(ctx, Conn{sid, "r1.1"}))
	assert.Equal(t, left, dueAt(t, s, "end", sid), "leaving twice is leaving once")
	p, _ := s.part(sid)
	score, err := s.client.ZScore(ctx, p.live(), sid).Result()
	require.NoError(t, err)
	assert.Equal(t, left, int64(score))
	on, err := s.client.ZCard(ctx, p.on()).Result()
	require.NoError(t, err)
	assert.Zero(t, on)
}

// Promise 7: sockets of replicas that are known to be dead can be removed before their leases lapse; those of replicas
// that live stay.
func TestBury_removesWhatDeadReplicasHaveLeft(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1") // r1.1
	for _, id := range []string{"r2.1", "r3.x.1", "r3.x.2", "nonsense"} {
		_, err := s.Open(ctx, sessionstore.OpenRequest{UserID: "u1", ConnID: id})
		require.NoError(t, err)
	}
	require.NoError(t, s.client.ZAdd(ctx, s.parts[0].replicas(), redisZ(9e12, "r1"), redisZ(9e12, "r3.x")).Err())
	sockets, err := s.Bury(ctx, sid)
	require.NoError(t, err)
	assert.Equal(t, 3, sockets)
	p, _ := s.part(sid)
	assert.Equal(t, []string{"r1.1", "r3.x.1", "r3.x.2"}, s.client.ZRange(ctx, p.session(sid).conns(), 0, -1).Val())
}

// Promise 7, Beyond B9: nothing stays of the sockets of a replica that was killed, once their leases have lapsed.
func TestPresence_ofADeadReplicaLapses(t *testing.T) {
	s := newTestStore(t, func(o *Options) { o.Presence = 200 * time.Millisecond; o.Window = time.Minute })
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	p, err := s.part(sid)
	require.NoError(t, err)
	ttl := func() time.Duration { return s.client.PTTL(ctx, p.session(sid).conns()).Val() }
	require.Greater(t, ttl(), time.Duration(0))
	_, err = s.Touch(ctx, []Conn{{sid, "r1.1"}})
	require.NoError(t, err)
	assert.LessOrEqual(t, ttl(), 201*time.Millisecond)
	require.Eventually(t, func() bool { return s.client.Exists(ctx, p.session(sid).conns()).Val() == 0 }, 5*time.Second, 10*time.Millisecond)
	missing, err := s.Touch(ctx, []Conn{{sid, "r1.1"}})
	require.NoError(t, err)
	assert.Equal(t, []Conn{{sid, "r1.1"}}, missing, "a replica that lives opens it again")
}

func TestOpen_pastTheWindowEndsTheOldSession(t *testing.T) {
	s := newTestStore(t, func(o *Options) { o.Window = 20 * time.Millisecond; o.Presence = 20 * time.Millisecond })
	ctx := testContext(t)
	old := openSession(t, s, "u1")
	var fresh sessionstore.Opened
	require.Eventually(t, func() bool {
		o, err := s.Open(ctx, sessionstore.OpenRequest{UserID: "u1", Want: old})
		fresh = o
		return err == nil && o.Session.ID != old
	}, 5*time.Second, 60*time.Millisecond)
	assert.True(t, fresh.Created)
	assert.False(t, fresh.Resumed)
	events := transcript(t, s, old)
	last := events[len(events)-1]
	assert.Equal(t, sessionstore.TypeEnded, last.Type)
	assert.Equal(t, map[string]string{"reason": "expired", "next": fresh.Session.ID}, last.Metadata)
	ses, err := s.Session(ctx, old)
	require.NoError(t, err)
	assert.False(t, ses.Active)
	assert.True(t, ses.End.Before(last.Timestamp), "it ended when the last socket's lease did")
	assert.Zero(t, dueAt(t, s, "end", old))
}

// Promise 48: a user has at most one active session.
func TestOpen_eightAtOnceGetOneSession(t *testing.T) {
	for _, start := range []string{"new", "expired"} {
		t.Run(start, func(t *testing.T) {
			s := newTestStore(t, func(o *Options) {
				if start == "expired" {
					o.Window, o.Presence = time.Millisecond, time.Millisecond
				}
			})
			ctx := testContext(t)
			stores := []*Store{s, beside(t, s, "r2")}
			if start == "expired" {
				openSession(t, s, "u1")
				for _, o := range []*Store{s, stores[1]} {
					o.o.Window, o.o.Presence = time.Minute, time.Minute
				}
				p := s.parts[Partition("u1")]
				require.Eventually(t, func() bool {
					z, err := s.client.ZRangeWithScores(ctx, p.live(), 0, 0).Result()
					return err == nil && len(z) == 1 && s.client.Time(ctx).Val().UnixMilli() > int64(z[0].Score)
				}, time.Second, time.Millisecond)
			}
			var wg sync.WaitGroup
			got := make([]sessionstore.Opened, 8)
			for i := range got {
				wg.Go(func() {
					o, err := stores[i%2].Open(ctx, sessionstore.OpenRequest{UserID: "u1", ConnID: uuid.NewString()})
					assert.NoError(t, err)
					got[i] = o
				})
			}
			wg.Wait()
			created := 0
			for _, o := range got {
				assert.Equal(t, got[0].Session.ID, o.Session.ID)
				if o.Created {
					created++
				}
			}
			assert.Equal(t, 1, created)
			active := 0
			iter := s.client.Scan(ctx, 0, s.prefix+"*:s:p??-??????????????????????????", 1000).Iterator()
			for iter.Next(ctx) {
				if s.client.HGet(ctx, iter.Val(), "st").Val() == "active" {
					active++
				}
			}
			require.NoError(t, iter.Err())
			assert.Equal(t, 1, active)
		})
	}
}

func TestSession_thatIsAbsentIsNotFound(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := newSessionID(5)
	_, err := s.Session(ctx, sid)
	require.ErrorIs(t, err, sessionstore.ErrNotFound)
	_, err = s.Read(ctx, sid, sessionstore.Position{})
	require.ErrorIs(t, err, sessionstore.ErrNotFound)
	_, _, err = s.Before(ctx, sid, 0, 10)
	require.ErrorIs(t, err, sessionstore.ErrNotFound)
	_, err = s.Acquire(ctx, sid)
	require.ErrorIs(t, err, sessionstore.ErrNotFound)
	require.ErrorIs(t, s.End(ctx, sid, "explicit", ""), sessionstore.ErrNotFound)
	require.ErrorIs(t, s.Settle(ctx, sid), sessionstore.ErrNotFound)
	require.ErrorIs(t, s.Stop(ctx, sid, ""), sessionstore.ErrNotFound)
	require.ErrorIs(t, s.Publish(ctx, question(sid, "x").Event), sessionstore.ErrNotFound)
	_, found, err := s.Active(ctx, "nobody")
	require.NoError(t, err)
	assert.False(t, found)
	require.NoError(t, s.expire(ctx, sid))
}

func TestErrors_ofAnAbsentRedisAreErrAway(t *testing.T) {
	l := "redis://127.0.0.1:1"
	client := connect(t, l, "x:")
	s, err := New(Options{Client: client, Keyring: testKeyring(t), Replica: "r1"})
	require.NoError(t, err, "a replica starts while Redis is away")
	ctx, cancel := context.WithTimeout(testContext(t), 5*time.Second)
	defer cancel()
	_, err = s.Open(ctx, sessionstore.OpenRequest{UserID: "u"})
	require.ErrorIs(t, err, sessionstore.ErrAway)
	_, err = s.Session(ctx, newSessionID(1))
	require.ErrorIs(t, err, sessionstore.ErrAway)
	require.ErrorIs(t, s.Gone(ctx, Conn{newSessionID(1), "c"}), sessionstore.ErrAway)
}

func TestNew_reportsAllProblemsAtOnce(t *testing.T) {
	_, err := New(Options{Window: time.Microsecond})
	for _, part := range []string{"Client", "Keyring", "Replica", "Window"} {
		require.ErrorContains(t, err, part)
	}
}

// Promise 51: a help request marks the session, and (Beyond B14) the session does not expire while it waits.
func TestAppend_ofAHelpRequestMarksAndKeepsTheSession(t *testing.T) {
	s := newTestStore(t, func(o *Options) { o.Window, o.Presence, o.HelpWait = time.Millisecond, time.Millisecond, time.Minute })
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	h := question(sid, "please")
	h.Owe, h.Help, h.Event.Type = false, true, sessionstore.TypeHelpRequest
	_, err := s.Append(ctx, h)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return dueAt(t, s, "end", sid) < s.client.Time(ctx).Val().UnixMilli() },
		time.Second, time.Millisecond)
	require.NoError(t, s.expire(ctx, sid))
	ses, err := s.Session(ctx, sid)
	require.NoError(t, err)
	assert.True(t, ses.Active)
	assert.True(t, ses.HelpRequested)
	assert.Equal(t, sessionstore.OwnerWaiting, ses.Owner)
	assert.Zero(t, ses.Messages)
	ask(t, s, sid, "the AI goes on answering")
	_, err = s.Acquire(ctx, sid)
	require.NoError(t, err)

	s.o.HelpWait = time.Millisecond
	other := openSession(t, s, "u2")
	h.Event.SessionID = other
	_, err = s.Append(ctx, h)
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		require.NoError(t, s.expire(ctx, other))
		ses, err := s.Session(ctx, other)
		return err == nil && !ses.Active
	}, 5*time.Second, 5*time.Millisecond, "not for ever")
}

// Beyond B2: a replica that has fanned out more than Redis knows proves that Redis has lost its tail.
func TestAppend_afterSomebodySawMoreBeginsANewEpoch(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	before := epochOf(t, s, sid)
	p, err := s.part(sid)
	require.NoError(t, err)
	args := append(s.args(p, sid, 11), "user:x", "h", "", 0, "", 1000, "", "", "", "", 0)
	args[4] = 700 // seen
	r, err := s.run(ctx, s.sc.append, p.appendKeys(sid), args...)
	require.NoError(t, err)
	assert.NotEqual(t, before, r.str(1))
	assert.EqualValues(t, 1701, r.num(2))
}
