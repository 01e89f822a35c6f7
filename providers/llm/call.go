package llm

import (
	"context"
	"errors"
	"time"

	"github.com/openai/openai-go/v3"
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
	finish Finish        // empty: the model has not said that it is done
	refuse bool          // some of the text is a refusal
	done   bool          // [DONE] was seen
	emitE  error         // what emit returned
}

func newCall(config Config, dog *watchdog, req Request, emit func(Delta) error) *call {
	return &call{reply: reply{dog: dog}, config: config, emit: emit, start: time.Now(), prompt: estimatePrompt(req.Messages)}
}

// chunk takes one chunk of the stream. Any part of it may be missing. An error is emit's.
func (c *call) chunk(k openai.ChatCompletionChunk) error {
	if k.JSON.Usage.Valid() { // on any chunk: some servers send it with the last choice
		u := k.Usage
		c.usage = &Usage{In: u.PromptTokens, Out: u.CompletionTokens, Total: max(u.TotalTokens, u.PromptTokens+u.CompletionTokens)}
	}
	for _, choice := range k.Choices {
		if choice.Index != 0 {
			continue // we ask for one
		}
		if reasons(choice.Delta) {
			c.dog.alive()
		}
		if t := choice.Delta.Refusal; t != "" {
			c.refuse = true
			if err := c.text(t); err != nil {
				return err
			}
		}
		if err := c.text(choice.Delta.Content); err != nil {
			return err
		}
		if choice.FinishReason != "" {
			c.finish = finishOf(choice.FinishReason)
			c.dog.finished()
		}
	}
	return nil
}

func (c *call) text(t string) error {
	if t == "" {
		return nil
	}
	c.dog.alive()
	if c.first == 0 {
		c.first = max(time.Since(c.start), 1)
	}
	c.out.add(t)
	c.emitE = c.emit(Delta{Text: t})
	return c.emitE
}

// reasons says whether a delta holds reasoning, under the names that compatible servers use. It is not shown,
// but it is a sign of life.
func reasons(d openai.ChatCompletionChunkChoiceDelta) bool {
	for _, name := range []string{"reasoning_content", "reasoning"} {
		if raw := d.JSON.ExtraFields[name].Raw(); raw != "" && raw != "null" && raw != `""` {
			return true
		}
	}
	return false
}

func finishOf(reason string) Finish {
	switch reason {
	case "length":
		return FinishLength
	case "content_filter":
		return FinishFilter
	default:
		return FinishStop
	}
}

// end makes result and error of a call that stopped with err. ctx is the caller's.
func (c *call) end(ctx context.Context, err error) (Result, error) {
	if c.config.reveals(c.requestID) {
		c.requestID = ""
	}
	res := Result{FirstToken: c.first, Duration: time.Since(c.start), RequestID: c.requestID, Usage: c.spent(), Attempts: 1}
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
		return newError(KindInvalid, errors.New("the answer cannot be read"))
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
	out := int64(c.out.tokens())
	return Usage{In: c.prompt, Out: out, Total: c.prompt + out, Estimated: true}
}

func newError(k Kind, cause error) *Error {
	return &Error{Kind: k, Retryable: k.retryable(), cause: cause}
}
