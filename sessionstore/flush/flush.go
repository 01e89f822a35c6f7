// Package flush moves what Redis holds for MongoDB there: the write-ahead log (WAL) of every partition that this
// replica keeps, and the documents of sessions that changed.
//
// What a caller may rely on:
//
//   - Order: the entries of a partition leave the WAL in its order. Nothing is called done while something before it
//     in its partition is not, so `durable` of a session has no hole below it.
//   - Loss: Done is said only after MongoDB has acknowledged the batch on a majority. A flusher that dies, is fenced
//     off or loses a reply in between leaves the entries in the WAL, and they are written again.
//   - Doubling: writing again changes nothing, because the archive knows messages by their idempotency key.
//   - Failure: while MongoDB is away the WAL grows and the flusher tries again after 0.1 to 30 s; an entry that
//     MongoDB refuses by itself five times, Options.Every apart, goes to the dead-letter stream, so that one cannot
//     stop a partition.
//   - Lifetime: Run works until its ctx ends and leaves nothing behind; Flush does the final round of a shutdown.
//
// All methods may be called concurrently. Bodies pass through sealed; this package has no keys and logs no contents.
package flush

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/real-rm/chatbox/sessionstore"
)

// Store is where the WAL is.
type Store interface {
	// ReadWAL returns up to limit entries of each partition that this replica keeps, and documents that are due. With
	// an error it may still return the partitions that could be read.
	ReadWAL(ctx context.Context, limit int) ([]sessionstore.WALBatch, error)
	// DoneWAL takes exactly the batch's entries off the WAL and marks its documents as written, unless the
	// partition has another keeper by now.
	DoneWAL(ctx context.Context, b sessionstore.WALBatch) error
	// DeadWAL moves one entry of the batch to the dead-letter stream.
	DeadWAL(ctx context.Context, b sessionstore.WALBatch, e sessionstore.WALEntry, reason string) error
}

// Archive is where it goes. Errors of SaveSessions that do not match sessionstore.ErrArchive mean that some document
// is refused, not that MongoDB is away.
type Archive interface {
	InsertMessages(ctx context.Context, entries []sessionstore.WALEntry) (failed map[int]error, err error)
	SaveSessions(ctx context.Context, docs []sessionstore.SessionDoc) error
}

const (
	defaultEvery = 200 * time.Millisecond
	defaultBatch = 500
	// maxFails is how often MongoDB must refuse an entry by itself before it is set aside.
	maxFails = 5
	minWait  = 100 * time.Millisecond
	maxWait  = 30 * time.Second
)

// Log keys.
const (
	keyError     = "err"
	keySession   = "session_id"
	keyPartition = "partition"
	keyEntry     = "entry"
	keySeq       = "seq"
	keyDuration  = "duration"
	keyEntries   = "entries"
	keyOldest    = "oldest_s"
	keyMemory    = "memory"
	keyRefused   = "refused"
)

// Options of New.
type Options struct {
	Store   Store         // required
	Archive Archive       // required
	Gauge   Gauge         // measures what waits; nil: nobody measures and nothing is alarmed
	Every   time.Duration // how long an entry may wait to be gathered; default 200 ms
	Batch   int           // entries per partition and round; default 500
	Log     *slog.Logger  // nil: discard
}

// Flusher moves the WAL. Make one with New.
type Flusher struct {
	store   Store
	archive Archive
	gauge   Gauge // or nil
	every   time.Duration
	batch   int
	log     *slog.Logger

	turn chan struct{} // held, as its one element, by the round that is under way

	// Owned by the round that is under way.
	fails   map[entryKey]int // how often in a row an entry was refused
	badDocs map[string]bool  // sessions whose document is refused, so that it is logged once

	mu      sync.Mutex // guards the fields below; never held during I/O
	stats   Stats
	backlog Backlog
}

// entryKey names an entry: ids are unique within a partition.
type entryKey struct {
	partition int
	id        string
}

// New returns a flusher that does nothing yet.
func New(o Options) (*Flusher, error) {
	var errs []error
	if o.Store == nil {
		errs = append(errs, errors.New("flush: Store is missing"))
	}
	if o.Archive == nil {
		errs = append(errs, errors.New("flush: Archive is missing"))
	}
	if o.Every < 0 || o.Batch < 0 {
		errs = append(errs, errors.New("flush: Every and Batch may not be negative"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if o.Every == 0 {
		o.Every = defaultEvery
	}
	if o.Batch == 0 {
		o.Batch = defaultBatch
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Flusher{
		store: o.Store, archive: o.Archive, gauge: o.Gauge, every: o.Every, batch: o.Batch, log: o.Log,
		turn: make(chan struct{}, 1), fails: map[entryKey]int{}, badDocs: map[string]bool{},
	}, nil
}

// Run moves the WAL until ctx ends, then returns nil. Call Flush afterwards to leave as little as possible behind.
func (f *Flusher) Run(ctx context.Context) error {
	var watching sync.WaitGroup
	defer watching.Wait()
	if f.gauge != nil {
		watching.Go(func() { f.watch(ctx) })
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	tries := 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		more, err := f.round(ctx)
		switch {
		case err != nil:
			timer.Reset(f.pause(err, tries))
			tries++
		case more:
			tries = 0
			timer.Reset(0)
		default:
			tries = 0
			timer.Reset(f.every)
		}
	}
}

// Flush moves what is in the WAL now, without waiting for more. It returns when the WAL was empty, with the first
// error, or when ctx ends. What is left stays in Redis for the next keeper.
func (f *Flusher) Flush(ctx context.Context) error {
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
		more, err := f.round(ctx)
		if err != nil {
			return fmt.Errorf("flush: %w", err)
		}
		if !more {
			return nil
		}
	}
}

// pause is the wait after an error. What is about one entry is tried again at the usual pace: everybody else's messages
// wait for it as well.
func (f *Flusher) pause(err error, tries int) time.Duration {
	if errors.Is(err, errRefused) && !errors.Is(err, sessionstore.ErrArchive) && tries < 2*maxFails {
		return f.every
	}
	return backOff(tries)
}

// backOff is the wait before the next try: 0.1 s doubled up to 30 s, half of it random, so that replicas that lost
// MongoDB together do not come back together.
func backOff(tries int) time.Duration {
	d := maxWait
	if tries < 9 {
		d = min(minWait<<tries, maxWait)
	}
	return d/2 + rand.N(d/2+1)
}
