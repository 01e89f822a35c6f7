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

// What a provider takes back is taken back at once, also where it says nothing in its place: it may have been moderated.
func TestTurn_takesBackWhatTheProviderTakesBack(t *testing.T) {
	for name, c := range map[string]struct{ after, want string }{"all of it": {"", ""}, "and says something else": {"sorry", "sorry"}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeStore{}
				f.ask("q1", "hello")
				r, stop := start(t, f, fakeModels{stream: func(_ context.Context, _ llm.Request, emit func(llm.Delta) error) (llm.Result, error) {
					for _, d := range []llm.Delta{{Text: "How to"}, {Replace: true}, {Text: c.after}} {
						if err := emit(d); err != nil {
							return llm.Result{}, err
						}
						pass(time.Second)
						if d.Replace {
							assert.Equal(t, 2, f.attempt)
							assert.Empty(t, f.text, "nobody reads it any more")
						}
					}
					return llm.Result{Finish: llm.FinishStop}, nil
				}})
				defer stop()
				r.Start(sid)
				pass(time.Minute)
				require.Len(t, f.finals, 1)
				assert.Equal(t, c.want, f.finals[0].Content)
				assert.Equal(t, c.want == "", f.finals[0].Metadata[sessionstore.MetaFailed] != "")
				assert.Empty(t, f.finals[0].Metadata[sessionstore.MetaInterrupted])
			})
		})
	}
}

// A model that has thought until it may write no more has answered nothing: that can be asked for again.
func TestTurn_failsWhenTheLengthIsUsedUpWithoutAWord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "hello")
		r, stop := start(t, f, fakeModels{stream: func(context.Context, llm.Request, func(llm.Delta) error) (llm.Result, error) {
			return llm.Result{Finish: llm.FinishLength}, nil
		}})
		defer stop()
		r.Start(sid)
		pass(time.Minute)
		require.Len(t, f.finals, 1)
		assert.NotEmpty(t, f.finals[0].Metadata[sessionstore.MetaFailed])
		assert.Equal(t, offered, f.finals[0].Metadata[sessionstore.MetaHelp])
		assert.Empty(t, f.finals[0].Metadata[sessionstore.MetaLength])
	})
}

// Beyond B1: a Redis that has lost the last chunks of an answer, and nothing else, is no producer that fell silent.
func TestTurn_beginsAgainWhenRedisHasLostChunks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.onChunk = func(n int) {
			if n == 3 {
				f.mu.Lock()
				defer f.mu.Unlock()
				f.text, f.chunk = "one ", 1
			}
		}
		f.ask("q1", "hello")
		r, stop := start(t, f, words(time.Second, "one ", "two ", "three"))
		defer stop()
		r.Start(sid)
		pass(8 * time.Second) // less than the lease
		require.Len(t, f.finals, 1)
		assert.Equal(t, "one two three", f.finals[0].Content)
		assert.Equal(t, 1, f.released)
		assert.Zero(t, f.takeovers)
	})
}

// A provider that remembers conversations knows what it was told, which for another answer is not all that was said.
func TestTurn_tellsAProviderWhatItMissedForAnOlderAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		var told []string
		r, stop := start(t, f, fakeModels{stream: func(_ context.Context, req llm.Request, emit func(llm.Delta) error) (llm.Result, error) {
			seen := req.Conversations["default"].Seen
			told = append(told, flat(req.Messages[seen:]))
			return llm.Result{Finish: llm.FinishStop, Model: "default", Conversation: "c"}, emit(llm.Delta{Text: "yes"})
		}})
		defer stop()
		ask := func(ev sessionstore.Event) {
			f.ask(ev.MessageID, ev.Content)
			ev.Seq = int64(len(f.events))
			f.events[len(f.events)-1] = ev
			r.Start(sid)
			pass(time.Second)
			f.events[len(f.events)-1].Seq = int64(len(f.events))
		}
		ask(question("q1"))
		ask(question("q2"))
		again := question("r")
		again.Type, again.Target = sessionstore.TypeRegenerate, "answer-q1"
		ask(again)
		ask(question("q3"))
		assert.Equal(t, []string{"u:q1", "u:q2", "u:q1", "u:q2 a:yes u:q3"}, told)
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
