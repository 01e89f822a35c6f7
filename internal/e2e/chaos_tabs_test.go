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

// tabOp is what a tab asks for: to open, or to end the session it names.
type tabOp struct{ user, end string }

// raceTabs starts three tabs for each of two users.
func raceTabs(c *cluster, seed uint64) *tabs {
	ctx, cancel := context.WithCancel(c.t.Context())
	ts := &tabs{c: c, stop: cancel}
	for n := range 6 {
		user := fmt.Sprintf("racer-%d", n%2)
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
			call, returned := time.Now().UnixNano(), int64(math.MaxInt64) // if it is not known to have happened
			for ctx.Err() == nil {
				if endSession(ctx, ts.c.lb(), token, sid) { // ending twice is ending once
					returned = time.Now().UnixNano()
					break
				}
				sleepFor(ctx, 100*time.Millisecond)
			}
			ts.note(n, tabOp{user: user, end: sid}, sid, call, returned)
		}
		leave()
	}
}

func (ts *tabs) note(n int, op tabOp, sid string, call, returned int64) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	ts.history = append(ts.history, porcupine.Operation{ClientId: n, Input: op, Output: sid, Call: call, Return: returned})
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

// endSession reports whether the session has certainly ended.
func endSession(ctx context.Context, addr, token, sid string) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/chat/sessions/"+sid+"/end", nil)
	if err != nil {
		return false
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode/100 == 2
}

// oneActive is a user's sessions: one is active, or none is; who opens gets the active one, or a new one if there is
// none; one that has ended never comes back. The state is the active session, then all that have ended.
var oneActive = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byUser := map[string][]porcupine.Operation{}
		for _, op := range history {
			user := op.Input.(tabOp).user
			byUser[user] = append(byUser[user], op)
		}
		var out [][]porcupine.Operation
		for _, ops := range byUser {
			out = append(out, ops)
		}
		return out
	},
	Init: func() any { return " " },
	Step: func(state, input, output any) (bool, any) {
		active, ended, _ := strings.Cut(state.(string), " ")
		sid, op := output.(string), input.(tabOp)
		switch {
		case op.end == "" && active == "":
			return !slices.Contains(strings.Fields(ended), sid), sid + " " + ended
		case op.end == "":
			return sid == active, state
		case op.end == active:
			return true, " " + ended + " " + active
		case slices.Contains(strings.Fields(ended), op.end):
			return true, state
		}
		return false, state
	},
}

// sessions are all that tabs have been in.
func (ts *tabs) sessions() map[string]bool {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	sessions := map[string]bool{}
	for _, op := range ts.history {
		sessions[op.Output.(string)] = true
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
		if op.Input.(tabOp).end != "" {
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
