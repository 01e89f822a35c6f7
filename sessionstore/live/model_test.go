package live

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/sessionstore"
)

// Promise 12: order is preserved. Eight writers on two replicas, each sending some of its messages again: seqs have
// no hole, ids come once, each writer's messages stand in the order in which it sent them, and a reader that pulls
// pages sees just that.
func TestAppend_manyWritersMakeOneOrder(t *testing.T) {
	s := newTestStore(t, nil)
	stores := []*Store{s, beside(t, s, "r2")}
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		sid := openSession(t, s, fmt.Sprintf("u%d", n))
		const writers = 8
		plans := make([][]int, writers) // how often each message is sent
		for w := range plans {
			plans[w] = rapid.SliceOfN(rapid.IntRange(1, 3), 1, 6).Draw(rt, "sends")
		}
		seqs := make([][]int64, writers)
		var wg sync.WaitGroup
		for w, plan := range plans {
			wg.Go(func() {
				for _, sends := range plan {
					q := question(sid, fmt.Sprintf("from %d", w))
					for try := range sends {
						a, err := stores[(w+try)%2].Append(testContext(t), q)
						if !assert.NoError(t, err) {
							return
						}
						assert.Equal(t, try > 0, a.Duplicate)
						if try == 0 {
							seqs[w] = append(seqs[w], a.Seq)
						} else {
							assert.Equal(t, seqs[w][len(seqs[w])-1], a.Seq)
						}
					}
				}
			})
		}
		wg.Wait()
		total := 1
		for _, mine := range seqs {
			total += len(mine)
			assert.IsIncreasing(t, append([]int64{0}, mine...))
		}
		require.Len(t, transcript(t, s, sid), total)
		page, err := s.Read(testContext(t), sid, sessionstore.Position{Epoch: epochOf(t, s, sid), Seq: 0})
		require.NoError(t, err)
		require.Len(t, page.Messages, total)
	})
}

func epochOf(tb testing.TB, s *Store, sid string) string {
	tb.Helper()
	ses, err := s.Session(testContext(tb), sid)
	require.NoError(tb, err)
	return ses.Epoch
}

// opened is one operation on the question "which session is the user's active one".
type opened struct {
	end bool
	sid string // End: of which session
}

// oneActive is the model: opening gives the active session, or a new one if there is none; ending it leaves none.
var oneActive = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		active, op := state.(string), input.(opened)
		if op.end {
			if active == op.sid {
				return true, ""
			}
			return true, active
		}
		got := output.(string)
		return active == "" || active == got, got
	},
	Equal: func(a, b any) bool { return a == b },
}

// Promise 48: a user has at most one active session: what racing opens and ends see is linearizable.
func TestOpen_isLinearizableWithEnd(t *testing.T) {
	s := newTestStore(t, nil)
	stores := []*Store{s, beside(t, s, "r2"), beside(t, s, "r3")}
	ctx := testContext(t)
	for round := range 20 {
		user := fmt.Sprintf("u%d", round)
		var mu sync.Mutex
		var history []porcupine.Operation
		begin := time.Now()
		var wg sync.WaitGroup
		for c := range 8 {
			wg.Go(func() {
				last := ""
				for range 4 {
					op, out := opened{}, ""
					called := time.Since(begin)
					if last != "" && rand.IntN(3) == 0 {
						op = opened{end: true, sid: last}
						if !assert.NoError(t, stores[c%3].End(ctx, last, "explicit", "")) {
							return
						}
					} else {
						o, err := stores[c%3].Open(ctx, sessionstore.OpenRequest{UserID: user, ConnID: uuid.NewString()})
						if !assert.NoError(t, err) {
							return
						}
						out, last = o.Session.ID, o.Session.ID
					}
					mu.Lock()
					history = append(history, porcupine.Operation{ClientId: c, Input: op, Output: out,
						Call: called.Nanoseconds(), Return: time.Since(begin).Nanoseconds()})
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		require.True(t, porcupine.CheckOperations(oneActive, history))
	}
}

// Beyond B4: a join raced against an answer at every chunk: no AI text follows it, and what was shown is kept whole.
func TestCut_racedAtEveryChunk(t *testing.T) {
	s := newTestStore(t, nil)
	other := beside(t, s, "r2")
	ctx := testContext(t)
	const chunks = 20
	for at := range chunks {
		sid := openSession(t, s, fmt.Sprintf("u%d", at))
		ask(t, s, sid, "q")
		g, err := s.Acquire(ctx, sid)
		require.NoError(t, err)
		reached := make(chan struct{})
		var wg sync.WaitGroup
		var finished bool
		wg.Go(func() {
			for i := range chunks {
				if i == at {
					close(reached)
				}
				if s.Chunk(ctx, &g, "x", false) != nil {
					return
				}
			}
			a, _, err := s.Finish(ctx, &g, finalEvent(g))
			finished = err == nil && !a.Duplicate
		})
		wg.Go(func() {
			<-reached
			_, err := other.Cut(ctx, joinEvent(sid), &Hold{AdminID: "a1", Name: "Eve"})
			assert.NoError(t, err)
		})
		wg.Wait()
		events := transcript(t, s, sid)
		require.Equal(t, sessionstore.TypeAdminJoin, events[len(events)-1].Type)
		text := ""
		if len(events) == 4 {
			text = events[2].Content
		}
		require.Equal(t, g.Text, text)
		require.Equal(t, finished, len(events) == 4 && events[2].Metadata[sessionstore.MetaInterrupted] == "")
	}
}
