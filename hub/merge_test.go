package hub_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/hub"
)

// onPipes has the hub serve a network without buffers beside its own, where what is written waits until it is read, and
// returns how to dial there.
func (th *testHub) onPipes(t testing.TB) func(t testing.TB) (*hub.Client, *websocket.Conn) {
	t.Helper()
	p := &pipes{conns: make(chan net.Conn), end: make(chan struct{})}
	server := &httptest.Server{Listener: p, Config: &http.Server{Handler: http.HandlerFunc(th.serve)}} //nolint:gosec // nobody else gets there
	server.Start()
	t.Cleanup(server.Close)
	client := &http.Client{Transport: &http.Transport{DialContext: p.dial}}
	return func(t testing.TB) (*hub.Client, *websocket.Conn) {
		t.Helper()
		return th.dialWith(t, &websocket.DialOptions{HTTPClient: client})
	}
}

// mergeText is a hub.Options.Merge for the frames that story publishes.
func mergeText(first, last *hub.Message, text []byte) []byte {
	return chunkFrame(last.Answer, last.Attempt, first.Chunk, last.Chunk, first.Reset, text)
}

func chunkFrame(answer string, attempt, first, last int, reset bool, text []byte) []byte {
	kind := "chunk"
	if reset {
		kind = "reset"
	}
	return fmt.Appendf(nil, "%s %s %d %d %d %s", kind, answer, attempt, first, last, text)
}

// story publishes what happens in a topic.
type story struct {
	hub            *hub.Hub
	topic          string
	seq            int64
	answers        int
	attempt, chunk int
	text           string
}

func (s *story) answer() string { return fmt.Sprint("a", s.answers) }

func (s *story) publish(m hub.Message) {
	m.Topic, m.Epoch = s.topic, "1"
	s.hub.Publish(m)
}

func (s *story) say(text string) {
	s.attempt = max(s.attempt, 1)
	s.chunk++
	s.text += text
	s.publish(hub.Message{Answer: s.answer(), Attempt: s.attempt, Chunk: s.chunk, Delta: []byte(text),
		Data: chunkFrame(s.answer(), s.attempt, s.chunk, s.chunk, false, []byte(text))})
}

func (s *story) reset(text string) {
	s.attempt, s.chunk, s.text = s.attempt+1, 1, text
	s.publish(hub.Message{Answer: s.answer(), Attempt: s.attempt, Chunk: 1, Reset: true, Delta: []byte(text),
		Data: chunkFrame(s.answer(), s.attempt, 1, 1, true, []byte(text))})
}

func (s *story) event() {
	s.seq++
	s.publish(hub.Message{Seq: s.seq, Data: fmt.Appendf(nil, "event %d", s.seq)})
}

func (s *story) final() {
	s.seq++
	s.publish(hub.Message{Seq: s.seq, Answer: s.answer(), Data: fmt.Appendf(nil, "final %s %d %s", s.answer(), s.seq, s.text)})
	s.answers++
	s.attempt, s.chunk, s.text = 0, 0, ""
}

// listener is a client as the page is one. seen is what it had on the screen whenever a durable event came.
type listener struct {
	all            bool // every piece comes, also right before a final
	answer         string
	attempt, chunk int
	text           string
	seq            int64
	frames, merged int
	seen           []string
}

func (l *listener) take(frame string) error {
	l.frames++
	f := strings.SplitN(frame, " ", 6)
	switch f[0] {
	case "chunk", "reset":
		var attempt, first, last int
		_, _ = fmt.Sscan(f[2]+" "+f[3]+" "+f[4], &attempt, &first, &last)
		if f[1] != l.answer {
			l.answer, l.attempt, l.chunk, l.text = f[1], 0, 0, ""
		}
		if last > first {
			l.merged++
		}
		switch {
		case f[0] == "reset" && attempt > l.attempt:
			l.text = f[5]
		case f[0] == "chunk" && (attempt == l.attempt || l.attempt == 0) && first == l.chunk+1:
			l.text += f[5]
		default:
			return fmt.Errorf("%.60q after chunk %d of attempt %d", frame, l.chunk, l.attempt)
		}
		l.attempt, l.chunk = attempt, last
	case "event":
		l.seen = append(l.seen, l.answer+" "+l.text)
		return l.durable(f[1], frame)
	case "final":
		whole := strings.SplitN(frame, " ", 4)[3]
		if l.all && f[1] == l.answer && l.text != whole {
			return fmt.Errorf("%.60q shown of what ends as %.60q", l.text, whole)
		}
		l.answer, l.text = f[1], whole
		l.seen = append(l.seen, l.answer+" "+l.text)
		return l.durable(f[2], frame)
	}
	return nil
}

func (l *listener) durable(seq, frame string) error {
	l.seq++
	if seq != fmt.Sprint(l.seq) {
		return fmt.Errorf("%.60q after %d", frame, l.seq-1)
	}
	return nil
}

// listen takes frames until one is called "end".
func (l *listener) listen(ctx context.Context, ws *websocket.Conn) error {
	for {
		if done, err := l.next(ctx, ws); done || err != nil {
			return err
		}
	}
}

func (l *listener) next(ctx context.Context, ws *websocket.Conn) (done bool, err error) {
	_, b, err := ws.Read(ctx)
	if err != nil {
		return false, err
	}
	if bytes.Equal(b, []byte("end")) {
		return true, nil
	}
	return false, l.take(string(b))
}

func liveAt(t testing.TB, c *hub.Client, ws *websocket.Conn, topic string) {
	t.Helper()
	require.NoError(t, c.Join(topic, hub.Position{Epoch: "1"}, []byte("live")))
	require.Equal(t, "live", read(t, ws))
}

// Beyond B6: whatever the pace at which a client reads, it is shown the text that others are shown, every durable event
// once, in its place, and is not closed while what it has not read fits into its queue.
func TestSlowClient_isShownWhatAFastOneIsShown(t *testing.T) {
	long, short := newTestHub(t, hub.Options{Merge: mergeText}), newTestHub(t, hub.Options{Merge: mergeText, QueueBytes: 64 << 10})
	dialLong, dialShort := long.onPipes(t), short.onPipes(t)
	cases, merged, closed := 0, 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		cases++
		// With long pieces and a short queue finals and resets stand for what waits before them, and it may be too much.
		th, dial, piece := long, dialLong, 1
		if rapid.IntRange(0, 2).Draw(rt, "queue") == 0 {
			th, dial, piece = short, dialShort, 300
		}
		s := &story{hub: th.Hub, topic: fmt.Sprint("case", cases)}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		fastClient, fastWS := th.dial(t)
		slowClient, slowWS := dial(t)
		defer func() { _, _ = fastWS.CloseNow(), slowWS.CloseNow() }()
		liveAt(t, fastClient, fastWS, s.topic)
		liveAt(t, slowClient, slowWS, s.topic)
		fast, slow := &listener{all: piece == 1}, &listener{all: piece == 1}
		read := make(chan error, 1)
		go func() { read <- fast.listen(ctx, fastWS) }()

		words := func() string { return strings.Repeat(rapid.StringMatching(`[a-z ]{1,8}`).Draw(rt, "text"), piece) }
		actions := map[string]func(*rapid.T){
			"": func(rt *rapid.T) {
				if slow.seq > s.seq {
					rt.Fatalf("it has seen %d of %d events", slow.seq, s.seq)
				}
			},
			"some words": func(rt *rapid.T) {
				for range rapid.IntRange(1, 6).Draw(rt, "chunks") {
					s.say(words())
				}
			},
			"starts again": func(*rapid.T) { s.reset(words()) },
			"event":        func(*rapid.T) { s.event() },
			"typing":       func(*rapid.T) { s.publish(hub.Message{Data: []byte("typing")}) },
			"pong":         func(*rapid.T) { slowClient.Send([]byte("pong")) },
			"final":        func(*rapid.T) { s.final() },
			"reads": func(rt *rapid.T) {
				for range rapid.IntRange(1, 3).Draw(rt, "frames") {
					if !slowClient.Send([]byte("pong")) && th == short { // so that there is something
						return
					}
					if _, err := slow.next(ctx, slowWS); err != nil {
						rt.Fatalf("slow client: %v (code %d)", err, slowClient.Code())
					}
				}
			},
		}
		rt.Repeat(actions)
		s.final()
		fastClient.Send([]byte("end"))
		slowClient.Send([]byte("end"))
		if err := slow.listen(ctx, slowWS); err != nil && th == short && slowClient.Code() == hub.CodeSlow {
			closed++
			return
		} else if err != nil {
			rt.Fatalf("slow client: %v (code %d)", err, slowClient.Code())
		}
		if err := <-read; err != nil {
			rt.Fatalf("fast client: %v", err)
		}
		if slow.seq != s.seq || fast.seq != s.seq {
			rt.Fatalf("%d events, fast client has %d, slow client has %d", s.seq, fast.seq, slow.seq)
		}
		for i := range fast.seen {
			if slow.all && slow.seen[i] != fast.seen[i] {
				rt.Fatalf("at event %d one shows %q, the other %q", i+1, fast.seen[i], slow.seen[i])
			}
		}
		merged += slow.merged
	})
	require.Positive(t, merged, "nothing was ever merged")
	require.Less(t, closed, cases/5)
	t.Logf("%d merged frames in %d cases, %d slow clients closed", merged, cases, closed)
}

// Promise 44, Beyond B6: a client that does not keep up with the pace of small deltas gets bigger ones and stays. Only one that
// cannot even take the text is closed.
func TestSlowClient_getsBiggerDeltasAndIsClosedOnlyWhenTheTextIsTooMuch(t *testing.T) {
	const queue, small = 32 << 10, 2000
	th := newTestHub(t, hub.Options{Merge: mergeText, QueueBytes: queue})
	c, ws := th.onPipes(t)(t)
	liveAt(t, c, ws, "s")
	s := &story{hub: th.Hub, topic: "s"}
	whole := 0
	for i := range small { // as separate frames more than twice the queue
		word := fmt.Sprint(i, " ")
		whole += len(chunkFrame("a0", 1, s.chunk+1, s.chunk+1, false, []byte(word))) + 16
		s.say(word)
	}
	require.Greater(t, whole, 2*queue)
	require.Zero(t, c.Code(), "closed")
	text := s.text
	s.event()
	c.Send([]byte("end"))
	l := &listener{}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, l.listen(ctx, ws))
	require.Equal(t, []string{"a0 " + text}, l.seen)
	require.Less(t, l.frames, 10, "%d chunks came as %d frames", small, l.frames)

	for c.Code() == 0 && s.chunk < small+100 {
		s.say(strings.Repeat("x", queue/16))
	}
	require.Equal(t, hub.CodeSlow, c.Code())
	require.Less(t, s.chunk, small+25)
}

// The final holds the whole text: a client that is far behind is not sent the pieces before it.
func TestSlowClient_isNotSentPiecesThatTheFinalRepeats(t *testing.T) {
	th := newTestHub(t, hub.Options{Merge: mergeText, QueueBytes: 300_000})
	c, ws := th.onPipes(t)(t)
	liveAt(t, c, ws, "s")
	s := &story{hub: th.Hub, topic: "s"}
	for range 20 {
		s.say(strings.Repeat("y", 10_000))
	}
	s.event()
	s.final()
	c.Send([]byte("end"))
	l := &listener{}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	require.NoError(t, l.listen(ctx, ws))
	require.EqualValues(t, 2, l.seq)
	require.Len(t, l.text, 200_000)
	require.LessOrEqual(t, l.frames, 3, "the event, the final, and what was being written when the client fell behind")
}

// A chunk that the bus has lost stays missing for everybody: chunks on both sides of it are not joined.
func TestSlowClient_isToldOfAGapLikeAFastOne(t *testing.T) {
	th := newTestHub(t, hub.Options{Merge: mergeText})
	c, ws := th.onPipes(t)(t)
	liveAt(t, c, ws, "s")
	s := &story{hub: th.Hub, topic: "s"}
	for range 4 {
		s.say("x")
	}
	s.chunk++ // this one
	s.say("y")
	c.Send([]byte("end"))
	l := &listener{}
	err := l.listen(t.Context(), ws)
	require.Error(t, err)
	require.NotErrorIs(t, err, context.Canceled)
	require.Equal(t, "xxxx", l.text)
	require.Equal(t, 4, l.chunk)
}

// An admin's socket follows many sessions at once: each answer is merged for itself.
func TestSlowClient_withManyTopicsGetsEachAnswerMerged(t *testing.T) {
	const topics, words = 12, 50
	th := newTestHub(t, hub.Options{Merge: mergeText})
	c, ws := th.onPipes(t)(t)
	stories := make([]*story, topics)
	for i := range stories {
		stories[i] = &story{hub: th.Hub, topic: fmt.Sprint("s", i), answers: i}
		liveAt(t, c, ws, stories[i].topic)
	}
	for w := range words {
		for _, s := range stories {
			s.say(fmt.Sprint(w, ";"))
		}
	}
	c.Send([]byte("end"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	by := map[string]*listener{}
	frames := 0
	for {
		_, b, err := ws.Read(ctx)
		require.NoError(t, err)
		if string(b) == "end" {
			break
		}
		frames++
		name := strings.Fields(string(b))[1]
		if by[name] == nil {
			by[name] = &listener{}
		}
		require.NoError(t, by[name].take(string(b)))
	}
	for _, s := range stories {
		require.Equal(t, s.text, by[s.answer()].text)
	}
	require.LessOrEqual(t, frames, 2*topics, "those that the write under way holds, and one more of each")
}
