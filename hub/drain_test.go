package hub_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
)

// Beyond B6: clients get a hint and 1012, spread over time, and nobody is let in meanwhile.
func TestDrain_hintsThenClosesSpreadOverTime(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	const n, spread = 100, 500 * time.Millisecond
	conns := make([]*websocket.Conn, n)
	for i := range conns {
		_, conns[i] = th.dial(t)
	}
	type end struct {
		after time.Duration
		at    time.Time
		code  hub.Code
	}
	ends := make(chan end, n)
	for _, ws := range conns {
		go func() {
			var e end
			_, b, err := ws.Read(context.Background())
			if err == nil {
				_, _ = fmt.Sscan(strings.TrimPrefix(string(b), "draining "), &e.after)
				_, _, err = ws.Read(context.Background())
			}
			e.code, e.at = hub.Code(websocket.CloseStatus(err)), time.Now()
			ends <- e
		}()
	}
	hint := func(after time.Duration) []byte { return fmt.Appendf(nil, "draining %d", after) }
	require.NoError(t, th.Drain(context.Background(), hint, spread))
	require.Zero(t, th.Len())
	afters := map[time.Duration]bool{}
	var first, last time.Time
	for range n {
		e := <-ends
		require.Equal(t, hub.CodeDrain, e.code)
		require.Less(t, e.after, spread)
		afters[e.after] = true
		if first.IsZero() || e.at.Before(first) {
			first = e.at
		}
		if e.at.After(last) {
			last = e.at
		}
	}
	require.Greater(t, len(afters), n/2, "reconnect times are staggered")
	require.Greater(t, last.Sub(first), spread/2, "closes are spread")

	_, resp, err := websocket.Dial(context.Background(), th.url, nil)
	require.Error(t, err)
	require.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
}

// Silent peers do not hold up the others: closes run side by side.
func TestDrain_ofManySilentPeersTakesAsLongAsOfOne(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	for range 200 {
		th.dial(t)
	}
	begin := time.Now()
	require.NoError(t, th.Drain(context.Background(), nil, 0))
	require.Less(t, time.Since(begin), 4*time.Second)
}

func TestDrain_reportsWhoIsLeftWhenItsTimeIsUp(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	for range 3 {
		th.dial(t)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err := th.Drain(ctx, nil, 0)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "3 clients left")
}

// drainingWriter lets the hub drain between the check and the upgrade of a request.
type drainingWriter struct {
	http.ResponseWriter
	hub *hub.Hub
}

func (w *drainingWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if err := w.hub.Drain(context.Background(), nil, 0); err != nil {
		return nil, nil, err
	}
	return http.NewResponseController(w.ResponseWriter).Hijack()
}

// Beyond B6: a client whose upgrade crosses the beginning of a drain sees 1012, like everybody else.
func TestDrain_crossingAnUpgradeCloses1012(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	accepted := make(chan error, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := th.Accept(&drainingWriter{w, th.Hub}, r, hub.AcceptOptions{ID: "r1.1", Handler: th.handler})
		accepted <- err
	}))
	defer server.Close()
	ws, _, err := websocket.Dial(context.Background(), server.URL, nil)
	require.NoError(t, err)
	defer func() { _ = ws.CloseNow() }()
	require.ErrorIs(t, <-accepted, hub.ErrDraining)
	_, _, err = ws.Read(context.Background())
	require.EqualValues(t, hub.CodeDrain, websocket.CloseStatus(err))
}
