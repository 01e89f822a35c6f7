package hub_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
)

// join dials, joins from the start and reads up to live.
func (th *testHub) join(t *testing.T, topic string) (*hub.Client, *websocket.Conn) {
	t.Helper()
	c, ws := th.dial(t)
	require.NoError(t, c.Join(topic, hub.Position{}, []byte("live")))
	for read(t, ws) != "live" {
	}
	return c, ws
}

func TestJoin_subscribesBeforeItReads(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	early := make(chan struct{})
	th.source.subscribing = func(topic string) {
		select {
		case <-early:
		case <-time.After(50 * time.Millisecond): // nothing is read until this returns
		}
		th.source.append(topic, "lost on the bus")
	}
	var once sync.Once
	th.source.reading = func(string, hub.Position) { once.Do(func() { close(early) }) }
	c, ws := th.dial(t)
	require.NoError(t, c.Join("s", hub.Position{}, []byte("live")))
	require.Equal(t, "event s 1 1 lost on the bus", read(t, ws))
	require.Equal(t, "live", read(t, ws))
}

func TestJoin_getsPagesThenRunningThenLiveThenEvents(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	for range 25 {
		th.source.append("s", "old")
	}
	th.source.chunk("s", "a", 3)
	c, ws := th.dial(t)
	require.NoError(t, c.Join("s", hub.Position{Epoch: "1", Seq: 2}, []byte("live")))
	for seq := 3; seq <= 25; seq++ {
		require.Equal(t, fmt.Sprintf("event s 1 %d old", seq), read(t, ws))
	}
	require.Equal(t, "running a 1,2,3,", read(t, ws))
	require.Equal(t, "live", read(t, ws))
	th.source.append("s", "new")
	require.Equal(t, "event s 1 26 new", read(t, ws))
	require.Equal(t, 3, th.source.reads, "pages")
}

// What is published between a read and going live is in neither; the client must get it all the same.
func TestJoin_missesNothingBetweenReadAndLive(t *testing.T) {
	for name, others := range map[string]int{"alone": 0, "beside a live client": 1} {
		t.Run(name, func(t *testing.T) {
			th := newTestHub(t, hub.Options{})
			for range others {
				th.join(t, "s")
			}
			var once atomic.Int32
			th.source.set(func() {
				th.source.reading = func(topic string, _ hub.Position) {
					if n := once.Add(1); n <= 3 {
						th.source.append(topic, fmt.Sprint("k", n))
					}
				}
			})
			c, ws := th.dial(t)
			require.NoError(t, c.Join("s", hub.Position{}, []byte("live")))
			require.Equal(t, "event s 1 1 k1", read(t, ws))
			require.Equal(t, "event s 1 2 k2", read(t, ws))
			require.Equal(t, "event s 1 3 k3", read(t, ws))
			require.Equal(t, "live", read(t, ws))
		})
	}
}

func TestJoin_readsAgainAfterResync(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	th.source.lose = func(m *hub.Message) bool { return m.Key == "lost" }
	var once sync.Once
	th.source.reading = func(topic string, _ hub.Position) {
		once.Do(func() {
			th.source.append(topic, "lost")
			th.Resync(topic)
		})
	}
	c, ws := th.dial(t)
	require.NoError(t, c.Join("s", hub.Position{}, []byte("live")))
	require.Equal(t, "event s 1 1 lost", read(t, ws))
	require.Equal(t, "live", read(t, ws))
}

func TestJoin_again_startsFromTheNewPosition(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	th.source.append("s", "k")
	c, ws := th.join(t, "s")
	require.NoError(t, c.Join("s", hub.Position{}, []byte("live again")))
	require.Equal(t, "event s 1 1 k", read(t, ws))
	require.Equal(t, "live again", read(t, ws))
	require.Equal(t, 1, th.Topic("s"))
	th.source.append("s", "k")
	require.Equal(t, "event s 1 2 k", read(t, ws))
}

func TestGap_isFilledIncludingWhatComesMeanwhile(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	th.source.lose = func(m *hub.Message) bool { return m.Key == "lost" }
	_, ws := th.join(t, "s")
	var once sync.Once
	th.source.set(func() {
		th.source.reading = func(topic string, _ hub.Position) {
			once.Do(func() { th.source.append(topic, "meanwhile") })
		}
	})
	th.source.append("s", "lost")
	th.source.append("s", "shows the gap")
	for seq, key := range []string{"lost", "shows the gap", "meanwhile"} {
		require.Equal(t, fmt.Sprintf("event s 1 %d %s", seq+1, key), read(t, ws))
	}
}

func TestResync_findsWhatNothingFollows(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	th.source.lose = func(m *hub.Message) bool { return m.Key == "lost" }
	_, ws := th.join(t, "s")
	var once sync.Once
	th.source.set(func() {
		th.source.reading = func(topic string, _ hub.Position) {
			once.Do(func() { // a second hole while the first is being filled
				th.source.append(topic, "lost")
				th.Resync(topic)
			})
		}
	})
	th.source.append("s", "lost")
	th.Resync("s")
	require.Equal(t, "event s 1 1 lost", read(t, ws))
	require.Equal(t, "event s 1 2 lost", read(t, ws))
}

func TestResync_showsTheRunningAnswerAgain(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	th.source.lose = func(m *hub.Message) bool { return m.Chunk == 2 }
	_, ws := th.join(t, "s")
	th.source.chunk("s", "a", 1)
	require.Equal(t, "chunk a 1,", read(t, ws))
	th.source.chunk("s", "a", 2)
	var once sync.Once
	th.source.set(func() {
		th.source.reading = func(topic string, _ hub.Position) {
			once.Do(func() { th.source.chunk(topic, "a", 3) })
		}
	})
	th.Resync("s")
	require.Equal(t, "chunk a 3,", read(t, ws), "is not held up")
	require.Equal(t, "running a 1,2,", read(t, ws))
	require.Equal(t, "chunk a 3,", read(t, ws), "the text before it has been replaced")
	th.source.chunk("s", "a", 4)
	require.Equal(t, "chunk a 4,", read(t, ws))
}

// A client that has read the end of the answer already is not shown an older state of it by a fill.
func TestResync_doesNotShowAnOldAnswerToWhoIsAhead(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	th.source.lose = func(m *hub.Message) bool { return m.Answer != "" && m.Seq > 0 }
	_, first := th.join(t, "s")
	th.source.chunk("s", "a", 1)
	require.Equal(t, "chunk a 1,", read(t, first))

	stalled, release := make(chan struct{}), make(chan struct{})
	var reads atomic.Int32
	th.source.set(func() {
		th.source.reading = func(string, hub.Position) {
			if reads.Add(1) == 1 {
				close(stalled)
				<-release
			}
		}
	})
	th.Resync("s")
	<-stalled // the page with the running answer is made, not delivered
	th.source.final("s", "a")
	_, second := th.join(t, "s")
	close(release)
	require.Equal(t, "running a 1,", read(t, first))
	th.source.append("s", "k")
	require.Equal(t, "final s 1 1 a", read(t, first))
	require.Equal(t, "event s 1 2 k", read(t, first))
	require.Equal(t, "event s 1 2 k", read(t, second))
}

// F9: Redis has lost that an answer was begun, not its question: the next one has the same id and begins at the same chunk.
func TestChunks_ofAnAnswerThatIsBegunAgainInAnotherEpochAreAllShown(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	_, ws := th.join(t, "s")
	for n := 1; n <= 3; n++ {
		th.source.chunk("s", "a", n)
		require.Equal(t, fmt.Sprintf("chunk a %d,", n), read(t, ws))
	}
	th.source.set(func() { th.source.topics["s"].running = nil })
	th.source.newEpoch("s", 0)
	th.source.append("s", "k")
	require.Equal(t, "snapshot s 1x 1001", read(t, ws))
	for n := 1; n <= 4; n++ {
		th.source.chunk("s", "a", n)
		require.Equal(t, fmt.Sprintf("chunk a %d,", n), read(t, ws))
	}
}

// Events that are not durable come at once, also to a client whose topic waits for the store.
func TestChunks_passWhileTheStoreIsAway(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	_, ws := th.join(t, "s")
	th.source.set(func() { th.source.fail = true })
	th.Resync("s")
	th.source.chunk("s", "a", 1)
	require.Equal(t, "chunk a 1,", read(t, ws))
	th.source.append("s", "held")
	th.source.set(func() { th.source.fail = false })
	require.Equal(t, "event s 1 1 held", read(t, ws))
}

// An event that is not an answer's (loading, typing) is not lost while catching up either.
func TestJoin_keepsOtherEventsForAfterLive(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	var once sync.Once
	th.source.reading = func(topic string, _ hub.Position) {
		once.Do(func() {
			th.Publish(hub.Message{Topic: topic, Data: []byte("loading")})
			th.source.append(topic, "k") // has the page read again
		})
	}
	c, ws := th.dial(t)
	require.NoError(t, c.Join("s", hub.Position{}, []byte("live")))
	require.Equal(t, "event s 1 1 k", read(t, ws))
	require.Equal(t, "live", read(t, ws))
	require.Equal(t, "loading", read(t, ws))
}

// reader is a client that joins in the middle of an answer and puts its text together.
type reader struct {
	text   string
	answer string
	wrong  []string
}

func (r *reader) take(frame string) (final bool) {
	kind, rest, _ := strings.Cut(frame, " ")
	switch kind {
	case "running":
		r.answer, r.text, _ = strings.Cut(rest, " ")
	case "chunk":
		answer, word, _ := strings.Cut(rest, " ")
		if answer != r.answer {
			r.answer, r.text = answer, ""
		}
		if want := fmt.Sprintf("%d,", strings.Count(r.text, ",")+1); word != want {
			r.wrong = append(r.wrong, fmt.Sprintf("%q after %q", frame, r.text))
		}
		r.text += word
	case "final":
		return true
	}
	return false
}

// Promise 28: every chunk reaches every client exactly once and in order, whenever it joins, although the bus
// is behind the store and the store is behind the joining.
func TestChunks_areNeitherLostNorDoubledWhenJoining(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	th.source.lagging(t)
	const chunks, readers = 600, 60
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range readers {
		c, ws := th.dial(t)
		wg.Go(func() {
			<-start
			for th.source.progress("s") < i*chunks/readers {
				time.Sleep(50 * time.Microsecond)
			}
			_ = c.Join("s", hub.Position{}, []byte("live"))
			r := reader{}
			for {
				ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
				_, b, err := ws.Read(ctx)
				cancel()
				if err != nil {
					t.Errorf("reader %d: %v after %q", i, err, r.text)
					return
				}
				if r.take(string(b)) {
					break
				}
			}
			if len(r.wrong) > 0 {
				t.Errorf("reader %d: %s", i, r.wrong)
			}
			// Nothing of the answer may follow its end.
			c.Send([]byte("mark"))
			for {
				_, b, err := ws.Read(context.Background())
				if err != nil || string(b) == "mark" {
					break
				}
				if string(b) != "live" {
					t.Errorf("reader %d: %q after the final", i, b)
				}
			}
		})
	}
	close(start)
	for n := 1; n <= chunks; n++ {
		th.source.chunk("s", "a", n)
		if n%100 == 0 {
			th.Resync("s")
			time.Sleep(time.Millisecond) // lets joins happen in the middle
		}
		if n%3 == 0 {
			th.source.append("s", "k")
		}
	}
	th.source.final("s", "a")
	wg.Wait()
}

// progress is the newest chunk of the running answer; a big number when it has ended.
func (s *source) progress(topic string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.record(topic)
	if r.running == nil {
		if r.top > 0 {
			return 1 << 30
		}
		return 0
	}
	return r.running.Chunk
}

func TestAck_comesInPlaceOfOwnEvent(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	a, wsA := th.join(t, "s")
	_, wsB := th.join(t, "s")
	a.Expect("s", "user:1", func(seq int64) []byte { return fmt.Appendf(nil, "ack %d", seq) })
	th.source.append("s", "other")
	at := th.source.append("s", "user:1")
	th.source.append("s", "other")
	accepted(a, "s", "user:1", at)
	for _, want := range []string{"event s 1 1 other", "ack 2", "event s 1 3 other"} {
		require.Equal(t, want, read(t, wsA))
	}
	for _, want := range []string{"event s 1 1 other", "event s 1 2 user:1", "event s 1 3 other"} {
		require.Equal(t, want, read(t, wsB))
	}
	// A second tab's, or a message sent again: the event itself.
	a.Expect("s", "user:2", func(int64) []byte { return []byte("never") })
	a.Forget("s", "user:2")
	th.source.append("s", "user:2")
	require.Equal(t, "event s 1 4 user:2", read(t, wsA))
}

// accepted is what the server does with what append returned.
func accepted(c *hub.Client, topic, key string, at hub.Position) {
	c.Accepted(topic, key, at.Epoch, at.Seq)
}

func TestAck_comesWhenTheMessageWasInASnapshot(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	ack := func(seq int64) []byte { return fmt.Appendf(nil, "ack %d", seq) }
	th.source.lose = func(m *hub.Message) bool { return strings.HasPrefix(m.Key, "user:") }
	c, ws := th.join(t, "s")

	// Accepted before the snapshot.
	c.Expect("s", "user:1", ack)
	accepted(c, "s", "user:1", th.source.append("s", "user:1"))
	th.source.append("s", "k")
	th.source.trim("s", 1)
	th.Resync("s")
	require.Equal(t, "snapshot s 1 2", read(t, ws))
	require.Equal(t, "ack 1", read(t, ws))

	// And after it.
	c.Expect("s", "user:2", ack)
	at := th.source.append("s", "user:2")
	th.source.append("s", "k")
	th.source.trim("s", 1)
	th.Resync("s")
	require.Equal(t, "snapshot s 1 4", read(t, ws))
	accepted(c, "s", "user:2", at)
	require.Equal(t, "ack 3", read(t, ws))
}

// F9: a number of an epoch that is over says nothing about the log of the next one. The client has no ack of what may be
// lost, and sends it again.
func TestAck_neverComesForAnEpochThatIsOver(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	ack := func(seq int64) []byte { return fmt.Appendf(nil, "ack %d", seq) }
	th.source.lose = func(m *hub.Message) bool { return strings.HasPrefix(m.Key, "user:") }
	c, ws := th.join(t, "s")

	// Accepted before the snapshot.
	c.Expect("s", "user:1", ack)
	accepted(c, "s", "user:1", th.source.append("s", "user:1"))
	th.source.newEpoch("s", 1)
	th.source.append("s", "k")
	require.Equal(t, "snapshot s 1x 1002", read(t, ws))

	// And after it.
	c.Expect("s", "user:2", ack)
	at := th.source.append("s", "user:2")
	th.source.newEpoch("s", 1)
	th.source.append("s", "k")
	require.Equal(t, "snapshot s 1xx 2004", read(t, ws))
	accepted(c, "s", "user:2", at)

	// One that the next epoch has, but the client has not got to, is waited for.
	c.Expect("s", "user:1", ack)
	th.source.newEpoch("s", 0)
	accepted(c, "s", "user:1", th.source.append("s", "user:1"))
	th.Resync("s")
	require.Equal(t, "snapshot s 1xxx 3005", read(t, ws))
	require.Equal(t, "ack 3005", read(t, ws))
}

func TestClient_holdsManyTopics(t *testing.T) {
	th := newTestHub(t, hub.Options{})
	c, ws := th.dial(t)
	const n = 200
	for i := range n {
		require.NoError(t, c.Join(fmt.Sprint("s", i), hub.Position{}, fmt.Append(nil, "live s", i)))
	}
	seen := map[string]bool{}
	for range n {
		seen[read(t, ws)] = true
	}
	require.Len(t, seen, n)
	for i := range n {
		th.source.append(fmt.Sprint("s", i), "k")
		require.Equal(t, fmt.Sprintf("event s%d 1 1 k", i), read(t, ws))
		pos, ok := c.Cursor(fmt.Sprint("s", i))
		require.True(t, ok)
		require.Equal(t, int64(1), pos.Seq)
		if i%2 == 0 {
			c.Leave(fmt.Sprint("s", i))
		}
	}
	require.Eventually(t, func() bool { return th.Topics() == n/2 }, 5*time.Second, time.Millisecond)
}
