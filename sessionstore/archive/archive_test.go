package archive_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/real-rm/chatbox/internal/rig"
	"github.com/real-rm/chatbox/internal/rig/rigtest"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/archive"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var start = time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)

// newArchive returns an archive on a FerretDB of its own, and its address.
func newArchive(t *testing.T) (*archive.Archive, string) {
	t.Helper()
	uri := rig.FerretURI(rigtest.Ferret(t))
	a := open(t, archive.Options{URI: uri})
	require.NoError(t, a.EnsureIndexes(t.Context()))
	return a, uri
}

func open(t *testing.T, o archive.Options) *archive.Archive {
	t.Helper()
	a, err := archive.New(o)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, a.Close(context.Background())) })
	return a
}

// raw is a plain client, to look at what is really stored.
func raw(t *testing.T, uri string) *mongo.Database {
	t.Helper()
	c, err := mongo.Connect(options.Client().ApplyURI(uri))
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Disconnect(context.Background()) })
	return c.Database("chat")
}

func entry(sid string, seq int64, id string) sessionstore.WALEntry {
	h := sessionstore.Header{
		Type: sessionstore.TypeUserMessage, SessionID: sid, MessageID: id, Sender: sessionstore.SenderUser,
		Timestamp: start.Add(time.Duration(seq) * time.Second),
	}
	return sessionstore.WALEntry{
		ID:     fmt.Sprintf("%d-0", seq),
		Stored: sessionstore.Stored{SessionID: sid, Epoch: "1-a", Seq: seq, H: h.Fragment(), C: []byte{1, 0, 255, byte(seq)}},
	}
}

func doc(id, user string, activity time.Time, messages int64) sessionstore.SessionDoc {
	return sessionstore.SessionDoc{
		Session: sessionstore.Session{
			ID: id, UserID: user, UserName: "Ann", Active: true, Owner: sessionstore.OwnerAI,
			Position: sessionstore.Position{Epoch: "1-a", Seq: messages + 1}, Durable: messages + 1,
			Start: start, LastActivity: activity, Messages: messages,
		},
		SealedName: []byte("\x01name"), WrappedKey: []byte("\x01key"),
		Intervals: []sessionstore.Interval{{Start: start}},
	}
}

func seqs(stored []sessionstore.Stored) []int64 {
	out := make([]int64, 0, len(stored))
	for _, s := range stored {
		out = append(out, s.Seq)
	}
	return out
}

// Promise 15: every message is stored once, however often it is written.
// Promise 16: the history returns all messages in order.
func TestInsertMessages_twiceStoresOnceAndReadsInOrder(t *testing.T) {
	a, _ := newArchive(t)
	var in []sessionstore.WALEntry
	for _, seq := range []int64{5, 1, 1004, 3, 2, 4} { // numbers may skip; a batch need not be sorted
		in = append(in, entry("p01-s", seq, fmt.Sprint("m", seq)))
	}
	in = append(in, entry("p01-other", 1, "m1"))
	for range 2 {
		failed, err := a.InsertMessages(t.Context(), in)
		require.NoError(t, err)
		require.Empty(t, failed)
	}

	got, err := a.Messages(t.Context(), "p01-s", 0, 100)
	require.NoError(t, err)
	require.Equal(t, []int64{1, 2, 3, 4, 5, 1004}, seqs(got))
	require.Equal(t, in[1].Stored, got[0], "the same bytes come back")

	got, err = a.Messages(t.Context(), "p01-s", 5, 2)
	require.NoError(t, err)
	require.Equal(t, []int64{3, 4}, seqs(got), "the newest below the bound, oldest first")

	one, found, err := a.Message(t.Context(), "p01-s", sessionstore.SenderUser, "m3")
	require.NoError(t, err)
	require.True(t, found)
	require.EqualValues(t, 3, one.Seq)
	for _, miss := range [][2]string{{"p01-s", "m9"}, {"p01-other", "m3"}} {
		_, found, err = a.Message(t.Context(), miss[0], sessionstore.SenderUser, miss[1])
		require.NoError(t, err)
		require.False(t, found)
	}
	_, found, err = a.Message(t.Context(), "p01-s", sessionstore.SenderAI, "m3")
	require.NoError(t, err)
	require.False(t, found, "the sender is part of the key")
}

func TestInsertMessages_pagesHaveNoGap(t *testing.T) {
	a, _ := newArchive(t)
	var in []sessionstore.WALEntry
	var want []int64
	for seq := int64(1); seq <= 2300; seq++ { // more than one bulk
		in, want = append(in, entry("p02-s", seq, fmt.Sprint(seq))), append(want, seq)
	}
	failed, err := a.InsertMessages(t.Context(), in)
	require.NoError(t, err)
	require.Empty(t, failed)
	var got []int64
	before := int64(0)
	for {
		page, err := a.Messages(t.Context(), "p02-s", before, 700)
		require.NoError(t, err)
		if len(page) == 0 {
			break
		}
		got, before = append(seqs(page), got...), page[0].Seq
	}
	require.Equal(t, want, got)
}

// A poison entry is named and does not keep the others back.
func TestInsertMessages_namesWhatCannotBeStored(t *testing.T) {
	a, _ := newArchive(t)
	in := []sessionstore.WALEntry{entry("p03-s", 1, "a"), entry("p03-s", 2, "b"), entry("p03-s", 3, "c"), entry("p03-s", 4, ""), entry("p03-s", 5, "e")}
	in[1].H = []byte(`"type":"secret word`)
	in[2].C = make([]byte, 17<<20)
	failed, err := a.InsertMessages(t.Context(), in)
	require.NoError(t, err)
	require.Len(t, failed, 3)
	for _, i := range []int{1, 2, 3} {
		require.Error(t, failed[i])
		require.NotContains(t, failed[i].Error(), "secret")
	}
	got, err := a.Messages(t.Context(), "p03-s", 0, 10)
	require.NoError(t, err)
	require.Equal(t, []int64{1, 5}, seqs(got))
}

// What queries need is in the clear, what people wrote is not.
// Promise 44: content is encrypted at rest (the sealing itself is shown in package seal).
func TestInsertMessages_storesTheClearFields(t *testing.T) {
	a, uri := newArchive(t)
	h := sessionstore.Header{
		Type: sessionstore.TypeAIResponse, SessionID: "p04-s", MessageID: "m", Sender: sessionstore.SenderAI,
		Timestamp: start, FileID: "f1", ModelID: "gpt", ResponseTime: 900, FirstToken: 150,
		Spent: sessionstore.Spent{Tokens: 42, TokensIn: 30, TokensOut: 12, TokensCached: 8, Calls: 2, Estimated: true},
	}
	e := sessionstore.WALEntry{ID: "1-0", Stored: sessionstore.Stored{SessionID: "p04-s", Epoch: "7-x", Seq: 3, H: h.Fragment(), C: []byte{9}}}
	failed, err := a.InsertMessages(t.Context(), []sessionstore.WALEntry{e})
	require.NoError(t, err)
	require.Empty(t, failed)

	var got bson.M
	require.NoError(t, raw(t, uri).Collection("messages").FindOne(t.Context(), bson.M{"_id": "p04-s:ai:m"}).Decode(&got))
	for _, stamp := range []string{"_ts", "_mt"} {
		require.WithinDuration(t, time.Now(), got[stamp].(bson.DateTime).Time(), time.Minute)
		delete(got, stamp)
	}
	require.Equal(t, bson.M{
		"_id": "p04-s:ai:m", "session_id": "p04-s", "epoch": "7-x", "seq": int64(3), "message_id": "m",
		"type": "ai_response", "sender": "ai", "timestamp": bson.NewDateTimeFromTime(start), "file_id": "f1", "tokens": int64(42),
		"tokens_in": int64(30), "tokens_out": int64(12), "tokens_cached": int64(8), "calls": int32(2), "estimated": true,
		"first_token": int64(150), "response_time": int64(900), "model_id": "gpt", "h": string(h.Fragment()), "c": bson.Binary{Data: []byte{9}},
	}, got)
}

// Promise 14: a session is recorded with its id, user, start time and metadata.
// Promise 18, 59: a session that ends gets its end time and duration.
func TestSaveSessions_goesForwardOnly(t *testing.T) {
	a, uri := newArchive(t)
	first := doc("p05-s", "u", start, 1)
	first.Session.Spent = sessionstore.Spent{Tokens: 70, TokensIn: 50, TokensOut: 20, TokensCached: 5, Calls: 4}
	first.Session.ResponseSum, first.Session.ResponseCount, first.Session.ResponseMax = 1000, 3, 500
	require.NoError(t, a.SaveSessions(t.Context(), []sessionstore.SessionDoc{first}))
	got, found, err := a.Session(t.Context(), "p05-s")
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, first, got, "what was saved comes back")

	last := first
	last.Session.Seq, last.Session.Durable, last.Session.Messages = 9, 9, 7
	last.Session.LastActivity, last.Session.End = start.Add(time.Minute), start.Add(90*time.Second)
	last.Session.Active, last.Final = false, true
	last.Session.AdminAssisted, last.Session.HelpRequested = true, true
	last.Intervals = []sessionstore.Interval{{Start: start, End: start.Add(90 * time.Second)}}
	// The newest wins within a call and over calls, also when an older one comes late.
	require.NoError(t, a.SaveSessions(t.Context(), []sessionstore.SessionDoc{last, first}))
	require.NoError(t, a.SaveSessions(t.Context(), []sessionstore.SessionDoc{first}))
	got, _, err = a.Session(t.Context(), "p05-s")
	require.NoError(t, err)
	require.Equal(t, last, got)

	var stored bson.M
	require.NoError(t, raw(t, uri).Collection("sessions").FindOne(t.Context(), bson.M{"_id": "p05-s"}).Decode(&stored))
	require.EqualValues(t, 90, stored["duration"])
	for _, field := range []string{
		"_id", "user_id", "user_name", "name", "model_id", "start_time", "end_time", "duration", "last_activity", "message_count",
		"admin_assisted", "assisting_admin_id", "assisting_admin_name", "help_requested", "owner", "total_tokens",
		"total_tokens_in", "total_tokens_out", "total_tokens_cached", "total_calls",
		"max_response_time", "avg_response_time", "takeovers", "intervals", "epoch", "last_seq", "key", "_ts", "_mt",
	} {
		require.Contains(t, stored, field)
	}

	// Opened again: the end is cleared, the time in between does not count.
	again := last
	again.Session.Seq, again.Session.Durable = 20, 20
	again.Session.End, again.Session.Active, again.Final = time.Time{}, true, false
	again.Intervals = append(slices.Clone(last.Intervals), sessionstore.Interval{Start: start.Add(time.Hour)})
	require.NoError(t, a.SaveSessions(t.Context(), []sessionstore.SessionDoc{again}))
	got, _, err = a.Session(t.Context(), "p05-s")
	require.NoError(t, err)
	require.Equal(t, again, got)

	closed := again
	closed.Session.Seq, closed.Session.Durable = 21, 21
	closed.Session.End, closed.Session.Active, closed.Final = start.Add(time.Hour+10*time.Second), false, true
	closed.SealedName, closed.WrappedKey = nil, nil // a caller that does not have them takes nothing away
	require.NoError(t, a.SaveSessions(t.Context(), []sessionstore.SessionDoc{closed}))
	got, _, err = a.Session(t.Context(), "p05-s")
	require.NoError(t, err)
	require.Equal(t, first.WrappedKey, got.WrappedKey)
	require.Equal(t, first.SealedName, got.SealedName)
	require.NoError(t, raw(t, uri).Collection("sessions").FindOne(t.Context(), bson.M{"_id": "p05-s"}).Decode(&stored))
	require.EqualValues(t, 100, stored["duration"])

	_, found, err = a.Session(t.Context(), "p05-absent")
	require.NoError(t, err)
	require.False(t, found)
}

// Promise 17: a user has any number of past sessions.
// Promise 46: the list is ordered by latest activity; keyset pages have no gap and no doubling.
func TestSessions_pagesHoldEachSessionOnceInOrder(t *testing.T) {
	a, _ := newArchive(t)
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		user := fmt.Sprint("user", run)
		var docs, want []sessionstore.SessionDoc
		for i := range rapid.IntRange(0, 12).Draw(rt, "sessions") {
			d := doc(
				fmt.Sprintf("p06-%d-%02d", run, i), user,
				start.Add(time.Duration(rapid.IntRange(0, 3).Draw(rt, "activity"))*time.Millisecond), // ties are the point
				rapid.Int64Range(0, 2).Draw(rt, "messages"),
			)
			docs = append(docs, d)
			if d.Session.Messages > 0 { // sessions without a message are hidden
				want = append(want, d)
			}
		}
		docs = append(docs, doc(fmt.Sprintf("p06-%d-foreign", run), user+"x", start, 1))
		slices.SortStableFunc(want, func(x, y sessionstore.SessionDoc) int {
			if c := y.Session.LastActivity.Compare(x.Session.LastActivity); c != 0 {
				return c
			}
			return strings.Compare(x.Session.ID, y.Session.ID)
		})
		require.NoError(rt, a.SaveSessions(context.Background(), docs))

		limit := rapid.IntRange(1, 5).Draw(rt, "limit")
		var got []sessionstore.SessionDoc
		for cursor := ""; ; {
			page, next, err := a.Sessions(context.Background(), user, cursor, limit)
			require.NoError(rt, err)
			require.LessOrEqual(rt, len(page), limit)
			got = append(got, page...)
			if next == "" {
				break
			}
			require.Len(rt, page, limit)
			cursor = next
		}
		require.Equal(rt, want, got)
	})
}

func TestSessions_refusesAForeignCursor(t *testing.T) {
	a := open(t, archive.Options{URI: "mongodb://127.0.0.1:1/"})
	for _, cursor := range []string{"x", "!!!", "AAAA", `{"$gt":""}`} {
		_, _, err := a.Sessions(t.Context(), "u", cursor, 10)
		require.ErrorIs(t, err, archive.ErrCursor, cursor)
		require.NotErrorIs(t, err, sessionstore.ErrArchive)
	}
}

func TestArchive_awayIsSaidAndHeals(t *testing.T) {
	bin, dir := rigtest.FerretBinary(t), t.TempDir()
	port := rig.FreePort()
	a := open(t, archive.Options{URI: fmt.Sprintf("mongodb://127.0.0.1:%d/", port), Timeout: 300 * time.Millisecond})
	in := []sessionstore.WALEntry{entry("p07-s", 1, "a")}

	check := func() {
		_, err := a.InsertMessages(t.Context(), in)
		require.ErrorIs(t, err, sessionstore.ErrArchive)
		require.ErrorIs(t, a.Ping(t.Context()), sessionstore.ErrArchive)
		require.ErrorIs(t, a.EnsureIndexes(t.Context()), sessionstore.ErrArchive)
		require.ErrorIs(t, a.SaveSessions(t.Context(), []sessionstore.SessionDoc{doc("p07-s", "u", start, 1)}), sessionstore.ErrArchive)
		_, err = a.Messages(t.Context(), "p07-s", 0, 1)
		require.ErrorIs(t, err, sessionstore.ErrArchive)
		_, _, err = a.Session(t.Context(), "p07-s")
		require.ErrorIs(t, err, sessionstore.ErrArchive)
	}
	check()

	p, err := rig.StartFerret(t.Context(), dir, bin, port)
	rigtest.Require(t, "FerretDB", err)
	require.Eventually(t, func() bool {
		_, err := a.InsertMessages(t.Context(), in)
		return err == nil
	}, 20*time.Second, 50*time.Millisecond)

	p.Kill() // and what was acknowledged is there when it comes back
	check()
	p, err = rig.StartFerret(t.Context(), dir, bin, port)
	require.NoError(t, err)
	t.Cleanup(p.Kill)
	require.Eventually(t, func() bool {
		got, err := a.Messages(t.Context(), "p07-s", 0, 1)
		return err == nil && len(got) == 1
	}, 20*time.Second, 50*time.Millisecond)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = a.Messages(ctx, "p07-s", 0, 1)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, sessionstore.ErrArchive, "the caller's own doing is no outage")
}

func TestNew_neverQuotesTheURI(t *testing.T) {
	for _, uri := range []string{"", "mongodb://u:hun/ter2@h", "hunter2://x", "mongodb://u:hunter2@h:99999999", "mongodb://u:hunter2@h/?w=x&w=%zz", "mongodb://u:hunter2@h/?authMechanism=NOPE"} {
		_, err := archive.New(archive.Options{URI: uri})
		require.Error(t, err, uri)
		require.NotContains(t, err.Error(), "hunter2")
		require.NotContains(t, err.Error(), "ter2")
	}
}

func TestEnsureIndexes_makesWhatIsDeclaredOnce(t *testing.T) {
	a, uri := newArchive(t)
	require.NoError(t, a.EnsureIndexes(t.Context()), "a second time does nothing")
	specs, err := raw(t, uri).Collection("messages").Indexes().ListSpecifications(t.Context())
	require.NoError(t, err)
	require.Len(t, specs, 2)
	specs, err = raw(t, uri).Collection("sessions").Indexes().ListSpecifications(t.Context())
	require.NoError(t, err)
	require.Len(t, specs, 2)
}

// Hundreds of documents that exist are updated at once, by two replicas, without either waiting for ever.
func TestSaveSessions_updatesManyAtOnce(t *testing.T) {
	a, _ := newArchive(t)
	docs := make([]sessionstore.SessionDoc, 300)
	for i := range docs {
		docs[i] = doc(fmt.Sprintf("p01-many-%d", i), "u", time.Now(), 1)
	}
	require.NoError(t, a.SaveSessions(t.Context(), docs))
	for i := range docs {
		docs[i].Session.Seq++
		docs[i].Session.Messages = 7
	}
	var g errgroup.Group
	for half := range 2 {
		g.Go(func() error { return a.SaveSessions(t.Context(), docs[half*150:][:150]) })
	}
	require.NoError(t, g.Wait())
	got, found, err := a.Session(t.Context(), "p01-many-299")
	require.NoError(t, err)
	require.True(t, found)
	require.EqualValues(t, 7, got.Session.Messages)
}
