package live

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/real-rm/chatbox/sessionstore"
)

const (
	// walLeast is how many bytes of a partition are read at a time, but one entry in any case; those that had more the
	// last time share walRound, up to walMost each. So 4 MiB are read of all 64, beside single entries that are larger: what
	// is read is in memory several times until MongoDB has it.
	walLeast = 32 << 10
	walRound = 2 << 20
	walMost  = 1 << 20
	// walDocs bounds the documents read from one partition at a time.
	walDocs = 200
	// endedTTL is how long an ended session stays in Redis after MongoDB has all of it: longer than a client waits
	// to send a message again.
	endedTTL = 30 * time.Minute
)

// ReadWAL reads what the partitions kept by this replica have for MongoDB, all in one pipeline: of each partition up
// to limit entries, oldest first, of all of them about 4 MiB; and documents of sessions that are due and of which nothing
// older waits in the WAL. Partitions that have nothing are left out. What is not reported to DoneWAL is read again.
//
// Partitions that cannot be read are left out and logged; the error is that none could be.
func (s *Store) ReadWAL(ctx context.Context, limit int) ([]sessionstore.WALBatch, error) {
	held := s.pl.keeper.holding()
	parts := make([]int, 0, len(held))
	calls := make([]*invocation, 0, len(held))
	behind := 0
	for p := range held {
		if s.pl.behind[p].Load() {
			behind++
		}
	}
	share := min(walMost, max(walLeast, walRound/max(1, behind)))
	for p, l := range held {
		room := walLeast
		if s.pl.behind[p].Load() {
			room = share
		}
		keys := s.parts[p]
		c, err := s.pl.invocation(ctx, s.pl.sc.pending, []string{keys.keeper(), keys.inst(), keys.wal(), keys.doc()},
			l.token, limit, room, walDocs)
		if err != nil {
			return nil, fmt.Errorf("read wal: %w", err)
		}
		parts, calls = append(parts, p), append(calls, c)
	}
	if len(calls) == 0 {
		return nil, nil
	}
	invoke(ctx, s.client, calls)

	var unread error // the last one's
	failed := 0
	out := make([]sessionstore.WALBatch, 0, len(calls))
	var docs []docRead
	for i, c := range calls {
		r, err := checked(s.pl.sc.pending, c.val, c.err)
		if err != nil {
			unread = fmt.Errorf("read wal of partition %d: %w", parts[i], err)
			failed++
			continue
		}
		if r.code() != "OK" {
			continue // lost meanwhile
		}
		b := sessionstore.WALBatch{Partition: parts[i], Token: held[parts[i]].token, Inst: r.str(1)}
		b.Entries, b.More = walEntries(r.list(3)), r.str(2) != "1"
		s.pl.behind[parts[i]].Store(b.More)
		for _, sid := range texts([]any(r.list(4))) {
			docs = append(docs, docRead{sid: sid, batch: len(out), drained: !b.More})
		}
		out = append(out, b)
	}
	if len(out) == 0 {
		return nil, unread
	}
	if failed > 0 { // one line, not one for each: a cluster node that is away has a third of them
		s.log.Warn("partitions cannot be read for the archive", "failed", failed, "of", len(calls), "err", unread)
	}
	if err := s.readDocs(ctx, out, docs); err != nil { // they stay due
		s.log.Warn("session documents cannot be read for the archive", "err", err)
	}
	n := 0
	for _, b := range out {
		if len(b.Entries) > 0 || len(b.Docs) > 0 {
			out[n] = b
			n++
		}
	}
	return out[:n], nil
}

func walEntries(r reply) []sessionstore.WALEntry {
	out := make([]sessionstore.WALEntry, 0, len(r)/6)
	for i := 0; i+5 < len(r); i += 6 {
		out = append(out, sessionstore.WALEntry{
			ID: r.str(i),
			Stored: sessionstore.Stored{
				SessionID: r.str(i + 1),
				Epoch:     r.str(i + 2),
				Seq:       r.num(i + 3),
				H:         []byte(r.str(i + 4)),
				C:         []byte(r.str(i + 5)),
			},
		})
	}
	return out
}

// docRead is a session whose document is due.
type docRead struct {
	sid     string
	batch   int  // index of its partition's batch
	drained bool // the batch holds all that was in the WAL
	cmd     *redis.MapStringStringCmd
}

// readDocs adds to the batches the documents that are due, unless events that they speak of are still in the WAL
// behind the batch.
func (s *Store) readDocs(ctx context.Context, batches []sessionstore.WALBatch, docs []docRead) error {
	if len(docs) == 0 {
		return nil
	}
	pipe := s.client.Pipeline()
	for i, d := range docs {
		docs[i].cmd = pipe.HGetAll(ctx, s.parts[batches[d.batch].Partition].session(d.sid).hash())
	}
	execute(ctx, pipe)
	var errs []error
	for _, d := range docs {
		fields, err := d.cmd.Result()
		if err != nil {
			errs = append(errs, fmt.Errorf("read session %s for its document: %w", d.sid, redisError(err)))
			continue
		}
		b := &batches[d.batch]
		if len(fields) == 0 { // Redis has forgotten the session
			errs = append(errs, s.forgetDoc(ctx, b, d.sid))
			continue
		}
		doc := sessionDoc(d.sid, fields)
		if !d.drained && max(doc.Session.Durable, highest(b.Entries, d.sid)) < doc.Session.Seq {
			continue
		}
		b.Docs = append(b.Docs, doc)
	}
	return errors.Join(errs...)
}

// forgetDoc takes a session that is gone off the list of those to be written.
func (s *Store) forgetDoc(ctx context.Context, b *sessionstore.WALBatch, sid string) error {
	gone := sessionstore.WALBatch{Partition: b.Partition, Token: b.Token, Inst: b.Inst}
	gone.Docs = []sessionstore.SessionDoc{{Session: sessionstore.Session{ID: sid}}}
	return s.DoneWAL(ctx, gone)
}

// highest returns the highest seq of the session among the entries, 0 if it has none.
func highest(entries []sessionstore.WALEntry, sid string) int64 {
	var seq int64
	for _, e := range entries {
		if e.SessionID == sid {
			seq = max(seq, e.Seq)
		}
	}
	return seq
}

// sessionDoc makes a session's document out of its hash.
func sessionDoc(sid string, fields map[string]string) sessionstore.SessionDoc {
	doc := sessionstore.SessionDoc{
		Session:    sessionFields(sid, fields),
		SealedName: []byte(fields["nm"]),
		WrappedKey: []byte(fields["key"]),
		Final:      fields["st"] == stateEnded,
	}
	// The document names the last admin, also after they have left.
	doc.Session.AdminID, doc.Session.AdminName = fields["aid"], fields["an"]
	for iv := range strings.SplitSeq(fields["iv"], ",") {
		from, to, ok := strings.Cut(iv, "-")
		if !ok {
			continue
		}
		start, err1 := strconv.ParseInt(from, 10, 64)
		end, err2 := strconv.ParseInt(to, 10, 64)
		if err1 == nil && err2 == nil {
			doc.Intervals = append(doc.Intervals, sessionstore.Interval{
				Start: time.UnixMilli(start).UTC(), End: time.UnixMilli(end).UTC(),
			})
		}
	}
	return doc
}

// States of a session in its hash.
const (
	stateActive = "active"
	stateEnded  = "ended"
)

// DoneWAL says that MongoDB has all of the batch. It takes the entries off the WAL, raises what is durable in their
// sessions, and lets go of sessions that have ended and are written. If the partition has another keeper or Redis
// another primary than when the batch was read it changes nothing and returns ErrFenced: the batch will be read
// again, by whoever keeps the partition now. It may be repeated.
func (s *Store) DoneWAL(ctx context.Context, b sessionstore.WALBatch) error {
	type state struct {
		seq           int64
		docSeq, docSt string
	}
	sessions := make(map[string]*state)
	order := make([]string, 0, len(b.Docs))
	touch := func(sid string) *state {
		st := sessions[sid]
		if st == nil {
			st = &state{}
			sessions[sid] = st
			order = append(order, sid)
		}
		return st
	}
	for _, e := range b.Entries {
		st := touch(e.SessionID)
		st.seq = max(st.seq, e.Seq)
	}
	for _, d := range b.Docs {
		st := touch(d.Session.ID)
		st.docSeq, st.docSt = strconv.FormatInt(d.Session.Seq, 10), stateActive
		if d.Final {
			st.docSt = stateEnded
		}
	}

	p := s.parts[b.Partition]
	keys := []string{p.inst(), p.wal(), p.keeper(), p.doc()}
	args := []any{b.Token, b.Inst, s.o.LogBytes, endedTTL.Milliseconds(), len(order)}
	for _, sid := range order {
		st := sessions[sid]
		keys = append(keys, p.session(sid).all()...)
		args = append(args, sid, st.seq, st.docSeq, st.docSt)
	}
	for _, e := range b.Entries {
		args = append(args, e.ID)
	}
	return s.fenced(ctx, s.pl.sc.done, b.Partition, keys, args...)
}

// DeadWAL moves an entry that MongoDB will not take from the WAL to the partition's dead letters, with a reason
// that holds none of its text. Conditions are those of DoneWAL.
func (s *Store) DeadWAL(ctx context.Context, b sessionstore.WALBatch, e sessionstore.WALEntry, reason string) error {
	p := s.parts[b.Partition]
	return s.fenced(ctx, s.pl.sc.dead, b.Partition, []string{p.inst(), p.wal(), p.keeper(), p.dead()},
		b.Token, b.Inst, e.ID, reason)
}

// fenced runs a script that changes the WAL only for its keeper.
func (s *Store) fenced(ctx context.Context, sc *script, partition int, keys []string, args ...any) error {
	r, err := s.run(ctx, sc, keys, args...)
	if err == nil && r.code() != "OK" {
		err = sessionstore.ErrFenced
	}
	if err != nil {
		return fmt.Errorf("wal of partition %d: %s: %w", partition, sc.name, err)
	}
	return nil
}
