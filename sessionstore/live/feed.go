package live

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/sessionstore"
)

const (
	// feedEvery is how often a session is reported at most.
	feedEvery = time.Second
	// feedSettle is when the counters are read after the first event of a second was announced: the others of that
	// second are not announced, so it is a little longer than one.
	feedSettle = feedEvery + 100*time.Millisecond
	// feedTick is how exact the two are, feedRetry how soon what could not be read is read again.
	feedTick  = 50 * time.Millisecond
	feedRetry = time.Second
)

// RunFeed reports the state of sessions to f until ctx ends: first of all that are active, then of each that changes.
// A start, an end, a change of owner, model or name and a request for help are reported at once, messages within about
// a second, and no session more than once a second. After a lost connection all are reported again, and those that
// ended meanwhile. A session that Redis has forgotten is reported with its ID only.
//
// f is called from one goroutine, in the order in which the states were read; while it runs, changes fold. RunFeed
// needs RunBus, whose connections it uses; on a cluster that is one for each partition. It may run once at a time.
func (s *Store) RunFeed(ctx context.Context, f func(sessionstore.Session)) error {
	fd := s.pl.bus.feed
	if !fd.running.CompareAndSwap(false, true) {
		return errors.New("the feed is running already")
	}
	defer fd.running.Store(false)
	fd.begin()
	confirmed := make([]<-chan struct{}, Partitions)
	for p := range confirmed {
		sid := feedTopic(p)
		confirmed[p] = s.pl.bus.lane(sid).join(sid)
		defer s.Unsubscribe(sid)
	}
	for p, c := range confirmed {
		select {
		case <-c:
			fd.lost(p)
		case <-ctx.Done():
			return nil
		}
	}
	r := &feedReader{s: s, feed: fd, f: f, log: s.log, seen: make(map[string]reported)}
	r.run(ctx)
	return nil
}

// feed gathers what the bus hears of changes.
type feed struct {
	running atomic.Bool
	wake    chan struct{}

	mu      sync.Mutex // guards the fields below; never held during I/O
	changes map[string]change
	stale   map[int]struct{} // partitions whose sessions must all be read
}

// change is what is to be reported of a session.
type change struct {
	urgent bool
	counts time.Time // when to read the counters; zero: they have not changed
	latest time.Time // when to read them for the latest announcement: counts, or later in a busy session
}

func newFeed() *feed {
	return &feed{wake: make(chan struct{}, 1), changes: make(map[string]change), stale: make(map[int]struct{})}
}

func (f *feed) begin() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.changes)
	clear(f.stale)
}

// note takes an announcement: a session id, with '!' before it for what is to be told at once.
func (f *feed) note(payload string) {
	sid, urgent := strings.CutPrefix(payload, "!")
	if _, ok := PartitionOf(sid); !ok || !f.running.Load() {
		return
	}
	f.mu.Lock()
	c := f.changes[sid]
	if c.urgent = c.urgent || urgent; !urgent {
		c.latest = time.Now().Add(feedSettle)
		if c.counts.IsZero() {
			c.counts = c.latest
		}
	}
	f.changes[sid] = c
	f.mu.Unlock()
	f.signal()
}

// lost says that announcements of a partition may have been missed.
func (f *feed) lost(partition int) {
	f.mu.Lock()
	f.stale[partition] = struct{}{}
	f.mu.Unlock()
	f.signal()
}

func (f *feed) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// feedTopic is the bus' name for the changes of a partition; it has the form of a session id, but the length of none.
func feedTopic(p int) string { return partitionName(p) + feedSuffix }

const feedSuffix = "-feed"

// feedPartition returns the partition whose changes the topic carries.
func feedPartition(sid string) (int, bool) {
	if len(sid) != 3+len(feedSuffix) || !strings.HasSuffix(sid, feedSuffix) {
		return 0, false
	}
	return PartitionOf(sid)
}

// feedReader reads what has changed. It has one goroutine.
type feedReader struct {
	s    *Store
	feed *feed
	f    func(sessionstore.Session)
	log  *slog.Logger
	seen map[string]reported
}

// reported is when a session was last reported, and how.
type reported struct {
	at     time.Time
	active bool
}

func (r *feedReader) run(ctx context.Context) {
	for {
		wait := time.Duration(0)
		if err := r.step(ctx); err != nil && ctx.Err() == nil {
			r.log.Warn("the feed cannot be read, it will be tried again", "err", err)
			wait = feedRetry
		} else if r.pending() {
			wait = feedTick
		}
		if wait == 0 {
			select {
			case <-ctx.Done():
				return
			case <-r.feed.wake:
			}
		} else if !sleep(ctx, wait) {
			return
		}
	}
}

func (r *feedReader) pending() bool {
	r.feed.mu.Lock()
	defer r.feed.mu.Unlock()
	return len(r.feed.changes) > 0 || len(r.feed.stale) > 0
}

// step reports what is due. What it could not read is due again.
func (r *feedReader) step(ctx context.Context) error {
	if err := r.list(ctx); err != nil {
		return err
	}
	due := r.due(time.Now())
	for from := 0; from < len(due); from += maxBatchCalls {
		batch := due[from:min(from+maxBatchCalls, len(due))]
		if err := r.report(ctx, batch); err != nil {
			r.again(due[from:])
			return err
		}
	}
	return nil
}

// due takes the sessions that are to be read now.
func (r *feedReader) due(now time.Time) []string {
	r.feed.mu.Lock()
	defer r.feed.mu.Unlock()
	var out []string
	for sid, c := range r.feed.changes {
		if now.Sub(r.seen[sid].at) < feedEvery {
			continue
		}
		settled := !c.counts.IsZero() && !now.Before(c.counts)
		if !c.urgent && !settled {
			continue
		}
		out = append(out, sid)
		if c.urgent = false; settled {
			if c.counts = c.latest; !now.Before(c.latest) {
				c.counts = time.Time{}
			}
		}
		if c.counts.IsZero() {
			delete(r.feed.changes, sid)
		} else {
			r.feed.changes[sid] = c
		}
	}
	for sid, s := range r.seen {
		if !s.active && now.Sub(s.at) >= feedEvery {
			delete(r.seen, sid)
		}
	}
	return out
}

func (r *feedReader) again(sids []string) {
	r.feed.mu.Lock()
	defer r.feed.mu.Unlock()
	for _, sid := range sids {
		c := r.feed.changes[sid]
		c.urgent = true
		r.feed.changes[sid] = c
	}
}

// list marks all sessions of the partitions that must be read anew: those that are active, and those that were.
func (r *feedReader) list(ctx context.Context) error {
	r.feed.mu.Lock()
	parts := make([]int, 0, len(r.feed.stale))
	for p := range r.feed.stale {
		parts = append(parts, p)
	}
	clear(r.feed.stale)
	r.feed.mu.Unlock()
	if len(parts) == 0 {
		return nil
	}
	pipe := r.s.client.Pipeline()
	cmds := make([]*redis.StringSliceCmd, len(parts))
	for i, p := range parts {
		cmds[i] = pipe.ZRange(ctx, r.s.parts[p].live(), 0, -1)
	}
	execute(ctx, pipe)
	var errs []error
	fresh := make(map[int]bool, len(parts))
	for i, p := range parts {
		sids, err := cmds[i].Result()
		if err != nil {
			r.feed.lost(p)
			errs = append(errs, fmt.Errorf("list sessions of partition %d: %w", p, redisError(err)))
			continue
		}
		fresh[p] = true
		r.again(sids)
	}
	var gone []string
	for sid, s := range r.seen {
		if p, _ := PartitionOf(sid); s.active && fresh[p] {
			gone = append(gone, sid)
		}
	}
	r.again(gone)
	return errors.Join(errs...)
}

// report reads sessions in one pipeline and hands them over.
func (r *feedReader) report(ctx context.Context, sids []string) error {
	pipe := r.s.client.Pipeline()
	cmds := make([]*redis.MapStringStringCmd, len(sids))
	for i, sid := range sids {
		p, _ := PartitionOf(sid)
		cmds[i] = pipe.HGetAll(ctx, r.s.parts[p].session(sid).hash())
	}
	execute(ctx, pipe)
	var errs []error
	for i, sid := range sids {
		h, err := cmds[i].Result()
		if err != nil {
			r.again(sids[i : i+1])
			errs = append(errs, fmt.Errorf("read session %s: %w", sid, redisError(err)))
			continue
		}
		ses, err := r.s.parseSession(sid, h)
		if errors.Is(err, sessionstore.ErrNotFound) {
			if _, known := r.seen[sid]; !known {
				continue
			}
			ses = sessionstore.Session{ID: sid}
		} else if err != nil { // without its name
			r.log.Warn("session in the feed cannot be opened", "session", sid, "err", err)
		}
		r.seen[sid] = reported{at: time.Now(), active: ses.Active}
		r.f(ses)
	}
	return errors.Join(errs...)
}
