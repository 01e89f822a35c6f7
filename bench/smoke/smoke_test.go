package smoke

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Figures are for people to judge: here only what became of the messages counts. The rows must be there, so that a
// run that measures nothing does not pass.
func TestRun_losesDoublesAndReordersNothing(t *testing.T) {
	if err := Missing(); err != nil {
		if os.Getenv("CHATBOX_REQUIRE_SERVICES") == "1" {
			t.Fatalf("redis-server is required here: %v", err)
		}
		t.Skipf("skipped, redis-server is not available: %v", err)
	}
	if testing.Short() {
		t.Skip("skipped, starts two systems and loads them")
	}
	report, err := Run(t.Context(), Options{
		Conns: 50, Sessions: 25, Rate: 200, Duration: 2 * time.Second, Rounds: 1, Streams: 5, Settle: 200 * time.Millisecond,
		Progress: t.Output(),
	})
	require.NoError(t, err)
	require.NoError(t, report.Print(t.Output()))
	c := report.Ours
	assert.Greater(t, c.sent, int64(400))
	assert.Zero(t, c.lost, "lost")           // Promise 15
	assert.Zero(t, c.doubled, "doubled")     // Beyond B7
	assert.Zero(t, c.unordered, "unordered") // Promise 12: order is preserved.
	assert.Zero(t, c.unacked, "not acknowledged")
	assert.Empty(t, c.faults)
	for _, row := range report.Rows {
		assert.NotEmpty(t, row.ours, row.Name)
	}
}
