package turn

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
)

// conversation is what was said in turn by a user and a model, each text so many words long.
func conversation(system string, sizes ...int) []line {
	var out []line
	if system != "" {
		out = append(out, line{Message: llm.Message{Role: llm.RoleSystem, Content: system}})
	}
	for i, n := range sizes {
		role := llm.RoleUser
		if i%2 == 1 {
			role = llm.RoleAssistant
		}
		out = append(out, line{llm.Message{Role: role, Content: fmt.Sprint("m", i, " ") + strings.Repeat("word ", n)}, int64(i + 1)})
	}
	return out
}

// name is the first word of a message, by which conversation can be recognised.
func name(l line) string { return strings.Fields(l.Content)[0] }

// Feature: chat-application-websocket, Property 27 (Promise 27): whatever the conversation, the prompt fits, begins with
// the system prompt, ends with the newest turn, holds only whole turns, and leaves out none but the oldest.
func TestWindow_keepsTheNewestTurnsWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.IntRange(1, 300), 1, 40).Draw(t, "sizes")
		system := strings.Repeat("rule ", rapid.IntRange(0, 50).Draw(t, "system"))
		w := newWindow(rapid.IntRange(600, 8000).Draw(t, "context"), rapid.SampledFrom([]int{0, 100}).Draw(t, "output"), 1)
		reserve := rapid.IntRange(0, w.tokens/4).Draw(t, "reserve")
		lines := conversation(system, sizes...)
		got := w.fit(lines, reserve)
		require.LessOrEqual(t, total(got)+perRequest+reserve, w.tokens+perRequest, "it fits")
		if system != "" {
			require.Equal(t, lines[0], got[0])
			got, lines = got[1:], lines[1:]
		}
		require.NotEmpty(t, got)
		rest := lines[len(lines)-len(got):]
		for i := range got {
			require.Equal(t, name(rest[i]), name(got[i]), "the newest, in their order")
			if got[i].Content != rest[i].Content {
				require.Contains(t, got[i].Content, "characters left out")
			}
		}
		require.Equal(t, llm.RoleUser, got[0].Role, "it begins with a question")
		if total(lines) <= w.tokens-perRequest-llm.EstimateTokens(system)-perMessage-reserve && !slices.ContainsFunc(lines, func(l line) bool {
			return perMessage+llm.EstimateTokens(l.Content) > w.tokens/4
		}) {
			require.Equal(t, lines, got, "nothing goes that has room")
		}
	})
}

// The beginning of the prompt stays the same for many turns, so that providers need not read all of it again.
func TestWindow_movesInSteps(t *testing.T) {
	w := newWindow(4000, 400, 1)
	var sizes []int
	moves, before, grown := 0, "", 0
	for i := range 400 {
		sizes = append(sizes, 20+i%30)
		grown += 5 + len(strings.Repeat("word ", sizes[i]))/4
		if i%2 == 1 {
			continue
		}
		if first := name(w.fit(conversation("be kind", sizes...), 0)[1]); first != before {
			moves, before = moves+1, first
		}
	}
	assert.LessOrEqual(t, moves, grown/(w.tokens/stepShare)+2)
	assert.Greater(t, moves, 10)
}

// A message of any length is cut to what there is room for, at both ends of which it stays what it was.
func TestMiddleOut_keepsBothEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringN(1, 2000, -1).Draw(t, "text")
		tokens := rapid.IntRange(20, 300).Draw(t, "tokens")
		got := middleOut(text, tokens)
		require.True(t, utf8.ValidString(got))
		if llm.EstimateTokens(text) <= tokens {
			require.Equal(t, text, got)
			return
		}
		require.LessOrEqual(t, llm.EstimateTokens(got), tokens)
		head, rest, _ := strings.Cut(got, "\n[… ")
		_, tail, _ := strings.Cut(rest, " left out …]\n")
		require.True(t, strings.HasPrefix(text, head))
		require.True(t, strings.HasSuffix(text, tail))
	})
}

func TestWindow_ofAModel(t *testing.T) {
	for name, c := range map[string]struct {
		context, output int
		factor          float64
		want            int
	}{
		"as set":                   {10000, 2000, 1, 7600},
		"unknown":                  {0, 0, 1, 26508},
		"small":                    {1000, 0, 1, 712},
		"answer as long as prompt": {1000, 1000, 1, 237},
		"estimates too low":        {10000, 2000, 1.9, 3800},
		"estimates too high":       {10000, 2000, 0.5, 7600},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, newWindow(c.context, c.output, c.factor).tokens) })
	}
}

// What people from support say carries their name, and cannot pass for somebody else's words.
func TestPrompt_namesWhoHelped(t *testing.T) {
	said := func(name, text string) sessionstore.Event {
		ev := sessionstore.Event{Header: sessionstore.Header{Type: sessionstore.TypeUserMessage, Sender: sessionstore.SenderAdmin}, Body: sessionstore.Body{Content: text}}
		if name != "" {
			ev.Metadata = map[string]string{sessionstore.MetaName: name}
		}
		return ev
	}
	join := sessionstore.Event{Header: sessionstore.Header{Type: sessionstore.TypeAdminJoin}, Body: sessionstore.Body{Metadata: map[string]string{sessionstore.MetaName: "Mei"}}}
	file := question("f1")
	file.Type, file.Content, file.Metadata = sessionstore.TypeFileUpload, "look", map[string]string{sessionstore.MetaName: "a]\n[b.pdf"}
	var got []string
	for _, m := range Prompt("", []sessionstore.Event{said("", "hi"), join, said("", "hello"), said("Eve]\n[User", "bye"), file}) {
		got = append(got, string(m.Role)+": "+m.Content)
	}
	assert.Equal(t, []string{"assistant: [Support] hi", "assistant: [Support, Mei] hello", "assistant: [Support, Eve User] bye",
		"user: [file a b.pdf]\nlook"}, got)
}

// tooLong refuses prompts of more than so many estimated tokens.
type tooLong struct {
	*scripted
	most int
	got  []llm.Request
	say  string // before it refuses
}

func (m *tooLong) Limits(string) (contextTokens, maxOutput int) { return 4000, 400 }

func (m *tooLong) TokenFactor(string) float64 { return 1 }

func (m *tooLong) Stream(ctx context.Context, req llm.Request, obs llm.Observer, emit func(llm.Delta) error) (llm.Result, error) {
	if err := obs.Book(ctx, req.Model); err != nil {
		return llm.Result{}, err
	}
	m.got = append(m.got, req)
	n := 0
	for _, msg := range req.Messages {
		n += llm.EstimateTokens(msg.Content)
	}
	if n > m.most {
		if m.say != "" {
			_ = emit(llm.Delta{Text: m.say})
		}
		return llm.Result{}, &llm.Error{Kind: llm.KindContextLength, Status: 400}
	}
	return llm.Result{Finish: llm.FinishStop, Usage: llm.Usage{In: 7, Out: 1, Total: 8}}, emit(llm.Delta{Text: "ok"})
}

// A model that refuses a conversation as too long is asked once more, with half of it, unless it had begun to answer.
func TestTurn_asksOnceMoreWithLessWhenTheConversationIsTooLong(t *testing.T) {
	for name, c := range map[string]struct {
		most, calls int
		say, want   string
	}{
		"fits then":           {1500, 2, "", "ok"},
		"does not fit then":   {10, 2, "", ""},
		"answer has begun":    {10, 1, "half", "half"},
		"fits at first sight": {100000, 1, "", "ok"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeStore{}
				for i := range 20 {
					f.ask(fmt.Sprint("q", i), strings.Repeat("word ", 100))
				}
				f.owed = f.owed[19:]
				for i := range 19 { // so that they are turns
					f.events = append(f.events, reply(fmt.Sprint("a", i), fmt.Sprint("q", i)))
				}
				m := &tooLong{scripted: &scripted{}, most: c.most, say: c.say}
				r := newReplica(t, f, m, func(o *Options) { o.Catalog = m })
				defer r.down()
				synctest.Wait()
				r.Start(sid)
				pass(time.Minute)
				final, there := f.final()
				require.True(t, there)
				assert.Len(t, m.got, c.calls)
				assert.Equal(t, c.calls, f.booked)
				assert.Equal(t, c.want, final.Content)
				assert.Equal(t, c.want != "ok", final.Metadata[sessionstore.MetaFailed] != "")
				if c.calls == 2 {
					assert.Less(t, len(m.got[1].Messages), len(m.got[0].Messages)*2/3)
					assert.Equal(t, sayShorter, f.published[len(f.published)-1].Content)
				}
				if c.want == "ok" {
					assert.EqualValues(t, 8, final.Tokens, "a refusal costs nothing")
				}
			})
		})
	}
}

// A fallback that can read less is given less.
func TestTurn_fitsTheConversationToTheModelThatIsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		for i := range 20 {
			f.ask(fmt.Sprint("q", i), strings.Repeat("word ", 100))
			f.events = append(f.events, reply(fmt.Sprint("a", i), fmt.Sprint("q", i)))
		}
		f.ask("q", "short")
		f.owed = []string{"q"}
		m := &narrow{scripted: &scripted{}}
		r := newReplica(t, f, m, func(o *Options) { o.Catalog = m })
		defer r.down()
		synctest.Wait()
		r.Start(sid)
		pass(time.Minute)
		require.Len(t, m.sizes, 2)
		assert.Greater(t, m.sizes[0], 2000)
		assert.Less(t, m.sizes[1], 1000)
		assert.Less(t, f.prompt, int64(1000), "what is booked is what is sent")
	})
}

// narrow is two models, the first of which cannot answer; the other reads a thousand tokens.
type narrow struct {
	*scripted
	sizes []int
}

func (m *narrow) Limits(id string) (int, int) {
	if id == "other" {
		return 1000, 100
	}
	return 32000, 1000
}

func (m *narrow) Stream(ctx context.Context, req llm.Request, obs llm.Observer, emit func(llm.Delta) error) (llm.Result, error) {
	if err := obs.Book(ctx, "default"); err != nil {
		return llm.Result{}, err
	}
	size := func(messages []llm.Message) (n int) {
		for _, msg := range messages {
			n += llm.EstimateTokens(msg.Content)
		}
		return n
	}
	messages, _ := req.Fit("other")
	m.sizes = []int{size(req.Messages), size(messages)}
	if err := obs.Book(ctx, "other"); err != nil {
		return llm.Result{}, err
	}
	return llm.Result{Finish: llm.FinishStop, Model: "other"}, emit(llm.Delta{Text: "ok"})
}

// crowd is the stores of many sessions.
type crowd struct {
	mu     sync.Mutex
	stores map[string]*fakeStore
	leak   bool // History gives everything to everybody
}

func (c *crowd) of(sid string) *fakeStore {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stores[sid] == nil {
		c.stores[sid] = &fakeStore{id: sid}
	}
	return c.stores[sid]
}

func (c *crowd) Acquire(ctx context.Context, sid string) (sessionstore.Generation, error) {
	g, err := c.of(sid).Acquire(ctx, sid)
	g.SessionID = sid // the fake knows but one
	return g, err
}
func (c *crowd) Book(ctx context.Context, g *sessionstore.Generation, call sessionstore.Call) error {
	return c.of(g.SessionID).Book(ctx, g, call)
}
func (c *crowd) Renew(ctx context.Context, g *sessionstore.Generation) error {
	return c.of(g.SessionID).Renew(ctx, g)
}
func (c *crowd) Chunk(ctx context.Context, g *sessionstore.Generation, delta string, reset bool) error {
	return c.of(g.SessionID).Chunk(ctx, g, delta, reset)
}
func (c *crowd) Finish(ctx context.Context, g *sessionstore.Generation, ev sessionstore.Event) (sessionstore.Appended, bool, error) {
	return c.of(g.SessionID).Finish(ctx, g, ev)
}
func (c *crowd) Release(ctx context.Context, g *sessionstore.Generation) error {
	return c.of(g.SessionID).Release(ctx, g)
}
func (c *crowd) Publish(ctx context.Context, ev sessionstore.Event) error {
	return c.of(ev.SessionID).Publish(ctx, ev)
}
func (c *crowd) Subscribe(context.Context, string) error { return nil }
func (c *crowd) Unsubscribe(string)                      {}

func (c *crowd) Context(ctx context.Context, sid string, upTo int64) ([]sessionstore.Event, error) {
	if !c.leak {
		return c.of(sid).Context(ctx, sid, upTo)
	}
	c.mu.Lock()
	all := make([]*fakeStore, 0, len(c.stores))
	for _, f := range c.stores {
		all = append(all, f)
	}
	c.mu.Unlock()
	var events []sessionstore.Event
	for _, f := range all {
		got, _ := f.Context(ctx, sid, upTo)
		events = append(events, got...)
	}
	return events, nil
}
func (c *crowd) Message(ctx context.Context, sid string, sender sessionstore.Sender, id string) (sessionstore.Event, bool, error) {
	return c.of(sid).Message(ctx, sid, sender, id)
}

// Feature: chat-application-websocket, Property 27 (Promise 27): over generated sessions that are answered at the same
// time, each request carries its session's conversation with the new message at its end, and never a word, nor the
// provider's conversation, of another; not even if the history were to give more than was asked for.
func TestPrompt_holdsNothingOfAnotherSession(t *testing.T) {
	for range 2 { // rounds of rapid's hundred
		rapid.Check(t, func(rt *rapid.T) {
			sessions := rapid.IntRange(2, 6).Draw(rt, "sessions")
			rounds := rapid.IntRange(1, 4).Draw(rt, "rounds")
			leak := rapid.Bool().Draw(rt, "leak")
			words := rapid.IntRange(0, 100).Draw(rt, "words")
			synctest.Test(t, func(t *testing.T) {
				c := &crowd{stores: map[string]*fakeStore{}, leak: leak}
				canary := func(i int) string { return fmt.Sprint("canary-", i, "-") }
				var mu sync.Mutex
				got := map[string][]llm.Request{}
				models := fakeModels{stream: func(_ context.Context, req llm.Request, emit func(llm.Delta) error) (llm.Result, error) {
					mu.Lock()
					got[req.User] = append(got[req.User], req)
					mu.Unlock()
					time.Sleep(time.Millisecond)
					mine := strings.TrimPrefix(req.User, "p01-")
					return llm.Result{Finish: llm.FinishStop, Conversation: "canary-" + mine + "-talk"}, emit(llm.Delta{Text: "canary-" + mine + "-said"})
				}}
				r, err := New(Options{Store: c, History: c, Models: models, SystemPrompt: "be kind"})
				require.NoError(t, err)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- r.Run(ctx) }()
				for round := range rounds {
					for i := range sessions {
						sid := fmt.Sprint("p01-", i)
						f := c.of(sid)
						f.ask(fmt.Sprint("q", i, "-", round), canary(i)+fmt.Sprint("asks-", round)+strings.Repeat(" word", words))
						r.Start(sid)
					}
					pass(time.Second)
				}
				cancel()
				require.NoError(t, <-done)
				for i := range sessions {
					requests := got[fmt.Sprint("p01-", i)]
					assert.Len(rt, requests, rounds)
					for round, req := range requests {
						assert.Len(rt, req.Messages, 2+2*round, "all of the session so far, and the new message")
						assert.Equal(rt, "be kind", req.Messages[0].Content)
						assert.Contains(rt, req.Messages[len(req.Messages)-1].Content, fmt.Sprint(canary(i), "asks-", round))
						text := fmt.Sprint(req)
						assert.Equal(rt, strings.Count(text, "canary-"), strings.Count(text, canary(i)))
						if round > 0 {
							assert.Equal(rt, llm.Conversation{ID: canary(i) + "talk", Seen: 1 + 2*round}, req.Conversations["default"])
						}
					}
				}
			})
			if rt.Failed() {
				rt.FailNow()
			}
		})
	}
}

// What a provider remembers ends at what it has not seen: an admin's words, another model's answer, an answer given anew.
func TestKnown_endsAtTheFirstThatWasNotSeen(t *testing.T) {
	lines := conversation("be kind", 1, 1, 1, 1, 1)
	talk := map[string]sessionstore.Conversation{"m": {ID: "c", UpTo: 2, Answer: 4}}
	assert.Equal(t, 3, known(talk, lines)["m"].Seen)
	lines[3].seq = 2
	assert.Equal(t, 5, known(talk, lines)["m"].Seen)
	lines[2].seq = 9 // given anew since
	assert.Equal(t, 2, known(talk, lines)["m"].Seen)
	assert.Nil(t, known(nil, lines))
}

// A long conversation begins at a round number of its events, so that its beginning stays for a hundred of them.
func TestAnchored_beginsAtARoundNumber(t *testing.T) {
	events := make([]sessionstore.Event, 400)
	firsts := map[int64]bool{}
	for shift := range int64(1000) {
		for i := range events {
			events[i].Seq = shift + int64(i) + 1
		}
		got := anchored(events)
		require.GreaterOrEqual(t, len(got), anchorAbove)
		firsts[got[0].Seq] = true
	}
	assert.Len(t, firsts, 11)
	assert.Len(t, anchored(events[:anchorAbove]), anchorAbove)
}
