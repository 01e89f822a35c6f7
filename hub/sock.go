package hub

import (
	"encoding/binary"
	"net"
	"sync"
	"syscall"
	"time"
)

// Opcodes of the frames that are written here (RFC 6455, 5.2), with the bit that says "whole message".
const (
	opText  byte = 0x81
	opClose byte = 0x88
	opPing  byte = 0x89
	opPong  byte = 0x8a
)

// sock is the connection as the WebSocket library and the client's writer share it. The library reads, and
// writes nothing but close frames, each in one Write; everything else is written by the client as whole frames,
// many at a time. Both stop at the first close frame.
type sock struct {
	net.Conn
	raw    syscall.RawConn // nil when the connection cannot be written to without waiting
	before []byte          // read by net/http before the connection was taken over; owned by the reader

	mu       sync.Mutex // held while writing
	closeOut bool       // a close frame has been written; nothing may follow
}

// unsentBytes is about how much the kernel may keep for a peer that does not take it, beside what is under way. It takes
// megabytes else, which a slow client would have to read before it sees anything new, and which could not be merged.
const unsentBytes = 128 << 10

func newSock(conn net.Conn, before []byte) *sock {
	s := &sock{Conn: conn, raw: rawConn(conn), before: before}
	if s.raw != nil {
		limitUnsent(s.raw, unsentBytes)
	}
	return s
}

func (s *sock) Read(p []byte) (int, error) {
	if len(s.before) > 0 {
		n := copy(p, s.before)
		if s.before = s.before[n:]; len(s.before) == 0 {
			s.before = nil
		}
		return n, nil
	}
	return s.Conn.Read(p)
}

// Write is for the library: p is one control frame.
func (s *sock) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closeOut {
		return len(p), nil
	}
	if len(p) > 0 && p[0] == opClose {
		s.closeOut = true
	}
	return s.Conn.Write(p)
}

// writeBytes is how much must be taken before a deadline.
const writeBytes = 16 << 10

// writeFrames writes whole frames and waits for each part of them at most until deadline says so. closes says that the
// last one is a close frame. An error leaves the stream torn: the connection is of no use afterwards.
func (s *sock) writeFrames(p []byte, closes bool, deadline func() time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closeOut {
		return net.ErrClosed
	}
	s.closeOut = closes
	for len(p) > 0 {
		part := p[:min(writeBytes, len(p))]
		if err := s.SetWriteDeadline(deadline()); err != nil {
			return err
		}
		if _, err := s.Conn.Write(part); err != nil {
			return err
		}
		p = p[len(part):]
	}
	// A deadline that passes later would make tryFrames fail for no reason.
	return s.SetWriteDeadline(time.Time{})
}

// tryFrames writes as much of p as the kernel takes without waiting. What it did not take must follow by
// writeFrames before anything else.
func (s *sock) tryFrames(p []byte, closes bool) (n int, err error) {
	if s.raw == nil || !s.mu.TryLock() {
		return 0, nil
	}
	defer s.mu.Unlock()
	if s.closeOut {
		return 0, net.ErrClosed
	}
	n, err = tryWrite(s.raw, p)
	s.closeOut = closes && n == len(p)
	return n, err
}

// appendFrame appends one unmasked frame.
func appendFrame(b []byte, op byte, payload []byte) []byte {
	b = append(b, op)
	switch n := len(payload); {
	case n < 126:
		b = append(b, byte(n))
	case n <= 0xffff:
		b = append(b, 126)
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	default:
		b = append(b, 127)
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return append(b, payload...)
}

// closePayload is the body of a close frame. A reason that does not fit is cut.
func closePayload(code Code, reason string) []byte {
	const maxReason = 123
	if len(reason) > maxReason {
		reason = reason[:maxReason]
		for len(reason) > 0 && reason[len(reason)-1] >= 0x80 {
			reason = reason[:len(reason)-1] // no half of a character
		}
	}
	return append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(reason)), uint16(code)), reason...)
}
