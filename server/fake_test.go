package server

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/real-rm/chatbox/server/chat"
	"github.com/real-rm/chatbox/sessionstore"
	"github.com/real-rm/chatbox/sessionstore/seal"
)

// fakeArchive is MongoDB in memory. A function that is set is asked in place of the memory.
type fakeArchive struct {
	SessionFn  func(context.Context, string) (sessionstore.SessionDoc, bool, error)
	SessionsFn func(ctx context.Context, user, cursor string, limit int) ([]sessionstore.SessionDoc, string, error)
	MessagesFn func(ctx context.Context, sid string, before int64, limit int) ([]sessionstore.Stored, error)
	PingFn     func(context.Context) error

	docs []sessionstore.SessionDoc // latest first
}

var (
	_ Archive            = (*fakeArchive)(nil)
	_ chat.Archive       = (*fakeArchive)(nil)
	_ chat.StoredHistory = (*fakeArchive)(nil)
)

func (f *fakeArchive) Session(ctx context.Context, sid string) (sessionstore.SessionDoc, bool, error) {
	if f.SessionFn != nil {
		return f.SessionFn(ctx, sid)
	}
	for _, d := range f.docs {
		if d.Session.ID == sid {
			return d, true, nil
		}
	}
	return sessionstore.SessionDoc{}, false, nil
}

func (f *fakeArchive) Sessions(ctx context.Context, user, cursor string, limit int) ([]sessionstore.SessionDoc, string, error) {
	if f.SessionsFn != nil {
		return f.SessionsFn(ctx, user, cursor, limit)
	}
	var out []sessionstore.SessionDoc
	for _, d := range f.docs {
		if d.Session.UserID == user {
			out = append(out, d)
		}
	}
	return out[:min(limit, len(out))], "", nil
}

func (f *fakeArchive) Messages(ctx context.Context, sid string, before int64, limit int) ([]sessionstore.Stored, error) {
	if f.MessagesFn != nil {
		return f.MessagesFn(ctx, sid, before, limit)
	}
	return nil, nil
}

func (f *fakeArchive) Message(context.Context, string, sessionstore.Sender, string) (sessionstore.Stored, bool, error) {
	return sessionstore.Stored{}, false, nil
}

func (f *fakeArchive) Ping(ctx context.Context) error {
	if f.PingFn != nil {
		return f.PingFn(ctx)
	}
	return nil
}

// fakeTurns remembers what it was told.
type fakeTurns struct {
	mu      sync.Mutex
	started []string
	signals []sessionstore.Message
}

func (f *fakeTurns) Start(sid string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.started = append(f.started, sid)
}

func (f *fakeTurns) Signal(m sessionstore.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.signals = append(f.signals, m)
}

func (f *fakeTurns) heard() []sessionstore.Message {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]sessionstore.Message(nil), f.signals...)
}

// oneModel is the list of models that may be chosen.
type oneModel struct{}

func (oneModel) Has(id string) bool { return id == "gpt" }

// logs takes log lines and gives them back.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// lines returns the lines with a message; an empty one means all.
func (l *logs) lines(t *testing.T, msg string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for line := range bytes.Lines([]byte(l.String())) {
		var m map[string]any
		require.NoError(t, json.Unmarshal(line, &m))
		if msg == "" || m["msg"] == msg {
			out = append(out, m)
		}
	}
	return out
}

// sealed makes a session's document as the flusher writes it, and the messages' records.
func sealed(t *testing.T, ring *seal.Keyring, s sessionstore.Session, events ...sessionstore.Event) (sessionstore.SessionDoc, []sessionstore.Stored) {
	t.Helper()
	key, wrapped, err := ring.NewDataKey(s.ID)
	require.NoError(t, err)
	doc := sessionstore.SessionDoc{Session: s, WrappedKey: wrapped, Final: !s.Active}
	if s.Name != "" {
		doc.SealedName = key.Seal([]byte(s.Name), seal.NameAD(s.ID))
	}
	doc.Session.Name = ""
	stored := make([]sessionstore.Stored, len(events))
	for i, ev := range events {
		stored[i] = sessionstore.Stored{SessionID: s.ID, Seq: ev.Seq, H: ev.Header.Fragment()}
		if body := ev.Body.Fragment(); len(body) > 0 {
			stored[i].C = key.Seal(body, seal.MessageAD(s.ID, ev.MessageID))
		}
	}
	return doc, stored
}
