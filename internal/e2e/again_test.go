//go:build faults

package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

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
