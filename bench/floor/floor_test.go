package floor

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/real-rm/chatbox/bench/wire"
	"github.com/real-rm/chatbox/internal/rig/rigtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServer_relaysARoomOverProcessesAndNoOther(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: rigtest.Redis(t).Addr})
	t.Cleanup(func() { _ = client.Close() })
	var addrs []string
	for range 2 {
		s := New(client)
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		h := httptest.NewServer(s)
		addrs = append(addrs, strings.TrimPrefix(h.URL, "http://"))
		t.Cleanup(func() {
			h.Close()
			cancel()
			assert.NoError(t, <-done)
		})
	}
	open := func(server int, room string) *wire.Conn {
		t.Helper()
		c, err := wire.Dial(t.Context(), addrs[server], "/?room="+room)
		require.NoError(t, err)
		require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	a, b, other := open(0, "r"), open(1, "r"), open(1, "o")
	require.Eventually(t, func() bool {
		n := client.PubSubNumSub(t.Context(), "r", "o").Val()
		return n["r"] == 2 && n["o"] == 1
	}, 10*time.Second, 5*time.Millisecond)
	for i := range 20 {
		text := fmt.Sprintf(`{"room":"r","text":"%d"}`, i)
		require.NoError(t, a.Write([]byte(text)))
		for _, c := range []*wire.Conn{a, b} {
			got, err := c.Next()
			require.NoError(t, err)
			require.Equal(t, text, string(got))
		}
	}
	require.NoError(t, other.Write([]byte(`{"room":"o","text":"x"}`)))
	got, err := other.Next()
	require.NoError(t, err)
	assert.JSONEq(t, `{"room":"o","text":"x"}`, string(got), "nothing of the other room came before it")
}
