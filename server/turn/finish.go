package turn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
)

// How often a write to Redis is tried again while the lease may still be held.
const (
	retryFirst = 50 * time.Millisecond
	retryMost  = time.Second
)

// Error codes in metadata.failed; clients look them up in the protocol's table.
const (
	failedCode = "LLM_UNAVAILABLE"
	budgetCode = "BUDGET_EXCEEDED"
)

// failedWord is metadata.interrupted of an answer that failed after something of it was shown.
const failedWord = "failed"

// filterWord is metadata.interrupted of an answer that the provider's content filter has cut.
const filterWord = "content_filter"

// offered is metadata.help: the page should offer a person.
const offered = "offered"

var errTakeovers = errors.New("the answer was begun too often")

// keepLease renews the lease until the answer is done, and cancels it when the store says so, or when the store
// has been silent for so long that somebody else may hold the lease.
func (a *answer) keepLease(ctx context.Context, done <-chan struct{}) {
	tick := time.NewTicker(a.opts.Lease / 3)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.opts.Lease/3)
		err := a.opts.Store.Renew(rctx, a.leaseOf())
		cancel()
		switch {
		case err == nil:
			a.confirmed()
		case errors.Is(err, sessionstore.ErrStopped), errors.Is(err, sessionstore.ErrFenced), errors.Is(err, sessionstore.ErrEnded),
			errors.Is(err, sessionstore.ErrNotFound):
			a.cancel(err)
			return
		case a.lapsed():
			a.cancel(errLeaseLost)
			return
		}
	}
}

// leaseOf returns what Renew needs without sharing the fields that the chunk sender writes.
func (a *answer) leaseOf() *sessionstore.Generation {
	return &sessionstore.Generation{SessionID: a.g.SessionID, AnswerID: a.g.AnswerID, Token: a.g.Token}
}

// confirmed notes that the store has prolonged the lease: by Renew or Chunk. That something else could be read or written
// says nothing about how much longer it is held.
func (a *answer) confirmed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.alive = time.Now()
}

func (a *answer) lapsed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Since(a.alive) > a.opts.Lease
}

// patience is how much longer a call is repeated once the turn has been told to end.
const patience = 2 * time.Second

// retry repeats a call while Redis is away or full and the lease may still be held; once the turn has been told to
// end, only for patience. Every call of the store may be repeated, so it does not matter whether a lost reply had
// taken effect.
func (a *answer) retry(ctx context.Context, call func(context.Context) error) error {
	told := a.ctx.Done()
	var enough <-chan time.Time
	for wait := retryFirst; ; wait = min(2*wait, retryMost) {
		cctx, cancel := context.WithTimeout(ctx, a.opts.Lease/2)
		err := call(cctx)
		cancel()
		if err == nil {
			return nil
		}
		if !passing(err) {
			return err
		}
		if a.lapsed() {
			return fmt.Errorf("%w: %w", errLeaseLost, err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-told:
			told, enough = nil, time.After(patience)
		case <-enough:
			return fmt.Errorf("%w: %w", context.Cause(a.ctx), err)
		case <-time.After(wait):
		}
	}
}

// passing says that a call may succeed a little later.
func passing(err error) bool {
	for _, e := range []error{sessionstore.ErrAway, sessionstore.ErrFull, context.DeadlineExceeded, errNotYet} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// finish ends the generation: with the durable answer, by giving the lease back, or by leaving it to whoever has
// taken it over. It reports whether more questions are owed.
func (a *answer) finish(ctx context.Context, result llm.Result, err error) (again bool) {
	by := a.answeredBy(result)
	log := a.log.With("session_id", a.g.SessionID, "message_id", a.g.AnswerID, "model_id", by,
		"attempt", a.g.Attempt, "response_ms", a.took.Milliseconds(), "first_token_ms", a.firstToken().Milliseconds(),
		"tokens", a.g.Tokens, "tokens_in", a.g.TokensIn, "tokens_out", a.g.TokensOut, "tokens_cached", a.g.TokensCached,
		"calls", a.g.Calls, "estimated", a.g.Estimated)
	wctx := context.WithoutCancel(ctx)
	meta := map[string]string{}
	a.todo.describe(meta, a.g.Questions)
	said := a.g.Text != "" || a.files.any()
	switch {
	case errors.Is(err, errLeaseLost), errors.Is(err, sessionstore.ErrFenced), errors.Is(err, sessionstore.ErrEnded),
		errors.Is(err, sessionstore.ErrNotFound), errors.Is(err, sessionstore.ErrAssisted):
		log.Warn("answer given up", "error", err.Error())
		return false
	case errors.Is(err, errGiven):
		return a.putBack(wctx, log)
	case errors.Is(err, sessionstore.ErrGap) && a.run.gap != a.g.AnswerID:
		// Redis has lost the last chunks, not the lease. Whoever acquires it is told what is there, and that is nobody's
		// falling silent. Once per run: it must not go round for ever.
		a.run.gap = a.g.AnswerID
		log.Warn("answer begun again: Redis has lost a part of it")
		return a.release(wctx, log)
	case errors.Is(err, errDrain):
		if a.release(wctx, log) {
			log.Info("answer handed over")
		}
		return false
	case errors.Is(err, sessionstore.ErrStopped):
		meta[sessionstore.MetaStopped] = "true"
	case errors.Is(err, errTooLong), err == nil && result.Finish == llm.FinishLength && said:
		meta[sessionstore.MetaLength] = "true"
	case err == nil && result.Finish == llm.FinishFilter && said:
		meta[sessionstore.MetaInterrupted] = filterWord
	case err == nil && result.Paused:
		// The provider's workflow waits for a person: what there is of the answer, also if that is nothing, is all that
		// the model has to say, and nothing has failed.
		meta[sessionstore.MetaPaused], meta[sessionstore.MetaHelp] = "true", offered
	case err != nil, !said, a.g.Text != "" && a.reset: // a reset that was never sent: it is an earlier text
		a.failure(err, meta)
	}
	if lost := a.files.describe(meta); lost > 0 {
		log.Warn("files of an answer were not kept", "files", lost)
	}
	if by != a.g.ModelID && said {
		meta[sessionstore.MetaAnsweredBy] = a.nameOf(by)
	}
	ev := sessionstore.Event{
		Header: sessionstore.Header{
			Type: sessionstore.TypeAIResponse, SessionID: a.g.SessionID, MessageID: a.g.AnswerID, Sender: sessionstore.SenderAI,
			Timestamp: a.opts.Now().UTC(), ModelID: by, Spent: a.g.Spent, ResponseTime: a.took.Milliseconds(),
			FirstToken: a.firstToken().Milliseconds(),
		},
		Body: sessionstore.Body{Content: a.g.Text, Metadata: meta},
	}
	var at sessionstore.Appended
	ferr := a.retry(wctx, func(ctx context.Context) (err error) {
		at, again, err = a.opts.Store.Finish(ctx, a.g, ev)
		return err
	})
	if ferr == nil && !at.Duplicate && a.opts.Authored != nil {
		ev.Seq = at.Seq
		a.opts.Authored.Keep(ev, at.Position)
	}
	switch {
	case ferr != nil:
		log.Warn("answer not finished", "error", ferr.Error())
		return false
	case at.Duplicate: // by whoever has taken it over, or by an earlier try whose reply was lost
		log.Info("answer was finished before", "failed", meta[sessionstore.MetaFailed] != "")
	case err != nil && meta[sessionstore.MetaFailed] == budgetCode:
		log.Info("answer refused: no tokens left")
	case err != nil && meta[sessionstore.MetaFailed] != "":
		log.Error("answer failed", "error", err.Error())
	default:
		log.Info("answer finished", "bytes", len(a.g.Text), "stopped", meta[sessionstore.MetaStopped] != "")
	}
	return again
}

// release gives the lease back, so that the answer can be gone on with at once.
func (a *answer) release(ctx context.Context, log *slog.Logger) bool {
	err := a.retry(ctx, func(ctx context.Context) error { return a.opts.Store.Release(ctx, a.g) })
	if err != nil {
		log.Warn("lease not released", "error", err.Error())
	}
	return err == nil
}

// answeredBy is the model that the answer is by, which may be another than the one that was chosen.
func (a *answer) answeredBy(result llm.Result) string {
	switch {
	case result.Model != "":
		return result.Model
	case a.asked != "":
		return a.asked
	default:
		return a.g.ModelID
	}
}

// failure adds to the final's metadata why there is no whole answer, and what the user can do about it.
func (a *answer) failure(err error, meta map[string]string) {
	meta[sessionstore.MetaFailed] = failedCode
	wait := time.Duration(0)
	var used *sessionstore.BudgetError
	var down *llm.Error
	switch {
	case errors.As(err, &used):
		meta[sessionstore.MetaFailed], wait = budgetCode, used.Wait
	case errors.As(err, &down):
		wait = down.RetryAfter
	}
	if wait > 0 {
		meta[sessionstore.MetaRetryAfter] = strconv.FormatInt(wait.Milliseconds(), 10)
	}
	switch {
	case a.g.Text != "":
		meta[sessionstore.MetaInterrupted] = failedWord
	case down != nil || err == nil:
		meta[sessionstore.MetaHelp] = offered
	}
}

// loading tells everybody on the session that an answer is on its way. Losing it loses nothing.
func (a *answer) loading(ctx context.Context, try int, text string) {
	active := true
	err := a.opts.Store.Publish(ctx, sessionstore.Event{
		Header: sessionstore.Header{
			Type: sessionstore.TypeLoading, SessionID: a.g.SessionID, MessageID: a.g.AnswerID, Sender: sessionstore.SenderAI,
			Timestamp: a.opts.Now().UTC(), Active: &active, Try: try,
		},
		Body: sessionstore.Body{Content: text},
	})
	if err != nil {
		a.log.Debug("loading not published", "session_id", a.g.SessionID, "error", err.Error())
	}
}
