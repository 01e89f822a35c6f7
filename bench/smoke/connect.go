package smoke

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/real-rm/chatbox/bench/wire"
)

// dialers is how many connections are being made at a time.
const dialers = 32

// crowd is sockets that were opened together and do nothing.
type crowd struct {
	conns   []*wire.Conn
	latency []time.Duration
	took    time.Duration
	use     usage
}

func (c *crowd) close() {
	for _, conn := range c.conns {
		if conn != nil {
			_ = conn.Close()
		}
	}
}

// openCrowd opens n sockets of n users, half at each server. The caller closes the crowd.
func openCrowd(ctx context.Context, s *system, prefix string, n int) (*crowd, error) {
	tokens := make([]string, n)
	for i := range tokens {
		var err error
		if tokens[i], err = s.token(prefix + strconv.Itoa(i)); err != nil {
			return nil, err
		}
	}
	c := &crowd{conns: make([]*wire.Conn, n), latency: make([]time.Duration, n)}
	errs := make([]error, dialers)
	before, err := s.usage()
	if err != nil {
		return nil, err
	}
	var next atomic.Int64
	var group sync.WaitGroup
	start := time.Now()
	for w := range dialers {
		group.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && errs[w] == nil; i = int(next.Add(1)) - 1 {
				began := time.Now()
				c.conns[i], _, errs[w] = s.connect(ctx, i%len(s.servers), prefix+strconv.Itoa(i), tokens[i])
				c.latency[i] = time.Since(began)
			}
		})
	}
	group.Wait()
	c.took = time.Since(start)
	for _, err := range errs {
		if err != nil {
			c.close()
			return nil, fmt.Errorf("open %d connections to %s: %w", n, s.name, err)
		}
	}
	after, err := s.usage()
	if err != nil {
		c.close()
		return nil, err
	}
	c.use = after.since(before)
	return c, nil
}

// weight is what idle connections weigh, in KiB each.
type weight struct {
	empty             int64 // both servers, KiB
	settled, garbaged float64
	busy              float64 // processor time of servers and Redis with idle connections, in percent of one processor
	crowd             *crowd
}

// measureIdle opens n connections and compares the servers' memory with that before.
func (r *run) measureIdle(ctx context.Context, s *system, n int) (w weight, err error) {
	warm, err := openCrowd(ctx, s, "warm", min(n, 100))
	if err != nil {
		return w, err
	}
	warm.close()
	if err := r.quiet(ctx); err != nil {
		return w, err
	}
	if err := collectBoth(ctx, s); err != nil {
		return w, err
	}
	if err := pause(ctx, r.o.Settle/4); err != nil {
		return w, err
	}
	if w.empty, err = s.resident(); err != nil {
		return w, err
	}
	if w.crowd, err = openCrowd(ctx, s, "idle", n); err != nil {
		return w, err
	}
	defer w.crowd.close()
	each := func() (float64, error) {
		now, err := s.resident()
		return float64(now-w.empty) / float64(n), err
	}
	if err := pause(ctx, r.o.Settle); err != nil {
		return w, err
	}
	if w.settled, err = each(); err != nil {
		return w, err
	}
	before, err := s.usage()
	if err != nil {
		return w, err
	}
	start := time.Now()
	if err := pause(ctx, r.o.Settle); err != nil {
		return w, err
	}
	after, err := s.usage()
	if err != nil {
		return w, err
	}
	d := after.since(before)
	w.busy = 100 * (d.servers + d.redis).Seconds() / time.Since(start).Seconds()
	if err := collectBoth(ctx, s); err != nil {
		return w, err
	}
	if err := pause(ctx, r.o.Settle/2); err != nil {
		return w, err
	}
	if w.garbaged, err = each(); err != nil {
		return w, err
	}
	return w, r.heap(ctx, s, "idle")
}

// collectBoth runs the garbage collector of both servers, twice: pools are emptied by the second.
func collectBoth(ctx context.Context, s *system) error {
	for _, addr := range s.pprof {
		for range 2 {
			if err := collect(ctx, addr); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	return nil
}
