package hub

import (
	"slices"
	"sync"
)

// keepBytes bounds the events that are not durable and are kept for a client that is catching up, or for the
// end of a fill.
const keepBytes = 256 << 10

// topic is what the hub knows of one topic. Its position tells what the live members have been given; each
// member has its own cursor, which is never behind it within one epoch.
type topic struct {
	hub  *Hub
	name string

	mu         sync.Mutex // guards the fields below, and the members'
	members    []*member
	live       int           // how many of them are live
	tending    bool          // a goroutine runs tend and will look again
	subscribed bool          // Publish gets everything
	ready      chan struct{} // closed when subscribed becomes true; nil when nobody waits

	known bool     // pos means something
	pos   Position // everything up to here went to the live members
	high  Position // newest durable message announced
	heard uint64   // how many durable messages were announced
	syncs uint64   // how often the bus was said to have a hole

	wanted  bool // a fill is needed
	filling bool // a fill is under way: it delivers, Publish only announces
	kept    keep // chunks that came during the fill; live members have them already
}

// member is one client in one topic. Guarded by topic.mu.
type member struct {
	t *topic
	c *Client

	at      int // index in topic.members, -1 after leaving
	live    bool
	cursor  Position
	run     progress // of the answer being shown
	expects []expectation

	hello []byte // to be sent before the first live event
	kept  keep   // events that came while catching up
}

// expectation is a message that the client has sent and wants an ack for.
type expectation struct {
	key string
	at  Position // zero until Accepted
	ack func(seq int64) []byte
}

func (e *expectation) frame(seq int64) []byte {
	if e.ack == nil {
		return nil
	}
	return e.ack(seq)
}

// progress is the newest chunk of the newest answer that a client has been shown.
type progress struct {
	answer         string
	attempt, chunk int
	ended          bool
}

func (p *progress) covers(m *Message) bool {
	if p.answer != m.Answer || m.Answer == "" {
		return false
	}
	return p.ended || m.Attempt < p.attempt || m.Attempt == p.attempt && m.Chunk <= p.chunk
}

func (p *progress) set(m *Message) {
	*p = progress{answer: m.Answer, attempt: m.Attempt, chunk: m.Chunk, ended: m.Seq > 0}
}

// keep is a bounded run of events that are not durable.
type keep struct {
	messages []*Message
	bytes    int
	overflow bool // chunks were lost; the running answer must be read again
}

func (k *keep) add(m *Message) {
	if k.bytes+len(m.Data) > keepBytes {
		k.overflow = k.overflow || m.Answer != ""
		return
	}
	k.messages = append(k.messages, m)
	k.bytes += len(m.Data)
}

// restart drops what a read that starts now will contain: the chunks.
func (k *keep) restart() {
	k.overflow = false
	k.bytes = 0
	k.messages = slices.DeleteFunc(k.messages, func(m *Message) bool { return m.Answer != "" })
	for _, m := range k.messages {
		k.bytes += len(m.Data)
	}
}

// kicks are the clients to be flushed after the lock is released.
type kicks struct {
	few  [4]*Client
	n    int
	many []*Client
}

func (k *kicks) add(c *Client) {
	if k.n < len(k.few) {
		k.few[k.n] = c
		k.n++
		return
	}
	if k.many == nil {
		k.many = append(k.many, k.few[:]...)
	}
	k.many = append(k.many, c)
}

func (k *kicks) flush(h *Hub) {
	if k.many != nil {
		h.flushAll(k.many)
		return
	}
	for _, c := range k.few[:k.n] {
		c.flush()
	}
}

// publish takes one message from the bus.
func (t *topic) publish(m *Message) {
	var k kicks
	t.mu.Lock()
	if m.Seq <= 0 {
		t.passLocked(m, &k)
	} else {
		t.announceLocked(m, &k)
	}
	t.mu.Unlock()
	k.flush(t.hub)
}

// passLocked hands an event that is not durable to the live members, and keeps it for the others.
func (t *topic) passLocked(m *Message, k *kicks) {
	if t.filling && m.Answer != "" {
		t.kept.add(m)
	}
	for _, mb := range t.members {
		if mb.live {
			mb.showLocked(m, k)
		} else {
			mb.kept.add(m)
		}
	}
}

func (t *topic) announceLocked(m *Message, k *kicks) {
	t.heard++
	if m.Epoch != t.high.Epoch || m.Seq > t.high.Seq {
		t.high = Position{m.Epoch, m.Seq}
	}
	switch {
	case t.filling || !t.known:
	case t.live == 0:
		t.known = false // nobody to keep it for; the next to go live says where we are
	case m.Epoch == t.pos.Epoch && m.Seq <= t.pos.Seq:
	case m.Epoch == t.pos.Epoch && m.Seq == t.pos.Seq+1:
		t.pos.Seq = m.Seq
		for _, mb := range t.members {
			if mb.live {
				mb.deliverLocked(m, false, false, k)
			}
		}
	default:
		t.wantFillLocked()
	}
}

// coveredLocked reports whether a page that ends at pos and was asked for when heard stood at since contains all
// that has been announced.
func (t *topic) coveredLocked(pos Position, since uint64) bool {
	return t.heard == since || t.high.Epoch == pos.Epoch && t.high.Seq <= pos.Seq
}

func (t *topic) resync() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.syncs++
	if t.live > 0 {
		t.wantFillLocked()
	} else {
		t.known = false
	}
}

// deliverLocked gives the member one durable message in order, or the ack that it expects in its place.
func (m *member) deliverLocked(msg *Message, snapshot, paged bool, k *kicks) {
	if msg.Epoch == m.cursor.Epoch && msg.Seq <= m.cursor.Seq && !snapshot {
		return
	}
	m.cursor = Position{msg.Epoch, msg.Seq}
	if snapshot {
		m.run = progress{} // Redis may have lost that it ran, and another one have its id
	}
	data := msg.Data
	if i := m.expected(msg.Key); i >= 0 {
		data = m.expects[i].frame(msg.Seq)
		m.expects = slices.Delete(m.expects, i, i+1)
	}
	if msg.Answer != "" {
		m.run.set(msg)
	}
	m.pushLocked(data, msg, paged, k)
	if snapshot {
		m.settleLocked(k)
	}
}

// settleLocked sends the acks that were passed over: of messages inside a snapshot. What was accepted in another epoch
// gets none: it may be lost. The client sends it again, and gets the ack of whatever became of it.
func (m *member) settleLocked(k *kicks) {
	m.expects = slices.DeleteFunc(m.expects, func(e expectation) bool {
		settled := e.at.Seq > 0 && e.at.Seq <= m.cursor.Seq && e.at.Epoch == m.cursor.Epoch
		if settled {
			m.pushLocked(e.frame(e.at.Seq), nil, false, k)
		}
		return settled
	})
}

// showLocked gives the member an event that is not durable, unless it is a chunk that it has seen.
func (m *member) showLocked(msg *Message, k *kicks) {
	if msg.Answer != "" {
		if m.run.covers(msg) {
			return
		}
		m.run.set(msg)
	}
	m.pushLocked(msg.Data, msg, false, k)
}

// rerunLocked shows the running answer, all of it.
func (m *member) rerunLocked(running *Message, paged bool, k *kicks) {
	if running != nil {
		m.run.set(running)
		m.pushLocked(running.Data, running, paged, k)
	}
}

// pushLocked queues a frame. msg is what it is of, nil if it has no place in the topic.
func (m *member) pushLocked(data []byte, msg *Message, paged bool, k *kicks) {
	if data == nil {
		return
	}
	if _, kick := m.c.push(outFrame{op: opText, paged: paged, data: data, msg: msg}); kick {
		k.add(m.c)
	}
}

func (m *member) expected(key string) int {
	if key == "" || len(m.expects) == 0 {
		return -1
	}
	return slices.IndexFunc(m.expects, func(e expectation) bool { return e.key == key })
}
