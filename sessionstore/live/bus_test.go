package live

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// listener is a Handler that remembers.
type listener struct {
	mu       sync.Mutex
	messages map[string][]sessionstore.Message
	resyncs  map[string]int
}

func newListener() *listener {
	return &listener{messages: make(map[string][]sessionstore.Message), resyncs: make(map[string]int)}
}

func (l *listener) Message(m sessionstore.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.messages[m.SessionID] = append(l.messages[m.SessionID], m)
}

func (l *listener) Resync(sid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.resyncs[sid]++
}

func (l *listener) of(sid string) []sessionstore.Message {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]sessionstore.Message(nil), l.messages[sid]...)
}

func (l *listener) resynced(sid string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.resyncs[sid]
}

// runBus runs the store's bus until the test ends.
func runBus(t *testing.T, s *Store) *listener {
	t.Helper()
	h := newListener()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.RunBus(ctx, h) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
	})
	return h
}

// newSession opens a session for a user of its own.
func newSession(t *testing.T, s *Store) string {
	t.Helper()
	o, err := s.Open(t.Context(), sessionstore.OpenRequest{UserID: uuid.NewString(), ConnID: s.replica + ".1"})
	require.NoError(t, err)
	require.True(t, o.Created)
	return o.Session.ID
}

// say appends a message and returns its seq.
func say(t *testing.T, s *Store, sid, content string) int64 {
	t.Helper()
	a, err := s.Append(t.Context(), sessionstore.Append{Event: sessionstore.Event{
		Header: sessionstore.Header{
			Type: sessionstore.TypeUserMessage, SessionID: sid, MessageID: uuid.NewString(), Sender: sessionstore.SenderUser,
		},
		Body: sessionstore.Body{Content: content},
	}})
	if !assert.NoError(t, err) {
		return 0
	}
	return a.Seq
}

func content(t *testing.T, m sessionstore.Message) string {
	t.Helper()
	ev, err := sessionstore.ParseFrame(m.Frame)
	require.NoError(t, err)
	require.Equal(t, m.Seq, ev.Seq)
	return ev.Content
}

func mustPart(t *testing.T, s *Store, sid string) partition {
	t.Helper()
	p, err := s.part(sid)
	require.NoError(t, err)
	return p
}

const patience = 5 * time.Second

// Promise 12: order is preserved.
func TestBus_deliversWhatIsPublishedAfterSubscribeReturned(t *testing.T) {
	s := newTestStore(t, nil)
	h := runBus(t, s)
	for i := range 100 {
		sid := newSession(t, s)
		require.NoError(t, s.Subscribe(t.Context(), sid))
		text := fmt.Sprintf("text %d", i)
		seq := say(t, s, sid, text)
		require.Eventually(t, func() bool { return len(h.of(sid)) == 1 }, patience, time.Millisecond, "published but not delivered")
		m := h.of(sid)[0]
		require.Equal(t, seq, m.Seq)
		require.Equal(t, sessionstore.TypeUserMessage, m.Type)
		require.Equal(t, sessionstore.SenderUser, m.Sender)
		require.Equal(t, text, content(t, m))
		require.Eventually(t, func() bool { return s.pl.seen(sid) == seq }, patience, time.Millisecond)
		require.Zero(t, h.resynced(sid), "nothing was lost")
	}
}

// Beyond B2: whoever takes part in a session that Redis has lost can be asked to bring it back.
func TestAskResync_reachesASessionThatIsLost(t *testing.T) {
	s := newTestStore(t, nil)
	h := runBus(t, s)
	sid := newSession(t, s)
	require.NoError(t, s.Subscribe(t.Context(), sid))
	require.NoError(t, s.client.Del(t.Context(), mustPart(t, s, sid).session(sid).hash()).Err())
	other := beside(t, s, "r2")
	require.NoError(t, other.AskResync(t.Context(), sid))
	require.Eventually(t, func() bool { return len(h.of(sid)) == 1 }, patience, time.Millisecond)
	assert.Equal(t, sessionstore.TypeResync, h.of(sid)[0].Type)
	assert.Zero(t, s.pl.seen(sid), "it is no event of the session")
	require.ErrorIs(t, other.AskResync(t.Context(), "nonsense"), sessionstore.ErrNotFound)
}

// Promise 12: order is preserved.
func TestBus_deliversASessionInOrderWhileManyWrite(t *testing.T) {
	s := newTestStore(t, nil)
	h := runBus(t, s)
	const writers, each, sessions = 8, 60, 6
	sids := make([]string, sessions)
	for i := range sids {
		sids[i] = newSession(t, s)
		require.NoError(t, s.Subscribe(t.Context(), sids[i]))
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				say(t, s, sids[(w+i)%sessions], "x")
			}
		})
	}
	wg.Wait()
	for _, sid := range sids {
		require.Eventually(t, func() bool { return len(h.of(sid)) == writers*each/sessions }, patience, time.Millisecond)
		for i, m := range h.of(sid) {
			require.Equal(t, int64(i+2), m.Seq, "session_started has seq 1, then each its own, in order")
		}
		require.Zero(t, h.resynced(sid))
	}
}

func TestBus_resyncsEverySessionAfterTheConnectionWasLost(t *testing.T) {
	s := newTestStore(t, nil)
	h := runBus(t, s)
	sids := make([]string, 700) // more than one batch
	for i := range sids {
		sids[i] = newSession(t, s)
		require.NoError(t, s.Subscribe(t.Context(), sids[i]))
	}
	for round := 1; round <= 2; round++ {
		require.NoError(t, s.client.Do(t.Context(), "client", "kill", "type", "pubsub").Err())
		for _, sid := range sids {
			require.Eventually(t, func() bool { return h.resynced(sid) >= round }, patience, time.Millisecond)
		}
	}
	for _, sid := range sids[:50] {
		require.NoError(t, s.Subscribe(t.Context(), sid), "confirmed again")
		seq := say(t, s, sid, "after")
		require.Eventually(t, func() bool { m := h.of(sid); return len(m) == 1 && m[0].Seq == seq }, patience, time.Millisecond)
	}
}

func TestBus_reconnectsWhenNothingIsDelivered(t *testing.T) {
	proxy := newSilencer(t)
	s := newTestStore(t, func(o *Options) {
		o.Subscriber = redis.NewClient(&redis.Options{Addr: proxy.addr(), Protocol: 2, ContextTimeoutEnabled: true})
		t.Cleanup(func() { _ = o.Subscriber.Close() })
	})
	s.pl.bus.probeAfter = 200 * time.Millisecond
	h := runBus(t, s)
	sid := newSession(t, s)
	require.NoError(t, s.Subscribe(t.Context(), sid))

	// A quiet but healthy connection stays: its probes come back.
	require.Never(t, func() bool { return h.resynced(sid) > 0 }, time.Second, 50*time.Millisecond)
	proxy.silence()
	say(t, s, sid, "into the void")
	require.Eventually(t, func() bool { return h.resynced(sid) > 0 }, patience, time.Millisecond, "loss was not noticed")
	seq := say(t, s, sid, "heard")
	require.Eventually(t, func() bool { m := h.of(sid); return len(m) == 1 && m[0].Seq == seq }, patience, time.Millisecond)
}

func TestBus_keepsTheChannelForAWhileAfterTheLastSubscriber(t *testing.T) {
	s := newTestStore(t, nil)
	s.pl.bus.linger = 300 * time.Millisecond
	h := runBus(t, s)
	sid := newSession(t, s)
	listeners := func() int64 {
		n, err := s.client.PubSubNumSub(t.Context(), s.channelOf(sid)).Result()
		require.NoError(t, err)
		return n[s.channelOf(sid)]
	}
	require.NoError(t, s.Subscribe(t.Context(), sid))
	require.NoError(t, s.Subscribe(t.Context(), sid))
	s.Unsubscribe(sid)
	s.Unsubscribe(sid)
	s.Unsubscribe(sid) // once too often does no harm
	require.EqualValues(t, 1, listeners())

	// Back within the time: nothing to wait for, and the old farewell is forgotten.
	require.NoError(t, s.Subscribe(t.Context(), sid))
	require.Never(t, func() bool { return listeners() == 0 }, 2*s.pl.bus.linger, 20*time.Millisecond)

	s.Unsubscribe(sid)
	require.Eventually(t, func() bool { return listeners() == 0 }, patience, 10*time.Millisecond)
	require.Zero(t, s.pl.seen(sid))
	say(t, s, sid, "nobody hears this")
	require.NoError(t, s.Subscribe(t.Context(), sid))
	seq := say(t, s, sid, "x")
	require.Eventually(t, func() bool { return len(h.of(sid)) == 1 }, patience, time.Millisecond)
	require.Equal(t, seq, h.of(sid)[0].Seq)
	require.Zero(t, h.resynced(sid), "a new subscription is not a lost one")
}

func TestSubscribe_givesUpWithItsContext(t *testing.T) {
	s := newTestStore(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	sid := newSession(t, s)
	require.ErrorIs(t, s.Subscribe(ctx, sid), sessionstore.ErrAway, "the bus does not run")
	require.ErrorIs(t, s.Subscribe(ctx, "no id"), sessionstore.ErrNotFound)
	s.Unsubscribe("no id")

	runBus(t, s)
	require.NoError(t, s.Subscribe(t.Context(), sid))
}

func TestRunBus_refusesToRunTwice(t *testing.T) {
	s := newTestStore(t, nil)
	runBus(t, s)
	require.Eventually(t, s.pl.bus.running.Load, patience, time.Millisecond)
	require.ErrorIs(t, s.RunBus(t.Context(), newListener()), errRunning)
}

func TestShard_reportsWhatItHadToDrop(t *testing.T) {
	s := newTestStore(t, nil)
	sid, other := newSession(t, s), newSession(t, s)
	for _, x := range []string{sid, other} {
		s.pl.bus.lane(x).join(x)
	}
	sh := s.pl.bus.shard(sid)
	rec := func(sid string, seq int64) string {
		h := sessionstore.Header{Type: sessionstore.TypeLoading, SessionID: sid, MessageID: "m"}
		return string(encode("1-a", seq, h.Fragment(), nil))
	}
	for i := range shardRecords {
		sh.add(sid, rec(sid, int64(i+1)))
	}
	sh.add(other, rec(other, 1)) // one too many
	h := newListener()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); sh.run(ctx, h) }()
	require.Eventually(t, func() bool { return h.resynced(other) == 1 }, patience, time.Millisecond)
	require.Len(t, h.of(sid), shardRecords)
	require.Empty(t, h.of(other))
	require.Zero(t, h.resynced(sid))

	// What cannot be read or opened is reported, too.
	sh.add(sid, "not a record")
	require.Eventually(t, func() bool { return h.resynced(sid) == 1 }, patience, time.Millisecond)
	sh.add(sid, rec(sid, 9)+"not sealed")
	require.Eventually(t, func() bool { return h.resynced(sid) == 2 }, patience, time.Millisecond)
	cancel()
	<-done
}

func TestOpen_bindsChunksAndMessagesToTheirPlace(t *testing.T) {
	s := newTestStore(t, nil)
	sid := newSession(t, s)
	key, err := s.DataKey(t.Context(), sid)
	require.NoError(t, err)
	head := sessionstore.Header{
		Type: sessionstore.TypeAIResponse, SessionID: sid, MessageID: "a1", Sender: sessionstore.SenderAI, Attempt: 2, Chunk: 3,
	}
	sealed := key.Seal(sessionstore.Body{Delta: "piece"}.Fragment(), seal.ChunkAD(sid, "a1", 2, 3))
	m, err := s.open(t.Context(), sid, "1-a", 0, head.Fragment(), sealed)
	require.NoError(t, err)
	ev, err := sessionstore.ParseFrame(m.Frame)
	require.NoError(t, err)
	require.Equal(t, "piece", ev.Delta)
	require.Equal(t, 3, m.Chunk)
	require.Equal(t, "piece", string(m.Delta))

	head.Chunk = 4
	_, err = s.open(t.Context(), sid, "1-a", 0, head.Fragment(), sealed)
	require.ErrorIs(t, err, sessionstore.ErrUnsealed, "a chunk was moved")
	_, err = s.open(t.Context(), sid, "1-a", 0, []byte("no json"), nil)
	require.ErrorIs(t, err, errRecord)
}

// silencer is a TCP proxy to the test's Redis that can stop delivering on the connections it has.
type silencer struct {
	ln    net.Listener
	up    string // address of Redis
	mu    sync.Mutex
	quiet []chan struct{}
	wg    sync.WaitGroup
}

func newSilencer(t *testing.T) *silencer {
	t.Helper()
	ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", rig.FreePort()))
	require.NoError(t, err)
	p := &silencer{ln: ln, up: sharedRedis(t).Addr}
	ctx, cancel := context.WithCancel(context.Background())
	p.wg.Go(func() {
		for {
			c, err := p.ln.Accept()
			if err != nil {
				return
			}
			p.wg.Go(func() { p.pipe(ctx, c) })
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = p.ln.Close()
		p.wg.Wait()
	})
	return p
}

func (p *silencer) addr() string { return p.ln.Addr().String() }

func (p *silencer) pipe(ctx context.Context, down net.Conn) {
	up, err := net.Dial("tcp", p.up)
	if err != nil {
		_ = down.Close()
		return
	}
	quiet := make(chan struct{})
	p.mu.Lock()
	p.quiet = append(p.quiet, quiet)
	p.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = up.Close(); _ = down.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(up, down); _ = up.Close() })
	buf := make([]byte, 4096)
	for {
		n, err := up.Read(buf)
		if err != nil {
			break
		}
		select {
		case <-quiet: // swallowed
		default:
			_, _ = down.Write(buf[:n]) // a peer that has gone shows at the next read
		}
	}
	_ = down.Close()
	wg.Wait()
}

// silence swallows all that comes from Redis on the present connections; new ones work.
func (p *silencer) silence() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range p.quiet {
		close(q)
	}
	p.quiet = nil
}
