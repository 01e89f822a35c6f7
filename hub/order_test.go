package hub_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/hub"
)

// watcher is a client's end that checks what every client may rely on.
type watcher struct {
	c    *hub.Client
	ws   *websocket.Conn
	done chan struct{} // closed when the reader has ended
	log  func() record // what the store holds

	mu     sync.Mutex
	pos    hub.Position
	live   bool
	mine   map[string]bool // keys sent from this socket that have not been acknowledged
	marks  int
	errors []string
}

// watch joins the topic on a new connection.
func (th *testHub) watch(t testing.TB, topic string, pos hub.Position) *watcher {
	t.Helper()
	c, ws := th.dial(t)
	w := &watcher{c: c, ws: ws, done: make(chan struct{}), log: func() record { return th.source.copy(topic) }, pos: pos, mine: map[string]bool{}}
	go w.readAll()
	require.NoError(t, c.Join(topic, pos, []byte("live")))
	return w
}

func (w *watcher) readAll() {
	defer close(w.done)
	for {
		_, b, err := w.ws.Read(context.Background())
		if err != nil {
			return
		}
		w.mu.Lock()
		w.take(string(b))
		w.mu.Unlock()
	}
}

func (w *watcher) wrong(format string, args ...any) {
	w.errors = append(w.errors, fmt.Sprintf(format, args...))
}

// take checks one frame. // Promise 12: order is preserved, nothing is missing, nothing comes twice.
func (w *watcher) take(frame string) {
	f := strings.Split(frame, " ")
	switch f[0] {
	case "event":
		pos := position(f[2], f[3])
		if fresh := (w.pos == hub.Position{}); fresh {
			w.pos.Epoch = pos.Epoch
		}
		if pos.Epoch != w.pos.Epoch || pos.Seq != w.pos.Seq+1 {
			w.wrong("%q after %v", frame, w.pos)
		}
		w.pos = pos
		if w.mine[f[4]] {
			w.wrong("own message %q came as an event", frame)
		}
	case "ack":
		pos := position(f[1], f[2])
		if f[3] != duplicated && !w.mine[f[3]] {
			w.wrong("%q is nobody's", frame)
		}
		if without := w.log().lost[f[3]]; f[3] != duplicated && without != "" && !older(w.pos.Epoch, without) {
			w.wrong("%q after %v, and the log has lost it with %s", frame, w.pos, without)
		}
		delete(w.mine, f[3])
		switch {
		case pos.Seq == w.pos.Seq+1:
			w.pos.Seq = pos.Seq
			if w.pos.Epoch == "" {
				w.pos.Epoch = pos.Epoch
			}
		case pos.Seq > w.pos.Seq:
			w.wrong("%q after %v", frame, w.pos)
		} // lower: the message was in a snapshot
	case "snapshot":
		pos := position(f[2], f[3])
		if pos.Epoch == w.pos.Epoch && pos.Seq <= w.pos.Seq {
			w.wrong("%q after %v", frame, w.pos)
		}
		w.pos = pos
	case "live":
		if w.live {
			w.wrong("live twice")
		}
		w.live = true
	case "mark":
		w.marks++
	default:
		w.wrong("unknown frame %q", frame)
	}
}

// older compares epochs of the source, each of which is the one before with another letter.
func older(a, b string) bool { return a != "gone" && len(a) < len(b) }

// unsettled says whether an ack is still to come: not of what was put under an epoch that the client has left, which
// it sends again.
func (w *watcher) unsettled() bool {
	placed := w.log().placed
	for key := range w.mine {
		if placed[key].Epoch == w.pos.Epoch {
			return true
		}
	}
	return false
}

func position(epoch, seq string) (p hub.Position) {
	p.Epoch = epoch
	_, _ = fmt.Sscan(seq, &p.Seq)
	return p
}

func (w *watcher) check(t fataler) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.errors) > 0 {
		t.Fatalf("client saw: %s", strings.Join(w.errors, "; "))
	}
}

type fataler interface{ Fatalf(string, ...any) }

// duplicated is the key of events that were there before, and of what is sent a second time.
const duplicated = "old"

func ackOf(s *source, topic, key string) func(seq int64) []byte {
	return func(seq int64) []byte { return fmt.Appendf(nil, "ack %s %d %s", s.top(topic).Epoch, seq, key) }
}

// sendOwn is what the server does with a message from this socket.
func (w *watcher) sendOwn(s *source, topic, key string) {
	w.mu.Lock()
	w.mine[key] = true
	w.mu.Unlock()
	w.c.Expect(topic, key, ackOf(s, topic, key))
	accepted(w.c, topic, key, s.append(topic, key))
}

// rejoin leaves, waits until all that was sent has come, and joins again from there.
func (w *watcher) rejoin(t fataler, topic string) {
	w.c.Leave(topic)
	w.mu.Lock()
	marks := w.marks
	w.mu.Unlock()
	w.c.Send([]byte("mark"))
	eventually(t, "mark", func() bool { return w.marks > marks }, w)
	w.mu.Lock()
	pos := w.pos
	w.live = false
	clear(w.mine) // expectations end with the membership
	w.mu.Unlock()
	if err := w.c.Join(topic, pos, []byte("live")); err != nil {
		t.Fatalf("join again: %v", err)
	}
}

func eventually(t fataler, what string, cond func() bool, w *watcher) {
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		w.mu.Lock()
		ok := cond()
		state := fmt.Sprintf("pos %v live %v mine %v errors %v", w.pos, w.live, w.mine, w.errors)
		w.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: still waiting; %s", what, state)
		}
	}
}

func (w *watcher) settle(t fataler, s *source, topic string) {
	eventually(t, "top", func() bool { return w.live && w.pos == s.top(topic) && !w.unsettled() }, w)
	w.check(t)
	if pos, ok := w.c.Cursor(topic); !ok || pos != s.top(topic) {
		t.Fatalf("cursor %v, top %v", pos, s.top(topic))
	}
}

// Feature: chat-application-websocket, Property 12 (Promise 12): order is preserved, whatever the bus does.
// Promise 11: everybody in the session gets everything. Acks come in the event's place.
func TestOrder_holdsForAnyHistory(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	var cases atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		topic := fmt.Sprint("s", cases.Add(1))
		var lossy atomic.Int32 // per cent of what is published that gets lost
		th.source.set(func() {
			th.source.lose = func(*hub.Message) bool { return rand.Int32N(100) < lossy.Load() }
			th.source.pageSize = rapid.IntRange(1, 7).Draw(rt, "page size")
			th.source.fail = false
		})
		defer th.source.set(func() { th.source.fail = false })
		for range rapid.IntRange(0, 20).Draw(rt, "events before") {
			th.source.append(topic, duplicated)
		}
		var ws []*watcher
		defer func() {
			for _, w := range ws {
				_ = w.ws.CloseNow()
				<-w.done
			}
		}()
		key := 0
		pick := func() *watcher { return ws[rapid.IntRange(0, len(ws)-1).Draw(rt, "client")] }
		steps := map[string]func(*rapid.T){
			"": func(rt *rapid.T) {
				for _, w := range ws {
					w.check(rt)
				}
			},
			"join": func(rt *rapid.T) {
				if len(ws) == 5 {
					rt.Skip("enough")
				}
				pos := th.source.top(topic)
				switch rapid.IntRange(0, 3).Draw(rt, "from") {
				case 0:
					pos = hub.Position{}
				case 1:
					pos.Seq = max(0, pos.Seq-rapid.Int64Range(0, 9).Draw(rt, "behind"))
				case 2:
					pos = hub.Position{Epoch: "gone", Seq: 7}
				}
				ws = append(ws, th.watch(t, topic, pos))
			},
			"event":       func(*rapid.T) { th.source.append(topic, "other") },
			"more events": func(*rapid.T) { th.source.append(topic, "other"); th.source.append(topic, "other") },
			"own message": func(rt *rapid.T) {
				if len(ws) == 0 {
					rt.Skip("nobody")
				}
				key++
				pick().sendOwn(th.source, topic, fmt.Sprint("k", key))
			},
			"own duplicate": func(rt *rapid.T) {
				if len(ws) == 0 {
					rt.Skip("nobody")
				}
				w := pick()
				w.c.Expect(topic, duplicated, ackOf(th.source, topic, duplicated)) // in between it may come from the log
				w.c.Forget(topic, duplicated)
			},
			"published twice": func(rt *rapid.T) {
				r := th.source.topic(topic)
				r.bus.Lock()
				defer r.bus.Unlock()
				if len(r.log) > 0 {
					th.source.publish(r.log[rapid.IntRange(0, len(r.log)-1).Draw(rt, "which")])
				}
			},
			"loss":      func(rt *rapid.T) { lossy.Store(rapid.SampledFrom([]int32{0, 0, 30, 100}).Draw(rt, "loss")) },
			"resync":    func(*rapid.T) { th.Resync(topic) },
			"new epoch": func(rt *rapid.T) { th.source.newEpoch(topic, rapid.IntRange(0, 3).Draw(rt, "lost")) },
			"trim":      func(rt *rapid.T) { th.source.trim(topic, rapid.IntRange(0, 5).Draw(rt, "left")) },
			"outage": func(rt *rapid.T) {
				fail := rapid.Bool().Draw(rt, "fails")
				th.source.set(func() { th.source.fail = fail })
			},
			"rejoin": func(rt *rapid.T) {
				if len(ws) == 0 {
					rt.Skip("nobody")
				}
				pick().rejoin(rt, topic)
			},
			"leave for good": func(rt *rapid.T) {
				if len(ws) == 0 {
					rt.Skip("nobody")
				}
				i := rapid.IntRange(0, len(ws)-1).Draw(rt, "client")
				_ = ws[i].ws.CloseNow()
				<-ws[i].done
				ws[i].check(rt)
				ws = slices.Delete(ws, i, i+1)
			},
		}
		rt.Repeat(steps)

		lossy.Store(0)
		th.source.set(func() { th.source.fail = false })
		th.source.append(topic, "end")
		th.Resync(topic) // what a subscription event or the sweep does
		for _, w := range ws {
			w.settle(rt, th.source, topic)
		}
	})
}

// The same with everything at once: many senders, a bus that loses and doubles, clients that come and go.
func TestOrder_holdsUnderConcurrentSenders(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	const topic, senders, each = "s", 6, 150
	th.source.lose = func(*hub.Message) bool { return rand.IntN(100) < 5 }
	ws := make([]*watcher, senders)
	for i := range ws {
		ws[i] = th.watch(t, topic, hub.Position{})
	}
	var wg sync.WaitGroup
	for i, w := range ws {
		wg.Go(func() {
			for n := range each {
				w.sendOwn(th.source, topic, fmt.Sprintf("k%d.%d", i, n))
				if n%50 == 49 && i%2 == 0 {
					th.Resync(topic)
				}
			}
		})
	}
	stop := make(chan struct{})
	restless := th.watch(t, topic, hub.Position{})
	rejoined := make(chan struct{})
	go func() {
		defer close(rejoined)
		for {
			select {
			case <-stop:
				return
			default:
				restless.rejoin(fatal{}, topic)
			}
		}
	}()
	wg.Wait()
	close(stop)
	<-rejoined
	th.source.set(func() { th.source.lose = nil })
	th.source.append(topic, "end")
	th.Resync(topic)
	for _, w := range append(ws, restless) {
		w.settle(t, th.source, topic)
		require.Equal(t, hub.Position{Epoch: "1", Seq: senders*each + 1}, w.pos)
	}
}

// fatal is for goroutines that must not end the test themselves.
type fatal struct{}

func (fatal) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
