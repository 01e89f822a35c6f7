package turn

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
)

// work acquires what is owed in the session and answers it. It reports whether to look again at once.
func (r *Runner) work(ctx context.Context, current *run, sessionID string) (again bool) {
	g, err := r.opts.Store.Acquire(ctx, sessionID)
	switch {
	case err == nil:
	case errors.Is(err, sessionstore.ErrNotOwed), errors.Is(err, sessionstore.ErrHeld), errors.Is(err, sessionstore.ErrEnded),
		errors.Is(err, sessionstore.ErrAssisted), errors.Is(err, sessionstore.ErrNotFound), ctx.Err() != nil:
		return false
	default:
		// The question stays in the due list, so the keeper asks again; nothing is lost by giving up here.
		r.log.Warn("answer not begun", "session_id", sessionID, "error", err.Error())
		return false
	}
	gctx, cancel := context.WithCancelCause(ctx)
	defer r.hold(current, g.AnswerID, cancel)()
	a := &answer{Runner: r, ctx: gctx, g: &g, cancel: cancel, begun: time.Now(), more: make(chan struct{}, 1), alive: time.Now()}
	return a.produce(gctx)
}

// answer is one generation being produced by this replica.
type answer struct {
	*Runner
	ctx    context.Context          //nolint:containedctx // ends, with its cause, when the turn is told to end
	g      *sessionstore.Generation // written by the chunk sender while it runs, by produce before and after
	cancel context.CancelCauseFunc
	begun  time.Time
	todo   job           // set by ask
	more   chan struct{} // holds a token when pending or closed changed

	mu      sync.Mutex // guards the fields below
	pending strings.Builder
	reset   bool      // the next chunk replaces all that was shown
	size    int       // bytes emitted since the last reset
	closed  bool      // no more text will come
	broken  error     // why the chunk sender gave up
	alive   time.Time // when the store last confirmed the lease
}

// errTooLong ends the stream at Options.MaxAnswer.
var errTooLong = errors.New("answer is at its size limit")

func (a *answer) produce(ctx context.Context) (again bool) {
	sid := a.g.SessionID
	// Hearing the session's channel makes stop and takeover take effect at once; without it the next write finds out.
	if err := a.opts.Store.Subscribe(ctx, sid); err == nil {
		defer a.opts.Store.Unsubscribe(sid)
	}
	a.log.Info("answer begun", "session_id", sid, "message_id", a.g.AnswerID, "attempt", a.g.Attempt, "takeovers", a.g.Takeovers)
	a.reset = a.g.Chunk > 0 // unless the model can go on after what was shown
	if a.g.Takeovers > a.opts.MaxTakeovers {
		if todo, err := a.job(ctx); err == nil {
			a.todo = todo // the final says what it is about, also when it fails
		}
		return a.finish(ctx, llm.Result{}, errTakeovers)
	}
	var lease, sender sync.WaitGroup
	done := make(chan struct{})
	lease.Go(func() { a.keepLease(ctx, done) })
	sender.Go(func() { a.sendChunks(ctx) })
	result, err := a.ask(ctx)
	a.closeText()
	sender.Wait()
	close(done)
	lease.Wait()
	if a.broken != nil {
		err = a.broken
	} else if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return a.finish(ctx, result, err)
}

// ask builds the prompt and streams the model's answer into pending.
func (a *answer) ask(ctx context.Context) (llm.Result, error) {
	if a.g.ModelID == "" || !a.opts.Models.Has(a.g.ModelID) {
		a.g.ModelID = a.opts.Models.Default()
	}
	todo, err := a.job(ctx)
	if err != nil {
		return llm.Result{}, err
	}
	a.todo = todo
	req, goesOn := a.request(todo, a.g.Text)
	if goesOn {
		a.mu.Lock()
		a.reset, a.size = false, len(a.g.Text)
		a.mu.Unlock()
	}
	a.loading(ctx, 1, "")
	obs := llm.Observer{
		Attempt: func(try int, err error) {
			a.log.Warn("provider failed, trying again", "session_id", a.g.SessionID, "try", try, "error", err.Error())
			a.loading(ctx, try, "Trying again")
		},
		Book: func(ctx context.Context, model string) error {
			return a.retry(ctx, func(ctx context.Context) error { return a.opts.Store.Book(ctx, a.g, model) })
		},
	}
	return a.opts.Models.Stream(ctx, req, obs, a.emit)
}

// context reads the conversation, waiting out a store that is away for as long as the lease can be kept.
func (a *answer) context(ctx context.Context, upTo int64) ([]sessionstore.Event, error) {
	var events []sessionstore.Event
	err := a.retry(ctx, func(ctx context.Context) (err error) {
		events, err = a.opts.History.Context(ctx, a.g.SessionID, upTo)
		return err
	})
	return events, err
}

// emit takes one delta from the provider. It never waits for Redis: text that arrives while a chunk is under way
// joins the next chunk.
func (a *answer) emit(d llm.Delta) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return a.broken
	}
	if d.Replace {
		a.pending.Reset()
		a.reset, a.size = true, 0
	}
	var err error
	if room := a.opts.MaxAnswer - a.size; len(d.Text) > room {
		d.Text, err = strings.ToValidUTF8(d.Text[:room], ""), errTooLong
	}
	a.size += len(d.Text)
	a.pending.WriteString(d.Text)
	a.signal()
	return err
}

// signal wakes the chunk sender.
func (a *answer) signal() {
	select {
	case a.more <- struct{}{}:
	default:
	}
}

func (a *answer) closeText() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	a.signal()
}

// take returns what waits to be published, and whether there will be more.
func (a *answer) take() (text string, reset, closed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	text, reset = a.pending.String(), a.reset
	a.pending.Reset()
	if text != "" {
		a.reset = false
	}
	return text, reset, a.closed
}

// sendChunks publishes what is pending until the text is closed and all is out, or a write fails for good. It
// goes on after a stop or a drain, so that the text received before is seen; a fence ends it in the store.
func (a *answer) sendChunks(ctx context.Context) {
	for {
		text, reset, closed := a.take()
		if text == "" {
			if closed {
				return
			}
			<-a.more
			continue
		}
		err := a.retry(context.WithoutCancel(ctx), func(ctx context.Context) error {
			return a.opts.Store.Chunk(ctx, a.g, text, reset)
		})
		if err != nil {
			a.mu.Lock()
			a.broken = err
			a.mu.Unlock()
			a.cancel(err)
			return
		}
	}
}
