package chat

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	sid = "p01-session"
	id1 = "3f0c1c6e-5b1e-4a63-9d5e-0d3f6f3a7a11"
	id2 = "3f0c1c6e-5b1e-4a63-9d5e-0d3f6f3a7a12"
)

var from = From{SessionID: sid, UserID: "ann"}

// fake is store, archive, turns, models and connection in one.
type fake struct {
	mu        sync.Mutex
	appends   []sessionstore.Append
	ids       map[string]int64
	lives     map[string]sessionstore.Session // other sessions that Redis has
	known     map[string]int64                // session/message -> seq, in those
	published []sessionstore.Event
	stops     []string
	started   []string
	restored  []string
	archived  map[string]int64  // session/message -> seq
	users     map[string]string // session -> user, in MongoDB
	events    []sessionstore.Event
	owner     sessionstore.Owner
	revived   []string
	reviveErr error
	quota     int // messages left, < 0: no limit
	returned  int
	broke     bool // no tokens left
	appendErr error
	sessErr   error
	archErr   error

	sent    []string
	expects map[string]bool
}

func newFake() *fake {
	return &fake{ids: map[string]int64{}, archived: map[string]int64{}, users: map[string]string{"p01-old": "ann", sid: "ann"}, quota: -1, expects: map[string]bool{}}
}

func (f *fake) Append(_ context.Context, a sessionstore.Append) (sessionstore.Appended, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.appendErr != nil {
		return sessionstore.Appended{}, f.appendErr
	}
	key := sessionstore.MessageKey(a.Event.Sender, a.Event.MessageID)
	if seq, dup := f.ids[key]; dup {
		return sessionstore.Appended{Position: sessionstore.Position{Seq: seq}, Duplicate: true}, nil
	}
	f.appends = append(f.appends, a)
	f.ids[key] = int64(len(f.appends))
	return sessionstore.Appended{Position: sessionstore.Position{Epoch: "1-a", Seq: f.ids[key]}, Owed: a.Owe}, nil
}

func (f *fake) Publish(_ context.Context, e sessionstore.Event) error {
	f.published = append(f.published, e)
	return nil
}
func (f *fake) Session(_ context.Context, id string) (sessionstore.Session, error) {
	if id == sid {
		return sessionstore.Session{ID: sid, UserID: "ann", Active: true, Owner: f.owner}, nil
	}
	s, found := f.lives[id]
	if !found {
		return s, sessionstore.ErrNotFound
	}
	return s, f.sessErr
}
func (f *fake) Revive(_ context.Context, id, _ string) error {
	f.revived = append(f.revived, id)
	return f.reviveErr
}
func (f *fake) Take(context.Context, string) (time.Duration, bool) {
	if f.quota == 0 {
		return 7 * time.Second, false
	}
	f.quota--
	return 0, true
}
func (f *fake) Return(string) { f.returned++ }
func (f *fake) CheckBudget(context.Context, string) error {
	if f.broke {
		return &sessionstore.BudgetError{Wait: time.Hour}
	}
	return nil
}
func (f *fake) Stop(_ context.Context, _, target string) error {
	f.stops = append(f.stops, target)
	return nil
}
func (f *fake) Restore(_ context.Context, _ string, s sessionstore.Sender, id string, seq int64) error {
	f.restored = append(f.restored, id)
	f.ids[sessionstore.MessageKey(s, id)] = seq
	return nil
}
func (f *fake) Known(_ context.Context, session string, s sessionstore.Sender, id string) (int64, bool, error) {
	if session != sid {
		seq, known := f.known[session+"/"+id]
		return seq, known, nil
	}
	seq, known := f.ids[sessionstore.MessageKey(s, id)]
	return seq, known, nil
}
func (f *fake) Start(s string)     { f.started = append(f.started, s) }
func (f *fake) Has(id string) bool { return id == "gpt" }
func (f *fake) Send(b []byte) bool { f.sent = append(f.sent, string(b)); return true }
func (f *fake) Forget(_, k string) { delete(f.expects, k) }
func (f *fake) Expect(_, k string, ack func(int64) []byte) {
	f.expects[k] = true
	if !json.Valid(ack(5)) {
		panic("ack is not JSON")
	}
}
func (f *fake) Accepted(_, k, epoch string, seq int64) {
	delete(f.expects, k)
	f.sent = append(f.sent, fmt.Sprintf("accepted %s %s %d", k, epoch, seq))
}

// shelf is the fake as MongoDB.
type shelf struct{ *fake }

func (f shelf) Message(_ context.Context, session string, _ sessionstore.Sender, id string) (sessionstore.Stored, bool, error) {
	seq, found := f.archived[session+"/"+id]
	return sessionstore.Stored{SessionID: session, Seq: seq}, found, f.archErr
}
func (f shelf) Session(_ context.Context, id string) (sessionstore.SessionDoc, bool, error) {
	user, found := f.users[id]
	return sessionstore.SessionDoc{Session: sessionstore.Session{ID: id, UserID: user}}, found, f.archErr
}

// talk is the fake as the conversation.
type talk struct{ *fake }

func (f talk) Message(_ context.Context, _ string, sender sessionstore.Sender, id string) (sessionstore.Event, bool, error) {
	for _, ev := range f.events {
		if ev.MessageID == id && ev.Sender == sender {
			return ev, true, nil
		}
	}
	return sessionstore.Event{}, false, nil
}
func (f talk) Context(context.Context, string, int64) ([]sessionstore.Event, error) {
	return f.events, nil
}

func newChat(t *testing.T) (*Chat, *fake) {
	t.Helper()
	f := newFake()
	c, err := New(Options{Store: f, Archive: shelf{f}, History: talk{f}, Revival: f, Turns: f, Models: f, Quota: f})
	require.NoError(t, err)
	return c, f
}

func message(id, content string) protocol.Frame {
	return protocol.Frame{Type: sessionstore.TypeUserMessage, MessageID: id, Content: content}
}

// Promises 10, 15, 49: a message is stored as the user's, named after, acknowledged, and its answer begun.
func TestFrame_acceptsAMessage(t *testing.T) {
	c, f := newChat(t)
	require.NoError(t, c.Frame(t.Context(), f, from, message(id1, "How do I reset my password?")))
	require.Len(t, f.appends, 1)
	a := f.appends[0]
	assert.Equal(t, sessionstore.SenderUser, a.Event.Sender)
	assert.False(t, a.Event.Timestamp.IsZero())
	assert.True(t, a.Owe)
	assert.Equal(t, "How do I reset my password?", a.Name)
	assert.Equal(t, []string{sid}, f.started)
	assert.Equal(t, []string{"accepted user:" + id1 + " 1-a 1"}, f.sent)
}

// The name is made, and sealed by the store, for the first message that has words in it, not for each.
func TestFrame_namesASessionOnce(t *testing.T) {
	c, f := newChat(t)
	from := from
	from.Named = new(atomic.Bool)
	say := func(text string) string {
		require.NoError(t, c.Frame(t.Context(), f, from, message(uuid.NewString(), text)))
		return f.appends[len(f.appends)-1].Name
	}
	assert.Empty(t, say(" \n "))
	assert.Equal(t, "first words", say("first words"))
	assert.Empty(t, say("second words"))
	from.Named.Store(false) // Redis has lost the session, and it came back without its name
	assert.Equal(t, "third words", say("third words"))
}

// Beyond B7: the same message sent again is acknowledged as a duplicate with its first seq, and answered once.
func TestFrame_acknowledgesADuplicateWithoutASecondAnswer(t *testing.T) {
	c, f := newChat(t)
	for range 3 {
		require.NoError(t, c.Frame(t.Context(), f, from, message(id1, "hello")))
	}
	assert.Len(t, f.appends, 1)
	assert.Len(t, f.started, 1)
	assert.JSONEq(t, `{"type":"ack","session_id":"`+sid+`","message_id":"`+id1+`","seq":1,"duplicate":true}`, f.sent[2])
	assert.Empty(t, f.expects)
}

// A message that was not stored is not acknowledged, and nothing waits for it.
func TestFrame_doesNotAcknowledgeWhatWasNotStored(t *testing.T) {
	c, f := newChat(t)
	f.appendErr = sessionstore.ErrAway
	require.ErrorIs(t, c.Frame(t.Context(), f, from, message(id1, "hello")), sessionstore.ErrAway)
	assert.Empty(t, f.sent)
	assert.Empty(t, f.expects)
	assert.Empty(t, f.started)
}

// A message sent again after its session ended, or after Redis lost its memory, is found in MongoDB.
func TestFrame_looksResentMessagesUpInTheArchive(t *testing.T) {
	c, f := newChat(t)
	f.archived["p01-old/"+id1] = 7
	resent := message(id1, "hello")
	resent.Resent, resent.SessionID = true, "p01-old"
	require.NoError(t, c.Frame(t.Context(), f, from, resent))
	assert.Empty(t, f.appends)
	assert.Contains(t, f.sent[0], `"duplicate":true`)
	assert.Empty(t, f.restored)

	resent.MessageID = id2 // not in MongoDB: it goes to the active session under the same id
	require.NoError(t, c.Frame(t.Context(), f, from, resent))
	require.Len(t, f.appends, 1)
	assert.Equal(t, id2, f.appends[0].Event.MessageID)

	f.archived[sid+"/"+id1] = 3 // of the present session: the id is put back
	resent.MessageID, resent.SessionID = id1, sid
	require.NoError(t, c.Frame(t.Context(), f, from, resent))
	assert.Equal(t, []string{id1}, f.restored)

	assert.Equal(t, []string{sid}, f.revived, "with what else Redis has lost")
	assert.Contains(t, f.started, sid, "it may be owed an answer")

	delete(f.ids, "user:"+id1)
	f.archErr = sessionstore.ErrArchive // cannot know: no ack, an error that can be retried
	require.ErrorIs(t, c.Frame(t.Context(), f, from, resent), sessionstore.ErrArchive)
}

// A message that was accepted in a session that has ended since is a duplicate there, and makes nothing in the present
// one: Redis still knows, so that MongoDB may be away, or not have it yet.
func TestFrame_findsResentMessagesInEndedSessionsOfRedis(t *testing.T) {
	c, f := newChat(t)
	f.lives = map[string]sessionstore.Session{"p01-old": {ID: "p01-old", UserID: "ann", Whole: true}}
	f.known = map[string]int64{"p01-old/" + id1: 7}
	resent := message(id1, "hello")
	resent.Resent, resent.SessionID = true, "p01-old"
	for name, err := range map[string]error{"away": sessionstore.ErrArchive, "lagging": nil} {
		f.archErr, f.sent = err, nil
		require.NoError(t, c.Frame(t.Context(), f, from, resent), name)
		require.Len(t, f.sent, 1, name)
		assert.JSONEq(t, `{"type":"ack","session_id":"p01-old","message_id":"`+id1+`","seq":7,"duplicate":true}`, f.sent[0], name)
	}
	assert.Empty(t, f.appends)
	assert.Empty(t, f.started)
	assert.Empty(t, f.restored)

	f.sessErr = sessionstore.ErrAway // whose it is cannot be known
	require.ErrorIs(t, c.Frame(t.Context(), f, from, resent), sessionstore.ErrAway)
	assert.Empty(t, f.appends)
}

// What Redis has whole and does not know was never accepted there: it is a new message, with MongoDB away too. Where
// Redis may have lost something, or has nothing, MongoDB has to be asked.
func TestFrame_takesTheWordOfAWholeSessionOnly(t *testing.T) {
	for name, c := range map[string]struct {
		old  *sessionstore.Session
		asks bool
	}{
		"whole":            {&sessionstore.Session{UserID: "ann", Whole: true}, false},
		"begun anew":       {&sessionstore.Session{UserID: "ann"}, true},
		"whole, not ended": {&sessionstore.Session{UserID: "ann", Whole: true, Active: true}, true},
		"not in Redis":     {nil, true},
		"somebody else's":  {&sessionstore.Session{UserID: "bob", Whole: true}, false},
	} {
		t.Run(name, func(t *testing.T) {
			chat, f := newChat(t)
			f.archErr = sessionstore.ErrArchive
			if c.old != nil {
				f.lives = map[string]sessionstore.Session{"p01-old": *c.old}
			}
			resent := message(id1, "hello")
			resent.Resent, resent.SessionID = true, "p01-old"
			err := chat.Frame(t.Context(), f, from, resent)
			if c.asks {
				require.ErrorIs(t, err, sessionstore.ErrArchive)
				assert.Empty(t, f.appends)
				return
			}
			require.NoError(t, err)
			assert.Len(t, f.appends, 1)
		})
	}
}

// Promise 3: that an id is known in somebody else's session is told to nobody.
func TestFrame_tellsNothingOfForeignSessionsInRedis(t *testing.T) {
	c, f := newChat(t)
	f.lives = map[string]sessionstore.Session{"p01-bobs": {ID: "p01-bobs", UserID: "bob", Whole: true}}
	f.known = map[string]int64{"p01-bobs/" + id1: 7}
	resent := message(id1, "hello")
	resent.Resent, resent.SessionID = true, "p01-bobs"
	require.NoError(t, c.Frame(t.Context(), f, from, resent))
	assert.Equal(t, []string{"accepted user:" + id1 + " 1-a 1"}, f.sent)
	assert.Len(t, f.appends, 1, "it is a new message of the active session")
}

// Promise 30: a model that exists is set on the session; another is refused.
func TestFrame_selectsOnlyModelsThatExist(t *testing.T) {
	c, f := newChat(t)
	require.NoError(t, c.Frame(t.Context(), f, from, protocol.Frame{Type: sessionstore.TypeModelSelect, MessageID: id1, ModelID: "gpt"}))
	assert.Equal(t, "gpt", f.appends[0].ModelID)
	err := c.Frame(t.Context(), f, from, protocol.Frame{Type: sessionstore.TypeModelSelect, MessageID: id2, ModelID: "nope"})
	var refused *protocol.Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, protocol.CodeInvalidModel, refused.Code)
	assert.Len(t, f.appends, 1)
}

func TestFrame_stopsAndAcknowledgesWithoutASeq(t *testing.T) {
	c, f := newChat(t)
	require.NoError(t, c.Frame(t.Context(), f, from, protocol.Frame{Type: sessionstore.TypeStop, MessageID: id1, Target: id2}))
	assert.Equal(t, []string{id2}, f.stops)
	assert.JSONEq(t, `{"type":"ack","session_id":"`+sid+`","message_id":"`+id1+`"}`, f.sent[0])
}

func TestFrame_publishesTypingWithoutStoringIt(t *testing.T) {
	c, f := newChat(t)
	require.NoError(t, c.Frame(t.Context(), f, from, protocol.Frame{Type: sessionstore.TypeTyping, Active: true}))
	require.Len(t, f.published, 1)
	assert.True(t, *f.published[0].Active)
	assert.Empty(t, f.appends)
}

// Feature: chat-application-websocket, Property 49 (Promise 49): a session's name comes from its first message.
func TestNameFrom_isAShortLineOfTheMessage(t *testing.T) {
	assert.Equal(t, "second line", NameFrom("  \n\t\n second   line \nthird"))
	assert.Empty(t, NameFrom(" \n "))
	assert.True(t, strings.HasSuffix(NameFrom(strings.Repeat("word ", 40)), "…"))
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "text")
		name := NameFrom(text)
		require.LessOrEqual(t, utf8.RuneCountInString(name), nameLength)
		require.NotContains(t, name, "\n")
		require.Equal(t, strings.TrimSpace(name), name)
		if strings.IndexFunc(text, func(r rune) bool { return r > ' ' && r < 127 }) >= 0 {
			require.NotEmpty(t, name)
		}
	})
}

// Beyond its user's tokens of today a message is refused, with the time of the next ones; what was accepted before is a
// duplicate all the same, and who is not metered is not refused.
func TestBudget_refusesNewMessagesOnly(t *testing.T) {
	f := newFake()
	c, err := New(Options{Store: f, Archive: shelf{f}, History: talk{f}, Revival: f, Turns: f, Models: f, Quota: f, Budget: f})
	require.NoError(t, err)
	first := protocol.Frame{Type: sessionstore.TypeUserMessage, MessageID: id1, Content: "hello"}
	require.NoError(t, c.Frame(t.Context(), f, from, first))
	f.broke = true
	var used *sessionstore.BudgetError
	for _, frame := range []protocol.Frame{
		{Type: sessionstore.TypeUserMessage, MessageID: id2, Content: "more"},
		{Type: sessionstore.TypeRetry, MessageID: id2, Target: id1},
	} {
		require.ErrorAs(t, c.Frame(t.Context(), f, from, frame), &used)
	}
	assert.Equal(t, time.Hour, used.Wait)
	assert.Len(t, f.appends, 1)
	require.NoError(t, c.Frame(t.Context(), f, from, first), "a duplicate is free")
	admin := from
	admin.Unmetered = true
	require.NoError(t, c.Frame(t.Context(), f, admin, protocol.Frame{Type: sessionstore.TypeUserMessage, MessageID: id2, Content: "more"}))
	assert.Len(t, f.appends, 2)
	assert.True(t, f.appends[1].Unmetered)
}

// Promise 54, beyond B2: who has no tokens left can still write to a person, and send again what was acknowledged and lost.
func TestBudget_isForWhatTheModelIsAsked(t *testing.T) {
	f := newFake()
	c, err := New(Options{Store: f, Archive: shelf{f}, History: talk{f}, Revival: f, Turns: f, Models: f, Budget: f})
	require.NoError(t, err)
	f.broke, f.owner = true, sessionstore.OwnerHuman
	require.NoError(t, c.Frame(t.Context(), f, from, protocol.Frame{Type: sessionstore.TypeUserMessage, MessageID: id1, Content: "to Eve"}))
	f.owner = sessionstore.OwnerAI
	require.NoError(t, c.Frame(t.Context(), f, from,
		protocol.Frame{Type: sessionstore.TypeUserMessage, MessageID: id2, Content: "lost", SessionID: sid, Resent: true}))
	assert.Len(t, f.appends, 2)
}
