package hub

import (
	"context"
	"errors"
)

// tendLocked sees to it that somebody brings the topic to where it should be.
func (t *topic) tendLocked() {
	if !t.tending {
		t.tending = t.hub.tasks.start(t.tend)
	}
}

func (t *topic) wantFillLocked() {
	t.wanted = true
	t.tendLocked()
}

// tend subscribes while the topic has members, fills holes, unsubscribes when the last member has left, and
// then forgets the topic. There is at most one for each topic, so that these never overlap.
func (t *topic) tend() {
	for {
		t.mu.Lock()
		switch {
		case !t.subscribed && len(t.members) > 0:
			t.mu.Unlock()
			t.subscribe()
		case t.subscribed && len(t.members) == 0:
			t.subscribed, t.known, t.wanted = false, false, false
			t.mu.Unlock()
			t.hub.opts.Source.Unsubscribe(t.name)
		case len(t.members) == 0:
			t.mu.Unlock()
			if t.hub.forget(t) {
				return
			}
		case t.wanted && t.known && t.live > 0:
			t.wanted, t.filling = false, true
			t.mu.Unlock()
			t.fill()
		default:
			t.wanted = false
			t.tending = false
			t.mu.Unlock()
			return
		}
	}
}

// subscribe tries until it succeeds, nobody wants it, or the hub ends, which it does without members.
func (t *topic) subscribe() {
	h := t.hub
	for attempt := 1; ; attempt++ {
		ctx, cancel := context.WithTimeout(&h.life, h.opts.ReadWait)
		err := h.opts.Source.Subscribe(ctx, t.name)
		cancel()
		t.mu.Lock()
		if err == nil {
			t.subscribed = true
			if t.ready != nil {
				close(t.ready)
				t.ready = nil
			}
			t.mu.Unlock()
			return
		}
		wanted := len(t.members) > 0
		t.mu.Unlock()
		if !wanted {
			return
		}
		h.log.Debug("topic not subscribed", "session_id", t.name, "attempt", attempt, "error", err)
		if !pause(&h.life, attempt) {
			return
		}
	}
}

// forget takes an empty topic out of the hub, if it is still empty.
func (h *Hub) forget(t *topic) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.members) > 0 {
		return false
	}
	t.tending = false
	delete(h.topics, t.name)
	return true
}

// fill reads on from the topic's position until everything announced has been delivered to the live members,
// then shows them the running answer, since chunks may have been lost as well.
func (t *topic) fill() {
	h := t.hub
	for failures := 0; ; {
		t.mu.Lock()
		if t.live == 0 {
			t.filling, t.known = false, false
			t.kept = keep{}
			t.mu.Unlock()
			return
		}
		at := mark{t.heard, t.syncs}
		pos := t.pos
		t.kept.restart()
		t.mu.Unlock()

		page, err := h.read(&h.life, t.name, pos)
		if errors.Is(err, ErrLost) {
			h.log.Error("topic lost", "session_id", t.name, "error", err)
			t.closeLive(Over{CodeResync, "session cannot be read"})
		}
		if err != nil {
			failures++
			h.log.Debug("topic not read", "session_id", t.name, "attempt", failures, "error", err)
			pause(&h.life, failures) // at the end of the hub nobody is live any more
			continue
		}
		failures = 0
		complete := t.absorb(&page, at)
		if page.Over != nil && !page.More {
			t.closeLive(*page.Over)
		}
		if complete {
			return
		}
	}
}

// closeLive closes the clients that follow the topic. Those that are catching up find out by themselves.
func (t *topic) closeLive(over Over) {
	t.mu.Lock()
	var clients []*Client
	for _, m := range t.members {
		if m.live {
			clients = append(clients, m.c)
		}
	}
	t.mu.Unlock()
	for _, c := range clients {
		c.Close(over.Code, over.Reason)
	}
}

// absorb delivers one page to the live members. It reports whether the fill is complete.
func (t *topic) absorb(page *Page, at mark) (complete bool) {
	var k kicks
	t.mu.Lock()
	for _, m := range t.members {
		if m.live && !(page.Snapshot && page.Epoch == m.cursor.Epoch && page.Seq <= m.cursor.Seq) {
			m.takeLiveLocked(page, &k)
		}
	}
	if page.Epoch != "" && (page.Epoch != t.pos.Epoch || page.Seq > t.pos.Seq) {
		t.pos = page.Position
	}
	complete = !page.More && t.syncs == at.syncs && !t.kept.overflow && t.coveredLocked(t.pos, at.heard)
	if complete {
		for _, m := range t.members {
			if m.live {
				m.resumeLocked(page, t.kept.messages, &k)
			}
		}
		t.filling, t.wanted = false, false
		t.kept = keep{}
	}
	t.mu.Unlock()
	k.flush(t.hub)
	return complete
}

// takeLiveLocked is takeLocked for a member that must keep up.
func (m *member) takeLiveLocked(page *Page, k *kicks) {
	for i := range page.Messages {
		m.deliverLocked(&page.Messages[i], page.Snapshot, false, k)
	}
	if p := page.Position; p.Epoch != "" && p.Epoch != m.cursor.Epoch {
		m.cursor = p
	}
}

// resumeLocked shows the running answer as it was read, then the chunks that came since. A member that is ahead
// of the page has read it later itself.
func (m *member) resumeLocked(page *Page, chunks []*Message, k *kicks) {
	r := page.Running
	if r == nil || m.cursor.Seq > page.Seq {
		return
	}
	m.rerunLocked(r, false, k)
	for _, msg := range chunks {
		m.showLocked(msg, k)
	}
}
