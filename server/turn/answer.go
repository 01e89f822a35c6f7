package turn

import (
	"context"
	"errors"
	"slices"
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
	defer r.hold(current, &g, cancel)()
	a := &answer{Runner: r, run: current, ctx: gctx, g: &g, cancel: cancel, begun: time.Now(), more: make(chan struct{}, 1), alive: time.Now()}
	a.files = newTaking(gctx, r.opts.Files, sessionID)
	defer a.files.cancel()
	return a.produce(gctx)
}

// answer is one generation being produced by this replica.
type answer struct {
	*Runner
	ctx    context.Context          //nolint:containedctx // ends, with its cause, when the turn is told to end
	g      *sessionstore.Generation // written by the chunk sender while it runs, by produce before and after
	cancel context.CancelCauseFunc
	begun  time.Time
	run    *run               // that it belongs to
	todo   job                // set by ask
	before sessionstore.Event // what MongoDB has of the answer; set by ask with errGiven
	asked  string             // the model that was asked last
	took   time.Duration      // until the last token
	files  *taking
	more   chan struct{} // holds a token when pending or closed changed

	mu      sync.Mutex // guards the fields below
	pending strings.Builder
	reset   bool          // the next chunk replaces all that was shown
	nothing bool          // the model has taken back all that was shown, and that has not been published yet
	first   time.Duration // until there was something to be seen; 0: not yet
	size    int           // bytes emitted since the last reset
	closed  bool          // no more text will come
	broken  error         // why the chunk sender gave up
	alive   time.Time     // when the store last confirmed the lease
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
		if a.given(ctx) {
			return a.finish(ctx, llm.Result{}, errGiven)
		}
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
	a.took = time.Since(a.begun)
	a.closeText()
	sender.Wait()
	a.files.wait()
	close(done)
	lease.Wait()
	if a.broken != nil {
		err = a.broken
	} else if cause := context.Cause(ctx); cause != nil && !a.complete(err, cause) {
		err = cause
	}
	return a.finish(ctx, result, err)
}

// complete says whether nothing is left to be handed over by a replica that shuts down: another one would ask for an
// answer that is there. Files that are still under way would be lost with it.
func (a *answer) complete(err, cause error) bool {
	return err == nil && errors.Is(cause, errDrain) && !a.files.any()
}

// context reads the conversation, waiting out a store that is away for as long as the lease can be kept.
func (a *answer) context(ctx context.Context, upTo int64) ([]sessionstore.Event, error) {
	var events []sessionstore.Event
	err := a.retry(ctx, func(ctx context.Context) (err error) {
		events, err = a.opts.History.Context(ctx, a.g.SessionID, upTo)
		return err
	})
	return anchored(own(events, a.g.SessionID)), err
}

// own drops what is not of the session: no mistake elsewhere may show a user's words to another user's model.
func own(events []sessionstore.Event, sessionID string) []sessionstore.Event {
	return slices.DeleteFunc(events, func(ev sessionstore.Event) bool { return ev.SessionID != sessionID })
}

const (
	anchorStep  = 100 // events
	anchorAbove = 300 // events; shorter conversations are read whole
)

// anchored makes the newest events of a long conversation begin at a round number, so that its beginning stays the same
// for many turns, see window.
func anchored(events []sessionstore.Event) []sessionstore.Event {
	if len(events) <= anchorAbove || events[0].Seq <= 1 {
		return events
	}
	from := (events[0].Seq + anchorStep - 1) / anchorStep * anchorStep
	i := slices.IndexFunc(events, func(ev sessionstore.Event) bool { return ev.Seq >= from })
	if i < 0 || i > anchorStep {
		return events
	}
	return events[i:]
}

// emit takes one delta from the provider. It never waits for Redis: text that arrives while a chunk is under way
// joins the next chunk.
func (a *answer) emit(d llm.Delta) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken != nil {
		return a.broken
	}
	if a.first == 0 {
		a.first = max(time.Since(a.begun), 1)
	}
	if d.File != nil {
		a.files.add(*d.File)
	}
	if d.Replace {
		a.pending.Reset()
		a.reset, a.nothing, a.size = true, true, 0
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

// take returns what waits to be published, if anything does, and whether there will be more. A text that was taken back
// waits also where nothing has come in its place: it must not stay there to be read.
func (a *answer) take() (text string, reset, waits, closed bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	text, reset = a.pending.String(), a.reset
	a.pending.Reset()
	waits = text != "" || a.nothing
	if waits {
		a.reset, a.nothing = false, false
	}
	return text, reset, waits, a.closed
}

// sendChunks publishes what is pending until the text is closed and all is out, or a write fails for good. It
// goes on after a stop or a drain, so that the text received before is seen; a fence ends it in the store.
func (a *answer) sendChunks(ctx context.Context) {
	for {
		text, reset, waits, closed := a.take()
		if !waits {
			if closed {
				return
			}
			<-a.more
			continue
		}
		err := a.retry(context.WithoutCancel(ctx), func(ctx context.Context) error {
			return a.opts.Store.Chunk(ctx, a.g, text, reset)
		})
		if err == nil {
			a.confirmed()
		} else {
			a.mu.Lock()
			a.broken = err
			a.mu.Unlock()
			a.cancel(err)
			return
		}
	}
}
