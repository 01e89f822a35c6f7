package flush_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/flush"
)

// model is a WAL of some partitions and an archive, in memory. Its rules are those that the real ones keep; a break
// of them by the flusher lands in wrong. The Fn fields, if set, are asked first and can fail a call.
type model struct {
	mu    sync.Mutex
	wal   map[int][]sessionstore.WALEntry
	docs  map[int][]sessionstore.SessionDoc
	rows  map[string]int // how many times an entry was really inserted, by key
	order []string       // keys in the order of their first insertion
	saved map[string]int64
	dead  map[string]string
	wrong []string
	reads int
	puts  int

	readFn   func() error
	insertFn func(entries []sessionstore.WALEntry) (n int, refused map[int]error, err error) // n: how many are written before err
	saveFn   func(docs []sessionstore.SessionDoc) error
	doneFn   func(b sessionstore.WALBatch) (applied bool, err error)
	deadFn   func(e sessionstore.WALEntry) error
}

func newModel() *model {
	return &model{
		wal: map[int][]sessionstore.WALEntry{}, docs: map[int][]sessionstore.SessionDoc{},
		rows: map[string]int{}, saved: map[string]int64{}, dead: map[string]string{},
	}
}

func key(e sessionstore.WALEntry) string { return fmt.Sprintf("%s/%d", e.SessionID, e.Seq) }

// put adds an event to a session's log, with its document.
func (m *model) put(partition int, sid string, seq int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.puts++
	m.wal[partition] = append(m.wal[partition], sessionstore.WALEntry{
		ID:     fmt.Sprintf("%d-%d", time.Now().UnixMilli(), m.puts),
		Stored: sessionstore.Stored{SessionID: sid, Seq: seq},
	})
	d := sessionstore.SessionDoc{Session: sessionstore.Session{ID: sid, Position: sessionstore.Position{Seq: seq}}}
	for i, old := range m.docs[partition] {
		if old.Session.ID == sid {
			m.docs[partition][i] = d
			return
		}
	}
	m.docs[partition] = append(m.docs[partition], d)
}

func (m *model) ReadWAL(_ context.Context, limit int) ([]sessionstore.WALBatch, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads++
	if m.readFn != nil {
		if err := m.readFn(); err != nil {
			return nil, err
		}
	}
	var out []sessionstore.WALBatch
	for p := range 4 {
		b := sessionstore.WALBatch{Partition: p, Token: "t", Inst: "i"}
		b.Entries = append(b.Entries, m.wal[p][:min(limit, len(m.wal[p]))]...)
		if b.More = len(m.wal[p]) > limit; !b.More {
			b.Docs = append(b.Docs, m.docs[p]...)
		}
		if len(b.Entries)+len(b.Docs) > 0 {
			out = append(out, b)
		}
	}
	return out, nil
}

func (m *model) InsertMessages(_ context.Context, entries []sessionstore.WALEntry) (map[int]error, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, refused, err := len(entries), map[int]error(nil), error(nil)
	if m.insertFn != nil {
		n, refused, err = m.insertFn(entries)
	}
	for i, e := range entries[:n] {
		if refused[i] != nil {
			continue
		}
		if m.rows[key(e)] == 0 { // the archive's _id: a second insert changes nothing
			m.rows[key(e)]++
			m.order = append(m.order, key(e))
		}
	}
	return refused, err
}

func (m *model) SaveSessions(_ context.Context, docs []sessionstore.SessionDoc) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.saveFn != nil {
		if err := m.saveFn(docs); err != nil {
			return err
		}
	}
	for _, d := range docs {
		m.saved[d.Session.ID] = max(m.saved[d.Session.ID], d.Session.Seq)
	}
	return nil
}

func (m *model) DoneWAL(_ context.Context, b sessionstore.WALBatch) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	applied, err := true, error(nil)
	if m.doneFn != nil {
		applied, err = m.doneFn(b)
	}
	if !applied {
		return err
	}
	for _, e := range b.Entries {
		if len(m.wal[b.Partition]) == 0 || m.wal[b.Partition][0].ID != e.ID {
			m.wrong = append(m.wrong, "done out of order or twice: "+key(e))
			continue
		}
		if m.rows[key(e)] == 0 {
			m.wrong = append(m.wrong, "done before it was inserted: "+key(e))
		}
		m.wal[b.Partition] = m.wal[b.Partition][1:]
	}
	for _, d := range b.Docs {
		if m.saved[d.Session.ID] < d.Session.Seq {
			m.wrong = append(m.wrong, "document done before it was saved: "+d.Session.ID)
		}
		var rest []sessionstore.SessionDoc
		for _, have := range m.docs[b.Partition] {
			if have.Session.ID != d.Session.ID || have.Session.Seq != d.Session.Seq {
				rest = append(rest, have)
			}
		}
		m.docs[b.Partition] = rest
	}
	return err
}

func (m *model) DeadWAL(_ context.Context, b sessionstore.WALBatch, e sessionstore.WALEntry, reason string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.deadFn != nil {
		if err := m.deadFn(e); err != nil {
			return err
		}
	}
	m.dead[key(e)] = reason
	var rest []sessionstore.WALEntry
	for _, have := range m.wal[b.Partition] {
		if have.ID != e.ID {
			rest = append(rest, have)
		}
	}
	m.wal[b.Partition] = rest
	return nil
}

func (m *model) left() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range m.wal {
		n += len(m.wal[p]) + len(m.docs[p])
	}
	return n
}

func newFlusher(t require.TestingT, m *model, o flush.Options) *flush.Flusher {
	o.Store, o.Archive = m, m
	f, err := flush.New(o)
	require.NoError(t, err)
	return f
}

// running runs f for the length of a synctest bubble's body.
func running(t *testing.T, f *flush.Flusher, body func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Error("Run ended with", err)
		}
	})
	body()
	cancel()
	wg.Wait()
}

func (c cutBySize) ReadWAL(ctx context.Context, _ int) ([]sessionstore.WALBatch, error) {
	return c.model.ReadWAL(ctx, 1)
}

func (slowArchive) InsertMessages(ctx context.Context, _ []sessionstore.WALEntry) (map[int]error, error) {
	<-ctx.Done()
	return nil, fmt.Errorf("insert: %w: %w", sessionstore.ErrArchive, ctx.Err())
}
