package flush

import (
	"context"
	"time"
)

const (
	watchEvery = 2 * time.Second
	// warnAge and errorAge are how old the head of the WAL must be for somebody to look, and to get up at night.
	warnAge  = 30 * time.Second
	errorAge = 5 * time.Minute
	// crowdedMemory is the part of Redis' memory beyond which, when messages have waited for MongoDB for crowdedAge, no
	// new session should begin: what is left belongs to those that run.
	crowdedMemory = 0.6
	crowdedAge    = time.Minute
	// progressEvery is how often a long catch-up is reported.
	progressEvery = 10 * time.Second
)

// Gauge measures what waits. The live store is one.
type Gauge interface {
	// Backlog counts the entries of the partitions that this replica keeps, tells the age of the oldest, and counts
	// dead letters.
	Backlog(ctx context.Context) (entries int64, oldest time.Duration, dead int64, err error)
	// MemoryUsed is the part of its memory that Redis uses, 0 where it has no limit.
	MemoryUsed(ctx context.Context) (float64, error)
}

// Backlog is what waits for MongoDB in the partitions that this replica keeps, as measured last.
type Backlog struct {
	Entries int64
	Oldest  time.Duration // age of the oldest of them
	Dead    int64         // dead letters, which wait for an operator
	Memory  float64       // part of its memory that Redis uses; 0 where it has no limit
}

// Backlog returns the last measurement; zero without Options.Gauge.
func (f *Flusher) Backlog() Backlog {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.backlog
}

// Crowded says that messages have waited for MongoDB for a minute and that Redis is filled beyond 60 %: new sessions
// should be refused, so that those that run can go on.
func (f *Flusher) Crowded() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.backlog.Memory > crowdedMemory && f.backlog.Oldest >= crowdedAge
}

// alarm is what has been said about the backlog that is there now. Used by one goroutine.
type alarm struct {
	began   time.Time // when the warning was given; zero: there is none
	raised  bool      // the error was given, too
	crowded bool
	told    time.Time // when progress was last told
}

// watch measures until ctx ends.
func (f *Flusher) watch(ctx context.Context) {
	var a alarm
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		f.measure(ctx, &a)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// measure keeps the last measurement where Redis does not answer: that is reported elsewhere.
func (f *Flusher) measure(ctx context.Context, a *alarm) {
	mctx, cancel := context.WithTimeout(ctx, watchEvery)
	defer cancel()
	var b Backlog
	var err error
	if b.Entries, b.Oldest, b.Dead, err = f.gauge.Backlog(mctx); err != nil {
		return
	}
	if b.Memory, err = f.gauge.MemoryUsed(mctx); err != nil {
		return
	}
	f.mu.Lock()
	f.backlog = b
	away := !f.stats.AwaySince.IsZero()
	f.mu.Unlock()
	f.raise(ctx, a, b, away, f.Crowded())
}

// raise logs what an operator must know: once when the backlog is old, once when it is very old, progress while it is
// written, and its end.
func (f *Flusher) raise(ctx context.Context, a *alarm, b Backlog, away, crowded bool) {
	now := time.Now()
	attrs := []any{keyEntries, b.Entries, keyOldest, int64(b.Oldest / time.Second)}
	switch {
	case b.Oldest >= warnAge && a.began.IsZero():
		a.began, a.told = now, now
		f.log.WarnContext(ctx, "messages wait long for MongoDB", attrs...)
	case b.Oldest < warnAge && !a.began.IsZero():
		f.log.InfoContext(ctx, "messages do not wait for MongoDB any more", append(attrs, keyDuration, now.Sub(a.began))...)
		a.began, a.raised = time.Time{}, false
	case !a.began.IsZero() && !away && now.Sub(a.told) >= progressEvery:
		a.told = now
		f.log.InfoContext(ctx, "catching up with MongoDB", attrs...)
	}
	if b.Oldest >= errorAge && !a.raised {
		a.raised = true
		f.log.ErrorContext(ctx, "messages have been waiting for MongoDB for minutes", attrs...)
	}
	if crowded != a.crowded {
		a.crowded = crowded
		f.log.WarnContext(ctx, "Redis fills up while MongoDB is away: new sessions are refused", keyRefused, crowded, keyMemory, b.Memory)
	}
}
