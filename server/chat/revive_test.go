package chat

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// past is Redis and MongoDB for a Reviver.
type past struct {
	StoredHistory

	doc    sessionstore.SessionDoc
	found  bool
	away   bool
	events []sessionstore.Stored
	wait   time.Duration // for each reading of a document

	reads, most, now atomic.Int64
	read             atomic.Int64 // events

	mu         sync.Mutex
	live       *sessionstore.Session
	rebuilt    []sessionstore.SessionDoc
	rebuildErr error
	ended      []string
	asked      int
	heard      func() // by who has sockets on the session
	published  []sessionstore.Event
}

func (p *past) Session(context.Context, string) (sessionstore.SessionDoc, bool, error) {
	p.reads.Add(1)
	for n := p.now.Add(1); n > p.most.Load(); {
		p.most.Store(n)
	}
	defer p.now.Add(-1)
	time.Sleep(p.wait)
	if p.away {
		return sessionstore.SessionDoc{}, false, sessionstore.ErrArchive
	}
	return p.doc, p.found, nil
}

func (p *past) Messages(context.Context, string, int64, int) ([]sessionstore.Stored, error) {
	p.read.Add(1)
	return p.events, nil
}

// redis is past as the live store.
type redis struct{ *past }

func (p redis) Session(context.Context, string) (sessionstore.Session, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live == nil {
		return sessionstore.Session{}, sessionstore.ErrNotFound
	}
	return *p.live, nil
}

func (p redis) Rebuild(_ context.Context, doc sessionstore.SessionDoc, _ []sessionstore.Stored) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rebuilt = append(p.rebuilt, doc)
	return p.rebuildErr
}

func (p redis) End(_ context.Context, id, reason, _ string) error {
	p.ended = append(p.ended, id+" "+reason)
	return nil
}

func (p redis) Publish(_ context.Context, ev sessionstore.Event) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.published = append(p.published, ev)
	return nil
}

func (p redis) AskResync(context.Context, string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if p.heard != nil {
		p.heard()
	}
	return nil
}

func stored(seq int64, typ string, at time.Time) sessionstore.Stored {
	h := sessionstore.Header{Type: typ, SessionID: sid, MessageID: id1, Sender: sessionstore.SenderUser, Timestamp: at, ResponseTime: 40,
		Spent: sessionstore.Spent{Tokens: 5, TokensIn: 3, TokensOut: 2, Calls: 1, Estimated: true}}
	return sessionstore.Stored{SessionID: sid, Seq: seq, H: h.Fragment()}
}

func newPast(t *testing.T, last time.Duration) (*past, *Reviver) {
	t.Helper()
	now := time.Now()
	p := &past{found: true, doc: sessionstore.SessionDoc{Session: sessionstore.Session{
		ID: sid, UserID: "ann", Active: true, Position: sessionstore.Position{Epoch: "1-x", Seq: 3}, LastActivity: now.Add(-last), Messages: 2,
	}}}
	r, err := NewReviver(ReviveOptions{Live: redis{p}, Archive: p, Window: 15 * time.Minute, InFlight: 4})
	require.NoError(t, err)
	return p, r
}

// Promise 6: a session that Redis has lost is made anew from MongoDB, and everybody on it is told to read it again.
func TestRevive_makesTheSessionAnew(t *testing.T) {
	p, r := newPast(t, time.Hour)
	require.NoError(t, r.Revive(t.Context(), sid, "ann"), "who is on it keeps it, however long nobody said anything")
	require.Len(t, p.rebuilt, 1)
	require.Len(t, p.published, 1)
	assert.Equal(t, sessionstore.TypeResync, p.published[0].Type)
}

// A document is up to a minute old: what was said since is taken into account.
func TestRevive_countsWhatTheDocumentDoesNotKnowYet(t *testing.T) {
	p, r := newPast(t, time.Minute)
	now := time.Now().UTC().Truncate(time.Millisecond)
	p.events = []sessionstore.Stored{
		stored(3, sessionstore.TypeUserMessage, now), stored(4, sessionstore.TypeUserMessage, now), stored(5, sessionstore.TypeAIResponse, now),
		stored(6, sessionstore.TypeModelSelect, now),
	}
	require.NoError(t, r.Revive(t.Context(), sid, ""))
	s := p.rebuilt[0].Session
	assert.EqualValues(t, 6, s.Seq)
	assert.EqualValues(t, 4, s.Messages)
	assert.Equal(t, sessionstore.Spent{Tokens: 5, TokensIn: 3, TokensOut: 2, Calls: 1}, s.Spent)
	assert.EqualValues(t, 40, s.ResponseMax)
	assert.EqualValues(t, 1, s.ResponseCount)
	assert.True(t, s.LastActivity.Equal(now))

	p.events = append(p.events, stored(7, sessionstore.TypeEnded, now))
	require.ErrorIs(t, r.Revive(t.Context(), sid, ""), sessionstore.ErrEnded, "its end is among what the document does not know")
	assert.Len(t, p.rebuilt, 1)
}

// Promises 6, 18: a client that names a session gets it back within the window; beyond it the session is ended.
func TestReopen_respectsTheWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, r := newPast(t, 14*time.Minute)
		require.NoError(t, r.Reopen(t.Context(), sid, "ann"))
		assert.Empty(t, p.ended)
		assert.Zero(t, p.asked)

		p, r = newPast(t, 16*time.Minute)
		require.ErrorIs(t, r.Reopen(t.Context(), sid, "ann"), sessionstore.ErrEnded)
		assert.Equal(t, []string{sid + " expired"}, p.ended)

		p, r = newPast(t, 0)
		p.doc.Final = true
		require.ErrorIs(t, r.Reopen(t.Context(), sid, "ann"), sessionstore.ErrEnded)
		assert.Empty(t, p.rebuilt)
		assert.Zero(t, p.read.Load(), "what ended yesterday costs one reading by id")
	})
}

// Promises 6, 48: the user has said nothing for longer than the window, but is still there, on another replica that has
// not found out yet that Redis has lost the session. It is not ended under that socket; who comes back joins it.
func TestReopen_doesNotEndWhatSomebodyIsOn(t *testing.T) {
	for name, late := range map[string]time.Duration{"at once": 0, "after a moment": time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, r := newPast(t, time.Hour)
				p.heard = func() {
					time.AfterFunc(late, func() {
						p.mu.Lock()
						defer p.mu.Unlock()
						p.live = &sessionstore.Session{ID: sid, UserID: "ann", Active: true}
					})
				}
				require.NoError(t, r.Reopen(t.Context(), sid, "ann"))
				assert.Equal(t, 1, p.asked)
				assert.Empty(t, p.ended)
				assert.Empty(t, p.rebuilt, "the other replica has")
			})
		})
	}
}

// Who gives up while others are being asked is told that it is not known, and nothing is ended.
func TestReopen_endsNothingForWhoHasGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, r := newPast(t, time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, r.Reopen(ctx, sid, "ann"), sessionstore.ErrArchive)
		assert.Empty(t, p.ended)
	})
}

// One that Redis has is left alone, whatever MongoDB says.
func TestReopen_leavesAloneWhatRedisHas(t *testing.T) {
	p, r := newPast(t, 0)
	p.live = &sessionstore.Session{ID: sid, UserID: "ann", Active: true}
	require.NoError(t, r.Reopen(t.Context(), sid, "ann"))
	p.live.Active = false
	require.ErrorIs(t, r.Reopen(t.Context(), sid, "ann"), sessionstore.ErrEnded)
	require.ErrorIs(t, r.Reopen(t.Context(), sid, "bob"), sessionstore.ErrNotFound)
	assert.Zero(t, p.reads.Load())
	assert.Empty(t, p.rebuilt)
}

func asItIs(r *Reviver) func(context.Context, string, string) error {
	return func(ctx context.Context, sid, user string) error { return r.Load(ctx, sid, user, false) }
}

// Promise 3: a foreign session is not there.
func TestRevive_doesNotFindForeignSessions(t *testing.T) {
	p, r := newPast(t, 0)
	for name, f := range map[string]func(context.Context, string, string) error{"revive": r.Revive, "reopen": r.Reopen, "load": asItIs(r)} {
		require.ErrorIs(t, f(t.Context(), sid, "bob"), sessionstore.ErrNotFound, name)
	}
	p.found = false
	require.ErrorIs(t, r.Revive(t.Context(), sid, "ann"), sessionstore.ErrNotFound)
	assert.Empty(t, p.rebuilt)
}

// Promise 3: not even when its owner asks at the same moment; and the owner is not told that there is no such session.
func TestRevive_tellsEachUserOnlyOfTheirOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, r := newPast(t, time.Minute)
		p.wait = time.Second
		var foreign, own error
		var wg sync.WaitGroup
		wg.Go(func() { foreign = r.Reopen(t.Context(), sid, "bob") })
		synctest.Wait()
		wg.Go(func() { own = r.Reopen(t.Context(), sid, "ann") })
		wg.Wait()
		require.ErrorIs(t, foreign, sessionstore.ErrNotFound)
		require.NoError(t, own)
	})
}

// An ended session is loaded as it is, for those who want to reopen it.
func TestLoad_bringsBackWhatHasEnded(t *testing.T) {
	p, r := newPast(t, 0)
	p.doc.Final = true
	require.NoError(t, r.Load(t.Context(), sid, "ann", false))
	require.Len(t, p.rebuilt, 1)
	assert.True(t, p.rebuilt[0].Final)
	assert.Empty(t, p.published)
}

// Promise 48: one that nobody has ended can come back beside the active one only as if it had ended.
func TestLoad_bringsBackAsEndedWhatNobodyHasEnded(t *testing.T) {
	begun := time.Now().Add(-time.Hour)
	for name, intervals := range map[string][]sessionstore.Interval{"first": nil, "again": {{Start: begun, End: begun.Add(time.Minute)}}} {
		t.Run(name, func(t *testing.T) {
			p, r := newPast(t, time.Minute)
			p.doc.Session.Start, p.doc.Intervals = begun, intervals
			last := p.doc.Session.LastActivity
			require.NoError(t, r.Load(t.Context(), sid, "ann", true))
			require.NoError(t, r.Load(t.Context(), sid, "ann", false))
			require.Len(t, p.rebuilt, 2)
			ended := p.rebuilt[0]
			assert.True(t, ended.Final)
			assert.False(t, ended.Session.Active)
			assert.Equal(t, last, ended.Session.End)
			assert.Equal(t, []sessionstore.Interval{{Start: begun, End: last}}, ended.Intervals)
			assert.False(t, p.rebuilt[1].Final, "as it is")
			assert.Equal(t, intervals, p.rebuilt[1].Intervals)
			assert.Len(t, p.published, 1)
		})
	}
}

// What cannot be known is an error, and errors of Redis come through as they are.
func TestRevive_saysWhatItCannotKnow(t *testing.T) {
	p, r := newPast(t, 0)
	p.away = true
	require.ErrorIs(t, r.Revive(t.Context(), sid, "ann"), sessionstore.ErrArchive)
	p.away, p.rebuildErr = false, &sessionstore.ActiveError{SessionID: "p01-other"}
	require.ErrorIs(t, r.Revive(t.Context(), sid, "ann"), sessionstore.ErrActive)
}

// A crowd comes back at once: callers of one session share one reading, and of many sessions a few are read at a time.
// A caller that goes away does not take the others' reading along.
func TestRevive_boundsWhatACrowdCosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, r := newPast(t, 0)
		p.wait = time.Second
		var wg sync.WaitGroup
		gone, leave := context.WithCancel(t.Context())
		wg.Go(func() { assert.ErrorIs(t, r.Revive(gone, sid, "ann"), sessionstore.ErrArchive) })
		for range 99 {
			wg.Go(func() { assert.NoError(t, r.Revive(t.Context(), sid, "ann")) })
		}
		synctest.Wait()
		leave()
		wg.Wait()
		assert.EqualValues(t, 1, p.reads.Load())

		p.wait = 100 * time.Millisecond
		for n := range 40 {
			wg.Go(func() { assert.NoError(t, r.Revive(t.Context(), sid+string(rune('a'+n)), "ann")) })
		}
		wg.Wait()
		assert.EqualValues(t, 41, p.reads.Load())
		assert.EqualValues(t, 4, p.most.Load())
	})
}

// at is a clock that stands.
type at time.Time

func (a at) Now(context.Context) (time.Time, error) { return time.Time(a), nil }

// F27. Activity is recorded by the clock that all replicas share, and the window is counted by it as well: this
// replica's own may be minutes off.
func TestReopen_countsTheWindowByTheSharedClock(t *testing.T) {
	for _, c := range []struct {
		name       string
		last, fast time.Duration // since the last activity by this process's clock, and how fast that one is
		ended      bool
	}{
		{"within, by a fast clock", 20 * time.Minute, 10 * time.Minute, false},
		{"beyond, by a slow clock", 10 * time.Minute, -10 * time.Minute, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, _ := newPast(t, c.last)
				r, err := NewReviver(ReviveOptions{Live: redis{p}, Archive: p, Window: 15 * time.Minute, Clock: at(time.Now().Add(-c.fast))})
				require.NoError(t, err)
				err = r.Reopen(t.Context(), sid, "ann")
				if c.ended {
					require.ErrorIs(t, err, sessionstore.ErrEnded)
					return
				}
				require.NoError(t, err)
			})
		})
	}
}

// F27. An end that a replica with a slow clock wrote is not before what was said.
func TestLoad_endsNoSessionBeforeItsLastActivity(t *testing.T) {
	p, r := newPast(t, time.Minute)
	p.events = []sessionstore.Stored{stored(4, sessionstore.TypeEnded, time.Now().Add(-10*time.Minute))}
	require.NoError(t, r.Load(t.Context(), sid, "ann", false))
	require.Len(t, p.rebuilt, 1)
	assert.Equal(t, p.doc.Session.LastActivity, p.rebuilt[0].Session.End)
}
