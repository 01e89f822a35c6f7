package hub

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/coder/websocket"
)

// AcceptOptions are the settings of one connection.
type AcceptOptions struct {
	ID          string  // what Client.ID returns
	Handler     Handler // required
	Subprotocol string  // echoed when the client offers it; empty: none
	// OriginPatterns are the cross-origin hosts that are let in beside the request's own, as in package
	// websocket. InsecureSkipVerify lets in all: for callers that have checked themselves.
	OriginPatterns     []string
	InsecureSkipVerify bool
}

// Sizes of the buffers of one connection. The reader's is small because most frames are; larger ones are read
// past it. The writer's holds nothing but the close frames that the library writes.
const (
	readBuffer  = 512
	writeBuffer = 160
)

// Accept upgrades the request. On errors it has written the response. The client is known to the hub from then
// on and can be sent to; it is heard after Start. A client that is not wanted after all must be closed. The
// HTTP handler may return at once; nothing of r is kept.
func (h *Hub) Accept(w http.ResponseWriter, r *http.Request, opts AcceptOptions) (*Client, error) {
	if h.refuses() {
		w.Header().Set("Retry-After", "1")
		http.Error(w, http.StatusText(http.StatusServiceUnavailable), http.StatusServiceUnavailable)
		return nil, ErrDraining
	}
	c := &Client{hub: h, id: opts.ID, handler: opts.Handler}
	c.touch()
	var subprotocols []string
	if opts.Subprotocol != "" {
		subprotocols = []string{opts.Subprotocol}
	}
	hj := &hijacker{ResponseWriter: w}
	ws, err := websocket.Accept(hj, r, &websocket.AcceptOptions{
		Subprotocols:       subprotocols,
		OriginPatterns:     opts.OriginPatterns,
		InsecureSkipVerify: opts.InsecureSkipVerify,
		CompressionMode:    websocket.CompressionDisabled,
		OnPingReceived:     c.pinged,
	})
	if err != nil {
		return nil, fmt.Errorf("accept socket %s: %w", opts.ID, err)
	}
	ws.SetReadLimit(-1) // readFrame counts, so that an error frame can come before the close
	c.ws, c.sock = ws, hj.sock
	if !h.add(c) { // the drain began during the upgrade; what has gone wrong with the socket does not matter any more
		_ = c.sock.writeFrames(appendFrame(nil, opClose, closePayload(CodeDrain, "server stops")), true, func() time.Time { return time.Now().Add(closeGrace) })
		_ = ws.CloseNow()
		return nil, ErrDraining
	}
	return c, nil
}

// pinged answers a ping frame through the queue, so that a peer that does not read cannot hold up the reader.
func (c *Client) pinged(_ context.Context, payload []byte) bool {
	c.touch()
	c.send(outFrame{op: opPong, data: append([]byte(nil), payload...)})
	return false
}

// hijacker hands the connection over with small buffers and through a sock.
type hijacker struct {
	http.ResponseWriter
	sock *sock
}

func (w *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, brw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	var before []byte
	if n := brw.Reader.Buffered(); n > 0 {
		if before, err = brw.Reader.Peek(n); err != nil {
			return nil, nil, fmt.Errorf("read what came with the request: %w", err)
		}
		before = append([]byte(nil), before...)
	}
	w.sock = newSock(conn, before)
	return w.sock, bufio.NewReadWriter(bufio.NewReaderSize(w.sock, readBuffer), bufio.NewWriterSize(w.sock, writeBuffer)), nil
}
