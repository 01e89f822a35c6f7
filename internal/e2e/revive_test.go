//go:build faults

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
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
		u.mu.Lock()
		sid, seq := u.sessionID, u.seq
		u.mu.Unlock()
		stored = c.flushed(sid, seq)
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

// wish asks for another answer and waits for it.
func (u *user) wish(ctx context.Context, typ, target string) (*frame, error) {
	id := uuid.NewString()
	u.mu.Lock()
	u.own[id] = ""
	u.mu.Unlock()
	if err := u.write(ctx, map[string]any{"type": typ, "message_id": id, "target": target}); err != nil {
		return nil, err
	}
	if err := u.untilAnswered(ctx, id, 20*time.Second); err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.answerTo(id), nil
}

// refusedWish is a wish that is refused; it returns the error's code.
func (u *user) refusedWish(t *testing.T, typ, target string) string {
	t.Helper()
	id := uuid.NewString()
	require.NoError(t, u.write(t.Context(), map[string]any{"type": typ, "message_id": id, "target": target}))
	code := ""
	require.NoError(t, u.until(t.Context(), 10*time.Second, "a refusal", func() bool {
		if f := u.last("error"); f != nil && f.MessageID == id {
			code = f.Error.Code
		}
		return code != ""
	}))
	return code
}

// Beyond B11, Promise 27: an answer is given anew, gone on with, and tried again; each time it is a new answer that says
// what it is about, the model is told what it needs and no more, and the first one stays stored.
func TestAgain_givesAnotherAnswer(t *testing.T) {
	c := start(t, options{env: quick})
	u := c.online("asker", 0)
	other := c.online("asker", 1)
	answerOf := func(question string) frame {
		u.mu.Lock()
		defer u.mu.Unlock()
		return *u.answerTo(question)
	}
	prompt := func() string {
		all := c.llm.Requests()
		return string(all[len(all)-1].Body)
	}
	first := asks(t, u, "!tokens 3")
	second := asks(t, u, "!tokens 4")

	old := answerOf(first)
	anew, err := u.wish(t.Context(), "regenerate", old.MessageID)
	require.NoError(t, err)
	assert.Equal(t, words(3), anew.Content)
	assert.Equal(t, old.MessageID, anew.Metadata["replaces"])
	assert.Contains(t, anew.Metadata["answers"], first)
	assert.NotEqual(t, old.MessageID, anew.MessageID)
	assert.NotContains(t, prompt(), "t1 t2", "neither the old answer nor what came later is shown to the model")
	assert.NotContains(t, prompt(), "!tokens 4")

	// Continue, over another replica: what was stopped.
	broken, err := u.send(t.Context(), "!tokens 400 20")
	require.NoError(t, err)
	require.NoError(t, other.until(t.Context(), 20*time.Second, "some text", func() bool {
		for _, r := range other.running {
			if strings.Contains(r.text, "t5") {
				return true
			}
		}
		return false
	}))
	require.NoError(t, other.write(t.Context(), map[string]any{"type": "stop", "message_id": uuid.NewString()}))
	require.NoError(t, u.untilAnswered(t.Context(), broken, 10*time.Second))
	stopped := answerOf(broken)
	require.Equal(t, "true", stopped.Metadata["stopped"])
	further, err := other.wish(t.Context(), "continue", stopped.MessageID)
	require.NoError(t, err)
	assert.Equal(t, stopped.MessageID, further.Metadata["continues"])
	assert.NotEmpty(t, further.Content)
	assert.Contains(t, prompt(), strings.TrimSpace(stopped.Content), "the model sees what it had said")
	assert.Contains(t, prompt(), "exactly where it stopped")

	// Retry: what failed.
	failing, err := u.send(t.Context(), "!error 503 times=3")
	require.NoError(t, err)
	require.NoError(t, u.untilAnswered(t.Context(), failing, 20*time.Second))
	failed := answerOf(failing)
	require.Equal(t, "LLM_UNAVAILABLE", failed.Metadata["failed"])
	worked, err := u.wish(t.Context(), "retry", failing)
	require.NoError(t, err)
	assert.Empty(t, worked.Metadata["failed"])
	assert.NotEmpty(t, worked.Content)
	assert.Equal(t, failed.MessageID, worked.Metadata["replaces"])
	assert.Contains(t, worked.Metadata["answers"], failing)

	// What cannot be granted is refused, and the connection lives on.
	assert.Equal(t, "NOT_FOUND", u.refusedWish(t, "regenerate", uuid.NewString()))
	assert.Equal(t, "NOT_FOUND", u.refusedWish(t, "regenerate", first), "a question is no answer")
	assert.Equal(t, "BAD_FRAME", u.refusedWish(t, "continue", old.MessageID), "it is complete")
	assert.Equal(t, "BAD_FRAME", u.refusedWish(t, "retry", second), "it is answered")
	assert.Equal(t, "BAD_FRAME", u.refusedWish(t, "retry", failing), "it is answered by now")

	// Sent again, the same wish is a duplicate and has one answer.
	id := uuid.NewString()
	u.mu.Lock()
	u.own[id] = ""
	u.mu.Unlock()
	for range 3 {
		require.NoError(t, u.write(t.Context(), map[string]any{"type": "regenerate", "message_id": id, "target": old.MessageID}))
	}
	require.NoError(t, u.untilAnswered(t.Context(), id, 20*time.Second))
	require.NoError(t, u.until(t.Context(), 10*time.Second, "both duplicates", func() bool { return u.dups == 2 }))
	asks(t, u, "!tokens 2")
	assert.NotContains(t, prompt(), `"t1 t2 t3"},{"role":"assistant"`, "a replaced answer is shown once")
	u.mu.Lock()
	assert.Empty(t, u.faults)
	n, seq := len(u.events), u.seq
	u.mu.Unlock()
	stored := c.flushed(u.sessionID, seq)
	require.Len(t, stored, n)
	kinds, named := map[string]int{}, map[string]int{}
	for _, ev := range stored {
		kinds[ev.Type]++
		if ev.Type == sessionstore.TypeAIResponse {
			named[strings.Fields(ev.Metadata[sessionstore.MetaAnswers])[0]]++
		}
	}
	assert.Equal(t, 2, kinds[sessionstore.TypeRegenerate])
	assert.Equal(t, 1, kinds[sessionstore.TypeContinue])
	assert.Equal(t, 1, kinds[sessionstore.TypeRetry])
	for id, n := range named {
		assert.Equal(t, 1, n, "turn for %s", id)
	}
}

// Beyond B11: an answer is stopped before its first token, from a socket on another replica than the one that asks the
// model.
func TestStop_beforeTheFirstTokenFromAnotherReplica(t *testing.T) {
	c := start(t, options{env: quick})
	u, other := c.online("asker", 0), c.online("asker", 1)
	question, err := u.send(t.Context(), "!stall")
	require.NoError(t, err)
	require.Eventually(t, func() bool { return len(c.llm.Requests()) == 1 }, 10*time.Second, 10*time.Millisecond, "the model was not asked")
	require.NoError(t, other.until(t.Context(), 10*time.Second, "loading", func() bool { return other.last("loading") != nil }))
	begun := time.Now()
	require.NoError(t, other.write(t.Context(), map[string]any{"type": "stop", "message_id": uuid.NewString(), "target": other.last("loading").MessageID}))
	require.NoError(t, u.untilAnswered(t.Context(), question, 5*time.Second))
	assert.Less(t, time.Since(begun), 3*time.Second)
	u.mu.Lock()
	a := *u.answerTo(question)
	u.mu.Unlock()
	assert.Equal(t, "true", a.Metadata["stopped"])
	assert.Empty(t, a.Content)
	assert.Empty(t, a.Metadata["failed"])
	require.Eventually(t, func() bool { return c.llm.Bill().Lines[0].Outcome == "cancelled" }, 5*time.Second, 20*time.Millisecond)
}

// activate asks for a session to be reopened.
func (c *cluster) activate(u *user, sid, query string, into any) int {
	return c.request(http.MethodPost, c.lb(), "/chat/sessions/"+sid+"/activate"+query, u.token, into)
}

// Promise 17, 48: a past session is reopened on any replica; its numbering goes on. While another is active that is a
// conflict, unless that one is to be ended in the same step; its sockets move.
func TestActivate_reopensAPastSession(t *testing.T) {
	c := start(t, options{env: quick})
	u := c.online("ann", 0)
	asks(t, u, "!tokens 3")
	past := u.sessionID
	require.Equal(t, http.StatusOK, c.request(http.MethodPost, c.lb(), "/chat/sessions/"+past+"/end", u.token, nil))
	<-u.done
	assert.Equal(t, websocket.StatusCode(4410), u.closed)
	top := u.seq

	second := newUser("ann", u.token)
	require.NoError(t, second.connect(t.Context(), c.direct(1)))
	require.NoError(t, second.untilLive(t.Context()))
	require.NotEqual(t, past, second.sessionID)
	var conflict struct {
		SessionID string `json:"session_id"`
		Error     struct{ Code string }
	}
	require.Equal(t, http.StatusConflict, c.activate(u, past, "", &conflict))
	assert.Equal(t, "SESSION_ACTIVE", conflict.Error.Code)
	assert.Equal(t, second.sessionID, conflict.SessionID)
	stranger := newUser("bob", c.token("bob"))
	require.Equal(t, http.StatusNotFound, c.activate(stranger, past, "", nil))
	require.Equal(t, http.StatusBadRequest, c.activate(u, past, "?end_current=perhaps", nil))

	var item struct {
		ID      string     `json:"id"`
		Active  bool       `json:"active"`
		EndTime *time.Time `json:"end_time"`
	}
	require.Equal(t, http.StatusOK, c.activate(u, past, "?end_current=true", &item))
	assert.Equal(t, past, item.ID)
	assert.True(t, item.Active)
	assert.Nil(t, item.EndTime)
	<-second.done
	assert.Equal(t, websocket.StatusCode(4001), second.closed)
	require.NotEmpty(t, second.events)
	last := second.events[len(second.events)-1]
	assert.Equal(t, "session_ended", last.Type)
	assert.Equal(t, past, last.Metadata["next"])

	back := newUser("ann", u.token)
	require.NoError(t, back.connect(t.Context(), c.direct(2)))
	require.NoError(t, back.untilLive(t.Context()))
	assert.Equal(t, past, back.sessionID)
	assert.Greater(t, back.seq, top)
	asks(t, back, "!tokens 2")
	c.same(t, back)
	back.leave()

	// The same when only MongoDB still has it.
	require.Equal(t, http.StatusOK, c.request(http.MethodPost, c.lb(), "/chat/sessions/"+past+"/end", u.token, nil))
	require.Eventually(t, func() bool { doc, _ := c.doc(past); return doc.Final }, 10*time.Second, 50*time.Millisecond)
	c.forget(past)
	require.Equal(t, http.StatusOK, c.activate(u, past, "", &item))
	assert.True(t, item.Active)
	again := newUser("ann", u.token)
	require.NoError(t, again.connect(t.Context(), c.direct(0)))
	require.NoError(t, again.untilLive(t.Context()))
	assert.Equal(t, past, again.sessionID)
	asks(t, again, "!tokens 2")
	stored := c.same(t, again)
	assert.Equal(t, sessionstore.TypeStarted, stored[0].Type)
	assert.EqualValues(t, 1, stored[0].Seq)
}

// Promise 43: a user is throttled over all replicas together: no more than the rate gets through, what is refused says
// when to try again, and what was accepted before is free.
func TestRate_isCountedOverAllReplicas(t *testing.T) {
	const limit = 30
	c := start(t, options{env: quick, chatbox: fmt.Sprintf("rate_limit = %d", limit)})
	tabs := []*user{c.online("keen", 0), c.online("keen", 1), c.online("keen", 2)}
	calm := c.online("calm", 0)
	var wg sync.WaitGroup
	ids := make([][]string, len(tabs))
	for i, u := range tabs {
		wg.Go(func() {
			for range 20 {
				id, err := u.send(t.Context(), "!tokens 1")
				if !assert.NoError(t, err) {
					return
				}
				ids[i] = append(ids[i], id)
			}
		})
	}
	wg.Wait()
	accepted, refused := 0, 0
	for i, u := range tabs {
		var mine int
		require.NoError(t, u.until(t.Context(), 20*time.Second, "all acks and refusals", func() bool {
			mine = 0
			for _, id := range ids[i] {
				if u.acked[id] > 0 || u.refusals(id) > 0 {
					mine++
				}
			}
			return mine == len(ids[i])
		}))
		u.mu.Lock()
		for _, id := range ids[i] {
			if u.acked[id] > 0 {
				accepted++
			}
		}
		for _, f := range u.frames {
			if f.Type == "error" {
				refused++
				assert.Equal(t, "RATE_LIMITED", f.Error.Code)
				assert.True(t, f.Error.Recoverable)
				assert.Positive(t, f.Error.RetryAfter)
				assert.LessOrEqual(t, f.Error.RetryAfter, int64(62_000))
			}
		}
		assert.Zero(t, u.closed)
		u.mu.Unlock()
	}
	t.Logf("%d accepted, %d refused of %d at a limit of %d", accepted, refused, 60, limit)
	assert.LessOrEqual(t, accepted, limit)
	assert.GreaterOrEqual(t, accepted, limit-9, "reservations cost too much")
	assert.Equal(t, 60, accepted+refused)
	asks(t, calm, "!tokens 1") // Promise 8: nobody else is disturbed

	// Duplicates are free.
	u := tabs[0]
	u.mu.Lock()
	var known string
	for _, id := range ids[0] {
		if u.acked[id] > 0 {
			known = id
		}
	}
	dups := u.dups
	u.mu.Unlock()
	require.NoError(t, u.write(t.Context(), map[string]any{"type": "user_message", "message_id": known, "content": "!tokens 1"}))
	require.NoError(t, u.until(t.Context(), 10*time.Second, "a duplicate", func() bool { return u.dups > dups }))
}

// SPEC, close codes: one user has a bounded number of sockets in the whole cluster, and so has an address on a replica.
func TestSockets_ofAUserAndOfAnAddressAreBounded(t *testing.T) {
	c := start(t, options{env: append([]string{"CHATBOX__LIMITS__SOCKETS_PER_USER=3", "CHATBOX__LIMITS__SOCKETS_PER_ADDRESS=3"}, quick...)})
	tabs := []*user{c.online("ann", 0), c.online("ann", 1), c.online("ann", 2)}
	fourth := newUser("ann", c.token("ann"))
	require.ErrorContains(t, fourth.connect(t.Context(), c.direct(1)), "429")
	c.online("bob", 0).leave()
	tabs[2].leave()
	require.Eventually(t, func() bool { return fourth.connect(t.Context(), c.direct(1)) == nil }, 10*time.Second, 50*time.Millisecond)
	require.NoError(t, fourth.untilLive(t.Context()))

	c.online("bob", 1) // the third of this address on replica 1
	require.ErrorContains(t, newUser("eve", c.token("eve")).connect(t.Context(), c.direct(1)), "429")
	c.online("eve", 2)
}
