package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/hub"
	"github.com/real-rm/chatbox/sessionstore"
)

// event makes a message as the store gives it.
func event(seq int64, h sessionstore.Header, content string) sessionstore.Message {
	h.SessionID = "p01-s"
	ev := sessionstore.Event{Header: h, Body: sessionstore.Body{Content: content}, Seq: seq}
	return sessionstore.Message{
		SessionID: "p01-s", Epoch: "1-a", Seq: seq, Type: h.Type, Sender: h.Sender, MessageID: h.MessageID,
		Attempt: h.Attempt, Chunk: h.Chunk, Reset: h.Reset, Frame: ev.Frame(),
	}
}

// What the hub must know of an event: where it stands, whose ack it can be, and which answer it belongs to.
func TestHubMessage_ofEveryKind(t *testing.T) {
	for name, c := range map[string]struct {
		header sessionstore.Header
		seq    int64
		want   hub.Message
	}{
		"a user's message": {
			sessionstore.Header{Type: sessionstore.TypeUserMessage, Sender: sessionstore.SenderUser, MessageID: "m1"}, 7,
			hub.Message{Seq: 7, Key: "user:m1"},
		},
		"a chunk": {
			sessionstore.Header{Type: sessionstore.TypeAIResponse, Sender: sessionstore.SenderAI, MessageID: "a1", Attempt: 2, Chunk: 5}, 0,
			hub.Message{Answer: "a1", Attempt: 2, Chunk: 5},
		},
		"a reset": {
			sessionstore.Header{Type: sessionstore.TypeAIResponse, Sender: sessionstore.SenderAI, MessageID: "a1", Attempt: 3, Chunk: 1, Reset: true}, 0,
			hub.Message{Answer: "a1", Attempt: 3, Chunk: 1, Reset: true},
		},
		"a final": { // marks the answer as complete: later chunks of it are dropped
			sessionstore.Header{Type: sessionstore.TypeAIResponse, Sender: sessionstore.SenderAI, MessageID: "a1"}, 8,
			hub.Message{Seq: 8, Key: "ai:a1", Answer: "a1"},
		},
		"typing":        {sessionstore.Header{Type: sessionstore.TypeTyping, Sender: sessionstore.SenderUser}, 0, hub.Message{}},
		"without an id": {sessionstore.Header{Type: sessionstore.TypeStarted, Sender: sessionstore.SenderSystem}, 1, hub.Message{Seq: 1}},
		"a stop has an id, but is no event in the order": {
			sessionstore.Header{Type: sessionstore.TypeStop, Sender: sessionstore.SenderUser, MessageID: "m2"}, 0, hub.Message{},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := event(c.seq, c.header, "text")
			c.want.Topic, c.want.Epoch, c.want.Data = "p01-s", "1-a", m.Frame
			assert.Equal(t, c.want, hubMessage(m))
		})
	}
}

// What the hub makes of chunks that wait for a slow client is one frame of the protocol.
func TestMergeChunks_makesOneFrameOfSeveral(t *testing.T) {
	chunk := func(n int, reset bool, text string) *hub.Message {
		h := sessionstore.Header{Type: sessionstore.TypeAIResponse, SessionID: "p01-s", Sender: sessionstore.SenderAI, MessageID: "a1", Attempt: 2, Chunk: n, Reset: reset}
		body := sessionstore.Body{Delta: text}.Fragment()
		m := hubMessage(sessionstore.Message{
			SessionID: "p01-s", Type: h.Type, MessageID: "a1", Attempt: 2, Chunk: n, Reset: reset,
			Delta: sessionstore.DeltaOf(body), Frame: sessionstore.Frame(0, h.Fragment(), body),
		})
		return &m
	}
	last := chunk(7, false, `"third"`)
	text := slices.Concat(chunk(5, false, "first\n").Delta, chunk(6, false, " second ").Delta, last.Delta)
	assert.JSONEq(t, `{"type":"ai_response","session_id":"p01-s","message_id":"a1","sender":"ai","attempt":2,"first_chunk":5,"chunk":7,"delta":"first\n second \"third\""}`,
		string(mergeChunks(chunk(5, false, ""), last, text)))
	assert.JSONEq(t, `{"type":"ai_response","session_id":"p01-s","message_id":"a1","sender":"ai","attempt":2,"chunk":7,"reset":true,"delta":"first\n second \"third\""}`,
		string(mergeChunks(chunk(1, true, ""), last, text)))
}

// pageOf is a store that has one page.
func pageOf(p sessionstore.Page, err error) feed {
	f := newFakeLive()
	f.ReadFn = func(context.Context, string, sessionstore.Position) (sessionstore.Page, error) { return p, err }
	return feed{f, fakeReviver(func(string, string) error { return sessionstore.ErrNotFound }), newWhole(noTranscripts{}, &health{}, newMending().mend, slog.New(slog.DiscardHandler))}
}

func TestFeed_readsAPageMessageByMessage(t *testing.T) {
	user := sessionstore.Header{Type: sessionstore.TypeUserMessage, Sender: sessionstore.SenderUser}
	running := event(0, sessionstore.Header{Type: sessionstore.TypeAIResponse, MessageID: "a1", Attempt: 1, Chunk: 3, Reset: true}, "so far")
	in := sessionstore.Page{
		Messages: []sessionstore.Message{event(2, user, "two"), event(3, user, "three")},
		Position: sessionstore.Position{Epoch: "1-a", Seq: 3}, Running: &running,
	}
	page, err := pageOf(in, nil).Read(t.Context(), "p01-s", hub.Position{Epoch: "1-a", Seq: 1})
	require.NoError(t, err)
	require.Len(t, page.Messages, 2)
	assert.Equal(t, in.Messages[1].Frame, page.Messages[1].Data)
	assert.Equal(t, hub.Position{Epoch: "1-a", Seq: 3}, page.Position)
	assert.False(t, page.Snapshot)
	assert.False(t, page.More)
	require.NotNil(t, page.Running)
	assert.Equal(t, "a1", page.Running.Answer)
	assert.Equal(t, 3, page.Running.Chunk)

	in.More, in.Running = true, nil
	page, err = pageOf(in, nil).Read(t.Context(), "p01-s", hub.Position{})
	require.NoError(t, err)
	assert.True(t, page.More)
	assert.Nil(t, page.Running)
}

// Promise 31: a snapshot is one valid frame, whatever is in it, and stands at the top.
func TestFeed_makesOneFrameOfASnapshot(t *testing.T) {
	in := sessionstore.Page{
		Messages: []sessionstore.Message{
			event(41, sessionstore.Header{Type: sessionstore.TypeUserMessage, Sender: sessionstore.SenderUser, MessageID: "m1"}, `"quoted" </script>`),
			event(42, sessionstore.Header{Type: sessionstore.TypeAIResponse, Sender: sessionstore.SenderAI, MessageID: "a1"}, "answer"),
		},
		Position: sessionstore.Position{Epoch: "1-a", Seq: 42}, Snapshot: true, HasMore: true,
	}
	page, err := pageOf(in, nil).Read(t.Context(), "p01-s", hub.Position{Epoch: "0-x", Seq: 9})
	require.NoError(t, err)
	assert.True(t, page.Snapshot)
	require.Len(t, page.Messages, 1)
	m := page.Messages[0]
	assert.EqualValues(t, 42, m.Seq)
	assert.Empty(t, m.Key)
	assert.Empty(t, m.Answer, "the snapshot is no answer")
	var f frame
	require.NoError(t, json.Unmarshal(m.Data, &f))
	assert.Equal(t, "snapshot", f.String())
	assert.True(t, f.HasMore)
	require.Len(t, f.Messages, 2)
	assert.Equal(t, `"quoted" </script>`, f.Messages[0].Content)

	empty := sessionstore.Page{Position: sessionstore.Position{Epoch: "2-b", Seq: 1000}, Snapshot: true}
	page, err = pageOf(empty, nil).Read(t.Context(), "p01-s", hub.Position{})
	require.NoError(t, err)
	assert.JSONEq(t, `{"type":"connection_status","status":"snapshot","session_id":"p01-s","epoch":"2-b","seq":1000,"has_more":false,"messages":[]}`,
		string(page.Messages[0].Data))
}

// What may heal is asked for again; what cannot is said to be lost, and keeps its cause.
func TestFeed_tellsWhatIsLostFromWhatIsAway(t *testing.T) {
	for err, lost := range map[error]bool{
		sessionstore.ErrAway: false, context.DeadlineExceeded: false, sessionstore.ErrNotFound: true, sessionstore.ErrUnsealed: true,
	} {
		_, got := pageOf(sessionstore.Page{}, fmt.Errorf("read: %w", err)).Read(t.Context(), "p01-s", hub.Position{})
		require.ErrorIs(t, got, err)
		assert.Equal(t, lost, errors.Is(got, hub.ErrLost), err)
	}
}

// The last page of a session that has ended says how its readers are closed.
func TestFeed_saysWhenNothingWillFollow(t *testing.T) {
	ended := func(next string) sessionstore.Message {
		ev := sessionstore.Event{Header: sessionstore.Header{Type: sessionstore.TypeEnded, SessionID: "p01-s"}, Seq: 2}
		ev.Metadata = map[string]string{sessionstore.MetaNext: next}
		return sessionstore.Message{SessionID: "p01-s", Seq: 2, Type: ev.Type, Frame: ev.Frame()}
	}
	for name, c := range map[string]struct {
		session  sessionstore.Session
		messages []sessionstore.Message
		want     *hub.Over
	}{
		"active":                     {sessionstore.Session{ID: "p01-s", Active: true}, nil, nil},
		"state not read":             {sessionstore.Session{}, nil, nil},
		"ended":                      {sessionstore.Session{ID: "p01-s"}, []sessionstore.Message{ended("")}, &hub.Over{Code: hub.CodeEnded, Reason: reasonEnded}},
		"goes on":                    {sessionstore.Session{ID: "p01-s"}, []sessionstore.Message{ended("p01-t")}, &hub.Over{Code: hub.CodeResync, Reason: reasonElsewhere}},
		"the reader has the end now": {sessionstore.Session{ID: "p01-s"}, nil, &hub.Over{Code: hub.CodeEnded, Reason: reasonEnded}},
	} {
		page, err := pageOf(sessionstore.Page{Session: c.session, Messages: c.messages}, nil).Read(t.Context(), "p01-s", hub.Position{})
		require.NoError(t, err)
		assert.Equal(t, c.want, page.Over, name)
	}
}

// A session that cannot be read any more does not leave its sockets waiting for ever.
func TestLost_closesTheSockets(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		r.live.set(func() { delete(r.live.sessions, "p01-ann-1") })
		fn(r.live, &r.live.handler).Resync("p01-ann-1")
		assert.Equal(t, hub.CodeResync, s.code())
		assert.NotEmpty(t, r.logs.lines(t, "topic lost"))
	})
}

// An end that the bus has lost closes the sockets as soon as it is read.
func TestEnded_isFoundByReading(t *testing.T) {
	for next, code := range map[string]hub.Code{"": hub.CodeEnded, "p01-next": hub.CodeResync} {
		inBubble(t, func(r *replica) {
			t := r.t
			s := r.dialQuiet(t, "ann")
			r.live.set(func() { r.live.mute = true })
			require.NoError(t, r.live.End(t.Context(), "p01-ann-1", "explicit", next))
			fn(r.live, &r.live.handler).Resync("p01-ann-1")
			assert.Equal(t, "session_ended 2", s.names())
			assert.Equal(t, code, s.code())
		})
	}
}

// A session that ends between the opening and the catch-up ends its new socket too.
func TestEnded_whileASocketIsBeingOpened(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		r.live.set(func() {
			r.live.OpenFn = func(ctx context.Context, q sessionstore.OpenRequest) (sessionstore.Opened, error) {
				opened, err := r.live.open(q)
				assert.NoError(t, r.live.End(ctx, opened.Session.ID, "explicit", ""))
				return opened, err
			}
		})
		s := r.dial(t, "ann")
		frames := s.take()
		assert.Equal(t, "snapshot", frames[1].String())
		assert.Equal(t, "session_ended 2", frames[1].Messages[1].String())
		assert.Equal(t, hub.CodeEnded, s.code())
	})
}

// Turns hear of everything that the bus brings, also in sessions that have no socket here.
func TestDelivery_signalsTheTurnsOfSessionsWithoutSockets(t *testing.T) {
	r := newReplica(t)
	d := delivery{hub: r.hub, turns: r.turns}
	stop := event(0, sessionstore.Header{Type: sessionstore.TypeStop}, "")
	d.Message(stop)
	ended := event(9, sessionstore.Header{Type: sessionstore.TypeEnded}, "")
	d.Message(ended)
	d.Resync("p01-s")
	assert.Equal(t, []sessionstore.Message{stop, ended}, r.turns.heard())
}

// A session that ends takes its sockets with it, the event first, and no others.
func TestEnded_closesTheSocketsOfItsSession(t *testing.T) {
	for name, c := range map[string]struct {
		next string
		code hub.Code
	}{"for good": {"", hub.CodeEnded}, "and goes on elsewhere": {"p01-next", hub.CodeResync}} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(r *replica) {
				t := r.t
				one, two, stranger := r.dialQuiet(t, "ann"), r.dialQuiet(t, "ann"), r.dialQuiet(t, "bob")
				require.NoError(t, r.live.End(t.Context(), "p01-ann-1", "explicit", c.next))
				for _, s := range []*socket{one, two} {
					f := s.one()
					assert.Equal(t, "session_ended 2", f.String())
					assert.Equal(t, "explicit", f.Metadata[sessionstore.MetaReason])
					assert.Equal(t, c.next, f.Metadata[sessionstore.MetaNext])
					assert.Equal(t, c.code, s.code())
				}
				assert.Zero(t, stranger.code())
				assert.Empty(t, stranger.take())
				stranger.leave()
			})
		})
	}
}

// I4: a socket that is still catching up is closed when it has got there, with all that comes before the end.
func TestEnded_waitsForSocketsThatAreCatchingUp(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		r.live.set(func() {
			r.live.ReadFn = func(context.Context, string, sessionstore.Position) (sessionstore.Page, error) {
				return sessionstore.Page{}, sessionstore.ErrAway
			}
		})
		s := r.dial(t, "ann")
		assert.Equal(t, "connected", s.names())
		require.NoError(t, r.live.End(t.Context(), "p01-ann-1", "explicit", ""))
		assert.Empty(t, s.take())
		assert.Zero(t, s.code())
		r.live.set(func() { r.live.ReadFn = nil })
		time.Sleep(10 * time.Second) // the hub looks again
		frames := s.take()
		require.NotEmpty(t, frames)
		assert.Equal(t, "snapshot", frames[0].String())
		assert.Equal(t, "session_ended 2", frames[0].Messages[1].String())
		assert.Equal(t, hub.CodeEnded, s.code())
	})
}

// POST /end over HTTP reaches the user's other devices at once.
func TestEnd_closesTheSocketsOfTheSession(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		require.Equal(t, 200, r.do(t, "ann", "POST", "/chat/sessions/p01-ann-1/end").Code)
		assert.Equal(t, "session_ended 2", s.names())
		assert.Equal(t, hub.CodeEnded, s.code())

		again := r.dial(t, "ann")
		assert.Equal(t, "p01-ann-2", again.take()[0].SessionID)
		again.leave()
	})
}

// The bus had a hole: what is missing is read, and the running answer is shown again.
func TestResync_readsWhatIsMissing(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		s := r.dialQuiet(t, "ann")
		r.live.set(func() {
			b := r.live.sessions["p01-ann-1"]
			b.add(sessionstore.Event{Header: sessionstore.Header{Type: sessionstore.TypeModelSelect, SessionID: b.ID}})
			m := b.message(sessionstore.Event{Header: sessionstore.Header{
				Type: sessionstore.TypeAIResponse, SessionID: b.ID, MessageID: "a1", Attempt: 1, Chunk: 2, Reset: true,
			}})
			b.running = &m
		})
		fn(r.live, &r.live.handler).Resync("p01-ann-1")
		assert.Equal(t, "model_select 2, ai_response chunk 2", s.names())
		s.leave()
	})
}

// A session that cannot be subscribed to yet is tried again; until then the client is not told that it is live.
func TestSubscribe_isTriedAgain(t *testing.T) {
	inBubble(t, func(r *replica) {
		t := r.t
		r.live.set(func() {
			r.live.SubscribeFn = func(context.Context, string) error { return errors.New("not yet") }
		})
		s := r.dial(t, "ann")
		pass(5 * probeEvery)
		assert.Equal(t, "connected", s.names())
		r.live.set(func() { r.live.SubscribeFn = nil })
		pass(5 * probeEvery)
		assert.Equal(t, "snapshot, live", s.names())
		s.leave()
	})
}
