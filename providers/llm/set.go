package llm

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"time"
)

// Defaults of SetOptions.
const (
	defaultAttempts    = 3
	defaultBackoffBase = time.Second
	defaultBackoffCap  = 8 * time.Second
	backoffJitter      = 0.25             // of the delay, either way
	maxRetryAfter      = 30 * time.Second // a provider that asks for more is given up
)

// SetOptions tells what a Set consists of.
type SetOptions struct {
	// Providers are the entries of the settings. The first usable one is the default model.
	Providers []Config
	// Attempts is how often a request is sent at most. 0: 3.
	Attempts int
	// BackoffBase is the wait before the second attempt; it doubles up to BackoffCap, ±25 %, and is never
	// shorter than the provider asks for. 0: 1 s and 8 s.
	BackoffBase time.Duration
	BackoffCap  time.Duration
	// Transport, if not nil, carries all requests, in place of one connection pool per provider. For tests.
	Transport http.RoundTripper
	// Log gets a line per request. nil: discarded.
	Log *slog.Logger
}

// Observer is told what a Set does for one request. Its functions are called in the caller's goroutine; nil
// ones are left out.
type Observer struct {
	// Attempt is called as soon as it is decided to try again: try is 2 or 3, err why. The wait comes after it.
	Attempt func(try int, err error)
	// Fallback is called as soon as it is decided to ask another model, which begins with try 1: err is why.
	Fallback func(model string, err error)
	// Book is called right before each request leaves. An error keeps it from leaving and is returned unchanged.
	Book func(ctx context.Context, model string) error
}

// Set is the models of the settings.
type Set struct {
	attempts  int
	base, cap time.Duration
	log       *slog.Logger
	models    []Model
	entries   map[string]entry
}

// entry is a model of the settings, usable or not.
type entry struct {
	provider Provider // nil: of a type that is not available
	config   Config
	release  func()
	tokens   *calibration
}

// NewSet checks the entries and returns every problem at once. Entries of a known type that this version cannot
// talk to are no problem: they are left out of Models, with a warning.
func NewSet(o SetOptions) (*Set, error) {
	s := newSet(o)
	var problems []error
	for i, c := range o.Providers {
		if err := c.check(i); err != nil {
			problems = append(problems, err)
			continue
		}
		if _, twice := s.entries[c.ID]; twice {
			problems = append(problems, c.problem(i, "id is used twice"))
			continue
		}
		p, release, err := newProvider(c, o.Transport)
		switch {
		case errors.Is(err, ErrUnavailable):
			s.log.Warn("llm model left out", "model", c.ID, "type", c.Type, "error", err)
			s.entries[c.ID] = entry{config: c}
		case err != nil:
			problems = append(problems, c.problem(i, err.Error()))
		default:
			s.add(c, p, release)
		}
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	if len(s.models) == 0 {
		s.log.Warn("no llm model can be used")
	}
	return s, nil
}

func newSet(o SetOptions) *Set {
	s := &Set{attempts: o.Attempts, base: o.BackoffBase, cap: o.BackoffCap, log: o.Log, entries: map[string]entry{}}
	if s.attempts <= 0 {
		s.attempts = defaultAttempts
	}
	if s.base <= 0 {
		s.base = defaultBackoffBase
	}
	if s.cap <= 0 {
		s.cap = defaultBackoffCap
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

func (s *Set) add(c Config, p Provider, release func()) {
	name := c.Name
	if name == "" {
		name = c.ID
	}
	s.models = append(s.models, Model{ID: c.ID, Name: name, Provider: c.Type})
	s.entries[c.ID] = entry{provider: p, config: c, release: release, tokens: &calibration{}}
}

// Models returns the models that can be used, in the order of the settings.
func (s *Set) Models() []Model { return append([]Model(nil), s.models...) }

// Default returns the id of the first model, or "" if there is none.
func (s *Set) Default() string {
	if len(s.models) == 0 {
		return ""
	}
	return s.models[0].ID
}

// Has says whether a model can be used.
func (s *Set) Has(id string) bool { return s.entries[id].provider != nil }

// Continues says whether a model can go on after the beginning of an answer, see Request.Continue.
func (s *Set) Continues(id string) bool { return s.Has(id) && s.entries[id].config.Continue != "" }

// Limits returns how many tokens a model can read and write in one request, 0 where the settings do not say.
func (s *Set) Limits(id string) (contextTokens, maxOutput int) {
	c := s.entries[id].config
	return c.ContextTokens, c.MaxOutput
}

// Close gives up idle connections. Requests under way go on.
func (s *Set) Close() {
	for _, e := range s.entries {
		if e.release != nil {
			e.release()
		}
	}
}

// Stream sends a request to its model and calls emit for each piece of the answer. It tries again, after a wait,
// while no text was emitted, the failure is one that may pass, and the provider does not ask to wait longer than
// 30 s. Errors of emit and obs.Book are returned unchanged, all others as *Error.
func (s *Set) Stream(ctx context.Context, req Request, obs Observer, emit func(Delta) error) (Result, error) {
	if req.Model == "" {
		req.Model = s.Default()
	}
	e, known := s.entries[req.Model]
	if e.provider == nil {
		err := &Error{Kind: KindNotFound, Provider: req.Model, cause: errors.New("no such model")}
		if known {
			err.cause = ErrUnavailable
		}
		return Result{Model: req.Model}, err
	}
	var spent Usage
	visible := false
	watch := func(d Delta) error {
		visible = true
		return emit(d)
	}
	for try := 1; ; try++ {
		if obs.Book != nil {
			if err := obs.Book(ctx, req.Model); err != nil {
				return Result{Model: req.Model, Usage: spent, Attempts: try - 1}, err
			}
		}
		res, err := e.provider.Stream(ctx, req, watch)
		if res.Usage.Estimated {
			res.Usage = e.tokens.scale(res.Usage)
		} else {
			e.tokens.learn(res.Usage.In, estimatePrompt(req.Messages))
		}
		s.report(ctx, e.config, try, res, err)
		spent = spent.Plus(res.Usage)
		res.Model, res.Usage, res.Attempts = req.Model, spent, try
		if err == nil {
			return res, nil
		}
		wait, again := s.again(err, try)
		if visible || !again {
			return res, err
		}
		if obs.Attempt != nil {
			obs.Attempt(try+1, err)
		}
		if !sleep(ctx, wait) {
			return res, cancelled(ctx, req.Model)
		}
	}
}

// again decides whether the failure of a try is worth another one, and after which wait.
func (s *Set) again(err error, try int) (time.Duration, bool) {
	var e *Error
	if !errors.As(err, &e) || !e.Retryable || try >= s.attempts || e.RetryAfter > maxRetryAfter {
		return 0, false
	}
	wait := s.cap
	if shift := try - 1; shift < 16 {
		wait = min(s.base<<shift, s.cap)
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
		s.log.InfoContext(ctx, "llm request done", append(attrs, "finish", string(res.Finish))...)
	case !errors.As(err, &e):
		s.log.InfoContext(ctx, "llm request abandoned", attrs...) // by its caller, who knows why
	case e.Kind == KindCancelled:
		s.log.InfoContext(ctx, "llm request cancelled", attrs...)
	default:
		s.log.WarnContext(ctx, "llm request failed", append(attrs, "kind", string(e.Kind), "status", e.Status, "error", e)...)
	}
}
