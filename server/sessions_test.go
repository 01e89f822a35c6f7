package server

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/server/protocol"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/archive"
)

// wireList is a list as clients read it.
type wireList[T any] struct {
	Items   []T    `json:"items"`
	Next    string `json:"next"`
	Partial bool   `json:"partial"`
}

func listOf[T any](t *testing.T, rec *httptest.ResponseRecorder) wireList[T] {
	t.Helper()
	require.Equal(t, http.StatusOK, rec.Code, rec.Body.String())
	return decode[wireList[T]](t, rec.Body)
}

func ids(items []sessionItem) []string {
	out := []string{}
	for _, it := range items {
		out = append(out, it.ID)
	}
	return out
}

var start = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// old is an ended session of a user that MongoDB has.
func (r *replica) old(t *testing.T, user, sid, name string) {
	t.Helper()
	doc, _ := sealed(t, r.ring, sessionstore.Session{
		ID: sid, UserID: user, Name: name, ModelID: "gpt", Start: start, End: start.Add(90 * time.Second), LastActivity: start.Add(time.Minute),
		Messages: 4, Spent: sessionstore.Spent{Tokens: 99, TokensIn: 90, TokensOut: 9, TokensCached: 40, Calls: 3}, AdminAssisted: true,
	})
	r.archive.docs = append(r.archive.docs, doc)
}

// talk gives the user an active session with a message in it.
func (r *replica) talk(t *testing.T, user, sid string) *book {
	t.Helper()
	b := r.live.begin(user, sid)
	_, err := r.live.Append(t.Context(), sessionstore.Append{Name: "Name of " + sid, Event: sessionstore.Event{
		Header: sessionstore.Header{Type: sessionstore.TypeUserMessage, SessionID: sid, MessageID: "m-" + sid, Sender: sessionstore.SenderUser},
		Body:   sessionstore.Body{Content: "hello"},
	}})
	require.NoError(t, err)
	return b
}

// Promises 17, 46, 50, 55: the list has all sessions of the user and of nobody else, the active one first, each with
// name, times, count and marks.
func TestList_mergesTheActiveSessionWithTheStoredOnes(t *testing.T) {
	r := newReplica(t)
	r.old(t, "ann", "p01-old1", "First <question>")
	r.old(t, "bob", "p01-bobs", "Bob's")
	r.old(t, "ann", "p01-old2", "")
	r.talk(t, "ann", "p01-now")
	got := listOf[sessionItem](t, r.do(t, "ann", http.MethodGet, "/chat/sessions"))
	require.Equal(t, []string{"p01-now", "p01-old1", "p01-old2"}, ids(got.Items))
	assert.False(t, got.Partial)
	assert.Equal(t, "Name of p01-now", got.Items[0].Name)
	assert.True(t, got.Items[0].Active)
	assert.Nil(t, got.Items[0].EndTime)
	assert.EqualValues(t, 1, got.Items[0].MessageCount)

	end := start.Add(90 * time.Second)
	assert.Equal(t, sessionItem{
		ID: "p01-old1", Name: "First <question>", ModelID: "gpt", StartTime: start, EndTime: &end, Duration: 90, // Promise 18
		LastActivity: start.Add(time.Minute), MessageCount: 4, AdminAssisted: true, TotalTokens: 99,
		TokensIn: 90, TokensOut: 9, TokensCached: 40, Calls: 3,
	}, got.Items[1])
	assert.Empty(t, got.Items[2].Name)
}

func TestList_ofNobodyYetIsEmptyNotNull(t *testing.T) {
	r := newReplica(t)
	r.live.begin("ann", "p01-quiet") // no message yet: nothing to show
	assert.JSONEq(t, `{"items":[]}`, r.do(t, "ann", http.MethodGet, "/chat/sessions").Body.String())
}

// The flusher may have brought the active session's document to MongoDB already: it is shown once, as it is now.
func TestList_showsTheActiveSessionOnce(t *testing.T) {
	r := newReplica(t)
	b := r.talk(t, "ann", "p01-now")
	doc, _ := sealed(t, r.ring, b.Session)
	r.archive.docs = append(r.archive.docs, doc)
	r.old(t, "ann", "p01-old", "Old")
	got := listOf[sessionItem](t, r.do(t, "ann", http.MethodGet, "/chat/sessions"))
	assert.Equal(t, []string{"p01-now", "p01-old"}, ids(got.Items))

	// On later pages neither: it was on the first.
	got = listOf[sessionItem](t, r.do(t, "ann", http.MethodGet, "/chat/sessions?cursor=abc"))
	assert.Equal(t, []string{"p01-old"}, ids(got.Items))
}

// A page holds as many sessions as were asked for, the active one included, and the pages together hold each once.
func TestList_holdsNoMoreThanTheLimit(t *testing.T) {
	r := newReplica(t)
	r.talk(t, "ann", "p01-now")
	for i := range 4 {
		r.old(t, "ann", fmt.Sprint("p01-old", i), "Old")
	}
	r.archive.SessionsFn = func(_ context.Context, _, cursor string, limit int) ([]sessionstore.SessionDoc, string, error) {
		from, _ := strconv.Atoi(cursor)
		to := min(from+limit, len(r.archive.docs))
		next := ""
		if to < len(r.archive.docs) {
			next = strconv.Itoa(to)
		}
		return r.archive.docs[from:to], next, nil
	}
	for limit := 1; limit <= 6; limit++ {
		var all []string
		for cursor := ""; ; {
			got := listOf[sessionItem](t, r.do(t, "ann", http.MethodGet, fmt.Sprintf("/chat/sessions?limit=%d&cursor=%s", limit, cursor)))
			require.LessOrEqual(t, len(got.Items), limit)
			all = append(all, ids(got.Items)...)
			if cursor = got.Next; cursor == "" {
				break
			}
		}
		require.Equal(t, []string{"p01-now", "p01-old0", "p01-old1", "p01-old2", "p01-old3"}, all, "limit %d", limit)
	}
}

// A session that has ended while MongoDB still has it as active is shown as ended.
func TestList_doesNotShowAnEndedSessionAsActive(t *testing.T) {
	r := newReplica(t)
	b := r.talk(t, "ann", "p01-gone")
	stale, _ := sealed(t, r.ring, b.Session)
	r.archive.docs = append(r.archive.docs, stale)
	require.NoError(t, r.live.End(t.Context(), "p01-gone", "explicit", ""))
	got := listOf[sessionItem](t, r.do(t, "ann", http.MethodGet, "/chat/sessions"))
	require.Len(t, got.Items, 1)
	assert.False(t, got.Items[0].Active)
	assert.NotNil(t, got.Items[0].EndTime)

	// Redis has forgotten it: what MongoDB has is all there is.
	delete(r.live.sessions, "p01-gone")
	got = listOf[sessionItem](t, r.do(t, "ann", http.MethodGet, "/chat/sessions"))
	require.Len(t, got.Items, 1)
	assert.Equal(t, "Name of p01-gone", got.Items[0].Name)

	r.live.SessionFn = func(context.Context, string) (sessionstore.Session, error) {
		return sessionstore.Session{}, sessionstore.ErrAway
	}
	refused(t, r.do(t, "ann", http.MethodGet, "/chat/sessions"), http.StatusServiceUnavailable, protocol.CodeStoreUnavailable)
}

// With MongoDB away the active session is there, and the list says that it is a part.
func TestList_isPartialWhileMongoDBIsAway(t *testing.T) {
	r := newReplica(t)
	r.talk(t, "ann", "p01-now")
	r.archive.SessionsFn = func(context.Context, string, string, int) ([]sessionstore.SessionDoc, string, error) {
		return nil, "", fmt.Errorf("sessions: %w", sessionstore.ErrArchive)
	}
	got := listOf[sessionItem](t, r.do(t, "ann", http.MethodGet, "/chat/sessions"))
	assert.Equal(t, []string{"p01-now"}, ids(got.Items))
	assert.True(t, got.Partial)
}

// Cursor and limit reach MongoDB as they are, the limit at most 200; the next cursor comes back.
func TestList_passesCursorAndLimitOn(t *testing.T) {
	r := newReplica(t)
	var asked []string
	r.archive.SessionsFn = func(_ context.Context, user, cursor string, limit int) ([]sessionstore.SessionDoc, string, error) {
		asked = append(asked, fmt.Sprint(user, " ", cursor, " ", limit))
		return nil, "next+page", nil
	}
	for _, query := range []string{"", "?limit=7", "?limit=100000&cursor=abc"} {
		assert.Equal(t, "next+page", listOf[sessionItem](t, r.do(t, "ann", http.MethodGet, "/chat/sessions"+query)).Next)
	}
	assert.Equal(t, []string{"ann  50", "ann  7", "ann abc 200"}, asked)

	r.archive.SessionsFn = func(context.Context, string, string, int) ([]sessionstore.SessionDoc, string, error) {
		return nil, "", fmt.Errorf("sessions: %w", archive.ErrCursor)
	}
	refused(t, r.do(t, "ann", http.MethodGet, "/chat/sessions?cursor=x"), http.StatusBadRequest, protocol.CodeBadFrame)
}

// Promise 42: limits and positions that are no numbers, or no sensible ones, are refused before anything is asked.
func TestQuery_thatIsNotWellFormed(t *testing.T) {
	r := newReplica(t)
	r.talk(t, "ann", "p01-now")
	for _, path := range []string{
		"/chat/sessions?limit=0", "/chat/sessions?limit=-1", "/chat/sessions?limit=x", "/chat/sessions?limit=99999999999999999999",
		"/chat/sessions/p01-now/messages?limit=0", "/chat/sessions/p01-now/messages?before=-1", "/chat/sessions/p01-now/messages?before=1.5",
	} {
		refused(t, r.do(t, "ann", http.MethodGet, path), http.StatusBadRequest, protocol.CodeBadFrame)
	}
}

// A session whose name cannot be opened is our failure, which is told, but not one that hides the user's others.
func TestList_ofASessionWhoseNameCannotBeOpened(t *testing.T) {
	r := newReplica(t)
	r.old(t, "ann", "p01-old", "Old")
	r.old(t, "ann", "p01-older", "Older")
	r.archive.docs[0].SealedName[20] ^= 1
	got := listOf[sessionItem](t, r.do(t, "ann", http.MethodGet, "/chat/sessions"))
	require.Equal(t, []string{"p01-old", "p01-older"}, ids(got.Items))
	assert.Empty(t, got.Items[0].Name)
	assert.EqualValues(t, 4, got.Items[0].MessageCount)
	assert.Equal(t, "Older", got.Items[1].Name)
	require.Len(t, r.logs.lines(t, "session is listed without its name"), 1)
	refused(t, r.do(t, "ann", http.MethodGet, "/chat/sessions/p01-old"), http.StatusInternalServerError, protocol.CodeInternal)
}

// Promise 48: POST makes a session, or says which one is active already.
func TestCreate_makesOneSessionPerUser(t *testing.T) {
	r := newReplica(t)
	rec := r.do(t, "ann", http.MethodPost, "/chat/sessions")
	require.Equal(t, http.StatusCreated, rec.Code)
	made := decode[sessionItem](t, rec.Body)
	assert.True(t, made.Active)
	assert.Equal(t, "gpt", made.ModelID)
	assert.Equal(t, sessionstore.OpenRequest{UserID: "ann", UserName: "Name of ann", ModelID: "gpt", NewOnly: true}, r.live.opened[0])

	p := refused(t, r.do(t, "ann", http.MethodPost, "/chat/sessions"), http.StatusConflict, protocol.CodeSessionActive)
	assert.Equal(t, made.ID, p.SessionID)
	assert.Equal(t, http.StatusCreated, r.do(t, "bob", http.MethodPost, "/chat/sessions").Code)
}

// A foreign id and an absent one answer alike, byte for byte, whether Redis or MongoDB has the session, and nothing
// happens to it.
func TestForeignID_isAnsweredLikeAnAbsentOne(t *testing.T) {
	r := newReplica(t)
	r.talk(t, "bob", "p01-bob-live")
	r.old(t, "bob", "p01-bob-old", "Bob's secret")
	for _, route := range []string{"GET /chat/sessions/:id", "GET /chat/sessions/:id/messages", "POST /chat/sessions/:id/end"} {
		method, path, _ := strings.Cut(route, " ")
		answer := func(id string) string {
			rec := r.do(t, "ann", method, strings.Replace(path, ":id", id, 1), "X-Request-Id", "same")
			body := rec.Body.String()
			refused(t, rec, http.StatusNotFound, protocol.CodeNotFound)
			return fmt.Sprint(rec.Header(), body)
		}
		absent := answer("p01-nobody")
		assert.Equal(t, absent, answer("p01-bob-live"), route)
		assert.Equal(t, absent, answer("p01-bob-old"), route)
		assert.Equal(t, absent, answer(strings.Repeat("x", 129)), route)
		assert.Equal(t, absent, answer("%27%22%3Cscript%3E"), route)
	}
	assert.True(t, r.live.sessions["p01-bob-live"].Active)
}

func TestRead_findsTheSessionInRedisOrMongoDB(t *testing.T) {
	r := newReplica(t)
	r.talk(t, "ann", "p01-now")
	r.old(t, "ann", "p01-old", "Old one")
	for id, name := range map[string]string{"p01-now": "Name of p01-now", "p01-old": "Old one"} {
		rec := r.do(t, "ann", http.MethodGet, "/chat/sessions/"+id)
		require.Equal(t, http.StatusOK, rec.Code)
		assert.Equal(t, name, decode[sessionItem](t, rec.Body).Name)
	}
	// Which of the two is away is told apart from "there is no such session".
	r.archive.SessionFn = func(context.Context, string) (sessionstore.SessionDoc, bool, error) {
		return sessionstore.SessionDoc{}, false, sessionstore.ErrArchive
	}
	refused(t, r.do(t, "ann", http.MethodGet, "/chat/sessions/p01-old"), http.StatusServiceUnavailable, protocol.CodeStoreUnavailable)
	r.live.SessionFn = func(context.Context, string) (sessionstore.Session, error) {
		return sessionstore.Session{}, sessionstore.ErrAway
	}
	refused(t, r.do(t, "ann", http.MethodGet, "/chat/sessions/p01-now"), http.StatusServiceUnavailable, protocol.CodeStoreUnavailable)
	for _, action := range []string{"GET /messages", "POST /end"} {
		method, path, _ := strings.Cut(action, " ")
		refused(t, r.do(t, "ann", method, "/chat/sessions/p01-now"+path), http.StatusServiceUnavailable, protocol.CodeStoreUnavailable)
	}
}

// Feature: chat-application-websocket, Properties 16 and 47 (Promises 16, 47): pages of a session come in order, oldest
// first, and lead back to its beginning, across Redis and MongoDB.
func TestMessages_pageBackToTheBeginning(t *testing.T) {
	r := newReplica(t)
	b := r.talk(t, "ann", "p01-now")
	for i := range 4 {
		b.add(sessionstore.Event{
			Header: sessionstore.Header{Type: sessionstore.TypeUserMessage, SessionID: b.ID, MessageID: fmt.Sprint("m", i), Sender: sessionstore.SenderUser},
			Body:   sessionstore.Body{Content: fmt.Sprint("text ", i)},
		})
	}
	doc, stored := sealed(t, r.ring, b.Session, b.events...)
	r.archive.docs = append(r.archive.docs, doc)
	r.archive.MessagesFn = func(_ context.Context, _ string, before int64, limit int) ([]sessionstore.Stored, error) {
		older := stored[:before-1]
		return older[max(0, len(older)-limit):], nil
	}
	b.trimmed = 3 // the first three are in MongoDB only
	var seqs []int64
	before := ""
	for range 4 {
		page := listOf[frame](t, r.do(t, "ann", http.MethodGet, "/chat/sessions/p01-now/messages?limit=2&before="+before))
		var part []int64
		for _, f := range page.Items {
			part = append(part, f.Seq)
			assert.Equal(t, b.ID, f.SessionID)
		}
		seqs = append(part, seqs...)
		if before = page.Next; before == "" {
			break
		}
	}
	assert.Equal(t, []int64{1, 2, 3, 4, 5, 6}, seqs)

	r.archive.MessagesFn = func(context.Context, string, int64, int) ([]sessionstore.Stored, error) {
		return nil, sessionstore.ErrArchive
	}
	page := listOf[json.RawMessage](t, r.do(t, "ann", http.MethodGet, "/chat/sessions/p01-now/messages"))
	assert.True(t, page.Partial)
	assert.Len(t, page.Items, 3)
	refused(t, r.do(t, "ann", http.MethodGet, "/chat/sessions/p01-now/messages?before=3"), http.StatusServiceUnavailable, protocol.CodeStoreUnavailable)
}

// Promise 18: an end is an end, with its time; ending again changes nothing.
func TestEnd_endsOnce(t *testing.T) {
	r := newReplica(t)
	r.talk(t, "ann", "p01-now")
	rec := r.do(t, "ann", http.MethodPost, "/chat/sessions/p01-now/end")
	require.Equal(t, http.StatusOK, rec.Code)
	first := decode[sessionItem](t, rec.Body)
	assert.False(t, first.Active)
	require.NotNil(t, first.EndTime)
	assert.Equal(t, "explicit", r.live.sessions["p01-now"].events[2].Metadata[sessionstore.MetaReason])

	r.live.EndFn = func(context.Context, string, string, string) error { panic("ended twice") }
	rec = r.do(t, "ann", http.MethodPost, "/chat/sessions/p01-now/end")
	require.Equal(t, http.StatusOK, rec.Code)
	assert.Equal(t, first, decode[sessionItem](t, rec.Body))
	assert.Len(t, r.logs.lines(t, "session ended"), 1)
}

// Between reading and ending, the session may end by itself and leave Redis.
func TestEnd_ofASessionThatLeavesRedisMeanwhile(t *testing.T) {
	r := newReplica(t)
	r.talk(t, "ann", "p01-now")
	r.old(t, "ann", "p01-now", "Stored")
	r.live.EndFn = func(_ context.Context, sid, _, _ string) error {
		delete(r.live.sessions, sid)
		return sessionstore.ErrNotFound
	}
	rec := r.do(t, "ann", http.MethodPost, "/chat/sessions/p01-now/end")
	require.Equal(t, http.StatusOK, rec.Code)
	assert.Equal(t, "Stored", decode[sessionItem](t, rec.Body).Name)

	r.talk(t, "ann", "p01-now")
	r.archive.docs = nil
	refused(t, r.do(t, "ann", http.MethodPost, "/chat/sessions/p01-now/end"), http.StatusNotFound, protocol.CodeNotFound)

	r.talk(t, "ann", "p01-now")
	r.live.EndFn = func(context.Context, string, string, string) error { return sessionstore.ErrAway }
	refused(t, r.do(t, "ann", http.MethodPost, "/chat/sessions/p01-now/end"), http.StatusServiceUnavailable, protocol.CodeStoreUnavailable)
}
