package e2e

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/assert"
)

// lostTail is how much Redis may lose of its newest writes when it is killed with "appendfsync everysec": a second, and
// another one for which it puts a write off while the disk is slow. See docs/guarantees.md.
const lostTail = 2 * time.Second

// tabOp is what a tab asks for: to open, or to end the session it names; or it is the death of Redis, which concerns
// every user.
type tabOp struct {
	user, end string
	unsure    bool  // whether the end has taken effect is not known
	returned  int64 // when the tab knew, unix nanoseconds; math.MaxInt64: never
	killed    int64 // when Redis was killed, unix nanoseconds; 0: it is not about that
}

// tabState is one user's sessions. A session is active, has ended, or is lost: Redis has forgotten that it was opened.
type tabState struct {
	active      string
	ended, lost []string // sorted
	log         []change // what the next death of Redis may take back, in order
	key         string   // all of the above
}

// change is an open or an end that a tab was told of.
type change struct {
	sid  string
	end  bool
	told int64
}

// next finishes a new state.
func next(s tabState) tabState {
	var b strings.Builder
	b.WriteString(s.active + "|" + strings.Join(s.ended, " ") + "|" + strings.Join(s.lost, " ") + "|")
	for _, c := range s.log {
		if c.end {
			b.WriteString("-")
		}
		b.WriteString(c.sid + " ")
	}
	s.key = b.String()
	return s
}

// with and without are sorted sets.
func with(set []string, sid string) []string {
	i, found := slices.BinarySearch(set, sid)
	if found {
		return set
	}
	return slices.Insert(slices.Clone(set), i, sid)
}

func without(set []string, sid string) []string {
	i, found := slices.BinarySearch(set, sid)
	if !found {
		return set
	}
	return slices.Delete(slices.Clone(set), i, i+1)
}

func contains(set []string, sid string) bool {
	_, found := slices.BinarySearch(set, sid)
	return found
}

// did notes a change. What precedes it in the log is shared with other states and never written to.
func (s tabState) did(c change) tabState {
	s.log = append(slices.Clip(s.log), c)
	return next(s)
}

// undone is the state before the newest change. What was opened is lost then: MongoDB may have it all the same.
func (s tabState) undone() tabState {
	c := s.log[len(s.log)-1]
	s.log = s.log[:len(s.log)-1]
	if c.end {
		s.ended, s.active = without(s.ended, c.sid), c.sid
	} else {
		s.active, s.lost = "", with(s.lost, c.sid)
	}
	return next(s)
}

// opened is the state after somebody was told to be in a session: the active one, or, if there is none, a new one or one
// that Redis had lost and MongoDB has. One that has ended never comes back.
func (s tabState) opened(sid string, told int64) []any {
	switch {
	case s.active == sid:
		return []any{s}
	case s.active != "" || contains(s.ended, sid):
		return nil
	}
	s.active, s.lost = sid, without(s.lost, sid)
	return []any{s.did(change{sid: sid, told: told})}
}

// closed is the state after somebody asked for the end of a session.
func (s tabState) closed(op tabOp) []any {
	var out []any
	switch {
	case contains(s.ended, op.end):
		return []any{s}
	case s.active == op.end:
		after := s
		after.active, after.ended = "", with(s.ended, op.end)
		out = append(out, after.did(change{sid: op.end, end: true, told: op.returned}))
	case contains(s.lost, op.end): // brought back for it, or MongoDB knew that it had ended
		after := s
		after.lost, after.ended = without(s.lost, op.end), with(s.ended, op.end)
		out = append(out, next(after))
	}
	if op.unsure {
		out = append(out, s)
	}
	return out
}

// died are the states that Redis may come back with: of what tabs were told in the last moments any number of changes
// may be gone, the newest first. What is there after the restart is in its file.
func (s tabState) died(at int64) []any {
	var out []any
	for {
		kept := s
		kept.log = nil
		out = append(out, next(kept))
		if n := len(s.log); n == 0 || s.log[n-1].told <= at-int64(lostTail) {
			return out
		}
		s = s.undone()
	}
}

// oneActive is a user's sessions (promise 48, invariant I3): one is active, or none is; who opens gets the active one, or
// another if there is none; one that has ended never comes back, unless Redis was killed just after and lost the end.
var oneActive = (&porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byUser := map[string][]porcupine.Operation{}
		for _, op := range history {
			if in := op.Input.(tabOp); in.killed == 0 {
				byUser[in.user] = append(byUser[in.user], op)
			}
		}
		var out [][]porcupine.Operation
		for _, ops := range byUser {
			for _, op := range history {
				if op.Input.(tabOp).killed != 0 {
					ops = append(ops, op)
				}
			}
			out = append(out, ops)
		}
		return out
	},
	Init: func() []any { return []any{next(tabState{})} },
	Step: func(state, input, output any) []any {
		s, op := state.(tabState), input.(tabOp)
		switch {
		case op.killed != 0:
			return s.died(op.killed)
		case op.end != "":
			return s.closed(op)
		}
		return s.opened(output.(string), op.returned)
	},
	Equal: func(a, b any) bool { return a.(tabState).key == b.(tabState).key },
}).ToModel()

// A history that a tester writes: times in milliseconds, one operation after the other unless said otherwise.
type past struct {
	ops []porcupine.Operation
	now int64 // milliseconds
}

func (p *past) add(op tabOp, sid string, took int64) *past {
	call := p.now * int64(time.Millisecond)
	p.now += took
	op.user, op.returned = "ann", p.now*int64(time.Millisecond)
	if op.killed != 0 {
		op.killed = call
	}
	p.ops = append(p.ops, porcupine.Operation{ClientId: len(p.ops), Input: op, Output: sid, Call: call, Return: op.returned})
	p.now++
	return p
}

func (p *past) opens(sid string) *past { return p.add(tabOp{}, sid, 1) }
func (p *past) ends(sid string) *past  { return p.add(tabOp{end: sid}, sid, 1) }
func (p *past) dies() *past            { return p.add(tabOp{killed: 1}, "", 5) }
func (p *past) waits(d time.Duration) *past {
	p.now += d.Milliseconds()
	return p
}

// unclear asks for an end and is never told what became of it.
func (p *past) unclear(sid string) *past {
	p.add(tabOp{end: sid, unsure: true}, sid, 1)
	p.ops[len(p.ops)-1].Return = math.MaxInt64
	return p
}

// I3: what the checker of the fault tests allows, and what it does not: one active session, and of a Redis that was
// killed no more than the loss of its last moments, newest first.
func TestOneActive_allowsTheLossOfATailAndNothingElse(t *testing.T) {
	start := func() *past { return &past{now: 1_000_000} }
	for _, c := range []struct {
		name string
		past *past
		want bool
	}{
		{"one after the other", start().opens("a").opens("a").ends("a").ends("a").opens("b"), true},
		{"two at a time", start().opens("a").opens("b"), false},
		{"an ended one", start().opens("a").ends("a").opens("b").ends("b").opens("a"), false},
		{"an end that is not known to have happened", start().opens("a").unclear("a").opens("a").opens("b"), true},
		{"and has not", start().opens("a").unclear("a").opens("a").opens("a"), true},
		{"and does not happen twice", start().opens("a").unclear("a").opens("b").opens("a"), false},
		{"killed, nothing lost", start().opens("a").dies().opens("a").ends("a").opens("b"), true},
		{"an open lost", start().opens("a").dies().opens("b").opens("b"), true},
		{"an open lost, and both at once", start().opens("a").dies().opens("b").opens("a"), false},
		{"a lost one brought back from MongoDB", start().opens("a").dies().opens("b").ends("b").opens("a"), true},
		{"a lost one ended, and brought back", start().opens("a").dies().opens("b").ends("a").ends("b").opens("a"), false},
		{"an end lost", start().opens("a").ends("a").dies().opens("a"), true},
		{"an end and the next open lost", start().opens("a").ends("a").opens("b").dies().opens("a"), true},
		{"an end kept, the next open lost", start().opens("a").ends("a").opens("b").dies().opens("c"), true},
		{"an end lost, a later open kept", start().opens("a").ends("a").opens("b").ends("b").dies().opens("a").opens("b"), false},
		{"an end long before", start().opens("a").ends("a").waits(2 * time.Second).opens("b").dies().opens("a"), false},
		{"an open long before", start().opens("a").waits(3 * time.Second).dies().opens("b"), false},
		{"what a restarted Redis has is in its file", start().opens("a").ends("a").dies().opens("b").waits(3 * time.Second).dies().opens("a"), false},
		{"brought back, and long after the first death", start().opens("a").dies().opens("a").waits(3 * time.Second).dies().opens("b"), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, part := range oneActive.Partition(c.past.ops) {
				assert.Equal(t, c.want, porcupine.CheckOperations(oneActive, part))
			}
		})
	}
}
