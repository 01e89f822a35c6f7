package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/llmfake"
	"github.com/real-rm/chatbox/sessionstore"
)

// failing is three models that cannot answer, each with another behind it: one whose key the gateway does not know, and two
// that the test makes fail.
func failing(base string) string {
	return gatewayEntry(base, "stranger", "chat", `fallback = ["claude"]`) +
		gatewayEntry(base, "broke", "claude", `fallback = ["dify"]`) +
		gatewayEntry(base, "ill", "responses", `fallback = ["chat"]`)
}

// quickRetries shortens what a model that fails is given.
var quickRetries = []string{"CHATBOX__CHATBOX__LLM__BACKOFF_BASE=20ms", "CHATBOX__CHATBOX__LLM__BACKOFF_CAP=100ms"}

// Feature: chat-application-websocket, Properties 27, 29, 30, 62 (Promises 27, 29, 30, 62), beyond B8: models of all kinds
// behind three replicas.
func TestProviders(t *testing.T) {
	g := newGateway()
	g.keys["broke"], g.keys["ill"] = gatewayKey("broke"), gatewayKey("ill") // the stranger's is another one
	c := start(t, options{
		model: g.in, scripted: llmfake.Options{ContextTokens: 20_000}, env: quickRetries, secrets: gatewaySecrets(gatewayKey("broke"), gatewayKey("ill"), gatewayKey("stranger")),
		providers: func(base string) string { return everyKind(base, false) + failing(base) },
		chatbox:   unlimited, extra: "[chatbox.llm]\ncontext_tokens = 60000",
	})
	t.Run("a conversation goes on with whichever model is chosen", func(t *testing.T) { switching(t, c, g) })
	t.Run("another answers for one that cannot", func(t *testing.T) { fallingBack(t, c, g) })
	t.Run("a conversation that is too long is asked once more, shorter", func(t *testing.T) { tooLong(t, c, g) })
	t.Run("stop closes the connection to the provider", func(t *testing.T) { stopping(t, c, g) })
}

// joined is a user with one socket on a replica.
func joined(t *testing.T, c *cluster, id string, replica int) *user {
	t.Helper()
	u := newUser(id, c.token(id))
	u.rejoin(t, c, replica)
	t.Cleanup(func() { _ = u.conn.CloseNow() })
	return u
}

// rejoin leaves, if there, and comes back on a replica.
func (u *user) rejoin(t *testing.T, c *cluster, replica int) {
	t.Helper()
	if u.conn != nil {
		u.leave()
	}
	require.NoError(t, u.connect(t.Context(), c.direct(replica)))
	require.NoError(t, u.untilLive(t.Context()))
}

// choose selects a model.
func (u *user) choose(t *testing.T, model string) {
	t.Helper()
	id := uuid.NewString()
	u.mu.Lock()
	u.own[id] = model // its ack is waited for as that of a message
	u.mu.Unlock()
	require.NoError(t, u.write(t.Context(), map[string]any{"type": "model_select", "message_id": id, "model_id": model}))
	require.NoError(t, u.until(t.Context(), 5*time.Second, "model_select", func() bool { return u.acked[id] > 0 }))
}

// says sends a message and returns its answer.
func (u *user) says(t *testing.T, content string) frame {
	t.Helper()
	id, err := u.send(t.Context(), content)
	require.NoError(t, err)
	require.NoError(t, u.untilAnswered(t.Context(), id, 20*time.Second))
	u.mu.Lock()
	defer u.mu.Unlock()
	return *u.answerTo(id)
}

// told is what loading said about an answer. With u.mu held.
func (u *user) told(answer string) []string {
	var out []string
	for _, f := range u.frames {
		if f.Type == "loading" && f.MessageID == answer && f.Content != "" {
			out = append(out, f.Content)
		}
	}
	return out
}

// chosen is the model of the session as the newest socket was told.
func (u *user) chosen() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := len(u.frames) - 1; i >= 0; i-- {
		if u.frames[i].Status == "connected" {
			return u.frames[i].ModelID
		}
	}
	return ""
}

// lines are what the model billed a session for.
func (c *cluster) lines(session string) []llmfake.Line {
	var out []llmfake.Line
	for _, l := range c.llm.Bill().Lines {
		if l.User == session {
			out = append(out, l)
		}
	}
	return out
}

func switching(t *testing.T, c *cluster, g *gateway) {
	t.Helper()
	u := joined(t, c, "ann", 0)
	var answers []frame
	models := []string{"chat", "responses", "claude", "dify", "claude", "dify", "dify", "responses", "chat"}
	for i, model := range models {
		u.rejoin(t, c, i)
		if i > 0 && model != models[i-1] {
			u.choose(t, model)
		}
		answer := u.says(t, fmt.Sprintf("question number %d", i))
		assert.Equal(t, model, answer.ModelID)
		assert.Empty(t, answer.Metadata["answered_by"])
		answers = append(answers, answer)
		assert.Contains(t, answer.Content, "Hello! You wrote:")
		if model != "dify" {
			assert.Contains(t, answer.Content, fmt.Sprintf("\n> question number %d\n", i))
			assert.Contains(t, answer.Content, fmt.Sprintf("I have read **%d earlier message", 2*i), "all that was said before")
		}
	}
	calls, bill := g.of(u.sessionID), c.lines(u.sessionID)
	require.Len(t, calls, len(models), "each model was asked once")
	require.Len(t, bill, len(models))
	var sum sessionstore.Spent
	for i, l := range bill {
		a := answers[i]
		assert.Equal(t, l.Prompt, a.TokensIn, "%d: %s", i, models[i])
		assert.Equal(t, l.Completion, a.TokensOut, "%d: %s", i, models[i])
		assert.Equal(t, 1, a.Calls)
		assert.False(t, a.Estimated)
		sum = sum.Plus(sessionstore.Spent{Tokens: a.Tokens, TokensIn: a.TokensIn, TokensOut: a.TokensOut, Calls: a.Calls})
	}
	conversationOfDify(t, calls)
	c.flushed(u.sessionID, u.newest())
	require.Eventually(t, func() bool { doc, found := c.doc(u.sessionID); return found && doc.Session.Calls == sum.Calls }, 15*time.Second, 100*time.Millisecond)
	doc, _ := c.doc(u.sessionID)
	doc.Session.TokensCached = 0
	assert.Equal(t, sum, doc.Session.Spent, "the session's books are the sum of its messages'")
	assert.Equal(t, "chat", doc.Session.ModelID)
	u.mu.Lock()
	defer u.mu.Unlock()
	assert.Empty(t, u.faults)
}

// conversationOfDify checks what Dify was told at which of switching's steps.
func conversationOfDify(t *testing.T, calls []gatewayCall) {
	t.Helper()
	asked := func(i int) (query, conversation string) {
		var b struct {
			Query string `json:"query"`
			ID    string `json:"conversation_id"`
		}
		require.NoError(t, json.Unmarshal(calls[i].body, &b))
		return b.Query, b.ID
	}
	first, none := asked(3)
	assert.Empty(t, none)
	for i := range 3 {
		assert.Contains(t, first, fmt.Sprintf("question number %d", i), "what others were asked")
	}
	assert.Contains(t, first, "I am a scripted model", "what others said")
	assert.True(t, strings.HasSuffix(first, "\n\nquestion number 3"), first)
	second, kept := asked(5)
	assert.NotEmpty(t, kept, "the conversation is kept by the session, whichever replica asks")
	assert.Contains(t, second, "question number 4", "what another was asked since")
	assert.NotContains(t, second, "question number 3", "what Dify knows")
	assert.True(t, strings.HasSuffix(second, "\n\nquestion number 5"), second)
	third, again := asked(6)
	assert.Equal(t, kept, again)
	assert.Equal(t, "question number 6", third)
}

func fallingBack(t *testing.T, c *cluster, g *gateway) {
	t.Helper()
	g.ail("!error 429 code=insufficient_quota", -1, "broke")
	g.ail("!error 500", -1, "ill")
	defer g.heal()
	for i, s := range []struct {
		model, by string
		calls     int
		told      []string
	}{
		{"stranger", "claude", 2, []string{"Asking Model claude instead"}},
		{"broke", "dify", 2, []string{"Asking Model dify instead"}},
		{"ill", "chat", 4, []string{"Trying again", "Trying again", "Asking Model chat instead"}},
	} {
		u := joined(t, c, "fallback-"+s.model, i)
		watcher := newUser(u.id, u.token)
		watcher.rejoin(t, c, i+1)
		u.choose(t, s.model)
		answer := u.says(t, "!tokens 3")
		require.NoError(t, watcher.until(t.Context(), 5*time.Second, "the answer elsewhere", func() bool { return len(watcher.events) == len(u.events) }))
		for _, w := range []*user{u, watcher} {
			w.mu.Lock()
			assert.Equal(t, s.told, w.told(answer.MessageID), s.model)
			assert.Empty(t, w.faults)
			w.mu.Unlock()
		}
		watcher.leave()
		assert.Equal(t, words(3), answer.Content)
		assert.Equal(t, s.by, answer.ModelID)
		assert.Equal(t, "Model "+s.by, answer.Metadata["answered_by"])
		assert.Equal(t, s.calls, answer.Calls, s.model)
		assert.Len(t, g.of(u.sessionID), s.calls)
		bill := c.lines(u.sessionID)
		last := bill[len(bill)-1]
		assert.Equal(t, []int64{last.Prompt, last.Completion}, []int64{answer.TokensIn, answer.TokensOut}, "errors cost nothing")
		assert.False(t, answer.Estimated)
		u.rejoin(t, c, i+2)
		assert.Equal(t, s.model, u.chosen(), "the session keeps the model that was chosen")
	}
}

func tooLong(t *testing.T, c *cluster, g *gateway) {
	t.Helper()
	for i, model := range []string{"chat", "responses"} { // which say so at once, and inside the stream
		u := joined(t, c, "long-"+model, i)
		if model != "chat" {
			u.choose(t, model)
		}
		text := strings.Repeat("word ", 8000)
		u.says(t, text)
		u.says(t, text)
		before := len(g.of(u.sessionID))
		require.Equal(t, 2, before)
		answer := u.says(t, text)
		assert.Empty(t, answer.Metadata["failed"])
		assert.Contains(t, answer.Content, "I am a scripted model")
		calls := g.of(u.sessionID)[before:]
		require.Len(t, calls, 2, "one more request")
		assert.Less(t, len(calls[1].body), len(calls[0].body)*3/4)
		assert.Equal(t, 2, answer.Calls)
		bill := c.lines(u.sessionID)
		assert.Equal(t, bill[len(bill)-1].Prompt, answer.TokensIn, "the refused one cost nothing")
		u.mu.Lock()
		assert.Equal(t, []string{"Leaving out older messages"}, u.told(answer.MessageID))
		assert.Empty(t, u.faults)
		u.mu.Unlock()
	}
}

// stopRounds is odd, so that there is a median.
const stopRounds = 3

func stopping(t *testing.T, c *cluster, g *gateway) {
	t.Helper()
	for i, model := range modelKinds {
		u := joined(t, c, "stop-"+model, i)
		elsewhere := joined(t, c, u.id, i+1)
		if model != "chat" {
			u.choose(t, model)
		}
		var took []time.Duration
		for range stopRounds {
			took = append(took, stopOnce(t, c, g, u, elsewhere))
		}
		t.Logf("%s: connections closed %v after the stop was sent to another replica", model, took)
		slices.Sort(took)
		assert.Less(t, took[stopRounds/2], 100*time.Millisecond, model)
		if model == "dify" {
			var stops []llmfake.Stop
			for _, s := range c.llm.Stops() {
				assert.Equal(t, u.sessionID, s.User, "the same user")
				assert.True(t, s.Stopped, "the run was there")
				stops = append(stops, s)
			}
			assert.Len(t, stops, stopRounds, "once each")
		}
		u.mu.Lock()
		assert.Empty(t, u.faults)
		u.mu.Unlock()
	}
}

// stopOnce asks, stops the answer from another replica, and returns how long the connection to the provider lived on.
func stopOnce(t *testing.T, c *cluster, g *gateway, u, elsewhere *user) time.Duration {
	t.Helper()
	id, err := u.send(t.Context(), "!tokens 2000 10")
	require.NoError(t, err)
	require.NoError(t, elsewhere.until(t.Context(), 10*time.Second, "some chunks", func() bool {
		for _, r := range elsewhere.running {
			return r.chunk >= 3
		}
		return false
	}))
	stopped := time.Now()
	require.NoError(t, elsewhere.write(t.Context(), map[string]any{"type": "stop", "message_id": uuid.NewString()}))
	require.NoError(t, u.untilAnswered(t.Context(), id, 5*time.Second))
	require.NoError(t, elsewhere.untilAnswered(t.Context(), id, 5*time.Second))
	u.mu.Lock()
	answer := *u.answerTo(id)
	u.mu.Unlock()
	assert.Equal(t, "true", answer.Metadata["stopped"])
	assert.True(t, answer.Estimated, "nobody reports what a broken-off answer cost")
	var last llmfake.Line
	require.Eventually(t, func() bool {
		bill := c.lines(u.sessionID)
		last = bill[len(bill)-1]
		return last.Outcome != "running"
	}, 5*time.Second, 10*time.Millisecond)
	want := "cancelled"
	if last.Format == "dify" {
		want = "stopped"
	}
	assert.Equal(t, want, last.Outcome)
	calls := g.of(u.sessionID)
	require.False(t, calls[len(calls)-1].gone.IsZero())
	return calls[len(calls)-1].gone.Sub(stopped)
}

// Beyond F24: every provider is down. Whoever asks learns it at once, with the offer of a person; an operator learns it
// once, and once more when it happens again; nothing is left behind; and it is over when it is over.
func TestProviders_allDown(t *testing.T) {
	g := newGateway()
	debug := map[int]string{}
	c := start(t, options{
		model: g.in, providers: func(base string) string { return everyKind(base, true) }, secrets: gatewaySecrets(), chatbox: unlimited,
		env:   append([]string{"CHATBOX__CHATBOX__LLM__BREAKER_FAILURES=2", "CHATBOX__CHATBOX__LLM__BREAKER_OPEN=2s"}, quickRetries...),
		envOf: func(i int) []string { debug[i] = freeAddr(); return []string{"CHATBOX__INTERNAL__ADDR=" + debug[i]} },
	})
	users := make([]*user, 9)
	for i := range users {
		users[i] = joined(t, c, fmt.Sprintf("down-%d", i), i)
	}
	askAll := func() (answers []frame, took time.Duration) {
		ids := make([]string, len(users))
		for i, u := range users {
			var err error
			ids[i], err = u.send(t.Context(), "!tokens 2")
			require.NoError(t, err)
		}
		begun := time.Now()
		for i, u := range users {
			require.NoError(t, u.untilAnswered(t.Context(), ids[i], 20*time.Second))
			u.mu.Lock()
			answers = append(answers, *u.answerTo(ids[i]))
			u.mu.Unlock()
		}
		return answers, time.Since(begun)
	}
	healthy, _ := askAll()
	for _, a := range healthy {
		require.Equal(t, words(2), a.Content)
	}
	var before []int
	for i := range c.replicas {
		before = append(before, goroutines(t, debug[i]))
	}

	g.ail("!error 503", -1, modelKinds...)
	askAll() // finds out, and opens the breakers
	asked, worst := g.count(), time.Duration(0)
	const rounds = 10
	for range rounds { // longer than the breakers are open, so that some ask in vain
		answers, took := askAll()
		worst = max(worst, took)
		for _, a := range answers {
			assert.Equal(t, "LLM_UNAVAILABLE", a.Metadata["failed"])
			assert.Equal(t, "offered", a.Metadata["help"])
			if a.Calls == 0 { // else it was one that tried whether a model is back
				assert.NotEmpty(t, a.Metadata["retry_after"])
			}
			assert.Empty(t, a.Content)
			assert.Zero(t, a.Tokens)
		}
		sleepFor(t.Context(), 300*time.Millisecond)
	}
	t.Logf("%d questions while all were down: %d requests left, the slowest answer after %v", rounds*len(users), g.count()-asked, worst)
	assert.Less(t, worst, 2*time.Second)
	assert.Less(t, g.count()-asked, rounds*len(users), "models that are known to be down are left alone")
	for i := range c.replicas {
		assert.Eventually(t, func() bool { return goroutines(t, debug[i]) <= before[i]+3 }, 10*time.Second, 200*time.Millisecond,
			"replica %d had %d goroutines, has %d", i, before[i], goroutines(t, debug[i]))
		for _, model := range modelKinds {
			assert.Equal(t, 1, c.linesWith(i, `"llm model has stopped answering"`, fmt.Sprintf(`"model":%q`, model)), "%s on replica %d", model, i)
		}
	}

	g.heal()
	require.Eventually(t, func() bool {
		answers, _ := askAll()
		return !slices.ContainsFunc(answers, func(a frame) bool { return a.Metadata["failed"] != "" || a.ModelID != "chat" })
	}, 30*time.Second, 500*time.Millisecond, "they answer again")
	g.ail("!error 401", -1, "chat")
	answers, _ := askAll()
	for _, a := range answers {
		assert.Equal(t, words(2), a.Content, "another one answers")
	}
	for i := range c.replicas {
		assert.Equal(t, 2, c.linesWith(i, `"llm model has stopped answering"`, `"model":"chat"`), "a second outage")
	}
	for _, u := range users {
		u.mu.Lock()
		assert.Empty(t, u.faults)
		u.mu.Unlock()
	}
}

// Beyond B8 and promise 62: what a user may spend a day is counted over all replicas. It is exceeded by no more than the
// answer that was under way.
func TestProviders_budgetOfADay(t *testing.T) {
	const limit = 400
	g := newGateway()
	c := start(t, options{
		model: g.in, providers: func(base string) string { return everyKind(base, false) }, secrets: gatewaySecrets(), env: quickRetries,
		extra: fmt.Sprintf("[chatbox.budget]\ntokens_per_day = %d", limit),
	})
	u := joined(t, c, "spender", 0)
	spent, answers := int64(0), 0
	var refused *frame
	for i := range 60 {
		u.rejoin(t, c, i)
		if i < len(modelKinds) && i > 0 {
			u.choose(t, modelKinds[i])
		}
		id, err := u.send(t.Context(), "!tokens 20")
		require.NoError(t, err)
		require.NoError(t, u.until(t.Context(), 10*time.Second, "answer or refusal", func() bool { return u.answerTo(id) != nil || u.refusals(id) > 0 }))
		u.mu.Lock()
		if a := u.answerTo(id); a != nil {
			assert.Less(t, spent, int64(limit), "asked with nothing left")
			spent, answers = spent+a.Tokens, answers+1
		} else {
			refused = u.last("error")
			delete(u.own, id)
		}
		u.mu.Unlock()
		if refused != nil {
			break
		}
	}
	require.NotNil(t, refused)
	assert.GreaterOrEqual(t, spent, int64(limit))
	asked := len(c.lines(u.sessionID))
	total := int64(0)
	for _, l := range c.lines(u.sessionID) {
		total += l.Total
	}
	assert.Equal(t, spent, total)
	assert.Equal(t, answers, asked)
	for i := range c.replicas {
		u.rejoin(t, c, i)
		id, err := u.send(t.Context(), "!tokens 20")
		require.NoError(t, err)
		require.NoError(t, u.until(t.Context(), 10*time.Second, "refusal", func() bool { return u.refusals(id) > 0 }))
		u.mu.Lock()
		e := u.last("error").Error
		assert.Equal(t, "BUDGET_EXCEEDED", e.Code)
		assert.Positive(t, e.RetryAfter)
		assert.LessOrEqual(t, e.RetryAfter, (24 * time.Hour).Milliseconds())
		delete(u.own, id)
		u.mu.Unlock()
	}
	assert.Len(t, c.lines(u.sessionID), asked, "nothing more was asked")
	other := joined(t, c, "saver", 1)
	assert.Equal(t, words(2), other.says(t, "!tokens 2").Content, "nobody else is concerned")
	t.Logf("%d tokens of %d spent in %d answers over three replicas", spent, limit, answers)
}
