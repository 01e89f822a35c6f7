package smoke

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// result is one measurement of one system.
type result struct {
	took      time.Duration
	use       usage
	delivered int64
	frames    int64
	latency   []time.Duration
	first     []time.Duration
	late      []time.Duration // how late this process was with what it had to send
}

// quantile returns the q-th quantile in ms.
func quantile(d []time.Duration, q float64) float64 {
	if len(d) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(d))
	return float64(sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]) / float64(time.Millisecond)
}

// cost is the processor time of servers and Redis for each message, in microseconds.
func (r result) cost() float64 {
	if r.delivered == 0 {
		return 0
	}
	return float64((r.use.servers + r.use.redis).Microseconds()) / float64(r.delivered)
}

// measureRelay sends rate messages a second for d, at fixed times whatever comes back, spread over the sessions. Latency
// is from just before the write at one server's socket to the read at the other's.
func (r *run) measureRelay(ctx context.Context, f *fleet, rate int, d time.Duration) (result, error) {
	f.reset()
	before, err := f.sys.usage()
	if err != nil {
		return result{}, err
	}
	total := int(d.Seconds() * float64(rate))
	res := result{late: make([]time.Duration, 0, total)}
	start := time.Now()
	for k := range total {
		due := start.Add(time.Duration(k) * time.Second / time.Duration(rate))
		if wait := time.Until(due); wait > 0 {
			if err := pause(ctx, wait); err != nil {
				return result{}, err
			}
		}
		res.late = append(res.late, time.Since(due))
		if err := f.pairs[k%len(f.pairs)].send(padding); err != nil {
			return result{}, fmt.Errorf("send to %s: %w", f.sys.name, err)
		}
	}
	if err := f.arrived(ctx, 10*time.Second); err != nil {
		return result{}, err
	}
	after, err := f.sys.usage()
	if err != nil {
		return result{}, err
	}
	res.took, res.use, res.latency = time.Since(start), after.since(before), f.latencies()
	res.delivered = int64(len(res.latency))
	return res, nil
}

// measureSaturated keeps window messages of every session under way for d.
func (r *run) measureSaturated(ctx context.Context, f *fleet, window int, d time.Duration) (result, error) {
	f.reset()
	before, err := f.sys.usage()
	if err != nil {
		return result{}, err
	}
	start := time.Now()
	end := start.Add(d)
	f.sink.Store(&sink{refill: func(p *pair) {
		if time.Now().Before(end) {
			_ = p.send(padding) // the readers notice a broken socket
		}
	}})
	defer f.sink.Store(nil)
	for range window {
		for _, p := range f.pairs {
			if err := p.send(padding); err != nil {
				return result{}, fmt.Errorf("send to %s: %w", f.sys.name, err)
			}
		}
	}
	if err := pause(ctx, time.Until(end)); err != nil {
		return result{}, err
	}
	if err := f.arrived(ctx, 20*time.Second); err != nil {
		return result{}, err
	}
	res := result{took: time.Since(start)}
	after, err := f.sys.usage()
	if err != nil {
		return result{}, err
	}
	res.use, res.latency = after.since(before), f.latencies()
	res.delivered = int64(len(res.latency))
	return res, nil
}
