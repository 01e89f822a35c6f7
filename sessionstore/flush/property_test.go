package flush_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/flush"
)

// Promise 15: what was acknowledged is never lost.
// Beyond B2: nor doubled, nor reordered, whatever fails in between: reads, writes that happen without a reply, writes
// that happen in part, entries refused for a while, refused deletes, deletes whose reply is lost, and another flusher
// taking over from nothing.
func TestFlush_anyFailuresEndWithEachEntryInTheArchiveOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newModel()
		seq := map[string]int64{}
		var want []string
		put := func() {
			p := rapid.IntRange(0, 3).Draw(t, "partition")
			sid := fmt.Sprintf("p%02d-%d", p, rapid.IntRange(0, 2).Draw(t, "session"))
			seq[sid]++
			m.put(p, sid, seq[sid])
			want = append(want, fmt.Sprintf("%s/%d", sid, seq[sid]))
		}
		fail := func(name string, err error) error {
			if rapid.IntRange(0, 3).Draw(t, name) == 0 {
				return err
			}
			return nil
		}
		m.readFn = func() error { return fail("read", sessionstore.ErrAway) }
		m.insertFn = func(entries []sessionstore.WALEntry) (int, map[int]error, error) {
			switch rapid.IntRange(0, 4).Draw(t, "insert") {
			case 0:
				return rapid.IntRange(0, len(entries)).Draw(t, "written"), nil, errAway // none, some or all written
			case 1:
				i := rapid.IntRange(0, len(entries)-1).Draw(t, "refused")
				return len(entries), map[int]error{i: errors.New("code 1")}, nil
			}
			return len(entries), nil, nil
		}
		m.saveFn = func(docs []sessionstore.SessionDoc) error {
			return errors.Join(fail("away", errAway), fail("bad document", errors.New("code 2")))
		}
		m.doneFn = func(sessionstore.WALBatch) (bool, error) {
			switch rapid.IntRange(0, 4).Draw(t, "done") {
			case 0:
				return false, errFenced
			case 1:
				return true, sessionstore.ErrAway // the reply is lost
			}
			return true, nil
		}
		batch := rapid.IntRange(1, 4).Draw(t, "batch")
		f := newFlusher(t, m, flush.Options{Batch: batch})
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "step") {
			case 0:
				f = newFlusher(t, m, flush.Options{Batch: batch}) // it died; the next one knows nothing
			case 1:
				_ = f.Flush(context.Background())
			default:
				put()
			}
			require.Empty(t, m.wrong)
		}

		m.readFn, m.insertFn, m.saveFn, m.doneFn = nil, nil, nil, nil
		require.NoError(t, f.Flush(context.Background()))
		require.Zero(t, m.left())
		require.Empty(t, m.wrong)

		// Each exactly once: archived, or set aside after five refusals in a row.
		got := slices.Clone(m.order)
		for k := range m.dead {
			if m.rows[k] == 0 {
				got = append(got, k)
			}
		}
		require.ElementsMatch(t, want, got)
		for sid, last := range seq {
			require.Equal(t, last, m.saved[sid], "the document of %s is the newest", sid)
		}
	})
}
