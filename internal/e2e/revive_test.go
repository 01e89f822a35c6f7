//go:build faults

package e2e

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// quick makes replicas notice within a second or two what they notice within half a minute.
var quick = []string{
	"CHATBOX__CLUSTER__TAIL_EVERY=1s", "CHATBOX__CLUSTER__TOUCH_EVERY=1s", "CHATBOX__CHATBOX__LLM__BACKOFF_BASE=50ms",
}

// online connects a user to replica i.
func (c *cluster) online(id string, i int) *user {
	c.t.Helper()
	u := newUser(id, c.token(id))
	require.NoError(c.t, u.connect(c.t.Context(), c.direct(i)))
	require.NoError(c.t, u.untilLive(c.t.Context()))
	return u
}

// asks sends a question and waits for its answer.
func asks(t *testing.T, u *user, content string) string {
	t.Helper()
	id, err := u.send(t.Context(), content)
	require.NoError(t, err)
	require.NoError(t, u.untilAnswered(t.Context(), id, 20*time.Second))
	return id
}

// same checks that all users' copies of a session are sound, and equal to MongoDB's.
func (c *cluster) same(t *testing.T, users ...*user) []sessionstore.Event {
	t.Helper()
	var stored []sessionstore.Event
	for _, u := range users {
		stored = c.flushed(u.session(), u.newest())
		u.mu.Lock()
		assert.Empty(t, u.faults, u.id)
		assert.Empty(t, u.own, "%s has messages without an ack", u.id)
		assertSame(t, u.events, stored)
		u.mu.Unlock()
	}
	ids := map[string]bool{}
	for _, ev := range stored {
		key := sessionstore.MessageKey(ev.Sender, ev.MessageID)
		assert.False(t, ids[key], "%s is stored twice", key)
		ids[key] = true
	}
	return stored
}

// forget makes Redis lose everything, and shows that it has.
func (c *cluster) forget(sid string) {
	c.t.Helper()
	require.NoError(c.t, c.client.FlushAll(c.t.Context()).Err())
}

// Beyond B2, F16, Promise 6: Redis loses everything. Whoever writes on, whoever only sits there and whoever comes back
// later is in the same session as before, with one snapshot, and what is said then follows what was said before.
func TestRevive_afterFlushAllEverybodyIsWhereTheyWere(t *testing.T) {
	c := start(t, options{env: quick})
	writer, sitter, away := c.online("writer", 0), c.online("sitter", 1), c.online("away", 2)
	users := []*user{writer, sitter, away}
	before := map[*user]sessionstore.Position{}
	for _, u := range users {
		asks(t, u, "!tokens 3")
		c.flushed(u.sessionID, u.seq)
		require.Eventually(t, func() bool { doc, found := c.doc(u.sessionID); return found && doc.Session.Messages > 0 }, 10*time.Second, 50*time.Millisecond)
		before[u] = sessionstore.Position{Epoch: u.epoch, Seq: u.seq}
	}
	away.leave()
	c.forget(writer.sessionID)

	second := asks(t, writer, "!tokens 4")
	require.NoError(t, sitter.until(t.Context(), 10*time.Second, "a new epoch", func() bool { return sitter.epoch != before[sitter].Epoch }))
	require.NoError(t, away.connect(t.Context(), c.direct(0)))
	require.NoError(t, away.untilLive(t.Context()))
	third := asks(t, away, "!tokens 5")
	fourth := asks(t, sitter, "!tokens 6")
	for u, question := range map[*user]string{writer: second, away: third, sitter: fourth} {
		u.mu.Lock()
		assert.NotEqual(t, before[u].Epoch, u.epoch, "%s: the fault did not happen", u.id)
		assert.Greater(t, u.acked[question], before[u].Seq+900, "%s: a number may have been given twice", u.id)
		assert.Equal(t, 2, u.snapshots, "%s: one at the first connect, one afterwards", u.id)
		assert.Zero(t, u.closed, "%s was sent away", u.id)
		u.mu.Unlock()
		stored := c.same(t, u)
		require.GreaterOrEqual(t, len(stored), 5, u.id)
		assert.Equal(t, sessionstore.TypeStarted, stored[0].Type, "%s: the beginning is lost", u.id)
	}
	// Promise 7, 48: and each is present in one active session again.
	for _, u := range users {
		require.Eventually(t, func() bool {
			n, _ := c.client.ZCard(t.Context(), "rt:{"+u.sessionID[:3]+"}:s:"+u.sessionID+":c").Result()
			return n == 1
		}, 10*time.Second, 50*time.Millisecond, "%s is not present", u.id)
		var list struct {
			Items []struct {
				ID     string `json:"id"`
				Active bool   `json:"active"`
			} `json:"items"`
		}
		require.Equal(t, http.StatusOK, c.request(http.MethodGet, c.lb(), "/chat/sessions", u.token, &list))
		require.Len(t, list.Items, 1, u.id)
		assert.True(t, list.Items[0].Active)
	}
}

// Promise 48, Beyond B2: three replicas bring one session back at the same instant. There is one session, nothing in it
// is doubled, no number is given twice.
func TestRevive_racedByEveryReplica(t *testing.T) {
	c := start(t, options{env: quick})
	for round := range 3 {
		id := fmt.Sprintf("racer-%d", round)
		tabs := []*user{c.online(id, 0), c.online(id, 1), c.online(id, 2)}
		asks(t, tabs[0], "!tokens 3")
		for _, u := range tabs {
			require.NoError(t, u.until(t.Context(), 10*time.Second, "the answer", func() bool { return u.seq == tabs[0].seq }))
		}
		epoch := tabs[0].epoch
		c.flushed(tabs[0].sessionID, tabs[0].seq)
		require.Eventually(t, func() bool { _, found := c.doc(tabs[0].sessionID); return found }, 10*time.Second, 50*time.Millisecond)
		c.forget(tabs[0].sessionID)
		var wg sync.WaitGroup
		for _, u := range tabs {
			wg.Go(func() {
				id, err := u.send(t.Context(), "!tokens 3")
				if assert.NoError(t, err) {
					assert.NoError(t, u.untilAnswered(t.Context(), id, 20*time.Second))
				}
			})
		}
		wg.Wait()
		top := int64(0)
		for _, u := range tabs {
			u.mu.Lock()
			top = max(top, u.seq)
			u.mu.Unlock()
		}
		for _, u := range tabs {
			require.NoError(t, u.until(t.Context(), 20*time.Second, "the end of the round", func() bool { return u.seq >= top }))
			u.mu.Lock()
			assert.NotEqual(t, epoch, u.epoch, "the fault did not happen")
			assert.Equal(t, tabs[0].sessionID, u.sessionID)
			u.mu.Unlock()
		}
		stored := c.same(t, tabs...)
		questions, answers := 0, map[string]int{}
		for _, ev := range stored {
			switch ev.Type {
			case sessionstore.TypeUserMessage:
				questions++
			case sessionstore.TypeAIResponse:
				for q := range strings.FieldsSeq(ev.Metadata[sessionstore.MetaAnswers]) {
					answers[q]++
				}
			}
		}
		assert.Equal(t, 4, questions)
		assert.Len(t, answers, 4)
		for q, n := range answers {
			assert.Equal(t, 1, n, "question %s", q)
		}
		for _, u := range tabs {
			u.leave()
		}
	}
}

// Beyond B2: Redis loses everything while MongoDB is away. Nobody can say what became of a session, so nobody begins a
// new one over it; when MongoDB is back everybody is where they were, with what they sent meanwhile.
func TestRevive_whileMongoDBIsAwayNothingIsBegunAnew(t *testing.T) {
	c := start(t, options{env: quick})
	sitter, away := c.online("sitter", 0), c.online("away", 1)
	for _, u := range []*user{sitter, away} {
		asks(t, u, "!tokens 3")
		c.flushed(u.sessionID, u.seq)
		require.Eventually(t, func() bool { _, found := c.doc(u.sessionID); return found }, 10*time.Second, 50*time.Millisecond)
	}
	away.leave()
	was := []string{sitter.sessionID, away.sessionID}
	c.mongo.Kill()
	_ = c.mongo.Wait()
	c.forget(sitter.sessionID)

	err := away.connect(t.Context(), c.direct(2))
	require.ErrorContains(t, err, "503")
	id, err := sitter.send(t.Context(), "!tokens 4")
	require.NoError(t, err)
	require.NoError(t, sitter.until(t.Context(), 20*time.Second, "a refusal", func() bool {
		f := sitter.last("error")
		return f != nil && f.MessageID == id
	}))
	sitter.mu.Lock()
	refused := *sitter.last("error").Error
	assert.Zero(t, sitter.closed)
	sitter.mu.Unlock()
	assert.Equal(t, "STORE_UNAVAILABLE", refused.Code)
	assert.True(t, refused.Recoverable)
	assert.Positive(t, refused.RetryAfter)

	c.startMongo()
	require.Eventually(t, func() bool { return away.connect(t.Context(), c.direct(2)) == nil }, 30*time.Second, 200*time.Millisecond)
	require.NoError(t, away.untilLive(t.Context()))
	require.Eventually(t, func() bool {
		if sitter.resend(t.Context()) != nil {
			return false
		}
		return sitter.untilAnswered(t.Context(), id, 3*time.Second) == nil
	}, 30*time.Second, 10*time.Millisecond)
	asks(t, away, "!tokens 5")
	assert.Equal(t, []string{sitter.sessionID, away.sessionID}, was)
	c.same(t, sitter, away)
}

// store is a store of the test on the replicas' Redis. With mute, what it writes is not heard by them.
func (c *cluster) store(mute bool) *live.Store {
	c.t.Helper()
	client, err := live.Connect(live.ConnectOptions{URL: c.redisAt(c.redis.Addr)})
	require.NoError(c.t, err)
	c.t.Cleanup(func() { _ = client.Close() })
	s, err := live.New(live.Options{Client: client, Keyring: c.keyring, Replica: "test-" + uuid.NewString(), Sharded: mute})
	require.NoError(c.t, err)
	return s
}

// DESIGN 3, the tail sweep: the newest event of a session is never announced, and nothing follows it. A socket that
// sends nothing gets it all the same.
func TestTail_unannouncedIsDelivered(t *testing.T) {
	c := start(t, options{env: quick})
	u := c.online("sitter", 0)
	asks(t, u, "!tokens 3")
	got, err := c.store(true).Append(t.Context(), sessionstore.Append{Event: sessionstore.Event{
		Header: sessionstore.Header{Type: sessionstore.TypeTranscript, SessionID: u.sessionID, MessageID: uuid.NewString(), Sender: sessionstore.SenderSystem},
		Body:   sessionstore.Body{Content: "unheard"},
	}})
	require.NoError(t, err)
	require.NoError(t, u.until(t.Context(), 10*time.Second, "the unheard event", func() bool { return u.seq == got.Seq }))
	c.same(t, u)
}

// tail makes Redis forget all of a session after seq, as a replica does that is promoted without having got it: log,
// ids, WAL and counters, and it is another instance. What was owed at that time is owed again.
func (c *cluster) tail(sid string, seq int64, owed ...string) {
	c.t.Helper()
	ctx, tag := c.t.Context(), "rt:{"+sid[:3]+"}:"
	key := tag + "s:" + sid
	_, err := c.client.TxPipelined(ctx, func(p redis.Pipeliner) error {
		for f, s := range c.client.HGetAll(ctx, key+":ids").Val() {
			if n := number(s); n > seq {
				p.HDel(ctx, key+":ids", f)
				p.XDel(ctx, key+":log", s+"-0")
			}
		}
		for _, entry := range c.client.XRange(ctx, tag+"wal", "-", "+").Val() {
			if s, _ := entry.Values["s"].(string); entry.Values["k"] == sid && number(s) > seq {
				p.XDel(ctx, tag+"wal", entry.ID)
			}
		}
		p.Do(ctx, "XSETID", key+":log", fmt.Sprintf("%d-0", seq))
		p.HSet(ctx, key, "s", seq)
		p.Set(ctx, tag+"inst", "promoted-"+uuid.NewString(), 0)
		for i, q := range owed {
			p.ZAdd(ctx, key+":ask", redis.Z{Score: float64(seq) - float64(i), Member: q})
			p.ZAdd(ctx, tag+"due", redis.Z{Score: 1, Member: "ask:" + sid})
		}
		return nil
	})
	require.NoError(c.t, err)
}

// kept waits until one replica has been the keeper of the session's partition for two of its leases: only who has seen
// Redis as it was can notice that it is another one.
func (c *cluster) kept(sid string) {
	c.t.Helper()
	keeper, since := "", time.Now()
	require.Eventually(c.t, func() bool {
		now, _, _ := strings.Cut(c.client.Get(c.t.Context(), "rt:{"+sid[:3]+"}:keeper").Val(), "|")
		if now != keeper {
			keeper, since = now, time.Now()
		}
		return keeper != "" && time.Since(since) > 2*time.Second
	}, 20*time.Second, 50*time.Millisecond)
}

func number(s string) int64 {
	var n int64
	_, _ = fmt.Sscan(s, &n)
	return n
}

// Beyond B1, B2: a promoted replica of Redis lacks an answer that everybody has seen and MongoDB has not. The replica
// that wrote it writes it again: the same answer under the same id, and no second one.
func TestAuthored_lostAnswerIsWrittenAgain(t *testing.T) {
	c := start(t, options{env: quick})
	u := c.online("reader", 0)
	asks(t, u, "!tokens 3")
	c.kept(u.sessionID)
	c.flushed(u.sessionID, u.seq)
	c.mongo.Kill() // what follows is in Redis alone
	_ = c.mongo.Wait()
	question := asks(t, u, "!tokens 7 20")
	u.mu.Lock()
	answer, at, epoch, calls := *u.answerTo(question), u.acked[question], u.epoch, len(c.llm.Requests())
	u.mu.Unlock()
	c.tail(u.sessionID, at, question)

	require.NoError(t, u.until(t.Context(), 15*time.Second, "the answer in a new epoch", func() bool {
		a := u.answerTo(question)
		return u.epoch != epoch && a != nil && a.Seq > answer.Seq
	}))
	u.mu.Lock()
	again := *u.answerTo(question)
	u.mu.Unlock()
	assert.Equal(t, answer.MessageID, again.MessageID)
	assert.Equal(t, answer.Content, again.Content)
	c.startMongo()
	require.Eventually(t, func() bool { return c.archive.Ping(t.Context()) == nil }, 20*time.Second, 100*time.Millisecond)
	asks(t, u, "!tokens 2")
	finals := 0
	for _, ev := range c.same(t, u) {
		if ev.Type == sessionstore.TypeAIResponse && strings.Contains(ev.Metadata[sessionstore.MetaAnswers], question) {
			finals++
		}
	}
	assert.Equal(t, 1, finals)
	assert.Len(t, c.llm.Requests(), calls+1, "the model was asked again for an answer that somebody had")
}

// lostTail lets a user ask two questions and then does what a promoted replica does that lacks the second one and its
// answer, both of which MongoDB has, and nobody else: their author has died, and the user is not there. It returns the
// second question.
func (c *cluster) lostTail(u *user) (question string) {
	t := c.t.(*testing.T)
	t.Helper()
	asks(t, u, "!tokens 3")
	at := u.at()
	question = asks(t, u, "!tokens 4")
	seq := u.at()
	c.flushed(u.sessionID, seq)
	require.Eventually(t, func() bool {
		d, _ := c.client.HGet(t.Context(), "rt:{"+u.sessionID[:3]+"}:s:"+u.sessionID, "d").Int64()
		return d >= seq
	}, 10*time.Second, 50*time.Millisecond)
	u.leave()
	for i := range c.replicas {
		c.kill(i)
		c.startReplica(i, binary(t))
	}
	settled(t, c)
	for _, r := range c.replicas { // none is still to write which Redis it is that it talks to
		require.Eventually(t, func() bool {
			log, err := os.ReadFile(r.Log)
			return err == nil && strings.Contains(string(log), `"msg":"new redis primary","component":"live"`)
		}, 10*time.Second, 10*time.Millisecond)
	}
	c.tail(u.sessionID, at)
	return question
}

// Beyond B2, I4: a promoted replica lacks a question and its answer, both of which MongoDB has, and the session has gone
// on since. Whoever comes back sees both in their places, and so does the model.
func TestSnapshot_hasWhatOnlyMongoDBHas(t *testing.T) {
	c := start(t, options{env: quick})
	u := c.online("reader", 0)
	question := c.lostTail(u)
	tab := c.online("reader", 2) // another device, which knows nothing of it and talks on
	require.Equal(t, u.sessionID, tab.sessionID)
	asks(t, tab, "!echo")
	requests := c.llm.Requests()
	asked := requests[len(requests)-1].Messages
	require.Len(t, asked, 5, "the model is given what only MongoDB has")
	require.NoError(t, u.connect(t.Context(), c.direct(1)))
	require.NoError(t, u.untilLive(t.Context()))
	for _, who := range []*user{u, tab} {
		who.mu.Lock()
		assert.Empty(t, who.own, "%s has nothing to send again", who.id)
		assert.NotNil(t, who.answerTo(question), "the answer is not there")
		who.mu.Unlock()
	}
	c.same(t, u, tab)
}

// Beyond B2, B7: a promoted replica lacks a question and its answer, both of which MongoDB has, but cannot be asked for
// when the client comes back. The client sends the question again, and gets the first number back; Redis gets both back,
// in their places, and nothing is answered twice.
func TestResent_whatOnlyMongoDBHasIsPutBack(t *testing.T) {
	c := start(t, options{env: quick, farMongo: true})
	u := c.online("sender", 0)
	question := c.lostTail(u)
	u.mu.Lock()
	first := u.acked[question]
	u.mu.Unlock()
	calls := len(c.llm.Requests())
	c.mongoLink.Cut()
	for i := range c.replicas {
		require.Eventually(t, func() bool { _, status := c.readiness(i); return status == "degraded" }, 15*time.Second, 50*time.Millisecond)
	}
	require.NoError(t, u.connect(t.Context(), c.direct(1)))
	require.NoError(t, u.untilLive(t.Context()))
	u.mu.Lock()
	assert.Contains(t, u.own, question, "the fault did not happen: the snapshot has the question")
	u.mu.Unlock()
	require.NoError(t, c.mongoLink.Heal())
	for i := range c.replicas {
		require.Eventually(t, func() bool { _, status := c.readiness(i); return status != "degraded" }, 15*time.Second, 50*time.Millisecond)
	}
	require.NoError(t, u.resend(t.Context()))
	require.NoError(t, u.until(t.Context(), 15*time.Second, "the ack", func() bool { return u.acked[question] > 0 }))
	require.NoError(t, u.untilAnswered(t.Context(), question, 15*time.Second))
	u.mu.Lock()
	assert.Equal(t, first, u.acked[question], "the first number")
	u.mu.Unlock()
	asks(t, u, "!tokens 5")
	stored := c.same(t, u)
	assert.Len(t, c.llm.Requests(), calls+1)
	// Promise 16: what is read page by page has no hole.
	var page struct {
		Items []frame `json:"items"`
	}
	require.Equal(t, http.StatusOK, c.request(http.MethodGet, c.lb(), "/chat/sessions/"+u.sessionID+"/messages", u.token, &page))
	assert.Len(t, page.Items, len(stored))
}

// Beyond B2, F9, Promise 10: Redis loses a question that MongoDB has, and with it that an answer was owed and under way. The
// user's device has let go of the question, since it is durable, and shows it: it is answered, once; if MongoDB is away
// just then, when it is back.
func TestLostQuestion_thatMongoDBHasIsAnswered(t *testing.T) {
	t.Run("at once", func(t *testing.T) { answersWhatWasLost(t, start(t, options{env: quick})) })
	t.Run("when MongoDB is back", func(t *testing.T) { answersWhatWasLost(t, start(t, options{env: quick, farMongo: true})) })
}

func answersWhatWasLost(t *testing.T, c *cluster) {
	t.Helper()
	u, tab := c.online("asker", 0), c.online("asker", 1)
	asks(t, u, "!tokens 3")
	c.kept(u.sessionID)
	at := u.at()
	question, err := u.send(t.Context(), "!tokens 200 50")
	require.NoError(t, err)
	require.NoError(t, u.until(t.Context(), 10*time.Second, "a piece of the answer", func() bool { return len(u.running) > 0 }))
	u.mu.Lock()
	first, epoch := u.acked[question], u.epoch
	u.mu.Unlock()
	c.flushed(u.sessionID, first)
	if c.mongoLink != nil {
		c.mongoLink.Cut()
	}
	tag := "rt:{" + u.sessionID[:3] + "}:"
	key := tag + "s:" + u.sessionID
	_, err = c.client.TxPipelined(t.Context(), func(p redis.Pipeliner) error {
		p.Del(t.Context(), key+":gen", key+":gc", key+":ask")
		p.ZRem(t.Context(), tag+"due", "ask:"+u.sessionID, "gen:"+u.sessionID)
		p.HSet(t.Context(), key, "d", at)
		return nil
	})
	require.NoError(t, err)
	c.tail(u.sessionID, at)
	if c.mongoLink != nil {
		for _, who := range []*user{u, tab} {
			require.NoError(t, who.until(t.Context(), 20*time.Second, "a snapshot without the question", func() bool {
				return who.epoch != epoch && len(who.events) == 3
			}))
		}
		require.NoError(t, c.mongoLink.Heal())
	}

	for _, who := range []*user{u, tab} {
		require.NoError(t, who.untilAnswered(t.Context(), question, 60*time.Second))
		who.mu.Lock()
		assert.NotEqual(t, epoch, who.epoch, "the fault did not happen")
		assert.Equal(t, first, who.acked[question], "it keeps its number")
		who.mu.Unlock()
	}
	finals := 0
	for _, ev := range c.same(t, u, tab) {
		if ev.Type == sessionstore.TypeAIResponse && strings.Contains(ev.Metadata[sessionstore.MetaAnswers], question) {
			finals++
		}
	}
	assert.Equal(t, 1, finals)
}
