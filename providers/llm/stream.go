package llm

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"time"
)

// question is one call of Set.Stream. It belongs to the goroutine of its caller.
type question struct {
	set  *Set
	req  Request
	obs  Observer
	emit func(Delta) error

	pass    *pass  // of the request under way
	waited  string // model that it has waited for, to ask it again
	visible bool   // something was emitted: nothing may be sent after that
	sent    int    // requests
	spent   Usage  // by all of them
}

// Stream sends a request to its model and calls emit for each piece of the answer. While nothing was emitted
//
//   - it tries again, after a wait, where the failure is one that may pass, the provider does not ask to wait longer
//     than 30 s, and the model's provider has not been asked too often already;
//   - it asks the model's fallbacks, in their order, where the model cannot answer. It does so at once where trying
//     again would mean a long wait: after a limit in time, and where the provider asks for more than BackoffCap.
//
// It waits for one model only: those that are asked after it are asked once each. So a question which nobody can answer
// fails within two seconds of waiting, by default, unless a provider asks to wait longer.
//
// A model that does nothing but fail is not asked for a while, see SetOptions.BreakerFailures: without a fallback the
// error is then of KindUnavailable, at once.
//
// Errors of emit and obs.Book are returned unchanged, all others as *Error, that of the model that was asked last.
func (s *Set) Stream(ctx context.Context, req Request, obs Observer, emit func(Delta) error) (Result, error) {
	if req.Model == "" {
		req.Model = s.Default()
	}
	q := &question{set: s, req: req, obs: obs, emit: emit}
	if !s.Has(req.Model) {
		return Result{Model: req.Model}, &Error{Kind: KindNotFound, Provider: req.Model, cause: errors.New("no such model")}
	}
	return q.answer(ctx)
}

// fallbacks are the models that may answer in place of the one that is asked. The list of a model is not followed
// through the lists of those in it. An answer that was begun can only be gone on with by a model that can do so.
func (s *Set) fallbacks(req Request) []string {
	var out []string
	for _, id := range s.entry(req.Model).config.Fallback {
		if s.Has(id) && (!req.Continue || s.Continues(id)) {
			out = append(out, id)
		}
	}
	return out
}

// answer asks the model, then its fallbacks.
func (q *question) answer(ctx context.Context) (Result, error) {
	rest := q.set.fallbacks(q.req)
	var refusal *Result
	model := q.req.Model
	for {
		res, err := q.model(ctx, model, q.next(rest) >= 0)
		why := q.reason(res, err)
		if err == nil && why != nil && refusal == nil {
			refusal = &res
		}
		i := q.next(rest)
		switch {
		case why == nil, q.visible:
			return res, err
		case ctx.Err() != nil:
			return res, cancelled(ctx, model)
		case i >= 0:
			model, rest = rest[i], rest[i+1:]
			if q.req.Fit != nil {
				q.req.Messages, q.req.Conversations = q.req.Fit(model)
			}
			if q.obs.Fallback != nil {
				q.obs.Fallback(model, why)
			}
		case refusal != nil: // better than that the others cannot even do that
			refusal.Usage, refusal.Attempts = q.spent, q.sent
			return *refusal, nil
		default:
			return res, q.soonest(err)
		}
	}
}

// next is the place of the first model that is not known to be down, or -1.
func (q *question) next(models []string) int {
	return slices.IndexFunc(models, func(id string) bool { return q.set.entry(id).breaker.ready() })
}

// reason says why another model should be asked, and nil if none should.
func (q *question) reason(res Result, err error) error {
	if err == nil {
		if q.set.options.FallbackOnRefusal && !q.visible && (res.Finish == FinishRefusal || res.Finish == FinishFilter) {
			return &Error{Kind: KindContent, Provider: res.Model, RequestID: res.RequestID, cause: errors.New("refused without a word")}
		}
		return nil
	}
	var e *Error
	if !errors.As(err, &e) {
		return nil
	}
	switch e.Kind {
	case KindAuth, KindPermission, KindNotFound, KindQuota, KindRate, KindOverloaded, KindServer, KindNetwork, KindTimeout, KindIdle,
		KindTruncated, KindUnavailable:
		return err
	default: // of the request itself, which another model would be given unchanged
		return nil
	}
}

// soonest returns err with the time after which any of the models may be back, if err is that none may be asked.
func (q *question) soonest(err error) error {
	var e *Error
	if !errors.As(err, &e) || e.Kind != KindUnavailable {
		return err
	}
	out := *e
	for _, id := range append(q.set.fallbacks(q.req), q.req.Model) {
		if b := q.set.entry(id).breaker; b != nil {
			out.RetryAfter = min(out.RetryAfter, b.wait())
		}
	}
	return &out
}

// model asks one model, several times if need be. others says that another one could be asked instead.
func (q *question) model(ctx context.Context, id string, others bool) (Result, error) {
	e := q.set.entry(id)
	for try := 1; ; try++ {
		res, err := q.request(ctx, e, try)
		if err == nil || q.visible {
			return res, err
		}
		wait, again := q.again(e, err, try, others)
		if _, known := q.req.Conversations[id]; known && errors.Is(err, errConversationLost) { // once more without it, at once
			q.req.Conversations = without(q.req.Conversations, id)
			wait, again = 0, true
		}
		if !again {
			return res, err
		}
		if q.obs.Attempt != nil {
			q.obs.Attempt(try+1, err)
		}
		if wait > 0 {
			q.waited = id
		}
		if !sleep(ctx, wait) {
			return res, cancelled(ctx, id)
		}
	}
}

// without returns conversations but that of one model. They belong to the caller.
func without(conversations map[string]Conversation, model string) map[string]Conversation {
	rest := maps.Clone(conversations)
	delete(rest, model)
	return rest
}

// request sends one request.
func (q *question) request(ctx context.Context, e *entry, try int) (Result, error) {
	id := e.config.ID
	p, closed := e.breaker.allow()
	if closed != nil {
		return q.result(id, Result{}), closed
	}
	defer p.drop() // whatever happens, or nobody might ever be let through again
	q.pass = p
	if q.obs.Book != nil {
		if err := q.obs.Book(ctx, id); err != nil {
			return q.result(id, Result{}), err
		}
	}
	if try == 1 {
		e.budget.first()
	}
	q.sent++
	req := q.req
	req.Model = id
	res, err := e.provider.Stream(ctx, req, q.show)
	if res.Usage.Estimated {
		res.Usage = e.tokens.scale(res.Usage, res.counted)
	} else if e.teaches(q.req.Messages) {
		e.tokens.learn(res.Usage.In, estimatePrompt(q.req.Messages))
	}
	q.set.report(ctx, e.config, try, res, err)
	q.spent = q.spent.Plus(res.Usage)
	q.set.announce(ctx, id, p.end(err))
	return q.result(id, res), err
}

// teaches says whether the model's count of such a prompt is one of what was sent as text. Files are not estimated, and
// what an app adds of its own, or what a tool has found, says nothing about how much a word costs.
func (e *entry) teaches(prompt []Message) bool {
	return e.config.Type != TypeDify && len(e.config.Tools) == 0 &&
		!slices.ContainsFunc(prompt, func(m Message) bool { return len(m.Files) > 0 })
}

// result is what is known of the question after a request to a model.
func (q *question) result(model string, res Result) Result {
	res.Model, res.Usage, res.Attempts = model, q.spent, q.sent
	return res
}

// show emits a piece of the answer.
func (q *question) show(d Delta) error {
	if !q.visible && (d.Text != "" || d.File != nil || d.Replace) {
		q.visible = true
		q.set.announce(context.Background(), q.pass.b.model, q.pass.spoke())
	}
	return q.emit(d)
}

// again decides whether the failure of a try is worth another one with the same model, and after which wait.
func (q *question) again(e *entry, err error, try int, others bool) (time.Duration, bool) {
	wait, again := q.set.again(err, try)
	if !again || !e.breaker.ready() {
		return 0, false
	}
	if others && q.set.long(err) || q.waited != "" && q.waited != e.config.ID {
		return 0, false
	}
	return wait, e.budget.take()
}

// long says whether somebody has waited long already, or would have to.
func (s *Set) long(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Kind == KindTimeout || e.Kind == KindIdle || e.RetryAfter > s.options.BackoffCap)
}

// again decides whether the failure of a try may pass soon, and how long that may take.
func (s *Set) again(err error, try int) (time.Duration, bool) {
	var e *Error
	if !errors.As(err, &e) || !e.Retryable || e.Kind == KindUnavailable || try >= s.options.Attempts || try > 1 && e.once ||
		e.RetryAfter > maxRetryAfter {
		return 0, false
	}
	wait := s.options.BackoffCap
	if shift := try - 1; shift < 16 {
		wait = min(s.options.BackoffBase<<shift, wait)
	}
	wait = time.Duration(float64(wait) * (1 - backoffJitter + 2*backoffJitter*rand.Float64()))
	return max(wait, e.RetryAfter), true
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// cancelled is the error of a request whose caller's ctx has ended.
func cancelled(ctx context.Context, provider string) *Error {
	cause := ctx.Err()
	if why := context.Cause(ctx); why != nil && !errors.Is(why, cause) {
		cause = errors.Join(cause, why)
	}
	return &Error{Kind: KindCancelled, Provider: provider, cause: cause}
}

// report logs one request.
func (s *Set) report(ctx context.Context, c Config, try int, res Result, err error) {
	attrs := []any{"model", c.ID, "provider", c.Type, "try", try, "request_id", res.RequestID,
		"duration_ms", res.Duration.Milliseconds(), "first_token_ms", res.FirstToken.Milliseconds(),
		"tokens_in", res.Usage.In, "tokens_out", res.Usage.Out, "estimated", res.Usage.Estimated}
	var e *Error
	switch {
	case err == nil:
		s.options.Log.InfoContext(ctx, "llm request done", append(attrs, "finish", string(res.Finish))...)
	case !errors.As(err, &e):
		s.options.Log.InfoContext(ctx, "llm request abandoned", attrs...) // by its caller, who knows why
	case e.Kind == KindCancelled:
		s.options.Log.InfoContext(ctx, "llm request cancelled", attrs...)
	default:
		s.options.Log.WarnContext(ctx, "llm request failed", append(attrs, "kind", string(e.Kind), "status", e.Status, "error", e)...)
	}
}

// announce tells an operator what has changed about a model.
func (s *Set) announce(ctx context.Context, model string, c change) {
	if c.back {
		s.options.Log.InfoContext(ctx, "llm model answers again", "model", model)
	}
	if c.alert != nil && s.options.Alert != nil {
		s.options.Alert(*c.alert)
	}
}
