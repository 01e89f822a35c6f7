package wire

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs handle for one connection of a server that is not ours.
func serve(t *testing.T, handle func(ctx context.Context, c *websocket.Conn)) (addr string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"one"}})
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		handle(r.Context(), c)
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func dial(t *testing.T, addr string) *Conn {
	t.Helper()
	c, err := Dial(t.Context(), addr, "/", "one")
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	return c
}

func TestConn_carriesFramesOfEverySizeBothWays(t *testing.T) {
	addr := serve(t, func(ctx context.Context, c *websocket.Conn) {
		c.SetReadLimit(-1)
		for {
			_, b, err := c.Read(ctx)
			if err != nil || c.Write(ctx, websocket.MessageText, b) != nil {
				return
			}
		}
	})
	c := dial(t, addr)
	for _, n := range []int{0, 1, 125, 126, 127, 65535, 65536, 100000} {
		want := strings.Repeat("x", n)
		require.NoError(t, c.Write([]byte(want)))
		got, err := c.Next()
		require.NoError(t, err, n)
		require.Equal(t, want, string(got))
	}
}

func TestNext_answersPingsAndTellsTheCloseCode(t *testing.T) {
	addr := serve(t, func(ctx context.Context, c *websocket.Conn) {
		ctx = c.CloseRead(ctx)
		if c.Ping(ctx) == nil { // waits for the pong
			_ = c.Close(4001, "elsewhere")
		}
	})
	_, err := dial(t, addr).Next()
	var closed *CloseError
	require.ErrorAs(t, err, &closed)
	assert.Equal(t, CloseError{Code: 4001, Reason: "elsewhere"}, *closed)
}

func TestDial_saysWhatAServerAnsweredInsteadOfAnUpgrade(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	defer s.Close()
	_, err := Dial(t.Context(), strings.TrimPrefix(s.URL, "http://"), "/")
	assert.ErrorContains(t, err, "404")
}
