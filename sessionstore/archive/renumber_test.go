package archive_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// Promise 12, Beyond B2: a batch of the flusher was still on its way when Redis lost everything, and arrives after what
// it holds was sent again and got other numbers. Whichever comes first, MongoDB has each message once, under the newer
// number, which is the one that clients know.
func TestInsertMessages_underANewNumberGoesForwardOnly(t *testing.T) {
	a, _ := newArchive(t)
	old := []sessionstore.WALEntry{entry("p01-s", 5, "a"), entry("p01-s", 6, "b")}
	again := []sessionstore.WALEntry{entry("p01-s", 1006, "b"), entry("p01-s", 1007, "a")}
	for i := range again {
		again[i].Epoch = "2-y"
	}
	insert := func(in []sessionstore.WALEntry) {
		failed, err := a.InsertMessages(t.Context(), in)
		require.NoError(t, err)
		require.Empty(t, failed)
	}
	insert(old)
	insert(again)
	insert(old) // late
	got, err := a.Messages(t.Context(), "p01-s", 0, 100)
	require.NoError(t, err)
	require.Equal(t, []sessionstore.Stored{again[0].Stored, again[1].Stored}, got)
}
