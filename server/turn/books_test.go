package turn

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/internal/llmfake"
	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
)

// replica is a Runner that can be killed (its lease is taken away) and shut down.
type replica struct {
	*Runner
	down func()
}

func newReplica(t require.TestingT, f *fakeStore, models Models, change func(*Options)) *replica {
	o := Options{Models: models, Lease: 300 * time.Millisecond}
	if f != nil {
		o.Store, o.History = f, f
	}
	if change != nil {
		change(&o)
	}
	r, err := New(o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	return &replica{r, sync.OnceFunc(func() {
		cancel()
		<-done
	})}
}

// eventually waits for what happens within moments.
func eventually(t require.TestingT, what string, ok func() bool) {
	for range 20000 {
		if ok() {
			return
		}
		time.Sleep(500 * time.Microsecond)
	}
	require.Fail(t, "waited in vain", what)
}

func (f *fakeStore) look(get func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	get()
}

func (f *fakeStore) final() (ev sessionstore.Event, there bool) {
	f.look(func() {
		if there = len(f.finals) > 0; there {
			ev = f.finals[0]
		}
	})
	return ev, there
}

// wire is a scripted provider behind real HTTP, with real models asking it.
type wire struct {
	server *httptest.Server
	fake   *llmfake.Server
	models *llm.Set
}

func newWire(t *testing.T, change func(*llm.SetOptions)) *wire {
	t.Helper()
	w := &wire{fake: llmfake.New(llmfake.Options{})}
	w.server = httptest.NewServer(w.fake)
	entry := func(id string, fallback ...string) llm.Config {
		return llm.Config{ID: id, Name: "Model " + id, Type: llm.TypeOpenAI, Endpoint: w.server.URL + "/v1", Fallback: fallback}
	}
	o := llm.SetOptions{
		Providers:   []llm.Config{entry("default", "other"), entry("other")},
		BackoffBase: time.Millisecond, BackoffCap: 2 * time.Millisecond,
		// Hundreds of failures are scripted here: what spares a provider that is down must not spare them.
		BreakerOpen: 1, RetryFloor: 1 << 20,
	}
	if change != nil {
		change(&o)
	}
	var err error
	w.models, err = llm.NewSet(o)
	require.NoError(t, err)
	t.Cleanup(func() {
		w.server.CloseClientConnections()
		w.server.Close()
		w.models.Close()
	})
	return w
}

// bill is what a provider got of one session, whose requests name it as their user.
type bill struct {
	requests, running int
	prompt, said      int64
	lines             []llmfake.Line
}

func (w *wire) bill(sid string) (b bill) {
	for _, l := range w.fake.Bill().Lines {
		if l.User != sid {
			continue
		}
		b.lines = append(b.lines, l)
		b.requests++
		b.prompt, b.said = b.prompt+l.Prompt, b.said+l.Completion
		if l.Outcome == "running" {
			b.running++
		}
	}
	return b
}

// Feature: chat-application-websocket, Property 62 (Promise 62), beyond B8: over any run of success, stop, failure, retry,
// kill and hand-over, the calls that were booked are those that the provider got, and where it reported what they cost the
// final says just that.
func TestBooks_equalTheBillOfTheProvider(t *testing.T) {
	if testing.Short() {
		t.Skip("some hundred conversations over HTTP")
	}
	commands := []string{
		"hello", "!tokens 5", "!length", "!nousage", "!error 500 times=1", "!error 503 times=2", "!error 500", "!error 401",
		"!error 429 retry=0.001 times=1", "!cut 3", "!cut 2 times=1", "!abort 2", "!mid overloaded 2", "!stallmid 3",
		"!error 401 times=1",
	}
	w := newWire(t, nil)
	run, asked := 0, 0
	for range 5 { // rounds of rapid's hundred
		rapid.Check(t, func(rt *rapid.T) {
			run++
			f := &fakeStore{id: fmt.Sprint("p01-run", run)}
			command := rapid.SampledFrom(commands).Draw(rt, "command")
			f.ask("q1", "x") // so that the same words are not the same conversation
			f.events[0].Content = fmt.Sprint("run ", run)
			f.owed = nil
			f.ask("q2", command)
			var replicas []*replica
			start := func() *replica {
				r := newReplica(rt, f, w.models, nil)
				replicas = append(replicas, r)
				r.Start(f.id)
				return r
			}
			now := start()
			reached := func() bool { _, there := f.final(); return there || w.bill(f.id).requests > 0 && f.shown() }
			events := rapid.SliceOfN(rapid.SampledFrom([]string{"wait", "kill", "drain"}), 0, 2).Draw(rt, "events")
			for _, what := range events {
				if what == "wait" {
					continue
				}
				if command == "!stallmid 3" || command == "!tokens 5" {
					eventually(rt, "an answer that has begun", reached)
				}
				if _, there := f.final(); there {
					break
				}
				if what == "kill" {
					f.steal()
				} else {
					now.down()
				}
				now = start()
			}
			stopped := command == "!stallmid 3" || rapid.Bool().Draw(rt, "stop")
			if stopped {
				eventually(rt, "an answer that has begun", reached)
				if _, there := f.final(); !there {
					f.look(func() { f.stop = true }) // whoever does not hear of it finds it
					now.Signal(sessionstore.Message{SessionID: f.id, Type: sessionstore.TypeStop, Frame: []byte(`{"type":"stop"}`)})
				}
			}
			eventually(rt, "a final", func() bool { _, there := f.final(); return there })
			for _, r := range replicas {
				r.down()
			}
			var bill bill
			eventually(rt, "the provider to notice", func() bool { bill = w.bill(f.id); return bill.running == 0 })
			final, _ := f.final()
			require.Len(rt, f.finals, 1)
			if bill.requests > 0 {
				asked++
			}
			// A call that is told to end between its booking and its request is booked, as it must be, and never leaves.
			ends := len(events)
			if stopped {
				ends++
			}
			require.GreaterOrEqual(rt, f.booked, bill.requests)
			require.LessOrEqual(rt, f.booked, bill.requests+ends)
			require.Equal(rt, f.booked, final.Calls, "the final names all calls")
			require.Equal(rt, final.Tokens, final.TokensIn+final.TokensOut)
			if !final.Estimated {
				require.Equal(rt, bill.prompt, final.TokensIn, "%+v", bill.lines)
				require.Equal(rt, bill.said, final.TokensOut, "%+v", bill.lines)
			}
			if ends == 0 {
				require.Equal(rt, f.booked, bill.requests)
				reported := command != "!nousage"
				for _, l := range bill.lines {
					reported = reported && (l.Outcome == "done" || l.Status >= 400)
				}
				require.Equal(rt, !reported, final.Estimated, "%+v", bill.lines)
			}
		})
	}
	require.Greater(t, asked, run*9/10, "runs in which nobody is asked show nothing")
}

// shown says whether anything of the running answer has been published.
func (f *fakeStore) shown() (yes bool) {
	f.look(func() { yes = f.text != "" })
	return yes
}

// tryScript is what one call of a model does.
type tryScript struct {
	text   string
	cost   llm.Usage
	fail   llm.Kind // empty: it ends well
	status int
	wait   time.Duration
}

// scripted is models whose calls follow a script: each failure before any text leads to the next call, of the same model
// or of another. It bills what it does.
type scripted struct {
	mu    sync.Mutex
	tries []tryScript
	calls int
	bill  llm.Usage // what is reported of calls that ended by themselves
	lost  int       // calls that were broken off by us
}

func (s *scripted) Default() string            { return "default" }
func (s *scripted) Has(id string) bool         { return id == "default" || id == "other" }
func (s *scripted) Continues(string) bool      { return false }
func (s *scripted) TokenFactor(string) float64 { return 1 }

func (s *scripted) Limits(string) (contextTokens, maxOutput int) {
	return 0, 0
}
func (s *scripted) Models() []llm.Model {
	return []llm.Model{{ID: "default", Name: "First"}, {ID: "other", Name: "Second"}}
}

func (s *scripted) Stream(ctx context.Context, req llm.Request, obs llm.Observer, emit func(llm.Delta) error) (llm.Result, error) {
	model := req.Model
	var spent llm.Usage
	for n := 1; ; n++ {
		if err := obs.Book(ctx, model); err != nil {
			return llm.Result{Model: model, Usage: spent}, err
		}
		s.mu.Lock()
		try := tryScript{text: "the end", cost: llm.Usage{In: 1, Out: 1, Total: 2}}
		if len(s.tries) > 0 {
			try, s.tries = s.tries[0], s.tries[1:]
		}
		s.calls++
		s.mu.Unlock()
		cut := false
		select {
		case <-time.After(try.wait):
		case <-ctx.Done():
			cut = true
		}
		var err error
		if !cut && try.text != "" {
			err = emit(llm.Delta{Text: try.text})
		}
		if cut || err != nil {
			s.mu.Lock()
			s.lost++
			s.mu.Unlock()
			guess := llm.Usage{In: 3, Out: 1, Total: 4, Estimated: true}
			if err == nil {
				err = &llm.Error{Kind: llm.KindCancelled, Provider: model}
			}
			return llm.Result{Model: model, Usage: spent.Plus(guess)}, err
		}
		spent = spent.Plus(try.cost)
		s.mu.Lock()
		s.bill = s.bill.Plus(try.cost)
		s.mu.Unlock()
		if try.fail == "" {
			return llm.Result{Model: model, Usage: spent, Finish: llm.FinishStop}, nil
		}
		err = &llm.Error{Kind: try.fail, Status: try.status, Provider: model}
		switch {
		case try.text != "" || n == 4 || try.fail == llm.KindContextLength:
			return llm.Result{Model: model, Usage: spent}, err
		case try.fail == llm.KindQuota:
			model = "other"
			obs.Fallback(model, err)
		default:
			obs.Attempt(n+1, err)
		}
	}
}

func tries() *rapid.Generator[tryScript] {
	return rapid.Custom(func(t *rapid.T) tryScript {
		try := tryScript{
			fail:   rapid.SampledFrom([]llm.Kind{"", llm.KindServer, llm.KindQuota, llm.KindNetwork, llm.KindContextLength}).Draw(t, "fail"),
			wait:   time.Duration(rapid.IntRange(0, 30).Draw(t, "tenths")) * 100 * time.Millisecond,
			status: rapid.SampledFrom([]int{0, 500}).Draw(t, "status"),
		}
		if try.status == 0 || try.fail == "" { // an HTTP error costs nothing and says nothing
			in, out := rapid.Int64Range(1, 500).Draw(t, "in"), rapid.Int64Range(0, 500).Draw(t, "out")
			try.cost = llm.Usage{In: in, Out: out, Total: in + out, Cached: rapid.Int64Range(0, in).Draw(t, "cached")}
			try.text = rapid.SampledFrom([]string{"", "some text"}).Draw(t, "text")
		}
		return try
	})
}

// Beyond B8: over any run of failures, repetitions, fallbacks, conversations that are too long, stops, kills and hand-overs,
// each call is booked once, and finals and the user's day add up to the bill wherever nothing was broken off by us.
func TestBooks_balanceWhateverHappens(t *testing.T) {
	for range 4 { // rounds of rapid's hundred
		rapid.Check(t, func(rt *rapid.T) {
			script := rapid.SliceOfN(tries(), 0, 8).Draw(rt, "tries")
			type happening struct {
				after int // tenths of a second
				what  string
			}
			events := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) happening {
				return happening{rapid.IntRange(0, 40).Draw(t, "after"), rapid.SampledFrom([]string{"", "stop", "kill", "drain"}).Draw(t, "what")}
			}), 0, 3).Draw(rt, "events")
			synctest.Test(t, func(t *testing.T) {
				models := &scripted{tries: script}
				f := &fakeStore{}
				var replicas []*replica
				start := func() *replica {
					r := newReplica(t, f, models, func(o *Options) { o.Catalog, o.Lease, o.MaxTakeovers = models, 10*time.Second, 5 })
					replicas = append(replicas, r)
					synctest.Wait()
					r.Start(sid)
					return r
				}
				f.ask("q", "hello")
				now := start()
				for i, event := range events {
					pass(time.Duration(event.after) * 100 * time.Millisecond)
					switch event.what {
					case "stop":
						now.Signal(sessionstore.Message{SessionID: sid, Type: sessionstore.TypeStop, Frame: []byte(`{"type":"stop"}`)})
					case "kill":
						f.steal()
						now = start()
					case "drain":
						now.down()
						now = start()
					}
					f.ask(fmt.Sprint("q", i), "and now?")
					now.Start(sid)
				}
				pass(5 * time.Minute)
				for _, r := range replicas {
					r.down()
				}
				var sum sessionstore.Spent
				for _, ev := range f.finals {
					sum = sum.Plus(ev.Spent)
				}
				assert.Empty(rt, f.owed)
				assert.Equal(rt, models.calls, f.booked)
				assert.Equal(rt, f.booked, sum.Calls)
				assert.Equal(rt, sum.Tokens, f.spent)
				killed := slices.ContainsFunc(events, func(e happening) bool { return e.what == "kill" })
				if models.lost == 0 && !killed {
					assert.False(rt, sum.Estimated)
					said := llm.Usage{In: sum.TokensIn, Out: sum.TokensOut, Total: sum.Tokens, Cached: sum.TokensCached}
					assert.Equal(rt, models.bill, said)
				}
			})
			if rt.Failed() {
				rt.FailNow()
			}
		})
	}
}

// A turn whose user has no tokens left fails before the model is asked, and says until when.
func TestTurn_refusesBeyondTheBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{budget: 10, spent: 10}
		f.ask("q1", "hello")
		models := &scripted{}
		r, stop := start(t, f, models)
		defer stop()
		r.Start(sid)
		pass(time.Second)
		final, there := f.final()
		require.True(t, there)
		assert.Zero(t, models.calls)
		assert.Equal(t, "BUDGET_EXCEEDED", final.Metadata[sessionstore.MetaFailed])
		assert.Equal(t, "3600000", final.Metadata[sessionstore.MetaRetryAfter])
		assert.Empty(t, final.Metadata[sessionstore.MetaHelp])
	})
}

// What is written down at the next booking, in case this replica dies: an HTTP error costs nothing, a call without an
// answer its prompt.
func TestBooks_sayMeanwhileWhatIsKnown(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		want   int64
	}{"refused": {500, 0}, "no answer": {0, 12}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeStore{}
				f.ask("q1", "12345678901234567890")
				r, stop := start(t, f, &scripted{tries: []tryScript{{fail: llm.KindServer, status: c.status}, {wait: time.Hour}}})
				defer stop()
				r.Start(sid)
				pass(time.Second)
				assert.Equal(t, 2, f.calls)
				assert.Equal(t, c.want, f.settled.TokensIn)
				assert.EqualValues(t, 12, f.prompt)
			})
		})
	}
}

// errNoText is what no caller sees.
var errNoText = errors.New("prompt with a secret")

// A failure's text, which may come from anywhere, is not shown to users.
func TestTurn_showsUsersCodesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "hello")
		r, stop := start(t, f, fakeModels{stream: func(context.Context, llm.Request, func(llm.Delta) error) (llm.Result, error) {
			return llm.Result{}, errNoText
		}})
		defer stop()
		r.Start(sid)
		pass(time.Second)
		final, there := f.final()
		require.True(t, there)
		assert.NotContains(t, string(final.Frame()), "secret")
	})
}
