package live

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/sessionstore"
)

var (
	eve = Hold{AdminID: "a1", Name: "Eve"}
	bob = Hold{AdminID: "a2", Name: "Bob"}
)

// join makes the admin the holder and returns the fence.
func join(tb testing.TB, s *Store, sid string, h Hold) string {
	tb.Helper()
	id := uuid.NewString()
	a, fence, err := s.Join(testContext(tb), sid, h, id)
	require.NoError(tb, err)
	require.False(tb, a.Duplicate)
	require.Equal(tb, id, fence)
	return fence
}

// adminSays is a message of an admin.
func adminSays(sid, adminID, text string) sessionstore.Append {
	m := question(sid, text)
	m.Owe, m.Event.Sender, m.AdminID = false, sessionstore.SenderAdmin, adminID
	return m
}

func session(tb testing.TB, s *Store, sid string) sessionstore.Session {
	tb.Helper()
	ses, err := s.Session(testContext(tb), sid)
	require.NoError(tb, err)
	return ses
}

// Promise 53: a takeover connects the admin to the session. Promise 55: it stays marked as admin-assisted. Promise 56:
// the takeover is recorded: who, from when, to when.
func TestHold_fromJoinToLeave(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	fence := join(t, s, sid, eve)

	ses := session(t, s, sid)
	assert.Equal(t, sessionstore.OwnerHuman, ses.Owner)
	assert.Equal(t, []string{"a1", "Eve", fence}, []string{ses.AdminID, ses.AdminName, ses.Fence})
	_, err := s.Acquire(ctx, sid)
	require.ErrorIs(t, err, sessionstore.ErrAssisted)
	assert.Zero(t, dueAt(t, s, "ask", sid))
	assert.NotZero(t, dueAt(t, s, "hold", sid))
	said, err := s.Append(ctx, question(sid, "to the person"))
	require.NoError(t, err)
	assert.False(t, said.Owed)

	_, err = s.Append(ctx, adminSays(sid, "a1", "hello"))
	require.NoError(t, err)
	require.NoError(t, s.RenewHold(ctx, sid, "a1", fence))
	leave := uuid.NewString()
	left, err := s.Leave(ctx, sid, "a1", fence, leave)
	require.NoError(t, err)
	again, err := s.Leave(ctx, sid, "a1", fence, leave)
	require.NoError(t, err)
	assert.True(t, again.Duplicate)
	assert.Equal(t, left.Position, again.Position)

	events := transcript(t, s, sid)
	assert.Equal(t, []string{"session_started", "user_message", "admin_join", "user_message", "user_message", "admin_leave"}, types(events))
	assert.Equal(t, map[string]string{"admin_id": "a1", "name": "Eve"}, events[2].Metadata)
	assert.Equal(t, map[string]string{"admin_id": "a1", "name": "Eve", "reason": "left"}, events[5].Metadata)
	assert.Equal(t, events[2].MessageID, events[5].Target, "the leave names its join")
	ses = session(t, s, sid)
	assert.Equal(t, sessionstore.OwnerAI, ses.Owner)
	assert.Empty(t, ses.Fence)
	assert.True(t, ses.AdminAssisted)
	assert.Zero(t, dueAt(t, s, "hold", sid))
	_, err = s.Acquire(ctx, sid)
	require.ErrorIs(t, err, sessionstore.ErrNotOwed, "what was asked of the person is not owed by the AI")
	ask(t, s, sid, "to the AI again")
	_, err = s.Acquire(ctx, sid)
	require.NoError(t, err)
}

// Promise 57: every other admin is refused, and the holder is told what they have.
func TestJoin_isRefusedToOthersAndRepeatableForTheHolder(t *testing.T) {
	s := newTestStore(t, nil)
	other := beside(t, s, "r2")
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	first := uuid.NewString()
	a, fence, err := s.Join(ctx, sid, eve, first)
	require.NoError(t, err)
	for _, id := range []string{first, uuid.NewString()} { // the same frame again, and another tab
		again, same, err := other.Join(ctx, sid, eve, id)
		require.NoError(t, err)
		assert.True(t, again.Duplicate)
		assert.Equal(t, a.Position, again.Position)
		assert.Equal(t, fence, same)
	}
	_, _, err = other.Join(ctx, sid, bob, uuid.NewString())
	require.ErrorIs(t, err, sessionstore.ErrAssisted)
	_, err = other.Append(ctx, adminSays(sid, "a2", "x"))
	require.ErrorIs(t, err, sessionstore.ErrAssisted)
	_, err = other.Append(ctx, adminSays(sid, "", "x"))
	require.ErrorIs(t, err, sessionstore.ErrNotHolder)
	for _, bad := range [][2]string{{"a2", fence}, {"a1", "older fence"}, {"a1", ""}} {
		require.ErrorIs(t, s.RenewHold(ctx, sid, bad[0], bad[1]), sessionstore.ErrNotHolder)
		_, err = s.Leave(ctx, sid, bad[0], bad[1], uuid.NewString())
		require.ErrorIs(t, err, sessionstore.ErrNotHolder)
	}
	assert.Equal(t, []string{"session_started", "admin_join"}, types(transcript(t, s, sid)))

	_, err = s.Leave(ctx, sid, "a1", fence, uuid.NewString())
	require.NoError(t, err)
	late, none, err := s.Join(ctx, sid, eve, first)
	require.NoError(t, err)
	assert.True(t, late.Duplicate, "an old frame does not take the session again")
	assert.Empty(t, none)
	_, err = s.Append(ctx, adminSays(sid, "a1", "x"))
	require.ErrorIs(t, err, sessionstore.ErrNotHolder)
	join(t, s, sid, bob)
}

// The hold lasts HoldLease beyond whatever its admin does, in any tab, through any replica.
func TestHold_isRenewedByWhatTheAdminDoes(t *testing.T) {
	s := newTestStore(t, nil)
	other := beside(t, s, "r2")
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	first := uuid.NewString()
	_, fence, err := s.Join(ctx, sid, eve, first)
	require.NoError(t, err)
	p, _ := s.part(sid)
	for name, do := range map[string]func() error{
		"renewal":          func() error { return other.RenewHold(ctx, sid, "a1", fence) },
		"message":          func() error { _, err := other.Append(ctx, adminSays(sid, "a1", "x")); return err },
		"the same join":    func() error { _, _, err := other.Join(ctx, sid, eve, first); return err },
		"another join":     func() error { _, _, err := other.Join(ctx, sid, eve, uuid.NewString()); return err },
		"a needless steal": func() error { _, _, err := other.StealHold(ctx, sid, eve, uuid.NewString()); return err },
	} {
		require.NoError(t, s.client.ZAdd(ctx, p.due(), redisZ(1, "hold:"+sid)).Err())
		require.NoError(t, do(), name)
		now := s.client.Time(ctx).Val().UnixMilli()
		assert.InDelta(t, now+s.o.HoldLease.Milliseconds(), dueAt(t, s, "hold", sid), 1000, name)
	}
}

func TestHold_ofNoSessionOrAnEndedOne(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	for _, sid := range []string{newSessionID(1), "nonsense"} {
		_, _, err := s.Join(ctx, sid, eve, uuid.NewString())
		require.ErrorIs(t, err, sessionstore.ErrNotFound)
		require.ErrorIs(t, s.RenewHold(ctx, sid, "a1", "f"), sessionstore.ErrNotFound)
		_, err = s.Leave(ctx, sid, "a1", "f", uuid.NewString())
		require.ErrorIs(t, err, sessionstore.ErrNotFound)
	}
	sid := openSession(t, s, "u1")
	_, _, err := s.Join(ctx, sid, Hold{}, uuid.NewString())
	require.Error(t, err)
	fence := join(t, s, sid, eve)
	require.NoError(t, s.End(ctx, sid, "explicit", ""), "the user may end what a person holds")
	ses := session(t, s, sid)
	assert.Equal(t, sessionstore.OwnerAI, ses.Owner)
	assert.Zero(t, dueAt(t, s, "hold", sid))
	_, _, err = s.Join(ctx, sid, eve, uuid.NewString())
	require.ErrorIs(t, err, sessionstore.ErrEnded)
	require.ErrorIs(t, s.RenewHold(ctx, sid, "a1", fence), sessionstore.ErrEnded)
	_, err = s.Leave(ctx, sid, "a1", fence, uuid.NewString())
	require.ErrorIs(t, err, sessionstore.ErrEnded)
}

// What the holder before a steal sends is refused, and the transcript pairs the two.
func TestStealHold_fencesTheHolder(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "half", false))

	// A steal where nobody is to be robbed is a join.
	first := uuid.NewString()
	_, fence, err := s.StealHold(ctx, sid, eve, first)
	require.NoError(t, err)
	assert.Equal(t, first, fence)
	second := uuid.NewString()
	a, stolen, err := s.StealHold(ctx, sid, bob, second)
	require.NoError(t, err)
	assert.False(t, a.Duplicate)
	assert.Equal(t, second, stolen)
	again, stolen, err := s.StealHold(ctx, sid, bob, second)
	require.NoError(t, err)
	assert.True(t, again.Duplicate)
	assert.Equal(t, second, stolen)

	_, err = s.Append(ctx, adminSays(sid, "a1", "late"))
	require.ErrorIs(t, err, sessionstore.ErrAssisted)
	require.ErrorIs(t, s.RenewHold(ctx, sid, "a1", fence), sessionstore.ErrNotHolder)
	_, err = s.Leave(ctx, sid, "a1", fence, uuid.NewString())
	require.ErrorIs(t, err, sessionstore.ErrNotHolder)
	// To steal it back is a new hold, also with the fence of the old one in hand.
	third := uuid.NewString()
	_, fence, err = s.StealHold(ctx, sid, eve, third)
	require.NoError(t, err)
	assert.Equal(t, third, fence)

	events := transcript(t, s, sid)
	assert.Equal(t, []string{"session_started", "user_message", "ai_response", "admin_join", "admin_join", "admin_join"}, types(events))
	assert.Empty(t, events[3].Target)
	assert.Equal(t, first, events[4].Target)
	assert.Equal(t, second, events[5].Target)
}

// Beyond B4: whoever settles a cut that a join has left behind, the admin's words come after it.
func TestAppend_ofAnAdminComesAfterTheJoin(t *testing.T) {
	s := newTestStore(t, nil)
	ctx := testContext(t)
	sid := openSession(t, s, "u1")
	ask(t, s, sid, "q")
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "half", false))
	leaveCut(t, s, joinEvent(sid))
	ses := session(t, s, sid)
	require.Equal(t, sessionstore.OwnerHuman, ses.Owner)
	_, err = s.Append(ctx, adminSays(sid, "a1", "hello"))
	require.NoError(t, err)
	assert.Equal(t, []string{"session_started", "user_message", "ai_response", "admin_join", "user_message"}, types(transcript(t, s, sid)))

	other := openSession(t, s, "u2")
	ask(t, s, other, "q")
	g, err = s.Acquire(ctx, other)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "half", false))
	ev := joinEvent(other)
	leaveCut(t, s, ev)
	_, err = s.Leave(ctx, other, "a1", ev.MessageID, uuid.NewString())
	require.NoError(t, err)
	assert.Equal(t, []string{"session_started", "user_message", "ai_response", "admin_join", "admin_leave"}, types(transcript(t, s, other)))
}

// holdOp is one operation on the question "who holds the session".
type holdOp struct {
	kind         string // join|steal|renew|write|leave|lapse
	admin, fence string
	id           string // of join and steal
}

// holdDone is what came of it.
type holdDone struct {
	ok    bool
	fence string // of join and steal
}

// holder is the model's state.
type holder struct{ admin, fence string }

// oneHolder is the model: at most one admin holds the session, and each knows it by a fence that is never used again.
var oneHolder = porcupine.Model{
	Init: func() any { return holder{} },
	Step: func(state, input, output any) (bool, any) {
		h, op, out := state.(holder), input.(holdOp), output.(holdDone)
		switch op.kind {
		case "join", "steal":
			free := h.admin == "" || op.kind == "steal"
			switch {
			case h.admin == op.admin:
				return out.ok && out.fence == h.fence, h
			case free:
				return out.ok && out.fence == op.id, holder{op.admin, op.id}
			default:
				return !out.ok, h
			}
		case "renew":
			return out.ok == (h == holder{op.admin, op.fence}), h
		case "write":
			return out.ok == (h.admin == op.admin), h
		case "leave":
			if mine := h == (holder{op.admin, op.fence}); !mine {
				return !out.ok, h
			}
			return out.ok, holder{}
		default: // a lapse that found nothing to do is always right
			if out.ok {
				return h.admin != "", holder{}
			}
			return true, h
		}
	},
	Equal: func(a, b any) bool { return a == b },
}

// play runs one operation. An error that is no refusal fails the test.
func (op holdOp) play(ctx context.Context, s *Store, sid string) (holdDone, error) {
	var err error
	var out holdDone
	switch op.kind {
	case "join":
		_, out.fence, err = s.Join(ctx, sid, Hold{AdminID: op.admin}, op.id)
	case "steal":
		_, out.fence, err = s.StealHold(ctx, sid, Hold{AdminID: op.admin}, op.id)
	case "renew":
		err = s.RenewHold(ctx, sid, op.admin, op.fence)
	case "write":
		_, err = s.Append(ctx, adminSays(sid, op.admin, "x"))
	case "leave":
		_, err = s.Leave(ctx, sid, op.admin, op.fence, uuid.NewString())
	default:
		out.ok, err = s.lapse(ctx, sid)
		return out, err
	}
	if errors.Is(err, sessionstore.ErrAssisted) || errors.Is(err, sessionstore.ErrNotHolder) {
		return out, nil
	}
	out.ok = err == nil
	return out, err
}

// Beyond B5: a takeover lock never has two holders: what racing admins on three replicas see of joins, steals,
// renewals, messages, leaves and lapses is linearizable, while answers run.
func TestHold_isLinearizable(t *testing.T) {
	s := newTestStore(t, func(o *Options) { o.HoldLease = time.Millisecond })
	did := linearizableHolds(t, s, 60)
	for _, kind := range []string{"join", "steal", "renew", "write", "leave", "lapse"} {
		require.NotZero(t, did[kind], "%s has happened", kind)
	}
}

func TestHold_isLinearizableOnACluster(t *testing.T) {
	s := newStoreAt(t, rig.RedisClusterURL(sharedCluster(t)), func(o *Options) { o.HoldLease = 2 * time.Millisecond })
	linearizableHolds(t, s, 6)
}

// linearizableHolds returns how often each operation had its effect.
func linearizableHolds(t *testing.T, s *Store, rounds int) (did map[string]int) {
	t.Helper()
	stores := []*Store{s, beside(t, s, "r2"), beside(t, s, "r3")}
	ctx := testContext(t)
	did = make(map[string]int)
	for round := range rounds {
		sid := openSession(t, s, fmt.Sprintf("u%d", round))
		var mu sync.Mutex
		var history []porcupine.Operation
		begin := time.Now()
		var wg sync.WaitGroup
		for c := range 6 {
			rnd := rand.New(rand.NewPCG(uint64(round), uint64(c)))
			wg.Go(func() {
				admin, fence := fmt.Sprintf("a%d", c%4), "" // some have two tabs
				kinds := []string{"join", "join", "steal", "renew", "write", "leave", "lapse", "lapse"}
				for range 10 {
					op := holdOp{kind: kinds[rnd.IntN(len(kinds))], admin: admin, fence: fence, id: uuid.NewString()}
					called := time.Since(begin)
					out, err := op.play(ctx, stores[c%3], sid)
					if !assert.NoError(t, err) {
						return
					}
					if out.fence != "" {
						fence = out.fence
					}
					mu.Lock()
					if out.ok {
						did[op.kind]++
					}
					history = append(history, porcupine.Operation{ClientId: c, Input: op, Output: out,
						Call: called.Nanoseconds(), Return: time.Since(begin).Nanoseconds()})
					mu.Unlock()
				}
			})
		}
		wg.Go(func() { // and an answer whenever the AI is owed one
			for range 6 {
				_, err := s.Append(ctx, question(sid, "q"))
				assert.NoError(t, err)
				if g, err := stores[1].Acquire(ctx, sid); err == nil {
					_ = stores[1].Chunk(ctx, &g, "text", false)
					_, _, _ = stores[1].Finish(ctx, &g, finalEvent(g))
				}
			}
		})
		wg.Wait()
		require.True(t, porcupine.CheckOperations(oneHolder, history), "round %d", round)
		checkHolds(t, transcript(t, s, sid))
	}
	return did
}

// checkHolds checks that the transcript tells the same: one holder at a time, and no AI while there is one.
func checkHolds(t *testing.T, events []sessionstore.Event) {
	t.Helper()
	fence := ""
	for _, ev := range events {
		switch ev.Type {
		case sessionstore.TypeAdminJoin:
			require.Equal(t, fence, ev.Target, "a steal names the hold that it ends")
			fence = ev.MessageID
		case sessionstore.TypeAdminLeave:
			require.Equal(t, fence, ev.Target)
			fence = ""
		case sessionstore.TypeAIResponse:
			require.Empty(t, fence, "no AI text while a person has the session")
		case sessionstore.TypeUserMessage:
			require.False(t, ev.Sender == sessionstore.SenderAdmin && fence == "", "no admin's text without a hold")
		}
	}
}
