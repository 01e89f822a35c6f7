package hub_test

import (
	"context"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
)

// pipes is a listener whose connections never leave the process, so that time can be faked.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	end   chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.end:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.end) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
	near, far := net.Pipe()
	p.conns <- far
	return near, nil
}

type dialFunc func(onPing func(context.Context, []byte) bool) *websocket.Conn

// inBubble runs f with a hub whose clock is fake.
func inBubble(t *testing.T, opts hub.Options, f func(t *testing.T, th *testHub, dial dialFunc)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		src := newSource()
		opts.Source = src
		h, err := hub.New(opts)
		require.NoError(t, err)
		src.hub = h
		th := &testHub{Hub: h, source: src, handler: &handler{closed: make(chan hub.Code, 10)}, accepted: make(chan *hub.Client, 1)}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = h.Run(ctx) })
		p := &pipes{conns: make(chan net.Conn), end: make(chan struct{})}
		server := &http.Server{Handler: http.HandlerFunc(th.serve)}
		wg.Go(func() { _ = server.Serve(p) })
		client := &http.Client{Transport: &http.Transport{DialContext: p.dial}}
		f(t, th, func(onPing func(context.Context, []byte) bool) *websocket.Conn {
			ws, _, err := websocket.Dial(t.Context(), "ws://hub", &websocket.DialOptions{HTTPClient: client, OnPingReceived: onPing})
			require.NoError(t, err)
			return ws
		})
		cancel()
		_ = server.Close()
		client.CloseIdleConnections()
		wg.Wait()
		require.Zero(t, h.Len())
	})
}

// Promise 5: no ping or other frame for 90 s: the server closes; never earlier.
func TestIdle_closesAfterNinetySecondsOfSilence(t *testing.T) {
	inBubble(t, hub.Options{}, func(t *testing.T, th *testHub, dial dialFunc) {
		t.Helper()
		ws := dial(nil)
		<-th.accepted
		begin := time.Now()
		_, _, err := ws.Read(t.Context())
		require.Equal(t, websocket.StatusCode(hub.CodeHeartbeat), websocket.CloseStatus(err))
		require.GreaterOrEqual(t, time.Since(begin), 90*time.Second)
		require.Less(t, time.Since(begin), 93*time.Second)
		require.Equal(t, hub.CodeHeartbeat, <-th.handler.closed)
	})
}

// Promise 5: frames and ping frames are signs of life, also when the server pings and its pongs come back.
func TestIdle_messagesAndPingsAreLifePongsAreNot(t *testing.T) {
	inBubble(t, hub.Options{PingEvery: 54 * time.Second}, func(t *testing.T, th *testHub, dial dialFunc) {
		t.Helper()
		ws := dial(nil) // answers pings while it reads
		<-th.accepted
		ended := make(chan time.Time, 1)
		go func() {
			_, _, _ = ws.Read(t.Context())
			ended <- time.Now()
		}()
		for range 3 {
			time.Sleep(80 * time.Second)
			require.NoError(t, ws.Write(t.Context(), websocket.MessageText, []byte("{}")))
			time.Sleep(80 * time.Second)
			require.NoError(t, ws.Ping(t.Context()))
		}
		last := time.Now()
		silence := (<-ended).Sub(last)
		require.GreaterOrEqual(t, silence, 90*time.Second)
		require.Less(t, silence, 93*time.Second)
		require.Equal(t, hub.CodeHeartbeat, <-th.handler.closed)
	})
}

func TestPing_isSentByTheServerEveryPeriod(t *testing.T) {
	inBubble(t, hub.Options{PingEvery: 20 * time.Second}, func(t *testing.T, th *testHub, dial dialFunc) {
		t.Helper()
		var mu sync.Mutex
		var pings []time.Duration
		begin := time.Now()
		ws := dial(func(context.Context, []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			pings = append(pings, time.Since(begin))
			return true
		})
		<-th.accepted
		_, _, _ = ws.Read(t.Context())
		mu.Lock()
		defer mu.Unlock()
		require.Len(t, pings, 4)
		for i, at := range pings {
			require.InDelta(t, float64(20*(i+1)), at.Seconds(), 2.5*float64(i+1))
		}
	})
}

// A peer that takes nothing is given up after WriteWait, also where writing cannot be tried first.
func TestWriteWait_endsAWriteThatNobodyTakes(t *testing.T) {
	inBubble(t, hub.Options{}, func(t *testing.T, th *testHub, dial dialFunc) {
		t.Helper()
		ws := dial(nil)
		defer ws.CloseNow()
		c := <-th.accepted
		begin := time.Now()
		c.Send([]byte("nobody reads this from the pipe"))
		require.Equal(t, hub.CodeSlow, <-th.handler.closed)
		require.Equal(t, 10*time.Second, time.Since(begin))
	})
}

// Frames keep their order also where a goroutine has to write them.
func TestWrite_keepsOrderOverPipes(t *testing.T) {
	inBubble(t, hub.Options{}, func(t *testing.T, th *testHub, dial dialFunc) {
		t.Helper()
		ws := dial(nil)
		c := <-th.accepted
		for i := range 200 {
			c.Send([]byte{byte(i/100) + '0', byte(i/10%10) + '0', byte(i%10) + '0'})
		}
		c.Close(hub.CodeNormal, "")
		for i := range 200 {
			_, b, err := ws.Read(t.Context())
			require.NoError(t, err)
			require.Equal(t, string([]byte{byte(i/100) + '0', byte(i/10%10) + '0', byte(i%10) + '0'}), string(b))
		}
		_, _, err := ws.Read(t.Context())
		require.Equal(t, websocket.StatusNormalClosure, websocket.CloseStatus(err))
	})
}

// The source fails, then works: the pauses in between grow from 50 ms to 2 s, each at least half as long.
func TestSource_isTriedAgainWithPauses(t *testing.T) {
	inBubble(t, hub.Options{}, func(t *testing.T, th *testHub, dial dialFunc) {
		t.Helper()
		ws := dial(nil)
		c := <-th.accepted
		require.NoError(t, c.Join("s", hub.Position{}, []byte("live")))
		_, _, err := ws.Read(t.Context())
		require.NoError(t, err)
		th.source.set(func() { th.source.fail, th.source.reads = true, 0 })
		th.Resync("s")
		time.Sleep(time.Minute)
		th.source.set(func() {
			require.Greater(t, th.source.reads, 30)
			require.Less(t, th.source.reads, 70)
		})
		_ = ws.Close(websocket.StatusNormalClosure, "")
		<-th.handler.closed
	})
}
