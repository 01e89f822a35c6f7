//go:build faults

package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/coder/websocket"
	"github.com/stretchr/testify/assert"
)

// tabs are several tabs of a few users that open and end sessions over any replica, racing for the one active session
// of each user. What they did and saw is checked for linearizability.
type tabs struct {
	c    *cluster
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex // guards history
	history []porcupine.Operation
}

// raceTabs starts three tabs for each of two users.
func raceTabs(c *cluster, seed uint64) *tabs {
	ctx, cancel := context.WithCancel(c.t.Context())
	ts := &tabs{c: c, stop: cancel}
	for n := range 6 {
		user := fmt.Sprintf("racer-%d-of-%d", n%2, seed)
		token := c.token(user)
		dice := rand.New(rand.NewPCG(seed, uint64(100+n)))
		ts.wg.Go(func() { ts.run(ctx, n, user, token, dice) })
	}
	c.t.Cleanup(ts.end)
	return ts
}

func (ts *tabs) end() {
	ts.stop()
	ts.wg.Wait()
}

func (ts *tabs) run(ctx context.Context, n int, user, token string, dice *rand.Rand) {
	last := ""
	for ctx.Err() == nil {
		addr := ts.c.lb()
		if dice.IntN(2) == 0 {
			addr = fmt.Sprintf("127.0.0.1:%d", ts.c.ports[dice.IntN(len(ts.c.ports))])
		}
		stay, ends := time.Duration(dice.IntN(150))*time.Millisecond, dice.IntN(5) == 0
		call := time.Now().UnixNano()
		sid, leave, err := openTab(ctx, addr, token, last)
		if err != nil { // an open whose outcome is unknown is one that somebody else's may be taken for
			sleepFor(ctx, 100*time.Millisecond)
			continue
		}
		ts.note(n, tabOp{user: user}, sid, call, time.Now().UnixNano())
		last = sid
		sleepFor(ctx, stay)
		if ends {
			call, returned, unsure := time.Now().UnixNano(), int64(math.MaxInt64), true // if it is not known to have happened
			for ctx.Err() == nil {
				status := endSession(ctx, ts.c.lb(), token, sid)
				if status/100 == 2 || status == http.StatusNotFound { // ending twice is ending once; or Redis has lost it
					returned, unsure = time.Now().UnixNano(), status == http.StatusNotFound
					break
				}
				sleepFor(ctx, 100*time.Millisecond)
			}
			ts.note(n, tabOp{user: user, end: sid, unsure: unsure}, sid, call, returned)
		}
		leave()
	}
}

func (ts *tabs) note(n int, op tabOp, sid string, call, returned int64) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	op.returned = returned
	ts.history = append(ts.history, porcupine.Operation{ClientId: n, Input: op, Output: sid, Call: call, Return: returned})
}

// killed notes that Redis was killed between two moments, and may come back without its newest writes.
func (ts *tabs) killed(call, returned time.Time) {
	const redis = 1000 // no tab
	ts.note(redis, tabOp{killed: call.UnixNano()}, "", call.UnixNano(), returned.UnixNano())
}

// openTab opens a socket and returns the session that the server says it is in.
func openTab(ctx context.Context, addr, token, want string) (sid string, leave func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, "ws://"+addr+"/chat/ws?session_id="+want, &websocket.DialOptions{
		Subprotocols: []string{"chatbox.v1", "bearer." + token},
	})
	if err != nil {
		return "", nil, err
	}
	conn.SetReadLimit(-1)
	_, data, err := conn.Read(ctx)
	var f frame
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err == nil && f.Status != "connected" {
		err = fmt.Errorf("%s comes first", f.Type)
	}
	if err != nil {
		_ = conn.CloseNow()
		return "", nil, err
	}
	return f.SessionID, func() { _ = conn.CloseNow() }, nil
}

// endSession returns the status of the answer; 0: there was none.
func endSession(ctx context.Context, addr, token, sid string) int {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/chat/sessions/"+sid+"/end", nil)
	if err != nil {
		return 0
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	_ = res.Body.Close()
	return res.StatusCode
}

// sessions are all that tabs have been in.
func (ts *tabs) sessions() map[string]bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	sessions := map[string]bool{}
	for _, op := range ts.history {
		if op.Input.(tabOp).killed == 0 {
			sessions[op.Output.(string)] = true
		}
	}
	return sessions
}

// check ends the race and asks whether all that was seen can be explained by one active session for each user.
func (ts *tabs) check(t *testing.T) {
	t.Helper()
	ts.end()
	sessions := ts.sessions()
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t.Logf("%d opens and ends of %d sessions", len(ts.history), len(sessions))
	assert.Greater(t, len(sessions), 2)
	for _, part := range oneActive.Partition(ts.history) {
		result, info := porcupine.CheckOperationsVerbose(oneActive, part, time.Minute)
		assert.Equal(t, porcupine.Ok, result, "two sessions of one user were active:\n%s", explain(part, info))
	}
}

// explain shows the end of the longest history that can be explained, and what follows it.
func explain(history []porcupine.Operation, info porcupine.LinearizationInfo) string {
	var longest []porcupine.Operation
	for _, part := range info.PartialLinearizationsOperations() {
		for _, ops := range part {
			if len(ops) > len(longest) {
				longest = ops
			}
		}
	}
	if len(longest) == len(history) {
		return ""
	}
	in := map[string]bool{}
	key := func(op porcupine.Operation) string { return fmt.Sprint(op.ClientId, op.Call) }
	for _, op := range longest {
		in[key(op)] = true
	}
	var rest []porcupine.Operation
	for _, op := range history {
		if !in[key(op)] {
			rest = append(rest, op)
		}
	}
	slices.SortFunc(rest, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	var b strings.Builder
	show := func(op porcupine.Operation) {
		what := "opens"
		switch in := op.Input.(tabOp); {
		case in.killed != 0:
			what = "Redis is killed"
		case in.unsure:
			what = "ends?"
		case in.end != "":
			what = "ends "
		}
		returned := "no answer"
		if op.Return < math.MaxInt64 {
			returned = time.Unix(0, op.Return).UTC().Format("05.000000")
		}
		fmt.Fprintf(&b, "  tab %d %s %s  %s - %s\n", op.ClientId, what, op.Output, time.Unix(0, op.Call).UTC().Format("15:04:05.000000"), returned)
	}
	for _, op := range longest[max(0, len(longest)-8):] {
		show(op)
	}
	b.WriteString("  and then:\n")
	for _, op := range rest[:min(8, len(rest))] {
		show(op)
	}
	return b.String()
}
