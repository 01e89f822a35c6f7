package live

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/sessionstore"
)

// Promise 44: nothing that was said is in Redis in the clear.
func TestSecrecy_noCanaryInAnyKey(t *testing.T) {
	r := startRedis(t)
	s := newStoreAt(t, redisURL(r), nil)
	ctx := testContext(t)
	const canary = "CANARY-4711"
	sid := openSession(t, s, "u1")
	q := question(sid, canary)
	q.Name, q.Event.Metadata = canary, map[string]string{"file": canary}
	_, err := s.Append(ctx, q)
	require.NoError(t, err)
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, canary, false))
	leaveCut(t, s, endedEvent(sid, canary, ""))
	scan := func() {
		seen := 0
		iter := s.client.Scan(ctx, 0, "*", 1000).Iterator()
		for iter.Next(ctx) {
			dump, err := s.client.Dump(ctx, iter.Val()).Result()
			require.NoError(t, err)
			assert.NotContains(t, dump, canary[:6], iter.Val())
			seen++
		}
		require.NoError(t, iter.Err())
		assert.Greater(t, seen, 8)
	}
	scan()
	require.NoError(t, s.Settle(ctx, sid))
	scan()
	require.NoError(t, s.client.Set(ctx, "probe", canary, 0).Err())
	dump, err := s.client.Dump(ctx, "probe").Result()
	require.NoError(t, err)
	assert.Contains(t, dump, canary[:6], "the scan would have found it")
}

func TestFull_refusesNewThingsAndLetsOldOnesEnd(t *testing.T) {
	r := startRedis(t)
	s := newStoreAt(t, redisURL(r), nil)
	ctx := testContext(t)
	sid, sid2 := openSession(t, s, "u1"), openSession(t, s, "u2")
	ask(t, s, sid, "q")
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Chunk(ctx, &g, "half", false))
	require.NoError(t, s.client.ConfigSet(ctx, "maxmemory", "1").Err())

	size := walLen(t, s, sid)
	_, err = s.Append(ctx, question(sid, "x"))
	require.ErrorIs(t, err, sessionstore.ErrFull)
	require.ErrorIs(t, s.Chunk(ctx, &g, "x", false), sessionstore.ErrFull)
	assert.Equal(t, "half", g.Text)
	assert.Equal(t, size, walLen(t, s, sid), "nothing was written")

	require.NoError(t, s.Renew(ctx, &g))
	_, err = s.Touch(ctx, []Conn{{sid, "r1.1"}})
	require.NoError(t, err)
	_, _, err = s.Finish(ctx, &g, finalEvent(g))
	require.NoError(t, err)
	_, err = s.Open(ctx, sessionstore.OpenRequest{UserID: "u3", ConnID: "r1.3"})
	require.NoError(t, err)
	_, err = s.Read(ctx, sid, sessionstore.Position{})
	require.NoError(t, err)
	require.NoError(t, s.Gone(ctx, Conn{sid, "r1.1"}))
	require.NoError(t, s.End(ctx, sid2, "explicit", ""))
	require.NoError(t, s.client.ConfigSet(ctx, "maxmemory", "0").Err())
	_, err = s.Append(ctx, question(sid, "x"))
	require.NoError(t, err)
}

// story runs the ways through the store once.
func story(t *testing.T, s *Store, user string) {
	t.Helper()
	ctx := testContext(t)
	sid := openSession(t, s, user)
	ask(t, s, sid, "q")
	require.NoError(t, s.Publish(ctx, sessionstore.Event{Header: sessionstore.Header{
		Type: sessionstore.TypeTyping, SessionID: sid, MessageID: uuid.NewString(), Sender: sessionstore.SenderUser}}))
	g, err := s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Book(ctx, &g, sessionstore.Call{ModelID: "m", Prompt: 5}))
	require.NoError(t, s.Chunk(ctx, &g, "half", false))
	require.NoError(t, s.Release(ctx, &g))
	g, err = s.Acquire(ctx, sid)
	require.NoError(t, err)
	require.NoError(t, s.Book(ctx, &g, sessionstore.Call{ModelID: "m", Prompt: 5}))
	require.NoError(t, s.Chunk(ctx, &g, "an answer", true))
	g.Said, g.SaidBy, g.SaidUpTo = "conversation", "m", 2
	_, _, err = s.Finish(ctx, &g, finalEvent(g))
	require.NoError(t, err)
	_, err = s.Touch(ctx, []Conn{{sid, "r1.1"}})
	require.NoError(t, err)
	ask(t, s, sid, "q")
	g, err = s.Acquire(ctx, sid)
	require.NoError(t, err)
	assert.Equal(t, map[string]sessionstore.Conversation{"m": {ID: "conversation", UpTo: 2, Answer: 3}}, g.Conversations)
	require.NoError(t, s.Book(ctx, &g, sessionstore.Call{ModelID: "m", Prompt: 5}))
	require.NoError(t, s.Chunk(ctx, &g, "cut", false))
	require.NoError(t, s.Stop(ctx, sid, ""))
	_, err = s.Cut(ctx, joinEvent(sid), &Hold{AdminID: "a1", Name: "Eve"})
	require.NoError(t, err)
	page, err := s.Read(ctx, sid, sessionstore.Position{})
	require.NoError(t, err)
	assert.Len(t, page.Messages, 6)
	assert.Equal(t, sessionstore.Spent{Tokens: 16, TokensIn: 12, TokensOut: 4, Calls: 3}, page.Session.Spent)
	_, err = s.Append(ctx, adminSays(sid, "a1", "hello"))
	require.NoError(t, err)
	_, fence, err := s.StealHold(ctx, sid, bob, uuid.NewString())
	require.NoError(t, err)
	require.NoError(t, s.RenewHold(ctx, sid, "a2", fence))
	_, err = s.Leave(ctx, sid, "a2", fence, uuid.NewString())
	require.NoError(t, err)
	require.NoError(t, s.Gone(ctx, Conn{sid, "r1.1"}))
	require.NoError(t, s.End(ctx, sid, "explicit", ""))
	require.NoError(t, s.expire(ctx, sid))
	assert.Len(t, transcript(t, s, sid), 10)
	second := openSession(t, s, user)
	ask(t, s, second, "q")
	g, err = s.Acquire(ctx, second)
	require.NoError(t, err)
	require.NoError(t, s.Book(ctx, &g, sessionstore.Call{ModelID: "m", Prompt: 5}))
	require.NoError(t, s.Chunk(ctx, &g, "cut", false))
	_, err = s.Activate(ctx, user, sid, true)
	require.NoError(t, err)
	assert.Len(t, transcript(t, s, second), 4)
	ses, err := s.Session(ctx, second)
	require.NoError(t, err)
	assert.Equal(t, sessionstore.Spent{Tokens: 6, TokensIn: 5, TokensOut: 1, Calls: 1}, ses.Spent)
	day, err := s.client.HGet(ctx, s.parts[Partition(user)].spent(user), "n").Int()
	require.NoError(t, err)
	assert.Equal(t, 22, day)
	assert.Len(t, transcript(t, s, sid), 11)
	tops, err := s.Positions(ctx, []string{sid, second})
	require.NoError(t, err)
	assert.Len(t, tops, 2)
	require.NoError(t, s.End(ctx, sid, "explicit", ""))
	doc, events := stored(t, s, sid)
	require.NoError(t, s.client.Del(ctx, s.parts[Partition(user)].session(sid).all()...).Err())
	doc.Final = true
	require.NoError(t, s.Rebuild(ctx, doc, events))
	require.NoError(t, s.Restore(ctx, sid, sessionstore.SenderUser, "x", 2))
}

func TestStory_onACluster(t *testing.T) {
	s := newStoreAt(t, rig.RedisClusterURL(sharedCluster(t)), nil)
	var conns []Conn
	for i := range 12 { // partitions on all three nodes
		user := fmt.Sprintf("u%d", i)
		story(t, s, user)
		conns = append(conns, Conn{openSession(t, s, user), "r1.1"})
	}
	missing, err := s.Touch(testContext(t), conns)
	require.NoError(t, err)
	assert.Empty(t, missing)
}

func TestStory_onMiniredis(t *testing.T) {
	m := miniredis.RunT(t)
	client := redis.NewClient(&redis.Options{Addr: m.Addr(), Protocol: 2})
	t.Cleanup(func() { _ = client.Close() })
	s := newStoreAt(t, "", func(o *Options) { o.Client = client })
	story(t, s, "u1")
}

// Every script may be run a second time by a client that has lost the reply to the first.
func TestScripts_twiceIsOnce(t *testing.T) {
	r := startRedis(t)
	s := newStoreAt(t, redisURL(r), func(o *Options) {
		client := connect(t, redisURL(r), o.Prefix)
		client.AddHook(resend(func(cmd redis.Cmder) bool { return strings.HasPrefix(cmd.Name(), "eval") }))
		o.Client = client
	})
	story(t, s, "u1")
	require.GreaterOrEqual(t, s.client.DBSize(context.Background()).Val(), int64(5))
}

// resend sends a call a second time, after it has succeeded, if the function says so, and returns the reply of the second: the
// first was lost.
type resend func(cmd redis.Cmder) bool

func (resend) DialHook(next redis.DialHook) redis.DialHook { return next }

func (again resend) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if err == nil && again(cmd) {
			return next(ctx, cmd)
		}
		return err
	}
}

func (resend) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
