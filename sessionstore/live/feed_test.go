package live

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/sessionstore"
)

// reports is what a feed has said.
type reports struct {
	mu  sync.Mutex
	all map[string][]sessionstore.Session
	at  map[string][]time.Time
}

func (r *reports) of(sid string) []sessionstore.Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all[sid])
}

func (r *reports) times(sid string) []time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.at[sid])
}

// last returns the newest state reported of a session.
func (r *reports) last(sid string) sessionstore.Session {
	if all := r.of(sid); len(all) > 0 {
		return all[len(all)-1]
	}
	return sessionstore.Session{}
}

// runFeed runs the store's bus and feed until the test ends.
func runFeed(t *testing.T, s *Store) *reports {
	t.Helper()
	runBus(t, s)
	r := &reports{all: make(map[string][]sessionstore.Session), at: make(map[string][]time.Time)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- s.RunFeed(ctx, func(ses sessionstore.Session) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.all[ses.ID] = append(r.all[ses.ID], ses)
			r.at[ses.ID] = append(r.at[ses.ID], time.Now())
		})
	}()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
	})
	return r
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	require.Eventually(t, f, patience, 5*time.Millisecond, what)
}

// feedTellsAll is the life of a session on one replica, as the feed of another one tells it.
func feedTellsAll(t *testing.T, s, other *Store) {
	t.Helper()
	ctx := testContext(t)
	before := newSession(t, s)
	r := runFeed(t, other)
	eventually(t, "what was active before", func() bool { return r.last(before).Active })

	sid := newSession(t, s)
	eventually(t, "start", func() bool { return r.last(sid).Active })
	q := question(sid, "please")
	q.Name, q.Help, q.Owe, q.Event.Type = "Trouble", true, false, sessionstore.TypeHelpRequest
	_, err := s.Append(ctx, q)
	require.NoError(t, err)
	eventually(t, "help and name", func() bool {
		ses := r.last(sid)
		return ses.HelpRequested && ses.Owner == sessionstore.OwnerWaiting && ses.Name == "Trouble"
	})
	fence := join(t, s, sid, eve)
	eventually(t, "join", func() bool { return r.last(sid).AdminName == "Eve" && r.last(sid).Fence == fence })
	_, err = s.Leave(ctx, sid, "a1", fence, uuid.NewString())
	require.NoError(t, err)
	eventually(t, "leave", func() bool { return r.last(sid).Owner == sessionstore.OwnerAI })
	ask(t, s, sid, "one")
	ask(t, s, sid, "two")
	eventually(t, "counts", func() bool { return r.last(sid).Messages == 2 })
	require.NoError(t, s.End(ctx, sid, "explicit", ""))
	eventually(t, "end", func() bool { return !r.last(sid).Active && !r.last(sid).End.IsZero() })
	_, err = s.Activate(ctx, r.last(sid).UserID, sid, false)
	require.NoError(t, err)
	eventually(t, "reopened", func() bool { return r.last(sid).Active })
}

// Beyond B13: who owns the conversation is always visible, on every replica.
func TestFeed_tellsAnotherReplicaWhatChanges(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newTestStore(t, nil)
	feedTellsAll(t, s, beside(t, s, "r2"))
}

func TestFeed_onACluster(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newStoreAt(t, rig.RedisClusterURL(sharedCluster(t)), nil)
	feedTellsAll(t, s, beside(t, s, "r2"))
}

// What an admin must not learn a second late is announced as urgent; messages once a second.
func TestFeed_announcesStateAtOnce(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	p := s.parts[Partition("u1")]
	ps := s.client.Subscribe(ctx, p.feed())
	defer ps.Close()
	_, err := ps.Receive(ctx)
	require.NoError(t, err)
	heard := ps.Channel()
	var sid, fence string
	says := func(a sessionstore.Append) func() {
		return func() { _, err := s.Append(ctx, a); require.NoError(t, err) }
	}
	for _, step := range []struct {
		name   string
		urgent bool
		do     func()
	}{
		{"start", true, func() { sid = openSession(t, s, "u1") }},
		{"message", false, func() { says(question(sid, "x"))() }},
		{"name", true, func() { a := question(sid, "x"); a.Name = "Name"; says(a)() }},
		{"model", true, func() { a := question(sid, "x"); a.ModelID = "m"; says(a)() }},
		{"help", true, func() { a := question(sid, "x"); a.Help = true; says(a)() }},
		{"join", true, func() { fence = join(t, s, sid, eve) }},
		{"steal", true, func() { _, fence, _ = s.StealHold(ctx, sid, bob, uuid.NewString()) }},
		{"leave", true, func() { _, err := s.Leave(ctx, sid, "a2", fence, uuid.NewString()); require.NoError(t, err) }},
		{"end", true, func() { require.NoError(t, s.End(ctx, sid, "explicit", "")) }},
		{"reopened", true, func() { _, err := s.Activate(ctx, "u1", sid, false); require.NoError(t, err) }},
	} {
		step.do()
		require.NoError(t, s.client.Publish(ctx, p.feed(), "end of step").Err())
		urgent, n := false, 0
		for m := range heard {
			if m.Payload == "end of step" {
				break
			}
			n++
			urgent = urgent || m.Payload == "!"+sid
			require.Contains(t, m.Payload, sid)
		}
		assert.Equal(t, step.urgent, urgent, step.name)
		if !step.urgent {
			assert.Zero(t, n, "the start's announcement stands for it")
		}
	}
}

// A busy session costs one report a second, and its last message is never left out.
func TestFeed_foldsMessages(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newTestStore(t, nil)
	r := runFeed(t, beside(t, s, "r2"))
	sid := newSession(t, s)
	eventually(t, "start", func() bool { return r.last(sid).Active })
	const writing = 2500 * time.Millisecond // into the second after an announcement that a report follows
	begin, sent := time.Now(), int64(0)
	for time.Since(begin) < writing {
		ask(t, s, sid, "x")
		sent++
	}
	eventually(t, "all are counted", func() bool { return r.last(sid).Messages == sent })
	times := r.times(sid)
	require.Less(t, len(times), 7, "%d messages", sent)
	for i := 1; i < len(times); i++ {
		assert.GreaterOrEqual(t, times[i].Sub(times[i-1]), feedEvery-20*time.Millisecond)
	}
}

// An announcement stands for the second after it, so a read in the midst of that second is followed by another.
func TestFeed_readsAgainAfterTheSecondOfTheLatestAnnouncement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fd := newFeed()
		fd.running.Store(true)
		r := &feedReader{feed: fd, seen: make(map[string]reported)}
		sid := newSessionID(1)
		due := func() bool {
			got := r.due(time.Now())
			for _, sid := range got {
				r.seen[sid] = reported{at: time.Now(), active: true}
			}
			return len(got) > 0
		}
		fd.note(sid)
		time.Sleep(feedEvery)
		assert.False(t, due())
		fd.note(sid)
		time.Sleep(feedSettle - feedEvery)
		assert.True(t, due(), "a busy session is not put off")
		assert.False(t, due())
		time.Sleep(feedEvery)
		assert.True(t, due())
		time.Sleep(feedEvery)
		assert.False(t, due())
		assert.Empty(t, fd.changes)

		fd.note(sid)
		fd.note("!" + sid)
		assert.True(t, due(), "at once")
		fd.note("!" + sid)
		assert.False(t, due(), "not twice in a second")
		time.Sleep(feedSettle)
		assert.True(t, due(), "and the counters later")
		assert.Empty(t, fd.changes)
		fd.note("nonsense")
		assert.Empty(t, fd.changes)
	})
}

// A report between two announcements must not make the second one be forgotten.
func TestFeed_reportsTheLastMessageOfASecond(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newTestStore(t, nil)
	r := runFeed(t, beside(t, s, "r2"))
	ctx := testContext(t)
	for range 3 {
		sid := newSession(t, s)
		eventually(t, "start", func() bool { return r.last(sid).Active })
		q := question(sid, "one")
		q.Name = "urgent" // announced at once
		_, err := s.Append(ctx, q)
		require.NoError(t, err)
		ask(t, s, sid, "two")
		eventually(t, "the first reports", func() bool { return r.last(sid).Name != "" })
		ask(t, s, sid, "three") // too soon to be announced
		eventually(t, "all are counted", func() bool { return r.last(sid).Messages == 3 })
	}
}

// What happened while the connection was away is made up for.
func TestFeed_afterALostConnection(t *testing.T) {
	t.Parallel() // it waits more than it works
	srv := startRedis(t)
	s := newStoreAt(t, redisURL(srv), nil)
	ctx := testContext(t)
	a, b, forgotten := newSession(t, s), newSession(t, s), newSession(t, s)
	other := beside(t, s, "r2")
	r := runFeed(t, other)
	for _, sid := range []string{a, b, forgotten} {
		eventually(t, "start", func() bool { return r.last(sid).Active })
	}
	// Published to nobody: as if the connection had been away just then.
	p, _ := s.part(b)
	require.NoError(t, s.client.HSet(ctx, p.session(b).hash(), "st", stateEnded).Err())
	require.NoError(t, s.client.ZRem(ctx, p.live(), b).Err())
	p, _ = s.part(a)
	require.NoError(t, s.client.HSet(ctx, p.session(a).hash(), "ow", "waiting").Err())
	p, _ = s.part(forgotten)
	require.NoError(t, s.client.Del(ctx, p.session(forgotten).hash()).Err())
	require.NoError(t, s.client.Do(ctx, "client", "kill", "type", "pubsub").Err())
	eventually(t, "changed", func() bool { return r.last(a).Owner == sessionstore.OwnerWaiting })
	eventually(t, "ended", func() bool { return !r.last(b).Active })
	eventually(t, "forgotten", func() bool { return assert.ObjectsAreEqual(sessionstore.Session{ID: forgotten}, r.last(forgotten)) })
	fresh := newSession(t, s)
	eventually(t, "and it goes on", func() bool { return r.last(fresh).Active })
}

// A Redis that does not answer costs reports their time, not their being.
func TestFeed_readsAgainWhatCouldNotBeRead(t *testing.T) {
	t.Parallel() // it waits more than it works
	s := newTestStore(t, nil)
	o := s.o
	o.Replica = "r2"
	o.Subscriber = s.client
	flaky := &refuser{}
	o.Client = connect(t, redisURL(sharedRedis(t)), o.Prefix)
	o.Client.AddHook(flaky)
	other, err := New(o)
	require.NoError(t, err)
	r := runFeed(t, other)
	first := newSession(t, s)
	eventually(t, "start", func() bool { return r.last(first).Active })
	flaky.set(true)
	sid := newSession(t, s)
	eventually(t, "refused", func() bool { return flaky.count() > 0 })
	require.Empty(t, r.of(sid))
	flaky.set(false)
	eventually(t, "start", func() bool { return r.last(sid).Active })
}

// refuser fails pipelines while it is on.
type refuser struct {
	mu sync.Mutex
	on bool
	n  int
}

func (f *refuser) set(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on = on
}

func (f *refuser) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.n
}

func (*refuser) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (*refuser) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (f *refuser) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		f.mu.Lock()
		on := f.on
		if on {
			f.n++
		}
		f.mu.Unlock()
		if !on {
			return next(ctx, cmds)
		}
		for _, c := range cmds {
			c.SetErr(context.DeadlineExceeded)
		}
		return context.DeadlineExceeded
	}
}

func TestRunFeed_refusesToRunTwiceAndEndsWithItsContext(t *testing.T) {
	s := newTestStore(t, nil)
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan error, 1)
	go func() { done <- s.RunFeed(ctx, func(sessionstore.Session) {}) }() // the bus does not run: it waits
	eventually(t, "begun", func() bool { return s.pl.bus.feed.running.Load() })
	require.Error(t, s.RunFeed(ctx, func(sessionstore.Session) {}))
	cancel()
	require.NoError(t, <-done)
}

func TestFeedTopic_isTakenForNoSession(t *testing.T) {
	s := newTestStore(t, nil)
	for p := range Partitions {
		topic := feedTopic(p)
		got, ok := feedPartition(topic)
		require.True(t, ok)
		require.Equal(t, p, got)
		sid, ok := s.sidOfChannel(s.channelOf(topic))
		require.True(t, ok)
		require.Equal(t, topic, sid)
		_, ok = feedPartition(newSessionID(p))
		require.False(t, ok)
	}
	sid := newSessionID(7)
	got, ok := s.sidOfChannel(s.channelOf(sid))
	require.True(t, ok)
	require.Equal(t, sid, got)
	for _, no := range []string{"x", "{p01}:n:r1", "}:doc", "{p01}:docs"} {
		_, ok := s.sidOfChannel(no)
		require.False(t, ok, no)
	}
}
