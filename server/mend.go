package server

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/real-rm/chatbox/sessionstore"
)

// How Redis is given back what snapshots have shown it to lack.
const (
	mendEvery  = time.Second
	mendAtOnce = 8       // sessions; who waits for a session that is not there at all comes first
	mendMost   = 1 << 14 // sessions that are remembered, more than a replica has sockets
)

// mend gives Redis back what it has lost of sessions that are still there, in the background. Nobody else would: a
// client has let go of what is durable, and only Redis knows what is owed an answer. Ask may be called concurrently
// and does not block.
type mend struct {
	revival Reviver
	log     *slog.Logger

	mu    sync.Mutex        // guards what follows; never held during I/O
	asked map[string]string // session -> epoch of the snapshot that lacked something
	done  map[string]string // session -> epoch that has been seen to; another loss makes another epoch
}

func newMend(revival Reviver, log *slog.Logger) *mend {
	return &mend{revival: revival, log: log, asked: make(map[string]string), done: make(map[string]string)}
}

// Ask has a session seen to, once in each of its epochs, however many sockets take a snapshot of it.
func (m *mend) Ask(sessionID, epoch string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.done[sessionID] == epoch {
		return
	}
	if _, asked := m.asked[sessionID]; !asked && len(m.asked) >= mendMost {
		return // the next snapshot asks again
	}
	m.asked[sessionID] = epoch
}

// Run sees to what was asked for until ctx ends.
func (m *mend) Run(ctx context.Context) error {
	return every(ctx, mendEvery, m.round)
}

// round sees to all that was asked for. What MongoDB could not say is asked again in the next round.
func (m *mend) round(ctx context.Context) {
	m.mu.Lock()
	asked := maps.Clone(m.asked)
	m.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(mendAtOnce)
	for id, epoch := range asked {
		g.Go(func() error {
			m.session(ctx, id, epoch)
			return nil
		})
	}
	_ = g.Wait()
}

func (m *mend) session(ctx context.Context, id, epoch string) {
	if ctx.Err() != nil {
		return
	}
	switch err := m.revival.Revive(ctx, id, ""); {
	case err == nil, gone(err):
	case errors.Is(err, sessionstore.ErrArchive), errors.Is(err, sessionstore.ErrAway), errors.Is(err, sessionstore.ErrFull):
		m.log.Debug("what redis has lost of a session not put back yet", "session_id", id, "error", err.Error())
		return
	default: // nor would the next try
		m.log.Warn("what redis has lost of a session not put back", "session_id", id, "error", err.Error())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.asked[id] == epoch { // else it was lost from again meanwhile
		delete(m.asked, id)
	}
	if len(m.done) >= mendMost {
		clear(m.done) // costs one more look each
	}
	m.done[id] = epoch
}
