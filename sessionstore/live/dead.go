package live

import (
	"context"
	"fmt"
	"time"

	"github.com/real-rm/chatbox/sessionstore"
)

// lettersPage is how many dead letters one call of the script looks at: each holds up a partition for its reading.
const lettersPage = 32

// Letter is an event that MongoDB would not take, as an operator may see it: nothing of what was said.
type Letter struct {
	Partition int
	ID        string    // within the partition
	Aside     time.Time // when it was set aside
	Accepted  time.Time // when the event was accepted; zero if its header cannot be read
	SessionID string
	Seq       int64
	Type      string // of the event; empty if its header cannot be read
	Sender    string
	Bytes     int // of header and sealed body
	Reason    string
}

// Letters calls each with the dead letters of a partition, oldest first, until each returns false. Letters that come
// while it works may be among them.
func (s *Store) Letters(ctx context.Context, partition int, each func(Letter) bool) error {
	if partition < 0 || partition >= Partitions {
		return fmt.Errorf("dead letters: there is no partition %d", partition)
	}
	for after := ""; ; {
		r, err := s.run(ctx, s.pl.sc.letters, []string{s.parts[partition].dead()}, after, lettersPage)
		if err != nil {
			return fmt.Errorf("dead letters of partition %d: %w", partition, err)
		}
		list := r.list(1)
		for i := 0; i+5 < len(list); i += 6 {
			after = list.str(i)
			if !each(letterOf(partition, list[i:i+6])) {
				return nil
			}
		}
		if len(list) < lettersPage*6 {
			return nil
		}
	}
}

func letterOf(partition int, r reply) Letter {
	l := Letter{
		Partition: partition, ID: r.str(0), Aside: timeOf(r.str(0)), SessionID: r.str(1), Seq: r.num(2),
		Bytes: int(r.num(4)), Reason: r.str(5),
	}
	if h := r.str(3); h != "" {
		if ev, err := sessionstore.ParseFrame(sessionstore.Frame(l.Seq, []byte(h), nil)); err == nil {
			l.Type, l.Sender, l.Accepted = ev.Type, string(ev.Sender), ev.Timestamp
		}
	}
	return l
}

// timeOf is the time in the id of a stream's entry, by Redis' clock.
func timeOf(id string) time.Time {
	var ms int64
	if _, err := fmt.Sscanf(id, "%d-", &ms); err != nil {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// RetryLetter puts a dead letter back at the end of the partition's WAL, from where its keeper writes it to MongoDB; its
// place in the session does not depend on that. found is false if it is not among the dead letters, or not any more.
func (s *Store) RetryLetter(ctx context.Context, partition int, id string) (found bool, err error) {
	return s.letter(ctx, "retry", partition, id)
}

// DropLetter deletes a dead letter. The event it holds will never be in MongoDB.
func (s *Store) DropLetter(ctx context.Context, partition int, id string) (found bool, err error) {
	return s.letter(ctx, "drop", partition, id)
}

func (s *Store) letter(ctx context.Context, what string, partition int, id string) (bool, error) {
	if partition < 0 || partition >= Partitions {
		return false, fmt.Errorf("%s a dead letter: there is no partition %d", what, partition)
	}
	p := s.parts[partition]
	sid := ""
	entries, err := s.client.XRangeN(ctx, p.dead(), id, id, 1).Result()
	if err == nil && len(entries) > 0 {
		sid, _ = entries[0].Values["k"].(string)
	}
	var r reply
	if err == nil {
		r, err = s.run(ctx, s.pl.sc.letter, []string{p.dead(), p.wal(), p.doc(), p.session(sid).hash()}, what, id)
	}
	if err != nil {
		return false, fmt.Errorf("%s dead letter %s of partition %d: %w", what, id, partition, err)
	}
	return r.code() == "OK", nil
}
