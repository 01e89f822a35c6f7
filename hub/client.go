package hub

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// closeGrace is how long the peer may take to answer a close frame.
const closeGrace = 2 * time.Second

// Client is one socket. All methods may be called concurrently.
type Client struct {
	// Set once by Accept.
	hub     *Hub
	id      string
	handler Handler
	ws      *websocket.Conn
	sock    *sock

	seen atomic.Int64 // Hub.now of the last message or ping from the peer
	life life

	// Guarded by the wheel.
	slot, pos int32
	lastPing  time.Duration // Hub.now of the last ping to the peer

	mu      sync.Mutex // guards the fields below; never held during I/O
	started bool
	closing bool // Close was called: what is queued, a close frame, then nothing
	gone    bool // the reader has ended
	deaf    bool // nothing that arrives any more matters
	code    Code // zero while open; the first reason wins
	closeBy time.Time

	queue   []outFrame
	queued  int  // bytes of frames that count against QueueBytes, those being written included
	writing bool // somebody is in flush, and will look at the queue again

	in       []inFrame
	inBytes  int
	handling bool // a goroutine runs the handler, and will look at in again

	paging   bool // a page for a member is being read and queued
	catching int  // goroutines that catch up

	first *member            // the only membership of most clients
	more  map[string]*member // those beyond the first, by topic

	wake chan struct{} // made by await, closed by wakeLocked whenever a condition may have changed
}

// ID returns AcceptOptions.ID.
func (c *Client) ID() string { return c.id }

// Handler returns AcceptOptions.Handler.
func (c *Client) Handler() Handler { return c.handler }

// Context ends when the client is closed. It has no deadline and no values.
func (c *Client) Context() context.Context { return &c.life }

// Code returns why the client was closed: the code of the first Close, else that of the peer, else 1006. It is
// zero while the client is open.
func (c *Client) Code() Code {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.code
}

// Start begins to hear the client.
func (c *Client) Start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.startLocked()
}

func (c *Client) startLocked() {
	if !c.started {
		c.started = c.hub.tasks.start(c.run)
	}
}

// Send queues a frame. It reports false when the client is closed, or just has been because it is too slow.
func (c *Client) Send(frame []byte) bool {
	return c.send(outFrame{op: opText, data: frame})
}

// Close writes what is queued, the frames in last, and a close frame, then waits a moment for the peer to close
// as well. It returns at once; Handler.Closed tells the end, which comes within Options.WriteWait and 2 s if the
// handler returns. Only the first call has an effect. A client closed with CodeSlow does not get what is queued.
func (c *Client) Close(code Code, reason string, last ...[]byte) {
	c.mu.Lock()
	kick := c.closeLocked(code, reason, last...)
	c.mu.Unlock()
	if kick {
		c.flush()
	}
}

// closeLocked reports whether the caller must call flush.
func (c *Client) closeLocked(code Code, reason string, last ...[]byte) (kick bool) {
	if c.closing || c.gone {
		return false
	}
	c.closing, c.deaf = true, true
	c.code = code
	c.closeBy = time.Now().Add(c.hub.opts.WriteWait)
	c.in, c.inBytes = nil, 0
	if code == CodeSlow {
		c.queue = nil
	}
	for _, frame := range last {
		c.queue = append(c.queue, outFrame{op: opText, paged: true, data: frame})
	}
	c.queue = append(c.queue, outFrame{op: opClose, paged: true, data: closePayload(code, reason)})
	c.startLocked() // somebody must wait for the peer's close
	c.wakeLocked()
	kick = !c.writing
	c.writing = true
	return kick
}

// touch counts as life.
func (c *Client) touch() { c.seen.Store(int64(c.hub.now())) }

// wakeLocked makes all calls of await look again.
func (c *Client) wakeLocked() {
	if c.wake != nil {
		close(c.wake)
		c.wake = nil
	}
}

// await waits until cond, called with c.mu held, holds. It reports false after limit (zero: none).
func (c *Client) await(limit time.Duration, cond func() bool) bool {
	var expired <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		expired = timer.C
	}
	for {
		c.mu.Lock()
		if cond() {
			c.mu.Unlock()
			return true
		}
		if c.wake == nil {
			c.wake = make(chan struct{})
		}
		wake := c.wake
		c.mu.Unlock()
		select {
		case <-wake:
		case <-expired:
			return false
		}
	}
}
