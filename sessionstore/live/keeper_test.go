package live

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// caller is a DueHandler that remembers.
type caller struct {
	mu    sync.Mutex
	calls map[string]int
}

func (c *caller) Answer(sid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls == nil {
		c.calls = make(map[string]int)
	}
	c.calls[sid]++
}

func (c *caller) of(sid string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[sid]
}

// runKeeper runs the store's keeper until stop is called, or the test ends.
func runKeeper(t *testing.T, s *Store) (h *caller, stop func()) {
	t.Helper()
	h = &caller{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		assert.NoError(t, s.RunKeeper(ctx, h))
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return h, stop
}

func quick(o *Options) {
	o.KeeperLease, o.ReplicaLease, o.SweepEvery = 600*time.Millisecond, 900*time.Millisecond, 20*time.Millisecond
}

func kept(s *Store) int { return len(s.pl.keeper.holding()) }

func TestKeeper_sharesThePartitionsEvenlyAndHandsThemOver(t *testing.T) {
	a := newTestStore(t, quick)
	b := beside(t, a, "r2")
	_, _ = runKeeper(t, a)
	require.Eventually(t, func() bool { return kept(a) == Partitions }, patience, 5*time.Millisecond, "one alone keeps all")
	_, stopB := runKeeper(t, b)
	require.Eventually(t, func() bool { return kept(b) > 0 && kept(a)+kept(b) == Partitions }, patience, 5*time.Millisecond)
	require.InDelta(t, Partitions/2, kept(a), 16)
	for p := range b.pl.keeper.holding() {
		require.NotContains(t, a.pl.keeper.holding(), p, "two keep the same partition")
	}

	start := time.Now()
	stopB() // gives up at once
	require.Zero(t, kept(b))
	require.Eventually(t, func() bool { return kept(a) == Partitions }, patience, 5*time.Millisecond)
	require.Less(t, time.Since(start), a.o.KeeperLease, "nobody had to wait for a lease to lapse")
}

func TestKeeper_takesOverFromTheDeadAndFencesThem(t *testing.T) {
	a := newTestStore(t, quick)
	b := beside(t, a, "r2")
	// b keeps its partitions once and then dies: nobody renews and nobody says goodbye.
	require.NoError(t, renewOnce(b))
	require.Equal(t, Partitions, kept(b))
	sid := newSession(t, b)
	old, err := b.ReadWAL(t.Context(), 100)
	require.NoError(t, err)
	require.Len(t, old, 1)

	_, _ = runKeeper(t, a)
	require.Eventually(t, func() bool { return kept(a) == Partitions }, patience, 5*time.Millisecond)
	require.Zero(t, kept(b), "the dead one's leases have lapsed by its own clock as well")

	// Both have read the same entries; only the keeper of now is believed.
	fresh, err := a.ReadWAL(t.Context(), 100)
	require.NoError(t, err)
	require.Len(t, fresh, 1)
	require.Equal(t, old[0].Entries, fresh[0].Entries)
	require.ErrorIs(t, b.DoneWAL(t.Context(), old[0]), sessionstore.ErrFenced)
	require.ErrorIs(t, b.DeadWAL(t.Context(), old[0], old[0].Entries[0], "x"), sessionstore.ErrFenced)
	require.NoError(t, a.DoneWAL(t.Context(), fresh[0]))
	ses, err := a.Session(t.Context(), sid)
	require.NoError(t, err)
	require.Equal(t, ses.Seq, ses.Durable)
}

// renewOnce is one turn of the renewing loop.
func renewOnce(s *Store) error {
	_, err := s.pl.keeper.renew(context.Background())
	return err
}

func TestKeeper_neverTakesALeaseThatSomebodyHolds(t *testing.T) {
	a := newTestStore(t, nil)
	stores := []*Store{a}
	for i := range 3 {
		stores = append(stores, beside(t, a, fmt.Sprintf("r%d", i+2)))
	}
	var wg sync.WaitGroup
	for _, s := range stores {
		wg.Go(func() {
			for range 5 {
				assert.NoError(t, renewOnce(s))
			}
		})
	}
	wg.Wait()
	total := 0
	for _, s := range stores { // who came first gives up what is not its share
		require.NoError(t, renewOnce(s))
	}
	for _, s := range stores {
		require.NoError(t, renewOnce(s))
		total += kept(s)
		require.Positive(t, kept(s))
	}
	require.Equal(t, Partitions, total)
}

func TestKeepScript_leavesTheLeaseToItsHolder(t *testing.T) {
	s := newTestStore(t, nil)
	keep := func(mode, held, fresh string) string {
		c, err := s.pl.invocation(t.Context(), s.pl.sc.keep, []string{s.parts[1].keeper(), s.parts[1].beat()}, mode, held, fresh, 60000, 900000)
		require.NoError(t, err)
		invoke(t.Context(), s.client, []*invocation{c})
		require.NoError(t, c.err)
		return c.val.(string)
	}
	require.Equal(t, "a1", keep(modeKeep, "", "a1"))
	require.Equal(t, "a1", keep(modeKeep, "", "a1"), "the same call again: its reply was lost")
	require.Equal(t, "a1", keep(modeKeep, "a1", "a2"), "a renewal keeps the token")
	require.Empty(t, keep(modeKeep, "", "b1"))
	require.Empty(t, keep(modeFree, "b1", "b2"))
	require.Equal(t, "a1", keep(modeKeep, "a1", "a3"), "nobody else can give it up")
	require.Empty(t, keep(modeFree, "a1", "a4"))
	require.Equal(t, "b3", keep(modeKeep, "", "b3"))
	require.Empty(t, keep(modeKeep, "a1", "a5"), "a token that has passed is worth nothing")
}

// F7: who buries a replica and loses the reply is told of it all the same when it asks again; nobody else is.
func TestReplicasScript_namesTheDeadAgainToWhoBuriedThem(t *testing.T) {
	s := newTestStore(t, nil)
	p := s.parts[0]
	call := func(replica, id string) (live, dead []string) {
		c, err := s.pl.invocation(t.Context(), s.pl.sc.replicas, []string{p.replicas(), p.buried()}, replica, 60000, id)
		require.NoError(t, err)
		invoke(t.Context(), s.client, []*invocation{c})
		require.NoError(t, c.err)
		r := c.val.([]any)
		return texts(r[0]), texts(r[1])
	}
	require.NoError(t, s.client.ZAdd(t.Context(), p.replicas(), redisZ(1, "a"), redisZ(2, "b")).Err())
	for range 2 { // the first reply is lost
		live, dead := call("c", "c1")
		require.Equal(t, []string{"c"}, live)
		require.ElementsMatch(t, []string{"a", "b"}, dead)
	}
	for replica, id := range map[string]string{"c": "c2", "d": "d1"} {
		_, dead := call(replica, id)
		require.Empty(t, dead, "it was told")
	}
	require.NoError(t, s.client.ZAdd(t.Context(), p.replicas(), redisZ(1, "a")).Err())
	_, dead := call("d", "d2")
	require.Equal(t, []string{"a"}, dead, "it came back and died again")
	ttl, err := s.client.PTTL(t.Context(), p.buried()).Result()
	require.NoError(t, err)
	require.Positive(t, ttl)
}

// A node of the cluster that holds the list of replicas may be down while the others work.
func TestKeeper_renewsLeasesWithoutTheListOfReplicas(t *testing.T) {
	s := keeping(t, nil)
	before := s.pl.keeper.holding()
	require.NoError(t, s.client.Set(t.Context(), s.parts[0].replicas(), "not a zset", 0).Err())
	require.Error(t, renewOnce(s))
	after := s.pl.keeper.holding()
	require.Len(t, after, Partitions)
	for p, l := range after {
		require.Equal(t, before[p].token, l.token)
		require.True(t, l.until.After(before[p].until))
	}
}

func TestPreferred_movesOnlyWhatMust(t *testing.T) {
	three := []string{"a", "b", "c"}
	share := map[string]int{}
	for p := range Partitions {
		who := preferred(three, p)
		share[who]++
		require.Equal(t, who, preferred([]string{"c", "a", "b"}, p), "the order of the names does not matter")
		if who != "c" {
			require.Equal(t, who, preferred([]string{"a", "b"}, p), "a partition moved without need")
		}
	}
	for _, n := range share {
		require.Greater(t, n, Partitions/8)
	}
	require.Empty(t, preferred(nil, 1))
}

func TestSweep_expiresSessionsAfterTheirWindow(t *testing.T) {
	s := newTestStore(t, func(o *Options) {
		quick(o)
		o.Window, o.Presence = 100*time.Millisecond, 100*time.Millisecond
	})
	_, _ = runKeeper(t, s)
	sid := newSession(t, s)
	require.NoError(t, s.Gone(t.Context(), Conn{SessionID: sid, ConnID: s.replica + ".1"}))
	require.Eventually(t, func() bool {
		ses, err := s.Session(t.Context(), sid)
		return err == nil && !ses.Active
	}, patience, 10*time.Millisecond)
}

func TestSweep_callsForAnAnswerUntilThereIsOne(t *testing.T) {
	s := newTestStore(t, func(o *Options) {
		quick(o)
		o.AskDelay, o.GenLease = 200*time.Millisecond, 200*time.Millisecond
	})
	h, _ := runKeeper(t, s)
	sid := newSession(t, s)
	_, err := s.Append(t.Context(), sessionstore.Append{Owe: true, Event: sessionstore.Event{
		Header: sessionstore.Header{
			Type: sessionstore.TypeUserMessage, SessionID: sid, MessageID: "q1", Sender: sessionstore.SenderUser,
		},
		Body: sessionstore.Body{Content: "?"},
	}})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return h.of(sid) >= 2 }, patience, 5*time.Millisecond, "it comes again")
	require.Less(t, h.of(sid), 5, "but not in every sweep")

	// The holder falls silent: its lease, not the question, is due now, and can be stolen each time.
	_, err = s.Acquire(t.Context(), sid)
	require.NoError(t, err)
	before := h.of(sid)
	require.Eventually(t, func() bool { return h.of(sid) > before }, patience, 5*time.Millisecond)
	g, err := s.Acquire(t.Context(), sid)
	require.NoError(t, err, "being called must not renew the dead holder's lease")
	require.Equal(t, 1, g.Takeovers)
}

func TestSweep_leavesAnswersAloneAfterRedisHasChanged(t *testing.T) {
	s := newTestStore(t, nil)
	k := s.pl.keeper
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		require.False(t, k.instChanged(7, "one", now), "the first sight is no change")
		require.Empty(t, k.skip(7, now))
		require.True(t, k.instChanged(7, "two", now))
		require.Equal(t, ":ask:gen:", k.skip(7, now.Add(instQuiet-1)))
		require.Empty(t, k.skip(7, now.Add(instQuiet)))
		require.Empty(t, k.skip(8, now))
	})
}

// How long an outage is stands in one place: scripts get it from there.
func TestScripts_getTheLengthOfAnOutageFromGo(t *testing.T) {
	number := fmt.Sprint(outage.Milliseconds())
	files, err := sources.ReadDir("lua")
	require.NoError(t, err)
	for _, f := range files {
		src, err := sources.ReadFile("lua/" + f.Name())
		require.NoError(t, err)
		require.NotContains(t, string(src), number, f.Name())
	}
	for name, parts := range map[string]string{"keep": onlyPrelude, "expire": withLife, "open": withLife, "activate": withLife} {
		sc, err := loadScript(name, parts, false)
		require.NoError(t, err)
		require.Contains(t, sc.text, number, name)
		require.NotContains(t, sc.text, "OUTAGE", name)
	}
}

// cannotActivate requires that another session of the user is active, and returns it.
func cannotActivate(t *testing.T, s *Store, user, sid string) string {
	t.Helper()
	var other *sessionstore.ActiveError
	_, err := s.Activate(t.Context(), user, sid, false)
	require.ErrorAs(t, err, &other)
	return other.SessionID
}

// After a time in which no keeper could reach Redis nobody could renew a lease or come back: for a window no session
// expires, neither by a sweep nor by an open nor because another is reopened, whoever keeps the partition.
func TestExpiry_pausesForAWindowAfterAnOutage(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := t.Context()
	old := openSession(t, s, "ann")
	require.NoError(t, s.End(ctx, old, "explicit", ""))
	sid := openSession(t, s, "ann")
	p, err := s.part(sid)
	require.NoError(t, err)
	active := func() bool {
		ses, err := s.Session(ctx, sid)
		require.NoError(t, err)
		return ses.Active
	}
	past := func() {
		require.NoError(t, s.client.ZAdd(ctx, p.live(), redis.Z{Score: 1, Member: sid}).Err())
		require.NoError(t, s.client.ZAdd(ctx, p.due(), redis.Z{Score: 1, Member: "end:" + sid}).Err())
	}
	beat := func(ago time.Duration) {
		at, err := s.client.Time(ctx).Result()
		require.NoError(t, err)
		require.NoError(t, s.client.HSet(ctx, p.beat(), "at", at.Add(-ago).UnixMilli()).Err())
	}
	past()
	beat(outage + time.Second) // nobody has been back yet
	require.NoError(t, s.expireNow(ctx, sid))
	require.True(t, active())
	past()
	require.Equal(t, sid, openSession(t, s, "ann"))
	require.Equal(t, sid, cannotActivate(t, s, "ann", old))

	n, _ := PartitionOf(sid)
	c, err := s.pl.keeper.call(ctx, n, true) // the keeper is back
	require.NoError(t, err)
	invoke(ctx, s.client, []*invocation{c})
	require.NoError(t, c.err)
	past()
	require.NoError(t, s.expireNow(ctx, sid))
	require.True(t, active())
	past()
	require.Equal(t, sid, cannotActivate(t, s, "ann", old))

	require.NoError(t, s.client.HSet(ctx, p.beat(), "until", 1).Err()) // a window later
	past()
	require.NoError(t, s.expireNow(ctx, sid))
	require.False(t, active())
}

func TestSweepScript_passesOverWhatMustWait(t *testing.T) {
	s := newTestStore(t, nil)
	p := s.parts[3]
	for i := range 600 { // more than the script looks at in one go
		require.NoError(t, s.client.Do(t.Context(), "zadd", p.due(), 1, fmt.Sprintf("end:s%d", i)).Err())
	}
	require.NoError(t, s.client.Do(t.Context(), "zadd", p.due(), 2, "ask:q", 3, "new:x", time.Now().Add(time.Hour).UnixMilli(), "cut:y").Err())
	sweep := func(limit int, skip string) []string {
		c, err := s.pl.invocation(t.Context(), s.pl.sc.sweep, []string{p.due(), p.inst()}, limit, 5000, skip)
		require.NoError(t, err)
		invoke(t.Context(), s.client, []*invocation{c})
		require.NoError(t, c.err)
		return texts(c.val.([]any)[1])
	}
	require.Len(t, sweep(sweepLimit, ""), sweepLimit)
	require.Equal(t, []string{"ask:q", "new:x"}, sweep(sweepLimit, ":end:"))
	require.Equal(t, []string{"new:x"}, sweep(sweepLimit, ":end:"), "the question was put off")
	require.Len(t, sweep(10000, ""), 601)
}

func TestRunKeeper_refusesToRunTwiceAndLeavesUnknownKindsAlone(t *testing.T) {
	s := newTestStore(t, quick)
	require.NoError(t, s.client.Do(t.Context(), "zadd", s.parts[3].due(), 1, "later:s").Err())
	_, _ = runKeeper(t, s)
	require.Eventually(t, func() bool { return kept(s) == Partitions }, patience, 5*time.Millisecond)
	require.Error(t, s.RunKeeper(t.Context(), &caller{}))
	n, err := s.client.ZCard(t.Context(), s.parts[3].due()).Result()
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
}
