package turn

import (
	"context"
	"errors"
	"math"
	"strings"
	"time"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
)

// Catalog tells what is known of the models beside how to ask them.
type Catalog interface {
	Models() []llm.Model
	// Limits returns how many tokens a model reads and writes in one request, 0 where that is not known.
	Limits(id string) (contextTokens, maxOutput int)
	// TokenFactor returns by how much estimates of a model's tokens are to be multiplied.
	TokenFactor(id string) float64
}

// What users are told while they wait.
const (
	sayAgain   = "Trying again"
	sayInstead = "Asking %s instead"
	sayShorter = "Leaving out older messages"
)

// mostConversation bounds the id of a provider's conversation, which we keep.
const mostConversation = 256

// window is what a model can read.
func (a *answer) window(model string) window {
	contextTokens, maxOutput := 0, 0
	if a.opts.Catalog != nil {
		contextTokens, maxOutput = a.opts.Catalog.Limits(model)
	}
	return newWindow(contextTokens, maxOutput, a.factor(model))
}

// factor is by how much estimates of a model's tokens are to be multiplied.
func (a *answer) factor(model string) float64 {
	if a.opts.Catalog == nil {
		return 1
	}
	return a.opts.Catalog.TokenFactor(model)
}

// systemPrompt opens the conversation. A model that answers in place of another is given that one's.
func (a *answer) systemPrompt() string {
	if own, found := a.opts.SystemPrompts[a.g.ModelID]; found {
		return own
	}
	return a.opts.SystemPrompt
}

// nameOf is what users know a model by.
func (a *answer) nameOf(id string) string {
	if a.opts.Catalog != nil {
		for _, m := range a.opts.Catalog.Models() {
			if m.ID == id && m.Name != "" {
				return m.Name
			}
		}
	}
	return id
}

// ask builds the prompt and streams the model's answer into pending.
func (a *answer) ask(ctx context.Context) (llm.Result, error) {
	if a.g.ModelID == "" || !a.opts.Models.Has(a.g.ModelID) {
		a.g.ModelID = a.opts.Models.Default()
	}
	if a.given(ctx) {
		return llm.Result{}, errGiven
	}
	todo, err := a.job(ctx)
	if err != nil {
		return llm.Result{}, err
	}
	a.todo = todo
	said := a.g.Text
	if a.goesOn(said) {
		a.mu.Lock()
		a.reset, a.size = false, len(said)
		a.mu.Unlock()
	}
	most := window{tokens: math.MaxInt}
	fit := func(model string) (llm.Request, []line) {
		return a.request(todo, said, window{tokens: min(a.window(model).tokens, most.tokens)})
	}
	a.loading(ctx, 1, "")
	res, lines, err := a.stream(ctx, fit)
	if llm.KindOf(err) != llm.KindContextLength || a.began() || ctx.Err() != nil {
		return res, err
	}
	a.log.Warn("conversation too long for the model, asking with half of it", "session_id", a.g.SessionID,
		"model_id", res.Model, "tokens", total(lines))
	a.loading(ctx, 2, sayShorter)
	most = a.window(res.Model).halved(lines)
	res, _, err = a.stream(ctx, fit)
	return res, err
}

// stream sends one request, which the models may repeat or send elsewhere, and keeps the books: whenever a call leaves,
// it is written down what those before it cost, as far as that is known by then. fit makes the request of what a model
// can read; lines is what was sent last.
func (a *answer) stream(ctx context.Context, fit func(model string) (llm.Request, []line)) (res llm.Result, lines []line, err error) {
	req, lines := fit(a.g.ModelID)
	req.Fit = func(model string) ([]llm.Message, map[string]llm.Conversation) {
		var other llm.Request
		other, lines = fit(model)
		return other.Messages, other.Conversations
	}
	before := a.g.Spent
	about := map[string]string{}
	a.todo.describe(about, a.g.Questions)
	calls, prompt := 0, int64(0) // of the last call
	var failed error
	obs := llm.Observer{
		Attempt: func(try int, err error) {
			failed = err
			a.log.Warn("provider failed, trying again", "session_id", a.g.SessionID, "try", try, "error", err.Error())
			a.loading(ctx, try, sayAgain)
		},
		Fallback: func(model string, err error) {
			failed = err
			a.log.Warn("provider failed, asking another", "session_id", a.g.SessionID, "model_id", model, "error", err.Error())
			a.loading(ctx, 1, strings.Replace(sayInstead, "%s", a.nameOf(model), 1))
		},
		Book: func(ctx context.Context, model string) error {
			if calls > 0 && !refused(failed) {
				a.g.Spent = a.g.Plus(sessionstore.Spent{Tokens: prompt, TokensIn: prompt, Estimated: true})
			}
			prompt = int64(float64(total(lines)+perRequest) * max(a.factor(model), 0.1))
			call := sessionstore.Call{ModelID: model, Prompt: prompt, About: about}
			if err := a.retry(ctx, func(ctx context.Context) error { return a.opts.Store.Book(ctx, a.g, call) }); err != nil {
				return err
			}
			calls++
			a.asked = model
			return nil
		},
	}
	res, err = a.opts.Models.Stream(ctx, req, obs, a.emit)
	// What is known of all of them now takes the place of what was written down meanwhile.
	booked := a.g.Calls
	a.g.Spent = before.Plus(spentOf(res.Usage))
	a.g.Calls = booked
	if res.Model == "" {
		res.Model = a.asked
	}
	// Where nothing was said the provider may not have got the question, or may have forgotten it: it is told again.
	if id := res.Conversation; id != "" && len(id) <= mostConversation && (err == nil || a.began()) {
		a.g.Said, a.g.SaidBy, a.g.SaidUpTo = id, res.Model, newest(lines)
	}
	return res, lines, err
}

// newest is the seq of the newest event in what a model was given.
func newest(lines []line) int64 {
	seq := int64(0)
	for _, l := range lines {
		seq = max(seq, l.seq)
	}
	return seq
}

// refused says whether the provider answered a request with an error, which costs nothing.
func refused(err error) bool {
	var e *llm.Error
	return errors.As(err, &e) && e.Status >= 400
}

func spentOf(u llm.Usage) sessionstore.Spent {
	return sessionstore.Spent{Tokens: u.Total, TokensIn: u.In, TokensOut: u.Out, TokensCached: u.Cached, Estimated: u.Estimated}
}

// goesOn says whether the model goes on after what was published of this very answer by a replica that is gone. One that
// cannot begins again.
func (a *answer) goesOn(said string) bool { return said != "" && a.opts.Models.Continues(a.g.ModelID) }

// request makes the request, for a model with the window. said is what was published of this very answer by a replica
// that is gone.
func (a *answer) request(j job, said string, w window) (req llm.Request, lines []line) {
	can := a.opts.Models.Continues(a.g.ModelID)
	beginning := j.partial
	if a.goesOn(said) {
		beginning += said
	}
	var after []line
	if beginning != "" {
		after = append(after, line{Message: llm.Message{Role: llm.RoleAssistant, Content: middleOut(beginning, w.tokens/2)}})
		if !can {
			after = append(after, line{Message: llm.Message{Role: llm.RoleUser, Content: goOn}})
		}
	}
	lines = append(w.fit(j.before.lines(a.systemPrompt()), total(after)), after...)
	req = llm.Request{Model: a.g.ModelID, Messages: messagesOf(lines), User: a.g.SessionID, Continue: can && beginning != ""}
	if j.kind == "" && !a.goesOn(said) { // else the provider remembers an answer that is not to be there
		req.Conversations = known(a.g.Conversations, lines)
	}
	return req, lines
}

// known says how many of the messages each provider remembers.
func known(conversations map[string]sessionstore.Conversation, lines []line) map[string]llm.Conversation {
	if len(conversations) == 0 {
		return nil
	}
	out := make(map[string]llm.Conversation, len(conversations))
	for model, c := range conversations {
		seen := 0
		for seen < len(lines) && c.Knows(lines[seen].seq) {
			seen++
		}
		out[model] = llm.Conversation{ID: c.ID, Seen: seen}
	}
	return out
}

func messagesOf(lines []line) []llm.Message {
	out := make([]llm.Message, len(lines))
	for i, l := range lines {
		out[i] = l.Message
	}
	return out
}

// began says whether anything of the answer has been seen.
func (a *answer) began() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.first > 0
}

// firstToken is how long the first of the answer took to come, 0 if nothing has.
func (a *answer) firstToken() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.first
}
