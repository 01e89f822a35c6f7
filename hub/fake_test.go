package hub_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
)

// source is a store and a bus in memory. Like the real ones the store is the truth, and the bus loses what is
// published while nobody is subscribed, and what lose says.
type source struct {
	hub *hub.Hub

	mu          sync.Mutex
	topics      map[string]*record
	subscribed  map[string]bool
	misuse      error                                // Subscribe and Unsubscribe out of turn
	fail        bool                                 // Read and Subscribe return errors
	lose        func(m *hub.Message) bool            // on the bus
	reading     func(topic string, pos hub.Position) // called in Read, without the lock, after the page was made
	subscribing func(topic string)                   // called in Subscribe, without the lock, before anything is subscribed
	lag         chan hub.Message                     // what the bus still has to bring; nil: nothing, ever
	pageSize    int                                  // messages in a page; 0: 10
	reads       int
}

// record is one topic in the store.
type record struct {
	bus     sync.Mutex // keeps publishing in order
	epoch   string
	top     int64
	log     []hub.Message
	running *hub.Message
	placed  map[string]hub.Position // where the newest event with a key was put
	lost    map[string]string       // the first epoch without it
}

func newSource() *source {
	return &source{topics: map[string]*record{}, subscribed: map[string]bool{}}
}

func (s *source) record(topic string) *record {
	r := s.topics[topic]
	if r == nil {
		r = &record{epoch: "1", placed: map[string]hub.Position{}, lost: map[string]string{}}
		s.topics[topic] = r
	}
	return r
}

func (s *source) topic(topic string) *record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.record(topic)
}

func (s *source) top(topic string) hub.Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.record(topic)
	return hub.Position{Epoch: r.epoch, Seq: r.top}
}

// copy returns the topic as it is in the store now.
func (s *source) copy(topic string) record {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.record(topic)
	return record{epoch: r.epoch, top: r.top, placed: maps.Clone(r.placed), lost: maps.Clone(r.lost)}
}

// append stores a durable event and publishes it. It returns where it is.
func (s *source) append(topic, key string) hub.Position {
	r := s.topic(topic)
	r.bus.Lock()
	defer r.bus.Unlock()
	s.mu.Lock()
	r.top++
	m := hub.Message{Topic: topic, Epoch: r.epoch, Seq: r.top, Key: key}
	m.Data = fmt.Appendf(nil, "event %s %s %d %s", topic, m.Epoch, m.Seq, key)
	r.log = append(r.log, m)
	r.placed[key] = hub.Position{Epoch: m.Epoch, Seq: m.Seq}
	s.mu.Unlock()
	s.publish(m)
	return hub.Position{Epoch: m.Epoch, Seq: m.Seq}
}

// chunk adds a word to the running answer and publishes it; chunk 1 starts the answer.
func (s *source) chunk(topic, answer string, n int) {
	r := s.topic(topic)
	r.bus.Lock()
	defer r.bus.Unlock()
	s.mu.Lock()
	var b strings.Builder
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&b, "%d,", i)
	}
	r.running = &hub.Message{Topic: topic, Answer: answer, Attempt: 1, Chunk: n, Data: fmt.Appendf(nil, "running %s %s", answer, b.String())}
	s.mu.Unlock()
	s.publish(hub.Message{Topic: topic, Answer: answer, Attempt: 1, Chunk: n, Data: fmt.Appendf(nil, "chunk %s %d,", answer, n)})
}

// final ends the running answer.
func (s *source) final(topic, answer string) {
	r := s.topic(topic)
	r.bus.Lock()
	defer r.bus.Unlock()
	s.mu.Lock()
	r.top++
	r.running = nil
	m := hub.Message{Topic: topic, Epoch: r.epoch, Seq: r.top, Answer: answer}
	m.Data = fmt.Appendf(nil, "final %s %s %d %s", topic, m.Epoch, m.Seq, answer)
	r.log = append(r.log, m)
	s.mu.Unlock()
	s.publish(m)
}

func (s *source) publish(m hub.Message) {
	s.mu.Lock()
	lost := !s.subscribed[m.Topic] || s.lose != nil && s.lose(&m)
	s.mu.Unlock()
	switch {
	case lost:
	case s.lag != nil:
		s.lag <- m
	default:
		s.hub.Publish(m)
	}
}

// lagging puts the bus behind the store, by random times.
func (s *source) lagging(t testing.TB) {
	t.Helper()
	s.lag = make(chan hub.Message, 10_000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for m := range s.lag {
			for range rand.IntN(200) {
				runtime.Gosched()
			}
			s.hub.Publish(m)
		}
	}()
	t.Cleanup(func() { close(s.lag); <-done })
}

// newEpoch is what a Redis does that has lost its tail: the last n events are gone.
func (s *source) newEpoch(topic string, n int) {
	r := s.topic(topic)
	r.bus.Lock()
	defer r.bus.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := max(0, len(r.log)-n)
	r.epoch += "x"
	for _, m := range r.log[kept:] {
		r.lost[m.Key] = r.epoch
	}
	r.log = r.log[:kept]
	r.top += 1000
}

// trim forgets all but the last n events.
func (s *source) trim(topic string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.record(topic)
	r.log = r.log[max(0, len(r.log)-n):]
}

func (s *source) Read(_ context.Context, topic string, pos hub.Position) (hub.Page, error) {
	page, err := s.page(topic, pos)
	s.mu.Lock()
	hook := s.reading
	s.mu.Unlock()
	if hook != nil {
		hook(topic, pos)
	}
	return page, err
}

func (s *source) page(topic string, pos hub.Position) (hub.Page, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	if s.fail {
		return hub.Page{}, errors.New("store is down")
	}
	r := s.record(topic)
	page := hub.Page{Position: hub.Position{Epoch: r.epoch, Seq: r.top}, Running: r.running}
	if pos == page.Position {
		return page, nil
	}
	fresh := pos == hub.Position{}
	var rest []hub.Message
	for _, m := range r.log {
		if m.Epoch == r.epoch && m.Seq > pos.Seq {
			rest = append(rest, m)
		}
	}
	whole := len(rest) > 0 && int64(len(rest)) == r.top-pos.Seq
	if fresh && r.top == 0 {
		return page, nil
	}
	if pos.Epoch != r.epoch && !(fresh && whole) || !whole || pos.Seq > r.top {
		page.Snapshot = true
		page.Messages = []hub.Message{{Topic: topic, Epoch: r.epoch, Seq: r.top,
			Data: fmt.Appendf(nil, "snapshot %s %s %d", topic, r.epoch, r.top)}}
		return page, nil
	}
	size := s.pageSize
	if size == 0 {
		size = 10
	}
	if len(rest) > size {
		rest = rest[:size]
		last := rest[size-1]
		page.Position, page.More = hub.Position{Epoch: last.Epoch, Seq: last.Seq}, true
	}
	page.Messages = rest
	return page, nil
}

func (s *source) Subscribe(_ context.Context, topic string) error {
	if s.subscribing != nil {
		s.subscribing(topic)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail {
		return errors.New("bus is down")
	}
	if s.subscribed[topic] {
		s.misuse = fmt.Errorf("subscribed twice to %s", topic)
	}
	s.subscribed[topic] = true
	return nil
}

func (s *source) Unsubscribe(topic string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.subscribed[topic] {
		s.misuse = fmt.Errorf("unsubscribed from %s without subscription", topic)
	}
	delete(s.subscribed, topic)
}

func (s *source) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// handler is a hub.Handler of functions; nil does nothing.
type handler struct {
	frame    func(ctx context.Context, c *hub.Client, data []byte)
	oversize func(c *hub.Client)
	notUTF8  func(c *hub.Client)
	closed   chan hub.Code // gets the code of each client that is gone
}

func (h *handler) Frame(ctx context.Context, c *hub.Client, data []byte) {
	if h.frame != nil {
		h.frame(ctx, c, data)
	}
}

func (h *handler) Oversize(c *hub.Client) {
	if h.oversize != nil {
		h.oversize(c)
	}
}

func (h *handler) NotUTF8(c *hub.Client) {
	if h.notUTF8 != nil {
		h.notUTF8(c)
	}
}

func (h *handler) Closed(c *hub.Client) {
	if h.closed != nil {
		h.closed <- c.Code()
	}
}

// testHub is a running hub behind a real server, on a fake source.
type testHub struct {
	*hub.Hub
	source   *source
	handler  *handler
	url      string
	accepted chan *hub.Client
}

func newTestHub(t testing.TB, opts hub.Options) *testHub {
	t.Helper()
	src := newSource()
	opts.Source = src
	h, err := hub.New(opts)
	require.NoError(t, err)
	src.hub = h
	th := &testHub{Hub: h, source: src, handler: &handler{closed: make(chan hub.Code, 20_000)}, accepted: make(chan *hub.Client, 1)}

	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- h.Run(ctx) }()
	server := httptest.NewServer(http.HandlerFunc(th.serve))
	th.url = server.URL
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-stopped)
		server.Close()
		require.Zero(t, h.Len(), "clients left")
		require.Zero(t, h.Topics(), "topics left")
		require.NoError(t, src.misuse)
	})
	return th
}

func (th *testHub) serve(w http.ResponseWriter, r *http.Request) {
	c, err := th.Accept(w, r, hub.AcceptOptions{ID: "r1.1", Handler: th.handler, Subprotocol: "chatbox.v1"})
	if err != nil {
		return
	}
	c.Start()
	th.accepted <- c
}

// dial returns both ends of a new connection.
func (th *testHub) dial(t testing.TB) (*hub.Client, *websocket.Conn) {
	t.Helper()
	return th.dialWith(t, nil)
}

func (th *testHub) dialWith(t testing.TB, opts *websocket.DialOptions) (*hub.Client, *websocket.Conn) {
	t.Helper()
	ws, resp, err := websocket.Dial(context.Background(), th.url, opts)
	require.NoError(t, err)
	if resp.Body != nil {
		_ = resp.Body.Close()
	}
	ws.SetReadLimit(-1)
	t.Cleanup(func() { _ = ws.CloseNow() })
	return <-th.accepted, ws
}

// read returns the next text message.
func read(t testing.TB, ws *websocket.Conn) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, b, err := ws.Read(ctx)
	require.NoError(t, err)
	return string(b)
}

// closeCode reads to the end and returns the close code, -1 if there was none.
func closeCode(t testing.TB, ws *websocket.Conn) hub.Code {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		if _, _, err := ws.Read(ctx); err != nil {
			require.NoError(t, ctx.Err(), "not closed in time")
			return hub.Code(websocket.CloseStatus(err))
		}
	}
}

func gone(t testing.TB, th *testHub) hub.Code {
	t.Helper()
	select {
	case code := <-th.handler.closed:
		return code
	case <-time.After(20 * time.Second):
		t.Fatal("Closed was not called")
		return 0
	}
}

// stalled dials with a small receive buffer and never reads.
func (th *testHub) stalled(t testing.TB) (*hub.Client, *websocket.Conn) {
	t.Helper()
	dialer := &net.Dialer{}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err == nil {
			err = conn.(*net.TCPConn).SetReadBuffer(4096)
		}
		return conn, err
	}}}
	return th.dialWith(t, &websocket.DialOptions{HTTPClient: client})
}

func serveHTTP(t testing.TB, h http.Handler) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}
