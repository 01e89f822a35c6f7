package turn

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
)

func question(id string) sessionstore.Event {
	return sessionstore.Event{
		Header: sessionstore.Header{Type: sessionstore.TypeUserMessage, Sender: sessionstore.SenderUser, MessageID: id},
		Body:   sessionstore.Body{Content: id},
	}
}

// reply is an answer whose text is its id; meta are names and values.
func reply(id, answers string, meta ...string) sessionstore.Event {
	m := map[string]string{sessionstore.MetaAnswers: answers}
	for i := 0; i < len(meta); i += 2 {
		m[meta[i]] = meta[i+1]
	}
	return sessionstore.Event{
		Header: sessionstore.Header{Type: sessionstore.TypeAIResponse, Sender: sessionstore.SenderAI, MessageID: id},
		Body:   sessionstore.Body{Content: id, Metadata: m},
	}
}

// nothing is an answer without a word.
func nothing(ev sessionstore.Event) sessionstore.Event {
	ev.Content = ""
	return ev
}

// flat is a prompt in one line.
func flat(messages []llm.Message) string {
	var parts []string
	for _, m := range messages {
		parts = append(parts, string(m.Role[0])+":"+m.Content)
	}
	return strings.Join(parts, " ")
}

// Beyond B11: an answer that replaces another stands in its place, one that goes on after another is a part of it, and
// one that failed to replace another leaves it.
func TestPrompt_showsEachAnswerAsItStands(t *testing.T) {
	for name, c := range map[string]struct {
		events []sessionstore.Event
		want   string
	}{
		"replaced": {[]sessionstore.Event{question("q1"), reply("a1", "q1"), question("q2"), reply("a2", "q2"), reply("b1", "r q1", sessionstore.MetaReplaces, "a1")},
			"u:q1 a:b1 u:q2 a:a2"},
		"replaced twice": {[]sessionstore.Event{question("q1"), reply("a1", "q1"), reply("b1", "r q1", sessionstore.MetaReplaces, "a1"), reply("c1", "s q1", sessionstore.MetaReplaces, "b1")},
			"u:q1 a:c1"},
		"continued": {[]sessionstore.Event{question("q1"), reply("half", "q1", sessionstore.MetaStopped, "true"), question("q2"), reply("-more", "c q1", sessionstore.MetaContinues, "half")},
			"u:q1 a:half-more u:q2"},
		"replacement failed": {[]sessionstore.Event{question("q1"), reply("a1", "q1"), reply("b1", "r q1", sessionstore.MetaReplaces, "a1", sessionstore.MetaFailed, "X")},
			"u:q1 a:a1"},
		"stopped before its first word": {[]sessionstore.Event{question("q1"), reply("a1", "q1"), nothing(reply("b1", "r q1", sessionstore.MetaReplaces, "a1", sessionstore.MetaStopped, "true"))},
			"u:q1 a:a1"},
		"its first is too old to be known": {[]sessionstore.Event{question("q1"), reply("b1", "r q1", sessionstore.MetaReplaces, "gone")}, "u:q1 a:b1"},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, flat(Prompt("", c.events))) })
	}
}

// Promise 27: for another answer the model reads the conversation up to the questions that the first was to, and
// nothing of what came later.
func TestJob_showsTheModelWhatTheFirstAnswerWasTo(t *testing.T) {
	events := []sessionstore.Event{
		question("q1"), reply("a1", "q1"), question("q2"), question("q3"), reply("a2", "q2"), reply("a3", "q3"), question("q4"),
	}
	for target, want := range map[string]string{
		"a1": "u:q1", "a2": "u:q1 a:a1 u:q2", "a3": "u:q1 a:a1 u:q2 a:a2 u:q3",
	} {
		j, err := newJob(sessionstore.TypeRegenerate, target, events)
		require.NoError(t, err)
		assert.Equal(t, want, flat(messagesOf(j.before.lines(""))), target)
	}
	_, err := newJob(sessionstore.TypeRegenerate, "nobody", events)
	require.ErrorIs(t, err, errTarget)
}

// Property: whatever was answered, regenerated and continued, each question and each text that stands is in the prompt
// exactly once, and questions keep their order.
func TestPrompt_holdsEverythingOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var events []sessionstore.Event
		var questions []string
		standing := map[string]string{} // answer id -> id of the one that stands for it
		texts := map[string]string{}    // standing answer -> text
		name := func(kind string) string { return kind + string(rune('A'+len(events))) }
		for range rapid.IntRange(1, 20).Draw(t, "events") {
			ids := make([]string, 0, len(standing))
			for _, ev := range events {
				if _, ok := standing[ev.MessageID]; ok {
					ids = append(ids, ev.MessageID)
				}
			}
			switch what := rapid.IntRange(0, 3).Draw(t, "what"); {
			case what == 0 || len(questions) == 0:
				id := name("q")
				questions = append(questions, id)
				events = append(events, question(id))
			case what == 1 || len(ids) == 0:
				id := name("a")
				events = append(events, reply(id, rapid.SampledFrom(questions).Draw(t, "answers")))
				standing[id], texts[id] = id, id
			default:
				old := rapid.SampledFrom(ids).Draw(t, "target")
				id, key := name("b"), sessionstore.MetaReplaces
				root := standing[old]
				texts[root] = id
				if what == 3 {
					key = sessionstore.MetaContinues
				}
				if what == 3 {
					texts[root] = textOf(events, root, standing) + id
				}
				events = append(events, reply(id, "wish", key, old))
				standing[id] = root
			}
		}
		got := Prompt("", events)
		var order []string
		seen := map[string]int{}
		for _, m := range got {
			if m.Role == llm.RoleUser {
				order = append(order, m.Content)
			} else {
				seen[m.Content]++
			}
		}
		require.Equal(t, questions, order)
		total := 0
		for _, n := range seen {
			total += n
		}
		require.Len(t, texts, total)
	})
}

// textOf is what stands for an answer, as the prompt has it.
func textOf(events []sessionstore.Event, root string, standing map[string]string) string {
	text := ""
	for _, ev := range events {
		if standing[ev.MessageID] != root {
			continue
		}
		if ev.Metadata[sessionstore.MetaContinues] != "" {
			text += ev.Content
		} else {
			text = ev.Content
		}
	}
	return text
}

// Prompt is what a model reads of a session's events.
func Prompt(system string, events []sessionstore.Event) []llm.Message {
	return messagesOf(newTalk(events).lines(system))
}

// recorder keeps the requests that a model got.
type recorder struct{ got []llm.Request }

func (r *recorder) models(continues bool, text string) fakeModels {
	return fakeModels{continues: continues, stream: func(_ context.Context, req llm.Request, emit func(llm.Delta) error) (llm.Result, error) {
		r.got = append(r.got, req)
		if err := emit(llm.Delta{Text: text}); err != nil {
			return llm.Result{}, err
		}
		return llm.Result{Finish: llm.FinishStop}, nil
	}}
}

func (f *fakeStore) wish(id, typ, target string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.owed = append(f.owed, id)
	f.events = append(f.events, sessionstore.Event{
		Header: sessionstore.Header{Type: typ, Sender: sessionstore.SenderUser, MessageID: id, Target: target}, Seq: int64(len(f.events) + 1),
	})
}

// Beyond B11: regenerate, continue and retry are turns of their own, and their finals say what they are about.
func TestTurn_givesOtherAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		typ, target  string
		continues    bool
		prompt       string
		meta, answer string
	}{
		"regenerate":                    {sessionstore.TypeRegenerate, "a1", false, "u:q1", sessionstore.MetaReplaces, "a1"},
		"retry":                         {sessionstore.TypeRetry, "q1", false, "u:q1", sessionstore.MetaReplaces, "a1"},
		"continue, as an instruction":   {sessionstore.TypeContinue, "a1", false, "u:q1 a:half u:" + goOn, sessionstore.MetaContinues, "a1"},
		"continue, where the model can": {sessionstore.TypeContinue, "a1", true, "u:q1 a:half", sessionstore.MetaContinues, "a1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				half := reply("a1", "q1", sessionstore.MetaFailed, "X")
				half.Content = "half"
				f := &fakeStore{events: []sessionstore.Event{question("q1"), half}}
				f.wish("w1", c.typ, c.target)
				f.ask("q2", "later")
				var rec recorder
				r, stop := start(t, f, rec.models(c.continues, "text"))
				defer stop()
				r.Start(sid)
				pass(time.Minute)
				require.Len(t, f.finals, 2)
				assert.Equal(t, "w1 q1", f.finals[0].Metadata[sessionstore.MetaAnswers])
				assert.Equal(t, c.answer, f.finals[0].Metadata[c.meta])
				assert.Equal(t, "text", f.finals[0].Content, "only what is new")
				assert.Equal(t, []map[string]string{f.finals[0].Metadata, f.finals[1].Metadata}, f.about, "known before the call, in case it is cut")
				assert.Equal(t, c.prompt, flat(rec.got[0].Messages))
				assert.Equal(t, c.continues, rec.got[0].Continue)
				assert.Equal(t, "q2", f.finals[1].Metadata[sessionstore.MetaAnswers], "a message is a turn of its own")
			})
		})
	}
}

// An answer whose target has vanished fails, and says so; nothing waits for it for ever.
func TestTurn_failsWhenItsTargetHasVanished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.wish("w1", sessionstore.TypeRegenerate, "gone")
		var rec recorder
		r, stop := start(t, f, rec.models(false, "text"))
		defer stop()
		r.Start(sid)
		pass(time.Minute)
		require.Len(t, f.finals, 1)
		assert.NotEmpty(t, f.finals[0].Metadata[sessionstore.MetaFailed])
		assert.Empty(t, rec.got)
	})
}

// Beyond B1: a model that can goes on after what a dead replica has shown, without a reset; the text is one.
func TestTurn_goesOnAfterAnotherReplicaWhereTheModelCan(t *testing.T) {
	for name, continues := range map[string]bool{"goes on": true, "begins again": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeStore{text: "one two", attempt: 1, chunk: 2, takeovers: 1}
				f.ask("q1", "hello")
				var rec recorder
				r, stop := start(t, f, rec.models(continues, " three"))
				defer stop()
				r.Start(sid)
				pass(time.Minute)
				require.Len(t, f.finals, 1)
				if continues {
					assert.Equal(t, "one two three", f.finals[0].Content)
					assert.Equal(t, "u:hello a:one two", flat(rec.got[0].Messages))
				} else {
					assert.Equal(t, " three", f.finals[0].Content)
					assert.Equal(t, "u:hello", flat(rec.got[0].Messages))
				}
				assert.Equal(t, continues, rec.got[0].Continue)
			})
		})
	}
}

// authors is told of finals.
type authors struct{ kept []sessionstore.Event }

func (a *authors) Keep(ev sessionstore.Event, _ sessionstore.Position) { a.kept = append(a.kept, ev) }

// Beyond B2: the final event is kept by its author, with its id and its text.
func TestTurn_keepsWhatItHasWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeStore{}
		f.ask("q1", "hello")
		var a authors
		r, err := New(Options{Store: f, History: f, Models: words(time.Millisecond, "a", "b"), Authored: &a})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		r.Start(sid)
		pass(time.Second)
		cancel()
		require.NoError(t, <-done)
		require.Len(t, a.kept, 1)
		assert.Equal(t, "ab", a.kept[0].Content)
		assert.Equal(t, "answer-q1", a.kept[0].MessageID)
		assert.Equal(t, sid, a.kept[0].SessionID)
	})
}

// short is a history whose context lacks the questions, and that finds each by its id only after a while.
type short struct {
	*fakeStore
	until time.Time
}

func (s short) Context(context.Context, string, int64) ([]sessionstore.Event, error) {
	ev := reply("older", "q0")
	ev.SessionID = sid
	return []sessionstore.Event{ev}, nil
}

func (s short) Message(ctx context.Context, sid string, sender sessionstore.Sender, id string) (sessionstore.Event, bool, error) {
	if time.Now().Before(s.until) {
		return sessionstore.Event{}, false, sessionstore.ErrArchive
	}
	return s.fakeStore.Message(ctx, sid, sender, id)
}

// Beyond B2: what Redis and MongoDB can tell of a conversation just then may begin after the questions. They are looked
// up, and waited for; if they do not come the answer fails, and none is made up without them.
func TestTurn_asksNoModelWithoutTheQuestions(t *testing.T) {
	for name, c := range map[string]struct {
		after time.Duration
		want  string
	}{
		"found":     {0, "a:older u:hello u:world"},
		"soon":      {5 * time.Second, "a:older u:hello u:world"},
		"not found": {time.Hour, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeStore{}
				f.ask("q1", "hello")
				f.ask("q2", "world")
				asked := ""
				m := fakeModels{stream: func(_ context.Context, req llm.Request, emit func(llm.Delta) error) (llm.Result, error) {
					asked = flat(req.Messages)
					return llm.Result{Finish: llm.FinishStop}, emit(llm.Delta{Text: "yes"})
				}}
				r, err := New(Options{Store: f, History: short{f, time.Now().Add(c.after)}, Models: m, Lease: 10 * time.Second})
				require.NoError(t, err)
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- r.Run(ctx) }()
				synctest.Wait()
				r.Start(sid)
				pass(time.Minute)
				cancel()
				require.NoError(t, <-done)
				assert.Equal(t, c.want, asked)
				require.Len(t, f.finals, 1)
				assert.Equal(t, c.want == "", f.finals[0].Metadata[sessionstore.MetaFailed] != "")
			})
		})
	}
}
