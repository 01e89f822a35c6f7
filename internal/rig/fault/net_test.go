package fault_test

import (
	"net"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig/fault"
	"github.com/real-rm/chatbox/internal/rig/rigtest"
)

// netEnv says to a process that it runs in a namespace of its own.
const netEnv = "CHATBOX_FAULT_NET_TEST"

func TestNet_losesPacketsOfOnePortUntilHealed(t *testing.T) {
	if os.Getenv(netEnv) == "" {
		_, err := fault.NewNet(t.Context())
		if err == nil {
			t.Skip("this is a namespace without a network already")
		}
		self, err := os.Executable()
		require.NoError(t, err)
		path, args, err := fault.Isolated(t.Context(), self, "-test.run=^"+t.Name()+"$", "-test.v")
		rigtest.Require(t, "a network namespace", err)
		cmd := exec.CommandContext(t.Context(), path, args...)
		cmd.Env = append(os.Environ(), netEnv+"=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		require.Contains(t, string(out), "--- PASS: "+t.Name())
		return
	}
	n, err := fault.NewNet(t.Context())
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	reaches := func() bool {
		conn, err := net.DialTimeout("tcp", l.Addr().String(), 300*time.Millisecond)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	}
	assert.True(t, reaches())
	require.NoError(t, n.Lose(t.Context(), "all", 100, fault.Port(l.Addr().String())))
	assert.False(t, reaches())
	lost, err := n.Dropped(t.Context(), "all")
	require.NoError(t, err)
	assert.Positive(t, lost)
	require.NoError(t, n.Heal(t.Context(), "all"))
	assert.True(t, reaches())
	require.NoError(t, n.Lose(t.Context(), "some", 30, 1))
	assert.True(t, reaches(), "another port")
	_, err = n.Dropped(t.Context(), "nothing")
	require.Error(t, err)
}
