package live

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

const pageBytes = 128 << 10 // of a page, sealed; one record is returned even if it is larger

// A snapshot holds the newest SnapshotEvents events, or fewer if they are more than SnapshotBytes, sealed.
const (
	SnapshotEvents = 50
	SnapshotBytes  = 256 << 10
)

// Read reads on from a position: what follows it, in order and without a hole, or a snapshot of the newest events if
// the position cannot be continued. Errors: ErrNotFound, ErrAway, ErrUnsealed.
func (s *Store) Read(ctx context.Context, sid string, pos sessionstore.Position) (sessionstore.Page, error) {
	page, err := s.read(ctx, sid, pos)
	if err != nil {
		return page, fmt.Errorf("read session %s: %w", sid, err)
	}
	return page, nil
}

func (s *Store) read(ctx context.Context, sid string, pos sessionstore.Position) (sessionstore.Page, error) {
	p, err := s.part(sid)
	if err != nil {
		return sessionstore.Page{}, err
	}
	r, err := s.run(ctx, s.sc.read, p.answerKeys(sid), append(s.args(p, sid, 5),
		pos.Epoch, pos.Seq, pageBytes, SnapshotBytes, SnapshotEvents)...)
	if err != nil {
		return sessionstore.Page{}, err
	}
	page := sessionstore.Page{
		Position: sessionstore.Position{Epoch: r.str(1), Seq: r.num(2)},
		Snapshot: r.code() == "SNAP",
		More:     r.str(3) == "1",
		HasMore:  r.str(4) == "1",
	}
	if page.Session, err = s.parseSession(sid, r.list(6).fields()); err != nil {
		return sessionstore.Page{}, err
	}
	records := r.list(5)
	page.Messages = make([]sessionstore.Message, 0, len(records)/4)
	for i := 0; i+3 < len(records); i += 4 {
		// The numbering that readers know is the session's present one: an event keeps its seq in a new epoch.
		m, err := s.open(ctx, sid, page.Epoch, records.num(i), []byte(records.str(i+2)), []byte(records.str(i+3)))
		if err != nil {
			return sessionstore.Page{}, err
		}
		page.Messages = append(page.Messages, m)
	}
	if g := r.list(7); len(g) == 3 {
		page.Running, err = s.running(ctx, sid, page.Epoch, g, r.list(8))
	}
	return page, err
}

// running makes one message of the answer so far.
func (s *Store) running(ctx context.Context, sid, epoch string, g, chunks reply) (*sessionstore.Message, error) {
	text, _, err := s.openChunks(ctx, sid, g.str(0), chunks, "")
	if err != nil {
		return nil, err
	}
	ev := sessionstore.Event{
		Header: sessionstore.Header{
			Type: sessionstore.TypeAIResponse, SessionID: sid, MessageID: g.str(0), Sender: sessionstore.SenderAI,
			Attempt: int(g.num(1)), Chunk: int(g.num(2)), Reset: true,
		},
		Body: sessionstore.Body{Delta: text},
	}
	body := ev.Body.Fragment()
	return &sessionstore.Message{
		SessionID: sid, Epoch: epoch, Type: ev.Type, Sender: ev.Sender, MessageID: ev.MessageID,
		Attempt: ev.Attempt, Chunk: ev.Chunk, Reset: true,
		Delta: sessionstore.DeltaOf(body), Frame: sessionstore.Frame(0, ev.Header.Fragment(), body),
	}, nil
}

// openChunks joins the text of an answer's stored chunks. late is the part of it that came after the chunk named by mark,
// "attempt chunk".
func (s *Store) openChunks(ctx context.Context, sid, answerID string, chunks reply, mark string) (all, late string, err error) {
	if len(chunks) == 0 {
		return "", "", nil
	}
	key, err := s.DataKey(ctx, sid)
	if err != nil {
		return "", "", err
	}
	var text strings.Builder
	from, marked, markedChunk := 0, 0, 0
	if first, second, ok := strings.Cut(mark, " "); ok {
		marked, _ = strconv.Atoi(first)
		markedChunk, _ = strconv.Atoi(second)
	}
	for i := range chunks {
		attempt, rest, _ := strings.Cut(chunks.str(i), " ")
		chunk, c, _ := strings.Cut(rest, " ")
		a, _ := strconv.Atoi(attempt)
		n, _ := strconv.Atoi(chunk)
		body, err := key.Open([]byte(c), seal.ChunkAD(sid, answerID, a, n))
		if err != nil {
			return "", "", fmt.Errorf("open chunk %d of attempt %d of answer %s: %w", n, a, answerID, err)
		}
		ev, err := sessionstore.ParseFrame(sessionstore.Frame(0, body, nil))
		if err != nil {
			return "", "", fmt.Errorf("read chunk %d of attempt %d of answer %s: %w", n, a, answerID, err)
		}
		text.WriteString(ev.Delta)
		if a < marked || a == marked && n <= markedChunk {
			from = text.Len()
		}
	}
	return text.String(), text.String()[from:], nil
}

// Before returns the newest limit events whose seq is below before (before <= 0: from the top), oldest first, and the
// highest seq that was given so far. It reads the log only: what is older than that is in MongoDB, as may be what lies
// between two of its events whose numbers do not follow each other: an epoch began there. Errors: ErrNotFound, ErrAway,
// ErrUnsealed.
func (s *Store) Before(ctx context.Context, sid string, before int64, limit int) (events []sessionstore.Event, top int64, err error) {
	if events, top, err = s.before(ctx, sid, before, limit); err != nil {
		return nil, 0, fmt.Errorf("read session %s: %w", sid, err)
	}
	return events, top, nil
}

func (s *Store) before(ctx context.Context, sid string, before int64, limit int) ([]sessionstore.Event, int64, error) {
	p, err := s.part(sid)
	if err != nil {
		return nil, 0, err
	}
	end := "+"
	if before > 0 {
		end = "(" + strconv.FormatInt(before, 10) + "-0"
	}
	k := p.session(sid)
	var given *redis.StringCmd
	var entries *redis.XMessageSliceCmd
	_, err = s.client.Pipelined(ctx, func(pipe redis.Pipeliner) error {
		given = pipe.HGet(ctx, k.hash(), "s")
		entries = pipe.XRevRangeN(ctx, k.log(), end, "-", int64(limit))
		return nil
	})
	if errors.Is(err, redis.Nil) {
		return nil, 0, sessionstore.ErrNotFound
	}
	if err != nil {
		return nil, 0, redisError(err)
	}
	top, err := given.Int64()
	if err != nil {
		return nil, 0, fmt.Errorf("highest seq: %w", err)
	}
	list := entries.Val()
	out := make([]sessionstore.Event, len(list))
	for i, entry := range list {
		number, _, _ := strings.Cut(entry.ID, "-")
		seq, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return nil, 0, fmt.Errorf("log entry %s: %w", entry.ID, err)
		}
		epoch, _ := entry.Values["e"].(string)
		h, _ := entry.Values["h"].(string)
		c, _ := entry.Values["c"].(string)
		m, err := s.open(ctx, sid, epoch, seq, []byte(h), []byte(c))
		if err != nil {
			return nil, 0, err
		}
		if out[len(list)-1-i], err = sessionstore.ParseFrame(m.Frame); err != nil {
			return nil, 0, fmt.Errorf("read event %d: %w", seq, err)
		}
	}
	return out, top, nil
}
