package llm

import (
	"errors"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"
)

// Alert says that a model has stopped answering and that an operator should look.
type Alert struct {
	Model string    // Chatbox id
	Kind  Kind      // of the last failure
	Err   error     // the last failure; safe to log
	Since time.Time // of the first failure after the model's last success
}

// buckets is into how many parts a breaker's window is divided: failures are forgotten in steps of a tenth of it.
const buckets = 10

// whileProbing is how long those wait who are turned away because somebody else is trying whether the model is back.
const whileProbing = time.Second

// A breaker keeps requests from a model that does nothing but fail: they would wait for nothing, and keep it from
// recovering. It opens
//
//   - after so many failures within the window, provided they are at least as many as the successes: among many
//     requests a few always fail;
//   - after so many failures in a row, however long that took: with few requests the window never fills;
//   - at the first failure of the key itself (auth, quota): it concerns everybody, whatever they ask, and only an
//     operator can change it. Permission and not_found may concern a single question, so they are counted like others.
//
// While it is open nobody is let through; after that one request at a time, until one succeeds. A request has
// succeeded with its first visible piece, so that a long answer does not hold up the others. What breaks off
// after that is a success and a failure.
//
// What does not count: requests that their caller ended, those refused for what they say or for how long they are,
// and those above a rate, which Retry-After deals with.
type breaker struct {
	model    string
	failures int           // in a window or in a row, that open it
	rest     time.Duration // how long it stays open
	circuit  *gobreaker.TwoStepCircuitBreaker[struct{}]

	mu     sync.Mutex // guards the fields below; taken before the circuit's own, which is held during its callbacks
	row    int        // failures since the last success
	since  time.Time  // of the first of them
	last   *Error     // of them
	fatal  bool       // the failure being counted concerns the key
	opened time.Time  // when it opened last
	change change     // what the outcome being counted has changed
}

// change is what an outcome has changed about a model.
type change struct {
	alert *Alert // it stopped answering
	back  bool   // it answers again
}

// errUncounted makes the circuit forget a request.
var errUncounted = errors.New("not counted")

func newBreaker(model string, failures int, window, rest time.Duration) *breaker {
	b := &breaker{model: model, failures: failures, rest: rest}
	b.circuit = gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests: 1, Interval: window, BucketPeriod: max(window/buckets, 1), Timeout: rest,
		ReadyToTrip: b.trips, OnStateChange: b.changed,
		IsExcluded: func(err error) bool { return errors.Is(err, errUncounted) },
	})
	return b
}

// trips is called by the circuit, with mu held, after a failure has been counted.
func (b *breaker) trips(c gobreaker.Counts) bool {
	enough := int(c.TotalFailures) >= b.failures && c.TotalFailures >= c.TotalSuccesses
	return enough || b.row >= b.failures || b.fatal
}

// changed is called by the circuit with mu held.
func (b *breaker) changed(_ string, from, to gobreaker.State) {
	switch to {
	case gobreaker.StateOpen:
		b.opened = time.Now()
		if from == gobreaker.StateClosed { // not: the request that was to show that it is over has failed too
			b.change.alert = &Alert{Model: b.model, Kind: b.last.Kind, Err: b.last, Since: b.since}
		}
	case gobreaker.StateClosed:
		b.change.back = true
	case gobreaker.StateHalfOpen:
	}
}

// ready says whether a request would be let through, unless somebody else is faster.
func (b *breaker) ready() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.circuit.State() != gobreaker.StateOpen
}

// allow lets a request through or says why not. The pass must be given back by end or drop.
func (b *breaker) allow() (*pass, *Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	done, err := b.circuit.Allow()
	if err == nil {
		return &pass{b: b, done: done}, nil
	}
	out := &Error{Kind: KindUnavailable, Retryable: true, RetryAfter: b.left(), Provider: b.model, cause: err}
	if b.last != nil {
		out.cause = b.last
	}
	return nil, out
}

// wait is after which time a request may be let through.
func (b *breaker) wait() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.left()
}

// left is wait with mu held.
func (b *breaker) left() time.Duration {
	if b.circuit.State() == gobreaker.StateOpen {
		return time.Until(b.opened.Add(b.rest)) + time.Millisecond // it ends just after that instant
	}
	return whileProbing
}

// count takes the outcome of a request: nil for a success, errUncounted, or the failure.
func (b *breaker) count(done func(error), err error) change {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counted(done, err)
}

// broke takes the failure of a request that has been counted as a success: it counts like a request of its own.
func (b *breaker) broke(err error) change {
	b.mu.Lock()
	defer b.mu.Unlock()
	done, closed := b.circuit.Allow()
	if closed != nil {
		return change{}
	}
	return b.counted(done, err)
}

// counted is count with mu held.
func (b *breaker) counted(done func(error), err error) change {
	b.change = change{}
	var e *Error
	if errors.As(err, &e) {
		if b.row++; b.row == 1 {
			b.since = time.Now()
		}
		b.last, b.fatal = e, e.Kind == KindAuth || e.Kind == KindQuota
	}
	done(err)
	b.fatal = false
	if err == nil && b.circuit.State() == gobreaker.StateClosed { // not: an older request that ended well
		b.row = 0
	}
	return b.change
}

// pass is the leave to send one request.
type pass struct {
	b      *breaker
	done   func(error) // nil: the outcome is known
	spoken bool
}

// spoke says that the model has said something.
func (p *pass) spoke() change {
	p.spoken = true
	return p.settle(nil)
}

// drop gives a pass back of which nothing else became known.
func (p *pass) drop() { p.settle(errUncounted) }

func (p *pass) settle(err error) change {
	if p.done == nil {
		return change{}
	}
	done := p.done
	p.done = nil
	return p.b.count(done, err)
}

// end says how the request ended. Only the first call counts.
func (p *pass) end(err error) change {
	outcome := outcomeOf(err, p.spoken)
	if !p.spoken {
		return p.settle(outcome)
	}
	p.spoken = false
	if outcome == nil || errors.Is(outcome, errUncounted) {
		return change{}
	}
	return p.b.broke(outcome)
}

// outcomeOf says how the end of a request counts: nil, errUncounted, or the failure.
func outcomeOf(err error, spoken bool) error {
	if err == nil {
		return nil
	}
	var e *Error
	if !errors.As(err, &e) {
		return errUncounted // the caller's own
	}
	switch e.Kind {
	case KindAuth, KindQuota, KindPermission, KindNotFound, KindOverloaded, KindServer, KindNetwork, KindIdle:
		return e
	case KindTimeout, KindTruncated:
		if !spoken {
			return e
		}
	}
	return errUncounted
}
