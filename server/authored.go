package server

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
)

// AuthoredStore is what Authored needs of the live store.
type AuthoredStore interface {
	Positions(ctx context.Context, sessionIDs []string) (map[string]live.Top, error)
	Known(ctx context.Context, sessionID string, sender sessionstore.Sender, messageID string) (seq int64, known bool, err error)
	Readmit(ctx context.Context, ev sessionstore.Event) (sessionstore.Appended, error)
}

// AuthoredArchive is what Authored needs of MongoDB.
type AuthoredArchive interface {
	Message(ctx context.Context, sessionID string, sender sessionstore.Sender, messageID string) (sessionstore.Stored, bool, error)
}

// Reviver brings back from MongoDB what Redis has lost of a session, see chat.Reviver.
type Reviver interface {
	Revive(ctx context.Context, sessionID, userID string) error
	Reopen(ctx context.Context, sessionID, userID string) error
	Load(ctx context.Context, sessionID, userID string, ended bool) error
}

// AuthoredOptions are what NewAuthored needs. Live, Archive and Revival are required.
type AuthoredOptions struct {
	Live    AuthoredStore
	Archive AuthoredArchive
	Revival Reviver
	Most    int           // events that are kept, the oldest go first; default 1000
	Bytes   int           // of their texts that are kept, likewise; default 8 MiB
	Age     time.Duration // how long an event is kept at the most; default 5 min
	Every   time.Duration // how often Redis is asked; default 1 s: keepers leave lost answers alone for 5 s
	Log     *slog.Logger  // default: discard
}

// Authored keeps the events that this replica has authored, final answers and joins, until MongoDB has them. If Redis
// loses one before, by a failover or a restart, it is written again under its id, as clients do with what they sent.
// Keep may be called concurrently and does not block.
type Authored struct {
	opts AuthoredOptions
	log  *slog.Logger

	mu   sync.Mutex // guards what follows; never held during I/O
	held []kept     // in the order of Keep
	gone int        // let go for want of room since the last Check
}

// kept is one event and where it stands in the session.
type kept struct {
	ev    sessionstore.Event
	at    sessionstore.Position
	since time.Time
}

func (k kept) key() string {
	return k.ev.SessionID + "/" + sessionstore.MessageKey(k.ev.Sender, k.ev.MessageID)
}

// NewAuthored checks the options.
func NewAuthored(opts AuthoredOptions) (*Authored, error) {
	if opts.Live == nil || opts.Archive == nil || opts.Revival == nil {
		return nil, errors.New("authored: Live, Archive and Revival are required")
	}
	if opts.Most <= 0 {
		opts.Most = 1000
	}
	if opts.Bytes <= 0 {
		opts.Bytes = 8 << 20
	}
	if opts.Age <= 0 {
		opts.Age = 5 * time.Minute
	}
	if opts.Every <= 0 {
		opts.Every = time.Second
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	return &Authored{opts: opts, log: opts.Log}, nil
}

// Keep holds an event that was written at a position.
func (a *Authored) Keep(ev sessionstore.Event, at sessionstore.Position) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ev.Seq = at.Seq
	a.held = append(a.held, kept{ev: ev, at: at, since: time.Now()})
	bytes := 0
	for _, k := range a.held {
		bytes += len(k.ev.Content)
	}
	for len(a.held) > a.opts.Most || bytes > a.opts.Bytes && len(a.held) > 1 {
		bytes -= len(a.held[0].ev.Content)
		a.held[0] = kept{} // or its text would stay as long as the slice does
		a.held = a.held[1:]
		a.gone++
	}
}

// Held is how many events are kept.
func (a *Authored) Held() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.held)
}

// Run looks after what is kept until ctx ends. What is kept then is not looked at any more: what Redis loses of it
// before MongoDB has it is lost, and its question is answered anew.
func (a *Authored) Run(ctx context.Context) error {
	return every(ctx, a.opts.Every, a.Check)
}

// Check compares all that is kept with Redis: what is in MongoDB is let go, what was lost is written again.
func (a *Authored) Check(ctx context.Context) {
	a.mu.Lock()
	now := time.Now()
	held, gone := append([]kept(nil), a.held...), a.gone
	a.gone = 0
	a.mu.Unlock()
	if gone > 0 {
		a.log.Warn("authored events are not known to be in mongodb and were let go for want of room", "component", "authored", "events", gone)
	}
	if len(held) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	ids := make([]string, 0, len(held))
	for _, k := range held {
		ids = append(ids, k.ev.SessionID)
	}
	tops, err := a.opts.Live.Positions(ctx, unique(ids))
	after := make(map[string]*kept, len(held)) // nil: let go
	for i := range held {
		k := &held[i]
		top, there := tops[k.ev.SessionID]
		switch {
		case now.Sub(k.since) > a.opts.Age:
			a.log.Warn("authored event is not known to be in mongodb, it is let go", "component", "authored",
				"session_id", k.ev.SessionID, "message_id", k.ev.MessageID)
			k = nil
		case !there && err != nil: // not asked
		case there && top.Epoch == k.at.Epoch && top.Seq >= k.at.Seq:
			if top.Durable >= k.at.Seq {
				k = nil
			}
		default:
			k = a.lost(ctx, k, top, there)
		}
		after[held[i].key()] = k
	}
	a.settle(after)
}

// settle takes over what Check has found out, also for what was kept meanwhile.
func (a *Authored) settle(after map[string]*kept) {
	a.mu.Lock()
	defer a.mu.Unlock()
	rest := a.held[:0:0]
	for _, k := range a.held {
		found, seen := after[k.key()]
		switch {
		case !seen:
			rest = append(rest, k)
		case found != nil:
			rest = append(rest, *found)
		}
	}
	a.held = rest
}

// lost looks after an event whose session stands in another epoch, below it, or is not there at all. It returns what
// is still to be kept.
func (a *Authored) lost(ctx context.Context, k *kept, top live.Top, there bool) *kept {
	sid := k.ev.SessionID
	log := a.log.With("component", "authored", "session_id", sid, "message_id", k.ev.MessageID)
	if !there {
		if err := a.opts.Revival.Revive(ctx, sid, ""); err != nil {
			return k.unless(err)
		}
	}
	seq, known, err := a.opts.Live.Known(ctx, sid, k.ev.Sender, k.ev.MessageID)
	if err != nil {
		return k
	}
	if known {
		k.at = sessionstore.Position{Epoch: top.Epoch, Seq: seq}
		return k
	}
	// MongoDB may have got it just before. If it cannot be asked, one event too many in Redis is better than one too few:
	// in MongoDB there is one in any case.
	if _, stored, err := a.opts.Archive.Message(ctx, sid, k.ev.Sender, k.ev.MessageID); err == nil && stored {
		return k.unless(a.opts.Revival.Revive(ctx, sid, ""))
	}
	got, err := a.opts.Live.Readmit(ctx, k.ev)
	if err != nil {
		log.Warn("authored event was lost and not written again", "error", err.Error())
		return k.unless(err)
	}
	log.Info("authored event was lost and is written again", "seq", got.Seq, "duplicate", got.Duplicate)
	k.at, k.ev.Seq = got.Position, got.Seq
	return k
}

// unless returns what is to be kept after an attempt: nothing if it succeeded or can never succeed.
func (k *kept) unless(err error) *kept {
	for _, final := range []error{nil, sessionstore.ErrNotFound, sessionstore.ErrEnded, sessionstore.ErrActive, sessionstore.ErrAssisted} {
		if errors.Is(err, final) {
			return nil
		}
	}
	return k
}

func unique(ids []string) []string {
	seen := make(map[string]struct{}, len(ids))
	out := ids[:0:0]
	for _, id := range ids {
		if _, twice := seen[id]; !twice {
			seen[id] = struct{}{}
			out = append(out, id)
		}
	}
	return out
}
