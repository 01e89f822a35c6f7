package turn

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
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

const sid = "p01-session"

// fakeStore is the generation part of the live store in memory, with its fencing rules.
type fakeStore struct {
	mu        sync.Mutex
	owed      []string
	token     string // of the holder; empty: free
	text      string
	attempt   int
	chunk     int
	takeovers int
	stop      bool
	finals    []sessionstore.Event
	events    []sessionstore.Event
	published []sessionstore.Event
	deltas    []string
	booked    int
	about     []map[string]string // of each call
	released  int
	away      int // so many writes answer ErrAway, half of them after taking effect
	onChunk   func(n int)
	next      int
	model     string // of the session
	id        string // of the session; default sid

	budget  int64              // of a day; 0: none
	spent   int64              // by finals
	settled sessionstore.Spent // of the running answer
	calls   int                // booked of it
	prompt  int64              // of the last of them
	since   int                // length of text when it was booked
	ended   bool               // the last of them has ended
	talks   map[string]sessionstore.Conversation
}

func (f *fakeStore) lost() (before, after bool) {
	if f.away > 0 {
		f.away--
		return f.away%2 == 0, true
	}
	return false, false
}

func (f *fakeStore) Acquire(context.Context, string) (sessionstore.Generation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case len(f.owed) == 0:
		return sessionstore.Generation{}, sessionstore.ErrNotOwed
	case f.token != "":
		return sessionstore.Generation{}, sessionstore.ErrHeld
	}
	f.next++
	f.token = fmt.Sprint("tok", f.next)
	f.attempt = max(f.attempt, 1)
	spent := f.settled
	if f.calls > 0 && !f.ended {
		said := int64(llm.EstimateTokens(f.text[min(f.since, len(f.text)):]))
		spent = spent.Plus(sessionstore.Spent{Tokens: f.prompt + said, TokensIn: f.prompt, TokensOut: said, Estimated: true})
	}
	spent.Calls = f.calls
	return sessionstore.Generation{
		Spent: spent, Conversations: f.talks, ModelID: f.model,
		SessionID: f.sid(), AnswerID: "answer-" + f.owed[0], Token: f.token, Attempt: f.attempt, Chunk: f.chunk, Text: f.text,
		Questions: append([]string(nil), f.together()...), UpTo: int64(len(f.events)), Takeovers: f.takeovers,
	}, nil
}

// together are the questions that one turn answers: a wish for another answer is always alone.
func (f *fakeStore) together() []string {
	wish := func(id string) bool {
		for _, ev := range f.events {
			if ev.MessageID == id {
				return ev.Type != sessionstore.TypeUserMessage
			}
		}
		return false
	}
	for i, id := range f.owed {
		if wish(id) {
			return f.owed[:max(1, i)]
		}
	}
	return f.owed
}

// steal is what happens when the lease lapses and another replica acquires.
func (f *fakeStore) steal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.token = ""
	f.takeovers++
}

func (f *fakeStore) Book(_ context.Context, g *sessionstore.Generation, c sessionstore.Call) error {
	f.mu.Lock()
	over, stop := f.budget > 0 && f.spent+g.Tokens >= f.budget, f.stop && g.Token == f.token
	f.mu.Unlock()
	switch {
	case stop:
		return sessionstore.ErrStopped
	case over:
		return &sessionstore.BudgetError{Wait: time.Hour}
	}
	return f.fenced(g, func() {
		f.booked++
		f.about = append(f.about, c.About)
		f.settled = g.Spent
		g.Calls++
		f.ended = false
		f.calls, f.prompt, f.since = g.Calls, c.Prompt, len(f.text)
	})
}

func (f *fakeStore) Renew(_ context.Context, g *sessionstore.Generation) error {
	err := f.fenced(g, func() {})
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && f.stop {
		return sessionstore.ErrStopped
	}
	return err
}

func (f *fakeStore) fenced(g *sessionstore.Generation, do func()) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if g.Token != f.token {
		return sessionstore.ErrFenced
	}
	do()
	return nil
}

func (f *fakeStore) Chunk(_ context.Context, g *sessionstore.Generation, delta string, reset bool) error {
	f.mu.Lock()
	hook := f.onChunk
	n := len(f.deltas) + 1
	f.mu.Unlock()
	if hook != nil {
		hook(n)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if g.Token != f.token {
		return sessionstore.ErrFenced
	}
	if f.stop {
		return sessionstore.ErrStopped
	}
	attempt, chunk := g.Attempt, g.Chunk+1
	if reset {
		attempt, chunk = g.Attempt+1, 1
	}
	before, lost := f.lost()
	if before {
		return sessionstore.ErrAway
	}
	if attempt > f.attempt || chunk > f.chunk {
		if reset {
			f.text, f.since = "", 0
		}
		f.attempt, f.chunk, f.text = attempt, chunk, f.text+delta
		f.deltas = append(f.deltas, delta)
	}
	if lost {
		return sessionstore.ErrAway
	}
	g.Attempt, g.Chunk, g.Text = f.attempt, f.chunk, f.text
	return nil
}

func (f *fakeStore) Finish(_ context.Context, g *sessionstore.Generation, ev sessionstore.Event) (sessionstore.Appended, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, lost := f.lost()
	if before {
		return sessionstore.Appended{}, false, sessionstore.ErrAway
	}
	for _, old := range f.finals {
		if old.MessageID == ev.MessageID {
			return sessionstore.Appended{Duplicate: true}, len(f.owed) > 0, nil
		}
	}
	if g.Token != f.token {
		return sessionstore.Appended{}, false, sessionstore.ErrFenced
	}
	f.finals = append(f.finals, ev)
	f.events = append(f.events, ev)
	answered := map[string]bool{}
	for id := range strings.FieldsSeq(ev.Metadata[sessionstore.MetaAnswers]) {
		answered[id] = true
	}
	var left []string
	for _, q := range f.owed {
		if !answered[q] {
			left = append(left, q)
		}
	}
	f.owed, f.token, f.text, f.chunk, f.attempt, f.stop = left, "", "", 0, 0, false
	f.spent, f.settled, f.calls, f.ended = f.spent+ev.Tokens, sessionstore.Spent{}, 0, false
	if g.Said != "" {
		f.talks = map[string]sessionstore.Conversation{g.SaidBy: {ID: g.Said, UpTo: g.UpTo, Answer: int64(len(f.events))}}
	}
	if lost {
		return sessionstore.Appended{}, false, sessionstore.ErrAway
	}
	return sessionstore.Appended{}, len(left) > 0, nil
}

func (f *fakeStore) Release(_ context.Context, g *sessionstore.Generation) error {
	return f.fenced(g, func() { f.token, f.released, f.settled, f.ended = "", f.released+1, g.Spent, true })
}

func (f *fakeStore) Publish(_ context.Context, ev sessionstore.Event) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.published = append(f.published, ev)
	return nil
}
func (f *fakeStore) Subscribe(context.Context, string) error { return nil }
func (f *fakeStore) Unsubscribe(string)                      {}

func (f *fakeStore) Context(context.Context, string, int64) ([]sessionstore.Event, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	events := append([]sessionstore.Event(nil), f.events...)
	for i := range events { // those that tests have put there
		if events[i].SessionID == "" {
			events[i].SessionID = f.sid()
		}
	}
	return events, nil
}

// sid is the session whose store it is.
func (f *fakeStore) sid() string {
	if f.id == "" {
		return sid
	}
	return f.id
}

func (f *fakeStore) Message(_ context.Context, _ string, sender sessionstore.Sender, id string) (sessionstore.Event, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, ev := range f.events {
		if ev.MessageID == id && ev.Sender == sender {
			return ev, true, nil
		}
	}
	return sessionstore.Event{}, false, nil
}

func (f *fakeStore) ask(id, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.owed = append(f.owed, id)
	f.events = append(f.events, sessionstore.Event{
		Header: sessionstore.Header{Type: sessionstore.TypeUserMessage, Sender: sessionstore.SenderUser, MessageID: id},
		Body:   sessionstore.Body{Content: text}, Seq: int64(len(f.events) + 1),
	})
}

// fakeModels streams what its function says.
type fakeModels struct {
	stream    func(ctx context.Context, req llm.Request, emit func(llm.Delta) error) (llm.Result, error)
	continues bool
}

func (m fakeModels) Stream(ctx context.Context, req llm.Request, obs llm.Observer, emit func(llm.Delta) error) (llm.Result, error) {
	if obs.Book != nil {
		if err := obs.Book(ctx, req.Model); err != nil {
			return llm.Result{}, err
		}
	}
	return m.stream(ctx, req, emit)
}
func (m fakeModels) Default() string       { return "default" }
func (m fakeModels) Has(id string) bool    { return id == "default" || id == "other" }
func (m fakeModels) Continues(string) bool { return m.continues }

// words streams words with a pause between them, and ends when ctx does.
func words(pause time.Duration, list ...string) fakeModels {
	return fakeModels{stream: func(ctx context.Context, _ llm.Request, emit func(llm.Delta) error) (llm.Result, error) {
		for _, w := range list {
			select {
			case <-ctx.Done():
				return llm.Result{Usage: llm.Usage{Total: 3, Estimated: true}}, &llm.Error{Kind: llm.KindCancelled}
			case <-time.After(pause):
			}
			if err := emit(llm.Delta{Text: w}); err != nil {
				return llm.Result{}, err
			}
		}
		return llm.Result{Finish: llm.FinishStop, Usage: llm.Usage{In: 1, Out: 2, Total: 3}}, nil
	}}
}

// start runs a Runner until stop is called, inside a synctest bubble.
func start(t *testing.T, f *fakeStore, m Models) (r *Runner, stop func()) {
	t.Helper()
	r, err := New(Options{Store: f, History: f, Models: m, Lease: 10 * time.Second})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	synctest.Wait()
	return r, func() {
		cancel()
		require.NoError(t, <-done)
	}
}

// pass lets time go by and waits until everybody has done what was to be done by then.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

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
