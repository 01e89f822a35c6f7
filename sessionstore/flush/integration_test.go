package flush_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/internal/rig/rigtest"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/archive"
	"github.com/real-rm/chatbox/sessionstore/flush"
)

// fill gives an entry of the model a header that the archive can read.
func fill(e sessionstore.WALEntry) sessionstore.WALEntry {
	e.Epoch = "1-a"
	e.H = sessionstore.Header{
		Type: sessionstore.TypeUserMessage, SessionID: e.SessionID, MessageID: fmt.Sprint(e.Seq), Sender: sessionstore.SenderUser,
		Timestamp: time.UnixMilli(1_770_000_000_000 + e.Seq),
	}.Fragment()
	e.C = []byte{1, byte(e.Seq)}
	return e
}

// both writes to the real archive and then to the model, whose DoneWAL checks that nothing is done before it was
// written.
type both struct {
	*model
	stored *archive.Archive
}

func (b both) InsertMessages(ctx context.Context, entries []sessionstore.WALEntry) (map[int]error, error) {
	whole := make([]sessionstore.WALEntry, len(entries))
	for i, e := range entries {
		whole[i] = fill(e)
	}
	refused, err := b.stored.InsertMessages(ctx, whole)
	if err != nil {
		return refused, err
	}
	return b.model.InsertMessages(ctx, entries)
}

func (b both) SaveSessions(ctx context.Context, docs []sessionstore.SessionDoc) error {
	if err := b.stored.SaveSessions(ctx, docs); err != nil {
		return err
	}
	return b.model.SaveSessions(ctx, docs)
}

// Promise 15, 16, Beyond B2: the database is killed twice under load; afterwards the history is complete, in order, and
// has nothing twice.
func TestRun_overAKilledDatabaseTheTranscriptIsWhole(t *testing.T) {
	bin, dir, port := rigtest.FerretBinary(t), t.TempDir(), rig.FreePort()
	p, err := rig.StartFerret(t.Context(), dir, bin, port)
	rigtest.Require(t, "FerretDB", err)
	defer func() { p.Kill() }()

	stored, err := archive.New(archive.Options{URI: rig.FerretURI(p), Timeout: 2 * time.Second})
	require.NoError(t, err)
	defer func() { require.NoError(t, stored.Close(context.Background())) }()
	m := newModel()
	f, err := flush.New(flush.Options{Store: m, Archive: both{m, stored}, Every: 10 * time.Millisecond, Batch: 20})
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { _ = f.Run(ctx) })

	const each = 150
	finished := func() int {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.order)
	}
	for seq := int64(1); seq <= each; seq++ {
		for s := range 4 {
			m.put(s, fmt.Sprintf("p%02d-s", s), seq)
		}
		if seq%50 == 0 && seq < each {
			// Kill it when it is known to be in the middle of the stream, and let the flusher see that.
			require.Eventually(t, func() bool { return finished() > 0 }, 30*time.Second, time.Millisecond)
			p.Kill()
			m.put(0, "p00-extra", seq)
			require.Eventually(t, func() bool { return !f.Stats().AwaySince.IsZero() }, 30*time.Second, time.Millisecond)
			p, err = rig.StartFerret(t.Context(), dir, bin, port)
			require.NoError(t, err)
		}
	}
	require.Eventually(t, func() bool { return m.left() == 0 }, time.Minute, 10*time.Millisecond)
	cancel()
	wg.Wait()
	require.NoError(t, f.Flush(t.Context()))

	require.Empty(t, m.wrong)
	require.Empty(t, m.dead)
	for s := range 4 {
		sid := fmt.Sprintf("p%02d-s", s)
		got, err := stored.Messages(t.Context(), sid, 0, 1000)
		require.NoError(t, err)
		require.Len(t, got, each)
		for i, g := range got {
			require.EqualValues(t, i+1, g.Seq)
		}
		d, found, err := stored.Session(t.Context(), sid)
		require.NoError(t, err)
		require.True(t, found)
		require.EqualValues(t, each, d.Session.Seq)
	}
}
