package e2e

import (
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// chaosSeed is CHATBOX_SEED, or a new seed; it is printed, so that a run can be repeated.
func chaosSeed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("CHATBOX_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, "CHATBOX_SEED")
	}
	t.Logf("CHATBOX_SEED=%d", seed)
	return seed
}
