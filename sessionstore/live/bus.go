package live

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/real-rm/chatbox/sessionstore"
)

// Handler takes what the bus delivers. Its methods are called from a few goroutines, those of one session always
// from the same one, in the order of the session's channel. They must not block: while one runs, other sessions wait.
type Handler interface {
	// Message takes one event. Events may be missing before it, see Resync, or come twice; the seq tells.
	Message(sessionstore.Message)
	// Resync says that events of the session may have been missed: read on from where you are.
	Resync(sid string)
}

const (
	busShards = 4

	// subscribeBatch is how many channels one SUBSCRIBE names: 20,000 in batches of 500 took 150 ms.
	subscribeBatch = 500

	defaultLinger     = 30 * time.Second
	defaultProbeAfter = 10 * time.Second
)

// bus receives what is published in the sessions somebody here takes part in.
//
// One connection per lane: one lane for everything, or one per partition with sharded pub/sub, whose channels live
// where their slot lives. The receive loop only sorts records into shards; unsealing happens there. Whatever may
// have been lost, by a lost connection or a full shard, is reported by Resync and never passed over in silence.
type bus struct {
	// Set once by newBus.
	client     redis.UniversalClient
	sharded    bool
	open       openFunc
	sidOf      func(channel string) (sid string, ok bool)
	log        *slog.Logger
	lanes      []*lane
	shards     [busShards]*shard
	seed       maphash.Seed
	linger     time.Duration // how long a channel stays subscribed after its last subscriber
	probeAfter time.Duration // silence after which the connection is probed; after twice that it is given up
	feed       *feed

	running atomic.Bool
}

// openFunc is Store.open.
type openFunc func(ctx context.Context, sid, epoch string, seq int64, h, c []byte) (sessionstore.Message, error)

var (
	errSilent  = errors.New("nothing was delivered, not even a probe")
	errRevoked = errors.New("redis ended a subscription")
	errRunning = errors.New("the bus is running already")
)

func newBus(s *Store) *bus {
	b := &bus{
		client:     s.o.Subscriber,
		sharded:    s.sharded,
		open:       s.open,
		sidOf:      s.sidOfChannel,
		log:        s.log,
		seed:       maphash.MakeSeed(),
		linger:     defaultLinger,
		probeAfter: defaultProbeAfter,
		feed:       newFeed(),
	}
	for i := range b.shards {
		b.shards[i] = newShard(b)
	}
	lanes := 1
	if b.sharded {
		lanes = Partitions
	}
	for p := range lanes {
		b.lanes = append(b.lanes, newLane(b, s.parts[p].inbox(s.replica), s.channelOf))
	}
	return b
}

// lane returns the lane that carries a session, or nil if the id is not one of ours.
func (b *bus) lane(sid string) *lane {
	p, ok := PartitionOf(sid)
	switch {
	case !ok:
		return nil
	case b.sharded:
		return b.lanes[p]
	default:
		return b.lanes[0]
	}
}

func (b *bus) shard(sid string) *shard {
	return b.shards[maphash.String(b.seed, sid)%busShards]
}

// seen returns the highest seq that was handed to the Handler for a session, 0 if it is not subscribed.
func (b *bus) seen(sid string) int64 {
	if l := b.lane(sid); l != nil {
		if t := l.topic(sid); t != nil {
			return t.seen.Load()
		}
	}
	return 0
}

// Subscribe makes the bus deliver a session and returns when Redis has confirmed it: whatever is published
// afterwards reaches the Handler, or Resync is called. Each call needs an Unsubscribe, unless it returned an error
// (ErrNotFound for what is no session id; ErrAway when ctx ended first).
func (s *Store) Subscribe(ctx context.Context, sid string) error {
	l := s.pl.bus.lane(sid)
	if l == nil {
		return fmt.Errorf("subscribe to session %s: %w", sid, sessionstore.ErrNotFound)
	}
	confirmed := l.join(sid)
	select {
	case <-confirmed:
		return nil
	case <-ctx.Done():
		l.leave(sid)
		return fmt.Errorf("subscribe to session %s: %w: %w", sid, sessionstore.ErrAway, context.Cause(ctx))
	}
}

// Unsubscribe takes back one Subscribe. The channel stays subscribed for another 30 s, so that a reconnecting
// client finds it open; nothing is delivered meanwhile.
func (s *Store) Unsubscribe(sid string) {
	if l := s.pl.bus.lane(sid); l != nil {
		l.leave(sid)
	}
}

// RunBus delivers to h until ctx ends. It reconnects by itself; sessions may be subscribed before, during and
// between connections. It may run once at a time.
func (s *Store) RunBus(ctx context.Context, h Handler) error {
	b := s.pl.bus
	if !b.running.CompareAndSwap(false, true) {
		return errRunning
	}
	defer b.running.Store(false)
	var g errgroup.Group
	for _, sh := range b.shards {
		g.Go(func() error { sh.run(ctx, h); return nil })
	}
	for _, l := range b.lanes {
		g.Go(func() error { l.run(ctx); return nil })
	}
	return g.Wait()
}

// run keeps the lane connected until ctx ends.
func (l *lane) run(ctx context.Context) {
	const shortest, longest = 50 * time.Millisecond, 2 * time.Second
	wait := shortest
	for {
		if l.b.sharded && !l.awaitTopics(ctx) {
			return
		}
		start := time.Now()
		err := l.serve(ctx)
		if ctx.Err() != nil {
			return
		}
		l.b.log.Warn("subscriptions lost, connecting again", "lane", l.inbox, "err", err)
		if c, ok := l.b.client.(*redis.ClusterClient); ok {
			c.ReloadState(ctx) // the slot may have moved
		}
		if time.Since(start) > longest {
			wait = shortest
		}
		if !sleep(ctx, wait/2+rand.N(wait/2)) {
			return
		}
		wait = min(2*wait, longest)
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// serve lives as long as one connection.
func (l *lane) serve(ctx context.Context) error {
	ps := l.pubSub(ctx)
	conn := l.begin()
	defer l.lost(conn)
	// The inbox first: in a cluster the first channel decides which node is asked.
	if err := l.subscribe(ctx, ps, l.inbox); err != nil {
		_ = ps.Close()
		return fmt.Errorf("subscribe to the inbox: %w", err)
	}
	l.heard.Store(int64(time.Since(l.born)))
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.receive(gctx, ps, conn) })
	g.Go(func() error { return l.command(gctx, ps) })
	g.Go(func() error { return l.watch(gctx) })
	g.Go(func() error { // Receive ends only with its connection
		<-gctx.Done()
		_ = ps.Close()
		return nil
	})
	return g.Wait()
}

// receive sorts what arrives. It never waits for a handler.
func (l *lane) receive(ctx context.Context, ps *redis.PubSub, conn uint64) error {
	for {
		msg, err := ps.Receive(ctx)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		l.heard.Store(int64(time.Since(l.born)))
		switch m := msg.(type) {
		case *redis.Message:
			if sid, ok := l.b.sidOf(m.Channel); ok {
				l.deliver(sid, m.Payload)
			}
		case *redis.Subscription:
			sid, ok := l.b.sidOf(m.Channel)
			if !ok {
				continue
			}
			switch m.Kind {
			case "subscribe", "ssubscribe":
				if again := l.confirm(sid, conn); again {
					l.resync(sid)
				}
			default:
				if l.holds(sid, conn) { // not by our wish: a slot moved away
					return errRevoked
				}
			}
		}
	}
}

func (l *lane) deliver(sid, payload string) {
	if _, ok := feedPartition(sid); ok {
		l.b.feed.note(payload)
		return
	}
	l.b.shard(sid).add(sid, payload)
}

func (l *lane) resync(sid string) {
	if p, ok := feedPartition(sid); ok {
		l.b.feed.lost(p)
		return
	}
	l.b.shard(sid).resync(sid)
}

// command sends subscriptions and takes back those nobody wants any more.
func (l *lane) command(ctx context.Context, ps *redis.PubSub) error {
	for {
		subs, unsubs, wait := l.take()
		if len(subs) > 0 {
			if err := l.subscribe(ctx, ps, subs...); err != nil {
				return fmt.Errorf("subscribe: %w", err)
			}
		}
		if len(unsubs) > 0 {
			if err := l.unsubscribe(ctx, ps, unsubs...); err != nil {
				return fmt.Errorf("unsubscribe: %w", err)
			}
		}
		if len(subs) > 0 || len(unsubs) > 0 {
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-l.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// watch publishes to the lane's own inbox when nothing has arrived for a while, and gives the connection up if that
// does not arrive either: one that looks healthy can deliver nothing, after a failover behind a proxy for example.
func (l *lane) watch(ctx context.Context) error {
	for {
		silent := time.Since(l.born) - time.Duration(l.heard.Load())
		switch {
		case silent >= 2*l.b.probeAfter:
			return errSilent
		case silent >= l.b.probeAfter:
			l.probe(ctx)
			silent = l.b.probeAfter / 2 // look again after as much
		}
		if !sleep(ctx, l.b.probeAfter-silent) {
			return ctx.Err()
		}
	}
}

func (l *lane) probe(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, l.b.probeAfter/2)
	defer cancel()
	var err error
	if l.b.sharded {
		err = l.b.client.SPublish(ctx, l.inbox, "probe").Err()
	} else {
		err = l.b.client.Publish(ctx, l.inbox, "probe").Err()
	}
	if err != nil { // silence decides
		l.b.log.Debug("probe was not published", "lane", l.inbox, "err", err)
	}
}

func (l *lane) pubSub(ctx context.Context) *redis.PubSub {
	if l.b.sharded {
		return l.b.client.SSubscribe(ctx)
	}
	return l.b.client.Subscribe(ctx)
}

func (l *lane) subscribe(ctx context.Context, ps *redis.PubSub, channels ...string) error {
	if l.b.sharded {
		return ps.SSubscribe(ctx, channels...)
	}
	return ps.Subscribe(ctx, channels...)
}

func (l *lane) unsubscribe(ctx context.Context, ps *redis.PubSub, channels ...string) error {
	if l.b.sharded {
		return ps.SUnsubscribe(ctx, channels...)
	}
	return ps.Unsubscribe(ctx, channels...)
}
