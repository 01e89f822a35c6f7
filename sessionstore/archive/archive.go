// Package archive keeps sessions and their messages in MongoDB, where they stay when Redis has forgotten them.
//
// What a caller may rely on:
//
//   - Order: the messages of a session are read in the order of seq, which alone orders it.
//   - Doubling: a message's _id is its idempotency key, so inserting it again changes nothing. A session's document
//     only ever goes forward, by its last seq.
//   - Loss: a write that returned without error is journaled on a majority.
//   - Writers: one per document at a time, the flusher of its partition. MongoDB never coordinates anything here.
//   - Secrecy: bodies and names arrive sealed and are kept as they are; this package has no keys.
//
// All methods may be called concurrently. Every call is bounded by Options.Timeout; errors that mean that MongoDB
// did not answer match sessionstore.ErrArchive.
package archive

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"

	"github.com/real-rm/chatbox/sessionstore"
)

const (
	defaultDatabase = "chat"
	defaultTimeout  = 5 * time.Second
	// selectTimeout is how long an operation waits for a MongoDB to appear. Shorter than the timeout of an
	// operation, so that an outage is told from a slow server, and longer than an election usually takes.
	selectTimeout = 3 * time.Second
)

// Options of New.
type Options struct {
	URI      string        // of MongoDB; required
	Database string        // default "chat"
	Timeout  time.Duration // per operation; default 5 s
	Slow     time.Duration // operations that take longer are logged; 0: none
	Log      *slog.Logger  // nil: discard
}

// Archive is the transcript archive.
type Archive struct {
	client  *mongo.Client
	db      *mongo.Database
	timeout time.Duration
	log     *slog.Logger

	server atomic.Int32 // a serverKind, asked for once
}

// New returns an archive. It does not connect: that MongoDB is away shows in Ping and in every operation, and heals
// by itself. (Only a mongodb+srv address is looked up at once, by the driver.)
func New(o Options) (*Archive, error) {
	if o.URI == "" {
		return nil, errors.New("archive: URI is empty")
	}
	if o.Database == "" {
		o.Database = defaultDatabase
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	journal := true
	opts := options.Client().ApplyURI(o.URI).
		SetAppName("chatbox").
		SetServerSelectionTimeout(min(selectTimeout, o.Timeout)).
		SetConnectTimeout(min(selectTimeout, o.Timeout)).
		SetMonitor(slowMonitor(o.Slow, o.Log)).
		SetWriteConcern(&writeconcern.WriteConcern{W: writeconcern.WCMajority, Journal: &journal})
	if opts.Validate() != nil {
		// The driver's text may quote the URI, which holds a password.
		return nil, errors.New("archive: URI cannot be read; check its scheme, its hosts, and that the password is percent-encoded")
	}
	client, err := mongo.Connect(opts)
	if err != nil {
		return nil, errors.New("archive: client cannot be made from this URI and its options")
	}
	return &Archive{client: client, db: client.Database(o.Database), timeout: o.Timeout, log: o.Log}, nil
}

// Ping says whether MongoDB answers.
func (a *Archive) Ping(ctx context.Context) error {
	op, cancel := a.bounded(ctx)
	defer cancel()
	if err := a.client.Ping(op, nil); err != nil {
		return away(ctx, "ping MongoDB", err)
	}
	return nil
}

// Close ends all connections. Operations that are under way fail.
func (a *Archive) Close(ctx context.Context) error {
	if err := a.client.Disconnect(ctx); err != nil && !errors.Is(err, mongo.ErrClientDisconnected) {
		return fmt.Errorf("close archive: %w", err)
	}
	return nil
}

// EnsureIndexes makes the indexes that the queries need. Making what is there does nothing, so the caller repeats it
// until it succeeds; until then everything works, slowly. On a large collection the timeout may end the waiting, not
// the building.
func (a *Archive) EnsureIndexes(ctx context.Context) error {
	op, cancel := a.bounded(ctx)
	defer cancel()
	for _, ix := range indexes {
		if _, err := a.db.Collection(ix.collection).Indexes().CreateOne(op, mongo.IndexModel{Keys: ix.keys}); err != nil {
			return away(ctx, "make an index of "+ix.collection, err)
		}
	}
	return nil
}

func (a *Archive) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, a.timeout)
}

// away wraps what the driver reports. What the caller itself broke off is not MongoDB's fault.
func away(caller context.Context, what string, err error) error {
	if errors.Is(caller.Err(), context.Canceled) {
		return fmt.Errorf("%s: %w", what, context.Canceled)
	}
	return fmt.Errorf("%s: %w: %w", what, sessionstore.ErrArchive, err)
}

type serverKind int32

const (
	serverUnknown serverKind = iota
	serverMongo
	serverFerret // scans the whole collection for any filter but {_id: x}
)

// kind asks the server once what it is.
func (a *Archive) kind(ctx context.Context) (serverKind, error) {
	if k := serverKind(a.server.Load()); k != serverUnknown {
		return k, nil
	}
	var info struct {
		Ferret any `bson:"ferretdb"`
		Old    any `bson:"ferretdbVersion"`
	}
	ctx, cancel := a.bounded(ctx)
	defer cancel()
	if err := a.db.RunCommand(ctx, bson.D{{Key: "buildInfo", Value: 1}}).Decode(&info); err != nil {
		return serverUnknown, err
	}
	k := serverMongo
	if info.Ferret != nil || info.Old != nil {
		k = serverFerret
	}
	a.server.Store(int32(k))
	return k, nil
}

// slowMonitor logs operations that take longer than the threshold, by name and collection-free: commands hold data.
func slowMonitor(threshold time.Duration, log *slog.Logger) *event.CommandMonitor {
	if threshold <= 0 {
		return nil
	}
	report := func(e event.CommandFinishedEvent, outcome string) {
		if e.Duration >= threshold {
			log.Warn("slow operation", "command", e.CommandName, "ms", e.Duration.Milliseconds(), "outcome", outcome)
		}
	}
	return &event.CommandMonitor{
		Succeeded: func(_ context.Context, e *event.CommandSucceededEvent) { report(e.CommandFinishedEvent, "done") },
		Failed:    func(_ context.Context, e *event.CommandFailedEvent) { report(e.CommandFinishedEvent, "failed") },
	}
}
