package flush

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/real-rm/chatbox/sessionstore"
)

// Stats is what health and metrics say about the flusher.
type Stats struct {
	Pending        int           // entries in the WAL that the last round could not finish, of those that it read
	Oldest         time.Time     // when the oldest of them was accepted; zero if nothing waits
	Lag            time.Duration // time since Oldest; 0 if nothing waits
	AwaySince      time.Time     // since when MongoDB does not answer; zero if it does
	StoreAwaySince time.Time     // since when the WAL cannot be read; zero if it can
	Inserted       int64         // entries written since the start, repeated ones included
	Dead           int64         // entries moved to the dead-letter stream since the start
	RefusedDocs    int           // sessions whose document MongoDB refuses now
	LastFinished   time.Time     // when a round last left nothing behind of what it read
}

// Stats returns the state as of the last round.
func (f *Flusher) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.stats
	if !s.Oldest.IsZero() {
		s.Lag = max(time.Since(s.Oldest), 0)
	}
	return s
}

func (f *Flusher) count(change func(*Stats)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.stats)
}

func (f *Flusher) noteRead(batches []sessionstore.WALBatch) {
	pending, oldest := 0, time.Time{}
	for _, b := range batches {
		pending += len(b.Entries)
		if len(b.Entries) == 0 {
			continue
		}
		if at := accepted(b.Entries[0].ID); oldest.IsZero() || at.Before(oldest) {
			oldest = at
		}
	}
	f.count(func(s *Stats) { s.Pending, s.Oldest = pending, oldest })
}

// noteFinished records a round that left nothing behind.
func (f *Flusher) noteFinished() {
	f.count(func(s *Stats) { s.Pending, s.Oldest, s.LastFinished = 0, time.Time{}, time.Now() })
}

// accepted is the time in a stream id, "milliseconds-number" by the clock of Redis. An id of another form counts as
// accepted now.
func accepted(id string) time.Time {
	text, _, _ := strings.Cut(id, "-")
	ms, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return time.Now()
	}
	return time.UnixMilli(ms)
}

// noteArchive follows outages of MongoDB: one warning when one begins, one line when it ends. A round that was broken
// off by its own ctx says nothing about MongoDB.
func (f *Flusher) noteArchive(ctx context.Context, err error) {
	began, ended, since := f.follow(ctx, err, func(s *Stats) *time.Time { return &s.AwaySince })
	if began {
		f.log.WarnContext(ctx, "MongoDB is away, messages wait in Redis", keyError, err)
	}
	if ended {
		f.log.InfoContext(ctx, "MongoDB is back", keyDuration, since)
	}
}

// noteStore is noteArchive for Redis.
func (f *Flusher) noteStore(ctx context.Context, err error) {
	began, ended, since := f.follow(ctx, err, func(s *Stats) *time.Time { return &s.StoreAwaySince })
	if began {
		f.log.WarnContext(ctx, "WAL cannot be read", keyError, err)
	}
	if ended {
		f.log.InfoContext(ctx, "WAL can be read again", keyDuration, since)
	}
}

// follow keeps the beginning of an outage and says whether one just began or ended.
func (f *Flusher) follow(ctx context.Context, err error, field func(*Stats) *time.Time) (began, ended bool, lasted time.Duration) {
	if err != nil && ctx.Err() != nil {
		return false, false, 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	since := field(&f.stats)
	switch {
	case err != nil && since.IsZero():
		*since = time.Now()
		return true, false, 0
	case err == nil && !since.IsZero():
		lasted = time.Since(*since)
		*since = time.Time{}
		return false, true, lasted
	}
	return false, false, 0
}

// noteDocs records which documents are refused; each is logged when it begins to be.
func (f *Flusher) noteDocs(ctx context.Context, refused map[string]error) {
	for id, err := range refused {
		if !f.badDocs[id] {
			f.log.ErrorContext(ctx, "session document refused", keyError, err, keySession, id)
		}
	}
	clear(f.badDocs)
	for id := range refused {
		f.badDocs[id] = true
	}
	f.count(func(s *Stats) { s.RefusedDocs = len(refused) })
}
