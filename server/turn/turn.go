// Package turn produces answers: it takes what is owed in a session, asks the model, and publishes the answer
// chunk by chunk.
//
// A turn belongs to no socket. It is leased and fenced in the live store: of all replicas only the holder of the
// lease can write chunks or the final event, and a holder that was replaced stops at its next write. A replica
// that dies leaves a lease that lapses; the keeper of the partition then has the answer started again by another
// replica, whose first chunk replaces the text as a whole. Each question is answered once: the final event names
// the questions it answers and is the only durable event of the turn.
//
// Start and Signal may be called concurrently and never block. Run owns every goroutine and returns when all
// have ended.
package turn

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
)

// Store is what a turn needs of the live store.
type Store interface {
	Acquire(ctx context.Context, sessionID string) (sessionstore.Generation, error)
	Book(ctx context.Context, g *sessionstore.Generation, c sessionstore.Call) error
	Renew(ctx context.Context, g *sessionstore.Generation) error
	Chunk(ctx context.Context, g *sessionstore.Generation, delta string, reset bool) error
	Finish(ctx context.Context, g *sessionstore.Generation, ev sessionstore.Event) (sessionstore.Appended, bool, error)
	Release(ctx context.Context, g *sessionstore.Generation) error
	Publish(ctx context.Context, ev sessionstore.Event) error
	Subscribe(ctx context.Context, sessionID string) error
	Unsubscribe(sessionID string)
}

// History gives the context of a session: its newest events up to and including a seq, oldest first.
type History interface {
	Context(ctx context.Context, sessionID string, upTo int64) ([]sessionstore.Event, error)
	Message(ctx context.Context, sessionID string, sender sessionstore.Sender, messageID string) (sessionstore.Event, bool, error)
}

// Authored keeps what this replica has written until MongoDB has it, in case Redis loses it before.
type Authored interface {
	Keep(ev sessionstore.Event, at sessionstore.Position)
}

// Reviver adds to a session in Redis what MongoDB has and Redis has lost.
type Reviver interface {
	Revive(ctx context.Context, sessionID, userID string) error
}

// Models are the models that can be asked.
type Models interface {
	Stream(ctx context.Context, req llm.Request, obs llm.Observer, emit func(llm.Delta) error) (llm.Result, error)
	Default() string
	Has(id string) bool
	Continues(id string) bool
}

// Defaults of Options.
const (
	defaultLease     = 10 * time.Second
	defaultMaxAnswer = 256 << 10
	defaultMaxTakes  = 2
)

// Options configure a Runner. Store, History and Models are required.
type Options struct {
	Store        Store
	History      History
	Models       Models
	Authored     Authored // optional
	Revival      Reviver  // optional: without it an answer that only MongoDB has is given a second time
	Catalog      Catalog  // optional: without it models have their ids for names, and windows of 32,000 tokens
	Files        Files    // optional: without it the files that models make are https links, or lost
	SystemPrompt string
	// SystemPrompts are those of models that have their own, by id, in place of SystemPrompt.
	SystemPrompts map[string]string
	Lease         time.Duration // of a generation, as set in the store; renewed at a third of it; default 10 s
	MaxAnswer     int           // bytes after which an answer ends with metadata.length; default 256 KiB
	MaxTakeovers  int           // how often another replica goes on before the turn fails for good; default 2
	Now           func() time.Time
	Log           *slog.Logger
}

// Runner produces the answers of this replica.
type Runner struct {
	opts Options
	log  *slog.Logger
	wg   sync.WaitGroup // every turn

	mu      sync.Mutex // guards the fields below; never held during I/O
	running map[string]*run
	closed  bool
	base    context.Context //nolint:containedctx // the life of Run, to which every turn belongs; set by Run
	early   []string        // asked for before Run
}

// run is one session that is worked on here. Guarded by Runner.mu.
type run struct {
	again    bool   // asked for once more while working
	answerID string // of the generation held now, empty between generations
	upTo     int64  // seq of the newest event when that was acquired
	putBack  string // id of the answer that was last put back from MongoDB; used by the turn alone
	gap      string // id of the answer that was last begun again because Redis had lost chunks of it; used by the turn alone
	cancel   context.CancelCauseFunc
}

// Reasons for which a turn is stopped from outside.
var (
	errDrain     = errors.New("replica is shutting down")
	errLeaseLost = errors.New("lease could not be renewed in time")
)

// New checks the options. Nothing runs until Run.
func New(opts Options) (*Runner, error) {
	if opts.Store == nil || opts.History == nil || opts.Models == nil {
		return nil, errors.New("turn: Store, History and Models are required")
	}
	if opts.Lease <= 0 {
		opts.Lease = defaultLease
	}
	if opts.MaxAnswer <= 0 {
		opts.MaxAnswer = defaultMaxAnswer
	}
	if opts.MaxTakeovers <= 0 {
		opts.MaxTakeovers = defaultMaxTakes
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Runner{opts: opts, log: opts.Log, running: make(map[string]*run)}, nil
}

// Run works until ctx ends. Then every turn gives its lease back, so that another replica goes on at once, and
// Run returns nil when all have.
func (r *Runner) Run(ctx context.Context) error {
	base, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	r.mu.Lock()
	r.base = base
	early := r.early
	r.early = nil
	r.mu.Unlock()
	for _, sid := range early {
		r.Start(sid)
	}
	<-ctx.Done()
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	cancel(errDrain)
	r.wg.Wait()
	return nil
}

// Start makes sure that this replica tries to answer what is owed in the session. Calling it while it works on
// the session makes it look again afterwards.
func (r *Runner) Start(sessionID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return // the question is in the store's due list: another replica takes it
	}
	if r.base == nil {
		r.early = append(r.early, sessionID)
		return
	}
	if run := r.running[sessionID]; run != nil {
		run.again = true
		return
	}
	current := &run{}
	r.running[sessionID] = current
	ctx := r.base
	r.wg.Go(func() {
		for r.work(ctx, current, sessionID) || r.wantedAgain(sessionID, current) {
		}
	})
}

// wantedAgain ends the session's entry unless Start was called meanwhile.
func (r *Runner) wantedAgain(sessionID string, current *run) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if current.again && !r.closed {
		current.again = false
		return true
	}
	delete(r.running, sessionID)
	return false
}

// Signal tells the turn of a session, if one runs here, that the session's channel carried something that may
// concern it. It only hurries what the next write would find out anyway.
func (r *Runner) Signal(m sessionstore.Message) {
	var cause error
	switch m.Type {
	case sessionstore.TypeStop:
		cause = sessionstore.ErrStopped
	case sessionstore.TypeAdminJoin, sessionstore.TypeEnded:
		cause = sessionstore.ErrFenced
	default:
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	run := r.running[m.SessionID]
	switch {
	case run == nil || run.cancel == nil:
		return
	case m.Type == sessionstore.TypeStop && !aims(m, run.answerID):
		return
	case m.Seq > 0 && m.Seq <= run.upTo: // it came late, and ended an earlier generation
		return
	}
	run.cancel(cause)
}

// aims says whether a stop is meant for the answer: it names it, or names none.
func aims(stop sessionstore.Message, answerID string) bool {
	ev, err := sessionstore.ParseFrame(stop.Frame)
	return err == nil && (ev.Target == "" || ev.Target == answerID)
}

// hold notes the generation that is being produced, so that Signal can reach it; release forgets it.
func (r *Runner) hold(current *run, g *sessionstore.Generation, cancel context.CancelCauseFunc) (release func()) {
	r.mu.Lock()
	current.answerID, current.upTo, current.cancel = g.AnswerID, g.UpTo, cancel
	r.mu.Unlock()
	return func() {
		r.mu.Lock()
		current.answerID, current.upTo, current.cancel = "", 0, nil
		r.mu.Unlock()
		cancel(nil)
	}
}

// Running is how many sessions are worked on here.
func (r *Runner) Running() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.running)
}
