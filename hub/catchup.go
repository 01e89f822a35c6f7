package hub

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Pauses between attempts at the Source, half of each random.
const (
	minPause = 50 * time.Millisecond
	maxPause = 2 * time.Second
)

// pause waits longer with every attempt, from 1. It reports false when ctx has ended.
func pause(ctx context.Context, attempt int) bool {
	d := min(minPause<<min(attempt-1, 10), maxPause)
	timer := time.NewTimer(d/2 + rand.N(d/2))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// read asks the Source for one page, for a limited time.
func (h *Hub) read(ctx context.Context, topic string, pos Position) (Page, error) {
	ctx, cancel := context.WithTimeout(ctx, h.opts.ReadWait)
	defer cancel()
	page, err := h.opts.Source.Read(ctx, topic, pos)
	if err == nil && page.More && page.Position == pos {
		err = errStuck
	}
	return page, err
}

// mark is the state of the topic when a read began.
type mark struct {
	heard, syncs uint64
}

// catchUp brings the member from its cursor to the top and makes it live. It is the only one that delivers to
// the member until then.
func (m *member) catchUp() {
	c := m.c
	defer func() {
		c.mu.Lock()
		c.catching--
		c.wakeLocked()
		c.mu.Unlock()
	}()
	if !m.awaitSubscription() {
		return
	}
	for failures := 0; ; {
		if !m.awaitTurn() {
			return
		}
		done, err := m.step()
		c.mu.Lock()
		c.paging = false
		c.wakeLocked()
		c.mu.Unlock()
		switch {
		case done:
			return
		case err == nil:
			failures = 0
			continue
		}
		failures++
		if !errors.Is(err, errAgain) {
			c.hub.log.Debug("page not read", "client", c.id, "session_id", m.t.name, "attempt", failures, "error", err)
		}
		if !pause(&c.life, failures) {
			return
		}
	}
}

// awaitSubscription waits until the bus brings everything. It reports false when the client has gone.
func (m *member) awaitSubscription() bool {
	t := m.t
	for {
		t.mu.Lock()
		if m.at < 0 || t.subscribed {
			defer t.mu.Unlock()
			return m.at >= 0
		}
		if t.ready == nil {
			t.ready = make(chan struct{})
		}
		ready := t.ready
		t.mu.Unlock()
		select {
		case <-ready:
		case <-m.c.life.Done():
			return false
		}
	}
}

// awaitTurn waits until the socket has taken what it was sent, and no other topic of the client is reading a
// page. It reports false when the membership has ended.
func (m *member) awaitTurn() (ok bool) {
	c := m.c
	c.await(0, func() bool {
		if c.closing || c.gone || c.memberLocked(m.t.name) != m {
			return true
		}
		if c.paging || c.writing || len(c.queue) > 0 {
			return false
		}
		c.paging = true
		ok = true
		return true
	})
	return ok
}

// errAgain says that the topic is not where the page is, errStuck that a page promises more without an end.
var (
	errAgain = errors.New("topic stands in another epoch")
	errStuck = errors.New("page is cut before its first message")
)

// step reads and queues one page. done says that the member is live, or has left.
func (m *member) step() (done bool, err error) {
	t := m.t
	t.mu.Lock()
	at := mark{t.heard, t.syncs}
	pos := m.cursor
	m.kept.restart()
	t.mu.Unlock()

	page, err := t.hub.read(&m.c.life, t.name, pos)
	if errors.Is(err, ErrLost) {
		t.hub.log.Error("topic lost", "client", m.c.id, "session_id", t.name, "error", err)
		m.c.Close(CodeResync, "session cannot be read")
		return true, nil
	}
	if err != nil {
		return false, err
	}
	var k kicks
	t.mu.Lock()
	if m.at < 0 {
		t.mu.Unlock()
		return true, nil
	}
	m.takeLocked(&page, &k)
	if !page.More {
		done, err = m.goLiveLocked(&page, at, &k)
	}
	t.mu.Unlock()
	k.flush(t.hub)
	if page.Over != nil && !page.More {
		m.c.Close(page.Over.Code, page.Over.Reason)
		return true, nil
	}
	return done, err
}

// takeLocked queues the messages of a page.
func (m *member) takeLocked(page *Page, k *kicks) {
	for i := range page.Messages {
		m.deliverLocked(&page.Messages[i], page.Snapshot, true, k)
	}
	p := page.Position
	if p.Epoch != "" && (p.Epoch != m.cursor.Epoch || p.Seq > m.cursor.Seq) {
		m.cursor = p
	}
}

// goLiveLocked makes the member live if it stands where the topic does, or beyond. It must read again if
// anything may have happened that neither the page nor the kept events contain.
func (m *member) goLiveLocked(page *Page, at mark, k *kicks) (live bool, err error) {
	t := m.t
	switch {
	case t.syncs != at.syncs || m.kept.overflow:
		return false, nil
	case !t.known || t.live == 0 && !t.filling:
		if !t.coveredLocked(m.cursor, at.heard) {
			return false, nil
		}
		t.known, t.pos = true, m.cursor
	case t.pos.Epoch != m.cursor.Epoch:
		// Either the topic has not noticed yet, or this page was read before it did. Both read again.
		t.wantFillLocked()
		return false, errAgain
	case t.pos.Seq > m.cursor.Seq:
		return false, nil
	}
	m.rerunLocked(page.Running, true, k)
	m.pushLocked(m.hello, nil, true, k)
	m.hello = nil
	kept := m.kept
	m.kept = keep{}
	for _, msg := range kept.messages {
		m.showLocked(msg, k)
	}
	m.live = true
	t.live++
	return true, nil
}
