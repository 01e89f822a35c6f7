package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// errRecord says that a published record is not one of ours.
var errRecord = errors.New("malformed record")

// parseRecord reads a published record: `epoch SP seq SP len(h) SP h c`, where h is a header fragment in the clear
// and c, all the rest, a sealed body fragment or nothing. The results point into payload.
func parseRecord(payload []byte) (epoch string, seq int64, h, c []byte, err error) {
	first, rest, ok := bytes.Cut(payload, space)
	if !ok || len(first) == 0 {
		return "", 0, nil, nil, fmt.Errorf("%w: no epoch", errRecord)
	}
	number, rest, ok := bytes.Cut(rest, space)
	if !ok {
		return "", 0, nil, nil, fmt.Errorf("%w: no seq", errRecord)
	}
	if seq, err = parseNumber(number); err != nil {
		return "", 0, nil, nil, fmt.Errorf("%w: bad seq", errRecord)
	}
	number, rest, ok = bytes.Cut(rest, space)
	if !ok {
		return "", 0, nil, nil, fmt.Errorf("%w: no length", errRecord)
	}
	n, err := parseNumber(number)
	if err != nil || n > int64(len(rest)) {
		return "", 0, nil, nil, fmt.Errorf("%w: bad length", errRecord)
	}
	return string(first), seq, rest[:n:n], rest[n:], nil
}

var space = []byte{' '}

// parseNumber reads a plain decimal number >= 0: no sign, no space, no exponent.
func parseNumber(b []byte) (int64, error) {
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, errRecord
		}
	}
	return strconv.ParseInt(string(b), 10, 64)
}

// clearHeader is what delivery needs of a header fragment.
type clearHeader struct {
	Type      string              `json:"type"`
	Sender    sessionstore.Sender `json:"sender"`
	MessageID string              `json:"message_id"`
	Attempt   int                 `json:"attempt"`
	Chunk     int                 `json:"chunk"`
	Reset     bool                `json:"reset"`
}

// open makes the message that clients get out of a stored or published record: it unseals c, whose associated data
// is that of a chunk for a chunk (an answer's part without a seq) and that of a message for all else, and joins the
// frame. It fetches the session's data key if it is not cached, so it may block on Redis.
func (s *Store) open(ctx context.Context, sid, epoch string, seq int64, h, c []byte) (sessionstore.Message, error) {
	var head clearHeader
	if err := json.Unmarshal(sessionstore.Frame(0, h, nil), &head); err != nil {
		return sessionstore.Message{}, fmt.Errorf("read header of event %d in session %s: %w", seq, sid, errRecord)
	}
	var body []byte
	if len(c) > 0 {
		key, err := s.DataKey(ctx, sid)
		if err != nil {
			return sessionstore.Message{}, fmt.Errorf("open event %d in session %s: %w", seq, sid, err)
		}
		ad := seal.MessageAD(sid, head.MessageID)
		if isChunk(head, seq) {
			ad = seal.ChunkAD(sid, head.MessageID, head.Attempt, head.Chunk)
		}
		if body, err = key.Open(c, ad); err != nil {
			return sessionstore.Message{}, fmt.Errorf("open event %d in session %s: %w", seq, sid, err)
		}
	}
	m := sessionstore.Message{
		SessionID: sid,
		Epoch:     epoch,
		Seq:       seq,
		Type:      head.Type,
		Sender:    head.Sender,
		MessageID: head.MessageID,
		Attempt:   head.Attempt,
		Chunk:     head.Chunk,
		Reset:     head.Reset,
		Frame:     sessionstore.Frame(seq, h, body),
	}
	if isChunk(head, seq) {
		m.Delta = sessionstore.DeltaOf(body)
	}
	return m, nil
}

// isChunk tells a chunk of a running answer from everything else that is published.
func isChunk(head clearHeader, seq int64) bool {
	return seq == 0 && head.Type == sessionstore.TypeAIResponse && head.Chunk > 0
}
