package turn

import (
	"context"
	"errors"
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

// window is what the model that is to be asked can read.
func (a *answer) window() window {
	contextTokens, maxOutput := 0, 0
	if a.opts.Catalog != nil {
		contextTokens, maxOutput = a.opts.Catalog.Limits(a.g.ModelID)
	}
	return newWindow(contextTokens, maxOutput, a.factor(a.g.ModelID))
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
	w := a.window()
	req, lines, goesOn := a.request(todo, a.g.Text, w)
	if goesOn {
		a.mu.Lock()
		a.reset, a.size = false, len(a.g.Text)
		a.mu.Unlock()
	}
	a.loading(ctx, 1, "")
	res, err := a.stream(ctx, req, lines)
	if llm.KindOf(err) != llm.KindContextLength || a.began() || ctx.Err() != nil {
		return res, err
	}
	a.log.Warn("conversation too long for the model, asking with half of it", "session_id", a.g.SessionID,
		"model_id", a.g.ModelID, "tokens", total(lines))
	a.loading(ctx, 2, sayShorter)
	req, lines, _ = a.request(todo, a.g.Text, w.halved(lines))
	return a.stream(ctx, req, lines)
}

// stream sends one request, which the models may repeat or send elsewhere, and keeps the books: whenever a call leaves,
// it is written down what those before it cost, as far as that is known by then.
func (a *answer) stream(ctx context.Context, req llm.Request, lines []line) (llm.Result, error) {
	before := a.g.Spent
	about := map[string]string{}
	a.todo.describe(about, a.g.Questions)
	prompt := int64(float64(total(lines)+perRequest) * max(a.factor(req.Model), 0.1))
	calls := 0
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
			call := sessionstore.Call{ModelID: model, Prompt: prompt, About: about}
			if err := a.retry(ctx, func(ctx context.Context) error { return a.opts.Store.Book(ctx, a.g, call) }); err != nil {
				return err
			}
			calls++
			a.asked = model
			return nil
		},
	}
	res, err := a.opts.Models.Stream(ctx, req, obs, a.emit)
	// What is known of all of them now takes the place of what was written down meanwhile.
	booked := a.g.Calls
	a.g.Spent = before.Plus(spentOf(res.Usage))
	a.g.Calls = booked
	if res.Model == "" {
		res.Model = a.asked
	}
	// Where nothing was said the provider may not have got the question, or may have forgotten it: it is told again.
	if id := res.Conversation; id != "" && len(id) <= mostConversation && (err == nil || a.began()) {
		a.g.Said, a.g.SaidBy = id, res.Model
	}
	return res, err
}

// refused says whether the provider answered a request with an error, which costs nothing.
func refused(err error) bool {
	var e *llm.Error
	return errors.As(err, &e) && e.Status >= 400
}

func spentOf(u llm.Usage) sessionstore.Spent {
	return sessionstore.Spent{Tokens: u.Total, TokensIn: u.In, TokensOut: u.Out, TokensCached: u.Cached, Estimated: u.Estimated}
}

// request makes the model's request. said is what was published of this very answer by a replica that is gone: a model
// that can goes on after it, another begins again.
func (a *answer) request(j job, said string, w window) (req llm.Request, lines []line, goesOn bool) {
	can := a.opts.Models.Continues(a.g.ModelID)
	goesOn = can && said != ""
	beginning := j.partial
	if goesOn {
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
	if j.kind == "" && !goesOn { // else the provider remembers an answer that is not to be there
		req.Conversations = known(a.g.Conversations, lines)
	}
	return req, lines, goesOn
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
