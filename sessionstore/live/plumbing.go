package live

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/sessionstore"
)

// plumbing is what a Store keeps beside its scripts: what it sends together, receives and holds. It is made once and
// runs only inside RunBus, RunKeeper and the calls of the batcher.
type plumbing struct {
	// Set once by newPlumbing.
	s      *Store
	batch  *batchers
	acks   *acks // nil: no replica of Redis is waited for
	bus    *bus
	keeper *keeper
	guard  *instGuard
	sc     plumbingScripts

	behind [Partitions]atomic.Bool // had more for MongoDB than the last ReadWAL has read
}

// plumbingScripts are the scripts of keepers and of the WAL.
type plumbingScripts struct {
	keep, replicas, sweep, pending, done, dead *script
	letters, letter, backlog                   *script
}

func newPlumbing(s *Store) *plumbing {
	acks := newAcks(s.o.Wait, s.o.WaitTimeout, s.log)
	return &plumbing{
		s:      s,
		batch:  newBatchers(s.client, acks, s.log),
		acks:   acks,
		bus:    newBus(s),
		keeper: newKeeper(s),
		guard:  newInstGuard(s.prefix, s.log),
		sc: plumbingScripts{
			keep:     mustScript("keep", onlyPrelude),
			replicas: mustScript("replicas", onlyPrelude),
			sweep:    mustScript("sweep", onlyPrelude),
			pending:  mustScript("pending", onlyPrelude),
			done:     mustScript("done", withEvent),
			dead:     mustScript("dead", onlyPrelude),
			letters:  mustScript("letters", onlyPrelude),
			letter:   mustScript("letter", onlyPrelude),
			backlog:  mustScript("backlog", onlyPrelude),
		},
	}
}

// mustScript loads a script that may run when Redis is full. All of them free memory or keep the work going that does.
// It panics if the file is not embedded, which no input can cause.
func mustScript(name, parts string) *script {
	sc, err := loadScript(name, parts, true)
	if err != nil {
		panic(err)
	}
	return sc
}

// sidOfChannel returns the session whose channel it is, or the topic of a partition's changes.
func (s *Store) sidOfChannel(channel string) (sid string, ok bool) {
	tag := strings.Index(channel, "}:")
	if tag < 3 {
		return "", false
	}
	rest := channel[tag+2:]
	if rest == "doc" {
		return channel[tag-3:tag] + feedSuffix, true
	}
	return strings.CutPrefix(rest, "c:")
}

// channelOf returns the channel of a session, or of a topic of changes, whose form has been checked.
func (s *Store) channelOf(sid string) string {
	p, _ := PartitionOf(sid)
	if _, ok := feedPartition(sid); ok {
		return s.parts[p].feed()
	}
	return s.parts[p].channel(sid)
}

// seen returns the highest seq that this replica has fanned out in a session, 0 if nobody here takes part in it.
func (p *plumbing) seen(sid string) int64 { return p.bus.seen(sid) }

// invocation prepares a call for invoke.
func (p *plumbing) invocation(ctx context.Context, sc *script, keys []string, args ...any) (*invocation, error) {
	form, err := p.s.usable(ctx, sc)
	if err != nil {
		return nil, err
	}
	return &invocation{script: form, keys: keys, args: args}, nil
}

// checkInst notices a primary that was replaced without a connection being lost, as behind a proxy.
func (p *plumbing) checkInst(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sideTimeout)
	defer cancel()
	var err error
	switch c := p.s.client.(type) {
	case *redis.ClusterClient:
		err = c.ForEachMaster(ctx, func(ctx context.Context, c *redis.Client) error { return p.guard.check(ctx, c) })
	default:
		err = p.guard.check(ctx, c)
	}
	return redisError(err)
}

// Ping tells whether Redis answers; if not, the error is ErrAway.
func (s *Store) Ping(ctx context.Context) error {
	if err := s.client.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("ping redis: %w: %w", sessionstore.ErrAway, err)
	}
	return nil
}

// Now returns the time by the clock of Redis, by which all deadlines and times of sessions are made. Errors: ErrAway.
func (s *Store) Now(ctx context.Context) (time.Time, error) {
	now, err := s.client.Time(ctx).Result()
	if err != nil {
		return time.Time{}, fmt.Errorf("ask redis for the time: %w: %w", sessionstore.ErrAway, err)
	}
	return now, nil
}

// texts returns the strings of a reply.
func texts(v any) []string {
	list, _ := v.([]any)
	out := make([]string, 0, len(list))
	for _, e := range list {
		if s, ok := e.(string); ok {
			out = append(out, s)
		}
	}
	return out
}
