package turn

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/internal/rig/rigtest"
	"github.com/real-rm/chatbox/providers/llm"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/live"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// mortal is the live store as one replica sees it, until the replica is killed.
type mortal struct {
	*live.Store
	dead atomic.Bool
}

func (m *mortal) alive() error {
	if m.dead.Load() {
		return sessionstore.ErrAway
	}
	return nil
}

func (m *mortal) Book(ctx context.Context, g *sessionstore.Generation, c sessionstore.Call) error {
	if err := m.alive(); err != nil {
		return err
	}
	return m.Store.Book(ctx, g, c)
}
func (m *mortal) Renew(ctx context.Context, g *sessionstore.Generation) error {
	if err := m.alive(); err != nil {
		return err
	}
	return m.Store.Renew(ctx, g)
}
func (m *mortal) Chunk(ctx context.Context, g *sessionstore.Generation, delta string, reset bool) error {
	if err := m.alive(); err != nil {
		return err
	}
	return m.Store.Chunk(ctx, g, delta, reset)
}
func (m *mortal) Finish(ctx context.Context, g *sessionstore.Generation, ev sessionstore.Event) (sessionstore.Appended, bool, error) {
	if err := m.alive(); err != nil {
		return sessionstore.Appended{}, false, err
	}
	return m.Store.Finish(ctx, g, ev)
}
func (m *mortal) Release(ctx context.Context, g *sessionstore.Generation) error {
	if err := m.alive(); err != nil {
		return err
	}
	return m.Store.Release(ctx, g)
}
func (m *mortal) Subscribe(context.Context, string) error { return nil }
func (m *mortal) Unsubscribe(string)                      {}

// Context and Message make it a History, as far as Redis has one.
func (m *mortal) Context(ctx context.Context, sid string, upTo int64) ([]sessionstore.Event, error) {
	events, _, err := m.Before(ctx, sid, upTo+1, 400)
	return events, err
}
func (m *mortal) Message(ctx context.Context, sid string, sender sessionstore.Sender, id string) (sessionstore.Event, bool, error) {
	return m.Find(ctx, sid, sender, id)
}

// Beyond B8: with the real scripts and real HTTP, over a hundred sessions whose replicas are killed or shut down, whose
// answers are stopped, or cut by a person or the end, each session's calls are those that the provider got, its tokens are
// the sum of its answers', and where nothing was broken off they are the bill.
func TestBooks_balanceInRedis(t *testing.T) {
	text, err := seal.NewKeyset()
	require.NoError(t, err)
	ring, err := seal.NewKeyring(text)
	require.NoError(t, err)
	client, err := live.Connect(live.ConnectOptions{URL: "redis://" + rigtest.Redis(t).Addr})
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	w := newWire(t, nil)
	var downs sync.WaitGroup
	defer downs.Wait()
	b := &bookCase{t: t, w: w, downs: &downs, store: func(replica string) *live.Store {
		s, err := live.New(live.Options{Client: client, Keyring: ring, Replica: replica, GenLease: 2 * time.Second,
			EstimateTokens: llm.EstimateTokens})
		require.NoError(t, err)
		return s
	}}
	var workers sync.WaitGroup
	var next atomic.Int64
	for range 10 {
		workers.Go(func() {
			for n := next.Add(1); n <= 100 && !t.Failed(); n = next.Add(1) {
				b.run(int(n), rand.New(rand.NewPCG(uint64(n), 1)))
			}
		})
	}
	workers.Wait()
}

type bookCase struct {
	t     *testing.T
	w     *wire
	downs *sync.WaitGroup
	store func(replica string) *live.Store
}

// run is one session with one question.
func (b *bookCase) run(n int, random *rand.Rand) {
	ctx := b.t.Context()
	store := b.store("watcher")
	user := fmt.Sprint("user", n)
	opened, err := store.Open(ctx, sessionstore.OpenRequest{UserID: user, ConnID: "r.1"})
	if !assert.NoError(b.t, err) {
		return
	}
	sid := opened.Session.ID
	commands := []string{"hello", "!tokens 300 1ms", "!stallmid 3", "!error 500 times=1", "!cut 3", "!error 503", "!nousage", "!mid server 2"}
	command := commands[random.IntN(len(commands))]
	what := []string{"", "", "stop", "kill", "drain", "join", "end", "kill thrice"}[random.IntN(8)]
	if command == "!stallmid 3" && what != "join" && what != "end" {
		what = "stop"
	}
	_, err = store.Append(ctx, sessionstore.Append{Owe: true, Event: sessionstore.Event{
		Header: sessionstore.Header{Type: sessionstore.TypeUserMessage, SessionID: sid, MessageID: uuid.NewString(), Sender: sessionstore.SenderUser},
		Body:   sessionstore.Body{Content: command},
	}})
	if !assert.NoError(b.t, err) {
		return
	}
	started := 0
	var at *mortal
	var r *replica
	start := func() {
		started++
		at = &mortal{Store: b.store(fmt.Sprint("r", started))}
		r = newReplica(b.t, nil, b.w.models, func(o *Options) { o.Store, o.History, o.Lease = at, at, 2*time.Second })
		r.Start(sid)
	}
	leave := func() {
		gone := r
		b.downs.Go(gone.down)
	}
	over := func() bool {
		r.Start(sid) // as keepers do
		events, _, err := store.Before(ctx, sid, 0, 100)
		if !assert.NoError(b.t, err) {
			return true
		}
		for _, ev := range events {
			if ev.Type == sessionstore.TypeAIResponse || ev.Type == sessionstore.TypeAdminJoin || ev.Type == sessionstore.TypeEnded {
				return true
			}
		}
		return false
	}
	start()
	eventually(b.t, "a request", func() bool { return b.w.bill(sid).requests > 0 || over() })
	ends := 1
	switch what {
	case "":
		ends = 0
	case "stop":
		assert.NoError(b.t, store.Stop(ctx, sid, ""))
		r.Signal(sessionstore.Message{SessionID: sid, Type: sessionstore.TypeStop, Frame: []byte(`{"type":"stop"}`)})
	case "kill", "kill thrice":
		for range map[string]int{"kill": 1, "kill thrice": 3}[what] { // one more than a turn stands
			at.dead.Store(true)
			leave()
			start()
			ends++
			time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
		}
	case "drain":
		r.down()
		start()
	case "join":
		id := uuid.NewString()
		_, err := store.Cut(ctx, sessionstore.Event{Header: sessionstore.Header{Type: sessionstore.TypeAdminJoin, SessionID: sid, MessageID: id,
			Sender: sessionstore.SenderAdmin}}, &live.Hold{AdminID: "a", Name: "Eve"})
		assert.NoError(b.t, err)
		r.Signal(sessionstore.Message{SessionID: sid, Type: sessionstore.TypeAdminJoin})
	case "end":
		assert.NoError(b.t, store.End(ctx, sid, "explicit", ""))
		r.Signal(sessionstore.Message{SessionID: sid, Type: sessionstore.TypeEnded})
	}
	eventually(b.t, command+", "+what, over)
	leave()
	eventually(b.t, "the provider", func() bool {
		return b.w.bill(sid).running == 0 && r.Running() == 0
	})
	b.check(store, sid, command+", "+what, ends)
}

// check compares the session's books, the answers' and the bill.
func (b *bookCase) check(store *live.Store, sid, what string, ends int) {
	ses, err := store.Session(b.t.Context(), sid)
	assert.NoError(b.t, err)
	events, _, err := store.Before(b.t.Context(), sid, 0, 100)
	assert.NoError(b.t, err)
	var sum sessionstore.Spent
	answers := 0
	for _, ev := range events {
		if ev.Type == sessionstore.TypeAIResponse {
			answers, sum = answers+1, sum.Plus(ev.Spent)
		}
	}
	assert.LessOrEqual(b.t, answers, 1, what)
	if answers == 1 {
		kept := sum
		kept.Estimated = false
		assert.Equal(b.t, kept, ses.Spent, what)
	}
	bill := b.w.bill(sid)
	// What is told to end between its booking and its request never leaves.
	assert.GreaterOrEqual(b.t, ses.Calls, bill.requests, what)
	assert.LessOrEqual(b.t, ses.Calls, bill.requests+ends, what)
	if !sum.Estimated && answers == 1 {
		assert.Equal(b.t, []int64{bill.prompt, bill.said}, []int64{ses.TokensIn, ses.TokensOut}, what)
	}
	if bill.prompt > 0 {
		assert.Positive(b.t, ses.Tokens, what)
	}
}
