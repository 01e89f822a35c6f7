package llm

import (
	"context"
	"errors"
	"time"
)

// call is one request under way. It belongs to the goroutine that runs Stream.
type call struct {
	reply
	config Config
	emit   func(Delta) error
	start  time.Time
	prompt int64 // estimated tokens

	out    counter       // of the text so far
	first  time.Duration // until the first text; 0: none yet
	usage  *Usage        // as reported; nil: not yet
	input  *Usage        // as reported before there was any output; nil: not yet
	finish Finish        // empty: the model has not said that it is done
	refuse bool          // some of the text is a refusal
	done   bool          // the provider has said that the answer is complete
	emitE  error         // what emit returned
}

func newCall(config Config, dog *watchdog, req Request, emit func(Delta) error) *call {
	return &call{reply: reply{dog: dog}, config: config, emit: emit, start: time.Now(), prompt: estimatePrompt(req.Messages)}
}

// text shows a piece of the answer. An error is emit's.
func (c *call) text(t string) error {
	if t == "" {
		return nil
	}
	c.seen()
	c.out.add(t)
	return c.show(Delta{Text: t})
}

// replace shows a text in place of all that was shown. It counts as output only as far as it is longer than that: what
// it replaces was written by the model, too.
func (c *call) replace(t string) error {
	c.seen()
	var whole counter
	if whole.add(t); whole.tokens() > c.out.tokens() {
		c.out = whole
	}
	return c.show(Delta{Text: t, Replace: true})
}

// file shows a file that the model has made.
func (c *call) file(f File) error {
	c.dog.alive()
	return c.show(Delta{File: &f})
}

// seen says that there is text to see.
func (c *call) seen() {
	c.dog.alive()
	if c.first == 0 {
		c.first = max(time.Since(c.start), 1)
	}
}

func (c *call) show(d Delta) error {
	c.emitE = c.emit(d)
	return c.emitE
}

// end makes result and error of a call that stopped with err. ctx is the caller's.
func (c *call) end(ctx context.Context, err error) (Result, error) {
	if c.config.reveals(c.requestID) {
		c.requestID = ""
	}
	res := Result{FirstToken: c.first, Duration: time.Since(c.start), RequestID: c.requestID, Usage: c.spent(), Attempts: 1, counted: c.input != nil}
	if c.emitE != nil {
		return res, c.emitE
	}
	if c.finish != "" || c.done { // whole, even if what should follow got lost
		res.Finish = c.finish
		if c.finish == "" {
			res.Finish = FinishStop
		}
		if c.refuse && res.Finish == FinishStop {
			res.Finish = FinishRefusal
		}
		return res, nil
	}
	e := c.failure(ctx, err)
	e.Provider, e.RequestID = c.config.ID, c.requestID
	if c.config.reveals(e.Error()) { // a provider that repeats our key as a code, say
		e.Code, e.cause = "", errors.New("details withheld")
	}
	return res, e
}

// failure says what went wrong. What ended the request comes before what that looked like from below.
func (c *call) failure(ctx context.Context, err error) *Error {
	if l := c.dog.fired.Load(); l != nil {
		return &Error{Kind: l.kind, Retryable: l.retryable, cause: l.err}
	}
	if ctx.Err() != nil {
		return cancelled(ctx, c.config.ID)
	}
	var e *Error
	switch {
	case err == nil:
		return newError(KindTruncated, errors.New("the stream ended without saying that the answer is complete"))
	case errors.As(err, &e):
		return e
	case c.body != nil && c.body.err != nil:
		return newError(KindNetwork, withoutAddress(c.body.err))
	case c.body != nil:
		return newError(KindServer, errors.New("the answer cannot be read"))
	default:
		return newError(KindInvalid, errors.New("the request cannot be made"))
	}
}

// spent is the provider's count, else an estimate. A request that was refused, or never left, costs nothing.
func (c *call) spent() Usage {
	switch {
	case c.usage != nil:
		return *c.usage
	case c.refused || !c.dog.sent.Load() && c.body == nil:
		return Usage{}
	}
	u := Usage{In: c.prompt, Out: int64(c.out.tokens()), Estimated: true}
	if c.input != nil {
		u.In, u.Cached = c.input.In, c.input.Cached
	}
	u.Total = u.In + u.Out
	return u
}

func newError(k Kind, cause error) *Error {
	return &Error{Kind: k, Retryable: k.retryable(), cause: cause}
}

// counted is a usage as a provider reported it. Numbers that cannot be are taken for none.
func counted(in, out, total, cached int64) Usage {
	u := Usage{In: max(in, 0), Out: max(out, 0)}
	u.Total, u.Cached = max(total, u.In+u.Out), min(max(cached, 0), u.In)
	return u
}
