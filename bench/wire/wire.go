// Package wire is the client end of a WebSocket as the load generator needs it: small and cheap, so that what is
// measured is the server and not its clients, which share the machine with it.
//
// A Conn is one TCP connection, two buffers of half a KiB and no goroutine. Frames come out of Next in the order in
// which the server wrote them; pings are answered inside Next. One goroutine may call Next while others Write. It
// speaks to trusted servers on loopback only: masks are zero, extensions are not offered, fragments are refused.
package wire

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	bufferBytes = 512
	maxFrame    = 1 << 20 // larger frames mean that the stream is torn

	opText  = 0x1
	opClose = 0x8
	opPing  = 0x9
	opPong  = 0xa
	final   = 0x80
	masked  = 0x80
)

// CloseError is what Next returns when the server has closed the connection.
type CloseError struct {
	Code   int // 1005 if the server gave none
	Reason string
}

func (e *CloseError) Error() string {
	return fmt.Sprintf("closed by the server: %d %s", e.Code, e.Reason)
}

// Conn is one WebSocket.
type Conn struct {
	// Set once by Dial.
	conn net.Conn
	r    *bufio.Reader

	in []byte // owned by Next

	mu  sync.Mutex // held while writing
	out []byte
}

// Dial connects to ws://addr/path, offering the subprotocols. It returns after the server's 101.
func Dial(ctx context.Context, addr, path string, subprotocols ...string) (*Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	c := &Conn{conn: conn, r: bufio.NewReaderSize(conn, bufferBytes)}
	if err := c.upgrade(ctx, addr, path, subprotocols); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("upgrade at %s: %w", addr, err)
	}
	return c, nil
}

func (c *Conn) upgrade(ctx context.Context, addr, path string, subprotocols []string) error {
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.conn.SetDeadline(deadline); err != nil {
			return err
		}
	}
	var b strings.Builder
	b.WriteString("GET " + path + " HTTP/1.1\r\nHost: " + addr + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n")
	if len(subprotocols) > 0 {
		b.WriteString("Sec-WebSocket-Protocol: " + strings.Join(subprotocols, ", ") + "\r\n")
	}
	b.WriteString("\r\n")
	if _, err := io.WriteString(c.conn, b.String()); err != nil {
		return err
	}
	status, err := c.r.ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(status, "HTTP/1.1 101 ") {
		return fmt.Errorf("answered %q, not %d", strings.TrimSpace(status), http.StatusSwitchingProtocols)
	}
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return err
		}
		if strings.TrimSpace(line) == "" {
			return c.conn.SetDeadline(time.Time{})
		}
	}
}

// SetDeadline bounds Next and Write; the zero time takes the bound away.
func (c *Conn) SetDeadline(t time.Time) error { return c.conn.SetDeadline(t) }

// Next returns the next text frame. The bytes are valid until the next call. A close by the server is a *CloseError.
func (c *Conn) Next() ([]byte, error) {
	for {
		op, payload, err := c.frame()
		if err != nil {
			return nil, err
		}
		switch op {
		case opText:
			return payload, nil
		case opPing:
			if err := c.write(opPong, payload); err != nil {
				return nil, err
			}
		case opPong:
		case opClose:
			e := &CloseError{Code: 1005}
			if len(payload) >= 2 {
				e.Code, e.Reason = int(binary.BigEndian.Uint16(payload)), string(payload[2:])
			}
			return nil, e
		default:
			return nil, fmt.Errorf("frame of kind %#x", op)
		}
	}
}

func (c *Conn) frame() (op byte, payload []byte, err error) {
	var h [8]byte
	if _, err := io.ReadFull(c.r, h[:2]); err != nil {
		return 0, nil, err
	}
	if h[0]&final == 0 || h[1]&masked != 0 {
		return 0, nil, errors.New("fragmented or masked frame")
	}
	op = h[0] &^ final
	n := uint64(h[1])
	switch n {
	case 126:
		if _, err := io.ReadFull(c.r, h[:2]); err != nil {
			return 0, nil, err
		}
		n = uint64(binary.BigEndian.Uint16(h[:2]))
	case 127:
		if _, err := io.ReadFull(c.r, h[:8]); err != nil {
			return 0, nil, err
		}
		n = binary.BigEndian.Uint64(h[:8])
	}
	if n > maxFrame {
		return 0, nil, fmt.Errorf("frame of %d bytes", n)
	}
	if uint64(cap(c.in)) < n {
		c.in = make([]byte, n)
	}
	c.in = c.in[:n]
	_, err = io.ReadFull(c.r, c.in)
	return op, c.in, err
}

// Write sends one text frame.
func (c *Conn) Write(payload []byte) error { return c.write(opText, payload) }

// Ping sends a ping frame, which counts as life.
func (c *Conn) Ping() error { return c.write(opPing, nil) }

func (c *Conn) write(op byte, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	b := append(c.out[:0], final|op)
	switch n := len(payload); {
	case n < 126:
		b = append(b, masked|byte(n))
	case n <= 0xffff:
		b = binary.BigEndian.AppendUint16(append(b, masked|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, masked|127), uint64(n))
	}
	b = append(b, 0, 0, 0, 0)
	b = append(b, payload...)
	c.out = b
	_, err := c.conn.Write(b)
	return err
}

// Close says goodbye and closes the TCP connection at once.
func (c *Conn) Close() error {
	_ = c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_ = c.write(opClose, []byte{0x03, 0xe8}) // 1000; the peer may be gone already
	return c.conn.Close()
}
