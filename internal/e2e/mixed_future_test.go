//go:build faults

package e2e

import (
	"bytes"
	"context"
	"net"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// later makes of the events that pass through a client what a later version may write: more in the clear part of an event,
// and more in the sealed one.
type later struct{ body []byte }

var reaction = []byte(`"type":"reaction"`)

func (l later) rewrite(cmd redis.Cmder) {
	args := cmd.Args()
	for i := range len(args) - 1 {
		if h, ok := args[i].([]byte); ok && bytes.HasPrefix(h, reaction) {
			args[i] = append(bytes.Clone(h), `,"mood":{"x":[1]},"weight":2.5`...)
			args[i+1] = l.body
		}
	}
}

// DialHook changes nothing.
func (l later) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, addr string) (net.Conn, error) { return next(ctx, network, addr) }
}

// ProcessHook rewrites one command.
func (l later) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		l.rewrite(cmd)
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook rewrites many.
func (l later) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			l.rewrite(cmd)
		}
		return next(ctx, cmds)
	}
}

// fromTheFuture writes into a session as a later version may: an event of an unknown type with unknown fields in both of its
// parts, and an unknown field of the session itself. It returns the event's seq.
func (c *cluster) fromTheFuture(sid string) int64 {
	c.t.Helper()
	ctx := c.t.Context()
	client, err := live.Connect(live.ConnectOptions{URL: c.redisAt(c.redis.Addr)})
	require.NoError(c.t, err)
	c.t.Cleanup(func() { _ = client.Close() })
	s, err := live.New(live.Options{Client: client, Keyring: c.keyring, Replica: "later"})
	require.NoError(c.t, err)
	key, err := s.DataKey(ctx, sid)
	require.NoError(c.t, err)
	id := uuid.NewString()
	client.AddHook(later{body: key.Seal([]byte(`"content":"from the future","shape":["round",null]`), seal.MessageAD(sid, id))})
	got, err := s.Append(ctx, sessionstore.Append{Event: sessionstore.Event{
		Header: sessionstore.Header{Type: "reaction", SessionID: sid, MessageID: id, Sender: sessionstore.SenderSystem},
		Body:   sessionstore.Body{Content: "replaced on the way"},
	}})
	require.NoError(c.t, err)
	require.NoError(c.t, c.client.HSet(ctx, "rt:{"+sid[:3]+"}:s:"+sid, "later", "1").Err())
	return got.Seq
}
