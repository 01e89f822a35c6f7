package server

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// lossy is a Redis that loses things, with the MongoDB behind it.
type lossy struct {
	tops      map[string]live.Top
	ids       map[string]int64
	archived  map[string]bool
	away      bool // Redis
	mongoAway bool
	readmits  []sessionstore.Event
	readmit   error
	revived   []string
	revive    error
}

func newLossy() *lossy {
	return &lossy{tops: map[string]live.Top{}, ids: map[string]int64{}, archived: map[string]bool{}}
}

func (l *lossy) Positions(_ context.Context, ids []string) (map[string]live.Top, error) {
	if l.away {
		return nil, sessionstore.ErrAway
	}
	out := map[string]live.Top{}
	for _, id := range ids {
		if top, ok := l.tops[id]; ok {
			out[id] = top
		}
	}
	return out, nil
}

func (l *lossy) Known(_ context.Context, sid string, _ sessionstore.Sender, id string) (int64, bool, error) {
	seq, ok := l.ids[sid+id]
	return seq, ok, nil
}

func (l *lossy) Readmit(_ context.Context, ev sessionstore.Event) (sessionstore.Appended, error) {
	if l.readmit != nil {
		return sessionstore.Appended{}, l.readmit
	}
	l.readmits = append(l.readmits, ev)
	top := l.tops[ev.SessionID]
	top.Seq = max(top.Seq, ev.Seq) + 1001
	top.Epoch += "+"
	l.tops[ev.SessionID], l.ids[ev.SessionID+ev.MessageID] = top, top.Seq
	return sessionstore.Appended{Position: top.Position}, nil
}

func (l *lossy) Message(_ context.Context, sid string, _ sessionstore.Sender, id string) (sessionstore.Stored, bool, error) {
	if l.mongoAway {
		return sessionstore.Stored{}, false, sessionstore.ErrArchive
	}
	return sessionstore.Stored{}, l.archived[sid+id], nil
}

func (l *lossy) Revive(_ context.Context, sid, _ string) error {
	l.revived = append(l.revived, sid)
	if l.revive == nil {
		l.tops[sid] = live.Top{Position: sessionstore.Position{Epoch: "new", Seq: 1000}}
	}
	return l.revive
}
func (l *lossy) Reopen(context.Context, string, string) error     { return l.revive }
func (l *lossy) Load(context.Context, string, string, bool) error { return l.revive }

const lost = "p01-lost"

func final(sid, id string) sessionstore.Event {
	return sessionstore.Event{
		Header: sessionstore.Header{Type: sessionstore.TypeAIResponse, SessionID: sid, MessageID: id, Sender: sessionstore.SenderAI},
		Body:   sessionstore.Body{Content: "text of " + id},
	}
}

// keeping is an Authored that holds the answer a1 at seq 7, which Redis has.
func keeping(t *testing.T) (*Authored, *lossy) {
	t.Helper()
	l := newLossy()
	a, err := NewAuthored(AuthoredOptions{Live: l, Archive: l, Revival: l, Most: 3})
	require.NoError(t, err)
	at := sessionstore.Position{Epoch: "old", Seq: 7}
	l.tops[lost], l.ids[lost+"a1"] = live.Top{Position: at, Durable: 6}, 7
	a.Keep(final(lost, "a1"), at)
	return a, l
}

// Beyond B2: an event is kept until MongoDB has it, and nothing is done meanwhile.
func TestAuthored_keepsUntilDurable(t *testing.T) {
	a, l := keeping(t)
	a.Check(t.Context())
	assert.Equal(t, 1, a.Held())
	l.tops[lost] = live.Top{Position: sessionstore.Position{Epoch: "old", Seq: 9}, Durable: 7}
	a.Check(t.Context())
	assert.Zero(t, a.Held())
	assert.Empty(t, l.readmits)
	a.Check(t.Context())
}

// Beyond B2: whatever shows that Redis has lost the event, it is written again once, and kept until it is durable.
func TestAuthored_writesAgainWhatWasLost(t *testing.T) {
	for name, top := range map[string]live.Top{
		"another epoch":        {Position: sessionstore.Position{Epoch: "new", Seq: 1010}, Durable: 1009},
		"a top below it":       {Position: sessionstore.Position{Epoch: "old", Seq: 6}, Durable: 6},
		"another epoch, below": {Position: sessionstore.Position{Epoch: "new", Seq: 3}},
	} {
		t.Run(name, func(t *testing.T) {
			a, l := keeping(t)
			l.tops[lost] = top
			delete(l.ids, lost+"a1")
			a.Check(t.Context())
			require.Len(t, l.readmits, 1)
			assert.Equal(t, "a1", l.readmits[0].MessageID)
			assert.Equal(t, "text of a1", l.readmits[0].Content)
			assert.EqualValues(t, 7, l.readmits[0].Seq, "the number it had")
			a.Check(t.Context())
			assert.Len(t, l.readmits, 1)
			assert.Equal(t, 1, a.Held())
			now := l.tops[lost]
			now.Durable = now.Seq
			l.tops[lost] = now
			a.Check(t.Context())
			assert.Zero(t, a.Held())
		})
	}
}

// A new epoch in which the event is still there costs one look and no second event.
func TestAuthored_writesNothingTwice(t *testing.T) {
	a, l := keeping(t)
	l.tops[lost] = live.Top{Position: sessionstore.Position{Epoch: "new", Seq: 1010}, Durable: 6}
	a.Check(t.Context())
	assert.Empty(t, l.readmits)
	assert.Equal(t, 1, a.Held(), "MongoDB does not have it yet")

	delete(l.ids, lost+"a1") // lost later; the flusher was quicker
	l.tops[lost] = live.Top{Position: sessionstore.Position{Epoch: "newer", Seq: 2010}}
	l.archived[lost+"a1"] = true
	a.Check(t.Context())
	assert.Empty(t, l.readmits)
	assert.Equal(t, []string{lost}, l.revived, "what MongoDB has is put back")
	assert.Zero(t, a.Held())
}

// With MongoDB away the event is written again all the same: it might be the only copy.
func TestAuthored_doesNotWaitForMongoDB(t *testing.T) {
	a, l := keeping(t)
	l.mongoAway = true
	delete(l.ids, lost+"a1")
	l.tops[lost] = live.Top{Position: sessionstore.Position{Epoch: "new", Seq: 1010}}
	a.Check(t.Context())
	assert.Len(t, l.readmits, 1)
}

// A session that is gone altogether is brought back first; what cannot come back is let go, what may is kept.
func TestAuthored_bringsTheSessionBackFirst(t *testing.T) {
	a, l := keeping(t)
	clear(l.tops)
	clear(l.ids)
	a.Check(t.Context())
	assert.Equal(t, []string{lost}, l.revived)
	assert.Len(t, l.readmits, 1)

	for err, held := range map[error]int{
		sessionstore.ErrNotFound: 0, sessionstore.ErrEnded: 0, sessionstore.ErrActive: 0,
		sessionstore.ErrArchive: 1, sessionstore.ErrAway: 1,
	} {
		a, l := keeping(t)
		clear(l.tops)
		l.revive = fmt.Errorf("revive: %w", err)
		a.Check(t.Context())
		assert.Equal(t, held, a.Held(), "%v", err)
		assert.Empty(t, l.readmits)

		a, l = keeping(t)
		delete(l.ids, lost+"a1")
		l.tops[lost] = live.Top{Position: sessionstore.Position{Epoch: "new"}}
		l.readmit = fmt.Errorf("readmit: %w", err)
		a.Check(t.Context())
		assert.Equal(t, held, a.Held(), "%v", err)
	}
}

// While Redis is away nothing is decided.
func TestAuthored_decidesNothingWithoutRedis(t *testing.T) {
	a, l := keeping(t)
	l.away = true
	a.Check(t.Context())
	assert.Equal(t, 1, a.Held())
	assert.Empty(t, l.revived)
}

// What is kept is bounded in number and in age, and what comes during a look is not lost by it.
func TestAuthored_isBounded(t *testing.T) {
	a, l := keeping(t)
	at := sessionstore.Position{Epoch: "old", Seq: 8}
	for n := range 5 {
		a.Keep(final(lost, fmt.Sprint("b", n)), at)
	}
	assert.Equal(t, 3, a.Held())
	a.held[0].since = time.Now().Add(-6 * time.Minute)
	l.tops[lost] = live.Top{Position: at, Durable: 6}
	a.Check(t.Context())
	assert.Equal(t, 2, a.Held())

	a.settle(map[string]*kept{}) // nothing was looked at: all stays
	assert.Equal(t, 2, a.Held())
}

func TestAuthored_runsUntilItIsEnded(t *testing.T) {
	a, l := keeping(t)
	a.opts.Every = time.Millisecond
	l.tops[lost] = live.Top{Position: sessionstore.Position{Epoch: "old", Seq: 7}, Durable: 7}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	require.Eventually(t, func() bool { return a.Held() == 0 }, 5*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	_, err := NewAuthored(AuthoredOptions{})
	require.Error(t, err)
}

// SPEC, close codes: sockets of an address are counted in and out.
func TestAddresses_areBounded(t *testing.T) {
	a := addresses{most: 2}
	assert.True(t, a.enter("x"))
	assert.True(t, a.enter("x"))
	assert.False(t, a.enter("x"))
	assert.True(t, a.enter("y"))
	a.leave("x")
	assert.True(t, a.enter("x"))
	a.leave("x")
	a.leave("x")
	a.leave("y")
	assert.Empty(t, a.count)
	var unlimited addresses
	assert.True(t, unlimited.enter("x"))
	unlimited.leave("x")
}

// What is kept is bounded in bytes as well: MongoDB may be away for as long as it likes, and answers may be long.
func TestAuthored_keepsAsMuchTextAsThereIsRoomFor(t *testing.T) {
	l := newLossy()
	a, err := NewAuthored(AuthoredOptions{Live: l, Archive: l, Revival: l, Bytes: 100})
	require.NoError(t, err)
	at := sessionstore.Position{Epoch: "old", Seq: 7}
	l.tops[lost] = live.Top{Position: at, Durable: 6}
	for n, size := range []int{40, 40, 40, 10, 10} {
		ev := final(lost, fmt.Sprint("a", n))
		ev.Content = strings.Repeat("x", size)
		a.Keep(ev, at)
		if n == 2 {
			require.Equal(t, 2, a.Held(), "the first has made room for the third")
		}
	}
	require.Equal(t, 4, a.Held())
	a.Check(t.Context())
	a.Keep(final(lost, "b"), at)
	require.Equal(t, 4, a.Held())
	long := final(lost, "c")
	long.Content = strings.Repeat("x", 200)
	a.Keep(long, at)
	require.Equal(t, 1, a.Held(), "the newest is kept in any case")
}
