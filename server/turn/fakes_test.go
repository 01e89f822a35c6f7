package turn

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
)

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
	if !reset && attempt == f.attempt && chunk > f.chunk+1 {
		return sessionstore.ErrGap
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
		f.talks = map[string]sessionstore.Conversation{g.SaidBy: {ID: g.Said, UpTo: g.SaidUpTo, Answer: int64(len(f.events))}}
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

func (f *fakeStore) Unsubscribe(string) {}

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

func (m fakeModels) Default() string { return "default" }

func (m fakeModels) Has(id string) bool { return id == "default" || id == "other" }

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
