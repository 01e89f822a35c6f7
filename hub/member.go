package hub

// Join makes the client a member of the topic: it gets what follows pos, page by page at its own pace, then the
// running answer, then live, then everything as it happens. It returns at once. Joining again starts again from
// the new position. The error is ErrClosed.
func (c *Client) Join(topic string, pos Position, live []byte) error {
	h := c.hub
	t := h.enter(topic)
	m := &member{t: t, c: c, cursor: pos, hello: live}
	old, ok := c.adopt(m)
	if old != nil {
		m.expects = old.expects
		t.dropLocked(old)
	}
	if ok {
		m.at = len(t.members)
		t.members = append(t.members, m)
	}
	t.tendLocked()
	orphan := !t.tending // the hub has ended: nobody will tend it, so nobody else would forget it
	t.mu.Unlock()
	if orphan {
		h.forget(t)
	}
	if !ok {
		return ErrClosed
	}
	return nil
}

// enter returns the topic with its lock held, so that it cannot be forgotten before it has a member.
func (h *Hub) enter(name string) *topic {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.topics[name]
	if t == nil {
		t = &topic{hub: h, name: name}
		h.topics[name] = t
	}
	t.mu.Lock()
	return t
}

// adopt makes m the client's membership of its topic and starts to catch up. It returns the one that it replaces.
func (c *Client) adopt(m *member) (old *member, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || c.gone || !c.hub.tasks.start(m.catchUp) {
		return nil, false
	}
	c.catching++
	name := m.t.name
	switch {
	case c.first == nil && c.more[name] == nil:
		c.first = m
	case c.first != nil && c.first.t.name == name:
		old, c.first = c.first, m
	default:
		if c.more == nil {
			c.more = make(map[string]*member)
		}
		old = c.more[name]
		c.more[name] = m
	}
	return old, true
}

// Leave ends the membership. What is queued already is still sent.
func (c *Client) Leave(topic string) {
	c.mu.Lock()
	m := c.memberLocked(topic)
	if m != nil {
		if m == c.first {
			c.first = nil
		} else {
			delete(c.more, topic)
		}
		c.wakeLocked()
	}
	c.mu.Unlock()
	if m != nil {
		m.leave()
	}
}

func (c *Client) leaveAll() {
	c.mu.Lock()
	first, more := c.first, c.more
	c.first, c.more = nil, nil
	c.mu.Unlock()
	if first != nil {
		first.leave()
	}
	for _, m := range more {
		m.leave()
	}
}

func (c *Client) memberLocked(topic string) *member {
	if c.first != nil && c.first.t.name == topic {
		return c.first
	}
	return c.more[topic]
}

func (c *Client) member(topic string) *member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.memberLocked(topic)
}

func (m *member) leave() {
	t := m.t
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropLocked(m)
	t.tendLocked()
}

// dropLocked takes m out of the topic; a second time does nothing.
func (t *topic) dropLocked(m *member) {
	if m.at < 0 {
		return
	}
	last := len(t.members) - 1
	t.members[m.at] = t.members[last]
	t.members[m.at].at = m.at
	t.members[last] = nil
	t.members = t.members[:last]
	m.at = -1
	m.kept = keep{}
	if m.live {
		t.live--
	}
}

// Cursor returns how far the client has been given the topic, and whether it has joined it.
func (c *Client) Cursor(topic string) (Position, bool) {
	m := c.member(topic)
	if m == nil {
		return Position{}, false
	}
	m.t.mu.Lock()
	defer m.t.mu.Unlock()
	return m.cursor, true
}

// Expect says that the client is about to send the message with this key: when it comes, the client gets ack of
// its seq instead; a nil function or frame sends nothing. It is called before the message is appended. ack only makes the
// frame: it is called with locks held. Without a membership nothing happens.
func (c *Client) Expect(topic, key string, ack func(seq int64) []byte) {
	m := c.member(topic)
	if m == nil {
		return
	}
	m.t.mu.Lock()
	defer m.t.mu.Unlock()
	if i := m.expected(key); i >= 0 {
		m.expects[i] = expectation{key: key, ack: ack}
		return
	}
	m.expects = append(m.expects, expectation{key: key, ack: ack})
}

// Forget takes Expect back: the message was not appended, or had been before.
func (c *Client) Forget(topic, key string) {
	m := c.member(topic)
	if m == nil {
		return
	}
	m.t.mu.Lock()
	defer m.t.mu.Unlock()
	if i := m.expected(key); i >= 0 {
		m.expects = append(m.expects[:i], m.expects[i+1:]...)
	}
}

// Accepted says where the expected message has been appended. If the client is beyond seq already without having met the
// message (it was part of a snapshot), the ack is sent now; none is if the client's epoch is another one by then.
func (c *Client) Accepted(topic, key, epoch string, seq int64) {
	m := c.member(topic)
	if m == nil {
		return
	}
	var k kicks
	m.t.mu.Lock()
	if i := m.expected(key); i >= 0 {
		m.expects[i].at = Position{epoch, seq}
		m.settleLocked(&k)
	}
	m.t.mu.Unlock()
	k.flush(c.hub)
}
