package hub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Defaults of Options.
const (
	defaultQueueBytes = 1 << 20
	defaultMaxFrame   = 64 << 10
	defaultWriteWait  = 10 * time.Second
	defaultIdle       = 90 * time.Second
	defaultReadWait   = 10 * time.Second
)

// Options are the settings of a hub.
type Options struct {
	Source Source // required
	// QueueBytes bounds what waits for one socket, beside the page that it is catching up with. Zero means
	// 1 MiB: seconds of a fast answer stream, and still small when many are slow.
	QueueBytes int
	MaxFrame   int           // largest message from a client, bytes; zero means 64 KiB
	WriteWait  time.Duration // a socket that takes nothing for so long is slow; also the limit of a close. Zero means 10 s
	// Merge makes one frame of consecutive chunks of one attempt, which a slow client gets in place of theirs: first
	// and last are the chunks at the ends, text is the Delta of all of them. If first is a Reset, so is what it makes.
	// It is called with locks held. Nil means that every chunk is sent as it is.
	Merge     func(first, last *Message, text []byte) []byte
	Idle      time.Duration // without a message or ping from the client it is closed; zero means 90 s
	PingEvery time.Duration // pings by the server, which keep proxies from cutting quiet sockets; zero means none
	ReadWait  time.Duration // limit of one Source.Read, after which it is tried again; zero means 10 s
	OnSlow    func(*Client) // called once for each client closed with CodeSlow, when it is gone; nil means nothing
	Log       *slog.Logger  // nil means discard
}

// Hub is the registry of one replica's sockets. See the package comment for what it promises.
type Hub struct {
	opts  Options
	log   *slog.Logger
	life  life      // ends when Run stops waiting for clients
	tasks group     // every goroutine of the package
	start time.Time // origin of Client.seen

	wheel wheel

	mu       sync.RWMutex // guards the fields below
	clients  map[*Client]struct{}
	topics   map[string]*topic
	refusing bool            // Drain or the end of Run: no new clients
	empty    []chan struct{} // closed when the last client is gone
}

// New returns a hub that can be used at once; Run watches its deadlines and ends it.
func New(opts Options) (*Hub, error) {
	var errs []error
	if opts.Source == nil {
		errs = append(errs, errors.New("source is missing"))
	}
	for name, n := range map[string]int64{
		"queue bytes": int64(opts.QueueBytes), "max frame": int64(opts.MaxFrame), "write wait": int64(opts.WriteWait),
		"idle": int64(opts.Idle), "ping every": int64(opts.PingEvery), "read wait": int64(opts.ReadWait),
	} {
		if n < 0 {
			errs = append(errs, fmt.Errorf("%s is negative", name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("hub options: %w", err)
	}
	opts.QueueBytes = orDefault(opts.QueueBytes, defaultQueueBytes)
	opts.MaxFrame = orDefault(opts.MaxFrame, defaultMaxFrame)
	opts.WriteWait = orDefault(opts.WriteWait, defaultWriteWait)
	opts.Idle = orDefault(opts.Idle, defaultIdle)
	opts.ReadWait = orDefault(opts.ReadWait, defaultReadWait)
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	h := &Hub{
		opts:    opts,
		log:     opts.Log,
		start:   time.Now(),
		clients: make(map[*Client]struct{}),
		topics:  make(map[string]*topic),
	}
	h.wheel.init(opts.Idle, opts.PingEvery)
	return h, nil
}

func orDefault[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// Run watches the deadlines of all clients until ctx ends. Then it accepts no more, closes what is left with
// CodeDrain, waits for every goroutine of the hub and returns nil. It is called once.
func (h *Hub) Run(ctx context.Context) error {
	ticker := time.NewTicker(h.wheel.tick)
	defer ticker.Stop()
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case <-ticker.C:
			h.turnWheel()
		}
	}
	h.refuse()
	h.Each(func(c *Client) { c.Close(CodeDrain, "server stops") })
	select {
	case <-h.whenEmpty():
	case <-time.After(h.opts.WriteWait + closeGrace):
		// Only a handler that does not return keeps a client alive for longer. Its context ends now.
		h.Each(func(c *Client) { c.life.end() })
		<-h.whenEmpty()
	}
	h.life.end()
	h.tasks.wait()
	return nil
}

// Publish delivers one message to the clients of its topic. It never waits. It may be called concurrently for
// different topics; the calls for one topic come in the order of the bus.
func (h *Hub) Publish(m Message) {
	h.mu.RLock()
	t := h.topics[m.Topic]
	h.mu.RUnlock()
	if t != nil {
		t.publish(&m)
	}
}

// Resync says that the bus may have missed something on the topic. The hub reads on from where it stands, and
// shows the running answer to all clients again.
func (h *Hub) Resync(topic string) {
	h.mu.RLock()
	t := h.topics[topic]
	h.mu.RUnlock()
	if t != nil {
		t.resync()
	}
}

// Topic returns how many clients have joined the topic.
func (h *Hub) Topic(topic string) int {
	h.mu.RLock()
	t := h.topics[topic]
	h.mu.RUnlock()
	if t == nil {
		return 0
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.members)
}

// Topics returns how many topics the hub holds: those with clients, and those whose subscription is ending.
func (h *Hub) Topics() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.topics)
}

// Len returns how many clients there are.
func (h *Hub) Len() int {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return len(h.clients)
}

// Each calls f for every client there is at the time of the call, without holding a lock.
func (h *Hub) Each(f func(*Client)) {
	for _, c := range h.snapshot() {
		f(c)
	}
}

func (h *Hub) snapshot() []*Client {
	h.mu.RLock()
	defer h.mu.RUnlock()
	cs := make([]*Client, 0, len(h.clients))
	for c := range h.clients {
		cs = append(cs, c)
	}
	return cs
}

func (h *Hub) refuses() bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.refusing
}

func (h *Hub) refuse() {
	h.mu.Lock()
	h.refusing = true
	h.mu.Unlock()
}

func (h *Hub) add(c *Client) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refusing {
		return false
	}
	h.clients[c] = struct{}{}
	h.wheel.add(c)
	return true
}

func (h *Hub) remove(c *Client) {
	h.wheel.remove(c)
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.clients, c)
	if len(h.clients) == 0 {
		for _, ch := range h.empty {
			close(ch)
		}
		h.empty = nil
	}
}

// whenEmpty returns a channel that is closed as soon as the hub has no clients.
func (h *Hub) whenEmpty() <-chan struct{} {
	ch := make(chan struct{})
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.clients) == 0 {
		close(ch)
	} else {
		h.empty = append(h.empty, ch)
	}
	return ch
}

// now is the time since the hub was made, which fits into an atomic integer.
func (h *Hub) now() time.Duration { return time.Since(h.start) }
