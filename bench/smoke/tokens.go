package smoke

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// floodEvery is the pace of a fast model: 500 tokens a second.
	floodEvery = 2 * time.Millisecond
	// thinkTime is how long the provider is silent before it says something, when first tokens are measured.
	thinkTime = 20 * time.Millisecond
	// leaves is how long a first token may take from arriving at a replica to being published, in ms, p99 at idle.
	leaves = 5.0
)

// watcher sees what the product publishes in its Redis. The goroutine ends with close.
type watcher struct {
	sub  *redis.PubSub
	done chan struct{}

	mu     sync.Mutex // guards the fields below
	chunks int64
	firsts map[string]time.Time // when chunk 1 of an attempt was published, by session; the newest
}

// watch returns when the subscription stands.
func watch(ctx context.Context, s *system) (*watcher, error) {
	w := &watcher{sub: s.client.PSubscribe(ctx, "rt:*c:*"), done: make(chan struct{}), firsts: map[string]time.Time{}}
	if _, err := w.sub.Receive(ctx); err != nil {
		_ = w.sub.Close()
		return nil, fmt.Errorf("watch what is published: %w", err)
	}
	go func() {
		defer close(w.done)
		for {
			m, err := w.sub.ReceiveMessage(context.WithoutCancel(ctx))
			if err != nil {
				return
			}
			w.take(m, time.Now())
		}
	}()
	return w, nil
}

// take takes a record of a session's channel: epoch, seq and the length of its header, then the header, which is in the
// clear, then what is sealed.
func (w *watcher) take(m *redis.Message, now time.Time) {
	parts := strings.SplitN(m.Payload, " ", 4)
	if len(parts) < 4 {
		return
	}
	n, err := strconv.Atoi(parts[2])
	if err != nil || n > len(parts[3]) {
		return
	}
	header := parts[3][:n] + ","
	if !strings.Contains(header, `"type":"ai_response"`) || !strings.Contains(header, `"chunk":`) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.chunks++
	if strings.Contains(header, `"chunk":1,`) {
		w.firsts[m.Channel[strings.LastIndexByte(m.Channel, ':')+1:]] = now
	}
}

func (w *watcher) seen() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.chunks
}

// first is when the newest first chunk of a session was published.
func (w *watcher) first(session string) (time.Time, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, ok := w.firsts[session]
	return at, ok
}

func (w *watcher) close() {
	_ = w.sub.Close()
	<-w.done
}

// tokens measures how an answer's text travels: its first token at idle, and a stream that is faster than it need be shown.
func (r *run) tokens(ctx context.Context) error {
	w, err := watch(ctx, r.ours)
	if err != nil {
		return err
	}
	defer w.close()
	if err := r.firstTokens(ctx, w); err != nil {
		return err
	}
	return r.floods(ctx, w)
}

// firstTokens asks one question at a time and follows the first token of its answer. The floor relays one message at a
// time over the same path, without a provider before it.
func (r *run) firstTokens(ctx context.Context, w *watcher) error {
	fleets, end, err := r.openBoth(ctx, "first", 10)
	if err != nil {
		return err
	}
	defer func() { r.report.Ours.add(end()) }()
	n := max(20, int(r.o.Duration/(2*thinkTime)))
	across := r.report.quantiles("first token to the client elsewhere, one at a time", 0)
	beyond := r.report.quantiles("  beyond the floor's relay", 0)
	out := r.report.quantiles("  from the provider's write to being published", 0)
	floors := make([][]time.Duration, r.o.Rounds)
	ours := make([][]time.Duration, r.o.Rounds)
	err = r.turns(ctx, r.o.Rounds, func(round int, s *system) error {
		r.say("first tokens, round %d: %s", round+1, s.name)
		latency, published, err := r.measureFirst(ctx, fleets[s], w, n)
		if err != nil {
			return err
		}
		across.add(s, latency)
		if s.product {
			ours[round] = latency
			out.add(s, published)
		} else {
			floors[round] = latency
		}
		return nil
	})
	if err != nil {
		return err
	}
	for round := range r.o.Rounds {
		for i, row := range beyond {
			row.add(r.ours, quantile(ours[round], levels[i])-quantile(floors[round], levels[i]))
		}
	}
	word := "ok"
	if out[2].Ours() > leaves {
		word = "MISSED"
	}
	r.report.note("a first token is to leave its replica within %.0f ms of arriving, p99 at idle: %s with %.2f ms, the way from the provider and the way to "+
		"whoever is subscribed included", leaves, word, out[2].Ours())
	return nil
}

// measureFirst has n questions asked, or at the floor messages sent, each when the one before it is over.
func (r *run) measureFirst(ctx context.Context, f *fleet, w *watcher, n int) (latency, published []time.Duration, err error) {
	f.reset()
	r.provider.pace(1, thinkTime)
	for i := range n {
		p := f.pairs[i%len(f.pairs)]
		if err := pause(ctx, 5*time.Millisecond); err != nil {
			return nil, nil, err
		}
		p.mu.Lock()
		p.stream = stream{}
		p.mu.Unlock()
		if err := p.send(""); err != nil {
			return nil, nil, fmt.Errorf("send to %s: %w", f.sys.name, err)
		}
		if !f.sys.product {
			if err := p.settled(ctx, func() bool { return p.last >= int64(i/len(f.pairs)+1) }); err != nil {
				return nil, nil, err
			}
			continue
		}
		if err := p.settled(ctx, func() bool { return p.stream.done }); err != nil {
			return nil, nil, err
		}
		latency = append(latency, p.firstOf())
		wrote := r.provider.wrote(p.session)
		if at, ok := w.first(p.session); ok && at.After(wrote) {
			published = append(published, at.Sub(wrote))
		}
	}
	if !f.sys.product {
		return f.latencies(), nil, nil
	}
	if len(published) < n*9/10 {
		return nil, nil, fmt.Errorf("of %d first tokens only %d were seen to be published", n, len(published))
	}
	return latency, published, nil
}

var errUnsettled = errors.New("nothing came for ten seconds")

// settled waits until ok holds, which is called with p.mu held.
func (p *pair) settled(ctx context.Context, ok func() bool) error {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		p.mu.Lock()
		done := ok()
		p.mu.Unlock()
		if done {
			return nil
		}
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: %w", p.fleet.sys.name, errUnsettled)
}

func (p *pair) firstOf() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stream.first
}

// floods has a few answers come at 500 tokens a second. The floor relays as many messages of the same size.
func (r *run) floods(ctx context.Context, w *watcher) error {
	n := min(r.o.Streams, 4)
	count := max(100, int(r.o.Duration/2/floodEvery))
	fleets, end, err := r.openBoth(ctx, "flood", n)
	if err != nil {
		return err
	}
	defer func() { r.report.Ours.add(end()) }()
	q := r.report.quantiles(fmt.Sprintf("token, %d answers of 500/s", n), 0)
	cost := r.report.row(Row{Name: "  servers and Redis, a token", Unit: "µs CPU"})
	chunks := r.report.row(Row{Name: "  published, an answer", Unit: "/s"})
	frames := r.report.row(Row{Name: "  frames to each client", Unit: "/s"})
	return r.turns(ctx, r.o.Rounds, func(round int, s *system) error {
		r.say("floods, round %d: %s", round+1, s.name)
		before := w.seen()
		res, err := r.measureStreams(ctx, fleets[s], count, floodEvery)
		if err != nil {
			return err
		}
		q.add(s, res.latency)
		cost.add(s, res.cost())
		spoken := (time.Duration(count) * floodEvery).Seconds() * float64(n)
		if s.product {
			chunks.add(s, float64(w.seen()-before)/spoken)
			frames.add(s, float64(res.frames)/spoken)
		} else {
			chunks.add(s, float64(res.delivered)/spoken)
			frames.add(s, float64(res.delivered)/spoken)
		}
		return nil
	})
}
