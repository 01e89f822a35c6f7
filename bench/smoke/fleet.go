package smoke

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/real-rm/chatbox/bench/wire"
)

// pingEvery is how often a fleet's sockets say that they live: a third of what the product allows.
const pingEvery = 30 * time.Second

// frame is what is read of the product's frames where all of one matters.
type frame struct {
	Type, Status string
	SessionID    string `json:"session_id"`
	Content      string
	Delta        string
	Seq          int64
	Error        *struct{ Code string }
}

func parse(b []byte) (frame, error) {
	var f frame
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("frame is not JSON: %w", err)
	}
	return f, nil
}

// fleet is a number of pairs: two sockets of the same user, on server 0 and on server 1. It is owned by one goroutine;
// its readers end with close.
type fleet struct {
	sys     *system
	pairs   []*pair
	born    time.Time
	readers sync.WaitGroup
	stop    context.CancelFunc
	closing atomic.Bool
	sink    atomic.Pointer[sink]
}

// sink takes what arrives while something is measured.
type sink struct {
	refill func(*pair) // called by the reader when a message has arrived; nil: nothing
}

// pair is one session with a sender, on server 0, and a receiver, on server 1.
type pair struct {
	fleet   *fleet
	user    string
	session string
	a, b    *wire.Conn

	sendMu sync.Mutex // held while sending, so that numbers go out in order
	sent   int64
	buf    []byte

	mu        sync.Mutex // guards the fields below
	last      int64
	missing   map[int64]bool
	doubled   int64
	unordered int64
	acks      int64
	faults    []string
	latency   []time.Duration
	stream    stream
}

// openFleet connects n pairs and returns when messages reach all of them. Times count from born.
func openFleet(ctx context.Context, s *system, born time.Time, prefix string, n int) (*fleet, error) {
	pinging, stop := context.WithCancel(context.WithoutCancel(ctx))
	f := &fleet{sys: s, born: born, stop: stop, pairs: make([]*pair, n)}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range n {
		p := &pair{fleet: f, user: prefix + strconv.Itoa(i), missing: map[int64]bool{}}
		f.pairs[i] = p
		g.Go(func() error {
			token, err := s.token(p.user)
			if err != nil {
				return err
			}
			if p.a, p.session, err = s.connect(gctx, 0, p.user, token); err != nil {
				return err
			}
			p.b, _, err = s.connect(gctx, 1, p.user, token)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		f.close()
		return nil, fmt.Errorf("open %d sessions of %s: %w", n, s.name, err)
	}
	if err := s.subscribed(ctx, f.sessions()); err != nil {
		f.close()
		return nil, err
	}
	for _, p := range f.pairs {
		f.readers.Go(func() { p.read(p.a, p.sender) })
		f.readers.Go(func() { p.read(p.b, p.receiver) })
	}
	f.readers.Go(func() { f.ping(pinging) })
	return f, nil
}

func (f *fleet) close() {
	f.closing.Store(true)
	f.stop()
	for _, p := range f.pairs {
		for _, c := range []*wire.Conn{p.a, p.b} {
			if c != nil {
				_ = c.Close()
			}
		}
	}
	f.readers.Wait()
}

func (f *fleet) ping(ctx context.Context) {
	for pause(ctx, pingEvery) == nil {
		for _, p := range f.pairs {
			_, _ = p.a.Ping(), p.b.Ping() // the readers notice
		}
	}
}

func (f *fleet) sessions() []string {
	ids := make([]string, len(f.pairs))
	for i, p := range f.pairs {
		ids[i] = p.session
	}
	return ids
}

func (f *fleet) now() time.Duration { return time.Since(f.born) }

func (p *pair) read(c *wire.Conn, take func([]byte)) {
	for {
		b, err := c.Next()
		if err != nil {
			if !p.fleet.closing.Load() {
				p.mu.Lock()
				p.faults = append(p.faults, "socket ended: "+err.Error())
				p.mu.Unlock()
			}
			return
		}
		take(b)
	}
}

// padding makes a message of about 120 bytes, which is what people write.
var padding = strings.Repeat("lorem ipsum ", 8)

// send sends the next numbered message from server 0. pad follows the number.
func (p *pair) send(pad string) error {
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	p.sent++
	b := append(p.buf[:0], `{`...)
	if p.fleet.sys.product {
		b = append(b, `"type":"user_message","message_id":"`...)
		id := uuid.New()
		b = append(b, id.String()...)
		b = append(b, `","content":"`...)
	} else {
		b = append(append(append(b, `"room":"`...), p.user...), `","text":"`...)
	}
	b = appendMark(b, p.sent, p.fleet.now())
	b = append(append(b, pad...), `"}`...)
	p.buf = b
	return p.a.Write(b)
}

func (p *pair) sentSoFar() int64 {
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	return p.sent
}

// appendMark appends a number and a time so that mark finds them.
func appendMark(b []byte, n int64, at time.Duration) []byte {
	b = strconv.AppendInt(append(b, '~'), n, 10)
	b = strconv.AppendInt(append(b, '~'), int64(at), 10)
	return append(b, '~')
}

// mark finds the next number and time in a frame, and what follows them. No id and no key of a frame holds a tilde.
func mark(b []byte) (n int64, at time.Duration, rest []byte, found bool) {
	_, b, found = bytes.Cut(b, []byte{'~'})
	if !found {
		return 0, 0, nil, false
	}
	first, b, ok1 := bytes.Cut(b, []byte{'~'})
	second, rest, ok2 := bytes.Cut(b, []byte{'~'})
	n, err1 := strconv.ParseInt(string(first), 10, 64)
	t, err2 := strconv.ParseInt(string(second), 10, 64)
	return n, time.Duration(t), rest, ok1 && ok2 && err1 == nil && err2 == nil
}

// sender takes what comes back to the socket that sends: an ack of each message from the product, in the message's
// place; its own message from the floor.
func (p *pair) sender(b []byte) {
	ours := p.fleet.sys.product
	_, _, _, marked := mark(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case ours && bytes.HasPrefix(b, []byte(`{"type":"ack"`)):
		p.acks++
		if bytes.Contains(b, []byte(`"duplicate":true`)) {
			p.faults = append(p.faults, "ack of a duplicate")
		}
	case ours && bytes.HasPrefix(b, []byte(`{"type":"error"`)):
		p.faults = append(p.faults, "error frame: "+string(b[:min(len(b), 200)]))
	case ours && marked && bytes.Contains(b, []byte(`"type":"user_message"`)):
		p.faults = append(p.faults, "own message came back instead of its ack")
	case !ours && marked:
		p.acks++
	}
}

// receiver takes what arrives at the other server.
func (p *pair) receiver(b []byte) {
	now := p.fleet.now()
	if p.fleet.sys.product && bytes.Contains(b, []byte(`"type":"ai_response"`)) {
		p.mu.Lock()
		p.stream.take(b, now)
		p.mu.Unlock()
		return
	}
	n, at, _, ok := mark(b)
	if !ok {
		return
	}
	p.mu.Lock()
	p.number(n)
	p.latency = append(p.latency, now-at)
	p.mu.Unlock()
	if s := p.fleet.sink.Load(); s != nil && s.refill != nil {
		s.refill(p)
	}
}

// number counts a message in. With p.mu held.
func (p *pair) number(n int64) {
	switch {
	case n > p.last:
		for m := p.last + 1; m < n; m++ {
			p.missing[m] = true
		}
		p.last = n
	case p.missing[n]:
		delete(p.missing, n)
		p.unordered++
	default:
		p.doubled++
	}
}

// reset forgets the latencies of the warm-up.
func (f *fleet) reset() {
	for _, p := range f.pairs {
		p.mu.Lock()
		p.latency = nil
		p.stream = stream{}
		p.mu.Unlock()
	}
}

// latencies returns all latencies since reset.
func (f *fleet) latencies() []time.Duration {
	var all []time.Duration
	for _, p := range f.pairs {
		p.mu.Lock()
		all = append(all, p.latency...)
		p.mu.Unlock()
	}
	return all
}

// counts are what must all be zero, over the fleet's whole life.
type counts struct {
	sent, lost, doubled, unordered, unacked int64
	faults                                  []string
}

func (c counts) bad() bool {
	return c.lost != 0 || c.doubled != 0 || c.unordered != 0 || c.unacked != 0 || len(c.faults) > 0
}

func (c *counts) add(d counts) {
	c.sent += d.sent
	c.lost += d.lost
	c.doubled += d.doubled
	c.unordered += d.unordered
	c.unacked += d.unacked
	c.faults = append(c.faults, d.faults...)
}

func (f *fleet) counts() counts {
	var c counts
	for _, p := range f.pairs {
		sent := p.sentSoFar()
		p.mu.Lock()
		c.sent += sent
		c.lost += sent - p.last + int64(len(p.missing))
		c.doubled += p.doubled
		c.unordered += p.unordered
		if d := sent - p.acks; d > 0 {
			c.unacked += d
		} else {
			c.doubled -= d
		}
		c.faults = append(c.faults, p.faults...)
		p.mu.Unlock()
	}
	return c
}

// arrived waits until everything that was sent has arrived and is acknowledged, or limit is over.
func (f *fleet) arrived(ctx context.Context, limit time.Duration) error {
	for end := time.Now().Add(limit); time.Now().Before(end); {
		done := true
		for _, p := range f.pairs {
			sent := p.sentSoFar()
			p.mu.Lock()
			done = done && p.last >= sent && p.acks >= sent && len(p.missing) == 0
			p.mu.Unlock()
		}
		if done {
			return nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}
