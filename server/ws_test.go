package server

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOpen_smoke(t *testing.T) {
	inBubble(t, func(t *testing.T, r *replica) {
		s := r.dial(t, "ann")
		require.Equal(t, "connected, snapshot, live", s.names())
		s.say("hi")
		require.Equal(t, "ack 2", s.names())
		s.leave()
	})
}
