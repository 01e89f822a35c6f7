//go:build faults

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// desk is a live store of the test's own, as another process that takes sessions over.
func desk(c *cluster) *live.Store {
	c.t.Helper()
	client, err := live.Connect(live.ConnectOptions{URL: c.redisAt(c.redis.Addr)})
	require.NoError(c.t, err)
	c.t.Cleanup(func() { _ = client.Close() })
	s, err := live.New(live.Options{Client: client, Keyring: c.keyring, Replica: "desk"})
	require.NoError(c.t, err)
	return s
}

// takeover is one answer that a person breaks into after its k-th chunk.
type takeover struct {
	*scene
	race bool // the answer flows on while the person joins
	join sessionstore.Appended
	wait time.Duration // before joining, with race
}

// Beyond B4 (and promises 53, 55): a person takes the session over after every chunk of a 40-chunk answer, once while
// the model is held there and once while it writes on. No AI text follows the join in the transcript or at any client,
// what was shown before is kept before it, and the model's request is broken off.
func TestTakeover_atEveryChunkFencesTheAnswer(t *testing.T) {
	steps := newStepper()
	c := start(t, options{model: steps.in, chatbox: unlimited})
	store := desk(c)
	seed := chaosSeed(t)
	dice := rand.New(rand.NewPCG(seed, 4))
	var all []*takeover
	var scenes []*scene
	of := map[*scene]*takeover{}
	for k := range killTokens + 1 {
		for _, race := range []bool{false, true} {
			tk := &takeover{scene: newScene(c, steps, k%3, k), race: race, wait: time.Duration(dice.IntN(4000)) * time.Microsecond}
			all, scenes = append(all, tk), append(scenes, tk.scene)
			of[tk.scene] = tk
		}
	}
	each(t, scenes, func(s *scene) error {
		if err := s.open(t.Context()); err != nil {
			return err
		}
		if err := s.play(t.Context()); err != nil {
			return err
		}
		return of[s].takeOver(t.Context(), store)
	})
	whole, cut := 0, 0
	for _, tk := range all {
		if tk.check(t) {
			whole++
		} else {
			cut++
		}
	}
	t.Logf("%d answers were cut, %d were faster than the person", cut, whole)
	assert.Greater(t, cut, killTokens, "too few answers were met while they ran")
}

// takeOver joins, and waits until nothing can follow any more: the model's request has ended and the replica that
// produced has answered a ping over the same socket afterwards.
func (tk *takeover) takeOver(ctx context.Context, store *live.Store) error {
	if tk.race {
		tk.g.allow(-1)
		sleepFor(ctx, tk.wait)
	}
	var err error
	tk.join, _, err = store.Join(ctx, tk.asker.sessionID, live.Hold{AdminID: "helen", Name: "Helen"}, uuid.NewString())
	if err != nil {
		return err
	}
	select {
	case <-tk.g.ended:
	case <-time.After(10 * time.Second):
		return fmt.Errorf("the model still writes, 10 s after the takeover at chunk %d", tk.k)
	}
	for _, u := range []*user{tk.asker, tk.viewer} {
		if err := u.until(ctx, 20*time.Second, "the takeover", func() bool { return u.assisted }); err != nil {
			return err
		}
		// Promise 53: the person is heard wherever the sockets are, and the user; the AI is not.
	}
	if _, err := store.Append(ctx, sessionstore.Append{Event: sessionstore.Event{
		Header: sessionstore.Header{
			Type: sessionstore.TypeUserMessage, SessionID: tk.asker.sessionID, MessageID: uuid.NewString(),
			Sender: sessionstore.SenderAdmin, Timestamp: time.Now().UTC(),
		},
		Body: sessionstore.Body{Content: "Helen here"},
	}, AdminID: "helen"}); err != nil {
		return err
	}
	if _, err := tk.asker.send(ctx, "thank you"); err != nil {
		return err
	}
	for _, u := range []*user{tk.asker, tk.viewer} {
		if err := u.until(ctx, 20*time.Second, "the conversation with the person", func() bool {
			n := len(u.events)
			return n > 1 && u.events[n-1].Content == "thank you" && u.events[n-2].Content == "Helen here"
		}); err != nil {
			return err
		}
	}
	return nil
}

// check compares what was shown with what is stored. It reports whether the answer had been finished before.
func (tk *takeover) check(t *testing.T) (whole bool) {
	t.Helper()
	stored := tk.c.flushed(tk.asker.sessionID, tk.join.Seq+2)
	partials := 0
	for _, ev := range stored {
		if ev.Type != sessionstore.TypeAIResponse {
			continue
		}
		partials++
		assert.Less(t, ev.Seq, tk.join.Seq, "AI text after the takeover at chunk %d", tk.k)
		switch {
		case ev.Metadata[sessionstore.MetaInterrupted] == "":
			whole = true
			assert.Equal(t, words(killTokens), ev.Content)
			assert.True(t, tk.race)
		case tk.race:
			assert.GreaterOrEqual(t, len(ev.Content), len(words(tk.k)), "shown text is missing at chunk %d", tk.k)
			assert.Contains(t, words(killTokens)+" ", ev.Content)
		default:
			assert.Equal(t, prefixOf(tk.k), ev.Content)
		}
	}
	if tk.k > 0 {
		assert.Equal(t, 1, partials, "what was shown is kept, once, at chunk %d", tk.k)
	}
	for _, u := range []*user{tk.asker, tk.viewer} {
		u.mu.Lock()
		assert.Empty(t, u.faults, "chunk %d", tk.k)
		assertSame(t, u.events, stored)
		u.mu.Unlock()
		u.leave()
	}
	return whole
}

// prefixOf is the text of the first k chunks of an answer of killTokens.
func prefixOf(k int) string {
	text := words(k)
	if k > 0 && k < killTokens {
		text += " "
	}
	return text
}
