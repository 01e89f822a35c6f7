package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"unicode/utf8"

	"github.com/coder/websocket"
)

// maxPending is how many messages of one client may wait for the handler before the hub stops reading from it.
const maxPending = 16

// What arrived.
const (
	inText = iota
	inOversize
	inNotUTF8
)

type inFrame struct {
	kind int
	data []byte
}

// run owns the client: it reads until the connection ends, then leaves nothing behind.
func (c *Client) run() {
	peer := c.read()
	c.finish(peer)
}

// read hears the peer until the connection ends, and returns the peer's close code, 1006 if it sent none.
//
// Its stack stays small: handlers run elsewhere. It is the only one to call the library after Accept.
func (c *Client) read() Code {
	for {
		// Background: a context that can end would cost a timer for each frame. Deadlines are set on the socket.
		typ, r, err := c.ws.Reader(context.Background())
		if err != nil {
			if code := websocket.CloseStatus(err); code > 0 {
				return Code(code)
			}
			return codeAbnormal
		}
		wanted := false
		if !c.isDeaf() {
			c.touch()
			f, err := c.readMessage(typ, r)
			if err != nil {
				return codeAbnormal
			}
			wanted = f.kind == inText
			c.hear(f)
		}
		if !wanted { // the rest of it; a message need not have an end, but the connection then has a deadline
			if _, err := io.Copy(io.Discard, r); err != nil {
				return codeAbnormal
			}
		}
	}
}

// scratch buffers are held only while a message arrives.
var scratch = sync.Pool{New: func() any { b := make([]byte, 4096); return &b }}

// readMessage reads one message as far as it may go.
func (c *Client) readMessage(typ websocket.MessageType, r io.Reader) (inFrame, error) {
	if typ != websocket.MessageText {
		return inFrame{kind: inNotUTF8}, nil
	}
	buf := scratch.Get().(*[]byte) //nolint:errcheck // the pool holds nothing else
	defer scratch.Put(buf)
	for n := 0; ; {
		if n == len(*buf) {
			grown := make([]byte, min(2*n, c.hub.opts.MaxFrame+1))
			copy(grown, *buf)
			*buf = grown
		}
		m, err := r.Read((*buf)[n:])
		n += m
		switch {
		case n > c.hub.opts.MaxFrame:
			return inFrame{kind: inOversize}, nil
		case err == nil:
		case !errors.Is(err, io.EOF):
			return inFrame{}, fmt.Errorf("read message: %w", err)
		case !utf8.Valid((*buf)[:n]):
			return inFrame{kind: inNotUTF8}, nil
		default:
			return inFrame{kind: inText, data: append([]byte(nil), (*buf)[:n]...)}, nil
		}
	}
}

func (c *Client) isDeaf() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deaf
}

// hear queues f for the handler. When the handler is behind it waits, and with it the peer.
func (c *Client) hear(f inFrame) {
	c.await(0, func() bool {
		if c.deaf {
			return true
		}
		if len(c.in) >= maxPending || c.inBytes > 2*c.hub.opts.MaxFrame {
			return false
		}
		c.in = append(c.in, f)
		c.inBytes += len(f.data)
		c.deaf = f.kind != inText
		if !c.handling {
			c.handling = c.hub.tasks.start(c.handle)
		}
		return true
	})
}

// handle gives what has been heard to the handler until there is no more.
func (c *Client) handle() {
	for {
		c.mu.Lock()
		if len(c.in) == 0 {
			c.in = nil
			c.handling = false
			c.wakeLocked()
			c.mu.Unlock()
			return
		}
		f := c.in[0]
		c.in = c.in[1:]
		c.inBytes -= len(f.data)
		c.wakeLocked()
		c.mu.Unlock()
		c.dispatch(f)
	}
}

// dispatch calls the handler. A panic costs this client, not the replica.
func (c *Client) dispatch(f inFrame) {
	defer func() {
		if p := recover(); p != nil {
			c.hub.log.Error("handler panicked", "client", c.id, "panic", p, "stack", string(debug.Stack()))
			c.Close(CodeInternal, "internal error")
		}
	}()
	switch f.kind {
	case inText:
		c.handler.Frame(&c.life, c, f.data)
	case inOversize:
		c.handler.Oversize(c)
		c.Close(CodeTooBig, "message too big")
	case inNotUTF8:
		c.handler.NotUTF8(c)
		c.Close(CodeInvalid, "not UTF-8 text")
	}
}

// finish leaves nothing of the client behind. What it said before it left is still handled.
func (c *Client) finish(peer Code) {
	c.mu.Lock()
	c.gone, c.deaf = true, true
	if c.code == 0 {
		c.code = peer
	}
	c.queue, c.queued = nil, 0
	c.wakeLocked()
	c.mu.Unlock()
	_ = c.sock.Close() // ends a write under way
	c.leaveAll()

	c.await(c.hub.opts.WriteWait, func() bool { return !c.handling })
	c.life.end()
	c.await(0, func() bool { return !c.handling && !c.writing && c.catching == 0 })
	_ = c.ws.CloseNow()
	c.hub.remove(c)
	if c.Code() == CodeSlow && c.hub.opts.OnSlow != nil {
		c.hub.opts.OnSlow(c)
	}
	c.handler.Closed(c)
}
