package live

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// Promise 57: when the admin's replica dies the lock frees itself. Beyond B5: it never sticks.
func TestLapse_afterTheLastRenewal(t *testing.T) {
	s := newTestStore(t, func(o *Options) { quick(o); o.HoldLease = 250 * time.Millisecond })
	other := beside(t, s, "r2")
	runKeeper(t, s)
	runKeeper(t, other)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	fence := join(t, s, sid, eve)
	joined := time.Now()
	for time.Since(joined) < 3*s.o.HoldLease { // renewed often enough it stays
		require.NoError(t, s.RenewHold(ctx, sid, "a1", fence))
	}
	_, err := s.Append(ctx, adminSays(sid, "a1", "and writing renews it"))
	require.NoError(t, err)
	last := time.Now()
	require.Eventually(t, func() bool { return session(t, s, sid).Owner == sessionstore.OwnerAI }, patience, 5*time.Millisecond)
	assert.GreaterOrEqual(t, time.Since(last), s.o.HoldLease-time.Millisecond)
	require.ErrorIs(t, s.RenewHold(ctx, sid, "a1", fence), sessionstore.ErrNotHolder)
	events := transcript(t, s, sid)
	assert.Equal(t, []string{"session_started", "admin_join", "user_message", "admin_leave"}, types(events))
	assert.Equal(t, sessionstore.SenderSystem, events[3].Sender)
	assert.Equal(t, fence, events[3].Target)
	assert.Equal(t, map[string]string{"admin_id": "a1", "name": "Eve", "reason": "lapsed"}, events[3].Metadata)
	assert.Zero(t, dueAt(t, s, "hold", sid))
	join(t, other, sid, bob)
}

func TestLapse_happensOnceAndNotBeforeItsTime(t *testing.T) {
	s := newTestStore(t, func(o *Options) { o.HoldLease = 40 * time.Millisecond })
	stores := []*Store{s, beside(t, s, "r2")}
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	for range 5 {
		join(t, s, sid, eve)
		acted, err := s.lapse(ctx, sid)
		require.NoError(t, err)
		require.False(t, acted)
		require.Eventually(t, func() bool { return dueAt(t, s, "hold", sid) < s.client.Time(ctx).Val().UnixMilli() },
			patience, time.Millisecond)
		var wg sync.WaitGroup
		done := make([]bool, 6)
		for i := range done {
			wg.Go(func() {
				var err error
				done[i], err = stores[i%2].lapse(ctx, sid)
				assert.NoError(t, err)
			})
		}
		wg.Wait()
		n := 0
		for _, d := range done {
			if d {
				n++
			}
		}
		require.Equal(t, 1, n)
	}
	assert.Len(t, transcript(t, s, sid), 11)
	// A deadline without a session, or of one that nobody holds, is forgotten.
	p, _ := s.part(sid)
	gone := newSessionID(Partition("u1"))
	for _, left := range []string{sid, gone} {
		require.NoError(t, s.client.ZAdd(ctx, p.due(), redisZ(1, "hold:"+left)).Err())
		_, err := s.lapse(ctx, left)
		require.NoError(t, err)
		assert.Zero(t, dueAt(t, s, "hold", left))
	}
}

// Beyond B5, F8: while Redis is away nobody can renew a hold. It does not lapse when Redis is back, nor does it stick.
func TestLapse_notAtOnceAfterAnOutage(t *testing.T) {
	s := newTestStore(t, func(o *Options) { o.HoldLease, o.KeeperLease = 300*time.Millisecond, time.Second })
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	fence := join(t, s, sid, eve)
	n, ok := PartitionOf(sid)
	require.True(t, ok)
	p := s.parts[n]
	keep := func(away time.Duration) {
		at := s.client.Time(ctx).Val().Add(-away).UnixMilli()
		require.NoError(t, s.client.HSet(ctx, p.beat(), "at", at).Err())
		c, err := s.pl.keeper.call(ctx, n, true)
		require.NoError(t, err)
		invoke(ctx, s.client, []*invocation{c})
		require.NoError(t, c.err)
	}
	late := func() {
		require.NoError(t, s.client.ZAdd(ctx, p.due(), redisZ(1, "hold:"+sid)).Err())
	}
	lapses := func() bool {
		acted, err := s.lapse(ctx, sid)
		require.NoError(t, err)
		return acted
	}
	keep(2 * time.Second)
	late()
	require.False(t, lapses(), "nobody could renew it")
	require.NoError(t, s.RenewHold(ctx, sid, "a1", fence))
	late()
	require.False(t, lapses())
	require.Eventually(t, lapses, patience, time.Millisecond, "nobody has")
	join(t, s, sid, eve)
	keep(1400 * time.Millisecond) // a keeper died
	late()
	require.True(t, lapses())
}
