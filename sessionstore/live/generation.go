package live

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// answerSpace is the namespace of answer ids. It is part of the stored format: never changed.
const answerSpace = "5b0d8d7e-63c5-4f4c-9d1c-1f7a2f0c8a54"

// AnswerID is the id of the answer to a question, the same on every replica and at every try, so that no question is
// answered twice.
func AnswerID(sid, questionID string) string {
	return uuid.NewSHA1(uuid.MustParse(answerSpace), []byte(sid+"|"+questionID)).String()
}

// Acquire makes the caller the producer of the answer that the session is owed, to all questions accepted so far, or
// of an answer whose producer has let its lease lapse: that one's Attempt, Chunk and Text are what was published.
// The lease lasts GenLease and is renewed by Renew and Chunk. Errors: ErrHeld, ErrNotOwed, ErrEnded, ErrAssisted,
// ErrNotFound, ErrAway.
func (s *Store) Acquire(ctx context.Context, sid string) (sessionstore.Generation, error) {
	g, err := s.acquire(ctx, sid)
	if err != nil {
		return g, fmt.Errorf("acquire answer in session %s: %w", sid, err)
	}
	return g, nil
}

func (s *Store) acquire(ctx context.Context, sid string) (sessionstore.Generation, error) {
	var none sessionstore.Generation
	p, err := s.part(sid)
	if err != nil {
		return none, err
	}
	for range maxRounds {
		first, err := s.client.ZRange(ctx, p.session(sid).ask(), 0, 0).Result()
		if err != nil {
			return none, redisError(err)
		}
		question, answer := "", ""
		if len(first) == 1 {
			question, answer = first[0], AnswerID(sid, first[0])
		}
		r, err := s.run(ctx, s.sc.acquire, p.answerKeys(sid), append(s.args(p, sid, 4),
			question, answer, randomText(10), s.o.GenLease.Milliseconds())...)
		if err != nil {
			return none, err
		}
		switch r.code() {
		case "OK":
			return s.generation(ctx, sid, r)
		case "SETTLE":
			if err := s.Settle(ctx, sid); err != nil {
				return none, err
			}
		}
	}
	return none, errRounds
}

// generation reads `OK gen session headers chunks whole`.
func (s *Store) generation(ctx context.Context, sid string, r reply) (sessionstore.Generation, error) {
	f, ses := r.list(1).fields(), r.list(2).fields()
	num := func(name string) int {
		n, _ := strconv.Atoi(f[name])
		return n
	}
	g := sessionstore.Generation{
		SessionID: sid, AnswerID: f["aid"], Token: f["tok"], Attempt: num("attempt"), Chunk: num("chunk"),
		Questions: strings.Fields(f["q"]), UpTo: int64(num("upto")), ModelID: ses["model"],
		Takeovers: num("tko"), Conversations: conversations(ses), Whole: r.str(5) == "1",
	}
	heads := r.list(3)
	for i := range heads {
		ev, err := sessionstore.ParseFrame(sessionstore.Frame(0, []byte(heads.str(i)), nil))
		if err == nil && ev.Type == sessionstore.TypeRegenerate {
			g.Replaces = ev.Target
		}
	}
	var late string
	var err error
	g.Text, late, err = s.openChunks(ctx, sid, g.AnswerID, r.list(4), f["ba"])
	g.Spent = s.spent(f, late)
	return g, err
}

// Renew prolongs the lease, also when it returns ErrStopped: the answer still has to be finished. Other errors:
// ErrFenced, ErrAway.
func (s *Store) Renew(ctx context.Context, g *sessionstore.Generation) error {
	p, err := s.part(g.SessionID)
	if err == nil {
		_, err = s.run(ctx, s.sc.renew, []string{p.session(g.SessionID).gen(), p.due()},
			g.SessionID, g.Token, s.o.GenLease.Milliseconds())
	}
	if err != nil {
		return fmt.Errorf("renew answer in session %s: %w", g.SessionID, err)
	}
	return nil
}

// Chunk keeps and publishes the next piece of the answer and renews the lease. With reset, delta replaces all that
// was published, under the next attempt. It updates g when it succeeds. After ErrAway or ErrFull it is to be called
// again with the same arguments; nothing is doubled. Other errors: ErrFenced, ErrStopped (and delta is not part of
// the answer), ErrGap.
//
// Calls with one Generation must not overlap.
func (s *Store) Chunk(ctx context.Context, g *sessionstore.Generation, delta string, reset bool) error {
	attempt, chunk, text := g.Attempt, g.Chunk+1, g.Text+delta
	if reset {
		attempt, chunk, text = g.Attempt+1, 1, delta
	}
	if err := s.chunk(ctx, g, attempt, chunk, delta, reset); err != nil {
		return fmt.Errorf("chunk %d of attempt %d in session %s: %w", chunk, attempt, g.SessionID, err)
	}
	g.Attempt, g.Chunk, g.Text = attempt, chunk, text
	return nil
}

func (s *Store) chunk(ctx context.Context, g *sessionstore.Generation, attempt, chunk int, delta string, reset bool) error {
	sid := g.SessionID
	p, err := s.part(sid)
	if err != nil {
		return err
	}
	key, err := s.DataKey(ctx, sid)
	if err != nil {
		return err
	}
	h := sessionstore.Header{
		Type: sessionstore.TypeAIResponse, SessionID: sid, MessageID: g.AnswerID, Sender: sessionstore.SenderAI,
		Attempt: attempt, Chunk: chunk, Reset: reset,
	}.Fragment()
	c := key.Seal(sessionstore.Body{Delta: delta}.Fragment(), seal.ChunkAD(sid, g.AnswerID, attempt, chunk))
	k := p.session(sid)
	_, err = s.runSoon(ctx, s.sc.chunk, []string{k.hash(), k.gen(), k.chunks(), p.due()},
		sid, p.channel(sid), s.publishCommand(), g.Token, attempt, chunk, reset, h, c, s.o.GenLease.Milliseconds())
	return err
}

// Finish writes the answer's durable event, ev, whose ids and sender are set here, and gives up the lease. more says
// that further questions are owed an answer. Duplicate says that the answer's event was there before: from an earlier
// try, or because the answer was cut and its partial kept. Errors: ErrFenced, ErrEnded, ErrGap, ErrNotFound, ErrAway.
func (s *Store) Finish(ctx context.Context, g *sessionstore.Generation, ev sessionstore.Event) (a sessionstore.Appended, more bool, err error) {
	sid := g.SessionID
	ev.Type, ev.SessionID, ev.MessageID, ev.Sender = sessionstore.TypeAIResponse, sid, g.AnswerID, sessionstore.SenderAI
	a, more, err = s.finish(ctx, g, ev)
	if err != nil {
		return a, false, fmt.Errorf("finish answer in session %s: %w", sid, err)
	}
	return a, more, nil
}

func (s *Store) finish(ctx context.Context, g *sessionstore.Generation, ev sessionstore.Event) (sessionstore.Appended, bool, error) {
	p, err := s.part(ev.SessionID)
	if err != nil {
		return sessionstore.Appended{}, false, err
	}
	f, err := s.facts(ctx, ev.SessionID)
	if err != nil {
		return sessionstore.Appended{}, false, err
	}
	e := sealEvent(f.key, ev)
	r, err := s.run(ctx, s.sc.final, p.endKeys(ev.SessionID, f.user), append(s.args(p, ev.SessionID, 10),
		e.id, e.h, e.c, g.Token, g.Attempt, g.Chunk, cost(ev.Spent), ev.ResponseTime, g.SaidBy, g.Said, g.SaidUpTo)...)
	if err != nil {
		return sessionstore.Appended{}, false, err
	}
	return appended(r), r.str(3) == "1", nil
}

// Release gives up the lease without an answer, which is due at once: another replica goes on, and what the answer has
// cost so far, g.Spent, counts as known. Not to hold it any more is no error.
func (s *Store) Release(ctx context.Context, g *sessionstore.Generation) error {
	p, err := s.part(g.SessionID)
	if err == nil {
		_, err = s.run(ctx, s.sc.release, []string{p.session(g.SessionID).gen(), p.due()}, g.SessionID, g.Token,
			g.Calls, settled(g.Spent))
	}
	if err != nil && !errors.Is(err, sessionstore.ErrFenced) {
		return fmt.Errorf("release answer in session %s: %w", g.SessionID, err)
	}
	return nil
}

// Stop asks the producer of the running answer to stop; it learns of it from Renew, Chunk or the published event at
// once. If none runs yet, but one is owed, whoever begins it learns of it from Book. If target is not empty and another
// answer runs, or none, nothing happens. Errors: ErrNotFound, ErrAway.
func (s *Store) Stop(ctx context.Context, sid, target string) error {
	p, err := s.part(sid)
	if err == nil {
		k := p.session(sid)
		h := sessionstore.Header{
			Type: sessionstore.TypeStop, SessionID: sid, Sender: sessionstore.SenderUser, Target: target,
		}.Fragment()
		_, err = s.run(ctx, s.sc.stop, []string{k.hash(), k.gen(), k.ask()}, p.channel(sid), s.publishCommand(), target, h, "")
	}
	if err != nil {
		return fmt.Errorf("stop answer in session %s: %w", sid, err)
	}
	return nil
}
