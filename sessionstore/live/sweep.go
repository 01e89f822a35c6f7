package live

import (
	"context"
	"errors"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/real-rm/chatbox/sessionstore"
)

// Kinds of deadlines in a partition's due list, with the session's id behind a colon.
const (
	dueEnd = "end" // the reconnect window is over
	dueAsk = "ask" // a question has waited too long for somebody to begin
	dueGen = "gen" // the lease of whoever produces the answer is over
	dueCut = "cut" // an answer was cut and whoever cut it has not settled it

	dueHold = "hold" // an admin who holds the session has not renewed that
)

func (k *keeper) sweepLoop(ctx context.Context, h DueHandler) {
	tick := time.NewTicker(k.s.o.SweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			k.sweep(ctx, h)
		}
	}
}

// sweep asks all partitions held for what is due, in one pipeline, and sees to it.
func (k *keeper) sweep(ctx context.Context, h DueHandler) {
	now := time.Now()
	held := k.holding()
	if len(held) == 0 {
		return
	}
	asking, cancel := context.WithTimeout(ctx, dueTimeout)
	defer cancel()
	parts := make([]int, 0, len(held))
	calls := make([]*invocation, 0, len(held))
	for p := range held {
		keys := k.s.parts[p]
		c, err := k.s.pl.invocation(asking, k.s.pl.sc.sweep, []string{keys.due(), keys.inst()},
			sweepLimit, k.s.o.AskDelay.Milliseconds(), k.skip(p, now))
		if err != nil {
			return
		}
		parts, calls = append(parts, p), append(calls, c)
	}
	invoke(asking, k.s.client, calls)

	var g errgroup.Group
	g.SetLimit(dueWorkers)
	for i, c := range calls {
		if c.err != nil { // renewing says so in the log
			continue
		}
		reply, _ := c.val.([]any)
		if len(reply) != 2 {
			continue
		}
		inst, _ := reply[0].(string)
		if k.instChanged(parts[i], inst, now) {
			continue // what is due is due in the next sweep, too
		}
		for _, member := range texts(reply[1]) {
			k.act(ctx, &g, h, member, now)
		}
	}
	_ = g.Wait()
	for member, until := range k.recent {
		if now.After(until) {
			delete(k.recent, member)
		}
	}
}

// skip names the kinds that must wait in the partition.
func (k *keeper) skip(p int, now time.Time) string {
	var s string
	if now.Before(k.quiet[p]) {
		s += ":" + dueAsk + ":" + dueGen + ":"
	}
	return s
}

func (k *keeper) instChanged(p int, inst string, now time.Time) bool {
	before, known := k.inst[p]
	k.inst[p] = inst
	if !known || before == inst {
		return false
	}
	k.quiet[p] = now.Add(instQuiet)
	return true
}

// act sees to one member. What did not help, or is not finished yet, is not tried again in each sweep.
func (k *keeper) act(ctx context.Context, g *errgroup.Group, h DueHandler, member string, now time.Time) {
	if until, ok := k.recent[member]; ok && now.Before(until) {
		return
	}
	kind, sid, _ := strings.Cut(member, ":")
	pause := time.Second
	switch kind {
	case dueAsk:
		h.Answer(sid)
		return // the script has put it off
	case dueGen:
		h.Answer(sid)
		pause = k.s.o.AskDelay
	case dueEnd:
		g.Go(func() error { k.do(ctx, kind, sid, k.s.expire); return nil })
	case dueHold:
		g.Go(func() error {
			k.do(ctx, kind, sid, func(ctx context.Context, sid string) error { _, err := k.s.lapse(ctx, sid); return err })
			return nil
		})
	case dueCut:
		g.Go(func() error { k.do(ctx, kind, sid, k.s.Settle); return nil })
	default:
		if _, ok := k.unknown[kind]; !ok {
			k.unknown[kind] = struct{}{}
			k.log.Warn("unknown kind of deadline is left alone", "kind", kind)
		}
		pause = time.Hour
	}
	k.recent[member] = now.Add(pause)
}

func (k *keeper) do(ctx context.Context, kind, sid string, f func(context.Context, string) error) {
	ctx, cancel := context.WithTimeout(ctx, dueTimeout)
	defer cancel()
	err := f(ctx, sid)
	if err == nil || ctx.Err() != nil || errors.Is(err, sessionstore.ErrNotFound) || errors.Is(err, sessionstore.ErrEnded) {
		return
	}
	k.log.Warn("deadline was not seen to, it will be tried again", "kind", kind, "session", sid, "err", err)
}
