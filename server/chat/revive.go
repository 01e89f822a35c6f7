package chat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/real-rm/chatbox/sessionstore"
)

// ReviveStore is what a Reviver needs of the live store.
type ReviveStore interface {
	Rebuild(ctx context.Context, doc sessionstore.SessionDoc, events []sessionstore.Stored) error
	Session(ctx context.Context, sessionID string) (sessionstore.Session, error)
	End(ctx context.Context, sessionID, reason, next string) error
	Publish(ctx context.Context, e sessionstore.Event) error
	AskResync(ctx context.Context, sessionID string) error
}

// Clock is one that all replicas share, since their own may differ.
type Clock interface {
	Now(ctx context.Context) (time.Time, error)
}

type ownClock struct{}

func (ownClock) Now(context.Context) (time.Time, error) { return time.Now(), nil }

// ReviveOptions are what NewReviver needs. Live and Archive are required.
type ReviveOptions struct {
	Live     ReviveStore
	Archive  StoredHistory
	Window   time.Duration // reconnect window; default 15 min
	Clock    Clock         // that windows are counted by; default this process's
	InFlight int           // sessions being read from MongoDB at a time; default 64
	Log      *slog.Logger  // default: discard
}

// Limits of bringing one session back.
const (
	defaultWindow   = 15 * time.Minute
	defaultInFlight = 64
	reviveTimeout   = 8 * time.Second
	reviveJitter    = 100 * time.Millisecond // spreads a crowd that has to wait over MongoDB's time
	revivedEvents   = 50                     // as many as a snapshot shows
	askedFor        = 2 * time.Second        // for others to bring a session back that they have sockets on
)

// Reviver brings sessions that Redis has lost back from MongoDB: all of them after a FLUSHALL or a restart without
// persistence, the tail of some after a failover. Any number of replicas may revive one session at once: there is one
// session afterwards, and no number is given twice. On one replica all callers share one attempt, and a bounded number
// of sessions is read at a time. All methods may be called concurrently.
type Reviver struct {
	opts   ReviveOptions
	log    *slog.Logger
	places chan struct{} // one for each session being read
	group  singleflight.Group
}

// NewReviver checks the options.
func NewReviver(opts ReviveOptions) (*Reviver, error) {
	if opts.Live == nil || opts.Archive == nil {
		return nil, errors.New("reviver: Live and Archive are required")
	}
	if opts.Window <= 0 {
		opts.Window = defaultWindow
	}
	if opts.Clock == nil {
		opts.Clock = ownClock{}
	}
	if opts.InFlight <= 0 {
		opts.InFlight = defaultInFlight
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Reviver{opts: opts, log: opts.Log, places: make(chan struct{}, opts.InFlight)}, nil
}

// Revive makes a session that Redis does not have anew from MongoDB, for a socket that is still on it, and adds what
// MongoDB has and Redis lacks to one that is there: after a failover Redis may have lost events that were flushed
// before. Questions among them that nobody has answered are owed an answer again. userID, if not empty, must be the
// session's user. Errors: ErrNotFound (MongoDB has no such session of that user), ErrEnded, *ActiveError (the user is
// in another one), ErrArchive, ErrAway.
func (r *Reviver) Revive(ctx context.Context, sessionID, userID string) error {
	return r.shared(ctx, "revive ", sessionID, userID, func(ctx context.Context) error {
		st, err := r.unended(ctx, sessionID, userID)
		if err != nil {
			return err
		}
		return r.rebuild(ctx, st)
	})
}

// Reopen is Revive for a client that comes back and names the session: the reconnect window counts from the last
// activity that MongoDB knows. Beyond it the session is the client's only if somebody else is still on it, on whatever
// replica: those who may be are asked to bring it back, and given a moment. If nobody does it is ended, since nobody
// else would, and ErrEnded is returned.
func (r *Reviver) Reopen(ctx context.Context, sessionID, userID string) error {
	err := r.shared(ctx, "reopen ", sessionID, userID, func(ctx context.Context) error {
		return r.reopen(ctx, sessionID, userID, false)
	})
	if !errors.Is(err, errSilent) {
		return err
	}
	if err := r.ask(ctx, sessionID); err != nil { // holds no place: those who are asked may need one
		return fmt.Errorf("reopen session %s: %w", sessionID, err)
	}
	return r.shared(ctx, "expire ", sessionID, userID, func(ctx context.Context) error {
		return r.reopen(ctx, sessionID, userID, true)
	})
}

// errSilent says that MongoDB knows of no activity within the window: somebody may have listened all the same.
var errSilent = errors.New("silent for longer than the reconnect window")

// reopen is Reopen in one step, once others have been asked; before, it returns errSilent beyond the window.
func (r *Reviver) reopen(ctx context.Context, sessionID, userID string, asked bool) error {
	// One that Redis has is not to be revived: it has ended, or another replica was faster.
	switch ses, err := r.opts.Live.Session(ctx, sessionID); {
	case errors.Is(err, sessionstore.ErrNotFound):
	case err != nil:
		return err
	case userID != "" && ses.UserID != userID:
		return sessionstore.ErrNotFound
	case !ses.Active:
		return sessionstore.ErrEnded
	default:
		return nil
	}
	st, err := r.unended(ctx, sessionID, userID)
	if err != nil {
		return err
	}
	now, err := r.opts.Clock.Now(ctx)
	if err != nil {
		return err
	}
	silent := now.Sub(st.doc.Session.LastActivity) > r.opts.Window
	if silent && !asked {
		return errSilent
	}
	if err := r.rebuild(ctx, st); err != nil || !silent {
		return err
	}
	if err := r.opts.Live.End(ctx, sessionID, "expired", ""); err != nil {
		return err
	}
	return sessionstore.ErrEnded
}

// ask has the replicas that have sockets on a session bring it back, and waits until one has, or none seems to. A
// replica hears it at once, or reads its sessions anyway because its connection to Redis was lost.
func (r *Reviver) ask(ctx context.Context, sessionID string) error {
	if err := r.opts.Live.AskResync(ctx, sessionID); err != nil {
		return err
	}
	enough := time.NewTimer(askedFor)
	defer enough.Stop()
	look := time.NewTicker(askedFor / 20)
	defer look.Stop()
	for {
		select {
		case <-enough.C:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", sessionstore.ErrArchive, ctx.Err())
		case <-look.C:
		}
		if _, err := r.opts.Live.Session(ctx, sessionID); !errors.Is(err, sessionstore.ErrNotFound) {
			return err
		}
	}
}

// Load puts a session that Redis has forgotten back as it is, ended or not, so that it can be activated; with ended,
// one that nobody has ended is put back as if it had been at its last activity, which may be beside another that is
// active. Errors: ErrNotFound, *ActiveError, ErrArchive, ErrAway.
func (r *Reviver) Load(ctx context.Context, sessionID, userID string, ended bool) error {
	what := "load "
	if ended {
		what = "load ended "
	}
	return r.shared(ctx, what, sessionID, userID, func(ctx context.Context) error {
		doc, err := r.doc(ctx, sessionID, userID)
		if err != nil {
			return err
		}
		st, err := r.read(ctx, doc)
		if err != nil {
			return err
		}
		if ended && !st.doc.Final {
			endThen(&st.doc, st.doc.Session.LastActivity)
		}
		return r.rebuild(ctx, st)
	})
}

// endThen makes a document that of a session that ended at a time.
func endThen(doc *sessionstore.SessionDoc, at time.Time) {
	doc.Final, doc.Session.Active, doc.Session.End = true, false, at
	if n := len(doc.Intervals); n > 0 {
		doc.Intervals = slices.Clone(doc.Intervals)
		doc.Intervals[n-1].End = at // as Rebuild has the newest interval of one that is active go on
	} else {
		doc.Intervals = []sessionstore.Interval{{Start: doc.Session.Start, End: at}}
	}
}

// shared runs f for the session once for all who ask at the same time on behalf of the same user, since what it says is
// about that user, when there is a place for it. f outlives a caller that goes away: others may wait for it.
func (r *Reviver) shared(ctx context.Context, what, sessionID, userID string, f func(context.Context) error) error {
	result := r.group.DoChan(what+sessionID+" "+userID, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reviveTimeout)
		defer cancel()
		if err := r.enter(ctx); err != nil {
			return nil, err
		}
		defer func() { <-r.places }()
		return nil, f(ctx)
	})
	select {
	case res := <-result:
		if res.Err != nil {
			return fmt.Errorf("%ssession %s: %w", what, sessionID, res.Err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%ssession %s: %w: %w", what, sessionID, sessionstore.ErrArchive, ctx.Err())
	}
}

// enter waits for a place. Who has to wait is one of many, and waits a little longer, at random.
func (r *Reviver) enter(ctx context.Context) error {
	select {
	case r.places <- struct{}{}:
		return nil
	default:
	}
	select {
	case r.places <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("%w: too many sessions are being read", sessionstore.ErrArchive)
	}
	pause := time.NewTimer(rand.N(reviveJitter))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
	}
	return nil
}

// state is what MongoDB has of a session.
type state struct {
	doc    sessionstore.SessionDoc
	events []sessionstore.Stored // the newest, ascending
}

// unended reads a session that has not ended, or returns ErrEnded.
func (r *Reviver) unended(ctx context.Context, sessionID, userID string) (state, error) {
	doc, err := r.doc(ctx, sessionID, userID)
	if err != nil {
		return state{}, err
	}
	if doc.Final { // by far the most: clients come back with what they had yesterday
		return state{}, sessionstore.ErrEnded
	}
	st, err := r.read(ctx, doc)
	if err == nil && st.doc.Final {
		err = sessionstore.ErrEnded
	}
	return st, err
}

func (r *Reviver) doc(ctx context.Context, sessionID, userID string) (sessionstore.SessionDoc, error) {
	doc, found, err := r.opts.Archive.Session(ctx, sessionID)
	if err == nil && (!found || userID != "" && doc.Session.UserID != userID) {
		err = sessionstore.ErrNotFound
	}
	return doc, err
}

func (r *Reviver) read(ctx context.Context, doc sessionstore.SessionDoc) (state, error) {
	events, err := r.opts.Archive.Messages(ctx, doc.Session.ID, 0, revivedEvents)
	if err != nil {
		return state{}, err
	}
	catchUp(&doc, events)
	return state{doc, events}, nil
}

func (r *Reviver) rebuild(ctx context.Context, st state) error {
	if err := r.opts.Live.Rebuild(ctx, st.doc, st.events); err != nil {
		return err
	}
	r.log.Info("session brought back from mongodb", "session_id", st.doc.Session.ID, "user_id", st.doc.Session.UserID,
		"events", len(st.events), "seq", st.doc.Session.Seq, "ended", st.doc.Final)
	if !st.doc.Final {
		// Whoever has sockets on it, on any replica, reads it again. If this is not heard, the next event, ping or sweep
		// of tails tells.
		_ = r.opts.Live.Publish(ctx, sessionstore.Event{Header: sessionstore.Header{
			Type: sessionstore.TypeResync, SessionID: st.doc.Session.ID, Sender: sessionstore.SenderSystem,
		}})
	}
	return nil
}

// catchUp adds to a document, which is written once a minute, what later events say about its session.
func catchUp(doc *sessionstore.SessionDoc, events []sessionstore.Stored) {
	s := &doc.Session
	for _, e := range events {
		if e.Seq <= s.Seq {
			continue
		}
		s.Seq = e.Seq
		before := s.Messages
		ev, err := sessionstore.ParseFrame(sessionstore.Frame(e.Seq, e.H, nil))
		if err != nil {
			continue // reading the event itself will say so
		}
		switch ev.Type {
		case sessionstore.TypeAIResponse:
			s.Spent = s.Plus(ev.Spent)
			s.Estimated = false // of messages only
			if ev.ResponseTime > 0 {
				s.ResponseSum, s.ResponseMax, s.ResponseCount = s.ResponseSum+ev.ResponseTime, max(s.ResponseMax, ev.ResponseTime), s.ResponseCount+1
			}
			s.Messages++
		case sessionstore.TypeUserMessage, sessionstore.TypeFileUpload, sessionstore.TypeVoiceMessage, sessionstore.TypeLeaveMessage:
			s.Messages++
		case sessionstore.TypeModelSelect:
			s.ModelID = ev.ModelID
		case sessionstore.TypeStarted: // again
			doc.Final, s.Active, s.End = false, true, time.Time{}
		case sessionstore.TypeEnded:
			doc.Final, s.Active, s.End = true, false, ev.Timestamp
			if s.End.Before(s.LastActivity) { // the clock of who ended it was slow
				s.End = s.LastActivity
			}
		}
		if s.Messages > before && ev.Timestamp.After(s.LastActivity) {
			s.LastActivity = ev.Timestamp
		}
	}
}
