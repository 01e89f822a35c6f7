//go:build faults

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/llmfake"
	"github.com/real-rm/chatbox/sessionstore"
)

// customers is how many users ask at a time in TestBooks.
const customers = 8

// Beyond B8: over a random schedule of plain answers, stops at any chunk, failures before and after the first token,
// repetitions, fallbacks and retries, asked of models of all kinds, while replicas are killed and shut down in the middle,
// the books balance: the calls that answers name are those that the providers got, but for calls that were booked and
// never left because the replica died, or was told to stop, in between; the tokens are those of the bill where providers
// reported them, and close to it in sum where they are estimated; sessions are the sum of their answers.
func TestBooks(t *testing.T) {
	g := newGateway()
	c := start(t, options{
		model: g.in, providers: func(base string) string { return everyKind(base, true) }, secrets: gatewaySecrets(), chatbox: unlimited,
		env: []string{
			"CHATBOX__CHATBOX__LLM__BACKOFF_BASE=5ms", "CHATBOX__CHATBOX__LLM__BACKOFF_CAP=20ms", "CHATBOX__CHATBOX__LLM__RETRY_FLOOR=100000",
			"CHATBOX__CHATBOX__LLM__BREAKER_FAILURES=100000", // a model that is left alone is asked nothing
		},
	})
	seed := chaosSeed(t)
	ctx, cancel := context.WithTimeout(t.Context(), inCI(3*time.Minute, 15*time.Minute))
	defer cancel()
	deaths := &mortality{}
	var everyone []*customer
	var wg sync.WaitGroup
	each := inCI(15, 63)
	for n := range customers {
		id := fmt.Sprintf("customer-%d", n)
		k := &customer{c: c, g: g, user: newUser(id, c.token(id)), dice: rand.New(rand.NewPCG(seed, uint64(n))), deaths: deaths, told: map[string]int{}}
		everyone = append(everyone, k)
		wg.Go(func() { assert.NoError(t, k.trade(ctx, each), id) })
	}
	done := make(chan struct{})
	go func() { defer close(done); wg.Wait() }()
	reap(t, c, deaths, rand.New(rand.NewPCG(seed, 1000)), done)
	if t.Failed() {
		t.FailNow()
	}
	a := &audit{t: t, c: c, g: g, did: map[string]int{}, told: map[string]int{}}
	for _, k := range everyone {
		a.customer(k)
	}
	a.report(deaths)
	require.GreaterOrEqual(t, a.answers, each*customers)
}

// mortality counts deaths of replicas.
type mortality struct {
	begun, over     atomic.Int64
	killed, drained int // owned by reap until it returns
}

// reap kills and shuts down replicas, one at a time, until done.
func reap(t *testing.T, c *cluster, m *mortality, dice *rand.Rand, done <-chan struct{}) {
	t.Helper()
	for {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(100+dice.IntN(800)) * time.Millisecond):
		}
		victim := dice.IntN(len(c.replicas))
		m.begun.Add(1)
		if dice.IntN(4) > 0 {
			c.kill(victim)
			m.killed++
		} else {
			require.NoError(t, c.replicas[victim].Signal(syscall.SIGTERM))
			_ = c.replicas[victim].Wait()
			m.drained++
		}
		m.over.Add(1)
		c.startReplica(victim, binary(t))
	}
}

// customer is a user whose every answer is audited. Owned by the goroutine of trade, then by the audit.
type customer struct {
	c      *cluster
	g      *gateway
	user   *user
	dice   *rand.Rand
	deaths *mortality
	model  string
	stops  int            // sent so far
	told   map[string]int // recoverable refusals, by code
	orders []order
}

// order is one question with what came of it.
type order struct {
	what        string
	id          string // of the question, or of the frame that asks again
	calls       [2]int // of the session at the gateway: the first, and the one after the last
	lines       [2]int // of the session's bill, alike
	ends        int    // what may have come between a booking and its request: stops and deaths
	interrupted bool   // by a death
	attempts    int    // that were seen of its text
}

// dealings are what may happen with a question. A failure is repeated three times with a model, then the others are asked.
var dealings = []struct{ what, command string }{
	{"plain", "hello, what is new?"}, {"plain", "!tokens 12 2"}, {"plain", "!tokens 60 15"}, {"plain", "!tokens 60 15"},
	{"no usage", "!nousage"},
	{"stop", "!tokens 60 15"}, {"stop", "!tokens 60 15"}, {"stop", "!stallmid 5"},
	{"again before the first token", "!error 500 times=1"}, {"again before the first token", "!error 503 times=2"},
	{"again before the first token", "!cut 0 times=1"}, {"again before the first token", "!mid overloaded 0 times=1"},
	{"failed before the first token", "!error 503"},
	{"failed after it", "!cut 5"}, {"failed after it", "!abort 5"}, {"failed after it", "!mid server 5"},
	{"retry", "!error 503 times=3"}, {"retry", "!cut 5 times=1"},
	{"fallback", "!tokens 12 2"}, {"fallback", "!tokens 60 15"},
}

// trade asks n questions.
func (k *customer) trade(ctx context.Context, n int) error {
	u := k.user
	for range n {
		sleepFor(ctx, time.Duration(k.dice.IntN(400))*time.Millisecond)
		if model := modelKinds[k.dice.IntN(len(modelKinds))]; model != k.model {
			id := uuid.NewString()
			if err := k.deliver(ctx, id, map[string]any{"type": "model_select", "message_id": id, "model_id": model}, 0, func() bool { return u.acked[id] > 0 }); err != nil {
				return err
			}
			k.model = model
		}
		deal := dealings[k.dice.IntN(len(dealings))]
		if deal.what == "fallback" {
			k.g.doom("!error 403", 1, u.session())
		}
		stopAt := 0
		if deal.what == "stop" {
			stopAt = 1 + k.dice.IntN(40)
			if deal.command == "!stallmid 5" {
				stopAt = 1
			}
		}
		id := uuid.NewString()
		answer, err := k.order(ctx, deal.what, id, map[string]any{"type": "user_message", "message_id": id, "content": deal.command}, stopAt)
		if err != nil {
			return fmt.Errorf("%s %q of %s: %w", deal.what, deal.command, k.model, err)
		}
		if deal.what == "retry" && answer.Metadata["failed"] != "" {
			again := uuid.NewString()
			if _, err := k.order(ctx, "the retry", again, map[string]any{"type": "retry", "message_id": again, "target": id}, 0); err != nil {
				return fmt.Errorf("the retry of %q of %s: %w", deal.command, k.model, err)
			}
		}
	}
	return nil
}

// order asks one question and notes what its answer took.
func (k *customer) order(ctx context.Context, what, id string, f map[string]any, stopAt int) (frame, error) {
	u := k.user
	at := func() (int, int) { return len(k.g.of(u.session())), len(k.c.lines(u.session())) }
	o := order{what: what, id: id}
	stops, deaths := k.stops, k.deaths.over.Load()
	o.calls[0], o.lines[0] = at()
	err := k.deliver(ctx, id, f, stopAt, func() bool { return u.acked[id] > 0 && u.answerTo(id) != nil })
	o.calls[1], o.lines[1] = at()
	died := int(k.deaths.begun.Load() - deaths)
	o.ends, o.interrupted = k.stops-stops+died, died > 0
	k.orders = append(k.orders, o)
	if err != nil {
		return frame{}, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	answer := *u.answerTo(id)
	for key := range u.begun {
		if strings.HasPrefix(key, answer.MessageID+"/") {
			k.orders[len(k.orders)-1].attempts++
		}
	}
	return answer, nil
}

var errUndelivered = errors.New("nothing came of a frame")

// deliver sends a frame, again whenever the socket breaks or nothing comes, until done. With stopAt the answer is stopped
// when so many chunks of it were seen; again if that got lost.
func (k *customer) deliver(ctx context.Context, id string, f map[string]any, stopAt int, done func() bool) error {
	u := k.user
	u.mu.Lock()
	u.own[id] = fmt.Sprint(f["content"])
	u.mu.Unlock()
	stopped, asked, refusals := time.Time{}, false, 0
	for ctx.Err() == nil {
		if u.conn == nil || dead(u) {
			if u.connect(ctx, k.c.lb()) != nil || u.untilLive(ctx) != nil {
				sleepFor(ctx, 50*time.Millisecond)
				continue
			}
			asked = false
		}
		u.mu.Lock()
		waits, sid := u.own[id] != "", u.sessionID
		u.mu.Unlock()
		if waits && !asked {
			f["resent"], f["session_id"] = true, sid
			asked = u.write(ctx, f) == nil
		}
		enough := func() bool {
			if stopAt == 0 || time.Since(stopped) < 2*time.Second {
				return false
			}
			for _, r := range u.running {
				if r.chunk >= stopAt {
					return true
				}
			}
			return false
		}
		late := u.until(ctx, 2*time.Second, "answer", func() bool { return u.closed != 0 || done() || enough() || u.refusals(id) > refusals }) != nil
		u.mu.Lock()
		ready, stop, refused := done(), enough(), u.refusals(id) > refusals
		var why frame
		if refused {
			refusals, why = u.refusals(id), *u.last("error")
		}
		u.mu.Unlock()
		switch {
		case ready:
			return nil
		case refused && !why.Error.Recoverable:
			return fmt.Errorf("refused: %+v", why.Error)
		case refused: // by a replica that goes away
			k.told[why.Error.Code]++
			asked = false
			sleepFor(ctx, 200*time.Millisecond)
		case stop:
			if u.write(ctx, map[string]any{"type": "stop", "message_id": uuid.NewString()}) == nil {
				stopped = time.Now()
				k.stops++
			}
		case late:
			asked = false
		}
	}
	return errUndelivered
}

// audit compares the books with the bill.
type audit struct {
	t *testing.T
	c *cluster
	g *gateway

	worst                      []miss
	told                       map[string]int // recoverable refusals, by code
	did                        map[string]int // answers by what was asked for
	answers, estimated, failed int
	met                        int // answers during which a replica died
	taken                      int // answers that were begun again by another replica
	booked, arrived, never     int
	bookedIn, bookedOut        int64 // of answers that are reported
	guessIn, guessOut          int64 // of those that are estimated
	billIn, billOut            int64 // for the latter
	unheard                    int64 // of which nobody heard: said by runs of Dify whose replica had been killed
}

// miss is an estimate beside the bill.
type miss struct {
	off  int64
	what string
}

// customer audits one session.
func (a *audit) customer(k *customer) {
	t, u := a.t, k.user
	t.Helper()
	sid := u.session()
	for code, n := range k.told {
		a.told[code] += n
	}
	require.Eventually(t, func() bool {
		return !slices.ContainsFunc(a.c.lines(sid), func(l llmfake.Line) bool { return l.Outcome == "running" })
	}, 20*time.Second, 20*time.Millisecond, "a request is still being answered")
	stored := a.c.flushed(sid, u.newest())
	u.mu.Lock()
	assert.Empty(t, u.faults, u.id)
	u.mu.Unlock()
	lines, calls := a.c.lines(sid), len(a.g.of(sid))
	var sum sessionstore.Spent
	counted := map[string]bool{}
	for _, o := range k.orders {
		i := slices.IndexFunc(stored, func(ev sessionstore.Event) bool {
			return ev.Type == sessionstore.TypeAIResponse && slices.Contains(strings.Fields(ev.Metadata[sessionstore.MetaAnswers]), o.id)
		})
		if !assert.GreaterOrEqual(t, i, 0, "%s: %s has no answer", u.id, o.id) {
			continue
		}
		counted[stored[i].MessageID] = true
		sum = sum.Plus(stored[i].Spent)
		a.answer(u.id, o, stored[i], lines[o.lines[0]:o.lines[1]])
	}
	for _, ev := range stored {
		if ev.Type == sessionstore.TypeAIResponse {
			assert.True(t, counted[ev.MessageID], "%s: an answer to nothing that was asked", u.id)
		}
	}
	last := k.orders[len(k.orders)-1]
	assert.Equal(t, []int{last.calls[1], last.lines[1]}, []int{calls, len(lines)}, "%s: a request after the last answer", u.id)
	sum.Estimated = false
	if !assert.Eventually(t, func() bool { doc, found := a.c.doc(sid); return found && doc.Session.Spent == sum }, 20*time.Second, 100*time.Millisecond,
		"%s: the session is not the sum of its answers", u.id) {
		doc, _ := a.c.doc(sid)
		t.Logf("%s: session %+v, answers %+v", u.id, doc.Session.Spent, sum)
	}
}

// answer audits one answer with the lines of the bill that are its.
func (a *audit) answer(who string, o order, ev sessionstore.Event, lines []llmfake.Line) {
	t := a.t
	t.Helper()
	arrived := o.calls[1] - o.calls[0]
	never := ev.Calls - arrived
	a.answers, a.booked, a.arrived, a.never = a.answers+1, a.booked+ev.Calls, a.arrived+arrived, a.never+never
	a.did[o.what]++
	if ev.Metadata[sessionstore.MetaFailed] != "" {
		a.failed++
	}
	if o.interrupted {
		a.met++
		if o.attempts > 1 {
			a.taken++
		}
	}
	assert.GreaterOrEqual(t, never, 0, "%s, %s: a request that nobody booked", who, o.what)
	assert.LessOrEqual(t, never, o.ends, "%s, %s: %d calls booked, %d arrived, %d stops and deaths", who, o.what, ev.Calls, arrived, o.ends)
	var in, out int64
	for _, l := range lines {
		in, out = in+l.Prompt, out+l.Completion
		if l.Outcome == "unheard" {
			a.unheard += l.Completion
		}
	}
	assert.Equal(t, ev.Tokens, ev.TokensIn+ev.TokensOut)
	if ev.Estimated {
		a.estimated++
		off := ev.Tokens - in - out
		a.worst = append(a.worst, miss{max(off, -off), fmt.Sprintf("%s, %s, by %s: %d+%d in %d calls, %d ends, bill %+v", who, o.what, ev.ModelID, ev.TokensIn, ev.TokensOut, ev.Calls, o.ends, lines)})
		a.guessIn, a.guessOut, a.billIn, a.billOut = a.guessIn+ev.TokensIn, a.guessOut+ev.TokensOut, a.billIn+in, a.billOut+out
		return
	}
	assert.Equal(t, []int64{in, out}, []int64{ev.TokensIn, ev.TokensOut}, "%s, %s: reported, %+v", who, o.what, lines)
	a.bookedIn, a.bookedOut = a.bookedIn+ev.TokensIn, a.bookedOut+ev.TokensOut
}

// report states the sums, and holds estimates to a fifth of the bill; in short runs, in which a single conversation that Dify
// has lost a part of weighs much, to somewhat more.
func (a *audit) report(m *mortality) {
	t := a.t
	t.Helper()
	var did []string
	for _, what := range slices.Sorted(maps.Keys(a.did)) {
		did = append(did, fmt.Sprintf("%d %s", a.did[what], what))
	}
	t.Logf("%d answers, %d of them failed: %s; %d replicas killed, %d shut down, during %d answers, of which %d were begun again elsewhere",
		a.answers, a.failed, strings.Join(did, ", "), m.killed, m.drained, a.met, a.taken)
	assert.Positive(t, a.met, "no death met an answer")
	t.Logf("%d calls in the books, %d came to the providers: %d were booked and never left", a.booked, a.arrived, a.never)
	t.Logf("reported: %d answers, %d+%d tokens, equal to the bill", a.answers-a.estimated, a.bookedIn, a.bookedOut)
	t.Logf("estimated: %d answers, %d+%d tokens, bill %d+%d, of which %d said to nobody", a.estimated, a.guessIn, a.guessOut, a.billIn, a.billOut, a.unheard)
	guess, bill := float64(a.guessIn+a.guessOut), float64(a.billIn+a.billOut)
	t.Logf("refused for the moment: %v", a.told)
	if a.told["INTERNAL"] > 0 {
		a.reasons()
	}
	if a.estimated > 0 && !assert.InEpsilon(t, bill, guess, inCI(0.3, 0.2), "estimates, in sum") || testing.Verbose() {
		slices.SortFunc(a.worst, func(x, y miss) int { return int(y.off - x.off) })
		for _, g := range a.worst[:min(3, len(a.worst))] {
			t.Logf("off by %d: %s", g.off, g.what)
		}
	}
	assert.Equal(t, a.g.count(), a.arrived, "requests that belong to no answer")
}

// reasons tells what replicas, also those that are gone, had no answer to.
func (a *audit) reasons() {
	logs, err := filepath.Glob(filepath.Join(a.c.dir, "replica-*", "*"))
	require.NoError(a.t, err)
	for _, path := range logs {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // a directory
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, `"request failed"`) {
				a.t.Logf("%s: %.600s", filepath.Base(path), line)
			}
		}
	}
}
