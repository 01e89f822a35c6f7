package turn

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
)

// Whoever goes on with an answer that is to stop asks no model for it: it ends as it stands.
func TestTurn_asksNobodyForAnAnswerThatIsToStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{stop: true, text: "so far", attempt: 1, chunk: 1, takeovers: 1}
		f.ask("q1", "hello")
		asked := 0
		r, stop := start(t, f, fakeModels{stream: func(context.Context, llm.Request, func(llm.Delta) error) (llm.Result, error) {
			asked++
			return llm.Result{}, &llm.Error{Kind: llm.KindServer}
		}})
		defer stop()
		r.Start(sid)
		synctest.Wait()
		require.Len(t, f.finals, 1)
		assert.Equal(t, "true", f.finals[0].Metadata[sessionstore.MetaStopped])
		assert.Equal(t, "so far", f.finals[0].Content)
		assert.Zero(t, asked)
		assert.Zero(t, f.booked)
	})
}

// Beyond B1, B8: an answer that is complete when its replica shuts down is finished there, not asked for once more elsewhere.
func TestTurn_finishesWhatIsCompleteWhileDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{onChunk: func(int) { time.Sleep(time.Second) }} // Redis is slow
		f.ask("q1", "hello")
		r, stop := start(t, f, words(time.Millisecond, "all of it"))
		r.Start(sid)
		pass(500 * time.Millisecond)
		stop()
		require.Len(t, f.finals, 1)
		assert.Equal(t, "all of it", f.finals[0].Content)
		assert.Empty(t, f.finals[0].Metadata[sessionstore.MetaStopped])
		assert.Zero(t, f.released)
	})
}

// A provider that remembers conversations is told a question again that failed without a word: it may never have got it.
func TestTurn_tellsAProviderAgainWhatItMayNotHaveGot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		var seen []llm.Conversation
		outcomes := []error{nil, &llm.Error{Kind: llm.KindNetwork}, nil}
		r, stop := start(t, f, fakeModels{stream: func(_ context.Context, req llm.Request, emit func(llm.Delta) error) (llm.Result, error) {
			err := outcomes[len(seen)]
			seen = append(seen, req.Conversations["default"])
			if err == nil {
				err = emit(llm.Delta{Text: "yes"})
			}
			return llm.Result{Finish: llm.FinishStop, Model: "default", Conversation: "c"}, err
		}})
		defer stop()
		for _, q := range []string{"q1", "q2", "q3"} {
			f.ask(q, q)
			r.Start(sid)
			pass(time.Second)
		}
		require.Len(t, f.finals, 3)
		assert.Equal(t, []llm.Conversation{{}, {ID: "c", Seen: 2}, {ID: "c", Seen: 2}}, seen)
	})
}

// A model may have a system prompt of its own.
func TestTurn_opensWithTheModelsOwnSystemPrompt(t *testing.T) {
	for model, want := range map[string]string{"default": "be kind", "other": "be short"} {
		synctest.Test(t, func(t *testing.T) {
			f := &fakeStore{model: model}
			f.ask("q1", "hello")
			var got string
			r := newReplica(t, f, fakeModels{stream: func(_ context.Context, req llm.Request, emit func(llm.Delta) error) (llm.Result, error) {
				got = req.Messages[0].Content
				return llm.Result{Finish: llm.FinishStop}, emit(llm.Delta{Text: "a"})
			}}, func(o *Options) { o.SystemPrompt, o.SystemPrompts = "be kind", map[string]string{"other": "be short"} })
			r.Start(sid)
			pass(time.Second)
			r.down()
			assert.Equal(t, want, got)
		})
	}
}
