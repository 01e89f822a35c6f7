package hub_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
)

func TestNew_namesEveryWrongOption(t *testing.T) {
	_, err := hub.New(hub.Options{QueueBytes: -1, Idle: -time.Second})
	require.ErrorContains(t, err, "source is missing")
	require.ErrorContains(t, err, "queue bytes is negative")
	require.ErrorContains(t, err, "idle is negative")
}

// Promise 4: a WebSocket works in both directions.
func TestClient_worksInBothDirections(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	th.handler.frame = func(_ context.Context, c *hub.Client, data []byte) { c.Send(append([]byte("echo "), data...)) }
	c, ws := th.dialWith(t, &websocket.DialOptions{Subprotocols: []string{"bearer.x", "chatbox.v1"}})
	require.Equal(t, "chatbox.v1", ws.Subprotocol())
	require.Equal(t, "r1.1", c.ID())
	for _, size := range []int{0, 1, 125, 126, 4096, 5000, 65535, 65536} {
		text := strings.Repeat("x", size)
		require.NoError(t, ws.Write(context.Background(), websocket.MessageText, []byte(text)))
		require.Equal(t, "echo "+text, read(t, ws))
	}
	c.Send(bytes.Repeat([]byte("y"), 300<<10))
	require.Len(t, read(t, ws), 300<<10)
}

// Promise 12: messages are processed in the order in which they arrived, one at a time, however slow that is.
func TestClient_handlesFramesInOrderOneAtATime(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	const n = 300
	var busy sync.Mutex
	var got []string
	all := make(chan struct{})
	th.handler.frame = func(_ context.Context, _ *hub.Client, data []byte) {
		if !busy.TryLock() {
			t.Error("two frames of one client at the same time")
			return
		}
		defer busy.Unlock()
		if got = append(got, string(data)); len(got) == n {
			close(all)
		}
	}
	_, ws := th.dial(t)
	for i := range n {
		require.NoError(t, ws.Write(context.Background(), websocket.MessageText, fmt.Append(nil, i)))
	}
	<-all
	for i := range n {
		require.Equal(t, fmt.Sprint(i), got[i])
	}
}

func TestClient_thatSendsFasterThanItIsHandledIsHeldBack(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	release := make(chan struct{})
	var mu sync.Mutex
	handled := 0
	th.handler.frame = func(context.Context, *hub.Client, []byte) {
		<-release
		mu.Lock()
		handled++
		mu.Unlock()
	}
	_, ws := th.dial(t)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	frame := bytes.Repeat([]byte("x"), 60<<10)
	sent := 0
	for ws.Write(ctx, websocket.MessageText, frame) == nil {
		sent++
		require.Less(t, sent, 2000, "the hub took everything")
	}
	close(release)
	gone(t, th)
	mu.Lock()
	defer mu.Unlock()
	require.GreaterOrEqual(t, handled, sent-1, "what was taken is handled, also after the peer has left")
}

// Promise 9: a frame that is too large is answered, then the connection is closed.
func TestClient_withOversizeFrameGetsErrorThenClose(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	th.handler.oversize = func(c *hub.Client) { c.Close(hub.CodeTooBig, "64 KiB at most", []byte("error TOO_LARGE")) }
	_, ws := th.dial(t)
	go func() { _ = ws.Write(context.Background(), websocket.MessageText, make([]byte, 1<<20)) }()
	require.Equal(t, "error TOO_LARGE", read(t, ws))
	require.Equal(t, hub.CodeTooBig, closeCode(t, ws))
	require.Equal(t, hub.CodeTooBig, gone(t, th))
}

func TestClient_withLargestFrameIsHeard(t *testing.T) {
	th := newTestHub(t, hub.Options{MaxFrame: 100})
	sizes := make(chan int, 1)
	th.handler.frame = func(_ context.Context, _ *hub.Client, data []byte) { sizes <- len(data) }
	_, ws := th.dial(t)
	require.NoError(t, ws.Write(context.Background(), websocket.MessageText, make([]byte, 100)))
	require.Equal(t, 100, <-sizes)
	require.NoError(t, ws.Write(context.Background(), websocket.MessageText, make([]byte, 101)))
	require.Equal(t, hub.CodeTooBig, closeCode(t, ws), "closed by the hub when the handler does not")
}

// Promise 9: what is not UTF-8 is answered, then the connection is closed.
func TestClient_withInvalidUTF8GetsErrorThenClose(t *testing.T) {
	for name, send := range map[string]func(ws *websocket.Conn) error{
		"text": func(ws *websocket.Conn) error {
			return ws.Write(context.Background(), websocket.MessageText, []byte("\xff\xfe"))
		},
		"binary": func(ws *websocket.Conn) error {
			return ws.Write(context.Background(), websocket.MessageBinary, []byte("{}"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			th := newTestHub(t, hub.Options{})
			th.handler.frame = func(context.Context, *hub.Client, []byte) { t.Error("delivered") }
			th.handler.notUTF8 = func(c *hub.Client) { c.Close(hub.CodeInvalid, "", []byte("error BAD_FRAME")) }
			_, ws := th.dial(t)
			require.NoError(t, send(ws))
			require.Equal(t, "error BAD_FRAME", read(t, ws))
			require.Equal(t, hub.CodeInvalid, closeCode(t, ws))
		})
	}
}

// Promise 5: a WebSocket ping frame gets its pong.
func TestClient_pingFrameIsAnswered(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	_, ws := th.dial(t)
	go func() { _, _, _ = ws.Read(context.Background()) }()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	require.NoError(t, ws.Ping(ctx))
}

// Promise 34: after a fatal error the client gets the error first, then a clean close.
func TestClose_sendsWhatIsQueuedAndTheLastFramesFirst(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	c, ws := th.dial(t)
	for i := range 100 {
		c.Send(fmt.Append(nil, i))
	}
	c.Close(hub.CodeEnded, "session ended", []byte("last 1"), []byte("last 2"))
	c.Close(hub.CodeProtocol, "too late", []byte("never"))
	require.False(t, c.Send([]byte("never")))
	for i := range 100 {
		require.Equal(t, fmt.Sprint(i), read(t, ws))
	}
	require.Equal(t, "last 1", read(t, ws))
	require.Equal(t, "last 2", read(t, ws))
	require.Equal(t, hub.CodeEnded, closeCode(t, ws))
	require.Equal(t, hub.CodeEnded, gone(t, th))
	require.Error(t, c.Context().Err())
}

func TestClose_ofPeerThatIsSilentDoesNotWaitForIt(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	c, _ := th.dial(t) // nobody reads, so nobody answers the close frame
	begin := time.Now()
	c.Close(hub.CodeForbidden, "")
	require.Equal(t, hub.CodeForbidden, gone(t, th))
	require.Less(t, time.Since(begin), 4*time.Second)
}

// Promise 7: when a connection closes, nothing of it remains.
func TestClose_leavesNothing(t *testing.T) {
	ends := map[string]func(c *hub.Client, ws *websocket.Conn){
		"by the server":       func(c *hub.Client, _ *websocket.Conn) { c.Close(hub.CodeNormal, "bye") },
		"by the peer":         func(_ *hub.Client, ws *websocket.Conn) { _ = ws.Close(websocket.StatusGoingAway, "") },
		"by a broken socket":  func(_ *hub.Client, ws *websocket.Conn) { _ = ws.CloseNow() },
		"by both":             func(c *hub.Client, ws *websocket.Conn) { go c.Close(hub.CodeNormal, ""); _ = ws.Close(1000, "") },
		"while catching up":   func(c *hub.Client, ws *websocket.Conn) { _ = c.Join("other", hub.Position{}, nil); _ = ws.CloseNow() },
		"while being sent to": func(c *hub.Client, ws *websocket.Conn) { c.Send(make([]byte, 900<<10)); _ = ws.CloseNow() },
		"with an expectation": func(c *hub.Client, ws *websocket.Conn) { c.Expect("s", "k", nil); _ = ws.CloseNow() },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			th := newTestHub(t, hub.Options{})
			c, ws := th.dial(t)
			require.NoError(t, c.Join("s", hub.Position{}, []byte("live")))
			require.Equal(t, "live", read(t, ws))
			watched := c.Context()
			go func() { _, _, _ = ws.Read(context.Background()) }()
			end(c, ws)
			gone(t, th)
			require.Zero(t, th.Len())
			require.Zero(t, th.Topic("s"))
			require.Eventually(t, func() bool { return th.Topics() == 0 }, 5*time.Second, time.Millisecond, "subscription left")
			require.ErrorIs(t, watched.Err(), context.Canceled)
			require.ErrorIs(t, c.Join("s", hub.Position{}, nil), hub.ErrClosed)
			_, ok := c.Cursor("s")
			require.False(t, ok)
			select {
			case <-th.handler.closed:
				t.Fatal("Closed was called twice")
			default:
			}
		})
	}
}

// A client that was accepted at the last moment may join after the hub has ended; nothing of that remains either.
func TestJoin_afterTheEndOfTheHub(t *testing.T) {
	h, err := hub.New(hub.Options{Source: newSource()})
	require.NoError(t, err)
	th := &testHub{Hub: h, handler: &handler{closed: make(chan hub.Code, 1)}, accepted: make(chan *hub.Client, 1)}
	th.url = serveHTTP(t, http.HandlerFunc(th.serve))
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- h.Run(ctx) }()
	c, ws := th.dial(t)
	go func() { _, _, _ = ws.Read(context.Background()) }()
	cancel()
	require.NoError(t, <-stopped)
	require.ErrorIs(t, c.Join("s", hub.Position{}, nil), hub.ErrClosed)
	require.Zero(t, h.Topics())
}

func TestClose_ofClientThatWasNeverStarted(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	server := make(chan *hub.Client, 1)
	mux := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := th.Accept(w, r, hub.AcceptOptions{ID: "x", Handler: th.handler})
		assert.NoError(t, err)
		server <- c
	})
	th.url = serveHTTP(t, mux)
	ws, _, err := websocket.Dial(context.Background(), th.url, nil)
	require.NoError(t, err)
	defer ws.CloseNow()
	(<-server).Close(hub.CodeTooMany, "", []byte("error CONNECTION_LIMIT"))
	require.Equal(t, "error CONNECTION_LIMIT", read(t, ws))
	require.Equal(t, hub.CodeTooMany, closeCode(t, ws))
	gone(t, th)
}

func TestContext_carriesDerivedContexts(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	c, ws := th.dial(t)
	derived, cancel := context.WithTimeout(c.Context(), time.Hour)
	defer cancel()
	dropped, drop := context.WithCancel(c.Context())
	drop()
	require.Error(t, dropped.Err())
	require.NoError(t, derived.Err())
	_ = ws.CloseNow()
	<-derived.Done()
	gone(t, th)
	late, cancelLate := context.WithCancel(c.Context())
	defer cancelLate()
	require.ErrorIs(t, late.Err(), context.Canceled)

	// Package context calls AfterFunc with a lock held that f takes.
	var mu sync.Mutex
	called := make(chan struct{})
	mu.Lock()
	c.Context().(interface{ AfterFunc(func()) func() bool }).AfterFunc(func() {
		mu.Lock()
		defer mu.Unlock()
		close(called)
	})
	mu.Unlock()
	<-called
}

func TestHandler_thatPanicsCostsOneClient(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	th.handler.frame = func(context.Context, *hub.Client, []byte) { panic("bad day") }
	_, ws := th.dial(t)
	_, other := th.dial(t)
	require.NoError(t, ws.Write(context.Background(), websocket.MessageText, []byte("{}")))
	require.Equal(t, hub.CodeInternal, closeCode(t, ws))
	gone(t, th)
	require.Equal(t, 1, th.Len())
	_ = other.CloseNow()
}

// A client that reads nothing is closed, and nobody else notices. Promise 8.
func TestSlowClient_isClosedWhileOthersAreNotDisturbed(t *testing.T) {
	slow := make(chan string, 1)
	th := newTestHub(t, hub.Options{QueueBytes: 64 << 10, WriteWait: 500 * time.Millisecond, OnSlow: func(c *hub.Client) { slow <- c.ID() }})
	th.source.pageSize = 1000
	sleeper, _ := th.stalled(t)
	c, ws := th.dial(t)
	for _, c := range []*hub.Client{sleeper, c} {
		require.NoError(t, c.Join("s", hub.Position{}, []byte("live")))
	}
	require.Equal(t, "live", read(t, ws))
	require.Eventually(t, func() bool { return th.Topic("s") == 2 }, time.Second, time.Millisecond)

	big := strings.Repeat("x", 32<<10)
	deadline := time.Now().Add(20 * time.Second)
	for n := int64(1); th.Len() == 2; n++ {
		require.True(t, time.Now().Before(deadline), "slow client was not closed")
		begin := time.Now()
		th.source.append("s", big)
		require.Less(t, time.Since(begin), 400*time.Millisecond, "publish waited")
		require.Contains(t, read(t, ws), fmt.Sprintf("event s 1 %d ", n))
	}
	require.Equal(t, hub.CodeSlow, gone(t, th))
	require.Equal(t, "r1.1", <-slow)
	require.Equal(t, 1, th.Topic("s"))
}

// A client that is slow but alive learns why it is closed.
func TestSlowClient_thatReadsAgainInTimeSeesTheCode(t *testing.T) {
	th := newTestHub(t, hub.Options{QueueBytes: 64 << 10, WriteWait: 10 * time.Second})
	c, ws := th.dial(t)
	for c.Send(make([]byte, 16<<10)) {
	}
	require.Equal(t, hub.CodeSlow, closeCode(t, ws))
	require.Equal(t, hub.CodeSlow, gone(t, th))
}

// Promise 8: any number of users connect at the same time without disturbing each other.
func TestThousandClients_eachGetTheirOwn(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	const n = 1000
	conns := make([]*websocket.Conn, n)
	for i := range conns {
		c, ws := th.dial(t)
		conns[i] = ws
		require.NoError(t, c.Join(fmt.Sprintf("s%d", i), hub.Position{}, []byte("live")))
		require.NoError(t, c.Join("all", hub.Position{}, nil))
	}
	for i := range conns {
		require.Equal(t, "live", read(t, conns[i]))
	}
	require.Equal(t, n, th.Len())
	require.Eventually(t, func() bool { return th.Topic("all") == n }, 10*time.Second, 5*time.Millisecond)
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() { th.source.append(fmt.Sprintf("s%d", i), fmt.Sprint("k", i)) })
	}
	wg.Wait()
	for i := range conns {
		require.Equal(t, fmt.Sprintf("event s%d 1 1 k%d", i, i), read(t, conns[i]))
	}
	th.source.append("all", "k")
	for i := range conns {
		require.Equal(t, "event all 1 1 k", read(t, conns[i]))
	}
	for _, ws := range conns {
		_ = ws.CloseNow()
	}
	for range conns {
		gone(t, th)
	}
}
