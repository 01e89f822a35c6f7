//go:build faults

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/sessionstore"
)

// crowd is users who talk all the time while something goes wrong. Like real clients they send again what was
// refused or not acknowledged, ping when nothing comes, and reconnect; unlike them they check every frame.
type crowd struct {
	t     testing.TB
	c     *cluster
	users []*user
	addr  func(user int) string
	words int           // of every answer
	pace  time.Duration // between them
	stop  chan struct{}
	wg    sync.WaitGroup
	// twice tolerates, and counts, questions that have two answers. Set it before check.
	twice bool
	// older lets users look for answers in the history, too: snapshots may begin after what a restarted Redis has lost
	// and MongoDB has. Set it before end.
	older bool

	mu   sync.Mutex // guards acks
	acks []time.Time
}

// crowdWords is how long every answer is.
const crowdWords = 5

// talk starts n users, each of whom connects where addr says (nil: through the balancer) at every connect. Chunks may
// be lost on their way to them, because subscriptions break; nothing else may.
func (c *cluster) talk(n int, addr func(user int) string) *crowd {
	return c.talkStrictly(n, addr, true)
}

// talkStrictly is talk; without lossy every answer must have been streamed to its end.
func (c *cluster) talkStrictly(n int, addr func(user int) string, lossy bool) *crowd {
	c.t.Helper()
	return c.talkOf(n, addr, lossy, crowdWords, 2*time.Millisecond)
}

// talkOf is talkStrictly with answers of another length and pace.
func (c *cluster) talkOf(n int, addr func(user int) string, lossy bool, words int, pace time.Duration) *crowd {
	c.t.Helper()
	if addr == nil {
		addr = func(int) string { return c.lb() }
	}
	cr := &crowd{t: c.t, c: c, addr: addr, words: words, pace: pace, stop: make(chan struct{})}
	for i := range n {
		id := fmt.Sprintf("talker-%d", i)
		u := newUser(id, c.token(id))
		u.lossy = lossy
		cr.users = append(cr.users, u)
	}
	for i := range n {
		cr.wg.Go(func() { cr.run(i) })
	}
	c.t.Cleanup(cr.end)
	cr.progress(n, 20*time.Second, "the crowd never got going")
	return cr
}

func (cr *crowd) run(i int) {
	u := cr.users[i]
	for {
		select {
		case <-cr.stop:
			assert.NoError(cr.t, cr.finish(cr.c.t.Context(), i), u.id)
			return
		case <-time.After(50 * time.Millisecond): // between two questions
		}
		if err := cr.ask(cr.c.t.Context(), i); err != nil {
			assert.NoError(cr.t, err, u.id)
			return
		}
	}
}

// ask asks one question and does not rest until it is answered.
func (cr *crowd) ask(ctx context.Context, i int) error {
	u := cr.users[i]
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	id, acked := "", false
	for ctx.Err() == nil {
		if !cr.online(ctx, i) {
			continue
		}
		if id == "" {
			id, _ = u.send(ctx, fmt.Sprintf("!tokens %d %d", cr.words, cr.pace.Milliseconds()))
		}
		u.mu.Lock()
		refused, snapshots := u.refusals(id), u.snapshots
		u.mu.Unlock()
		_ = u.until(ctx, time.Second, "answer", func() bool {
			return u.closed != 0 || u.answerTo(id) != nil && u.own[id] == "" || !acked && u.acked[id] > 0 || u.refusals(id) > refused || u.snapshots > snapshots
		})
		u.mu.Lock()
		answered, waits, again := u.answerTo(id) != nil && u.own[id] == "", u.own[id] != "", u.refusals(id) > refused
		first := !acked && u.acked[id] > 0
		u.mu.Unlock()
		if first {
			acked = true
			cr.mu.Lock()
			cr.acks = append(cr.acks, time.Now())
			cr.mu.Unlock()
		}
		switch {
		case answered:
			return nil
		case first:
		case waits && !dead(u):
			if again {
				sleepFor(ctx, 300*time.Millisecond) // retry_after
			}
			_ = u.resend(ctx)
		default:
			_ = u.write(ctx, map[string]any{"type": "ping", "last_seq": u.at()})
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return fmt.Errorf("%s: no answer to %s: acked %d, seq %d, close code %d, last error %+v", u.id, id, u.acked[id], u.seq, u.closed, u.last("error"))
}

// finish sends again what a snapshot lacks, until nothing is left to send or to be answered.
func (cr *crowd) finish(ctx context.Context, i int) error {
	u := cr.users[i]
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	settled := func() bool {
		for id := range u.acked {
			if u.answerTo(id) == nil {
				return false
			}
		}
		return len(u.own) == 0
	}
	for ctx.Err() == nil {
		if !cr.online(ctx, i) {
			continue
		}
		if u.until(ctx, time.Second, "rest", func() bool { return u.closed != 0 || settled() }) == nil && !dead(u) {
			return nil
		}
		if !dead(u) {
			_ = u.resend(ctx)
			_ = u.write(ctx, map[string]any{"type": "ping", "last_seq": u.at()})
		}
		if cr.older && cr.answeredBefore(u) {
			return nil
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	var unanswered []string
	for id, seq := range u.acked {
		if u.answerTo(id) == nil {
			unanswered = append(unanswered, fmt.Sprintf("%s (seq %d)", id, seq))
		}
	}
	return fmt.Errorf("%s in session %s: never acknowledged: %v, never answered: %v, at seq %d, close code %d, last error %+v: %w",
		u.id, u.sessionID, slices.Collect(maps.Keys(u.own)), unanswered, u.seq, u.closed, u.last("error"), ctx.Err())
}

// answeredBefore looks in the history for what the newest snapshot does not show: all is acknowledged, and answered
// there.
func (cr *crowd) answeredBefore(u *user) bool {
	stored, err := cr.c.readTranscript(u.sessionID)
	if err != nil {
		return false
	}
	answered := map[string]bool{}
	for _, ev := range stored {
		if ev.Type == sessionstore.TypeAIResponse {
			for id := range strings.FieldsSeq(ev.Metadata["answers"]) {
				answered[id] = true
			}
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for id := range u.acked {
		if !answered[id] {
			return false
		}
	}
	return len(u.own) == 0
}

// online connects a user who is not. It returns false when that did not work this time.
func (cr *crowd) online(ctx context.Context, i int) bool {
	u := cr.users[i]
	if u.conn != nil && !dead(u) {
		return true
	}
	if err := u.connect(ctx, cr.addr(i)); err != nil {
		sleepFor(ctx, 200*time.Millisecond)
		return false
	}
	if u.untilLive(ctx) != nil {
		_ = u.conn.CloseNow()
		<-u.done
		return false
	}
	return u.resend(ctx) == nil
}

// progress waits until n more messages were acknowledged than now, and returns how long the first one took.
func (cr *crowd) progress(n int, limit time.Duration, otherwise string) time.Duration {
	cr.t.Helper()
	start := time.Now()
	since := func() (count int, first time.Time) {
		cr.mu.Lock()
		defer cr.mu.Unlock()
		for _, at := range cr.acks {
			if at.After(start) {
				if count++; count == 1 {
					first = at
				}
			}
		}
		return count, first
	}
	require.Eventually(cr.t, func() bool { count, _ := since(); return count >= n }, limit, 20*time.Millisecond, otherwise)
	_, first := since()
	return first.Sub(start)
}

// known waits until MongoDB knows everybody's session. One that it does not know is lost with a Redis that has not
// replicated it yet, and its user begins another one: the guarantees say so, and what is tested here is what comes after.
func (cr *crowd) known() {
	cr.t.Helper()
	for _, u := range cr.users {
		require.Eventually(cr.t, func() bool {
			doc, found, err := cr.c.archive.Session(cr.t.Context(), u.session())
			return err == nil && found && doc.Session.UserID == u.id
		}, 20*time.Second, 20*time.Millisecond, "MongoDB does not know the session of %s", u.id)
	}
}

// end lets everybody finish their last question.
func (cr *crowd) end() {
	select {
	case <-cr.stop:
	default:
		close(cr.stop)
	}
	cr.wg.Wait()
}

// check ends the talking and compares what every user, and those beside the crowd, has with what MongoDB has: the
// invariants I1, I3 and I4.
func (cr *crowd) check(beside ...*user) {
	cr.t.Helper()
	cr.end()
	t, ok := cr.t.(*testing.T)
	require.True(cr.t, ok)
	total, again, snapshots, doubled := 0, 0, 0, 0
	for _, u := range append(beside, cr.users...) {
		stored := cr.c.flushed(u.sessionID, u.newest())
		u.mu.Lock()
		assert.Empty(t, u.faults, u.id) // I4
		assert.Empty(t, u.own, "%s has messages that were never acknowledged", u.id)
		if cr.twice {
			doubled += messagesExactlyOnce(t, u, stored)
		} else {
			assertExactlyOnce(t, u, stored, len(u.acked), words(cr.words)) // I1
		}
		total, again, snapshots = total+len(u.acked), again+u.dups+u.lost, snapshots+u.snapshots
		u.mu.Unlock()
		require.Eventually(t, func() bool { // I3; documents follow events
			docs, _, err := cr.c.archive.Sessions(t.Context(), u.id, "", 100)
			return err == nil && len(docs) == 1
		}, 15*time.Second, 50*time.Millisecond, "%s has not had one session", u.id)
	}
	t.Logf("%d messages of %d users, %d sent again, %d snapshots", total, len(cr.users), again, snapshots)
	if doubled > 0 {
		t.Logf("%d questions have two answers", doubled)
	}
}

// messagesExactlyOnce is assertExactlyOnce, but every question has at least one whole answer. It returns how many have
// more. With u.mu held.
func messagesExactlyOnce(t *testing.T, u *user, stored []sessionstore.Event) (doubled int) {
	t.Helper()
	questions, answered, last := map[string]int{}, map[string]int{}, int64(0)
	for _, ev := range stored {
		assert.Greater(t, ev.Seq, last, "order")
		last = ev.Seq
		switch ev.Type {
		case sessionstore.TypeUserMessage:
			questions[ev.MessageID]++
			assert.Equal(t, u.acked[ev.MessageID], ev.Seq, "acknowledged under another seq")
		case sessionstore.TypeAIResponse:
			assert.Equal(t, words(crowdWords), ev.Content, "%s: an answer is not complete: %v", u.id, ev.Metadata)
			for id := range strings.FieldsSeq(ev.Metadata["answers"]) {
				answered[id]++
			}
		}
	}
	assert.Len(t, questions, len(u.acked), u.id)
	for id := range u.acked {
		assert.Equal(t, 1, questions[id], "%s: question %s in the transcript", u.id, id)
		assert.Positive(t, answered[id], "%s: question %s has no answer", u.id, id)
		if answered[id] > 1 {
			doubled++
		}
	}
	return doubled
}

// resent counts how often a Redis server is asked to append each message.
type resent struct {
	mu   sync.Mutex
	sent map[string]int // field in ids -> calls of scripts by clients that name it
}

var appended = regexp.MustCompile(`"(user:[0-9a-f-]{36})"`)

// resent watches until the test ends.
func (c *cluster) resent(addr string) *resent {
	c.t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(c.t, err)
	_, err = io.WriteString(conn, "MONITOR\r\n")
	require.NoError(c.t, err)
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	require.NoError(c.t, err)
	require.Equal(c.t, "+OK\r\n", line)
	m := &resent{sent: map[string]int{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if field := appended.FindStringSubmatch(line); field != nil && strings.Contains(line, "evalsha") && !strings.Contains(line, " lua]") {
				m.mu.Lock()
				m.sent[field[1]]++
				m.mu.Unlock()
			}
		}
	}()
	c.t.Cleanup(func() { _ = conn.Close(); <-done })
	return m
}

// messages is how many messages were sent more than once.
func (m *resent) messages() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, times := range m.sent {
		if times > 1 {
			n++
		}
	}
	return n
}
