package llm

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Defaults of SetOptions.
const (
	defaultAttempts    = 3
	defaultBackoffBase = 500 * time.Millisecond // and then 1 s: at most 1.9 s in all with the jitter, so within two
	defaultBackoffCap  = 8 * time.Second
	backoffJitter      = 0.25             // of the delay, either way
	maxRetryAfter      = 30 * time.Second // a provider that asks for more is given up
	defaultRetryShare  = 0.1
	defaultRetryFloor  = 10
	defaultFailures    = 5
	defaultWindow      = 30 * time.Second
	defaultRest        = 30 * time.Second
)

// SetOptions tells what a Set consists of.
type SetOptions struct {
	// Providers are the entries of the settings. The first is the default model.
	Providers []Config
	// Attempts is how often a request is sent at most. 0: 3.
	Attempts int
	// BackoffBase is the wait before the second attempt; it doubles up to BackoffCap, ±25 %, and is never
	// shorter than the provider asks for. 0: 500 ms and 8 s.
	BackoffBase time.Duration
	BackoffCap  time.Duration
	// RetryShare is how many requests to a provider within a minute may be repetitions, as a share of the others, beyond
	// RetryFloor repetitions that are always free. 0: 0.1 and 10; negative: none.
	RetryShare float64
	RetryFloor int
	// BreakerFailures within BreakerWindow, or in a row, keep all requests from a model for BreakerOpen; then one is let
	// through to see. 0: 5, 30 s and 30 s. What counts is said at breaker.
	BreakerFailures int
	BreakerWindow   time.Duration
	BreakerOpen     time.Duration
	// FallbackOnRefusal asks a model's fallbacks also when it refuses, or its filter does, without a word.
	FallbackOnRefusal bool
	// Alert is called when a model stops answering, once until it has answered again. It is called in the goroutine of
	// the request that found out and must not block. nil: nobody is told.
	Alert func(Alert)
	// Transport, if not nil, carries all requests, in place of one connection pool per provider. For tests.
	Transport http.RoundTripper
	// Log gets a line per request. nil: discarded.
	Log *slog.Logger
}

// Observer is told what a Set does for one request. Its functions are called in the caller's goroutine; nil
// ones are left out.
type Observer struct {
	// Attempt is called as soon as it is decided to ask the same model again: try is 2 or 3, err why. The wait comes after
	// it.
	Attempt func(try int, err error)
	// Fallback is called as soon as it is decided to ask another model, which begins with try 1: err is why.
	Fallback func(model string, err error)
	// Book is called right before each request leaves, with the model that it is for. An error keeps it from leaving and is returned unchanged.
	Book func(ctx context.Context, model string) error
}

// Set is the models of the settings.
type Set struct {
	// Set once by NewSet.
	options SetOptions // without zeros
	models  []Model
	entries map[string]*entry
	budgets map[account]*budget
}

// entry is a model of the settings.
type entry struct {
	provider Provider
	config   Config
	release  func()
	tokens   *calibration
	breaker  *breaker
	budget   *budget
}

// account is what repetitions are counted by: models of one provider share its fate.
type account struct{ typ, endpoint, key string }

// NewSet checks the entries and returns every problem at once.
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
		if err != nil {
			problems = append(problems, c.problem(i, err.Error()))
			continue
		}
		s.add(c, p, release)
	}
	problems = append(problems, checkFallbacks(o.Providers)...)
	if err := errors.Join(problems...); err != nil {
		s.Close()
		return nil, err
	}
	if len(s.models) == 0 {
		s.options.Log.Warn("no llm model is set up")
	}
	return s, nil
}

func newSet(o SetOptions) *Set {
	orElse(&o.Attempts, defaultAttempts)
	orElse(&o.BackoffBase, defaultBackoffBase)
	orElse(&o.BackoffCap, defaultBackoffCap)
	orElse(&o.BreakerFailures, defaultFailures)
	orElse(&o.BreakerWindow, defaultWindow)
	orElse(&o.BreakerOpen, defaultRest)
	if o.RetryShare == 0 {
		o.RetryShare = defaultRetryShare
	}
	if o.RetryFloor == 0 {
		o.RetryFloor = defaultRetryFloor
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Set{options: o, entries: map[string]*entry{}, budgets: map[account]*budget{}}
}

// orElse replaces what is not positive.
func orElse[T int | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

func (s *Set) add(c Config, p Provider, release func()) {
	name := c.Name
	if name == "" {
		name = c.ID
	}
	s.models = append(s.models, Model{ID: c.ID, Name: name, Provider: c.Type, Vision: c.Vision, Audio: c.Audio, Files: slices.Clone(c.Files)})
	a := account{c.Type, c.endpoint(), c.APIKey}
	if s.budgets[a] == nil {
		s.budgets[a] = &budget{share: max(s.options.RetryShare, 0), floor: max(s.options.RetryFloor, 0)}
	}
	s.entries[c.ID] = &entry{provider: p, config: c, release: release, tokens: &calibration{}, budget: s.budgets[a],
		breaker: newBreaker(c.ID, s.options.BreakerFailures, s.options.BreakerWindow, s.options.BreakerOpen)}
}

// entry is the model of an id, of which an unknown one has nothing.
func (s *Set) entry(id string) *entry {
	if e := s.entries[id]; e != nil {
		return e
	}
	return &entry{}
}

// Models returns the models that can be used, in the order of the settings.
func (s *Set) Models() []Model {
	out := slices.Clone(s.models)
	for i := range out {
		out[i].Files = slices.Clone(out[i].Files)
	}
	return out
}

// Default returns the id of the first model, or "" if there is none.
func (s *Set) Default() string {
	if len(s.models) == 0 {
		return ""
	}
	return s.models[0].ID
}

// Has says whether a model can be used.
func (s *Set) Has(id string) bool { return s.entry(id).provider != nil }

// Continues says whether a model can go on after the beginning of an answer, see Request.Continue.
func (s *Set) Continues(id string) bool { return s.Has(id) && s.entry(id).config.Continue != "" }

// Limits returns how many tokens a model can read and write in one request, 0 where the settings do not say.
func (s *Set) Limits(id string) (contextTokens, maxOutput int) {
	c := s.entry(id).config
	return c.ContextTokens, c.MaxOutput
}

// TokenFactor returns by how much EstimateTokens is to be multiplied for a model: what its reports have taught, else 1.
func (s *Set) TokenFactor(id string) float64 {
	if t := s.entry(id).tokens; t != nil {
		return t.factor()
	}
	return 1
}

// Close gives up idle connections, after it has waited, at most 5 s for all Dify apps together, until runs that were left
// are stopped. Requests under way go on.
func (s *Set) Close() {
	var released sync.WaitGroup
	for _, e := range s.entries {
		if e.release != nil {
			released.Go(e.release)
		}
	}
	released.Wait()
}
