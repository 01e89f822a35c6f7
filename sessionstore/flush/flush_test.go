package flush_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/flush"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	errAway   = fmt.Errorf("no server: %w", sessionstore.ErrArchive)
	errFenced = errors.New("another keeper")
)

func TestNew_namesEverythingThatIsMissing(t *testing.T) {
	_, err := flush.New(flush.Options{Every: -1})
	require.ErrorContains(t, err, "Store")
	require.ErrorContains(t, err, "Archive")
	require.ErrorContains(t, err, "negative")
}

// Promise 15: every message is stored.
func TestRun_movesEverythingInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel()
		f := newFlusher(t, m, flush.Options{Batch: 3})
		var want []string
		for seq := int64(1); seq <= 20; seq++ {
			m.put(0, "p00-a", seq)
			want = append(want, fmt.Sprintf("p00-a/%d", seq))
		}
		running(t, f, func() {
			time.Sleep(time.Millisecond) // a full batch is followed at once by the next
			synctest.Wait()
			require.Zero(t, m.left())
			require.Equal(t, want, m.order)
			require.EqualValues(t, 20, m.saved["p00-a"])

			m.put(1, "p01-b", 1)
			time.Sleep(198 * time.Millisecond)
			synctest.Wait()
			require.Equal(t, 2, m.left(), "gathers until 200 ms after the last round")
			time.Sleep(2 * time.Millisecond)
			synctest.Wait()
			require.Zero(t, m.left())
			require.Zero(t, f.Stats().Lag)
		})
		require.Empty(t, m.wrong)
	})
}

// Beyond B2: a flusher that is killed between write and delete doubles nothing.
func TestRun_aLostReplyIsRepeatedAndStoredOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel()
		m.put(0, "p00-a", 1)
		m.put(0, "p00-a", 2)
		lost := 0
		m.insertFn = func(entries []sessionstore.WALEntry) (int, map[int]error, error) {
			if lost++; lost == 1 {
				return len(entries), nil, errAway // written, but nobody was told
			}
			return len(entries), nil, nil
		}
		refusals := 0
		m.doneFn = func(sessionstore.WALBatch) (bool, error) {
			if refusals++; refusals == 1 {
				return false, errFenced
			}
			return true, nil
		}
		running(t, newFlusher(t, m, flush.Options{}), func() { time.Sleep(2 * time.Second) })
		require.Zero(t, m.left())
		require.Equal(t, []string{"p00-a/1", "p00-a/2"}, m.order)
		require.Equal(t, 3, lost, "lost reply, refused done, success")
		require.Empty(t, m.wrong)
	})
}

func TestRun_oneWarningPerOutageAndNoHotLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		m := newModel()
		m.put(0, "p00-a", 1)
		away := true
		m.insertFn = func(entries []sessionstore.WALEntry) (int, map[int]error, error) {
			if away {
				return 0, nil, errAway
			}
			return len(entries), nil, nil
		}
		f := newFlusher(t, m, flush.Options{Log: slog.New(slog.NewJSONHandler(&text, nil))})
		began := time.Now()
		running(t, f, func() {
			time.Sleep(time.Hour)
			synctest.Wait()
			// 0.1 s doubled to 30 s takes about ten tries, then one every 15 to 30 s.
			require.Less(t, m.reads, 10+3600/15)
			require.Greater(t, m.reads, 3600/30-10)
			s := f.Stats()
			require.Equal(t, began, s.AwaySince)
			require.InDelta(t, time.Hour, s.Lag, float64(time.Second))
			require.Equal(t, 1, s.Pending)
			require.Equal(t, 1, m.left()-1, "the entry waits, and its document")

			m.mu.Lock()
			away = false
			m.mu.Unlock()
			time.Sleep(31 * time.Second)
			synctest.Wait()
			require.Zero(t, m.left())
			require.Zero(t, f.Stats().AwaySince)
		})
		require.Equal(t, 1, strings.Count(text.String(), `"level":"WARN"`), text.String())
		require.Equal(t, 1, strings.Count(text.String(), "MongoDB is back"))
	})
}

func TestRun_aWALThatCannotBeReadIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		m := newModel()
		m.put(0, "p00-a", 1)
		down := true
		m.readFn = func() error {
			if down {
				return sessionstore.ErrAway
			}
			return nil
		}
		f := newFlusher(t, m, flush.Options{Log: slog.New(slog.NewJSONHandler(&text, nil))})
		running(t, f, func() {
			time.Sleep(time.Minute)
			synctest.Wait()
			require.False(t, f.Stats().StoreAwaySince.IsZero())
			m.mu.Lock()
			down = false
			m.mu.Unlock()
			time.Sleep(31 * time.Second)
		})
		require.Zero(t, m.left())
		require.True(t, f.Stats().StoreAwaySince.IsZero())
		require.Equal(t, 1, strings.Count(text.String(), `"level":"WARN"`), text.String())
	})
}

// One entry that MongoDB refuses by itself holds its partition up for a moment, the others not at all, and is set
// aside the fifth time. Nothing behind it in its partition is called done before.
func TestRun_aPoisonEntryIsSetAside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel()
		for seq := int64(1); seq <= 4; seq++ {
			m.put(0, "p00-a", seq)
		}
		m.put(1, "p01-b", 1)
		tries := 0
		m.insertFn = func(entries []sessionstore.WALEntry) (int, map[int]error, error) {
			refused := map[int]error{}
			for i, e := range entries {
				if key(e) == "p00-a/2" {
					tries++
					refused[i] = errors.New("code 10334")
				}
			}
			return len(entries), refused, nil
		}
		f := newFlusher(t, m, flush.Options{})
		running(t, f, func() {
			time.Sleep(time.Millisecond)
			synctest.Wait()
			m.mu.Lock()
			here, there, doc := len(m.wal[0]), len(m.wal[1]), m.saved["p00-a"]
			m.mu.Unlock()
			require.Zero(t, there, "another partition does not wait")
			require.Equal(t, 3, here, "what precedes the poison is done, what follows is not")
			require.Zero(t, doc, "its document waits")
			time.Sleep(2 * time.Second)
			synctest.Wait()
		})
		require.Equal(t, 5, tries)
		require.Equal(t, map[string]string{"p00-a/2": "code 10334"}, m.dead)
		require.Zero(t, m.left())
		require.EqualValues(t, 1, f.Stats().Dead)
		require.EqualValues(t, 4, m.saved["p00-a"])
		require.Empty(t, m.wrong)
	})
}

// Five refusals must be in a row: a refusal that heals is forgotten.
func TestRun_refusalsThatHealAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel()
		m.put(0, "p00-a", 1)
		round := 0
		m.insertFn = func(entries []sessionstore.WALEntry) (int, map[int]error, error) {
			round++
			if round%5 != 0 {
				return len(entries), map[int]error{0: errors.New("no")}, nil
			}
			return len(entries), nil, nil
		}
		m.doneFn = func(sessionstore.WALBatch) (bool, error) { return round >= 20, errFenced }
		running(t, newFlusher(t, m, flush.Options{}), func() { time.Sleep(10 * time.Minute) })
		require.Empty(t, m.dead)
	})
}

func TestRun_aRefusedDocumentDoesNotHoldMessagesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		m := newModel()
		m.put(0, "p00-bad", 1)
		m.put(0, "p00-good", 1)
		m.saveFn = func(docs []sessionstore.SessionDoc) error {
			for _, d := range docs {
				if d.Session.ID == "p00-bad" {
					return errors.New("refused: code 121")
				}
			}
			return nil
		}
		f := newFlusher(t, m, flush.Options{Log: slog.New(slog.NewJSONHandler(&text, nil))})
		running(t, f, func() {
			time.Sleep(10 * time.Second)
			synctest.Wait()
			require.Empty(t, m.wal[0])
			require.EqualValues(t, 1, m.saved["p00-good"])
			require.Len(t, m.docs[0], 1, "it is tried again")
			require.Equal(t, 1, f.Stats().RefusedDocs)
			m.mu.Lock()
			m.saveFn = nil
			m.mu.Unlock()
			time.Sleep(time.Second)
			synctest.Wait()
			require.Zero(t, f.Stats().RefusedDocs)
		})
		require.Zero(t, m.left())
		require.Equal(t, 1, strings.Count(text.String(), "session document refused"))
		require.Empty(t, m.wrong)
	})
}

func TestRun_messagesAreDoneWhenOnlyTheDocumentsFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel()
		m.put(0, "p00-a", 1)
		m.saveFn = func([]sessionstore.SessionDoc) error { return errAway }
		running(t, newFlusher(t, m, flush.Options{}), func() {
			time.Sleep(time.Second)
			synctest.Wait()
			require.Empty(t, m.wal[0])
			require.Len(t, m.docs[0], 1)
		})
		require.Empty(t, m.wrong)
	})
}

func TestFlush_movesWhatIsThereAndStopsAtTheFirstError(t *testing.T) {
	m := newModel()
	for seq := int64(1); seq <= 10; seq++ {
		m.put(2, "p02-a", seq)
	}
	f := newFlusher(t, m, flush.Options{Batch: 2})
	require.NoError(t, f.Flush(t.Context()))
	require.Zero(t, m.left())
	require.NoError(t, f.Flush(t.Context()), "nothing to do is fine")

	m.put(2, "p02-a", 11)
	m.insertFn = func([]sessionstore.WALEntry) (int, map[int]error, error) { return 0, nil, errAway }
	require.ErrorIs(t, f.Flush(t.Context()), sessionstore.ErrArchive)
	require.Equal(t, 2, m.left())

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.ErrorIs(t, f.Flush(ctx), context.Canceled)
}

// The store cuts what it reads by size as well, so few large entries may be a full batch.
func TestFlush_goesOnAfterABatchThatWasCutBySize(t *testing.T) {
	m := newModel()
	for seq := int64(1); seq <= 6; seq++ {
		m.put(0, "p00-a", seq)
		m.wal[0][seq-1].C = make([]byte, 300<<10)
	}
	f, err := flush.New(flush.Options{Store: cutBySize{m}, Archive: m})
	require.NoError(t, err)
	require.NoError(t, f.Flush(t.Context()))
	require.Empty(t, m.wal[0])
}

// cutBySize reads one entry at a time, as the store does with large ones.
type cutBySize struct{ *model }

// A shutdown that breaks a write off is no outage.
func TestRun_endsQuietlyInTheMiddleOfAWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		m := newModel()
		m.put(0, "p00-a", 1)
		a := &slowArchive{model: m}
		f, err := flush.New(flush.Options{Store: m, Archive: a, Log: slog.New(slog.NewJSONHandler(&text, nil))})
		require.NoError(t, err)
		running(t, f, func() {
			time.Sleep(time.Second)
			synctest.Wait()
		})
		require.Empty(t, text.String())
		require.Zero(t, f.Stats().AwaySince)
		require.Equal(t, 2, m.left())
	})
}

// slowArchive never finishes.
type slowArchive struct{ *model }
