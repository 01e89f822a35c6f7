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

// reviver puts back what MongoDB has, as far as it reaches.
type reviver struct {
	f       *fakeStore
	reaches bool
	calls   int
}

func (r *reviver) Revive(context.Context, string, string) error {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	r.calls++
	if r.reaches {
		r.f.owed = nil
	}
	return nil
}

// Beyond B1, B2: Redis was replaced by one that has the question and not the answer, which MongoDB has. The answer is put
// back, and no model is asked for another one that the transcript would not have.
func TestTurn_putsAnAnswerBackThatOnlyMongoDBHas(t *testing.T) {
	for name, c := range map[string]struct {
		reaches, takenOver bool
		finals             int
	}{
		"among the newest events":        {reaches: true},
		"older":                          {finals: 1},
		"after the last of the attempts": {reaches: true, takenOver: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeStore{}
				f.ask("q1", "hello")
				if c.takenOver {
					f.takeovers = 7
				}
				stored := reply("answer-q1", "q1")
				stored.SessionID, stored.Content = sid, "as it was"
				f.events = append(f.events, stored)
				rev := &reviver{f: f, reaches: c.reaches}
				m := fakeModels{stream: func(context.Context, llm.Request, func(llm.Delta) error) (llm.Result, error) {
					t.Error("a model was asked")
					return llm.Result{}, nil
				}}
				r, err := New(Options{Store: f, History: f, Models: m, Revival: rev, Lease: 10 * time.Second})
				require.NoError(t, err)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- r.Run(ctx) }()
				synctest.Wait()
				r.Start(sid)
				pass(time.Minute)
				cancel()
				require.NoError(t, <-done)
				assert.Equal(t, 1, rev.calls)
				require.Len(t, f.finals, c.finals)
				for _, ev := range f.finals {
					assert.Equal(t, "as it was", ev.Content)
				}
				assert.Empty(t, f.owed)
			})
		})
	}
}

// An answer that the provider's filter has cut is not passed off as whole.
func TestTurn_marksWhatTheContentFilterHasCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "hello")
		r, stop := start(t, f, fakeModels{stream: func(_ context.Context, _ llm.Request, emit func(llm.Delta) error) (llm.Result, error) {
			return llm.Result{Finish: llm.FinishFilter}, emit(llm.Delta{Text: "half"})
		}})
		defer stop()
		r.Start(sid)
		pass(time.Second)
		require.Len(t, f.finals, 1)
		assert.Equal(t, "content_filter", f.finals[0].Metadata[sessionstore.MetaInterrupted])
		assert.Empty(t, f.finals[0].Metadata[sessionstore.MetaFailed])
	})
}

// An answer that Redis has never lost anything of is not looked for.
func TestTurn_looksForNoAnswerInASessionThatIsWhole(t *testing.T) {
	a := &answer{Runner: &Runner{opts: Options{Revival: &reviver{}}}, g: &sessionstore.Generation{Whole: true}}
	assert.False(t, a.given(t.Context())) // without a History this would not end well
}
