package chat

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore"
)

func ask(id string) sessionstore.Event {
	return sessionstore.Event{Header: sessionstore.Header{Type: sessionstore.TypeUserMessage, Sender: sessionstore.SenderUser, MessageID: id}}
}

func answer(id, content, answers string, meta ...string) sessionstore.Event {
	m := map[string]string{sessionstore.MetaAnswers: answers}
	for _, name := range meta {
		m[name] = "true"
	}
	return sessionstore.Event{
		Header: sessionstore.Header{Type: sessionstore.TypeAIResponse, Sender: sessionstore.SenderAI, MessageID: id},
		Body:   sessionstore.Body{Content: content, Metadata: m},
	}
}

// Beyond B11: what can be granted is an event that is owed an answer; what cannot is refused, and nothing is stored.
func TestAgain_acceptsOnlyWhatCanBeGranted(t *testing.T) {
	events := []sessionstore.Event{
		ask("q1"), answer("done", "text", "q1"),
		ask("q2"), answer("stopped", "te", "q2", sessionstore.MetaStopped),
		ask("q3"), answer("failed", "", "q3", sessionstore.MetaFailed),
		ask("q4"), answer("failed at last", "te", "q4", sessionstore.MetaFailed), answer("worked", "text", "r q4"),
		ask("q5"),
		{Header: sessionstore.Header{Type: sessionstore.TypeModelSelect, Sender: sessionstore.SenderUser, MessageID: "model"}},
	}
	for _, c := range []struct {
		typ, target string
		want        protocol.Code // empty: accepted
	}{
		{sessionstore.TypeRegenerate, "done", ""},
		{sessionstore.TypeRegenerate, "failed", ""},
		{sessionstore.TypeRegenerate, "q1", protocol.CodeNotFound},
		{sessionstore.TypeRegenerate, "nobody", protocol.CodeNotFound},
		{sessionstore.TypeContinue, "stopped", ""},
		{sessionstore.TypeContinue, "failed at last", ""},
		{sessionstore.TypeContinue, "done", protocol.CodeBadFrame},
		{sessionstore.TypeContinue, "failed", protocol.CodeBadFrame},
		{sessionstore.TypeRetry, "q3", ""},
		{sessionstore.TypeRetry, "q1", protocol.CodeBadFrame},
		{sessionstore.TypeRetry, "q2", protocol.CodeBadFrame},
		{sessionstore.TypeRetry, "q4", protocol.CodeBadFrame},
		{sessionstore.TypeRetry, "q5", protocol.CodeBadFrame},
		{sessionstore.TypeRetry, "model", protocol.CodeBadFrame},
		{sessionstore.TypeRetry, "done", protocol.CodeNotFound},
	} {
		t.Run(c.typ+" "+c.target, func(t *testing.T) {
			chat, f := newChat(t)
			f.events = events
			err := chat.Frame(t.Context(), f, from, protocol.Frame{Type: c.typ, MessageID: id1, Target: c.target})
			if c.want == "" {
				require.NoError(t, err)
				require.Len(t, f.appends, 1)
				assert.Equal(t, c.target, f.appends[0].Event.Target)
				assert.Equal(t, c.typ, f.appends[0].Event.Type)
				assert.True(t, f.appends[0].Owe)
				assert.Equal(t, []string{sid}, f.started)
				return
			}
			var refused *protocol.Error
			require.ErrorAs(t, err, &refused)
			assert.Equal(t, c.want, refused.Code)
			assert.Empty(t, f.appends)
			assert.Empty(t, f.started)
		})
	}
}

// While a person has the session the AI is silent: no other answer can be had.
func TestAgain_isRefusedWhileAPersonHasTheSession(t *testing.T) {
	chat, f := newChat(t)
	f.events = []sessionstore.Event{ask("q1"), answer("done", "text", "q1")}
	f.owner = sessionstore.OwnerHuman
	err := chat.Frame(t.Context(), f, from, protocol.Frame{Type: sessionstore.TypeRegenerate, MessageID: id1, Target: "done"})
	require.ErrorIs(t, err, sessionstore.ErrAssisted)
	assert.Empty(t, f.appends)
}

// Beyond B7: a wish that is sent again is a duplicate, also when it could not be granted any more.
func TestAgain_sentAgainIsADuplicate(t *testing.T) {
	chat, f := newChat(t)
	f.events = []sessionstore.Event{ask("q1"), answer("failed", "", "q1", sessionstore.MetaFailed)}
	wish := protocol.Frame{Type: sessionstore.TypeRetry, MessageID: id1, Target: "q1"}
	require.NoError(t, chat.Frame(t.Context(), f, from, wish))
	f.events = append(f.events, answer("worked", "text", id1+" q1"))
	require.NoError(t, chat.Frame(t.Context(), f, from, wish))
	assert.Len(t, f.appends, 1)
	assert.Contains(t, f.sent[1], `"duplicate":true`)
}

// Promise 43: messages beyond the rate are refused with the time to wait; duplicates and other frames are free.
func TestFrame_countsMessagesAgainstTheRate(t *testing.T) {
	chat, f := newChat(t)
	f.quota = 1
	require.NoError(t, chat.Frame(t.Context(), f, from, message(id1, "one")))
	err := chat.Frame(t.Context(), f, from, message(id2, "two"))
	var refused *protocol.Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, protocol.CodeRateLimited, refused.Code)
	assert.Equal(t, 7*time.Second, refused.RetryAfter)
	assert.True(t, refused.Recoverable)
	assert.Len(t, f.appends, 1)

	require.NoError(t, chat.Frame(t.Context(), f, from, message(id1, "one")), "a duplicate is free, also beyond the rate")
	assert.Zero(t, f.returned, "what was not taken is not given back")
	require.NoError(t, chat.Frame(t.Context(), f, from, protocol.Frame{Type: sessionstore.TypeModelSelect, MessageID: id2, ModelID: "gpt"}))

	f.quota = 5
	require.NoError(t, chat.Frame(t.Context(), f, from, message(id1, "one")))
	assert.Equal(t, 1, f.returned, "a duplicate within the rate is given back")
	f.appendErr = sessionstore.ErrAway
	require.Error(t, chat.Frame(t.Context(), f, from, message("3f0c1c6e-5b1e-4a63-9d5e-0d3f6f3a7a13", "three")))
	assert.Equal(t, 2, f.returned, "what was not stored is given back")
}

// Promise 3: a message is looked for in sessions of its own user only.
func TestFrame_doesNotFindResentMessagesInForeignSessions(t *testing.T) {
	chat, f := newChat(t)
	f.users["p01-old"] = "somebody else"
	f.archived["p01-old/"+id1] = 7
	resent := message(id1, "hello")
	resent.Resent, resent.SessionID = true, "p01-old"
	require.NoError(t, chat.Frame(t.Context(), f, from, resent))
	assert.Len(t, f.appends, 1, "it is a new message of the active session")
}

// What Redis knows needs no MongoDB, so that a crowd that comes back does not ask it.
func TestFrame_asksMongoDBOnlyForWhatRedisDoesNotKnow(t *testing.T) {
	chat, f := newChat(t)
	require.NoError(t, chat.Frame(t.Context(), f, from, message(id1, "hello")))
	f.archErr = sessionstore.ErrArchive
	resent := message(id1, "hello")
	resent.Resent, resent.SessionID = true, sid
	require.NoError(t, chat.Frame(t.Context(), f, from, resent))
	assert.Contains(t, f.sent[1], `"duplicate":true`)
	assert.Len(t, f.appends, 1)
}

// A session that cannot be put back gives no ack: the client keeps the message and comes again.
func TestFrame_doesNotAcknowledgeWhatCouldNotBePutBack(t *testing.T) {
	chat, f := newChat(t)
	f.archived[sid+"/"+id1] = 3
	f.reviveErr = sessionstore.ErrAway
	resent := message(id1, "hello")
	resent.Resent, resent.SessionID = true, sid
	require.ErrorIs(t, chat.Frame(t.Context(), f, from, resent), sessionstore.ErrAway)
	assert.Empty(t, f.sent)
	assert.Empty(t, f.restored)
}
