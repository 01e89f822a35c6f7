package hub

import (
	"errors"
	"os"
	"sync"
	"time"
)

const (
	batchBytes   = 64 << 10 // frames are gathered into one write up to this size
	keepBuffer   = 80 << 10 // larger write buffers are not kept
	directRounds = 2        // writes by the sender itself before a goroutine takes over
	frameCost    = 16       // counted for each frame beside its bytes, so that empty ones are bounded too
)

// outFrame is one frame that waits to be written.
type outFrame struct {
	op     byte
	paged  bool // part of a page or of a close: paced by its sender, not counted against QueueBytes
	data   []byte
	msg    *Message // what it is of; nil: of no topic, or nothing that has a place in it
	chunks *chunks  // the chunks from that of data up to msg, nil when it is one frame
}

// size is about how many bytes the frame takes.
func (f *outFrame) size() int {
	if f.chunks != nil {
		return len(f.data) + f.chunks.added
	}
	return len(f.data)
}

func (f *outFrame) cost() int {
	if f.paged {
		return 0
	}
	return f.size() + frameCost
}

// batch is what one write carries.
type batch struct {
	buf    []byte
	cost   int
	closes bool
}

var batches = sync.Pool{New: func() any { return new(batch) }}

func (b *batch) free() {
	if cap(b.buf) > keepBuffer {
		b.buf = nil
	}
	b.buf, b.cost, b.closes = b.buf[:0], 0, false
	batches.Put(b)
}

func (c *Client) send(f outFrame) bool {
	ok, kick := c.push(f)
	if kick {
		c.flush()
	}
	return ok
}

// push queues f. kick says that the caller must call flush, without any lock.
func (c *Client) push(f outFrame) (ok, kick bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing || c.gone {
		return false, false
	}
	if len(c.queue) > 0 && f.msg != nil && f.msg.Answer != "" && c.joinLocked(&f) {
		return true, false // whoever writes finds it
	}
	cost := f.cost()
	if cost > 0 && c.queued > 0 && c.queued+cost > c.hub.opts.QueueBytes {
		return false, c.closeLocked(CodeSlow, "too slow")
	}
	c.queue = append(c.queue, f)
	c.queued += cost
	kick = !c.writing
	c.writing = true
	return true, kick
}

// flush writes what is queued. The caller was told to by push or closeLocked and is the only one writing.
func (c *Client) flush() {
	if c.sock.raw == nil {
		c.handOver(nil, 0)
		return
	}
	for range directRounds {
		b := c.take()
		if b == nil {
			return
		}
		n, err := c.sock.tryFrames(b.buf, b.closes)
		if err != nil {
			c.broken(b, false)
			return
		}
		if n < len(b.buf) {
			c.handOver(b, n)
			return
		}
		c.wrote(b)
	}
	if b := c.take(); b != nil {
		c.handOver(b, 0)
	}
}

// flushAll flushes many clients. A few are written to at once; for more the work is shared, so that the caller
// is not held up.
func (h *Hub) flushAll(cs []*Client) {
	const direct, share = 4, 64
	if len(cs) <= direct {
		for _, c := range cs {
			c.flush()
		}
		return
	}
	for len(cs) > 0 {
		part := cs[:min(share, len(cs))]
		cs = cs[len(part):]
		work := func() {
			for _, c := range part {
				c.flush()
			}
		}
		if !h.tasks.start(work) {
			work()
		}
	}
}

// handOver lets a goroutine go on: it writes b from byte n on, then all that is queued, and may wait.
func (c *Client) handOver(b *batch, n int) {
	if !c.hub.tasks.start(func() { c.write(b, n) }) {
		c.broken(b, false)
	}
}

func (c *Client) write(b *batch, n int) {
	for {
		if b == nil {
			if b = c.take(); b == nil {
				return
			}
		}
		if err := c.sock.writeFrames(b.buf[n:], b.closes, c.writeDeadline); err != nil {
			c.broken(b, errors.Is(err, os.ErrDeadlineExceeded))
			return
		}
		c.wrote(b)
		b, n = nil, 0
	}
}

func (c *Client) writeDeadline() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closing {
		return c.closeBy
	}
	return time.Now().Add(c.hub.opts.WriteWait)
}

// take moves frames from the queue into one batch. It returns nil when there are none, and the caller is then
// no longer the one writing.
func (c *Client) take() *batch {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone || len(c.queue) == 0 {
		if cap(c.queue) > 4 || c.gone {
			c.queue = nil
		}
		c.writing = false
		c.wakeLocked()
		return nil
	}
	b := batches.Get().(*batch) //nolint:errcheck // the pool holds nothing else
	taken := 0
	for i := range c.queue {
		f := &c.queue[i]
		if taken > 0 && len(b.buf)+f.size() > batchBytes {
			break
		}
		if f.chunks != nil {
			b.buf = appendFrame(b.buf, f.op, c.hub.opts.Merge(f.chunks.first, f.msg, f.chunks.text))
		} else {
			b.buf = appendFrame(b.buf, f.op, f.data)
		}
		b.cost += f.cost()
		taken++
		if f.op == opClose {
			b.closes = true
			break
		}
	}
	rest := copy(c.queue, c.queue[taken:])
	clear(c.queue[rest:])
	c.queue = c.queue[:rest]
	return b
}

// wrote gives back the bytes of b. After a close frame the peer has a moment to answer.
func (c *Client) wrote(b *batch) {
	closes := b.closes
	c.mu.Lock()
	c.queued -= b.cost
	c.mu.Unlock()
	b.free()
	if closes {
		_ = c.sock.SetReadDeadline(time.Now().Add(closeGrace)) // fails only when the socket is closed already
	}
}

// broken ends a connection that cannot be written to; slow says that it took nothing for WriteWait. The reader notices and cleans up.
func (c *Client) broken(b *batch, slow bool) {
	c.mu.Lock()
	if !c.closing && !c.gone {
		c.closing, c.deaf = true, true
		if slow {
			c.code = CodeSlow
		}
		c.in, c.inBytes = nil, 0
	}
	c.queue, c.queued = nil, 0
	c.writing = false
	c.startLocked()
	c.wakeLocked()
	c.mu.Unlock()
	if b != nil {
		b.free()
	}
	_ = c.sock.Close()
}
