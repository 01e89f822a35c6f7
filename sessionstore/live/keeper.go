package live

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// DueHandler is told what a keeper finds due and cannot do itself.
type DueHandler interface {
	// Answer says that somebody must produce an answer in the session: one is owed and nobody has begun, or whoever
	// had begun is gone. It must not block. It comes again as long as that is so.
	Answer(sid string)
}

const (
	// sweepLimit bounds what one sweep takes from one partition; the rest is due in the next one.
	sweepLimit = 256
	// dueWorkers is how many sessions are expired or settled at a time, dueTimeout how long one may take.
	dueWorkers = 8
	dueTimeout = 5 * time.Second
	// instQuiet is how long answers are left alone after Redis has changed, so that the replicas that hold them, and
	// write again what was lost, come first.
	instQuiet = 5 * time.Second
	// outage is how long a partition may be without any keeper before nobody's absence counts: as long as a socket's
	// lease is renewed in. After it no session expires for one window; scripts have it as OUTAGE.
	outage = 30 * time.Second
	// hurry is how soon a replica looks again for partitions that should be its own and are not yet.
	hurry = time.Second
	// sideTimeout bounds what is asked beside the leases themselves, so that it cannot cost them.
	sideTimeout = time.Second
	// goodbyeTimeout bounds giving up all leases at the end.
	goodbyeTimeout = 2 * time.Second
)

// keeper holds leases on partitions for this replica. A lease decides who does the work, for economy; what makes
// the work safe is that every script that acts checks for itself.
type keeper struct {
	// Set once by newKeeper.
	s   *Store
	log *slog.Logger

	running atomic.Bool

	mu   sync.Mutex // guards kept; never held during I/O
	kept map[int]lease

	// Owned by the goroutine that renews.
	live []string // replicas as last seen

	// Owned by the goroutine that sweeps.
	inst    map[int]string    // as last seen
	quiet   map[int]time.Time // no answers before
	recent  map[string]time.Time
	unknown map[string]struct{}
}

// lease is the right to keep a partition.
type lease struct {
	token string    // fences DoneWAL
	until time.Time // by this process's clock, a little earlier than by Redis'
}

func newKeeper(s *Store) *keeper {
	return &keeper{
		s:       s,
		log:     s.log,
		kept:    make(map[int]lease),
		inst:    make(map[int]string),
		quiet:   make(map[int]time.Time),
		recent:  make(map[string]time.Time),
		unknown: make(map[string]struct{}),
	}
}

// RunKeeper keeps this replica's share of the partitions until ctx ends, then gives it up. It holds the leases, calls
// h for answers that are due, expires sessions and settles cuts that nobody has settled. While Redis is away it
// keeps trying. It may run once at a time.
func (s *Store) RunKeeper(ctx context.Context, h DueHandler) error {
	k := s.pl.keeper
	if !k.running.CompareAndSwap(false, true) {
		return errors.New("the keeper is running already")
	}
	defer k.running.Store(false)
	var g errgroup.Group
	g.Go(func() error { k.renewLoop(ctx); return nil })
	g.Go(func() error { k.sweepLoop(ctx, h); return nil })
	err := g.Wait()
	k.goodbye(context.WithoutCancel(ctx))
	return err
}

// holding returns the partitions whose leases are good now.
func (k *keeper) holding() map[int]lease {
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make(map[int]lease, len(k.kept))
	for p, l := range k.kept {
		if now.Before(l.until) {
			out[p] = l
		}
	}
	return out
}

func (k *keeper) renewLoop(ctx context.Context) {
	every := k.s.o.KeeperLease / 3
	failing := false
	for {
		next := every
		short, err := k.renew(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !failing {
				k.log.Warn("partition leases cannot be renewed", "err", err)
			}
			next = min(every, hurry)
		case short:
			next = min(every, hurry)
		}
		failing = err != nil
		if !sleep(ctx, next) {
			return
		}
	}
}

// renew says that this replica lives, takes or renews the leases of its share and gives up the others. short means
// that a partition of the share is still held elsewhere. A cluster node that is down costs its own partitions only.
func (k *keeper) renew(ctx context.Context) (short bool, err error) {
	var errs []error
	if live, err := k.register(ctx, k.s.o.ReplicaLease); err == nil {
		k.live = live
	} else if errs = append(errs, err); len(k.live) == 0 {
		return false, err
	}
	short, err = k.renewLeases(ctx)
	errs = append(errs, err, k.s.pl.checkInst(ctx))
	return short, errors.Join(errs...)
}

func (k *keeper) renewLeases(ctx context.Context) (short bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, k.s.o.KeeperLease/3)
	defer cancel()
	start := time.Now()
	calls := make([]*invocation, Partitions)
	for p := range calls {
		if calls[p], err = k.call(ctx, p, preferred(k.live, p) == k.s.replica); err != nil {
			return false, err
		}
	}
	invoke(ctx, k.s.client, calls)

	k.mu.Lock()
	defer k.mu.Unlock()
	var errs []error
	for p, c := range calls {
		if c.err != nil {
			errs = append(errs, c.err)
			continue
		}
		token, _ := c.val.(string)
		if token == "" {
			delete(k.kept, p)
			short = short || c.args[0] == modeKeep
			continue
		}
		k.kept[p] = lease{token: token, until: start.Add(k.s.o.KeeperLease)}
	}
	if len(errs) > 0 {
		return short, fmt.Errorf("renew %d of %d leases: %w", len(errs), Partitions, errs[0])
	}
	return short, nil
}

// Modes of keep.lua.
const (
	modeKeep = "keep"
	modeFree = "free"
)

// call prepares taking or renewing the lease of a partition, or giving it up.
func (k *keeper) call(ctx context.Context, p int, want bool) (*invocation, error) {
	mode := modeFree
	if want {
		mode = modeKeep
	}
	k.mu.Lock()
	held := k.kept[p].token
	k.mu.Unlock()
	return k.s.pl.invocation(ctx, k.s.pl.sc.keep, []string{k.s.parts[p].keeper(), k.s.parts[p].beat()},
		mode, held, k.s.replica+"|"+rand.Text(), k.s.o.KeeperLease.Milliseconds(), k.s.o.Window.Milliseconds())
}

// register renews the replica's own lease, or ends it (life 0), and returns the replicas that live.
func (k *keeper) register(ctx context.Context, life time.Duration) (live []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, sideTimeout)
	defer cancel()
	c, err := k.s.pl.invocation(ctx, k.s.pl.sc.replicas, []string{k.s.parts[0].replicas(), k.s.parts[0].buried()},
		k.s.replica, life.Milliseconds(), rand.Text())
	if err != nil {
		return nil, fmt.Errorf("renew replica lease: %w", err)
	}
	invoke(ctx, k.s.client, []*invocation{c})
	if c.err != nil {
		return nil, fmt.Errorf("renew replica lease: %w", c.err)
	}
	reply, _ := c.val.([]any)
	if len(reply) != 2 {
		return nil, fmt.Errorf("renew replica lease: unexpected reply of %d parts", len(reply))
	}
	for _, dead := range texts(reply[1]) {
		k.log.Error("a replica died without a goodbye", "replica", dead)
	}
	return texts(reply[0]), nil
}

// goodbye gives up everything at once, so that others need not wait for leases to lapse.
func (k *keeper) goodbye(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, goodbyeTimeout)
	defer cancel()
	var calls []*invocation
	for p := range k.holding() {
		if c, err := k.call(ctx, p, false); err == nil {
			calls = append(calls, c)
		}
	}
	k.mu.Lock()
	clear(k.kept)
	k.mu.Unlock()
	invoke(ctx, k.s.client, calls)
	for _, c := range calls {
		if c.err != nil {
			k.log.Warn("leases were not given up, they lapse", "err", c.err)
			break
		}
	}
	if _, err := k.register(ctx, 0); err != nil {
		k.log.Warn("goodbye was not said", "err", err)
	}
}

// preferred is the replica that should keep a partition: the one with the highest hash of both names. When a
// replica comes or goes only its own partitions move.
func preferred(live []string, p int) string {
	var best string
	var most uint64
	for _, r := range live {
		h := fnv.New64a()
		_, _ = h.Write([]byte(r + "/" + strconv.Itoa(p)))
		if v := mix(h.Sum64()); best == "" || v > most || v == most && r > best {
			best, most = r, v
		}
	}
	return best
}

// mix spreads the bits of a hash of similar short texts.
func mix(v uint64) uint64 {
	v ^= v >> 33
	v *= 0xff51afd7ed558ccd
	v ^= v >> 33
	v *= 0xc4ceb9fe1a85ec53
	return v ^ v>>33
}
