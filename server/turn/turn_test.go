package turn

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Feature: chat-application-websocket, Properties 10 and 28 (Promises 10, 28): a question is answered, chunk by chunk.
func TestTurn_answersWhatIsOwedInChunks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "hello")
		r, stop := start(t, f, words(time.Second, "Good ", "morning", "!"))
		defer stop()
		r.Start(sid)
		pass(time.Minute)
		synctest.Wait()
		require.Len(t, f.finals, 1)
		assert.Equal(t, "Good morning!", f.finals[0].Content)
		assert.Equal(t, []string{"Good ", "morning", "!"}, f.deltas)
		assert.Equal(t, "q1", f.finals[0].Metadata[sessionstore.MetaAnswers])
		assert.EqualValues(t, 3, f.finals[0].Tokens)          // Promise 62
		assert.EqualValues(t, 3000, f.finals[0].ResponseTime) // Promise 13
		assert.Equal(t, sessionstore.TypeLoading, f.published[0].Type)
		assert.Equal(t, 1, f.booked)
		assert.Zero(t, r.Running())
	})
}

// The first token is sent at once; what arrives while a chunk is under way goes out together in the next.
func TestTurn_gathersTextOnlyWhileAChunkIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{onChunk: func(int) { time.Sleep(100 * time.Millisecond) }}
		f.ask("q1", "hello")
		list := strings.Split(strings.Repeat("x", 50), "")
		r, stop := start(t, f, words(10*time.Millisecond, list...))
		defer stop()
		r.Start(sid)
		pass(time.Minute)
		require.Len(t, f.finals, 1)
		assert.Equal(t, "x", f.deltas[0])
		assert.Less(t, len(f.deltas), 10)
		assert.Equal(t, strings.Repeat("x", 50), f.finals[0].Content)
	})
}

// Messages that arrive during an answer wait and are answered together by the next turn.
func TestTurn_answersLaterQuestionsTogetherInTheNextTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "one")
		r, stop := start(t, f, words(time.Second, "a", "b"))
		defer stop()
		r.Start(sid)
		pass(1500 * time.Millisecond)
		f.ask("q2", "two")
		r.Start(sid)
		f.ask("q3", "three")
		r.Start(sid)
		pass(time.Minute)
		require.Len(t, f.finals, 2)
		assert.Equal(t, "q1", f.finals[0].Metadata[sessionstore.MetaAnswers])
		assert.Equal(t, "q2 q3", f.finals[1].Metadata[sessionstore.MetaAnswers])
	})
}

// A turn is stopped before its first token and in the middle; the partial text is kept and marked.
func TestTurn_keepsThePartialTextWhenStopped(t *testing.T) {
	for name, after := range map[string]time.Duration{"before the first token": 500 * time.Millisecond, "in the middle": 2500 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeStore{}
				f.ask("q1", "hello")
				r, stop := start(t, f, words(time.Second, "a", "b", "c", "d"))
				defer stop()
				r.Start(sid)
				pass(after)
				r.Signal(sessionstore.Message{SessionID: sid, Type: sessionstore.TypeStop, Frame: []byte(`{"type":"stop","target":"answer-q1"}`)})
				synctest.Wait()
				require.Len(t, f.finals, 1, "a stop takes effect at once")
				assert.Equal(t, "true", f.finals[0].Metadata[sessionstore.MetaStopped])
				assert.Equal(t, "abcd"[:int(after/time.Second)], f.finals[0].Content)
				assert.Empty(t, f.finals[0].Metadata[sessionstore.MetaFailed])
			})
		})
	}
}

// A stop whose signal is lost is found at the next renewal.
func TestTurn_findsAStopThatItDidNotHear(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "hello")
		r, stop := start(t, f, fakeModels{stream: func(ctx context.Context, _ llm.Request, _ func(llm.Delta) error) (llm.Result, error) {
			<-ctx.Done()
			return llm.Result{}, &llm.Error{Kind: llm.KindCancelled}
		}})
		defer stop()
		r.Start(sid)
		synctest.Wait()
		f.mu.Lock()
		f.stop = true
		f.mu.Unlock()
		pass(4 * time.Second)
		synctest.Wait()
		require.Len(t, f.finals, 1)
		assert.Equal(t, "true", f.finals[0].Metadata[sessionstore.MetaStopped])
	})
}

// A stop for another answer does nothing.
func TestTurn_ignoresAStopForAnotherAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "hello")
		r, stop := start(t, f, words(time.Second, "a", "b"))
		defer stop()
		r.Start(sid)
		pass(1500 * time.Millisecond)
		r.Signal(sessionstore.Message{SessionID: sid, Type: sessionstore.TypeStop, Frame: []byte(`{"type":"stop","target":"answer-q0"}`)})
		pass(time.Minute)
		require.Len(t, f.finals, 1)
		assert.Equal(t, "ab", f.finals[0].Content)
		assert.Empty(t, f.finals[0].Metadata[sessionstore.MetaStopped])
	})
}

// Beyond B1: a producer that lost its lease writes nothing more; the next one replaces the text as a whole.
func TestTurn_isFencedAndGoesOnWithAReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "hello")
		zombie, stopZombie := start(t, f, words(time.Second, "old ", "old ", "old ", "old"))
		defer stopZombie()
		zombie.Start(sid)
		pass(2500 * time.Millisecond)
		f.steal()
		heir, stopHeir := start(t, f, words(time.Second, "new ", "text"))
		defer stopHeir()
		heir.Start(sid)
		pass(time.Minute)
		require.Len(t, f.finals, 1)
		assert.Equal(t, "new text", f.finals[0].Content)
		assert.Zero(t, zombie.Running())
	})
}

// On shutdown the lease is given back at once, and text received before is out.
func TestTurn_handsOverOnShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "hello")
		r, stop := start(t, f, words(time.Second, "a", "b", "c"))
		r.Start(sid)
		pass(1500 * time.Millisecond)
		stop()
		assert.Equal(t, 1, f.released)
		assert.Empty(t, f.finals)
		assert.Equal(t, "a", f.text)
		r.Start(sid) // ignored
		assert.Zero(t, r.Running())
	})
}

// A provider that fails for good leaves a durable answer that says so, with the partial text.
func TestTurn_recordsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "hello")
		r, stop := start(t, f, fakeModels{stream: func(_ context.Context, _ llm.Request, emit func(llm.Delta) error) (llm.Result, error) {
			if err := emit(llm.Delta{Text: "half an ans"}); err != nil {
				return llm.Result{}, err
			}
			return llm.Result{}, &llm.Error{Kind: llm.KindTruncated}
		}})
		defer stop()
		r.Start(sid)
		pass(time.Second)
		require.Len(t, f.finals, 1)
		assert.Equal(t, "half an ans", f.finals[0].Content)
		assert.Equal(t, "LLM_UNAVAILABLE", f.finals[0].Metadata[sessionstore.MetaFailed])
	})
}

// After two takeovers the turn fails for good instead of beginning for ever.
func TestTurn_givesUpAfterTooManyTakeovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{takeovers: 3, text: "half", chunk: 1, attempt: 1}
		f.ask("q1", "hello")
		r, stop := start(t, f, words(time.Second, "never"))
		defer stop()
		r.Start(sid)
		pass(time.Second)
		require.Len(t, f.finals, 1)
		assert.Equal(t, "half", f.finals[0].Content)
		assert.NotEmpty(t, f.finals[0].Metadata[sessionstore.MetaFailed])
	})
}

// An answer ends at its size limit and says so; it stays valid UTF-8.
func TestTurn_endsAtTheSizeLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "hello")
		r, err := New(Options{Store: f, History: f, Models: words(time.Millisecond, "ääää", "ääää", "ääää"), MaxAnswer: 15})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		r.Start(sid)
		pass(time.Second)
		cancel()
		<-done
		require.Len(t, f.finals, 1)
		assert.Equal(t, "äääääää", f.finals[0].Content)
		assert.Equal(t, "true", f.finals[0].Metadata[sessionstore.MetaLength])
	})
}

// Property: whatever replies are lost, whenever the lease is stolen and however often the text is replaced, each
// question gets one final answer, whose text is what was published since the last reset.
func TestTurn_publishesEveryAnswerOnce(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		away := rapid.IntRange(0, 6).Draw(rt, "lost replies")
		stealAt := rapid.IntRange(0, 6).Draw(rt, "steal at chunk")
		replaceAt := rapid.IntRange(0, 6).Draw(rt, "replace at word")
		questions := rapid.IntRange(1, 3).Draw(rt, "questions")
		synctest.Test(t, func(t *testing.T) {
			f := &fakeStore{away: away}
			stolen := false
			f.onChunk = func(n int) {
				f.mu.Lock()
				doIt := n == stealAt && !stolen
				stolen = stolen || doIt
				f.mu.Unlock()
				if doIt {
					f.steal()
				}
			}
			m := fakeModels{stream: func(ctx context.Context, _ llm.Request, emit func(llm.Delta) error) (llm.Result, error) {
				for i := range 5 {
					if ctx.Err() != nil {
						return llm.Result{}, &llm.Error{Kind: llm.KindCancelled}
					}
					if err := emit(llm.Delta{Text: fmt.Sprint("w", i, " "), Replace: i == replaceAt}); err != nil {
						return llm.Result{}, err
					}
					time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
				}
				return llm.Result{Finish: llm.FinishStop}, nil
			}}
			r, stop := start(t, f, m)
			for q := range questions {
				f.ask(fmt.Sprint("q", q), "text")
				r.Start(sid)
			}
			for range 40 { // the keeper looks again
				pass(time.Second)
				r.Start(sid)
			}
			pass(time.Minute)
			stop()
			require.Empty(t, f.owed)
			want := "w0 w1 w2 w3 w4 "
			if replaceAt < 5 {
				want = want[3*replaceAt:]
			}
			seen := map[string]int{}
			for _, final := range f.finals {
				require.Equal(t, want, final.Content)
				for id := range strings.FieldsSeq(final.Metadata[sessionstore.MetaAnswers]) {
					seen[id]++
				}
			}
			require.Len(t, seen, questions)
			for id, n := range seen {
				require.Equal(t, 1, n, "question %s", id)
			}
		})
	})
}

// Feature: chat-application-websocket, Property 27 (Promise 27): the request carries the session so far, in which
// each answer stands directly after the last question that it answers.
func TestPrompt_putsEachAnswerAfterItsQuestion(t *testing.T) {
	q := func(id string) sessionstore.Event {
		return sessionstore.Event{Header: sessionstore.Header{Type: sessionstore.TypeUserMessage, Sender: sessionstore.SenderUser, MessageID: id}, Body: sessionstore.Body{Content: id}}
	}
	a := func(id, answers string) sessionstore.Event {
		return sessionstore.Event{Header: sessionstore.Header{Type: sessionstore.TypeAIResponse, Sender: sessionstore.SenderAI, MessageID: id},
			Body: sessionstore.Body{Content: id, Metadata: map[string]string{sessionstore.MetaAnswers: answers}}}
	}
	got := Prompt("be kind", []sessionstore.Event{a("a0", "q0"), q("q1"), q("q2"), q("q3"), a("a12", "q1 q2"), a("a3", "q3"), q("q4")})
	var flat []string
	for _, m := range got {
		flat = append(flat, string(m.Role[0])+":"+m.Content)
	}
	assert.Equal(t, []string{"s:be kind", "a:a0", "u:q1", "u:q2", "a:a12", "u:q3", "a:a3", "u:q4"}, flat)
}

func TestNew_namesWhatIsMissing(t *testing.T) {
	_, err := New(Options{})
	require.Error(t, err)
	require.NotErrorIs(t, err, sessionstore.ErrAway)
}
