package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// Feature: chat-application-websocket, Properties 4, 6, 8, 10, 11, 12, 15, 16, 27, 28, 31, 32 (Promises 4, 6, 8, 10, 11,
// 12, 15, 16, 27, 28, 31, 32): twenty users talk at once, and each next socket is on another replica.
func TestConversation_goesOnOnAnotherReplicaWithEverySocket(t *testing.T) {
	c := start(t, options{})
	const users, rounds = 20, 4
	var wg sync.WaitGroup
	for n := range users {
		wg.Go(func() {
			u := newUser(fmt.Sprintf("user-%d", n), c.token(fmt.Sprintf("user-%d", n)))
			assert.NoError(t, talk(t.Context(), c, u, n, rounds))
			u.mu.Lock()
			defer u.mu.Unlock()
			assert.Empty(t, u.faults, u.id)
			stored := c.flushed(u.sessionID, u.seq)
			assertSame(t, u.events, stored)
		})
	}
	wg.Wait()
}

// talk holds a conversation of several rounds, each on the next replica, half of them through the balancer.
func talk(ctx context.Context, c *cluster, u *user, n, rounds int) error {
	first := ""
	for round := range rounds {
		addr := c.direct(n + round)
		if round%2 == 1 {
			addr = c.lb()
		}
		if err := u.connect(ctx, addr); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if err := u.untilLive(ctx); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		u.mu.Lock()
		sid := u.sessionID
		u.mu.Unlock()
		if first == "" {
			first = sid
		} else if sid != first {
			return fmt.Errorf("round %d: session %s in place of %s", round, sid, first)
		}
		id, err := u.send(ctx, "!tokens 8 5")
		if err != nil {
			return err
		}
		if err := u.untilAnswered(ctx, id, 20*time.Second); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		u.leave()
	}
	if u.snapshots != 1 {
		return fmt.Errorf("%d snapshots: every resume must be a delta", u.snapshots)
	}
	return nil
}

// assertSame compares what a client saw with what MongoDB has.
func assertSame(t *testing.T, seen []frame, stored []sessionstore.Event) {
	t.Helper()
	if !assert.Len(t, stored, len(seen)) {
		return
	}
	for i, ev := range stored {
		assert.Equal(t, seen[i].Seq, ev.Seq)
		assert.Equal(t, seen[i].Type, ev.Type)
		assert.Equal(t, seen[i].Content, ev.Content)
		assert.Equal(t, seen[i].MessageID, ev.MessageID)
		assert.False(t, ev.Timestamp.IsZero())
	}
}

// Promise 27: the model is given the whole session, and (Promise 22 of the threat table) nothing of another one.
func TestConversation_givesTheModelTheSessionSoFar(t *testing.T) {
	c := start(t, options{replicas: 2})
	a, b := newUser("ann", c.token("ann")), newUser("bob", c.token("bob"))
	for i, u := range []*user{a, b} {
		require.NoError(t, u.connect(t.Context(), c.direct(i)))
		require.NoError(t, u.untilLive(t.Context()))
		id, err := u.send(t.Context(), "the secret word of "+u.id+" is CANARY-"+u.id)
		require.NoError(t, err)
		require.NoError(t, u.untilAnswered(t.Context(), id, 15*time.Second))
	}
	id, err := a.send(t.Context(), "!echo")
	require.NoError(t, err)
	require.NoError(t, a.untilAnswered(t.Context(), id, 15*time.Second))
	a.mu.Lock()
	answer := a.answerTo(id).Content
	a.mu.Unlock()
	assert.Contains(t, answer, "CANARY-ann")
	assert.NotContains(t, answer, "CANARY-bob")
	assert.Contains(t, answer, "assistant")
}

// Promise 11: an answer reaches every connection of the session on every replica; both tabs see the same.
func TestTabs_onTwoReplicasSeeTheSame(t *testing.T) {
	c := start(t, options{replicas: 2, window: 3 * time.Second})
	tab1, tab2 := newUser("ann", c.token("ann")), newUser("ann", c.token("ann"))
	for i, tab := range []*user{tab1, tab2} {
		require.NoError(t, tab.connect(t.Context(), c.direct(i)))
		require.NoError(t, tab.untilLive(t.Context()))
	}
	require.Equal(t, tab1.sessionID, tab2.sessionID)
	id, err := tab1.send(t.Context(), "!tokens 10 10")
	require.NoError(t, err)
	for _, tab := range []*user{tab1, tab2} {
		require.NoError(t, tab.untilAnswered(t.Context(), id, 15*time.Second))
	}
	tab1.mu.Lock()
	tab2.mu.Lock()
	assert.Equal(t, contents(tab1.events), contents(tab2.events))
	assert.Empty(t, append(tab1.faults, tab2.faults...))
	sid := tab1.sessionID
	tab2.mu.Unlock()
	tab1.mu.Unlock()

	// The window starts once, when the last tab leaves: the first one's leaving does not end the session.
	tab1.leave()
	time.Sleep(4 * time.Second) // longer than the window: time is what is tested here
	require.NoError(t, tab1.connect(t.Context(), c.direct(1)))
	require.NoError(t, tab1.untilLive(t.Context()))
	assert.Equal(t, sid, tab1.sessionID)
	tab1.leave()
	left := time.Now()
	tab2.leave()
	require.Eventually(t, func() bool { doc, found := c.doc(sid); return found && !doc.Session.End.IsZero() }, 15*time.Second, 100*time.Millisecond)
	doc, _ := c.doc(sid)
	assert.WithinDuration(t, left, doc.Session.End, 1500*time.Millisecond, "the end is the last socket's leaving") // Promises 18, 59
	assert.GreaterOrEqual(t, time.Since(left), 3*time.Second)

	// Promise 6: after the window a new session is made.
	require.NoError(t, tab1.connect(t.Context(), c.lb()))
	require.NoError(t, tab1.untilLive(t.Context()))
	assert.NotEqual(t, sid, tab1.sessionID)
}

func contents(events []frame) []string {
	var out []string
	for _, e := range events {
		out = append(out, fmt.Sprint(e.Seq, " ", e.Type, " ", e.Content))
	}
	return out
}

// Feature: chat-application-websocket, Property 48 (Promise 48): eight connects of one user race on three replicas.
func TestOpen_racingConnectsGiveOneSession(t *testing.T) {
	c := start(t, options{})
	for round := range 5 {
		name := fmt.Sprintf("racer-%d", round)
		token := c.token(name)
		ids := make([]string, 8)
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() {
				u := newUser(name, token)
				if assert.NoError(t, u.connect(t.Context(), c.direct(i))) && assert.NoError(t, u.untilLive(t.Context())) {
					u.mu.Lock()
					ids[i] = u.sessionID
					u.mu.Unlock()
				}
			})
		}
		wg.Wait()
		for _, id := range ids {
			assert.Equal(t, ids[0], id)
		}
	}
}

// Beyond B7: a message sent again under its id, also through another replica, is acknowledged with its first seq,
// stored once and answered once.
func TestSend_againIsADuplicate(t *testing.T) {
	c := start(t, options{replicas: 2})
	u := newUser("ann", c.token("ann"))
	require.NoError(t, u.connect(t.Context(), c.direct(0)))
	require.NoError(t, u.untilLive(t.Context()))
	id, err := u.send(t.Context(), "!tokens 3")
	require.NoError(t, err)
	require.NoError(t, u.untilAnswered(t.Context(), id, 15*time.Second))
	u.leave()
	require.NoError(t, u.connect(t.Context(), c.direct(1)))
	require.NoError(t, u.untilLive(t.Context()))
	for range 3 {
		require.NoError(t, u.write(t.Context(), map[string]any{"type": "user_message", "message_id": id, "content": "!tokens 3", "resent": true, "session_id": u.sessionID}))
	}
	require.NoError(t, u.until(t.Context(), 10*time.Second, "duplicates", func() bool { return u.dups == 3 }))
	next, err := u.send(t.Context(), "!tokens 2")
	require.NoError(t, err)
	require.NoError(t, u.untilAnswered(t.Context(), next, 15*time.Second))
	u.mu.Lock()
	defer u.mu.Unlock()
	assert.Empty(t, u.faults)
	assert.Len(t, u.events, 5) // started, 2 questions, 2 answers
	assert.Len(t, c.llm.Requests(), 2)
}

// Beyond B7: a message whose ack was lost, in a session that has ended since, is not given to the next session: Redis
// knows that it was accepted, long before MongoDB does. The model is asked once.
func TestSend_againAfterTheEndOfItsSessionIsADuplicate(t *testing.T) {
	c := start(t, options{replicas: 2, env: []string{"CHATBOX__CLUSTER__FLUSH_EVERY=1h"}})
	u := newUser("ann", c.token("ann"))
	require.NoError(t, u.connect(t.Context(), c.direct(0)))
	require.NoError(t, u.untilLive(t.Context()))
	id, err := u.send(t.Context(), "!tokens 3")
	require.NoError(t, err)
	require.NoError(t, u.untilAnswered(t.Context(), id, 15*time.Second))
	first, seq := u.sessionID, u.acked[id]
	u.leave()
	require.Equal(t, http.StatusOK, c.request(http.MethodPost, c.direct(1), "/chat/sessions/"+first+"/end", u.token, nil))
	_, stored, err := c.archive.Message(t.Context(), first, sessionstore.SenderUser, id)
	require.NoError(t, err)
	require.False(t, stored, "MongoDB is to lag behind")

	again := newUser("ann", u.token)
	require.NoError(t, again.connect(t.Context(), c.direct(1)))
	require.NoError(t, again.untilLive(t.Context()))
	require.NotEqual(t, first, again.sessionID)
	require.NoError(t, again.write(t.Context(), map[string]any{"type": "user_message", "message_id": id, "content": "!tokens 3", "resent": true, "session_id": first}))
	require.NoError(t, again.until(t.Context(), 10*time.Second, "duplicate", func() bool { return again.dups == 1 }))
	next, err := again.send(t.Context(), "!tokens 2")
	require.NoError(t, err)
	require.NoError(t, again.untilAnswered(t.Context(), next, 15*time.Second))
	again.mu.Lock()
	defer again.mu.Unlock()
	assert.Equal(t, seq, again.acked[id], "the seq of the first time")
	assert.Len(t, again.events, 3, "started, one question, one answer")
	assert.Len(t, c.llm.Requests(), 2)
}

// Promises 5, 13, 30, 33: ping, stop from another replica, choice of a model, errors that name their frame.
func TestFrames_doWhatTheySay(t *testing.T) {
	c := start(t, options{replicas: 2})
	u, other := newUser("ann", c.token("ann")), newUser("ann", c.token("ann"))
	require.NoError(t, u.connect(t.Context(), c.direct(0)))
	require.NoError(t, u.untilLive(t.Context()))
	require.NoError(t, other.connect(t.Context(), c.direct(1)))
	require.NoError(t, other.untilLive(t.Context()))

	require.NoError(t, u.write(t.Context(), map[string]any{"type": "ping", "last_seq": 1}))
	require.NoError(t, u.until(t.Context(), 5*time.Second, "pong", func() bool { return u.last("pong") != nil }))
	require.NoError(t, u.conn.Ping(t.Context()))

	id, err := u.send(t.Context(), "!tokens 400 20")
	require.NoError(t, err)
	require.NoError(t, other.until(t.Context(), 10*time.Second, "chunks", func() bool { return len(other.running) == 1 }))
	require.NoError(t, other.write(t.Context(), map[string]any{"type": "stop", "message_id": "3f0c1c6e-5b1e-4a63-9d5e-0d3f6f3a7a11"}))
	begun := time.Now()
	require.NoError(t, u.untilAnswered(t.Context(), id, 5*time.Second))
	assert.Less(t, time.Since(begun), 2*time.Second)
	u.mu.Lock()
	assert.Equal(t, "true", u.answerTo(id).Metadata["stopped"])
	assert.True(t, strings.HasPrefix(u.answerTo(id).Content, "t1 "))
	u.mu.Unlock()

	require.NoError(t, u.write(t.Context(), map[string]any{"type": "model_select", "message_id": "3f0c1c6e-5b1e-4a63-9d5e-0d3f6f3a7a12", "model_id": "second"}))
	require.NoError(t, other.until(t.Context(), 5*time.Second, "model_select", func() bool {
		return len(other.events) > 0 && other.events[len(other.events)-1].ModelID == "second"
	}))
	id, err = other.send(t.Context(), "!tokens 2")
	require.NoError(t, err)
	require.NoError(t, other.untilAnswered(t.Context(), id, 10*time.Second))
	requests := c.llm.Requests()
	assert.Equal(t, "second-model", requests[len(requests)-1].Model)

	require.NoError(t, u.write(t.Context(), map[string]any{"type": "model_select", "message_id": "3f0c1c6e-5b1e-4a63-9d5e-0d3f6f3a7a13", "model_id": "nope"}))
	require.NoError(t, u.until(t.Context(), 5*time.Second, "error", func() bool {
		e := u.last("error")
		return e != nil && e.Error.Code == "INVALID_MODEL" && e.MessageID == "3f0c1c6e-5b1e-4a63-9d5e-0d3f6f3a7a13"
	}))
}

// Messages that are sent while an answer runs are accepted at once, wait, and are answered together.
func TestSend_duringAnAnswerIsAnsweredByTheNextTurn(t *testing.T) {
	c := start(t, options{replicas: 2})
	u := newUser("ann", c.token("ann"))
	require.NoError(t, u.connect(t.Context(), c.lb()))
	require.NoError(t, u.untilLive(t.Context()))
	first, err := u.send(t.Context(), "!tokens 40 20")
	require.NoError(t, err)
	require.NoError(t, u.until(t.Context(), 10*time.Second, "chunks", func() bool { return len(u.running) == 1 }))
	second, err := u.send(t.Context(), "one more")
	require.NoError(t, err)
	third, err := u.send(t.Context(), "!tokens 2")
	require.NoError(t, err)
	require.NoError(t, u.until(t.Context(), 5*time.Second, "acks", func() bool { return len(u.own) == 0 }))
	require.NoError(t, u.untilAnswered(t.Context(), third, 15*time.Second))
	u.mu.Lock()
	defer u.mu.Unlock()
	assert.Equal(t, first, u.answerTo(first).Metadata["answers"])
	assert.Equal(t, second+" "+third, u.answerTo(second).Metadata["answers"])
	assert.Len(t, c.llm.Requests(), 2)
	assert.Empty(t, u.faults)
}

// Promises 14, 17, 18, 46, 47, 49, 50: sessions, their list and their history over HTTP.
func TestSessions_listAndHistory(t *testing.T) {
	c := start(t, options{replicas: 2})
	u := newUser("ann", c.token("ann"))
	var ids []string
	for i := range 3 {
		require.NoError(t, u.connect(t.Context(), c.direct(i)))
		require.NoError(t, u.untilLive(t.Context()))
		id, err := u.send(t.Context(), fmt.Sprintf("Question number %d", i))
		require.NoError(t, err)
		require.NoError(t, u.untilAnswered(t.Context(), id, 15*time.Second))
		ids = append(ids, u.sessionID)
		var ended map[string]any
		require.Equal(t, 200, c.request("POST", c.direct(i+1), "/chat/sessions/"+u.sessionID+"/end", u.token, &ended))
		assert.NotNil(t, ended["end_time"])
		require.NoError(t, u.until(t.Context(), 5*time.Second, "close", func() bool { return u.closed != 0 }))
		assert.EqualValues(t, 4410, u.closed)
		assert.Equal(t, "session_ended", u.events[len(u.events)-1].Type)
		assert.Equal(t, 200, c.request("POST", c.lb(), "/chat/sessions/"+u.sessionID+"/end", u.token, nil), "ending twice is no error")
		var now struct {
			Items []struct {
				ID     string `json:"id"`
				Active bool   `json:"active"`
			} `json:"items"`
		}
		require.Equal(t, 200, c.request("GET", c.lb(), "/chat/sessions", u.token, &now))
		for _, it := range now.Items {
			assert.False(t, it.Active, "a session that has ended is not shown as active, however far MongoDB is")
		}
	}
	var list struct {
		Items []struct {
			ID            string `json:"id"`
			Name          string `json:"name"`
			MessageCount  int    `json:"message_count"`
			AdminAssisted *bool  `json:"admin_assisted"`
			LastActivity  string `json:"last_activity"`
			EndTime       string `json:"end_time"`
			Active        bool   `json:"active"`
		} `json:"items"`
	}
	require.Eventually(t, func() bool {
		return c.request("GET", c.lb(), "/chat/sessions", u.token, &list) == 200 && len(list.Items) == 3 && list.Items[0].EndTime != ""
	}, 15*time.Second, 200*time.Millisecond)
	for i, item := range list.Items {
		assert.Equal(t, ids[2-i], item.ID)
		assert.Equal(t, fmt.Sprintf("Question number %d", 2-i), item.Name)
		assert.Equal(t, 2, item.MessageCount)
		assert.NotNil(t, item.AdminAssisted)
	}
	for _, id := range ids {
		var page struct {
			Items []json.RawMessage `json:"items"`
		}
		require.Equal(t, 200, c.request("GET", c.lb(), "/chat/sessions/"+id+"/messages?limit=200", u.token, &page))
		assert.Len(t, page.Items, 4) // started, question, answer, ended
		assert.Equal(t, 404, c.request("GET", c.lb(), "/chat/sessions/"+id+"/messages", c.token("eve"), nil))
		assert.Equal(t, 404, c.request("POST", c.lb(), "/chat/sessions/"+id+"/end", c.token("eve"), nil))
	}
	assert.Equal(t, 201, c.request("POST", c.lb(), "/chat/sessions", u.token, nil))
	var conflict map[string]any
	assert.Equal(t, 409, c.request("POST", c.lb(), "/chat/sessions", u.token, &conflict))
	assert.NotEmpty(t, conflict["session_id"])
}
